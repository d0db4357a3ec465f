//! `polyarch quarantine`: feeds that a node has stopped, and how they go on.

use clap::{Args, Subcommand};
use polyarch_client::{Dot, ForkMember, ForkSide, NodeAddress, Origin, PauseCause, PausedView};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::connection::{Connection, ConnectionArguments};
use crate::failure::Failure;
use crate::json::{PausedObject, RetriedObject};
use crate::terminal::Output;

/// Show the feeds that a node has stopped, and let them go on.
#[derive(Debug, Subcommand)]
pub(crate) enum Quarantine {
    /// List the origins whose feed a node has stopped: why, since when, what is missing, what to do
    #[command(after_help = "\
Asks any node of the profile, or the one of --node; each node stops feeds of its own. With --json, a line for each:
  {\"origin\", \"cause\": \"fork\"|\"poison\"|\"waits\", \"gtid\", \"reason\", \"on\", \"members\": [{\"server_id\", \"side\"}],
   \"since_ms\", \"applied\", \"behind\", \"to_do\"}
\"gtid\" is where it stopped: the last write set whose history differs, or the one that cannot be read. \"on\" is the
origin it waits for. \"side\" is \"other\" for a member that holds another history than this node, \"stopped\" for one that
has stopped the origin too. What does not apply is null, or empty.

Examples:
  polyarch quarantine list --node 127.0.0.1:7401
  polyarch quarantine list --json | jq -r .origin")]
    List {
        /// Print JSON lines
        #[arg(long)]
        json: bool,
    },
    /// Let stopped feeds of a node go on from where they stood
    #[command(after_help = "\
For when the cause is gone: after an upgrade, or with a limit raised. Without ORIGIN, all go on. One that waits for
another goes on with that other, and takes all along that wait for it. Nothing is skipped: if the cause is still there the feed
stops again, with an alarm. Needs the role admin. With --json: {\"origins\": [ORIGIN..]}

Examples:
  polyarch quarantine retry 3-9f2c01ab --node 127.0.0.1:7401
  polyarch quarantine retry --node 127.0.0.1:7401")]
    Retry(Retry),
}

#[derive(Debug, Args)]
pub(crate) struct Retry {
    /// The origin, as `quarantine list` prints it; all without it
    #[arg(value_name = "ORIGIN", value_parser = parse_origin)]
    origin: Option<Origin>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Quarantine {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| match self {
            Self::List { json } => list(connection, json).await,
            Self::Retry(retry) => retry.run(connection).await,
        })
    }
}

async fn list(connection: &Connection, json: bool) -> Result<(), Failure> {
    let Some(condition) = connection.client.condition().await? else {
        return Err(Failure::refused("this node's version does not know why feeds are stopped")
            .hint("`polyarch status` shows which are, and its log says why"));
    };
    let mut output = Output::stdout();
    for paused in &condition.paused {
        match json {
            true => output.json(&PausedObject::from(paused))?,
            false => {
                output.line(format_args!("{}  {}", paused.origin, described(paused)))?;
                output.line(format_args!("  to do  {}", to_do(paused)))?;
            }
        }
    }
    if condition.paused.is_empty() && !json {
        output.line("no feed is stopped on this node")?;
    }
    output.flush()
}

impl Retry {
    async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let retried = connection.client.retry_origin(picked(connection)?, self.origin).await?;
        let mut output = Output::stdout();
        match self.json {
            true => output.json(&RetriedObject::from(&retried[..]))?,
            false if retried.is_empty() => output.line("no feed was stopped on this node")?,
            false => {
                retried.iter().try_for_each(|origin| output.line(format_args!("{origin} goes on")))?;
                output.line("if the cause is still there it stops again: `polyarch quarantine list`")?;
            }
        }
        output.flush()
    }
}

/// Each node stops feeds of its own, so it matters which one is told.
fn picked(connection: &Connection) -> Result<&NodeAddress, Failure> {
    connection
        .nodes
        .first()
        .filter(|_| connection.is_picked)
        .ok_or_else(|| Failure::usage("say with --node which node's feeds are meant"))
}

