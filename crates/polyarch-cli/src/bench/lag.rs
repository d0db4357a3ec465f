//! How long until a write can be read everywhere, on a cluster that does nothing else.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use polyarch_client::Client;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::EQUAL_MAX;
use super::cluster::{Cluster, KEYSPACE};
use super::load::{Draw, new_histogram};
use super::plan::Probes;
use crate::failure::Failure;

/// Between two probes, so that each finds an idle cluster; not a multiple of any interval of the nodes.
const PAUSE: Duration = Duration::from_millis(23);

/// Probes that open connections and caches, and do not count.
const UNCOUNTED: u64 = 10;

/// What the probes saw.
#[derive(Debug)]
pub(super) struct Lag {
    pub(super) probes: u64,
    pub(super) acked: Histogram<u64>,
    pub(super) visible: Histogram<u64>,
}

/// Writes at the first node, then asks every node to answer a read once it has that write: the token of the write makes
/// it wait. To ask again and again instead would keep the cores busy that the nodes need.
pub(super) async fn measure(cluster: &Cluster, probes: &Probes) -> Result<Lag, Failure> {
    cluster.wait_until_equal(EQUAL_MAX).await?;
    let nodes: Vec<Client> =
        cluster.nodes().iter().map(|node| cluster.connect(&node.address)).collect::<Result<_, _>>()?;
    let mut draw = Draw::single(probes.key_bytes, probes.value_bytes);
    let key = draw.key_at(0);
    let mut lag = Lag { probes: probes.count, acked: new_histogram(), visible: new_histogram() };
    for probe in 0..UNCOUNTED + probes.count {
        let begun = Instant::now();
        let written = nodes[0].put(KEYSPACE, &key, draw.value()).await?;
        let acked = begun.elapsed();
        let mut reads = JoinSet::new();
        for node in &nodes {
            let session = node.resume(&written.token).map_err(Failure::refused)?;
            let key = key.clone();
            reads.spawn(async move { session.get(KEYSPACE, key).await });
        }
        while let Some(read) = reads.join_next().await {
            read.map_err(Failure::refused)??;
        }
        if probe >= UNCOUNTED {
            lag.acked.saturating_record(nanoseconds(acked));
            lag.visible.saturating_record(nanoseconds(begun.elapsed()));
        }
        sleep(PAUSE).await;
    }
    for node in nodes {
        node.close().await;
    }
    Ok(lag)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
