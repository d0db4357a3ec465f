//! Members and clients that say what they like to a node, certificate and all.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, ClusterKey, Dot, FieldPath, SealedContext};
use polyarch_protocol::catalog::{KeyspaceKind, MemberChange, SystemRecord, base_key, member_key, topology_key};
use polyarch_protocol::client::{ClientRequest, Refusal, Request, Response, Supersede, WriteChange, WriteRequest};
use polyarch_protocol::codec::CodecError;
use polyarch_protocol::peer::{ClusterId, FeedGroup, Heartbeat, Hello, PeerMessage, PeerVersion};
use polyarch_protocol::{
    BucketReader, Change, Dependencies, Durability, Effect, Feed, FeedStep, Input, KeyspaceId, Limits, LinkId, Now,
    Output, Replica, ReplicaConfig, RequestTag, SnapshotRequest, Storage, Timings, WriteSet,
};
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::state::{MemoryOpener, MemoryState, ScanRange};
use polyarch_store::verify_parts;

use super::logs::{MemoryStore, check_digest, small_store};
use crate::script::{Script, WALL_MS};

const CLUSTER: ClusterId = ClusterId(9);
const BLOWS_MAX: usize = 60;
/// Steps of a feed that are taken after each blow.
const FEED_STEPS: usize = 50;
/// Messages that so few blows may call forth.
const SENT_MAX: usize = 3_000;

/// An input is a script of links that come and go, of what is said on them byte by byte, of feeds, and of what clients
/// ask, on links of either version.
///
/// The node outlives it: what its log holds is in causal order and adds up to what it has, it answers each request once,
/// says on a link only what was agreed for it, still takes writes unless it was told not to, and opens again as it was.
pub fn hostile_members(data: &[u8]) {
    let mut script = Script::new(data);
    let mut node = Node::founded();
    for _ in 0..BLOWS_MAX {
        if script.is_at_end() {
            break;
        }
        node.struck(&mut script);
        node.settle();
        node.serve();
    }
    node.outlives();
}

/// What a replica is told once.
pub(super) fn replica_config(cluster_id: ClusterId) -> ReplicaConfig {
    ReplicaConfig {
        server_id: 1,
        boot_id: 1 << 64 | 1,
        cluster_id,
        name: "node-1".to_owned(),
        addresses: vec!["node-1:7400".to_owned()],
        durability: Durability::Sync,
        limits: Limits::default(),
        timings: Timings::default(),
    }
}

/// The shipped replica over the shipped store, driven by hand.
struct Node {
    replica: Replica<MemoryStore>,
    disk: SimulatedDisk,
    state: MemoryState,
    now: Now,
    links: BTreeMap<LinkId, Link>,
    links_made: u64,
    requests: u64,
    answers: BTreeMap<u64, Result<Response, Refusal>>,
    sent: usize,
}

/// The other end of a link, as this node knows it.
struct Link {
    server_id: u32,
    version: PeerVersion,
    /// The newest subscription that was sent on it.
    subscription: u64,
    feed: Option<Feed>,
}

impl Node {
    fn founded() -> Self {
        let (disk, state) = (SimulatedDisk::new(1, 512), MemoryState::new());
        let opened = MemoryStore::open(disk.clone(), MemoryOpener::new(state.clone()), &small_store());
        let (store, frontier, _) = opened.unwrap_or_else(|error| panic!("{error}"));
        let now = Now { wall_ms: WALL_MS, mono_ms: 10_000 };
        let replica = Replica::open(replica_config(CLUSTER), store, frontier, now).expect("memory is read");
        let (links, answers) = (BTreeMap::new(), BTreeMap::new());
        let mut node = Self { replica, disk, state, now, links, links_made: 0, requests: 0, answers, sent: 0 };
        node.handle(Input::Found(ClusterKey { id: 1, secret: [7; 32] }));
        node.ask(|tag| Input::CreateKeyspace(tag, "m".to_owned(), KeyspaceKind::Mv));
        node.ask(|tag| Input::CreateKeyspace(tag, "l".to_owned(), KeyspaceKind::Lww));
        node.settle();
        node
    }

