//! Joining a snapshot: one step beside a running store, without the network.
//!
//! 1. The store's own records, as its readers see them while it goes on, and the snapshot's are
//!    merged, both in order of keys, into a new state: each record under C, what was applied here when
//!    the join began, with the snapshot's under V, what the donor had applied when its walk began. A
//!    key that one side does not have is an empty record. The result goes with C ⊔ V.
//! 2. Over it the donor's log from V to W is applied, then the own log from where C was to its end.
//!    Both sides' records may be newer than C and V; that does no harm, since both sides kept their
//!    absorb entries and their log from there on (a [`Pin`]).
//! 3. Between two groups of writes, with nothing staged, the rest of the own log is applied, and in one
//!    durable step the new state takes the old one's place ([`Store::adopt`](crate::Store::adopt)).
//!
//! Neither half may be seen before the whole: records of step 1 show values beyond C ⊔ V until the
//! logs are applied. So readers go on with the old state until step 3, and a crash before that finds
//! the old state and the snapshot's file, with which the join begins again.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, Origin, Record, seeded_bug};
use polyarch_protocol::{
    ChainHeads, Digest, Frontier, LogPosition, LogReadError, LogSource, RecordKey, StorageError, WriteSet,
    WriteSetError,
};

use crate::checkpointer::{CheckpointConfig, CheckpointError, Checkpointer, Purpose};
use crate::files::{Directory, Files, LogFile};
use crate::log::LogReader;
use crate::memtable::{Entry, footprint};
use crate::overlay::Overlay;
use crate::pins::Pin;
use crate::published::{Published, StateReader};
use crate::snapshot::{SnapshotError, SnapshotReceiver, SnapshotRecordReader};
use crate::state::{BatchEntry, Checkpoint, Provenance, ScanRange, StateError, StateStore, Succession, panic_message};

const PAGE_RECORDS_MAX: usize = 1_024;
/// Records, and bytes of write sets, that are changed between two publications.
const REPLAY_RECORDS: usize = 1_024;
const REPLAY_BYTES: usize = 8 << 20;
/// Bytes of the own log that are read at once.
const LOG_BYTES: usize = 1 << 20;
/// The own log is followed in rounds until one has no more write sets than this: the rest is left for
/// the adoption, while which nobody writes.
const REST_WRITE_SETS: u64 = 512;
/// Rounds at most, should writers be faster.
const ROUNDS_MAX: u32 = 32;

/// How much a join does at once: what it takes of memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinConfig {
    /// Bytes of own records that are read at once, about. Default 1 MiB.
    pub page_bytes: usize,
    /// Bytes of joined records that are written at once; behind each such batch the join asks whether
    /// to go on. Default 8 MiB.
    pub batch_bytes: usize,
    /// Bytes of joined records after which the new state is flushed. Default 64 MiB.
    pub flush_bytes: usize,
}

impl Default for JoinConfig {
    fn default() -> Self {
        Self { page_bytes: 1 << 20, batch_bytes: 8 << 20, flush_bytes: 64 << 20 }
    }
}

/// What a join is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JoinPhase {
    /// The records of both sides are merged.
    Records,
    /// The snapshot's log is applied.
    SnapshotLog,
    /// The own log is applied.
    OwnLog,
}

/// How far a join is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct JoinProgress {
    /// What it is at.
    pub phase: JoinPhase,
    /// Records that were written.
    pub records: u64,
    /// Write sets of both logs that were looked at.
    pub write_sets: u64,
}

