//! `exhaust`: every order of a few events.

use std::process::ExitCode;
use std::time::Instant;

use polyarch_protocol::catalog::KeyspaceKind;
use polyarch_sim::bugs::Bug;
use polyarch_sim::exhaustive::{Order, Scope, Search};
use polyarch_sim::run::take_panics;

use super::processors;
use crate::parse_bug;

/// What can be left out of orders.
const WITHOUT: [&str; 6] = ["deletes", "ends", "unsynced", "set-back", "checkpoints", "snapshots"];

#[derive(clap::Args)]
pub(crate) struct ExhaustArguments {
    /// Events of an order, at most.
    #[arg(long, default_value_t = 4)]
    events: usize,
    /// Keys that clients write.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    keys: u8,
    /// The keyspace is of kind `lww`.
    #[arg(long)]
    lww: bool,
    /// Each key has a value on all nodes in the beginning.
    #[arg(long)]
    values: bool,
    /// Leave these out, with commas.
    #[arg(long, value_delimiter = ',', value_parser = WITHOUT)]
    without: Vec<String>,
    /// Run this one, as an order that broke something is printed.
    #[arg(long)]
    order: Option<Order>,
    /// Run also those orders that come to the same as another.
    #[arg(long)]
    alike: bool,
    /// Threads [default: one for each processor].
    #[arg(long)]
    jobs: Option<usize>,
    /// A bug to switch on (needs the feature `seeded-bugs`).
    #[arg(long, value_parser = parse_bug)]
    bug: Option<Bug>,
}

/// Runs orders and says what they broke.
pub(crate) fn exhaust(arguments: &ExhaustArguments) -> ExitCode {
    if arguments.bug.is_some() {
        // A panic is one way to be caught, and part of what is printed.
        take_panics();
    }
    let begun = Instant::now();
    let search = arguments.search();
    let outcome = match &arguments.order {
        Some(order) => search.run_order(order).map(|()| None),
        None => search.run().map(Some),
    };
    let broken = match outcome {
        Ok(found) => {
            let seconds = begun.elapsed().as_secs_f64();
            found.inspect(|found| println!("{found} in {seconds:.1} s")).and_then(|found| found.broken)
        }
        Err(violation) => {
            println!("it breaks {violation}");
            return ExitCode::FAILURE;
        }
    };
    match broken {
        None => ExitCode::SUCCESS,
        Some(broken) => {
            println!("{broken}");
            ExitCode::FAILURE
        }
    }
}

impl ExhaustArguments {
    fn search(&self) -> Search {
        let has = |what: &str| self.without.iter().all(|left_out| left_out != what);
        let scope = Scope {
            events: self.events,
            keys: self.keys.into(),
            kind: if self.lww { KeyspaceKind::Lww } else { KeyspaceKind::Mv },
            has_values: self.values,
            deletes: has("deletes"),
            ends: has("ends"),
            unsynced: has("unsynced"),
            set_back: has("set-back"),
            checkpoints: has("checkpoints"),
            snapshots: has("snapshots"),
        };
        let jobs = self.jobs.unwrap_or_else(processors);
        Search { scope, bug: self.bug, jobs, leaves_out_alike: !self.alike }
    }
}
