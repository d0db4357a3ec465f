//! Disks that give back something else than was written.

use std::ops::Range;

use polyarch_store::state::Rollback;

use super::World;
use super::faults::End;
use crate::disk::{Part, segment_number};
use crate::fault::Fault;
use crate::invariants::{Checked, Violation};

/// Bytes that a disk writes, and spoils, as a whole.
const PAGE_BYTES: usize = 512;

/// What becomes of a few bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoiled {
    /// One bit.
    Bit,
    /// Several bits in a short stretch.
    Bits,
    /// A page that reads as zeros.
    Zeros,
    /// A page that reads as another one does.
    Misplaced,
}

impl World {
    /// Damages a file of a node, which is stopped for that half of the times. Says whether there was one.
    pub(super) fn damage(&mut self, at: usize, kind: Fault) -> Result<bool, Violation> {
        let part = match kind {
            Fault::DamageMarks => Part::Marks,
            Fault::DamageSnapshot => Part::Snapshot,
            Fault::DamageSalvage => Part::Salvage,
            _ => Part::Log,
        };
        let names = self.nodes[at].devices.names(part);
        let Some(name) = self.rng.pick(&names).cloned() else { return Ok(false) };
        // Nobody promises anything for the only copy of all.
        if !self.is_known_beside(&[at]) {
            return Ok(false);
        }
        if self.nodes[at].process.is_some() && self.rng.chance(600) {
            let how = if self.rng.chance(500) { End::Kill } else { End::PowerCut };
            self.stop(at, how)?;
            // What was new goes with the power.
            if !self.nodes[at].devices.names(part).contains(&name) {
                return Ok(false);
            }
        }
        self.make_state_whole(at, part);
        let bytes = self.nodes[at].devices.contents(part, &name);
        let Some((range, spoiled)) = self.spoil(&bytes) else { return Ok(false) };
        self.nodes[at].devices.damage(part, &name, &range, &spoiled);
        self.note(format_args!("node {}: bytes {range:?} of {name} ({part:?}) are not what was written", at + 1));
        self.note_damage(at, part, &name, &range);
        Ok(true)
    }

    /// The batches of the shipped state are whole. Of one that tears them the records may be ahead of a log whose
    /// last group is lost, and nobody could tell: so much is not asked of any state.
    fn make_state_whole(&mut self, at: usize, part: Part) {
        if part == Part::Log && self.nodes[at].process.is_none() {
            self.nodes[at].devices.state().crash(Rollback::Unflushed);
        }
    }

    fn note_damage(&mut self, at: usize, part: Part, name: &str, range: &Range<usize>) {
        let evidence = &mut self.evidence[at];
        let bytes = range.start as u64..range.end as u64;
        match (part, segment_number(name)) {
            (Part::Log, Some(segment)) => evidence.log_damaged(segment, &bytes),
            (Part::Salvage, Some(segment)) => evidence.salvage_damaged(segment, &bytes),
            (Part::Snapshot, _) => evidence.snapshot_is_damaged = true,
            _ => evidence.marks_are_damaged = true,
        }
        self.was_damaged = true;
    }

    /// Other bytes for some place of a file, which differ from what is there.
    fn spoil(&mut self, bytes: &[u8]) -> Option<(Range<usize>, Vec<u8>)> {
        // A log is allocated ahead: most damage is to strike what is written.
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let end = if self.rng.chance(900) { written } else { bytes.len() };
        if end == 0 {
            return None;
        }
        let kind =
            self.rng.weighted(&[(Spoiled::Bit, 5), (Spoiled::Bits, 2), (Spoiled::Zeros, 2), (Spoiled::Misplaced, 1)]);
        let at = self.rng.index(end);
        let page =
            |at: usize| at / PAGE_BYTES * PAGE_BYTES..(at / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES).min(bytes.len());
        let range = match kind {
            Spoiled::Bit => at..at + 1,
            Spoiled::Bits => at..(at + 1 + self.rng.index(64)).min(bytes.len()),
            Spoiled::Zeros | Spoiled::Misplaced => page(at),
        };
        let mut spoiled = bytes[range.clone()].to_vec();
        match kind {
            Spoiled::Bit => spoiled[0] ^= 1 << self.rng.below(8),
            Spoiled::Bits => spoiled.iter_mut().for_each(|byte| *byte ^= self.rng.below(256) as u8),
            Spoiled::Zeros => spoiled.fill(0),
            Spoiled::Misplaced => {
                let from = page(self.rng.index(end));
                let len = from.len().min(spoiled.len());
                spoiled[..len].copy_from_slice(&bytes[from.start..from.start + len]);
            }
        }
        (spoiled != bytes[range.clone()]).then_some((range, spoiled))
    }

    /// The state of a node does not open any more, wherever the log begins.
    pub(super) fn damage_state(&mut self, at: usize) -> Result<bool, Violation> {
        let is_mixed = self.report.versions_are_mixed;
        if self.evidence[at].is_cut_off && (is_mixed || !self.is_known_beside(&[at])) {
            return Ok(false);
        }
        self.stop(at, End::PowerCut)?;
        self.nodes[at].devices.state().damage();
        if self.evidence[at].is_cut_off {
            self.evidence[at].state_is_damaged = true;
            self.was_damaged = true;
        }
        Ok(true)
    }

    /// A node came up with these write sets. Of what it had synced the end may be gone if that was damaged, and
    /// nothing tells it from an end that was never synced.
    pub(super) fn note_damaged_end(&mut self, at: usize, recovered: &crate::registers::Seen) -> Checked {
        let history = self.history.node(at);
        let kept = history.order().iter().take_while(|written| recovered.includes(written.dot)).count();
        let is_short = recovered.missing_of(history.durable().seen()).is_some();
        // What was staged alone is no witness of anything.
        let synced = history.order().len() - history.unsynced().len();
        let rest: Vec<_> = history.order()[kept.min(synced)..synced].iter().map(|written| written.dot).collect();
        if is_short && self.evidence[at].may_end_before(&rest) {
            self.note(format_args!("node {} has lost the end of its log without knowing it", at + 1));
            let kept = self.history.node(at).up_to(kept);
            self.loses(at, kept);
        }
        Ok(())
    }
}
