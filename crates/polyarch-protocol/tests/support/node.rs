use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, CausalContext, ClusterKey, Dot, FieldPath, Hlc, Origin, Record, SealedContext, mv};
use polyarch_protocol::catalog::{KeyspaceKind, MemberChange, MemberStatus};
use polyarch_protocol::client::{Refusal, Response, Supersede, WriteChange, WriteRequest, Written};
use polyarch_protocol::peer::{ClusterId, FeedGroup, Heartbeat, Hello, PeerMessage, PeerVersion, Subscribe};
use polyarch_protocol::{
    BucketKeys, BucketReader, BucketsWanted, Change, Dependencies, Durability, Effect, Event, Feed, FeedStep, Frontier,
    Input, KeyspaceId, Limits, LinkId, Now, Output, RecordKey, Replica, ReplicaConfig, RequestTag, Storage, Timings,
    Topology, WriteSet, context_scope,
};

use super::storage::MemoryStorage;

pub(crate) const CLUSTER: ClusterId = ClusterId(0x0c1a_5e77);
const WALL_MS: u64 = 1_700_000_000_000;

pub(crate) fn key() -> ClusterKey {
    ClusterKey { id: 1, secret: [7; 32] }
}

pub(crate) fn config(server_id: u32, boot: u128) -> ReplicaConfig {
    ReplicaConfig {
        server_id,
        boot_id: u128::from(server_id) << 64 | boot,
        cluster_id: CLUSTER,
        name: format!("node-{server_id}"),
        addresses: vec![format!("node-{server_id}:7400")],
        durability: Durability::Sync,
        limits: Limits::default(),
        timings: Timings::default(),
    }
}

/// One replica with its storage, driven by hand: it syncs when it is told to, or always.
pub(crate) struct Node {
    pub(crate) config: ReplicaConfig,
    pub(crate) replica: Replica<MemoryStorage>,
    pub(crate) now: Now,
    pub(crate) syncs: bool,
    /// Whether its records stand still while they are read for the digest.
    pub(crate) scans: bool,
    pub(crate) feeds: BTreeMap<LinkId, Feed>,
    pub(crate) answers: BTreeMap<u64, Result<Response, Refusal>>,
    pub(crate) events: Vec<Event>,
    pub(crate) sent: Vec<(LinkId, PeerMessage)>,
    pub(crate) closed: Vec<(LinkId, String)>,
    /// How many groups were taken, per link.
    pub(crate) taken: BTreeMap<LinkId, usize>,
    /// Links that a snapshot was to be fetched on.
    pub(crate) fetches: Vec<LinkId>,
    posted: usize,
    boots: u128,
    requests: u64,
}

impl Node {
    pub(crate) fn new(server_id: u32) -> Self {
        Self::with(config(server_id, 1))
    }

    pub(crate) fn with(config: ReplicaConfig) -> Self {
        let now = Now { wall_ms: WALL_MS, mono_ms: 10_000 };
        let replica = Replica::open(config.clone(), MemoryStorage::default(), Frontier::default(), now)
            .expect("an empty storage opens");
        Self {
            config,
            replica,
            now,
            syncs: true,
            scans: true,
            feeds: BTreeMap::new(),
            answers: BTreeMap::new(),
            events: Vec::new(),
            sent: Vec::new(),
            closed: Vec::new(),
            taken: BTreeMap::new(),
            fetches: Vec::new(),
            posted: 0,
            boots: 1,
            requests: 0,
        }
    }

    /// A node that founded its cluster, with an mv keyspace `m` and an lww keyspace `l`.
    pub(crate) fn founded(server_id: u32) -> Self {
        let mut node = Self::new(server_id);
        node.found();
        node
    }

    pub(crate) fn found(&mut self) {
        self.handle(Input::Found(key()));
        self.create_keyspace("m", KeyspaceKind::Mv).expect("it is new");
        self.create_keyspace("l", KeyspaceKind::Lww).expect("it is new");
        self.settle();
    }

    pub(crate) fn handle(&mut self, input: Input) {
        self.replica.handle(input, self.now);
    }

    pub(crate) fn sync(&mut self) {
        let end = self.replica.storage_mut().sync();
        self.handle(Input::Durable(end));
    }

    /// Performs what is due. Says whether there was anything.
    pub(crate) fn settle(&mut self) -> bool {
        if self.syncs && self.replica.storage().staged_end() > self.replica.storage().durable_end() {
            self.sync();
        }
        self.perform()
    }

