//! A member that never comes back: what the others keep does not grow with what it misses, nor with what was deleted.

use serde_json::Value;

use super::load::{SHORT_LOG, cluster, count, delete, put};
use super::{EQUAL_WITHIN, turn};
use crate::support::writers::size;
use crate::support::{Cluster, bytes_of, command, eventually, finish};

/// `log_mib_max`, the segment in use, and those that a checkpoint is not yet past.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// Written over one key behind each round: several times what is in memory and log between two checkpoints.
const FILLERS: usize = 64;
const FILLER_BYTES: usize = 64 << 10;
/// What a second round may keep more than the first.
const GROWTH_MAX: f64 = 1.1;

/// What a node keeps after a round.
#[derive(Debug)]
struct Kept {
    records: u64,
    #[expect(dead_code, reason = "it is printed; that it is bounded is waited for")]
    log_bytes: u64,
    /// All small files beside log and state.
    metadata_bytes: u64,
    /// sled's own directory, which gives space back in its own time: for whoever reads what is printed.
    #[expect(dead_code, reason = "it is printed")]
    state_bytes: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_member_dead_for_ever_the_others_keep_no_more_after_each_round_of_puts_and_deletes() {
    let _turn = turn().await;
    let keys = size("POLYARCH_RETURN_KEYS", 10_000);
    let mut cluster = cluster(SHORT_LOG).await;
    cluster.node(3).kill();
    let mut rounds = Vec::new();
    for round in 1..=2 {
        put(&cluster.client_of(1), "key", keys).await;
        cluster.wait_until_equal(&[1, 2], EQUAL_WITHIN);
        delete(&cluster.client_of(2), "key", keys).await;
        cluster.wait_until_equal(&[1, 2], EQUAL_WITHIN);
        // So much over one key that all before it is in checkpoints.
        for _ in 0..FILLERS {
            let filled = cluster.client_of(1).put("k", "filler", vec![b'f'; FILLER_BYTES]).await;
            filled.expect("node 1 takes writes");
        }
        cluster.wait_until_equal(&[1, 2], EQUAL_WITHIN);
        for id in [1, 2] {
            assert_eq!(count(&cluster.client_of(id), "key").await.expect("the node answers"), 0);
            // It looks at its log once a second.
            let log = cluster.node(id).data_dir().join("log");
            eventually("the log to be cut", EQUAL_WITHIN, || (bytes_of(&log) <= LOG_BYTES_MAX).then_some(()));
            cluster.node(id).stop();
            let kept = kept(&mut cluster, id);
            println!("round {round}, node {id}: {kept:?}");
            rounds.push(kept);
        }
        for id in [1, 2] {
            cluster.node(id).serve();
        }
        cluster.wait_until_equal(&[1, 2], EQUAL_WITHIN);
    }
    for (first, second) in rounds[..2].iter().zip(&rounds[2..]) {
        // One record or one page is no growth. The log is bounded, and how much of it is there is a matter of when.
        let grows = |first: u64, second: u64, unit: u64| second as f64 > first as f64 * GROWTH_MAX + unit as f64;
        assert!(!grows(first.records, second.records, 1), "records: {first:?}, {second:?}");
        assert!(!grows(first.metadata_bytes, second.metadata_bytes, 4_096), "metadata: {first:?}, {second:?}");
    }
}

fn kept(cluster: &mut Cluster, id: u32) -> Kept {
    let data = cluster.node(id).data_dir();
    let mut verify = command();
    verify.args(["verify", "--json"]).arg(&data);
    let report: Value = finish(verify, b"").ok().json();
    let (log_bytes, state_bytes) = (bytes_of(&data.join("log")), bytes_of(&data.join("state")));
    Kept {
        records: report["state_records"].as_u64().expect("it is a number"),
        log_bytes,
        metadata_bytes: bytes_of(&data) - log_bytes - state_bytes,
        state_bytes,
    }
}
