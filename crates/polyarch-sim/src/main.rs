//! `polyarch-sim`: tells a story, runs seeds, replays one, and shows which bugs it would see.

use std::io::{IsTerminal, Write};
use std::num::NonZero;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};
use polyarch_sim::Sink;
use polyarch_sim::bugs::{self, BUGS, Bug};
use polyarch_sim::run::{Totals, run_seed, run_seeds};
use polyarch_sim::topologies::{self, Count};

/// A seeded simulator of whole Polyarch clusters. Without a command it tells a short story.
#[derive(Parser)]
#[command(name = "polyarch-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Run seeds; the first that fails are printed with the command that replays them.
    Run {
        /// Which, as FIRST..END.
        #[arg(long, value_parser = parse_range, default_value = "0..200")]
        seeds: Range<u64>,
        /// Threads [default: one for each processor].
        #[arg(long)]
        jobs: Option<usize>,
        /// A bug to switch on (needs the feature `seeded-bugs`).
        #[arg(long, value_parser = parse_bug)]
        bug: Option<Bug>,
        /// Failures after which to stop.
        #[arg(long, default_value_t = 5)]
        failures: usize,
    },
    /// Run one seed again and print its trace hash, the same each time.
    Replay {
        /// The seed.
        seed: u64,
        /// Print all that happens.
        #[arg(long)]
        trace: bool,
        /// A bug to switch on (needs the feature `seeded-bugs`).
        #[arg(long, value_parser = parse_bug)]
        bug: Option<Bug>,
    },
    /// Count what each topology costs in a healthy cluster: links, crossings, messages, hops, time.
    Topologies {
        /// Numbers of nodes, with commas; at least 2 each.
        #[arg(long, value_delimiter = ',', default_value = "3,5,9,16,32",
              value_parser = clap::value_parser!(u64).range(2..=64))]
        nodes: Vec<u64>,
        /// Print a JSON array instead of a table.
        #[arg(long)]
        json: bool,
    },
    /// Run each seeded bug until it is caught (needs the feature `seeded-bugs`).
    Bugs {
        /// Seeds after which a bug counts as missed.
        #[arg(long, default_value_t = 2_000)]
        seeds: u64,
        /// Threads [default: one for each processor].
        #[arg(long)]
        jobs: Option<usize>,
    },
}

fn parse_range(text: &str) -> Result<Range<u64>, String> {
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.ok_or_else(|| format!("`{text}` is not of the form FIRST..END"))
}

fn parse_bug(name: &str) -> Result<Bug, String> {
    if !bugs::are_built_in() {
        return Err("this build has no bugs to switch on; build it with `--features seeded-bugs`".into());
    }
    let names = || BUGS.iter().map(|bug| bug.name).collect::<Vec<_>>().join(", ");
    bugs::find(name).ok_or_else(|| format!("there is no bug `{name}`; there are {}", names()))
}

fn main() -> ExitCode {
    match Cli::parse().command {
        None => story(),
        Some(Command::Run { seeds, jobs, bug, failures }) => run(seeds, jobs, bug, failures),
        Some(Command::Replay { seed, trace, bug }) => replay(seed, trace, bug),
        Some(Command::Topologies { nodes, json }) => count_topologies(&nodes, json),
        Some(Command::Bugs { seeds, jobs }) => catch_bugs(seeds, jobs),
    }
}

fn story() -> ExitCode {
    match polyarch_sim::story::tell() {
        Ok(story) => {
            print!("{story}");
            ExitCode::SUCCESS
        }
        Err(violation) => {
            eprintln!("the story breaks {violation}");
            ExitCode::FAILURE
        }
    }
}

