//! From a data directory to records and a frontier, after whatever happened to it.
//!
//! The log is the truth. The state is what it added up to at some checkpoint, and says by its own
//! metadata at which; `checkpoint.toml` says how far it was at least. From the two it follows what
//! to do:
//!
//! | the state | what is done |
//! |---|---|
//! | is empty, and there is no mark | replay the log, which must go back to the beginning |
//! | is at or past the mark | replay the log from the state's position |
//! | is behind the mark (it rolled back) | count its digest anew; if that is right and the log reaches back so far, the same |
//! | is past the log's end (the log lost what was synced) | nothing: [`LogError::Lost`] |
//! | is damaged, hangs or panics, or its digest is wrong | set aside, rebuilt |
//!
//! | is of a join that did not end | the same as if it were damaged |
//!
//! To rebuild is to replay the whole log over an empty state. A log that no longer goes back to the
//! beginning cannot do that: then nothing is touched, and [`OpenError::StateLost`] says what to do. Nor
//! can one that has a *boundary* ([`LogBoundary`]), where a joined snapshot brought what the log does
//! not have: [`OpenError::StateLostBehindSnapshot`].

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::Dot;
use polyarch_protocol::{
    Frontier, LogMark, LogPosition, LogReadError, LogSource, StorageError, WriteSet, WriteSetError,
};

use crate::checkpointer::{CheckpointError, Checkpointer, Purpose};
use crate::files::{Files, is_full};
use crate::lock::LockError;
use crate::log::{Log, LogBoundary, LogError, Recovery};
use crate::marks::MarkError;
use crate::overlay::Overlay;
use crate::pins::Pins;
use crate::state::{Checkpoint, Provenance, StateError, StateOpener, StateStore, count_digest};
use crate::store::StoreConfig;

/// How many write sets are replayed between two publications.
const REPLAY_GROUP: usize = 1_024;

/// What an open found and did.
#[derive(Debug)]
pub struct OpenReport {
    /// What became of the log.
    pub log: Recovery,
    /// What became of the state.
    pub state: StateReport,
    /// Where replay began.
    pub replayed_from: LogPosition,
    /// How many write sets were replayed.
    pub replayed: u64,
}

/// What became of the state at an open. Worth a warning unless it is [`StateReport::Intact`] or
/// [`StateReport::New`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StateReport {
    /// There was none, and none was missing.
    New,
    /// It was where it should be.
    Intact,
    /// It had gone back behind its last checkpoint. Its records were counted and are sound; the
    /// log brought it up again.
    Behind {
        /// Where it was.
        held: LogPosition,
        /// Where it had been.
        mark: LogPosition,
    },
    /// It was of no use and was rebuilt from the log.
    Rebuilt {
        /// What was wrong with it.
        why: String,
        /// Where it is now. It may be deleted.
        set_aside: String,
    },
}

/// Why a store did not open. Unless said otherwise nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has the directory.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The directory cannot be read or created.
    #[error("cannot open the data directory {directory}: {source}")]
    Directory {
        /// The directory.
        directory: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A repair was cut short.
    #[error("a repair of {} did not end; run `polyarch repair` again, which ends it or does it anew", .0.display())]
    RepairUnfinished(PathBuf),
    /// `checkpoint.toml` or `log.toml` is of no use.
    #[error(transparent)]
    Mark(#[from] MarkError),
    /// The log did not open.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log cannot be read.
    #[error(transparent)]
    LogRead(#[from] LogReadError),
    /// The state does not open, for a reason that rebuilding it would not mend.
    #[error(transparent)]
    State(StateError),
    /// The state is of no use and the log cannot rebuild it.
    #[error(
        "the state is lost ({why}), and the log no longer goes back to the beginning to rebuild it. Nothing was changed. \
         Run `polyarch repair`, which keeps what is whole and gets the rest from the other members, or restore the \
         data directory from a backup"
    )]
    StateLost {
        /// What is wrong with the state.
        why: String,
    },
    /// The state is of no use or has gone back, and the log alone does not add up to it.
    #[error(
        "the state is lost ({why}), and the log alone no longer adds up to the data since a snapshot was joined at {boundary}. \
         Nothing was changed. Run `polyarch repair`, which keeps what is whole and gets the rest from the other \
         members, or restore the data directory from a backup"
    )]
    StateLostBehindSnapshot {
        /// What is wrong with the state.
        why: String,
        /// Where the log goes on behind what it lacks.
        boundary: LogPosition,
    },
    /// The log holds what no node may have written.
    #[error(
        "the log holds no valid write set before {position}: {source}; keep a copy of the data directory and report this"
    )]
    WriteSet {
        /// Where it ends.
        position: LogPosition,
        /// What is wrong with it.
        source: WriteSetError,
    },
    /// The log does not follow on the state.
    #[error(
        "the log holds {dot} before {position}, and the records are at seq {applied} of that origin; \
         run `polyarch verify`, keep a copy of the data directory and report this"
    )]
    OutOfOrder {
        /// Where the write set ends.
        position: LogPosition,
        /// Which it is.
        dot: Dot,
        /// The seq of its origin that was applied before.
        applied: u64,
    },
    /// The state could not be read while the log was replayed. The state may hold a checkpoint
    /// more than before.
    #[error("replay failed: {0}")]
    Replay(StorageError),
    /// There was more to replay than fits in memory, and the state did not take it, for lack of room
    /// ([`OpenError::is_full`]) or because it failed.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

