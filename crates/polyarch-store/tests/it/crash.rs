//! A store on a simulated disk is stopped at any point, and comes back as what was synced.

use bytes::Bytes;
use polyarch_crdt::{FieldPath, Hlc, Record};
use polyarch_protocol::{ChainHeads, Frontier, LogPosition, Storage, StorageError, WriteSet};
use polyarch_store::files::Files;
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::log::{Log, LogConfig, LogError};
use polyarch_store::state::{MemoryOpener, MemoryState, Rollback, StateStore};
use polyarch_store::{CheckpointConfig, OpenError, StateReport, StoreConfig, verify_parts};
use proptest::prelude::*;

use crate::support::{Model, Node, Sees, Write, encode, key, write};

#[derive(Debug, Clone)]
enum Op {
    Write(Write),
    Sync,
    PublishStaged,
    Checkpoint {
        now: bool,
    },
    RemoveLog,
    /// The state takes that many more batches and flushes.
    StateFailsAfter(usize),
    /// The power goes after that many more changes to the disk.
    PowerFailsAfter(u64),
    /// The disk has room for so much more, or for all.
    Room(Option<u64>),
    Crash(Rollback),
    /// The process is killed, and the system goes on.
    Kill,
}

fn op() -> impl Strategy<Value = Op> {
    let rollback = prop_oneof![
        3 => Just(Rollback::Unflushed),
        1 => Just(Rollback::Flushes(1)),
        2 => (0u64..2).prop_map(Rollback::Torn),
    ];
    prop_oneof![
        12 => write().prop_map(Op::Write),
        4 => Just(Op::Sync),
        1 => Just(Op::PublishStaged),
        3 => any::<bool>().prop_map(|now| Op::Checkpoint { now }),
        1 => Just(Op::RemoveLog),
        1 => (0usize..3).prop_map(Op::StateFailsAfter),
        1 => (0u64..6).prop_map(Op::PowerFailsAfter),
        1 => proptest::option::of(0u64..4_000).prop_map(Op::Room),
        1 => rollback.prop_map(Op::Crash),
        1 => Just(Op::Kill),
    ]
}

fn config() -> StoreConfig {
    StoreConfig {
        log: LogConfig { segment_bytes: 2_048, allocate_bytes: 1_024, ..LogConfig::default() },
        checkpoint: CheckpointConfig {
            memtable_bytes_max: 4_000,
            log_bytes_max: 4_000,
            retry_log_bytes: 300,
            ..CheckpointConfig::default()
        },
        ..StoreConfig::default()
    }
}

struct World {
    disk: SimulatedDisk,
    state: MemoryState,
    config: StoreConfig,
    node: Node<SimulatedDisk, MemoryState>,
    /// What the node was after each write set, the first being none.
    history: Vec<Model>,
    /// How many write sets are known to be durable.
    synced: usize,
    /// Whether the state flushed since it rolled back: it is not expected to do so twice.
    may_roll_back: bool,
}

impl World {
    fn new(seed: u64, config: StoreConfig) -> Self {
        let (disk, state) = (SimulatedDisk::new(seed, 512), MemoryState::new());
        let node = Node::open(disk.clone(), MemoryOpener::new(state.clone()), &config).unwrap();
        Self { disk, state, config, node, history: vec![Model::default()], synced: 0, may_roll_back: false }
    }

