use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, FieldPath, Hlc};
use serde::{Deserialize, Serialize};

use crate::codec;
use crate::keyspace::{KeyspaceId, RecordKey};
use crate::limits::wire;

/// The first byte of an encoded write set.
const KIND: u8 = b'W';
/// The second byte: the layout that follows.
const VERSION: u8 = 1;

/// What one transaction changed, atomically, and what its origin had applied before.
///
/// The bytes that its origin encoded are the write set: they go to the log, to peers and into the
/// hash chain as they are, and are never encoded anew. Layout: kind (1), version (1), then this
/// struct in postcard, the dot first. The dot comes first in later versions too: a node that does
/// not know one stops that origin's feed, and no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteSet {
    /// Its identity.
    pub dot: Dot,
    /// When, by its origin's hybrid clock.
    pub hlc: Hlc,
    /// What must be applied before it.
    pub dependencies: Dependencies,
    /// Each names another `(keyspace, key, field)`.
    #[serde(deserialize_with = "codec::changes")]
    pub changes: Vec<Change>,
}

/// What a write set's origin had applied when it wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Dependencies {
    /// All of it: an epoch's first write set. Names the last write set of the server's previous
    /// epoch, as far as the server had it.
    Whole {
        /// The last write set of the server's epoch before, if there was one.
        predecessor: Option<Dot>,
        /// The whole applied-set.
        applied: AppliedSet,
    },
    /// What changed of it since the origin's previous write set; often nothing.
    Changed(AppliedSet),
}

impl Dependencies {
    /// The write sets that must be applied first.
    pub fn applied(&self) -> &AppliedSet {
        match self {
            Self::Whole { applied, .. } | Self::Changed(applied) => applied,
        }
    }
}

/// What a write set does to one field of one record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The keyspace.
    pub keyspace: KeyspaceId,
    /// The key in it.
    pub key: Bytes,
    /// The field; empty for opaque values.
    pub field: FieldPath,
    /// The exact dots this replaces.
    pub supersedes: Vec<Dot>,
    /// What comes in their place. Variants are appended only.
    pub effect: Effect,
}

/// What a change leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// Nothing: a delete.
    Delete,
    /// A value.
    Put(Bytes),
}

impl Effect {
    /// The value, unless this deletes.
    pub fn value(&self) -> Option<&Bytes> {
        match self {
            Self::Delete => None,
            Self::Put(value) => Some(value),
        }
    }
}

impl Change {
    /// The record it changes.
    pub fn record_key(&self) -> RecordKey {
        RecordKey::new(self.keyspace, &self.key)
    }
}

/// Why bytes are not a write set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteSetError {
    /// Not the kind byte of a write set.
    #[error("not a write set (kind byte {0:#04x})")]
    Kind(u8),
    /// Written by a newer version: upgrade this node.
    #[error("write set of format version {0}, which this version of polyarch does not know; upgrade this node")]
    Version(u8),
    /// Longer than any member may write.
    #[error("write set of {len} bytes, the format's limit is {max}")]
    TooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Cut short, altered, or not canonical.
    #[error("malformed write set: {0}")]
    Malformed(&'static str),
}

impl WriteSet {
    /// The bytes that travel and are kept.
    pub fn encode(&self) -> Bytes {
        let bytes = vec![KIND, VERSION];
        postcard::to_extend(self, bytes).expect("a Vec takes all that is written").into()
    }

    /// Reads and checks bytes from a peer or a disk.
    ///
    /// # Errors
    /// When they are no write set of a version known here, or break a rule of the format.
    pub fn decode(bytes: &[u8]) -> Result<Self, WriteSetError> {
        let write_set = match postcard::take_from_bytes::<Self>(body(bytes)?) {
            Ok((write_set, [])) => write_set,
            Ok(_) => return Err(WriteSetError::Malformed("bytes behind its end")),
            Err(_) => return Err(WriteSetError::Malformed("not in postcard's form")),
        };
        write_set.check()?;
        Ok(write_set)
    }

    /// Reads only the dot, without checking the rest; of later versions too.
    ///
    /// # Errors
    /// When the bytes do not begin as a write set does.
    pub fn peek_dot(bytes: &[u8]) -> Result<Dot, WriteSetError> {
        let (_, body) = versioned(bytes)?;
        let (dot, _) = postcard::take_from_bytes::<Dot>(body).map_err(|_| WriteSetError::Malformed("no dot"))?;
        Ok(dot)
    }

    fn check(&self) -> Result<(), WriteSetError> {
        let malformed = |what| Err(WriteSetError::Malformed(what));
        if self.dot.seq == 0 || self.dot.origin.server_id == 0 {
            return malformed("a dot has a server id and a seq of at least 1");
        }
        if matches!(self.dependencies, Dependencies::Changed(_)) == (self.dot.seq == 1) {
            return malformed("the first write set of an epoch, and only that, carries the whole applied-set");
        }
        if self.dependencies.applied().seq(self.dot.origin) != 0 {
            return malformed("it depends on its own origin, which goes without saying");
        }
        if self.changes.is_empty() || self.changes.len() > wire::CHANGES_MAX {
            return malformed("it has from 1 to 65,535 changes");
        }
        if self
            .changes
            .iter()
            .any(|c| c.key.len() > wire::KEY_BYTES_MAX || c.field.as_str().len() > wire::FIELD_BYTES_MAX)
        {
            return malformed("a key or field path is too long");
        }
        if self.changes.iter().any(|c| c.supersedes.contains(&self.dot)) {
            return malformed("a change supersedes its own write set");
        }
        let mut places: Vec<_> = self.changes.iter().map(|c| (c.keyspace, &c.key, &c.field)).collect();
        places.sort_unstable();
        match places.windows(2).any(|pair| pair[0] == pair[1]) {
            true => malformed("two changes of one field"),
            false => Ok(()),
        }
    }
}

fn body(bytes: &[u8]) -> Result<&[u8], WriteSetError> {
    match versioned(bytes)? {
        (VERSION, body) => Ok(body),
        (version, _) => Err(WriteSetError::Version(version)),
    }
}

/// The version of a write set, and what follows it.
fn versioned(bytes: &[u8]) -> Result<(u8, &[u8]), WriteSetError> {
    match bytes {
        _ if bytes.len() > wire::WRITE_SET_BYTES_MAX => {
            Err(WriteSetError::TooLong { len: bytes.len(), max: wire::WRITE_SET_BYTES_MAX })
        }
        [KIND, version, body @ ..] => Ok((*version, body)),
        [kind, ..] => Err(WriteSetError::Kind(*kind)),
        [] => Err(WriteSetError::Malformed("empty")),
    }
}
