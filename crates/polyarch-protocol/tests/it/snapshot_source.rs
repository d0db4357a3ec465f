//! The donor's side of snapshots: a walk over its records and its log, whatever happens meanwhile.

use std::collections::BTreeSet;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, FieldChange, FieldPath, Hlc, Origin, Record};
use polyarch_protocol::client::Supersede;
use polyarch_protocol::{
    ChainHeads, KeysHeld, KeyspaceId, LogPosition, RecordKey, Records, Resume, SnapshotBegin, SnapshotId, SnapshotPart,
    SnapshotSource, SnapshotStep,
};

use crate::support::{CLUSTER, Fetched, MemoryStorage, Node, change, digest_of};

/// A part is about so long; a single value may be longer.
const PART_BYTES: usize = 256 << 10;
/// What the envelope and lengths take beside what is counted.
const SLACK_BYTES: usize = 32 << 10;
/// Most records of a part.
const PART_RECORDS_MAX: usize = 4_096;

/// What a walk of this donor begins with, all of it durable.
fn begin(donor: &mut Node) -> (SnapshotBegin, LogPosition) {
    donor.sync();
    let start = donor.replica.frontier().outline();
    let begin = SnapshotBegin { id: SnapshotId(7), cluster_id: CLUSTER, donor: donor.config.server_id, start };
    (begin, donor.replica.storage().durable_end())
}

/// All parts of a walk; `between` happens before each.
fn parts(source: &mut SnapshotSource, donor: &mut Node, mut between: impl FnMut(&mut Node)) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    loop {
        between(donor);
        match source.poll(donor.replica.storage()) {
            SnapshotStep::Part(part) => parts.push(part),
            SnapshotStep::AwaitDurable => donor.sync(),
            SnapshotStep::Done => return parts,
            SnapshotStep::Failed(reason) => panic!("{reason}"),
        }
        assert!(parts.len() < 10_000, "a walk ends");
    }
}

fn whole(donor: &mut Node) -> Vec<Vec<u8>> {
    let (begin, position) = begin(donor);
    parts(&mut SnapshotSource::new(begin, position), donor, |_| {})
}

fn fetched(parts: &[Vec<u8>]) -> Fetched {
    let mut fetched = Fetched::default();
    parts.iter().for_each(|part| fetched.take(part));
    fetched
}

/// A node that has nothing but the snapshot holds what the donor holds.
fn assert_is_all_of(fetched: &Fetched, donor: &Node) {
    let mut receiver = Node::new(9);
    fetched.join(&mut receiver).expect("it is whole");
    let (ours, theirs) = (receiver.replica.frontier(), donor.replica.frontier());
    assert_eq!(ours.heads, theirs.heads);
    assert_eq!(ours.digest.total(), theirs.digest.total());
    assert_eq!(digest_of(receiver.replica.storage().all_records()), ours.digest);
    assert_eq!((ours.hlc, ours.newest_epoch(1)), (theirs.hlc, theirs.newest_epoch(1)));
}

/// Records of so many siblings with values of so many bytes, straight in a storage.
fn stored(records: impl IntoIterator<Item = (Vec<u8>, Vec<usize>)>) -> MemoryStorage {
    let mut storage = MemoryStorage::default();
    let keyspace = KeyspaceId { dot: Dot::new(Origin::new(1, 1), 1), index: 0 };
    for (key, values) in records {
        let record = storage.record_mut(&RecordKey::new(keyspace, &key)).expect("it is in memory");
        fill(record, &values);
    }
    storage
}

fn fill(record: &mut Record, values: &[usize]) {
    for (server_id, len) in (1..).zip(values) {
        let value = Bytes::from(vec![b'v'; *len]);
        let change = FieldChange { path: &FieldPath::opaque(), supersedes: &[], put: Some(&value) };
        let dot = Dot::new(Origin::new(server_id, 1), 1);
        let _ = record.apply(dot, Hlc::default(), &change, &AppliedSet::new());
    }
}

