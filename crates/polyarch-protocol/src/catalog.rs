//! The system keyspace: members, keyspace definitions, cluster keys, the topology and bases,
//! replicated like any data.
//!
//! Each is one record under a key that names it, shown as `lww`; a member's is put together from
//! what it wrote itself and what others wrote. [`Catalog`] is what a node makes
//! of them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use polyarch_crdt::{ClusterKey, ClusterKeys, Dot, FieldPath, Hlc, Origin, Record, Sibling, lww};
use serde::{Deserialize, Serialize};

use crate::bases::{Bases, BasesReader};
use crate::chain::ChainHead;
use crate::codec::{self, CodecError, Kind};
use crate::keyspace::{KeyspaceId, RecordKey};
use crate::topology::Topology;

/// What a keyspace shows of values written concurrently. Variants are appended only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyspaceKind {
    /// Last writer wins: one value.
    Lww,
    /// Multi-value: all siblings.
    Mv,
}

impl KeyspaceKind {
    /// The name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lww => "lww",
            Self::Mv => "mv",
        }
    }
}

/// A value of the system keyspace. Variants are appended only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SystemRecord {
    /// A member of the cluster.
    Member(Member),
    /// A keyspace.
    Keyspace(KeyspaceDefinition),
    /// A key that seals contexts.
    ClusterKey(ClusterKey),
    /// Who should have links to whom.
    Topology(Topology),
    /// Closed epochs, named by the write set that holds this record. Never changed and never deleted.
    Base(BaseDefinition),
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Unique in the cluster, at least 1.
    pub server_id: u32,
    /// What people call it.
    pub name: String,
    /// `HOST:PORT` where other members reach it.
    #[serde(deserialize_with = "codec::addresses")]
    pub addresses: Vec<String>,
    /// Where it stands.
    pub status: MemberStatus,
}

/// Where a member stands. Variants are appended only.
///
/// ```text
///   joining ──► active ──drain──► draining ──► down ──remove──► removed
///      ▲           ▲                  │         │                  │
///      │           └──────rejoin──────┘         │                  │
///      └────────────────rejoin──────────────────┴──────────────────┘
/// ```
/// The steps without a name the member takes itself: once it has caught up, and once another
/// member, one that stays, has all that it had when it heard of the drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberStatus {
    /// Takes writes and has caught up with the cluster.
    Active,
    /// New, or back: it takes writes, and has not yet caught up.
    Joining,
    /// Takes no more writes, and waits until another member has all that it has.
    Draining,
    /// Takes no writes; another member has all that it had. It may be stopped or removed.
    Down,
    /// No member any more: nobody has a link to it. What it wrote and others have stays.
    Removed,
}

/// What an operator does to a member. Variants are appended only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// Let it take no more writes and hand over all it has.
    Drain,
    /// Take it out of the cluster.
    Remove {
        /// Also when it was not drained: what only it has is lost to the cluster until it rejoins.
        force: bool,
    },
    /// Take a drain or a removal back.
    Rejoin,
}

impl MemberStatus {
    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Joining => "joining",
            Self::Draining => "draining",
            Self::Down => "down",
            Self::Removed => "removed",
        }
    }

    /// Whether the member takes writes of clients.
    pub fn takes_writes(self) -> bool {
        matches!(self, Self::Active | Self::Joining)
    }

    /// Where a change leads from here.
    ///
    /// # Errors
    /// When it leads nowhere: what to do instead.
    pub fn changed(self, change: MemberChange) -> Result<Self, &'static str> {
        match (change, self) {
            (MemberChange::Drain, Self::Active) => Ok(Self::Draining),
            (MemberChange::Drain, Self::Joining) => Err("wait until it is active, or remove it with --force"),
            // To ask again is to wait again.
            (MemberChange::Drain, Self::Draining | Self::Down) => Ok(self),
            (MemberChange::Remove { .. }, Self::Down) => Ok(Self::Removed),
            (MemberChange::Remove { force: true }, Self::Active | Self::Joining | Self::Draining) => Ok(Self::Removed),
            (MemberChange::Remove { force: false }, Self::Joining) => {
                Err("wait until it is active and drain it; if it is gone for good, remove it with --force")
            }
            (MemberChange::Remove { force: false }, Self::Active | Self::Draining) => {
                Err("drain it first; if it is gone for good, remove it with --force")
            }
            (MemberChange::Remove { .. }, Self::Removed) => Err("it is removed already"),
            (MemberChange::Rejoin, Self::Draining) => Ok(Self::Active),
            (MemberChange::Rejoin, Self::Down | Self::Removed) => Ok(Self::Joining),
            (MemberChange::Rejoin, Self::Active | Self::Joining) => Err("it is a member already"),
            (MemberChange::Drain, Self::Removed) => Err("it is no member any more"),
        }
    }
}

