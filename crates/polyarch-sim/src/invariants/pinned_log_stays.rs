//! A donor's walk finds what it is yet to read, records and log, whatever is let go of meanwhile.
//!
//! Source: a backup that is consistent only as long as its log is kept (PostgreSQL's `wal_keep_size` is a guess
//! about that; a replication slot is a promise).

use polyarch_protocol::SnapshotStep;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "pinned_log_stays";

/// What a walk came to whose pin holds. `is_damaged`: whether the disk has spoiled some of the log.
pub fn check(server_id: u32, is_damaged: bool, step: &SnapshotStep) -> Checked {
    match step {
        SnapshotStep::Failed(reason) if !is_damaged => {
            Err(Violation::new(NAME, format!("node {server_id} cannot go on with a snapshot: {reason}")))
        }
        SnapshotStep::Failed(_) | SnapshotStep::Part(_) | SnapshotStep::AwaitDurable | SnapshotStep::Done => Ok(()),
    }
}
