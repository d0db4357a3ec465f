//! One node's storage: log, memtable and state behind the replica's [`Storage`].
//!
//! ```text
//! append ─▶ log (staged) ─ sync ─▶ log (durable) ───────────────── replay after a crash
//! apply ──▶ overlay ───── publish ─▶ memtable ─ checkpoint ─▶ state
//!             │                        │                        │
//!          the replica             readers look here, then here
//! ```
//!
//! With `durability = "sync"` the driver calls [`Store::sync`], which syncs and then publishes:
//! what can be seen is durable. With `"interval"` it calls [`Store::publish_staged`] after each
//! group and [`Store::sync`] every so often. Either way only what is durable in the log is ever
//! given to a checkpoint, so the state is never ahead of the log.

use std::io;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use bytes::Bytes;
use polyarch_crdt::{Record, seeded_bug};
use polyarch_protocol::{
    Bases, ChainHeads, Frontier, KeyspaceId, LogPosition, RecordKey, Records, Storage, StorageError,
};

use crate::checkpointer::{CheckpointConfig, CheckpointDone, CheckpointJob, CheckpointSummary, Checkpointer, Purpose};
use crate::files::{Directory, Files, is_full};
use crate::join::{Adopted, JoinConfig, JoinError, JoinJob, Joined, RetiredState};
use crate::lock::DirectoryLock;
use crate::log::{Log, LogCheck, LogConfig, LogError, LogReader, SegmentSummary, Survey};
use crate::log_check::{LogCheckThread, LogFinding};
use crate::marks::{CHECKPOINT, LOG_BEGINS, read_log_begins, read_mark, write_log_begins, write_mark};
use crate::open::{OpenError, OpenReport, Opened, Replay, begin_owed_boundary, open_state};
use crate::overlay::{Overlay, storage_error};
use crate::pins::{Pin, Pins};
use crate::published::{Published, StateReader};
use crate::repair;
use crate::snapshot::{SnapshotError, SnapshotReceiver};
use crate::state::{SledConfig, SledState, StateDirectory, StateError, StateOpener, StateStore, Succession};

/// The log's directory within the data directory.
pub(crate) const LOG: &str = "log";
/// The directory of a snapshot on its way in.
pub(crate) const SNAPSHOT: &str = "snapshot";

/// How a store is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreConfig {
    /// The log.
    pub log: LogConfig,
    /// When the memtable goes to the state.
    pub checkpoint: CheckpointConfig,
    /// How much a join of a snapshot does at once.
    pub join: JoinConfig,
    /// sled, where the state is sled.
    pub sled: SledConfig,
    /// Whether all records are read and counted at every open, and not only when there is reason
    /// to doubt them. Default false: it takes about a second per 500,000 records.
    pub check_state_at_open: bool,
    /// Faults to switch on, so that a simulator can show that it sees them.
    #[cfg(feature = "seeded-bugs")]
    pub bugs: SeededBugs,
}

/// Faults that a simulation must notice. Unreachable from any shipped binary.
#[cfg(feature = "seeded-bugs")]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SeededBugs {
    /// Void absorb entries are removed at once, not when a checkpoint has their dots.
    pub absorb_removed_at_once: bool,
    /// The coordinator computes on what is published, not on what is staged.
    pub reads_durable_instead_of_staged: bool,
    /// A checkpoint takes absorb entries away from walks that began before their dots came.
    pub absorb_not_pinned: bool,
    /// Segments of the log are removed that a walk is yet to read.
    pub log_not_pinned: bool,
    /// A snapshot is joined without the log that came with it.
    pub join_without_log: bool,
}

/// Where a store's files are: the data directory and the log's directory in it.
#[derive(Debug, Clone)]
pub struct StoreFiles<F> {
    /// `checkpoint.toml` and `log.toml`.
    pub data: F,
    /// The log's segments.
    pub log: F,
    /// A snapshot on its way in.
    pub snapshot: F,
}

impl<F: Clone> From<F> for StoreFiles<F> {
    /// All in one directory; their names do not meet. For simulated disks.
    fn from(files: F) -> Self {
        Self { data: files.clone(), log: files.clone(), snapshot: files }
    }
}

/// A store on a real disk.
pub type DiskStore = Store<Directory, SledState>;

