//! One node's replica: every write, local or remote, enters by [`Replica::handle`] and leaves by
//! [`Replica::poll_output`].
//!
//! The replica is a state machine without a clock, a disk, a socket or a random source. It
//! computes on what is *staged* and lets out only what is *durable*: each output carries the log
//! position that must be synced before it is performed.
//!
//! **Architecture Invariant:** there is one way into the log, [`Replica`]'s private `commit`, and
//! it is the same for a client's write and a peer's.

mod amnesia;
mod bases;
mod clock;
mod config;
mod coordinator;
mod differences;
mod links;
mod members;
mod progress;
mod quarantine;
mod salvage;
mod sessions;
mod snapshots;
mod views;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, ClusterKey, Dot, Hlc, HlcClock, Observed, Origin, seeded_bug};

use crate::buckets::{BucketKeys, BucketsWanted, PeerDigest};
use crate::catalog::{Catalog, KeyspaceKind, Member, MemberChange, MemberStatus};
use crate::client::{CountersView, Refusal, Response, StatusView, WriteRequest};
use crate::codec::CodecError;
use crate::condition::ConditionView;
use crate::event::Event;
use crate::feed::Feed;
use crate::frontier::{ApplySummary, Frontier};
use crate::keyspace::KeyspaceId;
use crate::peer::{PeerMessage, PeerVersion};
use crate::plan::{FeedPlan, LinkPlan};
use crate::progress::Progress;
use crate::reach::{Distances, LinkStates};
use crate::storage::{LogPosition, Storage, StorageError};
use crate::topology::Topology;
use crate::write_set::WriteSet;
use amnesia::Amnesia;
use clock::ClockAhead;
pub use config::{Durability, ReplicaConfig, Timings};
use coordinator::Epoch;
pub use coordinator::context_scope;
use differences::Differences;
use links::{ToldRemoved, Twins};
use members::Drain;
use quarantine::Pause;
use sessions::{Session, Unreadable};
use snapshots::Snapshots;
use views::Lag;

/// A link as its driver numbers it; numbers are not used again while a process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// Names a request to whoever made it; the replica only gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestTag {
    /// The client's connection, as the driver numbers it.
    pub connection: u64,
    /// The request on it.
    pub request: u64,
}

/// The time, as the driver reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, Unix milliseconds; may jump.
    pub wall_ms: u64,
    /// A clock that only rises, in milliseconds from any start.
    pub mono_ms: u64,
}

/// What can happen to a replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Founds the cluster on an empty node: its key is the first record.
    Found(ClusterKey),
    /// A client's write.
    Write(RequestTag, WriteRequest),
    /// An administrator's new keyspace.
    CreateKeyspace(RequestTag, String, KeyspaceKind),
    /// A question about this node.
    Status(RequestTag),
    /// A question about what is out of the ordinary on it.
    Condition(RequestTag),
    /// An operator lets the stopped feed of an origin go on, or of all.
    RetryOrigin(RequestTag, Option<Origin>),
    /// A question for the digest, bucket by bucket.
    Digest(RequestTag),
    /// An operator takes the link to a member down.
    CutLink(RequestTag, u32),
    /// An operator lets it up again.
    HealLink(RequestTag, u32),
    /// An administrator's topology.
    SetTopology(RequestTag, Topology),
    /// An administrator drains, removes or takes back a member.
    ChangeMember(RequestTag, u32, MemberChange),
    /// A link to a member is connected, its certificate checked.
    LinkUp {
        /// The link.
        link: LinkId,
        /// Whom the certificate names.
        server_id: u32,
        /// Whether this node dialled.
        dialed: bool,
        /// What is spoken on it.
        version: PeerVersion,
        /// Where the other end was seen, to be told to people.
        address: String,
    },
    /// A link is gone.
    LinkDown(LinkId),
    /// A message on a link's control stream.
    Message(LinkId, PeerMessage),
    /// A link brought a frame, on its control stream or a feed, that is no message known here.
    Unreadable(LinkId, CodecError),
    /// A group of a feed. The driver reads the next but few of that link only after
    /// [`Output::GroupTaken`].
    FeedGroup {
        /// The link.
        link: LinkId,
        /// The subscription it belongs to.
        subscription: u64,
        /// The bytes of the write sets.
        write_sets: Vec<Bytes>,
    },
    /// This node begins to send a snapshot on a link, or has ended to: until then the link is kept, planned
    /// or not.
    SnapshotSent {
        /// The link.
        link: LinkId,
        /// Whether it begins.
        begins: bool,
    },
    /// A snapshot of this member, fetched by an earlier process, is whole and about to be joined.
    SnapshotHeld(u32),
    /// What [`Output::FetchSnapshot`] asked for, or the join of it, came to nothing.
    SnapshotFailed(String),
    /// Write sets that a repair found in this node's damaged log. Those that are next are applied; the
    /// others do nothing, and are to come again.
    Salvaged(Vec<Bytes>),
    /// What [`Output::ScanBuckets`] asked for; `None` when more was applied meanwhile or a record
    /// could not be read.
    BucketsScanned(Option<BucketKeys>),
    /// The log is synced up to here.
    Durable(LogPosition),
    /// A write or sync of the log failed.
    StorageFailed(String),
    /// Some time has passed; expected every 100 ms or so.
    Tick,
}

