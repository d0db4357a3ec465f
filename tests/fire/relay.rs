//! A relay for datagrams that stands between each two nodes and treats them badly.
//!
//! Nodes find each other at the relay's addresses. What others see of node 3, whichever end dialled, comes from an IP
//! address of the relay that stands for node 3 alone, so a packet filter behind it can tell members apart too:
//!
//! ```text
//! node 1 ──▶ door of 2 ─┐                         ┌─▶ node 2        node 1 dials
//! node 1 ◀── door of 2 ─┴─ window from 1 to 2 ────┴── node 2        node 2 answers
//! ```
//!
//! Each direction of each pair has rules of its own. What waits to be sent later is bounded; beyond it is lost.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{Notify, oneshot};

use crate::support::writers::Rng;

/// Datagrams that may wait at once.
const WAITING_MAX: usize = 8_192;
/// No datagram is longer.
const DATAGRAM_MAX: usize = 65_536;
/// What a datagram that is overtaken waits for, at most.
const OVERTAKEN_MS_MAX: u64 = 30;

/// What is done to the datagrams of one direction. Rates are of a thousand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rules {
    pub(crate) is_blocked: bool,
    /// Blocked and not, in turns of so many milliseconds.
    pub(crate) flaps_ms: Option<u64>,
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) corrupted: u64,
    /// Sent later than those behind them.
    pub(crate) overtaken: u64,
    /// The least and the most by which each is late, in milliseconds.
    pub(crate) late_ms: (u64, u64),
}

/// What was done so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) passed: AtomicU64,
    pub(crate) blocked: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) doubled: AtomicU64,
    pub(crate) corrupted: AtomicU64,
    pub(crate) overtaken: AtomicU64,
    pub(crate) late: AtomicU64,
}

/// Where a node is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) server_id: u32,
    /// Where it listens.
    pub(crate) node: SocketAddr,
    /// The relay's address that stands for it.
    pub(crate) door: SocketAddr,
}

/// A running relay; it ends when this is dropped.
pub(crate) struct Relay {
    shared: Arc<Shared>,
    server_ids: Vec<u32>,
    /// Dropped, it ends the thread.
    running: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    rules: Mutex<BTreeMap<(u32, u32), Rules>>,
    rng: Mutex<Rng>,
    counts: Arc<Counts>,
    waiting: Mutex<BinaryHeap<Reverse<Late>>>,
    is_due: Notify,
    began: Instant,
}

/// A datagram that is to be sent later.
struct Late {
    due: Instant,
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    bytes: Vec<u8>,
}

/// The sockets that carry what goes from one node to another.
struct Sockets {
    places: Vec<Place>,
    doors: BTreeMap<u32, Arc<UdpSocket>>,
    windows: BTreeMap<(u32, u32), Arc<UdpSocket>>,
}

impl Relay {
    /// Opens the doors. Counts go on over several relays.
    pub(crate) fn start(places: &[Place], seed: u64, counts: &Arc<Counts>) -> Self {
        let shared = Arc::new(Shared {
            rules: Mutex::default(),
            rng: Mutex::new(Rng(seed)),
            counts: Arc::clone(counts),
            waiting: Mutex::default(),
            is_due: Notify::new(),
            began: Instant::now(),
        });
        let (running, ended) = oneshot::channel::<()>();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (places, of_thread) = (places.to_vec(), Arc::clone(&shared));
        let server_ids = places.iter().map(|place| place.server_id).collect();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime can be made").block_on(async move {
                let sockets = Arc::new(Sockets::open(places).await);
                sockets.carry(&of_thread);
                tokio::spawn(send_late(of_thread));
                let _ = ready.send(());
                let _ = ended.await;
            });
        });
        is_ready.recv().expect("the relay's addresses are free");
        Self { shared, server_ids, running: Some(running), thread: Some(thread) }
    }

    /// Changes the rules of what goes from one node to another.
    pub(crate) fn rule(&self, from: u32, to: u32, change: impl Fn(&mut Rules)) {
        let mut rules = self.shared.rules.lock().expect("nothing panics with it");
        change(rules.entry((from, to)).or_default());
    }

    /// Changes the rules of all directions that are named.
    pub(crate) fn rule_where(&self, is_named: impl Fn(u32, u32) -> bool, change: impl Fn(&mut Rules)) {
        let directions = self.server_ids.iter().flat_map(|from| self.server_ids.iter().map(move |to| (*from, *to)));
        for (from, to) in directions.filter(|(from, to)| from != to && is_named(*from, *to)) {
            self.rule(from, to, &change);
        }
    }

    /// Lets everything pass.
    pub(crate) fn heal(&self) {
        self.shared.rules.lock().expect("nothing panics with it").clear();
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        drop(self.running.take());
        // So that its addresses are free for the next.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl Sockets {
    async fn open(places: Vec<Place>) -> Self {
        let (mut doors, mut windows) = (BTreeMap::new(), BTreeMap::new());
        for place in &places {
            doors.insert(place.server_id, bind(place.door).await);
            for other in places.iter().filter(|other| other.server_id != place.server_id) {
                windows.insert((place.server_id, other.server_id), bind(any_port(place.door.ip())).await);
            }
        }
        Self { places, doors, windows }
    }

    /// Begins to carry datagrams, in both directions of each pair.
    fn carry(self: &Arc<Self>, shared: &Arc<Shared>) {
        for place in &self.places {
            let (sockets, shared) = (Arc::clone(self), Arc::clone(shared));
            tokio::spawn(sockets.through_door(*place, shared));
        }
        for (from, to) in self.windows.keys() {
            let (sockets, shared) = (Arc::clone(self), Arc::clone(shared));
            tokio::spawn(sockets.through_window(*from, *to, shared));
        }
    }

    /// What nodes send to one that they dialled.
    async fn through_door(self: Arc<Self>, of: Place, shared: Arc<Shared>) {
        let (door, mut buffer) = (&self.doors[&of.server_id], vec![0; DATAGRAM_MAX]);
        loop {
            // An error is what an earlier datagram met at a node that is down.
            let Ok((bytes, source)) = door.recv_from(&mut buffer).await else { continue };
            let sender = self.places.iter().find(|place| place.node == source && place.server_id != of.server_id);
            let Some(sender) = sender else { continue };
            let window = &self.windows[&(sender.server_id, of.server_id)];
            shared.pass((sender.server_id, of.server_id), window, of.node, &mut buffer[..bytes]);
        }
    }

    /// What the node that was dialled, `to`, answers to the one that dialled.
    async fn through_window(self: Arc<Self>, from: u32, to: u32, shared: Arc<Shared>) {
        let (window, mut buffer) = (&self.windows[&(from, to)], vec![0; DATAGRAM_MAX]);
        let place = |server_id| self.places.iter().find(|place| place.server_id == server_id).expect("it has a place");
        let (dialler, dialled) = (place(from), place(to));
        loop {
            let Ok((bytes, source)) = window.recv_from(&mut buffer).await else { continue };
            if source == dialled.node {
                shared.pass((to, from), &self.doors[&to], dialler.node, &mut buffer[..bytes]);
            }
        }
    }
}

