//! The power goes at any point of a join and of its adoption.

use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::state::{MemoryOpener, MemoryState, Rollback, SledState};
use polyarch_store::{DiskStore, Joined, OpenError, StoreConfig, VerifyConfig, verify, verify_parts};

use super::walk::Walk;

use crate::support::{Model, Node, Sees, Write};

type MemoryNode = Node<SimulatedDisk, MemoryState>;

/// A receiver that was fetched a whole snapshot, and what it is to be when that is joined.
struct Scene {
    disk: SimulatedDisk,
    state: MemoryState,
    node: MemoryNode,
    both: Model,
}

fn open(disk: &SimulatedDisk, state: &MemoryState) -> Result<MemoryNode, OpenError> {
    Node::open(disk.clone(), MemoryOpener::new(state.clone()), &StoreConfig::default())
}

impl Scene {
    fn new(seed: u64) -> Self {
        let (disk, state) = (SimulatedDisk::new(seed, 512), MemoryState::new());
        let mut donor = open(&SimulatedDisk::new(seed + 1_000, 512), &MemoryState::new()).unwrap();
        let mut scene = Self { node: open(&disk, &state).unwrap(), disk, state, both: Model::default() };
        for number in 0..40 {
            let (write_set, bytes, _) = donor.write(&put(number, 0));
            scene.both.apply(&write_set, &bytes);
            scene.write(number + 20);
        }
        donor.checkpoint();
        scene.node.checkpoint();
        scene.write(3);
        scene.node.store.sync().unwrap();
        let files = scene.node.store.snapshot_files().clone();
        drop(Walk::begin(&mut donor, 1).fetch(files));
        scene
    }

    fn write(&mut self, number: u32) {
        let (write_set, bytes, _) = self.node.write(&put(number, 1));
        self.both.apply(&write_set, &bytes);
    }

    /// Joins the snapshot that is there.
    fn joined(&mut self) -> Option<Joined<SimulatedDisk, MemoryState>> {
        let pending = self.node.store.pending_snapshot(&self.node.frontier).unwrap().expect("it is whole");
        let job = self.node.store.begin_join(pending, &self.node.frontier).ok().expect("all is quiet");
        job.run(|_| true).ok()
    }

    fn adopt(&mut self, joined: Joined<SimulatedDisk, MemoryState>) -> bool {
        match self.node.store.adopt(joined, &self.node.frontier) {
            Ok(frontier) => {
                self.node.frontier = frontier;
                self.node.store.publish_staged();
                true
            }
            Err(_) => false,
        }
    }

    fn power_cut(&mut self) {
        self.disk.crash();
        self.state.crash(Rollback::Unflushed);
    }

    /// Opens as often as it takes; the power goes once more after so many changes.
    fn reopen(&mut self, changes: u64) {
        self.disk.stop_after(changes);
        if let Ok(node) = open(&self.disk, &self.state) {
            self.node = node;
        }
        self.power_cut();
        self.node = open(&self.disk, &self.state).unwrap();
        assert!(!self.state.has_next(), "what was not adopted is removed");
    }

    /// Whatever the crash left, the join can be brought to its end, and the store goes on.
    fn ends_well(mut self) -> bool {
        let was_adopted = self.node.frontier.heads == self.both.frontier.heads;
        if !was_adopted {
            let joined = self.joined().expect("nothing fails any more");
            assert!(self.adopt(joined));
        }
        assert!(self.node.store.pending_snapshot(&self.node.frontier).unwrap().is_none());
        for number in 0..5 {
            self.write(number);
        }
        self.node.store.sync().unwrap();
        self.disk.restart();
        self.state.crash(Rollback::Unflushed);
        self.node = open(&self.disk, &self.state).unwrap();
        assert_eq!((self.node.live(), &self.node.frontier), (self.both.live(), &self.both.frontier));
        self.node.checkpoint();
        drop(self.node);
        let report = verify_parts(&self.disk.into(), &mut MemoryOpener::new(self.state), 10).unwrap();
        assert!(report.is_clean() && report.boundaries == 1, "{report:#?}");
        was_adopted
    }
}

fn put(number: u32, origin: u32) -> Write {
    Write { origin, changes: vec![(number, Sees::All, true)] }
}

#[test]
fn a_power_cut_within_an_adoption_leaves_the_old_state_or_the_new_one() {
    let (mut cut_off, mut whole) = (0, 0);
    for changes in 0..24 {
        let mut scene = Scene::new(changes);
        let joined = scene.joined().unwrap();
        scene.write(7);
        scene.node.store.sync().unwrap();
        scene.disk.stop_after(changes);
        let adopted = scene.adopt(joined);
        scene.power_cut();
        scene.reopen(changes % 7);
        // What is cut off behind the removal of the marker is made good by the open.
        assert!(scene.ends_well() || !adopted);
        match adopted {
            true => whole += 1,
            false => cut_off += 1,
        }
    }
    assert!(cut_off > 5 && whole > 2, "{cut_off} cut off, {whole} whole");
}

#[test]
fn a_state_that_fails_within_a_join_or_its_adoption_leaves_the_old_one() {
    let (mut failed_joins, mut failed_adoptions) = (0, 0);
    for writes in 0..12 {
        let mut scene = Scene::new(writes);
        scene.state.fail_after(writes as usize);
        match scene.joined() {
            None => failed_joins += 1,
            Some(joined) => failed_adoptions += u32::from(!scene.adopt(joined)),
        }
        scene.power_cut();
        scene.reopen(writes);
        scene.ends_well();
    }
    assert!(failed_joins > 2 && failed_adoptions > 2, "{failed_joins} {failed_adoptions}");
}