impl std::fmt::Display for MemberStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A keyspace's definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyspaceDefinition {
    /// The name it was created under.
    pub name: String,
    /// What it shows.
    pub kind: KeyspaceKind,
    /// When it was created; of two under one name the older answers to it.
    pub created: Hlc,
}

/// A base as it is published: what it adds to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseDefinition {
    /// The base that it adds to, if any.
    pub parent: Option<Dot>,
    /// Closed epochs, each with its head.
    #[serde(deserialize_with = "codec::closed_epochs")]
    pub closed: Vec<(Origin, ChainHead)>,
}

impl SystemRecord {
    /// The value's bytes.
    pub fn encode(&self) -> Bytes {
        codec::encode(Kind::System, self).into()
    }

    /// Reads a value of the system keyspace.
    ///
    /// # Errors
    /// When the bytes are no record known here.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(Kind::System, bytes)
    }
}

/// The key of a member's record.
pub fn member_key(server_id: u32) -> Bytes {
    format!("member/{server_id:010}").into()
}

/// The key of a keyspace's record.
pub fn keyspace_key(id: KeyspaceId) -> Bytes {
    format!("keyspace/{id}").into()
}

/// The key of a cluster key's record.
pub fn cluster_key_key(key_id: u32) -> Bytes {
    format!("cluster-key/{key_id:010}").into()
}

/// The key of the topology's record.
pub fn topology_key() -> Bytes {
    Bytes::from_static(b"topology")
}

/// The key of a base's record.
pub fn base_key(name: Dot) -> Bytes {
    format!("base/{name}").into()
}

/// What the system keyspace says, ready to be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    keyspaces: BTreeMap<KeyspaceId, KeyspaceDefinition>,
    names: BTreeMap<String, KeyspaceId>,
    members: BTreeMap<u32, Member>,
    cluster_keys: ClusterKeys,
    topology: Topology,
    /// Topologies that were set at the same time as the one in force and differ from it, each with its
    /// write set.
    topology_losers: Vec<(Dot, Topology)>,
    bases: Bases,
    /// Keys of records that a newer version of polyarch wrote and this one cannot read, or that do
    /// not lie where they belong.
    unreadable: Vec<Bytes>,
}

