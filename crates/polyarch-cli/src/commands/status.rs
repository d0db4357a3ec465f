//! `polyarch status`: how nodes are, and whether they are equal.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use polyarch_client::{
    Client, ConditionView, DIGEST_BUCKETS, Dot, Error, FeedView, MemberStatus, NodeAddress, PeerView, RegainedView,
    StatusView, of_all_buckets,
};

use crate::commands::quarantine;
use crate::connection::{Connection, ConnectionArguments};
use crate::failure::Failure;
use crate::json::{NoStatusObject, StatusObject};
use crate::terminal::Output;

/// Show how a node is: what it has applied, its links, and its counters
#[derive(Debug, Args)]
#[command(after_help = "\
Asks any node of the profile, the one of --node, or each with --all. With --json, a line for each:
  {\"node\", \"cluster_id\", \"server_id\", \"version\", \"name\", \"status\", \"topology\",
   \"writes_refused\", \"applied\": [GTID..], \"digest\", \"peers\": [{\"server_id\", \"name\", \"status\",
   \"addresses\", \"linked\", \"planned\", \"reachable\", \"links\": [ID..], \"cut\", \"behind\", \"ahead\",
   \"equal\", \"clock_offset_ms\"}], \"feeds\": [{\"origin\", \"from\", \"behind\", \"behind_ms\",
   \"paused\"}], \"counters\": {\"written\", \"received\", \"skipped\", \"returned\", \"conflicts\", \"syncs\",
   \"log_bytes\", \"checkpoints\", \"link_bytes_sent\", \"link_bytes_received\"}, \"paused\": [..],
   \"regained\": [{\"origin\", \"had\", \"peer_has\", \"from\", \"applied\", \"noticed_ms\", \"complete_ms\"}],
   \"regained_write_sets\", \"snapshot\": {\"from\", \"phase\", \"records\", \"bytes\"}|null,
   \"salvage\": {\"write_sets\", \"first\": [GTID..]}|null,
   \"different\": [{\"server_id\", \"equal_buckets\"}]}
\"paused\" is as in `polyarch quarantine list`. \"regained\" are epochs of this node's own of which it had lost write sets
that others have. What comes from \"paused\" on is not there of a node of version 0.1.
A node knows how far the members are that it has a link to. Of the others \"behind\" and \"ahead\" are 0 and \"equal\" is
null: ask their neighbours, or all with --all. \"skipped\" came again and was left; \"returned\" of that was its own.
\"node\" is the address that answered, as it was dialled. Of a node that does not answer, --all prints
{\"node\", \"error\"}, goes on, and ends with exit status 4. Nodes that have applied the same show the
same \"applied\" and \"digest\".

Examples:
  polyarch status --node 127.0.0.1:7401
  polyarch status --all --json | jq -c '[.server_id, .digest]'")]
pub(crate) struct Status {
    /// Ask each node of the profile
    #[arg(long, conflicts_with = "node")]
    all: bool,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| match self.all {
            true => self.of_all(connection).await,
            false => self.of_one(connection).await,
        })
    }

    async fn of_one(&self, connection: &Connection) -> Result<(), Failure> {
        let (node, status) = connection.client.status_with_node().await?;
        let condition = connection.client.only(&node).condition().await?;
        let mut output = Output::stdout();
        self.print(&node, &status, condition.as_ref(), &mut output)?;
        output.flush()
    }

    async fn of_all(&self, connection: &Connection) -> Result<(), Failure> {
        let asked = connection.nodes.iter().map(|node| (node, connection.client.clone()));
        let asking: Vec<_> = asked
            .map(|(node, client)| {
                let node = node.clone();
                tokio::spawn(async move { ask(&client.only(&node)).await })
            })
            .collect();
        let (mut statuses, mut silent) = (Vec::new(), Vec::new());
        let mut output = Output::stdout();
        for (node, answer) in connection.nodes.iter().zip(asking) {
            match answer.await.expect("asking neither panics nor is aborted") {
                Ok((status, condition)) => {
                    self.print(node, &status, condition.as_ref(), &mut output)?;
                    statuses.push(status);
                }
                Err(error) => {
                    match self.json {
                        true => output.json(&NoStatusObject { node: node.as_str(), error: &error.to_string() })?,
                        false => output.line(format_args!("{node}: {error}\n"))?,
                    }
                    silent.push(error);
                }
            }
        }
        if !self.json {
            output.line(verdict(&statuses))?;
        }
        output.flush()?;
        match silent.into_iter().next() {
            None => Ok(()),
            Some(error) => Err(error.into()),
        }
    }

    fn print(
        &self,
        node: &NodeAddress,
        status: &StatusView,
        condition: Option<&ConditionView>,
        output: &mut Output,
    ) -> Result<(), Failure> {
        if self.json {
            return output.json(&StatusObject::of(node, status, condition));
        }
        if let Some(alarm) = storage_alarm(node, status) {
            output.line(alarm)?;
        }
        let writes = status.writes_refused.as_ref().map_or("accepted".to_owned(), |why| format!("REFUSED: {why}"));
        let write_sets: u64 = status.applied.iter().map(|dot| dot.seq).sum();
        let c = &status.counters;
        let standing = status.status.map_or("no member yet", MemberStatus::as_str);
        output.line(format_args!(
            "node {} ({}) at {node}, {standing}, polyarch {}",
            status.server_id, status.name, status.version
        ))?;
        output.line(format_args!("  cluster   {}, {}", status.cluster_id, status.topology))?;
        output.line(format_args!("  writes    {writes}"))?;
        output.line(format_args!("  applied   {write_sets} write sets: {}", applied_text(&status.applied)))?;
        output.line(format_args!("  digest    {}", status.digest))?;
        output.line(format_args!(
            "  counters  {} written, {} received, {} skipped ({} of them its own), {} conflicts, {} syncs, {} checkpoints",
            c.written, c.received, c.skipped, c.returned, c.conflicts, c.syncs, c.checkpoints
        ))?;
        output.line(format_args!(
            "  bytes     {} to the log, {} sent to members, {} received",
            c.log_bytes, c.link_bytes_sent, c.link_bytes_received
        ))?;
        status.peers.iter().try_for_each(|peer| output.line(format_args!("  member {}", described(peer))))?;
        status.feeds.iter().try_for_each(|feed| output.line(format_args!("  feed   {}", described_feed(feed))))?;
        if let Some(condition) = condition {
            print_condition(condition, output)?;
        }
        if status.peers.iter().any(is_out_of_knowledge) {
            output.line(
                "  note   how far members without a link are is not known here: `polyarch status --all` asks each",
            )?;
        }
        output.line("")
    }
}

