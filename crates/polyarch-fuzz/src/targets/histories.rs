//! Histories: write sets applied to records, in whatever order their dependencies allow.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, FieldPath, Origin, Record, Sibling};
use polyarch_protocol::{
    Change, Dependencies, Digest, Effect, Frontier, KeyspaceId, RecordKey, Records, SnapshotRecord, StorageError,
    WriteSet,
};

use crate::script::Script;

/// Write sets of a history at most: each is applied twice and looked at in all pairs.
const WRITE_SETS_MAX: usize = 48;

/// An input is a script of write sets, each with changes of few fields, what it depends on, and dots that it supersedes,
/// also such as have not come yet.
///
/// The oracle is one sentence: a field shows the values that no applied write set superseded. In two orders, and joined
/// from two halves, the records are equal and so are their digests; and a record comes through pieces and through its
/// bytes as it was.
pub fn histories(data: &[u8]) {
    let mut script = Script::new(data);
    let history = history(&mut script);
    let forwards = Replayed::of(&history, |ready| ready[0]);
    let backwards = Replayed::of(&history, |ready| ready[ready.len() - 1]);
    forwards.check(&history);
    assert_eq!(forwards.frontier.heads, backwards.frontier.heads);
    assert_eq!(forwards.frontier.digest, backwards.frontier.digest, "equal applied-sets, equal digests");
    assert_eq!(forwards.settled(), backwards.settled(), "and equal records");
    joined(&history, &forwards, script.byte());
    for (key, record) in &forwards.records {
        through_bytes(key, record, 1 + usize::from(data.first().copied().unwrap_or(0)));
    }
}

/// A write set and its bytes.
type Written = (WriteSet, Bytes);

/// Each write set depends on those that its writer had, which is said in full: its own origin's, and some of others.
fn history(script: &mut Script<'_>) -> Vec<Written> {
    let mut written: Vec<Written> = Vec::new();
    let mut seqs: BTreeMap<Origin, u64> = BTreeMap::new();
    while !script.is_at_end() && written.len() < WRITE_SETS_MAX {
        let origin = script.origin();
        let seq = seqs.entry(origin).or_default();
        *seq += 1;
        let dot = Dot::new(origin, *seq);
        let known = |dot: &Dot| dot.origin != origin && written.iter().any(|(other, _)| other.dot == *dot);
        let applied: AppliedSet = script.dots(2).into_iter().filter(known).collect();
        let dependencies = match *seq {
            1 => Dependencies::Whole { predecessor: None, applied },
            _ => Dependencies::Changed(applied),
        };
        let changes: BTreeMap<_, _> = (0..=script.below(3)).map(|_| change(script, dot)).collect();
        let write_set = WriteSet { dot, hlc: script.hlc(), dependencies, changes: changes.into_values().collect() };
        let bytes = write_set.encode();
        match WriteSet::decode(&bytes) {
            Ok(read) => assert_eq!(read, write_set, "what was written reads as the same"),
            Err(error) => panic!("{error}: {write_set:?}"),
        }
        written.push((write_set, bytes));
    }
    written
}

fn change(script: &mut Script<'_>, dot: Dot) -> ((Bytes, FieldPath), Change) {
    let key = Bytes::copy_from_slice([&b"a"[..], b"b", b""][script.below(3)]);
    let field = script.field();
    let mut supersedes = script.dots(3);
    supersedes.retain(|old| *old != dot);
    let effect = match script.below(3) {
        0 => Effect::Delete,
        _ => Effect::Put(Bytes::copy_from_slice(script.chunk(4))),
    };
    let keyspace = KeyspaceId { dot: Dot::new(Origin::new(1, 1), 1), index: script.below(2) as u16 };
    ((key.clone(), field.clone()), Change { keyspace, key, field, supersedes, effect })
}

#[derive(Default)]
struct Table(BTreeMap<RecordKey, Record>);

impl Records for Table {
    fn record_mut(&mut self, key: &RecordKey) -> Result<&mut Record, StorageError> {
        Ok(self.0.entry(key.clone()).or_default())
    }
}

/// What a history comes to.
struct Replayed {
    frontier: Frontier,
    records: BTreeMap<RecordKey, Record>,
    applied: Vec<usize>,
}

impl Replayed {
    /// Applies all that can be, `next` choosing among what is ready.
    fn of(history: &[Written], next: impl Fn(&[usize]) -> usize) -> Self {
        let (mut frontier, mut table, mut applied) = (Frontier::default(), Table::default(), Vec::new());
        loop {
            let had = frontier.heads.applied().clone();
            let is_ready = |(write_set, _): &Written| {
                had.seq(write_set.dot.origin) + 1 == write_set.dot.seq
                    && had.includes_all(write_set.dependencies.applied())
            };
            let ready: Vec<usize> = (0..history.len()).filter(|at| is_ready(&history[*at])).collect();
            if ready.is_empty() {
                return Self { frontier, records: table.0, applied };
            }
            let at = next(&ready);
            let (write_set, bytes) = &history[at];
            let _summary = frontier.apply(&mut table, write_set, bytes).expect("a table in memory fails never");
            applied.push(at);
        }
    }

