//! `polyarch diff`: whether two nodes hold the same, and which keys they hold differently.
//!
//! At an equal applied-set the digests say in which buckets to look. The records of those are then read from both, in
//! order of keys, while writes go on. What seems to differ is looked at again before it is listed: first here, then there
//! once that has all that the first look saw, then here once more. If both looks here showed the same, all states between
//! them show it, and the one seen there is among those: that it differs is certain, whatever is written meanwhile.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use polyarch_client::{
    BucketScan, Client, DIGEST_BUCKETS, Dot, KeyspaceId, NodeAddress, PeerDigest, RecordKey, RecordOutline,
    SiblingOutline, StatusView, of_all_buckets,
};

use crate::connection::{Connection, ConnectionArguments};
use crate::failure::Failure;
use crate::json::{DiffObject, DifferenceObject};
use crate::terminal::{Output, escaped};
use crate::waiting::wait_until;

/// Records that a node looks at for one page.
const PAGE_RECORDS: u32 = 4_096;
/// How often a key is looked at again that is written all the time.
const LOOKS_MAX: usize = 5;
/// What the system keyspace is called here.
const SYSTEM: &str = "system";

/// Compare what two nodes hold, and list the keys that they hold differently
#[derive(Debug, Args)]
#[command(after_help = "\
Compares the node that is asked (any of the profile, or --node) with PEER. First the digests, which the two keep of all
keyspaces, at a moment at which both have applied the same; then, of the buckets of the digest that differ, the records.
Both nodes read all their records for that, about a second for each 500,000, and send only those that are in the buckets.
A digest is kept up write by write and does not see what a disk alters by itself: --all compares all records instead, and
waits for no such moment. Nothing is changed. A line for each key: keyspace, key, and which write sets have a value where.
With --json:
  {\"keyspace\", \"keyspace_id\", \"key\", \"here\": [{\"field\", \"gtid\", \"hlc\", \"value_hash\"}], \"there\": [..]}
and last {\"here\": ID, \"there\": ID, \"equal\", \"buckets_equal\", \"keys\", \"more\", \"unsettled\"}: \"unsettled\" counts keys that
were written too fast to be told. A key that is not UTF-8 is \"key_base64\".

Exit status: 0 equal, 1 different, 4 when the two did not have the same applied-set within --wait, or one is not reached.

Examples:
  polyarch diff 2 --node 127.0.0.1:7401
  polyarch diff 10.0.0.2:7400 --keyspace notes --all --json")]
pub(crate) struct Diff {
    /// The other node: a member's server id, or its address
    peer: Peer,
    /// Only this keyspace: its name or id, or `system`
    #[arg(long)]
    keyspace: Option<String>,
    /// List at most so many keys
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Compare all records, not only those of buckets that differ
    #[arg(long)]
    all: bool,
    /// How long to wait for a moment at which both have applied the same
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    wait: u64,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
}

/// How a node is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Peer {
    Member(u32),
    At(NodeAddress),
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<u32>() {
            Ok(server_id @ 1..) => Ok(Self::Member(server_id)),
            Ok(0) => Err("a server id is at least 1".to_owned()),
            Err(_) => {
                text.parse().map(Self::At).map_err(|error| format!("neither a server id nor an address: {error}"))
            }
        }
    }
}

impl Diff {
    pub(crate) fn run(self, connection: ConnectionArguments) -> Result<(), Failure> {
        connection.run(async |connection| {
            let pair = Pair::find(connection, &self.peer).await?;
            let keyspaces = Keyspaces::load(&pair.here.client, self.keyspace.as_deref()).await?;
            let buckets = match self.all {
                true => None,
                false => Some(pair.differing_buckets(Duration::from_secs(self.wait)).await?),
            };
            let mut output = Output::stdout();
            let mut found = Found { buckets: buckets.as_ref().map(Vec::len), ..Found::default() };
            if buckets.as_ref().is_none_or(|differing| !differing.is_empty()) {
                self.compare(&pair, &keyspaces, buckets.unwrap_or_default(), &mut found, &mut output).await?;
            }
            self.conclude(&pair, &found, &mut output)
        })
    }

