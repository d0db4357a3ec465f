//! Which keys two nodes hold differently, once their digests say in which buckets.
//!
//! Two members that have applied the same and whose digests differ tell each other their buckets
//! ([`PeerDigest`]), then a hash of each key in the first few that differ ([`BucketKeys`]), and each
//! compares with its own. All of it is of one applied-set. What a bucket holds is found by reading
//! all records, in the background: there is no index by bucket, which each write would have to keep.

use std::cmp::Ordering;
use std::fmt;
use std::iter::Peekable;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Record};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::digest::{Digest, record_hash};
use crate::keyspace::RecordKey;

/// Buckets whose keys are compared at a time, at most.
pub const BUCKETS_COMPARED_MAX: usize = 16;
/// Bytes of keys and hashes after which a node tells no more of them.
const KEYS_BYTES_MAX: usize = 1 << 20;
/// The room that a hash and a key's length take.
const HASH_BYTES: usize = 22;

/// A node's digest, and of what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerDigest {
    /// What the node had durably applied.
    pub applied: AppliedSet,
    /// The digest of exactly that: 64 KiB.
    #[serde(with = "crate::digest::packed")]
    pub digest: Digest,
}

/// Buckets to be read, as they are when exactly this is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketsWanted {
    /// What is applied.
    pub applied: AppliedSet,
    /// The buckets, in order, at most [`BUCKETS_COMPARED_MAX`].
    pub buckets: Vec<u16>,
}

/// The keys of some buckets, each with the hash of its live siblings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketKeys {
    /// What the node had applied.
    pub applied: AppliedSet,
    /// The buckets, in order.
    #[serde(deserialize_with = "codec::compared_buckets")]
    pub buckets: Vec<u16>,
    /// Keys with live siblings, in order.
    pub keys: Vec<KeyHash>,
    /// Whether there are more behind the last, for which there is no room.
    pub cut_short: bool,
}

/// What a key adds to its bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyHash {
    /// The key.
    pub key: RecordKey,
    /// The wrapping sum of the hashes of its live siblings.
    pub hash: u128,
}

/// Gathers [`BucketKeys`] from records in order of keys.
#[derive(Debug)]
pub struct BucketReader {
    gathered: BucketKeys,
    bytes: usize,
}

impl BucketReader {
    /// Nothing read yet.
    pub fn new(wanted: BucketsWanted) -> Self {
        let BucketsWanted { applied, buckets } = wanted;
        Self { gathered: BucketKeys { applied, buckets, keys: Vec::new(), cut_short: false }, bytes: 0 }
    }

    /// What the records must be of.
    pub fn applied(&self) -> &AppliedSet {
        &self.gathered.applied
    }

    /// Takes the next record, of any bucket. Says whether there is room for more.
    pub fn take(&mut self, key: &RecordKey, record: &Record) -> bool {
        let is_wanted = self.gathered.buckets.contains(&(Digest::bucket_of(key) as u16));
        if self.gathered.cut_short || !is_wanted || record.is_deleted() {
            return !self.gathered.cut_short;
        }
        self.bytes += key.as_bytes().len() + HASH_BYTES;
        if self.bytes > KEYS_BYTES_MAX {
            self.gathered.cut_short = true;
            return false;
        }
        self.gathered.keys.push(KeyHash { key: key.clone(), hash: record_hash(key, record) });
        true
    }

    /// What was gathered.
    pub fn finish(self) -> BucketKeys {
        self.gathered
    }
}

impl BucketKeys {
    /// Of which buckets the keys do not add up to what the digest of the same applied-set says. Not
    /// known where keys are missing.
    pub(crate) fn not_adding_up_to(&self, digest: &Digest) -> Vec<u16> {
        if self.cut_short {
            return Vec::new();
        }
        let sum_of = |bucket: u16| {
            let of_it = self.keys.iter().filter(|held| Digest::bucket_of(&held.key) == usize::from(bucket));
            of_it.fold(0u128, |sum, held| sum.wrapping_add(held.hash))
        };
        let is_wrong = |bucket: &u16| digest.buckets().get(usize::from(*bucket)) != Some(&sum_of(*bucket));
        self.buckets.iter().copied().filter(is_wrong).collect()
    }

    /// The last key up to which this says all; `None` when it says all there is.
    fn end(&self) -> Option<&RecordKey> {
        self.keys.last().filter(|_| self.cut_short).map(|held| &held.key)
    }
}

