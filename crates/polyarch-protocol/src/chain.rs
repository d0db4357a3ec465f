use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use polyarch_crdt::{AppliedSet, Base, ClosedEpoch, Dot, Origin};
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
///
/// Expressed by the [`Base`] that its applied-set is expressed by, which has the hashes too. Two are
/// equal that hold the same, by whatever base.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(from = "BTreeMap<Origin, ChainHead>", into = "BTreeMap<Origin, ChainHead>")]
pub struct ChainHeads {
    /// Those that the base does not hold, or not so.
    heads: BTreeMap<Origin, ChainHead>,
    // The seqs of all heads, kept beside them since they are asked on every write set.
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
        match heads.applied.base() {
            None => heads.heads,
            Some(_) => heads.iter().collect(),
        }
    }
}

impl PartialEq for ChainHeads {
    fn eq(&self, other: &Self) -> bool {
        let bases = (self.applied.base(), other.applied.base());
        match bases {
            (None, None) => self.heads == other.heads,
            (Some(one), Some(two)) if Arc::ptr_eq(one, two) => self.heads == other.heads,
            _ => self.iter().eq(other.iter()),
        }
    }
}

impl Eq for ChainHeads {}

impl ChainHeads {
    /// The seqs of all heads.
    pub fn applied(&self) -> &AppliedSet {
        &self.applied
    }

    /// The head of one origin: its hash is all zero when nothing of it was applied.
    pub fn head(&self, origin: Origin) -> ChainHead {
        let closed = || self.applied.base()?.epoch(origin).map(ChainHead::from);
        self.heads.get(&origin).copied().or_else(closed).unwrap_or(ChainHead::NONE)
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
        self.applied.iter().map(|last| (last.origin, self.head(last.origin)))
    }

    /// The same heads, expressed by another base. `None` when they do not reach as far as that, or
    /// the write set that published it was not applied.
    pub fn rebased(&self, base: &Arc<Base>) -> Option<Self> {
        let applied = self.applied.rebased(base)?;
        let differs = |(origin, head): &(Origin, ChainHead)| base.epoch(*origin).map(ChainHead::from) != Some(*head);
        let heads = match self.applied.base() {
            Some(own) if Arc::ptr_eq(own, base) => self.heads.clone(),
            _ => self.iter().filter(differs).collect(),
        };
        Some(Self { heads, applied })
    }
}

impl From<&ClosedEpoch> for ChainHead {
    fn from(epoch: &ClosedEpoch) -> Self {
        Self { seq: epoch.last.seq, hash: ChainHash(epoch.chain) }
    }
}
