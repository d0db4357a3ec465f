use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use polyarch_crdt::{Dot, FieldPath, Hlc, Record};
use polyarch_protocol::{
    ChainHeads, Digest, Frontier, KeysHeld, RecordKey, Records, Resume, SnapshotBegin, SnapshotPart, SnapshotRequest,
    StorageError, WriteSet,
};

use super::node::Node;

/// What a receiver has of a snapshot: the files of a real one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fetched {
    pub(crate) begin: Option<SnapshotBegin>,
    pub(crate) records: BTreeMap<RecordKey, Record>,
    /// All records up to this key are here, and whole.
    through: Option<RecordKey>,
    has_all_records: bool,
    pub(crate) log: Vec<Bytes>,
    pub(crate) end: Option<ChainHeads>,
}

impl Fetched {
    /// Takes the next part as it came off the wire.
    pub(crate) fn take(&mut self, frame: &[u8]) {
        match SnapshotPart::decode(frame).expect("a donor sends what can be read") {
            SnapshotPart::Begin(begin) => *self = Self { begin: Some(begin), ..Self::default() },
            SnapshotPart::Resumed(id) => {
                assert_eq!(self.begin.as_ref().map(|begin| begin.id), Some(id), "another walk was resumed");
                self.log.clear();
            }
            SnapshotPart::Records { records, cut } => {
                assert!(!self.has_all_records, "records behind the log");
                let whole = records.len() - usize::from(cut);
                for (at, piece) in records.into_iter().enumerate() {
                    assert!(self.through.as_ref().is_none_or(|through| piece.key > *through), "keys are in order");
                    if at < whole {
                        self.through = Some(piece.key.clone());
                    }
                    self.records.entry(piece.key).or_default().unite(piece.record);
                }
            }
            SnapshotPart::Log(write_sets) => {
                self.has_all_records = true;
                self.log.extend(write_sets);
            }
            SnapshotPart::LogEnd(_) => self.has_all_records = true,
            SnapshotPart::End(heads) => self.end = Some(heads),
            SnapshotPart::GivenUp(reason) => panic!("a walk does not say itself that it is given up: {reason}"),
        }
    }

    /// Asks for what is missing.
    pub(crate) fn request(&self) -> SnapshotRequest {
        let keys = match self.has_all_records {
            true => KeysHeld::All,
            false => KeysHeld::Through(self.through.as_ref().map(|key| Bytes::copy_from_slice(key.as_bytes()))),
        };
        SnapshotRequest { resume: self.begin.as_ref().map(|begin| Resume { id: begin.id, keys }) }
    }

    /// Joins all of it with what a node has, in one step, and lets its replica go on from there.
    pub(crate) fn join(&self, node: &mut Node) -> Result<(), String> {
        node.sync();
        let before = node.replica.frontier().clone();
        let (records, frontier) = self.joined(node.replica.storage().all_records(), &before)?;
        node.replica.storage_mut().replace(records, &before.heads, &frontier);
        node.replica.adopt(frontier, node.now).map_err(|error| error.to_string())
    }

