//! What it costs to catch up by the log.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::JoinSet;

use super::load::cluster;
use super::{EQUAL_WITHIN, turn};
use crate::support::writers::size;

/// Bytes received for each byte that was missed, at most: UDP payloads on the link, encryption and all.
const RATIO_MAX: f64 = 1.2;
/// Clients that write at once.
const WRITERS: u64 = 16;
/// Writes of one client that are under way at once.
const PIPELINED: u64 = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn catching_up_moves_little_more_than_what_was_missed() {
    let _turn = turn().await;
    let missed = size("POLYARCH_RETURN_KEYS", 10_000);
    let mut cluster = cluster("").await;
    cluster.node(3).stop();
    let logged = |status: &Value| status["counters"]["log_bytes"].as_u64().expect("it is a number");
    let before = logged(&cluster.status(1).expect("node 1 answers"));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let client = cluster.client_of(1);
        writers.spawn(async move {
            let mut puts = JoinSet::new();
            for n in (writer..missed).step_by(WRITERS as usize) {
                if puts.len() as u64 >= PIPELINED {
                    let done: Result<(), polyarch_client::Error> =
                        puts.join_next().await.expect("there are some").expect("no panic");
                    done.expect("node 1 takes writes");
                }
                let client = client.clone();
                puts.spawn(async move { client.put("k", format!("{n:016}"), vec![b'v'; 100]).await.map(drop) });
            }
            while let Some(done) = puts.join_next().await {
                done.expect("no panic").expect("node 1 takes writes");
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.expect("a writer does not panic");
    }
    cluster.wait_until_equal(&[1, 2], EQUAL_WITHIN);
    // One that feeds: where a nearer one comes up meanwhile, what is on its way from the other comes twice.
    cluster.node(2).stop();
    let missed_bytes = logged(&cluster.status(1).expect("node 1 answers")) - before;

    cluster.node(3).serve();
    let (begun, target) = (Instant::now(), cluster.status(1).expect("node 1 answers")["digest"].clone());
    let client = cluster.client_of(3).with_timeout(Duration::from_secs(2));
    let took = loop {
        assert!(begun.elapsed() < EQUAL_WITHIN, "node 3 does not catch up");
        let Ok(status) = client.status().await else { continue };
        if status.digest == target {
            break begun.elapsed();
        }
    };
    let status = cluster.wait_until_equal(&[1, 3], EQUAL_WITHIN).remove(1);
    let received = status["counters"]["link_bytes_received"].as_u64().expect("it is a number");
    let cpu = cpu_seconds(cluster.node(3).pid().expect("node 3 runs"));
    let ratio = received as f64 / missed_bytes as f64;
    println!(
        "{missed} write sets of {missed_bytes} bytes: {received} bytes received, {ratio:.2} times as many; \
         equal {took:.2?} after it listened, {cpu:.2} s of CPU there since its start"
    );
    assert!(ratio <= RATIO_MAX, "it received {ratio:.2} times what it missed");
}

/// What a process has used, user and system.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let behind_name = stat.rsplit(") ").next().expect("the name ends in a parenthesis");
    let ticks = behind_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("it is a number"));
    // The kernel's unit on every platform of today.
    ticks.sum::<f64>() / 100.0
}