/// What a replica wants done.
#[derive(Debug)]
pub enum Output {
    /// Answer a request.
    Answer(RequestTag, Result<Response, Refusal>),
    /// Send on a link's control stream.
    Send(LinkId, PeerMessage),
    /// From now on serve this feed on the link, in place of any other.
    Serve(LinkId, Feed),
    /// More of what the link's feed serves is durable: read on. Nothing is missed between two of these.
    FeedMore(LinkId),
    /// One group of the link's feed was taken in.
    GroupTaken(LinkId),
    /// Fetch a snapshot from the member on this link, and join it. The replica hears of it again by
    /// [`Replica::adopt`] or [`Input::SnapshotFailed`].
    FetchSnapshot(LinkId),
    /// Read the keys of these buckets, in the background; answered by [`Input::BucketsScanned`]. There
    /// is one of these at a time.
    ScanBuckets(BucketsWanted),
    /// Close the link.
    CloseLink(LinkId, String),
    /// Tell the operator.
    Event(Event),
}

/// A process to which nothing happened for so long, not even a tick, stood still.
const PAUSE_MS: u64 = 500;

/// One node's state machine over its storage.
#[derive(Debug)]
pub struct Replica<S> {
    config: ReplicaConfig,
    storage: S,
    // What is staged adds up to; always at least what `durable` says.
    frontier: Frontier,
    durable: Durable,
    clock: HlcClock,
    /// The wall clock is far ahead of a majority of the members.
    clock_ahead: Option<ClockAhead>,
    epoch: Option<Epoch>,
    epochs_drawn: u64,
    catalog: Arc<Catalog>,
    /// What it was before the write sets of this event, if they changed it.
    catalog_before: Option<Arc<Catalog>>,
    /// When an event was handled last: there is a tick every 100 ms or so.
    handled_ms: u64,
    /// This process stood still: until then clocks are not compared.
    paused_until_ms: u64,
    sessions: BTreeMap<LinkId, Session>,
    plan: FeedPlan,
    /// Since when which seq of an origin has been known to lack here.
    lags: BTreeMap<Origin, Lag>,
    link_states: LinkStates,
    link_plan: LinkPlan,
    /// Over the links that were up when [`LinkStates::changes`] stood at `distances_of`.
    distances: Distances,
    distances_of: u64,
    progress: Progress,
    /// When this member's was told last.
    progress_told_ms: u64,
    /// Links are to be planned anew.
    links_due: bool,
    /// One's own entry had to go beyond another, and is to be sent.
    own_outdated: bool,
    /// Whom to keep dialling.
    dial: BTreeSet<u32>,
    twins: Twins,
    /// Members that sent what is not known here, until they are heard again.
    unreadable: BTreeMap<u32, Unreadable>,
    /// A member said that this server was removed: until when that holds, unless it is said again.
    told_removed: Option<ToldRemoved>,
    /// While this member is draining: what it had when it heard of that.
    drain: Option<Drain>,
    snapshots: Snapshots,
    /// Write sets of a repair wait beside the replica.
    salvage_waits: bool,
    /// A base that what is applied here could not be expressed by, though it is known.
    unfit_base: Option<Dot>,
    differences: Differences,
    /// Origins whose feed is stopped.
    paused: BTreeMap<Origin, Pause>,
    amnesia: Amnesia,
    cut: BTreeSet<u32>,
    gossip: Gossip,
    failed: Option<String>,
    full: Option<Full>,
    /// Origins of which an absurd stamp was told.
    stamped_ahead: BTreeSet<Origin>,
    counters: CountersView,
    outputs: VecDeque<(LogPosition, Output)>,
    /// Answers that wait for no sync, nor behind what does.
    at_once: VecDeque<Output>,
}

