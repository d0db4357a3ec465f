//! Making a data directory one that opens again, with all that is whole in it.
//!
//! A node does not start over a log that is damaged, or a state that is lost and cannot be rebuilt. What
//! other members have it can get from them. What only it has is in its state, if that is whole, and in the
//! whole frames of its log. So:
//!
//! 1. The state is opened and its records are counted. If they are those of its checkpoint, it is kept, and
//!    with it all that it adds up to. If not, it is set aside, and the node begins with nothing.
//! 2. Every whole frame of the log is taken, whatever lies between. Those that the state does not have go
//!    into the [salvage](crate::Salvage), from where they are applied when all that they follow on is: what
//!    lay in the damaged places comes from peers first.
//! 3. A new log begins behind the state, and the damaged one is set aside. Nothing is deleted.
//!
//! To take one side of a fork ([`Parting`]) is the same, but for the other side's write sets and what builds
//! on them: they are handed to the caller, and the state is of no use, since it adds up to them.
//!
//! What is new is made in the directory `repair`. With `repair/ready.toml` it is whole, and every step from
//! there on can be done again: before that a repair that was cut short has changed nothing, and behind it the
//! directory does not open until the next repair has ended it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polyarch_crdt::{AppliedSet, Dot, Origin};
use polyarch_protocol::{ChainHeads, LogPosition, WriteSet};
use serde::{Deserialize, Serialize};

use crate::files::{Directory, Files, private_directory};
use crate::lock::{DirectoryLock, LockError};
use crate::log::{Log, LogConfig, LogError, LogSalvaged, salvage};
use crate::marks::{CHECKPOINT, LOG_BEGINS, write_log_begins, write_mark};
use crate::open::would_recur;
use crate::salvage::{SALVAGE, SalvageWriter};
use crate::state::{
    Checkpoint, Provenance, STATE, SledState, StateDirectory, StateError, StateOpener, StateStore, count_digest,
};
use crate::store::{LOG, StoreConfig};

/// Where what is new is made.
const REPAIR: &str = "repair";
/// Says that it is whole, and what is to be done with it.
const READY: &str = "ready.toml";
/// What the name of a log begins with that was set aside.
const LOG_SET_ASIDE: &str = "log.damaged-";
/// And an earlier salvage.
const SALVAGE_SET_ASIDE: &str = "salvage.damaged-";
/// Write sets after which `goes_on` is asked again.
const ASK_EVERY: u64 = 1_024;

/// Takes write sets that a node goes on without.
pub trait LeftOut {
    /// Takes the next.
    ///
    /// # Errors
    /// When it cannot be kept: the node goes on with all of them.
    fn take(&mut self, write_set: &WriteSet) -> io::Result<()>;

    /// Makes all of them durable, for they are let go of next.
    ///
    /// # Errors
    /// As [`LeftOut::take`].
    fn sync(&mut self) -> io::Result<()>;
}

/// One side of a fork, which a repair is to leave out.
pub struct Parting<'a> {
    /// The origin of which there are two histories.
    pub origin: Origin,
    /// The last seq that both have in common.
    pub common: u64,
    /// What the member has applied that holds the history which is kept.
    pub kept: &'a AppliedSet,
    /// Takes each write set that is left out: those of the origin behind `common`, and those that build on
    /// one which is left out.
    pub left_out: &'a mut dyn LeftOut,
}

impl Parting<'_> {
    /// Whether a state adds up to what is left out.
    fn is_in(&self, held: &Checkpoint) -> bool {
        held.frontier.heads.applied().seq(self.origin) > self.common
    }
}

/// What a repair did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairReport {
    /// An earlier one had been cut short when all was made, and was ended; the rest of this is unknown.
    pub is_resumed: bool,
    /// What was whole in the log.
    pub log: LogSalvaged,
    /// Write sets that wait in the salvage: all but those that the records have.
    pub waiting: u64,
    /// Write sets that are of the side of a fork which was left out, or build on it.
    pub left_out: u64,
    /// What is wrong with the state, where it is not kept.
    pub state_lost: Option<String>,
    /// Where the state was put that is not kept, and the log.
    pub set_aside: Vec<PathBuf>,
}

