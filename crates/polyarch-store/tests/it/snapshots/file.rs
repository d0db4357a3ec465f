//! The file of a snapshot on its way in.

use bytes::Bytes;
use polyarch_protocol::{KeysHeld, SnapshotId, SnapshotPart, SnapshotRecord};
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::state::{MemoryOpener, MemoryState};
use polyarch_store::{CheckpointConfig, JoinConfig, SnapshotError, SnapshotPhase, SnapshotReceiver, StoreConfig};

use super::walk::Walk;

use crate::support::{Model, Node, Sees, Write, key};

type MemoryNode = Node<SimulatedDisk, MemoryState>;

fn node(seed: u64, config: &StoreConfig) -> MemoryNode {
    Node::open(SimulatedDisk::new(seed, 512), MemoryOpener::new(MemoryState::new()), config).unwrap()
}

/// A donor with large records, so that its walk has many parts, and some write sets behind V.
fn donor(both: &mut Model) -> (MemoryNode, Walk<SimulatedDisk, MemoryState>) {
    let mut donor = node(1, &StoreConfig::default());
    let mut write = |donor: &mut MemoryNode, number| {
        let (write_set, bytes, _) = donor.write(&Write { origin: 0, changes: vec![(number, Sees::All, true)] });
        both.apply(&write_set, &bytes);
    };
    (0..600).for_each(|number| write(&mut donor, number));
    donor.checkpoint();
    let walk = Walk::begin(&mut donor, 1);
    (300..330).for_each(|number| write(&mut donor, number));
    donor.store.sync().unwrap();
    (donor, walk)
}

#[test]
fn a_fetch_goes_on_where_a_power_cut_left_its_file() {
    let mut went_on = 0;
    for stop in 0..40 {
        let mut both = Model::default();
        let (_donor, mut walk) = donor(&mut both);
        let mut two = node(100 + stop, &StoreConfig::default());
        let files = two.store.snapshot_files().clone();
        files.stop_after(stop);
        let first = walk.next().unwrap();
        if let Ok(mut receiver) = SnapshotReceiver::begin(files.clone(), &first) {
            while let Some(part) = walk.next() {
                if receiver.push(&part).is_err() {
                    break;
                }
            }
        }
        files.crash();
        let receiver = SnapshotReceiver::open(files.clone()).unwrap();
        let snapshot = match receiver {
            None => Walk::begin(&mut donor(&mut Model::default()).0, 2).fetch(files),
            Some(mut receiver) => {
                went_on += u32::from(receiver.progress().bytes > first.len() as u64 + 24);
                walk.resume(receiver.resume().keys);
                while let Some(part) = walk.next().filter(|_| !receiver.is_whole()) {
                    receiver.push(&part).unwrap();
                }
                receiver
            }
        };
        assert!(snapshot.is_whole());
        two = Node::open(
            two.store.snapshot_files().clone(),
            MemoryOpener::new(MemoryState::new()),
            &StoreConfig::default(),
        )
        .unwrap();
        let joined = two.store.begin_join(snapshot, &two.frontier).ok().unwrap().run(|_| true).unwrap();
        let frontier = two.store.adopt(joined, &two.frontier).unwrap();
        two.store.publish_staged();
        assert_eq!((two.live(), &frontier), (both.live(), &both.frontier), "stopped after {stop}");
    }
    assert!(went_on > 2, "{went_on} went on");
}

#[test]
fn parts_that_do_not_follow_are_refused_and_change_nothing() {
    let mut both = Model::default();
    let (_donor, mut walk) = donor(&mut both);
    let files = SimulatedDisk::new(3, 512);
    let begin = walk.next().unwrap();
    let records = walk.next().unwrap();
    assert!(matches!(SnapshotReceiver::begin(files.clone(), &records), Err(SnapshotError::Sequence(_))));
    assert!(matches!(SnapshotReceiver::begin(files.clone(), b"rubbish"), Err(SnapshotError::Codec(_))));
    let mut receiver = SnapshotReceiver::begin(files.clone(), &begin).unwrap();
    let record = |number| SnapshotRecord { key: key(number), record: Default::default() };
    let part = |numbers: &[u32], cut| {
        SnapshotPart::Records { records: numbers.iter().map(|number| record(*number)).collect(), cut }.encode()
    };
    let refused = |receiver: &mut SnapshotReceiver<_>, part: &[u8]| {
        let before = receiver.progress();
        let error = receiver.push(part).unwrap_err();
        assert!(matches!(error, SnapshotError::Sequence(_) | SnapshotError::Codec(_)), "{error}");
        assert_eq!(receiver.progress(), before);
    };
    receiver.push(&part(&[1, 5], false)).unwrap();
    for keys in [[5, 6], [4, 9], [7, 6]] {
        refused(&mut receiver, &part(&keys, false));
    }
    refused(&mut receiver, &begin);
    refused(&mut receiver, &SnapshotPart::Resumed(SnapshotId(99)).encode());
    refused(&mut receiver, &SnapshotPart::End(Default::default()).encode());
    receiver.push(&part(&[6, 8], true)).unwrap();
    assert_eq!(receiver.progress().records, 3, "the last is not whole");
    let log = SnapshotPart::Log(vec![Bytes::from_static(b"w")]).encode();
    refused(&mut receiver, &part(&[9], false));
    refused(&mut receiver, &part(&[7], false));
    refused(&mut receiver, &log);
    assert!(matches!(receiver.resume().keys, KeysHeld::Through(Some(last)) if last == key(6).as_bytes()));
    // The cut record comes again from its beginning, or not at all.
    receiver.push(&SnapshotPart::Resumed(SnapshotId(1)).encode()).unwrap();
    receiver.push(&part(&[8, 9], false)).unwrap();
    receiver.push(&log).unwrap();
    assert!(matches!(receiver.resume().keys, KeysHeld::All));
    refused(&mut receiver, &part(&[10], false));
    let given_up = SnapshotPart::GivenUp("it is tired".into()).encode();
    assert!(matches!(receiver.push(&given_up), Err(SnapshotError::GivenUp(_))));
    let end = SnapshotPart::End(both.frontier.heads.clone()).encode();
    receiver.push(&end).unwrap();
    refused(&mut receiver, &end);
    assert_eq!(receiver.progress().phase, SnapshotPhase::Whole);

    // It holds a write set that is none, and says that it has more than it has.
    let mut two = Node::open(files, MemoryOpener::new(MemoryState::new()), &StoreConfig::default()).unwrap();
    let error = two.store.begin_join(receiver, &two.frontier).ok().unwrap().run(|_| true).err().unwrap();
    assert!(error.is_of_the_snapshot(), "{error}");
    assert!(two.live().is_empty());
    two.put(1);
    two.checkpoint();
}

