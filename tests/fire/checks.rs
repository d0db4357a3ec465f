//! What nodes show, compared with each other and over time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use polyarch_client::{Client, Dot, Error, Hlc, StatusView};
use serde_json::Value;

use crate::support::command;

/// A live value as a client is shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sibling {
    pub(crate) hlc: Hlc,
    pub(crate) value: String,
}

/// What a node shows of a keyspace: of each key the siblings by GTID.
pub(crate) type Held = BTreeMap<String, BTreeMap<Dot, Sibling>>;

/// All that a node shows of a keyspace.
pub(crate) async fn held(client: &Client, keyspace: &str) -> Result<Held, Error> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (mut scan, mut held) = (client.scan(keyspace, ""), Held::new());
    while let Some((key, record)) = scan.next().await? {
        let sibling = |s: &polyarch_client::SiblingView| (s.dot, Sibling { hlc: s.hlc, value: text(&s.value) });
        held.insert(text(&key), record.siblings().iter().map(sibling).collect());
    }
    Ok(held)
}

/// Whether an applied-set, the last GTID of each origin, has this one.
pub(crate) fn has(applied: &[Dot], gtid: Dot) -> bool {
    applied.iter().any(|last| last.origin == gtid.origin && gtid.seq <= last.seq)
}

/// What every GTID was seen to be, on any node, at any time.
#[derive(Default)]
pub(crate) struct Payloads {
    /// By keyspace and key, since a batch has several.
    seen: BTreeMap<(Dot, String), u64>,
    stamps: BTreeMap<Dot, Hlc>,
}

impl Payloads {
    /// Each breach in words.
    pub(crate) fn note(&mut self, keyspace: &str, held: &Held) -> Vec<String> {
        let mut breaches = Vec::new();
        for (key, siblings) in held {
            for (gtid, sibling) in siblings {
                let payload = hash(&(&sibling.hlc, &sibling.value));
                let known = *self.seen.entry((*gtid, format!("{keyspace}/{key}"))).or_insert(payload);
                if known != payload {
                    breaches.push(format!("{gtid} has two payloads; one is {sibling:?} of {keyspace}/{key}"));
                }
                self.stamps.insert(*gtid, sibling.hlc);
            }
        }
        breaches
    }

    /// Stamps of an origin rise with its write sets.
    pub(crate) fn stamps_rise(&self) -> Vec<String> {
        let pairs = self.stamps.iter().zip(self.stamps.iter().skip(1));
        let falls = |((one, was), (next, is)): &((&Dot, &Hlc), (&Dot, &Hlc))| one.origin == next.origin && is <= was;
        pairs.filter(falls).map(|((one, was), (next, is))| format!("{one} is stamped {was}, {next} {is}")).collect()
    }
}

/// Compares the hashes of the chains of all origins that have grown since `checked`, over all nodes.
pub(crate) async fn chains(
    clients: &[Client],
    applied: &[Dot],
    checked: &mut BTreeSet<Dot>,
) -> Result<Vec<String>, Error> {
    let mut breaches = Vec::new();
    for gtid in applied.iter().filter(|gtid| !checked.contains(gtid)) {
        let mut hashes = BTreeSet::new();
        for client in clients {
            hashes.extend(client.chain_hash(*gtid).await?.map(|hash| format!("{hash:?}")));
        }
        if hashes.len() > 1 {
            breaches.push(format!("the history up to {gtid} is not the same everywhere: {hashes:?}"));
        }
    }
    *checked = applied.iter().copied().collect();
    Ok(breaches)
}

/// What a node must not say once all are equal.
pub(crate) fn complaints(status: &StatusView) -> Vec<String> {
    let id = status.server_id;
    let differs = status.peers.iter().filter(|peer| peer.equal == Some(false));
    let paused = status.feeds.iter().filter(|feed| feed.paused);
    let differs = differs.map(|peer| format!("node {id} says that it differs from {}", peer.server_id));
    differs.chain(paused.map(|feed| format!("node {id} has stopped the feed of {}", feed.origin))).collect()
}

/// Reads the logs of stopped nodes, and says of each GTID that has two payloads in them. Counts the GTIDs.
pub(crate) fn compare_logs(directories: &[std::path::PathBuf]) -> (usize, Vec<String>) {
    let (mut payloads, mut breaches) = (BTreeMap::<String, u64>::new(), Vec::new());
    for directory in directories {
        for_each_write_set(directory, |write_set| {
            let Some(gtid) = write_set["gtid"].as_str() else {
                breaches.push(format!("{}: {write_set}", directory.display()));
                return;
            };
            let payload = hash(&["hlc", "dependencies", "changes"].map(|field| write_set[field].to_string()));
            if *payloads.entry(gtid.to_owned()).or_insert(payload) != payload {
                breaches.push(format!("{gtid} has another payload in {}: {write_set}", directory.display()));
            }
        });
    }
    (payloads.len(), breaches)
}

fn for_each_write_set(directory: &Path, mut each: impl FnMut(&Value)) {
    let dump = command().args(["log", "dump", "--json"]).arg(directory).stdout(Stdio::piped()).spawn();
    let mut dump = dump.expect("the binary can be started");
    for line in BufReader::new(dump.stdout.take().expect("it is piped")).lines() {
        let line = line.expect("it is text");
        each(&serde_json::from_str(&line).unwrap_or_else(|error| panic!("`{line}`: {error}")));
    }
    let status = dump.wait().expect("a child can be waited for");
    assert!(status.success(), "log dump {}: {status}", directory.display());
}

/// Each panic that a node's log tells of.
pub(crate) fn panics(log: &Path) -> Vec<String> {
    let Ok(file) = File::open(log) else { return Vec::new() };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    lines.filter(|line| line.contains("panicked at")).map(|line| format!("{}: {line}", log.display())).collect()
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}
