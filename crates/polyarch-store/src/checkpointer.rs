//! Moving records from the memtable to the state.
//!
//! A checkpoint freezes what is published and durable in the log, with the frontier of that very
//! moment ([`Checkpointer::begin`]); writes it to the state on any thread ([`CheckpointJob::run`]):
//! one sorted batch with its metadata, a flush, and then the mark in `checkpoint.toml`; and lets go
//! of the frozen generation ([`Checkpointer::finish`]). A failed one leaves that where it is, so
//! nothing is missing from reads, and the same generation is tried again later.
//!
//! On the way it removes *void* absorb entries: those whose dot the **previous** checkpoint's
//! applied-set includes. Replay never goes back behind that, so their dots are never applied again.
//! The applied-set of this checkpoint would be too new: until its flush is done a crash goes back
//! to the previous one, and with a backend whose batch is not atomic it would find these records.
//! Entries that a [`Pin`](crate::Pin) holds on to stay, too.
//! Nobody may ever write a record again that holds such an entry, so the metadata has an index of
//! records with absorb entries.

use std::collections::BTreeSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};

use polyarch_crdt::{AppliedSet, Record, seeded_bug};
use polyarch_protocol::{Frontier, LogPosition, RecordKey};

use crate::files::{Files, is_full};
use crate::marks::{CHECKPOINT, write_mark};
use crate::memtable::Generation;
use crate::pins::Pins;
use crate::published::Published;
use crate::state::{BatchEntry, Checkpoint, Provenance, StateError, StateStore, panic_message};

/// When a checkpoint is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointConfig {
    /// Bytes of published records that are not in the state. Default 64 MiB; about twice that is
    /// held in memory while a checkpoint runs.
    pub memtable_bytes_max: usize,
    /// How many times `memtable_bytes_max` those records may take at all, while a checkpoint runs
    /// or fails. Then writers wait for it ([`Store::is_memtable_full`](crate::Store::is_memtable_full)),
    /// and if it fails the node takes no more writes; for lack of room, until one succeeds. Default 4.
    pub memtable_times_max: usize,
    /// Bytes of write sets in the log that are not in the state: what a start has to replay.
    /// Default 256 MiB.
    pub log_bytes_max: u64,
    /// Bytes of write sets after which a failed checkpoint is tried again. Default 16 MiB.
    pub retry_log_bytes: u64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            memtable_bytes_max: 64 << 20,
            memtable_times_max: 4,
            log_bytes_max: 256 << 20,
            retry_log_bytes: 16 << 20,
        }
    }
}

/// Why a checkpoint failed. The log has all that was to be in it, reads see it, and it is tried
/// again when enough was written since.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The state did not take the records, or not durably.
    #[error("checkpoint failed, its records stay in the log and in memory: {0}")]
    State(#[from] StateError),
    /// The state has the records, and `checkpoint.toml` does not say so.
    #[error("checkpoint was written, but its mark in {CHECKPOINT} was not: {0}")]
    Mark(io::Error),
    /// The disk has less room than the records take. Nothing was written.
    #[error(
        "no room for a checkpoint: {free_bytes} bytes are free and its records take up to {needed_bytes}; they stay in the log and in memory"
    )]
    Full {
        /// What it may take.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// The job panicked, or there was no thread to run it.
    #[error("checkpoint was abandoned ({0}), its records stay in the log and in memory")]
    Abandoned(String),
}

impl CheckpointError {
    /// Whether it failed for lack of room on the disk.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Full { .. } => true,
            Self::State(error) => error.is_full(),
            Self::Mark(error) => is_full(error),
            Self::Abandoned(_) => false,
        }
    }
}

/// Decides on checkpoints, one at a time, and knows the last ones.
pub(crate) struct Checkpointer<S> {
    config: CheckpointConfig,
    published: Arc<Published<S>>,
    last: Arc<Checkpoint>,
    // Unknown after a start.
    before_last: Option<LogPosition>,
    frozen: Option<Frozen>,
    log_bytes: u64,
    retry_at_log_bytes: u64,
}

/// Which state a checkpoint is written to.
pub(crate) enum Purpose<F> {
    /// The current one, of the log: `checkpoint.toml` in this directory notes its position, and what
    /// is pinned stays.
    Current(F, Pins),
    /// One that is being joined. Nobody goes back to a checkpoint of it, so nothing notes it; and
    /// what is applied to it is never applied again, so no pin concerns it.
    Join(Provenance),
}

struct Frozen {
    generation: Arc<Generation>,
    position: LogPosition,
    frontier: Frontier,
    // Alive as long as the job or its result is.
    running: Weak<()>,
}

