//! What clients were told, and what follows from it, computed outside the nodes.
//!
//! Only two promises are used: an acknowledged write is not lost, and it is shown until a write
//! whose context named it. A write that was not acknowledged may or may not have happened.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use polyarch_client::{Client, Dot};

/// All that was asked and answered.
#[derive(Default)]
pub(crate) struct Ledger {
    acked: Vec<Write>,
    unknown: Vec<Write>,
    /// How long each acknowledged write took.
    pub(crate) took: Vec<Duration>,
    /// Writes that had no effect, as the node or the client library said.
    pub(crate) refused: u64,
    /// Reads that were answered.
    pub(crate) reads: u64,
}

/// One write to one key of an `mv` keyspace, with a context or with none.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) key: String,
    /// Unique in the test; `None` deletes.
    pub(crate) value: Option<String>,
    /// The siblings that its context was read with.
    pub(crate) shown: Vec<Dot>,
    /// Its GTID, when it was acknowledged and wrote anything.
    pub(crate) gtid: Option<Dot>,
    /// When it was acknowledged.
    pub(crate) acked_at: Option<Instant>,
}

impl Ledger {
    /// The node said that it was done.
    pub(crate) fn acked(&mut self, write: Write) {
        self.acked.push(Write { acked_at: Some(Instant::now()), ..write });
    }

    /// Takes out the acknowledged writes that are in no `applied`-set, the last GTID of each origin: to the others it is
    /// as if they had never been.
    pub(crate) fn take_lost(&mut self, applied: &[Dot]) -> Vec<Write> {
        let is_lost = |gtid: Dot| !applied.iter().any(|last| last.origin == gtid.origin && gtid.seq <= last.seq);
        self.acked.extract_if(.., |write| write.gtid.is_some_and(is_lost)).collect()
    }

    /// Nobody knows whether it was done.
    pub(crate) fn unknown(&mut self, write: Write) {
        self.unknown.push(write);
    }

    pub(crate) fn merge(&mut self, other: Ledger) {
        self.acked.extend(other.acked);
        self.unknown.extend(other.unknown);
        self.took.extend(other.took);
        self.refused += other.refused;
        self.reads += other.reads;
    }

    /// The acknowledged writes.
    pub(crate) fn all_acked(&self) -> &[Write] {
        &self.acked
    }

    pub(crate) fn acked_len(&self) -> usize {
        self.acked.len()
    }

    pub(crate) fn unknown_len(&self) -> usize {
        self.unknown.len()
    }

    /// Compares with what a client is shown of a keyspace; returns each breach in words.
    pub(crate) async fn breaches(&self, client: &Client, keyspace: &str) -> Vec<String> {
        let mut shown: BTreeMap<String, BTreeMap<Dot, String>> = BTreeMap::new();
        let mut scan = client.scan(keyspace, "");
        while let Some((key, record)) = scan.next().await.expect("the node answers") {
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("tests write text");
            let siblings = record.siblings().iter().map(|s| (s.dot, text(&s.value)));
            shown.insert(text(&key), siblings.collect());
        }
        self.compare(&shown)
    }

    /// The same with what was already read: for each key the siblings by GTID.
    pub(crate) fn compare(&self, shown: &BTreeMap<String, BTreeMap<Dot, String>>) -> Vec<String> {
        let mut breaches = Vec::new();
        let nothing = BTreeMap::new();
        let (surely_gone, perhaps_gone) = (named(&self.acked), named(&self.unknown));
        let mut expected: BTreeMap<Dot, &Write> = BTreeMap::new();
        for write in &self.acked {
            let (Some(gtid), Some(value)) = (write.gtid, &write.value) else { continue };
            if let Some(other) = expected.insert(gtid, write) {
                breaches.push(format!("{gtid} was given to two writes: {other:?} and {write:?}"));
            }
            let place = (write.key.as_str(), gtid);
            match shown.get(&write.key).unwrap_or(&nothing).get(&gtid) {
                Some(_) if surely_gone.contains(&place) => breaches.push(format!("{write:?} was replaced and is back")),
                Some(found) if found != value => breaches.push(format!("{write:?} is shown as {found:?}")),
                Some(_) => {}
                None if surely_gone.contains(&place) || perhaps_gone.contains(&place) => {}
                None => breaches.push(format!("{write:?} was acknowledged, and is lost")),
            }
        }
        let perhaps: BTreeSet<(&String, &String)> =
            self.unknown.iter().filter_map(|w| Some((&w.key, w.value.as_ref()?))).collect();
        for (key, siblings) in shown {
            for (gtid, value) in siblings {
                let is_known = expected.contains_key(gtid) || perhaps.contains(&(key, value));
                if !is_known {
                    breaches.push(format!("{key} shows {value:?} of {gtid}, which nobody wrote"));
                }
            }
        }
        breaches
    }
}

/// What writes have replaced.
fn named(writes: &[Write]) -> BTreeSet<(&str, Dot)> {
    writes.iter().flat_map(|write| write.shown.iter().map(|gtid| (write.key.as_str(), *gtid))).collect()
}