/// Why a snapshot was not joined. The store is as it was, and so is the snapshot's file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// It was told to stop.
    #[error("the join was stopped, since the node stops or the disk has too little room")]
    Stopped,
    /// The snapshot's file cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A state cannot be read, or the new one not be written.
    #[error(transparent)]
    State(#[from] StateError),
    /// The new state did not take what the logs changed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A record cannot be read while a log is applied.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The own log cannot be read.
    #[error(transparent)]
    Log(#[from] LogReadError),
    /// One of the logs holds what no node may have written.
    #[error("a log holds no valid write set: {0}")]
    WriteSet(#[from] WriteSetError),
    /// One of the logs does not follow on the records.
    #[error("a log goes on with {dot}, and the records are at seq {applied} of that origin")]
    Gap {
        /// The write set.
        dot: Dot,
        /// What was applied of its origin.
        applied: u64,
    },
    /// The two sides do not hold the same history of an origin.
    #[error("the snapshot and this node hold different histories of {0}")]
    Fork(Origin),
    /// The snapshot does not add up to what it ends with.
    #[error("the snapshot lacks write sets of {0} that it says it has")]
    Incomplete(Origin),
    /// The job panicked, or there was no thread to run it.
    #[error("the join was abandoned: {0}")]
    Abandoned(String),
}

impl JoinError {
    /// Whether the snapshot is at fault: to join it again would fail again, and another is to be
    /// fetched, from another donor if possible.
    pub fn is_of_the_snapshot(&self) -> bool {
        match self {
            Self::Snapshot(error) => !matches!(error, SnapshotError::Io { .. }),
            Self::WriteSet(_) | Self::Gap { .. } | Self::Fork(_) | Self::Incomplete(_) => true,
            _ => false,
        }
    }
}

/// A join that is to be run, on a thread of its own: it takes as long as to read and write all
/// records of both sides. Writers and readers do not wait for it. Memory is bounded by a batch of
/// records and what the checkpoint configuration gives a memtable.
///
/// It holds all it needs. Dropped without being run, it leaves everything as it was.
#[must_use]
pub struct JoinJob<F: Files, S: StateStore> {
    pub(crate) snapshot: SnapshotReceiver<F>,
    pub(crate) records: StateReader<S>,
    pub(crate) log: LogReader<F>,
    pub(crate) pin: Pin,
    pub(crate) succession: Arc<dyn Succession<S>>,
    pub(crate) config: JoinConfig,
    pub(crate) checkpoint: CheckpointConfig,
    /// Seeded bug: the donor's log is not applied, as if one applied-set could be that of a walk.
    #[cfg(feature = "seeded-bugs")]
    pub(crate) leaves_out_log: bool,
    pub(crate) running: Arc<()>,
}

/// A joined state, with all but the last of the own log. The store takes it with
/// [`Store::adopt`](crate::Store::adopt); dropped, it is removed.
#[must_use]
pub struct Joined<F: Files, S: StateStore> {
    replay: Replay<S>,
    /// Where the own log goes on that was not applied yet.
    position: LogPosition,
    log: LogReader<F>,
    pub(crate) snapshot: SnapshotReceiver<F>,
    pub(crate) pin: Pin,
    // Behind all that has the new state open.
    next: NextState<S>,
    _running: Arc<()>,
}

/// A state that is being made. Dropped before it is adopted, it is removed.
struct NextState<S: StateStore> {
    state: Option<Arc<S>>,
    succession: Arc<dyn Succession<S>>,
}

impl<S: StateStore> NextState<S> {
    fn begin(succession: Arc<dyn Succession<S>>) -> Result<Self, StateError> {
        let state = Some(Arc::new(succession.begin()?));
        Ok(Self { state, succession })
    }

    fn state(&self) -> Arc<S> {
        Arc::clone(self.state.as_ref().expect("it is taken when the guard ends"))
    }
}

impl<S: StateStore> Drop for NextState<S> {
    fn drop(&mut self) {
        let Some(state) = self.state.take() else { return };
        // Files that are open are left for the next open to remove.
        if Arc::try_unwrap(state).map(drop).is_ok()
            && let Err(error) = self.succession.abandon()
        {
            tracing::warn!(%error, "a state that was not joined to its end cannot be removed; the next start does");
        }
    }
}

impl<F: Files, S: StateStore> JoinJob<F, S> {
    /// Joins. Asks `goes_on` every few thousand records and write sets.
    ///
    /// # Errors
    /// When a part cannot be read or written, the snapshot is not what it says, `goes_on` said no, or
    /// the job panicked: whoever waits for the result has one in every case. The snapshot's file is
    /// still there ([`Store::pending_snapshot`](crate::Store::pending_snapshot)).
    pub fn run(self, mut goes_on: impl FnMut(&JoinProgress) -> bool) -> Result<Joined<F, S>, JoinError> {
        // What a panic leaves half made is a state that nobody has seen.
        catch_unwind(AssertUnwindSafe(|| self.join(&mut goes_on)))
            .unwrap_or_else(|panic| Err(JoinError::Abandoned(panic_message(&*panic))))
    }

    fn join(self, goes_on: &mut dyn FnMut(&JoinProgress) -> bool) -> Result<Joined<F, S>, JoinError> {
        let leaves_out_log = self.leaves_out_log();
        let Self { snapshot, records, log, pin, succession, config, checkpoint, running, .. } = self;
        let next = NextState::begin(succession)?;
        let mut told = Told { goes_on, progress: JoinProgress::new() };
        let start = &snapshot.begun().start;
        let mut reader = snapshot.reader()?;
        // Seeded bug: the records are taken for those of the donor's end.
        let end = snapshot.heads().filter(|_| seeded_bug("join-under-the-end")).unwrap_or(&start.heads);
        let ours = Sides { applied: pin.start().heads.applied(), other_applied: end.applied() };
        let state = next.state();
        let mut writer = Writer::new(&*state, &config);
        ours.merge(OwnRecords::new(&records, config.page_bytes), &mut reader, &mut writer, &mut told)?;
        let (digest, absorbing) = writer.finish()?;
        let frontier = pin.start().join(start, digest).map_err(|forked| JoinError::Fork(forked.0))?;

        let position = pin.position();
        let provenance = Provenance::Joining;
        let held = Checkpoint { position, frontier: frontier.clone(), absorbing, provenance };
        let mut replay = Replay::new(state, checkpoint, held);
        told.phase(JoinPhase::SnapshotLog)?;
        if !leaves_out_log {
            while let Some(write_sets) = reader.next_write_sets()? {
                told.apply(&mut replay, &write_sets)?;
            }
            check_end(&replay.frontier, snapshot.heads())?;
        }
        told.phase(JoinPhase::OwnLog)?;
        let mut joined = Joined { replay, position, log, snapshot, pin, next, _running: running };
        for _ in 0..ROUNDS_MAX {
            if joined.follow(Some(&mut told))? <= REST_WRITE_SETS {
                break;
            }
        }
        let position = joined.position;
        joined.replay.checkpoint(position, Provenance::Joining)?;
        Ok(joined)
    }

    #[cfg(feature = "seeded-bugs")]
    fn leaves_out_log(&self) -> bool {
        self.leaves_out_log
    }

    #[cfg(not(feature = "seeded-bugs"))]
    fn leaves_out_log(&self) -> bool {
        false
    }
}

/// Whether the snapshot held what it says at its end.
fn check_end(frontier: &Frontier, end: Option<&ChainHeads>) -> Result<(), JoinError> {
    for (origin, theirs) in end.into_iter().flat_map(ChainHeads::iter) {
        let ours = frontier.heads.head(origin);
        if ours.seq < theirs.seq {
            return Err(JoinError::Incomplete(origin));
        }
        if ours.seq == theirs.seq && ours.hash != theirs.hash {
            return Err(JoinError::Fork(origin));
        }
    }
    Ok(())
}

impl<F: Files, S: StateStore> Joined<F, S> {
    /// Applies the own log that has become durable; says how many write sets it had.
    fn follow(&mut self, mut told: Option<&mut Told<'_>>) -> Result<u64, JoinError> {
        let end = self.log.durable_end();
        let mut count = 0;
        while self.position < end {
            let batch = self.log.read(self.position, LOG_BYTES)?;
            if batch.write_sets.is_empty() {
                break;
            }
            match &mut told {
                Some(told) => told.apply(&mut self.replay, &batch.write_sets)?,
                None => self.replay.apply_all(&batch.write_sets)?,
            }
            count += batch.write_sets.len() as u64;
            self.position = batch.next;
        }
        Ok(count)
    }

    /// Applies the rest of the own log, which ends at `end` and adds up to `own`, and writes all of it
    /// to the new state.
    pub(crate) fn complete(&mut self, end: LogPosition, own: &ChainHeads) -> Result<(), JoinError> {
        self.follow(None)?;
        check_end(&self.replay.frontier, Some(own))?;
        // Twice, for the log lets a state roll back by one flush, and before these it is of no use.
        self.replay.checkpoint(end, Provenance::Joined(own.clone()))?;
        self.replay.checkpoint(end, Provenance::Joined(own.clone()))
    }

    /// W of the snapshot: what its donor had at its end.
    pub fn snapshot_heads(&self) -> &ChainHeads {
        self.snapshot.heads().expect("only a whole snapshot is joined")
    }

    /// What it adds up to, as far as the own log was applied.
    pub(crate) fn heads(&self) -> &ChainHeads {
        &self.replay.frontier.heads
    }

    /// Makes it the current state, durably, and gives it away.
    pub(crate) fn adopt(self) -> Result<Adopted<F, S>, StateError> {
        let Self { replay, snapshot, mut next, .. } = self;
        next.succession.adopt()?;
        let state = next.state.take().expect("it is taken here");
        let held = Checkpoint::clone(replay.checkpointer.last());
        Ok(Adopted { state, held, snapshot })
    }
}

/// What was adopted.
pub(crate) struct Adopted<F: Files, S> {
    pub(crate) state: Arc<S>,
    pub(crate) held: Checkpoint,
    pub(crate) snapshot: SnapshotReceiver<F>,
}

/// A state that was current before, until it is removed from the disk.
///
/// Readers that found it current may still read it. Give it to a thread in the background, where
/// [`RetiredState::remove`] takes as long as it takes to delete its files. Dropped, it is removed at the
/// next start.
#[must_use]
pub struct RetiredState<S> {
    pub(crate) state: Arc<S>,
    pub(crate) succession: Arc<dyn Succession<S>>,
}

impl<S: StateStore> RetiredState<S> {
    /// Closes and removes it; gives it back as long as somebody reads it: try again later.
    ///
    /// # Errors
    /// When it cannot be removed; the next start does.
    pub fn remove(self) -> Result<Option<Self>, StateError> {
        match Arc::try_unwrap(self.state) {
            // Closed before its files go, for a backend may still write some.
            Ok(state) => {
                drop(state);
                self.succession.remove_previous()?;
                Ok(None)
            }
            Err(state) => Ok(Some(Self { state, ..self })),
        }
    }
}

impl JoinProgress {
    fn new() -> Self {
        Self { phase: JoinPhase::Records, records: 0, write_sets: 0 }
    }
}

/// Whoever is told how far the join is.
struct Told<'a> {
    goes_on: &'a mut dyn FnMut(&JoinProgress) -> bool,
    progress: JoinProgress,
}

impl Told<'_> {
    fn phase(&mut self, phase: JoinPhase) -> Result<(), JoinError> {
        self.progress.phase = phase;
        self.ask()
    }

    fn ask(&mut self) -> Result<(), JoinError> {
        match (self.goes_on)(&self.progress) {
            true => Ok(()),
            false => Err(JoinError::Stopped),
        }
    }

    fn apply<S: StateStore>(&mut self, replay: &mut Replay<S>, write_sets: &[Bytes]) -> Result<(), JoinError> {
        replay.apply_all(write_sets)?;
        self.progress.write_sets += write_sets.len() as u64;
        self.ask()
    }
}

