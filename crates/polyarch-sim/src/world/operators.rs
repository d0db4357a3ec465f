//! What operators do: they set topologies, and drain, remove and take back members.

use std::collections::BTreeSet;

use polyarch_protocol::catalog::{MemberChange, MemberStatus, member_key};
use polyarch_protocol::client::Refusal;
use polyarch_protocol::{Input, KeyspaceId, RecordKey, RequestTag, Topology};

use super::nodes::ADMIN;
use super::{Drawn, Event, Phase, World};
use crate::invariants::links_are_as_planned::{self, Pair};
use crate::invariants::removed_is_not_heard::Removed;
use crate::invariants::{Checked, members_come_back};
use crate::node::Process;
use crate::registers::Seen;
use crate::scenario::{Act, SHAPES, Shape};

/// Hubs that a star names, at most.
const HUBS_MAX: usize = 2;
/// How many of 1,000 links that hold nobody together a custom topology has beyond the others.
const EXTRA_LINK_PERMILLE: u64 = 250;

/// What operators remember.
#[derive(Debug, Default)]
pub(super) struct Operators {
    /// Who was drained or removed last and not yet taken back.
    away: Option<usize>,
    /// Whoever was ever to be removed.
    pub(super) ever_removed: BTreeSet<u32>,
    /// The last answer, for a script to look at.
    pub(super) answered: Option<Result<(), Refusal>>,
    /// Whether that one was removed.
    is_removed: bool,
    /// The removal, once all others have it on their disks.
    pub(super) removed: Option<Removed>,
}

impl World {
    pub(super) fn admin_tag(&mut self) -> RequestTag {
        self.requests_made += 1;
        RequestTag { connection: ADMIN, request: self.requests_made }
    }

    /// Operators begin when clients do.
    pub(super) fn operators_begin(&mut self) {
        self.after(100_000, Event::SetTopology);
        if !self.scenario.acts.is_empty() {
            let gap_us = self.between(self.scenario.act_gap_us);
            self.after(gap_us, Event::Act);
        }
    }

    /// Sets the seed's topology through some node that knows all members who start with the cluster.
    pub(super) fn set_first_topology(&mut self) {
        if self.phase != Phase::Safety {
            return;
        }
        let at = self.rng.index(self.members());
        let early = self.members() - usize::from(self.scenario.joins_late_us.is_some());
        match self.members_known(at).is_some_and(|members| members.len() >= early) {
            true => match self.scenario.formation.topology(&self.scenario.order) {
                Some(topology) => _ = self.ask_for_topology(at, topology),
                None => _ = self.set_topology(at, self.scenario.shape),
            },
            false => self.after(100_000, Event::SetTopology),
        }
    }

    pub(super) fn act(&mut self) {
        if self.phase != Phase::Safety {
            return;
        }
        let gap_us = self.between(self.scenario.act_gap_us);
        self.after(gap_us, Event::Act);
        let act = self.rng.weighted(&self.scenario.acts);
        let (at, other) = self.two_nodes();
        let nth = self.streams.acts_drawn();
        if !self.case.keeps_act(nth) {
            return;
        }
        self.has_happened(Drawn::Act(nth), format!("{act:?} (nodes {} and {})", at + 1, other + 1));
        let is_done = match act {
            Act::SwitchTopology => self.switch_topology(at),
            Act::SwitchTwoTopologies => self.switch_two_topologies(at, other),
            Act::Drain => self.drain(at, other),
            Act::Remove => self.remove_soon(at),
            Act::Rejoin => self.rejoin(at),
        };
        if is_done {
            *self.report.acts.entry(act).or_default() += 1;
        }
    }

    fn two_nodes(&mut self) -> (usize, usize) {
        let at = self.rng.index(self.members());
        (at, (at + 1 + self.rng.index(self.members() - 1)) % self.members())
    }

    /// The members that a running node knows and that were not removed.
    fn members_known(&self, at: usize) -> Option<BTreeSet<u32>> {
        self.nodes[at].process.as_ref().map(|process| process.replica.catalog().present())
    }

