//! Batches over a group of keys whose numbers add up to nothing: whole on every node, at every moment.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use polyarch_client::{Client, Dot, Hlc, Origin, Record};

use crate::checks::Held;
use crate::support::writers::Rng;
use crate::tally::{Outcome, Tally};
use crate::wanderer::Wanderer;

const GROUPS: u64 = 5;
const KEYS: u64 = 3;

/// By what the winner of an `lww` keyspace is chosen.
pub(crate) type Stamp = (Hlc, Origin);

/// A batch that was sent.
#[derive(Debug, Clone)]
struct Sent {
    group: u64,
    id: String,
    gtid: Option<Dot>,
    stamp: Option<Stamp>,
}

/// Writes batches on one node, by turns to an `mv` and an `lww` keyspace.
pub(crate) struct Batches {
    name: String,
    client: Client,
    rng: Rng,
    count: u64,
    /// To the `lww` keyspace: acknowledged, and of unknown outcome.
    acked: Vec<Sent>,
    unknown: Vec<Sent>,
    gtids: Vec<Dot>,
}

impl Batches {
    pub(crate) fn new(name: String, client: Client, seed: u64) -> Self {
        let (acked, unknown, gtids) = (Vec::new(), Vec::new(), Vec::new());
        Self { name, client, rng: Rng(seed), count: 0, acked, unknown, gtids }
    }

    pub(crate) fn gtids(&self) -> impl Iterator<Item = Dot> {
        self.gtids.iter().copied()
    }

    pub(crate) async fn step(&mut self, tally: &Tally) {
        self.count += 1;
        let (group, is_lww) = (self.rng.below(GROUPS), self.rng.below(2) == 0);
        let id = format!("{}#{}", self.name, self.count);
        let keyspace = if is_lww { "sums" } else { "pairs" };
        // Where something was deleted the next winner may have an older stamp, so from there nothing is.
        let deletes = !is_lww && self.rng.below(5) == 0;
        let mut batch = self.client.batch();
        let mut left = 0;
        for at in 0..KEYS {
            let number = match at + 1 == KEYS {
                true => -left,
                false => self.rng.below(1_000) as i64 - 500,
            };
            left += number;
            batch = match deletes {
                true => batch.delete(keyspace, key(group, at)),
                false => batch.put(keyspace, key(group, at), format!("{id} {number}")),
            };
        }
        let begun = Instant::now();
        let mut sent = Sent { group, id, gtid: None, stamp: None };
        match tally.outcome(batch.commit().await, begun.elapsed()) {
            Outcome::Acked(written) => {
                sent.gtid = written.dot;
                sent.stamp = written.hlc.zip(written.dot.map(|gtid| gtid.origin));
                self.gtids.extend(written.dot);
                self.acked.extend(is_lww.then_some(sent));
            }
            Outcome::Unknown => self.unknown.extend(is_lww.then_some(sent)),
            Outcome::Refused => {}
        }
    }
}

/// Reads the keys of a group one after the other: what it saw of one it sees of all.
pub(crate) struct SumReader {
    at: Wanderer,
}

impl SumReader {
    pub(crate) fn new(at: Wanderer) -> Self {
        Self { at }
    }

    pub(crate) async fn step(&mut self, tally: &Tally) {
        let group = self.at.below(GROUPS);
        let mut seen: Option<Stamp> = None;
        for at in 0..KEYS {
            let Ok(record) = self.at.anywhere().get("sums", key(group, at)).await else { return };
            tally.read();
            let stamp = record.as_ref().and_then(stamp);
            if stamp < seen {
                tally.breach(format!("a session that saw {seen:?} of group {group} is shown {record:?}"));
            }
            seen = stamp;
        }
    }
}

fn stamp(record: &Record) -> Option<Stamp> {
    record.siblings().first().map(|sibling| (sibling.hlc, sibling.dot.origin))
}

fn key(group: u64, at: u64) -> String {
    format!("group-{group}.{at}")
}

/// The winners that were checked last, and stay until a greater one comes.
#[derive(Default)]
pub(crate) struct Winners(BTreeMap<u64, Stamp>);

impl Winners {
    /// Each breach in words, of what all nodes show.
    pub(crate) fn check(
        &mut self,
        pairs: &Held,
        sums: &Held,
        writers: &mut [Batches],
        lost: &BTreeSet<Dot>,
    ) -> Vec<String> {
        let mut breaches = [whole(pairs), whole(sums)].concat();
        for group in 0..GROUPS {
            let of_group = |sent: &&Sent| sent.group == group && sent.gtid.is_none_or(|gtid| !lost.contains(&gtid));
            let acked = writers.iter().flat_map(|writer| &writer.acked).filter(of_group);
            let stamps = acked.filter_map(|sent| sent.stamp).chain(self.0.get(&group).copied());
            let greatest = stamps.max();
            let shown = sums.get(&key(group, 0)).and_then(|siblings| siblings.iter().next());
            let Some((gtid, sibling)) = shown else {
                breaches.extend(greatest.map(|stamp| format!("group {group} shows nothing after {stamp:?}")));
                continue;
            };
            let winner = (sibling.hlc, gtid.origin);
            let mut unknown = writers.iter().flat_map(|writer| &writer.unknown).filter(of_group);
            let is_unknown = unknown.any(|sent| sibling.value.split(' ').next() == Some(sent.id.as_str()));
            if Some(winner) < greatest || (Some(winner) > greatest && !is_unknown) {
                breaches.push(format!("group {group} shows {sibling:?} of {gtid} after {greatest:?}"));
            }
            self.0.insert(group, winner);
        }
        for writer in writers {
            writer.acked.clear();
            writer.gtids.clear();
        }
        breaches
    }
}

/// Each breach in words: all keys of a group show the same batches, and each of these adds up to nothing.
fn whole(held: &Held) -> Vec<String> {
    let mut breaches = Vec::new();
    let nothing = BTreeMap::new();
    for group in 0..GROUPS {
        let keys: Vec<_> = (0..KEYS).map(|at| held.get(&key(group, at)).unwrap_or(&nothing)).collect();
        if keys.windows(2).any(|pair| !pair[0].keys().eq(pair[1].keys())) {
            breaches.push(format!("group {group} shows parts of batches: {keys:?}"));
            continue;
        }
        for gtid in keys[0].keys() {
            let parts = keys.iter().map(|siblings| siblings[gtid].value.split_once(' ').unwrap_or_default());
            let ids: BTreeSet<&str> = parts.clone().map(|(id, _)| id).collect();
            let sum: i64 = parts.map(|(_, number)| number.parse().unwrap_or(i64::MAX / 8)).sum();
            if ids.len() != 1 || sum != 0 {
                breaches.push(format!("the batch of {gtid} in group {group} has {ids:?}, sum {sum}"));
            }
        }
    }
    breaches
}