/// How one node is, and what is out of the ordinary on it.
async fn ask(client: &Client) -> Result<(StatusView, Option<ConditionView>), Error> {
    Ok((client.status().await?, client.condition().await?))
}

fn print_condition(condition: &ConditionView, output: &mut Output) -> Result<(), Failure> {
    for paused in &condition.paused {
        output.line(format_args!("  STOPPED {}  {}", paused.origin, quarantine::described(paused)))?;
        output.line(format_args!("          to do: {}", quarantine::to_do(paused)))?;
    }
    if let Some(snapshot) = &condition.snapshot {
        let doing = if snapshot.is_joining { "is being joined" } else { "is on its way" };
        output.line(format_args!(
            "  snapshot of member {} {doing}: {} records, {:.1} MiB",
            snapshot.from,
            snapshot.records,
            snapshot.bytes as f64 / f64::from(1 << 20)
        ))?;
    }
    if let Some(salvage) = &condition.salvage {
        let first: Vec<String> = salvage.first.iter().take(4).map(ToString::to_string).collect();
        output.line(format_args!(
            "  salvage   {} write sets of a repair wait for those before {}",
            salvage.write_sets,
            first.join(", ")
        ))?;
    }
    for different in &condition.different {
        if let Some(equal) = different.equal_buckets {
            output.line(format_args!(
                "  DIFFERS from member {}: {} equal",
                different.server_id,
                of_all_buckets(equal as usize)
            ))?;
        }
    }
    if let Some(line) = described_losses(&condition.regained, condition.regained_write_sets) {
        output.line(format_args!("  lost   {line}"))?;
    }
    Ok(())
}

/// What the node had lost of its own, in a line; `None` for nothing.
fn described_losses(regained: &[RegainedView], write_sets: u64) -> Option<String> {
    let missing: u64 = regained.iter().map(|view| view.peer_has.saturating_sub(view.applied)).sum();
    let epochs = regained.len();
    match (epochs, missing) {
        (0, _) => None,
        (_, 0) => Some(format!("{write_sets} of its own write sets, of {epochs} epochs, and all are here again")),
        (_, missing) => Some(format!(
            "{} of its own write sets, of {epochs} epochs; {write_sets} are here again, {missing} ARE MISSING",
            write_sets + missing
        )),
    }
}

