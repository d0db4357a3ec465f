//! Snapshots: what a donor sends, what a receiver's disk shows, and what is joined.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, FieldChange, Origin, Record};
use polyarch_protocol::catalog::{SystemRecord, member_key};
use polyarch_protocol::peer::ClusterId;
use polyarch_protocol::{
    ChainHash, ChainHead, ChainHeads, Frontier, FrontierOutline, Input, KeysHeld, KeyspaceId, LogPosition, Now,
    RecordKey, Replica, SnapshotBegin, SnapshotId, SnapshotPart, SnapshotRecord, SnapshotRequest, SnapshotSource,
    SnapshotStep, Storage,
};
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::state::MemoryOpener;
use polyarch_store::{DonorRecords, SnapshotError, SnapshotReceiver, StoreFiles, verify_parts};

use super::logs::{MemoryStore, check_digest, next, small_store};
use super::members::replica_config;
use crate::script::{Script, WALL_MS};
use crate::segments::snapshot_file;

const ID: SnapshotId = SnapshotId(7);
const CLUSTER: ClusterId = ClusterId(9);
/// The file of a snapshot on its way in.
pub(super) const INCOMING: &str = "incoming.snapshot";
const PARTS_MAX: usize = 12;
/// Steps after which a walk over a few records and write sets has ended.
const STEPS_MAX: usize = 2_000;

/// An input is a script of the parts that a donor sends, or of those that a file holds, with checksums that are right.
///
/// A part is taken or refused; what was taken is there after a restart, and a damaged file is a shorter one or none. One
/// that is whole is joined with what a node has of its own, or the error says that the snapshot is at fault; the store
/// then goes on, and a replica opens over whatever was joined.
pub fn snapshot_parts(data: &[u8]) {
    let mut script = Script::new(data);
    let disk = SimulatedDisk::new(1, 512);
    let parts = parts(&mut script);
    match script.below(3) {
        0 => {
            let file = snapshot_file(parts.iter().map(Vec::as_slice));
            disk.damage(INCOMING, |content| *content = file);
        }
        1 => received(&disk, &parts),
        _ => {
            received(&disk, &parts);
            let (at, with) = (script.number(), script.chunk(30));
            disk.damage(INCOMING, |content| {
                content.iter_mut().skip(at).zip(with).for_each(|(byte, with)| *byte ^= *with);
            });
        }
    }
    let (mut store, frontier) = store(&mut script, &disk);
    let verified = verify_parts(&StoreFiles::from(disk.clone()), &mut MemoryOpener::default(), 10);
    assert!(verified.is_ok(), "the disk answers");
    let frontier = match store.pending_snapshot(&frontier) {
        Ok(Some(pending)) if pending.is_whole() => join(&mut store, pending, frontier),
        Ok(Some(pending)) => {
            assert_eq!(pending.resume().id, pending.id());
            assert_eq!(pending.heads(), None);
            frontier
        }
        Ok(None) => frontier,
        Err(SnapshotError::Io { source, .. }) => panic!("the disk answers: {source}"),
        Err(_) => frontier,
    };
    open_replica(store, frontier);
}

/// An input is a script of what a donor has and of a request, byte by byte: with whatever it asks to go on, the walk
/// ends, its parts follow on each other, and a node that joins all of them has what the donor has.
pub fn snapshot_requests(data: &[u8]) {
    let mut script = Script::new(data);
    let disk = SimulatedDisk::new(1, 512);
    let (mut store, frontier) = store(&mut script, &disk);
    let pin = store.pin(&frontier).expect("nothing is staged");
    let mut now = frontier.clone();
    let begin = SnapshotBegin { id: ID, cluster_id: CLUSTER, donor: 1, start: pin.start().outline() };
    let part_bytes = 1 + script.number() % 400;
    let asked = SnapshotRequest::decode(&[b"R\x01", script.chunk(40)].concat());
    let resumes = asked.ok().and_then(|request| request.resume);
    let mut source = match &resumes {
        None => SnapshotSource::new(begin, pin.position()),
        Some(resume) => SnapshotSource::resumed(begin, pin.position(), resume.keys.clone()),
    };
    source = source.with_part_bytes(part_bytes);
    let mut sent: Vec<Vec<u8>> = Vec::new();
    for step in 0.. {
        assert!(step < STEPS_MAX, "a walk ends");
        if script.one_in(4) {
            write(&mut store, &mut now, &mut script, 3);
        }
        let (reader, log, published_end) = (store.reader(), store.log_reader(), store.durable_end());
        match source.poll(&DonorRecords { records: &reader, log: &log, published_end: || published_end }) {
            SnapshotStep::Part(part) => sent.push(part),
            SnapshotStep::AwaitDurable => panic!("all is durable"),
            SnapshotStep::Failed(_) => {
                let key = resumes.as_ref().map(|resume| &resume.keys);
                assert!(
                    matches!(key, Some(KeysHeld::Through(Some(key))) if RecordKey::from_bytes(key.clone()).is_none())
                );
                return;
            }
            SnapshotStep::Done => break,
        }
    }
    if resumes.is_none() {
        whole(&sent, &now);
    }
}

