//! A write set is applied only where all that its writer had applied is applied.
//!
//! Source: causal delivery (Birman, Schiper, Stephenson 1991). What the writer had applied is what
//! the simulator saw there, not what the write set says.

use super::{Checked, Violation};
use crate::registers::{Seen, Written};

/// The invariant's name.
pub const NAME: &str = "causal_order";

/// Before a node that has `seen` applies `written`.
pub fn check(server_id: u32, seen: &Seen, written: &Written) -> Checked {
    match seen.missing_of(&written.saw) {
        None => Ok(()),
        Some(missing) => Err(Violation::new(
            NAME,
            format!("node {server_id} applied {} without {missing}, which its writer had applied", written.dot),
        )),
    }
}