impl OpenError {
    /// Whether there was no room on the disk: with some, the store opens as it would have.
    pub fn is_full(&self) -> bool {
        match self {
            Self::Locked(LockError::Io { source, .. })
            | Self::Directory { source, .. }
            | Self::Log(LogError::Io { source, .. } | LogError::Write { source, .. }) => is_full(source),
            Self::Log(error) => matches!(error, LogError::Full { .. }),
            Self::State(error) => error.is_full(),
            Self::Checkpoint(error) => error.is_full(),
            _ => false,
        }
    }
}

/// The state as it was found, with its checkpoint; or why it cannot be used.
pub(crate) struct Opened<S>(Result<(Arc<S>, Option<Checkpoint>), StateError>);

impl<S: StateStore> Opened<S> {
    pub(crate) fn new(opener: &mut impl StateOpener<State = S>) -> Self {
        Self(Self::open(opener))
    }

    fn open(opener: &mut impl StateOpener<State = S>) -> Result<(Arc<S>, Option<Checkpoint>), StateError> {
        let state = Arc::new(opener.open()?);
        let reading = Arc::clone(&state);
        let held = opener.guarded(move || reading.checkpoint())?;
        Ok((state, held))
    }

    /// How far it holds the log, if that can be known.
    pub(crate) fn position(&self) -> Option<LogPosition> {
        let (_, held) = self.0.as_ref().ok()?;
        held.as_ref().map(|held| held.position)
    }
}

/// A state that is open, and where replay goes on from it.
pub(crate) struct Base<S> {
    pub(crate) state: Arc<S>,
    pub(crate) held: Checkpoint,
    pub(crate) from: LogPosition,
    pub(crate) report: StateReport,
}

/// Why a state is not to be used.
enum Unusable {
    /// It is to be set aside and rebuilt.
    Rebuild(String),
    /// That would not help.
    Refuse(OpenError),
}

/// Takes the state as it was opened, which is not ahead of the log, or an empty one in its place.
pub(crate) fn open_state<F: Files, O: StateOpener>(
    opener: &mut O,
    opened: Opened<O::State>,
    log: &Log<F>,
    mark: Option<LogPosition>,
    config: &StoreConfig,
) -> Result<Base<O::State>, OpenError> {
    let (reader, boundaries) = (log.reader(), log.boundaries());
    let beginning = reader.last_mark(&|heads| heads.applied().is_empty());
    let examination = Examination {
        log: &reader,
        boundaries: &boundaries,
        mark,
        beginning: beginning.as_ref(),
        always_count: config.check_state_at_open,
    };
    let why = match examination.examine(opener, opened) {
        Ok(base) => return Ok(base),
        Err(Unusable::Refuse(error)) => return Err(error),
        Err(Unusable::Rebuild(why)) => why,
    };
    let Some(beginning) = &beginning else {
        return Err(OpenError::StateLost { why });
    };
    let held = Checkpoint { position: beginning.position, ..Checkpoint::default() };
    if let Some(boundary) = examination.crossed(&held) {
        return Err(OpenError::StateLostBehindSnapshot { why, boundary });
    }
    let set_aside = opener.set_aside().map_err(OpenError::State)?;
    tracing::warn!(%why, %set_aside, "the state is of no use; it was set aside and is rebuilt from the log");
    Ok(Base {
        state: Arc::new(opener.open().map_err(OpenError::State)?),
        from: held.position,
        held,
        report: StateReport::Rebuilt { why, set_aside },
    })
}

