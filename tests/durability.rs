//! What the settings of `[storage]` promise, over real nodes under load: how much a crash of a node with
//! `durability = "interval"` may lose, and that `log_retention = "members"` removes nothing that anyone needs.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use polyarch_client::{Client, KeyspaceKind};
use support::ledger::Write;
use support::writers::{Rng, Writers};
use support::{Cluster, eventually};
use tokio::task::JoinSet;

const INTERVAL: &str = "[storage]\ndurability = \"interval\"\nsync_interval_ms = 200\n\
                        memtable_mib = 1\nsegment_mib = 1\ncheckpoint_log_mib = 1\n";
/// The interval, and what a loaded machine adds to it.
const SYNCED_WITHIN: Duration = Duration::from_millis(200 + 1_000);
const KILLS: u64 = 3;

const MEMBERS: &str = "[storage]\nlog_retention = \"members\"\n\
                       memtable_mib = 1\nsegment_mib = 1\ncheckpoint_log_mib = 1\n";
/// How long the load may take to fill so many segments that the first can go.
const REMOVED_WITHIN: Duration = Duration::from_secs(30);

/// A time in which a node did not serve.
struct Outage {
    server_id: u32,
    killed: Instant,
    /// When it served again, at the latest.
    back: Instant,
}

impl Outage {
    /// Whether it may have lost a write.
    fn excuses(&self, write: &Write) -> bool {
        let of_node = write.gtid.is_some_and(|gtid| gtid.origin.server_id == self.server_id);
        of_node && write.acked_at.is_some_and(|at| at + SYNCED_WITHIN > self.killed && at < self.back)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_interval_node_loses_only_its_last_moments() {
    let (seed, mut rng) = Rng::from_environment();
    let mut cluster = Cluster::start_with(3, INTERVAL);
    cluster.client_of(1).create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(20));
    let clients: Vec<_> = (1..=3).map(|server_id| cluster.client_of(server_id)).collect();
    let writers = Writers::start(&clients, 2, "k", seed);
    let mut outages = Vec::new();
    for _ in 0..KILLS {
        // The load's time between two kills, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(600 + rng.below(1_000))).await;
        let server_id = 1 + rng.below(3) as u32;
        let killed = Instant::now();
        cluster.node(server_id).kill();
        cluster.node(server_id).serve();
        outages.push(Outage { server_id, killed, back: Instant::now() });
    }
    let mut ledger = writers.finish().await;
    let acked = ledger.acked_len();
    cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(20));
    let applied = cluster.client_of(1).status().await.expect("node 1 answers").applied;
    let lost = ledger.take_lost(&applied);
    for write in &lost {
        assert!(outages.iter().any(|outage| outage.excuses(write)), "seed {seed}: {write:?} was lost");
    }
    for server_id in 1..=3 {
        let breaches = ledger.breaches(&cluster.client_of(server_id), "k").await;
        assert!(breaches.is_empty(), "seed {seed}, node {server_id}:\n{}", breaches.join("\n"));
    }
    println!("{KILLS} kills, {acked} writes acknowledged, {} of them lost", lost.len());
    assert!(acked as u64 > KILLS * 100, "there was hardly any load");
    assert!(!lost.is_empty(), "acknowledgements waited for the disk");
    cluster.stop();
    cluster.verify_equal_histories();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segments_that_every_member_has_are_removed_and_nothing_is_lost() {
    let (seed, _) = Rng::from_environment();
    let mut cluster = Cluster::start_with(3, MEMBERS);
    for keyspace in ["k", "filler"] {
        cluster.client_of(1).create_keyspace(keyspace, KeyspaceKind::Mv).await.expect("node 1 takes writes");
    }
    cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(20));
    let clients: Vec<_> = (1..=3).map(|server_id| cluster.client_of(server_id)).collect();
    let writers = Writers::start(&clients, 2, "k", seed);
    let filler = Filler::start(&clients);
    wait_until_removed(&mut cluster, 1);
    cluster.node(3).kill();
    // Some more, so that it has something to catch up on. Of these none goes without it.
    let (_, last) = segments(&mut cluster, 1);
    eventually("node 1 to fill more segments", REMOVED_WITHIN, || {
        (segments(&mut cluster, 1).1 >= last + 3).then_some(())
    });
    assert!(segments(&mut cluster, 1).0 <= last + 1, "node 3 lacks what was removed");
    cluster.node(3).serve();
    wait_until_removed(&mut cluster, last);
    filler.finish().await;
    let ledger = writers.finish().await;
    cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(20));
    for server_id in 1..=3 {
        let breaches = ledger.breaches(&cluster.client_of(server_id), "k").await;
        assert!(breaches.is_empty(), "seed {seed}, node {server_id}:\n{}", breaches.join("\n"));
    }
    println!("{} writes acknowledged, {last} segments gone", ledger.acked_len());
    cluster.stop();
    cluster.verify_equal_histories();
}

/// Waits until no node has a segment up to this one.
fn wait_until_removed(cluster: &mut Cluster, number: u64) {
    for server_id in cluster.server_ids() {
        eventually(&format!("node {server_id} to remove segment {number}"), REMOVED_WITHIN, || {
            (segments(cluster, server_id).0 > number).then_some(())
        });
    }
}

/// The numbers of the first and the last segment of a node's log.
fn segments(cluster: &mut Cluster, server_id: u32) -> (u64, u64) {
    let directory = cluster.node(server_id).data_dir().join("log");
    let names = std::fs::read_dir(directory).expect("a node has a log").map(|entry| entry.expect("it is read").path());
    let numbers = names.filter_map(|path| path.file_stem()?.to_str()?.parse().ok());
    numbers.fold((u64::MAX, 0), |(first, last), number: u64| (first.min(number), last.max(number)))
}

/// Writes large values until it is told to stop: the log grows fast, and what it adds up to does not.
struct Filler {
    tasks: JoinSet<()>,
    stop: Arc<AtomicBool>,
}

impl Filler {
    const VALUE_BYTES: usize = 16 << 10;
    const KEYS: u64 = 8;

    /// One on each client.
    fn start(clients: &[Client]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for (at, client) in clients.iter().enumerate() {
            tasks.spawn(Self::work(client.with_timeout(Duration::from_secs(2)), at, Arc::clone(&stop)));
        }
        Self { tasks, stop }
    }

    async fn work(client: Client, at: usize, stop: Arc<AtomicBool>) {
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            count += 1;
            let key = format!("{at}.{}", count % Self::KEYS);
            // While its node is down a write fails, and the log grows elsewhere.
            let _ = client.put("filler", key, vec![0; Self::VALUE_BYTES]).await;
        }
    }

    async fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.expect("a filler does not panic");
        }
    }
}
