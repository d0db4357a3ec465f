//! Real nodes under fire: faults of processes, network, disk and clock, drawn from a seed, while clients write to all
//! nodes and remember what they were told. After each round all is healed; every node has to come back within a bound,
//! all have to be equal, and what they show has to be what the clients were promised.
//!
//! ```sh
//! POLYARCH_FIRE_SECONDS=180 cargo test --test fire -- --nocapture
//! POLYARCH_FIRE_SECONDS=300 cargo test --test fire -- --nocapture --ignored      # as root: all kinds of faults
//! ```
//!
//! `POLYARCH_SEED` repeats the choices, `POLYARCH_FIRE_REPORT` names a file for the report, and `POLYARCH_FIRE_TRACE=1`
//! prints each fault. As root the test makes namespaces, veth pairs and disks of its own, which go with its process. Needs
//! iproute2, e2fsprogs and util-linux; with strace, nftables and libfaketime it does what these can do.

#[path = "../support/mod.rs"]
mod support;

mod apart;
mod batches;
mod checks;
mod faults;
mod field;
mod load;
mod registers;
mod relay;
mod report;
mod run;
mod sessions;
mod sight;
mod tally;
mod wanderer;

use std::time::Duration;

use support::writers::{Rng, size};

/// The most nodes of a cluster.
const NODES_MAX: u32 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn promises_hold_under_fire() {
    let (seed, _) = Rng::from_environment();
    run::run("on loopback", seed, lasts(30)).await;
}

#[test]
#[ignore = "needs root, and minutes"]
fn promises_hold_under_fire_from_all_sides() {
    if !apart::is_apart() {
        return apart::run_apart("promises_hold_under_fire_from_all_sides");
    }
    apart::make_networks(NODES_MAX);
    let (seed, _) = Rng::from_environment();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let story = run::run("with networks and disks of its own", seed, lasts(300));
    runtime.expect("a runtime can be made").block_on(story);
}

fn lasts(seconds: u64) -> Duration {
    Duration::from_secs(size("POLYARCH_FIRE_SECONDS", seconds))
}