    /// Reads both sides and lists what differs.
    async fn compare(
        &self,
        pair: &Pair,
        keyspaces: &Keyspaces,
        buckets: Vec<u16>,
        found: &mut Found,
        output: &mut Output,
    ) -> Result<(), Failure> {
        let progress = ProgressBar::new_spinner()
            .with_style(ProgressStyle::with_template("{spinner} {msg}  {elapsed}").expect("it is well formed"));
        let mut here = Side::new(&pair.here.client, &buckets, keyspaces.only);
        let mut there = Side::new(&pair.there.client, &buckets, keyspaces.only);
        while let Some(key) = next_suspect(&mut here, &mut there, &progress).await? {
            match pair.look_again(&key).await? {
                Look::Same => {}
                Look::Unsettled => found.unsettled += 1,
                Look::Differs(_) if found.keys == self.limit => {
                    found.more = true;
                    break;
                }
                Look::Differs(sides) => {
                    found.keys += 1;
                    progress.suspend(|| self.list(pair, keyspaces, &key, &sides, output))?;
                }
            }
        }
        progress.finish_and_clear();
        Ok(())
    }

    fn list(
        &self,
        pair: &Pair,
        keyspaces: &Keyspaces,
        key: &RecordKey,
        [here, there]: &[Vec<SiblingOutline>; 2],
        output: &mut Output,
    ) -> Result<(), Failure> {
        let keyspace = keyspaces.name(key.keyspace());
        match self.json {
            true => output.json(&DifferenceObject::of(&keyspace, key, here, there)),
            false => {
                let shown = escaped(key.key());
                let sides = described([(pair.here.server_id, here), (pair.there.server_id, there)]);
                output.line(format_args!("{keyspace}\t{shown}\t{sides}"))
            }
        }
    }

