//! What the log adds up to, behind one narrow trait.
//!
//! A [`StateStore`] is written by checkpoints only, never on the path of an acknowledgement, so it
//! needs no more than one ordered map that takes a sorted batch whole. With the records of a
//! checkpoint go its metadata (a [`Checkpoint`]): after a crash a state says by itself which
//! position of the log it stands at, and replay goes on from there.
//!
//! **Architecture Invariant:** nothing above this module names a backend. A second one in the test
//! suite (`tests/it/storage_suite.rs`) keeps the trait honest.

mod checkpoint;
mod directory;
mod memory;
mod sled;
mod watch;

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polyarch_crdt::Record;
use polyarch_protocol::{Digest, KeyspaceId, RecordKey};

use crate::files::is_full;

pub use checkpoint::{Checkpoint, Provenance};
pub(crate) use directory::{STATE, panic_message};
pub use directory::{StateDirectory, watched};
pub use memory::{MemoryOpener, MemoryState, Rollback};
pub use sled::{SledConfig, SledState};

/// One record of a batch; `None` removes it.
pub type BatchEntry = (RecordKey, Option<Arc<Record>>);

/// Records in order of their keys, and the metadata of the checkpoint they belong to.
///
/// One thread writes ([`StateStore::apply_sorted`], then [`StateStore::flush`]); any number read
/// meanwhile and do not wait for it longer than a part of the batch takes.
pub trait StateStore: Send + Sync + 'static {
    /// The record; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or what was read is no record.
    fn get(&self, key: &RecordKey) -> Result<Option<Record>, StateError>;

    /// At most `limit` records of `range`, in order of keys.
    ///
    /// # Errors
    /// When they cannot be read, or what was read is no record.
    fn scan(&self, range: &ScanRange, limit: usize) -> Result<Vec<(RecordKey, Record)>, StateError>;

    /// Writes a batch, sorted by key without repetitions, and the metadata that goes with it. What
    /// a crash leaves is all of it or nothing, and after [`StateStore::flush`] all of it. A reader
    /// may see it half done: the caller covers its keys until it is.
    ///
    /// # Errors
    /// When the backend fails. The state is then what it was or is not to be written any more.
    fn apply_sorted(&self, batch: Vec<BatchEntry>, checkpoint: &Checkpoint) -> Result<(), StateError>;

    /// Returns when all that was applied outlasts a power cut.
    ///
    /// # Errors
    /// When the backend fails; it is not to be written any more, since a failed sync may not be
    /// tried again.
    fn flush(&self) -> Result<(), StateError>;

    /// The metadata of the newest batch applied; `None` in a state that never took one.
    ///
    /// # Errors
    /// When it cannot be read.
    fn checkpoint(&self) -> Result<Option<Checkpoint>, StateError>;

    /// Bytes on disk, or in memory for a backend without a disk.
    ///
    /// # Errors
    /// When they cannot be counted.
    fn size(&self) -> Result<u64, StateError>;

    /// Bytes of the disk that a batch and its flush may take beside its records. Default 0.
    fn flush_bytes(&self) -> u64 {
        0
    }

    /// Whether a crash leaves all of a batch or nothing. Of a state that does not promise it, the
    /// records may be newer than the metadata, and the digest is counted anew at every open.
    fn is_atomic(&self) -> bool {
        true
    }
}

/// The place of a state, in which the next one may be made while the current one is in use: that of
/// a join. There is one next at most.
///
/// At any moment a crash leaves the current one or, once it is adopted, the next: an open removes
/// what is neither.
pub trait Succession<S>: Send + Sync {
    /// Begins an empty next state. One that was begun before and not adopted is removed; nobody may
    /// have it open.
    ///
    /// # Errors
    /// When it cannot be made. The current one is as it was in every case.
    fn begin(&self) -> Result<S, StateError>;

    /// Makes the next state the current one, in one durable step. The state that was current stays
    /// where it is until [`Succession::remove_previous`].
    ///
    /// # Errors
    /// When the step failed: which of the two an open finds is then unknown.
    fn adopt(&self) -> Result<(), StateError>;

    /// Removes the next state. Nobody may have it open.
    ///
    /// # Errors
    /// When it cannot be removed; the next open, or the next [`Succession::begin`], does.
    fn abandon(&self) -> Result<(), StateError>;

    /// Removes states that were current before. Nobody may have them open.
    ///
    /// # Errors
    /// When they cannot be removed; the next open does.
    fn remove_previous(&self) -> Result<(), StateError>;
}

/// Opens a [`StateStore`], and puts one out of the way that is of no use.
pub trait StateOpener {
    /// What it opens.
    type State: StateStore;

    /// Opens the state, an empty one when there is none.
    ///
    /// # Errors
    /// When it is damaged, unreadable, or does not open in time.
    fn open(&mut self) -> Result<Self::State, StateError>;

    /// Puts the state out of the way, so that the next [`StateOpener::open`] begins an empty one,
    /// and says where it is now.
    ///
    /// # Errors
    /// When it cannot be moved; it is then where it was.
    fn set_aside(&mut self) -> Result<String, StateError>;

    /// How the state it opens can get a successor. Without one no snapshot can be joined.
    fn succession(&self) -> Arc<dyn Succession<Self::State>> {
        Arc::new(NoSuccession)
    }

