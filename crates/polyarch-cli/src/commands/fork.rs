//! `polyarch fork`: two histories of one origin, and how one of them is given up.
//!
//! Each origin's write sets form a hash chain, so two nodes hold the same history up to a write set if and
//! only if its hash is the same on both. Where they part is found by halving.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use clap::{Args, Subcommand};
use polyarch_client::{ChainHash, Client, Dot, Origin};
use polyarch_crdt::AppliedSet;
use polyarch_node::{NodeConfig, RepairDataError, repair, resume_repair};
use polyarch_store::{Parting, RepairError, RepairReport, chain_heads};

use super::diff::{Pair, Peer};
use super::left_out::LeftOutFile;
use super::quarantine::parse_origin;
use super::repair::nothing_changed;
use crate::connection::{Connection, ConnectionArguments};
use crate::failure::Failure;
use crate::json::{ForkObject, KeptObject};
use crate::signals::stoppable;
use crate::terminal::{Output, shell_word};

/// Show where two histories of one origin part, and go over to one of them.
#[derive(Debug, Subcommand)]
pub(crate) enum Fork {
    Show(Show),
    Keep(Keep),
}

/// Say how far two nodes hold the same history of an origin
#[derive(Debug, Args)]
#[command(after_help = "\
Compares the node that is asked (any of the profile, or --node) with PEER. Needs the role admin. With --json:
  {\"origin\", \"here\": ID, \"there\": ID, \"equal\", \"common\", \"differs\", \"applied_here\", \"applied_there\"}
\"common\" is the last write set that both are known to have in common, \"differs\" the first that is known not to be
the same on both. Between the two lies what one of the nodes no longer has in its log. What was written behind
it stands in the log of each: `polyarch log dump` prints it.

Exit status: 0 the same as far as both go, 1 they part.

Examples:
  polyarch quarantine list --node 127.0.0.1:7401
  polyarch fork show 3-9f2c01ab 2 --node 127.0.0.1:7401")]
pub(crate) struct Show {
    /// The origin, as `quarantine list` prints it
    #[arg(value_parser = parse_origin)]
    origin: Origin,
    /// The other node: a member's server id, or its address
    peer: Peer,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Make a node that is not running go over to the history that another member holds
#[derive(Debug, Args)]
#[command(after_help = "\
For each member that holds the side of a fork that is to be given up, when it is stopped; --node names a running
member that holds the side to be kept. The write sets of the origin behind the place at which the two part, and
those that build on them, are written to the file of --left-out, as JSON lines (see `polyarch repair --help`), for a
person to look at: the first write set of an epoch builds on all that its process had seen, so whatever processes wrote
that began when they had the other side is among them. All else that the node has is kept: it begins without records,
gets from the others what they have, and applies the rest of its own log. Where only its records have what is to be
kept, since its log is cut, nothing is done. Nothing is deleted: the old log and records stay beside the new ones.

Stop all members that hold the other side before the first of them is served again, or it is fed that side by them.
Afterwards serve the node, look with `polyarch fork show`, and on the members that hold the side that was kept run
`polyarch quarantine retry ORIGIN`. With --json: {\"origin\", \"common\", \"left_out\", \"waiting\", \"set_aside\": [..]}

Examples:
  polyarch fork keep 3-9f2c01ab --config certs/node-3.toml --left-out lost.jsonl --node 127.0.0.1:7401")]
pub(crate) struct Keep {
    /// The origin, as `quarantine list` prints it
    #[arg(value_parser = parse_origin)]
    origin: Origin,
    /// The configuration of the stopped node that goes over, TOML
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Where the write sets go that it gives up; the file must not exist
    #[arg(long, value_name = "FILE")]
    left_out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Fork {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| match self {
            Self::Show(show) => show.run(connection).await,
            Self::Keep(keep) => keep.run(connection).await,
        })
    }
}

/// How far two histories are known to be the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// As far as both go.
    Equal,
    /// They part: between the last seq that is known to be common, if any is, and one that differs.
    Parted { common: Option<u64>, differs: u64 },
    /// No hash of the last that both have is there to be compared.
    Unknown,
}

/// Halves what lies between seq 0 and `last`, the last that both sides have; `is_same` is `None` where one of
/// them has no hash.
async fn compare(
    last: u64,
    mut is_same: impl AsyncFnMut(u64) -> Result<Option<bool>, Failure>,
) -> Result<Compared, Failure> {
    match is_same(last).await? {
        _ if last == 0 => return Ok(Compared::Equal),
        Some(true) => return Ok(Compared::Equal),
        None => return Ok(Compared::Unknown),
        Some(false) => {}
    }
    let (mut low, mut differs, mut common) = (0, last, Some(0));
    while low + 1 < differs {
        let middle = low + (differs - low) / 2;
        match is_same(middle).await? {
            Some(false) => differs = middle,
            same => {
                // Logs lose their beginning: where a hash is missing, all before it are.
                low = middle;
                common = same.map(|_| middle);
            }
        }
    }
    Ok(Compared::Parted { common, differs })
}

impl Show {
    async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        let pair = Pair::find(connection, &self.peer).await?;
        let applied_here = applied(&pair.here.client, self.origin).await?;
        let applied_there = applied(&pair.there.client, self.origin).await?;
        let compared = compare(applied_here.min(applied_there), async |seq| {
            let dot = Dot::new(self.origin, seq);
            let (here, there) = (pair.here.client.chain_hash(dot).await?, pair.there.client.chain_hash(dot).await?);
            Ok(here.zip(there).map(|(here, there)| here == there))
        });
        let compared = compared.await?;
        let (common, differs) = match compared {
            Compared::Parted { common, differs } => (common, Some(differs)),
            _ => (None, None),
        };
        let object = ForkObject {
            origin: self.origin.to_string(),
            here: pair.here.server_id,
            there: pair.there.server_id,
            equal: compared == Compared::Equal,
            common,
            differs,
            applied_here,
            applied_there,
        };
        let mut output = Output::stdout();
        match compared {
            _ if self.json => output.json(&object)?,
            Compared::Equal => output.line(described(&object, compared))?,
            _ => {}
        }
        output.flush()?;
        match compared {
            Compared::Equal => Ok(()),
            Compared::Parted { .. } => Err(Failure::different(described(&object, compared))),
            Compared::Unknown => Err(log_is_gone(self.origin)),
        }
    }
}

