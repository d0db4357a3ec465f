//! Repairing data directories that are damaged in every way we could think of: whatever is whole comes
//! back, and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use polyarch_crdt::{AppliedSet, Dot};
use polyarch_protocol::{LogPosition, Storage, WriteSet};
use polyarch_store::files::Directory;
use polyarch_store::log::LogConfig;
use polyarch_store::state::SledState;
use polyarch_store::{
    DiskStore, LeftOut, OpenError, Parting, RepairError, RepairReport, Salvage, StoreConfig, VerifyConfig, repair,
    verify,
};
use tempfile::TempDir;

use crate::support::{Node, Sees, Write, origin};

type DiskNode = Node<Directory, SledState>;

const WRITES: u64 = 200;
/// How many of them are in the state.
const CHECKPOINTED: u64 = 120;

fn config() -> StoreConfig {
    let log = LogConfig { segment_bytes: 8 << 10, allocate_bytes: 4 << 10, salt: 0xB0A7, ..LogConfig::default() };
    StoreConfig { log, ..StoreConfig::default() }
}

fn try_open(path: &Path) -> Result<DiskNode, OpenError> {
    let (store, frontier, report) = DiskStore::open_directory(path, &config())?;
    Ok(Node { store, frontier, report })
}

/// A closed data directory with some segments and a checkpoint in their middle, and what it shows.
struct Data {
    _dir: TempDir,
    path: PathBuf,
    live: Vec<String>,
}

impl Data {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data");
        let mut node = try_open(&path).unwrap();
        for number in 0..WRITES {
            node.put(number as u32);
            node.store.sync().unwrap();
            if number + 1 == CHECKPOINTED {
                node.checkpoint();
            }
        }
        Self { live: live(&node), _dir: dir, path }
    }

    /// The log's segments but for the file that is made ahead.
    fn segments(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path.join("log")).unwrap().map(Result::unwrap);
        let mut found: Vec<PathBuf> =
            entries.filter(|entry| entry.metadata().unwrap().len() > 0).map(|entry| entry.path()).collect();
        found.sort();
        found
    }

    fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    }

    fn repair(&self) -> RepairReport {
        repair(&self.path, &config(), None, |_| true).unwrap()
    }

    fn verified(&self) -> Vec<String> {
        let config = VerifyConfig { scratch: self.path.parent().unwrap().into(), ..VerifyConfig::default() };
        verify(&self.path, &config).unwrap().problems.iter().map(ToString::to_string).collect()
    }
}

/// Takes what is left out.
#[derive(Debug, Default, PartialEq)]
struct Listed {
    dots: Vec<Dot>,
    is_synced: bool,
}

impl LeftOut for Listed {
    fn take(&mut self, write_set: &WriteSet) -> io::Result<()> {
        self.dots.push(write_set.dot);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.is_synced = true;
        Ok(())
    }
}

/// Takes nothing.
struct Refusing;

