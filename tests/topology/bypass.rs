//! A member is killed mid-stream: the others close ranks at once, and it has its place again when it returns.

use std::time::{Duration, Instant};

use polyarch_client::{Dot, KeyspaceKind, StatusView, Topology};
use serde_json::Value;

use crate::support::Cluster;
use crate::support::writers::{Rng, Writers};
use crate::watch::{Statuses, Watch, has_planned_links, skipped, surplus};
use crate::{EQUAL_WITHIN, assert_nothing_lost, cluster_with_keyspace, set_topology, turn, window};

/// How long the others may take to be linked as planned and fed again.
const BYPASS_MAX: Duration = Duration::from_secs(3);
/// How long links that are not needed any more may stay besides.
const SHAPED_WITHIN: Duration = Duration::from_secs(15);

struct Case {
    nodes: u32,
    /// As a command line says it.
    words: &'static str,
    topology: &'static str,
    victim: u32,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ring_closes_around_a_killed_member() {
    kill_and_return(&Case { nodes: 5, words: "ring", topology: "ring", victim: 3 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_hub_takes_over_from_a_killed_one() {
    let words = "star --hubs 1,2";
    kill_and_return(&Case { nodes: 5, words, topology: "star:1,2", victim: 1 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_goes_on_without_a_killed_member() {
    kill_and_return(&Case { nodes: 6, words: "mesh", topology: "mesh", victim: 4 }).await;
}

async fn kill_and_return(case: &Case) {
    let _turn = turn().await;
    let (seed, _) = Rng::from_environment();
    let mut cluster = cluster_with_keyspace(case.nodes, KeyspaceKind::Mv, "").await;
    cluster.client_of(1).create_keyspace("markers", KeyspaceKind::Lww).await.expect("node 1 takes writes");
    set_topology(&cluster, case.words);
    let all = cluster.server_ids();
    let live: Vec<u32> = all.iter().copied().filter(|id| *id != case.victim).collect();
    let (of_all, of_live) = (Watch::of(&cluster, &all), Watch::of(&cluster, &live));
    of_all.until_shaped(case.topology, SHAPED_WITHIN).await;
    cluster.wait_until_equal(&all, EQUAL_WITHIN);
    let before = of_live.now().await;

    let clients: Vec<_> = all.iter().map(|id| cluster.client_of(*id)).collect();
    let writers = Writers::start(&clients, 2, "k", seed);
    of_all.until_written(100).await;
    let bypass = kill(&mut cluster, case, &of_live).await;
    let shown = cluster.polyarch(["topology", "show", "--json", "--node", &cluster.address(live[0])]).ok().json();
    let is_up = |link: &Value| link["planned"] != true || link["up"] == true;
    assert!(shown["links"].as_array().is_some_and(|links| links.iter().all(is_up)), "{shown:#}");
    let fed_once = fed_once(case, &of_live).await;

    cluster.node(case.victim).serve();
    of_all.until_shaped(case.topology, SHAPED_WITHIN).await;
    let ledger = writers.finish().await;
    cluster.wait_until_equal(&all, EQUAL_WITHIN);
    assert_nothing_lost(&cluster, &ledger, &all, seed).await;
    let after = of_live.now().await;
    for id in &live {
        assert_eq!(surplus(&before[id]), surplus(&after[id]), "node {id} has applied a write set twice");
    }
    println!(
        "{} of {}: bypass in {bypass:?}, {fed_once} write sets fed once, {} writes acknowledged, {} unknown",
        case.topology,
        case.nodes,
        ledger.acked_len(),
        ledger.unknown_len()
    );
    cluster.stop();
    cluster.verify_equal_histories();
}

/// Kills the victim and measures until the others are linked as planned and have each other's writes.
async fn kill(cluster: &mut Cluster, case: &Case, of_live: &Watch) -> Duration {
    let topology: Topology = case.topology.parse().expect("tests name topologies");
    let killed = Instant::now();
    cluster.node(case.victim).kill();
    let mut markers = Vec::new();
    for server_id in cluster.server_ids().into_iter().filter(|id| *id != case.victim) {
        let written = cluster.client_of(server_id).put("markers", server_id.to_string(), "after the kill").await;
        markers.push(written.expect("a node takes writes whoever is gone").dot.expect("it wrote something"));
    }
    let is_bypassed = |statuses: &Statuses| {
        has_planned_links(statuses, &topology) && statuses.values().all(|status| is_fed(status, case.victim, &markers))
    };
    of_live.until("the bypass", Duration::from_secs(30), is_bypassed).await;
    let bypass = killed.elapsed();
    assert!(bypass <= BYPASS_MAX, "the bypass took {bypass:?}");
    bypass
}

/// Whether a node has these writes, and takes nothing from the victim any more.
fn is_fed(status: &StatusView, victim: u32, markers: &[Dot]) -> bool {
    let has = |marker: &Dot| status.applied.iter().any(|last| last.origin == marker.origin && marker.seq <= last.seq);
    markers.iter().all(has) && status.feeds.iter().all(|feed| feed.from.is_some_and(|from| from != victim))
}

/// Waits for the final links, and then sees that in a window of load nothing comes to a node twice.
async fn fed_once(case: &Case, of_live: &Watch) -> u64 {
    of_live.until_shaped(case.topology, SHAPED_WITHIN).await;
    let begin = of_live.now().await;
    tokio::time::sleep(window(3)).await;
    let end = of_live.now().await;
    assert_eq!(skipped(&begin), skipped(&end), "nodes were fed twice");
    begin.iter().map(|(id, status)| end[id].counters.received - status.counters.received).sum()
}