fn described(object: &ForkObject, compared: Compared) -> String {
    let ForkObject { origin, here, there, applied_here, applied_there, .. } = object;
    let both = format!("node {here} has {applied_here} write sets of {origin}, node {there} has {applied_there}");
    match compared {
        Compared::Equal => format!("{both}; they are the same as far as both go"),
        Compared::Unknown => format!("{both}; where they part cannot be told"),
        Compared::Parted { common: Some(common), differs } if common + 1 == differs => format!(
            "{both}; they part behind {origin}:{common}: {} on node {here}, {} on node {there}",
            applied_here - common,
            applied_there - common
        ),
        Compared::Parted { common, differs } => format!(
            "{both}; they are the same up to {}, and not at {origin}:{differs}",
            common.map_or_else(|| "a place that is no longer in both logs".to_owned(), |seq| format!("{origin}:{seq}")),
        ),
    }
}

/// The last write set of an origin that a node has applied.
async fn applied(client: &Client, origin: Origin) -> Result<u64, Failure> {
    Ok(applied_by(client).await?.seq(origin))
}

async fn applied_by(client: &Client) -> Result<AppliedSet, Failure> {
    Ok(client.status().await?.applied.into_iter().collect())
}

fn log_is_gone(origin: Origin) -> Failure {
    Failure::refused(format_args!("one of the two logs no longer has what both have applied of {origin}"))
}

