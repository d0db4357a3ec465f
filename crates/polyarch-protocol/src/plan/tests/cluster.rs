use std::collections::{BTreeMap, BTreeSet};

use polyarch_crdt::{AppliedSet, Dot, Origin};

use crate::plan::{FeedPlan, FeedTimings, LinkPlan, LinkSight, LinkTimings, LinkWishes, Peer, Sight};
use crate::reach::{Distances, LinkState, LinkStates, Taken};
use crate::replica::LinkId;
use crate::topology::{self, Edge, Parts, Topology};

/// One round: a link state, a heartbeat and what a feed brings cross one link.
pub(super) const ROUND_MS: u64 = 100;

/// When nothing has changed for this long nothing is going to: longer than a feed's return after
/// its stall, or a link's hold after that.
const QUIET_MS: u64 = 7_500;

/// Nodes that plan, links that they open and close, origins that write.
pub(super) struct Cluster {
    pub(super) nodes: BTreeMap<u32, Node>,
    /// Pairs between which a link can be.
    pub(super) works: BTreeSet<Edge>,
    /// Who cannot dial whom, though a link the other way round works.
    pub(super) undialable: BTreeSet<(u32, u32)>,
    pub(super) links: BTreeMap<Edge, LinkId>,
    /// Whether each origin writes once a round.
    pub(super) writes: bool,
    next_link: u64,
    /// Link states under way: on which link, to whom.
    wires: Vec<(Edge, LinkId, u32, LinkState)>,
    pub(super) now_ms: u64,
    /// When a link last went up or down.
    pub(super) links_changed_ms: u64,
    /// When a feed last changed.
    pub(super) feeds_changed_ms: u64,
    /// When a node last lacked more than what is on its way.
    pub(super) unfed_ms: u64,
    /// When none did.
    pub(super) fed_ms: u64,
}

pub(super) struct Node {
    id: u32,
    pub(super) members: BTreeSet<u32>,
    pub(super) topology: Topology,
    pub(super) cut: BTreeSet<u32>,
    states: LinkStates,
    links: LinkPlan,
    feeds: FeedPlan,
    distances: (u64, Distances),
    pub(super) applied: AppliedSet,
    greeted: BTreeSet<LinkId>,
    subscribed: BTreeMap<LinkId, BTreeSet<Origin>>,
    fed_ms: BTreeMap<LinkId, u64>,
}

pub(super) fn origin(id: u32) -> Origin {
    Origin::new(id, 1)
}