fn whole(sent: &[Vec<u8>], donor: &Frontier) {
    let disk = SimulatedDisk::new(2, 512);
    let mut receiver = SnapshotReceiver::begin(disk.clone(), &sent[0]).expect("it begins with its beginning");
    sent[1..].iter().for_each(|part| receiver.push(part).expect("each part follows on the one before"));
    assert!(receiver.is_whole());
    let opened = MemoryStore::open(disk, MemoryOpener::default(), &small_store());
    let (mut store, empty, _) = opened.expect("an empty disk opens");
    let job = store.begin_join(receiver, &empty).unwrap_or_else(|_| panic!("it is whole"));
    let joined = job.run(|_| true).unwrap_or_else(|error| panic!("{error}"));
    let frontier = store.adopt(joined, &empty).expect("the disk takes it");
    store.publish_staged();
    check_digest(&store, &frontier);
    // What was written while the log was sent may lack.
    assert!(donor.heads.applied().includes_all(frontier.heads.applied()));
    if frontier.heads.applied() == donor.heads.applied() {
        assert_eq!(frontier.digest, donor.digest, "equal applied-sets, equal digests");
        assert_eq!(frontier.heads, donor.heads);
    }
}

/// Parts that mostly follow on each other.
pub(super) fn parts(script: &mut Script<'_>) -> Vec<Vec<u8>> {
    let start = outline(script);
    let mut heads = start.heads.clone();
    let mut applied = start.heads.applied().clone();
    let begin = SnapshotBegin { id: ID, cluster_id: CLUSTER, donor: 2, start };
    let mut parts = vec![SnapshotPart::Begin(begin).encode()];
    let mut last_key = 0_u8;
    for _ in 0..script.below(PARTS_MAX) {
        let part = match script.below(9) {
            0..3 => SnapshotPart::Records { records: records(script, &mut last_key, &applied), cut: script.one_in(4) },
            3..5 => {
                let write_sets = (0..=script.below(3)).map(|_| logged(script, &mut heads)).collect();
                applied = heads.applied().clone();
                SnapshotPart::Log(write_sets)
            }
            5 => SnapshotPart::LogEnd(LogPosition { segment: script.any_number(), offset: script.any_number() }),
            6 => SnapshotPart::Resumed(SnapshotId(u128::from(ID.0 as u8 + script.below(2) as u8))),
            7 => {
                parts.push([b"N\x01", script.chunk(60)].concat());
                continue;
            }
            _ => SnapshotPart::GivenUp(String::from_utf8_lossy(script.chunk(8)).into_owned()),
        };
        parts.push(part.encode());
    }
    if !script.one_in(8) {
        parts.push(SnapshotPart::End(heads).encode());
    }
    parts
}

/// What a donor says that it began with.
fn outline(script: &mut Script<'_>) -> FrontierOutline {
    let head = |dot: Dot| (dot.origin, ChainHead { seq: dot.seq, hash: ChainHash([dot.seq as u8; 32]) });
    let heads: BTreeMap<Origin, ChainHead> = script.dots(4).into_iter().map(head).collect();
    let epochs = script.dots(2).into_iter().map(|dot| (dot.origin.server_id, dot.origin)).collect();
    let stamps = (0..script.below(3)).map(|_| (script.origin().server_id, script.hlc())).collect();
    FrontierOutline { heads: heads.into(), hlc: script.hlc(), epochs, stamps }
}

fn logged(script: &mut Script<'_>, heads: &mut ChainHeads) -> Bytes {
    match script.one_in(8) {
        true => Bytes::copy_from_slice(script.chunk(60)),
        false => {
            let (write_set, bytes) = next(heads, script);
            if write_set.dot.seq > heads.applied().seq(write_set.dot.origin) {
                heads.extend(write_set.dot, &bytes);
            }
            bytes
        }
    }
}