    /// Performs what is due, without a sync.
    pub(crate) fn perform(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.replica.poll_output(self.replica.storage().durable_end()) {
            any = true;
            match output {
                Output::Answer(tag, result) => {
                    let twice = self.answers.insert(tag.request, result);
                    assert!(twice.is_none(), "a request is answered once");
                }
                Output::Send(link, message) => self.sent.push((link, message)),
                Output::Serve(link, feed) => {
                    self.feeds.insert(link, feed);
                }
                // These tests poll every feed.
                Output::FeedMore(_) => {}
                Output::FetchSnapshot(link) => self.fetches.push(link),
                Output::ScanBuckets(wanted) => {
                    let keys = self.scans.then(|| self.keys_of(wanted));
                    self.handle(Input::BucketsScanned(keys));
                }
                Output::GroupTaken(link) => *self.taken.entry(link).or_default() += 1,
                Output::CloseLink(link, reason) => {
                    self.feeds.remove(&link);
                    self.closed.push((link, reason));
                }
                Output::Event(event) => self.events.push(event),
            }
        }
        any
    }

    fn keys_of(&mut self, wanted: BucketsWanted) -> BucketKeys {
        let mut reader = BucketReader::new(wanted);
        assert_eq!(*reader.applied(), self.applied(), "these tests read at once");
        let keyspaces: Vec<KeyspaceId> = self.replica.catalog().keyspaces().map(|(id, ..)| id).collect();
        for keyspace in [vec![KeyspaceId::SYSTEM], keyspaces].concat() {
            let records = self.replica.storage_mut().keyspace_records(keyspace).expect("they are in memory");
            records.iter().for_each(|(key, record)| _ = reader.take(key, record));
        }
        reader.finish()
    }

    /// What was sent since this was last asked.
    pub(crate) fn unposted(&mut self) -> Vec<(LinkId, PeerMessage)> {
        let new = self.sent[self.posted.min(self.sent.len())..].to_vec();
        self.posted = self.sent.len();
        new
    }

    /// Forgets what was sent and what happened so far.
    pub(crate) fn forget(&mut self) {
        (self.posted, self.sent, self.events) = (0, Vec::new(), Vec::new());
    }

    /// Forgets what was sent.
    pub(crate) fn forget_sent(&mut self) {
        (self.posted, self.sent) = (0, Vec::new());
    }

    pub(crate) fn advance(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.wall_ms += ms;
    }

