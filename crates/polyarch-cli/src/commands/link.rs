//! `polyarch link`: take the link between two members down, and let it come up again.

use clap::{Args, Subcommand};
use polyarch_client::NodeAddress;

use crate::connection::{Connection, ConnectionArguments};
use crate::failure::Failure;

/// Take the link to a member down, and let it come up again.
#[derive(Debug, Subcommand)]
pub(crate) enum Link {
    /// Take the link of the node to a member down, until it is healed or the node restarts
    #[command(after_help = "Example:\n  polyarch link cut 2 --node 127.0.0.1:7401")]
    Cut(Peer),
    /// Let a link that was cut come up again
    #[command(after_help = "Example:\n  polyarch link heal 2 --node 127.0.0.1:7401")]
    Heal(Peer),
}

#[derive(Debug, Args)]
pub(crate) struct Peer {
    /// The member's server id
    #[arg(value_name = "PEER", value_parser = clap::value_parser!(u32).range(1..))]
    server_id: u32,
}

impl Link {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| {
            let node = picked(connection)?;
            match self {
                Self::Cut(peer) => connection.client.cut_link(node, peer.server_id).await?,
                Self::Heal(peer) => connection.client.heal_link(node, peer.server_id).await?,
            }
            Ok(())
        })
    }
}

/// A link has two ends, so it matters which node is told.
fn picked(connection: &Connection) -> Result<&NodeAddress, Failure> {
    match connection.nodes.first().filter(|_| connection.is_picked) {
        Some(node) => Ok(node),
        None => {
            let nodes: Vec<String> = connection.nodes.iter().map(ToString::to_string).collect();
            Err(Failure::usage("say with --node which node's link is meant")
                .hint(format_args!("the profile knows {}", nodes.join(", "))))
        }
    }
}