    fn conclude(&self, pair: &Pair, found: &Found, output: &mut Output) -> Result<(), Failure> {
        let (here, there) = (pair.here.server_id, pair.there.server_id);
        if self.json {
            output.json(&DiffObject {
                here,
                there,
                equal: found.is_equal(),
                buckets_equal: found.buckets.map(|differing| DIGEST_BUCKETS - differing),
                keys: found.keys,
                more: found.more,
                unsettled: found.unsettled,
            })?;
        }
        let unsettled = match found.unsettled {
            0 => String::new(),
            keys => format!("; {keys} keys were written too fast to be told"),
        };
        if found.is_equal() {
            let of_what = match found.buckets {
                Some(_) => of_all_buckets(DIGEST_BUCKETS),
                None => "all records".to_owned(),
            };
            if !self.json {
                output.line(format_args!("nodes {here} and {there} are equal: {of_what}{unsettled}"))?;
            }
            return output.flush();
        }
        output.flush()?;
        let buckets = match found.buckets {
            Some(differing) => format!(", in {}", of_all_buckets(differing)),
            None => String::new(),
        };
        let keys = match (found.keys, found.more) {
            (keys, true) => format!("{keys} keys and more"),
            (1, false) => "1 key".to_owned(),
            (keys, false) => format!("{keys} keys"),
        };
        let failure = Failure::different(format_args!("nodes {here} and {there} differ: {keys}{buckets}{unsettled}"));
        Err(match found.keys == 0 && found.unsettled == 0 && self.keyspace.is_none() {
            true => failure.hint("the records are the same, so the digest that one of the two keeps is wrong; stop each and run `polyarch verify`"),
            false => failure,
        })
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct Found {
    /// How many buckets of the digest differ, where that was asked.
    buckets: Option<usize>,
    keys: u64,
    /// There are more keys than may be listed.
    more: bool,
    unsettled: u64,
}

impl Found {
    fn is_equal(&self) -> bool {
        self.keys == 0 && self.buckets.unwrap_or(0) == 0
    }
}

/// One of the two nodes.
pub(super) struct Node {
    pub(super) server_id: u32,
    pub(super) client: Client,
    /// In the session that the two have in common.
    in_session: Client,
}

pub(super) struct Pair {
    pub(super) here: Node,
    pub(super) there: Node,
}

/// What a closer look at a key showed.
enum Look {
    Same,
    /// What is held here and there.
    Differs([Vec<SiblingOutline>; 2]),
    /// It was written meanwhile, again and again.
    Unsettled,
}

impl Pair {
    pub(super) async fn find(connection: &Connection, peer: &Peer) -> Result<Self, Failure> {
        let (address, status) = connection.client.status_with_node().await?;
        let session = connection.client.session();
        let node = |server_id, address: &NodeAddress| Node {
            server_id,
            client: connection.client.only(address),
            in_session: session.only(address),
        };
        let mut unreached = None;
        for candidate in addresses(peer, &status)? {
            match connection.client.status_of(&candidate).await {
                Ok(other) if other.cluster_id != status.cluster_id => {
                    return Err(Failure::usage(format_args!("{candidate} is a node of another cluster")));
                }
                Ok(other) if other.server_id == status.server_id => {
                    return Err(Failure::usage(format_args!("{candidate} is node {} itself", status.server_id))
                        .hint("--node names the node that another is compared with"));
                }
                Ok(other) => {
                    let [here, there] = [node(status.server_id, &address), node(other.server_id, &candidate)];
                    return Ok(Self { here, there });
                }
                Err(error) => unreached = Some(error),
            }
        }
        Err(unreached.map_or_else(|| Failure::refused("that member has told no address"), Failure::from))
    }

    /// The buckets that differ, at a moment at which both have applied the same.
    async fn differing_buckets(&self, at_most: Duration) -> Result<Vec<u16>, Failure> {
        let mut last: Option<(PeerDigest, PeerDigest)> = None;
        let is_equal = wait_until(at_most, async || {
            let (here, there) = (self.here.client.digest().await?, self.there.client.digest().await?);
            let is_equal = here.applied == there.applied;
            last = Some((here, there));
            Ok(is_equal)
        });
        let is_equal = is_equal.await?;
        let (here, there) = last.expect("it was asked at least once");
        if is_equal {
            return Ok(here.digest.differing(&there.digest).into_iter().map(|bucket| bucket as u16).collect());
        }
        let lacks = |one: &PeerDigest, other: &PeerDigest| -> u64 {
            let missing = other.applied.since(&one.applied);
            missing.iter().map(|dot| dot.seq - one.applied.seq(dot.origin)).sum()
        };
        Err(Failure::unreachable(format_args!(
            "nodes {} and {} had not applied the same at any moment of {} s: {} lacks {} write sets of the other, {} lacks {}",
            self.here.server_id,
            self.there.server_id,
            at_most.as_secs(),
            self.here.server_id,
            lacks(&here, &there),
            self.there.server_id,
            lacks(&there, &here),
        ))
        .hint("--wait waits longer; --all compares all records without such a moment"))
    }

    async fn look_again(&self, key: &RecordKey) -> Result<Look, Failure> {
        for _ in 0..LOOKS_MAX {
            let before = siblings_of(&self.here.in_session, key).await?;
            let there = siblings_of(&self.there.in_session, key).await?;
            if before == there {
                return Ok(Look::Same);
            }
            let after = siblings_of(&self.here.in_session, key).await?;
            if before == after {
                return Ok(Look::Differs([after, there]));
            }
        }
        Ok(Look::Unsettled)
    }
}

/// Where to look for a node.
fn addresses(peer: &Peer, status: &StatusView) -> Result<Vec<NodeAddress>, Failure> {
    let server_id = match peer {
        Peer::At(address) => return Ok(vec![address.clone()]),
        Peer::Member(server_id) => *server_id,
    };
    if server_id == status.server_id {
        return Err(Failure::usage(format_args!("node {server_id} is the one that is asked"))
            .hint("--node names the node that another is compared with"));
    }
    let member = status.peers.iter().find(|peer| peer.server_id == server_id);
    let member = member.ok_or_else(|| Failure::refused(format_args!("member {server_id} is not known here")))?;
    Ok(member.addresses.iter().filter_map(|address| address.parse().ok()).collect())
}

/// What a node holds of one key; in a session, once it has all that the session has seen.
async fn siblings_of(node: &Client, key: &RecordKey) -> Result<Vec<SiblingOutline>, Failure> {
    let from = Bytes::copy_from_slice(key.as_bytes());
    let page = node.scan_buckets(BucketScan { buckets: Vec::new(), from, limit: 1 }).await?;
    let record = page.records.into_iter().find(|record| record.key == *key);
    Ok(record.map(|record| record.siblings).unwrap_or_default())
}

/// The records of one node, in order of keys.
struct Side<'a> {
    client: &'a Client,
    buckets: &'a [u16],
    only: Option<KeyspaceId>,
    page: VecDeque<RecordOutline>,
    /// Where the next page begins; nothing behind the last.
    from: Option<Bytes>,
    examined: u64,
}

impl<'a> Side<'a> {
    fn new(client: &'a Client, buckets: &'a [u16], only: Option<KeyspaceId>) -> Self {
        let from = only.map(|id| Bytes::copy_from_slice(RecordKey::new(id, b"").as_bytes())).unwrap_or_default();
        Self { client, buckets, only, page: VecDeque::new(), from: Some(from), examined: 0 }
    }

