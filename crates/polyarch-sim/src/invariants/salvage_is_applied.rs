//! What a repair found is applied in the end, but for what follows on write sets that are nowhere any more; and
//! it is let go of only when all of it is durably applied.
//!
//! Source: the salvage's own promise (`docs/operations.md`).

use std::rc::Rc;

use polyarch_crdt::Dot;

use super::{Checked, Violation};
use crate::registers::{Seen, Written};

/// The invariant's name.
pub const NAME: &str = "salvage_is_applied";

/// The node let go of what waited.
pub fn check_removed(server_id: u32, durable: &Seen, waiting: impl IntoIterator<Item = Dot>) -> Checked {
    match waiting.into_iter().find(|dot| !durable.includes(*dot)) {
        None => Ok(()),
        Some(dot) => Err(Violation::new(NAME, format!("node {server_id} lets go of {dot}, which it has not applied"))),
    }
}

/// The node cannot read what waits.
pub fn check_readable(server_id: u32, is_damaged: bool, why: &str) -> Checked {
    match is_damaged {
        true => Ok(()),
        false => Err(Violation::new(NAME, format!("node {server_id} cannot read what waits: {why}"))),
    }
}

/// In the end, when all nodes have the same: nothing waits whose turn it is.
pub fn check_end(server_id: u32, durable: &Seen, waiting: &[&Rc<Written>]) -> Checked {
    let is_due = |written: &&&Rc<Written>| {
        written.dot.seq == durable.seq(written.dot.origin) + 1 && durable.missing_of(&written.saw).is_none()
    };
    match waiting.iter().find(is_due) {
        None => Ok(()),
        Some(written) => Err(Violation::new(
            NAME,
            format!("in the end {} still waits on node {server_id}, and is next", written.dot),
        )),
    }
}
