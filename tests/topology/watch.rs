//! What nodes say of links, feeds and counters, looked at again and again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use polyarch_client::{Client, StatusView, Topology};

use crate::support::Cluster;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// How long a node may take to answer before it counts as silent.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// How long a node may be silent that is expected to live.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);

/// What each of the watched nodes says.
pub(crate) type Statuses = BTreeMap<u32, StatusView>;

/// Some nodes of a cluster, each asked by a client of its own.
pub(crate) struct Watch {
    clients: BTreeMap<u32, Client>,
}

impl Watch {
    pub(crate) fn of(cluster: &Cluster, server_ids: &[u32]) -> Self {
        let client = |id: &u32| (*id, cluster.client_of(*id).with_timeout(ANSWER_MAX));
        Self { clients: server_ids.iter().map(client).collect() }
    }

    /// What all say now; `None` when one does not answer.
    pub(crate) async fn look(&self) -> Option<Statuses> {
        let mut statuses = Statuses::new();
        for (server_id, client) in &self.clients {
            statuses.insert(*server_id, client.status().await.ok()?);
        }
        Some(statuses)
    }

    /// What all say as soon as they answer.
    pub(crate) async fn now(&self) -> Statuses {
        self.until("all to answer", ANSWERED_WITHIN, |_| true).await
    }

    /// Looks until it is so, and returns what was said then.
    pub(crate) async fn until(&self, what: &str, within: Duration, is_so: impl Fn(&Statuses) -> bool) -> Statuses {
        let deadline = Instant::now() + within;
        loop {
            let statuses = self.look().await;
            if let Some(statuses) = statuses.as_ref().filter(|statuses| is_so(statuses)) {
                return statuses.clone();
            }
            assert!(Instant::now() < deadline, "waited {within:?} for {what}: {statuses:#?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until the links among these nodes are the planned ones and no others, and returns what they say.
    pub(crate) async fn until_shaped(&self, topology: &str, within: Duration) -> Statuses {
        let topology: Topology = topology.parse().expect("tests name topologies");
        let statuses = self.until(&format!("{topology} to be"), within, |s| is_shaped(s, &topology)).await;
        let live: Vec<u32> = statuses.keys().copied().collect();
        for (server_id, status) in &statuses {
            assert_eq!(linked(status).len(), links_of(*server_id, &topology, &live), "node {server_id} in {topology}");
        }
        statuses
    }

    /// Waits until each of these nodes has written so many write sets more than now: the load has begun.
    pub(crate) async fn until_written(&self, write_sets: u64) {
        let before = self.now().await;
        let written = |status: &StatusView| status.counters.written;
        self.until("load", ANSWERED_WITHIN, |now| {
            now.iter().all(|(id, status)| written(status) >= written(&before[id]) + write_sets)
        })
        .await;
    }
}

/// Whether every node follows this topology and the planned links are up, perhaps beside others.
pub(crate) fn has_planned_links(statuses: &Statuses, topology: &Topology) -> bool {
    let live: BTreeSet<u32> = statuses.keys().copied().collect();
    statuses.values().all(|status| {
        let planned = topology.edges(&live);
        let mut planned = planned.iter().filter_map(|edge| edge.other(status.server_id));
        let linked = linked(status);
        status.topology == *topology && planned.all(|other| linked.contains(&other))
    })
}

fn is_shaped(statuses: &Statuses, topology: &Topology) -> bool {
    let live: BTreeSet<u32> = statuses.keys().copied().collect();
    let links: usize = statuses.values().map(|status| linked(status).len()).sum();
    has_planned_links(statuses, topology) && links == 2 * topology.edges(&live).len()
}

/// How many links a node has, written down apart from the plan.
fn links_of(server_id: u32, topology: &Topology, live: &[u32]) -> usize {
    match topology {
        Topology::Mesh => live.len() - 1,
        Topology::Ring => 2,
        Topology::Star { hubs } => match hubs.iter().find(|hub| live.contains(hub)) == Some(&server_id) {
            true => live.len() - 1,
            false => 1,
        },
        Topology::Custom { edges } => edges.iter().filter(|(one, two)| [*one, *two].contains(&server_id)).count(),
    }
}

/// Whom a node has links to.
pub(crate) fn linked(status: &StatusView) -> BTreeSet<u32> {
    status.peers.iter().filter(|peer| peer.linked).map(|peer| peer.server_id).collect()
}

/// How many write sets a node has applied, by its applied-set.
pub(crate) fn applied(status: &StatusView) -> u64 {
    status.applied.iter().map(|last| last.seq).sum()
}

/// Write sets that a node's process has counted as applied, less those in its applied-set. When nobody writes, this
/// differs between two looks at one process only if a write set was applied twice.
pub(crate) fn surplus(status: &StatusView) -> i64 {
    (status.counters.written + status.counters.received) as i64 - applied(status) as i64
}

/// Of each node the write sets that came to it and that it had.
pub(crate) fn skipped(statuses: &Statuses) -> BTreeMap<u32, u64> {
    statuses.iter().map(|(id, status)| (*id, status.counters.skipped)).collect()
}
