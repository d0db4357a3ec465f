//! `polyarch node`: the members of the cluster.

use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, Subcommand};
use polyarch_client::{Client, Error, MemberChange, MemberStatus, PeerView, Refusal, StatusView};
use tokio::time::sleep;

use crate::commands::node::Found;
use crate::connection::{Connection, ConnectionArguments};
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
joining    new or back, and not yet caught up; takes writes
active     takes writes
draining   takes no writes, and hands over what it has
down       another member has all that it had; it may be stopped
removed    no member any more; nobody has a link to it

Each line: server id, name, status, how the node that answers reaches it, addresses. With --json:
  {\"server_id\", \"name\", \"status\", \"reachable\", \"linked\", \"addresses\": [ADDR..]}
\"linked\" is null for the node that answers; \"addresses\" of that one is where it answered.

Example:
  polyarch node list --node 127.0.0.1:7401")]
    List {
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Make an empty data directory that of a new member; the same as `polyarch join`
    #[command(after_help = "Example:\n  polyarch node join --config certs/node-4.toml")]
    Join(Found),
    /// Let a member take no more writes, and wait until another one has all that it has
    #[command(after_help = "\
When this ends with exit status 0, the member may be stopped and removed, and nothing is lost with it.
`polyarch node rejoin` takes a drain back.

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
    #[command(after_help = "\
One that was removed has no links: this has to be told to another member, and is where the profile names one.

Example:
  polyarch node rejoin 3")]
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
            let client = match change {
                MemberChange::Rejoin => told_of_rejoin(connection, self.server_id).await?,
                _ => connection.client.clone(),
            };
            let written = client.change_member(self.server_id, change).await.map_err(not_changed)?;
            if waits {
                until_down(&client, self.server_id).await?;
            }
            let mut output = Output::stdout();
            if self.json {
                output.json(&WrittenObject::from(&written))?;
            }
            output.flush()
        })
    }
}

/// Whom to tell that a member rejoins: another one, if the one that answers is the member itself and was removed. It has
/// no links, so nobody would hear of it from there.
async fn told_of_rejoin(connection: &Connection, server_id: u32) -> Result<Client, Failure> {
    let (asked, status) = connection.client.status_with_node().await?;
    if status.server_id == server_id && status.status == Some(MemberStatus::Removed) {
        for node in connection.nodes.iter().filter(|node| **node != asked) {
            let client = connection.client.only(node);
            if client.status().await.is_ok_and(|status| status.server_id != server_id) {
                return Ok(client);
            }
        }
    }
    Ok(connection.client.clone())
}

fn not_changed(error: Error) -> Failure {
    match error {
        Error::Refused(Refusal::MemberIs(MemberStatus::Removed)) => {
            Failure::from(error).hint("the others do not hear a member that was removed: name another one with --node")
        }
        _ => error.into(),
    }
}

/// Waits until another member has all that this one has. It says that it is down when it knows that,
/// and whoever answers must have heard it.
async fn until_down(client: &Client, server_id: u32) -> Result<(), Failure> {
    for looked in 0_u32.. {
        let status = client.status().await?;
        match status_of(&status, server_id) {
            Some(MemberStatus::Down | MemberStatus::Removed) if is_known_elsewhere(&status, server_id) => break,
            Some(MemberStatus::Active | MemberStatus::Joining) if looked > 0 => {
                return Err(Failure::refused(format_args!("member {server_id} was taken back while it was drained")));
            }
            _ if looked % SAY_EVERY == SAY_EVERY - 1 => {
                let _ = writeln!(io::stderr(), "{}", waited_for(&status, server_id));
            }
            _ => {}
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Whether more than the member itself knows where it stands; it may be the one that answers.
fn is_known_elsewhere(status: &StatusView, server_id: u32) -> bool {
    status.server_id != server_id
        || status.peers.iter().any(|peer| peer.linked && peer.ahead == 0 && takes_writes(peer.status))
}

fn takes_writes(status: MemberStatus) -> bool {
    matches!(status, MemberStatus::Active | MemberStatus::Joining)
}

fn waited_for(status: &StatusView, server_id: u32) -> String {
    let is_reached = |peer: &PeerView| peer.server_id == server_id && peer.reachable;
    match status.server_id == server_id || status.peers.iter().any(is_reached) {
        true => format!("waiting for another member to have all that {server_id} has; Ctrl-C ends only the waiting"),
        false => format!(
            "waiting for member {server_id}, which is not reached and hands over once it is; Ctrl-C ends only the waiting. \
             If it is gone for good: `polyarch node remove {server_id} --force`"
        ),
    }
}

/// Where a member stands, as the node that answered knows it.
fn status_of(status: &StatusView, server_id: u32) -> Option<MemberStatus> {
    let peer = status.peers.iter().find(|peer| peer.server_id == server_id).map(|peer| peer.status);
    peer.or(status.status.filter(|_| status.server_id == server_id))
}

fn list(connection: ConnectionArguments, json: bool) -> Result<(), Failure> {
    connection.run(async |connection| {
        let (node, status) = connection.client.status_with_node().await?;
        let own_addresses = [node.as_str().to_owned()];
        let mut output = Output::stdout();
        for member in MemberObject::all(&status, &own_addresses) {
            match json {
                true => output.json(&member)?,
                false => output.line(&member)?,
            }
        }
        output.flush()
    })
}
