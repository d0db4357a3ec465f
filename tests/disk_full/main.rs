//! Nodes whose disk is full: a real file system without room, under a real node.
//!
//! Each test mounts a tmpfs in a namespace of its own, so it needs no root where the kernel lets anybody make namespaces
//! (`unshare -rm`). `POLYARCH_FULL_ROUNDS` says how often a disk is filled to its last byte (default 1).

#[path = "../support/mod.rs"]
mod support;

mod disk;
mod namespace;

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use disk::SmallDisk;
use namespace::run_apart;
use polyarch_client::{Client, Error, KeyspaceKind, Supersede};
use polyarch_protocol::client::Refusal;
use serde_json::Value;
use support::ledger::{Ledger, Write};
use support::writers::{Rng, Writers, size};
use support::{Cluster, bytes_of, eventually};
use tokio::task::JoinSet;

/// The whole disk of node 1.
const DISK_MIB: u64 = 48;
/// How long a node may take to fill its disk, to notice room, to write checkpoints.
const WITHIN: Duration = Duration::from_secs(30);
/// What each write that is to fill the disk takes of it, as it does not compress.
const FILLER_BYTES: usize = 64 << 10;
/// Most writes of that size before something else takes all room: they fit on the disk, log and all.
const FILLED_MAX: u64 = 128;
/// Most bytes that it leaves.
const LEFT_MAX: u64 = 2 << 20;

/// Small records that fill many leaves of the state, and what each takes.
const SPREAD_KEYS: usize = 16_000;
const SPREAD_BYTES: usize = 4 << 10;
/// Every so many of them are written again, in each leaf some.
const SPREAD_STEP: usize = 64;
/// How many are written at once at first.
const SPREAD_BATCH: usize = 50;
/// What the disk then has room for: more than a checkpoint counts.
const SPREAD_LEFT: u64 = 13 << 20;

/// A cluster of two whose first node has a small disk.
struct Crowded {
    // Goes first: the cluster's directory, in which it is mounted, goes with the cluster.
    disk: Arc<SmallDisk>,
    cluster: Cluster,
}

impl Crowded {
    async fn start(disk_mib: u64, storage: &str) -> Self {
        let mut cluster = Cluster::prepare(2);
        let disk = Arc::new(SmallDisk::under(&mut cluster, 1, disk_mib));
        for id in [1, 2] {
            let node = cluster.node(id);
            node.configure(&format!("[storage]\nmemtable_mib = 1\nsegment_mib = 1\ncheckpoint_log_mib = 1\n{storage}"));
            node.found();
            node.serve();
        }
        cluster.wait_until_linked(WITHIN);
        cluster.client_of(1).create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
        cluster.wait_until_equal(&[1, 2], WITHIN);
        Self { disk, cluster }
    }

    /// Writes to one key of node 1 until it is refused, and notes all that is acknowledged.
    async fn fill(&self, rng: &mut Rng, ledger: &mut Ledger) -> Refusal {
        let deadline = Instant::now() + WITHIN;
        while Instant::now() < deadline {
            if let Some(refusal) = self.fill_up_to(1, rng, ledger).await {
                return refusal;
            }
        }
        panic!("node 1 still finds room");
    }

    /// The same, of so many writes; why the first was refused that was.
    async fn fill_up_to(&self, writes: u64, rng: &mut Rng, ledger: &mut Ledger) -> Option<Refusal> {
        let client = self.cluster.client_of(1);
        for _ in 0..writes {
            match replace(&client, "filler", noise(rng), ledger).await {
                Ok(()) => {}
                Err(Error::Refused(refusal)) => return Some(refusal),
                Err(error) => panic!("node 1 answers, but {error}"),
            }
        }
        None
    }