/// What a power cut would leave.
#[derive(Debug, Default)]
struct Durable {
    position: LogPosition,
    applied: AppliedSet,
    /// The digest of `applied`; unknown while more is staged.
    digest: Option<u128>,
    /// What is staged beyond it, in order.
    staged: VecDeque<(LogPosition, Dot)>,
}

/// The storage had no room.
#[derive(Debug)]
struct Full {
    /// What it said.
    reason: String,
    /// The length of the write set that it had no room for.
    write_set_bytes: usize,
}

/// When heartbeats are due.
#[derive(Debug, Default)]
struct Gossip {
    sent_ms: u64,
    changed: bool,
    /// Do not wait to share it: a new origin, or a link.
    at_once: bool,
}

impl<S: Storage> Replica<S> {
    /// A replica over what its storage recovered. `frontier` is what that adds up to, all of it durable.
    ///
    /// # Errors
    /// When the system keyspace cannot be read.
    pub fn open(mut config: ReplicaConfig, mut storage: S, frontier: Frontier, now: Now) -> Result<Self, StorageError> {
        config.limits = config.limits.within_wire();
        let clock = recovered_clock(&frontier, Hlc::default(), &config, now);
        let durable = Durable {
            position: storage.staged_end(),
            applied: frontier.heads.applied().clone(),
            digest: Some(frontier.digest.total()),
            staged: VecDeque::new(),
        };
        let catalog = Arc::new(Catalog::load(&storage.keyspace_records(KeyspaceId::SYSTEM)?));
        let mut link_states = LinkStates::new(config.server_id, config.boot_id);
        link_states.retain(&catalog.present());
        let mut progress = Progress::new(config.server_id, config.boot_id, &durable.applied);
        progress.retain(&catalog.present());
        let mut replica = Self {
            config,
            storage,
            frontier,
            durable,
            clock,
            clock_ahead: None,
            epoch: None,
            epochs_drawn: 0,
            catalog,
            catalog_before: None,
            handled_ms: now.mono_ms,
            paused_until_ms: 0,
            sessions: BTreeMap::new(),
            plan: FeedPlan::default(),
            lags: BTreeMap::new(),
            link_states,
            link_plan: LinkPlan::default(),
            distances: Distances::default(),
            distances_of: 0,
            progress,
            progress_told_ms: 0,
            links_due: true,
            own_outdated: false,
            dial: BTreeSet::new(),
            twins: Twins::default(),
            unreadable: BTreeMap::new(),
            told_removed: None,
            drain: None,
            snapshots: Snapshots::default(),
            salvage_waits: false,
            unfit_base: None,
            differences: Differences::default(),
            paused: BTreeMap::new(),
            amnesia: Amnesia::default(),
            cut: BTreeSet::new(),
            gossip: Gossip::default(),
            failed: None,
            full: None,
            stamped_ahead: BTreeSet::new(),
            counters: CountersView::default(),
            outputs: VecDeque::new(),
            at_once: VecDeque::new(),
        };
        replica.note_drain();
        replica.follow_bases();
        replica.storage.share_bases(replica.catalog.bases());
        replica.tell_if_stamps_are_ahead(now);
        Ok(replica)
    }