/// What was applied on either side when its walk began.
struct Sides<'a> {
    applied: &'a AppliedSet,
    other_applied: &'a AppliedSet,
}

impl Sides<'_> {
    /// Joins all records of the two sides, in order of keys.
    fn merge<L: LogFile, S: StateStore>(
        &self,
        mut ours: OwnRecords<'_, S>,
        theirs: &mut SnapshotRecordReader<L>,
        writer: &mut Writer<'_, S>,
        told: &mut Told<'_>,
    ) -> Result<(), JoinError> {
        let nothing = Record::default();
        let (mut our, mut their) = (ours.next_record()?, theirs.next_record()?);
        loop {
            let order = match (&our, &their) {
                (Some((our, _)), Some((their, _))) => our.cmp(their),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return Ok(()),
            };
            let one = if order.is_le() { mem::replace(&mut our, ours.next_record()?) } else { None };
            let two = if order.is_ge() { mem::replace(&mut their, theirs.next_record()?) } else { None };
            let mine = one.as_ref().map_or(&nothing, |(_, record)| record);
            let other = two.as_ref().map_or(&nothing, |(_, record)| record);
            let joined = mine.join(self.applied, other, self.other_applied);
            let key = one.map(|(key, _)| key).or(two.map(|(key, _)| key));
            if let Some(key) = key.filter(|_| !joined.is_empty()) {
                told.progress.records += 1;
                if writer.push(key, joined)? {
                    told.ask()?;
                }
            }
        }
    }
}

