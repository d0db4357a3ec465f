//! One node's storage devices: the simulated disk of its log, and its state store. They outlive
//! processes.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ops::Range;

use bytes::Bytes;
use polyarch_protocol::{Frontier, LogPosition};
use polyarch_store::files::Files;
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::log::{LogError, LogReader};
use polyarch_store::state::{Checkpoint, MemoryOpener, MemoryState, Provenance, Rollback, StateOpener, StateStore};
use polyarch_store::{
    CheckpointJob, JoinJob, Joined, OpenError, OpenReport, RepairError, RepairPart, RepairParts, RepairReport,
    SalvageReader, SnapshotReceiver, StateReader, Store, StoreConfig, make_repair, settle, whole_checkpoint,
    write_marks,
};

/// The shipped store over simulated devices.
pub type SimStore = Store<SimulatedDisk, MemoryState>;
/// Reads its records.
pub type SimStateReader = StateReader<MemoryState>;
/// Reads its log.
pub type SimLogReader = LogReader<SimulatedDisk>;
/// Writes its checkpoints.
pub type SimCheckpointJob = CheckpointJob<SimulatedDisk, MemoryState>;

/// A snapshot on its way in.
pub type SimIncoming = SnapshotReceiver<SimulatedDisk>;
/// What a repair left waiting.
pub type SimSalvage = SalvageReader<SimulatedDisk>;
/// Joins one.
pub type SimJoinJob = JoinJob<SimulatedDisk, MemoryState>;
/// One that is joined.
pub type SimJoined = Joined<SimulatedDisk, MemoryState>;

/// Bytes that a power cut keeps or loses as a whole.
const PAGE_BYTES: usize = 512;
/// The disks that a node has had, told apart by what is added to the seed.
const NEXT_DISK: u64 = 1;
const SALVAGE_DISK: u64 = 1 << 63;

/// The devices of one node.
#[derive(Debug)]
pub struct Devices {
    files: SimulatedDisk,
    /// What waits since a repair.
    salvage: SimulatedDisk,
    state: MemoryState,
    seed: u64,
}

/// What a node's devices held at some moment, as a backup or a virtual machine's snapshot holds it.
/// The default is an empty disk.
#[derive(Debug, Clone, Default)]
pub struct Image {
    files: Vec<(String, Vec<u8>)>,
    salvage: Vec<(String, Vec<u8>)>,
    state: MemoryState,
}

/// A part of a node's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Segments of the log.
    Log,
    /// The small files that say what must be there.
    Marks,
    /// A snapshot on its way in.
    Snapshot,
    /// What waits since a repair.
    Salvage,
}

impl Part {
    /// Of a file that is not of the salvage, which has its own disk.
    fn of(name: &str) -> Option<Self> {
        match name {
            "checkpoint.toml" | "log.toml" => Some(Self::Marks),
            name if segment_number(name).is_some() => Some(Self::Log),
            name if name.ends_with(".snapshot") => Some(Self::Snapshot),
            _ => None,
        }
    }
}

/// The number of a log's segment, from its file's name.
pub fn segment_number(name: &str) -> Option<u64> {
    name.strip_suffix(".log")?.parse().ok()
}

/// Where a repair reads, and what it makes.
struct Parts<'a> {
    devices: &'a Devices,
    made_log: SimulatedDisk,
    made_salvage: SimulatedDisk,
    has_salvage: Cell<bool>,
}

impl RepairParts for Parts<'_> {
    type Files = SimulatedDisk;

    fn damaged(&self, part: RepairPart) -> SimulatedDisk {
        match part {
            RepairPart::Log => self.devices.files.clone(),
            RepairPart::Salvage => self.devices.salvage.clone(),
        }
    }

    fn make(&self, part: RepairPart) -> Result<SimulatedDisk, RepairError> {
        match part {
            RepairPart::Log => Ok(self.made_log.clone()),
            RepairPart::Salvage => {
                self.has_salvage.set(true);
                Ok(self.made_salvage.clone())
            }
        }
    }
}

