//! Clones: a copy of a machine's disk that another machine starts with, beside the first. Both have one server
//! id. The copy's place is behind those of the members.

use super::World;
use super::faults::{Armed, End, Lasting};
use super::images::Images;
use crate::history::NodeHistory;
use crate::invariants::{Checked, Violation};
use crate::scenario::Scenario;

/// What there is of clones in a run.
#[derive(Debug, Default)]
pub(super) struct Clones {
    /// The member that has a twin, while it does.
    of: Option<usize>,
    /// Members that ever had one.
    pub(super) ever: std::collections::BTreeSet<usize>,
}

impl Scenario {
    /// Machines, with the one that clones run on.
    pub(super) fn machines(&self) -> usize {
        self.nodes + usize::from(self.has_clones)
    }
}

impl World {
    /// How many members there are: the first so many machines.
    pub(super) fn members(&self) -> usize {
        self.scenario.nodes
    }

    /// The member that a machine is, or is a twin of.
    pub(super) fn member_of(&self, at: usize) -> usize {
        self.nodes[at].server_id as usize - 1
    }

    /// Whether a machine is in use: the clones' is while there is one.
    pub(super) fn is_in_use(&self, at: usize) -> bool {
        at < self.members() || self.clones.of.is_some()
    }

    /// Whether a member has a twin now.
    pub(super) fn clones_are_about(&self) -> bool {
        self.clones.of.is_some()
    }

    /// The machine that answers who asks for a member: either of two twins.
    pub(super) fn one_of_twins(&mut self, at: usize) -> usize {
        match self.clones.of == Some(at) && self.rng.chance(500) {
            true => self.members(),
            false => at,
        }
    }

    /// Starts a machine with a copy of a member's disk, while that one goes on. Says whether it did.
    pub(super) fn clone_node(&mut self, at: usize) -> bool {
        let twin = self.members();
        if !self.scenario.has_clones || self.clones.of.is_some() || at >= twin {
            return false;
        }
        // Of what a failed sync or a crash has left on a disk nobody can say how much there is.
        let is_sound = self.nodes[at].process.as_ref().is_some_and(|process| !process.has_failed);
        if !is_sound || !self.is_known_beside(&[twin]) {
            return false;
        }
        self.note(format_args!("node {} is cloned", at + 1));
        let image = self.nodes[at].devices.image();
        self.nodes[twin].server_id = self.nodes[at].server_id;
        self.nodes[twin].clock = self.nodes[at].clock.clone();
        self.nodes[twin].devices.restore(&image, true);
        self.evidence[twin] = self.evidence[at].clone();
        // Of what is staged some may be on the disk: a group that goes over segments is written up to the last.
        let history = self.history.node(at).clone();
        self.history.set_back(twin, history);
        self.armed[twin] = Armed { has_rolled_back: true, ..Armed::default() };
        self.clones.of = Some(at);
        self.forget_removal();
        self.clones.ever.insert(at);
        // Each meets what the other wrote, and does not miss what it never had.
        self.images[at].was_set_back = true;
        self.images[twin].was_set_back = true;
        let delay_us = self.between((1_000, 1_000_000));
        self.after(delay_us, super::Event::Start { at: twin });
        self.lasts_for((2_000_000, 20_000_000), Lasting::Clone);
        true
    }

    /// Someone stops one of two twins for good, and its disk is wiped.
    pub(super) fn end_clone(&mut self) -> Checked {
        let Some(at) = self.clones.of.take() else { return Ok(()) };
        let twin = self.members();
        let knows_all = |machine: usize| {
            let history = self.history.node(machine).durable().seen();
            history.missing_of(&self.founding).is_none() && !self.evidence[machine].is_damaged()
        };
        let may_stay = knows_all(twin) || self.is_known_beside(&[at]);
        let stays = if may_stay && self.rng.chance(500) { twin } else { at };
        self.note(format_args!("the clone of node {} ends; machine {} stays", at + 1, stays + 1));
        self.stop(twin, End::Kill)?;
        if stays == twin {
            self.stop(at, End::Kill)?;
            let (members, twins) = self.nodes.split_at_mut(twin);
            std::mem::swap(&mut members[at].devices, &mut twins[0].devices);
            self.history.swap(at, twin);
            self.evidence.swap(at, twin);
            self.armed[at] = Armed { has_rolled_back: true, ..Armed::default() };
            self.forget_removal();
        }
        self.nodes[twin].devices.restore(&Default::default(), true);
        let before = std::mem::take(&mut self.evidence[twin]);
        self.loses(twin, NodeHistory::default());
        self.note_gone(&before);
        self.images[twin] = Images::default();
        Ok(())
    }

    /// In the end everybody takes writes again.
    pub(super) fn check_writes_are_taken(&self) -> Checked {
        for node in &self.nodes[..self.members()] {
            let refused = node.process.as_ref().and_then(|process| process.replica.writes_refused());
            if let Some(refusal) = refused {
                let what = format!("in the end node {} takes no writes: {refusal}", node.server_id);
                return Err(Violation::new(crate::invariants::members_come_back::NAME, what));
            }
        }
        Ok(())
    }
}
