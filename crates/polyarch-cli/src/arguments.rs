//! The whole command line, and which command each part of it goes to.

use clap::{Parser, Subcommand};

use crate::bench::Bench;
use crate::commands::backup::Backup;
use crate::commands::batch::BatchCommand;
use crate::commands::certs::Certs;
use crate::commands::diff::Diff;
use crate::commands::events::Events;
use crate::commands::fork::Fork;
use crate::commands::keyspace::Keyspace;
use crate::commands::link::Link;
use crate::commands::log::Log;
use crate::commands::members::NodeCommand;
use crate::commands::node::{Found, Serve};
use crate::commands::quarantine::Quarantine;
use crate::commands::record::{Delete, Get, Put, ScanCommand};
use crate::commands::repair::Repair;
use crate::commands::restore::Restore;
use crate::commands::status::Status;
use crate::commands::topology::TopologyCommand;
use crate::commands::transfer::{Export, Import};
use crate::commands::verify::Verify;
use crate::connection::ConnectionArguments;
use crate::demo::Demo;
use crate::failure::Failure;
use crate::logging;

/// A multi-master key-value store: every node accepts every write, and what was written concurrently is kept.
#[derive(Debug, Parser)]
#[command(name = "polyarch", version, disable_help_subcommand = true, max_term_width = 110)]
#[command(after_help = "\
Try it on this machine:
  polyarch certs dev    writes all files of a cluster and prints the commands that start it

Exit status: 0 done, 1 not found or different, 2 usage or a fault of this machine, 3 refused by the node,
4 not reachable or timed out, 130 or 143 ended by Ctrl-C or SIGTERM. A reader that closes the output early, \
as `head` does, ends a command with 0.")]
pub(crate) struct Arguments {
    #[command(flatten)]
    connection: ConnectionArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// See three masters write at once, be cut apart, conflict, heal and agree
    Demo(Demo),
    /// Make and show certificates; `certs dev` prepares a whole cluster on this machine
    #[command(subcommand)]
    Certs(Certs),
    /// Found a cluster in an empty data directory
    #[command(after_help = "With --json: {\"cluster\", \"cluster_id\", \"server_id\"}\n\n\
        Example:\n  polyarch init --config certs/node-1.toml")]
    Init(Found),
    /// Make an empty data directory that of a new member of a running cluster
    #[command(after_help = "With --json: {\"cluster\", \"cluster_id\", \"server_id\"}\n\n\
        Example:\n  polyarch join --config certs/node-2.toml")]
    Join(Found),
    /// Run a node until it is told to stop
    #[command(after_help = "Prints `listening on ADDRESS` once it serves. SIGTERM and SIGINT stop it in order; \
        a second one at once.\n\nExample:\n  polyarch serve --config certs/node-1.toml")]
    Serve(Serve),
    /// Create and list keyspaces
    #[command(subcommand)]
    Keyspace(Keyspace),
    Get(Get),
    Put(Put),
    Delete(Delete),
    Scan(ScanCommand),
    Batch(BatchCommand),
    Import(Import),
    Export(Export),
    Status(Status),
    Diff(Diff),
    /// Show and choose who has links to whom: mesh, ring, star or links of your own
    #[command(subcommand)]
    Topology(TopologyCommand),
    /// List, drain, remove and take back the members of the cluster
    #[command(subcommand)]
    Node(NodeCommand),
    Events(Events),
    /// Show the feeds that a node has stopped, and let them go on
    #[command(subcommand)]
    Quarantine(Quarantine),
    /// Show where two histories of one origin part, and go over to one of them
    #[command(subcommand)]
    Fork(Fork),
    /// Take the link between two members down, and let it come up again
    #[command(subcommand)]
    Link(Link),
    Bench(Box<Bench>),
    Backup(Backup),
    Restore(Restore),
    Verify(Verify),
    Repair(Repair),
    /// Look into the log of a node that is not running
    #[command(subcommand)]
    Log(Log),
}

