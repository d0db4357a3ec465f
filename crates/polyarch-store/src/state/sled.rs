//! The state in sled 1.0.0-alpha.124.
//!
//! Layout: one tree. A record's key is `r` and the bytes of its [`RecordKey`], its value a version
//! byte (1) and the record in postcard; the checkpoint's metadata is under the key `m`, with the
//! records, so that both come and go in one.
//!
//! What one has to know about this sled, read from its source and tried:
//!
//! - All that is written between two flushes becomes durable together: a flush ends with one frame
//!   in its metadata log, and nothing is evicted to disk before. So a batch is given to it in parts,
//!   which keeps readers from waiting on the locks of one great batch, and is atomic all the same,
//!   *as long as nobody else flushes*. Hence the next point.
//! - With `flush_every_ms(None)` every drop of a handle flushes, iterators included: each scan by a
//!   reader would sync the half-written batch of a checkpoint. With a period that never ends none
//!   does.
//! - Handles can be sent to other threads but not shared, so they are lent from a pool.
//! - A failed read, too, makes it refuse everything that is not in its memory, for good, and its lock on
//!   the directory keeps a second handle from being opened: only a restart helps.
//! - Its errors begin with where in its source they arose, which says nothing to an operator.
//! - A failed flush may have marked what it did not write as clean: after an error nothing is
//!   written any more. Nor are the handles then dropped, since the last one flushes, and aborts
//!   the process when that fails.
//! - Its own comments name a deadlock between node merges and batches. Batches merge nothing, and
//!   [`Tree::remove`](sled::Tree::remove), which does, is not called.

use std::io;
use std::mem;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use polyarch_crdt::Record;
use polyarch_protocol::RecordKey;
use sled::{Batch, InlineArray};

use super::directory::{caught, suspect};
use super::watch::{Beat, Watch};
use super::{BatchEntry, Checkpoint, ScanRange, StateError, StateStore};

/// Entries in a leaf: small enough that a changed record does not rewrite much.
const LEAF_FANOUT: usize = 128;
/// Records given to sled at once; their leaves are locked against readers meanwhile.
const PART_RECORDS: usize = 256;
/// What a flush may write beside records: now and then sled writes the whole of its metadata anew.
const FLUSH_BYTES: u64 = 8 << 20;
/// A period of flushes that does not end; see the module's documentation.
const NEVER_MS: usize = usize::MAX;
const RECORD_PREFIX: u8 = b'r';
const RECORD_VERSION: u8 = 1;
const METADATA_KEY: &[u8] = b"m";

/// How sled is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SledConfig {
    /// Bytes of records that sled keeps in memory. Default 128 MiB.
    pub cache_bytes: usize,
    /// How long an open may take before it counts as hung, and how long a read or write of one record
    /// may. Default 60 s: sled runs `sync` at an open, which waits for all dirty pages of the machine.
    pub open_timeout: Duration,
}

impl Default for SledConfig {
    fn default() -> Self {
        Self { cache_bytes: 128 << 20, open_timeout: Duration::from_secs(60) }
    }
}

type Tree = sled::Tree<LEAF_FANOUT>;

/// A [`StateStore`] in sled.
pub struct SledState {
    dir: PathBuf,
    // Taken by the drop alone.
    handles: Option<Handles>,
    // What failed first, a write, a read or a panic: see the module's documentation.
    stopped: OnceLock<Stop>,
    panicked: AtomicBool,
    watch: Arc<Watch>,
}

struct Stop {
    cause: String,
    // Whether there was no room on the disk.
    is_full: bool,
}

struct Handles {
    db: Mutex<sled::Db<LEAF_FANOUT>>,
    idle: Mutex<Vec<Handle>>,
}

/// sled's handle, and what its user is at.
struct Handle {
    tree: Tree,
    beat: Beat,
}

/// A handle that is lent, whose every step is watched: there is no other way to tell that sled goes round in
/// a circle.
struct Lent<'a> {
    tree: &'a Tree,
    beat: &'a Beat,
    watch: &'a Watch,
}

impl Lent<'_> {
    /// A step begins: what it does to one record or a few.
    fn step(&self) -> &Tree {
        self.watch.step(self.beat);
        self.tree
    }
}