/// An origin as nodes print it: `SERVER_ID-EPOCH`.
pub(super) fn parse_origin(text: &str) -> Result<Origin, String> {
    let first: Result<Dot, _> = format!("{text}:1").parse();
    first
        .map(|dot| dot.origin)
        .map_err(|_| format!("`{text}` is not an origin; one looks like 3-9f2c01ab (server id, epoch as 8 hex digits)"))
}

/// Why a feed is stopped, since when, and what that costs, in a line.
pub(crate) fn described(paused: &PausedView) -> String {
    let why = match &paused.cause {
        PauseCause::Fork { dot, members } => format!("FORK at {dot}{}", described_sides(members)),
        PauseCause::Poison { dot, reason } => format!("{dot} cannot be read here: {reason}"),
        PauseCause::Waits { on } => format!("depends on {on}, whose feed is stopped"),
    };
    format!("{why}; since {}, {} write sets missing", moment(paused.since_ms), paused.behind)
}

fn described_sides(members: &[ForkMember]) -> String {
    let side = |member: &ForkMember| match member.side {
        ForkSide::Other => format!("member {} holds another history", member.server_id),
        ForkSide::Stopped => format!("member {} has stopped it too", member.server_id),
    };
    let sides: Vec<String> = members.iter().map(side).collect();
    if sides.is_empty() { String::new() } else { format!(" ({})", sides.join(", ")) }
}

/// What helps.
pub(crate) fn to_do(paused: &PausedView) -> String {
    match &paused.cause {
        PauseCause::Fork { .. } => {
            "one GTID has two payloads: a disk was copied together with a running process. `polyarch fork \
            show` says where the histories part; find out which is right, and have the members that hold the \
            other go over to it with `polyarch fork keep`"
                .to_owned()
        }
        PauseCause::Poison { .. } => {
            "if another version of polyarch wrote it, upgrade this node; else raise the limit that is \
            named, or see to the disk of the member that sent it. Then `polyarch quarantine retry`"
                .to_owned()
        }
        PauseCause::Waits { on } => format!("see to {on}; this one goes on with it"),
    }
}

fn moment(unix_ms: u64) -> String {
    let at = OffsetDateTime::from_unix_timestamp(i64::try_from(unix_ms / 1_000).unwrap_or(i64::MAX));
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_else(|| format!("{unix_ms} ms"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const O: Origin = Origin::new(3, 0x9f2c_01ab);

    fn paused(cause: PauseCause) -> PausedView {
        PausedView { origin: O, cause, since_ms: 1_764_950_400_000, applied: 41, behind: 7 }
    }

    #[test]
    fn an_origin_is_read_as_it_is_printed() {
        assert_eq!(parse_origin(&O.to_string()), Ok(O));
        for text in ["3", "3-", "3-9f2c01ab:1", "0-9f2c01ab", "3-9F2C01AB", "03-9f2c01ab"] {
            assert!(parse_origin(text).is_err(), "{text}");
        }
    }

    #[test]
    fn it_is_said_why_since_when_and_what_to_do() {
        let members = vec![
            ForkMember { server_id: 1, side: ForkSide::Other },
            ForkMember { server_id: 2, side: ForkSide::Stopped },
        ];
        let fork = paused(PauseCause::Fork { dot: Dot::new(O, 41), members });
        assert_eq!(
            described(&fork),
            "FORK at 3-9f2c01ab:41 (member 1 holds another history, member 2 has stopped it too); \
             since 2025-12-05T16:00:00Z, 7 write sets missing"
        );
        let waits = paused(PauseCause::Waits { on: Origin::new(1, 7) });
        assert_eq!(to_do(&waits), "see to 1-00000007; this one goes on with it");
        let poison = paused(PauseCause::Poison { dot: Dot::new(O, 42), reason: "malformed".to_owned() });
        assert!(described(&poison).contains("3-9f2c01ab:42 cannot be read here: malformed"));
        assert!(to_do(&poison).contains("polyarch quarantine retry"));
    }
}