impl Catalog {
    /// Reads all records of the system keyspace.
    pub fn load<'a>(records: impl IntoIterator<Item = &'a (RecordKey, Record)>) -> Self {
        Self::default().reloaded(records)
    }

    /// The catalog after this one. Bases that both have are shared, and not read again.
    pub fn reloaded<'a>(&self, records: impl IntoIterator<Item = &'a (RecordKey, Record)>) -> Self {
        let mut catalog = Self::default();
        let mut bases = BasesReader::new(&self.bases);
        for (key, record) in records {
            if let Some(name) = base_name(key.key()) {
                bases.take(name, key, record);
                continue;
            }
            let siblings = record.siblings(&FieldPath::opaque());
            let Some(winner) = lww(siblings) else {
                continue;
            };
            match SystemRecord::decode(&winner.value) {
                Ok(SystemRecord::Member(member)) if key.key() == member_key(member.server_id) => {
                    catalog.members.insert(member.server_id, resolved(member, siblings));
                }
                Ok(SystemRecord::Topology(topology)) if key.key() == topology_key() => {
                    catalog.topology_losers = topologies(siblings).filter(|(_, lost)| *lost != topology).collect();
                    catalog.topology = topology;
                }
                Ok(SystemRecord::ClusterKey(held)) if key.key() == cluster_key_key(held.id) => {
                    catalog.cluster_keys.insert(held);
                }
                Ok(SystemRecord::Keyspace(definition)) if is_keyspace_name(&definition.name) => {
                    match keyspace_id(key.key()) {
                        Some(id) => catalog.add_keyspace(id, definition),
                        None => catalog.unreadable.push(key.key_bytes()),
                    }
                }
                // Of another version, or under a key that does not name it.
                _ => catalog.unreadable.push(key.key_bytes()),
            }
        }
        let (bases, unreadable) = bases.finish();
        catalog.bases = bases;
        catalog.unreadable.extend(unreadable);
        catalog
    }

    /// The keyspace that answers to a name, or that has it as its id.
    pub fn keyspace(&self, name: &str) -> Option<(KeyspaceId, &KeyspaceDefinition)> {
        let id = self.names.get(name).copied().or_else(|| name.parse().ok())?;
        self.keyspaces.get(&id).map(|definition| (id, definition))
    }

    /// All keyspaces, each with whether its name answers to it, in order of ids.
    pub fn keyspaces(&self) -> impl Iterator<Item = (KeyspaceId, &KeyspaceDefinition, bool)> {
        self.keyspaces.iter().map(|(id, definition)| (*id, definition, self.names.get(&definition.name) == Some(id)))
    }

    /// All members, in order of server ids; those too that were removed.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// The members that have not been removed.
    pub fn present(&self) -> BTreeSet<u32> {
        self.members().filter(|member| member.status != MemberStatus::Removed).map(|member| member.server_id).collect()
    }

    /// One member.
    pub fn member(&self, server_id: u32) -> Option<&Member> {
        self.members.get(&server_id)
    }

    /// Who should have links to whom. Mesh, unless set.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Topologies that were set at the same time as [`Catalog::topology`] and lost, each with its write set.
    pub fn topology_losers(&self) -> &[(Dot, Topology)] {
        &self.topology_losers
    }

    /// The bases that applied-sets may be expressed by.
    pub fn bases(&self) -> &Bases {
        &self.bases
    }

    /// The keys that seal contexts; none before the node has heard from its cluster.
    pub fn cluster_keys(&self) -> &ClusterKeys {
        &self.cluster_keys
    }

    /// Keys of records that a newer version wrote, or that do not lie where they belong.
    pub fn unreadable(&self) -> &[Bytes] {
        &self.unreadable
    }

    fn add_keyspace(&mut self, id: KeyspaceId, definition: KeyspaceDefinition) {
        let age = |id: KeyspaceId, definition: &KeyspaceDefinition| (definition.created, id);
        let holder = self.names.get(&definition.name).copied();
        let older = holder.is_none_or(|held| age(id, &definition) < age(held, &self.keyspaces[&held]));
        if older {
            self.names.insert(definition.name.clone(), id);
        }
        self.keyspaces.insert(id, definition);
    }
}

/// Whether `name` may name a keyspace: it cannot be taken for an id, and prints as itself.
pub fn is_keyspace_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    name.len() <= 128 && name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.chars().all(allowed)
}

/// What stands of records of one member that were written at the same time, of which `latest` is the
/// one of the greatest stamp.
///
/// The member writes its record as well, when its address has changed or it takes a step by itself,
/// and may do so before it has heard of a drain or a removal. Others write it only because an
/// operator wants it. So where the member stands is what others wrote, whatever the stamps say, and
/// where it is reached is what it wrote itself.
fn resolved(latest: Member, siblings: &[Sibling]) -> Member {
    let server_id = latest.server_id;
    let newest = |own: bool| {
        let written = siblings.iter().filter(|sibling| (sibling.dot.origin.server_id == server_id) == own);
        let members = written.filter_map(|sibling| match SystemRecord::decode(&sibling.value) {
            Ok(SystemRecord::Member(member)) if member.server_id == server_id => Some((sibling, member)),
            _ => None,
        });
        members.max_by_key(|(sibling, _)| (sibling.hlc, sibling.dot)).map(|(_, member)| member)
    };
    match (newest(true), newest(false)) {
        (Some(own), Some(wanted)) => Member { status: wanted.status, ..own },
        _ => latest,
    }
}

/// All topologies among these siblings that can be read.
fn topologies(siblings: &[Sibling]) -> impl Iterator<Item = (Dot, Topology)> {
    siblings.iter().filter_map(|sibling| match SystemRecord::decode(&sibling.value) {
        Ok(SystemRecord::Topology(topology)) => Some((sibling.dot, topology)),
        _ => None,
    })
}

/// The base that a key of the system keyspace names.
fn base_name(key: &[u8]) -> Option<Dot> {
    std::str::from_utf8(key).ok()?.strip_prefix("base/")?.parse().ok()
}

/// The keyspace that a key of the system keyspace names: never the system keyspace itself, which no
/// client may reach.
fn keyspace_id(key: &[u8]) -> Option<KeyspaceId> {
    let id = std::str::from_utf8(key).ok()?.strip_prefix("keyspace/")?.parse().ok()?;
    (id != KeyspaceId::SYSTEM).then_some(id)
}
