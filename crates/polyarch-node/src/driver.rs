//! The thread that owns the replica and the store.
//!
//! It takes what has come in, hands it to the replica, syncs the log once for all of it, publishes,
//! and performs what the replica wants done: group commit without a timer. While one sync runs,
//! the next group gathers.
//!
//! **Architecture Invariant:** no other thread touches the replica, and this one never waits for a
//! peer or a client.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polyarch_crdt::Dot;
use polyarch_protocol::client::{Refusal, Response};
use polyarch_protocol::condition::SnapshotView;
use polyarch_protocol::peer::{ClusterId, PeerMessage};
use polyarch_protocol::{
    BucketsWanted, ChainHeads, Durability, Event, Input, LinkId, LogPosition, LogSource, Now, Output, Replica,
    RequestTag, Storage,
};
use polyarch_store::files::{Directory, Files};
use polyarch_store::log::LogError;
use polyarch_store::state::SledState;
use polyarch_store::{CheckpointDone, CheckpointError, DiskStore, JoinError};
use polyarch_transport::CloseCode;
use tokio::sync::{OwnedSemaphorePermit, mpsc as tokio_mpsc, oneshot, watch};
use tracing::{error, info, warn};

use crate::buckets::keys_of;
use crate::chain_hash::chain_hash;
use crate::events::EventLedger;
use crate::links::{Control, LinkHandle, Targets};
use crate::retention::{Retention, Segment};
use crate::salvage::{Pass, Salvaging};
use crate::snapshots::{Fetch, Incoming, Pinned, SnapshotProgress};
use crate::view::{Published, View};

/// Inputs that share a sync at most. More would only make the first wait.
const GROUP_INPUTS_MAX: usize = 4_096;
/// How often it is looked at whether log may go.
const REMOVE_LOG_EVERY: Duration = Duration::from_secs(1);
/// How often the replica is told that time has passed.
const TICK: Duration = Duration::from_millis(100);

/// How often, and how often again, the removal of a state that was replaced is tried while somebody reads it.
const RETIRED_TRIES: u32 = 600;
const RETIRED_RETRY: Duration = Duration::from_millis(100);

type Joined = polyarch_store::Joined<Directory, SledState>;
/// How long after a checkpoint that failed for lack of room, and between two that may let log go while there is none.
const NO_ROOM_RETRY: Duration = Duration::from_secs(1);

/// An answer on its way to a client's stream: the request's number there, and the result.
pub(crate) type Answer = (u64, Result<Response, Refusal>);

/// What the driver is told.
pub(crate) enum ToDriver {
    Input(Box<Input>),
    /// A client's stream, to be answered here.
    OpenClient(u64, tokio_mpsc::UnboundedSender<Answer>),
    CloseClient(u64),
    OpenLink(LinkId, LinkHandle),
    CloseLink(LinkId),
    /// What a peer said; its link may say only so much before this is dropped.
    Said(LinkId, PeerMessage, OwnedSemaphorePermit),
    /// A question for the last events, at most so many.
    Events(RequestTag, usize),
    /// A question for the hash of a chain.
    ChainHash(RequestTag, Dot),
    /// The answer to a question, which somebody else found.
    Answered(RequestTag, Result<Response, Refusal>),
    /// The result of the running checkpoint is there.
    Checkpointed,
    /// Whether the member on a link may ask for a snapshot.
    IsEstablished(LinkId, oneshot::Sender<bool>),
    /// Keep what a walk over the records needs that begins now.
    Pin(oneshot::Sender<Pinned>),
    /// A snapshot is whole in its files, or there is none, for this reason.
    SnapshotFetched(Result<Box<Incoming>, String>),
    /// The result of the running join is there.
    Joined,
    /// Sync, and end.
    Stop,
}

pub(crate) type ToDriverSender = mpsc::Sender<ToDriver>;

impl From<Input> for ToDriver {
    fn from(input: Input) -> Self {
        Self::Input(Box::new(input))
    }
}