impl Cluster {
    /// Members 1 to `n` that know each other and have no link yet, each pair of which can have one.
    pub(super) fn of(n: u32, topology: &Topology) -> Self {
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            works: Topology::Mesh.edges(&(1..=n).collect()),
            undialable: BTreeSet::new(),
            links: BTreeMap::new(),
            writes: true,
            next_link: 1,
            wires: Vec::new(),
            now_ms: 0,
            links_changed_ms: 0,
            feeds_changed_ms: 0,
            unfed_ms: 0,
            fed_ms: 0,
        };
        let members: BTreeSet<u32> = (1..=n).collect();
        members.iter().for_each(|id| cluster.start(*id, 1, &members, topology));
        cluster
    }

    /// Starts a process that has nothing but its own first write set.
    pub(super) fn start(&mut self, id: u32, boot_id: u128, members: &BTreeSet<u32>, topology: &Topology) {
        let node = Node {
            id,
            members: members.clone(),
            topology: topology.clone(),
            cut: BTreeSet::new(),
            states: LinkStates::new(id, boot_id),
            links: LinkPlan::default(),
            feeds: FeedPlan::default(),
            distances: (u64::MAX, Distances::default()),
            applied: [Dot::new(origin(id), 1)].into_iter().collect(),
            greeted: BTreeSet::new(),
            subscribed: BTreeMap::new(),
            fed_ms: BTreeMap::new(),
        };
        self.nodes.insert(id, node);
    }

    /// Kills a process. Gives what it was, to start it again.
    pub(super) fn kill(&mut self, id: u32) -> Node {
        let dead = self.nodes.remove(&id).expect("it lives");
        self.close(|edge| edge.other(id).is_some());
        dead
    }

    /// Starts it again with the data that it had.
    pub(super) fn revive(&mut self, dead: Node, boot_id: u128) {
        self.start(dead.id, boot_id, &dead.members, &dead.topology);
        self.nodes.get_mut(&dead.id).expect("it was just started").applied = dead.applied;
    }

    pub(super) fn set_topology(&mut self, topology: &str) {
        let topology: Topology = topology.parse().expect("it is one");
        self.nodes.values_mut().for_each(|node| node.topology.clone_from(&topology));
    }

    /// An operator cuts `id` off from these, and from no others.
    pub(super) fn cut(&mut self, id: u32, off: BTreeSet<u32>) {
        self.close(|edge| edge.other(id).is_some_and(|other| off.contains(&other)));
        self.nodes.get_mut(&id).expect("it lives").cut = off;
    }

    pub(super) fn run_ms(&mut self, ms: u64) {
        (0..ms / ROUND_MS).for_each(|_| self.round());
    }

    /// Runs until nothing has changed for a while, and checks what there is then. Gives how long
    /// it took until all were fed, and until the last change.
    pub(super) fn settle(&mut self, within_ms: u64) -> (u64, u64) {
        let (start_ms, quiet) = (self.now_ms, |ms: u64| ms + QUIET_MS);
        let last = |cluster: &Self| cluster.links_changed_ms.max(cluster.feeds_changed_ms);
        while self.now_ms < quiet(start_ms) || self.now_ms < quiet(last(self)) {
            assert!(self.now_ms <= quiet(start_ms + within_ms), "it is not at rest:\n{self}");
            self.round();
        }
        self.assert_settled();
        (self.unfed_ms.saturating_sub(start_ms), last(self).saturating_sub(start_ms))
    }

    pub(super) fn round(&mut self) {
        self.now_ms += ROUND_MS;
        let broken: BTreeSet<Edge> = self.links.keys().filter(|edge| !self.works.contains(edge)).copied().collect();
        self.close(|edge| broken.contains(&edge));
        self.flood();
        let shown: BTreeMap<u32, AppliedSet> = self.nodes.iter().map(|(id, n)| (*id, n.applied.clone())).collect();
        let old: BTreeMap<LinkId, Edge> = self.links.iter().map(|(edge, link)| (*link, *edge)).collect();
        for node in self.nodes.values_mut() {
            node.take_feeds(&old, &shown, self.now_ms);
            let next = node.applied.seq(origin(node.id)) + u64::from(self.writes);
            node.reach(Dot::new(origin(node.id), next));
        }
        self.plan(&shown);
        match self.is_fed() {
            true => self.fed_ms = self.now_ms,
            false => self.unfed_ms = self.now_ms,
        }
    }

    fn flood(&mut self) {
        for (edge, link, to, entry) in std::mem::take(&mut self.wires) {
            if self.links.get(&edge) != Some(&link) {
                continue;
            }
            let Some(node) = self.nodes.get_mut(&to) else { continue };
            match node.states.take(&entry) {
                Taken::Newer => self.send(to, &entry, Some(link)),
                Taken::OwnOutdated { own, twin } => {
                    assert!(!twin, "each lives alone");
                    self.send(to, &own, None);
                }
                Taken::Stale => {}
                Taken::Unsound => panic!("{entry:?}"),
            }
        }
    }

    fn send(&mut self, from: u32, entry: &LinkState, but: Option<LinkId>) {
        for (edge, link) in &self.links {
            if let (Some(to), true) = (edge.other(from), Some(*link) != but) {
                self.wires.push((*edge, *link, to, entry.clone()));
            }
        }
    }

    fn plan(&mut self, shown: &BTreeMap<u32, AppliedSet>) {
        let ids: Vec<u32> = self.nodes.keys().copied().collect();
        let mut wishes = Vec::new();
        for id in ids {
            let up = self.links_of(id);
            let node = self.nodes.get_mut(&id).expect("it was just listed");
            let changed = node.see_links(&up);
            let new: Vec<LinkId> = up.values().copied().filter(|link| node.greeted.insert(*link)).collect();
            let all: Vec<LinkState> = match new.is_empty() {
                true => Vec::new(),
                false => node.states.entries().cloned().collect(),
            };
            wishes.push((id, node.plan_links(self.now_ms)));
            if node.plan_feeds(&up, shown, self.now_ms) {
                self.feeds_changed_ms = self.now_ms;
            }
            if let Some(own) = changed {
                self.send(id, &own, None);
            }
            for (to, link) in up.iter().filter(|(_, link)| new.contains(link)) {
                self.wires.extend(all.iter().map(|entry| (Edge::new(id, *to), *link, *to, entry.clone())));
            }
        }
        for (id, wishes) in wishes {
            self.close(|edge| edge.other(id).is_some_and(|other| wishes.drop.contains(&other)));
            wishes.dial.iter().for_each(|to| self.dial(id, *to));
        }
    }

    fn dial(&mut self, from: u32, to: u32) {
        let (edge, answers) = (Edge::new(from, to), self.nodes.get(&to).is_some_and(|node| !node.cut.contains(&from)));
        if !answers || !self.works.contains(&edge) || self.undialable.contains(&(from, to)) {
            return;
        }
        if let std::collections::btree_map::Entry::Vacant(place) = self.links.entry(edge) {
            place.insert(LinkId(self.next_link));
            self.next_link += 1;
            self.links_changed_ms = self.now_ms;
        }
    }

    fn close(&mut self, is: impl Fn(Edge) -> bool) {
        let before = self.links.len();
        self.links.retain(|edge, _| !is(*edge));
        if self.links.len() != before {
            self.links_changed_ms = self.now_ms;
        }
    }

    pub(super) fn links_of(&self, id: u32) -> BTreeMap<u32, LinkId> {
        self.links.iter().filter_map(|(edge, link)| Some((edge.other(id)?, *link))).collect()
    }

    /// The links that could be up.
    fn could_be_up(&self) -> BTreeSet<Edge> {
        let could = |edge: &&Edge| {
            let [one, two] = edge.ends();
            let nodes = self.nodes.get(&one).zip(self.nodes.get(&two));
            nodes.is_some_and(|(first, second)| !first.cut.contains(&two) && !second.cut.contains(&one))
        };
        self.works.iter().filter(could).copied().collect()
    }

    /// Whether every node has of every origin that it could reach what is not on its way: a round
    /// for each link, and three for those that were just subscribed to.
    fn is_fed(&self) -> bool {
        let lag_max = self.nodes.len() as u64 - 1 + 3;
        let mut parts = Parts::default();
        self.could_be_up().into_iter().for_each(|edge| _ = parts.join(edge));
        let part_of: BTreeMap<u32, u32> = self.nodes.keys().map(|id| (*id, parts.part_of(*id))).collect();
        self.nodes.values().all(|node| {
            let mut reached = self.nodes.values().filter(|other| part_of[&other.id] == part_of[&node.id]);
            reached.all(|other| {
                let seq = node.applied.seq(origin(other.id));
                seq > 0 && seq + lag_max >= other.applied.seq(origin(other.id))
            })
        })
    }

    /// At rest: whoever could be reached is reached, and each origin's feeds form a tree of
    /// shortest ways from its server, along which nothing is late.
    fn assert_settled(&self) {
        let up: BTreeSet<Edge> = self.links.keys().copied().collect();
        let could = self.could_be_up();
        for node in self.nodes.values() {
            let reached = topology::component(node.id, &up);
            assert_eq!(reached, topology::component(node.id, &could), "of member {}:\n{self}", node.id);
            let hops = hops_from(node.id, &up);
            for other in reached.iter().filter(|id| **id != node.id).map(|id| &self.nodes[id]) {
                let way = self.way(other, origin(node.id));
                assert_eq!(way.last(), Some(&node.id), "to {} from {}: {way:?}\n{self}", other.id, node.id);
                assert_eq!(way.len(), hops[&other.id], "to {} from {}: {way:?}\n{self}", other.id, node.id);
                let lag = node.applied.seq(origin(node.id)) - other.applied.seq(origin(node.id));
                assert_eq!(
                    lag,
                    u64::from(self.writes) * way.len() as u64,
                    "to {} from {}: {way:?}\n{self}",
                    other.id,
                    node.id
                );
            }
            self.assert_equal_in_the_dead(&reached);
        }
    }

    fn assert_equal_in_the_dead(&self, part: &BTreeSet<u32>) {
        let known = part.iter().flat_map(|id| self.nodes[id].applied.iter()).map(|dot| dot.origin);
        let dead: BTreeSet<Origin> = known.filter(|origin| !part.contains(&origin.server_id)).collect();
        for origin in dead {
            let seqs: BTreeSet<u64> = part.iter().map(|id| self.nodes[id].applied.seq(origin)).collect();
            assert_eq!(seqs.len(), 1, "{origin}: {seqs:?}\n{self}");
        }
    }

    /// By whom a node is fed, by whom that, and so on, as far as that leads.
    fn way(&self, node: &Node, origin: Origin) -> Vec<u32> {
        let mut way = Vec::new();
        let mut at = node.id;
        while let Some(from) = self.fed_by(at, origin).filter(|_| way.len() <= self.nodes.len()) {
            way.push(from);
            at = from;
        }
        way
    }

    pub(super) fn fed_by(&self, id: u32, origin: Origin) -> Option<u32> {
        let node = &self.nodes[&id];
        let on = node.subscribed.iter().find(|(_, origins)| origins.contains(&origin)).map(|(link, _)| link)?;
        self.links_of(id).into_iter().find(|(_, link)| link == on).map(|(from, _)| from)
    }
}