/// The log, the memtable and the state of one node. See the head of this file for how they fit.
///
/// It belongs to one thread. Others read through [`Store::reader`] and [`Store::log_reader`], and
/// run its checkpoints.
pub struct Store<F: Files, S: StateStore> {
    data: F,
    snapshot: F,
    log: Log<F>,
    overlay: Overlay<S>,
    checkpointer: Checkpointer<S>,
    pins: Pins,
    succession: Arc<dyn Succession<S>>,
    join: JoinConfig,
    // Alive as long as a join runs or its result was not adopted.
    joining: Weak<()>,
    retired: Option<RetiredState<S>>,
    log_check: Option<LogCheckThread>,
    /// Why nothing more is taken until a checkpoint was written.
    held: Option<String>,
    // Let go of last.
    _lock: Option<DirectoryLock>,
    #[cfg(feature = "seeded-bugs")]
    bugs: SeededBugs,
}

impl DiskStore {
    /// Opens the store in a data directory, which is created if need be (its parent is not), and
    /// keeps other processes out of it.
    ///
    /// # Errors
    /// When another process has it, and as [`Store::open`].
    pub fn open_directory(directory: &Path, config: &StoreConfig) -> Result<(Self, Frontier, OpenReport), OpenError> {
        let opened = |path: &Path| {
            Directory::open(path)
                .map_err(|source| OpenError::Directory { directory: path.display().to_string(), source })
        };
        let data = opened(directory)?;
        let lock = DirectoryLock::acquire(directory)?;
        if repair::is_unfinished(directory) {
            return Err(OpenError::RepairUnfinished(directory.to_owned()));
        }
        let log = opened(&directory.join(LOG))?;
        let snapshot = opened(&directory.join(SNAPSHOT))?;
        let state = StateDirectory::sled(directory, config.sled.clone());
        let (mut store, frontier, report) = Self::open(StoreFiles { data, log, snapshot }, state, config)?;
        store._lock = Some(lock);
        Ok((store, frontier, report))
    }
}

impl<S: StateStore> Store<Directory, S> {
    /// When a segment of the log was last written to, by the file's time: it stays over restarts,
    /// and a copy of the directory that does not keep times begins anew.
    ///
    /// # Errors
    /// When the segment is gone, or the disk does not say.
    pub fn segment_modified(&self, number: u64) -> io::Result<SystemTime> {
        self.log.modified(number)
    }
}

impl<F: Files, S: StateStore> Store<F, S> {
    /// Opens the log and the state, mends or rebuilds the state where that can be done, and
    /// replays what it lacks. Returns the frontier that goes with the records.
    ///
    /// The caller sees to it that no other process has the files: see [`DirectoryLock`].
    ///
    /// # Errors
    /// When a part cannot be opened, is damaged, or does not fit the others: see [`OpenError`].
    pub fn open<O: StateOpener<State = S>>(
        files: impl Into<StoreFiles<F>>,
        mut state: O,
        config: &StoreConfig,
    ) -> Result<(Self, Frontier, OpenReport), OpenError> {
        let files = files.into();
        let mark = read_mark(&files.data)?;
        // All that is there has its say before anything is changed: a log that lost what was synced
        // must not go on, and least of all replace a state that still has it.
        let survey = Survey::new(files.log, config.log.clone(), mark)?;
        survey.check_begins(read_log_begins(&files.data)?)?;
        let opened = Opened::new(&mut state);
        opened.position().map_or(Ok(()), |position| survey.check_reaches(position))?;
        let (mut log, recovery) = survey.resume()?;
        let base = open_state(&mut state, opened, &log, mark, config)?;
        begin_owed_boundary(&mut log, &base.held)?;
        #[cfg(feature = "seeded-bugs")]
        let pins = Pins::with_bugs(config.bugs);
        #[cfg(not(feature = "seeded-bugs"))]
        let pins = Pins::default();
        let published = Arc::new(Published::new(base.state));
        let frontier = base.held.frontier.clone();
        let mut replay = Replay {
            overlay: Overlay::new(Arc::clone(&published)),
            checkpointer: Checkpointer::new(config.checkpoint.clone(), published, base.held),
            frontier,
            replayed: 0,
            data: &files.data,
            pins: &pins,
            #[cfg(feature = "seeded-bugs")]
            bugs: config.bugs,
        };
        log.replay(base.from, &mut |end, bytes| replay.apply(end, &bytes))?;
        replay.overlay.publish();
        let report =
            OpenReport { log: recovery, state: base.report, replayed_from: base.from, replayed: replay.replayed };
        let Replay { overlay, checkpointer, frontier, .. } = replay;
        let store = Self {
            data: files.data,
            snapshot: files.snapshot,
            log,
            overlay,
            checkpointer,
            pins,
            succession: state.succession(),
            join: config.join.clone(),
            joining: Weak::new(),
            retired: None,
            log_check: None,
            held: None,
            _lock: None,
            #[cfg(feature = "seeded-bugs")]
            bugs: config.bugs,
        };
        Ok((store, frontier, report))
    }

