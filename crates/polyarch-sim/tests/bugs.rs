//! The simulator sees what it is there to see. Needs the feature `seeded-bugs`.
#![cfg(feature = "seeded-bugs")]

use polyarch_sim::bugs::BUGS;
use polyarch_sim::run::run_seeds;

/// A bug that none of so many seeds shows is a hole in the simulator.
const SEEDS_MAX: u64 = 2_000;

#[test]
fn every_seeded_bug_is_caught() {
    let jobs = std::thread::available_parallelism().map_or(1, |processors| processors.get());
    let missed: Vec<&str> = BUGS
        .into_iter()
        .filter(|bug| run_seeds(0..SEEDS_MAX, jobs, Some(*bug), 1, &|_| {}).failures.is_empty())
        .map(|bug| bug.name)
        .collect();
    assert!(missed.is_empty(), "{missed:?}");
}
