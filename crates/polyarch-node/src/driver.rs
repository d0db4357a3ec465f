//! The thread that owns the replica and the store.
//!
//! It takes what has come in, hands it to the replica, syncs the log once for all of it, publishes,
//! and performs what the replica wants done: group commit without a timer. While one sync runs,
//! the next group gathers.
//!
//! **Architecture Invariant:** no other thread touches the replica, and this one never waits for a
//! peer or a client.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use polyarch_protocol::client::{Refusal, Response};
use polyarch_protocol::peer::PeerMessage;
use polyarch_protocol::{
    BucketsWanted, ChainHeads, Durability, Input, LinkId, LogSource, Now, Output, Replica, RequestTag, Storage,
};
use polyarch_store::{CheckpointDone, CheckpointError, DiskStore};
use polyarch_transport::CloseCode;
use tokio::sync::{OwnedSemaphorePermit, mpsc as tokio_mpsc, watch};
use tracing::{error, info, warn};

use crate::buckets::keys_of;
use crate::events::EventLedger;
use crate::links::{Control, LinkHandle, Targets};
use crate::view::{Published, View};

/// Inputs that share a sync at most. More would only make the first wait.
const GROUP_INPUTS_MAX: usize = 4_096;
/// How often the replica is told that time has passed.
const TICK: Duration = Duration::from_millis(100);

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
    /// The result of the running checkpoint is there.
    Checkpointed,
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
    pub(crate) remove_log: bool,
}

/// A checkpoint that runs.
struct Checkpointing {
    thread: JoinHandle<()>,
    result: mpsc::Receiver<Result<CheckpointDone, CheckpointError>>,
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
    synced: Instant,
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
            synced: Instant::now(),
            failed: false,
            started: Instant::now(),
        }
    }

    /// Runs until it is told to stop; everything staged is then synced.
    pub(crate) fn run(mut self) {
        let mut ticked = Instant::now();
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
                self.remove_log();
            }
            self.settle();
        }
    }

    /// How long to wait for the next message.
    fn patience(&self, ticked: Instant) -> Duration {
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
            ToDriver::Checkpointed => {
                let ready = self.checkpointing.as_ref().and_then(|running| running.result.try_recv().ok());
                if let Some(result) = ready {
                    // Its thread ends by itself.
                    self.checkpointing = None;
                    self.finish_checkpoint(result);
                }
            }
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
            Published::new(applied.clone(), replica.catalog().clone())
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
        let (view, inbox) = (self.view.clone(), self.own_inbox.clone());
        let run = move || {
            // The driver may have stopped.
            let _ = inbox.send(Input::BucketsScanned(keys_of(&view, wanted)).into());
        };
        if let Err(cause) = std::thread::Builder::new().name("digest-scan".to_owned()).spawn(run) {
            warn!(%cause, "there is no thread to compare records with a member's");
            self.handle(Input::BucketsScanned(None));
        }
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
        if let Some(client) = self.clients.get(&tag.connection) {
            // A client that has just gone no longer listens.
            let _ = client.send((tag.request, result));
        }
    }

    fn signal_targets(&mut self) {
        let dial: Vec<_> = self.replica.members_to_dial().cloned().collect();
        let cut = self.replica.cut().clone();
        let targets = Targets { dial, cut };
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
        if self.checkpointing.is_some() || self.failed || self.is_staged() {
            return;
        }
        let (store, frontier) = self.replica.storage_and_frontier();
        let Some(job) = store.begin_checkpoint(frontier) else { return };
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
                info!(position = %summary.position, records = summary.records, "checkpoint");
            }
            Err(error) => {
                error!(%error, "a checkpoint failed; the log has what it held, and it is tried again");
                if self.replica.storage().is_memtable_full() {
                    let reason = format!("memory holds all it may of what no checkpoint could write: {error}");
                    self.handle(Input::StorageFailed(reason));
                }
            }
        }
    }

    /// Removes log segments that every member has, where the operator wants that.
    fn remove_log(&mut self) {
        if !self.config.remove_log || self.failed {
            return;
        }
        let everyone_has = |heads: &ChainHeads| self.replica.all_members_have(heads.applied());
        let Some(mark) = self.replica.storage().log_reader().last_mark(&everyone_has) else { return };
        let floor = mark.position;
        match self.replica.storage_mut().remove_log_before(floor) {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => info!(?removed, "removed log segments that every member has"),
            // The log takes nothing more after that.
            Err(error) => self.handle(Input::StorageFailed(error.to_string())),
        }
    }

    fn stop(mut self) {
        if !self.failed && self.is_staged() && self.sync() {
            self.publish();
        }
        self.perform();
        if let Some(running) = self.checkpointing.take() {
            // Its thread must not outlive the store's lock on the directory.
            if running.thread.join().is_err() {
                error!("the checkpoint's thread panicked; the log has what it held");
            }
        }
    }
}