    /// Makes all that was staged durable and then visible, at one moment. Returns up to where: acks and
    /// feeds may go out to there.
    ///
    /// # Errors
    /// When the log could not be synced, for good. What was staged is then not visible and may or
    /// may not be on the disk.
    pub fn sync(&mut self) -> Result<LogPosition, LogError> {
        let end = self.sync_log()?;
        self.publish_staged();
        Ok(end)
    }

    /// The first half of [`Store::sync`]: makes all that was staged durable, and leaves it to
    /// [`Store::publish_staged`] to make it visible. For a caller that publishes more than records
    /// at that moment.
    ///
    /// # Errors
    /// As [`Store::sync`].
    pub fn sync_log(&mut self) -> Result<LogPosition, LogError> {
        self.log.sync()
    }

    /// Makes all that was staged visible to this node's readers without waiting for the disk: for
    /// `durability = "interval"` only, where acks and local reads may run ahead of it. Peers are
    /// sent only what [`Store::sync`] made durable, and so is the state.
    ///
    /// After [`Store::adopt`] it makes the adopted state visible.
    pub fn publish_staged(&mut self) {
        if let Some(state) = self.overlay.publish() {
            self.retired = Some(RetiredState { state, succession: Arc::clone(&self.succession) });
        }
    }

    /// The end of what is durable.
    pub fn durable_end(&self) -> LogPosition {
        self.log.durable_end()
    }

    /// The retained segments of the log, oldest first.
    pub fn segments(&self) -> Vec<SegmentSummary> {
        self.log.segments()
    }

    /// The check of those segments of the log that the open did not read. A second one has nothing
    /// to do.
    pub fn log_check(&mut self) -> LogCheck<F> {
        self.log.check()
    }