    /// Sees to it that the next record is there, if there is one.
    async fn fill(&mut self, progress: &ProgressBar) -> Result<(), Failure> {
        while self.page.is_empty()
            && let Some(from) = self.from.take()
        {
            let scan = BucketScan { buckets: self.buckets.to_vec(), from, limit: PAGE_RECORDS };
            let page = self.client.scan_buckets(scan).await?;
            self.examined += u64::from(page.examined);
            progress.set_message(format!("{} records looked at", self.examined));
            progress.tick();
            let is_within = |key: &RecordKey| self.only.is_none_or(|only| key.keyspace() == only);
            let next_keyspace = page.next.as_ref().and_then(|next| RecordKey::from_bytes(next.clone()));
            self.from = page.next.filter(|_| next_keyspace.as_ref().is_none_or(is_within));
            self.page = page.records.into_iter().filter(|record| is_within(&record.key)).collect();
        }
        Ok(())
    }
}

/// The next key of which the two showed different things.
async fn next_suspect(
    here: &mut Side<'_>,
    there: &mut Side<'_>,
    progress: &ProgressBar,
) -> Result<Option<RecordKey>, Failure> {
    loop {
        here.fill(progress).await?;
        there.fill(progress).await?;
        let key = match (here.page.front(), there.page.front()) {
            (Some(one), Some(other)) => one.key.clone().min(other.key.clone()),
            (Some(one), None) | (None, Some(one)) => one.key.clone(),
            (None, None) => return Ok(None),
        };
        let ours = here.page.pop_front_if(|record| record.key == key);
        let theirs = there.page.pop_front_if(|record| record.key == key);
        if ours != theirs {
            return Ok(Some(key));
        }
    }
}

/// What keyspaces are called.
struct Keyspaces {
    names: BTreeMap<KeyspaceId, String>,
    only: Option<KeyspaceId>,
}

impl Keyspaces {
    async fn load(node: &Client, only: Option<&str>) -> Result<Self, Failure> {
        let views = node.keyspaces().await?;
        // One whose name answers to another is called by its id.
        let called = |by_name, name: &str, id: KeyspaceId| if by_name { name.to_owned() } else { id.to_string() };
        let names = views.iter().map(|view| (view.id, called(view.by_name, &view.name, view.id)));
        let names: BTreeMap<_, _> = names.chain([(KeyspaceId::SYSTEM, SYSTEM.to_owned())]).collect();
        let is_it = |wanted: &str, id: &KeyspaceId, name: &str| name == wanted || id.to_string() == wanted;
        // A keyspace of users that is called `system` goes before the system's own.
        let find = |wanted: &str| names.iter().rev().find(|(id, name)| is_it(wanted, id, name)).map(|(id, _)| *id);
        let unknown =
            |wanted: &str| Failure::refused(format_args!("there is no keyspace `{wanted}` at the node that was asked"));
        let only = only.map(|wanted| find(wanted).ok_or_else(|| unknown(wanted))).transpose()?;
        Ok(Self { names, only })
    }

