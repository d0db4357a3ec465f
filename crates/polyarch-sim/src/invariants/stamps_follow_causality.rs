//! A write is stamped greater than what its node had applied of each server, unless the greatest stamp of
//! that server was so far ahead of the node's wall clock that it was not merged into its own: then a node
//! that starts anew does not know the others of that server's either.
//!
//! Source: the one property of a hybrid logical clock that is of use (Kulkarni et al. 2014): what happened
//! before has the smaller stamp. A clock that merges nothing looks right for as long as all walls are.

use std::collections::BTreeMap;

use polyarch_crdt::{Dot, Hlc};

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "stamps_follow_causality";

/// A node that has applied `applied`, dots with their stamps, writes `dot`. Stamps up to `merged_max_ms` were
/// never too far ahead of its wall clock.
pub fn check(dot: Dot, hlc: Hlc, applied: impl Iterator<Item = (Dot, Hlc)>, merged_max_ms: u64) -> Checked {
    let mut greatest: BTreeMap<u32, Hlc> = BTreeMap::new();
    for (dot, stamp) in applied {
        let of_server = greatest.entry(dot.origin.server_id).or_default();
        *of_server = stamp.max(*of_server);
    }
    let merged = greatest.into_values().filter(|stamp| stamp.millis() <= merged_max_ms);
    match merged.max().filter(|stamp| hlc <= *stamp) {
        None => Ok(()),
        Some(before) => Err(Violation::new(NAME, format!("{dot} is stamped {hlc}, and saw what is stamped {before}"))),
    }
}