    /// Runs [`Store::log_check`] on a thread of its own, called `log-check`, which reads slowly,
    /// says what is wrong, and ends when it is through or the store is dropped.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn begin_log_check(&mut self, found: impl FnMut(LogFinding) + Send + 'static) -> io::Result<()> {
        self.log_check = Some(LogCheckThread::spawn(self.log.check(), found)?);
        Ok(())
    }

    /// Whether memory holds all it may of what is not in the state (see
    /// [`CheckpointConfig::memtable_times_max`]): whoever writes has to wait for the checkpoint that
    /// is running, or, when that fails, to stop.
    pub fn is_memtable_full(&self) -> bool {
        self.checkpointer.is_full()
    }

    /// Reads what is published, on any thread.
    pub fn reader(&self) -> StateReader<S> {
        StateReader::new(Arc::clone(self.overlay.published()))
    }

    /// Reads the durable log, on any thread.
    pub fn log_reader(&self) -> LogReader<F> {
        self.log.reader()
    }

    /// Begins a checkpoint if one is due. `frontier` is that of all that was appended.
    ///
    /// To be called right after [`Store::sync`]: `None` is the answer, too, while anything is
    /// staged, and while a checkpoint is running. Run the job on a thread in the background and
    /// give what it returns to [`Store::finish_checkpoint`]. When it failed, drop the error where
    /// it was noted: the same records are tried again after some more writes, and until then reads
    /// find them in memory and a crash finds them in the log.
    pub fn begin_checkpoint(&mut self, frontier: &Frontier) -> Option<CheckpointJob<F, S>> {
        match self.checkpointer.is_due() {
            true => self.begin_checkpoint_now(frontier),
            false => None,
        }
    }

    /// Begins a checkpoint though none is due: before a stop, to shorten the next start.
    /// Otherwise as [`Store::begin_checkpoint`].
    pub fn begin_checkpoint_now(&mut self, frontier: &Frontier) -> Option<CheckpointJob<F, S>> {
        let purpose = Purpose::Current(self.data.clone(), self.pins.clone());
        match self.is_all_durable() {
            true => self.checkpointer.begin(purpose, frontier, self.log.durable_end()),
            false => None,
        }
    }

    /// Whether nothing is staged, and all that is visible is durable.
    fn is_all_durable(&self) -> bool {
        if seeded_bug("checkpoint-of-what-is-staged") {
            return self.overlay.is_empty();
        }
        self.overlay.is_empty() && self.log.staged_end() == self.log.durable_end()
    }

    /// Lets go of what a checkpoint has written.
    ///
    /// # Panics
    /// When the checkpoint is not of this store.
    pub fn finish_checkpoint(&mut self, done: CheckpointDone) -> CheckpointSummary {
        self.held = None;
        self.checkpointer.finish(done)
    }

    /// Takes nothing more until a checkpoint was written: for lack of room on the disk the last one
    /// failed, and memory holds all it may ([`Store::is_memtable_full`]). Appends are then refused
    /// with [`StorageError::Full`].
    pub fn hold_until_checkpoint(&mut self, reason: String) {
        self.held = Some(reason);
    }

    /// Whether another checkpoint could let [`Store::remove_log_before`] remove more.
    pub fn checkpoint_may_free_log(&self) -> bool {
        self.checkpointer.before_last().is_none_or(|before_last| before_last < self.log.durable_end())
    }

    /// How far the state holds the log.
    pub fn checkpointed(&self) -> LogPosition {
        self.checkpointer.last().position
    }

    /// Removes the log's segments that lie wholly before `floor`, the caller's reason to keep any,
    /// before what is pinned ([`Store::pin`]), and before the checkpoint before last, without which a state that rolls back once could not
    /// be brought up again. Returns the numbers of those removed: none before there was a
    /// checkpoint since the start.
    ///
    /// That they may be gone is noted first, in `log.toml`: a log that begins later than noted there
    /// has lost segments, and does not open.
    ///
    /// # Errors
    /// [`LogError::Full`] when there is no room for the note: nothing was removed, and it may be tried
    /// again. Any other: the note could not be written or the log could not remove a file, and it
    /// takes nothing more until it is opened again.
    pub fn remove_log_before(&mut self, floor: LogPosition) -> Result<Vec<u64>, LogError> {
        let Some(before_last) = self.checkpointer.before_last() else { return Ok(Vec::new()) };
        let needed = if seeded_bug("log-cut-to-last-checkpoint") { self.checkpointed() } else { before_last };
        let keep = needed.min(floor).min(self.pins.earliest().unwrap_or(floor));
        let Some(begins) = self.log.first_kept(keep) else { return Ok(Vec::new()) };
        // Whether the note is the old one or the new, nothing is missing yet.
        let noted = write_log_begins(&self.data, begins).map_err(LogError::ahead("write", LOG_BEGINS));
        if let Err(error @ LogError::Write { .. }) = &noted {
            self.log.poison(error.to_string());
        }
        noted?;
        self.log.remove_segments_before(keep)
    }

    /// Holds on to what a walk over the records needs that begins now, when `frontier` is that of all
    /// that was appended: for a donor of a snapshot, which reads records by [`Store::reader`] and then
    /// the log behind [`Pin::position`] by [`Store::log_reader`].
    ///
    /// To be called right after [`Store::sync`]: `None` is the answer while anything is staged or
    /// visible and not durable.
    pub fn pin(&mut self, frontier: &Frontier) -> Option<Pin> {
        self.is_all_durable().then(|| self.pins.pin(frontier, self.log.durable_end()))
    }

    /// The directory for a snapshot on its way in: for [`SnapshotReceiver::begin`].
    pub fn snapshot_files(&self) -> &F {
        &self.snapshot
    }

    /// A snapshot that was on its way in when the store was closed, or whose join did not end. If it
    /// is whole, it may be joined; if not, its fetch may go on. One that brings nothing which
    /// `frontier` lacks is removed: a crash came between its adoption and that. Reads the whole file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn pending_snapshot(&self, frontier: &Frontier) -> Result<Option<SnapshotReceiver<F>>, SnapshotError> {
        let Some(pending) = SnapshotReceiver::open(self.snapshot.clone())? else { return Ok(None) };
        let applied = frontier.heads.applied();
        match pending.heads().is_some_and(|heads| applied.includes_all(heads.applied())) {
            true => pending.remove().map(|()| None),
            false => Ok(Some(pending)),
        }
    }

    /// Begins to join a whole snapshot. `frontier` is that of all that was appended; it may be the
    /// empty one of a new store, which then becomes what the snapshot is.
    ///
    /// The job runs on a thread in the background, and what it returns goes to [`Store::adopt`]. Until
    /// then the store goes on as before, but for what a [`Store::pin`] holds on to.
    ///
    /// To be called right after [`Store::sync`].
    ///
    /// # Errors
    /// While anything is staged, while another join is not over, or when the snapshot is not whole: it
    /// is given back.
    pub fn begin_join(
        &mut self,
        snapshot: SnapshotReceiver<F>,
        frontier: &Frontier,
    ) -> Result<JoinJob<F, S>, SnapshotReceiver<F>> {
        if !snapshot.is_whole() || self.joining.strong_count() > 0 {
            return Err(snapshot);
        }
        let Some(pin) = self.pin(frontier) else { return Err(snapshot) };
        let running = Arc::new(());
        self.joining = Arc::downgrade(&running);
        Ok(JoinJob {
            snapshot,
            records: self.reader(),
            log: self.log.reader(),
            pin,
            succession: Arc::clone(&self.succession),
            config: self.join.clone(),
            checkpoint: self.checkpointer.config().clone(),
            #[cfg(feature = "seeded-bugs")]
            leaves_out_log: self.bugs.join_without_log,
            running,
        })
    }

    /// Whether a joined state may be adopted now: nothing is staged, and no checkpoint is running or
    /// waits for [`Store::finish_checkpoint`]. A driver that holds one begins no checkpoint until it is
    /// adopted.
    pub fn may_adopt(&self) -> bool {
        self.is_all_durable() && !self.checkpointer.is_running()
    }

    /// Takes a joined state in the place of the current one, and returns the frontier that goes with
    /// it. `frontier` is that of all that was appended, and included in it.
    ///
    /// When this returns, the joined state is durably the current one, the log goes on with a segment
    /// that begins with its frontier, all pins are void, and the snapshot's file is gone. The caller
    /// reads and writes the new records from here on; readers see them, at one moment, with the next
    /// [`Store::publish_staged`] (or [`Store::sync`]), so that the caller can publish its frontier at
    /// the same moment. Waits for the disk: for what was written since the join ended, and some syncs.
    ///
    /// A crash within leaves the old state and the snapshot's file, or the new state.
    ///
    /// # Errors
    /// See [`AdoptError`]: either nothing has changed, or the store takes nothing more.
    ///
    /// # Panics
    /// When it may not be adopted now: see [`Store::may_adopt`]; or is of another store.
    pub fn adopt(&mut self, mut joined: Joined<F, S>, frontier: &Frontier) -> Result<Frontier, AdoptError> {
        assert!(self.may_adopt(), "a joined state is adopted when nothing is staged and no checkpoint runs");
        assert!(self.pins.holds(&joined.pin), "a joined state is adopted by the store that began the join");
        self.complete(&mut joined, &frontier.heads)?;
        let adopted = joined.adopt().map_err(AdoptError::State);
        let adopted = adopted.and_then(|adopted| self.commit(&adopted, frontier).map(|()| adopted));
        let Adopted { state, held, snapshot } = adopted.inspect_err(|error| self.log.poison(error.to_string()))?;
        if !seeded_bug("pins-outlive-a-join") {
            self.pins.invalidate();
        }
        let joined = held.frontier.clone();
        let published = Arc::clone(self.overlay.published());
        self.checkpointer = Checkpointer::new(self.checkpointer.config().clone(), published, held);
        self.overlay.adopt(state);
        if let Err(error) = snapshot.joined() {
            tracing::warn!(%error, "a snapshot that was joined cannot be removed; the next start does");
        }
        Ok(joined)
    }

    /// Completes what was joined, and makes the room that its adoption needs: behind the step that makes
    /// it the current state it is too late to find the disk full.
    fn complete(&mut self, joined: &mut Joined<F, S>, own: &ChainHeads) -> Result<(), AdoptError> {
        let spare = self.log.begin_spare_segment(own);
        spare.map_err(|error| self.not_adopted(error))?;
        joined.complete(self.log.durable_end(), own)?;
        let room = self.log.make_room_for_boundary(joined.heads());
        room.map_err(|error| self.not_adopted(error))
    }

    fn not_adopted(&mut self, error: LogError) -> AdoptError {
        match error {
            error @ LogError::Full { .. } => AdoptError::NoRoom(error),
            error => {
                self.log.poison(error.to_string());
                AdoptError::Log(error)
            }
        }
    }

    /// What follows on the step that made the joined state the current one. A crash before the end of
    /// it is made good by the next open.
    fn commit(&mut self, adopted: &Adopted<F, S>, frontier: &Frontier) -> Result<(), AdoptError> {
        self.log.begin_boundary(&frontier.heads, &adopted.held.frontier.heads)?;
        match write_mark(&self.data, adopted.held.position) {
            // The mark says from where on the state is, at least; the next checkpoint writes another.
            Err(error) if is_full(&error) => Ok(()),
            written => written.map_err(AdoptError::Mark),
        }
    }

    /// The state that was current before the one that was adopted last, to be removed from the disk.
    pub fn take_retired(&mut self) -> Option<RetiredState<S>> {
        self.retired.take()
    }

    fn staged_record(&mut self, key: &RecordKey) -> Result<Arc<Record>, StorageError> {
        #[cfg(feature = "seeded-bugs")]
        if self.bugs.reads_durable_instead_of_staged {
            return self.overlay.published().get(key).map_err(storage_error);
        }
        self.overlay.get(key).map_err(storage_error)
    }
}

