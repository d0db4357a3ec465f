//! What every state backend must do, as one suite that each of them passes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{Dot, FieldChange, FieldPath, Hlc, Record};
use polyarch_protocol::{KeyspaceId, LogPosition, RecordKey};
use polyarch_store::state::{
    Checkpoint, MemoryOpener, MemoryState, ScanRange, SledConfig, SledState, StateDirectory, StateOpener, StateStore,
};
use proptest::prelude::*;

use crate::support::{key, keyspace, origin};

/// A backend that can be closed and opened again.
trait Backend {
    type Opener: StateOpener;
    fn opener(&mut self) -> &mut Self::Opener;
}

struct Memory(MemoryOpener);
struct Sled(StateDirectory<SledState>, #[allow(dead_code, reason = "kept until the end")] tempfile::TempDir);

impl Memory {
    fn new() -> Self {
        Self(MemoryOpener::new(MemoryState::new()))
    }
}

impl Sled {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self(StateDirectory::sled(dir.path(), SledConfig::default()), dir)
    }
}

impl Backend for Memory {
    type Opener = MemoryOpener;
    fn opener(&mut self) -> &mut MemoryOpener {
        &mut self.0
    }
}

impl Backend for Sled {
    type Opener = StateDirectory<SledState>;
    fn opener(&mut self) -> &mut StateDirectory<SledState> {
        &mut self.0
    }
}

macro_rules! storage_suite {
    ($($backend:ident: $new:expr;)*) => {$(
        mod $backend {
            use super::*;
            storage_suite!(@tests $new;
                an_empty_state_holds_nothing
                a_batch_is_read_back
                a_batch_overwrites_and_removes
                a_scan_goes_in_order_from_where_it_is_told
                keyspaces_do_not_mix
                what_was_flushed_is_there_after_a_reopen
                the_metadata_comes_with_its_batch
                large_values_and_keys_fit
                many_records_fit
                a_state_set_aside_is_empty_again
            );

            proptest! {
                #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
                #[test]
                fn it_behaves_like_an_ordered_map(steps in proptest::collection::vec(step(), 1..20)) {
                    super::it_behaves_like_an_ordered_map($new, steps)?;
                }
            }
        }
    )*};
    (@tests $new:expr; $($test:ident)*) => {$(
        #[test]
        fn $test() {
            super::$test(&mut $new);
        }
    )*};
}

storage_suite! {
    memory: Memory::new();
    sled: Sled::new();
}

fn record(value: impl Into<Bytes>) -> Record {
    let (path, value) = (FieldPath::opaque(), value.into());
    let change = FieldChange { path: &path, supersedes: &[Dot::new(origin(1), 9)], put: Some(&value) };
    let mut record = Record::default();
    let _ = record.apply(Dot::new(origin(0), 1), Hlc::new(1, 0), &change, &Default::default());
    record
}

fn put(key: RecordKey, value: &str) -> (RecordKey, Option<Arc<Record>>) {
    (key, Some(Arc::new(record(value.to_owned()))))
}

fn at(offset: u64) -> Checkpoint {
    Checkpoint { position: LogPosition { segment: 1, offset }, ..Checkpoint::default() }
}

fn keys(found: &[(RecordKey, Record)]) -> Vec<RecordKey> {
    found.iter().map(|(key, _)| key.clone()).collect()
}

fn an_empty_state_holds_nothing(backend: &mut impl Backend) {
    let state = backend.opener().open().unwrap();
    assert_eq!(state.get(&key(1)).unwrap(), None);
    assert_eq!(state.scan(&ScanRange::everything(), 10).unwrap(), []);
    assert_eq!(state.checkpoint().unwrap(), None);
}

fn a_batch_is_read_back(backend: &mut impl Backend) {
    let state = backend.opener().open().unwrap();
    state.apply_sorted(vec![put(key(1), "a"), put(key(2), "b")], &at(1)).unwrap();
    assert_eq!(state.get(&key(1)).unwrap(), Some(record("a")));
    assert_eq!(state.get(&key(2)).unwrap(), Some(record("b")));
    assert_eq!(state.get(&key(3)).unwrap(), None);
    state.flush().unwrap();
    assert!(state.size().unwrap() > 0);
}

