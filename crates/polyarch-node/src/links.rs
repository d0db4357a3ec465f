//! Links to other members: who is dialled, and what flows on a link once it is up.
//!
//! A link is one QUIC connection. The dialler opens its control stream; each side opens a stream
//! of its own for the feed it serves, a new one for each subscription.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use polyarch_protocol::catalog::Member;
use polyarch_protocol::codec::CodecError;
use polyarch_protocol::limits::wire;
use polyarch_protocol::peer::{FeedGroup, PeerMessage, PeerVersion};
use polyarch_protocol::{Feed, FeedStep, Input, LinkId};
use polyarch_transport::{
    Alpn, CloseCode, Connection, Endpoint, Expect, FrameReader, FrameWriter, StreamError, first_success,
};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::driver::{ToDriver, ToDriverSender};
use crate::snapshots::{Donor, give_up};
use crate::{LogReader, random_u64};

/// Beside links that are up the configured addresses are dialled again after so many times the longest backoff.
const SEEDS_PAUSE_TIMES: u32 = 3;
/// Control messages that may wait for a link; a peer that lets more of them wait loses the link.
const CONTROL_MESSAGES_MAX: usize = 256;
/// Control messages of a link that may be on their way into the replica.
const CONTROL_SAID_MAX: usize = 16;
/// Groups of a feed that may be on their way into the replica.
const FEED_GROUPS_MAX: usize = 4;
/// How long a feed whose origins are silent leaves the rest of the log unread: what it has to skip
/// then stays small.
const FEED_SILENT_MAX: Duration = Duration::from_secs(5);
/// Groups of fewer bytes are sent as they are.
const COMPRESSED_BYTES_MIN: usize = 1 << 10;
/// How long a peer may take to receive what is said to it before its link is closed.
const LAST_MESSAGES_MAX: Duration = Duration::from_millis(500);
/// Two members that dial each other within this time may meet half-way.
const MEET_HALF_WAY_MAX: Duration = Duration::from_millis(100);
/// How long a peer may take to open the control stream.
const CONTROL_OPEN_MAX: Duration = Duration::from_secs(5);

/// What goes out on a link's control stream, in order.
#[derive(Debug)]
pub(crate) enum Control {
    Message(PeerMessage),
    /// Close the link once the peer has what went before.
    Close(String),
}

/// The feed to serve next; a newer one takes its place.
#[derive(Debug, Default)]
pub(crate) struct NewestFeed {
    feed: Mutex<Option<Feed>>,
    put: Notify,
}

impl NewestFeed {
    pub(crate) fn put(&self, feed: Feed) {
        *self.feed.lock() = Some(feed);
        self.put.notify_one();
    }

    async fn take(&self) -> Feed {
        loop {
            if let Some(feed) = self.feed.lock().take() {
                return feed;
            }
            self.put.notified().await;
        }
    }
}

/// The driver's end of a link.
#[derive(Debug)]
pub(crate) struct LinkHandle {
    pub(crate) control: mpsc::Sender<Control>,
    pub(crate) feeds: Arc<NewestFeed>,
    /// More of what the feed serves is durable.
    pub(crate) more: Arc<Notify>,
    /// The link is closed, once the peer has what was said, or after a moment.
    pub(crate) closing: Arc<Notify>,
    pub(crate) groups: Arc<Semaphore>,
    pub(crate) connection: Connection,
}

/// Whom to dial, as the driver last said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Targets {
    pub(crate) dial: Vec<Member>,
    /// Members whose link an operator took down.
    pub(crate) cut: BTreeSet<u32>,
    /// Whom links lead to already.
    pub(crate) seen: BTreeSet<u32>,
    /// Whether the configured addresses are dialled also beside links that are up.
    pub(crate) wants_seeds: bool,
}

/// How dials are spaced.
#[derive(Debug, Clone)]
pub(crate) struct DialConfig {
    /// Addresses from the configuration, for when nobody is linked, or not all members are in sight.
    pub(crate) seeds: Vec<String>,
    pub(crate) backoff_min: Duration,
    pub(crate) backoff_max: Duration,
    /// Bytes of write sets a feed reads and sends at a time.
    pub(crate) feed_group_bytes: usize,
}

/// The links of a member.
#[derive(Debug)]
struct Linked {
    count: usize,
    /// When the first of them came up.
    since: Instant,
}

