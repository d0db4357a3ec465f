//! A member that was away for longer than the others keep their log, and has writes that only it has.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use polyarch_client::Client;
use tokio::task::JoinHandle;

use super::load::{SHORT_LOG, all, cluster, count, delete, put};
use super::{EQUAL_WITHIN, turn};
use crate::support::writers::{Rng, size};
use crate::support::{Cluster, eventually};

/// What the member writes while nobody hears it.
const OWN: u64 = 50;
/// How long the log of the others may take to leave behind what the member needs.
const CUT_WITHIN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_for_long_returns_and_nothing_deleted_does() {
    let _turn = turn().await;
    let mut away = Away::begin().await;
    let watch = Watch::start(&away.cluster, away.deleted);
    away.cluster.node(3).serve();
    away.cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    watch.finish().await;
    assert!(away.joined_snapshots() > 0, "its log reached back to where node 3 was: nothing was tested");
    away.verify().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn donor_and_receiver_may_be_killed_at_any_moment() {
    let _turn = turn().await;
    let (seed, mut rng) = Rng::from_environment();
    let mut away = Away::begin().await;
    let watch = Watch::start(&away.cluster, away.deleted);
    away.cluster.node(3).serve();
    for kill in 0..size("POLYARCH_RETURN_KILLS", 4) {
        // Somewhere within linking, fetching, joining: not a wait for anything.
        tokio::time::sleep(Duration::from_millis(rng.below(2_500))).await;
        let victim = [3, 3, 1, 2][rng.below(4) as usize];
        println!("seed {seed}, kill {kill}: node {victim}");
        away.cluster.node(victim).kill();
        away.cluster.node(victim).serve();
        // What came while it was down, so that there is always something to fetch.
        put(&away.cluster.client_of(1), &format!("kill-{kill}"), 500).await;
    }
    away.cluster.wait_until_equal(&[1, 2, 3], 2 * EQUAL_WITHIN);
    watch.finish().await;
    away.verify().await;
}

/// A cluster whose node 3 is down, lacks what is no longer in the log of the others, and has what they lack.
struct Away {
    cluster: Cluster,
    written: u64,
    deleted: u64,
}

impl Away {
    async fn begin() -> Self {
        let written = size("POLYARCH_RETURN_KEYS", 10_000);
        let deleted = (written / 100).max(1);
        let mut cluster = cluster(SHORT_LOG).await;
        put(&cluster.client_of(2), "gone", deleted).await;
        put(&cluster.client_of(2), "kept", deleted).await;
        cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
        cluster.isolate(3);
        put(&cluster.client_of(3), "own", OWN).await;
        cluster.node(3).kill();

        let last = [1, 2].map(|id| last_segment(&mut cluster, id));
        for id in [1, 2] {
            cluster.heal(id);
        }
        let client = cluster.client_of(1);
        delete(&client, "gone", deleted).await;
        put(&client, "new", written).await;
        // Writes over writes until the segments that node 3 needs are gone.
        let mut filler = 0;
        while [1, 2].map(|id| first_segment(&mut cluster, id)).iter().zip(&last).any(|(first, last)| first <= last) {
            filler += 1;
            assert!(filler < 200, "the log is not cut");
            put(&client, "filler", 1_000).await;
        }
        cluster.wait_until_equal(&[1, 2], CUT_WITHIN);
        Self { cluster, written, deleted }
    }

    /// How many snapshots node 3 joined, by its ledger of events.
    fn joined_snapshots(&self) -> usize {
        let events = self.cluster.polyarch(["events", "--json", "--limit", "1000", "--node", &self.cluster.address(3)]);
        events.ok().text().matches("joined a snapshot").count()
    }

    /// All nodes show the same: what was written, what node 3 wrote alone, and nothing deleted.
    async fn verify(&mut self) {
        let clients = [1, 2, 3].map(|id| self.cluster.client_of(id));
        let shown = all(&clients[0]).await;
        for client in &clients {
            assert!(all(client).await == shown, "equal digests, and yet another content");
            let expected = [("gone", 0), ("kept", self.deleted), ("own", OWN), ("new", self.written)];
            for (prefix, expected) in expected {
                assert_eq!(count(client, prefix).await.expect("the node answers") as u64, expected, "{prefix}");
            }
        }
        self.cluster.stop();
        self.cluster.verify_equal_histories();
    }
}

/// Looks at the deleted keys on every node, again and again.
struct Watch {
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<usize>>,
}

impl Watch {
    fn start(cluster: &Cluster, deleted: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = |id: u32| {
            let most = if id == 3 { deleted as usize } else { 0 };
            tokio::spawn(watch(cluster.client_of(id).with_timeout(Duration::from_secs(1)), id, most, stop.clone()))
        };
        let tasks = [1, 2, 3].map(watch).into();
        Self { stop, tasks }
    }

    async fn finish(self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let looks = task.await.expect("nothing deleted came back");
            assert!(looks > 0, "a node was never looked at");
        }
    }
}

/// Node 3 shows them until it hears of the deletes; whoever has heard shows them never again.
async fn watch(client: Client, id: u32, most: usize, stop: Arc<AtomicBool>) -> usize {
    let (mut most, mut looks) = (most, 0);
    while !stop.load(Ordering::Relaxed) {
        // A node that is down shows nothing.
        let Ok(shown) = count(&client, "gone").await else { continue };
        assert!(shown <= most, "node {id} shows {shown} of the deleted keys, and showed {most} before");
        (most, looks) = (shown, looks + 1);
    }
    looks
}

fn first_segment(cluster: &mut Cluster, id: u32) -> u64 {
    segments(cluster, id).0
}

fn last_segment(cluster: &mut Cluster, id: u32) -> u64 {
    segments(cluster, id).1
}

/// The numbers of the first and the last segment of a node's log.
fn segments(cluster: &mut Cluster, id: u32) -> (u64, u64) {
    let directory = cluster.node(id).data_dir().join("log");
    eventually("the log to be listed", CUT_WITHIN, || {
        let names = std::fs::read_dir(&directory).ok()?.flatten().map(|entry| entry.path());
        let numbers = names.filter_map(|path| path.file_stem()?.to_str()?.parse().ok());
        let (first, last) = numbers.fold((u64::MAX, 0), |(first, last), n: u64| (first.min(n), last.max(n)));
        (last > 0).then_some((first, last))
    })
}
