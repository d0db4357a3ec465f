//! Running seeds: one, or many on several threads.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::bugs::{self, Bug};
use crate::invariants::Violation;
use crate::scenario::Act;
use crate::trace::Sink;
use crate::world::{Report, SnapshotReport, World};

/// A seed whose run broke an invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The bug that was switched on, if any.
    pub bug: Option<&'static str>,
    /// What broke.
    pub violation: Violation,
    /// The fingerprint of all that happened until then.
    pub trace_hash: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = if self.bug.is_some() { " --features seeded-bugs" } else { "" };
        let bug = self.bug.map(|bug| format!(" --bug {bug}")).unwrap_or_default();
        write!(
            f,
            "seed {} breaks {}\n  replay: cargo run --release -p polyarch-sim{features} -- replay {} --trace{bug}",
            self.seed, self.violation, self.seed
        )
    }
}

/// Runs one seed.
///
/// # Errors
/// When an invariant does not hold, or the code under test panics.
pub fn run_seed(seed: u64, bug: Option<Bug>, sink: Sink) -> Result<Report, Box<Failure>> {
    bugs::switch_on(bug);
    let mut world = World::new(seed, sink);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    bugs::switch_on(None);
    let violation = match outcome {
        Ok(Ok(report)) => return Ok(report),
        Ok(Err(violation)) => violation,
        Err(panic) => Violation::new("no_panic", message(&*panic)),
    };
    Err(Box::new(Failure {
        seed,
        bug: bug.map(|bug| bug.name),
        violation,
        trace_hash: world.finished_report().trace_hash,
    }))
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("without a message").to_owned()
}

/// What many seeds added up to.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Seeds that passed.
    pub passed: u64,
    /// Client operations answered.
    pub operations: u64,
    /// Faults.
    pub faults: u64,
    /// Fewest operations of a seed.
    pub operations_min: Option<usize>,
    /// Fewest faults of a seed.
    pub faults_min: Option<usize>,
    /// Virtual time.
    pub virtual_ms: u64,
    /// Starts of nodes.
    pub starts: u64,
    /// Writes that clients were told are written.
    pub acked: u64,
    /// Those of them that crashes of interval nodes took back.
    pub acked_and_lost: u64,
    /// Seeds in which a node joined late.
    pub late_joins: u64,
    /// What operators did, by kind.
    pub acts: BTreeMap<Act, u64>,
    /// Times that all others knew of a member's removal.
    pub removals: u64,
    /// Log segments removed.
    pub segments_removed: u64,
    /// Of these, those that went while the node had no link to some member.
    pub segments_removed_from_afar: u64,
    /// Log segments cut, whoever lacked them.
    pub segments_cut: u64,
    /// Bases that were published.
    pub bases: u64,
    /// Seeds in which any was.
    pub seeds_with_bases: u64,
    /// What became of snapshots.
    pub snapshots: SnapshotReport,
    /// Seeds by the topology in the end, its first word.
    pub topologies: BTreeMap<String, u64>,
    /// What broke, in the order of seeds.
    pub failures: Vec<Failure>,
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.passed += 1;
        self.operations += report.operations as u64;
        self.faults += report.fault_count() as u64;
        self.starts += report.starts as u64;
        self.acked += report.acked as u64;
        self.acked_and_lost += report.acked_and_lost as u64;
        self.late_joins += u64::from(report.joined_after > 0);
        self.virtual_ms += report.virtual_ms;
        self.segments_removed += report.segments_removed as u64;
        self.segments_removed_from_afar += report.segments_removed_from_afar as u64;
        self.segments_cut += report.segments_cut as u64;
        self.bases += report.bases as u64;
        self.seeds_with_bases += u64::from(report.bases > 0);
        self.snapshots += report.snapshots;
        self.removals += report.removals as u64;
        report.acts.iter().for_each(|(act, times)| *self.acts.entry(*act).or_default() += *times as u64);
        let word = report.topology.split(':').next().unwrap_or_default();
        *self.topologies.entry(word.to_owned()).or_default() += 1;
        let least = |old: Option<usize>, new: usize| Some(old.map_or(new, |old| old.min(new)));
        self.operations_min = least(self.operations_min, report.operations);
        self.faults_min = least(self.faults_min, report.fault_count());
    }
}

/// Runs seeds on `jobs` threads, telling `progress` of each one done, and ends after `failures_max`.
pub fn run_seeds(
    seeds: Range<u64>,
    jobs: usize,
    bug: Option<Bug>,
    failures_max: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Totals {
    let (next, is_enough) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let totals = Mutex::new(Totals::default());
    let work = || {
        while !is_enough.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let outcome = run_seed(seed, bug, Sink::Nowhere);
            let mut totals = totals.lock().expect("no thread panics while it holds the lock");
            match outcome {
                Ok(report) => totals.add(&report),
                Err(failure) => totals.failures.push(*failure),
            }
            is_enough.fetch_or(totals.failures.len() >= failures_max, Ordering::Relaxed);
            progress(totals.passed + totals.failures.len() as u64);
        }
    };
    thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(work);
        }
    });
    let mut totals = totals.into_inner().expect("all threads have ended");
    totals.failures.sort_by_key(|failure| failure.seed);
    totals
}