    /// Takes one event. What is to be done about it comes out of [`Replica::poll_output`].
    pub fn handle(&mut self, input: Input, now: Now) {
        self.note_pause(now);
        match input {
            Input::LinkUp { link, .. } if self.failed.is_some() => self.close_for_good(link),
            Input::Found(key) => self.found(key, now),
            Input::Write(tag, request) => {
                let result = self.write(request, now);
                self.answer(tag, result.map(Response::Written));
            }
            Input::CreateKeyspace(tag, name, kind) => {
                let result = self.create_keyspace(name, kind, now);
                self.answer(tag, result.map(Response::Written));
            }
            Input::Status(tag) => {
                let status = self.status(now);
                self.answer(tag, Ok(Response::Status(Box::new(status))));
            }
            Input::Condition(tag) => {
                let condition = self.condition();
                self.answer(tag, Ok(Response::Condition(Box::new(condition))));
            }
            Input::RetryOrigin(tag, origin) => {
                let result = self.retry_origin(origin, now);
                self.answer(tag, result.map(Response::Retried));
            }
            Input::Digest(tag) => {
                // Of all that is staged: the answer waits until that is durable.
                let applied = self.frontier.heads.applied().clone();
                let digest = PeerDigest { applied, digest: self.frontier.digest.clone() };
                self.answer(tag, Ok(Response::Digest(Box::new(digest))));
            }
            Input::CutLink(tag, server_id) => self.cut_link(tag, server_id),
            Input::HealLink(tag, server_id) => self.heal_link(tag, server_id),
            Input::SetTopology(tag, topology) => {
                let result = self.set_topology(topology, now);
                self.answer(tag, result.map(Response::Written));
            }
            Input::ChangeMember(tag, server_id, change) => {
                let result = self.change_member(server_id, change, now);
                self.answer(tag, result.map(Response::Written));
            }
            Input::LinkUp { link, server_id, dialed, version, address } => {
                self.link_up(link, Session::new(server_id, dialed, version, address), now);
            }
            Input::LinkDown(link) => self.link_down(link, now),
            Input::Message(link, message) => self.message(link, message, now),
            Input::Unreadable(link, error) => self.unreadable(link, &error.to_string(), now),
            Input::FeedGroup { link, subscription, write_sets } => self.feed_group(link, subscription, write_sets, now),
            Input::SnapshotSent { link, begins } => self.snapshot_sent(link, begins),
            Input::SnapshotHeld(from) => self.snapshot_held(from),
            Input::SnapshotFailed(reason) => self.fetch_failed(reason, now),
            Input::Salvaged(write_sets) => self.take_salvaged(&write_sets, now),
            Input::BucketsScanned(keys) => self.take_scanned(keys),
            Input::Durable(position) => self.synced(position),
            Input::StorageFailed(reason) => self.fail(reason),
            Input::Tick => {
                self.look_for_room();
                self.compare_clocks();
                self.replan(now);
                self.fetch_when_unfed(now);
                self.tick_links(now);
                self.tell_progress(now);
                self.publish_base_when_due(now);
            }
        }
        self.follow_catalog();
        self.note_regained(now);
        self.plan_links(now);
        self.gossip(now);
        debug_assert_eq!(self.validate(), Ok(()));
    }

    /// A process that stood still reads old heartbeats next, which say nothing of anybody's clock.
    fn note_pause(&mut self, now: Now) {
        if now.mono_ms.saturating_sub(self.handled_ms) > PAUSE_MS {
            self.paused_until_ms = now.mono_ms.saturating_add(2 * PAUSE_MS);
        }
        self.handled_ms = now.mono_ms;
    }

    /// The next thing to do, of those that need no more of the log than `durable` to be synced.
    pub fn poll_output(&mut self, durable: LogPosition) -> Option<Output> {
        if let Some(output) = self.at_once.pop_front() {
            return Some(output);
        }
        match self.outputs.front() {
            Some((needs, _)) if *needs <= durable || seeded_bug("send-before-durable") => {
                self.outputs.pop_front().map(|(_, output)| output)
            }
            _ => None,
        }
    }

    /// The storage, to be synced by the driver.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The storage, to be synced by the driver.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    /// Both at once, for a checkpoint: what is staged, and what it adds up to.
    pub fn storage_and_frontier(&mut self) -> (&mut S, &Frontier) {
        (&mut self.storage, &self.frontier)
    }

    /// What is staged adds up to.
    pub fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    /// What is durably applied.
    pub fn durable_applied(&self) -> &AppliedSet {
        &self.durable.applied
    }

