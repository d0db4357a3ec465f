//! Durable records that the state does not hold yet.
//!
//! Records are published into the *active* generation. A checkpoint freezes it, writes it to the
//! state and drops it, while a new one fills. A key is looked up in the active generation, then in
//! the frozen one, and only then in the state, which has whatever was dropped here. Records are
//! shared and never changed, so no reader holds a lock while it works on one.
//!
//! The state below lies behind the same lock, for when a snapshot is joined all three change places
//! with another state at one moment. A look-up that goes on to the state takes the one of that moment.

use std::collections::{BTreeMap, btree_map};
use std::iter::Peekable;
use std::mem;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use polyarch_crdt::Record;
use polyarch_protocol::RecordKey;

use crate::state::ScanRange;

/// Records by key, in order; an empty one stands for a key that the state may still have.
pub type Entry = (RecordKey, Arc<Record>);

/// The generations over a state, shared by one writer and any number of readers.
pub struct Memtable<S> {
    generations: RwLock<Generations<S>>,
}

struct Generations<S> {
    active: Generation,
    frozen: Option<Arc<Generation>>,
    state: Arc<S>,
    freezes: u64,
}

/// Where the newest published record is.
pub enum Found<S> {
    /// Here it is.
    Record(Arc<Record>),
    /// If there is one, this state has it.
    InState(Arc<S>),
}

/// An ordered set of records and how much memory it takes.
#[derive(Debug, Default)]
pub struct Generation {
    records: BTreeMap<RecordKey, Arc<Record>>,
    bytes: usize,
}

/// The memtable's part of a scan.
pub struct MemtablePage<S> {
    /// Records in order of keys, empty ones included.
    pub records: Vec<Entry>,
    /// Whether the range has no more records here than these.
    pub is_whole: bool,
    /// The state below, at that moment.
    pub state: Arc<S>,
    /// How often the memtable had been frozen when they were read.
    pub freezes: u64,
}

impl<S> Memtable<S> {
    /// An empty one over a state.
    pub fn new(state: Arc<S>) -> Self {
        let (active, frozen) = (Generation::default(), None);
        Self { generations: RwLock::new(Generations { active, frozen, state, freezes: 0 }) }
    }

    /// The newest published record, or the state that may have it.
    pub fn get(&self, key: &RecordKey) -> Found<S> {
        let generations = self.generations.read();
        let frozen = || generations.frozen.as_ref()?.records.get(key);
        match generations.active.records.get(key).or_else(frozen) {
            Some(record) => Found::Record(Arc::clone(record)),
            None => Found::InState(Arc::clone(&generations.state)),
        }
    }

    /// The state below.
    pub fn state(&self) -> Arc<S> {
        Arc::clone(&self.generations.read().state)
    }

    /// Puts another state, which has all that is here and more, in the place of the state and of all
    /// generations, at one moment. Gives back the old one.
    pub fn replace(&self, state: Arc<S>) -> Arc<S> {
        let mut generations = self.generations.write();
        let old = (mem::replace(&mut generations.state, state), mem::take(&mut generations.active));
        let frozen = generations.frozen.take();
        // A scan that is under way begins again.
        generations.freezes += 1;
        drop(generations);
        // Freed behind the lock: they may be large.
        let (state, active) = old;
        drop((active, frozen));
        state
    }

    /// Records of `range` up to the `limit`-th that is not empty, as they were at one moment.
    pub fn page(&self, range: &ScanRange, limit: usize) -> MemtablePage<S> {
        let generations = self.generations.read();
        let frozen = generations.frozen.iter().flat_map(|frozen| frozen.range(range));
        let state = Arc::clone(&generations.state);
        let mut page = MemtablePage { records: Vec::new(), is_whole: true, state, freezes: generations.freezes };
        let mut room = limit;
        for (key, record) in newest_first(generations.active.range(range), frozen) {
            if room == 0 {
                page.is_whole = false;
                break;
            }
            room -= usize::from(!record.is_empty());
            page.records.push((key.clone(), Arc::clone(record)));
        }
        page
    }

    /// How often the memtable was frozen: as long as that is the same, the state's visible
    /// contents apart from the frozen records' are the same too.
    pub fn freezes(&self) -> u64 {
        self.generations.read().freezes
    }