impl Arguments {
    pub(crate) fn run(self, program: &str) -> Result<(), Failure> {
        if !matches!(self.command, Command::Serve(_)) {
            logging::start_if_asked()?;
        }
        let connection = self.connection;
        match self.command {
            Command::Demo(demo) => demo.run(program),
            Command::Certs(certs) => certs.run(program),
            Command::Init(found) => found.init(),
            Command::Join(found) => found.join(),
            Command::Serve(serve) => serve.run(),
            Command::Bench(bench) => bench.run(&connection),
            Command::Keyspace(keyspace) => keyspace.run(connection),
            Command::Get(get) => get.run(connection),
            Command::Put(put) => put.run(connection),
            Command::Delete(delete) => delete.run(connection),
            Command::Scan(scan) => scan.run(connection),
            Command::Batch(batch) => batch.run(connection),
            Command::Import(import) => import.run(connection),
            Command::Export(export) => export.run(connection),
            Command::Status(status) => status.run(connection),
            Command::Diff(diff) => diff.run(connection),
            Command::Topology(topology) => topology.run(connection),
            Command::Node(node) => node.run(connection),
            Command::Events(events) => events.run(connection),
            Command::Quarantine(quarantine) => quarantine.run(connection),
            Command::Fork(fork) => fork.run(connection),
            Command::Link(link) => link.run(connection),
            Command::Backup(backup) => backup.run(connection),
            Command::Restore(restore) => restore.run(),
            Command::Verify(verify) => verify.run(),
            Command::Repair(repair) => repair.run(),
            Command::Log(log) => log.run(),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_contradicts_itself_nowhere() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_takes_its_arguments() {
        for line in [
            "polyarch certs ca --cluster orders --dir d --days 10 --overwrite",
            "polyarch certs node --server-id 1",
            "polyarch certs client --name shop",
            "polyarch certs show f --json",
            "polyarch certs dev --cluster c --nodes 5 --base-port 9000",
            "polyarch init --config f",
            "polyarch join --config f --json",
            "polyarch serve --config f --log-format json --log-level debug,quinn=warn",
            "polyarch keyspace create k --kind mv",
            "polyarch keyspace list --json",
            "polyarch get k a --json --token T",
            "polyarch put k a -",
            "polyarch put k a -5",
            "polyarch put k a v --context C --token T",
            "polyarch put k a v --nothing-seen",
            "polyarch delete k a --context C",
            "polyarch scan k --prefix p --limit 3 --json",
            "polyarch batch -",
            "polyarch import k -",
            "polyarch import k f --replace",
            "polyarch export k",
            "polyarch export k f",
            "polyarch status --all --json",
            "polyarch --profile p --timeout 5s status --node 127.0.0.1:7401",
            "polyarch diff 2 --keyspace k --limit 5 --wait 30 --json",
            "polyarch diff db2:7400 --all",
            "polyarch topology set ring",
            "polyarch topology set star --hubs 1,2",
            "polyarch topology set custom --edges 1-2,2-3",
            "polyarch topology show --json",
            "polyarch node list --json",
            "polyarch node drain 2 --no-wait",
            "polyarch node remove 2 --force",
            "polyarch node rejoin 2",
            "polyarch node join --config f",
            "polyarch events --limit 5 --json",
            "polyarch quarantine list --json --node 127.0.0.1:7401",
            "polyarch quarantine retry --json --node 127.0.0.1:7401",
            "polyarch quarantine retry 3-9f2c01ab --node 127.0.0.1:7401",
            "polyarch link cut 2 --node 127.0.0.1:7401",
            "polyarch link heal 2 --node 127.0.0.1:7401",
            "polyarch link heal 2 --no-wait --node 127.0.0.1:7401",
            "polyarch backup d --json --node 127.0.0.1:7401",
            "polyarch restore d --config f --json",
            "polyarch verify d --json",
            "polyarch log dump d --json --from 1:48 --limit 2",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn an_empty_key_is_refused_as_usage() {
        for line in [&["get", "k", ""][..], &["put", "k", "", "v"], &["delete", "k", ""]] {
            let error = Arguments::try_parse_from([&["polyarch"], line].concat()).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::ValueValidation, 2));
            assert!(error.to_string().contains("a key has at least one byte"), "{error}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_as_usage() {
        for (line, kind) in [
            ("polyarch", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            ("polyarch frob", ErrorKind::InvalidSubcommand),
            ("polyarch put k a v --context C --nothing-seen", ErrorKind::ArgumentConflict),
            ("polyarch status --all --node 127.0.0.1:7401", ErrorKind::ArgumentConflict),
            ("polyarch status --node nowhere", ErrorKind::ValueValidation),
            ("polyarch certs node --server-id 0", ErrorKind::ValueValidation),
            ("polyarch certs ca --cluster Orders", ErrorKind::ValueValidation),
            ("polyarch diff", ErrorKind::MissingRequiredArgument),
            ("polyarch diff 0", ErrorKind::ValueValidation),
            ("polyarch diff 2 --limit 0", ErrorKind::ValueValidation),
            ("polyarch keyspace create k", ErrorKind::MissingRequiredArgument),
            ("polyarch quarantine retry 3-9f2c01ab:1", ErrorKind::ValueValidation),
            ("polyarch log dump d --from 1", ErrorKind::ValueValidation),
            ("polyarch get k a --timeout 0", ErrorKind::ValueValidation),
            ("polyarch certs ca --cluster c --days 0", ErrorKind::ValueValidation),
            ("polyarch certs ca --cluster c --days -5", ErrorKind::ValueValidation),
            ("polyarch certs ca --cluster c --days 4294967296", ErrorKind::ValueValidation),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), kind, "{line}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
