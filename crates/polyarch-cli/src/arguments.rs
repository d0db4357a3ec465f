//! The whole command line, and which command each part of it goes to.

use clap::{Parser, Subcommand};

use crate::commands::certs::Certs;
use crate::commands::node::{Found, Serve};
use crate::failure::Failure;
use crate::logging;

/// A multi-master key-value store: every node accepts every write, and what was written concurrently is kept.
#[derive(Debug, Parser)]
#[command(name = "polyarch", version, propagate_version = true, disable_help_subcommand = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make and show certificates; `certs dev` prepares a whole cluster on this machine
    #[command(subcommand)]
    Certs(Certs),
    /// Found a cluster in an empty data directory
    Init(Found),
    /// Make an empty data directory a member's of a cluster that exists
    Join(Found),
    /// Run a node until it is told to stop
    Serve(Serve),
}

impl Arguments {
    pub(crate) fn run(self, program: &str) -> Result<(), Failure> {
        if !matches!(self.command, Command::Serve(_)) {
            logging::start_if_asked()?;
        }
        match self.command {
            Command::Certs(certs) => certs.run(program),
            Command::Init(found) => found.init(),
            Command::Join(found) => found.join(),
            Command::Serve(serve) => serve.run(),
        }
    }
}
