//! A node whose wall clock is wrong. Needs libfaketime, which shifts it for one process alone:
//!
//! ```sh
//! POLYARCH_FAKETIME=/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1 cargo test --test clock -- --ignored --nocapture
//! ```

mod support;

use std::time::Duration;

use polyarch_client::{Error, KeyspaceKind};
use polyarch_protocol::client::Refusal;
use support::clock::Clock;
use support::{Cluster, eventually};

/// How long nodes may take to notice a clock that is wrong, or right again.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// More than an hour, which is what a clock may be ahead.
const AHEAD_S: i64 = 7_200;
/// What a measured clock may differ from the truth on a loaded machine.
const MEASURED_WITHIN_MS: u64 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs libfaketime, named by POLYARCH_FAKETIME"]
async fn a_node_whose_clock_is_ahead_takes_no_writes_until_it_is_right() {
    let mut cluster = Cluster::start(3);
    let clock = Clock::of(
        &mut cluster,
        3,
        &std::env::var("POLYARCH_FAKETIME").expect("POLYARCH_FAKETIME names libfaketime.so.1"),
    );
    cluster.node(3).stop();
    cluster.node(3).serve();
    cluster.wait_until_linked(NOTICED_WITHIN);
    let [other, client] = [1, 3].map(|server_id| cluster.client_of(server_id));
    client.create_keyspace("k", KeyspaceKind::Lww).await.expect("its clock is right");
    cluster.wait_until_equal(&[1, 2, 3], NOTICED_WITHIN);

    clock.set_ahead(AHEAD_S);
    let refused = || cluster.status(3).filter(|status| !status["writes_refused"].is_null());
    let status = eventually("node 3 to notice its clock", NOTICED_WITHIN, refused);
    let told = client.put("k", "key", "3").await.expect_err("it takes no writes");
    let Error::Refused(refusal @ Refusal::ClockAhead { ahead_ms, of }) = &told else { panic!("{told}") };
    assert!(ahead_ms.abs_diff(AHEAD_S as u64 * 1_000) < MEASURED_WITHIN_MS, "{refusal}");
    assert_eq!((of.as_slice(), status["writes_refused"].as_str().is_some()), ([1, 2].as_slice(), true));
    // Neither do operators write there; all else goes on.
    let by_operator = cluster.polyarch(["topology", "set", "ring", "--node", &cluster.address(3)]);
    by_operator.exits(3).says("it takes no writes until its clock is right");
    other.put("k", "key", "1").await.expect("node 1 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], NOTICED_WITHIN);
    let read = client.get("k", "key").await.expect("it is read").expect("it was fed");
    assert_eq!(read.siblings()[0].value, "1");
    for (server_id, words) in [(1, "the clock of member 3 is off by "), (3, "s ahead of those of members 1, 2")] {
        eventually(&format!("the alarm at node {server_id}"), NOTICED_WITHIN, || {
            let alarms = cluster.polyarch(["events", "--alarms", "--node", &cluster.address(server_id)]).ok().text();
            alarms.contains(words).then_some(())
        });
    }

    clock.set_ahead(0);
    eventually("node 3 to take writes again", NOTICED_WITHIN, || {
        cluster.status(3).filter(|status| status["writes_refused"].is_null())
    });
    client.put("k", "key", "3").await.expect("its clock is right");
    cluster.wait_until_equal(&[1, 2, 3], NOTICED_WITHIN);
    let read = other.get("k", "key").await.expect("it is read").expect("it was fed");
    assert_eq!(read.siblings()[0].value, "3", "it wrote after what it saw");
    cluster.stop();
    cluster.verify_equal_histories();
}