/// All that links share.
pub(crate) struct Links {
    pub(crate) endpoint: Endpoint,
    pub(crate) server_id: u32,
    pub(crate) driver: ToDriverSender,
    pub(crate) log: LogReader,
    pub(crate) targets: watch::Receiver<Targets>,
    pub(crate) config: DialConfig,
    pub(crate) donor: Arc<Donor>,
    next_link: AtomicU64,
    /// The members that have links, and a signal for each change.
    linked: Mutex<BTreeMap<u32, Linked>>,
    changed: watch::Sender<()>,
}

impl Links {
    pub(crate) fn new(
        endpoint: Endpoint,
        server_id: u32,
        driver: ToDriverSender,
        log: LogReader,
        targets: watch::Receiver<Targets>,
        config: DialConfig,
        donor: Arc<Donor>,
    ) -> Self {
        let (next_link, linked, changed) = (AtomicU64::new(1), Mutex::default(), watch::Sender::new(()));
        Self { endpoint, server_id, driver, log, targets, config, donor, next_link, linked, changed }
    }

    /// Keeps dialling whom the replica names, and the configured addresses while there is no link, no member is
    /// known, or one is out of sight.
    pub(crate) async fn dial(self: Arc<Self>) {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.clone().dial_seeds());
        let mut dialled = BTreeSet::new();
        let mut targets = self.targets.clone();
        loop {
            let members: Vec<u32> = targets.borrow_and_update().dial.iter().map(|m| m.server_id).collect();
            for server_id in members {
                if dialled.insert(server_id) {
                    tasks.spawn(self.clone().dial_member(server_id));
                }
            }
            if targets.changed().await.is_err() {
                return;
            }
        }
    }

    /// Dials one member whenever it is named and there is no link to it. Of two members the one
    /// with the smaller server id dials first, so that they rarely meet half-way.
    async fn dial_member(self: Arc<Self>, server_id: u32) {
        let mut backoff = Backoff::new(&self.config);
        let mut targets = self.targets.clone();
        loop {
            let is_named = |targets: &Targets| targets.dial.iter().any(|member| member.server_id == server_id);
            if targets.wait_for(is_named).await.is_err() {
                return;
            }
            if server_id < self.server_id {
                sleep(self.config.backoff_min * 2).await;
            }
            let addresses = addresses_of(&targets.borrow(), server_id);
            if self.is_linked(server_id) {
                self.until(|linked| !linked.contains_key(&server_id)).await;
                continue;
            }
            if addresses.is_empty() {
                if targets.changed().await.is_err() {
                    return;
                }
                continue;
            }
            match self.connect(&addresses, Expect::Node(server_id)).await {
                Some(connection) => backoff.after_link(self.clone().run_dialed(connection, server_id).await),
                None => backoff.grow(),
            }
            backoff.wait().await;
        }
    }

    async fn dial_seeds(self: Arc<Self>) {
        if self.config.seeds.is_empty() {
            return;
        }
        let mut backoff = Backoff::new(&self.config);
        let mut running = JoinSet::new();
        loop {
            self.until_seeds_are_wanted().await;
            match self.connect_seed().await {
                // Whoever it is may know no more than this node does: its end is not waited for.
                Some((connection, id)) => _ = running.spawn(self.clone().run_dialed(connection, id)),
                None => {
                    backoff.grow();
                    // A member that is dead is out of sight for long, and all others may be linked.
                    if !self.linked.lock().is_empty() {
                        sleep(self.config.backoff_max * SEEDS_PAUSE_TIMES).await;
                    }
                }
            }
            while let Some(ended) = running.try_join_next() {
                backoff.after_link(ended.unwrap_or_default());
            }
            backoff.wait().await;
        }
    }

    /// Waits until nobody is linked, or those who are do not lead to all members.
    async fn until_seeds_are_wanted(&self) {
        let (mut changed, mut targets) = (self.changed.subscribe(), self.targets.clone());
        while !targets.borrow_and_update().wants_seeds && !self.linked.lock().is_empty() {
            let is_over = tokio::select! {
                changed = changed.changed() => changed.is_err(),
                changed = targets.changed() => changed.is_err(),
            };
            if is_over {
                return;
            }
        }
    }

    /// Dials the configured addresses until one is that of a member who is wanted: neither this
    /// node, which may be among them, nor one that links lead to or whose link is cut.
    async fn connect_seed(&self) -> Option<(Connection, u32)> {
        let dial = |seed: &String| {
            let (endpoint, targets, seed) = (self.endpoint.clone(), self.targets.clone(), seed.clone());
            let server_id = self.server_id;
            let linked: BTreeSet<u32> = self.linked.lock().keys().copied().collect();
            async move {
                let connection = connect(endpoint, &seed, Expect::AnyNode).await?;
                let is_wanted = |id: u32| {
                    let targets = targets.borrow();
                    let is_there = linked.contains(&id) || (!linked.is_empty() && targets.seen.contains(&id));
                    id != server_id && !is_there && !targets.cut.contains(&id)
                };
                match connection.identity().server_id() {
                    Some(id) if is_wanted(id) => Ok((connection, id)),
                    _ => {
                        connection.close(CloseCode::NONE, "not needed");
                        Err(())
                    }
                }
            }
        };
        first_success(self.config.seeds.iter().map(dial)).await.ok()
    }

    async fn connect(&self, addresses: &[String], expect: Expect) -> Option<Connection> {
        let dial = |address: &String| {
            let (endpoint, address) = (self.endpoint.clone(), address.clone());
            async move { connect(endpoint, &address, expect).await }
        };
        first_success(addresses.iter().take(wire::ADDRESSES_MAX).map(dial)).await.ok()
    }

    /// Runs a link that was dialled, unless the member has dialled meanwhile: to change from a link that is
    /// in use to a new one loses what is on its way. Where both have just come up, both ends choose alike.
    async fn run_dialed(self: Arc<Self>, connection: Connection, server_id: u32) -> Duration {
        let is_in_use = |linked: &Linked| linked.since.elapsed() > MEET_HALF_WAY_MAX;
        if self.linked.lock().get(&server_id).is_some_and(is_in_use) {
            connection.close(CloseCode::NONE, "the member is linked already");
            return Duration::ZERO;
        }
        self.run(connection, server_id, true).await
    }

    /// Runs a link until it is lost; says how long it lived.
    pub(crate) async fn run(self: Arc<Self>, connection: Connection, server_id: u32, dialed: bool) -> Duration {
        let since = Instant::now();
        let Some(version) = PeerVersion::of(connection.version()) else {
            // The transport agrees to none but those that are known here.
            connection.close(CloseCode::NONE, "a version that is not spoken here");
            return since.elapsed();
        };
        let control = match dialed {
            true => connection.open_bi().await,
            false => match timeout(CONTROL_OPEN_MAX, connection.accept_bi()).await {
                Ok(control) => control,
                Err(_) => {
                    connection.close(CloseCode::NONE, "no control stream was opened");
                    return since.elapsed();
                }
            },
        };
        let Ok((control_writer, control_reader)) = control else { return since.elapsed() };
        let link = LinkId(self.next_link.fetch_add(1, Ordering::Relaxed));
        let (control, control_queue) = mpsc::channel(CONTROL_MESSAGES_MAX);
        let (feeds, closing) = (Arc::new(NewestFeed::default()), Arc::new(Notify::new()));
        let (more, groups) = (Arc::new(Notify::new()), Arc::new(Semaphore::new(FEED_GROUPS_MAX)));
        let handle = LinkHandle {
            control: control.clone(),
            feeds: feeds.clone(),
            more: more.clone(),
            closing: closing.clone(),
            groups: groups.clone(),
            connection: connection.clone(),
        };
        let address = connection.remote_address().to_string();
        let link_up = Input::LinkUp { link, server_id, dialed, version, address };
        let up = [ToDriver::OpenLink(link, handle), link_up.into()];
        if up.into_iter().any(|message| self.driver.send(message).is_err()) {
            return since.elapsed();
        }
        self.linked.lock().entry(server_id).or_insert(Linked { count: 0, since }).count += 1;
        self.changed.send_replace(());

        let mut tasks = JoinSet::new();
        tasks.spawn(write_control(connection.clone(), control_writer, control_queue));
        tasks.spawn(read_control(link, control_reader, self.driver.clone()));
        tasks.spawn(self.clone().serve_feeds(connection.clone(), feeds, more, control));
        tasks.spawn(read_feeds(link, connection.clone(), groups, self.driver.clone()));
        tasks.spawn(serve_snapshots(link, connection.clone(), self.donor.clone(), server_id));
        tokio::select! {
            reason = connection.closed() => info!(server_id, %reason, "link closed"),
            _ = tasks.join_next() => connection.close(CloseCode::NONE, "a stream of the link ended"),
            () = after_last_messages(&closing) => connection.close(CloseCode::NONE, "it does not read its messages"),
        }
        tasks.shutdown().await;

        let mut linked = self.linked.lock();
        if let Some(Linked { count, .. }) = linked.get_mut(&server_id) {
            *count -= 1;
            if *count == 0 {
                linked.remove(&server_id);
            }
        }
        drop(linked);
        self.changed.send_replace(());
        let _ = self.driver.send(Input::LinkDown(link).into());
        let _ = self.driver.send(ToDriver::CloseLink(link));
        since.elapsed()
    }

    /// Serves the newest subscription of a link from the log, at the peer's pace.
    async fn serve_feeds(
        self: Arc<Self>,
        connection: Connection,
        feeds: Arc<NewestFeed>,
        more: Arc<Notify>,
        control: mpsc::Sender<Control>,
    ) {
        // On one machine there is no line to spare.
        let compresses = !connection.remote_address().ip().is_loopback();
        let mut newer = feeds.take().await;
        loop {
            let mut feed = newer;
            let mut writer = tokio::select! {
                opened = connection.open_uni() => match opened {
                    Ok(writer) => writer,
                    Err(_) => return,
                },
                newest = feeds.take() => {
                    newer = newest;
                    continue;
                }
            };
            newer = loop {
                match feed.poll(&self.log, self.config.feed_group_bytes) {
                    FeedStep::Group(group) => {
                        queue_group(&mut writer, &group, compresses);
                        tokio::select! {
                            flushed = writer.flush() => if flushed.is_err() { return },
                            newer = feeds.take() => break newer,
                        }
                    }
                    FeedStep::Refused(refusals) => {
                        for refuse in refusals {
                            if control.send(Control::Message(PeerMessage::Refuse(refuse))).await.is_err() {
                                return;
                            }
                        }
                    }
                    FeedStep::Again => tokio::task::yield_now().await,
                    FeedStep::Idle => tokio::select! {
                        () = more.notified() => {}
                        () = sleep(FEED_SILENT_MAX) => {}
                        newer = feeds.take() => break newer,
                    },
                }
            };
            writer.reset(CloseCode::NONE);
        }
    }

    fn is_linked(&self, server_id: u32) -> bool {
        self.linked.lock().contains_key(&server_id)
    }

    /// Waits until what is linked is as wanted.
    async fn until(&self, wanted: impl Fn(&BTreeMap<u32, Linked>) -> bool) {
        let mut changed = self.changed.subscribe();
        while !wanted(&self.linked.lock()) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Answers what the peer asks for on streams beside the control stream: snapshots.
async fn serve_snapshots(link: LinkId, connection: Connection, donor: Arc<Donor>, server_id: u32) {
    while let Ok((mut writer, mut reader)) = connection.accept_bi().await {
        let donor = donor.clone();
        // Not ended with the link: what it had pinned is then held for a while.
        tokio::spawn(async move {
            if let Ok(Ok(Some(frame))) = timeout(CONTROL_OPEN_MAX, reader.next(wire::CONTROL_BYTES_MAX)).await {
                if !donor.knows(link).await {
                    return give_up(&mut writer, "no link is established".to_owned()).await;
                }
                // A driver that has stopped keeps no links.
                let _ = donor.driver.send(Input::SnapshotSent { link, begins: true }.into());
                donor.clone().serve(&frame, writer, format!("member {server_id}")).await;
                let _ = donor.driver.send(Input::SnapshotSent { link, begins: false }.into());
            }
        });
    }
}

async fn connect(endpoint: Endpoint, address: &str, expect: Expect) -> Result<Connection, ()> {
    endpoint
        .connect_host(address, expect, Alpn::Peer)
        .await
        .map_err(|error| debug!(%address, %error, "cannot dial a member"))
}

async fn write_control(connection: Connection, mut writer: FrameWriter, mut queue: mpsc::Receiver<Control>) {
    while let Some(mut next) = queue.recv().await {
        let closes = loop {
            match next {
                Control::Message(message) => writer.queue(&message.encode()),
                Control::Close(reason) => break Some(reason),
            }
            match queue.try_recv() {
                Ok(message) => next = message,
                Err(_) => break None,
            }
        };
        let flushed = writer.flush().await;
        if let Some(reason) = closes {
            // So that it is told why; one that does not listen is not waited for.
            let _ = timeout(LAST_MESSAGES_MAX, deliver(&mut writer)).await;
            connection.close(CloseCode::NONE, &reason);
            return;
        }
        if flushed.is_err() {
            return;
        }
    }
}

async fn after_last_messages(closing: &Notify) {
    closing.notified().await;
    sleep(2 * LAST_MESSAGES_MAX).await;
}

async fn deliver(writer: &mut FrameWriter) -> Result<(), StreamError> {
    writer.finish().await?;
    writer.delivered().await
}

async fn read_control(link: LinkId, mut reader: FrameReader, driver: ToDriverSender) {
    let said = Arc::new(Semaphore::new(CONTROL_SAID_MAX));
    while let Ok(permit) = said.clone().acquire_owned().await {
        let frame = match reader.next(wire::CONTROL_BYTES_MAX).await {
            Ok(Some(frame)) => frame,
            // The peer closes the link, and is about to say why.
            Ok(None) => return sleep(2 * LAST_MESSAGES_MAX).await,
            Err(_) => return,
        };
        let message = match PeerMessage::decode(&frame) {
            Ok(message) => message,
            Err(error) => return unreadable(link, error, &driver).await,
        };
        if driver.send(ToDriver::Said(link, message, permit)).is_err() {
            return;
        }
    }
}

/// Leaves it to the replica to close a link that brought what is not known here, and to say why.
async fn unreadable(link: LinkId, error: CodecError, driver: &ToDriverSender) {
    if driver.send(Input::Unreadable(link, error).into()).is_ok() {
        sleep(2 * LAST_MESSAGES_MAX).await;
    }
}

/// Queues a group, compressed where that pays.
fn queue_group(writer: &mut FrameWriter, group: &FeedGroup, compresses: bool) {
    let is_long = compresses && group.write_set_bytes() >= COMPRESSED_BYTES_MIN;
    match is_long.then(|| group.encode_compressed()).flatten() {
        Some(frame) => writer.queue(&frame),
        None => group.encode_to(|parts| writer.queue_parts(parts)),
    }
}

/// Takes in the newest feed of a link; a few groups are under way at a time.
async fn read_feeds(link: LinkId, connection: Connection, groups: Arc<Semaphore>, driver: ToDriverSender) {
    let mut reader: Option<FrameReader> = None;
    loop {
        let frame = tokio::select! {
            accepted = connection.accept_uni() => match accepted {
                Ok(newer) => {
                    reader = Some(newer);
                    continue;
                }
                Err(_) => return,
            },
            frame = next_group(&mut reader, &groups) => frame,
        };
        let Some(frame) = frame else {
            reader = None;
            continue;
        };
        let group = match FeedGroup::decode(&frame) {
            Ok(group) => group,
            Err(error) => return unreadable(link, error, &driver).await,
        };
        let input = Input::FeedGroup { link, subscription: group.subscription, write_sets: group.write_sets };
        if driver.send(input.into()).is_err() {
            return;
        }
    }
}

/// The next group once one more may be under way; `None` when the stream ended. Never, without a stream.
async fn next_group(reader: &mut Option<FrameReader>, groups: &Semaphore) -> Option<bytes::Bytes> {
    let Some(reader) = reader else { return std::future::pending().await };
    let permit = groups.acquire().await.ok()?;
    let frame = reader.next(wire::FRAME_BYTES_MAX).await.ok().flatten()?;
    // Given back by the driver once the replica took the group.
    permit.forget();
    Some(frame)
}

fn addresses_of(targets: &Targets, server_id: u32) -> Vec<String> {
    let member = targets.dial.iter().find(|member| member.server_id == server_id);
    member.map(|member| member.addresses.clone()).unwrap_or_default()
}

/// Waits that double, with jitter, from one bound to the other.
struct Backoff {
    next: Duration,
    min: Duration,
    max: Duration,
}

impl Backoff {
    fn new(config: &DialConfig) -> Self {
        Self { next: config.backoff_min, min: config.backoff_min, max: config.backoff_max }
    }

    fn grow(&mut self) {
        self.next = (self.next * 2).min(self.max);
    }

    /// A link that lived for a while was a success; one that was closed at once was not.
    fn after_link(&mut self, lived: Duration) {
        match lived > Duration::from_secs(1) {
            true => self.next = self.min,
            false => self.grow(),
        }
    }

    async fn wait(&self) {
        let jitter = random_u64() % 1_000;
        sleep(self.next.mul_f64(0.5 + jitter as f64 / 2_000.0)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_that_the_transport_agrees_to_is_known_to_the_replica() {
        let versions: Vec<_> = Alpn::Peer.versions().map(PeerVersion::of).collect();
        assert_eq!(versions, [Some(PeerVersion::V2), Some(PeerVersion::V1)]);
        assert_eq!(versions[0], Some(PeerVersion::NEWEST));
    }
}
