use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, Origin};

use crate::write_set::{Change, WriteSet};

/// Write sets of one link that came before something they depend on.
///
/// One queue per origin, so that an origin which has to wait holds up no other: two streams whose
/// heads wait for what lies further back in the other stream both go on.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    queues: BTreeMap<Origin, VecDeque<WaitingWriteSet>>,
    bytes: usize,
}

#[derive(Debug)]
pub(crate) struct WaitingWriteSet {
    pub(crate) write_set: WriteSet,
    pub(crate) bytes: Bytes,
    pub(crate) since_ms: u64,
}

impl Waiting {
    /// The last seq that waits for this origin.
    pub(crate) fn last_seq(&self, origin: Origin) -> Option<u64> {
        self.queues.get(&origin)?.back().map(|last| last.write_set.dot.seq)
    }

    /// How many bytes of memory wait, or a little more.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub(crate) fn push(&mut self, mut waiting: WaitingWriteSet) {
        // A slice would keep the whole frame that it came in.
        waiting.bytes = Bytes::copy_from_slice(&waiting.bytes);
        self.bytes += waiting.memory_bytes();
        self.queues.entry(waiting.write_set.dot.origin).or_default().push_back(waiting);
    }

    /// Takes out a write set that can be applied over `applied`, dropping those that already are.
    pub(crate) fn pop_due(&mut self, applied: &AppliedSet) -> Option<WaitingWriteSet> {
        let origins: Vec<Origin> = self.queues.keys().copied().collect();
        for origin in origins {
            while self.front(origin).is_some_and(|w| applied.includes(w.write_set.dot)) {
                self.pop(origin);
            }
            if self.front(origin).is_some_and(|w| is_due(&w.write_set, applied)) {
                return self.pop(origin);
            }
        }
        None
    }

    /// Origins that some write set has waited for since before `since_ms`.
    pub(crate) fn awaited(&self, applied: &AppliedSet, since_ms: u64) -> impl Iterator<Item = Origin> {
        let heads = self.queues.values().filter_map(VecDeque::front).filter(move |w| w.since_ms <= since_ms);
        heads
            .flat_map(|w| w.write_set.dependencies.applied().iter())
            .filter(|dot| !applied.includes(*dot))
            .map(|dot| dot.origin)
    }

    /// Origins whose next write set depends on a stopped one that is not applied, each with that one.
    pub(crate) fn behind(&self, is_stopped: impl Fn(Origin) -> bool, applied: &AppliedSet) -> Vec<(Origin, Origin)> {
        let missing = |w: &WaitingWriteSet| {
            let mut needs = w.write_set.dependencies.applied().iter();
            needs.find(|dot| is_stopped(dot.origin) && !applied.includes(*dot)).map(|dot| dot.origin)
        };
        let fronts = self.queues.iter().filter_map(|(origin, queue)| Some((*origin, missing(queue.front()?)?)));
        fronts.collect()
    }

    fn front(&self, origin: Origin) -> Option<&WaitingWriteSet> {
        self.queues.get(&origin)?.front()
    }

    fn pop(&mut self, origin: Origin) -> Option<WaitingWriteSet> {
        let queue = self.queues.get_mut(&origin)?;
        let popped = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&origin);
        }
        self.bytes -= popped.as_ref().map_or(0, WaitingWriteSet::memory_bytes);
        popped
    }
}

impl WaitingWriteSet {
    /// Its bytes, and what they were decoded to.
    fn memory_bytes(&self) -> usize {
        let dots: usize = self.write_set.changes.iter().map(|change| change.supersedes.len()).sum();
        let dots = dots + self.write_set.dependencies.applied().len();
        2 * self.bytes.len()
            + size_of::<Self>()
            + self.write_set.changes.len() * size_of::<Change>()
            + dots * size_of::<Dot>()
    }
}

/// Whether all that the write set depends on, its origin's previous one included, is applied.
pub(crate) fn is_due(write_set: &WriteSet, applied: &AppliedSet) -> bool {
    if polyarch_crdt::seeded_bug("apply-out-of-order") {
        return write_set.dot.seq == applied.seq(write_set.dot.origin) + 1;
    }
    write_set.dot.seq == applied.seq(write_set.dot.origin) + 1 && applied.includes_all(write_set.dependencies.applied())
}
