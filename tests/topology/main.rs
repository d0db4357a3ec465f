//! Topologies over real processes: links and feeds as planned, members killed, links cut on either end, a peer that
//! stands still, the live switch, drain, and two processes with one server id.
//!
//! Each test has windows of load. `POLYARCH_TOPOLOGY_SECONDS` says how long each lasts (default 2 to 6, by test). They
//! are for the most part waits for timers of the nodes, so two run at once, whatever the machine; more would measure each
//! other. The test that compares latencies runs alone.

#[path = "../support/mod.rs"]
mod support;

mod bypass;
mod bytes;
mod links;
mod members;
mod slow;
mod switch;
mod watch;

use std::time::Duration;

use polyarch_client::KeyspaceKind;
use support::Cluster;
use support::ledger::Ledger;
use support::writers::size;
use tokio::sync::{Semaphore, SemaphorePermit};

/// How long nodes may take to be equal once nobody writes.
const EQUAL_WITHIN: Duration = Duration::from_secs(20);

/// How many tests run at once.
const TOGETHER: u32 = 2;
static TURNS: Semaphore = Semaphore::const_new(TOGETHER as usize);

/// Held by a test that runs.
async fn turn() -> SemaphorePermit<'static> {
    TURNS.acquire().await.expect("it is never closed")
}

/// Held by a test that runs while no other does.
async fn turn_alone() -> SemaphorePermit<'static> {
    TURNS.acquire_many(TOGETHER).await.expect("it is never closed")
}

/// The length of a window of load: not a wait for anything.
fn window(seconds: u64) -> Duration {
    Duration::from_secs(size("POLYARCH_TOPOLOGY_SECONDS", seconds))
}

/// A cluster with the keyspace `k` on all nodes.
async fn cluster_with_keyspace(nodes: u32, kind: KeyspaceKind, settings: &str) -> Cluster {
    let cluster = Cluster::start_with(nodes, settings);
    cluster.client_of(1).create_keyspace("k", kind).await.expect("node 1 takes writes");
    cluster.wait_until_equal(&cluster.server_ids(), EQUAL_WITHIN);
    cluster
}

/// Sets the topology by a command, as an operator would.
fn set_topology(cluster: &Cluster, words: &str) {
    cluster.polyarch(["topology", "set"].into_iter().chain(words.split(' '))).ok();
}

/// Nothing that was acknowledged is missing on any of these nodes, and nothing is there that nobody wrote.
async fn assert_nothing_lost(cluster: &Cluster, ledger: &Ledger, server_ids: &[u32], seed: u64) {
    for server_id in server_ids {
        let breaches = ledger.breaches(&cluster.client_of(*server_id), "k").await;
        assert!(breaches.is_empty(), "seed {seed}, node {server_id}:\n{}", breaches.join("\n"));
    }
    assert!(ledger.acked_len() > 100, "there was hardly any load");
}
