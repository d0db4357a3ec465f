//! Three real nodes with writers on all, one cut off and back every few seconds.
//! `POLYARCH_CONVERGENCE_SECONDS` says how long (default 10).

mod support;

use std::time::{Duration, Instant};

use polyarch_client::KeyspaceKind;
use support::Cluster;
use support::writers::{Rng, Writers, size};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_cut_off_and_back_end_equal_and_lose_nothing() {
    let lasts = Duration::from_secs(size("POLYARCH_CONVERGENCE_SECONDS", 10));
    let (seed, mut rng) = Rng::from_environment();
    let mut cluster = Cluster::start(3);
    cluster.client_of(1).create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(20));
    let clients: Vec<_> = (1..=3).map(|server_id| cluster.client_of(server_id)).collect();
    let writers = Writers::start(&clients, 4, "k", seed);
    let end = Instant::now() + lasts;
    let mut cuts = 0;
    while Instant::now() < end {
        let victim = 1 + rng.below(3) as u32;
        cluster.isolate(victim);
        // The time apart and the time together, not waits for anything.
        tokio::time::sleep(Duration::from_millis(500 + rng.below(2_000))).await;
        cluster.heal(victim);
        tokio::time::sleep(Duration::from_millis(rng.below(2_000))).await;
        cuts += 1;
    }
    let ledger = writers.finish().await;
    cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(5));
    for server_id in 1..=3 {
        let breaches = ledger.breaches(&cluster.client_of(server_id), "k").await;
        assert!(breaches.is_empty(), "seed {seed}, node {server_id}:\n{}", breaches.join("\n"));
    }
    println!("{cuts} cuts, {} writes acknowledged, {} unknown", ledger.acked_len(), ledger.unknown_len());
    cluster.stop();
    cluster.verify_equal_histories();
}