impl Node {
    fn see_links(&mut self, up: &BTreeMap<u32, LinkId>) -> Option<LinkState> {
        let is_up = |link: &LinkId| up.values().any(|up| up == link);
        self.subscribed.retain(|link, _| is_up(link));
        self.fed_ms.retain(|link, _| is_up(link));
        self.greeted.retain(is_up);
        self.states.retain(&self.members);
        let changed = self.states.set_own(&up.keys().copied().collect());
        if self.distances.0 != self.states.changes() {
            self.distances = (self.states.changes(), Distances::of(&self.states));
        }
        changed
    }

    fn take_feeds(&mut self, links: &BTreeMap<LinkId, Edge>, shown: &BTreeMap<u32, AppliedSet>, now_ms: u64) {
        let mut brought = Vec::new();
        for (link, origins) in &self.subscribed {
            let Some(from) = links.get(link).and_then(|edge| edge.other(self.id)) else { continue };
            for origin in origins {
                let seq = shown[&from].seq(*origin);
                if seq > self.applied.seq(*origin) {
                    brought.push(Dot::new(*origin, seq));
                    self.fed_ms.insert(*link, now_ms);
                }
            }
        }
        brought.into_iter().for_each(|dot| self.reach(dot));
    }

    fn reach(&mut self, dot: Dot) {
        self.applied.join(&[dot].into_iter().collect());
    }