    /// What the system keyspace says, as staged. A new value each time it changes.
    pub fn catalog(&self) -> &Arc<Catalog> {
        &self.catalog
    }

    /// The members to keep dialling.
    pub fn members_to_dial(&self) -> impl Iterator<Item = &Member> {
        self.dial.iter().filter_map(|server_id| self.catalog.member(*server_id))
    }

    /// Whom links that are up lead to from here, over whomever, with this node itself.
    pub fn in_sight(&self) -> BTreeSet<u32> {
        self.link_states.component(self.config.server_id)
    }

    /// Whether the configured addresses are to be dialled beside the members that are: while no other member is
    /// known, or one of them is out of sight. Nodes that join at the same time may have met each other alone; and
    /// who leads to the members that are known may be a member of which nothing was heard yet.
    pub fn wants_seeds(&self) -> bool {
        let (members, seen) = (self.catalog.present(), self.in_sight());
        let mut others = members.iter().filter(|server_id| **server_id != self.config.server_id).peekable();
        others.peek().is_none() || others.any(|id| !seen.contains(id) && !self.cut.contains(id))
    }

    /// The members whose link an operator took down.
    pub fn cut(&self) -> &BTreeSet<u32> {
        &self.cut
    }

    /// Whether a write, a sync or a read of the storage failed: nothing may be staged, synced or
    /// published any more.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Whether nothing can be written for lack of room on the disk, until a tick finds some.
    pub fn is_full(&self) -> bool {
        self.full.is_some()
    }

    /// Why clients' writes are refused now, if they are.
    pub fn writes_refused(&self) -> Option<Refusal> {
        let refusing = self.own_status().filter(|status| !status.takes_writes() && !seeded_bug("drained-takes-writes"));
        self.system_writes_refused().or(refusing.map(Refusal::MemberIs))
    }

    /// Where this member stands, as far as it was told; `None` while it has not said that it is one.
    fn own_status(&self) -> Option<MemberStatus> {
        match &self.told_removed {
            Some(_) => Some(MemberStatus::Removed),
            None => self.catalog.member(self.config.server_id).map(|member| member.status),
        }
    }

    /// Why no write at all can be made now, if none can.
    fn system_writes_refused(&self) -> Option<Refusal> {
        if let Some(reason) = &self.failed {
            return Some(Refusal::WritesStopped(reason.clone()));
        }
        if let Some(addresses) = self.own_twins() {
            return Some(Refusal::Twin { addresses: addresses.to_vec() });
        }
        if let Some(full) = &self.full {
            return Some(Refusal::DiskFull { reason: full.reason.clone() });
        }
        self.catalog.cluster_keys().sealing().is_none().then_some(Refusal::NotJoined).or_else(|| self.clock_refusal())
    }

    /// An earlier process had a clock that was ahead, and this one has to go on from its stamps.
    fn tell_if_stamps_are_ahead(&mut self, now: Now) {
        let hlc = self.frontier.greatest_stamp(self.config.server_id);
        let ahead_ms = hlc.millis().saturating_sub(now.wall_ms);
        if ahead_ms > self.config.timings.hlc_ahead_max_ms {
            self.event(Event::OwnStampsAhead { hlc, ahead_ms });
        }
    }

    fn status(&self, now: Now) -> StatusView {
        StatusView {
            cluster_id: self.config.cluster_id.to_string(),
            server_id: self.config.server_id,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            writes_refused: self.writes_refused().map(|refusal| refusal.to_string()),
            name: self.config.name.clone(),
            status: self.own_status(),
            topology: self.catalog.topology().clone(),
            applied: self.durable.applied.iter().collect(),
            digest: self.durable.digest.map_or_else(String::new, |digest| format!("{digest:032x}")),
            peers: self.peer_views(),
            feeds: self.feed_views(now),
            counters: self.counters.clone(),
        }
    }

    fn condition(&self) -> ConditionView {
        ConditionView {
            paused: self.paused_views(),
            regained: self.regained_views(),
            regained_write_sets: self.regained_write_sets(),
            // How far that is, the driver knows.
            snapshot: None,
            different: self.different_views(),
            // And this.
            salvage: None,
        }
    }

