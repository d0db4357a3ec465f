//! Whoever has applied the write set that published a base has applied all that the base holds.
//!
//! Source: causal delivery. A session's token, and the first write set of an epoch, name the write set
//! and leave out the rest.

use polyarch_crdt::Base;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "base_is_applied";

/// On a node that has `seen`, and among it the write set that published `base`.
pub fn check(server_id: u32, seen: &Seen, base: &Base) -> Checked {
    match base.iter().find(|epoch| !seen.includes(epoch.last)) {
        None => Ok(()),
        Some(epoch) => Err(Violation::new(
            NAME,
            format!("node {server_id} has base {base}, and not {}, which that holds", epoch.last),
        )),
    }
}