impl SledState {
    /// Opens or creates the state in `dir`. May hang or panic on a damaged directory: see
    /// [`StateDirectory`](super::StateDirectory), which guards against it.
    ///
    /// # Errors
    /// When sled refuses the directory.
    pub fn open(dir: &Path, config: &SledConfig) -> Result<Self, StateError> {
        let sled = sled::Config::new()
            .path(dir)
            .cache_capacity_bytes(config.cache_bytes)
            .zstd_compression_level(1)
            .flush_every_ms(Some(NEVER_MS));
        let db = sled.open().map_err(failed("opened"))?;
        Ok(Self {
            dir: dir.to_path_buf(),
            handles: Some(Handles { db: Mutex::new(db), idle: Mutex::default() }),
            stopped: OnceLock::new(),
            panicked: AtomicBool::new(false),
            watch: Watch::begin(dir.to_path_buf(), config.open_timeout),
        })
    }

    /// Lends a handle to `work`. A panic ends the use of this state, and so does a step that does not end;
    /// damage is noted for the next open.
    fn with_tree<T>(&self, work: impl FnOnce(&Lent<'_>) -> Result<T, StateError>) -> Result<T, StateError> {
        if self.panicked.load(Ordering::Acquire) {
            return Err(StateError::Panicked("earlier; restart the node".into()));
        }
        if self.watch.is_stuck() {
            return Err(StateError::Hung(self.watch.patience()));
        }
        let handles = self.handles();
        let idle = handles.idle.lock().pop();
        let handle = idle.unwrap_or_else(|| Handle { tree: Tree::clone(&handles.db.lock()), beat: self.watch.beat() });
        let lent = Lent { tree: &handle.tree, beat: &handle.beat, watch: &self.watch };
        let result = caught(|| work(&lent));
        handle.beat.rest();
        handles.idle.lock().push(handle);
        result.inspect_err(|error| self.note(error))
    }

    fn handles(&self) -> &Handles {
        self.handles.as_ref().expect("only the drop takes them")
    }

    /// After an error sled itself takes no more writes, and the last handle's drop, which tries
    /// one, would abort the process. Damage, and a panic is taken for that, ends the state's life.
    fn note(&self, error: &StateError) {
        let stop = Stop { cause: error.to_string(), is_full: error.is_full() };
        if self.stopped.set(stop).is_ok() {
            tracing::error!(
                directory = %self.dir.display(),
                %error,
                "the state failed and takes no more checkpoints until it is opened anew; the log has what is missing"
            );
        }
        self.panicked.fetch_or(matches!(error, StateError::Panicked(_)), Ordering::AcqRel);
        let is_damage = match error {
            StateError::Damaged(_) | StateError::Panicked(_) => true,
            // The second is a file that was cut short.
            StateError::Io { source, .. } => {
                matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
            }
            _ => false,
        };
        if is_damage {
            suspect(&self.dir, &error.to_string());
        }
    }

    /// Writes; after a failure never again.
    fn write(&self, work: impl FnOnce(&Lent<'_>) -> Result<(), StateError>) -> Result<(), StateError> {
        match self.stopped.get() {
            Some(Stop { cause, is_full: true }) => Err(StateError::StoppedFull(cause.clone())),
            Some(Stop { cause, .. }) => Err(StateError::Stopped(cause.clone())),
            None => self.with_tree(work),
        }
    }
}

impl StateStore for SledState {
    fn get(&self, key: &RecordKey) -> Result<Option<Record>, StateError> {
        self.with_tree(|lent| {
            let value = lent.step().get(record_key(key)).map_err(failed("read"))?;
            value.map(|value| decode_record(key, &value)).transpose()
        })
    }

    fn scan(&self, range: &ScanRange, limit: usize) -> Result<Vec<(RecordKey, Record)>, StateError> {
        let (start, end) = bounds(range);
        self.with_tree(|lent| {
            let (mut found, mut behind) = (Vec::new(), start.clone());
            for entry in lent.step().range::<InlineArray, _>((start, end)).take(limit) {
                lent.step();
                let (key, value) = entry.map_err(failed("read"))?;
                // Where a leaf stands in the place of another, whoever goes on behind the last key would do so for ever.
                let is_next = match &behind {
                    Bound::Included(first) => key >= *first,
                    Bound::Excluded(last) => key > *last,
                    Bound::Unbounded => true,
                };
                if !is_next {
                    return Err(StateError::Damaged("its keys are not in order".into()));
                }
                behind = Bound::Excluded(key.clone());
                let Some(key) = key.get(1..).filter(|key| range.reaches(key)) else {
                    break;
                };
                let key = RecordKey::from_bytes(key.to_vec().into())
                    .ok_or_else(|| StateError::Damaged("a record's key is too short".into()))?;
                let record = decode_record(&key, &value)?;
                found.push((key, record));
            }
            Ok(found)
        })
    }

    fn apply_sorted(&self, batch: Vec<BatchEntry>, checkpoint: &Checkpoint) -> Result<(), StateError> {
        debug_assert!(batch.windows(2).all(|pair| pair[0].0 < pair[1].0), "a batch is sorted");
        self.write(|lent| {
            for part in batch.chunks(PART_RECORDS) {
                let mut writes = Batch::default();
                for (key, record) in part {
                    match record {
                        Some(record) => writes.insert(record_key(key), encode_record(record)),
                        None => writes.remove(record_key(key)),
                    }
                }
                lent.step().apply_batch(writes).map_err(failed("written"))?;
            }
            let mut writes = Batch::default();
            writes.insert(METADATA_KEY, checkpoint.encode());
            lent.step().apply_batch(writes).map_err(failed("written"))
        })
    }

    fn flush(&self) -> Result<(), StateError> {
        // As long as the disk takes.
        self.write(|lent| lent.tree.flush().map(drop).map_err(failed("flushed")))
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, StateError> {
        self.with_tree(|lent| {
            let value = lent.step().get(METADATA_KEY).map_err(failed("read"))?;
            value.map(|value| Checkpoint::decode(&value)).transpose()
        })
    }

    fn flush_bytes(&self) -> u64 {
        FLUSH_BYTES
    }

    fn size(&self) -> Result<u64, StateError> {
        self.handles().db.lock().size_on_disk().map_err(failed("measured"))
    }
}

impl Drop for SledState {
    fn drop(&mut self) {
        let handles = self.handles.take();
        if self.stopped.get().is_some() || self.watch.is_stuck() {
            // The last handle would flush, and abort the process when that fails.
            mem::forget(handles);
            return;
        }
        let closed = caught(|| {
            drop(handles);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::error!(directory = %self.dir.display(), %error, "the state did not close");
        }
    }
}

/// An error of sled's, without the places in its source that it went through.
fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> StateError {
    move |error| {
        let text = error.to_string();
        let source = match text.rsplit_once(" -> ") {
            Some((places, plain)) if places.contains(".rs:") => io::Error::new(error.kind(), plain),
            _ => error,
        };
        StateError::Io { doing, source }
    }
}

fn record_key(key: &RecordKey) -> InlineArray {
    let mut bytes = Vec::with_capacity(1 + key.as_bytes().len());
    bytes.push(RECORD_PREFIX);
    bytes.extend_from_slice(key.as_bytes());
    bytes.into()
}

fn bounds(range: &ScanRange) -> (Bound<InlineArray>, Bound<InlineArray>) {
    let start = match range.start() {
        Bound::Included(key) => Bound::Included(record_key(key)),
        Bound::Excluded(key) => Bound::Excluded(record_key(key)),
        Bound::Unbounded => Bound::Included(vec![RECORD_PREFIX].into()),
    };
    (start, Bound::Excluded(vec![RECORD_PREFIX + 1].into()))
}

fn encode_record(record: &Record) -> InlineArray {
    let bytes = postcard::to_extend(record, vec![RECORD_VERSION]).expect("a Vec takes all that is written");
    bytes.into()
}

fn decode_record(key: &RecordKey, value: &[u8]) -> Result<Record, StateError> {
    let damaged = |what: &str| StateError::Damaged(format!("the record {key:?} {what}"));
    let record: Record = match value {
        [RECORD_VERSION, body @ ..] => match postcard::take_from_bytes(body) {
            Ok((record, [])) => record,
            _ => return Err(damaged("does not decode")),
        },
        [version, ..] => return Err(StateError::Version(*version)),
        [] => return Err(damaged("is empty")),
    };
    record.validate().map_err(damaged)?;
    Ok(record)
}

/// Keeps the pool and its owner able to cross threads.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<SledState>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_places_in_sleds_source_are_not_told() {
        let said = |text: &str| failed("read")(io::Error::new(io::ErrorKind::InvalidData, text)).to_string();
        assert_eq!(
            said(
                "sled:/home/u/.cargo/sled-1.0.0/src/heap.rs:875 -> sled:/home/u/.cargo/src/heap.rs:523 -> crc mismatch"
            ),
            "the state cannot be read: crc mismatch"
        );
        assert_eq!(said("a -> b"), "the state cannot be read: a -> b");
    }
}