/// How the driver syncs and cuts.
#[derive(Debug, Clone)]
pub(crate) struct DriverConfig {
    pub(crate) durability: Durability,
    pub(crate) sync_interval: Duration,
    pub(crate) retention: Retention,
}

/// A checkpoint that runs.
struct Checkpointing {
    thread: JoinHandle<()>,
    result: mpsc::Receiver<Result<CheckpointDone, CheckpointError>>,
}

/// Where the join of a snapshot is.
#[derive(Default)]
enum Joining {
    /// There is none.
    #[default]
    No,
    /// The snapshot is whole in its file.
    Due(Box<Incoming>),
    /// It runs on a thread of its own.
    Running(JoinThread),
    /// It is to be adopted.
    Done(Box<Joined>),
}

/// A join that runs.
struct JoinThread {
    thread: JoinHandle<()>,
    result: mpsc::Receiver<Result<Joined, JoinError>>,
    stop: Arc<AtomicBool>,
}

/// How the driver has snapshots fetched.
pub(crate) struct Snapshots {
    pub(crate) runtime: tokio::runtime::Handle,
    pub(crate) cluster_id: ClusterId,
    /// What fetches and joins leave free on the disk.
    pub(crate) floor_bytes: u64,
    pub(crate) progress: Arc<SnapshotProgress>,
}

pub(crate) struct Driver {
    replica: Replica<DiskStore>,
    inbox: mpsc::Receiver<ToDriver>,
    own_inbox: ToDriverSender,
    view: Arc<View>,
    events: EventLedger,
    targets: watch::Sender<Targets>,
    config: DriverConfig,
    clients: HashMap<u64, tokio_mpsc::UnboundedSender<Answer>>,
    links: HashMap<LinkId, LinkHandle>,
    /// Bytes sent and received on links that are gone.
    link_bytes_before: (u64, u64),
    checkpoints: u64,
    checkpointing: Option<Checkpointing>,
    /// The last read for a comparison of digests, and how to stop it.
    scanning: Option<(JoinHandle<()>, Arc<AtomicBool>)>,
    snapshots: Snapshots,
    /// Walks that are to begin once nothing is staged.
    pins: Vec<oneshot::Sender<Pinned>>,
    joining: Joining,
    salvaging: Option<Salvaging>,
    /// The disk had no room for the last one, or for more log: no other begins before then.
    checkpoint_after: Option<Instant>,
    synced: Instant,
    /// When it was looked at last whether log may go.
    log_reviewed: Instant,
    /// Members that the log no longer reaches back to: told once, until they have caught up.
    left_behind: BTreeSet<u32>,
    /// A write or sync failed: nothing is staged, synced or published any more.
    failed: bool,
    started: Instant,
}

impl Driver {
    pub(crate) fn new(
        replica: Replica<DiskStore>,
        (own_inbox, inbox): (ToDriverSender, mpsc::Receiver<ToDriver>),
        view: Arc<View>,
        events: EventLedger,
        targets: watch::Sender<Targets>,
        snapshots: Snapshots,
        config: DriverConfig,
    ) -> Self {
        Self {
            replica,
            inbox,
            own_inbox,
            view,
            events,
            targets,
            config,
            clients: HashMap::new(),
            links: HashMap::new(),
            link_bytes_before: (0, 0),
            checkpoints: 0,
            checkpointing: None,
            scanning: None,
            snapshots,
            pins: Vec::new(),
            joining: Joining::No,
            salvaging: None,
            checkpoint_after: None,
            synced: Instant::now(),
            log_reviewed: Instant::now(),
            left_behind: BTreeSet::new(),
            failed: false,
            started: Instant::now(),
        }
    }

    /// With what a repair left waiting.
    pub(crate) fn with_salvage(mut self, salvaging: Option<Salvaging>) -> Self {
        self.replica.set_salvage_waits(salvaging.is_some());
        self.salvaging = salvaging;
        self
    }

