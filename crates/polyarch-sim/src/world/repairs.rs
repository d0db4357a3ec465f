//! What operators do with a node that does not start, or whose disk they do not trust: they repair it, put an
//! older image in its place, or begin with an empty one. And what the process does with what a repair left.

use std::collections::BTreeSet;
use std::rc::Rc;

use polyarch_crdt::Dot;
use polyarch_protocol::{Input, LogPosition, WriteSet};

use super::faults::{Armed, End};
use super::{Event, Phase, World};
use crate::disk::SimSalvage;
use crate::evidence::Evidence;
use crate::history::NodeHistory;
use crate::invariants::{Checked, Violation, repair_keeps_what_is_whole, salvage_is_applied};
use crate::registers::Seen;

/// What a process has yet to apply of what a repair found.
pub struct Salvaging {
    reader: SimSalvage,
    /// Where the pass through it is; `None` between two passes.
    at: Option<LogPosition>,
    /// Write sets that the pass has come upon and that are not applied.
    left: usize,
}

impl World {
    /// A node has now what this history says, and nothing of what it had beside.
    pub(super) fn loses(&mut self, at: usize, kept: NodeHistory) {
        let member = self.member_of(at);
        self.ever_durable[member].join(self.history.node(at).durable().seen());
        self.history.set_back(at, kept);
        let waiting = self.evidence.iter().flat_map(|evidence| evidence.waiting().values());
        for waiting in waiting.filter(|waiting| !waiting.is_damaged) {
            self.history.is_not_lost(waiting.written.dot);
        }
        self.images[at].was_set_back = true;
        self.forget_removal();
    }

    fn waits_somewhere(&self, dot: Dot) -> bool {
        self.evidence.iter().any(|evidence| evidence.waits(dot))
    }

    /// What waited on a disk that is another now.
    pub(super) fn note_gone(&mut self, before: &Evidence) {
        let gone: Vec<Dot> = before.waiting().keys().copied().filter(|dot| !self.waits_somewhere(*dot)).collect();
        self.history.lost_with_a_disk(gone);
    }

    /// Someone comes to see why a node does not start.
    pub(super) fn operator_mends(&mut self, at: usize) {
        let delay_us = if self.is_settled_phase() { 10_000 } else { self.between((10_000, 2_000_000)) };
        self.after(delay_us, Event::Mend { at });
    }

    /// Someone has it verified, after some time.
    pub(super) fn operator_verifies(&mut self, at: usize) {
        if self.evidence[at].is_damaged() && self.rng.chance(500) {
            let (delay_us, boot) = (self.between((500_000, 5_000_000)), self.nodes[at].boot);
            self.after(delay_us, Event::Verify { at, boot });
        }
    }

    /// Stops a node whose disk is damaged, to mend it.
    pub(super) fn verify(&mut self, at: usize, boot: u64) -> Checked {
        let is_running = self.nodes[at].boot == boot && self.nodes[at].process.is_some();
        match is_running && self.evidence[at].is_damaged() && self.phase == Phase::Safety {
            true => {
                self.stop(at, End::Kill)?;
                self.mend_disk(at)
            }
            false => Ok(()),
        }
    }

    /// Mends a node that is stopped.
    pub(super) fn mend_disk(&mut self, at: usize) -> Checked {
        if self.nodes[at].process.is_some() || !self.is_in_use(at) {
            return Ok(());
        }
        let how = self.rng.below(10);
        let is_mended = match how {
            0 if !self.is_settled_phase() => self.lose_disk(at)?,
            1 | 2 if !self.is_settled_phase() => self.set_back_at_all(at)?,
            _ => false,
        };
        if !is_mended {
            self.repair(at)?;
        }
        self.after(1_000, Event::Start { at });
        Ok(())
    }

