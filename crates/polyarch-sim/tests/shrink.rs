//! Runs that fail are shrunk to what they fail of. Needs the feature `seeded-bugs`.
#![cfg(feature = "seeded-bugs")]

use polyarch_sim::Sink;
use polyarch_sim::bugs;
use polyarch_sim::case::Case;
use polyarch_sim::run::run_case;
use polyarch_sim::run::{run_seeds, take_panics};
use polyarch_sim::shrink::{Shrunken, shrink};

/// Runs that shrinking may take.
const RUNS_MAX: usize = 600;

fn shrunken(name: &str) -> Shrunken {
    take_panics();
    let bug = bugs::find(name);
    assert!(bug.is_some(), "there is no bug `{name}`");
    let seed = run_seeds(0..200, 2, bug, 1, &|_| {}).failures.first().map(|failure| failure.seed);
    let seed = seed.unwrap_or_else(|| panic!("no seed shows `{name}`"));
    shrink(&Case::of_seed(seed, bug), bug, &|runs| runs < RUNS_MAX).expect("it failed just now")
}

#[test]
fn few_faults_and_steps_are_left_of_a_run_that_fails() {
    for name in ["drop-by-origin", "amnesia-unnoticed", "drained-takes-writes"] {
        let Shrunken { case, run, violation, before, after, .. } = shrunken(name);
        assert!(after.faults <= 5 && after.steps <= 20, "{name}: {before:?} became {after:?}");
        let again = run_case(&case, bugs::find(name), Sink::Nowhere);
        assert_eq!((again.violation, again.report.trace_hash), (Some(violation), run.report.trace_hash), "{name}");
        assert_eq!(run_case(&case, None, Sink::Nowhere).violation, None, "{name}: it fails without the bug");
    }
}

#[test]
fn a_run_that_does_not_hang_on_its_seed_alone_is_found() {
    let failures = run_seeds(0..1, 1, bugs::find("order-of-a-hash-set"), 1, &|_| {}).failures;
    let found: Vec<&str> = failures.iter().map(|failure| failure.violation.invariant).collect();
    assert_eq!(found, ["replays_exactly"]);
    assert_eq!(failures[0].violation.what.matches("trace hash").count(), 2, "{}", failures[0].violation);
}
