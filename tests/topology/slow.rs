//! A peer that stands still, as a hanging disk or a swapping machine does, costs the others nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use polyarch_client::{Client, KeyspaceKind};
use tokio::task::JoinSet;

use crate::support::Cluster;
use crate::watch::{Statuses, Watch};
use crate::{EQUAL_WITHIN, cluster_with_keyspace, turn_alone, window};

/// Small, so that what is allowed is little beside what would pile up.
const SETTINGS: &str = "[storage]\nmemtable_mib = 4\nsegment_mib = 4\ncheckpoint_log_mib = 16\n";
/// Four memtables, which is the most that a node may have, and what connections, sled and the allocator may add.
const GROWTH_KIB_MAX: u64 = (4 * 4 + 48) << 10;
const BYTES_MIN: u64 = 2 * (GROWTH_KIB_MAX << 10);
const WRITERS: usize = 8;
const VALUE_BYTES: usize = 4 << 10;
/// Few, so that the state, and what of it is cached, stays small.
const KEYS: u64 = 100;
/// Times of acknowledgement in a slice are compared with those of another.
const SLICE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_stands_still_delays_no_writer_and_fills_no_memory() {
    let _turn = turn_alone().await;
    let lasts = window(6);
    let mut cluster = cluster_with_keyspace(3, KeyspaceKind::Lww, SETTINGS).await;
    let watch = Watch::of(&cluster, &[1, 2]);
    let clients: Vec<_> = (1..=2).map(|id| cluster.client_of(id)).collect();
    let load = Load::start(&clients);
    watch.until_written(2_000).await;
    let before = Instant::now();
    // The load's time, not a wait for anything.
    tokio::time::sleep(lasts).await;
    let resident = resident_kib(&mut cluster);
    let bytes = log_bytes(&watch).await;
    let stopped = Instant::now();
    cluster.node(3).signal("STOP");
    tokio::time::sleep(lasts).await;
    // What the peer does not take has to be much more than what may be kept.
    let is_enough = |s: &Statuses| s.values().zip(&bytes).all(|(s, was)| s.counters.log_bytes >= was + BYTES_MIN);
    watch.until("the log to grow", Duration::from_secs(60), is_enough).await;
    let (resident_after, bytes_after) = (resident_kib(&mut cluster), log_bytes(&watch).await);
    let ended = Instant::now();
    cluster.node(3).signal("CONT");
    let acks = load.finish().await;
    let resumed = Instant::now();
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN + lasts);
    let caught_up = resumed.elapsed();

    let (calm, stop) = (Phase::of(&acks, before, stopped), Phase::of(&acks, stopped, ended));
    println!("before:  {calm:?}\nstopped: {stop:?}\nequal {caught_up:?} after the load");
    for at in 0..2 {
        let (was, is) = (resident[at], resident_after[at]);
        let written = (bytes_after[at] - bytes[at]) >> 10;
        println!("node {}: {was} KiB resident before, {is} KiB after, {written} KiB of log written between", at + 1);
        assert!(is <= was + GROWTH_KIB_MAX, "node {} keeps what the other does not take", at + 1);
    }
    assert!(stop.p99 <= calm.p99 * 2, "a peer that stands still delays the writers of others");
    assert!(stop.longest_gap <= calm.longest_gap * 2 + SLICE, "writers stood still");
    cluster.stop();
    cluster.verify_equal_histories();
}

/// An acknowledgement, and how long it took.
type Ack = (Instant, Duration);

/// What writers saw in a part of the test.
#[derive(Debug)]
#[allow(dead_code)] // Some is only printed.
struct Phase {
    writes: usize,
    /// The median of the 99th percentiles of its slices: what else the machine does for a moment spoils one of them, what
    /// a node does all the time spoils all.
    p99: Duration,
    /// That of each slice, in milliseconds.
    p99_ms: Vec<u128>,
    /// Of all its writes.
    p99_pooled: Duration,
    /// The longest time without any acknowledgement.
    longest_gap: Duration,
}

impl Phase {
    fn of(acks: &[Ack], begin: Instant, end: Instant) -> Self {
        let within: Vec<&Ack> = acks.iter().filter(|(at, _)| (begin..end).contains(at)).collect();
        assert!(within.len() >= 1_000, "{} writes are too few to compare", within.len());
        let slices = (end - begin).as_secs() / SLICE.as_secs();
        let slice = |n: u64| (begin + SLICE * n as u32)..(begin + SLICE * (n as u32 + 1));
        let of_slice = |n| within.iter().filter(|(at, _)| slice(n).contains(at)).map(|(_, took)| *took).collect();
        let slices: Vec<Duration> = (0..slices).map(|n| rank(of_slice(n), 99)).collect();
        let moments: Vec<Instant> = within.iter().map(|(at, _)| *at).collect();
        Self {
            writes: within.len(),
            p99_ms: slices.iter().map(Duration::as_millis).collect(),
            p99: rank(slices, 50),
            p99_pooled: rank(within.iter().map(|(_, took)| *took).collect(), 99),
            longest_gap: moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default(),
        }
    }
}

/// The value that so many in a hundred are not above. With none, as long as it may be.
fn rank(mut values: Vec<Duration>, percent: usize) -> Duration {
    values.sort();
    values.get((values.len() * percent / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(SLICE)
}

/// Resident memory of the nodes that go on.
fn resident_kib(cluster: &mut Cluster) -> [u64; 2] {
    [1, 2].map(|id| {
        let pid = cluster.node(id).pid().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux has /proc");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it says what is resident");
        line.trim().trim_end_matches(" kB").parse().expect("it is a number")
    })
}

async fn log_bytes(watch: &Watch) -> Vec<u64> {
    let statuses = watch.now().await;
    statuses.values().map(|status| status.counters.log_bytes).collect()
}

/// Writers that note when each write was acknowledged, and how long it took.
struct Load {
    tasks: JoinSet<Vec<Ack>>,
    stop: Arc<AtomicBool>,
}

impl Load {
    fn start(clients: &[Client]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for (at, client) in clients.iter().enumerate() {
            for writer in 0..WRITERS {
                tasks.spawn(Self::work(client.clone(), format!("{at}.{writer}"), Arc::clone(&stop)));
            }
        }
        Self { tasks, stop }
    }

    async fn work(client: Client, name: String, stop: Arc<AtomicBool>) -> Vec<Ack> {
        let (mut acks, mut count) = (Vec::new(), 0);
        while !stop.load(Ordering::Relaxed) {
            count += 1;
            let (key, begun) = (format!("{name}.{}", count % KEYS), Instant::now());
            client.put("k", key, vec![count as u8; VALUE_BYTES]).await.expect("the node lives and takes writes");
            acks.push((Instant::now(), begun.elapsed()));
        }
        acks
    }

    /// All acknowledgements, in order.
    async fn finish(mut self) -> Vec<Ack> {
        self.stop.store(true, Ordering::Relaxed);
        let mut acks = Vec::new();
        while let Some(of_writer) = self.tasks.join_next().await {
            acks.extend(of_writer.expect("a writer does not panic"));
        }
        acks.sort();
        acks
    }
}
