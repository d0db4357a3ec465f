//! Links that come and go, or that one end refuses: the others find ways around them.

use std::time::{Duration, Instant};

use polyarch_client::KeyspaceKind;

use crate::support::Cluster;
use crate::support::writers::{Rng, Writers};
use crate::watch::{Statuses, Watch, linked};
use crate::{EQUAL_WITHIN, assert_nothing_lost, cluster_with_keyspace, set_topology, turn, window};

const SHAPED_WITHIN: Duration = Duration::from_secs(20);
/// How long the nodes may take to be equal once the links are stable and nobody writes.
const CONVERGED_WITHIN: Duration = Duration::from_secs(30);

/// A cluster in this topology, with writers on all its nodes.
async fn loaded(nodes: u32, words: &str, topology: &str, seed: u64) -> (Cluster, Watch, Writers) {
    let cluster = cluster_with_keyspace(nodes, KeyspaceKind::Mv, "").await;
    let all = cluster.server_ids();
    set_topology(&cluster, words);
    let watch = Watch::of(&cluster, &all);
    watch.until_shaped(topology, SHAPED_WITHIN).await;
    let clients: Vec<_> = all.iter().map(|id| cluster.client_of(*id)).collect();
    let writers = Writers::start(&clients, 2, "k", seed);
    (cluster, watch, writers)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_that_flap_leave_nothing_behind_once_they_are_stable() {
    let _turn = turn().await;
    let (seed, mut rng) = Rng::from_environment();
    let (mut cluster, watch, writers) = loaded(5, "ring", "ring", seed).await;
    let all = cluster.server_ids();
    let end = Instant::now() + window(6);
    let (mut flaps, mut is_cut) = (0, [false; 2]);
    while Instant::now() < end {
        let link = rng.below(2) as usize;
        let (one, other) = [(1, 2), (3, 4)][link];
        match is_cut[link] {
            true => cluster.mend(one, other),
            false => cluster.cut(one, other),
        }
        is_cut[link] = !is_cut[link];
        flaps += 1;
        // The time until the next change, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(200 + rng.below(1_800))).await;
    }
    cluster.mend(1, 2);
    cluster.mend(3, 4);
    let stable = Instant::now();
    let ledger = writers.finish().await;
    cluster.wait_until_equal(&all, CONVERGED_WITHIN);
    let converged = stable.elapsed();
    watch.until_shaped("ring", SHAPED_WITHIN).await;
    assert_nothing_lost(&cluster, &ledger, &all, seed).await;
    println!("{flaps} changes of links, {} writes acknowledged, equal after {converged:?}", ledger.acked_len());
    cluster.stop();
    cluster.verify_equal_histories();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spokes_that_reach_different_hubs_are_equal_all_the_same() {
    let _turn = turn().await;
    let (seed, _) = Rng::from_environment();
    let (mut cluster, watch, writers) = loaded(6, "star --hubs 1,2", "star:1,2", seed).await;
    let all = cluster.server_ids();
    watch.until_written(50).await;
    let between_spokes = [(3, 4), (3, 5), (3, 6), (4, 5), (4, 6), (5, 6)];
    for (one, other) in between_spokes.into_iter().chain([(1, 3), (1, 4), (2, 5), (2, 6)]) {
        cluster.cut(one, other);
    }
    let split = [(1, vec![2, 5, 6]), (2, vec![1, 3, 4]), (3, vec![2]), (4, vec![2]), (5, vec![1]), (6, vec![1])];
    let is_split = |statuses: &Statuses| {
        split.iter().all(|(id, others)| linked(&statuses[id]).into_iter().eq(others.iter().copied()))
    };
    watch.until("the spokes to flee to their hubs", SHAPED_WITHIN, is_split).await;
    watch.until_written(100).await;
    let paused = Instant::now();
    let ledger = writers.finish().await;
    cluster.wait_until_equal(&all, CONVERGED_WITHIN);
    let converged = paused.elapsed();
    assert_nothing_lost(&cluster, &ledger, &all, seed).await;
    println!("two hubs: {} writes acknowledged, equal after {converged:?}", ledger.acked_len());
    cluster.stop();
    cluster.verify_equal_histories();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_one_end_refuses_is_gone_around() {
    let _turn = turn().await;
    let (seed, _) = Rng::from_environment();
    let (mut cluster, watch, writers) = loaded(4, "ring", "ring", seed).await;
    let all = cluster.server_ids();
    watch.until_written(50).await;
    // The end with the greater server id dials first, so each is the one that refuses in turn.
    for (refuses, dials) in [(1, 2), (2, 1)] {
        cluster.on_end(refuses, dials, &["cut"]);
        watch.until("the link to go", SHAPED_WITHIN, |s| !linked(&s[&dials]).contains(&refuses)).await;
        let end = Instant::now() + window(2);
        while Instant::now() < end {
            let statuses = watch.now().await;
            assert!(!linked(&statuses[&refuses]).contains(&dials), "node {refuses} has a link that is cut");
            assert!(statuses[&dials].peers.iter().all(|peer| peer.reachable), "{statuses:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_refusals_are_few(&cluster, refuses, dials);
        cluster.on_end(refuses, dials, &["heal"]);
        watch.until_shaped("ring", SHAPED_WITHIN).await;
    }
    let ledger = writers.finish().await;
    cluster.wait_until_equal(&all, EQUAL_WITHIN);
    assert_nothing_lost(&cluster, &ledger, &all, seed).await;
    println!("one-way: {} writes acknowledged", ledger.acked_len());
    cluster.stop();
    cluster.verify_equal_histories();
}

/// A node that is dialled in vain, and one that dials in vain, do not fill their ledgers with it.
fn assert_refusals_are_few(cluster: &Cluster, refuses: u32, dials: u32) {
    for server_id in [refuses, dials] {
        let said = cluster.polyarch(["events", "--json", "--limit", "200", "--node", &cluster.address(server_id)]).ok();
        let about_link = said.json_lines().iter().filter(|event| is_about(event, refuses + dials - server_id)).count();
        assert!(about_link <= 40, "node {server_id} says too much:\n{}", said.text());
    }
}

fn is_about(event: &serde_json::Value, server_id: u32) -> bool {
    event["text"].as_str().is_some_and(|text| text.contains(&format!("member {server_id}")))
}
