//! Runs many seeds, shrinks those that fail, and keeps a ledger.

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use polyarch_sim::bugs::Bug;
use polyarch_sim::ledger::{self, Entry};
use polyarch_sim::run::{Plan, TWICE_EACH, Totals, take_panics};

use super::{cases, clear_progress, outside, processors, show_progress};

/// Which seeds are run, and what becomes of them.
#[derive(Args)]
pub(crate) struct Seeds {
    /// Which, as FIRST..END.
    #[arg(long, value_parser = crate::parse_range, default_value = "0..200")]
    seeds: Range<u64>,
    /// Seeds that were most likely never run, from one on that the clock gives. It is printed.
    #[arg(long, conflicts_with = "seeds", requires = "minutes")]
    fresh: bool,
    /// Minutes after which no other seed is begun.
    #[arg(long)]
    minutes: Option<f64>,
    /// Threads [default: one for each processor].
    #[arg(long)]
    jobs: Option<usize>,
    /// A bug to switch on (needs the feature `seeded-bugs`).
    #[arg(long, value_parser = crate::parse_bug)]
    bug: Option<Bug>,
    /// Failures after which to stop.
    #[arg(long, default_value_t = 5)]
    failures: usize,
    /// Seconds for shrinking each seed that fails; 0 leaves it as it is.
    #[arg(long, default_value_t = 60)]
    shrink_seconds: u64,
    /// Print a JSON object instead.
    #[arg(long)]
    json: bool,
    /// Append a line to this table.
    #[arg(long)]
    ledger: Option<PathBuf>,
}

/// Runs seeds; says with its exit status whether all passed.
pub(crate) fn run(asked: &Seeds) -> ExitCode {
    let begun = Instant::now();
    let seeds = if asked.fresh { fresh(asked.json) } else { asked.seeds.clone() };
    let time = asked.minutes.map(|minutes| Duration::from_secs_f64(minutes.max(0.0) * 60.0));
    if asked.shrink_seconds > 0 {
        // Of each panic a case is made, which names it.
        take_panics();
    }
    let plan = Plan {
        seeds: seeds.clone(),
        jobs: asked.jobs.unwrap_or_else(processors),
        bug: asked.bug,
        failures_max: asked.failures,
        twice_each: TWICE_EACH,
        goes_on: &|| time.is_none_or(|time| begun.elapsed() < time),
        progress: &|totals| show_progress(totals.count(), &|| progress_in_words(totals, &seeds, begun, time)),
    };
    let totals = plan.run();
    clear_progress();
    let entry = Entry::new(outside::date(), outside::commit(), &totals, begun.elapsed().as_secs_f64());
    match asked.json {
        true => println!("{}", entry.to_json(&totals)),
        false => print_totals(&entry, &totals),
    }
    shrink_failures(&totals, asked);
    let is_written = asked.ledger.as_ref().is_none_or(|path| match ledger::append(path, &entry) {
        Ok(()) => true,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            false
        }
    });
    let missing = totals.coverage.missing(totals.count());
    missing.iter().for_each(|kind| eprintln!("in {} seeds never happened: {kind}", totals.count()));
    match totals.failures.is_empty() && missing.is_empty() && is_written {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn fresh(json: bool) -> Range<u64> {
    let first = outside::fresh_seed();
    if !json {
        println!("fresh seeds, from {first} on");
    }
    first..u64::MAX
}

fn progress_in_words(totals: &Totals, seeds: &Range<u64>, begun: Instant, time: Option<Duration>) -> String {
    let seconds = begun.elapsed().as_secs_f64();
    let (done, failed) = (totals.count(), totals.failures.len());
    let of = match time {
        Some(time) => format!("{seconds:.0} of {:.0} s", time.as_secs_f64()),
        None => format!("of {}", seeds.end.saturating_sub(seeds.start)),
    };
    format!("{done} seeds, {of}, {:.1} seeds/s, {failed} failed", done as f64 / seconds.max(0.001))
}

fn print_totals(entry: &Entry, totals: &Totals) {
    println!("{entry}");
    println!("{totals}");
    println!("{}", totals.coverage);
    for failure in &totals.failures {
        println!("\n{failure}");
    }
}

/// Makes a case of each failure, and keeps it where no bug was switched on.
fn shrink_failures(totals: &Totals, asked: &Seeds) {
    let time = Duration::from_secs(asked.shrink_seconds);
    for failure in totals.failures.iter().filter(|_| !time.is_zero()) {
        let Some(shrunken) = cases::shrink_within(failure.seed, asked.bug, time) else { continue };
        if !asked.json {
            println!("\nseed {}: {}", failure.seed, cases::told(&shrunken));
        }
        if asked.bug.is_some() {
            continue;
        }
        let path = cases::regressions().join(cases::name(&shrunken));
        match cases::keep(&shrunken, &path) {
            Ok(()) if asked.json => {}
            Ok(()) => println!("written to {}", path.display()),
            Err(error) => eprintln!("{error}"),
        }
    }
}
