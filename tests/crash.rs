//! kill -9 of real nodes under load. `POLYARCH_CRASH_KILLS` says how often (default 5).

mod support;

use std::time::Duration;

use polyarch_client::KeyspaceKind;
use support::Cluster;
use support::writers::{Rng, Writers, size};

/// Small, so that kills meet checkpoints and new segments too.
const SETTINGS: &str = "[storage]\nmemtable_mib = 1\nsegment_mib = 1\ncheckpoint_log_mib = 1\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_nodes_are_killed() {
    let kills = size("POLYARCH_CRASH_KILLS", 5);
    let (seed, mut rng) = Rng::from_environment();
    let mut cluster = Cluster::start_with(3, SETTINGS);
    cluster.client_of(1).create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(20));
    let clients: Vec<_> = (1..=3).map(|server_id| cluster.client_of(server_id)).collect();
    let writers = Writers::start(&clients, 4, "k", seed);
    for _ in 0..kills {
        // The load's time between two kills, not a wait for anything.
        tokio::time::sleep(Duration::from_millis(50 + rng.below(400))).await;
        let victim = 1 + rng.below(3) as u32;
        cluster.node(victim).kill();
        cluster.node(victim).serve();
    }
    let ledger = writers.finish().await;
    cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(60));
    for server_id in 1..=3 {
        let breaches = ledger.breaches(&cluster.client_of(server_id), "k").await;
        assert!(breaches.is_empty(), "seed {seed}, node {server_id}:\n{}", breaches.join("\n"));
    }
    println!("{kills} kills, {} writes acknowledged, {} unknown", ledger.acked_len(), ledger.unknown_len());
    assert!(ledger.acked_len() as u64 > kills * 10, "there was hardly any load");
    cluster.stop();
    cluster.verify_equal_histories();
}
