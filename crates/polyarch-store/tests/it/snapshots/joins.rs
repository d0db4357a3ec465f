//! What a join makes of two stores.

use std::collections::BTreeMap;

use polyarch_protocol::{LogPosition, RecordKey};
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::files::{Directory, Files};
use polyarch_store::state::{MemoryOpener, MemoryState, SledState, StateStore};
use polyarch_store::{DiskStore, StoreConfig, VerifyConfig, verify, verify_parts};

use super::walk::Walk;

use crate::support::{Model, Node, Sees, Write};

type Shown = BTreeMap<RecordKey, String>;

fn put(number: u32, origin: u32) -> Write {
    Write { origin, changes: vec![(number, Sees::All, true)] }
}

/// Writes to a node and to a model of both.
fn write<F: Files, S: StateStore>(node: &mut Node<F, S>, both: &mut Model, numbers: std::ops::Range<u32>, origin: u32) {
    for number in numbers {
        let (write_set, bytes, _) = node.write(&put(number, origin));
        both.apply(&write_set, &bytes);
    }
    node.store.sync().unwrap();
}

fn join<F: Files, S: StateStore>(donor: &mut Node<F, S>, receiver: &mut Node<F, S>) {
    let files = receiver.store.snapshot_files().clone();
    let snapshot = Walk::begin(donor, 1).fetch(files);
    let job = receiver.store.begin_join(snapshot, &receiver.frontier).ok().expect("all is quiet");
    let joined = job.run(|_| true).unwrap();
    receiver.frontier = receiver.store.adopt(joined, &receiver.frontier).unwrap();
    receiver.store.publish_staged();
    assert!(receiver.store.take_retired().unwrap().remove().unwrap().is_none(), "nobody reads it");
}

fn on_disk(path: &std::path::Path) -> Node<Directory, SledState> {
    let (store, frontier, report) = DiskStore::open_directory(path, &StoreConfig::default()).unwrap();
    Node { store, frontier, report }
}

fn in_memory(disk: &SimulatedDisk, state: &MemoryState) -> Node<SimulatedDisk, MemoryState> {
    Node::open(disk.clone(), MemoryOpener::new(state.clone()), &StoreConfig::default()).unwrap()
}

#[test]
fn two_stores_that_each_have_what_the_other_lacks_become_equal() {
    let (disks, states) = ([1, 2].map(|seed| SimulatedDisk::new(seed, 512)), [(); 2].map(|()| MemoryState::new()));
    let mut one = in_memory(&disks[0], &states[0]);
    let mut two = in_memory(&disks[1], &states[1]);
    let mut both = Model::default();
    write(&mut one, &mut both, 0..200, 0);
    write(&mut two, &mut both, 100..300, 1);
    one.checkpoint();
    write(&mut one, &mut both, 50..60, 0);
    join(&mut one, &mut two);
    assert_eq!((two.live(), &two.frontier), (both.live(), &both.frontier));
    join(&mut two, &mut one);
    assert_eq!((one.live(), &one.frontier), (both.live(), &both.frontier));

    // It goes on from there, over checkpoints and starts.
    write(&mut two, &mut both, 250..260, 1);
    let before = two.frontier.clone();
    drop(two);
    disks[1].restart();
    states[1].crash(polyarch_store::state::Rollback::Unflushed);
    let mut two = in_memory(&disks[1], &states[1]);
    assert_eq!((two.live(), &two.frontier), (both.live(), &before));
    two.checkpoint();
    drop(two);
    let report = verify_parts(&disks[1].clone().into(), &mut MemoryOpener::new(states[1].clone()), 10).unwrap();
    assert!(report.is_clean() && report.boundaries == 1 && !report.from_the_beginning, "{report:#?}");
}

#[test]
fn a_snapshot_is_joined_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let [one_at, two_at] = ["one", "two"].map(|name| dir.path().join(name));
    let (mut one, mut two) = (on_disk(&one_at), on_disk(&two_at));
    let mut both = Model::default();
    write(&mut one, &mut both, 0..500, 0);
    one.checkpoint();
    write(&mut two, &mut both, 300..700, 1);
    join(&mut one, &mut two);
    assert_eq!((two.live(), &two.frontier), (both.live(), &both.frontier));
    let names = |path: &str| {
        let mut names: Vec<_> = std::fs::read_dir(two_at.join(path)).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("state"), ["0002"]);
    assert_eq!(names("snapshot"), [""; 0]);
    write(&mut two, &mut both, 0..10, 1);
    drop(two);
    let report = verify(&two_at, &VerifyConfig { scratch: dir.path().into(), ..VerifyConfig::default() }).unwrap();
    assert!(report.is_clean() && report.boundaries == 1, "{report:#?}");
    let mut two = on_disk(&two_at);
    assert_eq!((two.live(), &two.frontier), (both.live(), &both.frontier));
    two.checkpoint();
    assert!(two.store.checkpointed() > LogPosition { segment: 3, offset: 0 });
}

#[test]
fn an_empty_directory_becomes_what_the_snapshot_is() {
    let dir = tempfile::tempdir().unwrap();
    let (mut one, mut new) = (on_disk(&dir.path().join("one")), on_disk(&dir.path().join("new")));
    let mut both = Model::default();
    write(&mut one, &mut both, 0..300, 0);
    join(&mut one, &mut new);
    assert_eq!((new.live(), &new.frontier), (both.live(), &both.frontier));
    drop(new);
    let new = on_disk(&dir.path().join("new"));
    assert_eq!((new.live(), &new.frontier), (both.live(), &both.frontier));
}

/// The donor had superseded a write when its walk began, which came while it walked; before it read
/// the record, two checkpoints had that write. Says what the receiver shows then, and what it should.
fn absorbed_while_it_is_walked(config: &StoreConfig) -> (Shown, Shown) {
    let open = |seed| {
        let files = SimulatedDisk::new(seed, 512);
        Node::open(files, MemoryOpener::new(MemoryState::new()), config).unwrap()
    };
    let (mut one, mut two) = (open(1), open(2));
    let mut both = Model::default();
    let write = |node: &mut Node<_, _>, both: &mut Model, origin, sees| {
        let (write_set, bytes, _) = node.write(&Write { origin, changes: vec![(1, sees, true)] });
        both.apply(&write_set, &bytes);
        node.checkpoint();
        node.checkpoint();
    };
    write(&mut one, &mut both, 0, Sees::Ahead(1, 1));
    let walk = Walk::begin(&mut one, 1);
    write(&mut one, &mut both, 1, Sees::Nothing);
    let end = one.store.durable_end();
    one.store.remove_log_before(end).unwrap();
    let snapshot = walk.fetch(two.store.snapshot_files().clone());
    let joined = two.store.begin_join(snapshot, &two.frontier).ok().unwrap().run(|_| true).unwrap();
    two.frontier = two.store.adopt(joined, &two.frontier).unwrap();
    two.store.publish_staged();
    (two.live(), both.live())
}

#[test]
fn what_a_walk_began_with_is_absorbed_wherever_it_is_joined() {
    let (found, expected) = absorbed_while_it_is_walked(&StoreConfig::default());
    assert_eq!(found, expected);
    let mut config = StoreConfig::default();
    config.bugs.absorb_not_pinned = true;
    let (found, expected) = absorbed_while_it_is_walked(&config);
    assert_ne!(found, expected, "the seeded bug does what it is for");
}