impl Keep {
    async fn run(&self, connection: &Connection) -> Result<(), Failure> {
        if !connection.is_picked {
            return Err(Failure::usage("say with --node which member holds the history that is to be kept"));
        }
        let config = NodeConfig::load(&self.config)?;
        if resume_repair(&config)?.is_some() {
            let mut output = Output::stdout();
            output.line(
                "ended what had been cut short when all was made; its --left-out file is whole. Serve the node",
            )?;
            return output.flush();
        }
        let kept = applied_by(&connection.client).await?;
        let common = self.common(&config, &connection.client).await?;
        let (mut left_out, origin) = (LeftOutFile::create(&self.left_out)?, self.origin);
        let ((repaired, left_out), signal) = stoppable("repair", move |is_stopped| {
            let parting = Parting { origin, common, kept: &kept, left_out: &mut left_out };
            (repair(&config, Some(parting), |_| !is_stopped.load(Ordering::Relaxed)), left_out)
        })
        .await?;
        let report = match (repaired, signal) {
            (Ok(report), _) => report,
            // What is in the file is given up already.
            (Err(error @ RepairDataError::Repair(RepairError::NotEnded(_))), _) => return Err(error.into()),
            (Err(error), signal) => {
                left_out.remove();
                return Err(match (error, signal) {
                    (RepairDataError::Repair(RepairError::Stopped), Some(signal)) => nothing_changed(signal),
                    (error, _) => error.into(),
                });
            }
        };
        self.print(common, &report)
    }

    /// The last write set that this node and the member have in common.
    async fn common(&self, config: &NodeConfig, keeper: &Client) -> Result<u64, Failure> {
        let ours: BTreeMap<u64, ChainHash> =
            chain_heads(&config.data_dir, self.origin)?.into_iter().map(|head| (head.seq, head.hash)).collect();
        let theirs = applied(keeper, self.origin).await?;
        let Some(last) = ours.keys().copied().rfind(|seq| *seq <= theirs) else {
            return Err(Failure::refused(format_args!(
                "this node and that member have nothing of {} to compare",
                self.origin
            ))
            .hint("--node names a member that holds the other history"));
        };
        let compared = compare(last, async |seq| {
            let Some(ours) = ours.get(&seq) else { return Ok(None) };
            let theirs = keeper.chain_hash(Dot::new(self.origin, seq)).await?;
            Ok(theirs.map(|theirs| *ours == theirs))
        });
        match compared.await? {
            Compared::Equal => Err(Failure::refused(format_args!(
                "this node and that member hold the same history of {}",
                self.origin
            ))
            .hint("nothing was changed; `polyarch quarantine retry` lets a feed go on that was stopped")),
            Compared::Unknown => Err(log_is_gone(self.origin)),
            // What lies before the first that is known to be common may differ.
            Compared::Parted { common, .. } => Ok(common.unwrap_or(0)),
        }
    }

    fn print(&self, common: u64, report: &RepairReport) -> Result<(), Failure> {
        let set_aside: Vec<String> = report.set_aside.iter().map(|path| path.display().to_string()).collect();
        let RepairReport { left_out, waiting, .. } = report;
        let mut output = Output::stdout();
        if self.json {
            let (origin, left_out, waiting) = (self.origin.to_string(), *left_out, *waiting);
            output.json(&KeptObject { origin, common, left_out, waiting, set_aside })?;
        } else {
            output.line(format_args!(
                "left out  {left_out} write sets behind {}:{common} and what builds on them: {}",
                self.origin,
                self.left_out.display()
            ))?;
            output.line(format_args!("waiting   {waiting} write sets, which the node applies when it serves"))?;
            set_aside.iter().try_for_each(|path| output.line(format_args!("aside     {path}")))?;
            output.line(format_args!(
                "now run `polyarch serve --config {}`, and on the members that hold the history which was kept\n\
                 `polyarch quarantine retry {}`",
                shell_word(&self.config),
                self.origin
            ))?;
        }
        output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compares histories of `last` write sets that part behind `common`, where the logs begin at `begins`.
    fn compared(last: u64, common: u64, begins: u64) -> Compared {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let compared = compare(last, async |seq| Ok((seq >= begins).then_some(seq <= common)));
        runtime.block_on(compared).ok().unwrap()
    }

    #[test]
    fn the_place_at_which_two_histories_part_is_found_by_halving() {
        for last in 1..40 {
            for common in 0..last {
                let expected = Compared::Parted { common: Some(common), differs: common + 1 };
                assert_eq!(compared(last, common, 0), expected, "{common} of {last}");
                for begins in common + 1..=last {
                    assert_eq!(
                        compared(last, common, begins),
                        match begins {
                            1 => expected,
                            _ => Compared::Parted { common: None, differs: begins },
                        }
                    );
                }
            }
            assert_eq!(compared(last, last, 0), Compared::Equal);
            assert_eq!(compared(last, 0, last + 1), Compared::Unknown);
        }
    }
}