/// Which side holds something of a key that differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldBy {
    /// This node alone.
    Here,
    /// The other alone.
    There,
    /// Both, and not the same.
    Both,
}

/// A key that two nodes hold differently.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DifferingKey {
    /// The keyspace's name, or its id where it has none.
    pub keyspace: String,
    /// The key within it.
    pub key: Bytes,
    /// Who has it.
    pub held_by: HeldBy,
}

impl fmt::Display for DifferingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// A key may have 64 KiB.
        const KEY_BYTES_SHOWN: usize = 64;
        let shown = &self.key[..self.key.len().min(KEY_BYTES_SHOWN)];
        let more = if shown.len() < self.key.len() { "…" } else { "" };
        let how = match self.held_by {
            HeldBy::Here => "only here",
            HeldBy::There => "only there",
            HeldBy::Both => "not the same",
        };
        write!(f, "{}/{}{more} ({how})", self.keyspace, shown.escape_ascii())
    }
}

/// What came of comparing keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeysCompared {
    /// The first that differ, in order.
    pub(crate) first: Vec<(RecordKey, HeldBy)>,
    /// How many differ.
    pub(crate) count: u64,
    /// Whether all keys of the buckets were compared.
    pub(crate) is_all: bool,
}

/// Compares what two nodes hold of the same buckets under the same applied-set.
pub(crate) fn compare(ours: &BucketKeys, theirs: &BucketKeys, keys_max: usize) -> KeysCompared {
    let end = match (ours.end(), theirs.end()) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    // One that has room for no key at all has an end before any.
    let is_nothing = [ours, theirs].iter().any(|side| side.cut_short && side.keys.is_empty());
    let within = |held: &&KeyHash| !is_nothing && end.is_none_or(|end| held.key <= *end);
    let mut compared = KeysCompared { first: Vec::new(), count: 0, is_all: !ours.cut_short && !theirs.cut_short };
    let ours = ours.keys.iter().take_while(within);
    let theirs = theirs.keys.iter().take_while(within);
    for (key, held_by) in differing(ours, theirs) {
        compared.count += 1;
        if compared.first.len() < keys_max {
            compared.first.push((key.clone(), held_by));
        }
    }
    compared
}

/// Walks two lists in order of keys.
fn differing<'a>(
    ours: impl Iterator<Item = &'a KeyHash>,
    theirs: impl Iterator<Item = &'a KeyHash>,
) -> impl Iterator<Item = (&'a RecordKey, HeldBy)> {
    let (mut ours, mut theirs) = (ours.peekable(), theirs.peekable());
    std::iter::from_fn(move || {
        loop {
            let (held, held_by) = next_of(&mut ours, &mut theirs)?;
            if let Some(held_by) = held_by {
                return Some((&held.key, held_by));
            }
        }
    })
}

/// The next key of either list; `None` in the place of who has it when both have the same.
fn next_of<'a>(
    ours: &mut Peekable<impl Iterator<Item = &'a KeyHash>>,
    theirs: &mut Peekable<impl Iterator<Item = &'a KeyHash>>,
) -> Option<(&'a KeyHash, Option<HeldBy>)> {
    let order = match (ours.peek(), theirs.peek()) {
        (Some(one), Some(other)) => one.key.cmp(&other.key),
        (Some(_), None) => Ordering::Less,
        (None, _) => Ordering::Greater,
    };
    match order {
        Ordering::Less => ours.next().map(|held| (held, Some(HeldBy::Here))),
        Ordering::Greater => theirs.next().map(|held| (held, Some(HeldBy::There))),
        Ordering::Equal => {
            let (one, other) = (ours.next()?, theirs.next()?);
            Some((one, (one.hash != other.hash).then_some(HeldBy::Both)))
        }
    }
}

#[cfg(test)]
mod tests {
    use polyarch_crdt::{Dot, FieldChange, FieldPath, Hlc, Origin};

    use super::*;
    use crate::keyspace::KeyspaceId;

    fn key(name: &str) -> RecordKey {
        RecordKey::new(KeyspaceId::SYSTEM, name.as_bytes())
    }