/// GTIDs that are printed at most: each restart of a node leaves one.
const GTIDS_MAX: usize = 32;

/// The GTIDs, or where they are many, how many epochs of each server there are.
fn applied_text(applied: &[Dot]) -> String {
    if applied.len() <= GTIDS_MAX {
        return applied.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    }
    let mut servers: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
    for dot in applied {
        let (epochs, write_sets) = servers.entry(dot.origin.server_id).or_default();
        *epochs += 1;
        *write_sets = write_sets.saturating_add(dot.seq);
    }
    let of =
        |(id, (epochs, write_sets)): (&u32, &(usize, u64))| format!("{write_sets} of server {id} in {epochs} epochs");
    format!("{} (--json names each)", servers.iter().map(of).collect::<Vec<_>>().join(", "))
}

fn described_feed(feed: &FeedView) -> String {
    let from = match (feed.paused, feed.from) {
        (true, _) => "STOPPED".to_owned(),
        (false, Some(from)) => format!("from {from}"),
        (false, None) => "from nobody".to_owned(),
    };
    let lag = match feed.behind {
        0 => "up to date".to_owned(),
        behind => format!("{behind} write sets behind since {:.1} s", feed.behind_ms as f64 / 1_000.0),
    };
    format!("{}  {from}, {lag}", feed.origin)
}

/// How the words begin in which a node says that its storage failed.
const STORAGE_FAILED: &str = "this node's storage failed";

/// What comes before all else of a node that writes no more, and what to do.
fn storage_alarm(node: &NodeAddress, status: &StatusView) -> Option<String> {
    let why = status.writes_refused.as_ref().filter(|why| why.starts_with(STORAGE_FAILED))?;
    let server_id = status.server_id;
    Some(format!(
        "ALARM: node {server_id} at {node} writes no more: {why}\n  to do     see to its disk (its log says what failed), \
         then restart it: it goes on with what is on the disk, and is fed the\n            rest by the others. With the node \
         stopped, `polyarch verify DATA_DIR` checks what is there"
    ))
}

fn described(peer: &PeerView) -> String {
    let link = match (peer.cut, peer.linked, peer.planned, peer.reachable) {
        _ if peer.status == MemberStatus::Removed => "removed",
        (true, ..) => "link cut",
        (false, true, true, _) => "linked",
        (false, true, false, _) => "linked beside the plan",
        (false, false, true, _) => "NOT LINKED",
        (false, false, false, true) => "reached by way of others",
        (false, false, false, false) => "NOT REACHED",
    };
    let difference = match (peer.behind, peer.ahead, peer.equal) {
        (_, _, Some(true)) => format!("equal: yes, {}", of_all_buckets(DIGEST_BUCKETS)),
        (_, _, Some(false)) => {
            format!("equal: NO, at equal applied-sets; `polyarch diff {}` says where", peer.server_id)
        }
        (0, 0, None) if !peer.linked => "not compared here".to_owned(),
        (0, 0, None) => "equal: not comparable now".to_owned(),
        (behind, ahead, None) => format!(
            "equal: not comparable now, {} write sets apart: has {behind} more, lacks {ahead}",
            behind.saturating_add(ahead)
        ),
    };
    let clock = peer.clock_offset_ms.map(|offset| format!(", clock {offset:+} ms")).unwrap_or_default();
    let standing = match peer.status {
        MemberStatus::Active | MemberStatus::Removed => String::new(),
        other => format!("{other}, "),
    };
    let (server_id, name, addresses) = (peer.server_id, &peer.name, peer.addresses.join(", "));
    format!("{server_id} ({name})  {standing}{link}, {difference}{clock}  ({addresses})")
}

/// Whether a member takes part and only others know how far it is.
fn is_out_of_knowledge(peer: &PeerView) -> bool {
    peer.reachable && !peer.linked
}

