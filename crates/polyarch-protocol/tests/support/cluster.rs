use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use polyarch_crdt::AppliedSet;
use polyarch_protocol::peer::{FeedGroup, PeerMessage, PeerVersion};
use polyarch_protocol::{
    FeedStep, Input, LinkId, LogPosition, SnapshotBegin, SnapshotId, SnapshotRequest, SnapshotSource, SnapshotStep,
};

use super::node::{CLUSTER, Node};
use super::snapshots::Fetched;

/// Groups under way on a link at most, as a driver allows them.
const GROUPS_MAX: usize = 2;

/// Nodes, and links between them that are queues of frames. All goes through the codec.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    links: BTreeMap<LinkId, [usize; 2]>,
    /// Frames under way to a node on a link.
    wires: BTreeMap<(LinkId, usize), VecDeque<Frame>>,
    /// Groups that a node may still be sent on a link.
    credits: BTreeMap<(LinkId, usize), usize>,
    pub(crate) feed_group_bytes: usize,
    /// Nodes that speak version 1 with others.
    pub(crate) older: BTreeSet<usize>,
    /// Nodes that do not run now.
    pub(crate) stopped: BTreeSet<usize>,
    /// Pairs of nodes that cannot reach each other, each both ways.
    broken: BTreeSet<(usize, usize)>,
    next_link: u64,
    /// What each node has of a snapshot: its files, which outlive its process.
    pub(crate) fetched: BTreeMap<usize, Fetched>,
    /// Fetches that are under way, by their receivers.
    fetches: BTreeMap<usize, Fetch>,
    /// Walks that have something pinned: those under way, and those that may be resumed.
    walks: BTreeMap<SnapshotId, Walk>,
    /// How many parts of its snapshot each receiver takes, at most, each time the cluster settles.
    pub(crate) parts_at_once: usize,
    /// Snapshots that were joined.
    pub(crate) joins: usize,
    /// Walks that went on where they broke off.
    pub(crate) resumes: usize,
}

struct Fetch {
    link: LinkId,
    donor: usize,
    id: SnapshotId,
    source: SnapshotSource,
}

struct Walk {
    donor: usize,
    begin: SnapshotBegin,
    position: LogPosition,
}

enum Frame {
    Control(Vec<u8>),
    Feed(Bytes),
}

impl Cluster {
    /// `n` members of one cluster that know each other, with keyspaces `m` (mv) and `l` (lww), no links.
    pub(crate) fn of(n: u32) -> Self {
        let mut nodes: Vec<Node> = (1..=n).map(Node::new).collect();
        nodes[0].found();
        let mut cluster = Self::over(nodes);
        for other in 1..n as usize {
            cluster.link(0, other);
        }
        cluster.run_ms(2_000);
        cluster.unlink_all();
        cluster.assert_equal();
        for node in &mut cluster.nodes {
            assert_eq!(node.replica.catalog().members().count(), n as usize);
            node.forget();
        }
        cluster
    }

    pub(crate) fn over(nodes: Vec<Node>) -> Self {
        Self {
            nodes,
            links: BTreeMap::new(),
            wires: BTreeMap::new(),
            credits: BTreeMap::new(),
            feed_group_bytes: 1_000,
            older: BTreeSet::new(),
            stopped: BTreeSet::new(),
            broken: BTreeSet::new(),
            next_link: 0,
            fetched: BTreeMap::new(),
            fetches: BTreeMap::new(),
            walks: BTreeMap::new(),
            parts_at_once: usize::MAX,
            joins: 0,
            resumes: 0,
        }
    }

    /// Connects two nodes; the first dials. Nothing is delivered yet.
    pub(crate) fn connect(&mut self, dials: usize, accepts: usize) -> LinkId {
        self.next_link += 1;
        let link = LinkId(self.next_link);
        self.links.insert(link, [dials, accepts]);
        for (node, other) in [(dials, accepts), (accepts, dials)] {
            self.credits.insert((link, node), GROUPS_MAX);
            let server_id = self.nodes[other].config.server_id;
            let dialed = node == dials;
            let version = match self.older.contains(&node) || self.older.contains(&other) {
                true => PeerVersion::V1,
                false => PeerVersion::NEWEST,
            };
            self.nodes[node].handle(Input::LinkUp {
                link,
                server_id,
                dialed,
                version,
                address: format!("node-{server_id}:7400"),
            });
        }
        link
    }

