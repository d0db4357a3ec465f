use std::collections::BTreeMap;

use polyarch_crdt::{FieldChange, Hlc, Origin, Outcome, seeded_bug};
use serde::{Deserialize, Serialize};

use crate::chain::ChainHeads;
use crate::digest::Digest;
use crate::keyspace::{KeyspaceId, RecordKey};
use crate::storage::{Records, StorageError};
use crate::write_set::{Dependencies, WriteSet};

/// How far a node's state is: everything about it that is not records.
///
/// Kept together because it changes together: with each applied write set, whether it was written
/// here, came from a peer, or is replayed from the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frontier {
    /// Which write sets were applied, and each origin's chain hash.
    pub heads: ChainHeads,
    /// The fingerprint of all live siblings.
    pub digest: Digest,
    /// The greatest stamp among the applied write sets.
    pub hlc: Hlc,
    /// The newest epoch of each server, as far as applied.
    pub(crate) epochs: BTreeMap<u32, Origin>,
    /// The greatest stamp of each server, as far as applied.
    pub(crate) stamps: BTreeMap<u32, Hlc>,
}

/// A [`Frontier`] as checkpoints of version 1 hold it: without the stamps of each server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontierV1 {
    heads: ChainHeads,
    digest: Digest,
    hlc: Hlc,
    epochs: BTreeMap<u32, Origin>,
}

impl From<FrontierV1> for Frontier {
    /// What it does not hold is learned as write sets come: until then a server's own stamps are
    /// only known to be no greater than the greatest of all.
    fn from(FrontierV1 { heads, digest, hlc, epochs }: FrontierV1) -> Self {
        Self { heads, digest, hlc, epochs, stamps: BTreeMap::new() }
    }
}

/// What applying a write set did, for whoever counts or listens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use]
pub struct ApplySummary {
    /// Fields that now hold values written concurrently.
    pub conflicts: usize,
    /// Values that a write which saw them had superseded before they came.
    pub absorbed: usize,
    /// Whether a record of the system keyspace changed.
    pub system_changed: bool,
}

impl Frontier {
    /// Applies a write set to `records` and takes it into the frontier. Every path ends here:
    /// local writes, feeds, replay after a crash, and offline verification.
    ///
    /// # Errors
    /// When a record cannot be read. Some changes may then be made and others not: the caller
    /// stops using both `records` and this frontier.
    ///
    /// # Panics
    /// When the write set is not the next of its origin.
    pub fn apply(
        &mut self,
        records: &mut impl Records,
        write_set: &WriteSet,
        bytes: &[u8],
    ) -> Result<ApplySummary, StorageError> {
        let mut summary = ApplySummary::default();
        for change in &write_set.changes {
            let key = change.record_key();
            let record = records.record_mut(&key)?;
            let field_change =
                FieldChange { path: &change.field, supersedes: &change.supersedes, put: change.effect.value() };
            let outcome = record.apply(write_set.dot, write_set.hlc, &field_change, self.heads.applied());
            summary.conflicts += usize::from(outcome.is_conflict());
            summary.absorbed += usize::from(outcome.absorbed);
            summary.system_changed |= change.keyspace == KeyspaceId::SYSTEM;
            self.digest_change(&key, &field_change, &outcome, write_set);
        }
        self.heads.extend(write_set.dot, bytes);
        self.hlc = self.hlc.max(write_set.hlc);
        let stamp = self.stamps.entry(write_set.dot.origin.server_id).or_default();
        *stamp = (*stamp).max(write_set.hlc);
        if let Dependencies::Whole { .. } = write_set.dependencies {
            self.epochs.insert(write_set.dot.origin.server_id, write_set.dot.origin);
        }
        Ok(summary)
    }

    /// The epoch that a server opened last, as far as applied here.
    pub fn newest_epoch(&self, server_id: u32) -> Option<Origin> {
        self.epochs.get(&server_id).copied()
    }

    /// The greatest stamp of a server's write sets, as far as applied here; zero for none.
    pub fn greatest_stamp(&self, server_id: u32) -> Hlc {
        self.stamps.get(&server_id).copied().unwrap_or_default()
    }

    /// The greatest stamp of each server.
    pub fn stamps(&self) -> impl Iterator<Item = Hlc> + '_ {
        self.stamps.values().copied()
    }

    fn digest_change(&mut self, key: &RecordKey, change: &FieldChange<'_>, outcome: &Outcome, write_set: &WriteSet) {
        for sibling in &outcome.dropped {
            self.digest.remove(key, change.path, sibling);
        }
        let is_counted = outcome.added || (outcome.absorbed && seeded_bug("digest-counts-absorbed"));
        if let (true, Some(value)) = (is_counted, change.put) {
            let added = polyarch_crdt::Sibling { dot: write_set.dot, hlc: write_set.hlc, value: value.clone() };
            self.digest.add(key, change.path, &added);
        }
    }
}