/// Why a directory was not repaired. Unless it says otherwise nothing was changed that counts, and the same
/// may be tried again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// Another process has it.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// It holds no log and no state.
    #[error("{} holds no node's data: there is nothing to repair", .0.display())]
    Nothing(PathBuf),
    /// A part of it cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The log cannot be read, or the new one not be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The state cannot be opened, for a reason that another one would meet too.
    #[error(transparent)]
    State(StateError),
    /// Records that nobody else has would be lost: their write sets are no longer in the log, and the member
    /// whose history is kept does not have them.
    #[error(
        "only the records of this node hold write sets of {}, and they add up to the history that is to be left out. \
         Nothing was changed. Serve the node until a member that holds the other history has them, which `polyarch status` \
         shows, and then try again",
        origins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    OnlyInState {
        /// Of these origins.
        origins: Vec<Origin>,
    },
    /// All is made, and not yet in its place.
    #[error("the repair is not ended: {0}. The same command ends it")]
    NotEnded(Box<RepairError>),
    /// The caller did not take what is left out.
    #[error("cannot write what is left out: {0}")]
    LeftOut(io::Error),
    /// It was told to stop.
    #[error("the repair was stopped; nothing was changed")]
    Stopped,
}

/// How far a repair is that can be ended.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    version: u32,
    /// Where the state is that is kept.
    segment: Option<u64>,
    offset: Option<u64>,
}

impl Ready {
    const VERSION: u32 = 1;

    fn new(kept: Option<LogPosition>) -> Self {
        let (segment, offset) = (kept.map(|kept| kept.segment), kept.map(|kept| kept.offset));
        Self { version: Self::VERSION, segment, offset }
    }

    fn kept(&self) -> Option<LogPosition> {
        Some(LogPosition { segment: self.segment?, offset: self.offset? })
    }
}

/// Whether a repair of a data directory was cut short when it had begun to change it.
pub(crate) fn is_unfinished(directory: &Path) -> bool {
    directory.join(REPAIR).join(READY).exists()
}

/// Repairs a data directory, or takes one side of a fork in it. Asks `goes_on` now and then, with the
/// number of frames so far. Takes as long as to read the log and, once, all records; room for the write sets
/// that the state does not have.
///
/// # Errors
/// See [`RepairError`].
pub fn repair(
    directory: &Path,
    config: &StoreConfig,
    parting: Option<Parting<'_>>,
    mut goes_on: impl FnMut(u64) -> bool,
) -> Result<RepairReport, RepairError> {
    let place = Place(directory);
    if ![LOG, STATE, REPAIR, SALVAGE, CHECKPOINT, LOG_BEGINS].iter().any(|part| place.path(part).exists()) {
        return Err(RepairError::Nothing(directory.to_owned()));
    }
    let _lock = DirectoryLock::acquire(directory)?;
    if let Some(report) = place.resume(config)? {
        return Ok(report);
    }
    let made = place.make(config, parting, &mut goes_on);
    let (ready, mut report) = made.inspect_err(|_| {
        // It is in nobody's way, and the next one removes it.
        let _ = remove_directory(&place.path(REPAIR));
    })?;
    report.set_aside = place.finish(config, &ready)?;
    Ok(report)
}

/// Ends a repair that was cut short when all was made; `None` when there is none.
///
/// # Errors
/// See [`RepairError`].
pub fn resume_repair(directory: &Path, config: &StoreConfig) -> Result<Option<RepairReport>, RepairError> {
    match is_unfinished(directory) {
        false => Ok(None),
        true => {
            let _lock = DirectoryLock::acquire(directory)?;
            Place(directory).resume(config)
        }
    }
}

/// What is made before anything is changed.
struct Making<'a> {
    place: &'a Place<'a>,
    log: &'a LogConfig,
}

