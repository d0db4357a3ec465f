use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use bytes::Bytes;
use polyarch_crdt::{Dot, Hlc, Origin};
use polyarch_protocol::catalog::{self, KeyspaceKind, MemberStatus, SystemRecord};
use polyarch_protocol::{ChainHash, ChainHeads, Durability, KeyspaceId, RecordKey, Topology, WriteSet};

use crate::invariants::no_resurrection::Graves;
use crate::invariants::{
    Checked, Violation, acked_is_durable, applied_once_and_in_order, causal_order, gtid_never_two_payloads,
    interval_loses_a_suffix, own_stamps_rise, supersedes_what_was_shown,
};
use crate::registers::{Meant, Registers, Seen, Shown, Written};

/// All that was seen from outside: who wrote what, who applied it when, who was told.
#[derive(Debug, Default)]
pub struct History {
    writes: BTreeMap<Dot, Rc<Written>>,
    chains: BTreeMap<Dot, ChainHash>,
    nodes: Vec<NodeHistory>,
    acked: BTreeSet<Dot>,
    excused: BTreeSet<Dot>,
    /// What crashes of interval nodes took back.
    lost: BTreeSet<Dot>,
    /// Who superseded whom.
    pub graves: Graves,
}

/// One node's part of it.
#[derive(Debug, Default, Clone)]
pub struct NodeHistory {
    /// What its log was given, in order.
    order: Vec<Rc<Written>>,
    /// The greatest stamp of each server in that.
    stamps: BTreeMap<u32, Hlc>,
    /// How much of that was synced.
    synced: usize,
    /// How much of that its clients could see.
    published_len: usize,
    /// What its process wrote itself since it started, in order.
    own: Vec<Dot>,
    /// It is an image's, put in the place of what there was.
    is_set_back: bool,
    /// What a snapshot brings that it is adopting, if that ends.
    adopting: Option<Vec<Rc<Written>>>,
    staged: Registers,
    published: Registers,
    durable: Registers,
}

/// What a client's write was meant to do, in the client's words.
#[derive(Debug, Clone)]
pub struct Intent {
    /// Its changes.
    pub changes: Vec<IntendedChange>,
}

/// One change of it.
#[derive(Debug, Clone)]
pub struct IntendedChange {
    /// The record.
    pub key: RecordKey,
    /// Its keyspace's kind.
    pub kind: KeyspaceKind,
    /// The value; `None` deletes.
    pub put: Option<Bytes>,
    /// What it replaces.
    pub replaces: Replaces,
}

/// What a change replaces, as its client knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Replaces {
    /// Whatever the node holds.
    Held,
    /// Nothing.
    Nothing,
    /// What a read had shown.
    Shown(Vec<Dot>),
}

impl History {
    /// A history of `nodes` nodes that did nothing yet.
    pub fn new(nodes: usize) -> Self {
        Self { nodes: vec![NodeHistory::default(); nodes], ..Self::default() }
    }

    /// One node's part.
    pub fn node(&self, at: usize) -> &NodeHistory {
        &self.nodes[at]
    }

    /// A node gave its log a write set. Returns it, as it was meant.
    ///
    /// # Errors
    /// When that breaks an invariant.
    pub fn appended(
        &mut self,
        at: usize,
        server_id: u32,
        bytes: &Bytes,
        intent: Option<&Intent>,
    ) -> Result<Rc<Written>, Violation> {
        let decoded = WriteSet::decode(bytes).map_err(|error| {
            Violation::new(gtid_never_two_payloads::NAME, format!("node {server_id} appended {error}"))
        })?;
        let dot = decoded.dot;
        applied_once_and_in_order::check_next(server_id, self.nodes[at].staged.seen(), dot)?;
        let written = match self.writes.get(&dot) {
            Some(known) => {
                gtid_never_two_payloads::check(server_id, dot, &known.bytes, bytes)?;
                causal_order::check(server_id, self.nodes[at].staged.seen(), known)?;
                Rc::clone(known)
            }
            None if dot.origin.server_id != server_id => {
                return Err(gtid_never_two_payloads::from_nowhere(server_id, dot));
            }
            None => {
                let written = Rc::new(self.nodes[at].meant(&decoded, bytes, intent)?);
                own_stamps_rise::check(dot, written.hlc, self.nodes[at].stamps.get(&server_id).copied())?;
                self.graves.note(&written);
                self.writes.insert(dot, Rc::clone(&written));
                self.nodes[at].own.push(dot);
                written
            }
        };
        let node = &mut self.nodes[at];
        node.staged.apply(&written);
        node.note_stamp(&written);
        node.order.push(Rc::clone(&written));
        Ok(written)
    }

    /// A node's log said that all it was given is synced.
    pub fn synced(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        for written in &node.order[node.synced..] {
            node.durable.apply(written);
        }
        node.synced = node.order.len();
    }