    /// Appends a write set to the log and applies it: the one way in.
    fn commit(&mut self, write_set: &WriteSet, bytes: &Bytes) -> Result<ApplySummary, StorageError> {
        let end = self.storage.append(bytes, &self.frontier.heads)?;
        let summary = self.frontier.apply(&mut self.storage, write_set, bytes)?;
        self.durable.staged.push_back((end, write_set.dot));
        self.durable.digest = None;
        self.counters.conflicts += summary.conflicts as u64;
        self.counters.log_bytes += bytes.len() as u64;
        if summary.system_changed {
            let before = self.catalog.clone();
            self.catalog_before.get_or_insert(before);
            self.catalog = Arc::new(self.catalog.reloaded(&self.storage.keyspace_records(KeyspaceId::SYSTEM)?));
        }
        Ok(summary)
    }

    /// Commits a peer's write set, all of whose dependencies are applied.
    fn commit_remote(&mut self, write_set: &WriteSet, bytes: &Bytes, now: Now) -> Result<(), StorageError> {
        let stamp = if seeded_bug("hlc-not-merged") { Hlc::default() } else { write_set.hlc };
        match self.clock.observe(stamp, now.wall_ms, self.config.timings.hlc_ahead_max_ms) {
            Observed::TooFarAhead { ahead_ms } if self.stamped_ahead.insert(write_set.dot.origin) => {
                self.event(Event::StampAhead { dot: write_set.dot, hlc: write_set.hlc, ahead_ms });
            }
            Observed::Merged | Observed::TooFarAhead { .. } => {}
        }
        if write_set.dot.origin.server_id == self.config.server_id {
            // A server's own stamps only rise, whichever process made them.
            self.clock.rise_above(write_set.hlc);
        }
        let _ = self.commit(write_set, bytes)?;
        self.counters.received += 1;
        if let Some(epoch) = &mut self.epoch {
            epoch.note_applied(write_set.dot);
        }
        Ok(())
    }

    fn synced(&mut self, position: LogPosition) {
        self.durable.position = self.durable.position.max(position);
        let mut origins = BTreeSet::new();
        while let Some((_, dot)) = self.durable.staged.pop_front_if(|(end, _)| *end <= position) {
            self.gossip.at_once |= dot.seq == 1;
            self.gossip.changed = true;
            self.durable.applied.add(dot);
            origins.insert(dot.origin);
        }
        self.wake_feeds(&origins);
        self.follow_bases();
        if self.durable.staged.is_empty() {
            self.durable.digest = Some(self.frontier.digest.total());
        }
        self.counters.syncs += 1;
    }

    /// Stops writing for good. Whether what was staged survives is unknown, and whoever waits for
    /// it is told so; nothing of it may leave.
    fn fail(&mut self, reason: String) {
        if self.failed.is_some() {
            return;
        }
        // With "interval", what was answered of this group is not published any more either.
        let staged_end = self.position_needed();
        let unpublished = std::mem::take(&mut self.at_once).into_iter().map(|output| (staged_end, output));
        let waiting: Vec<_> = unpublished.chain(std::mem::take(&mut self.outputs)).collect();
        for (needs, output) in waiting {
            match output {
                output if needs <= self.durable.position => self.outputs.push_back((needs, output)),
                Output::Answer(tag, _) => {
                    let refusal = Refusal::StorageFailed(reason.clone());
                    self.outputs.push_back((LogPosition::default(), Output::Answer(tag, Err(refusal))));
                }
                Output::Event(event) => self.outputs.push_back((LogPosition::default(), Output::Event(event))),
                _ => {}
            }
        }
        self.failed = Some(reason.clone());
        self.dial.clear();
        self.event(Event::StorageFailed { reason });
        // Without sessions nothing that peers still say is heard, and nothing is said to them.
        for link in std::mem::take(&mut self.sessions).into_keys() {
            self.close_for_good(link);
        }
    }

    /// Writes nothing until there is room. All else goes on: what is staged was promised its room.
    fn fill(&mut self, reason: String, write_set_bytes: usize, now: Now) {
        self.event(Event::DiskFull { reason: reason.clone() });
        self.full = Some(Full { reason, write_set_bytes });
        self.replan(now);
    }

