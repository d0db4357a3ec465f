//! In the steady state each write set crosses once to each node that receives it, in every topology.

use std::time::Duration;

use polyarch_client::{Client, KeyspaceKind, StatusView};
use tokio::task::JoinSet;

use crate::support::writers::Rng;
use crate::watch::{Statuses, Watch, applied, linked, skipped};
use crate::{EQUAL_WITHIN, cluster_with_keyspace, set_topology, turn};

const NODES: usize = 5;
const SHAPED_WITHIN: Duration = Duration::from_secs(20);
/// So large that headers, acknowledgements and heartbeats are little beside them.
const VALUE_BYTES: usize = 16 << 10;
const WRITES_OF_EACH: usize = 200;
/// Bytes on the wire for each byte that has to cross.
const CROSSINGS_MAX: f64 = 1.1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_on_links_are_close_to_one_crossing_for_each_receiver() {
    let _turn = turn().await;
    let mut cluster = cluster_with_keyspace(NODES as u32, KeyspaceKind::Lww, "").await;
    let all = cluster.server_ids();
    let watch = Watch::of(&cluster, &all);
    let clients: Vec<_> = all.iter().map(|id| cluster.client_of(*id)).collect();
    for (seed, (words, topology)) in (0..).zip([("ring", "ring"), ("star --hubs 1", "star:1"), ("mesh", "mesh")]) {
        set_topology(&cluster, words);
        watch.until_shaped(topology, SHAPED_WITHIN).await;
        until_fed_by_nearest(&watch).await;
        cluster.wait_until_equal(&all, EQUAL_WITHIN);
        let before = watch.now().await;
        write(&clients, seed).await;
        cluster.wait_until_equal(&all, EQUAL_WITHIN);
        let after = watch.now().await;
        let crossings = crossings(&before, &after);
        println!("{topology}: {crossings:.3} crossings for each receiver");
        assert!((0.9..=CROSSINGS_MAX).contains(&crossings), "{topology}: {crossings:.3} crossings");
        assert_eq!(skipped(&before), skipped(&after), "nodes were fed twice");
    }
    cluster.stop();
    cluster.verify_equal_histories();
}

/// Waits until every origin whose server is linked is fed by that server, and every other over some link.
async fn until_fed_by_nearest(watch: &Watch) {
    let is_nearest = |statuses: &Statuses| {
        statuses.values().all(|status| {
            let linked = linked(status);
            status.feeds.iter().all(|feed| match linked.contains(&feed.origin.server_id) {
                true => feed.from == Some(feed.origin.server_id),
                false => feed.from.is_some(),
            })
        })
    };
    watch.until("feeds from the nearest", SHAPED_WITHIN, is_nearest).await;
}

/// Values that do not compress, on all nodes at once.
async fn write(clients: &[Client], seed: u64) {
    let mut writers = JoinSet::new();
    for (at, client) in clients.iter().cloned().enumerate() {
        let mut rng = Rng(seed << 8 | at as u64);
        writers.spawn(async move {
            for n in 0..WRITES_OF_EACH {
                let value: Vec<u8> = (0..VALUE_BYTES / 8).flat_map(|_| rng.next().to_le_bytes()).collect();
                client.put("k", format!("{at}.{n}"), value).await.expect("every node takes writes");
            }
        });
    }
    writers.join_all().await;
}

/// Bytes that all nodes sent on links, by those of the write sets that crossed.
fn crossings(before: &Statuses, after: &Statuses) -> f64 {
    let grown =
        |of: fn(&StatusView) -> u64| -> u64 { after.iter().map(|(id, status)| of(status) - of(&before[id])).sum() };
    // Each node has each write set in its log once.
    let write_set_bytes = grown(|s| s.counters.log_bytes) as f64 / grown(applied) as f64;
    let write_sets = grown(applied) as f64 / NODES as f64;
    grown(|s| s.counters.link_bytes_sent) as f64 / ((NODES - 1) as f64 * write_sets * write_set_bytes)
}
