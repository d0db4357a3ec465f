//! A seed is a run: run again, the same happens, event by event. What differs was drawn from something
//! else than the seed: the order of a hash map, a clock, an address.
//!
//! Source: FoundationDB's "unseed" check, which ends every simulation with a number that a second run
//! has to end with too.

use super::{Checked, Violation};
use crate::run::Failure;
use crate::world::Report;

/// The invariant's name.
pub const NAME: &str = "replays_exactly";

/// Two runs of one seed.
pub fn check(one: &Result<Report, Box<Failure>>, other: &Result<Report, Box<Failure>>) -> Checked {
    match one == other {
        true => Ok(()),
        false => Err(Violation::new(NAME, format!("{}, and once more {}", ending(one), ending(other)))),
    }
}

fn ending(run: &Result<Report, Box<Failure>>) -> String {
    match run {
        Ok(report) => format!("it passes with trace hash {:016x} after {} events", report.trace_hash, report.events),
        Err(failure) => {
            format!("it breaks {} with trace hash {:016x}", failure.violation.invariant, failure.trace_hash)
        }
    }
}