fn a_batch_overwrites_and_removes(backend: &mut impl Backend) {
    let state = backend.opener().open().unwrap();
    state.apply_sorted(vec![put(key(1), "a"), put(key(2), "b"), put(key(3), "c")], &at(1)).unwrap();
    state.apply_sorted(vec![put(key(1), "d"), (key(2), None), (key(9), None)], &at(2)).unwrap();
    let found = state.scan(&ScanRange::everything(), 10).unwrap();
    assert_eq!(found, [(key(1), record("d")), (key(3), record("c"))]);
}

fn a_scan_goes_in_order_from_where_it_is_told(backend: &mut impl Backend) {
    let state = backend.opener().open().unwrap();
    state.apply_sorted((0..1_000).map(|n| put(key(n), "v")).collect(), &at(1)).unwrap();
    let scan = |range: ScanRange, limit| keys(&state.scan(&range, limit).unwrap());
    let some = |numbers: std::ops::Range<u32>| numbers.map(key).collect::<Vec<_>>();
    let all = ScanRange::prefix(keyspace(), b"");
    assert_eq!(scan(all.clone(), 5_000), some(0..1_000));
    assert_eq!(scan(all.clone(), 7), some(0..7));
    assert_eq!(scan(all.clone().from(key(500)), 3), some(500..503));
    assert_eq!(scan(all.clone().after(key(500)), 3), some(501..504));
    assert_eq!(scan(ScanRange::prefix(keyspace(), b"key-0009"), 500), some(900..1_000));
    assert_eq!(scan(ScanRange::prefix(keyspace(), b"key-0009").after(key(997)), 500), some(998..1_000));
    assert_eq!(scan(ScanRange::prefix(keyspace(), b"key-0009").from(key(3)), 2), some(900..902));
    assert_eq!(scan(ScanRange::prefix(keyspace(), b"none"), 500), []);
    assert_eq!(scan(all.after(key(999)), 500), []);
}

fn keyspaces_do_not_mix(backend: &mut impl Backend) {
    let state = backend.opener().open().unwrap();
    let system = RecordKey::new(KeyspaceId::SYSTEM, b"\xff\xff");
    let first = RecordKey::new(keyspace(), b"");
    let last = RecordKey::new(keyspace(), &[0xff; 300]);
    let next = KeyspaceId { index: 1, ..keyspace() };
    let other = RecordKey::new(next, b"");
    let batch = [&system, &first, &last, &other].map(|key| put(key.clone(), "v")).to_vec();
    state.apply_sorted(batch, &at(1)).unwrap();
    let found = state.scan(&ScanRange::prefix(keyspace(), b""), 10).unwrap();
    assert_eq!(keys(&found), [first, last.clone()]);
    let found = state.scan(&ScanRange::prefix(keyspace(), b"\xff"), 10).unwrap();
    assert_eq!(keys(&found), [last]);
    assert_eq!(state.scan(&ScanRange::everything(), 10).unwrap().len(), 4);
}

fn what_was_flushed_is_there_after_a_reopen(backend: &mut impl Backend) {
    let state = backend.opener().open().unwrap();
    state.apply_sorted((0..500).map(|n| put(key(n), "v")).collect(), &at(7)).unwrap();
    state.flush().unwrap();
    drop(state);
    let state = backend.opener().open().unwrap();
    assert_eq!(state.scan(&ScanRange::everything(), 1_000).unwrap().len(), 500);
    assert_eq!(state.get(&key(499)).unwrap(), Some(record("v")));
    assert_eq!(state.checkpoint().unwrap(), Some(at(7)));
}

fn the_metadata_comes_with_its_batch(backend: &mut impl Backend) {
    let state = backend.opener().open().unwrap();
    let mut checkpoint = at(5);
    checkpoint.absorbing.insert(key(1));
    checkpoint.frontier.hlc = Hlc::new(99, 1);
    checkpoint.frontier.heads.extend(Dot::new(origin(2), 1), b"bytes");
    for (field, sibling) in record("a").fields().iter().flat_map(|f| f.siblings().iter().map(move |s| (f, s))) {
        checkpoint.frontier.digest.add(&key(1), field.path(), sibling);
    }
    state.apply_sorted(vec![put(key(1), "a")], &checkpoint).unwrap();
    assert_eq!(state.checkpoint().unwrap(), Some(checkpoint));
    state.apply_sorted(Vec::new(), &at(6)).unwrap();
    assert_eq!(state.checkpoint().unwrap(), Some(at(6)));
    assert_eq!(state.scan(&ScanRange::everything(), 10).unwrap().len(), 1, "metadata is no record");
}