    fn check(&self, history: &[Written]) {
        let mut digest = Digest::default();
        for (key, record) in &self.records {
            assert_eq!(record.validate(), Ok(()));
            for field in record.fields() {
                field.siblings().iter().for_each(|sibling| digest.add(key, field.path(), sibling));
            }
        }
        assert_eq!(digest, self.frontier.digest, "the digest is that of the records");
        let shown: BTreeSet<_> =
            self.live().map(|(key, field, sibling)| (key.clone(), field.clone(), sibling.dot)).collect();
        assert_eq!(shown, unsuperseded(history, &self.applied));
    }

    fn live(&self) -> impl Iterator<Item = (&RecordKey, &FieldPath, &Sibling)> {
        let fields =
            self.records.iter().flat_map(|(key, record)| record.fields().iter().map(move |field| (key, field)));
        fields.flat_map(|(key, field)| field.siblings().iter().map(move |sibling| (key, field.path(), sibling)))
    }

    /// The records without what only awaits dots that have come.
    fn settled(&self) -> BTreeMap<RecordKey, Record> {
        settled(&self.records, self.frontier.heads.applied())
    }
}

fn settled(records: &BTreeMap<RecordKey, Record>, applied: &AppliedSet) -> BTreeMap<RecordKey, Record> {
    let mut records = records.clone();
    records.values_mut().for_each(|record| _ = record.drop_void_absorb(applied));
    records.retain(|_, record| !record.is_empty());
    records
}

/// The oracle.
fn unsuperseded(history: &[Written], applied: &[usize]) -> BTreeSet<(RecordKey, FieldPath, Dot)> {
    let of = |at: &usize| {
        let write_set = &history[*at].0;
        write_set.changes.iter().map(move |change| (write_set.dot, change))
    };
    let superseded = |place: &Change, dot: Dot| {
        let is_there = |change: &Change| (change.record_key(), &change.field) == (place.record_key(), &place.field);
        applied.iter().flat_map(of).any(|(_, change)| is_there(change) && change.supersedes.contains(&dot))
    };
    let puts = applied.iter().flat_map(of).filter(|(_, change)| matches!(change.effect, Effect::Put(_)));
    let live = puts.filter(|(dot, change)| !superseded(change, *dot));
    live.map(|(dot, change)| (change.record_key(), change.field.clone(), dot)).collect()
}

/// Two nodes that each applied a part, joined, hold what one holds that applied all.
fn joined(history: &[Written], whole: &Replayed, share: u8) {
    let is_of =
        |write_set: &WriteSet, parity: u32| write_set.dot.origin.server_id % 2 == parity || share.is_multiple_of(3);
    let part = |parity: u32| -> Vec<Written> { history.iter().filter(|(w, _)| is_of(w, parity)).cloned().collect() };
    let (one, two) = (Replayed::of(&part(0), |ready| ready[0]), Replayed::of(&part(1), |ready| ready[0]));
    let mut applied = one.frontier.heads.applied().clone();
    applied.join(two.frontier.heads.applied());
    if applied != *whole.frontier.heads.applied() {
        // What depends on both parts was applied in neither.
        return;
    }
    let nothing = Record::default();
    let keys: BTreeSet<&RecordKey> = one.records.keys().chain(two.records.keys()).collect();
    let mut records = BTreeMap::new();
    for key in keys {
        let (ours, theirs) = (one.records.get(key).unwrap_or(&nothing), two.records.get(key).unwrap_or(&nothing));
        let (our_set, their_set) = (one.frontier.heads.applied(), two.frontier.heads.applied());
        let record = ours.join(our_set, theirs, their_set);
        assert_eq!(record, theirs.join(their_set, ours, our_set), "a join has no sides");
        assert_eq!(record.validate(), Ok(()));
        assert_eq!(record.join(&applied, &record, &applied), record, "nor does it do anything twice");
        records.insert(key.clone(), record);
    }
    assert_eq!(settled(&records, &applied), whole.settled());
    let outline = two.frontier.outline();
    let frontier =
        one.frontier.join(&outline, whole.frontier.digest.clone()).expect("there is one history of each origin");
    assert_eq!(frontier.heads, whole.frontier.heads);
}

fn through_bytes(key: &RecordKey, record: &Record, piece_bytes: usize) {
    let mut whole = Record::default();
    for piece in record.pieces(piece_bytes) {
        let sent = SnapshotRecord { key: key.clone(), record: piece };
        let bytes = postcard::to_extend(&sent, Vec::new()).expect("a Vec takes all that is written");
        match postcard::take_from_bytes::<SnapshotRecord>(&bytes) {
            Ok((came, [])) => whole.unite(came.record),
            other => assert!(sent.record.is_empty(), "{other:?} of {sent:?}"),
        }
    }
    assert_eq!(&whole, record, "its pieces are the record");
}
