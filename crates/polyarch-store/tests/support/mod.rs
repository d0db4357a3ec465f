//! A node without a network: a store, its frontier, and origins that write to it.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::{Dot, FieldPath, Hlc, Origin, Record};
use polyarch_protocol::{
    Change, Dependencies, Effect, Frontier, KeyspaceId, LogPosition, RecordKey, Records, Storage, StorageError,
    WriteSet,
};
use polyarch_store::files::Files;
use polyarch_store::state::{ScanRange, StateOpener, StateStore, for_each_record};
use polyarch_store::{OpenError, OpenReport, Store, StoreConfig, StoreFiles};
use proptest::prelude::*;

pub fn origin(number: u32) -> Origin {
    Origin::new(number + 1, 0xA0 + number)
}

pub fn keyspace() -> KeyspaceId {
    KeyspaceId { dot: Dot::new(origin(0), 1), index: 0 }
}

pub fn key(number: u32) -> RecordKey {
    RecordKey::new(keyspace(), format!("key-{number:06}").as_bytes())
}

/// What a write replaces.
#[derive(Debug, Clone, Copy)]
pub enum Sees {
    /// What the node shows.
    All,
    /// Nothing.
    Nothing,
    /// A write of another origin that is not here yet, so that it is absorbed when it comes.
    Ahead(u32, u64),
}

/// One write set: an origin, and what it does to some keys.
#[derive(Debug, Clone)]
pub struct Write {
    pub origin: u32,
    pub changes: Vec<(u32, Sees, bool)>,
}

pub fn sees() -> impl Strategy<Value = Sees> {
    prop_oneof![
        3 => Just(Sees::All),
        1 => Just(Sees::Nothing),
        2 => (0u32..3, 1u64..4).prop_map(|(origin, ahead)| Sees::Ahead(origin, ahead)),
    ]
}

pub fn write() -> impl Strategy<Value = Write> {
    let changes = proptest::collection::btree_map(0u32..12, (sees(), proptest::bool::weighted(0.8)), 1..4);
    (0u32..3, changes).prop_map(|(origin, changes)| Write {
        origin,
        changes: changes.into_iter().map(|(key, (sees, puts))| (key, sees, puts)).collect(),
    })
}

/// Encodes a write as the next of its origin.
pub fn encode(write: &Write, frontier: &Frontier, mut record: impl FnMut(&RecordKey) -> Record) -> WriteSet {
    let applied = frontier.heads.applied();
    let dot = Dot::new(origin(write.origin), applied.seq(origin(write.origin)) + 1);
    let change = |(number, sees, puts): &(u32, Sees, bool)| {
        let key = key(*number);
        let supersedes = match *sees {
            Sees::All => record(&key).siblings(&FieldPath::opaque()).iter().map(|s| s.dot).collect(),
            Sees::Nothing => Vec::new(),
            Sees::Ahead(other, ahead) => {
                let other = origin(other);
                Some(Dot::new(other, applied.seq(other) + ahead)).into_iter().filter(|seen| *seen != dot).collect()
            }
        };
        let value = format!("{dot} writes {number}");
        Change {
            keyspace: keyspace(),
            key: key.key_bytes(),
            field: FieldPath::opaque(),
            supersedes,
            effect: if *puts { Effect::Put(value.into()) } else { Effect::Delete },
        }
    };
    let changes = write.changes.iter().map(change).collect();
    let dependencies = match dot.seq {
        1 => Dependencies::Whole { predecessor: None, applied: Default::default() },
        _ => Dependencies::Changed(Default::default()),
    };
    WriteSet { dot, hlc: Hlc::new(1_000 + applied.write_sets(), 0), dependencies, changes }
}

/// Records in memory that forget nothing, not even what they absorb.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    pub records: BTreeMap<RecordKey, Record>,
    pub frontier: Frontier,
}

impl Records for Model {
    fn record_mut(&mut self, key: &RecordKey) -> Result<&mut Record, StorageError> {
        Ok(self.records.entry(key.clone()).or_default())
    }
}

impl Model {
    pub fn apply(&mut self, write_set: &WriteSet, bytes: &Bytes) {
        let mut frontier = std::mem::take(&mut self.frontier);
        let _ = frontier.apply(self, write_set, bytes).unwrap();
        self.frontier = frontier;
    }

    /// What is live, as text.
    pub fn live(&self) -> BTreeMap<RecordKey, String> {
        self.records.iter().filter_map(|(key, record)| live(key, record)).collect()
    }
}

pub fn live(key: &RecordKey, record: &Record) -> Option<(RecordKey, String)> {
    let siblings = record.fields().iter().flat_map(|field| field.siblings());
    let text: Vec<String> = siblings.map(|s| format!("{}={}", s.dot, String::from_utf8_lossy(&s.value))).collect();
    (!text.is_empty()).then(|| (key.clone(), text.join(" ")))
}

pub struct Node<F: Files, S: StateStore> {
    pub store: Store<F, S>,
    pub frontier: Frontier,
    pub report: OpenReport,
}

impl<F: Files, S: StateStore> Node<F, S> {
    pub fn open(
        files: impl Into<StoreFiles<F>>,
        opener: impl StateOpener<State = S>,
        config: &StoreConfig,
    ) -> Result<Self, OpenError> {
        let (store, frontier, report) = Store::open(files, opener, config)?;
        Ok(Self { store, frontier, report })
    }

    /// Appends and applies, as the replica does.
    pub fn write(&mut self, write: &Write) -> (WriteSet, Bytes, LogPosition) {
        self.try_write(write).unwrap()
    }

    /// The same, on a disk that may not take it.
    pub fn try_write(&mut self, write: &Write) -> Result<(WriteSet, Bytes, LogPosition), StorageError> {
        let write_set = encode(write, &self.frontier, |key| self.store.record(key).unwrap());
        let bytes = write_set.encode();
        let end = self.store.append(&bytes, &self.frontier.heads)?;
        let _ = self.frontier.apply(&mut self.store, &write_set, &bytes)?;
        Ok((write_set, bytes, end))
    }

    pub fn put(&mut self, number: u32) {
        self.write(&Write { origin: 0, changes: vec![(number, Sees::All, true)] });
    }

    /// Syncs, and writes a checkpoint whether one is due or not.
    pub fn checkpoint(&mut self) {
        self.store.sync().unwrap();
        let job = self.store.begin_checkpoint_now(&self.frontier).expect("nothing is staged or running");
        self.store.finish_checkpoint(job.run().unwrap());
    }

    /// What readers see as live, as text.
    pub fn live(&self) -> BTreeMap<RecordKey, String> {
        let records = self.store.reader().scan(&ScanRange::everything(), usize::MAX).unwrap();
        records.iter().filter_map(|(key, record)| live(key, record)).collect()
    }
}

/// What a state holds as live, as text.
pub fn live_in_state(state: &impl StateStore) -> BTreeMap<RecordKey, String> {
    let mut found = BTreeMap::new();
    for_each_record(state, |key, record| found.extend(live(key, record))).unwrap();
    found
}
