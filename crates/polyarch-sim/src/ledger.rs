//! The ledger of runs: a table in Markdown, one line for each run of many seeds.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use crate::run::Totals;

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// When, as YYYY-MM-DD.
    pub date: String,
    /// Which code.
    pub commit: String,
    /// The seeds.
    pub seeds: Range<u64>,
    /// How many.
    pub count: u64,
    /// How many broke an invariant.
    pub failed: usize,
    /// How many were run twice and compared.
    pub twice: u64,
    /// Client operations answered.
    pub operations: u64,
    /// Writes that clients were told are written.
    pub acked: u64,
    /// Faults.
    pub faults: u64,
    /// Acts of operators.
    pub acts: u64,
    /// Hours of virtual time.
    pub simulated_hours: f64,
    /// How long it took.
    pub seconds: f64,
    /// Kinds that happened, of how many there are, and the rarest.
    pub coverage: String,
}

/// The table's head.
pub const HEAD: &str = "\
| date | commit | seeds | count | failed | run twice | operations | acked | faults | acts | simulated hours | seconds | kinds that happened |
|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|
";

impl Entry {
    /// The line of a run.
    pub fn new(date: String, commit: String, totals: &Totals, seconds: f64) -> Self {
        let (all, happened) = totals.coverage.count();
        let rarest = totals.coverage.rarest().map(|(kind, times)| format!(", rarest: {kind}, {}", times.happened));
        Self {
            date,
            commit,
            seeds: totals.seeds.clone(),
            count: totals.count(),
            failed: totals.failures.len(),
            twice: totals.twice,
            operations: totals.operations,
            acked: totals.acked,
            faults: totals.faults,
            acts: totals.acts.values().sum(),
            simulated_hours: totals.virtual_ms as f64 / 3_600_000.0,
            seconds,
            coverage: format!("{happened} of {all}{}", rarest.unwrap_or_default()),
        }
    }

    /// The line, with what failed.
    pub fn to_json(&self, totals: &Totals) -> String {
        #[derive(Serialize)]
        struct Failed<'a> {
            seed: u64,
            invariant: &'a str,
            what: &'a str,
            trace_hash: String,
        }
        #[derive(Serialize)]
        struct All<'a> {
            #[serde(flatten)]
            entry: &'a Entry,
            failures: Vec<Failed<'a>>,
        }
        let failures = totals.failures.iter().map(|failure| Failed {
            seed: failure.seed,
            invariant: failure.violation.invariant,
            what: &failure.violation.what,
            trace_hash: format!("{:016x}", failure.trace_hash),
        });
        let all = All { entry: self, failures: failures.collect() };
        serde_json::to_string(&all).expect("numbers and texts are JSON")
    }

    fn row(&self) -> String {
        format!(
            "| {} | {} | {}..{} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {:.0} | {} |\n",
            self.date,
            self.commit,
            self.seeds.start,
            self.seeds.end,
            self.count,
            self.failed,
            self.twice,
            self.operations,
            self.acked,
            self.faults,
            self.acts,
            self.simulated_hours,
            self.seconds,
            self.coverage
        )
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} seeds passed, {}..{} at {}, in {:.1} s ({:.1} seeds/s): {} operations answered, {} writes acked, {} faults, {} acts of operators, {:.1} h of virtual time, {} seeds run twice",
            self.count - self.failed as u64,
            self.count,
            self.seeds.start,
            self.seeds.end,
            self.commit,
            self.seconds,
            self.count as f64 / self.seconds.max(0.001),
            self.operations,
            self.acked,
            self.faults,
            self.acts,
            self.simulated_hours,
            self.twice
        )
    }
}

/// Appends a line to the table at the end of a file; a file that there is not begins with the head.
///
/// # Errors
/// When the file cannot be written.
pub fn append(path: &Path, entry: &Entry) -> io::Result<()> {
    let is_new = !path.exists();
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    let head = if is_new { HEAD } else { "" };
    file.write_all(format!("{head}{}", entry.row()).as_bytes())
}
