//! A GTID never names two payloads, whatever was lost, restored or replayed.
//!
//! Source: the law that a GTID names one payload (ARCHITECTURE.md, Identity); the failure is that of a primary which reuses binlog
//! positions after a restore.

use bytes::Bytes;
use polyarch_crdt::Dot;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "gtid_never_two_payloads";

/// `known` is what the dot named when it was first seen anywhere, even if that was then lost.
pub fn check(server_id: u32, dot: Dot, known: &Bytes, found: &Bytes) -> Checked {
    match known == found {
        true => Ok(()),
        false => Err(Violation::new(
            NAME,
            format!("node {server_id} appended other bytes as {dot} than were known under it"),
        )),
    }
}

/// A write set came up at a node that neither wrote it nor can have it from anyone who did.
pub fn from_nowhere(server_id: u32, dot: Dot) -> Violation {
    Violation::new(NAME, format!("node {server_id} appended {dot}, which its origin never wrote"))
}
