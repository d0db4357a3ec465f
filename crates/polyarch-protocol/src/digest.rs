use std::fmt;

use polyarch_crdt::{FieldPath, Record, Sibling};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::keyspace::RecordKey;

/// How many buckets keys are spread over.
pub const DIGEST_BUCKETS: usize = 4_096;

/// So many buckets of all there are, for people: `4,093 of 4,096 buckets`.
pub fn of_all_buckets(count: usize) -> String {
    let grouped = |number: usize| match number {
        0..1_000 => number.to_string(),
        _ => format!("{},{:03}", number / 1_000, number % 1_000),
    };
    format!("{} of {} buckets", grouped(count), grouped(DIGEST_BUCKETS))
}

/// A fingerprint of all live siblings, kept up to date write by write.
///
/// Each key falls in one of 4,096 buckets; a bucket is the wrapping 128-bit sum of the XXH3-128
/// hashes of its live siblings. Sums do not depend on order, so nodes that applied the same write
/// sets in different orders have equal digests. **Law: equal applied-sets imply equal digests.**
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    buckets: Vec<u128>,
    total: u128,
}

impl Default for Digest {
    fn default() -> Self {
        Self { buckets: vec![0; DIGEST_BUCKETS], total: 0 }
    }
}

impl Digest {
    /// The bucket that a key falls in.
    pub fn bucket_of(key: &RecordKey) -> usize {
        (xxh3_64(key.as_bytes()) % DIGEST_BUCKETS as u64) as usize
    }

    /// Takes in a sibling that became live.
    pub fn add(&mut self, key: &RecordKey, field: &FieldPath, sibling: &Sibling) {
        let (bucket, hash) = (Self::bucket_of(key), hash(key, field, sibling));
        self.buckets[bucket] = self.buckets[bucket].wrapping_add(hash);
        self.total = self.total.wrapping_add(hash);
    }

    /// Takes out a sibling that is no longer live.
    pub fn remove(&mut self, key: &RecordKey, field: &FieldPath, sibling: &Sibling) {
        let (bucket, hash) = (Self::bucket_of(key), hash(key, field, sibling));
        self.buckets[bucket] = self.buckets[bucket].wrapping_sub(hash);
        self.total = self.total.wrapping_sub(hash);
    }

    /// The sum over all buckets: what heartbeats carry.
    pub fn total(&self) -> u128 {
        self.total
    }

    /// The sum of each bucket.
    pub fn buckets(&self) -> &[u128] {
        &self.buckets
    }

    /// The buckets in which the two differ.
    pub fn differing(&self, other: &Digest) -> Vec<usize> {
        (0..DIGEST_BUCKETS).filter(|&at| self.buckets.get(at) != other.buckets.get(at)).collect()
    }

    /// Whether the sums fit together; one read from a disk may not.
    pub fn is_consistent(&self) -> bool {
        self.buckets.len() == DIGEST_BUCKETS
            && self.buckets.iter().fold(0u128, |sum, b| sum.wrapping_add(*b)) == self.total
    }
}

/// What a record adds to its bucket.
pub(crate) fn record_hash(key: &RecordKey, record: &Record) -> u128 {
    let siblings = record.fields().iter().flat_map(|field| field.siblings().iter().map(move |s| (field.path(), s)));
    siblings.fold(0, |sum, (path, sibling)| sum.wrapping_add(hash(key, path, sibling)))
}

/// A digest in a message: its buckets, 16 bytes each, little endian. The total follows from them.
pub(crate) mod packed {
    use bytes::Bytes;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    use super::{DIGEST_BUCKETS, Digest};

    const BUCKET_BYTES: usize = size_of::<u128>();

    pub(crate) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = digest.buckets.iter().flat_map(|bucket| bucket.to_le_bytes()).collect();
        serializer.serialize_bytes(&bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?;
        if bytes.len() != DIGEST_BUCKETS * BUCKET_BYTES {
            return Err(D::Error::custom("not as many buckets as a digest has"));
        }
        let (chunks, _) = bytes.as_chunks::<BUCKET_BYTES>();
        let buckets: Vec<u128> = chunks.iter().map(|chunk| u128::from_le_bytes(*chunk)).collect();
        let total = buckets.iter().fold(0u128, |sum, bucket| sum.wrapping_add(*bucket));
        Ok(Digest { buckets, total })
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({:032x})", self.total)
    }
}

fn hash(key: &RecordKey, field: &FieldPath, sibling: &Sibling) -> u128 {
    let mut hasher = Xxh3::new();
    let origin = sibling.dot.origin;
    for part in [key.as_bytes(), field.as_str().as_bytes(), &sibling.value] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.update(&origin.server_id.to_le_bytes());
    hasher.update(&origin.epoch.to_le_bytes());
    hasher.update(&sibling.dot.seq.to_le_bytes());
    hasher.update(&sibling.hlc.millis().to_le_bytes());
    hasher.update(&sibling.hlc.counter().to_le_bytes());
    hasher.digest128()
}