/// Why a joined state was not adopted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The rest of the own log could not be applied to it. The store goes on as it was, and the
    /// snapshot may be joined once more.
    #[error("the joined state was not adopted, and nothing has changed: {0}")]
    Join(#[from] JoinError),
    /// The disk has no room for the log's next segments. The store goes on as it was, and the snapshot
    /// may be joined once more when there is.
    #[error("the joined state was not adopted, and nothing has changed: {0}")]
    NoRoom(LogError),
    /// Whether it became the current state is unknown. The store takes nothing more; start the node
    /// again.
    #[error("the joined state may not be the current one: {0}; look at the disk and start the node again")]
    State(StateError),
    /// The log failed. Whether it is the current state is found by the next start; the store takes
    /// nothing more.
    #[error("the log failed while a joined state was adopted: {0}; start the node again")]
    Log(#[from] LogError),
    /// It is the current state, and `checkpoint.toml` does not say so. The store takes nothing more;
    /// start the node again.
    #[error("the joined state was adopted, and its mark in {CHECKPOINT} was not written: {0}; start the node again")]
    Mark(io::Error),
}

impl AdoptError {
    /// Whether the store takes nothing more.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, Self::Join(_) | Self::NoRoom(_))
    }
}

impl<F: Files, S: StateStore> Records for Store<F, S> {
    fn record_mut(&mut self, key: &RecordKey) -> Result<&mut Record, StorageError> {
        self.overlay.record_mut(key)
    }
}

