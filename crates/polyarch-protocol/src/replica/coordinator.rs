//! The coordinator's half: what a client's write becomes.

use std::collections::BTreeSet;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, ClusterKey, Dot, FieldPath, Hlc, Origin, SealedContext, SessionToken, seeded_bug};

use super::{Now, Replica};
use crate::catalog::{self, KeyspaceDefinition, KeyspaceKind, MemberStatus, SystemRecord};
use crate::client::{Refusal, Supersede, WriteChange, WriteRequest, Written};
use crate::event::Event;
use crate::keyspace::KeyspaceId;
use crate::peer::ClusterId;
use crate::storage::{Storage, StorageError};
use crate::write_set::{Change, Dependencies, Effect, WriteSet};

/// The most that a dot takes in a write set: 5, 5 and 10 bytes.
const DOT_BYTES: usize = 20;
/// The most that a change takes beside its key, value and dots: the keyspace's id and lengths.
const CHANGE_BYTES: usize = 40;
/// The most that a write set takes beside its changes and dependencies.
const WRITE_SET_BYTES: usize = 64;

/// This process's open epoch.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) origin: Origin,
    /// What was applied from others since the last own write set: the next one's dependencies.
    unsaid: AppliedSet,
}

impl Epoch {
    pub(super) fn note_applied(&mut self, dot: Dot) {
        self.unsaid.join(&[dot].into_iter().collect());
    }
}

/// The scope a context is sealed for: it opens for no other record.
pub fn context_scope<'a>(cluster_id: &'a [u8; 16], record_key: &'a crate::RecordKey) -> [&'a [u8]; 2] {
    [cluster_id, record_key.as_bytes()]
}

impl ClusterId {
    /// The id's bytes, as contexts are sealed with them.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl<S: Storage> Replica<S> {
    pub(super) fn write(&mut self, request: WriteRequest, now: Now) -> Result<Written, Refusal> {
        self.check_writable()?;
        self.check_size(&request)?;
        let mut keys = BTreeSet::new();
        let mut changes = Vec::with_capacity(request.changes.len());
        for change in request.changes {
            let change = self.resolve(change)?;
            if !keys.insert((change.keyspace, change.key.clone())) {
                return Err(Refusal::DuplicateKey);
            }
            changes.push(change);
        }
        self.check_length(&changes)?;
        // A delete of nothing changes nothing anywhere.
        changes.retain(|change| change.effect.value().is_some() || !change.supersedes.is_empty());
        if changes.is_empty() {
            return Ok(self.nothing_written());
        }
        self.write_changes(now, |_, _| changes)
    }

    pub(super) fn create_keyspace(&mut self, name: String, kind: KeyspaceKind, now: Now) -> Result<Written, Refusal> {
        self.check_writable()?;
        if !catalog::is_keyspace_name(&name) {
            return Err(Refusal::KeyspaceName(name));
        }
        if self.catalog.keyspace(&name).is_some() {
            return Err(Refusal::KeyspaceExists(name));
        }
        self.write_changes(now, |dot, created| {
            let id = KeyspaceId { dot, index: 0 };
            let definition = KeyspaceDefinition { name, kind, created };
            vec![system_change(catalog::keyspace_key(id), Vec::new(), &SystemRecord::Keyspace(definition))]
        })
    }

    pub(super) fn found(&mut self, key: ClusterKey, now: Now) {
        assert!(self.frontier.heads.applied().is_empty(), "only an empty node founds a cluster");
        let changes = vec![
            system_change(catalog::cluster_key_key(key.id), Vec::new(), &SystemRecord::ClusterKey(key)),
            system_change(
                catalog::member_key(self.config.server_id),
                Vec::new(),
                &SystemRecord::Member(self.own_member(MemberStatus::Active)),
            ),
        ];
        // A failure is reported where the driver waits for the sync.
        let _ = self.write_changes(now, |_, _| changes);
    }

    /// The answer to a write that changes nothing: a session that passes it on sees what is here.
    pub(super) fn nothing_written(&self) -> Written {
        let token = SessionToken { seen: self.frontier.heads.applied().beyond_base() };
        Written { dot: None, hlc: None, token: token.to_bytes().into() }
    }

    fn check_writable(&self) -> Result<(), Refusal> {
        self.writes_refused().map_or(Ok(()), Err)
    }

    /// Whether this node may write records of the system keyspace: draining it may, removed it may
    /// not, for nobody would hear of it.
    pub(super) fn check_administrable(&self) -> Result<(), Refusal> {
        let removed = self.own_status().filter(|status| *status == MemberStatus::Removed);
        self.system_writes_refused().or(removed.map(Refusal::MemberIs)).map_or(Ok(()), Err)
    }

    /// Whether this node may take its own removal back: only where there is no other member. The
    /// others would not hear of it, and go on refusing it.
    pub(super) fn check_rejoinable(&self) -> Result<(), Refusal> {
        let is_alone = self.catalog.present().into_iter().all(|id| id == self.config.server_id);
        match is_alone && self.told_removed.is_none() {
            true => self.system_writes_refused().map_or(Ok(()), Err),
            false => self.check_administrable(),
        }
    }