/// Walks a storage without a log and checks the parts: bounded, in order, all that there is.
fn walk_stored(storage: &MemoryStorage) -> Vec<SnapshotPart> {
    let start = ChainHeads::default();
    let begin = SnapshotBegin {
        id: SnapshotId(7),
        cluster_id: CLUSTER,
        donor: 1,
        start: polyarch_protocol::FrontierOutline { heads: start, ..Default::default() },
    };
    let mut source = SnapshotSource::new(begin, storage.durable_end());
    let (mut parts, mut fetched) = (Vec::new(), Fetched::default());
    loop {
        match source.poll(storage) {
            SnapshotStep::Part(part) => {
                fetched.take(&part);
                parts.push((part.len(), SnapshotPart::decode(&part).expect("a receiver can read it")));
            }
            SnapshotStep::Done => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(&fetched.records, storage.all_records());
    assert_eq!(source.records(), storage.all_records().len() as u64);
    for (len, part) in &parts {
        let SnapshotPart::Records { records, .. } = part else { continue };
        let longest = records.iter().flat_map(|r| r.record.fields()).flat_map(|f| f.siblings());
        let longest = longest.map(|sibling| sibling.value.len()).max().unwrap_or(0);
        assert!(*len <= PART_BYTES.max(longest) + SLACK_BYTES, "{len} bytes in a part");
        assert!(records.len() <= PART_RECORDS_MAX);
    }
    parts.into_iter().map(|(_, part)| part).collect()
}

#[test]
fn a_snapshot_of_nothing_is_its_beginning_and_its_end() {
    let storage = MemoryStorage::default();
    let parts = walk_stored(&storage);
    let [SnapshotPart::Begin(_), SnapshotPart::LogEnd(end), SnapshotPart::End(heads)] = &parts[..] else {
        panic!("{parts:?}");
    };
    assert_eq!((*end, heads), (storage.durable_end(), &ChainHeads::default()));
}

#[test]
fn a_part_takes_no_more_records_than_a_receiver_reads() {
    let key = |i: u32| i.to_be_bytes().to_vec();
    for (count, value) in [(30_000, 0), (30_000, 20), (5_000, 100), (65, 1), (64, 1), (1, 1)] {
        let parts = walk_stored(&stored((0..count).map(|i| (key(i), vec![value]))));
        let most = parts.iter().map(|part| match part {
            SnapshotPart::Records { records, .. } => records.len(),
            _ => 0,
        });
        let most = most.max().expect("there are some");
        assert!(count < 5_000 || most > 1_000, "{most} of {count} small records in the fullest part");
    }
}

#[test]
fn records_of_all_lengths_come_in_parts_of_one() {
    let lens = [0, 1, 100, 10_000, 200_000, PART_BYTES - 100, PART_BYTES, PART_BYTES + 1, 1 << 20];
    let mut records = Vec::new();
    for (one, two) in lens.iter().flat_map(|one| lens.iter().map(move |two| (*one, *two))) {
        records.push((format!("{:03}", records.len()).into_bytes(), vec![one]));
        records.push((format!("{:03}", records.len()).into_bytes(), vec![one, two, one]));
    }
    walk_stored(&stored(records));
}

#[test]
fn a_record_longer_than_a_part_comes_in_pieces() {
    for siblings in [6, 7, 60] {
        let parts = walk_stored(&stored([(vec![1], vec![9]), (vec![2], vec![50_000; siblings]), (vec![3], vec![9])]));
        let of_it = parts.iter().filter_map(|part| match part {
            SnapshotPart::Records { records, cut } if records[0].key.key() == [2] => Some((records.len(), *cut)),
            _ => None,
        });
        let of_it: Vec<(usize, bool)> = of_it.collect();
        assert!(of_it.len() >= siblings * 50_000 / PART_BYTES, "{} parts", of_it.len());
        let (last, before) = of_it.split_last().expect("there are some");
        assert_eq!(*last, (1, false));
        assert!(before.iter().all(|part| *part == (1, true)));
    }
    // One that absorbs more than a part takes.
    let mut storage = stored([(vec![1], vec![9]), (vec![2], vec![]), (vec![3], vec![9])]);
    let key = storage.all_records().keys().nth(1).expect("there are three").clone();
    let early: Vec<Dot> = (1..=40_000).map(|seq| Dot::new(Origin::new(5, 5), seq)).collect();
    let change = FieldChange { path: &FieldPath::opaque(), supersedes: &early, put: None };
    let record = storage.record_mut(&key).expect("it is in memory");
    let _ = record.apply(Dot::new(Origin::new(6, 1), 1), Hlc::default(), &change, &AppliedSet::new());
    assert!(walk_stored(&storage).len() > 5);
}

/// A node with keys before, among and behind those that make a page, one record in pieces, one long
/// value, a delete and a conflict.
fn donor() -> Node {
    let mut donor = Node::founded(1);
    let pad: Vec<_> = (0..150).map(|i| change(&format!("k{i:03}"), Some("pad"), Supersede::Held)).collect();
    donor.write(pad).expect("it takes writes");
    let long = |len: usize| "v".repeat(len);
    donor.put("k050", &long(PART_BYTES + 10)).expect("it takes writes");
    for _ in 0..4 {
        donor.put_over("k100", &long(90_000), Supersede::Nothing).expect("it takes writes");
    }
    donor.put("gone", "1").expect("it takes writes");
    donor.write(vec![change("gone", None, Supersede::Held)]).expect("it takes writes");
    donor
}

#[test]
fn a_walk_while_nothing_happens_is_all_of_the_donor() {
    let mut donor = donor();
    let parts = whole(&mut donor);
    assert!(parts.len() > 6);
    assert_is_all_of(&fetched(&parts), &donor);
}

#[test]
fn what_is_written_during_the_walk_before_and_behind_its_place_is_in_it() {
    let mut donor = donor();
    let (begin, position) = begin(&mut donor);
    let mut written = 0;
    let parts = parts(&mut SnapshotSource::new(begin, position), &mut donor, |donor| {
        for key in ["a", "k049", "k100", "z"] {
            written += 1;
            donor.put(key, &written.to_string()).expect("it takes writes");
        }
        donor.put_over("k100", "beside", Supersede::Nothing).expect("it takes writes");
        donor.write(vec![change("k149", None, Supersede::Held)]).expect("it takes writes");
        donor.put(&format!("new-{written}"), "new").expect("it takes writes");
    });
    let last = parts[parts.len() - 2..].iter().map(|part| SnapshotPart::decode(part).expect("it reads"));
    let [SnapshotPart::LogEnd(log_end), SnapshotPart::End(heads)] = &last.collect::<Vec<_>>()[..] else {
        panic!("the end comes last");
    };
    // Whatever was written after the last poll of the log is not in it, and nothing else is missing.
    let (cut, frontier) = donor.replica.storage().cut_to(heads.applied().write_sets() as usize);
    assert_eq!((&frontier.heads, cut.durable_end()), (heads, *log_end));
    donor.reopen(cut, frontier);
    assert_is_all_of(&fetched(&parts), &donor);
}

#[test]
fn a_walk_resumed_after_any_part_and_more_writes_is_whole() {
    let mut first = donor();
    let count = whole(&mut first).len();
    for taken in 1..count {
        let mut donor = donor();
        let (begin, position) = begin(&mut donor);
        let all = parts(&mut SnapshotSource::new(begin.clone(), position), &mut donor, |_| {});
        let mut fetched = fetched(&all[..taken]);
        for key in ["a", "k049", "k050", "k100", "z"] {
            donor.put(key, "later").expect("it takes writes");
        }
        donor.write(vec![change("k000", None, Supersede::Held)]).expect("it takes writes");
        let Some(Resume { keys, .. }) = fetched.request().resume else { panic!("it has begun") };
        let mut resumed = SnapshotSource::resumed(begin, position, keys);
        parts(&mut resumed, &mut donor, |_| {}).iter().for_each(|part| fetched.take(part));
        assert_is_all_of(&fetched, &donor);
    }
}

#[test]
fn a_walk_resumed_again_and_again_is_whole() {
    let mut donor = donor();
    let (begin, position) = begin(&mut donor);
    let mut fetched = Fetched::default();
    let mut source = SnapshotSource::new(begin.clone(), position);
    for round in 0.. {
        donor.put("k100", &format!("round {round}")).expect("it takes writes");
        // Two parts a time, of which the first only says that it goes on; pieces need to come at one time.
        for _ in 0..if round % 3 == 0 { 5 } else { 2 } {
            match source.poll(donor.replica.storage()) {
                SnapshotStep::Part(part) => fetched.take(&part),
                SnapshotStep::Done => break,
                other => panic!("{other:?}"),
            }
        }
        if fetched.end.is_some() {
            break;
        }
        assert!(round < 100, "it comes to its end");
        let Some(Resume { keys, .. }) = fetched.request().resume else { panic!("it has begun") };
        source = SnapshotSource::resumed(begin.clone(), position, keys);
    }
    assert_is_all_of(&fetched, &donor);
}

#[test]
fn a_key_to_go_on_from_that_is_none_is_refused() {
    let mut donor = Node::founded(1);
    let (begin, position) = begin(&mut donor);
    let keys = KeysHeld::Through(Some(Bytes::from_static(b"x")));
    let mut source = SnapshotSource::resumed(begin, position, keys);
    assert!(matches!(source.poll(donor.replica.storage()), SnapshotStep::Failed(_)));
}

#[test]
fn what_was_read_ahead_of_the_disk_is_sent_with_the_log_once_it_is_durable() {
    let mut donor = donor();
    let (begin, position) = begin(&mut donor);
    donor.syncs = false;
    let tag = polyarch_protocol::RequestTag { connection: 9, request: 1 };
    let request =
        polyarch_protocol::client::WriteRequest { changes: vec![change("a", Some("staged"), Supersede::Held)] };
    donor.handle(polyarch_protocol::Input::Write(tag, request));
    let mut source = SnapshotSource::new(begin, position);
    let mut sent = Vec::new();
    loop {
        match source.poll(donor.replica.storage()) {
            SnapshotStep::Part(part) => sent.push(part),
            SnapshotStep::AwaitDurable => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        sent.iter().all(|part| !matches!(SnapshotPart::decode(part), Ok(SnapshotPart::Log(_) | SnapshotPart::End(_))))
    );
    assert_eq!(source.poll(donor.replica.storage()), SnapshotStep::AwaitDurable, "as often as it is asked");
    donor.sync();
    sent.extend(parts(&mut source, &mut donor, |_| {}));
    assert_is_all_of(&fetched(&sent), &donor);
}

/// Polls up to the first part that is no record, and gives what comes next.
fn after_records(mut donor: Node, happens: impl FnOnce(&mut Node)) -> SnapshotStep {
    let (begin, position) = begin(&mut donor);
    let mut source = SnapshotSource::new(begin, position);
    assert!(matches!(source.poll(donor.replica.storage()), SnapshotStep::Part(_)));
    for i in 0..9 {
        donor.put("a", &i.to_string()).expect("it takes writes");
    }
    happens(&mut donor);
    loop {
        match source.poll(donor.replica.storage()) {
            SnapshotStep::Part(part) => match SnapshotPart::decode(&part).expect("it reads") {
                SnapshotPart::Records { .. } => {}
                _ => return SnapshotStep::Part(part),
            },
            step => return step,
        }
    }
}

#[test]
fn a_log_that_is_gone_unreadable_or_has_a_gap_ends_the_walk() {
    let failed = |step: SnapshotStep| match step {
        SnapshotStep::Failed(reason) => reason,
        other => panic!("{other:?}"),
    };
    let removed = after_records(donor(), |donor| donor.replica.storage_mut().remove_log());
    assert!(failed(removed).contains("removed"));
    let unreadable = after_records(donor(), |donor| donor.replica.storage_mut().fails_log = true);
    assert!(failed(unreadable).contains("does not answer"));
    let records = after_records(donor(), |donor| donor.replica.storage_mut().fails_records = true);
    assert!(failed(records).contains("cannot be read"));
    // It joined a snapshot that brought what its log never had, and writes on of that.
    let gap = after_records(donor(), |donor| {
        let two = Origin::new(2, 1);
        let mut ahead = Node::founded(1);
        ahead.meet(1, 2);
        ahead.hear_applied(1, &[Dot::new(two, 9)]);
        (1..=3).for_each(|seq| ahead.feed(1, &[crate::support::foreign(Dot::new(two, seq), &[], "x")]));
        let snapshot = fetched(&whole(&mut ahead));
        snapshot.join(donor).expect("it is whole");
        donor.meet(1, 2);
        donor.hear_applied(1, &[Dot::new(two, 9)]);
        donor.feed(1, &[crate::support::foreign(Dot::new(two, 4), &[], "x")]);
        donor.sync();
    });
    assert!(failed(gap).contains("not next"));
    assert!(matches!(after_records(donor(), |_| {}), SnapshotStep::Part(_)), "and without any of that it goes on");
}

#[test]
fn each_key_comes_once_and_none_that_holds_nothing() {
    let mut donor = donor();
    let fetched = fetched(&whole(&mut donor));
    let keys: BTreeSet<&[u8]> = fetched.records.keys().map(RecordKey::key).collect();
    assert!(!keys.contains(&b"gone"[..]) && keys.contains(&b"k100"[..]));
    assert!(fetched.records.values().all(|record| !record.is_empty()));
}