impl<F: Files, S: StateStore> Storage for Store<F, S> {
    fn record(&mut self, key: &RecordKey) -> Result<Record, StorageError> {
        Ok(Arc::unwrap_or_clone(self.staged_record(key)?))
    }

    fn append(&mut self, write_set: &Bytes, before: &ChainHeads) -> Result<LogPosition, StorageError> {
        #[cfg(feature = "seeded-bugs")]
        if self.bugs.absorb_removed_at_once {
            self.overlay.drop_void_absorb(before.applied());
        }
        if let Some(reason) = &self.held {
            return Err(StorageError::Full(reason.clone()));
        }
        let end = self.log.append(write_set, before).map_err(|error| match error {
            LogError::Full { .. } => StorageError::Full(error.to_string()),
            failed => storage_error(failed),
        })?;
        self.checkpointer.note_logged(write_set.len());
        Ok(end)
    }

    fn has_room(&mut self, write_set_bytes: usize, before: &ChainHeads) -> Result<bool, StorageError> {
        Ok(self.held.is_none() && self.log.has_room(write_set_bytes, before).map_err(storage_error)?)
    }

    fn staged_end(&self) -> LogPosition {
        self.log.staged_end()
    }

    fn share_bases(&mut self, bases: &Bases) {
        self.log.share_bases(bases);
    }

    fn keyspace_records(&mut self, keyspace: KeyspaceId) -> Result<Vec<(RecordKey, Record)>, StorageError> {
        let records = self.overlay.keyspace(keyspace).map_err(storage_error)?;
        Ok(records.into_iter().map(|(key, record)| (key, Arc::unwrap_or_clone(record))).collect())
    }
}
