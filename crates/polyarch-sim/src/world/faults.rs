//! What goes wrong, when, and how it ends.

use polyarch_protocol::Input;
use polyarch_store::state::Rollback;

use super::{Drawn, Event, Phase, World};
use crate::fault::Fault;
use crate::invariants::Checked;
use crate::scenario::LogRemoval;

/// After so many times the faults that a scenario asks for, clients are left alone to finish.
const FAULTS_MAX_FACTOR: usize = 8;

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The power fails.
    PowerCut,
    /// The power fails while a checkpoint is written, of which a part may stay.
    PowerCutInCheckpoint,
    /// The power fails, and the state store comes up as it was some checkpoints ago.
    RollBack,
    /// The process ends, its machine goes on.
    Kill,
}

/// A fault that ends later.
#[derive(Debug)]
pub(super) enum Lasting {
    Blocked(Vec<(usize, usize)>),
    Flapping(Flapping),
    SlowNetwork,
    ClockFreeze(usize),
    DiskFull(usize),
    ClockStrobe(usize),
    OperatorCut(usize, u32),
    Clone,
}

/// A way that comes and goes.
#[derive(Debug)]
pub(super) struct Flapping {
    between: (usize, usize),
    /// How often it is yet to change.
    changes: u64,
    is_down: bool,
    down_us: u64,
    up_us: u64,
}

/// Faults that wait for their moment on a node.
#[derive(Debug, Clone, Default)]
pub(super) struct Armed {
    /// The disk loses power at some call; the process ends where it notices.
    pub(super) power_cut: bool,
    /// The next start loses power after so many changes of the disk.
    pub(super) in_recovery: Option<u64>,
    /// The next checkpoint loses power.
    pub(super) in_checkpoint: bool,
    /// The next join of a snapshot loses power.
    pub(super) in_join: bool,
    /// The next adoption of one does.
    pub(super) in_adoption: bool,
    /// The process ends when so many more parts of a snapshot have left it.
    pub(super) in_walk: Option<u64>,
    /// The process ends when so many more parts of a snapshot have come to it.
    pub(super) in_fetch: Option<u64>,
    /// The link breaks on which so many more groups have come.
    pub(super) in_feed: Option<u64>,
    /// The power fails some time after the next start.
    pub(super) soon_after_start: bool,
    /// The disk was full in this life of the process.
    pub(super) disk_was_full: bool,
    /// The disk was told to fail in this life of the process.
    pub(super) disk_fails: bool,
    /// The state rolled back and has taken no checkpoint since.
    pub(super) has_rolled_back: bool,
}

impl World {
    pub(super) fn fault(&mut self) -> Checked {
        if self.phase != Phase::Safety || self.report.fault_count() >= FAULTS_MAX_FACTOR * self.scenario.faults {
            return Ok(());
        }
        let gap_us = self.between(self.scenario.fault_gap_us);
        self.after(gap_us, Event::Fault);
        let kind = self.rng.weighted(&self.scenario.fault_kinds);
        let at = self.rng.index(self.nodes.len());
        let nth = self.streams.faults_drawn();
        if !self.case.keeps_fault(nth) {
            return Ok(());
        }
        self.has_happened(Drawn::Fault(nth), format!("{kind:?} (node {})", self.nodes[at].server_id));
        if self.cause(kind, at)? {
            *self.report.faults.entry(kind).or_default() += 1;
        }
        Ok(())
    }

