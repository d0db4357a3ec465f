//! What the replica and its feeds ask of a disk.
//!
//! A [`Storage`] knows two states. *Staged* is what has been appended and applied, with the sync
//! still to come; the coordinator computes on it. *Durable* is what a power cut leaves; clients,
//! peers and gossip see only that. The driver calls the sync; the replica never waits for one.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::Record;
use serde::{Deserialize, Serialize};

use crate::bases::Bases;
use crate::chain::ChainHeads;
use crate::keyspace::RecordKey;

/// A place between two frames of a node's log. Segment numbers rise and are never used again.
/// Displayed as `SEGMENT:OFFSET`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// The segment's number; the first is 1.
    pub segment: u64,
    /// Bytes from the segment's start.
    pub offset: u64,
}

impl fmt::Display for LogPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.offset)
    }
}

/// A storage does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// It failed. What was staged may not become durable; the node stops writing for good.
    #[error("storage failed: {0}")]
    Failed(String),
    /// It has no room for more. Nothing was changed, and what was staged before is as it was.
    #[error("storage is full: {0}")]
    Full(String),
}

impl StorageError {
    /// What it was, without what became of the storage.
    pub fn into_reason(self) -> String {
        match self {
            Self::Failed(reason) | Self::Full(reason) => reason,
        }
    }
}

/// Records that can be read and changed in place.
pub trait Records {
    /// The record, empty when there is none, to be changed in place.
    ///
    /// # Errors
    /// When it cannot be read; nothing was changed.
    fn record_mut(&mut self, key: &RecordKey) -> Result<&mut Record, StorageError>;
}

/// The log and the records of one node, seen from its replica: all of it staged.
pub trait Storage: Records {
    /// The record as staged, empty when there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    fn record(&mut self, key: &RecordKey) -> Result<Record, StorageError>;

    /// Stages one write set behind all others and says where it ends: it is durable once the log
    /// is synced to there. `before` is what the log held until now.
    ///
    /// # Errors
    /// [`StorageError::Full`] when there is no room for it: it may be tried again. Any other: the log takes
    /// no more, for good.
    fn append(&mut self, write_set: &Bytes, before: &ChainHeads) -> Result<LogPosition, StorageError>;

    /// Whether there is room again for a write set of so many bytes, after [`StorageError::Full`].
    /// `before` is what the log holds.
    ///
    /// # Errors
    /// When it failed, for good.
    fn has_room(&mut self, write_set_bytes: usize, before: &ChainHeads) -> Result<bool, StorageError>;

    /// The end of what is staged.
    fn staged_end(&self) -> LogPosition;

    /// Staged records of one keyspace, in order of keys.
    ///
    /// # Errors
    /// When they cannot be read.
    fn keyspace_records(&mut self, keyspace: crate::KeyspaceId) -> Result<Vec<(RecordKey, Record)>, StorageError>;

    /// Says which bases there are, once what was recovered is known: what chain heads the storage
    /// keeps in memory may be expressed by them from now on, to take less room. Does nothing unless
    /// a storage keeps many.
    fn share_bases(&mut self, bases: &Bases) {
        let _ = bases;
    }
}

/// A point in the log from which it can be read, and all that lies before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogMark {
    /// Where.
    pub position: LogPosition,
    /// The chain heads, and by them the applied-set, of all that lies before.
    pub heads: ChainHeads,
}

/// Consecutive write sets from a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogBatch {
    /// The bytes of each write set, in log order; empty at the durable end.
    pub write_sets: Vec<Bytes>,
    /// Where the next batch begins.
    pub next: LogPosition,
    /// Where a snapshot was joined between the batch's beginning and `next`, or the log's end: what
    /// was applied behind that place. What the snapshot brought of it is not in the log.
    pub joined: Option<Arc<ChainHeads>>,
}

/// Why a log cannot be read there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogReadError {
    /// The segment is gone: begin again from a newer [`LogMark`].
    #[error("log segment {0} was removed")]
    Removed(u64),
    /// The disk does not give back what was written.
    #[error("log is damaged at {position}: {what}")]
    Damaged {
        /// Where.
        position: LogPosition,
        /// What was found.
        what: String,
    },
    /// The disk does not answer.
    #[error("cannot read the log: {0}")]
    Io(String),
}

/// A log as feeds read it: its durable part only.
pub trait LogSource {
    /// The last mark whose heads satisfy `reached`, which holds for all marks up to some point;
    /// `None` when the log no longer reaches back that far.
    fn last_mark(&self, reached: &dyn Fn(&ChainHeads) -> bool) -> Option<LogMark>;

    /// Write sets from `from` on: at least one unless `from` is the durable end, and no more than
    /// needed to pass `bytes_max`.
    ///
    /// # Errors
    /// When that part of the log is gone, damaged or unreadable.
    fn read(&self, from: LogPosition, bytes_max: usize) -> Result<LogBatch, LogReadError>;
}
