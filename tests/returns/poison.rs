//! A write set that members do not take: its origin is stopped on each, and goes on when an operator says so.

use polyarch_crdt::{Dot, FieldPath};
use polyarch_protocol::catalog::{BaseDefinition, SystemRecord, base_key};
use polyarch_protocol::{ChainHash, ChainHead, Change, Effect, KeyspaceId};

use super::forged::{append, newest_of};
use super::load::{all, cluster, count, put};
use super::{EQUAL_WITHIN, turn};
use crate::support::eventually;

const COUNT: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_set_that_is_not_taken_stops_its_origin_alone_and_goes_on_by_a_retry() {
    let _turn = turn().await;
    let mut cluster = cluster("").await;
    for id in [1, 2, 3] {
        put(&cluster.client_of(id), &format!("of-{id}"), COUNT).await;
    }
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    cluster.node(3).kill();
    // A base that holds the write set which node 2 is yet to write.
    let data = cluster.node(3).data_dir();
    let ((origin, seq), (other, next)) = (newest_of(&data, 3), newest_of(&data, 2));
    let name = Dot::new(origin, seq + 1);
    let closed = vec![(other, ChainHead { seq: next + 1, hash: ChainHash::default() })];
    let base = SystemRecord::Base(BaseDefinition { parent: None, closed });
    let (keyspace, field) = (KeyspaceId::SYSTEM, FieldPath::opaque());
    let effect = Effect::Put(base.encode());
    append(&data, origin, vec![Change { keyspace, key: base_key(name), field, supersedes: Vec::new(), effect }]);
    cluster.node(3).serve();
    let stopped = |id: u32| {
        let listed =
            cluster.polyarch(["quarantine", "list", "--json", "--node", &cluster.address(id)]).ok().json_lines();
        let is_it = |line: &&serde_json::Value| line["cause"] == "poison" && line["gtid"] == name.to_string();
        listed.iter().find(is_it).cloned()
    };
    for id in [1, 2] {
        let line = eventually("the origin to be stopped", EQUAL_WITHIN, || stopped(id));
        assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("had not applied")), "{line}");
    }
    // A retry without a change of things ends as before.
    cluster.polyarch(["quarantine", "retry", "--node", &cluster.address(1)]).ok();
    eventually("the origin to be stopped again", EQUAL_WITHIN, || stopped(1));
    // All others go on.
    put(&cluster.client_of(1), "meanwhile", COUNT).await;
    put(&cluster.client_of(2), "meanwhile-too", COUNT).await;
    let client = cluster.client_of(2);
    assert_eq!(count(&client, "meanwhile-too").await.unwrap() as u64, COUNT);
    cluster.wait_until_equal(&[1, 2], EQUAL_WITHIN);
    assert_eq!(count(&cluster.client_of(2), "meanwhile").await.unwrap() as u64, 2 * COUNT);
    // What it holds is there now.
    for id in [1, 2] {
        cluster.polyarch(["quarantine", "retry", "--node", &cluster.address(id)]).ok();
    }
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    for id in [1, 2, 3] {
        assert!(cluster.status(id).expect("it answers")["paused"].as_array().is_some_and(Vec::is_empty), "node {id}");
    }
    let shown = all(&cluster.client_of(1)).await;
    assert_eq!(all(&cluster.client_of(3)).await, shown);
    cluster.stop();
    cluster.verify_equal_histories();
}