impl Shared {
    /// Decides about a datagram, and sends it now, later, twice or not at all.
    fn pass(&self, direction: (u32, u32), socket: &Arc<UdpSocket>, to: SocketAddr, bytes: &mut [u8]) {
        let rules = self.rules.lock().expect("nothing panics with it").get(&direction).cloned().unwrap_or_default();
        let counts = &self.counts;
        let mut rng = self.rng.lock().expect("nothing panics with it");
        let mut is_drawn = |rate: u64, counter: &AtomicU64| {
            let is_drawn = rate > 0 && rng.below(1_000) < rate;
            counter.fetch_add(u64::from(is_drawn), Ordering::Relaxed);
            is_drawn
        };
        let is_off = |every: u64| (self.began.elapsed().as_millis() as u64 / every.max(1)) % 2 == 1;
        if rules.is_blocked || rules.flaps_ms.is_some_and(is_off) {
            counts.blocked.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if is_drawn(rules.lost, &counts.lost) {
            return;
        }
        let is_corrupted = is_drawn(rules.corrupted, &counts.corrupted);
        let copies = 1 + usize::from(is_drawn(rules.doubled, &counts.doubled));
        let is_overtaken = is_drawn(rules.overtaken, &counts.overtaken);
        let (least, most) = rules.late_ms;
        let mut late_ms = least + rng.below(most.saturating_sub(least) + 1);
        if is_overtaken {
            late_ms += 1 + rng.below(OVERTAKEN_MS_MAX);
        }
        if is_corrupted && !bytes.is_empty() {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        counts.passed.fetch_add(1, Ordering::Relaxed);
        for copy in 0..copies as u64 {
            match late_ms + 3 * copy {
                // A buffer that is full loses it, as on any way.
                0 => _ = socket.try_send_to(bytes, to),
                late_ms => self.send_in(Duration::from_millis(late_ms), socket, to, bytes),
            }
        }
    }

    fn send_in(&self, late: Duration, socket: &Arc<UdpSocket>, to: SocketAddr, bytes: &[u8]) {
        let mut waiting = self.waiting.lock().expect("nothing panics with it");
        if waiting.len() >= WAITING_MAX {
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counts.late.fetch_add(1, Ordering::Relaxed);
        let due = Instant::now() + late;
        waiting.push(Reverse(Late { due, socket: Arc::clone(socket), to, bytes: bytes.to_vec() }));
        self.is_due.notify_one();
    }

    /// The next that is due, or when there will be one.
    fn next_late(&self) -> Result<Late, Option<Instant>> {
        let mut waiting = self.waiting.lock().expect("nothing panics with it");
        match waiting.peek() {
            Some(Reverse(late)) if late.due <= Instant::now() => Ok(waiting.pop().expect("it was there").0),
            next => Err(next.map(|Reverse(late)| late.due)),
        }
    }
}

/// Sends what waits when it is due.
async fn send_late(shared: Arc<Shared>) {
    loop {
        match shared.next_late() {
            Ok(late) => _ = late.socket.try_send_to(&late.bytes, late.to),
            Err(None) => shared.is_due.notified().await,
            Err(Some(due)) => {
                let _ = tokio::time::timeout_at(due.into(), shared.is_due.notified()).await;
            }
        }
    }
}

async fn bind(address: SocketAddr) -> Arc<UdpSocket> {
    Arc::new(UdpSocket::bind(address).await.unwrap_or_else(|error| panic!("the relay at {address}: {error}")))
}

fn any_port(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 0)
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.due == other.due
    }
}

impl Eq for Late {}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.due.cmp(&other.due)
    }
}