    /// The join: the records under the donor's set at the start, then its log.
    fn joined(
        &self,
        mine: &BTreeMap<RecordKey, Record>,
        before: &Frontier,
    ) -> Result<(BTreeMap<RecordKey, Record>, Frontier), String> {
        let (Some(begin), Some(end)) = (&self.begin, &self.end) else { return Err("it is not whole".to_owned()) };
        let (ours, theirs) = (before.heads.applied(), begin.start.heads.applied());
        let keys: BTreeSet<&RecordKey> = mine.keys().chain(self.records.keys()).collect();
        let nothing = Record::default();
        let of = |records: &BTreeMap<RecordKey, Record>, key: &RecordKey| records.get(key).unwrap_or(&nothing).clone();
        let joined = keys.into_iter().map(|key| {
            let record = of(mine, key).join(ours, &of(&self.records, key), theirs);
            (key.clone(), record)
        });
        let mut joined = Joined(joined.filter(|(_, record)| !record.is_empty()).collect());
        let digest = digest_of(&joined.0);
        let mut frontier = before.join(&begin.start, digest).map_err(|error| error.to_string())?;
        let mut heads = begin.start.heads.clone();
        for bytes in &self.log {
            let write_set = WriteSet::decode(bytes).map_err(|error| error.to_string())?;
            let dot = write_set.dot;
            heads.extend(dot, bytes);
            let held = frontier.heads.head(dot.origin);
            if held.seq == dot.seq && held != heads.head(dot.origin) {
                return Err(format!("the two sides hold different histories up to {dot}"));
            }
            if held.seq < dot.seq {
                let _ = frontier.apply(&mut joined, &write_set, bytes).map_err(|error| error.to_string())?;
            }
        }
        match heads == *end {
            true => Ok((joined.0, frontier)),
            false => Err("it does not add up to its end".to_owned()),
        }
    }
}

struct Joined(BTreeMap<RecordKey, Record>);

impl Records for Joined {
    fn record_mut(&mut self, key: &RecordKey) -> Result<&mut Record, StorageError> {
        Ok(self.0.entry(key.clone()).or_default())
    }
}

/// The digest of records, counted anew.
pub(crate) fn digest_of(records: &BTreeMap<RecordKey, Record>) -> Digest {
    let mut digest = Digest::default();
    for (key, record) in records {
        for field in record.fields() {
            field.siblings().iter().for_each(|sibling| digest.add(key, field.path(), sibling));
        }
    }
    digest
}

type Shown = BTreeMap<(RecordKey, FieldPath), BTreeMap<Dot, (Hlc, Bytes)>>;

/// The one-sentence oracle: a register shows the writes that no applied write superseded.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    written: BTreeMap<Dot, WriteSet>,
}

impl Oracle {
    /// Takes note of what a node has in its log.
    pub(crate) fn note(&mut self, node: &Node) {
        for bytes in node.replica.storage().log_bytes() {
            let dot = WriteSet::peek_dot(&bytes).expect("a replica wrote it");
            self.written.entry(dot).or_insert_with(|| WriteSet::decode(&bytes).expect("a replica wrote it"));
        }
    }

    /// Holds a node's records against all that it has applied.
    pub(crate) fn judge(&self, node: &Node) {
        let (applied, server_id) = (node.applied(), node.config.server_id);
        let of_it = || {
            self.written
                .values()
                .filter(|w| applied.includes(w.dot))
                .flat_map(|w| w.changes.iter().map(move |c| (w, c)))
        };
        assert_eq!(of_it().map(|(w, _)| w.dot).collect::<BTreeSet<_>>().len() as u64, applied.write_sets());
        let superseded: BTreeSet<_> =
            of_it().flat_map(|(_, c)| c.supersedes.iter().map(|old| (c.record_key(), c.field.clone(), *old))).collect();
        let mut expected = Shown::new();
        for (w, c) in of_it() {
            let place = (c.record_key(), c.field.clone());
            if let Some(value) = c.effect.value()
                && !superseded.contains(&(place.0.clone(), place.1.clone(), w.dot))
            {
                expected.entry(place).or_default().insert(w.dot, (w.hlc, value.clone()));
            }
        }
        let records = node.replica.storage().all_records();
        let mut shown = Shown::new();
        for (key, record) in records {
            assert_eq!(record.validate(), Ok(()));
            for field in record.fields().iter().filter(|field| !field.siblings().is_empty()) {
                let values = field.siblings().iter().map(|s| (s.dot, (s.hlc, s.value.clone()))).collect();
                shown.insert((key.clone(), field.path().clone()), values);
            }
        }
        assert_eq!(shown, expected, "node {server_id} with {applied} shows something else than the oracle");
        assert_eq!(digest_of(records), node.replica.frontier().digest, "the digest of node {server_id}");
    }
}