    fn look_for_room(&mut self) {
        let Some(full) = self.full.as_ref().filter(|_| self.failed.is_none()) else { return };
        match self.storage.has_room(full.write_set_bytes, &self.frontier.heads) {
            Ok(false) => {}
            Ok(true) => {
                self.full = None;
                self.event(Event::DiskHasRoom);
            }
            Err(error) => self.fail(error.into_reason()),
        }
    }

    fn close_for_good(&mut self, link: LinkId) {
        self.output(Output::CloseLink(link, "storage failed".to_owned()));
    }

    fn answer(&mut self, tag: RequestTag, result: Result<Response, Refusal>) {
        let answer = Output::Answer(tag, result);
        match self.config.durability {
            Durability::Interval => self.at_once.push_back(answer),
            Durability::Sync => self.output(answer),
        }
    }

    /// Says something on a link, if what is spoken there has such a message: the one place that
    /// decides that. Whoever asks for it to be said need not know; what a link of an older version
    /// is not told, its end has to do without.
    fn send(&mut self, link: LinkId, message: PeerMessage) {
        if self.sessions.get(&link).is_some_and(|session| message.since() <= session.version) {
            self.output(Output::Send(link, message));
        }
    }

    /// Says something on all links but the one that it came by.
    fn flood(&mut self, message: &PeerMessage, from: Option<LinkId>) {
        let links: Vec<LinkId> = self.established().map(|(link, _)| link).filter(|link| Some(*link) != from).collect();
        for link in links {
            self.send(link, message.clone());
        }
    }

    fn event(&mut self, event: Event) {
        self.output(Output::Event(event));
    }

    fn output(&mut self, output: Output) {
        let speaks_of_staged =
            matches!(output, Output::Answer(..) | Output::Send(_, PeerMessage::Subscribe(_) | PeerMessage::Refuse(_)));
        // With "interval" the disk may be behind for long, and links must not stand still meanwhile.
        // What speaks only of what is durable, or of nothing, need not wait for it.
        let needs = match self.config.durability {
            Durability::Interval if !speaks_of_staged => LogPosition::default(),
            _ => self.position_needed(),
        };
        match needs == LogPosition::default() && self.config.durability == Durability::Interval {
            true => self.at_once.push_back(output),
            false => self.outputs.push_back((needs, output)),
        }
    }

    /// Whatever leaves now may speak of all that is staged.
    fn position_needed(&self) -> LogPosition {
        match self.failed {
            None => self.storage.staged_end(),
            Some(_) => LogPosition::default(),
        }
    }

    /// What must hold between events; checked after each one in debug builds.
    fn validate(&self) -> Result<(), &'static str> {
        let applied = self.frontier.heads.applied();
        if !applied.includes_all(&self.durable.applied) {
            return Err("durable is ahead of staged");
        }
        if self.failed.is_none() && self.durable.staged.is_empty() && *applied != self.durable.applied {
            return Err("nothing is staged, and yet durable is behind");
        }
        if self.full.is_some() && self.sessions.values().any(Session::is_fed) {
            return Err("the disk is full, and yet a peer feeds this node");
        }
        if self.epoch.as_ref().is_some_and(|epoch| epoch.origin.server_id != self.config.server_id) {
            return Err("the open epoch is not one's own");
        }
        Ok(())
    }
}

/// The clock of a process that goes on with what was recovered, or joined, and behind `last`. It goes
/// on behind the greatest stamp of its own server, however far ahead that lies, so that no stamp is
/// given out twice; those of others are merged as they would be if they came now.
fn recovered_clock(frontier: &Frontier, last: Hlc, config: &ReplicaConfig, now: Now) -> HlcClock {
    let mut clock = match seeded_bug("own-stamps-forgotten") {
        true => HlcClock::starting_after(last),
        false => HlcClock::starting_after(last.max(frontier.greatest_stamp(config.server_id))),
    };
    for stamp in frontier.stamps().chain([frontier.hlc]) {
        // One that is too far ahead was told of when it came.
        let _ = clock.observe(stamp, now.wall_ms, config.timings.hlc_ahead_max_ms);
    }
    clock
}