    /// `ms` pass, tick by tick.
    pub(crate) fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms / 100 {
            self.advance(100);
            self.handle(Input::Tick);
            self.settle();
        }
    }

    /// A power cut or, with all synced before, a restart: another process over what the disk has.
    pub(crate) fn crash(&mut self) {
        let (storage, frontier) = self.replica.storage().crash();
        self.reopen(storage, frontier);
    }

    /// Another process over the same disk, all of it synced: without the cost of reading the log again.
    pub(crate) fn restart(&mut self) {
        self.sync();
        self.perform();
        let (storage, frontier) = (std::mem::take(self.replica.storage_mut()), self.replica.frontier().clone());
        self.reopen(storage, frontier);
    }

    pub(crate) fn reopen(&mut self, storage: MemoryStorage, frontier: Frontier) {
        self.boots += 1;
        self.config.boot_id = config(self.config.server_id, self.boots).boot_id;
        self.replica = Replica::open(self.config.clone(), storage, frontier, self.now).expect("its storage reads");
        self.feeds.clear();
        self.fetches.clear();
    }

    fn tag(&mut self) -> RequestTag {
        self.requests += 1;
        RequestTag { connection: 1, request: self.requests }
    }

    /// Hands in a request; its answer comes when it is due.
    pub(crate) fn ask(&mut self, input: impl FnOnce(RequestTag) -> Input) -> u64 {
        let tag = self.tag();
        self.handle(input(tag));
        tag.request
    }

    pub(crate) fn answer(&mut self, request: u64) -> Option<Result<Response, Refusal>> {
        self.settle();
        self.answers.get(&request).cloned()
    }

    pub(crate) fn write(&mut self, changes: Vec<WriteChange>) -> Result<Written, Refusal> {
        let request = self.ask(|tag| Input::Write(tag, WriteRequest { changes }));
        self.written(request)
    }

    pub(crate) fn written(&mut self, request: u64) -> Result<Written, Refusal> {
        match self.answer(request).expect("a synced write is answered")? {
            Response::Written(written) => Ok(written),
            other => panic!("{other:?} to a write"),
        }
    }

    pub(crate) fn put(&mut self, key: &str, value: &str) -> Result<Written, Refusal> {
        self.write(vec![change(key, Some(value), Supersede::Held)])
    }

    pub(crate) fn put_over(&mut self, key: &str, value: &str, supersede: Supersede) -> Result<Written, Refusal> {
        self.write(vec![change(key, Some(value), supersede)])
    }

    pub(crate) fn create_keyspace(&mut self, name: &str, kind: KeyspaceKind) -> Result<Written, Refusal> {
        let request = self.ask(|tag| Input::CreateKeyspace(tag, name.to_owned(), kind));
        self.written(request)
    }

    pub(crate) fn change_member(&mut self, server_id: u32, change: MemberChange) -> Result<Written, Refusal> {
        let request = self.ask(|tag| Input::ChangeMember(tag, server_id, change));
        self.written(request)
    }

    pub(crate) fn set_topology(&mut self, text: &str) -> Result<Written, Refusal> {
        let topology: Topology = text.parse().expect("it is one");
        let request = self.ask(|tag| Input::SetTopology(tag, topology));
        self.written(request)
    }

    /// Where a member stands, as this node knows it.
    pub(crate) fn sees(&self, server_id: u32) -> MemberStatus {
        self.replica.catalog().member(server_id).expect("it is a member").status
    }

    pub(crate) fn status(&mut self) -> polyarch_protocol::client::StatusView {
        let request = self.ask(Input::Status);
        match self.answer(request) {
            Some(Ok(Response::Status(status))) => *status,
            other => panic!("{other:?} to a question about status"),
        }
    }

    pub(crate) fn condition(&mut self) -> polyarch_protocol::condition::ConditionView {
        let request = self.ask(Input::Condition);
        match self.answer(request) {
            Some(Ok(Response::Condition(condition))) => *condition,
            other => panic!("{other:?} to a question about its condition"),
        }
    }

    /// Lets stopped feeds go on; says which do.
    pub(crate) fn retry(&mut self, origin: Option<Origin>) -> Result<Vec<Origin>, Refusal> {
        let request = self.ask(|tag| Input::RetryOrigin(tag, origin));
        match self.answer(request).expect("it is answered")? {
            Response::Retried(origins) => Ok(origins),
            other => panic!("{other:?} to a retry"),
        }
    }

    pub(crate) fn record(&mut self, key: &str) -> Record {
        let place = self.place(key).expect("the keyspace is known here");
        self.replica.storage_mut().record(&place).expect("it is in memory")
    }

    pub(crate) fn place(&self, key: &str) -> Option<RecordKey> {
        let (keyspace, key) = split(key);
        let (id, _) = self.replica.catalog().keyspace(keyspace)?;
        Some(RecordKey::new(id, key.as_bytes()))
    }

    /// The live values of a key as the keyspace's kind shows them, in order of their bytes.
    pub(crate) fn shown(&mut self, key: &str) -> Vec<String> {
        self.settle();
        let (_, definition) = self.replica.catalog().keyspace(split(key).0).expect("the keyspace is known here");
        let (kind, record) = (definition.kind, self.record(key));
        let siblings = record.siblings(&FieldPath::opaque());
        let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
        let mut values: Vec<String> = match kind {
            KeyspaceKind::Lww => polyarch_crdt::lww(siblings).map(|s| text(&s.value)).into_iter().collect(),
            KeyspaceKind::Mv => mv(siblings).iter().map(|s| text(&s.value)).collect(),
        };
        values.sort();
        values
    }

    /// The context that a read of the key gives out now.
    pub(crate) fn context(&mut self, key: &str) -> SealedContext {
        let record = self.record(key);
        self.seal(key, &CausalContext::of(&record))
    }

    /// A context of exactly these dots, as some node may have sealed it.
    pub(crate) fn context_of(&mut self, key: &str, dots: &[Dot]) -> SealedContext {
        let mut record = Record::default();
        for dot in dots {
            let value = Bytes::new();
            let change = polyarch_crdt::FieldChange { path: &FieldPath::opaque(), supersedes: &[], put: Some(&value) };
            let _ = record.apply(*dot, Hlc::default(), &change, &AppliedSet::new());
        }
        self.seal(key, &CausalContext::of(&record))
    }

    fn seal(&self, key: &str, context: &CausalContext) -> SealedContext {
        let (place, cluster) = (self.place(key).expect("the keyspace is known here"), CLUSTER.to_bytes());
        let keys = self.replica.catalog().cluster_keys();
        context.seal(keys.sealing().expect("it has joined"), &context_scope(&cluster, &place))
    }

    /// The origin of this process's own writes: of the last write set of this server in its log.
    pub(crate) fn last_own(&self) -> WriteSet {
        let own = |w: &WriteSet| w.dot.origin.server_id == self.config.server_id;
        self.replica.storage().write_sets().into_iter().rfind(own).expect("it wrote")
    }

    // A peer played by the test.

    /// A link to a member that has said hello.
    pub(crate) fn meet(&mut self, link: u64, server_id: u32) {
        self.link_up(link, server_id, true);
        self.hello(link, server_id, u128::from(server_id));
    }

    pub(crate) fn link_up(&mut self, link: u64, server_id: u32, dialed: bool) {
        self.link_up_of(link, server_id, dialed, PeerVersion::NEWEST);
    }

    pub(crate) fn link_up_of(&mut self, link: u64, server_id: u32, dialed: bool, version: PeerVersion) {
        let (link, address) = (LinkId(link), format!("node-{server_id}:{link}"));
        self.handle(Input::LinkUp { link, server_id, dialed, version, address });
        self.settle();
    }

    pub(crate) fn hello(&mut self, link: u64, server_id: u32, boot_id: u128) {
        let hello = Hello { cluster_id: Some(CLUSTER), server_id, boot_id };
        self.hear(link, PeerMessage::Hello(hello));
    }

    pub(crate) fn hear(&mut self, link: u64, message: PeerMessage) {
        self.handle(Input::Message(LinkId(link), message));
        self.settle();
    }

    pub(crate) fn hear_applied(&mut self, link: u64, applied: &[Dot]) {
        let beat = heartbeat(applied, self.now.wall_ms);
        self.hear(link, PeerMessage::Heartbeat(beat));
    }

    /// The newest subscription that was sent on a link.
    pub(crate) fn subscription(&self, link: u64) -> Option<&Subscribe> {
        self.sent.iter().rev().find_map(|(to, message)| match message {
            PeerMessage::Subscribe(subscribe) if to.0 == link => Some(subscribe),
            _ => None,
        })
    }

    /// The origins of the newest subscription on a link.
    pub(crate) fn fed_on(&self, link: u64) -> Vec<Origin> {
        self.subscription(link).map_or_else(Vec::new, |s| s.origins.iter().map(|(origin, _)| *origin).collect())
    }

    pub(crate) fn subscribes_sent(&self, link: u64) -> usize {
        let is_subscribe =
            |(to, message): &&(LinkId, PeerMessage)| to.0 == link && matches!(message, PeerMessage::Subscribe(_));
        self.sent.iter().filter(is_subscribe).count()
    }

    pub(crate) fn heartbeats_sent(&self, link: u64) -> Vec<&Heartbeat> {
        let beats = self.sent.iter().filter_map(|(to, message)| match message {
            PeerMessage::Heartbeat(beat) if to.0 == link => Some(beat),
            _ => None,
        });
        beats.collect()
    }

    /// Feeds write sets on a link under its newest subscription.
    pub(crate) fn feed(&mut self, link: u64, write_sets: &[WriteSet]) {
        self.feed_bytes(link, write_sets.iter().map(WriteSet::encode).collect());
    }

    pub(crate) fn feed_bytes(&mut self, link: u64, write_sets: Vec<Bytes>) {
        let subscription = self.subscription(link).map_or(0, |s| s.subscription);
        self.handle(Input::FeedGroup { link: LinkId(link), subscription, write_sets });
        self.settle();
    }

    pub(crate) fn applied(&self) -> AppliedSet {
        self.replica.frontier().heads.applied().clone()
    }

    pub(crate) fn count(&self, is: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| is(event)).count()
    }

    /// What this node's feeds say to a subscription, all of it.
    pub(crate) fn served(&self, subscribe: Subscribe, bytes_max: usize) -> Vec<FeedStep> {
        let mut feed = Feed::new(subscribe);
        let mut steps = Vec::new();
        loop {
            match feed.poll(self.replica.storage(), bytes_max) {
                FeedStep::Idle => return steps,
                FeedStep::Again => {}
                step => steps.push(step),
            }
            assert!(steps.len() < 1_000, "a feed comes to rest");
        }
    }
}