    fn plan_links(&mut self, now_ms: u64) -> LinkWishes {
        let (members, cut, topology, states) = (&self.members, &self.cut, &self.topology, &self.states);
        self.links.update(&LinkSight { members, cut, topology, states, now_ms }, &LinkTimings::default())
    }

    /// Says whether a feed changed.
    fn plan_feeds(&mut self, up: &BTreeMap<u32, LinkId>, shown: &BTreeMap<u32, AppliedSet>, now_ms: u64) -> bool {
        let peers: Vec<Peer<'_>> = up
            .iter()
            .map(|(server_id, link)| Peer {
                link: *link,
                server_id: *server_id,
                applied: &shown[server_id],
                fed_ms: self.fed_ms.get(link).copied().unwrap_or(0),
            })
            .collect();
        let sight = Sight {
            me: self.id,
            distances: &self.distances.1,
            applied: &self.applied,
            unfed: &[origin(self.id)].into(),
            peers: &peers,
            awaited: &[],
            now_ms,
        };
        let wishes = self.feeds.update(&sight, &FeedTimings::default());
        let changed = self.subscribed != wishes.origins || !wishes.restart.is_empty();
        for (link, origins) in &wishes.origins {
            if self.subscribed.get(link) != Some(origins) {
                self.fed_ms.insert(*link, now_ms);
            }
        }
        self.subscribed = wishes.origins;
        changed
    }
}

impl std::fmt::Display for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |edges: &mut dyn Iterator<Item = &Edge>| edges.map(Edge::to_string).collect::<Vec<_>>().join(" ");
        writeln!(f, "at {} ms; links {}", self.now_ms, list(&mut self.links.keys()))?;
        writeln!(f, "links that work: {}; not dialled: {:?}", list(&mut self.works.iter()), self.undialable)?;
        for node in self.nodes.values() {
            let feeds: Vec<String> = node
                .applied
                .iter()
                .map(|dot| format!("{dot} by {:?}", self.fed_by(node.id, dot.origin).unwrap_or(0)))
                .collect();
            writeln!(f, "{} in a {}: {}", node.id, node.topology, feeds.join(", "))?;
        }
        Ok(())
    }
}

/// Another way to count than that of [`Distances`].
fn hops_from(id: u32, edges: &BTreeSet<Edge>) -> BTreeMap<u32, usize> {
    let mut hops = BTreeMap::from([(id, 0)]);
    for distance in 0..edges.len() {
        let ring: Vec<u32> = hops.iter().filter(|(_, hops)| **hops == distance).map(|(id, _)| *id).collect();
        for next in ring.iter().flat_map(|id| edges.iter().filter_map(|edge| edge.other(*id))) {
            hops.entry(next).or_insert(distance + 1);
        }
    }
    hops
}
