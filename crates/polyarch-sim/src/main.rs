//! `polyarch-sim`: tells a story, runs seeds, replays and shrinks one, and shows which bugs it would see.

mod commands;

use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::cases::{replay, shrink};
use commands::exhaust::{ExhaustArguments, exhaust};
use commands::run::{Seeds, run};
use commands::{clear_progress, processors, show_progress};
use polyarch_sim::bugs::{self, BUGS, Bug};
use polyarch_sim::run::{run_seeds, take_panics};
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
    Run(Seeds),
    /// Leave out of a seed that fails all that it fails without, and write what is left to a file.
    Shrink {
        /// The seed.
        seed: u64,
        /// A bug to switch on (needs the feature `seeded-bugs`).
        #[arg(long, value_parser = parse_bug)]
        bug: Option<Bug>,
        /// Seconds after which what was reached is good enough.
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// The file [default: in `crates/polyarch-sim/regressions`, by what it shows].
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Run one seed or case again and print its trace hash, the same each time.
    Replay {
        /// The seed, or a case's file.
        which: String,
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
    /// Run every order of a few events on three nodes.
    Exhaust(ExhaustArguments),
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
        Some(Command::Run(seeds)) => run(&seeds),
        Some(Command::Shrink { seed, bug, seconds, out }) => shrink(seed, bug, seconds, out),
        Some(Command::Replay { which, trace, bug }) => replay(&which, trace, bug),
        Some(Command::Topologies { nodes, json }) => count_topologies(&nodes, json),
        Some(Command::Exhaust(arguments)) => exhaust(&arguments),
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
    take_panics();
    println!("{:<32} {:<36} after seeds", "bug", "caught by");
    let mut missed = 0;
    for bug in BUGS {
        let totals = run_seeds(0..seeds, jobs.unwrap_or_else(processors), Some(bug), 1, &|done| {
            show_progress(done, &|| format!("{done} of {seeds} seeds"));
        });
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