    /// Waits until node 1 takes a write.
    async fn wait_until_writable(&self, ledger: &mut Ledger) {
        let client = self.cluster.client_of(1);
        let deadline = Instant::now() + WITHIN;
        while let Err(error) = replace(&client, "room", "there is".to_owned(), ledger).await {
            assert!(Instant::now() < deadline, "node 1 does not take writes: {error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// At the end: nothing acknowledged is lost on either node, both are equal, and their files are sound.
    async fn check(mut self, ledger: &Ledger) {
        self.cluster.wait_until_equal(&[1, 2], WITHIN);
        for id in [1, 2] {
            let breaches = ledger.breaches(&self.cluster.client_of(id), "k").await;
            assert!(breaches.is_empty(), "node {id}:\n{}", breaches.join("\n"));
        }
        self.cluster.stop();
        self.cluster.verify_equal_histories();
    }

    fn node_log(&mut self) -> String {
        std::fs::read_to_string(self.cluster.node(1).log()).expect("a node has a log")
    }

    fn checkpoints(&self) -> u64 {
        let status = self.cluster.status(1).expect("node 1 answers");
        status["counters"]["checkpoints"].as_u64().expect("it is a number")
    }
}

#[test]
fn a_full_disk_stops_writes_and_nothing_else() {
    run_apart("a_full_disk_stops_writes_and_nothing_else", async || {
        let (seed, mut rng) = Rng::from_environment();
        let mut crowded = Crowded::start(DISK_MIB, "disk_reserve_mib = 16\nlog_retention = \"all\"\n").await;
        crowded.disk.take(16);
        let pid = crowded.cluster.node(1).pid();
        let clients = [crowded.cluster.client_of(1), crowded.cluster.client_of(2)];
        let mut ledger = Writers::start(&clients, 2, "k", seed).finish().await;
        let refusal = crowded.fill(&mut rng, &mut ledger).await;
        assert!(matches!(refusal, Refusal::DiskFull { .. }), "{refusal}");
        let node = crowded.cluster.address(1);
        let said = refusal.to_string();
        crowded.cluster.polyarch(["put", "k", "key", "value", "--node", &node]).exits(3).says(&said);
        let status = crowded.cluster.status(1).expect("it answers");
        assert_eq!(status["writes_refused"], said);

        // Its peer is written to, and it cannot follow.
        let writers = Writers::start(&clients[1..], 2, "k", seed.wrapping_add(1));
        let is_behind = |status: &Value| status["peers"][0]["behind"].as_u64() > Some(100);
        eventually("node 1 to fall behind", WITHIN, || crowded.cluster.status(1).filter(is_behind));
        ledger.merge(writers.finish().await);
        assert!(clients[0].get("k", "filler").await.expect("it is read").is_some());
        assert!(ledger.breaches(&clients[0], "k").await.len() > 100, "it took what it had no room for");

        crowded.disk.give_back();
        crowded.wait_until_writable(&mut ledger).await;
        crowded.cluster.wait_until_equal(&[1, 2], WITHIN);
        assert_eq!((crowded.cluster.node(1).is_running(), crowded.cluster.node(1).pid()), (true, pid));
        let alarms = crowded.cluster.polyarch(["events", "--alarms", "--node", &node]).ok().text();
        assert_eq!(alarms.matches("the disk is full").count(), 1, "{alarms}");
        println!("{} writes acknowledged, seed {seed}", ledger.acked_len());
        crowded.check(&ledger).await;
    });
}

#[test]
fn a_full_disk_has_room_again_once_a_peer_has_the_log() {
    run_apart("a_full_disk_has_room_again_once_a_peer_has_the_log", async || {
        let (_, mut rng) = Rng::from_environment();
        let mut ledger = Ledger::default();
        let crowded = Crowded::start(DISK_MIB, "disk_reserve_mib = 16\nlog_retention = \"members\"\n").await;
        crowded.disk.take(16);
        crowded.cluster.isolate(1);
        let refusal = crowded.fill(&mut rng, &mut ledger).await;
        assert!(matches!(refusal, Refusal::DiskFull { .. }), "{refusal}");
        let before = crowded.checkpoints();
        crowded.cluster.heal(1);
        crowded.wait_until_writable(&mut ledger).await;
        println!(
            "{} writes acknowledged, {} checkpoints made room",
            ledger.acked_len(),
            crowded.checkpoints() - before
        );
        crowded.check(&ledger).await;
    });
}

#[test]
fn a_disk_full_to_the_last_byte_loses_nothing_whenever_the_node_dies() {
    run_apart("a_disk_full_to_the_last_byte_loses_nothing_whenever_the_node_dies", async || {
        let (seed, mut rng) = Rng::from_environment();
        let mut ledger = Ledger::default();
        let mut crowded = Crowded::start(DISK_MIB, "disk_reserve_mib = 0\nlog_retention = \"members\"\n").await;
        let clients = [crowded.cluster.client_of(1), crowded.cluster.client_of(2)];
        let mut served = 0;
        let rounds = size("POLYARCH_FULL_ROUNDS", 1);
        for round in 0..rounds {
            let writers = Writers::start(&clients, 2, "k", seed.wrapping_add(round));
            assert_eq!(crowded.fill_up_to(rng.below(FILLED_MAX), &mut rng, &mut ledger).await, None);
            // While it writes one checkpoint after the other.
            let (disk, left) = (Arc::clone(&crowded.disk), rng.below(LEFT_MAX) * rng.below(2));
            let taken = tokio::task::spawn_blocking(move || disk.take_all_but(left));
            let refusal = crowded.fill(&mut rng, &mut ledger).await;
            taken.await.expect("the ballast is written");
            assert!(matches!(refusal, Refusal::DiskFull { .. }), "{refusal}");
            assert!(clients[0].get("k", "filler").await.expect("it is read").is_some());

            crowded.cluster.node(1).kill();
            ledger.merge(writers.finish().await);
            if crowded.cluster.node(1).try_serve() {
                served += 1;
                let refusal = crowded.fill(&mut rng, &mut ledger).await;
                assert!(matches!(refusal, Refusal::DiskFull { .. }), "{refusal}");
                crowded.disk.give_back();
            } else {
                let log = std::fs::read_to_string(crowded.cluster.node(1).log()).expect("it said why");
                let said = &log[log.len() - 400..];
                assert!(said.contains("make room on the disk"), "{said}");
                crowded.disk.give_back();
                crowded.cluster.node(1).serve();
            }
            crowded.wait_until_writable(&mut ledger).await;
            // Checkpoints, behind which the log is cut.
            assert_eq!(crowded.fill_up_to(FILLED_MAX / 2, &mut rng, &mut ledger).await, None);
            let log = crowded.cluster.node(1).data_dir().join("log");
            eventually("the log to be cut", WITHIN, || (bytes_of(&log) < DISK_MIB << 18).then_some(()));
        }
        println!(
            "{} writes acknowledged, {} unknown; {served} of {rounds} starts without room, seed {seed}",
            ledger.acked_len(),
            ledger.unknown_len()
        );
        crowded.check(&ledger).await;
    });
}

/// sled writes a leaf of many records anew for one of them that has changed: more than a checkpoint counts. How
/// much room it then still takes depends on when its checkpoints came, so on a fast machine it may not meet the end.
#[test]
#[ignore = "takes 14 s, and depends on how the state came to lie"]
fn a_state_that_finds_the_disk_full_is_whole_again_after_a_start_with_room() {
    run_apart("a_state_that_finds_the_disk_full_is_whole_again_after_a_start_with_room", async || {
        let (seed, mut rng) = Rng::from_environment();
        let mut ledger = Ledger::default();
        let mut crowded = Crowded::start(2 * DISK_MIB, "disk_reserve_mib = 0\nlog_retention = \"members\"\n").await;
        let client = crowded.cluster.client_of(1);
        for first in (0..SPREAD_KEYS).step_by(SPREAD_BATCH) {
            spread(&client, first..first + SPREAD_BATCH, &mut rng, &mut ledger).await;
        }
        let log = crowded.cluster.node(1).data_dir().join("log");
        eventually("the log to be cut", WITHIN, || (bytes_of(&log) < 4 << 20).then_some(()));
        crowded.disk.take_all_but(SPREAD_LEFT);
        let has_stopped = |crowded: &mut Crowded| crowded.node_log().contains("takes no more checkpoints");
        for key in (0..SPREAD_KEYS).step_by(SPREAD_STEP).chain((1..SPREAD_KEYS).step_by(SPREAD_STEP)) {
            let written =
                replace(&client, &spread_key(key), noise(&mut rng)[..SPREAD_BYTES].to_owned(), &mut ledger).await;
            match written {
                // What it has not in memory it cannot read then.
                Err(error) if has_stopped(&mut crowded) => {
                    println!("{error}");
                    break;
                }
                written => written.expect("node 1 takes writes"),
            }
        }
        eventually("the state to find the disk full", WITHIN, || has_stopped(&mut crowded).then_some(()));
        assert!(crowded.cluster.status(1).is_some(), "it goes on");
        println!("{} writes acknowledged, seed {seed}", ledger.acked_len());
        crowded.disk.give_back();
        crowded.cluster.node(1).kill();
        crowded.cluster.node(1).serve();
        crowded.wait_until_writable(&mut ledger).await;
        crowded.check(&ledger).await;
    });
}

fn spread_key(number: usize) -> String {
    format!("spread-{number:05}")
}

/// Writes some of many small records that are not there yet.
async fn spread(client: &Client, numbers: Range<usize>, rng: &mut Rng, ledger: &mut Ledger) {
    let mut puts = JoinSet::new();
    for number in numbers {
        let (client, key, value) = (client.clone(), spread_key(number), noise(rng)[..SPREAD_BYTES].to_owned());
        puts.spawn(async move {
            let gtid = client.put("k", &key, value.clone()).await.expect("node 1 takes writes").dot;
            Write { key, value: Some(value), shown: Vec::new(), gtid, acked_at: None }
        });
    }
    puts.join_all().await.into_iter().for_each(|write| ledger.acked(write));
}

/// Replaces what a key holds.
async fn replace(client: &Client, key: &str, value: String, ledger: &mut Ledger) -> Result<(), Error> {
    let read = client.get("k", key).await?;
    let shown = read.iter().flat_map(|record| record.siblings()).map(|sibling| sibling.dot).collect();
    let mut write = Write { key: key.to_owned(), value: Some(value.clone()), shown, gtid: None, acked_at: None };
    match client.put_with("k", key, value, read.map_or(Supersede::Nothing, |record| record.shown())).await {
        Ok(written) => {
            write.gtid = written.dot;
            ledger.acked(write);
            Ok(())
        }
        Err(error) => {
            if error.is_outcome_unknown() {
                ledger.unknown(write);
            }
            Err(error)
        }
    }
}

/// Text that does not compress.
fn noise(rng: &mut Rng) -> String {
    (0..FILLER_BYTES / 16).map(|_| format!("{:016x}", rng.next())).collect()
}