impl LeftOut for Refusing {
    fn take(&mut self, _: &WriteSet) -> io::Result<()> {
        Err(io::Error::other("no"))
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn live(node: &DiskNode) -> Vec<String> {
    node.live().into_values().collect()
}

/// Applies what waits and is due; says how much is left.
fn pour(node: &mut DiskNode, path: &Path) -> u64 {
    let Some(salvage) = Salvage::open(path).unwrap() else { return 0 };
    let (mut from, mut left) = (LogPosition::default(), 0);
    loop {
        let (write_sets, next) = salvage.read(from, 1_000).unwrap();
        if write_sets.is_empty() {
            break;
        }
        for bytes in write_sets {
            let write_set = WriteSet::decode(&bytes).unwrap();
            let applied = node.frontier.heads.applied();
            match write_set.dot.seq.cmp(&(applied.seq(write_set.dot.origin) + 1)) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Greater => left += 1,
                std::cmp::Ordering::Equal => {
                    node.store.append(&bytes, &node.frontier.heads).unwrap();
                    let _ = node.frontier.apply(&mut node.store, &write_set, &bytes).unwrap();
                }
            }
        }
        from = next;
    }
    node.store.sync().unwrap();
    if left == 0 {
        salvage.remove().unwrap();
    }
    left
}

#[test]
fn damage_before_the_checkpoint_loses_nothing() {
    let data = Data::new();
    data.damage(&data.segments()[0], |bytes| bytes[2_000] ^= 1);
    assert_ne!(data.verified(), Vec::<String>::new());
    let report = data.repair();
    assert_eq!((report.state_lost, report.waiting), (None, WRITES - CHECKPOINTED));
    assert_eq!(report.log.frames, WRITES - 1);
    assert_eq!(report.log.damaged_places, 1);
    let mut node = try_open(&data.path).unwrap();
    assert_eq!(pour(&mut node, &data.path), 0);
    assert_eq!(live(&node), data.live);
    drop(node);
    assert_eq!(data.verified(), Vec::<String>::new());
    assert!(data.path.join("log.damaged-1").exists());
    // A new life: it can be written, closed and opened.
    let mut node = try_open(&data.path).unwrap();
    node.put(7);
    node.checkpoint();
    drop(node);
    assert_eq!(data.verified(), Vec::<String>::new());
}

#[test]
fn what_lies_behind_the_damage_waits() {
    let data = Data::new();
    // Behind the checkpoint, and not at the end.
    let segments = data.segments();
    data.damage(segments.last().unwrap(), |bytes| bytes[1_000] ^= 1);
    assert!(try_open(&data.path).is_err());
    let report = data.repair();
    assert_eq!((report.state_lost, report.log.frames), (None, WRITES - 1));
    let mut node = try_open(&data.path).unwrap();
    let left = pour(&mut node, &data.path);
    let applied = node.frontier.heads.applied().seq(origin(0));
    assert!(left > 0 && applied > CHECKPOINTED);
    assert_eq!(applied + 1 + left, WRITES);
}

#[test]
fn a_lost_state_comes_again_out_of_the_log() {
    let data = Data::new();
    fs::remove_dir_all(data.path.join("state")).unwrap();
    let report = data.repair();
    assert_eq!((report.waiting, report.log.frames), (WRITES, WRITES));
    assert!(report.state_lost.is_some());
    let mut node = try_open(&data.path).unwrap();
    assert_eq!(pour(&mut node, &data.path), 0);
    assert_eq!(live(&node), data.live);
    drop(node);
    assert_eq!(data.verified(), Vec::<String>::new());
}

#[test]
fn frames_are_found_without_any_header() {
    let data = Data::new();
    for segment in data.segments() {
        data.damage(&segment, |bytes| bytes[..40].fill(0));
    }
    fs::remove_dir_all(data.path.join("state")).unwrap();
    let report = data.repair();
    assert_eq!(report.log.frames, WRITES);
    let mut node = try_open(&data.path).unwrap();
    assert_eq!(pour(&mut node, &data.path), 0);
    assert_eq!(live(&node), data.live);
}

#[test]
fn segments_that_are_gone_or_swapped_give_what_is_left() {
    let data = Data::new();
    let segments = data.segments();
    fs::remove_file(&segments[1]).unwrap();
    // Two pages of one segment in each other's place.
    data.damage(&segments[2], |bytes| {
        let (one, other) = bytes.split_at_mut(1_024);
        one.swap_with_slice(&mut other[..1_024]);
    });
    let report = data.repair();
    assert_eq!(report.state_lost, None);
    assert!(report.log.frames < WRITES && report.log.frames > WRITES / 2, "{report:?}");
    let mut node = try_open(&data.path).unwrap();
    pour(&mut node, &data.path);
    assert!(node.frontier.heads.applied().seq(origin(0)) >= CHECKPOINTED);
}

#[test]
fn a_second_repair_keeps_what_waits_since_the_first() {
    let data = Data::new();
    let segments = data.segments();
    data.damage(segments.last().unwrap(), |bytes| bytes[1_000] ^= 1);
    let first = data.repair();
    let mut node = try_open(&data.path).unwrap();
    let left = pour(&mut node, &data.path);
    let applied = node.frontier.heads.applied().clone();
    node.checkpoint();
    drop(node);
    let second = data.repair();
    assert!(first.waiting > second.waiting);
    let mut node = try_open(&data.path).unwrap();
    assert_eq!(node.frontier.heads.applied(), &applied);
    assert_eq!(pour(&mut node, &data.path), left);
    assert!(data.path.join("log.damaged-2").exists() && data.path.join("salvage.damaged-1").exists());
}

#[test]
fn a_repair_that_was_cut_short_is_ended_or_done_anew() {
    let data = Data::new();
    data.damage(&data.segments()[0], |bytes| bytes[2_000] ^= 1);
    assert!(matches!(repair(&data.path, &config(), None, |_| false), Ok(_) | Err(RepairError::Stopped)));
    let data = Data::new();
    data.damage(&data.segments()[0], |bytes| bytes[2_000] ^= 1);
    // Cut short before all was made.
    fs::create_dir(data.path.join("repair")).unwrap();
    fs::create_dir(data.path.join("repair/log")).unwrap();
    fs::write(data.path.join("repair/log/0000000009.log"), "half").unwrap();
    drop(try_open(&data.path).unwrap());
    data.repair();
    assert!(!data.path.join("repair").exists());
    // Cut short behind each step of the end of it.
    for steps in 0..4 {
        let data = Data::new();
        data.damage(&data.segments()[0], |bytes| bytes[2_000] ^= 1);
        data.repair();
        let put_back = |from: &str, to: &str| fs::rename(data.path.join(from), data.path.join(to)).unwrap();
        fs::create_dir(data.path.join("repair")).unwrap();
        let begins = fs::read_to_string(data.path.join("checkpoint.toml")).unwrap();
        fs::write(data.path.join("repair/ready.toml"), begins).unwrap();
        if steps < 3 {
            put_back("salvage", "repair/salvage");
        }
        if steps < 2 {
            put_back("log", "repair/log");
        }
        if steps < 1 {
            put_back("log.damaged-1", "log");
        }
        assert!(matches!(try_open(&data.path), Err(OpenError::RepairUnfinished(_))));
        assert_eq!(data.verified()[0].split(':').next(), Some("repair"));
        assert!(data.repair().is_resumed);
        let mut node = try_open(&data.path).unwrap();
        assert_eq!(pour(&mut node, &data.path), 0, "{steps}");
        assert_eq!(live(&node), data.live);
        drop(node);
        assert_eq!(data.verified(), Vec::<String>::new(), "{steps}");
    }
}

#[test]
fn one_side_of_a_fork_is_left_out_with_all_that_builds_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let mut node = try_open(&path).unwrap();
    for number in 0..20 {
        // Origin 1 sees, and replaces, what origin 0 wrote to the even keys.
        node.write(&Write { origin: 0, changes: vec![(number, Sees::All, true)] });
        node.write(&Write { origin: 2, changes: vec![(100 + number, Sees::All, true)] });
        if number == 12 {
            node.write(&Write { origin: 1, changes: vec![(12, Sees::All, true)] });
            node.write(&Write { origin: 1, changes: vec![(50, Sees::All, true)] });
        }
    }
    node.checkpoint();
    drop(node);
    let mut left_out = Listed::default();
    let kept = AppliedSet::new();
    let parting = Parting { origin: origin(0), common: 10, kept: &kept, left_out: &mut left_out };
    let report = repair(&path, &config(), Some(parting), |_| true).unwrap();
    assert!(report.state_lost.is_some());
    let mut expected: Vec<Dot> = (11..=20).map(|seq| Dot::new(origin(0), seq)).collect();
    expected.extend([Dot::new(origin(1), 1), Dot::new(origin(1), 2)]);
    left_out.dots.sort_unstable();
    assert_eq!((left_out, report.left_out), (Listed { dots: expected, is_synced: true }, 12));
    let mut node = try_open(&path).unwrap();
    assert_eq!(pour(&mut node, &path), 0);
    let applied = node.frontier.heads.applied();
    assert_eq!([0, 1, 2].map(|number| applied.seq(origin(number))), [10, 0, 20]);
}