    /// Runs until it is told to stop; everything staged is then synced.
    pub(crate) fn run(mut self) {
        let mut ticked = Instant::now();
        self.find_snapshot();
        self.settle();
        loop {
            match self.inbox.recv_timeout(self.patience(ticked)) {
                Ok(message) => {
                    let mut stop = self.take(message);
                    for _ in 1..GROUP_INPUTS_MAX {
                        match self.inbox.try_recv() {
                            Ok(message) => stop |= self.take(message),
                            Err(_) => break,
                        }
                    }
                    if stop {
                        return self.stop();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.stop(),
            }
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.handle(Input::Tick);
                self.signal_targets();
                if self.log_reviewed.elapsed() >= REMOVE_LOG_EVERY {
                    self.log_reviewed = Instant::now();
                    self.remove_log();
                }
            }
            self.settle();
            // Behind a sync: while writes come all the time, something is staged at any other moment.
            if self.go_on_with_salvage() {
                self.settle();
            }
        }
    }

    /// How long to wait for the next message.
    fn patience(&self, ticked: Instant) -> Duration {
        if self.may_go_on_with_salvage() && self.salvaging.as_ref().is_some_and(Salvaging::is_in_a_pass) {
            return Duration::ZERO;
        }
        let to_tick = TICK.saturating_sub(ticked.elapsed());
        match self.config.durability {
            Durability::Interval if self.is_staged() => {
                to_tick.min(self.config.sync_interval.saturating_sub(self.synced.elapsed()))
            }
            _ => to_tick,
        }
    }

    /// Takes one message; says whether it was the last.
    fn take(&mut self, message: ToDriver) -> bool {
        match message {
            ToDriver::Input(input) => self.handle(*input),
            ToDriver::OpenClient(connection, answers) => {
                self.clients.insert(connection, answers);
            }
            ToDriver::CloseClient(connection) => {
                self.clients.remove(&connection);
            }
            ToDriver::OpenLink(link, handle) => {
                self.links.insert(link, handle);
            }
            ToDriver::CloseLink(link) => {
                if let Some(handle) = self.links.remove(&link) {
                    let stats = handle.connection.stats();
                    self.link_bytes_before.0 += stats.bytes_sent;
                    self.link_bytes_before.1 += stats.bytes_received;
                }
            }
            ToDriver::Said(link, message, _permit) => self.handle(Input::Message(link, message)),
            ToDriver::Events(tag, limit) => self.answer(tag, Ok(Response::Events(self.events.last(limit)))),
            ToDriver::ChainHash(tag, dot) => self.find_chain_hash(tag, dot),
            ToDriver::Answered(tag, result) => self.answer(tag, result),
            ToDriver::Checkpointed => {
                let ready = self.checkpointing.as_ref().and_then(|running| running.result.try_recv().ok());
                if let Some(result) = ready {
                    // Its thread ends by itself.
                    self.checkpointing = None;
                    self.finish_checkpoint(result);
                }
            }
            ToDriver::IsEstablished(link, sender) => {
                // Whoever asked may be gone.
                let _ = sender.send(self.replica.is_established(link));
            }
            ToDriver::Pin(pinned) => self.pins.push(pinned),
            ToDriver::SnapshotFetched(Ok(snapshot)) => self.joining = Joining::Due(snapshot),
            ToDriver::SnapshotFetched(Err(reason)) => self.handle(Input::SnapshotFailed(reason)),
            ToDriver::Joined => self.joined(),
            ToDriver::Stop => return true,
        }
        false
    }

    fn handle(&mut self, input: Input) {
        let now = self.now();
        self.replica.handle(input, now);
        self.failed |= self.replica.has_failed();
    }

    fn now(&self) -> Now {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Now { wall_ms: wall.as_millis() as u64, mono_ms: self.started.elapsed().as_millis() as u64 }
    }

    fn is_staged(&self) -> bool {
        self.replica.storage().staged_end() > self.replica.storage().durable_end()
    }

    /// Makes durable and visible what was staged, then performs what is due.
    fn settle(&mut self) {
        match self.config.durability {
            _ if self.failed => {}
            Durability::Sync => {
                if self.is_staged() && self.sync() {
                    self.publish();
                }
            }
            Durability::Interval => {
                if self.is_staged() {
                    self.publish();
                    // Nobody who writes waits for the disk.
                    self.perform();
                }
                if self.is_staged() && self.synced.elapsed() >= self.config.sync_interval {
                    self.sync();
                }
            }
        }
        self.perform();
        self.go_on_with_snapshots();
    }

    fn sync(&mut self) -> bool {
        self.synced = Instant::now();
        match self.replica.storage_mut().sync_log() {
            Ok(end) => {
                self.handle(Input::Durable(end));
                true
            }
            Err(error) => {
                self.failed = true;
                self.handle(Input::StorageFailed(error.to_string()));
                false
            }
        }
    }

    fn publish(&mut self) {
        let (view, replica) = (self.view.clone(), &mut self.replica);
        view.advance(|| {
            replica.storage_mut().publish_staged();
            let applied = match self.config.durability {
                Durability::Sync => replica.durable_applied(),
                Durability::Interval => replica.frontier().heads.applied(),
            };
            Published::new(applied.clone(), replica.catalog().clone(), replica.storage().staged_end())
        });
    }

    fn perform(&mut self) {
        let durable = self.replica.storage().durable_end();
        while let Some(output) = self.replica.poll_output(durable) {
            match output {
                Output::Answer(tag, result) => self.answer(tag, result),
                Output::Send(link, message) => {
                    if let Some(handle) = self.links.get(&link)
                        && handle.control.try_send(Control::Message(message)).is_err()
                    {
                        handle.connection.close(CloseCode::NONE, "it does not read its messages");
                    }
                }
                Output::Serve(link, feed) => {
                    if let Some(handle) = self.links.get(&link) {
                        handle.feeds.put(feed);
                    }
                }
                Output::FeedMore(link) => {
                    if let Some(handle) = self.links.get(&link) {
                        handle.more.notify_one();
                    }
                }
                Output::GroupTaken(link) => {
                    if let Some(handle) = self.links.get(&link) {
                        handle.groups.add_permits(1);
                    }
                }
                Output::FetchSnapshot(link) => self.fetch_snapshot(link),
                Output::CloseLink(link, reason) => {
                    if let Some(handle) = self.links.get(&link) {
                        // Behind all that was said before; a peer that does not listen is not waited for.
                        let _ = handle.control.try_send(Control::Close(reason));
                        handle.closing.notify_one();
                    }
                }
                Output::ScanBuckets(wanted) => self.scan_buckets(wanted),
                Output::Event(event) => self.events.tell(&event),
            }
        }
        self.begin_checkpoint();
    }

    /// Reads what a comparison of digests asks for, on a thread of its own: it reads all records.
    fn scan_buckets(&mut self, wanted: BucketsWanted) {
        let (view, inbox, stop) = (self.view.clone(), self.own_inbox.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let run = move || {
            // The driver may have stopped.
            let _ = inbox.send(Input::BucketsScanned(keys_of(&view, wanted, &stopped)).into());
        };
        match std::thread::Builder::new().name("digest-scan".to_owned()).spawn(run) {
            Ok(thread) => self.scanning = Some((thread, stop)),
            Err(cause) => {
                warn!(%cause, "there is no thread to compare records with a member's");
                self.handle(Input::BucketsScanned(None));
            }
        }
    }

    /// Looks for a hash in the log, beside everything else: it may read a whole segment.
    fn find_chain_hash(&self, tag: RequestTag, dot: Dot) {
        let (log, inbox) = (self.replica.storage().log_reader(), self.own_inbox.clone());
        self.snapshots.runtime.spawn_blocking(move || {
            let found = chain_hash(&log, dot).map_err(|error| Refusal::Unreadable(error.to_string()));
            // The driver may have stopped.
            let _ = inbox.send(ToDriver::Answered(tag, found.map(Response::ChainHash)));
        });
    }

    fn answer(&mut self, tag: RequestTag, mut result: Result<Response, Refusal>) {
        if let Ok(Response::Status(status)) = &mut result {
            let live = self.links.values().map(|link| link.connection.stats());
            let (sent, received) = live.fold(self.link_bytes_before, |(sent, received), stats| {
                (sent + stats.bytes_sent, received + stats.bytes_received)
            });
            status.counters.link_bytes_sent = sent;
            status.counters.link_bytes_received = received;
            status.counters.checkpoints = self.checkpoints;
        }
        if let Ok(Response::Condition(condition)) = &mut result {
            condition.snapshot = self.snapshot_view();
            condition.salvage = self.salvaging.as_ref().map(Salvaging::view);
        }
        if let Some(client) = self.clients.get(&tag.connection) {
            // A client that has just gone no longer listens.
            let _ = client.send((tag.request, result));
        }
    }

    fn signal_targets(&mut self) {
        let dial: Vec<_> = self.replica.members_to_dial().cloned().collect();
        let cut = self.replica.cut().clone();
        let (seen, wants_seeds) = (self.replica.in_sight(), self.replica.wants_seeds());
        let targets = Targets { dial, cut, seen, wants_seeds };
        self.targets.send_if_modified(|known| {
            let changed = *known != targets;
            *known = targets;
            changed
        });
    }

    fn begin_checkpoint(&mut self) {
        let is_full = !self.failed && self.replica.storage().is_memtable_full();
        if is_full && let Some(running) = self.checkpointing.take() {
            warn!("memory holds all it may of what is not in the state; writes wait for the running checkpoint");
            // It sends one in any case: it never panics.
            if let Ok(result) = running.result.recv() {
                self.finish_checkpoint(result);
            }
        }
        if is_full && self.is_staged() {
            self.sync();
        }
        // What is joined is to be adopted before another checkpoint begins.
        let awaits_adoption = matches!(self.joining, Joining::Done(_));
        let too_soon = self.checkpoint_after.is_some_and(|after| Instant::now() < after);
        if self.checkpointing.is_some() || self.failed || too_soon || self.is_staged() || awaits_adoption {
            return;
        }
        let lacks_room = self.replica.is_full();
        let (store, frontier) = self.replica.storage_and_frontier();
        // Log may go that lies before the checkpoint before last: where room is lacking none waits for more writes.
        let job = match lacks_room && self.config.retention != Retention::All && store.checkpoint_may_free_log() {
            true => store.begin_checkpoint_now(frontier),
            false => store.begin_checkpoint(frontier),
        };
        let Some(job) = job else { return };
        if lacks_room {
            self.checkpoint_after = Some(Instant::now() + NO_ROOM_RETRY);
        }
        let inbox = self.own_inbox.clone();
        let (sender, result) = mpsc::channel();
        let run = move || {
            // The driver may have stopped; the log has all that the checkpoint held.
            let _ = sender.send(job.run());
            let _ = inbox.send(ToDriver::Checkpointed);
        };
        match std::thread::Builder::new().name("checkpoint".to_owned()).spawn(run) {
            Ok(thread) => self.checkpointing = Some(Checkpointing { thread, result }),
            Err(cause) => self.finish_checkpoint(Err(CheckpointError::Abandoned(cause.to_string()))),
        }
    }

    fn finish_checkpoint(&mut self, result: Result<CheckpointDone, CheckpointError>) {
        match result {
            Ok(done) => {
                let summary = self.replica.storage_mut().finish_checkpoint(done);
                self.checkpoints += 1;
                self.checkpoint_after = None;
                info!(position = %summary.position, records = summary.records, "checkpoint");
            }
            Err(error) => {
                // Told once and not each second.
                if !error.is_full() || self.checkpoint_after.is_none() {
                    error!(%error, "a checkpoint failed; the log has what it held, and it is tried again");
                }
                self.follow_failed_checkpoint(&error);
            }
        }
    }

    fn follow_failed_checkpoint(&mut self, error: &CheckpointError) {
        let reason = format!("memory holds all it may of what no checkpoint could write: {error}");
        let is_memory_full = self.replica.storage().is_memtable_full();
        if error.is_full() {
            self.checkpoint_after = Some(Instant::now() + NO_ROOM_RETRY);
            if is_memory_full {
                self.replica.storage_mut().hold_until_checkpoint(reason);
            }
        } else if is_memory_full {
            self.handle(Input::StorageFailed(reason));
        }
    }

    /// Removes the log segments that the operator wants to be rid of.
    fn remove_log(&mut self) {
        let Some(floor) = self.log_floor() else { return };
        match self.replica.storage_mut().remove_log_before(floor) {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => {
                info!(?removed, "removed log segments");
                self.tell_left_behind();
            }
            // Tried again with the next tick.
            Err(LogError::Full { .. }) => {}
            // The log takes nothing more after that.
            Err(error) => self.handle(Input::StorageFailed(error.to_string())),
        }
    }

    /// Up to where the log may go, if anywhere.
    fn log_floor(&self) -> Option<LogPosition> {
        if self.config.retention == Retention::All || self.failed {
            return None;
        }
        let everyone_has = |heads: &ChainHeads| self.replica.all_members_have(heads.applied());
        let store = self.replica.storage();
        // A log that begins with what some member lacks has no such mark.
        let members_have =
            store.log_reader().last_mark(&everyone_has).map_or_else(LogPosition::default, |m| m.position);
        let now = SystemTime::now();
        let age = |number: u64| now.duration_since(store.segment_modified(number).ok()?).ok();
        let segments: Vec<Segment> = store
            .segments()
            .iter()
            .map(|segment| Segment {
                end: segment.end,
                age: self.config.retention.asks_for_age().then(|| age(segment.number)).flatten(),
            })
            .collect();
        self.config.retention.floor(members_have, &segments)
    }

    /// Says of each member that is not known to have what the log no longer has that it was left
    /// behind, once.
    fn tell_left_behind(&mut self) {
        let Some(begins) = self.replica.storage().segments().into_iter().next().map(|first| first.heads) else {
            return;
        };
        let has = |server_id: u32| {
            self.replica.applied_of(server_id).is_some_and(|applied| applied.includes_all(begins.applied()))
        };
        let lacking: BTreeSet<u32> = self.replica.catalog().present().into_iter().filter(|id| !has(*id)).collect();
        for server_id in lacking.difference(&self.left_behind) {
            self.events.tell(&Event::LeftBehind { server_id: *server_id });
        }
        self.left_behind = lacking;
    }

    fn stop(mut self) {
        if !self.failed && self.is_staged() && self.sync() {
            self.publish();
        }
        self.perform();
        if let Some((thread, stop)) = self.scanning.take() {
            stop.store(true, Ordering::Relaxed);
            // It keeps the state open, which the next process is to open.
            if thread.join().is_err() {
                error!("the thread panicked that read records for a comparison");
            }
        }
        if let Joining::Running(JoinThread { thread, stop, .. }) = std::mem::take(&mut self.joining) {
            stop.store(true, Ordering::Relaxed);
            if thread.join().is_err() {
                error!(
                    "the join's thread panicked; the snapshot is whole in its files and is joined at the next start"
                );
            }
        }
        if let Some(running) = self.checkpointing.take() {
            // Its thread must not outlive the store's lock on the directory.
            if running.thread.join().is_err() {
                error!("the checkpoint's thread panicked; the log has what it held");
            }
        }
    }
}

/// What a repair left waiting.
impl Driver {
    /// It is removed only when all of it is durably in the log.
    fn may_go_on_with_salvage(&self) -> bool {
        !self.failed && !self.replica.is_full() && !self.is_staged()
    }

    /// Hands the next of it over, if some of it may be due; says whether it did.
    fn go_on_with_salvage(&mut self) -> bool {
        if !self.may_go_on_with_salvage() {
            return false;
        }
        let Some(mut salvaging) = self.salvaging.take() else { return false };
        let mut is_handed_over = false;
        match salvaging.next(self.replica.frontier().heads.applied()) {
            Pass::Nothing => {}
            Pass::WriteSets(write_sets) => {
                self.handle(Input::Salvaged(write_sets.clone()));
                salvaging.note_left(&write_sets, self.replica.frontier().heads.applied());
                is_handed_over = true;
            }
            Pass::Done => {
                self.replica.set_salvage_waits(false);
                salvaging.remove(&mut self.events);
                return false;
            }
            // It still waits, and may be all there is of it.
            Pass::Unreadable(reason) => {
                self.events.tell(&Event::SalvageUnreadable { reason });
                return false;
            }
        }
        if !salvaging.is_in_a_pass() {
            salvaging.tell_if_stuck(self.replica.has_all_that_is_known(), &mut self.events);
        }
        self.salvaging = Some(salvaging);
        is_handed_over
    }
}

/// Snapshots: walks that begin here, and what is joined here.
impl Driver {
    /// An earlier process may have fetched a snapshot whole and not come to join it.
    fn find_snapshot(&mut self) {
        let (store, frontier) = self.replica.storage_and_frontier();
        match store.pending_snapshot(frontier) {
            Ok(Some(snapshot)) if snapshot.is_whole() => {
                self.handle(Input::SnapshotHeld(snapshot.begun().donor));
                self.joining = Joining::Due(Box::new(snapshot));
            }
            // One that is not is taken up when its donor is asked again.
            Ok(_) => {}
            Err(error) => warn!(%error, "a snapshot that was fetched before cannot be read; another is fetched"),
        }
    }

    fn fetch_snapshot(&mut self, link: LinkId) {
        let from = self.replica.fetches_snapshot_from();
        let (Some(handle), Some(donor)) = (self.links.get(&link), from) else {
            return self.handle(Input::SnapshotFailed("its link is gone".to_owned()));
        };
        let fetch = Fetch {
            connection: handle.connection.clone(),
            donor,
            cluster_id: self.snapshots.cluster_id,
            files: self.replica.storage().snapshot_files().clone(),
            floor_bytes: self.snapshots.floor_bytes,
            progress: self.snapshots.progress.clone(),
        };
        let driver = self.own_inbox.clone();
        self.snapshots.runtime.spawn(async move {
            // A driver that has stopped finds the file at the next start.
            let _ = driver.send(ToDriver::SnapshotFetched(fetch.run().await.map(Box::new)));
        });
    }

    fn snapshot_view(&self) -> Option<SnapshotView> {
        let progress = &self.snapshots.progress;
        Some(SnapshotView {
            from: self.replica.fetches_snapshot_from()?,
            is_joining: !matches!(self.joining, Joining::No),
            records: progress.records.load(Ordering::Relaxed),
            bytes: progress.bytes.load(Ordering::Relaxed),
        })
    }

    /// Does what waits for a moment at which nothing is staged.
    fn go_on_with_snapshots(&mut self) {
        let is_wanted = !self.pins.is_empty() || matches!(self.joining, Joining::Due(_) | Joining::Done(_));
        if !is_wanted || self.failed {
            // Whoever waits for a pin hears that there is none.
            return self.pins.clear();
        }
        if self.is_staged() && !self.sync() {
            return;
        }
        let (store, frontier) = self.replica.storage_and_frontier();
        for sender in std::mem::take(&mut self.pins) {
            match store.pin(frontier) {
                // The walk may have been given up.
                Some(pin) => drop(sender.send(Pinned { pin })),
                None => self.pins.push(sender),
            }
        }
        match std::mem::take(&mut self.joining) {
            Joining::Due(snapshot) => self.begin_join(*snapshot),
            Joining::Done(joined) => self.adopt(*joined),
            other => self.joining = other,
        }
    }

    fn begin_join(&mut self, snapshot: Incoming) {
        let (store, frontier) = self.replica.storage_and_frontier();
        let job = match store.begin_join(snapshot, frontier) {
            Ok(job) => job,
            // Something is staged, or the one before is not over.
            Err(snapshot) => {
                self.joining = Joining::Due(Box::new(snapshot));
                return;
            }
        };
        let (sender, result) = mpsc::channel();
        let (inbox, stop) = (self.own_inbox.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let (files, floor_bytes) = (self.replica.storage().snapshot_files().clone(), self.snapshots.floor_bytes);
        let has_room = move || files.free_bytes().is_none_or(|free| free >= floor_bytes);
        let run = move || {
            // The driver may have stopped; the snapshot stays in its file.
            let _ = sender.send(job.run(|_| !stopped.load(Ordering::Relaxed) && has_room()));
            let _ = inbox.send(ToDriver::Joined);
        };
        match std::thread::Builder::new().name("join".to_owned()).spawn(run) {
            Ok(thread) => self.joining = Joining::Running(JoinThread { thread, result, stop }),
            Err(cause) => self.handle(Input::SnapshotFailed(cause.to_string())),
        }
    }

    fn joined(&mut self) {
        let Joining::Running(running) = &self.joining else { return };
        match running.result.try_recv() {
            Ok(Ok(joined)) => self.joining = Joining::Done(Box::new(joined)),
            Ok(Err(error)) => self.join_failed(&error),
            Err(_) => self.join_failed(&JoinError::Abandoned("its thread panicked".to_owned())),
        }
    }

    fn join_failed(&mut self, error: &JoinError) {
        self.joining = Joining::No;
        // To join it again would fail again.
        let is_of_no_use =
            error.is_of_the_snapshot() || matches!(error, JoinError::Abandoned(_) | JoinError::Storage(_));
        if is_of_no_use
            && let Ok(Some(snapshot)) = Incoming::open(self.replica.storage().snapshot_files().clone())
            && let Err(error) = snapshot.remove()
        {
            warn!(%error, "a snapshot that is of no use cannot be removed");
        }
        self.handle(Input::SnapshotFailed(error.to_string()));
    }

    /// Takes the joined state in the place of the present one, if nothing is staged and no checkpoint runs.
    fn adopt(&mut self, joined: Joined) {
        if self.checkpointing.is_some() || !self.replica.storage().may_adopt() {
            self.joining = Joining::Done(Box::new(joined));
            return;
        }
        let now = self.now();
        let (store, frontier) = self.replica.storage_and_frontier();
        let frontier = match store.adopt(joined, frontier) {
            Ok(frontier) => frontier,
            Err(error) if error.is_fatal() => return self.fail(error.to_string()),
            Err(error) => return self.handle(Input::SnapshotFailed(error.to_string())),
        };
        match self.replica.adopt(frontier, now) {
            Ok(()) => {
                // What had waited for what the snapshot brought is staged now.
                let is_shown_unsynced = self.config.durability == Durability::Interval;
                if !is_shown_unsynced && self.is_staged() && !self.sync() {
                    return;
                }
                self.publish();
                self.remove_retired();
            }
            Err(error) => self.fail(error.to_string()),
        }
    }

    fn fail(&mut self, reason: String) {
        self.failed = true;
        self.handle(Input::StorageFailed(reason));
    }

    /// Removes the state that was current before, once its last reader is gone.
    fn remove_retired(&mut self) {
        let Some(mut retired) = self.replica.storage_mut().take_retired() else { return };
        let remove = move || {
            for _ in 0..RETIRED_TRIES {
                match retired.remove() {
                    Ok(None) => return,
                    Ok(Some(read)) => retired = read,
                    Err(error) => return warn!(%error, "the state before cannot be removed; the next start does"),
                }
                std::thread::sleep(RETIRED_RETRY);
            }
        };
        // Without a thread the next start removes it.
        let _ = std::thread::Builder::new().name("retired-state".to_owned()).spawn(remove);
    }
}