    fn struck(&mut self, script: &mut Script<'_>) {
        let link = script.pick(&self.links.keys().copied().collect::<Vec<_>>());
        match (script.below(16), link) {
            (0, _) | (_, None) => self.link_up(script),
            (1, Some(link)) => self.link_down(link),
            (2, Some(link)) => self.hello(link, script),
            (3 | 4, Some(link)) => self.said(link, &[b"P\x01", script.chunk(80)].concat()),
            (5, Some(link)) => self.claims(link, script),
            (6 | 7, Some(link)) => self.fed(link, script),
            (8, Some(link)) => self.fed_bytes(link, &[b"F\x01", script.chunk(100)].concat()),
            (9, Some(link)) => self.decree(link, script),
            (10, _) => self.requested(&[b"Q\x01", script.chunk(60)].concat()),
            (11, _) => self.writes(script),
            (12, _) => self.changes_member(script),
            (13, _) => self.run_ms(20 * u64::from(script.byte())),
            (14, Some(link)) => self.fetches(link, script),
            _ => {
                let salvaged = (0..script.below(3)).map(|_| self.next(script).encode()).collect();
                self.handle(Input::Salvaged(salvaged));
            }
        }
    }

    fn handle(&mut self, input: Input) {
        self.replica.handle(input, self.now);
    }

    fn ask(&mut self, input: impl FnOnce(RequestTag) -> Input) -> u64 {
        self.requests += 1;
        self.handle(input(RequestTag { connection: 1, request: self.requests }));
        self.requests
    }

    fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.now = Now { wall_ms: self.now.wall_ms + 100, mono_ms: self.now.mono_ms + 100 };
            self.handle(Input::Tick);
            self.settle();
        }
    }

    /// Syncs, and performs what is due.
    fn settle(&mut self) {
        let store = self.replica.storage_mut();
        if store.staged_end() > store.durable_end() {
            let end = store.sync().expect("the disk syncs");
            self.handle(Input::Durable(end));
        }
        let durable = self.replica.storage().durable_end();
        while let Some(output) = self.replica.poll_output(durable) {
            self.perform(output);
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Answer(tag, result) => {
                assert!(self.answers.insert(tag.request, result).is_none(), "a request is answered once");
            }
            Output::Send(link, message) => self.sends(link, &message),
            Output::Serve(link, feed) => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.feed = Some(feed);
                }
            }
            Output::CloseLink(link, _) => _ = self.links.remove(&link),
            Output::ScanBuckets(wanted) => {
                let mut reader = BucketReader::new(wanted);
                let records = self.replica.storage().reader().scan(&ScanRange::everything(), usize::MAX);
                records.expect("memory is read").iter().for_each(|(key, record)| _ = reader.take(key, record));
                self.handle(Input::BucketsScanned(Some(reader.finish())));
            }
            Output::FetchSnapshot(_) => self.handle(Input::SnapshotFailed("there is none".to_owned())),
            Output::Event(event) => assert!(!event.to_string().is_empty()),
            Output::FeedMore(_) | Output::GroupTaken(_) => {}
        }
    }

    fn sends(&mut self, link: LinkId, message: &PeerMessage) {
        self.sent += 1;
        let Some(link) = self.links.get_mut(&link) else { return };
        assert!(message.since() <= link.version, "{message:?} was not agreed for {:?}", link.version);
        assert_eq!(PeerMessage::decode(&message.encode()).as_ref(), Ok(message), "what is sent can be read");
        if let PeerMessage::Subscribe(subscribe) = message {
            link.subscription = subscribe.subscription;
        }
    }

    /// Whoever subscribed is served, whatever was asked for.
    fn serve(&mut self) {
        let log = self.replica.storage().log_reader();
        for link in self.links.values_mut() {
            let Some(feed) = &mut link.feed else { continue };
            for _ in 0..FEED_STEPS {
                match feed.poll(&log, 1_000) {
                    FeedStep::Idle => break,
                    FeedStep::Group(group) => assert_eq!(FeedGroup::decode(&group.encode().into()), Ok(group)),
                    FeedStep::Again | FeedStep::Refused(_) => {}
                }
            }
        }
    }

    fn link_up(&mut self, script: &mut Script<'_>) {
        self.links_made += 1;
        let (link, server_id) = (LinkId(self.links_made), 1 + script.below(5) as u32);
        let version = if script.coin() { PeerVersion::V1 } else { PeerVersion::NEWEST };
        self.links.insert(link, Link { server_id, version, subscription: 0, feed: None });
        let address = format!("node-{server_id}:{}", link.0);
        self.handle(Input::LinkUp { link, server_id, dialed: script.coin(), version, address });
        if !script.one_in(4) {
            self.hello(link, script);
        }
    }

    fn link_down(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.handle(Input::LinkDown(link));
    }

    fn hello(&mut self, link: LinkId, script: &mut Script<'_>) {
        let Some(known) = self.links.get(&link) else { return };
        let server_id = if script.one_in(8) { script.any_number() as u32 } else { known.server_id };
        let cluster_id = [Some(CLUSTER), Some(CLUSTER), None, Some(ClusterId(1))][script.below(4)];
        let hello = Hello { cluster_id, server_id, boot_id: u128::from(script.byte()) };
        self.handle(Input::Message(link, PeerMessage::Hello(hello)));
    }

    /// A frame of the control stream, as its reader hands it on.
    fn said(&mut self, link: LinkId, frame: &[u8]) {
        let Some(known) = self.links.get(&link) else { return };
        match PeerMessage::decode(frame) {
            Ok(message) if message.since() <= known.version => self.handle(Input::Message(link, message)),
            Ok(_) => self.handle(Input::Unreadable(link, CodecError::Malformed)),
            Err(error) => self.handle(Input::Unreadable(link, error)),
        }
    }

    fn claims(&mut self, link: LinkId, script: &mut Script<'_>) {
        let mut applied = script.applied();
        if script.coin() {
            applied.join(self.replica.frontier().heads.applied());
        }
        let digest =
            script.coin().then(|| self.replica.frontier().digest.total().wrapping_add(u128::from(script.byte() % 2)));
        let paused = (0..script.below(2)).map(|_| script.origin()).collect();
        let clock_ms = self.now.wall_ms.wrapping_add(script.any_number());
        self.handle(Input::Message(link, PeerMessage::Heartbeat(Heartbeat { applied, digest, clock_ms, paused })));
    }

    /// A write set of another server, which is next or nearly.
    fn next(&self, script: &mut Script<'_>) -> WriteSet {
        let origin = script.origin();
        let gap = u64::from(script.one_in(8));
        let dot = Dot::new(origin, self.replica.frontier().heads.applied().seq(origin).saturating_add(1 + gap));
        let applied: AppliedSet = script.applied().iter().filter(|of| of.origin != origin).collect();
        let dependencies = match dot.seq {
            1 => Dependencies::Whole { predecessor: script.coin().then(|| script.dot()), applied },
            _ => Dependencies::Changed(applied),
        };
        let keyspace = match script.pick(&self.replica.catalog().keyspaces().map(|(id, ..)| id).collect::<Vec<_>>()) {
            Some(keyspace) if !script.one_in(8) => keyspace,
            _ => KeyspaceId::SYSTEM,
        };
        let (key, supersedes) = (Bytes::copy_from_slice(&[b'a' + script.below(3) as u8]), script.dots(2));
        let effect = match script.below(3) {
            0 => Effect::Delete,
            _ => Effect::Put(Bytes::copy_from_slice(script.chunk(8))),
        };
        let changes = vec![Change { keyspace, key, field: FieldPath::opaque(), supersedes, effect }];
        WriteSet { dot, hlc: script.hlc(), dependencies, changes }
    }

    fn fed(&mut self, link: LinkId, script: &mut Script<'_>) {
        let write_sets = (0..=script.below(3)).map(|_| self.next(script).encode()).collect();
        let subscription = self.links.get(&link).map_or(0, |link| link.subscription);
        self.handle(Input::FeedGroup { link, subscription, write_sets });
    }

    fn fed_bytes(&mut self, link: LinkId, frame: &[u8]) {
        match FeedGroup::decode(&Bytes::copy_from_slice(frame)) {
            Ok(FeedGroup { subscription, write_sets }) => {
                self.handle(Input::FeedGroup { link, subscription, write_sets });
            }
            Err(error) => self.handle(Input::Unreadable(link, error)),
        }
    }

    /// A record of the system keyspace in a write set that is next.
    fn decree(&mut self, link: LinkId, script: &mut Script<'_>) {
        let mut write_set = self.next(script);
        let value = Bytes::from([b"S\x01", script.chunk(40)].concat());
        let key = match SystemRecord::decode(&value) {
            Ok(SystemRecord::Member(member)) => member_key(member.server_id),
            Ok(SystemRecord::Topology(_)) => topology_key(),
            Ok(SystemRecord::Base(_)) => base_key(write_set.dot),
            _ => Bytes::copy_from_slice(script.chunk(20)),
        };
        let (keyspace, field, supersedes) = (KeyspaceId::SYSTEM, FieldPath::opaque(), script.dots(1));
        write_set.changes = vec![Change { keyspace, key, field, supersedes, effect: Effect::Put(value) }];
        write_set.changes[0].supersedes.retain(|old| *old != write_set.dot);
        let claimed = PeerMessage::Heartbeat(Heartbeat {
            applied: [write_set.dot].into_iter().collect(),
            digest: None,
            clock_ms: self.now.wall_ms,
            paused: Vec::new(),
        });
        self.handle(Input::Message(link, claimed));
        self.settle();
        let subscription = self.links.get(&link).map_or(0, |link| link.subscription);
        self.handle(Input::FeedGroup { link, subscription, write_sets: vec![write_set.encode()] });
    }

    /// A client's frame, as the service hands it on.
    fn requested(&mut self, frame: &[u8]) {
        let Ok(ClientRequest { request, .. }) = ClientRequest::decode(frame) else { return };
        self.ask(|tag| match request {
            Request::Write(write) => Input::Write(tag, write),
            Request::CreateKeyspace { name, kind } => Input::CreateKeyspace(tag, name, kind),
            Request::Status => Input::Status(tag),
            Request::Condition => Input::Condition(tag),
            Request::CutLink { server_id } => Input::CutLink(tag, server_id),
            Request::HealLink { server_id } => Input::HealLink(tag, server_id),
            Request::SetTopology(topology) => Input::SetTopology(tag, topology),
            Request::ChangeMember { server_id, change } => Input::ChangeMember(tag, server_id, change),
            Request::RetryOrigin { origin } => Input::RetryOrigin(tag, origin),
            // Reads do not pass through the replica.
            _ => Input::Digest(tag),
        });
    }

    fn writes(&mut self, script: &mut Script<'_>) {
        let change = |script: &mut Script<'_>| WriteChange {
            keyspace: ["m", "l", "", "1-00000001:1.0"][script.below(4)].to_owned(),
            key: Bytes::copy_from_slice(&b"abc"[..script.below(4)]),
            put: script.coin().then(|| Bytes::copy_from_slice(script.chunk(8))),
            supersede: match script.below(4) {
                0 => Supersede::Nothing,
                1 => Supersede::Shown(SealedContext::from_bytes(script.chunk(30).to_vec())),
                _ => Supersede::Held,
            },
        };
        let changes = (0..=script.below(2)).map(|_| change(script)).collect();
        self.ask(|tag| Input::Write(tag, WriteRequest { changes }));
    }

    fn changes_member(&mut self, script: &mut Script<'_>) {
        let server_id = 1 + script.below(5) as u32;
        let change = match script.below(4) {
            0 => MemberChange::Drain,
            1 => MemberChange::Remove { force: true },
            2 => MemberChange::Remove { force: false },
            _ => MemberChange::Rejoin,
        };
        self.ask(|tag| Input::ChangeMember(tag, server_id, change));
    }

    /// A member begins to fetch a snapshot, or has ended to, whatever it asked.
    fn fetches(&mut self, link: LinkId, script: &mut Script<'_>) {
        let asked = SnapshotRequest::decode(&[b"R\x01", script.chunk(30)].concat());
        self.handle(Input::SnapshotSent { link, begins: asked.is_ok() });
    }

    fn outlives(mut self) {
        self.settle();
        // What it says of twins and removals holds for a while.
        self.run_ms(20_000);
        assert!(self.sent < SENT_MAX, "{} messages", self.sent);
        assert_eq!(self.answers.len() as u64, self.requests, "each request is answered");
        self.is_writable();
        let store = self.replica.storage();
        check_digest(store, self.replica.frontier());
        let frontier = self.replica.frontier().clone();
        let Self { replica, disk, state, now, .. } = self;
        drop(replica);
        disk.crash();
        let (store, again, _) = MemoryStore::open(disk.clone(), MemoryOpener::new(state.clone()), &small_store())
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(again, frontier, "it opens as it was");
        let report = verify_parts(&disk.into(), &mut MemoryOpener::new(state), 10).expect("the disk answers");
        assert!(report.is_clean(), "{report:?}");
        Replica::open(replica_config(CLUSTER), store, again, now).expect("memory is read");
    }

    fn is_writable(&mut self) {
        let status = |node: &Self| node.replica.catalog().member(1).map(|member| member.status);
        if status(self).is_some_and(|status| !status.takes_writes()) {
            self.ask(|tag| Input::ChangeMember(tag, 1, MemberChange::Rejoin));
            self.settle();
        }
        let refused = self.replica.writes_refused();
        let changes = vec![WriteChange {
            keyspace: "m".to_owned(),
            key: Bytes::from_static(b"still writable"),
            put: Some(Bytes::from_static(b"v")),
            supersede: Supersede::Nothing,
        }];
        let asked = self.ask(|tag| Input::Write(tag, WriteRequest { changes }));
        self.settle();
        match (self.answers.get(&asked), refused) {
            (Some(Ok(Response::Written(written))), None) => assert!(written.dot.is_some()),
            // Another member may have removed this one, and an absurd clock may have been set.
            (Some(Err(refusal)), Some(told)) => assert_eq!(*refusal, told),
            // The keyspace may have been redefined, and a member of this very name may have more.
            (Some(Err(Refusal::UnknownKeyspace(_) | Refusal::TooManySiblings { .. })), None) => {}
            (answer, refused) => panic!("{answer:?} where {refused:?} is said of writes in {:?}", status(self)),
        }
    }
}