    fn switch_topology(&mut self, at: usize) -> bool {
        let shape = self.rng.weighted(&SHAPES);
        self.set_topology(at, shape)
    }

    /// Two operators who do not know of each other, often because their nodes are apart too.
    fn switch_two_topologies(&mut self, one: usize, other: usize) -> bool {
        if self.rng.chance(500) {
            self.block(vec![(one, other), (other, one)]);
        }
        let is_set = self.switch_topology(one);
        self.switch_topology(other) && is_set
    }

    /// Asks a node to set a topology; says whether one is there to be asked.
    fn set_topology(&mut self, at: usize, shape: Shape) -> bool {
        let Some(members) = self.members_known(at) else { return false };
        let topology = self.draw_topology(shape, &members);
        self.ask_for_topology(at, topology)
    }

    fn ask_for_topology(&mut self, at: usize, topology: Topology) -> bool {
        self.note(format_args!("an operator asks node {} for topology {topology}", at + 1));
        let tag = self.admin_tag();
        self.push_input(at, Input::SetTopology(tag, topology), None);
        true
    }

    fn draw_topology(&mut self, shape: Shape, members: &BTreeSet<u32>) -> Topology {
        let mut ids: Vec<u32> = members.iter().copied().collect();
        for at in (1..ids.len()).rev() {
            let with = self.rng.index(at + 1);
            ids.swap(at, with);
        }
        match shape {
            Shape::Mesh => Topology::Mesh,
            Shape::Ring => Topology::Ring,
            Shape::Star => Topology::Star { hubs: Vec::new() },
            Shape::StarWithHubs => {
                ids.truncate(1 + self.rng.index(HUBS_MAX));
                Topology::Star { hubs: ids }
            }
            Shape::Custom => Topology::Custom { edges: self.draw_edges(&ids) },
        }
    }

    /// A tree that leads to all of them, and some more links.
    fn draw_edges(&mut self, ids: &[u32]) -> Vec<Pair> {
        let mut edges = Vec::new();
        for at in 1..ids.len() {
            let parent = self.rng.index(at);
            for to in 0..at {
                if to == parent || self.rng.chance(EXTRA_LINK_PERMILLE) {
                    edges.push((ids[at], ids[to]));
                }
            }
        }
        edges
    }

    pub(super) fn change_member(&mut self, asked: usize, server_id: u32, change: MemberChange) -> bool {
        if self.nodes[asked].process.is_none() {
            return false;
        }
        self.note(format_args!("an operator asks node {} to {change:?} member {server_id}", asked + 1));
        if let MemberChange::Remove { .. } = change {
            self.operators.ever_removed.insert(server_id);
        }
        let tag = self.admin_tag();
        self.push_input(asked, Input::ChangeMember(tag, server_id, change), None);
        true
    }

    fn drain(&mut self, asked: usize, at: usize) -> bool {
        if self.operators.away.is_some() || !self.change_member(asked, at as u32 + 1, MemberChange::Drain) {
            return false;
        }
        self.operators.away = Some(at);
        true
    }

    /// Most times a machine is removed when nobody has heard of it for a while.
    fn remove_soon(&mut self, at: usize) -> bool {
        if self.operators.away.is_some() || self.nodes[at].boot == 0 {
            return false;
        }
        self.operators.away = Some(at);
        if self.rng.chance(800) {
            let others = (0..self.members()).filter(|other| *other != at);
            self.block(others.flat_map(|other| [(at, other), (other, at)]).collect());
        }
        let delay_us = self.between((0, 2_000_000));
        self.after(delay_us, Event::Remove { at });
        true
    }

    pub(super) fn remove(&mut self, at: usize) {
        let asked = (at + 1 + self.rng.index(self.members() - 1)) % self.members();
        let change = MemberChange::Remove { force: true };
        if self.phase != Phase::Safety || self.operators.away != Some(at) {
            return;
        }
        self.operators.is_removed = self.change_member(asked, at as u32 + 1, change);
        if !self.operators.is_removed {
            self.operators.away = None;
        }
    }

