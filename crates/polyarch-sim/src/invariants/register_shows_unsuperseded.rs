//! The one-sentence oracle: a register shows the writes that no applied write superseded. On every
//! node, at every moment, in whatever order the writes came.
//!
//! Source: the semantics of the multi-value register over a causal history (Burckhardt et al. 2014).

use polyarch_protocol::RecordKey;

use super::{Checked, Violation};
use crate::registers::Shown;

/// The invariant's name.
pub const NAME: &str = "register_shows_unsuperseded";

/// What a node holds of a key, against what it should.
pub fn check(server_id: u32, state: &str, key: &RecordKey, shown: &[Shown], live: &[Shown]) -> Checked {
    match shown == live {
        true => Ok(()),
        false => Err(Violation::new(
            NAME,
            format!("node {server_id} holds ({state}) {shown:?} of {key:?}, and the oracle says {live:?}"),
        )),
    }
}