impl Making<'_> {
    /// Takes the whole frames of the log, and of an earlier salvage, whose damage is not counted.
    fn salvage(
        &self,
        sorting: &mut Sorting<'_, '_>,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<LogSalvaged, RepairError> {
        let mut frames = 0;
        let mut take = |_: LogPosition, bytes: &[u8]| {
            frames += 1;
            if frames % ASK_EVERY == 0 && !goes_on(frames) {
                return Err(RepairError::Stopped);
            }
            sorting.take(bytes, self)
        };
        // What waits since an earlier repair may build on what the log has, and not the other way round.
        let mut salvaged = salvage(&Directory::unopened(self.place.path(LOG)), &mut take)?;
        let earlier = salvage(&Directory::unopened(self.place.path(SALVAGE)), &mut take)?;
        if earlier.segments > 0 {
            // Also an empty one takes the place of the one before.
            sorting.writer(self)?;
        }
        salvaged.frames += earlier.frames;
        salvaged.bytes += earlier.bytes;
        Ok(salvaged)
    }

    fn directory(&self, name: &str) -> Result<Directory, RepairError> {
        let path = self.place.path(REPAIR).join(name);
        Directory::open(&path).map_err(io_error(&path))
    }

    /// A log that goes on behind the state.
    fn log_behind(&self, previous: LogPosition, heads: &ChainHeads) -> Result<(), RepairError> {
        Log::begin_behind(self.directory(LOG)?, self.log.clone(), previous, heads)?;
        Ok(())
    }
}

/// What becomes of each write set.
struct Sorting<'a, 'p> {
    /// What the records have.
    applied: &'a AppliedSet,
    parting: Option<Parting<'p>>,
    /// The first seq of each origin that was left out.
    lost: BTreeMap<Origin, u64>,
    /// The first seq of each origin that was found.
    found: BTreeMap<Origin, u64>,
    /// Begun with the first write set that waits.
    writer: Option<SalvageWriter>,
    left_out: u64,
}

impl<'a, 'p> Sorting<'a, 'p> {
    fn new(applied: &'a AppliedSet, parting: Option<Parting<'p>>) -> Self {
        let lost = parting.iter().map(|parting| (parting.origin, parting.common + 1)).collect();
        Self { applied, parting, lost, found: BTreeMap::new(), writer: None, left_out: 0 }
    }

    fn take(&mut self, bytes: &[u8], making: &Making<'_>) -> Result<(), RepairError> {
        let dot = WriteSet::peek_dot(bytes).ok();
        if let Some(dot) = dot {
            let first = self.found.entry(dot.origin).or_insert(dot.seq);
            *first = (*first).min(dot.seq);
        }
        if dot.is_some_and(|dot| self.applied.includes(dot)) || self.leave_out(bytes)? {
            return Ok(());
        }
        Ok(self.writer(making)?.push(bytes)?)
    }

    fn writer(&mut self, making: &Making<'_>) -> Result<&mut SalvageWriter, RepairError> {
        Ok(match &mut self.writer {
            Some(writer) => writer,
            none => none.insert(SalvageWriter::begin(making.directory(SALVAGE)?, making.log.clone())?),
        })
    }

    /// The origins of which a state has write sets that were not found, and that the member which is gone over to
    /// does not have.
    fn only_in(&self, state: &AppliedSet, parting: &Parting<'_>) -> Vec<Origin> {
        let is_only_here = |dot: &Dot| {
            // Those behind what both have in common are given up.
            let last = if dot.origin == parting.origin { dot.seq.min(parting.common) } else { dot.seq };
            let unfound = self.found.get(&dot.origin).map_or(last, |first| last.min(first - 1));
            unfound > parting.kept.seq(dot.origin)
        };
        state.iter().filter(is_only_here).map(|dot| dot.origin).collect()
    }

    /// Hands the write set over if it is to be left out; says whether it was.
    fn leave_out(&mut self, bytes: &[u8]) -> Result<bool, RepairError> {
        let Some(parting) = &mut self.parting else { return Ok(false) };
        let Ok(write_set) = WriteSet::decode(bytes) else { return Ok(false) };
        let dot = write_set.dot;
        let is_lost = |origin: Origin, seq: u64| self.lost.get(&origin).is_some_and(|first| seq >= *first);
        let is_parted = dot.origin == parting.origin && dot.seq > parting.common;
        let depends = write_set.dependencies.applied().iter();
        let supersedes = write_set.changes.iter().flat_map(|change| &change.supersedes).copied();
        if !is_parted && !depends.chain(supersedes).chain([dot]).any(|dot| is_lost(dot.origin, dot.seq)) {
            return Ok(false);
        }
        let first = self.lost.entry(dot.origin).or_insert(dot.seq);
        *first = (*first).min(dot.seq);
        parting.left_out.take(&write_set).map_err(RepairError::LeftOut)?;
        self.left_out += 1;
        Ok(true)
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RepairError {
    let path = path.to_owned();
    move |source| RepairError::Io { path, source }
}

/// A data directory.
struct Place<'a>(&'a Path);

impl Place<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The data directory's and the repair's small files.
    fn files(&self, name: &str) -> Directory {
        Directory::unopened(self.path(name))
    }