    /// A node showed its clients all that it was given.
    pub fn published(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        for written in &node.order[node.published_len..] {
            node.published.apply(written);
        }
        node.published_len = node.order.len();
    }

    /// A node begins to adopt a snapshot that its donor had up to `heads`, with nothing staged. It has
    /// all of it then, or nothing of it.
    ///
    /// # Errors
    /// When the snapshot has what was never written.
    pub fn adopts(&mut self, at: usize, server_id: u32, heads: &ChainHeads) -> Checked {
        let had = self.nodes[at].staged.seen();
        let mut gained = Vec::new();
        for (origin, head) in heads.iter() {
            for seq in had.seq(origin) + 1..=head.seq {
                let dot = Dot::new(origin, seq);
                let known = self.writes.get(&dot);
                gained.push(Rc::clone(known.ok_or_else(|| gtid_never_two_payloads::from_nowhere(server_id, dot))?));
            }
        }
        self.nodes[at].adopting = Some(gained);
        Ok(())
    }

    /// It has not.
    pub fn adopts_not(&mut self, at: usize) {
        self.nodes[at].adopting = None;
    }

    /// Its disk has these: all of what it was adopting, or nothing.
    pub fn adoption_ends(&mut self, at: usize, has: &Seen) {
        let adopting = self.nodes[at].adopting.as_ref();
        match adopting.is_some_and(|gained| gained.iter().all(|written| has.includes(written.dot))) {
            true => drop(self.adopted(at)),
            false => self.adopts_not(at),
        }
    }

    /// It has: what came is durable and shown, at once. Returns that.
    pub fn adopted(&mut self, at: usize) -> Vec<Rc<Written>> {
        let node = &mut self.nodes[at];
        let gained = node.adopting.take().unwrap_or_default();
        for written in &gained {
            node.staged.apply(written);
            node.durable.apply(written);
            node.published.apply(written);
            node.note_stamp(written);
        }
        node.order.extend(gained.iter().cloned());
        (node.synced, node.published_len) = (node.order.len(), node.order.len());
        gained
    }

    /// A node started again and says that it has `heads`.
    ///
    /// # Errors
    /// When something is missing that was synced, or more than its durability allows, or it has what
    /// it never had in this order.
    pub fn recovered(&mut self, at: usize, server_id: u32, durability: Durability, heads: &ChainHeads) -> Checked {
        let recovered = Seen::from(heads.applied());
        self.adoption_ends(at, &recovered);
        let node = &self.nodes[at];
        acked_is_durable::check_recovered(server_id, node.durable.seen(), &recovered)?;
        let order = node.order.iter().map(|written| written.dot);
        let len = applied_once_and_in_order::check_prefix(server_id, order, &recovered)?;
        self.take_back(at, server_id, durability, &recovered)?;
        let node = &mut self.nodes[at];
        if len < node.order.len() {
            node.order.truncate(len);
            node.staged = Registers::of(&node.order);
            node.stamps = stamps_of(&node.order);
        }
        node.published = node.staged.clone();
        node.durable = node.staged.clone();
        (node.synced, node.published_len) = (len, len);
        self.check_chains(server_id, heads)
    }

    /// Notes what a process wrote that did not outlive it.
    fn take_back(&mut self, at: usize, server_id: u32, durability: Durability, recovered: &Seen) -> Checked {
        if std::mem::take(&mut self.nodes[at].is_set_back) {
            // An image may have what the disk then lost; from now on it is to be kept.
            self.lost.retain(|dot| !recovered.includes(*dot));
            self.excused.retain(|dot| !recovered.includes(*dot));
        }
        let own = std::mem::take(&mut self.nodes[at].own);
        let others = self.nodes.iter().enumerate().filter(|(other, _)| *other != at);
        let others = others.map(|(_, node)| node.has_for_sure());
        let lost = interval_loses_a_suffix::check(server_id, &own, self.nodes[at].durable.seen(), recovered, others)?;
        match durability {
            Durability::Sync => acked_is_durable::check_lost(server_id, lost, &self.acked),
            Durability::Interval => {
                self.lost.extend(lost);
                Ok(())
            }
        }
    }

    /// All nodes have one history of each origin.
    ///
    /// # Errors
    /// When a chain hash differs from one that was seen before.
    pub fn check_chains(&mut self, server_id: u32, heads: &ChainHeads) -> Checked {
        for (origin, head) in heads.iter() {
            let dot = Dot::new(origin, head.seq);
            let known = *self.chains.entry(dot).or_insert(head.hash);
            applied_once_and_in_order::check_chain(server_id, dot, known, head.hash)?;
        }
        Ok(())
    }