/// Records in order of keys: made of changes, or of bytes.
fn records(script: &mut Script<'_>, last_key: &mut u8, applied: &AppliedSet) -> Vec<SnapshotRecord> {
    let mut records = Vec::new();
    for _ in 0..=script.below(3) {
        *last_key = last_key.saturating_add(script.below(4) as u8);
        let key = match script.one_in(8) {
            true => RecordKey::new(KeyspaceId::SYSTEM, &member_key(script.below(4) as u32)),
            false => RecordKey::new(KeyspaceId { dot: Dot::new(Origin::new(1, 7), 1), index: 0 }, &[*last_key]),
        };
        let mut record = Record::default();
        for _ in 0..script.below(4) {
            let (path, supersedes) = (script.field(), script.dots(2));
            let value = match SystemRecord::decode(&[b"S\x01", script.chunk(20)].concat()) {
                Ok(system) => system.encode(),
                Err(_) => Bytes::copy_from_slice(script.chunk(30)),
            };
            let change =
                FieldChange { path: &path, supersedes: &supersedes, put: Some(&value).filter(|_| !script.one_in(4)) };
            let _outcome = record.apply(script.dot(), script.hlc(), &change, applied);
        }
        records.push(SnapshotRecord { key, record });
    }
    records
}

/// Gives the parts to a receiver, which is closed and opened in between.
fn received(disk: &SimulatedDisk, parts: &[Vec<u8>]) {
    let Ok(mut receiver) = SnapshotReceiver::begin(disk.clone(), &parts[0]) else { return };
    for part in &parts[1..] {
        let before = (receiver.progress(), receiver.resume());
        match receiver.push(part) {
            Ok(()) => {}
            Err(SnapshotError::Io { source, .. }) => panic!("the disk takes all: {source}"),
            Err(_) => assert_eq!((receiver.progress(), receiver.resume()), before, "nothing was taken"),
        }
        let after = (receiver.progress(), receiver.resume(), receiver.is_whole());
        drop(receiver);
        let opened = SnapshotReceiver::open(disk.clone()).expect("the disk answers");
        receiver = opened.expect("what was taken is there");
        assert_eq!((receiver.progress(), receiver.resume(), receiver.is_whole()), after, "it opens as it was");
    }
}

/// A store with a few write sets.
fn store(script: &mut Script<'_>, disk: &SimulatedDisk) -> (MemoryStore, Frontier) {
    let opened = MemoryStore::open(disk.clone(), MemoryOpener::default(), &small_store());
    let (mut store, mut frontier, _) = opened.unwrap_or_else(|error| panic!("{error}"));
    write(&mut store, &mut frontier, script, 12);
    (store, frontier)
}

fn write(store: &mut MemoryStore, frontier: &mut Frontier, script: &mut Script<'_>, len_max: usize) {
    for _ in 0..script.below(len_max) {
        let (write_set, bytes) = next(&frontier.heads, script);
        store.append(&bytes, &frontier.heads).expect("the disk takes it");
        let _summary = frontier.apply(store, &write_set, &bytes).expect("memory is read");
    }
    store.sync().expect("the disk syncs");
    if let Some(job) = store.begin_checkpoint(frontier) {
        let done = job.run().expect("memory takes it");
        store.finish_checkpoint(done);
    }
}

/// What a join comes to; what the node had where it comes to nothing.
fn join(store: &mut MemoryStore, pending: SnapshotReceiver<SimulatedDisk>, own: Frontier) -> Frontier {
    let promised = pending.heads().expect("it is whole").clone();
    let job = store.begin_join(pending, &own).unwrap_or_else(|_| panic!("it is whole and nothing is staged"));
    match job.run(|_| true) {
        Ok(joined) => {
            let frontier = store.adopt(joined, &own).expect("the disk takes it");
            store.publish_staged();
            check_digest(store, &frontier);
            assert!(frontier.heads.applied().includes_all(own.heads.applied()), "nothing is given up");
            assert!(frontier.heads.applied().includes_all(promised.applied()), "it holds what it says");
            frontier
        }
        Err(error) => {
            // A panic within comes as an error that is not of the snapshot.
            assert!(error.is_of_the_snapshot(), "{error}");
            own
        }
    }
}

/// A replica over whatever the system keyspace says now.
fn open_replica(store: MemoryStore, frontier: Frontier) {
    let now = Now { wall_ms: WALL_MS, mono_ms: 10_000 };
    let mut replica = Replica::open(replica_config(CLUSTER), store, frontier, now).expect("memory is read");
    replica.handle(Input::Tick, now);
    while replica.poll_output(LogPosition { segment: u64::MAX, offset: 0 }).is_some() {}
}
