//! `polyarch link`: take the link between two members down, and let it come up again.

use clap::{Args, Subcommand};
use polyarch_client::NodeAddress;

use crate::connection::{Connection, ConnectionArguments};
use crate::failure::Failure;
use crate::terminal::note;
use crate::waiting::wait_until;

/// Take the link to a member down, and let it come up again.
#[derive(Debug, Subcommand)]
pub(crate) enum Link {
    /// Take the link of the node to a member down, until it is healed or the node restarts
    #[command(after_help = "Example:\n  polyarch link cut 2 --node 127.0.0.1:7401")]
    Cut(Peer),
    /// Let a link that was cut come up again, and wait until it has
    #[command(
        after_help = "Waits as long as --timeout or the profile says. A link that is not up by then, since its\n\
        other end is cut or the member is gone, is told on stderr and no failure: exit status 0.\n\n\
        Example:\n  polyarch link heal 2 --node 127.0.0.1:7401"
    )]
    Heal {
        #[command(flatten)]
        peer: Peer,
        /// Do not wait until the link is up
        #[arg(long)]
        no_wait: bool,
    },
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
                Self::Cut(peer) => Ok(connection.client.cut_link(node, peer.server_id).await?),
                Self::Heal { peer, no_wait } => {
                    connection.client.heal_link(node, peer.server_id).await?;
                    match no_wait {
                        true => Ok(()),
                        false => wait_until_linked(connection, node, peer.server_id).await,
                    }
                }
            }
        })
    }
}

/// Both ends dial, so it takes moments; unless the other end is cut too, or gone.
async fn wait_until_linked(connection: &Connection, node: &NodeAddress, server_id: u32) -> Result<(), Failure> {
    let client = connection.client.only(node);
    let is_linked = wait_until(connection.timeout, async || {
        let status = client.status().await?;
        Ok(status.peers.iter().any(|peer| peer.server_id == server_id && peer.linked))
    });
    if !is_linked.await? {
        note(&format!(
            "the link to member {server_id} is healed at this end and not up yet; is its other end cut too, or the member \
             gone? `polyarch status --node {node}` shows when it is up"
        ));
    }
    Ok(())
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
