//! The topology of a cluster under full load is switched while it runs.

use std::time::{Duration, Instant};

use polyarch_client::KeyspaceKind;

use crate::support::ledger::Ledger;
use crate::support::writers::{Rng, Writers};
use crate::watch::{Watch, surplus};
use crate::{EQUAL_WITHIN, assert_nothing_lost, cluster_with_keyspace, set_topology, turn};

/// From the command to the last link that is not needed any more, on a loaded machine.
const SHAPED_WITHIN: Duration = Duration::from_secs(20);

/// As a command line and as the plan says it.
const STEPS: [(&str, &str); 4] = [
    ("ring", "ring"),
    ("star --hubs 2,1", "star:2,1"),
    ("custom --edges 1-2,2-3,3-4,4-5,2-4", "custom:1-2,2-3,3-4,4-5,2-4"),
    ("mesh", "mesh"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_switch_of_a_loaded_cluster_keeps_all_and_applies_nothing_twice() {
    let _turn = turn().await;
    let (seed, _) = Rng::from_environment();
    let mut cluster = cluster_with_keyspace(5, KeyspaceKind::Mv, "").await;
    let all = cluster.server_ids();
    let watch = Watch::of(&cluster, &all);
    let clients: Vec<_> = all.iter().map(|id| cluster.client_of(*id)).collect();
    let before = watch.until_shaped("mesh", SHAPED_WITHIN).await;
    let mut ledger = Ledger::default();
    for (seed, (words, topology)) in (seed..).zip(STEPS) {
        let writers = Writers::start(&clients, 2, "k", seed);
        watch.until_written(50).await;
        let told = Instant::now();
        set_topology(&cluster, words);
        watch.until_shaped(topology, SHAPED_WITHIN).await;
        let took = told.elapsed();
        watch.until_written(50).await;
        ledger.merge(writers.finish().await);
        cluster.wait_until_equal(&all, EQUAL_WITHIN);
        assert_nothing_lost(&cluster, &ledger, &all, seed).await;
        let now = watch.now().await;
        for id in &all {
            assert_eq!(surplus(&before[id]), surplus(&now[id]), "node {id} has applied a write set twice");
        }
        println!(
            "{topology}: as planned {took:?} after the command, {} writes acknowledged so far",
            ledger.acked_len()
        );
    }
    cluster.stop();
    cluster.verify_equal_histories();
}