/// What the nodes that answered have in common: who is equal to whom.
fn verdict(statuses: &[StatusView]) -> String {
    let nodes = statuses.len();
    let mut alike: BTreeMap<&[Dot], Vec<&StatusView>> = BTreeMap::new();
    for status in statuses {
        alike.entry(&status.applied).or_default().push(status);
    }
    // While something waits for its sync, a node does not know the digest of what it shows.
    let differ = |group: &&Vec<&StatusView>| {
        let known: BTreeSet<&str> =
            group.iter().map(|s| s.digest.as_str()).filter(|digest| !digest.is_empty()).collect();
        known.len() > 1
    };
    if let Some(group) = alike.values().find(differ) {
        return format!("ALARM: {} have applied the same and their digests differ", named(group));
    }
    let is_unknown = statuses.iter().any(|status| status.digest.is_empty());
    match alike.len() {
        _ if nodes < 2 => format!("{nodes} answered"),
        1 if is_unknown => {
            format!("all {nodes} that answered have applied the same; not all know their digest yet, ask again")
        }
        1 => format!("all {nodes} that answered are equal"),
        _ => {
            let groups = alike.values().filter(|group| group.len() > 1).map(|group| format!("; {} are", named(group)));
            format!("the {nodes} that answered are not all equal yet{}", groups.collect::<String>())
        }
    }
}

/// The nodes by their server ids, as in `1, 2 and 5`.
fn named(group: &[&StatusView]) -> String {
    let mut ids: Vec<u32> = group.iter().map(|status| status.server_id).collect();
    ids.sort_unstable();
    let (last, others) = ids.split_last().expect("a group has a node");
    let others: Vec<String> = others.iter().map(u32::to_string).collect();
    if others.is_empty() { last.to_string() } else { format!("{} and {last}", others.join(", ")) }
}

#[cfg(test)]
mod tests {
    use polyarch_client::{Origin, Refusal};

    use super::*;

    fn status(writes_refused: Option<Refusal>) -> StatusView {
        StatusView {
            cluster_id: String::new(),
            server_id: 7,
            version: String::new(),
            writes_refused: writes_refused.map(|refusal| refusal.to_string()),
            name: String::new(),
            status: None,
            topology: polyarch_client::Topology::Mesh,
            feeds: Vec::new(),
            applied: Vec::new(),
            digest: String::new(),
            peers: Vec::new(),
            counters: Default::default(),
        }
    }

    #[test]
    fn many_epochs_are_counted_and_not_named() {
        let of = |epochs: u32| (0..epochs).map(|epoch| Dot::new(Origin::new(1 + epoch % 2, epoch), 3));
        assert_eq!(applied_text(&of(2).collect::<Vec<_>>()), "1-00000000:3, 2-00000001:3");
        let many = applied_text(&of(10_000).collect::<Vec<_>>());
        assert_eq!(many, "15000 of server 1 in 5000 epochs, 15000 of server 2 in 5000 epochs (--json names each)");
    }

    #[test]
    fn it_is_said_who_is_equal_to_whom() {
        let of = |server_id: u32, seq: u64, digest: &str| StatusView {
            server_id,
            applied: vec![Dot::new(Origin::new(1, 1), seq)],
            digest: digest.to_owned(),
            ..status(None)
        };
        let said = |statuses: &[StatusView]| verdict(statuses);
        assert_eq!(said(&[of(1, 5, "a")]), "1 answered");
        assert_eq!(said(&[of(1, 5, "a"), of(2, 5, "a")]), "all 2 that answered are equal");
        assert!(said(&[of(1, 5, "a"), of(2, 5, "")]).contains("ask again"));
        let apart = [of(5, 4, "b"), of(1, 5, "a"), of(3, 6, "c"), of(2, 5, "a"), of(4, 4, "b")];
        assert_eq!(said(&apart), "the 5 that answered are not all equal yet; 4 and 5 are; 1 and 2 are");
        let broken = [of(3, 6, "x"), of(1, 5, "a"), of(2, 5, "b"), of(4, 5, "a")];
        assert_eq!(said(&broken), "ALARM: 1, 2 and 4 have applied the same and their digests differ");
    }

    #[test]
    fn a_node_whose_storage_failed_is_an_alarm_that_says_what_to_do() {
        let node: NodeAddress = "127.0.0.1:7401".parse().unwrap();
        let alarm = |refusal| storage_alarm(&node, &status(refusal));
        let failed = alarm(Some(Refusal::WritesStopped("disk full".to_owned()))).unwrap();
        for expected in ["ALARM: node 7 at 127.0.0.1:7401", "(disk full)", "restart it", "polyarch verify"] {
            assert!(failed.contains(expected), "{failed}");
        }
        assert_eq!(alarm(Some(Refusal::NotJoined)), None);
        assert_eq!(alarm(None), None);
    }
}