/// The store's own records, in order of keys, a page at a time.
struct OwnRecords<'a, S> {
    reader: &'a StateReader<S>,
    // What was not read yet; nothing at the end.
    rest: Option<ScanRange>,
    page: std::vec::IntoIter<Entry>,
    page_bytes: usize,
    page_records: usize,
}

impl<'a, S: StateStore> OwnRecords<'a, S> {
    fn new(reader: &'a StateReader<S>, page_bytes: usize) -> Self {
        // Before any was seen, records are taken for large ones.
        let (rest, page_records) = (Some(ScanRange::everything()), (page_bytes >> 14).clamp(1, PAGE_RECORDS_MAX));
        Self { reader, rest, page: Vec::new().into_iter(), page_bytes, page_records }
    }

    fn next_record(&mut self) -> Result<Option<Entry>, StateError> {
        loop {
            if let Some(entry) = self.page.next() {
                return Ok(Some(entry));
            }
            let Some(range) = self.rest.take() else { return Ok(None) };
            let page = self.reader.scan(&range, self.page_records)?;
            if page.len() == self.page_records {
                self.rest = page.last().map(|(last, _)| range.after(last.clone()));
            }
            let bytes: usize = page.iter().map(|(key, record)| footprint(key, record)).sum();
            // As many as make a page, should the next be alike.
            let fitting = self.page_bytes.saturating_mul(page.len()).checked_div(bytes).unwrap_or(PAGE_RECORDS_MAX);
            self.page_records = fitting.clamp(1, PAGE_RECORDS_MAX);
            self.page = page.into_iter();
        }
    }
}

