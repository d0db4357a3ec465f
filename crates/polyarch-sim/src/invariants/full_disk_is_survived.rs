//! A full disk is no failed disk: nothing that a process took is at risk, so it goes on, and once there is
//! room again it takes writes again, without a restart. That nothing acknowledged is lost and that
//! all nodes become equal is what [`acked_is_durable`](super::acked_is_durable) and
//! [`converges`](super::converges) say of every run.
//!
//! Source: a disk fills up at night, on all nodes that have had the same load, at the same time.

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "full_disk_is_survived";

/// A process said that its storage failed.
pub fn check(server_id: u32, disk_fails: bool, reason: &str) -> Checked {
    match disk_fails {
        true => Ok(()),
        false => Err(Violation::new(
            NAME,
            format!("node {server_id} says that its storage failed, which it did not: {reason}"),
        )),
    }
}

/// In the end, with room on every disk.
pub fn check_end(server_id: u32, is_full: bool) -> Checked {
    match is_full {
        true => Err(Violation::new(NAME, format!("node {server_id} has room on its disk and takes no writes"))),
        false => Ok(()),
    }
}
