use std::collections::BTreeMap;
use std::fmt;

use polyarch_crdt::{AppliedSet, Dot, Origin};
use serde::{Deserialize, Serialize};

/// The BLAKE3 hash over an origin's write sets up to one of them: `hash(previous || bytes)`,
/// beginning with 32 zero bytes. Two nodes that agree on it hold the same history of the origin.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChainHash(pub [u8; 32]);

impl ChainHash {
    /// The hash after one more write set.
    pub fn extended(self, write_set: &[u8]) -> Self {
        Self(*blake3::Hasher::new().update(&self.0).update(write_set).finalize().as_bytes())
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The last applied write set of one origin and the chain hash up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainHead {
    /// Seq of the last applied write set, at least 1.
    pub seq: u64,
    /// The chain's hash up to it.
    pub hash: ChainHash,
}

impl ChainHead {
    /// Nothing applied: where every chain begins.
    pub const NONE: Self = Self { seq: 0, hash: ChainHash([0; 32]) };
}

/// An applied-set together with the chain hash of each of its origins.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<Origin, ChainHead>", into = "BTreeMap<Origin, ChainHead>")]
pub struct ChainHeads {
    heads: BTreeMap<Origin, ChainHead>,
    // The same seqs as `heads`, kept beside it since it is asked on every write set.
    applied: AppliedSet,
}

impl From<BTreeMap<Origin, ChainHead>> for ChainHeads {
    fn from(mut heads: BTreeMap<Origin, ChainHead>) -> Self {
        heads.retain(|_, head| head.seq > 0);
        let applied = heads.iter().map(|(origin, head)| Dot::new(*origin, head.seq)).collect();
        Self { heads, applied }
    }
}

impl From<ChainHeads> for BTreeMap<Origin, ChainHead> {
    fn from(heads: ChainHeads) -> Self {
        heads.heads
    }
}

impl ChainHeads {
    /// The seqs of all heads.
    pub fn applied(&self) -> &AppliedSet {
        &self.applied
    }

    /// The head of one origin: its hash is all zero when nothing of it was applied.
    pub fn head(&self, origin: Origin) -> ChainHead {
        self.heads.get(&origin).copied().unwrap_or(ChainHead { seq: 0, hash: ChainHash::default() })
    }

    /// Takes the next write set of its origin.
    ///
    /// # Panics
    /// When `dot` is not the next of its origin.
    pub fn extend(&mut self, dot: Dot, write_set: &[u8]) {
        self.applied.add(dot);
        let hash = self.head(dot.origin).hash.extended(write_set);
        self.heads.insert(dot.origin, ChainHead { seq: dot.seq, hash });
    }

    /// Origins with their heads, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Origin, ChainHead)> + '_ {
        self.heads.iter().map(|(origin, head)| (*origin, *head))
    }
}