    fn rejoin(&mut self, asked: usize) -> bool {
        let Some(at) = self.operators.away.filter(|at| *at != asked) else { return false };
        if !self.change_member(asked, at as u32 + 1, MemberChange::Rejoin) {
            return false;
        }
        self.forget_who_is_away();
        true
    }

    fn forget_who_is_away(&mut self) {
        self.operators.away = None;
        self.forget_removal();
    }

    /// Notes that all others have a removal on their disks, from when on it must hold.
    pub(super) fn review_removal(&mut self) {
        let Some(at) = self.operators.away.filter(|_| self.operators.is_removed) else { return };
        let server_id = at as u32 + 1;
        let knows = |other: usize| {
            // A snapshot that came whole was heard, though its write sets are not applied yet.
            let is_at_rest = |p: &Process| p.is_at_rest() && !p.has_failed && !p.snapshots.is_joining();
            self.nodes[other].process.as_ref().is_some_and(is_at_rest)
                && self.history.node(other).member_status(server_id) == Some(MemberStatus::Removed)
        };
        let others: Vec<usize> = (0..self.members()).filter(|other| *other != at).collect();
        // Nor is it known what a clone hears, or what of an earlier return a repair has left to be applied.
        let is_unclear = |other: &usize| !self.evidence[*other].waiting().is_empty();
        if self.clones_are_about() || others.iter().any(is_unclear) {
            return;
        }
        // One may know of a removal before this one, and not yet of the return in between.
        let key = RecordKey::new(KeyspaceId::SYSTEM, &member_key(server_id));
        let know_the_same: BTreeSet<_> =
            others.iter().map(|other| self.history.node(*other).staged().live_dots(&key)).collect();
        if self.operators.removed.is_some() || !others.iter().all(|other| knows(*other)) || know_the_same.len() > 1 {
            return;
        }
        let mut others_have = Seen::default();
        for other in &others {
            others_have.join(self.history.node(*other).staged().seen());
        }
        self.note(format_args!("all others know that member {server_id} is removed"));
        self.report.removals += 1;
        self.operators.removed = Some(Removed { server_id, others_have });
    }

    /// A removal may have gone with an older disk.
    pub(super) fn forget_removal(&mut self) {
        self.operators.removed = None;
        self.operators.is_removed = false;
    }

    /// Takes back whoever is drained or removed, wherever it is held to be.
    pub(super) fn rejoin_all(&mut self) {
        self.forget_who_is_away();
        for at in 0..self.members() {
            let Some(process) = &self.nodes[at].process else { continue };
            let away = process.replica.catalog().members().filter(|member| !member.status.takes_writes());
            let away: Vec<u32> = away.map(|member| member.server_id).collect();
            for server_id in away {
                self.change_member(at, server_id, MemberChange::Rejoin);
            }
        }
    }

    /// Whether the cluster looks as it was ordered: all members are back, and linked as planned.
    pub(super) fn check_order(&self) -> Checked {
        let members: BTreeSet<u32> = (1..=self.members() as u32).collect();
        for at in 0..self.members() {
            let history = self.history.node(at);
            for server_id in &members {
                members_come_back::check(at as u32 + 1, *server_id, history.member_status(*server_id))?;
            }
        }
        self.check_writes_are_taken()?;
        let topology = self.history.node(0).topology();
        let can = |(one, two): Pair| self.network.may_reach(one as usize - 1, two as usize - 1);
        links_are_as_planned::check(&topology, &members, can, &self.links_up())
    }

    /// The links that are up, the smaller server id first.
    pub(super) fn links_up(&self) -> Vec<Pair> {
        let ids = self.network.ids();
        let ends = ids.iter().filter_map(|id| self.network.link(*id)).map(|link| link.ends);
        ends.map(|[(one, _), (two, _)]| (one.min(two) as u32 + 1, one.max(two) as u32 + 1)).collect()
    }
}