#[test]
fn a_side_is_not_given_up_while_only_its_records_have_what_is_to_be_kept() {
    let data = Data::new();
    let mut node = try_open(&data.path).unwrap();
    (0..9).for_each(|number| drop(node.write(&Write { origin: 2, changes: vec![(number, Sees::Nothing, true)] })));
    node.checkpoint();
    drop(node);
    // Behind this the log begins with the records.
    data.repair();
    let give_up = |kept: &[Dot]| {
        let (kept, mut left_out) = (kept.iter().copied().collect(), Listed::default());
        let parting = Parting { origin: origin(0), common: 10, kept: &kept, left_out: &mut left_out };
        repair(&data.path, &config(), Some(parting), |_| true)
    };
    let has = |zero, two| [Dot::new(origin(0), zero), Dot::new(origin(2), two)];
    for lacks in [has(10, 8), has(9, 9)] {
        let refused = give_up(&lacks);
        assert!(matches!(refused, Err(RepairError::OnlyInState { ref origins }) if origins.len() == 1), "{refused:?}");
        assert_eq!(live(&try_open(&data.path).unwrap()).len(), data.live.len());
    }
    assert!(give_up(&has(10, 9)).unwrap().state_lost.is_some());
}

#[test]
fn a_state_that_is_marked_as_damaged_and_is_whole_is_kept() {
    let data = Data::new();
    data.damage(&data.segments()[0], |bytes| bytes[2_000] ^= 1);
    fs::write(data.path.join("state/0001/DAMAGED"), "the disk stood still").unwrap();
    assert_eq!(data.repair().state_lost, None);
    let mut node = try_open(&data.path).unwrap();
    assert_eq!(pour(&mut node, &data.path), 0);
    assert_eq!(live(&node), data.live);
}