    /// Runs a repair, which may be cut short, and then is run again.
    fn repair(&mut self, at: usize) -> Checked {
        let config = self.store_config();
        let cut_short = self.rng.chance(200).then(|| self.rng.below(20));
        let before = Before::new(self, at);
        let outcome = match self.nodes[at].devices.repair(&config, cut_short) {
            Err(_) if cut_short.is_some() => self.nodes[at].devices.repair(&config, None),
            outcome => outcome,
        };
        let (keeps_state, report) = outcome.map_err(|error| {
            Violation::new(repair_keeps_what_is_whole::NAME, format!("node {} is not repaired: {error}", at + 1))
        })?;
        *self.report.repairs.entry(keeps_state).or_default() += 1;
        let waiting = self.nodes[at].devices.salvaged();
        self.note(format_args!("node {} is repaired, {} write sets wait: {report:?}", at + 1, waiting.len()));
        let mut found = Vec::new();
        for (bytes, end) in waiting {
            let dot = WriteSet::peek_dot(&bytes).ok();
            let written = dot.and_then(|dot| self.history.written(dot)).filter(|written| written.bytes == bytes);
            let written =
                written.cloned().ok_or_else(|| repair_keeps_what_is_whole::from_nowhere(at as u32 + 1, dot))?;
            found.push((written, end));
        }
        let dots: BTreeSet<Dot> = found.iter().map(|(written, _)| written.dot).collect();
        let kept = before.state.filter(|_| keeps_state).unwrap_or_default();
        self.history.adoption_ends(at, &kept);
        let whole = before.whole.iter().filter(|dot| !kept.includes(**dot));
        repair_keeps_what_is_whole::check(at as u32 + 1, keeps_state, before.is_sound, whole, &dots)?;
        let len = self.history.node(at).order().iter().take_while(|written| kept.includes(written.dot)).count();
        let history = self.history.node(at).up_to(len);
        let mut evidence = Evidence::default();
        evidence.repaired(keeps_state, found);
        // First what waits now, then what is lost.
        let old = std::mem::replace(&mut self.evidence[at], evidence);
        self.loses(at, history);
        self.note_gone(&old);
        self.armed[at] = Armed { has_rolled_back: true, ..Armed::default() };
        Ok(())
    }
}

/// What was there before a repair, as far as it is whole.
struct Before {
    /// What the state says that it has.
    state: Option<Seen>,
    /// Whether its records go with that for sure.
    is_sound: bool,
    /// Write sets that stand whole in the log or in an earlier salvage.
    whole: BTreeSet<Dot>,
}

impl Before {
    fn new(world: &World, at: usize) -> Self {
        let devices = &world.nodes[at].devices;
        let held = devices.checkpoint();
        let (evidence, segments) = (&world.evidence[at], devices.segments());
        let earlier = evidence.waiting().keys().copied().filter(|dot| evidence.waits(*dot));
        // What was not synced need not be there.
        let durable = world.history.node(at).durable().seen();
        let is_owed = |dot: &Dot| durable.includes(*dot) || evidence.waits(*dot);
        Self {
            is_sound: held.as_ref().is_some_and(|(_, is_sound)| *is_sound),
            state: held.map(|(held, _)| Seen::from(held.frontier.heads.applied())),
            whole: evidence.whole(&segments).chain(earlier).filter(is_owed).collect(),
        }
    }
}

/// What the process does with it.
impl World {
    /// A process that starts finds what a repair left.
    pub(super) fn find_salvage(&mut self, at: usize) -> Checked {
        let boot = self.nodes[at].boot;
        match self.nodes[at].devices.open_salvage() {
            Ok(None) => {}
            Ok(Some(reader)) => {
                let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
                process.replica.set_salvage_waits(true);
                process.salvaging = Some(Salvaging { reader, at: Some(LogPosition::default()), left: 0 });
                let delay_us = if self.is_settled_phase() { 1_000 } else { self.between((1_000, 2_000_000)) };
                self.after(delay_us, Event::Salvage { at, boot });
            }
            Err(error) => return self.cannot_read_salvage(at, &error.to_string()),
        }
        Ok(())
    }

    /// The node goes on without.
    fn cannot_read_salvage(&mut self, at: usize, why: &str) -> Checked {
        self.note(format_args!("node {}: what waits cannot be read: {why}", at + 1));
        salvage_is_applied::check_readable(at as u32 + 1, self.evidence[at].salvage_is_damaged, why)
    }

