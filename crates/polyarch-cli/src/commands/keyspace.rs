//! `polyarch keyspace`: create and list keyspaces.

use clap::{Subcommand, ValueEnum};
use polyarch_client::{KeyspaceKind, KeyspaceView};

use super::print_written;
use crate::connection::ConnectionArguments;
use crate::failure::Failure;
use crate::json::KeyspaceObject;
use crate::terminal::Output;

/// Create and list keyspaces.
#[derive(Debug, Subcommand)]
pub(crate) enum Keyspace {
    /// Create a keyspace; the other nodes hear of it as of any write
    #[command(after_help = "With --json: {\"gtid\", \"hlc\", \"token\"}\n\n\
        Example:\n  polyarch keyspace create carts --kind mv")]
    Create {
        /// 1 to 128 letters, digits, `_`, `-` and `.`, the first a letter
        name: String,
        /// What it shows of values that were written concurrently
        #[arg(long, value_enum)]
        kind: Kind,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// List the keyspaces that a node knows, by name
    #[command(after_help = "With --json, a line for each: {\"name\", \"kind\", \"id\", \"by_name\"}\n\
        Where by_name is false, an older keyspace has the name, and this one is reached by its id.")]
    List {
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Last writer wins: one value
    Lww,
    /// Multi-value: all siblings
    Mv,
}

impl From<Kind> for KeyspaceKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Lww => Self::Lww,
            Kind::Mv => Self::Mv,
        }
    }
}

impl Keyspace {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        match self {
            Self::Create { name, kind, json } => connection.run(async |connection| {
                let written = connection.client.create_keyspace(&name, kind.into()).await?;
                print_written(&written, json)
            }),
            Self::List { json } => connection.run(async |connection| {
                let mut keyspaces = connection.client.keyspaces().await?;
                // The one that the name answers to comes first.
                keyspaces.sort_by(|a, b| (&a.name, !a.by_name, a.id).cmp(&(&b.name, !b.by_name, b.id)));
                let mut output = Output::stdout();
                for keyspace in &keyspaces {
                    match json {
                        true => output.json(&KeyspaceObject::from(keyspace))?,
                        false => output.line(described(keyspace))?,
                    }
                }
                output.flush()
            }),
        }
    }
}

fn described(keyspace: &KeyspaceView) -> String {
    let how = if keyspace.by_name { "" } else { "\t(reached by its id)" };
    format!("{}\t{}\t{}{how}", keyspace.name, keyspace.kind.as_str(), keyspace.id)
}