#[test]
fn another_snapshot_takes_the_place_of_one_that_is_there() {
    let (mut one, walk) = donor(&mut Model::default());
    let files = SimulatedDisk::new(3, 512);
    let first = walk.fetch(files.clone());
    assert_eq!(first.id(), SnapshotId(1));
    let begin = Walk::begin(&mut one, 2).next().unwrap();
    drop(SnapshotReceiver::begin(files.clone(), &begin).unwrap());
    files.crash();
    let second = SnapshotReceiver::open(files.clone()).unwrap().unwrap();
    assert!(second.id() == SnapshotId(2) && !second.is_whole() && second.progress().records == 0);
    second.remove().unwrap();
    assert!(SnapshotReceiver::open(files).unwrap().is_none());
}

#[test]
fn a_full_disk_refuses_a_part_which_may_come_again() {
    let (_donor, mut walk) = donor(&mut Model::default());
    let files = SimulatedDisk::new(3, 512);
    let mut receiver = SnapshotReceiver::begin(files.clone(), &walk.next().unwrap()).unwrap();
    let part = walk.next().unwrap();
    files.set_space(Some(receiver.progress().bytes + 10));
    assert!(matches!(receiver.push(&part), Err(SnapshotError::Io { .. })));
    files.set_space(None);
    receiver.push(&part).unwrap();
    while let Some(part) = walk.next() {
        receiver.push(&part).unwrap();
    }
    assert_eq!(SnapshotReceiver::open(files.clone()).unwrap().unwrap().progress(), receiver.progress());
    // A byte that is altered ends what is there, and a whole one that is altered later is not joined.
    let mut two = Node::open(files.clone(), MemoryOpener::new(MemoryState::new()), &StoreConfig::default()).unwrap();
    let job = two.store.begin_join(receiver, &two.frontier).ok().unwrap();
    files.damage("incoming.snapshot", |bytes| {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
    });
    assert!(job.run(|_| true).err().unwrap().is_of_the_snapshot());
    assert!(!SnapshotReceiver::open(files).unwrap().unwrap().is_whole());
}

#[test]
fn any_bytes_in_the_place_of_the_file_are_no_snapshot() {
    let (_donor, walk) = donor(&mut Model::default());
    let files = SimulatedDisk::new(3, 512);
    drop(walk.fetch(files.clone()));
    let whole = files.contents("incoming.snapshot").unwrap();
    for cut in [0, 1, 15, 16, 20, 23, 24, 60, whole.len() / 2] {
        files.damage("incoming.snapshot", |bytes| *bytes = whole[..cut].to_vec());
        assert!(SnapshotReceiver::open(files.clone()).unwrap().is_none_or(|opened| !opened.is_whole()));
    }
    files.damage("incoming.snapshot", |bytes| *bytes = vec![0xff; 4_000]);
    assert!(SnapshotReceiver::open(files.clone()).unwrap().is_none());
    // A frame that claims to be long takes no memory for it.
    files.damage("incoming.snapshot", |bytes| {
        *bytes = whole[..16].to_vec();
        bytes.extend_from_slice(&[0xff, 0xff, 0x0f, 0x01, 1, 2, 3, 4, 5]);
    });
    assert!(SnapshotReceiver::open(files).unwrap().is_none());
}

#[test]
fn a_snapshot_larger_than_the_memtable_is_joined_part_by_part() {
    let mut both = Model::default();
    let (_donor, walk) = donor(&mut both);
    let config = StoreConfig {
        checkpoint: CheckpointConfig { memtable_bytes_max: 2_000, ..CheckpointConfig::default() },
        join: JoinConfig { page_bytes: 1_000, batch_bytes: 4_000, flush_bytes: 10_000 },
        ..StoreConfig::default()
    };
    let mut two = node(2, &config);
    for number in 590..800 {
        let (write_set, bytes, _) = two.write(&Write { origin: 1, changes: vec![(number, Sees::All, true)] });
        both.apply(&write_set, &bytes);
    }
    two.store.sync().unwrap();
    let snapshot = walk.fetch(two.store.snapshot_files().clone());
    let (mut asked, mut records) = (0, 0);
    let joined = two.store.begin_join(snapshot, &two.frontier).ok().unwrap().run(|progress| {
        // Between two questions no more was gathered than a batch holds.
        assert!(progress.records - records < 60);
        records = progress.records;
        asked += 1;
        true
    });
    two.frontier = two.store.adopt(joined.unwrap(), &two.frontier).unwrap();
    two.store.publish_staged();
    assert!(asked > 20 && records >= 790, "{asked} {records}");
    assert_eq!((two.live(), &two.frontier), (both.live(), &both.frontier));
}