    /// Connects two nodes and lets them exchange all they have.
    pub(crate) fn link(&mut self, one: usize, other: usize) -> LinkId {
        let link = self.connect(one, other);
        self.settle();
        link
    }

    pub(crate) fn linked(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    pub(crate) fn unlink(&mut self, link: LinkId) {
        let Some(ends) = self.links.remove(&link) else { return };
        for node in ends {
            self.wires.remove(&(link, node));
            self.credits.remove(&(link, node));
            self.nodes[node].feeds.remove(&link);
            self.nodes[node].handle(Input::LinkDown(link));
        }
        let broken = self.fetches.iter().filter(|(_, fetch)| fetch.link == link).map(|(receiver, _)| *receiver);
        for receiver in broken.collect::<Vec<_>>() {
            self.break_off(receiver, "the link is lost");
        }
    }

    pub(crate) fn unlink_between(&mut self, one: usize, other: usize) {
        let between = |ends: &[usize; 2]| ends.contains(&one) && ends.contains(&other);
        let links: Vec<LinkId> = self.links.iter().filter(|(_, ends)| between(ends)).map(|(link, _)| *link).collect();
        links.into_iter().for_each(|link| self.unlink(link));
    }

    pub(crate) fn unlink_all(&mut self) {
        self.linked().into_iter().for_each(|link| self.unlink(link));
        self.settle();
    }

    /// Delivers until nothing is under way.
    pub(crate) fn settle(&mut self) {
        let mut parts = vec![self.parts_at_once; self.nodes.len()];
        for _ in 0..100_000 {
            let stepped = self.step();
            if !self.fetch(&mut parts) && !stepped {
                return;
            }
        }
        panic!("the cluster does not come to rest without time passing");
    }

    /// `ms` pass on all nodes.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.tick();
            self.settle();
        }
    }

    /// `ms` pass, and nodes dial whom they wish to be linked with.
    pub(crate) fn live_ms(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.tick();
            self.dial();
            self.settle();
        }
    }

    fn tick(&mut self) {
        for (at, node) in self.nodes.iter_mut().enumerate() {
            node.advance(100);
            if !self.stopped.contains(&at) {
                node.handle(Input::Tick);
            }
        }
    }

    fn dial(&mut self) {
        for at in (0..self.nodes.len()).filter(|at| !self.stopped.contains(at)).collect::<Vec<_>>() {
            let wanted: Vec<u32> = self.nodes[at].replica.members_to_dial().map(|member| member.server_id).collect();
            for server_id in wanted {
                let is_it = |other: &usize| self.nodes[*other].config.server_id == server_id;
                let Some(other) = (0..self.nodes.len()).find(is_it) else { continue };
                let is_linked = self.links.values().any(|ends| ends.contains(&at) && ends.contains(&other));
                if !is_linked && !self.broken.contains(&(at, other)) && !self.stopped.contains(&other) {
                    self.connect(at, other);
                }
            }
        }
    }

    /// Splits the nodes in two parts that cannot reach each other.
    pub(crate) fn part(&mut self, one: &[usize]) {
        for at in 0..self.nodes.len() {
            for other in (0..self.nodes.len()).filter(|other| one.contains(&at) != one.contains(other)) {
                self.broken.insert((at, other));
                self.unlink_between(at, other);
            }
        }
    }

    /// All nodes can reach each other again.
    pub(crate) fn mend(&mut self) {
        self.broken.clear();
    }

    /// Ends a node's process; its links are lost.
    pub(crate) fn stop(&mut self, at: usize) {
        self.stopped.insert(at);
        (0..self.nodes.len()).filter(|other| *other != at).for_each(|other| self.unlink_between(at, other));
    }

    /// A power cut, and another process over what the disk has.
    pub(crate) fn crash(&mut self, at: usize) {
        (0..self.nodes.len()).filter(|other| *other != at).for_each(|other| self.unlink_between(at, other));
        self.end_walks_of(at);
        self.nodes[at].crash();
        if let Some((fetched, begin)) = self.fetched.get(&at).and_then(|f| Some((f, f.begin.as_ref()?)))
            && fetched.end.is_some()
        {
            let donor = begin.donor;
            self.nodes[at].handle(Input::SnapshotHeld(donor));
        }
    }

    /// A checkpoint, which forgets absorb entries that no walk has pinned.
    pub(crate) fn checkpoint(&mut self, at: usize) {
        let of_it = self.walks.values().filter(|walk| walk.donor == at);
        let pinned: Vec<AppliedSet> = of_it.map(|walk| walk.begin.start.heads.applied().clone()).collect();
        let node = &mut self.nodes[at];
        node.sync();
        let frontier = node.replica.frontier().clone();
        node.replica.storage_mut().checkpoint(&frontier, &pinned);
    }

    /// Removes the log of a node up to its last segment, but for what a walk has pinned.
    pub(crate) fn cut_log(&mut self, at: usize) {
        self.checkpoint(at);
        let pinned = self.walks.values().filter(|walk| walk.donor == at).map(|walk| walk.position).min();
        let storage = self.nodes[at].replica.storage_mut();
        match pinned {
            Some(position) => storage.remove_log_before(position),
            None => storage.remove_log(),
        }
    }

    /// Begins the fetches that are asked for and takes the next part of each, as long as `parts`
    /// lasts. Says whether anything was done.
    fn fetch(&mut self, parts: &mut [usize]) -> bool {
        let mut any = false;
        for (at, parts) in parts.iter_mut().enumerate() {
            for link in std::mem::take(&mut self.nodes[at].fetches) {
                self.begin_fetch(at, link);
                any = true;
            }
            if *parts > 0 && self.fetches.contains_key(&at) {
                *parts -= 1;
                self.fetch_part(at);
                any = true;
            }
        }
        any
    }

    fn begin_fetch(&mut self, at: usize, link: LinkId) {
        let Some(donor) = self.other_end(link, at) else {
            return self.nodes[at].handle(Input::SnapshotFailed("the link is lost".to_owned()));
        };
        let request = self.fetched.entry(at).or_default().request();
        let request = SnapshotRequest::decode(&request.encode()).expect("it was just encoded");
        let resumed = request.resume.and_then(|resume| {
            let walk = self.walks.get(&resume.id).filter(|walk| walk.donor == donor)?;
            Some((resume.id, SnapshotSource::resumed(walk.begin.clone(), walk.position, resume.keys)))
        });
        self.resumes += usize::from(resumed.is_some());
        let (id, source) = resumed.unwrap_or_else(|| self.begin_walk(at, donor));
        self.fetches.insert(at, Fetch { link, donor, id, source });
    }

    fn begin_walk(&mut self, receiver: usize, donor: usize) -> (SnapshotId, SnapshotSource) {
        // What the receiver has of another walk is of no use any more, and no more pinned.
        if let Some(begin) = self.fetched.remove(&receiver).and_then(|fetched| fetched.begin) {
            self.walks.remove(&begin.id);
        }
        self.next_link += 1;
        let id = SnapshotId(self.next_link.into());
        let node = &mut self.nodes[donor];
        node.sync();
        let start = node.replica.frontier().outline();
        let begin = SnapshotBegin { id, cluster_id: CLUSTER, donor: node.config.server_id, start };
        let position = node.replica.storage().durable_end();
        let source = SnapshotSource::new(begin.clone(), position);
        self.walks.insert(id, Walk { donor, begin, position });
        (id, source)
    }

    fn fetch_part(&mut self, at: usize) {
        let Some(fetch) = self.fetches.get_mut(&at) else { return };
        let donor = &mut self.nodes[fetch.donor];
        match fetch.source.poll(donor.replica.storage()) {
            SnapshotStep::Part(part) => self.fetched.entry(at).or_default().take(&part),
            SnapshotStep::AwaitDurable => donor.sync(),
            SnapshotStep::Failed(reason) => {
                let id = fetch.id;
                self.walks.remove(&id);
                self.break_off(at, &reason);
            }
            SnapshotStep::Done => {
                let id = fetch.id;
                self.walks.remove(&id);
                self.fetches.remove(&at);
                self.join_fetched(at);
            }
        }
    }

    /// Joins a snapshot that is whole.
    pub(crate) fn join_fetched(&mut self, at: usize) {
        let fetched = self.fetched.remove(&at).expect("it was fetched");
        if let Err(reason) = fetched.join(&mut self.nodes[at]) {
            return self.nodes[at].handle(Input::SnapshotFailed(reason));
        }
        self.joins += 1;
        // The log of this node now has a gap.
        self.end_walks_of(at);
    }

    /// Ends a fetch; what came stays.
    fn break_off(&mut self, receiver: usize, reason: &str) {
        if self.fetches.remove(&receiver).is_some() {
            self.nodes[receiver].handle(Input::SnapshotFailed(reason.to_owned()));
        }
    }

    /// A donor that crashes, or joins a snapshot itself, ends its walks.
    fn end_walks_of(&mut self, donor: usize) {
        self.walks.retain(|_, walk| walk.donor != donor);
        let broken = self.fetches.iter().filter(|(_, fetch)| fetch.donor == donor).map(|(receiver, _)| *receiver);
        for receiver in broken.collect::<Vec<_>>() {
            self.break_off(receiver, "the donor ended the walk");
        }
    }

    /// Whether a snapshot is on its way to this node.
    pub(crate) fn is_fetching(&self, at: usize) -> bool {
        self.fetches.contains_key(&at)
    }

    /// How many links are up.
    pub(crate) fn links_up(&self) -> usize {
        self.links.len()
    }

    /// Each node performs what is due, then one frame of each wire is delivered.
    fn step(&mut self) -> bool {
        let performed = self.perform();
        let wires: Vec<(LinkId, usize)> = self.wires.keys().copied().collect();
        let delivered = wires.into_iter().fold(false, |any, (link, to)| self.deliver(link, to) || any);
        performed || delivered
    }

    pub(crate) fn perform(&mut self) -> bool {
        let mut any = false;
        for at in 0..self.nodes.len() {
            any |= self.nodes[at].settle();
            self.post(at);
            self.serve(at);
        }
        any
    }

    /// Delivers the first frame of a wire, if there is one.
    pub(crate) fn deliver(&mut self, link: LinkId, to: usize) -> bool {
        let Some(frame) = self.wires.get_mut(&(link, to)).and_then(VecDeque::pop_front) else {
            return false;
        };
        let input = match frame {
            Frame::Control(bytes) => {
                Input::Message(link, PeerMessage::decode(&bytes).expect("it was encoded by a node"))
            }
            Frame::Feed(bytes) => {
                let group = FeedGroup::decode(&bytes).expect("it was encoded by a node");
                Input::FeedGroup { link, subscription: group.subscription, write_sets: group.write_sets }
            }
        };
        self.nodes[to].handle(input);
        true
    }

    fn other_end(&self, link: LinkId, node: usize) -> Option<usize> {
        let [one, other] = *self.links.get(&link)?;
        Some(if node == one { other } else { one })
    }

    fn post(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        let sent = node.unposted();
        let (closed, taken) = (std::mem::take(&mut node.closed), std::mem::take(&mut node.taken));
        for (link, message) in sent {
            if let Some(to) = self.other_end(link, at) {
                let frame = Frame::Control(message.encode());
                self.wires.entry((link, to)).or_default().push_back(frame);
            }
        }
        for (link, groups) in taken {
            if let Some(credit) = self.credits.get_mut(&(link, at)) {
                *credit += groups;
            }
        }
        for (link, _) in closed {
            self.flush(link, at);
            self.unlink(link);
        }
    }

    /// What a node said before it closed a link arrives.
    fn flush(&mut self, link: LinkId, from: usize) {
        let Some(to) = self.other_end(link, from) else { return };
        while self.deliver(link, to) {}
    }

    fn serve(&mut self, at: usize) {
        let links: Vec<LinkId> = self.nodes[at].feeds.keys().copied().collect();
        for link in links {
            let Some(to) = self.other_end(link, at) else { continue };
            while self.credits[&(link, to)] > 0 {
                let node = &mut self.nodes[at];
                let Some(feed) = node.feeds.get_mut(&link) else { break };
                match feed.poll(node.replica.storage(), self.feed_group_bytes) {
                    FeedStep::Group(group) => {
                        let frame = Frame::Feed(group.encode().into());
                        self.wires.entry((link, to)).or_default().push_back(frame);
                        *self.credits.get_mut(&(link, to)).expect("the link is up") -= 1;
                    }
                    FeedStep::Refused(refuses) => {
                        let frames = refuses.into_iter().map(|r| Frame::Control(PeerMessage::Refuse(r).encode()));
                        self.wires.entry((link, to)).or_default().extend(frames);
                    }
                    FeedStep::Again => {}
                    FeedStep::Idle => break,
                }
            }
        }
    }

    /// All nodes have applied the same and hold the same.
    pub(crate) fn assert_equal(&self) {
        for pair in self.nodes.windows(2) {
            let (one, other) = (pair[0].replica.frontier(), pair[1].replica.frontier());
            assert_eq!(one.heads, other.heads, "{} and {}", pair[0].config.server_id, pair[1].config.server_id);
            assert_eq!(one.digest.total(), other.digest.total());
        }
    }
}