#[test]
fn a_join_that_is_stopped_can_be_begun_again() {
    let mut scene = Scene::new(1);
    let pending = scene.node.store.pending_snapshot(&scene.node.frontier).unwrap().unwrap();
    let job = scene.node.store.begin_join(pending, &scene.node.frontier).ok().unwrap();
    let pending = scene.node.store.pending_snapshot(&scene.node.frontier).unwrap().unwrap();
    assert!(scene.node.store.begin_join(pending, &scene.node.frontier).is_err(), "one at a time");
    assert!(job.run(|_| false).is_err());
    assert!(!scene.state.has_next());
    assert!(!scene.ends_well());
}

#[test]
fn a_log_with_a_boundary_rebuilds_nothing_and_says_what_to_do() {
    let refused = |state: &MemoryState, disk: &SimulatedDisk| {
        let error = open(disk, state).err().expect("it does not open");
        assert!(matches!(error, OpenError::StateLostBehindSnapshot { .. }), "{error}");
        assert!(error.to_string().contains("polyarch repair"));
    };
    let mut scene = Scene::new(1);
    let joined = scene.joined().unwrap();
    assert!(scene.adopt(joined));
    scene.write(9);
    scene.node.checkpoint();
    let Scene { disk, state, node, .. } = scene;
    drop(node);
    // A new state, one that is damaged, one that went back into the join.
    disk.restart();
    refused(&MemoryState::new(), &disk);
    let report = verify_parts(&disk.clone().into(), &mut MemoryOpener::default(), 10).unwrap();
    assert!(report.problems.iter().any(|problem| problem.what.contains("polyarch repair")), "{report:#?}");
    state.damage();
    refused(&state, &disk);

    let mut scene = Scene::new(2);
    let joined = scene.joined().unwrap();
    assert!(scene.adopt(joined));
    let Scene { disk, state, node, .. } = scene;
    drop(node);
    disk.restart();
    // By one flush it may go back, as any state.
    state.crash(Rollback::Flushes(1));
    drop(open(&disk, &state).unwrap());
    disk.restart();
    for _ in 1..4 {
        state.crash(Rollback::Flushes(1));
        refused(&state, &disk);
    }
}

/// The real state's directories at each step.
#[test]
fn kills_between_the_steps_on_a_real_disk() {
    let dir = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let opened = DiskStore::open_directory(&dir.path().join(name), &StoreConfig::default()).unwrap();
        Node::<_, SledState> { store: opened.0, frontier: opened.1, report: opened.2 }
    };
    let path = dir.path().join("two");
    let mut both = Model::default();
    let mut one = open("one");
    let mut two = open("two");
    for number in 0..200 {
        for (node, origin, number) in [(&mut one, 0, number), (&mut two, 1, number + 100)] {
            let (write_set, bytes, _) = node.write(&put(number, origin));
            both.apply(&write_set, &bytes);
        }
    }
    one.store.sync().unwrap();
    two.checkpoint();
    drop(Walk::begin(&mut one, 1).fetch(two.store.snapshot_files().clone()));

    // As a kill leaves it within the join: copied while the new state is open.
    let pending = two.store.pending_snapshot(&two.frontier).unwrap().unwrap();
    let joined = two.store.begin_join(pending, &two.frontier).ok().unwrap().run(|_| true).unwrap();
    let state = path.join("state");
    assert!(state.join("0002").is_dir() && state.join("0002.joining").is_file());
    std::mem::forget(joined);
    let before = two.frontier.clone();
    drop(two);
    let mut two = open("two");
    assert!(!state.join("0002").exists() && !state.join("0002.joining").exists());
    assert_eq!(two.frontier, before);

    // Within the adoption: the marker is gone, and the log does not say so yet.
    let pending = two.store.pending_snapshot(&two.frontier).unwrap().unwrap();
    let joined = two.store.begin_join(pending, &two.frontier).ok().unwrap().run(|_| true).unwrap();
    let mark_before = std::fs::read(path.join("checkpoint.toml")).unwrap();
    let snapshot_before = copy_of(&path.join("snapshot"));
    two.store.adopt(joined, &two.frontier).unwrap();
    two.store.publish_staged();
    drop(two);
    // The spare segment was begun before, and that with the joined heads behind it.
    std::fs::remove_file(path.join("log/0000000003.log")).unwrap();
    restore(&path.join("snapshot"), &snapshot_before);
    std::fs::write(path.join("checkpoint.toml"), mark_before).unwrap();
    let config = VerifyConfig { scratch: dir.path().into(), ..VerifyConfig::default() };
    let report = verify(&path, &config).unwrap();
    assert!(report.is_clean() && report.snapshot.is_some() && report.boundaries == 0, "{report:#?}");
    let two = open("two");
    assert!(!state.join("0001").exists());
    assert_eq!((two.live(), &two.frontier), (both.live(), &both.frontier));
    assert!(two.store.pending_snapshot(&two.frontier).unwrap().is_none(), "it brings nothing more");
    drop(two);
    let report = verify(&path, &config).unwrap();
    assert!(report.is_clean() && report.snapshot.is_none() && report.boundaries == 1, "{report:#?}");
}

fn copy_of(dir: &std::path::Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    entries.map(|entry| (entry.file_name(), std::fs::read(entry.path()).unwrap())).collect()
}

fn restore(dir: &std::path::Path, files: &[(std::ffi::OsString, Vec<u8>)]) {
    for entry in std::fs::read_dir(dir).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
    }
    files.iter().for_each(|(name, bytes)| std::fs::write(dir.join(name), bytes).unwrap());
}
