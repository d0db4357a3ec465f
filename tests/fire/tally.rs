//! What clients counted, and the breaches that they saw while they worked.

use std::sync::Mutex;
use std::time::Duration;

use polyarch_client::{Error, Written};

/// Shared by all that work at once.
#[derive(Debug, Default)]
pub(crate) struct Tally(Mutex<Counted>);

/// Numbers of the report.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counted {
    pub(crate) acked: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    pub(crate) reads: u64,
    /// Of acknowledged writes, in microseconds.
    pub(crate) took_us: Vec<u32>,
    pub(crate) breaches: Vec<String>,
}

/// What became of a write.
pub(crate) enum Outcome {
    Acked(Written),
    Unknown,
    Refused,
}

impl Tally {
    pub(crate) fn note(&self, change: impl FnOnce(&mut Counted)) {
        change(&mut self.0.lock().expect("nothing panics with it"));
    }

    pub(crate) fn read(&self) {
        self.note(|counted| counted.reads += 1);
    }

    pub(crate) fn breach(&self, text: String) {
        self.note(|counted| counted.breaches.push(text));
    }

    /// Counts a write, and says what became of it.
    pub(crate) fn outcome(&self, done: Result<Written, Error>, took: Duration) -> Outcome {
        let outcome = match done {
            Ok(written) => Outcome::Acked(written),
            Err(error) if error.is_outcome_unknown() => Outcome::Unknown,
            Err(_) => Outcome::Refused,
        };
        self.note(|counted| match outcome {
            Outcome::Acked(_) => {
                counted.acked += 1;
                counted.took_us.push(micros(took));
            }
            Outcome::Unknown => counted.unknown += 1,
            Outcome::Refused => counted.refused += 1,
        });
        outcome
    }

    pub(crate) fn take(&self) -> Counted {
        std::mem::take(&mut *self.0.lock().expect("nothing panics with it"))
    }
}

impl Counted {
    pub(crate) fn add(&mut self, other: Self) {
        self.acked += other.acked;
        self.unknown += other.unknown;
        self.refused += other.refused;
        self.reads += other.reads;
        self.took_us.extend(other.took_us);
        self.breaches.extend(other.breaches);
    }
}

pub(crate) fn micros(took: Duration) -> u32 {
    u32::try_from(took.as_micros()).unwrap_or(u32::MAX)
}