    fn step(&mut self, op: Op) -> Result<(), TestCaseError> {
        match op {
            Op::Write(write) => return self.try_write(&write),
            Op::Sync => return self.sync(),
            Op::PublishStaged => {
                self.node.store.publish_staged();
                let now = self.history.last().unwrap().live();
                prop_assert_eq!(self.node.live(), now, "all that was staged is visible");
            }
            Op::Checkpoint { now } => return self.checkpoint(now),
            Op::RemoveLog => {
                let floor = self.node.store.durable_end();
                match self.node.store.remove_log_before(floor) {
                    Ok(_) | Err(LogError::Full { .. }) => {}
                    Err(_) => return self.power_cut(),
                }
            }
            Op::StateFailsAfter(writes) => self.state.fail_after(writes),
            Op::PowerFailsAfter(changes) => self.disk.stop_after(changes),
            Op::Room(bytes) => {
                let names = self.disk.list().unwrap();
                let used: u64 = names.iter().map(|name| self.disk.contents(name).unwrap().len() as u64).sum();
                self.disk.set_space(bytes.map(|bytes| used + bytes));
            }
            Op::Crash(Rollback::Flushes(_)) if !self.may_roll_back => {}
            Op::Crash(rollback) => {
                self.may_roll_back &= !matches!(rollback, Rollback::Flushes(_));
                self.disk.crash();
                self.state.crash(rollback);
                return self.reopen();
            }
            Op::Kill => {
                self.disk.restart();
                self.state.crash(Rollback::Unflushed);
                return self.reopen();
            }
        }
        Ok(())
    }

    fn try_write(&mut self, write: &Write) -> Result<(), TestCaseError> {
        match self.node.try_write(write) {
            Ok((write_set, bytes, _)) => self.note(&write_set, &bytes),
            Err(StorageError::Full(_)) => {}
            Err(StorageError::Failed(_)) => return self.power_cut(),
        }
        Ok(())
    }

    fn write(&mut self, write: &Write) {
        let (write_set, bytes, _) = self.node.write(write);
        self.note(&write_set, &bytes);
    }

    fn note(&mut self, write_set: &WriteSet, bytes: &Bytes) {
        let mut model = self.history.last().unwrap().clone();
        model.apply(write_set, bytes);
        self.history.push(model);
    }

    fn sync(&mut self) -> Result<(), TestCaseError> {
        if self.node.store.sync().is_err() {
            return self.power_cut();
        }
        self.synced = self.history.len() - 1;
        self.check()
    }

    fn checkpoint(&mut self, now: bool) -> Result<(), TestCaseError> {
        self.sync()?;
        let store = &mut self.node.store;
        let job = match now {
            true => store.begin_checkpoint_now(&self.node.frontier),
            false => store.begin_checkpoint(&self.node.frontier),
        };
        let Some(job) = job else { return Ok(()) };
        prop_assert!(store.begin_checkpoint_now(&self.node.frontier).is_none(), "one runs at a time");
        if let Ok(done) = job.run() {
            self.node.store.finish_checkpoint(done);
            self.may_roll_back = true;
        }
        self.check()
    }

    fn power_cut(&mut self) -> Result<(), TestCaseError> {
        self.disk.crash();
        self.state.crash(Rollback::Unflushed);
        self.reopen()
    }

    fn reopen(&mut self) -> Result<(), TestCaseError> {
        let opener = MemoryOpener::new(self.state.clone());
        self.node = Node::open(self.disk.clone(), opener, &self.config)
            .map_err(|error| TestCaseError::fail(error.to_string()))?;
        let found = self.node.frontier.heads.applied().write_sets() as usize;
        prop_assert!(found >= self.synced, "{} write sets were synced, {found} came back", self.synced);
        prop_assert!(found < self.history.len());
        self.history.truncate(found + 1);
        self.synced = found;
        self.check()
    }

