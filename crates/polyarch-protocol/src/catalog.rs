//! The system keyspace: members, keyspace definitions and cluster keys, replicated like any data.
//!
//! Each is one record under a key that names it, shown as `lww`. [`Catalog`] is what a node makes
//! of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::{ClusterKey, ClusterKeys, FieldPath, Hlc, Record, lww};
use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, Kind};
use crate::keyspace::{KeyspaceId, RecordKey};

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
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Unique in the cluster, at least 1.
    pub server_id: u32,
    /// `HOST:PORT` where other members reach it.
    pub addresses: Vec<String>,
    /// Where it stands.
    pub status: MemberStatus,
}

/// Where a member stands. Variants are appended only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberStatus {
    /// Takes writes.
    Active,
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

/// What the system keyspace says, ready to be asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalog {
    keyspaces: BTreeMap<KeyspaceId, KeyspaceDefinition>,
    names: BTreeMap<String, KeyspaceId>,
    members: BTreeMap<u32, Member>,
    cluster_keys: ClusterKeys,
    /// Keys of records that a newer version of polyarch wrote and this one cannot read, or that do
    /// not lie where they belong.
    unreadable: Vec<Bytes>,
}

impl Catalog {
    /// Reads all records of the system keyspace.
    pub fn load<'a>(records: impl IntoIterator<Item = &'a (RecordKey, Record)>) -> Self {
        let mut catalog = Self::default();
        for (key, record) in records {
            let Some(winner) = lww(record.siblings(&FieldPath::opaque())) else {
                continue;
            };
            match SystemRecord::decode(&winner.value) {
                Ok(SystemRecord::Member(member)) if key.key() == member_key(member.server_id) => {
                    catalog.members.insert(member.server_id, member);
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

    /// All members, in order of server ids.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.values()
    }

    /// One member.
    pub fn member(&self, server_id: u32) -> Option<&Member> {
        self.members.get(&server_id)
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

/// The keyspace that a key of the system keyspace names: never the system keyspace itself, which no
/// client may reach.
fn keyspace_id(key: &[u8]) -> Option<KeyspaceId> {
    let id = std::str::from_utf8(key).ok()?.strip_prefix("keyspace/")?.parse().ok()?;
    (id != KeyspaceId::SYSTEM).then_some(id)
}