    /// A node's disk was replaced by an older image of itself. What only that disk had is lost, and
    /// no node is to blame.
    pub fn set_back(&mut self, at: usize, image: NodeHistory) {
        // What the image's process wrote, the one that ran on may have synced and sent since.
        let image = NodeHistory { own: Vec::new(), is_set_back: true, ..image };
        let lost = std::mem::replace(&mut self.nodes[at], image);
        for written in &lost.order {
            if !self.nodes.iter().any(|node| node.durable.seen().includes(written.dot)) {
                self.excused.insert(written.dot);
            }
        }
    }

    /// Two machines change their disks.
    pub fn swap(&mut self, one: usize, other: usize) {
        self.nodes.swap(one, other);
        self.nodes[one].is_set_back = true;
        self.nodes[one].own.clear();
    }

    /// What was lost with a disk turns out not to be: it waits somewhere.
    pub fn is_not_lost(&mut self, dot: Dot) {
        self.excused.remove(&dot);
    }

    /// Nobody has these any more, unless some node has them on its disk.
    pub fn lost_with_a_disk(&mut self, dots: impl IntoIterator<Item = Dot>) {
        let is_gone = |dot: &Dot| !self.nodes.iter().any(|node| node.durable.seen().includes(*dot));
        let gone: Vec<Dot> = dots.into_iter().filter(is_gone).collect();
        self.excused.extend(gone);
    }

    /// A write set, as it was meant.
    pub fn written(&self, dot: Dot) -> Option<&Rc<Written>> {
        self.writes.get(&dot)
    }

    /// Whether a write set changed a record that another one changed too, neither having seen the other.
    pub fn is_concurrent(&self, dot: Dot, key: &RecordKey) -> bool {
        let changes = |written: &Written| written.changes.iter().any(|change| change.key == *key);
        let Some(one) = self.writes.get(&dot).filter(|written| changes(written)) else { return false };
        let mut others = self.writes.values().filter(|other| other.dot != dot && changes(other));
        others.any(|other| !other.saw.includes(dot) && !one.saw.includes(other.dot))
    }

    /// Whether a write set was ever written, wherever it is now.
    pub fn is_written(&self, dot: Dot) -> bool {
        self.writes.contains_key(&dot)
    }

    /// Whether some of an epoch was written that a node does not have.
    pub fn is_missing(&self, at: usize, origin: Origin) -> bool {
        self.is_written(Dot::new(origin, self.nodes[at].durable.seen().seq(origin) + 1))
    }

    /// A client was told that its write is written.
    pub fn acked(&mut self, dot: Dot) {
        self.acked.insert(dot);
    }

    /// What clients were told is written, but for what was lost with a disk, or by a crash of an
    /// interval node before its sync.
    pub fn acked_and_kept(&self) -> impl Iterator<Item = &Dot> {
        self.acked.difference(&self.excused).filter(|dot| !self.lost.contains(dot))
    }

    /// What crashes of interval nodes took back.
    pub fn lost(&self) -> impl Iterator<Item = &Dot> {
        self.lost.iter()
    }

    /// How many writes clients were told are written and crashes of interval nodes took back.
    pub fn acked_and_lost_count(&self) -> usize {
        self.acked.intersection(&self.lost).count()
    }

    /// How many writes clients were told are written.
    pub fn acked_count(&self) -> usize {
        self.acked.len()
    }
}

impl NodeHistory {
    /// What the node should show to a replica: all that it was given.
    pub fn staged(&self) -> &Registers {
        &self.staged
    }

    /// What the node should show to clients: what is synced, or all that it was given, as its
    /// durability has it.
    pub fn published(&self) -> &Registers {
        &self.published
    }

    /// What the node may show to peers: all that is synced.
    pub fn durable(&self) -> &Registers {
        &self.durable
    }

    /// What the cluster's own records say of a member, under all that the node was given. Where
    /// others wrote while the member did, they wrote what an operator wants.
    pub fn member_status(&self, server_id: u32) -> Option<MemberStatus> {
        let live = self.staged.live(&RecordKey::new(KeyspaceId::SYSTEM, &catalog::member_key(server_id)));
        let by_rank = |shown: &Shown| (shown.dot.origin.server_id != server_id, shown.hlc, shown.dot.origin);
        match SystemRecord::decode(&live.into_iter().max_by_key(by_rank)?.value) {
            Ok(SystemRecord::Member(member)) => Some(member.status),
            _ => None,
        }
    }

    /// What they say of the topology: mesh, unless it was set.
    pub fn topology(&self) -> Topology {
        let live = self.staged.live(&RecordKey::new(KeyspaceId::SYSTEM, &catalog::topology_key()));
        let latest = live.into_iter().max_by_key(|shown| (shown.hlc, shown.dot.origin));
        match latest.map(|shown| SystemRecord::decode(&shown.value)) {
            Some(Ok(SystemRecord::Topology(topology))) => topology,
            _ => Topology::Mesh,
        }
    }

