//! An acknowledged write survives a power cut: what a node synced, it has after every recovery,
//! and what a client was told is written is on every node in the end.
//!
//! What a node with `durability = "interval"` acknowledged may be lost, as far as
//! [`interval_loses_a_suffix`](super::interval_loses_a_suffix) lets it.
//!
//! Source: the durability of ARIES (Mohan et al. 1992); the checker keeps the acks outside of the
//! nodes, as Jepsen's set test does.

use std::collections::BTreeSet;

use polyarch_crdt::Dot;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "acked_is_durable";

/// After a recovery: nothing that was synced, and so may have been acked or sent, is missing.
pub fn check_recovered(server_id: u32, synced: &Seen, recovered: &Seen) -> Checked {
    match recovered.missing_of(synced) {
        None => Ok(()),
        Some(dot) => Err(Violation::new(
            NAME,
            format!("node {server_id} had synced {dot}, and after its restart it has {recovered:?}"),
        )),
    }
}

/// After a recovery of a node that syncs first: of what it `lost` nothing was acked.
pub fn check_lost(server_id: u32, lost: &[Dot], acked: &BTreeSet<Dot>) -> Checked {
    match lost.iter().find(|dot| acked.contains(dot)) {
        None => Ok(()),
        Some(dot) => {
            Err(Violation::new(NAME, format!("{dot} was acked, and node {server_id} lost it when it was restarted")))
        }
    }
}

/// In the end: every node has every write that a client was told is written.
pub fn check_everywhere<'a>(server_id: u32, applied: &Seen, acked: impl IntoIterator<Item = &'a Dot>) -> Checked {
    match acked.into_iter().find(|dot| !applied.includes(**dot)) {
        None => Ok(()),
        Some(dot) => Err(Violation::new(NAME, format!("{dot} was acked, and in the end node {server_id} lacks it"))),
    }
}