/// `k` of keyspace `m`, or `l/k` of keyspace `l`.
pub(crate) fn split(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("m", key))
}

pub(crate) fn change(key: &str, put: Option<&str>, supersede: Supersede) -> WriteChange {
    let (keyspace, key) = split(key);
    WriteChange {
        keyspace: keyspace.to_owned(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        put: put.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        supersede,
    }
}

pub(crate) fn heartbeat(applied: &[Dot], clock_ms: u64) -> Heartbeat {
    Heartbeat { applied: applied.iter().copied().collect(), digest: None, clock_ms, paused: Vec::new() }
}

/// A write set of another server: it puts `value` at a key of its own, and depends on `needs`.
pub(crate) fn foreign(dot: Dot, needs: &[Dot], value: &str) -> WriteSet {
    let applied: AppliedSet = needs.iter().copied().collect();
    let dependencies = match dot.seq {
        1 => Dependencies::Whole { predecessor: None, applied },
        _ => Dependencies::Changed(applied),
    };
    let keyspace = KeyspaceId { dot: Dot::new(Origin::new(1, 1), 1), index: 0 };
    WriteSet {
        dot,
        hlc: Hlc::new(WALL_MS, 1),
        dependencies,
        changes: vec![Change {
            keyspace,
            key: format!("{dot}").into(),
            field: FieldPath::opaque(),
            supersedes: Vec::new(),
            effect: Effect::Put(Bytes::copy_from_slice(value.as_bytes())),
        }],
    }
}