    fn note_stamp(&mut self, written: &Written) {
        note_stamp(&mut self.stamps, written);
    }

    /// What the node has, or will have when it comes up: of what was staged when an image of it was made nobody knows
    /// how much is on that.
    fn has_for_sure(&self) -> &Seen {
        if self.is_set_back { self.durable.seen() } else { self.staged.seen() }
    }

    /// Whether it had begun to adopt a snapshot when its process ended.
    pub fn is_adopting(&self) -> bool {
        self.adopting.is_some()
    }

    /// The same, had its log ended after so many write sets.
    pub fn up_to(&self, len: usize) -> Self {
        let order = self.order[..len].to_vec();
        let registers = Registers::of(&order);
        Self {
            synced: len,
            published_len: len,
            staged: registers.clone(),
            published: registers.clone(),
            durable: registers,
            stamps: stamps_of(&order),
            order,
            ..Self::default()
        }
    }

    /// Whether this is what its process wrote last.
    pub fn just_wrote(&self, dot: Dot) -> bool {
        self.own.last() == Some(&dot)
    }

    /// What its log was given and has not synced.
    pub fn unsynced(&self) -> &[Rc<Written>] {
        &self.order[self.synced..]
    }

    /// All that its log was given, in order.
    pub fn order(&self) -> &[Rc<Written>] {
        &self.order
    }

    /// Works out what a new write was meant to do, over what its node had.
    fn meant(&self, decoded: &WriteSet, bytes: &Bytes, intent: Option<&Intent>) -> Result<Written, Violation> {
        let is_system = decoded.changes.iter().any(|change| change.keyspace == KeyspaceId::SYSTEM);
        let changes = match intent {
            Some(intent) if !is_system => self.meant_by_client(decoded, intent)?,
            _ => decoded
                .changes
                .iter()
                .map(|change| Meant {
                    key: change.record_key(),
                    names: change.supersedes.clone(),
                    put: change.effect.value().cloned(),
                })
                .collect(),
        };
        Ok(Written {
            dot: decoded.dot,
            hlc: decoded.hlc,
            bytes: bytes.clone(),
            saw: self.staged.seen().clone(),
            changes,
        })
    }

    fn meant_by_client(&self, decoded: &WriteSet, intent: &Intent) -> Result<Vec<Meant>, Violation> {
        let mut changes = Vec::with_capacity(intent.changes.len());
        let mut found: BTreeMap<RecordKey, _> =
            decoded.changes.iter().map(|change| (change.record_key(), change)).collect();
        for intended in &intent.changes {
            let meant = self.names(intended);
            let found = found.remove(&intended.key);
            if found.is_none() && intended.put.is_none() && meant.is_empty() {
                // A delete of nothing.
                continue;
            }
            let superseded = found.map(|change| change.supersedes.as_slice()).unwrap_or_default();
            supersedes_what_was_shown::check(decoded.dot, superseded, &meant)?;
            if found.map(|change| change.effect.value()) != Some(intended.put.as_ref()) {
                let what = format!("{} does not put what its client sent for {:?}", decoded.dot, intended.key);
                return Err(Violation::new(supersedes_what_was_shown::NAME, what));
            }
            changes.push(Meant { key: intended.key.clone(), names: meant, put: intended.put.clone() });
        }
        match found.into_keys().next() {
            None => Ok(changes),
            Some(key) => {
                let what = format!("{} changes {key:?}, which its client did not name", decoded.dot);
                Err(Violation::new(supersedes_what_was_shown::NAME, what))
            }
        }
    }

    /// The dots that a change replaces: what was superseded already is left out.
    fn names(&self, intended: &IntendedChange) -> Vec<Dot> {
        let live = self.staged.live_dots(&intended.key);
        let mut names = match (&intended.replaces, intended.kind) {
            (Replaces::Held, _) | (Replaces::Nothing, KeyspaceKind::Lww) => live.clone(),
            (Replaces::Nothing, KeyspaceKind::Mv) => Vec::new(),
            (Replaces::Shown(dots), KeyspaceKind::Mv) => dots.clone(),
            (Replaces::Shown(dots), KeyspaceKind::Lww) => dots.iter().chain(&live).copied().collect(),
        };
        names.sort_unstable();
        names.dedup();
        names.retain(|dot| live.contains(dot) || !self.staged.seen().includes(*dot));
        names
    }
}

fn stamps_of(order: &[Rc<Written>]) -> BTreeMap<u32, Hlc> {
    let mut stamps = BTreeMap::new();
    order.iter().for_each(|written| note_stamp(&mut stamps, written));
    stamps
}

fn note_stamp(stamps: &mut BTreeMap<u32, Hlc>, written: &Written) {
    let greatest = stamps.entry(written.dot.origin.server_id).or_insert(written.hlc);
    *greatest = written.hlc.max(*greatest);
}
