//! Many writes, fast: batches of several clients at once.

use std::collections::BTreeMap;

use polyarch_client::{Client, Dot, KeyspaceKind};
use tokio::task::JoinSet;

use super::EQUAL_WITHIN;
use crate::support::Cluster;

/// Changes of one batch.
const BATCH: u64 = 100;
/// Batches under way at once.
const IN_FLIGHT: u64 = 8;

/// A log that keeps little: what is away for some seconds falls behind its beginning.
pub(crate) const SHORT_LOG: &str = "[storage]\nlog_retention = \"members\"\nlog_mib_max = 1\nsegment_mib = 1\n\
                                    memtable_mib = 1\ncheckpoint_log_mib = 1\n";

/// A cluster of three with the `mv` keyspace `k` on all nodes.
pub(crate) async fn cluster(settings: &str) -> Cluster {
    let cluster = Cluster::start_with(3, settings);
    cluster.client_of(1).create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    cluster
}

/// Puts `PREFIX-0` to `PREFIX-(count-1)`, each with its number as the value.
pub(crate) async fn put(client: &Client, prefix: &str, count: u64) {
    each(client, count, |client, numbers| {
        let batch = numbers.fold(client.batch(), |batch, n| batch.put("k", format!("{prefix}-{n:07}"), value(n)));
        async move { batch.commit().await.map(drop) }
    })
    .await;
}

/// Deletes what [`put`] put.
pub(crate) async fn delete(client: &Client, prefix: &str, count: u64) {
    each(client, count, |client, numbers| {
        let batch = numbers.fold(client.batch(), |batch, n| batch.delete("k", format!("{prefix}-{n:07}")));
        async move { batch.commit().await.map(drop) }
    })
    .await;
}

/// 100 bytes that differ from key to key.
fn value(number: u64) -> String {
    format!("{number:0100}")
}

async fn each<F>(client: &Client, count: u64, commit: impl Fn(&Client, std::ops::Range<u64>) -> F)
where
    F: Future<Output = Result<(), polyarch_client::Error>> + Send + 'static,
{
    let mut tasks: JoinSet<Result<(), polyarch_client::Error>> = JoinSet::new();
    for first in (0..count).step_by(BATCH as usize) {
        if tasks.len() as u64 >= IN_FLIGHT {
            let done = tasks.join_next().await.expect("there are some");
            done.expect("a write does not panic").expect("the node takes writes");
        }
        tasks.spawn(commit(client, first..(first + BATCH).min(count)));
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("a write does not panic").expect("the node takes writes");
    }
}

/// How many keys with this prefix a node shows.
pub(crate) async fn count(client: &Client, prefix: &str) -> Result<usize, polyarch_client::Error> {
    let mut scan = client.scan("k", prefix);
    let mut found = 0;
    while let Some(page) = scan.next_page().await? {
        found += page.records.len();
    }
    Ok(found)
}

/// For each key the siblings by GTID.
pub(crate) type Shown = BTreeMap<Vec<u8>, BTreeMap<Dot, Vec<u8>>>;

/// All that a node shows of `k`.
pub(crate) async fn all(client: &Client) -> Shown {
    try_all(client).await.expect("the node answers")
}

/// The same, of a node that may not answer.
pub(crate) async fn try_all(client: &Client) -> Result<Shown, polyarch_client::Error> {
    let mut scan = client.scan("k", "");
    let mut found = BTreeMap::new();
    while let Some((key, record)) = scan.next().await? {
        let siblings = record.siblings().iter().map(|sibling| (sibling.dot, sibling.value.to_vec()));
        found.insert(key.to_vec(), siblings.collect());
    }
    Ok(found)
}