    fn name(&self, id: KeyspaceId) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
}

/// Which values are where, by the write sets that put them.
fn described([(here, ours), (there, theirs)]: [(u32, &Vec<SiblingOutline>); 2]) -> String {
    let place = |sibling: &SiblingOutline| (sibling.field.clone(), sibling.dot);
    let [ours_at, theirs_at] = [ours, theirs].map(|side| side.iter().map(place).collect::<BTreeSet<_>>());
    let only_in = |side: &[SiblingOutline], others: &BTreeSet<(_, Dot)>| {
        listed(side.iter().filter(|sibling| !others.contains(&place(sibling))))
    };
    let in_both = |sibling: &&SiblingOutline| theirs_at.contains(&place(sibling));
    let parts = [
        (format!("only at {here}"), only_in(ours, &theirs_at)),
        (format!("only at {there}"), only_in(theirs, &ours_at)),
        (
            "another value of".to_owned(),
            listed(ours.iter().filter(in_both).filter(|sibling| !theirs.contains(sibling))),
        ),
        ("at both".to_owned(), listed(ours.iter().filter(|sibling| theirs.contains(sibling)))),
    ];
    let parts =
        parts.iter().filter(|(_, what)| !what.is_empty()).map(|(where_it_is, what)| format!("{where_it_is}: {what}"));
    parts.collect::<Vec<_>>().join("; ")
}

fn listed<'a>(siblings: impl Iterator<Item = &'a SiblingOutline>) -> String {
    let shown = siblings.map(|sibling| match sibling.field.as_str() {
        "" => sibling.dot.to_string(),
        field => format!("{} of {}", sibling.dot, escaped(field.as_bytes())),
    });
    shown.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use polyarch_client::{Hlc, Origin};

    use super::*;

    fn sibling(seq: u64, value: u8) -> SiblingOutline {
        let dot = Dot::new(Origin::new(1, 7), seq);
        SiblingOutline { field: Default::default(), dot, hlc: Hlc::default(), value: [value; 16] }
    }

    #[test]
    fn a_node_is_named_by_its_id_or_address() {
        assert_eq!("2".parse(), Ok(Peer::Member(2)));
        assert_eq!("db:7400".parse(), Ok(Peer::At("db:7400".parse().unwrap())));
        for text in ["0", "", "nowhere", "4294967296"] {
            assert!(text.parse::<Peer>().is_err(), "{text}");
        }
    }

    #[test]
    fn it_is_said_which_write_sets_are_where() {
        let said = |ours: &[SiblingOutline], theirs: &[SiblingOutline]| {
            described([(1, &ours.to_vec()), (2, &theirs.to_vec())])
        };
        assert_eq!(said(&[sibling(1, 0)], &[]), "only at 1: 1-00000007:1");
        assert_eq!(
            said(&[sibling(1, 0), sibling(2, 0)], &[sibling(2, 0), sibling(3, 0)]),
            "only at 1: 1-00000007:1; only at 2: 1-00000007:3; at both: 1-00000007:2"
        );
        assert_eq!(said(&[sibling(1, 0)], &[sibling(1, 1)]), "another value of: 1-00000007:1");
    }
}
