//! What all tests of the algebra share: write sets, a node's state, and the oracle.
#![allow(dead_code, reason = "each test binary compiles all of this and uses its own part")]

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, FieldChange, FieldPath, Hlc, Origin, Record, lww};
use proptest::collection::SizeRange;
use proptest::prelude::*;

pub(crate) const KEYS: [&str; 3] = ["a", "b", "c"];
pub(crate) const FIELDS: [&str; 2] = ["x", "y"];

/// `default` cases a property, unless `PROPTEST_CASES` says otherwise.
pub(crate) fn cases(default: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(default),
        // Proptest prints the shrunken case; what it found becomes a test of its own.
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub(crate) fn dot(server_id: u32, seq: u64) -> Dot {
    Dot::new(Origin::new(server_id, 1), seq)
}

pub(crate) fn value(number: u32) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

/// A write set as nodes ship it: its dot and stamp, what its origin had applied, its changes.
#[derive(Debug, Clone)]
pub(crate) struct WriteSet {
    pub(crate) dot: Dot,
    pub(crate) hlc: Hlc,
    pub(crate) saw: AppliedSet,
    pub(crate) changes: Vec<Change>,
}

/// At most one for each key and field of a write set.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) key: &'static str,
    pub(crate) field: &'static str,
    pub(crate) supersedes: Vec<Dot>,
    pub(crate) put: Option<Bytes>,
}

impl WriteSet {
    /// Whether a node that has applied `applied` may apply this next.
    pub(crate) fn is_next_for(&self, applied: &AppliedSet) -> bool {
        self.dot.seq == applied.seq(self.dot.origin) + 1 && applied.includes_all(&self.saw)
    }
}

/// What a reader is shown: the live values with their dots and stamps.
pub(crate) type Shown = BTreeMap<(&'static str, &'static str), BTreeMap<Dot, (Hlc, Bytes)>>;

/// The one-sentence oracle: the register shows the writes that no applied write superseded.
///
/// It knows nothing of records, absorb entries, orders of delivery or joins.
pub(crate) fn oracle(applied: &[&WriteSet]) -> Shown {
    let changes = || applied.iter().flat_map(|w| w.changes.iter().map(move |c| (w, c)));
    let superseded: BTreeSet<_> =
        changes().flat_map(|(_, c)| c.supersedes.iter().map(move |old| (c.key, c.field, *old))).collect();
    let mut shown = Shown::new();
    for (w, c) in changes() {
        if let Some(value) = &c.put
            && !superseded.contains(&(c.key, c.field, w.dot))
        {
            shown.entry((c.key, c.field)).or_default().insert(w.dot, (w.hlc, value.clone()));
        }
    }
    shown
}

/// All records of a node and its applied-set: the state that the laws are about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    // An empty record is the same as no record, and is not kept.
    pub(crate) records: BTreeMap<&'static str, Record>,
    pub(crate) applied: AppliedSet,
}

impl State {
    /// Applies a write set, unless it was applied before.
    pub(crate) fn apply(&mut self, write_set: &WriteSet) {
        if self.applied.includes(write_set.dot) {
            return;
        }
        for change in &write_set.changes {
            let path = FieldPath::from(change.field);
            let change_of_field = FieldChange { path: &path, supersedes: &change.supersedes, put: change.put.as_ref() };
            let record = self.records.entry(change.key).or_default();
            let outcome = record.apply(write_set.dot, write_set.hlc, &change_of_field, &self.applied);
            assert_eq!(outcome.siblings, record.siblings(&path).len());
        }
        self.applied.add(write_set.dot);
        self.records.retain(|_, record| !record.is_empty());
    }

    /// The join of two nodes' states, key by key.
    pub(crate) fn join(&self, other: &State) -> State {
        let mut joined = self.clone();
        for key in KEYS {
            let record = self.record(key).join(&self.applied, &other.record(key), &other.applied);
            joined.records.insert(key, record);
        }
        joined.records.retain(|_, record| !record.is_empty());
        joined.applied.join(&other.applied);
        joined
    }

    pub(crate) fn record(&self, key: &str) -> Record {
        self.records.get(key).cloned().unwrap_or_default()
    }

    /// The dots that a reader of `key` is shown of `field`.
    pub(crate) fn dots(&self, key: &str, field: &str) -> Vec<Dot> {
        let path = FieldPath::from(field);
        let record = self.records.get(key);
        record.map_or(vec![], |record| record.siblings(&path).iter().map(|s| s.dot).collect())
    }

    pub(crate) fn drop_void_absorb(&mut self, checkpointed: &AppliedSet) {
        for record in self.records.values_mut() {
            record.drop_void_absorb(checkpointed);
        }
        self.records.retain(|_, record| !record.is_empty());
    }

    /// The state without the absorb entries that only a crash or a running scan could still need.
    pub(crate) fn settled(&self) -> State {
        let mut settled = self.clone();
        settled.drop_void_absorb(&self.applied);
        settled
    }

