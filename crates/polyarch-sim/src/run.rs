//! Running seeds: one, or many on several threads.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::bugs::{self, Bug};
use crate::case::Case;
use crate::coverage::Coverage;
use crate::invariants::{Violation, replays_exactly};
use crate::scenario::Act;
use crate::trace::Sink;
use crate::world::{Happening, Report, SnapshotReport, World};

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
    let run = run_case(&Case::of_seed(seed, bug), bug, sink);
    match run.violation {
        None => Ok(run.report),
        Some(violation) => {
            Err(Box::new(Failure { seed, bug: bug.map(|bug| bug.name), violation, trace_hash: run.report.trace_hash }))
        }
    }
}

/// A run that came to its end, or to what it was not to come to.
#[derive(Debug)]
pub struct Run {
    /// What happened until then.
    pub report: Report,
    /// What of it a case could have left out.
    pub happened: Vec<Happening>,
    /// When all faults ended, if it came so far.
    pub healed_at_us: Option<u64>,
    /// When it ended.
    pub ended_at_us: u64,
    /// What broke, if anything did.
    pub violation: Option<Violation>,
}

/// Runs a case with a bug switched on.
pub fn run_case(case: &Case, bug: Option<Bug>, sink: Sink) -> Run {
    bugs::switch_on(bug);
    let mut world = World::new(case, sink);
    let outcome = catch_unwind(AssertUnwindSafe(|| world.run()));
    bugs::switch_on(None);
    let violation = match outcome {
        Ok(Ok(_)) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => Some(Violation::new(NO_PANIC, message(&*panic))),
    };
    Run {
        report: world.finished_report(),
        happened: world.take_happened(),
        healed_at_us: world.healed_at_us(),
        ended_at_us: world.now_us(),
        violation,
    }
}

/// What a panic of the code under test breaks.
pub const NO_PANIC: &str = "no_panic";

thread_local! {
    static PANICKED_AT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Panics print nothing from now on: each is a violation, which says where it was.
pub fn take_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
        PANICKED_AT.with_borrow_mut(|at| *at = location.unwrap_or_default());
    }));
}

pub(crate) fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let at = PANICKED_AT.take();
    format!("{}{at}", text.unwrap_or("without a message"))
}

/// What many seeds added up to.
#[derive(Debug, Clone, Default)]
pub struct Totals {
    /// Seeds that were run.
    pub seeds: Range<u64>,
    /// How many of them were run twice and compared.
    pub twice: u64,
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
    /// How often each kind of thing was drawn and happened, in seeds that passed.
    pub coverage: Coverage,
    /// What broke, in the order of seeds.
    pub failures: Vec<Failure>,
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshots = self.snapshots;
        writeln!(
            f,
            "{} of the acked writes lost by interval nodes, {} late joins, {} node starts, {} removals known to all",
            self.acked_and_lost, self.late_joins, self.starts, self.removals
        )?;
        writeln!(
            f,
            "{} log segments removed, {} of them by nodes without a link to some member; {} bases of closed epochs, in {} of the seeds",
            self.segments_removed, self.segments_removed_from_afar, self.bases, self.seeds_with_bases
        )?;
        write!(
            f,
            "{} log segments cut; {} snapshots begun, {} resumed, {} failed, {} joined, {} crashes within",
            self.segments_cut,
            snapshots.begun,
            snapshots.resumed,
            snapshots.failed,
            snapshots.joined,
            snapshots.crashes_within
        )?;
        match (self.operations_min, self.faults_min) {
            (Some(operations), Some(faults)) => {
                write!(f, "\neach seed: at least {operations} operations and {faults} faults")
            }
            _ => Ok(()),
        }
    }
}

impl Totals {
    /// How many seeds were run.
    pub fn count(&self) -> u64 {
        self.passed + self.failures.len() as u64
    }

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
        self.coverage.add(&report.kinds);
        let least = |old: Option<usize>, new: usize| Some(old.map_or(new, |old| old.min(new)));
        self.operations_min = least(self.operations_min, report.operations);
        self.faults_min = least(self.faults_min, report.fault_count());
    }
}

/// Of so many seeds one is run twice and compared.
pub const TWICE_EACH: u64 = 100;

/// Which seeds are run, and how.
pub struct Plan<'a> {
    /// Which.
    pub seeds: Range<u64>,
    /// Threads.
    pub jobs: usize,
    /// The bug that is switched on.
    pub bug: Option<Bug>,
    /// Failures after which no other seed is begun.
    pub failures_max: usize,
    /// Of so many seeds one is run twice and compared; 0 for none.
    pub twice_each: u64,
    /// Whether another seed is begun.
    pub goes_on: &'a (dyn Fn() -> bool + Sync),
    /// Is told of each seed that is done.
    pub progress: &'a (dyn Fn(&Totals) + Sync),
}

impl Plan<'_> {
    /// Runs them. Those that were begun are run to their ends, so they are all from the first on.
    pub fn run(&self) -> Totals {
        let (next, is_enough) = (AtomicU64::new(self.seeds.start), AtomicBool::new(false));
        let totals = Mutex::new(Totals { seeds: self.seeds.start..self.seeds.start, ..Totals::default() });
        let work = || {
            while !is_enough.load(Ordering::Relaxed) && (self.goes_on)() {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= self.seeds.end {
                    return;
                }
                let is_twice = self.twice_each > 0 && seed.is_multiple_of(self.twice_each);
                let outcome =
                    if is_twice { run_twice(seed, self.bug) } else { run_seed(seed, self.bug, Sink::Nowhere) };
                let mut totals = totals.lock().expect("no thread panics while it holds the lock");
                totals.seeds.end = totals.seeds.end.max(seed + 1);
                totals.twice += u64::from(is_twice);
                match outcome {
                    Ok(report) => totals.add(&report),
                    Err(failure) => totals.failures.push(*failure),
                }
                is_enough.fetch_or(totals.failures.len() >= self.failures_max, Ordering::Relaxed);
                (self.progress)(&totals);
            }
        };
        thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(work);
            }
        });
        let mut totals = totals.into_inner().expect("all threads have ended");
        totals.failures.sort_by_key(|failure| failure.seed);
        totals
    }
}

/// Runs a seed twice: what is not drawn from it differs.
fn run_twice(seed: u64, bug: Option<Bug>) -> Result<Report, Box<Failure>> {
    let one = run_seed(seed, bug, Sink::Nowhere);
    let other = run_seed(seed, bug, Sink::Nowhere);
    match replays_exactly::check(&one, &other) {
        Ok(()) => one,
        Err(violation) => {
            let trace_hash = one.map_or_else(|failure| failure.trace_hash, |report| report.trace_hash);
            Err(Box::new(Failure { seed, bug: bug.map(|bug| bug.name), violation, trace_hash }))
        }
    }
}

/// Runs seeds on `jobs` threads, telling `progress` how many are done, and ends after `failures_max`.
pub fn run_seeds(
    seeds: Range<u64>,
    jobs: usize,
    bug: Option<Bug>,
    failures_max: usize,
    progress: &(dyn Fn(u64) + Sync),
) -> Totals {
    let progress = |totals: &Totals| progress(totals.count());
    Plan { seeds, jobs, bug, failures_max, twice_each: TWICE_EACH, goes_on: &|| true, progress: &progress }.run()
}
