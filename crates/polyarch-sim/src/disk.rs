//! One node's storage devices: the simulated disk of its log, and its state store. They outlive
//! processes.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use polyarch_crdt::Record;
use polyarch_protocol::{Frontier, RecordKey};
use polyarch_store::files::Files;
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::log::LogReader;
use polyarch_store::state::{
    BatchEntry, Checkpoint, MemoryOpener, MemoryState, Rollback, ScanRange, StateError, StateOpener, StateStore,
};
use polyarch_store::{CheckpointJob, OpenError, OpenReport, StateReader, Store, StoreConfig};

/// The shipped store over simulated devices.
pub type SimStore = Store<SimulatedDisk, SimState>;
/// Reads its records.
pub type SimStateReader = StateReader<SimState>;
/// Reads its log.
pub type SimLogReader = LogReader<SimulatedDisk>;
/// Writes its checkpoints.
pub type SimCheckpointJob = CheckpointJob<SimulatedDisk, SimState>;

/// Bytes that a power cut keeps or loses as a whole.
const PAGE_BYTES: usize = 512;

/// The devices of one node.
#[derive(Debug)]
pub struct Devices {
    files: SimulatedDisk,
    state: SimState,
    images_made: Cell<u64>,
}

/// What a node's files held at some moment, as a backup or a virtual machine's snapshot holds it.
#[derive(Debug, Clone)]
pub struct Image {
    files: Vec<(String, Vec<u8>)>,
}

impl Devices {
    /// Empty devices.
    pub fn new(seed: u64) -> Self {
        Self {
            files: SimulatedDisk::new(seed, PAGE_BYTES),
            state: SimState::default(),
            images_made: Cell::new(seed),
        }
    }

    /// The disk with the log.
    pub fn files(&self) -> &SimulatedDisk {
        &self.files
    }

    /// The state store.
    pub fn state(&self) -> &SimState {
        &self.state
    }

    /// Opens the shipped store on them.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(&self, config: &StoreConfig) -> Result<(SimStore, Frontier, OpenReport), OpenError> {
        Store::open(self.files.clone(), SimOpener::new(self.state.clone()), config)
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

    /// What the files hold now, synced or not.
    pub fn image(&self) -> Image {
        let names = self.files.list().unwrap_or_default();
        Image {
            files: names
                .into_iter()
                .filter_map(|name| self.files.contents(&name).map(|bytes| (name, bytes)))
                .collect(),
        }
    }

    /// Puts an image in the place of what is there, durably. The state begins empty: it is a cache
    /// of the log.
    pub fn restore(&mut self, image: &Image) {
        self.images_made.set(self.images_made.get().wrapping_add(1));
        self.files = SimulatedDisk::new(self.images_made.get(), PAGE_BYTES);
        for (name, bytes) in &image.files {
            self.files.damage(name, |file| file.clone_from(bytes));
        }
        self.state = SimState::default();
    }
}

/// A [`MemoryState`] that a run can stop between a batch and its flush.
#[derive(Debug, Clone, Default)]
pub struct SimState {
    memory: MemoryState,
    flush_fails: Arc<AtomicBool>,
}

impl SimState {
    /// Makes the next flush, and all writes behind it, fail: the node goes down there.
    pub fn fail_flush(&self) {
        self.flush_fails.store(true, Ordering::Relaxed);
    }

    /// Makes every open fail until the state is set aside.
    pub fn damage(&self) {
        self.memory.damage();
    }

    fn crash(&self, keep: Rollback) {
        self.flush_fails.store(false, Ordering::Relaxed);
        self.memory.crash(keep);
    }
}

impl StateStore for SimState {
    fn get(&self, key: &RecordKey) -> Result<Option<Record>, StateError> {
        self.memory.get(key)
    }

    fn scan(&self, range: &ScanRange, limit: usize) -> Result<Vec<(RecordKey, Record)>, StateError> {
        self.memory.scan(range, limit)
    }

    fn apply_sorted(&self, batch: Vec<BatchEntry>, checkpoint: &Checkpoint) -> Result<(), StateError> {
        self.memory.apply_sorted(batch, checkpoint)
    }

    fn flush(&self) -> Result<(), StateError> {
        match self.flush_fails.load(Ordering::Relaxed) {
            true => {
                self.memory.fail_writes();
                Err(StateError::Stopped)
            }
            false => self.memory.flush(),
        }
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, StateError> {
        self.memory.checkpoint()
    }

    fn size(&self) -> Result<u64, StateError> {
        self.memory.size()
    }

    fn is_atomic(&self) -> bool {
        self.memory.is_atomic()
    }
}

/// Opens a [`SimState`].
struct SimOpener {
    memory: MemoryOpener,
    flush_fails: Arc<AtomicBool>,
}

impl SimOpener {
    fn new(state: SimState) -> Self {
        Self {
            memory: MemoryOpener::new(state.memory),
            flush_fails: state.flush_fails,
        }
    }
}

impl StateOpener for SimOpener {
    type State = SimState;

    fn open(&mut self) -> Result<SimState, StateError> {
        Ok(SimState {
            memory: self.memory.open()?,
            flush_fails: Arc::clone(&self.flush_fails),
        })
    }

    fn set_aside(&mut self) -> Result<String, StateError> {
        self.memory.set_aside()
    }
}