/// Begins the segment that goes on with what a state was joined to be, when a crash came between the
/// two.
pub(crate) fn begin_owed_boundary<F: Files>(log: &mut Log<F>, held: &Checkpoint) -> Result<(), LogError> {
    let Provenance::Joined(before) = &held.provenance else { return Ok(()) };
    let heads = &held.frontier.heads;
    let is_there =
        log.boundaries().iter().any(|boundary| boundary.position > held.position && *boundary.heads == *heads);
    match !is_there && log.ends_at(held.position) {
        true => log.begin_boundary(before, heads),
        false => Ok(()),
    }
}

struct Examination<'a, L> {
    log: &'a L,
    boundaries: &'a [LogBoundary],
    mark: Option<LogPosition>,
    beginning: Option<&'a LogMark>,
    always_count: bool,
}

impl<L: LogSource> Examination<'_, L> {
    fn examine<O: StateOpener>(&self, opener: &O, opened: Opened<O::State>) -> Result<Base<O::State>, Unusable> {
        let (state, held) = opened.0?;
        let is_new = held.is_none();
        if held.as_ref().is_some_and(|held| held.provenance == Provenance::Joining) {
            return Err(Unusable::Rebuild("it is of a join that did not end".into()));
        }
        let mut held = match held {
            Some(held) => held,
            None => self.nothing_held()?,
        };
        if let Some(boundary) = self.crossed(&held) {
            let why = match is_new {
                true => "it is empty".into(),
                false => format!("it has gone back to {}", held.position),
            };
            return Err(Unusable::Refuse(OpenError::StateLostBehindSnapshot { why, boundary }));
        }
        let behind = self.mark.filter(|mark| held.position < *mark);
        if self.always_count || behind.is_some() || !state.is_atomic() {
            self.count(opener, &state, &mut held)?;
        }
        self.check_log_reaches(&held)?;
        let report = match behind {
            Some(mark) => StateReport::Behind { held: held.position, mark },
            None if is_new => StateReport::New,
            None => StateReport::Intact,
        };
        Ok(Base { from: held.position, state, held, report })
    }

    /// The first boundary that a replay from this checkpoint on would come upon, unless it is the one
    /// that the checkpoint is of.
    fn crossed(&self, held: &Checkpoint) -> Option<LogPosition> {
        let is_crossed =
            |boundary: &&LogBoundary| boundary.position > held.position && *boundary.heads != held.frontier.heads;
        self.boundaries.iter().find(is_crossed).map(|boundary| boundary.position)
    }

    /// Whether replay can go on from where the state is.
    fn check_log_reaches(&self, held: &Checkpoint) -> Result<(), Unusable> {
        let heads = &held.frontier.heads;
        let Some(mark) = self.log.last_mark(&|mark| heads.applied().includes_all(mark.applied())) else {
            let why = format!("it is at {}, and the log no longer goes back so far", held.position);
            return Err(Unusable::Rebuild(why));
        };
        let mut shared = mark.heads.iter().filter(|(origin, head)| heads.head(*origin).seq == head.seq);
        match shared.find(|(origin, head)| heads.head(*origin).hash != head.hash) {
            Some((origin, _)) => Err(Unusable::Rebuild(format!("its history of {origin} is not the log's"))),
            None => Ok(()),
        }
    }

    /// What a state holds that never took a checkpoint.
    fn nothing_held(&self) -> Result<Checkpoint, Unusable> {
        let beginning = self.beginning.ok_or_else(|| Unusable::Rebuild("it is empty".into()))?;
        Ok(Checkpoint { position: beginning.position, ..Checkpoint::default() })
    }

    /// Compares the records with the digest that goes with them. Of a state whose batches are not
    /// atomic some records may be newer, and what counts is what is there.
    fn count<O: StateOpener>(&self, opener: &O, state: &Arc<O::State>, held: &mut Checkpoint) -> Result<(), Unusable> {
        let counted = {
            let state = Arc::clone(state);
            opener.guarded(move || count_digest(&*state))?
        };
        if !state.is_atomic() {
            held.frontier.digest = counted;
        } else if held.frontier.digest != counted {
            let buckets = held.frontier.digest.differing(&counted).len();
            return Err(Unusable::Rebuild(format!(
                "its records are not those of its checkpoint at {}: {buckets} digest buckets differ",
                held.position
            )));
        }
        Ok(())
    }
}