    /// Lets a fault happen; says whether there was anything for it to happen to.
    fn cause(&mut self, kind: Fault, at: usize) -> Result<bool, crate::invariants::Violation> {
        let needs_process = !matches!(
            kind,
            Fault::LoseLink
                | Fault::OneWay
                | Fault::Isolate
                | Fault::Halves
                | Fault::Flapping
                | Fault::DoubleLink
                | Fault::SlowNetwork
                | Fault::PowerCutAll
                | Fault::SetBack
                | Fault::SetBackAll
                | Fault::Clone
                | Fault::DamageLog
                | Fault::DamageMarks
                | Fault::DamageSnapshot
                | Fault::DamageSalvage
                | Fault::LoseDisk
                | Fault::CutAllLogs
        );
        if !self.is_in_use(at) {
            return Ok(false);
        }
        let is_yet_to_join = self.nodes[at].boot == 0;
        if (needs_process && self.nodes[at].process.is_none())
            || (is_yet_to_join && matches!(kind, Fault::SetBack | Fault::LoseDisk))
        {
            return Ok(false);
        }
        let server_id = self.nodes[at].server_id;
        self.note(format_args!("fault: {kind:?} (node {server_id})"));
        match kind {
            Fault::LoseLink => return Ok(self.lose_a_link()),
            Fault::OneWay => {
                let to = self.other_than(at);
                self.block(vec![(at, to)]);
            }
            Fault::Isolate => {
                let others = (0..self.nodes.len()).filter(|other| *other != at);
                self.block(others.flat_map(|other| [(at, other), (other, at)]).collect());
            }
            Fault::Halves => self.block_between_halves(),
            Fault::Flapping => return self.flap(at),
            Fault::DoubleLink => return Ok(self.double_a_link()),
            Fault::LoseLinkInFeed => return Ok(self.arm(at, |armed| &mut armed.in_feed, 4)),
            Fault::SlowNetwork => {
                self.network.extra_delay_us = self.between((10_000, 700_000));
                self.lasts(Lasting::SlowNetwork);
            }
            Fault::PowerCut => self.stop(at, End::PowerCut)?,
            Fault::PowerCutAll => {
                for at in (0..self.nodes.len())
                    .filter(|at| self.nodes[*at].boot > 0 && self.is_in_use(*at))
                    .collect::<Vec<_>>()
                {
                    self.stop(at, End::PowerCut)?;
                }
            }
            Fault::PowerCutInSync => {
                let changes = self.rng.below(8);
                self.nodes[at].devices.files().stop_after(changes);
                self.armed[at].power_cut = true;
                self.armed[at].disk_fails = true;
                let (delay_us, boot) = (self.between((10_000, 2_000_000)), self.nodes[at].boot);
                self.after(delay_us, Event::Stop { at, boot, how: End::PowerCut });
            }
            Fault::PowerCutInRecovery => {
                self.armed[at].in_recovery = Some(self.rng.below(6));
                self.stop(at, End::PowerCut)?;
            }
            Fault::PowerCutInCheckpoint => self.armed[at].in_checkpoint = true,
            Fault::Kill => {
                self.armed[at].soon_after_start = self.rng.chance(400);
                self.stop(at, End::Kill)?;
            }
            Fault::SyncFails => {
                let syncs = self.rng.below(2);
                self.nodes[at].devices.files().fail_sync_after(syncs);
                self.armed[at].disk_fails = true;
            }
            Fault::WriteFails => {
                self.nodes[at].devices.files().fail_write_after(0);
                self.armed[at].disk_fails = true;
            }
            Fault::DiskFull => self.fill_disk(at),
            Fault::StateRollsBack => self.stop(at, End::RollBack)?,
            Fault::StateDamaged => return self.damage_state(at),
            Fault::DamageLog | Fault::DamageMarks | Fault::DamageSnapshot | Fault::DamageSalvage => {
                return self.damage(at, kind);
            }
            Fault::ClockAhead | Fault::ClockBack | Fault::ClockFreeze | Fault::ClockStrobe => {
                self.disturb_clock(kind, at);
            }
            Fault::Pause => {
                let lasts_us = self.between(self.scenario.fault_lasts_us);
                self.nodes[at].paused_until_us = self.now_us + lasts_us;
            }
            Fault::OperatorCut => self.operator_cuts(at),
            Fault::SetBack => return self.image_or_set_back(at),
            Fault::SetBackAll => return self.set_back_all(),
            Fault::LoseDisk => return self.lose_disk(at),
            Fault::Clone => return Ok(self.clone_node(at)),
            Fault::CutLog => return Ok(self.cut_log(at)),
            Fault::CutAllLogs => {
                let cut = (0..self.nodes.len()).filter(|at| self.cut_log(*at)).count();
                return Ok(cut > 0);
            }
            Fault::PowerCutInJoin => self.armed[at].in_join = true,
            Fault::PowerCutInAdoption => self.armed[at].in_adoption = true,
            Fault::KillDonor => return Ok(self.arm(at, |armed| &mut armed.in_walk, 8)),
            Fault::KillReceiver => return Ok(self.arm(at, |armed| &mut armed.in_fetch, 8)),
        }
        Ok(true)
    }

    /// Lets something happen at one of the next `within` occasions. It is counted when it happens.
    fn arm(&mut self, at: usize, which: impl FnOnce(&mut Armed) -> &mut Option<u64>, within: u64) -> bool {
        let after = self.rng.below(within);
        *which(&mut self.armed[at]) = Some(after);
        false
    }

