//! One node's storage devices: the simulated disk of its log, and its state store. They outlive
//! processes.

use polyarch_protocol::Frontier;
use polyarch_store::files::Files;
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::log::LogReader;
use polyarch_store::state::{MemoryOpener, MemoryState, Rollback};
use polyarch_store::{
    CheckpointJob, JoinJob, Joined, OpenError, OpenReport, SnapshotReceiver, StateReader, Store, StoreConfig,
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
/// Joins one.
pub type SimJoinJob = JoinJob<SimulatedDisk, MemoryState>;
/// One that is joined.
pub type SimJoined = Joined<SimulatedDisk, MemoryState>;

/// Bytes that a power cut keeps or loses as a whole.
const PAGE_BYTES: usize = 512;

/// The devices of one node.
#[derive(Debug)]
pub struct Devices {
    files: SimulatedDisk,
    state: MemoryState,
    seed: u64,
}

/// What a node's devices held at some moment, as a backup or a virtual machine's snapshot holds it.
/// The default is an empty disk.
#[derive(Debug, Clone, Default)]
pub struct Image {
    files: Vec<(String, Vec<u8>)>,
    state: MemoryState,
}

impl Devices {
    /// Empty devices.
    pub fn new(seed: u64) -> Self {
        Self { files: SimulatedDisk::new(seed, PAGE_BYTES), state: MemoryState::default(), seed }
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

    /// The power fails: what is not synced is lost, in part or whole.
    pub fn power_cut(&self, state: Rollback) {
        self.files.crash();
        self.state.crash(state);
    }

    /// The process ends, the system goes on: the page cache keeps what was written.
    pub fn kill(&self) {
        self.files.restart();
        self.state.crash(Rollback::Unflushed);
    }

    /// What the devices hold now, synced or not.
    pub fn image(&self) -> Image {
        let names = self.files.list().unwrap_or_default();
        Image {
            files: names.into_iter().filter_map(|name| self.files.contents(&name).map(|bytes| (name, bytes))).collect(),
            state: self.state.copy(),
        }
    }

    /// Puts an image in the place of what is there, durably. Without the state it begins empty, as
    /// where only the log was backed up: it is a cache of that.
    pub fn restore(&mut self, image: &Image, with_state: bool) {
        self.seed = self.seed.wrapping_add(1);
        self.files = SimulatedDisk::new(self.seed, PAGE_BYTES);
        for (name, bytes) in &image.files {
            self.files.damage(name, |file| file.clone_from(bytes));
        }
        self.state = if with_state { image.state.copy() } else { MemoryState::default() };
        self.state.crash(Rollback::Unflushed);
    }
}