#[test]
fn damage_to_what_waits_is_found_and_the_rest_taken_by_another_repair() {
    let data = Data::new();
    fs::remove_dir_all(data.path.join("state")).unwrap();
    assert_eq!(data.repair().waiting, WRITES);
    let salvage = data.path.join("salvage/0000000001.log");
    data.damage(&salvage, |bytes| bytes[3_000] ^= 1);
    let (waiting, mut at) = (Salvage::open(&data.path).unwrap().unwrap(), LogPosition::default());
    let is_found = loop {
        match waiting.read(at, 1_000) {
            Ok((write_sets, next)) if !write_sets.is_empty() => at = next,
            ended => break ended.is_err(),
        }
    };
    assert!(is_found);
    assert!(data.verified().iter().any(|problem| problem.starts_with("salvage: ")));
    assert_eq!(data.repair().waiting, WRITES - 1);
    let mut node = try_open(&data.path).unwrap();
    let left = pour(&mut node, &data.path);
    assert_eq!(node.frontier.heads.applied().seq(origin(0)) + 1 + left, WRITES);
}

#[test]
fn segments_of_two_logs_are_not_mixed() {
    let data = Data::new();
    let segments = data.segments();
    // Of another node, with another salt.
    let dir = tempfile::tempdir().unwrap();
    let log = LogConfig { salt: 7, ..config().log };
    let (mut store, frontier, _) =
        DiskStore::open_directory(&dir.path().join("data"), &StoreConfig { log, ..config() }).unwrap();
    store.sync().unwrap();
    drop((store, frontier));
    fs::copy(dir.path().join("data/log/0000000001.log"), &segments[0]).unwrap();
    let refused = repair(&data.path, &config(), None, |_| true).unwrap_err().to_string();
    assert!(refused.contains("more than one log") && refused.contains("0000000001.log"), "{refused}");
}

#[test]
fn what_cannot_be_left_out_stops_the_repair() {
    let data = Data::new();
    let kept = AppliedSet::new();
    let parting = Parting { origin: origin(0), common: 10, kept: &kept, left_out: &mut Refusing };
    assert!(matches!(repair(&data.path, &config(), Some(parting), |_| true), Err(RepairError::LeftOut(_))));
    assert!(!data.path.join("repair").exists());
    assert_eq!(live(&try_open(&data.path).unwrap()), data.live);
}

#[test]
fn a_directory_without_data_is_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(repair(dir.path(), &config(), None, |_| true), Err(RepairError::Nothing(_))));
}
