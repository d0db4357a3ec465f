//! What goes wrong, when, and how it ends.

use polyarch_protocol::Input;
use polyarch_store::state::Rollback;

use super::{Drawn, Event, Phase, World};
use crate::invariants::Checked;
use crate::scenario::{Fault, LogRemoval};

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
    SlowNetwork,
    ClockFreeze(usize),
    DiskFull(usize),
    ClockStrobe(usize),
    OperatorCut(usize, u32),
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
                | Fault::SlowNetwork
                | Fault::PowerCutAll
                | Fault::SetBack
                | Fault::SetBackAll
                | Fault::LoseDisk
                | Fault::CutAllLogs
        );
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
                let to = (at + 1 + self.rng.index(self.nodes.len() - 1)) % self.nodes.len();
                self.block(vec![(at, to)]);
            }
            Fault::Isolate => {
                let others = (0..self.nodes.len()).filter(|other| *other != at);
                self.block(others.flat_map(|other| [(at, other), (other, at)]).collect());
            }
            Fault::Halves => self.block_between_halves(),
            Fault::SlowNetwork => {
                self.network.extra_delay_us = self.between((10_000, 700_000));
                self.lasts(Lasting::SlowNetwork);
            }
            Fault::PowerCut => self.stop(at, End::PowerCut)?,
            Fault::PowerCutAll => {
                for at in (0..self.nodes.len()).filter(|at| self.nodes[*at].boot > 0).collect::<Vec<_>>() {
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
            Fault::StateDamaged => {
                self.stop(at, End::PowerCut)?;
                self.nodes[at].devices.state().damage();
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
            Fault::CutLog => return Ok(self.cut_log(at)),
            Fault::CutAllLogs => {
                let cut = (0..self.nodes.len()).filter(|at| self.cut_log(*at)).count();
                return Ok(cut > 0);
            }
            Fault::PowerCutInJoin => self.armed[at].in_join = true,
            Fault::PowerCutInAdoption => self.armed[at].in_adoption = true,
        }
        Ok(true)
    }

    fn lasts(&mut self, lasting: Lasting) {
        let delay_us = self.between(self.scenario.fault_lasts_us);
        self.after(delay_us, Event::FaultEnds(lasting));
    }

    fn lose_a_link(&mut self) -> bool {
        let links = self.network.ids();
        let Some(link) = self.rng.pick(&links) else { return false };
        self.break_link(*link);
        true
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
        for link in self.network.ids() {
            let is_cut = self.is_cut(link);
            if is_cut {
                let patience_us = self.scenario.link_patience_us + self.rng.below(100_000);
                self.after(patience_us, Event::Impatience { link });
            }
        }
        self.lasts(Lasting::Blocked(directions));
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
        let peer = (at + 1 + self.rng.index(self.nodes.len() - 1)) % self.nodes.len();
        let server_id = self.nodes[peer].server_id;
        let tag = self.admin_tag();
        self.push_input(at, Input::CutLink(tag, server_id), None);
        self.lasts(Lasting::OperatorCut(at, server_id));
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
            (End::RollBack, _) if self.scenario.log_removal == LogRemoval::Nothing => {
                Rollback::Flushes(1 + self.rng.index(3))
            }
            // The log reaches back to the checkpoint before last, and no further.
            (End::RollBack, _) if !std::mem::replace(&mut self.armed[at].has_rolled_back, true) => Rollback::Flushes(1),
            (End::PowerCutInCheckpoint, 0..=7) | (_, 0..=3) => Rollback::Torn(self.rng.bits()),
            _ => Rollback::Unflushed,
        };
        match how {
            End::Kill => self.nodes[at].devices.kill(),
            End::PowerCut | End::PowerCutInCheckpoint | End::RollBack => self.nodes[at].devices.power_cut(rollback),
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
        self.scenario.sync_interval_us = self.scenario.sync_interval_us.min(100_000);
        self.release()?;
        for at in 0..self.nodes.len() {
            self.nodes[at].clock.frozen_ms = None;
            self.nodes[at].clock.strobe = None;
            self.nodes[at].clock.offset_ms = 0;
            self.nodes[at].paused_until_us = 0;
            self.armed[at].in_checkpoint = false;
            self.armed[at].in_join = false;
            self.armed[at].in_adoption = false;
            self.armed[at].in_recovery = None;
            self.armed[at].soon_after_start = false;
            // A disk with faults that wait for their moment is rid of them by a restart.
            if self.nodes[at].process.is_some() {
                self.stop_or_keep(at)?;
            } else {
                self.after(1_000, Event::Start { at });
            }
            for server_id in 1..=self.nodes.len() as u32 {
                let tag = self.admin_tag();
                self.push_input(at, Input::HealLink(tag, server_id), None);
            }
        }
        Ok(())
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
