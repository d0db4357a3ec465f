use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use polyarch_crdt::{Dot, Origin};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A keyspace's identity: the write set that created it and the place of its definition in it.
///
/// Two keyspaces created under one name on two masters are thus two keyspaces. Printed as
/// `3-9f2c01ab:42.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyspaceId {
    /// The write set that created it.
    pub dot: Dot,
    /// The index of the defining change within that write set.
    pub index: u16,
}

impl KeyspaceId {
    /// The system keyspace: members, keyspace definitions, cluster keys. It was never created.
    pub const SYSTEM: Self = Self { dot: Dot::new(Origin::new(0, 0), 0), index: 0 };

    const BYTES: usize = 18;

    fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.dot.origin.server_id.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.dot.origin.epoch.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.dot.seq.to_be_bytes());
        bytes[16..].copy_from_slice(&self.index.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r] = bytes;
        let origin = Origin::new(u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
        Self { dot: Dot::new(origin, u64::from_be_bytes([i, j, k, l, m, n, o, p])), index: u16::from_be_bytes([q, r]) }
    }
}

impl fmt::Display for KeyspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.dot, self.index)
    }
}

impl fmt::Debug for KeyspaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyspaceId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (dot, index) = text.rsplit_once('.').ok_or(())?;
        let id = Self { dot: dot.parse().map_err(|_| ())?, index: index.parse().map_err(|_| ())? };
        // Only the canonical form is an id, or one keyspace had many.
        if id.to_string() == text { Ok(id) } else { Err(()) }
    }
}

/// Where a record lies: its keyspace's id in 18 big-endian bytes, then the key. Byte order is
/// the order of records in every store.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey(Bytes);

impl RecordKey {
    /// The place of `key` in `keyspace`.
    pub fn new(keyspace: KeyspaceId, key: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(KeyspaceId::BYTES + key.len());
        bytes.extend_from_slice(&keyspace.to_bytes());
        bytes.extend_from_slice(key);
        Self(bytes.into())
    }

    /// Reads what [`RecordKey::as_bytes`] gave; `None` when it is too short for one.
    pub fn from_bytes(bytes: Bytes) -> Option<Self> {
        (bytes.len() >= KeyspaceId::BYTES).then_some(Self(bytes))
    }

    /// The keyspace.
    pub fn keyspace(&self) -> KeyspaceId {
        let prefix = self.0.first_chunk().expect("both constructors see to 18 bytes");
        KeyspaceId::from_bytes(*prefix)
    }

    /// The key within the keyspace.
    pub fn key(&self) -> &[u8] {
        &self.0[KeyspaceId::BYTES..]
    }

    /// The key within the keyspace, sharing this one's memory.
    pub fn key_bytes(&self) -> Bytes {
        self.0.slice(KeyspaceId::BYTES..)
    }

    /// All bytes, in sort order.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Serialize for RecordKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RecordKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_bytes(Bytes::deserialize(deserializer)?)
            .ok_or_else(|| D::Error::custom("a record's key is too short"))
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:?}", self.keyspace(), Bytes::copy_from_slice(self.key()))
    }
}
