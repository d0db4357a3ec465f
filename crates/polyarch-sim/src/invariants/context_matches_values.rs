//! The context that a read gives names exactly the writes that the record shows at that moment.
//!
//! One that names more removes what nobody saw; one that names fewer leaves what was replaced.
//!
//! Source: dotted version vectors (Preguiça et al. 2012); the trap is reading values and context in
//! two steps.

use polyarch_crdt::Dot;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "context_matches_values";

/// `named` is the opened context, `live` what the record should show. Both are in order.
pub fn check(server_id: u32, named: &[Dot], live: &[Dot]) -> Checked {
    match named == live {
        true => Ok(()),
        false => {
            Err(Violation::new(NAME, format!("node {server_id} gave a context of {named:?} with a record of {live:?}")))
        }
    }
}