/// Writes records, in order of keys, to a state that holds none.
struct Writer<'a, S> {
    state: &'a S,
    config: &'a JoinConfig,
    batch: Vec<BatchEntry>,
    bytes: usize,
    unflushed: usize,
    digest: Digest,
    absorbing: BTreeSet<RecordKey>,
}

impl<'a, S: StateStore> Writer<'a, S> {
    fn new(state: &'a S, config: &'a JoinConfig) -> Self {
        let (batch, digest) = (Vec::new(), Digest::default());
        Self { state, config, batch, bytes: 0, unflushed: 0, digest, absorbing: BTreeSet::new() }
    }

    /// Takes a record; says whether a batch was written.
    fn push(&mut self, key: RecordKey, record: Record) -> Result<bool, StateError> {
        for field in record.fields() {
            field.siblings().iter().for_each(|sibling| self.digest.add(&key, field.path(), sibling));
        }
        if record.absorb_len() > 0 {
            self.absorbing.insert(key.clone());
        }
        self.bytes += footprint(&key, &record);
        self.batch.push((key, Some(Arc::new(record))));
        match self.bytes >= self.config.batch_bytes {
            true => self.write().map(|()| true),
            false => Ok(false),
        }
    }

    fn write(&mut self) -> Result<(), StateError> {
        let unfinished = Checkpoint { provenance: Provenance::Joining, ..Checkpoint::default() };
        self.state.apply_sorted(mem::take(&mut self.batch), &unfinished)?;
        self.unflushed += mem::take(&mut self.bytes);
        if self.unflushed >= self.config.flush_bytes {
            self.state.flush()?;
            self.unflushed = 0;
        }
        Ok(())
    }

    /// The digest of all records, and the keys of those that absorb.
    fn finish(mut self) -> Result<(Digest, BTreeSet<RecordKey>), StateError> {
        self.write()?;
        self.state.flush()?;
        Ok((self.digest, self.absorbing))
    }
}

/// Applies logs to a state that is being made.
struct Replay<S> {
    overlay: Overlay<S>,
    checkpointer: Checkpointer<S>,
    frontier: Frontier,
    /// Bytes of write sets since records were published.
    bytes: usize,
}

impl<S: StateStore> Replay<S> {
    fn new(state: Arc<S>, config: CheckpointConfig, held: Checkpoint) -> Self {
        let published = Arc::new(Published::new(state));
        let frontier = held.frontier.clone();
        let checkpointer = Checkpointer::new(config, Arc::clone(&published), held);
        Self { overlay: Overlay::new(published), checkpointer, frontier, bytes: 0 }
    }

    fn apply_all(&mut self, write_sets: &[Bytes]) -> Result<(), JoinError> {
        write_sets.iter().try_for_each(|bytes| self.apply(bytes))
    }

    /// Applies a write set, unless it is applied already.
    fn apply(&mut self, bytes: &Bytes) -> Result<(), JoinError> {
        let dot = WriteSet::peek_dot(bytes)?;
        let applied = self.frontier.heads.applied().seq(dot.origin);
        if dot.seq <= applied {
            return Ok(());
        }
        if dot.seq != applied + 1 {
            return Err(JoinError::Gap { dot, applied });
        }
        let write_set = WriteSet::decode(bytes)?;
        let _counted_when_it_was_new = self.frontier.apply(&mut self.overlay, &write_set, bytes)?;
        self.checkpointer.note_logged(bytes.len());
        self.bytes += bytes.len();
        if self.overlay.len() >= REPLAY_RECORDS || self.bytes >= REPLAY_BYTES {
            self.publish();
            if self.checkpointer.is_due() {
                let position = self.checkpointer.last().position;
                self.checkpoint(position, Provenance::Joining)?;
            }
        }
        Ok(())
    }

    fn publish(&mut self) {
        self.overlay.publish();
        self.bytes = 0;
    }

    /// Writes all that was applied to the state.
    fn checkpoint(&mut self, position: LogPosition, provenance: Provenance) -> Result<(), JoinError> {
        self.publish();
        let purpose = Purpose::<Directory>::Join(provenance);
        let job = self.checkpointer.begin(purpose, &self.frontier, position);
        let job = job.expect("one is finished before the next begins, and none that failed is followed by another");
        let _counted = self.checkpointer.finish(job.run()?);
        Ok(())
    }
}
