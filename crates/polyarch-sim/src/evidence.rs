//! What is known of a node's disk from the outside: where each write set stands in its log, what was damaged
//! there, and what waits to be applied. From this, and not from what the node says, it is worked out what a
//! damage may cost.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use polyarch_crdt::Dot;
use polyarch_protocol::LogPosition;

use crate::registers::Written;

/// Bytes of a frame before its write set, and what frames begin at a multiple of: see `docs/disk-format.md`.
const FRAME_HEADER_BYTES: u64 = 40;
const ALIGNMENT: u64 = 8;

/// What is known of one node's disk.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    log: BTreeMap<Dot, Place>,
    /// Segments that something was changed in before their first frame.
    headers: BTreeSet<u64>,
    /// What a repair found, by what is known of it, and the node has yet to apply.
    waiting: BTreeMap<Dot, Waiting>,
    /// The log does not begin where the node did, or something beside it was joined.
    pub is_cut_off: bool,
    /// The small files beside the log were damaged.
    pub marks_are_damaged: bool,
    /// The state was damaged, or rolled back further than it may.
    pub state_is_damaged: bool,
    /// A snapshot on its way in was damaged.
    pub snapshot_is_damaged: bool,
    /// What waits was damaged.
    pub salvage_is_damaged: bool,
}

/// Where a write set stands in a log.
#[derive(Debug, Clone, Copy)]
struct Place {
    begins: u64,
    end: LogPosition,
    /// Up to where the log was synced when this was written.
    synced: LogPosition,
    is_damaged: bool,
}

/// A write set that waits.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// It.
    pub written: Rc<Written>,
    /// It is damaged where it stands, and need not be applied.
    pub is_damaged: bool,
    place: Place,
}

impl Place {
    fn new(bytes: usize, end: LogPosition, synced: LogPosition) -> Self {
        let frame_bytes = (FRAME_HEADER_BYTES + bytes as u64).next_multiple_of(ALIGNMENT);
        Self { begins: end.offset.saturating_sub(frame_bytes), end, synced, is_damaged: false }
    }

    fn is_hit(&self, segment: u64, bytes: &Range<u64>) -> bool {
        self.end.segment == segment && self.begins < bytes.end && bytes.start < self.end.offset
    }
}

impl Evidence {
    /// The log took a write set, of so many bytes.
    pub fn appended(&mut self, dot: Dot, bytes: usize, end: LogPosition, synced: LogPosition) {
        self.log.insert(dot, Place::new(bytes, end, synced));
    }

    /// The node came up with these write sets: what else had stood in its log does not stand there any more.
    pub fn recovered(&mut self, has: impl Fn(Dot) -> bool) {
        self.log.retain(|dot, _| has(*dot));
        let (log, headers) = (&self.log, &mut self.headers);
        headers.retain(|segment| log.values().any(|place| place.end.segment == *segment));
        self.marks_are_damaged = false;
        self.state_is_damaged = false;
    }

    /// Segments went.
    pub fn removed(&mut self, segments: &[u64]) {
        self.log.retain(|_, place| !segments.contains(&place.end.segment));
        self.headers.retain(|segment| !segments.contains(segment));
        self.is_cut_off |= !segments.is_empty();
    }