    /// Runs a long read of a state that may be damaged, as guarded as [`StateOpener::open`] is.
    ///
    /// # Errors
    /// Those of `read`, and that it panicked or did not end in time.
    fn guarded<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        read()
    }
}

/// The succession of a state that can have none.
struct NoSuccession;

impl<S> Succession<S> for NoSuccession {
    fn begin(&self) -> Result<S, StateError> {
        Err(StateError::io("begun anew beside itself")(io::ErrorKind::Unsupported.into()))
    }

    fn adopt(&self) -> Result<(), StateError> {
        Err(StateError::io("replaced")(io::ErrorKind::Unsupported.into()))
    }

    fn abandon(&self) -> Result<(), StateError> {
        Ok(())
    }

    fn remove_previous(&self) -> Result<(), StateError> {
        Ok(())
    }
}

/// Why a state cannot be used. The log still has whatever the state should hold beyond its newest
/// checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The disk does not answer, or sled found what it read damaged.
    #[error("the state cannot be {doing}: {source}")]
    Io {
        /// What was tried: "read", "written".
        doing: &'static str,
        /// What the backend said.
        source: io::Error,
    },
    /// What was read is not what was written.
    #[error("the state is damaged: {0}")]
    Damaged(String),
    /// Written by a newer version: upgrade this node. The state is as it was.
    #[error(
        "the state has a value of format version {0}, which this version of polyarch does not know; upgrade this node"
    )]
    Version(u8),
    /// The backend panicked. It is not used any more in this process.
    #[error("the state's backend panicked: {0}")]
    Panicked(String),
    /// The backend did not come back. A thread of it may be left running until the process ends.
    #[error("the state did not answer within {}", seconds(*.0))]
    Hung(Duration),
    /// It failed before, with what is said here: it takes no more writes, and what it reads from the
    /// disk may fail too. The log has what is missing.
    #[error("the state takes no more writes since it failed ({0}); look at the disk and restart the node")]
    Stopped(String),
    /// It found the disk full before, with what is said here: it takes no more writes, and what it reads
    /// from the disk may fail too. The log has what is missing.
    #[error("the state takes no more writes since the disk was full ({0}); make room and restart the node")]
    StoppedFull(String),
}

impl StateError {
    /// Whether there was no room on the disk.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_full(source),
            Self::StoppedFull(_) => true,
            _ => false,
        }
    }

    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f32())
}

/// Which records a scan visits: all from a point on whose keys begin with a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRange {
    start: Bound<RecordKey>,
    // Of whole record keys; empty, or a keyspace's 18 bytes and more.
    prefix: Bytes,
}

impl ScanRange {
    /// All records of all keyspaces.
    pub fn everything() -> Self {
        Self { start: Bound::Unbounded, prefix: Bytes::new() }
    }

    /// All records of one keyspace whose keys begin with `prefix`.
    pub fn prefix(keyspace: KeyspaceId, prefix: &[u8]) -> Self {
        let first = RecordKey::new(keyspace, prefix);
        Self { prefix: Bytes::copy_from_slice(first.as_bytes()), start: Bound::Included(first) }
    }

    /// The part from `key` on, with it.
    pub fn from(self, key: RecordKey) -> Self {
        self.starting(Bound::Included(key))
    }

    /// The part behind `key`, without it.
    pub fn after(self, key: RecordKey) -> Self {
        self.starting(Bound::Excluded(key))
    }

    /// Where it starts.
    pub fn start(&self) -> Bound<&RecordKey> {
        self.start.as_ref()
    }

    /// Whether `key`, which is not before the start, is still within the range.
    pub fn reaches(&self, key: &[u8]) -> bool {
        key.starts_with(&self.prefix)
    }

    fn starting(mut self, start: Bound<RecordKey>) -> Self {
        let (Bound::Included(new) | Bound::Excluded(new)) = &start else {
            return self;
        };
        let is_later = match &self.start {
            Bound::Unbounded => true,
            Bound::Included(old) | Bound::Excluded(old) => new >= old,
        };
        if is_later {
            self.start = start;
        }
        self
    }
}

/// Counts the digest of all records of a state anew. Records are read a page at a time.
///
/// # Errors
/// When the state cannot be read.
pub fn count_digest(state: &impl StateStore) -> Result<Digest, StateError> {
    let mut digest = Digest::default();
    for_each_record(state, |key, record| {
        for field in record.fields() {
            field.siblings().iter().for_each(|sibling| digest.add(key, field.path(), sibling));
        }
    })?;
    Ok(digest)
}

/// Calls `visit` for every record of a state, in order of keys.
///
/// # Errors
/// When the state cannot be read.
pub fn for_each_record(state: &impl StateStore, mut visit: impl FnMut(&RecordKey, &Record)) -> Result<(), StateError> {
    const PAGE: usize = 1_024;
    let mut range = ScanRange::everything();
    loop {
        let page = state.scan(&range, PAGE)?;
        page.iter().for_each(|(key, record)| visit(key, record));
        match page.into_iter().last() {
            Some((last, _)) => range = range.after(last),
            None => return Ok(()),
        }
    }
}
