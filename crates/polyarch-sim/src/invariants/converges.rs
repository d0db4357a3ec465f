//! Once all faults have ended, all nodes come to have applied the same writes, within a bound.
//!
//! Source: eventual delivery (Demers et al. 1987); the bound is what makes it a test, as in
//! TigerBeetle's liveness mode.

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "converges";

/// When the bound has passed.
pub fn check(bound_ms: u64, nodes: &[(u32, &Seen)]) -> Checked {
    let mut all = Seen::default();
    nodes.iter().for_each(|(_, seen)| all.join(seen));
    match nodes.iter().find_map(|(id, seen)| Some((id, seen.missing_of(&all)?))) {
        None => Ok(()),
        Some((server_id, missing)) => Err(Violation::new(
            NAME,
            format!("{bound_ms} ms after all faults ended node {server_id} still lacks {missing}"),
        )),
    }
}