    /// These came with a snapshot, so they do not stand in the log.
    pub fn adopted<'a>(&mut self, gained: impl IntoIterator<Item = &'a Dot>) {
        gained.into_iter().for_each(|dot| _ = self.log.remove(dot));
        self.is_cut_off = true;
        self.snapshot_is_damaged = false;
    }

    /// Something was changed in a segment of the log.
    pub fn log_damaged(&mut self, segment: u64, bytes: &Range<u64>) {
        let of_segment = |place: &&mut Place| place.end.segment == segment;
        let first = self.log.values().filter(|place| place.end.segment == segment).map(|place| place.begins).min();
        if first.is_none_or(|first| bytes.start < first) {
            self.headers.insert(segment);
        }
        for place in self.log.values_mut().filter(of_segment) {
            place.is_damaged |= place.is_hit(segment, bytes);
        }
    }

    /// Something was changed in a segment of what waits.
    pub fn salvage_damaged(&mut self, segment: u64, bytes: &Range<u64>) {
        self.salvage_is_damaged = true;
        let first = self.waiting.values().filter(|waiting| waiting.place.end.segment == segment);
        let is_in_header = first.map(|waiting| waiting.place.begins).min().is_none_or(|first| bytes.start < first);
        for waiting in self.waiting.values_mut().filter(|waiting| waiting.place.end.segment == segment) {
            waiting.is_damaged |= is_in_header || waiting.place.is_hit(segment, bytes);
        }
    }

    /// Whether anything in the log is damaged that is still of use.
    pub fn log_is_damaged(&self) -> bool {
        !self.headers.is_empty() || self.log.values().any(|place| place.is_damaged)
    }

    /// Whether anything is that mends only by hand.
    pub fn is_damaged(&self) -> bool {
        self.log_is_damaged() || self.marks_are_damaged || self.state_is_damaged || self.salvage_is_damaged
    }

    /// Whether a start may refuse.
    pub fn may_refuse(&self) -> bool {
        self.log_is_damaged() || self.marks_are_damaged || self.state_is_damaged
    }

    fn is_whole(&self, place: &Place) -> bool {
        !place.is_damaged && !self.headers.contains(&place.end.segment)
    }

    /// Whether a log may end before the first of `rest`, all that it had from there on, and nobody notice: that
    /// one is damaged, and nothing whole behind it was written when it was known to be synced.
    pub fn may_end_before<'a>(&self, rest: impl IntoIterator<Item = &'a Dot>) -> bool {
        let mut rest = rest.into_iter().map(|dot| self.log.get(dot));
        let Some(Some(first)) = rest.next() else { return false };
        let mut witnesses = rest.flatten().filter(|place| self.is_whole(place));
        !self.is_whole(first) && !witnesses.any(|place| place.synced >= first.end)
    }

    /// What stands whole in the log, in segments that are there.
    pub fn whole<'a>(&'a self, segments: &'a BTreeSet<u64>) -> impl Iterator<Item = Dot> + 'a {
        let there = self.log.iter().filter(|(_, place)| segments.contains(&place.end.segment));
        // A frame is whole by itself, whatever became of its segment's header.
        there.filter(|(_, place)| !place.is_damaged).map(|(dot, _)| *dot)
    }

    /// What waits.
    pub fn waiting(&self) -> &BTreeMap<Dot, Waiting> {
        &self.waiting
    }

    /// Whether it waits here and is whole.
    pub fn waits(&self, dot: Dot) -> bool {
        self.waiting.get(&dot).is_some_and(|waiting| !waiting.is_damaged)
    }

    /// A repair made a log that goes on behind these, or an empty one, and let these wait.
    pub fn repaired(&mut self, keeps_state: bool, waiting: impl IntoIterator<Item = (Rc<Written>, LogPosition)>) {
        let waiting = waiting.into_iter().map(|(written, end)| {
            let place = Place::new(written.bytes.len(), end, LogPosition::default());
            (written.dot, Waiting { written, is_damaged: false, place })
        });
        *self = Self { waiting: waiting.collect(), is_cut_off: keeps_state, ..Self::default() };
    }

    /// All that waited is applied, and gone.
    pub fn salvage_removed(&mut self) {
        self.waiting.clear();
        self.salvage_is_damaged = false;
    }
}

#[cfg(test)]
mod tests {
    use polyarch_crdt::Origin;

    use super::*;

    fn at(offset: u64) -> LogPosition {
        LogPosition { segment: 1, offset }
    }

    fn dot(seq: u64) -> Dot {
        Dot::new(Origin::new(1, 7), seq)
    }

    /// Three write sets of 24 bytes in frames of 64, behind a header of 100: one group of two, then one.
    fn three() -> Evidence {
        let mut evidence = Evidence::default();
        evidence.appended(dot(1), 24, at(164), at(100));
        evidence.appended(dot(2), 24, at(228), at(100));
        evidence.appended(dot(3), 24, at(292), at(228));
        evidence
    }

    #[test]
    fn only_a_last_group_may_be_lost_without_a_word() {
        let dots = [dot(1), dot(2), dot(3)];
        let damaged = |bytes: Range<u64>| {
            let mut evidence = three();
            evidence.log_damaged(1, &bytes);
            (0..3).map(|from| evidence.may_end_before(&dots[from..])).collect::<Vec<_>>()
        };
        assert_eq!(damaged(250..251), [false, false, true], "the last group");
        assert_eq!(damaged(110..111), [false; 3], "the third was written when the first was synced");
        assert_eq!(damaged(170..300), [false, true, true], "no witness is left");
        assert_eq!(damaged(292..300), [false; 3], "nothing stands there");
        assert_eq!(damaged(10..11), [true; 3], "the segment's header");
    }

    #[test]
    fn what_is_whole_is_not_given_up() {
        let mut evidence = three();
        evidence.log_damaged(1, &(170..171));
        assert_eq!(evidence.whole(&BTreeSet::from([1])).collect::<Vec<_>>(), [dot(1), dot(3)]);
        assert_eq!(evidence.whole(&BTreeSet::from([2])).count(), 0);
        assert!(evidence.may_refuse());
        evidence.recovered(|found| found == dot(1));
        assert!(!evidence.is_damaged());
    }
}
