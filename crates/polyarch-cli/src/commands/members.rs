//! `polyarch node`: the members of the cluster.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use polyarch_client::{Client, MemberChange, MemberStatus, StatusView};
use tokio::time::sleep;

use crate::commands::node::Found;
use crate::connection::ConnectionArguments;
use crate::failure::Failure;
use crate::json::{MemberObject, WrittenObject};
use crate::terminal::Output;

/// How often a drain looks where it stands.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How often it says so.
const SAY_EVERY: u32 = 25;

/// List, drain, remove and take back members.
#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List the members as a node knows them
    #[command(after_help = "\
joining: new or back, not yet caught up; active; draining: takes no writes, hands over what it has; down: another
member has all that it wrote, it may be stopped; removed: nobody has a link to it.

With --json, a line for each: {\"server_id\", \"name\", \"status\", \"reachable\", \"linked\", \"addresses\"}")]
    List {
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Make an empty data directory that of a new member; the same as `polyarch join`
    #[command(after_help = "Example:\n  polyarch node join --config certs/node-4.toml")]
    Join(Found),
    /// Let a member take no more writes, and wait until another one has all that it wrote
    #[command(after_help = "\
When this ends with status 0, the member may be stopped and removed without losing anything.
`polyarch node rejoin` takes it back.

Example:
  polyarch node drain 3")]
    Drain {
        #[command(flatten)]
        member: Which,
        /// Do not wait
        #[arg(long)]
        no_wait: bool,
    },
    /// Take a drained member out of the cluster
    #[command(after_help = "\
What it wrote and others have stays. Others close their links to it, and it takes no writes once it knows.

Example:
  polyarch node remove 3")]
    Remove {
        #[command(flatten)]
        member: Which,
        /// Also when it was not drained: what only it has is lost to the cluster until it rejoins
        #[arg(long)]
        force: bool,
    },
    /// Take a member back that was drained or removed; what only it has is handed on then
    #[command(after_help = "Example:\n  polyarch node rejoin 3")]
    Rejoin {
        #[command(flatten)]
        member: Which,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Which {
    /// The member's server id
    #[arg(value_name = "SERVER_ID", value_parser = clap::value_parser!(u32).range(1..))]
    server_id: u32,
    /// Print one JSON object: {"gtid", "hlc", "token"}
    #[arg(long)]
    json: bool,
}

impl NodeCommand {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        match self {
            Self::List { json } => list(connection, json),
            Self::Join(found) => found.join(),
            Self::Drain { member, no_wait } => member.change(connection, MemberChange::Drain, !no_wait),
            Self::Remove { member, force } => member.change(connection, MemberChange::Remove { force }, false),
            Self::Rejoin { member } => member.change(connection, MemberChange::Rejoin, false),
        }
    }
}

impl Which {
    fn change(self, connection: ConnectionArguments, change: MemberChange, waits: bool) -> Result<(), Failure> {
        connection.run(async |connection| {
            let written = connection.client.change_member(self.server_id, change).await?;
            if waits {
                until_down(&connection.client, self.server_id).await?;
            }
            let mut output = Output::stdout();
            if self.json {
                output.json(&WrittenObject::from(&written))?;
            }
            output.flush()
        })
    }
}

/// Waits until another member has all that this one wrote. That it is down is the last of its own
/// write sets, and write sets of one origin are applied in order: whoever knows it has all others.
async fn until_down(client: &Client, server_id: u32) -> Result<(), Failure> {
    for looked in 0_u32.. {
        let status = client.status().await?;
        match status_of(&status, server_id).filter(|_| status.server_id != server_id) {
            Some(MemberStatus::Down | MemberStatus::Removed) => break,
            Some(MemberStatus::Active | MemberStatus::Joining) if looked > 0 => {
                return Err(Failure::refused(format_args!("member {server_id} was taken back while it was drained")));
            }
            _ if looked % SAY_EVERY == SAY_EVERY - 1 => {
                let _ = writeln!(
                    io::stderr(),
                    "waiting for another member to have all that {server_id} wrote; Ctrl-C ends only the waiting"
                );
            }
            _ => {}
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Where a member stands, as the node that answered knows it.
fn status_of(status: &StatusView, server_id: u32) -> Option<MemberStatus> {
    let peer = status.peers.iter().find(|peer| peer.server_id == server_id).map(|peer| peer.status);
    peer.or(status.status.filter(|_| status.server_id == server_id))
}

fn list(connection: ConnectionArguments, json: bool) -> Result<(), Failure> {
    connection.run(async |connection| {
        let status = connection.client.status().await?;
        let mut output = Output::stdout();
        for member in MemberObject::all(&status) {
            match json {
                true => output.json(&member)?,
                false => output.line(&member)?,
            }
        }
        output.flush()
    })
}
