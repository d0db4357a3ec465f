//! One GTID with two payloads: a member that holds one side goes over to the other.

use std::fs;
use std::process::Command;

use polyarch_client::{Client, KeyspaceId};
use polyarch_crdt::FieldPath;
use polyarch_protocol::{Change, Effect};

use super::forged::{append, newest_of};
use super::load::{all, cluster, count, put};
use super::{EQUAL_WITHIN, turn};
use crate::support::{command, eventually, finish};

const COMMON: u64 = 300;
/// What is written under the same GTIDs on either side.
const KEPT: u64 = 5;
const GIVEN_UP: u64 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_goes_over_to_the_other_side_of_a_fork_and_keeps_what_is_not_of_it() {
    let _turn = turn().await;
    let mut cluster = cluster("").await;
    put(&cluster.client_of(3), "common", COMMON).await;
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    let keyspace =
        cluster.client_of(1).keyspaces().await.unwrap().into_iter().find(|view| view.name == "k").unwrap().id;
    cluster.node(3).kill();
    let data = cluster.node(3).data_dir();
    let (origin, common) = newest_of(&data, 3);

    // A disk that was copied together with its process: both go on with the same GTIDs.
    let copy = cluster.directory().join("copy");
    assert!(Command::new("cp").arg("-a").args([&data, &copy]).status().unwrap().success());
    let writes =
        |prefix: &str, count| (0..count).map(|number| put_of(keyspace, &format!("{prefix}-{number}"))).collect();
    append(&data, origin, writes("kept", KEPT));
    append(&copy, origin, writes("given-up", GIVEN_UP));
    cluster.node(3).serve();
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    cluster.node(3).kill();
    fs::remove_dir_all(&data).unwrap();
    fs::rename(&copy, &data).unwrap();
    cluster.node(3).serve();
    let fork = || {
        let status = cluster.status(3)?;
        status["paused"].as_array()?.iter().find(|paused| paused["cause"] == "fork").cloned()
    };
    assert_eq!(eventually("the fork to be found", EQUAL_WITHIN, fork)["origin"], origin.to_string());

    let name = origin.to_string();
    let shown = cluster.polyarch(["fork", "show", &name, "1", "--json", "--node", &cluster.address(3)]).exits(1).json();
    assert_eq!((&shown["common"], &shown["differs"]), (&common.into(), &(common + 1).into()));
    cluster.polyarch(["fork", "show", &name, "2", "--node", &cluster.address(1)]).ok().keeps_silent();
    cluster.node(3).stop();
    let left_out = cluster.directory().join("left-out.jsonl");
    let (config, keeper) = (cluster.node(3).config(), cluster.address(1));
    let mut keep = command();
    keep.args(["fork", "keep", &name, "--node", &keeper, "--json", "--config"]).arg(&config);
    keep.arg("--left-out").arg(&left_out).arg("--profile").arg(cluster.profile());
    let kept = finish(keep, b"").ok().json();
    assert_eq!(kept["common"], common);
    let lines = fs::read_to_string(&left_out).unwrap();
    assert_eq!(kept["left_out"], lines.lines().count());
    let given_up = (0..GIVEN_UP).filter(|number| lines.contains(&format!("given-up-{number}"))).count() as u64;
    assert_eq!(given_up, GIVEN_UP);
    cluster.node(3).serve();
    for id in [1, 2] {
        // Where its feed was not stopped there is nothing to be let go on.
        cluster.polyarch(["quarantine", "retry", "--node", &cluster.address(id)]).ok();
    }
    put(&cluster.client_of(3), "after", 10).await;
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    for id in [1, 2, 3] {
        let client = cluster.client_of(id);
        let counts = [("common", COMMON), ("kept", KEPT), ("given-up", 0), ("after", 10)];
        assert_counts(&client, id, &counts).await;
        assert!(cluster.status(id).unwrap()["paused"].as_array().unwrap().is_empty(), "node {id}");
    }
    let shown = all(&cluster.client_of(1)).await;
    assert_eq!(all(&cluster.client_of(3)).await, shown);
    cluster.stop();
    cluster.verify_equal_histories();
}

/// A put of a new key.
fn put_of(keyspace: KeyspaceId, key: &str) -> Change {
    let (field, effect) = (FieldPath::opaque(), Effect::Put("value".into()));
    Change { keyspace, key: key.to_owned().into(), field, supersedes: Vec::new(), effect }
}

async fn assert_counts(client: &Client, id: u32, counts: &[(&str, u64)]) {
    for (prefix, expected) in counts {
        assert_eq!(count(client, prefix).await.unwrap() as u64, *expected, "{prefix} on node {id}");
    }
}