    /// Goes on with it, at a moment at which nothing is staged.
    pub(super) fn salvage(&mut self, at: usize, boot: u64) -> Checked {
        if let Some(left_us) = self.pause_left(at) {
            self.after(left_us, Event::Salvage { at, boot });
            return Ok(());
        }
        let bytes_max = self.rng.weighted(&[(1, 2), (400, 2), (1 << 20, 1)]);
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        let may_go_on = !process.has_failed
            && !process.replica.has_failed()
            && !process.replica.is_full()
            && !process.is_syncing
            && !process.is_staged();
        let Some(salvaging) = process.salvaging.as_mut().filter(|_| may_go_on) else {
            if process.salvaging.is_some() {
                self.after(5_000, Event::Salvage { at, boot });
            }
            return Ok(());
        };
        let from = salvaging.at.get_or_insert_with(|| {
            salvaging.left = 0;
            LogPosition::default()
        });
        match salvaging.reader.read(*from, bytes_max) {
            Ok((write_sets, _)) if write_sets.is_empty() => self.salvage_pass_ends(at, boot),
            Ok((write_sets, next)) => {
                *from = next;
                self.hand_salvaged_over(at, boot, &write_sets)
            }
            Err(error) => {
                process.salvaging = None;
                self.cannot_read_salvage(at, &error.to_string())
            }
        }
    }

    fn hand_salvaged_over(&mut self, at: usize, boot: u64, write_sets: &[bytes::Bytes]) -> Checked {
        self.handle(at, Input::Salvaged(write_sets.to_vec()), None)?;
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        let applied = process.replica.frontier().heads.applied();
        let dots = write_sets.iter().filter_map(|bytes| WriteSet::peek_dot(bytes).ok());
        let left = dots.filter(|dot| !applied.includes(*dot)).count();
        if let Some(salvaging) = process.salvaging.as_mut() {
            salvaging.left += left;
        }
        self.after_handling(at, boot)?;
        let delay_us = self.between((100, 20_000));
        self.after(delay_us, Event::Salvage { at, boot });
        Ok(())
    }

    fn salvage_pass_ends(&mut self, at: usize, boot: u64) -> Checked {
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        let Some(salvaging) = process.salvaging.as_mut() else { return Ok(()) };
        salvaging.at = None;
        if salvaging.left > 0 {
            let delay_us = self.between((50_000, 500_000));
            self.after(delay_us, Event::Salvage { at, boot });
            return Ok(());
        }
        process.salvaging = None;
        process.replica.set_salvage_waits(false);
        self.note(format_args!("node {} has applied all that a repair had found", at + 1));
        self.report.salvages_applied += 1;
        let waiting = self.evidence[at].waiting().values().filter(|waiting| !waiting.is_damaged);
        let waiting = waiting.map(|waiting| waiting.written.dot);
        salvage_is_applied::check_removed(at as u32 + 1, self.history.node(at).durable().seen(), waiting)?;
        self.nodes[at].devices.remove_salvage();
        let before = self.evidence[at].clone();
        self.evidence[at].salvage_removed();
        self.note_gone(&before);
        Ok(())
    }

    /// In the end: what still waits follows on what is nowhere any more.
    pub(super) fn check_salvage(&self, at: usize) -> Checked {
        if self.nodes[at].process.as_ref().is_none_or(|process| process.salvaging.is_none()) {
            return Ok(());
        }
        let waiting = self.evidence[at].waiting().values().filter(|waiting| !waiting.is_damaged);
        let waiting: Vec<&Rc<_>> = waiting.map(|waiting| &waiting.written).collect();
        salvage_is_applied::check_end(at as u32 + 1, self.history.node(at).durable().seen(), &waiting)
    }

    /// What waits somewhere and cannot be applied, as far as [`World::check_salvage`] lets it wait.
    pub(super) fn waiting_in_the_end(&self) -> BTreeSet<Dot> {
        self.evidence.iter().flat_map(|evidence| evidence.waiting().keys().copied()).collect()
    }
}
