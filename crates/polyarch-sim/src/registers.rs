//! What the nodes should show, worked out from the outside.
//!
//! **Architecture Invariant:** nothing here calls the apply, the join, the applied-set or the views
//! of the code under test. All of it rests on one sentence: *a register shows the writes that no
//! applied write superseded*.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::rc::Rc;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, Hlc, Origin, Record};
use polyarch_protocol::RecordKey;

/// An applied-set, kept by the checkers themselves.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen(BTreeMap<Origin, u64>);

impl Seen {
    /// The last seq of an origin; 0 for none.
    pub fn seq(&self, origin: Origin) -> u64 {
        self.0.get(&origin).copied().unwrap_or(0)
    }

    /// Whether the write set was applied.
    pub fn includes(&self, dot: Dot) -> bool {
        dot.seq <= self.seq(dot.origin)
    }

    /// Adds a write set and, by the rule that there are no gaps, all before it of its origin.
    pub fn add(&mut self, dot: Dot) {
        let seq = self.0.entry(dot.origin).or_default();
        *seq = (*seq).max(dot.seq);
    }

    /// Adds all of another.
    pub fn join(&mut self, other: &Self) {
        other.iter().for_each(|dot| self.add(dot));
    }

    /// The first dot of `other` that is missing here.
    pub fn missing_of(&self, other: &Self) -> Option<Dot> {
        other.iter().find(|dot| !self.includes(*dot))
    }

    /// The last dot of each origin.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        self.0.iter().map(|(origin, seq)| Dot::new(*origin, *seq))
    }
}

impl From<&AppliedSet> for Seen {
    fn from(applied: &AppliedSet) -> Self {
        Self(applied.iter().map(|dot| (dot.origin, dot.seq)).collect())
    }
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

/// A write set as the simulator saw it come into being.
#[derive(Debug)]
pub struct Written {
    /// Its identity.
    pub dot: Dot,
    /// Its stamp.
    pub hlc: Hlc,
    /// The bytes under that identity.
    pub bytes: Bytes,
    /// What its origin had applied when it wrote it, observed and not read from the write set.
    pub saw: Seen,
    /// What it was meant to change.
    pub changes: Vec<Meant>,
}

/// A change as the client meant it.
#[derive(Debug)]
pub struct Meant {
    /// The record.
    pub key: RecordKey,
    /// The writes that the client named, or that its node held when it said "whatever you hold".
    pub names: Vec<Dot>,
    /// The value; `None` for a delete.
    pub put: Option<Bytes>,
}

/// A live value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The write set that put it.
    pub dot: Dot,
    /// Its stamp.
    pub hlc: Hlc,
    /// The value.
    pub value: Bytes,
}

/// All registers under a set of applied writes.
#[derive(Debug, Clone, Default)]
pub struct Registers {
    seen: Seen,
    registers: BTreeMap<RecordKey, Register>,
}

#[derive(Debug, Clone, Default)]
struct Register {
    live: BTreeMap<Dot, (Hlc, Bytes)>,
    superseded: BTreeSet<Dot>,
}

impl Registers {
    /// The registers under these writes, whatever their order.
    pub fn of<'a>(writes: impl IntoIterator<Item = &'a Rc<Written>>) -> Self {
        let mut registers = Self::default();
        writes.into_iter().for_each(|written| registers.apply(written));
        registers
    }

    /// Takes in one write.
    pub fn apply(&mut self, written: &Written) {
        self.seen.add(written.dot);
        for change in &written.changes {
            let register = self.registers.entry(change.key.clone()).or_default();
            for named in &change.names {
                register.live.remove(named);
                register.superseded.insert(*named);
            }
            if let Some(value) = &change.put
                && !register.superseded.contains(&written.dot)
            {
                register.live.insert(written.dot, (written.hlc, value.clone()));
            }
        }
    }

    /// The writes taken in.
    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    /// What a key should show, in the order of dots.
    pub fn live(&self, key: &RecordKey) -> Vec<Shown> {
        let Some(register) = self.registers.get(key) else { return Vec::new() };
        let shown =
            register.live.iter().map(|(dot, (hlc, value))| Shown { dot: *dot, hlc: *hlc, value: value.clone() });
        shown.collect()
    }

    /// The dots that a key should show.
    pub fn live_dots(&self, key: &RecordKey) -> Vec<Dot> {
        self.registers.get(key).map_or_else(Vec::new, |register| register.live.keys().copied().collect())
    }

    /// Keys with something to show.
    pub fn live_keys(&self) -> impl Iterator<Item = &RecordKey> {
        self.registers.iter().filter(|(_, register)| !register.live.is_empty()).map(|(key, _)| key)
    }
}

/// What a record of the code under test holds for its only field, in the same form.
pub fn shown_of(record: &Record) -> Vec<Shown> {
    let fields = record.fields().iter().flat_map(|field| field.siblings());
    fields.map(|sibling| Shown { dot: sibling.dot, hlc: sibling.hlc, value: sibling.value.clone() }).collect()
}