impl From<StateError> for Unusable {
    fn from(error: StateError) -> Self {
        match would_recur(&error) {
            true => Self::Refuse(OpenError::State(error)),
            false => Self::Rebuild(error.to_string()),
        }
    }
}

/// Whether an empty state in the place of this one would meet the same.
pub(crate) fn would_recur(error: &StateError) -> bool {
    use std::io::ErrorKind;
    match error {
        StateError::Version(_) => true,
        StateError::Io { source, .. } => matches!(
            source.kind(),
            ErrorKind::PermissionDenied
                | ErrorKind::StorageFull
                | ErrorKind::QuotaExceeded
                | ErrorKind::ReadOnlyFilesystem
                | ErrorKind::WouldBlock
                | ErrorKind::ResourceBusy
                | ErrorKind::OutOfMemory
        ),
        _ => false,
    }
}

/// Applies the log's write sets, one after the other, to records and frontier.
pub(crate) struct Replay<'a, F, S> {
    pub(crate) overlay: Overlay<S>,
    pub(crate) checkpointer: Checkpointer<S>,
    pub(crate) frontier: Frontier,
    pub(crate) replayed: u64,
    pub(crate) data: &'a F,
    pub(crate) pins: &'a Pins,
    #[cfg(feature = "seeded-bugs")]
    pub(crate) bugs: crate::store::SeededBugs,
}

impl<F: Files, S: StateStore> Replay<'_, F, S> {
    /// Applies one write set, which ends at `end`.
    pub(crate) fn apply(&mut self, end: LogPosition, bytes: &Bytes) -> Result<(), OpenError> {
        let write_set = decode_next(&self.frontier, end, bytes)?;
        let applied = self.frontier.apply(&mut self.overlay, &write_set, bytes);
        let _counted_when_it_was_new = applied.map_err(OpenError::Replay)?;
        #[cfg(feature = "seeded-bugs")]
        if self.bugs.absorb_removed_at_once {
            self.overlay.drop_void_absorb(self.frontier.heads.applied());
        }
        self.replayed += 1;
        self.checkpointer.note_logged(bytes.len());
        if self.overlay.len() >= REPLAY_GROUP {
            self.overlay.publish();
            self.checkpoint_when_due(end)?;
        }
        Ok(())
    }

    /// A log that is larger than memory goes through it part by part; without room on the disk, as much as memory holds
    /// at all.
    fn checkpoint_when_due(&mut self, end: LogPosition) -> Result<(), OpenError> {
        if !self.checkpointer.is_due() {
            return Ok(());
        }
        let purpose = Purpose::Current(self.data.clone(), self.pins.clone());
        let Some(job) = self.checkpointer.begin(purpose, &self.frontier, end) else { return Ok(()) };
        match job.run() {
            Ok(done) => {
                let summary = self.checkpointer.finish(done);
                tracing::info!(position = %summary.position, records = summary.records, "checkpoint during replay");
                Ok(())
            }
            Err(error) if error.is_full() && !self.checkpointer.is_full() => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reads a write set that the log holds, and checks that it is the next of its origin.
pub(crate) fn decode_next(frontier: &Frontier, position: LogPosition, bytes: &[u8]) -> Result<WriteSet, OpenError> {
    let write_set = WriteSet::decode(bytes).map_err(|source| OpenError::WriteSet { position, source })?;
    let applied = frontier.heads.applied().seq(write_set.dot.origin);
    match write_set.dot.seq == applied + 1 {
        true => Ok(write_set),
        false => Err(OpenError::OutOfOrder { position, dot: write_set.dot, applied }),
    }
}