    fn ready(&self) -> Result<Option<Ready>, RepairError> {
        let path = self.path(REPAIR).join(READY);
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(io_error(&path))?,
        };
        let invalid = |what: String| io_error(&path)(io::Error::new(io::ErrorKind::InvalidData, what));
        let ready: Ready = toml::from_str(&text).map_err(|error| invalid(error.message().into()))?;
        match ready.version {
            Ready::VERSION => Ok(Some(ready)),
            version => Err(invalid(format!("it has format version {version}; upgrade polyarch"))),
        }
    }

    /// Ends what was cut short.
    fn resume(&self, config: &StoreConfig) -> Result<Option<RepairReport>, RepairError> {
        let Some(ready) = self.ready()? else { return Ok(None) };
        let set_aside = self.finish(config, &ready)?;
        Ok(Some(RepairReport { is_resumed: true, set_aside, ..RepairReport::default() }))
    }

    fn note(&self, ready: &Ready) -> Result<(), RepairError> {
        let path = self.path(REPAIR).join(READY);
        let text = toml::to_string(ready).map_err(io::Error::other);
        let noted = text.and_then(|text| self.files(REPAIR).write_atomically(READY, text.as_bytes()));
        noted.map_err(io_error(&path))
    }

    /// Makes all that is new, and notes that it is whole.
    fn make(
        &self,
        config: &StoreConfig,
        parting: Option<Parting<'_>>,
        goes_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<(Ready, RepairReport), RepairError> {
        self.begin()?;
        let mut report = RepairReport::default();
        let mut only_here = None;
        let kept = match self.kept(config) {
            // It adds up to what is left out. What only it has must not go with that.
            Ok(held) if parting.as_ref().is_some_and(|parting| parting.is_in(&held)) => {
                report.state_lost = Some("it holds the history that is left out".into());
                only_here = Some(held.frontier.heads.applied().clone());
                None
            }
            Ok(held) => Some(held),
            Err(error) if would_recur(&error) => return Err(RepairError::State(error)),
            Err(error) => {
                report.state_lost = Some(error.to_string());
                None
            }
        };
        let nothing = AppliedSet::default();
        let applied = kept.as_ref().map_or(&nothing, |held| held.frontier.heads.applied());
        let mut sorting = Sorting::new(applied, parting);
        let making = Making { place: self, log: &config.log };
        report.log = making.salvage(&mut sorting, goes_on)?;
        report.left_out = sorting.left_out;
        if let (Some(state), Some(parting)) = (&only_here, &sorting.parting) {
            let origins = sorting.only_in(state, parting);
            if !origins.is_empty() {
                return Err(RepairError::OnlyInState { origins });
            }
        }
        if let Some(parting) = &mut sorting.parting {
            parting.left_out.sync().map_err(RepairError::LeftOut)?;
        }
        report.waiting = sorting.writer.map_or(Ok(0), SalvageWriter::finish)?;
        if let Some(held) = &kept {
            making.log_behind(held.position, &held.frontier.heads)?;
        }
        let ready = Ready::new(kept.map(|held| held.position));
        self.note(&ready)?;
        Ok((ready, report))
    }

    /// Removes what a repair left that was cut short before all was made.
    fn begin(&self) -> Result<(), RepairError> {
        let path = self.path(REPAIR);
        remove_directory(&path)?;
        private_directory().create(&path).map_err(io_error(&path))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), RepairError> {
        self.files(".").sync_directory().map_err(io_error(self.0))
    }

    /// The checkpoint of the state, if that is whole.
    fn kept(&self, config: &StoreConfig) -> Result<Checkpoint, StateError> {
        let lost = |why: String| Err(StateError::Damaged(why));
        if !self.path(STATE).exists() {
            return lost("there is none".into());
        }
        let mut opener = StateDirectory::sled(self.0, config.sled.clone());
        let state = Arc::new(opener.open_suspect()?);
        let reading = Arc::clone(&state);
        let (held, counted) = opener.guarded(move || Ok((reading.checkpoint()?, count_digest(&*reading)?)))?;
        let Some(held) = held else { return lost("it is empty".into()) };
        if held.provenance == Provenance::Joining {
            return lost("it is of a join that did not end".into());
        }
        if held.frontier.digest != counted {
            return lost("its records are not those of its checkpoint".into());
        }
        Ok(held)
    }

    /// Puts what was made in its place. Each step may have been done before.
    fn finish(&self, config: &StoreConfig, ready: &Ready) -> Result<Vec<PathBuf>, RepairError> {
        self.try_finish(config, ready).map_err(|error| RepairError::NotEnded(Box::new(error)))
    }

    fn try_finish(&self, config: &StoreConfig, ready: &Ready) -> Result<Vec<PathBuf>, RepairError> {
        let mut set_aside = Vec::new();
        let kept = ready.kept();
        if kept.is_none() && self.path(STATE).exists() {
            let mut opener = StateDirectory::<SledState>::sled(self.0, Default::default());
            set_aside.push(opener.set_aside().map_err(RepairError::State)?.into());
        }
        if kept.is_some() {
            self.settle(config).map_err(RepairError::State)?;
        }
        // Without a state the next start begins a log; where it is kept, the log that was made goes on.
        let made = self.path(REPAIR).join(LOG);
        if self.path(LOG).exists() && (kept.is_none() || made.exists()) {
            let aside = self.free_name(LOG_SET_ASIDE);
            self.rename(&self.path(LOG), &aside)?;
            set_aside.push(aside);
        }
        if made.exists() {
            self.rename(&made, &self.path(LOG))?;
        }
        let salvage = self.path(REPAIR).join(SALVAGE);
        if salvage.exists() {
            if self.path(SALVAGE).exists() {
                let aside = self.free_name(SALVAGE_SET_ASIDE);
                self.rename(&self.path(SALVAGE), &aside)?;
                set_aside.push(aside);
            }
            self.rename(&salvage, &self.path(SALVAGE))?;
        }
        self.write_marks(kept)?;
        remove_directory(&self.path(REPAIR))?;
        self.sync()?;
        Ok(set_aside)
    }

    /// Makes the state that is kept one that goes on with a log which begins behind it. Its checkpoint is written
    /// twice: a state may roll back by one flush, and there is nothing to bring it up again.
    fn settle(&self, config: &StoreConfig) -> Result<(), StateError> {
        let mut opener = StateDirectory::sled(self.0, config.sled.clone());
        let state = opener.open()?;
        opener.guarded(move || {
            let Some(held) = state.checkpoint()? else { return Ok(()) };
            let held = Checkpoint { provenance: Provenance::Log, ..held };
            for _ in 0..2 {
                state.apply_sorted(Vec::new(), &held)?;
                state.flush()?;
            }
            Ok(())
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), RepairError> {
        fs::rename(from, to).map_err(io_error(from))?;
        self.sync()?;
        self.files(REPAIR).sync_directory().map_err(io_error(&self.path(REPAIR)))
    }

    /// The first name that is free.
    fn free_name(&self, begins: &str) -> PathBuf {
        let mut names = (1..).map(|number: u64| self.path(&format!("{begins}{number}")));
        names.find(|path| !path.exists()).expect("numbers do not end")
    }

    fn write_marks(&self, kept: Option<LogPosition>) -> Result<(), RepairError> {
        let data = self.files(".");
        match kept {
            Some(position) => {
                write_log_begins(&data, position.segment + 1).map_err(io_error(&self.path(LOG_BEGINS)))?;
                write_mark(&data, position).map_err(io_error(&self.path(CHECKPOINT)))
            }
            None => [LOG_BEGINS, CHECKPOINT].iter().try_for_each(|name| match data.remove(name) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&self.path(name))(error)),
                _ => Ok(()),
            }),
        }
    }
}

fn remove_directory(path: &Path) -> Result<(), RepairError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}
