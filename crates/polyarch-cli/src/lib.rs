//! The commands of the `polyarch` binary, as a library: a program that ships a node of its own can offer all of them.
//!
//! ```no_run
//! fn main() -> std::process::ExitCode {
//!     polyarch_cli::main()
//! }
//! ```
//!
//! - `arguments`: the whole command line, and which command each part of it goes to.
//! - `bench`: measuring a cluster.
//! - `commands`: one file for each family of commands.
//! - `demo`: the play for first-time visitors.
//! - `local_cluster`: real node processes on this machine, for the demo and the benchmark.
//! - `connection`: from profile and flags to a client.
//! - `waiting`: for what nodes are about to come to.
//! - `signals`: those that end a command in order.
//! - `json`: every object that `--json` prints, and the lines that `batch` and `import` read.
//! - `failure`: the one place where an error becomes an exit status and a line on stderr.
//! - `terminal`: standard output, lines of input, colours.
//! - `logging`: what a node logs, and how.
//!
//! # Exit status
//!
//! | status | meaning |
//! |---|---|
//! | 0 | done; also when whoever read the output has seen enough and closed it, as `head` does |
//! | 1 | not found: `get` or `delete` of a key that is not there; different: `diff` of nodes that are not equal |
//! | 2 | usage: arguments, input, configuration, profile or certificates are of no use, or this machine does not take part: a full disk, a port that is taken |
//! | 3 | refused: by the node that was asked, by a node that cannot run, or `verify` found something wrong |
//! | 4 | not reachable, timed out, or not known whether a write was done |
//! | 129, 130, 143 | ended by SIGHUP, SIGINT (Ctrl-C), SIGTERM before it was done |

mod arguments;
mod bench;
mod commands;
mod connection;
mod demo;
mod failure;
mod json;
mod local_cluster;
mod logging;
mod signals;
mod terminal;
mod waiting;

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Arguments;
pub use crate::json::{BatchChange, ImportRecord, ImportValue};

/// Runs the command that this process was given.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// Runs the command in `args`, the first of which is the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let program = args.first().map_or("polyarch".into(), |name| name.to_string_lossy().into_owned());
    let arguments = match Arguments::try_parse_from(args) {
        Ok(arguments) => arguments,
        Err(error) => return explain(&error),
    };
    match arguments.run(&program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Prints help, or what is wrong with the arguments.
fn explain(error: &clap::Error) -> ExitCode {
    let status = ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    match error.print().and_then(|()| io::stdout().flush()) {
        // Nobody left to be told that nobody can be told.
        Err(_) if error.use_stderr() => status,
        Err(unprinted) => terminal::broken(&unprinted).report(),
        Ok(()) => status,
    }
}