    fn record(seq: u64) -> Record {
        let mut record = Record::default();
        let value = Bytes::from_static(b"v");
        let change = FieldChange { path: &FieldPath::opaque(), supersedes: &[], put: Some(&value) };
        let _ = record.apply(Dot::new(Origin::new(1, 1), seq), Hlc::default(), &change, &AppliedSet::new());
        record
    }

    fn held(keys: &[(&str, u128)], cut_short: bool) -> BucketKeys {
        let keys = keys.iter().map(|(name, hash)| KeyHash { key: key(name), hash: *hash }).collect();
        BucketKeys { applied: AppliedSet::new(), buckets: vec![1], keys, cut_short }
    }

    fn found(ours: &BucketKeys, theirs: &BucketKeys) -> (Vec<(RecordKey, HeldBy)>, u64, bool) {
        let KeysCompared { first, count, is_all } = compare(ours, theirs, 2);
        (first, count, is_all)
    }

    #[test]
    fn keys_that_one_side_lacks_or_holds_otherwise_are_found() {
        let ours = held(&[("a", 1), ("b", 2), ("d", 4)], false);
        let theirs = held(&[("a", 1), ("b", 3), ("c", 3), ("e", 5)], false);
        let first = vec![(key("b"), HeldBy::Both), (key("c"), HeldBy::There)];
        assert_eq!(found(&ours, &theirs), (first, 4, true), "no more are kept than are wanted, and all are counted");
        let first = vec![(key("b"), HeldBy::Both), (key("c"), HeldBy::Here)];
        assert_eq!(found(&theirs, &ours), (first, 4, true));
        assert_eq!(found(&ours, &ours), (Vec::new(), 0, true));
    }

    #[test]
    fn what_was_cut_short_is_compared_up_to_its_end_only() {
        let ours = held(&[("a", 1), ("b", 2)], true);
        let theirs = held(&[("a", 1), ("c", 3), ("d", 4)], false);
        assert_eq!(found(&ours, &theirs), (vec![(key("b"), HeldBy::Here)], 1, false));
        assert_eq!(found(&held(&[], true), &theirs), (Vec::new(), 0, false), "nothing is known of any key");
        let theirs = held(&[("a", 1)], true);
        assert_eq!(found(&ours, &theirs), (Vec::new(), 0, false));
    }

    #[test]
    fn a_reader_takes_the_keys_of_its_buckets_until_there_is_no_room() {
        let bucket = Digest::bucket_of(&key("k")) as u16;
        let wanted = BucketsWanted { applied: AppliedSet::new(), buckets: vec![bucket] };
        let mut reader = BucketReader::new(wanted.clone());
        let other = (0..).map(|i| key(&format!("o{i}"))).find(|k| Digest::bucket_of(k) as u16 != bucket).unwrap();
        assert!(reader.take(&key("k"), &record(1)) && reader.take(&other, &record(2)));
        assert!(reader.take(&key("k2"), &Record::default()), "a record that shows nothing adds nothing");
        let gathered = reader.finish();
        assert_eq!(gathered.keys, vec![KeyHash { key: key("k"), hash: record_hash(&key("k"), &record(1)) }]);

        let mut digest = Digest::default();
        let path = FieldPath::opaque();
        digest.add(&key("k"), &path, &record(1).siblings(&path)[0]);
        assert_eq!(gathered.not_adding_up_to(&digest), Vec::<u16>::new());
        assert_eq!(gathered.not_adding_up_to(&Digest::default()), vec![bucket]);

        let mut reader = BucketReader::new(wanted);
        let mut taken = 0;
        // The same key again and again: a reader does not look at the order.
        while reader.take(&key("k"), &record(1)) {
            taken += 1;
        }
        let gathered = reader.finish();
        assert!(gathered.cut_short && gathered.keys.len() == taken && taken > 10_000);
        assert_eq!(gathered.not_adding_up_to(&Digest::default()), Vec::<u16>::new(), "not known");
    }

    #[test]
    fn a_key_is_shown_without_anything_that_moves_a_cursor() {
        let shown = |key: &[u8], held_by| {
            DifferingKey { keyspace: "k".to_owned(), key: Bytes::copy_from_slice(key), held_by }.to_string()
        };
        assert_eq!(shown(b"a\x1b[2J\xff", HeldBy::There), "k/a\\x1b[2J\\xff (only there)");
        assert_eq!(shown(&[b'x'; 100], HeldBy::Both), format!("k/{}… (not the same)", "x".repeat(64)));
    }
}