    /// With nothing staged the node is what the model is.
    fn check(&self) -> Result<(), TestCaseError> {
        let model = self.history.last().unwrap();
        prop_assert_eq!(&self.node.frontier, &model.frontier);
        prop_assert_eq!(self.node.live(), model.live());
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_crash_at_any_point_leaves_exactly_a_prefix_with_all_that_was_synced(
        seed in any::<u64>(),
        ops in proptest::collection::vec(op(), 1..120),
    ) {
        let mut world = World::new(seed, config());
        for op in ops {
            world.step(op)?;
        }
        // Only where there is room a state that rolled back is brought up again.
        for op in [Op::Room(None), Op::Crash(Rollback::Unflushed), Op::Checkpoint { now: true }, Op::Kill] {
            world.step(op)?;
        }
        let World { node, disk, state, .. } = world;
        drop(node);
        let report = verify_parts(&disk.into(), &mut MemoryOpener::new(state), 10).unwrap();
        prop_assert!(report.is_clean(), "{:#?}", report);
    }
}

/// The header of the last segment says less than the frames before it add up to, and a write set comes again.
#[test]
fn a_segment_that_does_not_fit_is_told_and_ends_the_comparison() {
    let disk = SimulatedDisk::new(1, 512);
    let config = LogConfig { segment_bytes: 64, ..LogConfig::default() };
    let (mut log, _) = Log::open(disk.clone(), config, None).unwrap();
    let mut frontier = Frontier::default();
    let mut append = |write_set: &Bytes, before: &ChainHeads| {
        log.append(write_set, before).unwrap();
        log.sync().unwrap();
    };
    let next = |frontier: &Frontier| encode(&put(1, 0, Sees::Nothing), frontier, |_| Record::default());
    let first = next(&frontier);
    append(&first.encode(), &ChainHeads::default());
    frontier.heads.extend(first.dot, &first.encode());
    let second = next(&frontier).encode();
    append(&second, &frontier.heads);
    append(&second, &frontier.heads);
    let report = verify_parts(&disk.into(), &mut MemoryOpener::default(), 10).unwrap();
    let what: Vec<_> = report.problems.iter().map(|problem| problem.what.as_str()).collect();
    assert!(matches!(what[..], [only] if only.starts_with("the segment's header does not fit the frames")), "{what:?}");
}

fn put(number: u32, origin: u32, sees: Sees) -> Write {
    Write { origin, changes: vec![(number, sees, true)] }
}

/// A value that was superseded before it came is not shown after a crash that goes back to before
/// it came, over records that are from after that. Returns what key 1 shows then.
fn absorbed_across_a_torn_checkpoint(config: StoreConfig, seed: u64) -> (String, String) {
    let mut world = World::new(1, config);
    world.write(&put(1, 0, Sees::Ahead(1, 1)));
    world.checkpoint(true).unwrap();
    world.write(&put(1, 1, Sees::Nothing));
    // The seeded bug strikes at the next append.
    world.write(&put(2, 2, Sees::Nothing));
    world.sync().unwrap();
    world.state.fail_after(1);
    let job = world.node.store.begin_checkpoint_now(&world.node.frontier).unwrap();
    assert!(job.run().is_err());
    let before = world.node.live()[&key(1)].clone();
    world.disk.crash();
    world.state.crash(Rollback::Torn(seed));
    let opener = MemoryOpener::new(world.state.clone());
    let node = Node::open(world.disk.clone(), opener, &world.config).unwrap();
    assert_eq!(node.frontier.heads, world.node.frontier.heads);
    (before, node.live()[&key(1)].clone())
}

#[test]
fn what_is_to_be_absorbed_is_known_after_a_crash() {
    for seed in 0..2 {
        let (before, after) = absorbed_across_a_torn_checkpoint(config(), seed);
        assert_eq!(before, after);
    }
}

#[test]
fn absorb_removed_at_once_brings_a_superseded_value_back() {
    let mut config = config();
    config.bugs.absorb_removed_at_once = true;
    let came_back = (0..2).any(|seed| {
        let (before, after) = absorbed_across_a_torn_checkpoint(config.clone(), seed);
        before != after
    });
    assert!(came_back, "the seeded bug does what it is for");
}

#[test]
fn absorb_entries_go_when_a_checkpoint_has_their_dot_even_if_nobody_writes_the_record() {
    let mut world = World::new(2, config());
    world.write(&put(1, 0, Sees::Ahead(1, 1)));
    world.checkpoint(true).unwrap();
    let absorbing = |world: &World| world.state.get(&key(1)).unwrap().unwrap().absorb_len();
    assert_eq!(absorbing(&world), 1);
    world.write(&put(2, 1, Sees::Nothing));
    world.checkpoint(true).unwrap();
    assert_eq!(absorbing(&world), 1, "the checkpoint before did not have it yet");
    world.checkpoint(true).unwrap();
    assert_eq!(absorbing(&world), 0);
    assert!(world.state.checkpoint().unwrap().unwrap().absorbing.is_empty());
}

#[test]
fn an_entry_is_kept_for_as_long_as_its_dot_has_not_come() {
    let mut world = World::new(3, config());
    world.write(&put(1, 0, Sees::Ahead(1, 2)));
    for round in 0..5 {
        world.checkpoint(true).unwrap();
        world.step(Op::Crash(Rollback::Unflushed)).unwrap();
        world.write(&put(10 + round, 2, Sees::All));
    }
    world.write(&put(5, 1, Sees::Nothing));
    world.write(&put(1, 1, Sees::Nothing));
    world.checkpoint(true).unwrap();
    assert!(!world.node.live()[&key(1)].contains("2-000000a1:2"));
}

#[test]
fn reads_of_what_is_published_lose_what_is_staged() {
    let siblings = |config: StoreConfig| {
        let mut world = World::new(4, config);
        (0..64).for_each(|_| world.write(&put(1, 0, Sees::All)));
        world.node.store.sync().unwrap();
        let record = world.node.store.reader().get(&key(1)).unwrap();
        record.siblings(&FieldPath::opaque()).len()
    };
    assert_eq!(siblings(config()), 1);
    let mut config = config();
    config.bugs.reads_durable_instead_of_staged = true;
    assert_eq!(siblings(config), 64, "the seeded bug does what it is for");
}

#[test]
fn readers_see_nothing_before_the_sync_and_all_of_it_after() {
    let mut world = World::new(5, config());
    let reader = world.node.store.reader();
    world.write(&Write { origin: 0, changes: vec![(1, Sees::All, true), (2, Sees::All, true)] });
    assert!(reader.get(&key(1)).unwrap().is_empty());
    assert!(!world.node.store.record(&key(1)).unwrap().is_empty());
    world.node.store.sync().unwrap();
    assert!(!reader.get(&key(1)).unwrap().is_empty() && !reader.get(&key(2)).unwrap().is_empty());
}

#[test]
fn with_an_interval_reads_run_ahead_of_the_disk_and_checkpoints_do_not() {
    let mut world = World::new(6, config());
    let reader = world.node.store.reader();
    world.write(&put(1, 0, Sees::All));
    world.node.store.publish_staged();
    assert!(!reader.get(&key(1)).unwrap().is_empty());
    let durable = world.node.store.durable_end();
    assert!(durable < world.node.store.staged_end());
    assert!(world.node.store.begin_checkpoint_now(&world.node.frontier).is_none());
    world.disk.restart();
    world.reopen().unwrap();
    assert!(world.node.live().is_empty(), "what was not synced died with the process");
    world.write(&put(1, 0, Sees::All));
    world.node.store.publish_staged();
    world.node.store.sync().unwrap();
    assert!(world.node.store.begin_checkpoint_now(&world.node.frontier).is_some());
}

#[test]
fn a_failed_checkpoint_is_tried_again_and_nothing_is_missing_meanwhile() {
    let mut world = World::new(7, config());
    (0..80).for_each(|n| world.write(&put(n % 12, 0, Sees::All)));
    world.state.fail_after(1);
    world.checkpoint(false).unwrap();
    assert_eq!(world.node.store.checkpointed(), world.node.report.replayed_from, "it failed");
    world.write(&put(1, 0, Sees::All));
    world.sync().unwrap();
    let store = &mut world.node.store;
    assert!(store.begin_checkpoint(&world.node.frontier).is_none(), "not at once");
    (0..10).for_each(|n| world.write(&put(n, 0, Sees::All)));
    world.state.fail_after(2);
    world.checkpoint(false).unwrap();
    assert!(world.node.store.checkpointed() > world.node.report.replayed_from);
    let behind = world.node.store.checkpointed() < world.node.store.durable_end();
    assert!(behind, "what was frozen at first is what was written");
    world.step(Op::Crash(Rollback::Unflushed)).unwrap();
}

#[test]
fn a_log_larger_than_memory_is_replayed_in_parts() {
    let mut world = World::new(8, config());
    for n in 0..4_000 {
        world.write(&Write { origin: n % 3, changes: vec![(n, Sees::All, true)] });
    }
    world.sync().unwrap();
    world.disk.restart();
    world.state.crash(Rollback::Unflushed);
    world.reopen().unwrap();
    assert!(world.node.store.checkpointed() > LogPosition { segment: 2, offset: 0 });
    assert!(world.state.len() > 2_000);
}

#[test]
fn the_log_goes_up_to_the_checkpoint_before_last_and_no_further() {
    let mut world = World::new(9, config());
    let round = |world: &mut World| {
        (0..60).for_each(|n| world.write(&put(n % 12, 0, Sees::All)));
        world.checkpoint(true).unwrap();
        let end = world.node.store.durable_end();
        world.node.store.remove_log_before(end).unwrap()
    };
    assert_eq!(round(&mut world), [], "the checkpoint before the first is the beginning");
    let second = world.node.store.durable_end();
    assert!(!round(&mut world).is_empty());
    assert!(world.node.store.remove_log_before(LogPosition { segment: 1, offset: 0 }).unwrap().is_empty());
    // One flush may be lost even so.
    world.disk.crash();
    world.state.crash(Rollback::Flushes(1));
    world.reopen().unwrap();
    assert!(matches!(world.node.report.state, StateReport::Behind { held, .. } if held == second));
    // But not two, for the log has gone.
    world.state.crash(Rollback::Flushes(9));
    let (disk, opener) = (world.disk.clone(), MemoryOpener::new(world.state.clone()));
    drop(world);
    disk.restart();
    let lost = Node::open(disk, opener, &config()).err().expect("the log does not reach the beginning");
    assert!(matches!(lost, OpenError::StateLost { .. }), "{lost}");
}

fn refused(disk: &SimulatedDisk, state: &MemoryState) -> OpenError {
    let opener = MemoryOpener::new(state.clone());
    Node::open(disk.clone(), opener, &config()).err().expect("it does not open")
}

/// Everything on a disk.
fn contents(disk: &SimulatedDisk) -> Vec<(String, Option<Vec<u8>>)> {
    disk.list().unwrap().into_iter().map(|name| (name.clone(), disk.contents(&name))).collect()
}

#[test]
fn a_state_ahead_of_the_log_stops_the_node_and_nothing_is_changed() {
    let mut ahead = World::new(10, config());
    (0..50).for_each(|n| ahead.write(&put(n % 12, 0, Sees::All)));
    ahead.checkpoint(true).unwrap();
    // Another disk, whose log ends earlier, and which does not know of the checkpoint; and an empty one.
    let mut world = World::new(11, config());
    (0..20).for_each(|n| world.write(&put(n % 12, 0, Sees::All)));
    let end = world.node.store.sync().unwrap();
    world.write(&put(1, 0, Sees::All));
    world.disk.crash();
    for (disk, end) in [(world.disk, end), (SimulatedDisk::new(12, 512), LogPosition::default())] {
        let (before, records) = (contents(&disk), ahead.state.len());
        let refused = refused(&disk, &ahead.state);
        let synced = ahead.node.store.checkpointed();
        let expected = format!("the log ends at {end}, but a checkpoint holds it up to {synced}:");
        assert!(refused.to_string().starts_with(&expected), "{refused}");
        assert!(refused.to_string().contains("backup"), "{refused}");
        assert_eq!((contents(&disk), ahead.state.len()), (before, records));
        let report = verify_parts(&disk.into(), &mut MemoryOpener::new(ahead.state.clone()), 10).unwrap();
        assert!(report.problems[0].what.starts_with(&expected), "{report:#?}");
    }
}

/// A world whose log has lost its first segments by right, and no other.
fn shortened() -> World {
    let mut world = World::new(15, config());
    for _ in 0..3 {
        (0..60).for_each(|n| world.write(&put(n % 12, 0, Sees::All)));
        world.checkpoint(true).unwrap();
    }
    let end = world.node.store.durable_end();
    assert!(!world.node.store.remove_log_before(end).unwrap().is_empty());
    world
}

fn first_segment(disk: &SimulatedDisk) -> String {
    disk.list().unwrap().into_iter().find(|name| name.ends_with(".log")).unwrap()
}

#[test]
fn a_first_segment_that_nobody_removed_is_missed() {
    let mut whole = World::new(16, config());
    (0..80).for_each(|n| whole.write(&put(n % 12, 0, Sees::All)));
    whole.checkpoint(true).unwrap();
    for world in [whole, shortened()] {
        let (disk, state) = (world.disk.clone(), world.state.clone());
        drop(world);
        disk.lose(&first_segment(&disk));
        disk.restart();
        let refused = refused(&disk, &state);
        assert!(matches!(refused, OpenError::Log(LogError::BeginsLate { .. })), "{refused}");
        let report = verify_parts(&disk.into(), &mut MemoryOpener::new(state), 10).unwrap();
        assert!(report.problems[0].what.contains("they are missing"), "{report:#?}");
    }
}

#[test]
fn a_removal_that_was_cut_short_anywhere_is_no_loss() {
    for changes in 0..20 {
        let mut world = World::new(17, config());
        for _ in 0..3 {
            (0..60).for_each(|n| world.write(&put(n % 12, 0, Sees::All)));
            world.checkpoint(true).unwrap();
        }
        world.disk.stop_after(changes);
        let end = world.node.store.durable_end();
        let removed = world.node.store.remove_log_before(end);
        world.step(Op::Crash(Rollback::Unflushed)).unwrap();
        assert_eq!(world.node.report.state, StateReport::Intact);
        let report = verify_parts(&world.disk.into(), &mut MemoryOpener::new(world.state), 10).unwrap();
        assert!(report.is_clean(), "after {changes} changes: {report:#?}");
        if removed.is_ok() {
            return;
        }
    }
    panic!("a removal has fewer changes");
}

#[test]
fn a_damaged_state_is_set_aside_and_rebuilt() {
    let mut world = World::new(12, config());
    (0..50).for_each(|n| world.write(&put(n % 12, 0, Sees::All)));
    world.checkpoint(true).unwrap();
    world.write(&put(1, 0, Sees::All));
    world.sync().unwrap();
    world.state.damage();
    world.disk.restart();
    world.reopen().unwrap();
    assert!(matches!(world.node.report.state, StateReport::Rebuilt { .. }));
    assert_eq!(world.node.report.replayed, 51);
    assert!(world.node.frontier.hlc > Hlc::default());
}

#[test]
fn a_state_that_rolled_back_and_is_not_what_it_says_is_rebuilt() {
    let mut world = World::new(14, config());
    (0..20).for_each(|n| world.write(&put(n % 12, 0, Sees::All)));
    world.checkpoint(true).unwrap();
    let early = world.state.checkpoint().unwrap().unwrap();
    (0..20).for_each(|n| world.write(&put(n % 12, 0, Sees::All)));
    world.checkpoint(true).unwrap();
    // The records of today under the metadata of before.
    world.state.apply_sorted(Vec::new(), &early).unwrap();
    world.state.flush().unwrap();
    world.disk.restart();
    world.reopen().unwrap();
    assert!(matches!(&world.node.report.state, StateReport::Rebuilt { why, .. } if why.contains("digest")));
}

#[test]
fn a_log_with_something_else_in_it_is_an_error() {
    let mut world = World::new(13, config());
    world.write(&put(1, 0, Sees::All));
    let heads = world.node.frontier.heads.clone();
    world.node.store.append(&"no write set".into(), &heads).unwrap();
    world.node.store.sync().unwrap();
    world.disk.restart();
    let opener = MemoryOpener::new(world.state.clone());
    let refused = Node::open(world.disk.clone(), opener, &world.config).err().unwrap();
    assert!(matches!(refused, OpenError::WriteSet { .. }), "{refused}");
    let report = verify_parts(&world.disk.clone().into(), &mut MemoryOpener::new(world.state.clone()), 10).unwrap();
    assert_eq!(report.problems.len(), 1);
}
