//! Seeds pass, and a seed is a run.

use std::collections::BTreeSet;

use polyarch_sim::Sink;
use polyarch_sim::run::{run_seed, run_seeds};

/// Seeds of the default test run; `POLYARCH_SIM_SEEDS` asks for more.
const SEEDS: u64 = 40;
/// Snapshots that so many seeds must join at least.
const JOINED_PER_100_SEEDS_MIN: usize = 15;

fn seeds() -> u64 {
    std::env::var("POLYARCH_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS)
}

#[test]
fn every_seed_keeps_all_invariants() {
    let jobs = std::thread::available_parallelism().map_or(1, |processors| processors.get());
    let totals = run_seeds(0..seeds(), jobs, None, 3, &|_| {});
    let failures: Vec<String> = totals.failures.iter().map(ToString::to_string).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    assert_eq!(totals.passed, seeds());
    assert!(totals.operations_min >= Some(500), "{:?}", totals.operations_min);
    assert!(totals.faults_min >= Some(20), "{:?}", totals.faults_min);
    assert!(totals.acked_and_lost > 0, "no interval node lost anything");
    assert!(totals.late_joins > 0, "no node joined late");
    assert_eq!(totals.topologies.len(), 4, "{:?}", totals.topologies);
    assert_eq!(totals.acts.len(), 5, "{:?}", totals.acts);
    assert!(totals.segments_removed_from_afar > 0, "no log was removed without a link to every member");
    let snapshots = totals.snapshots;
    assert!(snapshots.joined >= seeds() as usize * JOINED_PER_100_SEEDS_MIN / 100, "{snapshots:?}");
    assert!(totals.segments_cut > 0, "no log was cut");
    assert!(totals.removals > 0, "no removal was ever known to all others");
}

#[test]
fn a_seed_replays_to_the_same_trace_hash() {
    for seed in [3, 11] {
        let one = run_seed(seed, None, Sink::Nowhere);
        assert_eq!(one, run_seed(seed, None, Sink::Nowhere), "seed {seed}");
        assert!(one.is_ok(), "seed {seed}");
    }
}

#[test]
fn seeds_differ_in_what_happens_and_what_goes_wrong() {
    let reports: Vec<_> = (0..8).filter_map(|seed| run_seed(seed, None, Sink::Nowhere).ok()).collect();
    let hashes: BTreeSet<u64> = reports.iter().map(|report| report.trace_hash).collect();
    assert_eq!(hashes.len(), 8);
    let kinds: BTreeSet<_> = reports.iter().flat_map(|report| report.faults.keys()).collect();
    assert!(kinds.len() > 15, "{kinds:?}");
}
