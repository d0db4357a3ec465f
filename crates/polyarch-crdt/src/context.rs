use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{Dot, FieldPath, Record};

const SEALED_VERSION: u8 = 1;
const MAC_BYTES: usize = 16;
const HEADER_BYTES: usize = 1 + 4;

/// The exact dots a client was shown of one key, per field: what its next write replaces.
///
/// Never a per-origin maximum, since a write may only remove what its writer saw.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CausalContext {
    fields: BTreeMap<FieldPath, Vec<Dot>>,
}

impl CausalContext {
    /// The context of a client that was shown nothing: its write supersedes nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The context of a client that was shown all of `record`.
    pub fn of(record: &Record) -> Self {
        let live = record.fields().iter().filter(|f| !f.siblings().is_empty());
        Self { fields: live.map(|f| (f.path().clone(), f.siblings().iter().map(|s| s.dot).collect())).collect() }
    }

    /// The dots shown of one field.
    pub fn dots(&self, path: &FieldPath) -> &[Dot] {
        self.fields.get(path).map_or(&[], Vec::as_slice)
    }

    /// How many dots the context names in all.
    pub fn len(&self) -> usize {
        self.fields.values().map(Vec::len).sum()
    }

    /// Whether the context names nothing.
    pub fn is_empty(&self) -> bool {
        self.fields.is_empty()
    }

    /// Every dot of every field.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        self.fields.values().flatten().copied()
    }

    /// Seals the context for one record, so that a client can carry but neither make nor alter it.
    ///
    /// `scope` names the cluster, keyspace and key; a context opens only under the same scope.
    pub fn seal(&self, key: &ClusterKey, scope: &[&[u8]]) -> SealedContext {
        let mut bytes = vec![SEALED_VERSION];
        bytes.extend_from_slice(&key.id.to_le_bytes());
        let mut bytes = postcard::to_extend(self, bytes).expect("a Vec takes all that is written");
        let mac = key.mac(scope, &bytes);
        bytes.extend_from_slice(&mac);
        SealedContext(bytes)
    }
}

/// A [`CausalContext`] as clients hold it: opaque bytes of version (1), key id (4, little endian),
/// the context in postcard, and a keyed BLAKE3 MAC (16).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedContext(Vec<u8>);

/// Why a context a client sent was refused. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContextError {
    /// Altered, cut short, or made for another key, keyspace or cluster.
    #[error(
        "this context was not issued by this cluster for this key; read the key again and use the context it returns"
    )]
    NotIssued,
    /// Sealed with a cluster key this node does not hold (yet).
    #[error(
        "this context is sealed with cluster key {key_id}, which this node does not hold; retry, or read the key again here"
    )]
    UnknownKey {
        /// The key's id.
        key_id: u32,
    },
    /// Of a format this version does not know.
    #[error("this context is of format version {version}, which this node does not know; read the key again here")]
    UnknownVersion {
        /// The version found.
        version: u8,
    },
    /// More dots than a context may name.
    #[error("this context names {len} siblings, the limit is {max}")]
    TooManyDots {
        /// How many it names.
        len: usize,
        /// How many it may.
        max: usize,
    },
}

impl SealedContext {
    /// Takes bytes from a client; [`SealedContext::open`] judges them.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The opaque bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Opens a context that one of `keys` sealed for `scope`, of at most `dots_max` dots.
    ///
    /// # Errors
    /// When it was not issued for this scope, or by a key or version unknown here.
    pub fn open(&self, keys: &ClusterKeys, scope: &[&[u8]], dots_max: usize) -> Result<CausalContext, ContextError> {
        let version = *self.0.first().ok_or(ContextError::NotIssued)?;
        if version != SEALED_VERSION {
            return Err(ContextError::UnknownVersion { version });
        }
        let (signed, mac) = self.0.split_last_chunk::<MAC_BYTES>().ok_or(ContextError::NotIssued)?;
        let key_id = signed.get(1..HEADER_BYTES).and_then(|id| id.try_into().ok()).ok_or(ContextError::NotIssued)?;
        let key_id = u32::from_le_bytes(key_id);
        let key = keys.find(key_id).ok_or(ContextError::UnknownKey { key_id })?;
        // BLAKE3's own hash type compares in constant time; so does this fold.
        let differs = key.mac(scope, signed).iter().zip(mac).fold(0, |acc, (a, b)| acc | (a ^ b));
        if differs != 0 {
            return Err(ContextError::NotIssued);
        }
        let context: CausalContext = match postcard::take_from_bytes(&signed[HEADER_BYTES..]) {
            Ok((context, [])) => context,
            _ => return Err(ContextError::NotIssued),
        };
        match context.len() {
            len if len > dots_max => Err(ContextError::TooManyDots { len, max: dots_max }),
            _ => Ok(context),
        }
    }
}

impl fmt::Debug for SealedContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedContext({} bytes)", self.0.len())
    }
}

/// A secret that all members of a cluster share and clients never see; contexts are sealed with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterKey {
    /// Names the key; the founder's is 1.
    pub id: u32,
    /// 256 random bits.
    pub secret: [u8; 32],
}

impl ClusterKey {
    fn mac(&self, scope: &[&[u8]], signed: &[u8]) -> [u8; MAC_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.secret);
        for part in scope.iter().chain([&signed]) {
            // Lengths keep ("ab", "c") and ("a", "bc") apart.
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut mac = [0; MAC_BYTES];
        hasher.finalize_xof().fill(&mut mac);
        mac
    }
}

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterKey({})", self.id)
    }
}

/// The cluster keys a node holds. The one with the greatest id seals, all of them open.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterKeys {
    keys: BTreeMap<u32, ClusterKey>,
}

impl ClusterKeys {
    /// Adds a key, or replaces the one of its id.
    pub fn insert(&mut self, key: ClusterKey) {
        self.keys.insert(key.id, key);
    }

    /// The key that seals new contexts; `None` before the node heard from its cluster.
    pub fn sealing(&self) -> Option<&ClusterKey> {
        self.keys.last_key_value().map(|(_, key)| key)
    }

    fn find(&self, id: u32) -> Option<&ClusterKey> {
        self.keys.get(&id)
    }
}