fn run(seeds: Range<u64>, jobs: Option<usize>, bug: Option<Bug>, failures: usize) -> ExitCode {
    let begun = Instant::now();
    let count = seeds.end.saturating_sub(seeds.start);
    let totals = run_seeds(seeds, jobs.unwrap_or_else(processors), bug, failures, &|done| show_progress(done, count));
    clear_progress();
    print_totals(&totals, begun.elapsed().as_secs_f64());
    for failure in &totals.failures {
        println!("\n{failure}");
    }
    match totals.failures.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn print_totals(totals: &Totals, seconds: f64) {
    let seeds = totals.passed + totals.failures.len() as u64;
    println!(
        "{} of {seeds} seeds passed in {seconds:.1} s ({:.1} seeds/s): {} operations answered, {} writes acked ({} lost by interval nodes), {} faults, {} late joins, {} node starts, {:.1} h of virtual time",
        totals.passed,
        seeds as f64 / seconds.max(0.001),
        totals.operations,
        totals.acked,
        totals.acked_and_lost,
        totals.faults,
        totals.late_joins,
        totals.starts,
        totals.virtual_ms as f64 / 3_600_000.0
    );
    let topologies: Vec<String> = totals.topologies.iter().map(|(word, seeds)| format!("{seeds} {word}")).collect();
    let acts: u64 = totals.acts.values().sum();
    println!(
        "topologies in the end: {}; {acts} acts of operators, {} removals known to all",
        topologies.join(", "),
        totals.removals
    );
    println!(
        "{} log segments removed, {} of them by nodes without a link to some member",
        totals.segments_removed, totals.segments_removed_from_afar
    );
    println!("{} bases of closed epochs, in {} of the seeds", totals.bases, totals.seeds_with_bases);
    let snapshots = totals.snapshots;
    println!(
        "{} log segments cut; {} snapshots begun, {} resumed, {} failed, {} joined, {} crashes within",
        totals.segments_cut,
        snapshots.begun,
        snapshots.resumed,
        snapshots.failed,
        snapshots.joined,
        snapshots.crashes_within
    );
    if let (Some(operations), Some(faults)) = (totals.operations_min, totals.faults_min) {
        println!("each seed: at least {operations} operations and {faults} faults");
    }
}

fn replay(seed: u64, trace: bool, bug: Option<Bug>) -> ExitCode {
    let sink = if trace { Sink::Stdout } else { Sink::Nowhere };
    match run_seed(seed, bug, sink) {
        Ok(report) => {
            println!("{report:#?}");
            println!("seed {seed} passes, trace hash {:016x}", report.trace_hash);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!("{failure}\n  trace hash {:016x}", failure.trace_hash);
            ExitCode::FAILURE
        }
    }
}

fn count_topologies(nodes: &[u64], json: bool) -> ExitCode {
    let counts: Vec<_> = nodes.iter().flat_map(|nodes| topologies::count_each(*nodes as usize)).collect();
    let failed = counts.iter().filter_map(|count| count.as_ref().err());
    failed.clone().for_each(|violation| eprintln!("{violation}"));
    let counts: Vec<&Count> = counts.iter().filter_map(|count| count.as_ref().ok()).collect();
    match json {
        true => {
            let objects: Vec<String> = counts.iter().map(|count| count.to_json()).collect();
            println!("[{}]", objects.join(",\n "));
        }
        false => {
            println!("{}", Count::HEAD);
            counts.iter().for_each(|count| println!("{count}"));
            println!("\n{}", topologies::how_it_is_counted());
        }
    }
    match failed.count() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn catch_bugs(seeds: u64, jobs: Option<usize>) -> ExitCode {
    if !bugs::are_built_in() {
        eprintln!("this build has no bugs to switch on; build it with `--features seeded-bugs`");
        return ExitCode::from(2);
    }
    // A panic is one way to be caught; its message is in the table.
    std::panic::set_hook(Box::new(|_| {}));
    println!("{:<32} {:<36} after seeds", "bug", "caught by");
    let mut missed = 0;
    for bug in BUGS {
        let totals =
            run_seeds(0..seeds, jobs.unwrap_or_else(processors), Some(bug), 1, &|done| show_progress(done, seeds));
        clear_progress();
        match totals.failures.first() {
            Some(failure) => println!("{:<32} {:<36} {}", bug.name, failure.violation.invariant, totals.passed + 1),
            None => {
                missed += 1;
                println!("{:<32} {:<36} {}", bug.name, "MISSED", totals.passed);
            }
        }
    }
    match missed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

fn show_progress(done: u64, count: u64) {
    if done.is_multiple_of(10) && std::io::stderr().is_terminal() {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "\r{done} of {count} seeds");
        let _ = stderr.flush();
    }
}

fn clear_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r{:40}\r", "");
    }
}
