//! Bases: closed epochs, put together so that sets need not name each of them.
//!
//! Each process that writes opens an epoch, so a node restarted ten thousand times leaves ten
//! thousand origins behind. A [`Base`] is a record of the system keyspace that adds closed epochs to
//! those of another, its parent. It is named by the write set that published it, which no two share;
//! numbers would clash where two masters take the next one at once.
//!
//! What makes bases simple is causal delivery. Who published a base had applied all that it holds,
//! so whoever has applied the base's write set has applied that too, and a set that names the write
//! set *implies* all of the base. A write set that breaks this is not taken. Nothing has to be agreed on, and nobody has to be waited for: a
//! member that was away gets the epochs, then the base, and until then is told sets that are spelled
//! out.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Base, ClosedEpoch, Dot, FieldPath, Record};
use serde::{Deserialize, Serialize};

use crate::catalog::{BaseDefinition, SystemRecord};
use crate::keyspace::RecordKey;

/// The bases that a node knows of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bases {
    by_name: BTreeMap<Dot, Arc<Base>>,
    newest: Option<Arc<Base>>,
}

impl Bases {
    /// The base that a write set published.
    pub fn get(&self, name: Dot) -> Option<&Arc<Base>> {
        self.by_name.get(&name)
    }

    /// The base that all nodes use once they know the same: of those with the longest chain the one
    /// with the greatest name. What another one of two made at once holds, the next takes in.
    pub fn newest(&self) -> Option<&Arc<Base>> {
        self.newest.as_ref()
    }

    /// All of them, those with the longest chain first.
    pub fn newest_first(&self) -> Vec<&Arc<Base>> {
        let mut bases: Vec<_> = self.by_name.values().collect();
        bases.sort_by_key(|base| std::cmp::Reverse((base.length(), base.name())));
        bases
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    fn insert(&mut self, base: Arc<Base>) {
        let rank = |base: &Base| (base.length(), base.name());
        if self.newest.as_ref().is_none_or(|newest| rank(newest) < rank(&base)) {
            self.newest = Some(Arc::clone(&base));
        }
        self.by_name.insert(base.name(), base);
    }
}

/// An applied-set as it travels where it has to be small: the name of a base, and what goes beyond it.
///
/// Only for one who knows the base. To anybody else `rest` alone is a lower bound of the set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasedSet {
    /// The write set that published the base; `None` where the set is spelled out.
    pub base: Option<Dot>,
    /// What goes beyond the base.
    pub rest: AppliedSet,
}

impl BasedSet {
    /// A set, for one who knows `base`. Spelled out where it does not include that.
    pub fn new(applied: &AppliedSet, base: Option<&Arc<Base>>) -> Self {
        match base.and_then(|base| applied.rebased(base)) {
            Some(set) => Self::from(&set),
            None => Self { base: None, rest: applied.clone() },
        }
    }

    /// Whether it says `applied`, by the base that this is expressed by.
    pub(crate) fn is_of(&self, applied: &AppliedSet) -> bool {
        self.base == applied.base().map(|base| base.name()) && self.rest.is_rest_of(applied)
    }

    /// The set; `None` when its base is not known here.
    pub fn resolve(&self, bases: &Bases) -> Option<AppliedSet> {
        match self.base {
            None => Some(self.rest.clone()),
            Some(name) => Some(AppliedSet::over(Arc::clone(bases.get(name)?), &self.rest)),
        }
    }

    /// What is certain of the set: all of it, or what goes beyond a base that is not known here.
    pub fn known_by(&self, bases: &Bases) -> AppliedSet {
        self.resolve(bases).unwrap_or_else(|| self.rest.clone())
    }
}

impl From<&AppliedSet> for BasedSet {
    /// By the base that the set is expressed by, for whoever may know it.
    fn from(applied: &AppliedSet) -> Self {
        Self { base: applied.base().map(|base| base.name()), rest: applied.beyond_base() }
    }
}

/// Reads the bases among the records of the system keyspace.
pub(crate) struct BasesReader<'a> {
    known: &'a Bases,
    read: Bases,
    /// Those that are to be put on their parents yet.
    defined: BTreeMap<Dot, BaseDefinition>,
    unreadable: Vec<Bytes>,
}

impl<'a> BasesReader<'a> {
    /// A base that is among `known` is not read again: none is ever changed.
    pub(crate) fn new(known: &'a Bases) -> Self {
        Self { known, read: Bases::default(), defined: BTreeMap::new(), unreadable: Vec::new() }
    }

    /// Reads the record that should hold base `name`. Only the write set of that name can say it.
    pub(crate) fn take(&mut self, name: Dot, key: &RecordKey, record: &Record) {
        if let Some(base) = self.known.get(name) {
            return self.read.insert(Arc::clone(base));
        }
        let mut siblings = record.siblings(&FieldPath::opaque()).iter();
        let decoded = siblings.find(|sibling| sibling.dot == name).map(|own| SystemRecord::decode(&own.value));
        match decoded {
            Some(Ok(SystemRecord::Base(definition))) => _ = self.defined.insert(name, definition),
            _ => self.unreadable.push(key.key_bytes()),
        }
    }

    /// The bases, and the keys of those that make no sense.
    pub(crate) fn finish(mut self) -> (Bases, Vec<Bytes>) {
        while let Some(name) = self.defined.keys().next().copied() {
            self.put(name);
        }
        (self.read, self.unreadable)
    }

    /// Puts a base on its parent, which is put on its own before. A chain may be long.
    fn put(&mut self, name: Dot) {
        let mut chain = Vec::new();
        let mut next = Some(name);
        // What was taken out is not met again, so that a circle ends.
        while let Some((name, definition)) = next.and_then(|name| self.defined.remove_entry(&name)) {
            next = definition.parent;
            chain.push((name, definition));
        }
        for (name, BaseDefinition { parent, closed }) in chain.into_iter().rev() {
            let parent = parent.map(|parent| self.read.get(parent).ok_or(parent)).transpose();
            let closed = closed
                .into_iter()
                .map(|(origin, head)| ClosedEpoch { last: Dot::new(origin, head.seq), chain: head.hash.0 });
            match parent.map(|parent| Base::new(name, parent.map(|parent| &**parent), closed)) {
                Ok(Ok(base)) => self.read.insert(Arc::new(base)),
                _ => self.unreadable.push(crate::catalog::base_key(name)),
            }
        }
    }
}
