//! Memory for what is not in the state is bounded, whatever becomes of the checkpoints.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use polyarch_crdt::Record;
use polyarch_protocol::RecordKey;
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::state::{
    BatchEntry, Checkpoint, MemoryOpener, MemoryState, ScanRange, StateError, StateOpener, StateStore,
};
use polyarch_store::{CheckpointConfig, CheckpointError, StoreConfig};
use support::Node;

fn config() -> StoreConfig {
    let checkpoint = CheckpointConfig {
        memtable_bytes_max: 4_000,
        memtable_times_max: 3,
        retry_log_bytes: u64::MAX / 2,
        ..CheckpointConfig::default()
    };
    StoreConfig { checkpoint, ..StoreConfig::default() }
}

/// Writes until memory is full; gives how often.
fn fill<S: StateStore>(node: &mut Node<SimulatedDisk, S>) -> u32 {
    for number in 0..1_000 {
        if node.store.is_memtable_full() {
            return number;
        }
        node.put(number);
        node.store.sync().unwrap();
    }
    panic!("memory is never full");
}

#[test]
fn memory_is_full_while_a_checkpoint_runs_and_has_room_when_it_is_done() {
    let mut node = Node::open(SimulatedDisk::new(1, 512), MemoryOpener::new(MemoryState::new()), &config()).unwrap();
    (0..20).for_each(|number| node.put(number));
    node.store.sync().unwrap();
    let job = node.store.begin_checkpoint_now(&node.frontier).unwrap();
    assert!(fill(&mut node) > 0);
    assert!(node.store.begin_checkpoint(&node.frontier).is_none(), "one runs");
    node.store.finish_checkpoint(job.run().unwrap());
    assert!(!node.store.is_memtable_full());
}

#[test]
fn a_failed_checkpoint_is_tried_again_at_once_when_memory_is_full() {
    let state = MemoryState::new();
    let mut node = Node::open(SimulatedDisk::new(1, 512), MemoryOpener::new(state.clone()), &config()).unwrap();
    node.put(0);
    node.store.sync().unwrap();
    state.fail_after(0);
    assert!(node.store.begin_checkpoint_now(&node.frontier).unwrap().run().is_err());
    node.put(1);
    node.store.sync().unwrap();
    assert!(node.store.begin_checkpoint(&node.frontier).is_none(), "there is time");
    fill(&mut node);
    let failed = node.store.begin_checkpoint(&node.frontier).expect("there is none").run();
    assert!(matches!(failed, Err(CheckpointError::State(_))));
    state.crash(polyarch_store::state::Rollback::Unflushed);
    let job = node.store.begin_checkpoint(&node.frontier).expect("once more");
    node.store.finish_checkpoint(job.run().unwrap());
}

/// More than are replayed between two looks at memory.
const REPLAYED: u32 = 1_100;

/// A disk with a log that no checkpoint holds, and room for nothing else.
fn full_disk() -> SimulatedDisk {
    let disk = SimulatedDisk::new(1, 512);
    let mut node = Node::open(disk.clone(), MemoryOpener::new(MemoryState::new()), &config()).unwrap();
    (0..REPLAYED).for_each(|number| node.put(number));
    node.store.sync().unwrap();
    drop(node);
    disk.set_space(Some(0));
    disk
}

#[test]
fn a_start_without_room_for_a_checkpoint_goes_on_in_memory() {
    let mut config = config();
    config.checkpoint.memtable_times_max = 1_000;
    let node = Node::open(full_disk(), MemoryOpener::new(MemoryState::new()), &config).unwrap();
    assert_eq!(node.frontier.heads.applied().write_sets(), u64::from(REPLAYED));
}

#[test]
fn a_start_that_finds_room_neither_on_disk_nor_in_memory_is_refused_for_that() {
    let disk = full_disk();
    let open = || Node::open(disk.clone(), MemoryOpener::new(MemoryState::new()), &config());
    let refused = open().err().expect("memory has no room");
    assert!(refused.is_full(), "{refused}");
    disk.set_space(None);
    assert_eq!(open().unwrap().frontier.heads.applied().write_sets(), u64::from(REPLAYED));
}

/// A state that panics when it is told to.
#[derive(Clone, Default)]
struct Panicking {
    state: MemoryState,
    panics: Arc<AtomicBool>,
}

impl StateStore for Panicking {
    fn get(&self, key: &RecordKey) -> Result<Option<Record>, StateError> {
        self.state.get(key)
    }

    fn scan(&self, range: &ScanRange, limit: usize) -> Result<Vec<(RecordKey, Record)>, StateError> {
        self.state.scan(range, limit)
    }

    fn apply_sorted(&self, batch: Vec<BatchEntry>, checkpoint: &Checkpoint) -> Result<(), StateError> {
        assert!(!self.panics.load(Ordering::Relaxed), "it was told to");
        self.state.apply_sorted(batch, checkpoint)
    }

    fn flush(&self) -> Result<(), StateError> {
        self.state.flush()
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, StateError> {
        self.state.checkpoint()
    }

    fn size(&self) -> Result<u64, StateError> {
        self.state.size()
    }
}

impl StateOpener for Panicking {
    type State = Self;

    fn open(&mut self) -> Result<Self, StateError> {
        Ok(self.clone())
    }

    fn set_aside(&mut self) -> Result<String, StateError> {
        unreachable!("it is sound")
    }
}

#[test]
fn a_checkpoint_that_panics_has_a_result_and_can_be_begun_again() {
    let state = Panicking::default();
    let mut node = Node::open(SimulatedDisk::new(1, 512), state.clone(), &config()).unwrap();
    node.put(0);
    node.store.sync().unwrap();
    state.panics.store(true, Ordering::Relaxed);
    let abandoned = node.store.begin_checkpoint_now(&node.frontier).unwrap().run().err().expect("it panics");
    assert!(matches!(&abandoned, CheckpointError::Abandoned(why) if why.contains("told to")), "{abandoned}");
    state.panics.store(false, Ordering::Relaxed);
    let job = node.store.begin_checkpoint_now(&node.frontier).expect("none runs");
    assert_eq!(node.store.finish_checkpoint(job.run().unwrap()).records, 1);
}