    /// Makes records visible, all at one moment.
    pub fn publish(&self, records: impl IntoIterator<Item = Entry>) {
        let active = &mut self.generations.write().active;
        records.into_iter().for_each(|(key, record)| active.insert(key, record));
    }

    /// The bytes of the active generation.
    pub fn active_bytes(&self) -> usize {
        self.generations.read().active.bytes
    }

    /// The bytes of both generations.
    pub fn bytes(&self) -> usize {
        let generations = self.generations.read();
        generations.active.bytes + generations.frozen.as_ref().map_or(0, |frozen| frozen.bytes)
    }

    /// Freezes the active generation and begins another.
    ///
    /// # Panics
    /// When there is a frozen generation already.
    pub fn freeze(&self) -> Arc<Generation> {
        let generations = &mut *self.generations.write();
        assert!(generations.frozen.is_none(), "one generation is frozen at a time");
        let frozen = Arc::new(mem::take(&mut generations.active));
        generations.frozen = Some(Arc::clone(&frozen));
        generations.freezes += 1;
        frozen
    }

    /// Lets go of the frozen generation, whose records the state now has.
    pub fn drop_frozen(&self) {
        let frozen = self.generations.write().frozen.take();
        // Freed behind the lock: it may be large.
        drop(frozen);
    }
}

impl Generation {
    /// All records, in order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&RecordKey, &Arc<Record>)> {
        self.records.iter()
    }

    /// Whether it holds a record, or that there is none, for this key.
    pub fn contains(&self, key: &RecordKey) -> bool {
        self.records.contains_key(key)
    }

    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    fn insert(&mut self, key: RecordKey, record: Arc<Record>) {
        self.bytes += footprint(&key, &record);
        match self.records.entry(key) {
            btree_map::Entry::Vacant(place) => {
                place.insert(record);
            }
            btree_map::Entry::Occupied(mut place) => {
                let old = place.insert(record);
                self.bytes -= footprint(place.key(), &old);
            }
        }
    }

    fn range(&self, range: &ScanRange) -> impl Iterator<Item = (&RecordKey, &Arc<Record>)> {
        let from = self.records.range::<RecordKey, _>((range.start(), Bound::Unbounded));
        from.take_while(|(key, _)| range.reaches(key.as_bytes()))
    }
}

/// About how many bytes of memory a record takes with its key.
pub(crate) fn footprint(key: &RecordKey, record: &Record) -> usize {
    const ENTRY: usize = 96;
    const FIELD: usize = 64;
    const SIBLING: usize = 64;
    const DOT: usize = 16;
    let fields = record.fields().iter().map(|field| {
        let values: usize = field.siblings().iter().map(|sibling| SIBLING + sibling.value.len()).sum();
        FIELD + field.path().as_str().len() + values + DOT * field.absorb().len()
    });
    ENTRY + key.as_bytes().len() + fields.sum::<usize>()
}

/// Merges two sequences in order of keys; of a key that both have the first's value is taken.
pub(crate) fn newest_first<K: Ord, V>(
    newer: impl Iterator<Item = (K, V)>,
    older: impl Iterator<Item = (K, V)>,
) -> impl Iterator<Item = (K, V)> {
    NewestFirst { newer: newer.peekable(), older: older.peekable() }
}

struct NewestFirst<A: Iterator, B: Iterator> {
    newer: Peekable<A>,
    older: Peekable<B>,
}

impl<K: Ord, V, A, B> Iterator for NewestFirst<A, B>
where
    A: Iterator<Item = (K, V)>,
    B: Iterator<Item = (K, V)>,
{
    type Item = (K, V);

    fn next(&mut self) -> Option<(K, V)> {
        let Some((newer, _)) = self.newer.peek() else {
            return self.older.next();
        };
        if let Some(before) = self.older.next_if(|(older, _)| older < newer) {
            return Some(before);
        }
        self.older.next_if(|(older, _)| older == newer);
        self.newer.next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_sequences_the_newer_wins() {
        let newer = [(2, 'n'), (4, 'n'), (5, 'n')];
        let older = [(1, 'o'), (2, 'o'), (3, 'o'), (5, 'o'), (9, 'o')];
        let merged: Vec<_> = newest_first(newer.into_iter(), older.into_iter()).collect();
        assert_eq!(merged, [(1, 'o'), (2, 'n'), (3, 'o'), (4, 'n'), (5, 'n'), (9, 'o')]);
    }
}
