//! What a server writes is stamped greater than all that it has applied of its own, whichever of its
//! processes wrote that, and whatever its wall clock does: no stamp of one server names two writes.
//!
//! Source: a hybrid logical clock is monotonic (Kulkarni et al. 2014), and a wall clock is not, least
//! of all over restarts.

use polyarch_crdt::{Dot, Hlc};

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "own_stamps_rise";

/// A node that has applied write sets of its own server with stamps up to `before` writes `dot`.
pub fn check(dot: Dot, hlc: Hlc, before: Option<Hlc>) -> Checked {
    match before.filter(|before| hlc <= *before) {
        None => Ok(()),
        Some(before) => {
            Err(Violation::new(NAME, format!("{dot} is stamped {hlc}, and its server had stamped {before} before")))
        }
    }
}