    /// Whether what waited for its moment happens now.
    pub(super) fn is_the_moment(
        &mut self,
        at: usize,
        which: impl FnOnce(&mut Armed) -> &mut Option<u64>,
        kind: Fault,
    ) -> bool {
        let armed = which(&mut self.armed[at]);
        let happens = *armed == Some(0);
        *armed = armed.and_then(|left| left.checked_sub(1));
        if happens {
            *self.report.faults.entry(kind).or_default() += 1;
            self.note(format_args!("fault: {kind:?} (node {}), as it was to", at + 1));
        }
        happens
    }

    fn lasts(&mut self, lasting: Lasting) {
        self.lasts_for(self.scenario.fault_lasts_us, lasting);
    }

    /// Some machine that is not this one.
    fn other_than(&mut self, at: usize) -> usize {
        (at + 1 + self.rng.index(self.nodes.len() - 1)) % self.nodes.len()
    }

    pub(super) fn lasts_for(&mut self, range: (u64, u64), lasting: Lasting) {
        let delay_us = self.between(range);
        self.after(delay_us, Event::FaultEnds(lasting));
    }

    fn lose_a_link(&mut self) -> bool {
        let links = self.network.ids();
        let Some(link) = self.rng.pick(&links) else { return false };
        self.break_link(*link);
        true
    }

    /// Dials once more where there is a link already.
    fn double_a_link(&mut self) -> bool {
        let links = self.network.ids();
        let Some([one, two]) = self.rng.pick(&links).and_then(|link| self.network.link(*link)).map(|link| link.ends)
        else {
            return false;
        };
        let (from, to) = if self.rng.chance(500) { (one, two) } else { (two, one) };
        let delay_us = self.rng.below(20_000);
        self.after(delay_us, Event::Connect { from, to });
        true
    }

    /// The way to some other node comes and goes from now on.
    fn flap(&mut self, at: usize) -> Result<bool, crate::invariants::Violation> {
        let others: Vec<usize> =
            (0..self.nodes.len()).filter(|to| *to != at && self.network.may_reach(at, *to)).collect();
        let Some(to) = self.rng.pick(&others).copied() else { return Ok(false) };
        let flapping = Flapping {
            between: (at, to),
            changes: 2 * self.between((2, 8)),
            is_down: false,
            down_us: self.rng.weighted(&[(2_000, 1), (100_000, 2), (1_500_000, 2)]),
            up_us: self.rng.weighted(&[(5_000, 1), (150_000, 2), (800_000, 2)]),
        };
        self.change_way(flapping)?;
        Ok(true)
    }

    /// A way that flaps closes, or opens. Half of the times the links on it break at once, as when a router says
    /// that there is no way.
    fn change_way(&mut self, mut flapping: Flapping) -> Checked {
        let (one, two) = flapping.between;
        flapping.is_down = !flapping.is_down;
        flapping.changes -= 1;
        for (from, to) in [(one, two), (two, one)] {
            match flapping.is_down {
                true => self.network.block(from, to),
                false => self.network.unblock(from, to),
            }
        }
        match flapping.is_down {
            true if self.rng.chance(500) => {
                for link in self.network.ids().into_iter().filter(|link| self.is_cut(*link)).collect::<Vec<_>>() {
                    self.break_link(link);
                }
            }
            true => self.try_patience(),
            false => self.release()?,
        }
        if flapping.changes > 0 {
            let mean_us = if flapping.is_down { flapping.down_us } else { flapping.up_us };
            let delay_us = self.between((mean_us / 2, mean_us * 2));
            self.after(delay_us, Event::FaultEnds(Lasting::Flapping(flapping)));
        }
        Ok(())
    }

    fn block_between_halves(&mut self) {
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        let at = self.rng.index(order.len());
        order.rotate_left(at);
        let (one, other) = order.split_at(1 + self.rng.index(order.len() - 1));
        let directions = one.iter().flat_map(|a| other.iter().flat_map(|b| [(*a, *b), (*b, *a)]));
        self.block(directions.collect());
    }

    /// Closes directions for a while. Links that stay silent for too long break.
    pub(super) fn block(&mut self, directions: Vec<(usize, usize)>) {
        for (from, to) in &directions {
            self.network.block(*from, *to);
        }
        self.try_patience();
        self.lasts(Lasting::Blocked(directions));
    }

