//! Bringing what a repair found to its place, a part at a time, beside everything else.
//!
//! The salvage is gone through from front to back; what is due is applied, and the first of each origin
//! that is not is remembered. When one of those may be due the next pass begins. Passes read all of it, so
//! they are spaced by some times what the last one took.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, Origin};
use polyarch_protocol::condition::SalvageView;
use polyarch_protocol::{Event, LogPosition, WriteSet};
use polyarch_store::Salvage;
use tracing::{info, warn};

use crate::events::EventLedger;

/// Bytes of write sets that are handed over at once: what a sync takes at most.
const BYTES_AT_ONCE: usize = 1 << 20;
/// The time between two passes, at least, and as a multiple of what the last one took.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_TIMES: u32 = 10;
/// The most, when passes change nothing.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// How long nobody has had more than this node before what still waits is said to be stuck.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// Origins that a view names at most.
const NAMED_MAX: usize = 16;

/// A salvage on its way to its place.
pub(crate) struct Salvaging {
    salvage: Salvage,
    pass: Option<PassState>,
    /// What waited when the last pass ended.
    left: Left,
    next_pass: Instant,
    /// How long before it.
    pause: Duration,
    level_since: Option<Instant>,
    is_told: bool,
}

/// A pass that is under way.
struct PassState {
    began: Instant,
    at: LogPosition,
    left: Left,
}

/// What was not due.
#[derive(Default)]
struct Left {
    write_sets: u64,
    /// The first of each origin, with what it depends on.
    first: BTreeMap<Origin, (Dot, AppliedSet)>,
}

/// What is to be done next.
pub(crate) enum Pass {
    /// Nothing for now.
    Nothing,
    /// These are to be handed over.
    WriteSets(Vec<Bytes>),
    /// All of it is applied.
    Done,
    /// It cannot be read.
    Unreadable(String),
}

impl Salvaging {
    pub(crate) fn new(salvage: Salvage) -> Self {
        info!("a repair left write sets that wait for their place");
        Self {
            salvage,
            pass: Some(PassState::begin()),
            left: Left::default(),
            next_pass: Instant::now(),
            pause: PAUSE_MIN,
            level_since: None,
            is_told: false,
        }
    }

    pub(crate) fn is_in_a_pass(&self) -> bool {
        self.pass.is_some()
    }

    /// What comes next, when so much is applied.
    pub(crate) fn next(&mut self, applied: &AppliedSet) -> Pass {
        if self.pass.is_none() {
            if Instant::now() < self.next_pass || !self.left.may_be_due(applied) {
                return Pass::Nothing;
            }
            self.pass = Some(PassState::begin());
        }
        let Some(pass) = &mut self.pass else { return Pass::Nothing };
        match self.salvage.read(pass.at, BYTES_AT_ONCE) {
            Err(error) => Pass::Unreadable(error.to_string()),
            Ok((write_sets, _)) if write_sets.is_empty() => self.end_pass(),
            Ok((write_sets, next)) => {
                pass.at = next;
                Pass::WriteSets(write_sets)
            }
        }
    }

    fn end_pass(&mut self) -> Pass {
        let Some(pass) = self.pass.take() else { return Pass::Nothing };
        // What may be due by its dependencies and yet is not taken, as of a stopped origin, is tried ever more rarely.
        let is_vain = pass.left.write_sets == self.left.write_sets;
        self.pause = if is_vain { (self.pause * 2).min(PAUSE_MAX) } else { PAUSE_MIN };
        self.next_pass = Instant::now() + self.pause.max(pass.began.elapsed() * PAUSE_TIMES);
        self.left = pass.left;
        match self.left.write_sets {
            0 => Pass::Done,
            _ => Pass::Nothing,
        }
    }

    /// Takes note of those of a part that are not applied now.
    pub(crate) fn note_left(&mut self, write_sets: &[Bytes], applied: &AppliedSet) {
        let Some(pass) = &mut self.pass else { return };
        write_sets.iter().for_each(|bytes| pass.left.note(bytes, applied));
    }

    pub(crate) fn view(&self) -> SalvageView {
        let left = match &self.pass {
            Some(pass) if self.left.write_sets == 0 => &pass.left,
            _ => &self.left,
        };
        SalvageView { write_sets: left.write_sets, first: left.dots().take(NAMED_MAX).collect() }
    }

    /// Says that what waits has nothing to wait for, once until somebody is there again who has more.
    pub(crate) fn tell_if_stuck(&mut self, has_all_that_is_known: bool, events: &mut EventLedger) {
        if !has_all_that_is_known {
            (self.level_since, self.is_told) = (None, false);
            return;
        }
        if self.is_told {
            return;
        }
        let since = *self.level_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= STUCK_AFTER {
            self.is_told = true;
            let first = self.left.dots().collect();
            events.tell(&Event::SalvageStuck { write_sets: self.left.write_sets, first });
        }
    }

    /// All of it is applied, durably.
    pub(crate) fn remove(self, events: &mut EventLedger) {
        if let Err(error) = self.salvage.remove() {
            warn!(%error, "the write sets that a repair had found are applied and cannot be removed; the next start does");
        }
        events.tell(&Event::SalvageApplied);
    }
}

impl PassState {
    fn begin() -> Self {
        Self { began: Instant::now(), at: LogPosition::default(), left: Left::default() }
    }
}

impl Left {
    fn note(&mut self, bytes: &Bytes, applied: &AppliedSet) {
        // What has no dot can never be applied.
        let Ok(dot) = WriteSet::peek_dot(bytes) else { return };
        if applied.includes(dot) {
            return;
        }
        self.write_sets += 1;
        let is_first = self.first.get(&dot.origin).is_none_or(|(first, _)| dot.seq < first.seq);
        if is_first {
            // One that cannot be read here is tried again whenever it is next.
            let needs =
                WriteSet::decode(bytes).map_or_else(|_| AppliedSet::new(), |w| w.dependencies.applied().clone());
            self.first.insert(dot.origin, (dot, needs));
        }
    }

    /// Whether one of the first has become due, or is applied.
    fn may_be_due(&self, applied: &AppliedSet) -> bool {
        self.first.values().any(|(dot, needs)| {
            applied.includes(*dot) || applied.seq(dot.origin) + 1 == dot.seq && applied.includes_all(needs)
        })
    }

    fn dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.first.values().map(|(dot, _)| *dot)
    }
}
