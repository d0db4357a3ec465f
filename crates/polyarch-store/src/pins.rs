//! What must stay while records are walked and the log behind them is yet to be read.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use polyarch_crdt::{AppliedSet, Dot};
use polyarch_protocol::{Frontier, LogPosition};

/// The pins of one store.
#[derive(Clone, Default)]
pub(crate) struct Pins {
    table: Arc<Mutex<Table>>,
    #[cfg(feature = "seeded-bugs")]
    bugs: crate::store::SeededBugs,
}

#[derive(Default)]
struct Table {
    pinned: BTreeMap<u64, Pinned>,
    taken: u64,
}

struct Pinned {
    start: AppliedSet,
    position: LogPosition,
}

/// Holds on to what a walk over a store's records needs from when it begins: absorb entries whose
/// dots were not applied then, and the log from there on.
///
/// The walk reads records that may be newer than its start and is followed by the log from the
/// start on. So a write set is applied to records that know more than it does, and without the
/// absorb entries a value that they superseded before it came would show again.
///
/// It may be held on any thread for any time; what it holds on to goes when it is dropped. A store
/// that is dropped takes nothing away from it, but neither does it keep files.
pub struct Pin {
    table: Arc<Mutex<Table>>,
    number: u64,
    start: Frontier,
    position: LogPosition,
}

impl Pin {
    /// What was applied when it was taken: V of a snapshot that is walked under it.
    pub fn start(&self) -> &Frontier {
        &self.start
    }

    /// Where the log was then: what was applied since lies behind this place.
    pub fn position(&self) -> LogPosition {
        self.position
    }

    /// Whether it still holds. No longer once the store has adopted a joined state: the log then
    /// lacks write sets that the records have, and whoever walks under this pin must give up.
    pub fn is_valid(&self) -> bool {
        self.table.lock().pinned.contains_key(&self.number)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.table.lock().pinned.remove(&self.number);
    }
}

impl Pins {
    #[cfg(feature = "seeded-bugs")]
    pub(crate) fn with_bugs(bugs: crate::store::SeededBugs) -> Self {
        Self { bugs, ..Self::default() }
    }

    pub(crate) fn pin(&self, start: &Frontier, position: LogPosition) -> Pin {
        let mut table = self.table.lock();
        table.taken += 1;
        let number = table.taken;
        table.pinned.insert(number, Pinned { start: start.heads.applied().clone(), position });
        Pin { table: Arc::clone(&self.table), number, start: start.clone(), position }
    }

    /// Of the dots in `checkpointed` those that every pin's start set includes too: absorb entries of
    /// these are void for everybody.
    ///
    /// A pin taken later does no harm to a checkpoint that goes by this set: its start set includes
    /// all that was checkpointed before.
    pub(crate) fn void(&self, checkpointed: &AppliedSet) -> AppliedSet {
        #[cfg(feature = "seeded-bugs")]
        if self.bugs.absorb_not_pinned {
            return checkpointed.clone();
        }
        let table = self.table.lock();
        let least = |dot: Dot| {
            let starts = table.pinned.values().map(|pinned| pinned.start.seq(dot.origin));
            Dot::new(dot.origin, starts.fold(dot.seq, u64::min))
        };
        checkpointed.iter().map(least).collect()
    }

    /// The earliest place behind which the log must stay.
    pub(crate) fn earliest(&self) -> Option<LogPosition> {
        #[cfg(feature = "seeded-bugs")]
        if self.bugs.log_not_pinned {
            return None;
        }
        self.table.lock().pinned.values().map(|pinned| pinned.position).min()
    }

    /// Whether a pin is of this store, and valid.
    pub(crate) fn holds(&self, pin: &Pin) -> bool {
        Arc::ptr_eq(&self.table, &pin.table) && pin.is_valid()
    }

    /// Ends all of them.
    pub(crate) fn invalidate(&self) {
        self.table.lock().pinned.clear();
    }
}