    fn try_patience(&mut self) {
        for link in self.network.ids() {
            let is_cut = self.is_cut(link);
            if is_cut {
                let patience_us = self.scenario.link_patience_us + self.rng.below(100_000);
                self.after(patience_us, Event::Impatience { link });
            }
        }
    }

    fn is_cut(&self, link: u64) -> bool {
        self.network.link(link).is_some_and(|link| {
            let [(one, _), (two, _)] = link.ends;
            self.network.is_blocked(one, two) || self.network.is_blocked(two, one)
        })
    }

    pub(super) fn lose_patience(&mut self, link: u64) -> Checked {
        if self.is_cut(link) {
            self.break_link(link);
        }
        Ok(())
    }

    fn fill_disk(&mut self, at: usize) {
        use polyarch_store::files::Files;
        let files = self.nodes[at].devices.files();
        let names = files.list().unwrap_or_default();
        let used: usize = names.iter().filter_map(|name| files.contents(name)).map(|bytes| bytes.len()).sum();
        files.set_space(Some(used as u64 + self.rng.below(5_000)));
        self.armed[at].disk_was_full = true;
        self.lasts(Lasting::DiskFull(at));
    }

    fn disturb_clock(&mut self, kind: Fault, at: usize) {
        let by_ms = self.rng.weighted(&[(50, 3), (1_500, 3), (90_000, 2), (7_200_000, 1)]);
        let by_ms = by_ms + self.rng.below(by_ms) as i64 as u64;
        let (now_us, every_us) = (self.now_us, 1_000 + self.rng.below(800_000));
        let clock = &mut self.nodes[at].clock;
        match kind {
            Fault::ClockAhead => clock.offset_ms += by_ms as i64,
            Fault::ClockBack => clock.offset_ms -= by_ms as i64,
            Fault::ClockStrobe => {
                clock.strobe = Some((every_us, by_ms as i64));
                self.lasts(Lasting::ClockStrobe(at));
            }
            _ => {
                clock.frozen_ms = Some(clock.read(now_us));
                self.lasts(Lasting::ClockFreeze(at));
            }
        }
    }

    fn operator_cuts(&mut self, at: usize) {
        let peer = (at + 1 + self.rng.index(self.members() - 1)) % self.members();
        let server_id = self.nodes[peer].server_id;
        let tag = self.admin_tag();
        self.push_input(at, Input::CutLink(tag, server_id), None);
        self.lasts(Lasting::OperatorCut(at, server_id));
    }

    /// A process ends, or its machine's power does.
    pub(super) fn end_suddenly(&mut self, at: usize) -> Checked {
        let how = if self.rng.chance(500) { End::Kill } else { End::PowerCut };
        self.stop(at, how)
    }

    pub(super) fn stop_if(&mut self, at: usize, boot: u64, how: End) -> Checked {
        match self.nodes[at].boot == boot && self.nodes[at].process.is_some() {
            true => self.stop(at, how),
            false => Ok(()),
        }
    }

    /// Ends a node's process, and starts another after a while.
    pub(super) fn stop(&mut self, at: usize, how: End) -> Checked {
        let process = self.nodes[at].process.take();
        self.report.snapshots.crashes_within += usize::from(process.as_ref().is_some_and(|p| p.snapshots.is_in_use()));
        let was_running = process.is_some();
        drop(process);
        let server_id = self.nodes[at].server_id;
        self.note(format_args!("node {server_id} stops: {how:?}"));
        let rollback = match (how, self.rng.below(10)) {
            (End::RollBack, _) if self.scenario.log_removal == LogRemoval::Nothing && !self.evidence[at].is_cut_off => {
                Rollback::Flushes(1 + self.rng.index(3))
            }
            // The log reaches back to the checkpoint before last, and no further.
            (End::RollBack, _) if !std::mem::replace(&mut self.armed[at].has_rolled_back, true) => Rollback::Flushes(1),
            _ if self.evidence[at].log_is_damaged() => Rollback::Unflushed,
            (End::PowerCutInCheckpoint, 0..=7) | (_, 0..=3) => Rollback::Torn(self.rng.bits()),
            _ => Rollback::Unflushed,
        };
        match how {
            End::Kill => self.nodes[at].devices.kill(),
            End::PowerCut | End::PowerCutInCheckpoint | End::RollBack => {
                let (is_torn, is_reordered) = self.nodes[at].devices.power_cut(rollback);
                self.report.torn += usize::from(is_torn);
                self.report.reordered += usize::from(is_reordered);
            }
        }
        self.nodes[at].devices.files().set_space(None);
        self.armed[at].power_cut = false;
        self.armed[at].disk_was_full = false;
        self.armed[at].disk_fails = false;
        self.armed[at].in_checkpoint = false;
        self.nodes[at].paused_until_us = 0;
        for link in self.network.links_of(at) {
            self.break_link(link);
        }
        if was_running || self.armed[at].in_recovery.is_none() {
            let down_us = if self.is_settled_phase() { 1_000 } else { self.between(self.scenario.down_us) };
            self.after(down_us, Event::Start { at });
        }
        Ok(())
    }