impl<S: StateStore> Checkpointer<S> {
    /// Goes on from what the state holds.
    pub(crate) fn new(config: CheckpointConfig, published: Arc<Published<S>>, held: Checkpoint) -> Self {
        Self {
            config,
            published,
            last: Arc::new(held),
            before_last: None,
            frozen: None,
            log_bytes: 0,
            retry_at_log_bytes: 0,
        }
    }

    /// Counts what went to the log.
    pub(crate) fn note_logged(&mut self, write_set_bytes: usize) {
        self.log_bytes += write_set_bytes as u64;
    }

    /// Whether one should begin.
    pub(crate) fn is_due(&self) -> bool {
        let much_in_memory = self.published.memtable.active_bytes() >= self.config.memtable_bytes_max;
        let much_in_log = self.log_bytes >= self.config.log_bytes_max;
        let may_begin = self.log_bytes >= self.retry_at_log_bytes;
        self.is_full() || (much_in_memory || much_in_log || self.frozen.is_some()) && may_begin
    }

    /// Whether memory holds all it may of what is not in the state.
    pub(crate) fn is_full(&self) -> bool {
        let bytes_max = self.config.memtable_bytes_max.saturating_mul(self.config.memtable_times_max);
        self.published.memtable.bytes() >= bytes_max
    }

    /// The last checkpoint but one: what the log must go back to, should the state roll back.
    pub(crate) fn before_last(&self) -> Option<LogPosition> {
        self.before_last
    }

    /// The position and frontier that the state holds.
    pub(crate) fn last(&self) -> &Checkpoint {
        &self.last
    }

    /// Begins one, of what is published now; or, after a failure, once more of what was frozen
    /// then. `None` while one is running.
    pub(crate) fn begin<F: Files>(
        &mut self,
        purpose: Purpose<F>,
        frontier: &Frontier,
        position: LogPosition,
    ) -> Option<CheckpointJob<F, S>> {
        let running = Arc::new(());
        match &mut self.frozen {
            Some(frozen) if frozen.running.strong_count() > 0 => return None,
            Some(frozen) => frozen.running = Arc::downgrade(&running),
            None => {
                self.log_bytes = 0;
                self.frozen = Some(Frozen {
                    generation: self.published.memtable.freeze(),
                    position,
                    frontier: frontier.clone(),
                    running: Arc::downgrade(&running),
                });
            }
        }
        let frozen = self.frozen.as_ref()?;
        self.retry_at_log_bytes = self.log_bytes + self.config.retry_log_bytes;
        let previous = Arc::clone(&self.last);
        let checkpointed = previous.frontier.heads.applied();
        let void = match &purpose {
            Purpose::Current(_, pins) => pins.void(checkpointed),
            Purpose::Join(_) => checkpointed.clone(),
        };
        Some(CheckpointJob {
            purpose,
            state: self.published.memtable.state(),
            generation: Arc::clone(&frozen.generation),
            position: frozen.position,
            frontier: frozen.frontier.clone(),
            previous,
            void,
            running,
        })
    }

    /// Whether a job is at work or its result has not come back.
    pub(crate) fn is_running(&self) -> bool {
        self.frozen.as_ref().is_some_and(|frozen| frozen.running.strong_count() > 0)
    }

    pub(crate) fn config(&self) -> &CheckpointConfig {
        &self.config
    }

    /// Takes the result of a job.
    pub(crate) fn finish(&mut self, done: CheckpointDone) -> CheckpointSummary {
        let is_ours = self.frozen.as_ref().is_some_and(|frozen| frozen.position == done.checkpoint.position);
        assert!(is_ours, "a checkpoint is finished by the store that began it");
        self.published.memtable.drop_frozen();
        self.frozen = None;
        self.retry_at_log_bytes = 0;
        self.before_last = Some(self.last.position);
        self.last = Arc::new(done.checkpoint);
        done.summary
    }
}

/// A checkpoint that is to be written, on a thread of its own if one likes.
///
/// It holds all it needs. Dropped without being run, or failed, it may be begun again.
#[must_use]
pub struct CheckpointJob<F, S> {
    purpose: Purpose<F>,
    state: Arc<S>,
    generation: Arc<Generation>,
    position: LogPosition,
    frontier: Frontier,
    previous: Arc<Checkpoint>,
    /// Absorb entries of these dots go.
    void: AppliedSet,
    running: Arc<()>,
}