    fn check_size(&self, request: &WriteRequest) -> Result<(), Refusal> {
        let (limits, changes) = (&self.config.limits, &request.changes);
        if changes.len() > limits.changes_max {
            return Err(Refusal::TooManyChanges { len: changes.len() as u64, max: limits.changes_max as u64 });
        }
        for change in changes {
            let (key, value) = (change.key.len(), change.put.as_ref().map_or(0, Bytes::len));
            if key == 0 {
                return Err(Refusal::KeyEmpty);
            }
            if key > limits.key_bytes_max {
                return Err(Refusal::KeyTooLong { len: key as u64, max: limits.key_bytes_max as u64 });
            }
            if value > limits.value_bytes_max {
                return Err(Refusal::ValueTooLong { len: value as u64, max: limits.value_bytes_max as u64 });
            }
        }
        Ok(())
    }

    /// Refuses what would not fit its write set, before anything of the epoch is touched. Counts at
    /// least what the encoded form takes: a longer one could not be kept here nor read elsewhere.
    pub(super) fn check_length(&self, changes: &[Change]) -> Result<(), Refusal> {
        let of_change = |c: &Change| {
            CHANGE_BYTES + c.key.len() + c.effect.value().map_or(0, Bytes::len) + c.supersedes.len() * DOT_BYTES
        };
        let applied = self.frontier.heads.applied();
        let depends_on = match &self.epoch {
            Some(epoch) if applied.seq(epoch.origin) > 0 => epoch.unsaid.len(),
            _ => applied.len_beyond_base(),
        };
        let dependencies = depends_on * DOT_BYTES;
        let (len, max) = (
            WRITE_SET_BYTES + dependencies + changes.iter().map(of_change).sum::<usize>(),
            self.config.limits.write_set_bytes_max,
        );
        match len > max {
            true => Err(Refusal::WriteTooLong { len: len as u64, max: max as u64 }),
            false => Ok(()),
        }
    }

    /// Finds out which siblings a client's change supersedes, on the staged state.
    fn resolve(&mut self, change: WriteChange) -> Result<Change, Refusal> {
        let Some((keyspace, definition)) = self.catalog.keyspace(&change.keyspace) else {
            return Err(Refusal::UnknownKeyspace(change.keyspace));
        };
        let kind = definition.kind;
        let record_key = crate::RecordKey::new(keyspace, &change.key);
        let record = self.storage.record(&record_key).map_err(|error| Refusal::Unreadable(error.into_reason()))?;
        let held: Vec<Dot> = record.siblings(&FieldPath::opaque()).iter().map(|s| s.dot).collect();
        let mut supersedes = match (&change.supersede, kind) {
            (Supersede::Held, _) | (Supersede::Nothing, KeyspaceKind::Lww) => held.clone(),
            (Supersede::Nothing, KeyspaceKind::Mv) => Vec::new(),
            (Supersede::Shown(context), KeyspaceKind::Mv) => self.open_context(context, &record_key)?,
            (Supersede::Shown(context), KeyspaceKind::Lww) => {
                let mut shown = self.open_context(context, &record_key)?;
                shown.extend(&held);
                shown
            }
        };
        supersedes.sort_unstable();
        supersedes.dedup();
        // What is applied here and no longer live was superseded already, for everyone.
        let applied = self.frontier.heads.applied();
        supersedes.retain(|dot| held.binary_search(dot).is_ok() || !applied.includes(*dot));
        let kept = held.iter().filter(|dot| supersedes.binary_search(dot).is_err()).count();
        if change.put.is_some() && kept >= self.config.limits.siblings_max {
            return Err(Refusal::TooManySiblings {
                siblings: kept as u64,
                max: self.config.limits.siblings_max as u64,
            });
        }
        let effect = change.put.map_or(Effect::Delete, Effect::Put);
        Ok(Change { keyspace, key: change.key, field: FieldPath::opaque(), supersedes, effect })
    }

    fn open_context(&self, context: &SealedContext, record_key: &crate::RecordKey) -> Result<Vec<Dot>, Refusal> {
        let cluster_id = self.config.cluster_id.to_bytes();
        let scope = context_scope(&cluster_id, record_key);
        let opened = context.open(self.catalog.cluster_keys(), &scope, self.config.limits.context_dots_max)?;
        let dots = opened.dots(&FieldPath::opaque()).to_vec();
        // No node can have shown what this process has not yet written.
        let own = self.epoch.as_ref().map(|epoch| epoch.origin);
        match dots.iter().find(|dot| Some(dot.origin) == own && !self.frontier.heads.applied().includes(**dot)) {
            Some(dot) => {
                Err(Refusal::Context(format!("this context names {dot}, which was never written; read the key again")))
            }
            None => Ok(dots),
        }
    }