    pub(super) fn fault_ends(&mut self, lasting: Lasting) -> Checked {
        match lasting {
            Lasting::Blocked(directions) => {
                if self.phase == Phase::Safety {
                    for (from, to) in directions {
                        self.network.unblock(from, to);
                    }
                    self.release()?;
                }
            }
            Lasting::Flapping(flapping) => {
                if self.phase == Phase::Safety {
                    self.change_way(flapping)?;
                }
            }
            Lasting::Clone => {
                if self.phase == Phase::Safety {
                    self.end_clone()?;
                }
            }
            Lasting::SlowNetwork => self.network.extra_delay_us = 0,
            Lasting::DiskFull(at) => self.nodes[at].devices.files().set_space(None),
            Lasting::ClockFreeze(at) => self.nodes[at].clock.frozen_ms = None,
            Lasting::ClockStrobe(at) => self.nodes[at].clock.strobe = None,
            Lasting::OperatorCut(at, server_id) => {
                let tag = self.admin_tag();
                self.push_input(at, Input::HealLink(tag, server_id), None);
            }
        }
        Ok(())
    }

    /// Delivers what was held.
    fn release(&mut self) -> Checked {
        for (link, side, parcel) in self.network.release() {
            self.deliver(link, side, parcel)?;
        }
        Ok(())
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self) -> Checked {
        self.note(format_args!("all faults end"));
        self.phase = Phase::Liveness { until_us: u64::MAX, rest_since_us: None };
        self.network.unblock_all();
        self.network.extra_delay_us = 0;
        // A slow network and disks are faults too: the bound is for what the protocol adds to them.
        self.scenario.slow_permille = 0;
        self.scenario.delay_us = (50, 2_000);
        self.scenario.sync_us = (100, 1_000);
        self.scenario.walk_gap_us = (1, 1_000);
        self.scenario.sync_interval_us = self.scenario.sync_interval_us.min(100_000);
        self.release()?;
        self.end_clone()?;
        for at in 0..self.members() {
            self.nodes[at].clock.frozen_ms = None;
            self.nodes[at].clock.strobe = None;
            self.nodes[at].clock.offset_ms = 0;
            self.nodes[at].paused_until_us = 0;
            self.armed[at].in_checkpoint = false;
            self.armed[at].in_join = false;
            self.armed[at].in_adoption = false;
            (self.armed[at].in_walk, self.armed[at].in_fetch, self.armed[at].in_feed) = (None, None, None);
            self.armed[at].in_recovery = None;
            self.armed[at].soon_after_start = false;
            // A disk with faults that wait for their moment is rid of them by a restart, and a damaged one by a repair.
            if self.evidence[at].is_damaged() {
                self.stop_to_mend(at)?;
            } else if self.nodes[at].process.is_some() {
                self.stop_or_keep(at)?;
            } else {
                self.after(1_000, Event::Start { at });
            }
            for server_id in 1..=self.members() as u32 {
                let tag = self.admin_tag();
                self.push_input(at, Input::HealLink(tag, server_id), None);
            }
        }
        Ok(())
    }

    fn stop_to_mend(&mut self, at: usize) -> Checked {
        if self.nodes[at].process.is_some() {
            self.stop(at, End::Kill)?;
        }
        self.mend_disk(at)
    }

    fn stop_or_keep(&mut self, at: usize) -> Checked {
        let has_failed = self.nodes[at].process.as_ref().is_some_and(|process| process.has_failed);
        match has_failed || self.armed[at].power_cut || self.rng.chance(300) {
            true => self.stop(at, End::Kill),
            false => {
                self.nodes[at].devices.files().set_space(None);
                Ok(())
            }
        }
    }
}
