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

mod making;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use polyarch_crdt::{AppliedSet, Origin};
use polyarch_protocol::{LogPosition, WriteSet};
use serde::{Deserialize, Serialize};

use crate::files::{Directory, Files, private_directory};
use crate::lock::{DirectoryLock, LockError};
use crate::log::{LogError, LogSalvaged};
use crate::marks::{CHECKPOINT, LOG_BEGINS};
use crate::salvage::SALVAGE;
use crate::state::{Checkpoint, STATE, SledState, StateDirectory, StateError, StateOpener};
use crate::store::{LOG, StoreConfig};
pub use making::{RepairPart, RepairParts, Repaired, make_repair, settle, whole_checkpoint, write_marks};

/// Where what is new is made.
const REPAIR: &str = "repair";
/// Says that it is whole, and what is to be done with it.
const READY: &str = "ready.toml";
/// What the name of a log begins with that was set aside.
const LOG_SET_ASIDE: &str = "log.damaged-";
/// And an earlier salvage.
const SALVAGE_SET_ASIDE: &str = "salvage.damaged-";

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

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> RepairError {
    let path = path.to_owned();
    move |source| RepairError::Io { path, source }
}

/// A data directory.
struct Place<'a>(&'a Path);

impl RepairParts for Place<'_> {
    type Files = Directory;

    fn damaged(&self, part: RepairPart) -> Directory {
        Directory::unopened(self.path(part.name()))
    }

    fn make(&self, part: RepairPart) -> Result<Directory, RepairError> {
        let path = self.path(REPAIR).join(part.name());
        Directory::open(&path).map_err(io_error(&path))
    }
}

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
        let Repaired { kept, report } = make_repair(self, self.kept(config), &config.log, parting, goes_on)?;
        let ready = Ready::new(kept);
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
        let state = opener.open_suspect()?;
        whole_checkpoint(&opener, state)
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

    /// Makes the state that is kept one that goes on with the log which was made.
    fn settle(&self, config: &StoreConfig) -> Result<(), StateError> {
        settle(&mut StateDirectory::sled(self.0, config.sled.clone()))
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
        write_marks(&self.files("."), kept).map_err(|(name, error)| io_error(&self.path(name))(error))
    }
}

fn remove_directory(path: &Path) -> Result<(), RepairError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}