/// A checkpoint that was written. The store wants it back, to let go of what it froze.
#[must_use]
pub struct CheckpointDone {
    checkpoint: Checkpoint,
    summary: CheckpointSummary,
    // Until the store has it back no other may begin.
    _running: Arc<()>,
}

/// What a checkpoint did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckpointSummary {
    /// The state holds all of the log up to here.
    pub position: LogPosition,
    /// Records written, and keys removed.
    pub records: usize,
    /// How many of those were written only to remove void absorb entries.
    pub cleaned: usize,
    /// Records that still hold absorb entries.
    pub absorbing: usize,
}

impl<F: Files, S: StateStore> CheckpointJob<F, S> {
    /// Writes the checkpoint. Takes as long as the disk does; neither writers nor readers wait.
    ///
    /// # Errors
    /// When the state or `checkpoint.toml` could not be written, or the job panicked: whoever waits
    /// for the result has one in every case.
    pub fn run(self) -> Result<CheckpointDone, CheckpointError> {
        // What was frozen is never changed, so a panic leaves nothing half done here.
        catch_unwind(AssertUnwindSafe(|| self.write()))
            .unwrap_or_else(|panic| Err(CheckpointError::Abandoned(panic_message(&*panic))))
    }

    fn write(self) -> Result<CheckpointDone, CheckpointError> {
        self.check_room()?;
        let Batch { entries, absorbing, cleaned } = self.batch()?;
        let summary =
            CheckpointSummary { position: self.position, records: entries.len(), cleaned, absorbing: absorbing.len() };
        let (mark_in, provenance) = match self.purpose {
            Purpose::Current(data, _) => (Some(data), Provenance::Log),
            Purpose::Join(provenance) => (None, provenance),
        };
        let checkpoint = Checkpoint { position: self.position, frontier: self.frontier, absorbing, provenance };
        self.state.apply_sorted(entries, &checkpoint)?;
        if !seeded_bug("mark-without-flush") {
            self.state.flush()?;
        }
        if let Some(data) = mark_in {
            write_mark(&data, self.position).map_err(CheckpointError::Mark)?;
        }
        Ok(CheckpointDone { checkpoint, summary, _running: self.running })
    }

    /// A state that meets a full disk may be of no more use until the node is restarted, and then not
    /// even read. So it is not let go so far. What the records take in memory is about what they take
    /// on the disk at most; records that rest in one page with many others may take more.
    fn check_room(&self) -> Result<(), CheckpointError> {
        // A join that meets one is begun again.
        let Purpose::Current(data, _) = &self.purpose else { return Ok(()) };
        let needed_bytes = self.state.flush_bytes().saturating_add(self.generation.bytes() as u64);
        match data.free_bytes() {
            Some(free_bytes) if free_bytes < needed_bytes => Err(CheckpointError::Full { needed_bytes, free_bytes }),
            _ => Ok(()),
        }
    }

    fn batch(&self) -> Result<Batch, StateError> {
        let mut batch = Batch {
            entries: Vec::with_capacity(self.generation.len()),
            absorbing: self.previous.absorbing.clone(),
            cleaned: 0,
        };
        for (key, record) in self.generation.iter() {
            batch.add(key, without_void_absorb(record, &self.void));
        }
        for key in self.previous.absorbing.iter().filter(|key| !self.generation.contains(key)) {
            batch.clean(key, self.state.get(key)?, &self.void);
        }
        batch.entries.sort_by(|one, two| one.0.cmp(&two.0));
        Ok(batch)
    }
}

struct Batch {
    entries: Vec<BatchEntry>,
    absorbing: BTreeSet<RecordKey>,
    cleaned: usize,
}

impl Batch {
    fn add(&mut self, key: &RecordKey, record: Arc<Record>) {
        match record.absorb_len() {
            0 => drop(self.absorbing.remove(key)),
            _ => drop(self.absorbing.insert(key.clone())),
        }
        self.entries.push((key.clone(), (!record.is_empty()).then_some(record)));
    }

    /// Takes a record that rests in the state, if there is something to clean in it.
    fn clean(&mut self, key: &RecordKey, record: Option<Record>, void: &AppliedSet) {
        let Some(mut record) = record else {
            self.absorbing.remove(key);
            return;
        };
        if record.drop_void_absorb(void) {
            self.cleaned += 1;
            self.add(key, Arc::new(record));
        }
    }
}

fn without_void_absorb(record: &Arc<Record>, void: &AppliedSet) -> Arc<Record> {
    let mut record = Arc::clone(record);
    if record.absorb_len() > 0 {
        Arc::make_mut(&mut record).drop_void_absorb(void);
    }
    record
}