    pub(crate) fn shown(&self) -> Shown {
        let mut shown = Shown::new();
        for (key, record) in &self.records {
            for field in FIELDS {
                let siblings = record.siblings(&FieldPath::from(field));
                let values: BTreeMap<_, _> = siblings.iter().map(|s| (s.dot, (s.hlc, s.value.clone()))).collect();
                if !values.is_empty() {
                    shown.insert((key, field), values);
                }
            }
        }
        shown
    }

    /// Says how the state differs from the oracle over `written`, or breaks a record's own rules.
    pub(crate) fn check<'a>(&self, written: impl Iterator<Item = &'a WriteSet>) -> Result<(), String> {
        let applied: Vec<_> = written.filter(|w| self.applied.includes(w.dot)).collect();
        let expected = oracle(&applied);
        let shown = self.shown();
        if shown != expected {
            return Err(format!("after {:?}\n  shown  {shown:?}\n  oracle {expected:?}", self.applied));
        }
        for record in self.records.values() {
            record.validate().map_err(str::to_string)?;
        }
        for ((key, field), values) in &expected {
            let winner = values.iter().max_by_key(|(dot, (hlc, _))| (*hlc, dot.origin)).map(|(dot, _)| *dot);
            let record = self.record(key);
            if lww(record.siblings(&FieldPath::from(*field))).map(|s| s.dot) != winner {
                return Err(format!("{key}/{field}: lww does not show {winner:?}"));
            }
        }
        Ok(())
    }
}

/// A history in which several servers write, see one another's writes now and then, and name
/// contexts that are current, stale, foreign or empty. In order of creation, which is causal.
#[derive(Debug, Clone)]
pub(crate) struct SmallHistory {
    pub(crate) write_sets: Vec<WriteSet>,
}

/// One write set of a [`SmallHistory`], in choices that any number answers.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    server: usize,
    /// Whose writes the server has been fed before, if any.
    fed_by: Option<usize>,
    /// Whose state the writer was shown: the server's own, or another's that may be ahead of it.
    shown_by: usize,
    sees_nothing: bool,
    now_ms: u64,
    changes: Vec<(usize, usize, bool)>,
}

pub(crate) fn small_history(write_sets: impl Into<SizeRange>) -> impl Strategy<Value = SmallHistory> {
    let draft = (
        0..3_usize,
        prop::option::weighted(0.25, 0..3_usize),
        0..3_usize,
        prop::bool::weighted(0.2),
        0..4_u64,
        prop::collection::vec((0..2_usize, 0..2_usize, prop::bool::weighted(0.7)), 1..3),
    );
    let draft = draft.prop_map(|(server, fed_by, shown_by, sees_nothing, now_ms, changes)| Draft {
        server,
        fed_by,
        shown_by,
        sees_nothing,
        now_ms,
        changes,
    });
    prop::collection::vec(draft, write_sets).prop_map(|drafts| SmallHistory::of(&drafts))
}

impl SmallHistory {
    fn of(drafts: &[Draft]) -> Self {
        let mut servers = vec![State::default(); 3];
        let mut write_sets: Vec<WriteSet> = vec![];
        for draft in drafts {
            let known = draft.fed_by.map_or(AppliedSet::new(), |peer| servers[peer].applied.clone());
            let server = &mut servers[draft.server];
            write_sets.iter().filter(|w| known.includes(w.dot)).for_each(|w| server.apply(w));

            let number = write_sets.len() as u32;
            let applied = servers[draft.server].applied.clone();
            let mut changes: BTreeMap<_, Change> = BTreeMap::new();
            for (key, field, puts) in &draft.changes {
                let (key, field) = (KEYS[*key], FIELDS[*field]);
                let supersedes = if draft.sees_nothing { vec![] } else { servers[draft.shown_by].dots(key, field) };
                let put = puts.then(|| value(number));
                changes.insert((key, field), Change { key, field, supersedes, put });
            }
            let seq = applied.seq(dot(draft.server as u32 + 1, 1).origin) + 1;
            let write_set = WriteSet {
                dot: dot(draft.server as u32 + 1, seq),
                // Skewed on purpose, but of one origin never the same twice.
                hlc: Hlc::new(draft.now_ms, number as u16),
                saw: applied,
                changes: changes.into_values().collect(),
            };
            servers[draft.server].apply(&write_set);
            write_sets.push(write_set);
        }
        Self { write_sets }
    }

    /// A state that a node may reach: of the write sets that causality allows next, `choices` says
    /// which one comes, until the choices run out. Each node hears most from one server, and some
    /// take checkpoints on the way.
    pub(crate) fn reach(&self, choices: &[u8]) -> State {
        let mut state = State::default();
        let nearest = choices.first().map_or(0, |choice| u32::from(choice % 3) + 1);
        for choice in choices {
            let mut next: Vec<_> = self.write_sets.iter().filter(|w| w.is_next_for(&state.applied)).collect();
            if choice % 4 > 0 && next.iter().any(|w| w.dot.origin.server_id == nearest) {
                next.retain(|w| w.dot.origin.server_id == nearest);
            }
            if next.is_empty() {
                break;
            }
            state.apply(next[usize::from(*choice) % next.len()]);
            if choice % 5 == 0 {
                state = state.settled();
            }
        }
        state
    }
}