    /// Makes changes into a write set of this process's epoch and commits it.
    pub(super) fn write_changes(
        &mut self,
        now: Now,
        changes: impl FnOnce(Dot, Hlc) -> Vec<Change>,
    ) -> Result<Written, Refusal> {
        let origin = match &self.epoch {
            Some(epoch) => epoch.origin,
            None => self.open_epoch(now),
        };
        let seq = self.frontier.heads.applied().seq(origin) + 1;
        let (dot, hlc) = (Dot::new(origin, seq), self.clock.tick(now.wall_ms));
        let write_set = WriteSet { dot, hlc, dependencies: self.dependencies(dot), changes: changes(dot, hlc) };
        let bytes = write_set.encode();
        match self.commit(&write_set, &bytes) {
            Ok(_) => self.counters.written += 1,
            Err(StorageError::Full(reason)) => {
                self.take_back(write_set.dependencies);
                self.fill(reason.clone(), bytes.len(), now);
                return Err(Refusal::DiskFull { reason });
            }
            Err(StorageError::Failed(reason)) => {
                self.fail(reason.clone());
                return Err(Refusal::StorageFailed(reason));
            }
        }
        let token = SessionToken { seen: [dot].into_iter().collect() };
        Ok(Written { dot: Some(dot), hlc: Some(hlc), token: token.to_bytes().into() })
    }

    fn dependencies(&mut self, dot: Dot) -> Dependencies {
        if dot.seq == 1 {
            let predecessor =
                self.frontier.newest_epoch(self.config.server_id).map(|o| Dot::new(o, self.frontier.heads.head(o).seq));
            return Dependencies::Whole { predecessor, applied: self.frontier.heads.applied().beyond_base() };
        }
        let unsaid = self.epoch.as_mut().map(|epoch| std::mem::take(&mut epoch.unsaid));
        Dependencies::Changed(unsaid.filter(|_| !seeded_bug("dependencies-left-out")).unwrap_or_default())
    }

    /// A write set of one's own was not written after all: what it was to say is said by the next.
    fn take_back(&mut self, dependencies: Dependencies) {
        if let (Some(epoch), Dependencies::Changed(unsaid)) = (&mut self.epoch, dependencies) {
            epoch.unsaid = unsaid;
        }
    }

    /// Draws an epoch that was never used, as far as this node, its peers or chance can tell. The
    /// time is drawn from too: a machine put back with its memory has the boot id it had before.
    fn open_epoch(&mut self, now: Now) -> Origin {
        let server_id = self.config.server_id;
        if let (true, Some(used)) = (seeded_bug("epoch-reused"), self.frontier.newest_epoch(server_id)) {
            self.epoch = Some(Epoch { origin: used, unsaid: AppliedSet::new() });
            return used;
        }
        let origin = loop {
            let mut hasher = blake3::Hasher::new();
            hasher
                .update(&self.config.boot_id.to_le_bytes())
                .update(&self.epochs_drawn.to_le_bytes())
                .update(&now.wall_ms.to_le_bytes());
            self.epochs_drawn += 1;
            let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
            let origin = Origin::new(server_id, u32::from_le_bytes([a, b, c, d]));
            let heartbeats = self.sessions.values().filter_map(|session| session.heartbeat.as_ref());
            let known = heartbeats.map(|h| &h.applied).chain([self.frontier.heads.applied()]);
            if known.map(|applied| applied.seq(origin)).all(|seq| seq == 0) {
                break origin;
            }
        };
        let predecessor = self.frontier.newest_epoch(server_id).map(|o| Dot::new(o, self.frontier.heads.head(o).seq));
        self.epoch = Some(Epoch { origin, unsaid: AppliedSet::new() });
        self.event(Event::EpochOpened { origin, predecessor });
        origin
    }

    /// A peer has more of this process's epoch than the process: it was set back. The next write opens another.
    pub(super) fn close_epoch_if_overtaken(&mut self, seen: &AppliedSet) {
        let Some(origin) = self.epoch.as_ref().map(|epoch| epoch.origin) else {
            return;
        };
        let (had, peer_has) = (self.frontier.heads.applied().seq(origin), seen.seq(origin));
        if peer_has > had {
            self.epoch = None;
            self.event(Event::EpochClosed { origin, had, peer_has });
        }
    }

    /// Follows up on a peer's write set of so many bytes: a failed storage ends all writing, one that is full
    /// all feeds until there is room. Says whether it was not taken.
    pub(super) fn is_stopped_by(&mut self, result: Result<(), StorageError>, len: usize, now: Now) -> bool {
        match result {
            Ok(()) => return false,
            Err(StorageError::Full(reason)) => self.fill(reason, len, now),
            Err(StorageError::Failed(reason)) => self.fail(reason),
        }
        true
    }
}

pub(super) fn system_change(key: Bytes, supersedes: Vec<Dot>, record: &SystemRecord) -> Change {
    Change {
        keyspace: KeyspaceId::SYSTEM,
        key,
        field: FieldPath::opaque(),
        supersedes,
        effect: Effect::Put(record.encode()),
    }
}