fn large_values_and_keys_fit(backend: &mut impl Backend) {
    let state = backend.opener().open().unwrap();
    let long_key = RecordKey::new(keyspace(), &[b'k'; 64 << 10]);
    let value = Bytes::from((0..16u32 << 20).map(|n| ((n * 31) >> 7) as u8).collect::<Vec<u8>>());
    let large = Some(Arc::new(record(value.clone())));
    state.apply_sorted(vec![(key(1), large.clone()), (long_key.clone(), large)], &at(1)).unwrap();
    state.flush().unwrap();
    drop(state);
    let state = backend.opener().open().unwrap();
    assert_eq!(state.get(&key(1)).unwrap(), Some(record(value.clone())));
    assert_eq!(state.get(&long_key).unwrap(), Some(record(value)));
}

fn many_records_fit(backend: &mut impl Backend) {
    const MANY: u32 = 20_000;
    let state = backend.opener().open().unwrap();
    for round in 0..3 {
        let batch = (0..MANY).filter(|n| n % 3 >= round).map(|n| put(key(n), &format!("value {n} of round {round}")));
        state.apply_sorted(batch.collect(), &at(u64::from(round))).unwrap();
        state.flush().unwrap();
    }
    state.apply_sorted((0..MANY).filter(|n| n % 3 == 1).map(|n| (key(n), None)).collect(), &at(9)).unwrap();
    state.flush().unwrap();
    drop(state);
    let state = backend.opener().open().unwrap();
    let found = state.scan(&ScanRange::everything(), usize::MAX).unwrap();
    let expected: Vec<RecordKey> = (0..MANY).filter(|n| n % 3 != 1).map(key).collect();
    assert_eq!(keys(&found), expected);
    assert_eq!(state.get(&key(2)).unwrap(), Some(record("value 2 of round 2")));
}

fn a_state_set_aside_is_empty_again(backend: &mut impl Backend) {
    for round in 1..3 {
        let state = backend.opener().open().unwrap();
        assert_eq!(state.checkpoint().unwrap(), None);
        state.apply_sorted(vec![put(key(1), "a")], &at(round)).unwrap();
        state.flush().unwrap();
        drop(state);
        backend.opener().set_aside().unwrap();
    }
}

#[derive(Debug, Clone)]
enum Step {
    Batch(BTreeMap<u32, Option<String>>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let batch = proptest::collection::btree_map(0u32..400, proptest::option::weighted(0.7, "[a-z]{0,80}"), 0..120);
    prop_oneof![6 => batch.prop_map(Step::Batch), 1 => Just(Step::Reopen)]
}

fn it_behaves_like_an_ordered_map(mut backend: impl Backend, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let mut model: BTreeMap<RecordKey, Record> = BTreeMap::new();
    let mut state = backend.opener().open().unwrap();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Batch(changes) => {
                for (number, value) in &changes {
                    match value {
                        Some(value) => drop(model.insert(key(*number), record(value.clone()))),
                        None => drop(model.remove(&key(*number))),
                    }
                }
                let entry = |(number, value): (u32, Option<String>)| (key(number), value.map(|v| Arc::new(record(v))));
                state.apply_sorted(changes.into_iter().map(entry).collect(), &at(number as u64)).unwrap();
                prop_assert_eq!(state.checkpoint().unwrap(), Some(at(number as u64)));
            }
            Step::Reopen => {
                state.flush().unwrap();
                drop(state);
                state = backend.opener().open().unwrap();
            }
        }
        let found: BTreeMap<RecordKey, Record> =
            state.scan(&ScanRange::everything(), usize::MAX).unwrap().into_iter().collect();
        prop_assert_eq!(&found, &model);
        for number in (0..400).step_by(37) {
            prop_assert_eq!(state.get(&key(number)).unwrap(), model.get(&key(number)).cloned());
            let after = state.scan(&ScanRange::everything().after(key(number)), 3).unwrap();
            let expected: Vec<_> = model.range(key(number)..).filter(|(k, _)| **k != key(number)).take(3).collect();
            prop_assert!(after.iter().map(|(k, v)| (k, v)).eq(expected));
        }
    }
    Ok(())
}