impl Devices {
    /// Empty devices.
    pub fn new(seed: u64) -> Self {
        Self {
            files: SimulatedDisk::new(seed, PAGE_BYTES),
            salvage: SimulatedDisk::new(seed ^ SALVAGE_DISK, PAGE_BYTES),
            state: MemoryState::default(),
            seed,
        }
    }

    /// The disk with the log.
    pub fn files(&self) -> &SimulatedDisk {
        &self.files
    }

    /// The state store.
    pub fn state(&self) -> &MemoryState {
        &self.state
    }

    /// Opens the shipped store on them.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(&self, config: &StoreConfig) -> Result<(SimStore, Frontier, OpenReport), OpenError> {
        Store::open(self.files.clone(), MemoryOpener::new(self.state.clone()), config)
    }

    /// The power fails: what is not synced is lost, in part or whole. Says whether a file was torn, and whether
    /// a page of one was kept and one before it lost.
    pub fn power_cut(&self, state: Rollback) -> (bool, bool) {
        let before = self.files.counts();
        self.files.crash();
        let after = self.files.counts();
        self.salvage.crash();
        self.state.crash(state);
        (after.torn_crashes > before.torn_crashes, after.reordered_crashes > before.reordered_crashes)
    }

    /// The power fails, and nothing that is not synced is left.
    pub fn lose_unsynced(&self) {
        self.files.lose_unsynced();
        self.state.crash(Rollback::Unflushed);
    }

    /// The process ends, the system goes on: the page cache keeps what was written.
    pub fn kill(&self) {
        self.files.restart();
        self.salvage.restart();
        self.state.crash(Rollback::Unflushed);
    }

    /// What the devices hold now, synced or not.
    pub fn image(&self) -> Image {
        Image { files: contents(&self.files), salvage: contents(&self.salvage), state: self.state.copy() }
    }

    /// Puts an image in the place of what is there, durably. Without the state it begins empty, as
    /// where only the log was backed up: it is a cache of that.
    pub fn restore(&mut self, image: &Image, with_state: bool) {
        self.replace_files(&image.files);
        self.replace_salvage(&image.salvage);
        self.state = if with_state { image.state.copy() } else { MemoryState::default() };
        self.state.crash(Rollback::Unflushed);
    }

    fn replace_files(&mut self, files: &[(String, Vec<u8>)]) {
        self.seed = self.seed.wrapping_add(NEXT_DISK);
        self.files = disk_with(self.seed, files);
    }

    fn replace_salvage(&mut self, files: &[(String, Vec<u8>)]) {
        self.salvage = disk_with(self.seed ^ SALVAGE_DISK, files);
    }

    /// The names of the files of a part.
    pub fn names(&self, part: Part) -> Vec<String> {
        let names = |disk: &SimulatedDisk| disk.list().unwrap_or_default();
        match part {
            Part::Salvage => names(&self.salvage).into_iter().filter(|name| segment_number(name).is_some()).collect(),
            part => names(&self.files).into_iter().filter(|name| Part::of(name) == Some(part)).collect(),
        }
    }

    /// The segments of the log that are there.
    pub fn segments(&self) -> BTreeSet<u64> {
        self.names(Part::Log).iter().filter_map(|name| segment_number(name)).collect()
    }

    /// A file of a part.
    pub fn contents(&self, part: Part, name: &str) -> Vec<u8> {
        self.disk_of(part).contents(name).unwrap_or_default()
    }

    /// Puts other bytes into a file behind everybody's back.
    pub fn damage(&self, part: Part, name: &str, at: &Range<usize>, bytes: &[u8]) {
        self.disk_of(part).damage(name, |file| file[at.clone()].copy_from_slice(bytes));
    }

    fn disk_of(&self, part: Part) -> &SimulatedDisk {
        match part {
            Part::Salvage => &self.salvage,
            Part::Log | Part::Marks | Part::Snapshot => &self.files,
        }
    }

    /// What the state says of itself, and whether its records go with that for sure.
    pub fn checkpoint(&self) -> Option<(Checkpoint, bool)> {
        let state = MemoryOpener::new(self.state.clone()).open().ok()?;
        let held = state.checkpoint().ok()??;
        let is_sound = state.is_atomic() && held.provenance != Provenance::Joining;
        Some((held, is_sound))
    }

    /// Makes a directory that opens again of one that is damaged, as `polyarch repair` does; says whether the
    /// state was kept. With `stops_after` the power goes after so many changes: then nothing has changed.
    ///
    /// # Errors
    /// See [`RepairError`].
    pub fn repair(
        &mut self,
        config: &StoreConfig,
        stops_after: Option<u64>,
    ) -> Result<(bool, RepairReport), RepairError> {
        let mut opener = MemoryOpener::new(self.state.clone());
        let held = opener.open().and_then(|state| whole_checkpoint(&opener, state));
        let made = |disk: u64| SimulatedDisk::new(self.seed.wrapping_add(NEXT_DISK) ^ disk, PAGE_BYTES);
        let (made_log, made_salvage) = (made(0), made(SALVAGE_DISK));
        if let Some(changes) = stops_after {
            made_log.stop_after(changes);
            made_salvage.stop_after(changes);
        }
        let parts = Parts { devices: self, made_log, made_salvage, has_salvage: Cell::new(false) };
        let repaired = make_repair(&parts, held, &config.log, None, &mut |_| true)?;
        // What is put in place is what a power cut right now would leave.
        parts.made_log.crash();
        parts.made_salvage.crash();
        let new_log = contents(&parts.made_log);
        let new_salvage = parts.has_salvage.get().then(|| contents(&parts.made_salvage));
        self.put_in_place(repaired.kept, new_log, new_salvage);
        let keeps_state = repaired.kept.is_some();
        let settled = if keeps_state { settle(&mut opener) } else { opener.set_aside().map(drop) };
        settled.map_err(RepairError::State)?;
        Ok((keeps_state, repaired.report))
    }

    fn put_in_place(
        &mut self,
        kept: Option<LogPosition>,
        log: Vec<(String, Vec<u8>)>,
        salvage: Option<Vec<(String, Vec<u8>)>>,
    ) {
        // A snapshot on its way in has a directory of its own, which a repair leaves alone.
        let snapshot = contents(&self.files).into_iter().filter(|(name, _)| Part::of(name) == Some(Part::Snapshot));
        let files: Vec<_> = log.into_iter().chain(snapshot).collect();
        self.replace_files(&files);
        if let Some(salvage) = salvage {
            self.replace_salvage(&salvage);
        }
        write_marks(&self.files, kept).expect("a new disk takes them");
    }

    /// What waits since a repair, if anything does.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn open_salvage(&self) -> Result<Option<SimSalvage>, LogError> {
        match self.names(Part::Salvage).is_empty() {
            true => Ok(None),
            false => SalvageReader::open(self.salvage.clone()).map(Some),
        }
    }

    /// What waits, each with where it ends.
    pub fn salvaged(&self) -> Vec<(Bytes, LogPosition)> {
        let Ok(Some(reader)) = self.open_salvage() else { return Vec::new() };
        let (mut at, mut found) = (LogPosition::default(), Vec::new());
        while let Ok((write_sets, next)) = reader.read(at, 1)
            && !write_sets.is_empty()
        {
            assert_eq!(write_sets.len(), 1, "each is longer than a byte");
            found.extend(write_sets.into_iter().map(|bytes| (bytes, next)));
            at = next;
        }
        found
    }

    /// Removes what waited.
    pub fn remove_salvage(&mut self) {
        self.replace_salvage(&[]);
    }
}

fn contents(disk: &SimulatedDisk) -> Vec<(String, Vec<u8>)> {
    let names = disk.list().unwrap_or_default();
    names.into_iter().filter_map(|name| disk.contents(&name).map(|bytes| (name, bytes))).collect()
}

fn disk_with(seed: u64, files: &[(String, Vec<u8>)]) -> SimulatedDisk {
    let disk = SimulatedDisk::new(seed, PAGE_BYTES);
    for (name, bytes) in files {
        disk.damage(name, |file| file.clone_from(bytes));
    }
    disk
}
