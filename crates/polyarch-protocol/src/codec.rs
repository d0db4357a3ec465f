//! The envelope of every message: a kind byte, a version byte, and the message in postcard.
//!
//! postcard decodes an appended field wrongly and drops trailing bytes in silence, so each layout
//! has a version of its own, and the rest behind a message must be empty. Enums only ever gain
//! variants at their end. Lengths are checked by the frame reader before anything is read. A length
//! inside a message allocates nothing by itself: memory grows with the bytes that were sent, items
//! being wider there than in postcard, and lists of wide items have a bound of their own.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::limits::wire;

/// What the bytes of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`crate::peer::PeerMessage`].
    Peer = b'P',
    /// A [`crate::peer::FeedGroup`].
    Feed = b'F',
    /// A [`crate::peer::FeedGroup`], compressed.
    CompressedFeed = b'Z',
    /// A [`crate::client::ClientRequest`].
    Request = b'Q',
    /// A [`crate::client::ClientResponse`].
    Response = b'A',
    /// A [`crate::catalog::SystemRecord`], as a value of the system keyspace.
    System = b'S',
    /// A [`crate::SnapshotRequest`].
    SnapshotRequest = b'R',
    /// A [`crate::SnapshotPart`].
    SnapshotPart = b'N',
}

/// Why a frame's bytes are not the message they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// Another kind of message than is due here.
    #[error("unexpected message (kind byte {0:#04x})")]
    Kind(u8),
    /// A layout of another version of polyarch.
    #[error("message of format version {0}, which this version of polyarch does not know")]
    Version(u8),
    /// Cut short, altered, or of a variant unknown here.
    #[error("malformed message")]
    Malformed,
}

const VERSION: u8 = 1;

/// The bytes of `message` in its envelope.
pub fn encode<T: Serialize>(kind: Kind, message: &T) -> Vec<u8> {
    postcard::to_extend(message, vec![kind as u8, VERSION]).expect("a Vec takes all that is written")
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// When the bytes are of another kind or version, malformed, or followed by more.
pub fn decode<T: DeserializeOwned>(kind: Kind, bytes: &[u8]) -> Result<T, CodecError> {
    match postcard::take_from_bytes(body(kind, bytes)?) {
        Ok((message, [])) => Ok(message),
        _ => Err(CodecError::Malformed),
    }
}

/// Reads the changes of a write: no more than [`wire::CHANGES_MAX`], refused before they are read.
pub(crate) fn changes<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: wire::CHANGES_MAX, items: PhantomData })
}

/// Reads the addresses of a member: no more than [`wire::ADDRESSES_MAX`], refused before they are read.
pub(crate) fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: wire::ADDRESSES_MAX, items: PhantomData })
}

/// Reads link states: no more than [`wire::LINK_STATES_MAX`], refused before they are read.
pub(crate) fn link_states<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: wire::LINK_STATES_MAX, items: PhantomData })
}

/// Reads the progress of members: no more than [`wire::PROGRESS_MAX`], refused before it is read.
pub(crate) fn progress<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: wire::PROGRESS_MAX, items: PhantomData })
}

/// Reads the hubs or links of a topology: no more than [`wire::TOPOLOGY_NAMES_MAX`], refused before
/// they are read.
pub(crate) fn topology<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: wire::TOPOLOGY_NAMES_MAX, items: PhantomData })
}

/// Reads the epochs of a base: no more than [`wire::BASE_EPOCHS_MAX`], refused before they are read.
pub(crate) fn closed_epochs<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: wire::BASE_EPOCHS_MAX, items: PhantomData })
}

/// Reads the records of a snapshot's part: no more than a donor sends, refused before they are read.
pub(crate) fn snapshot_records<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: crate::snapshot::PART_RECORDS_MAX, items: PhantomData })
}

/// Reads the buckets whose keys are compared: no more than are compared at a time.
pub(crate) fn compared_buckets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: crate::buckets::BUCKETS_COMPARED_MAX, items: PhantomData })
}

/// Reads the buckets that a client asks for: no more than there are.
pub(crate) fn buckets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u16>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: crate::digest::DIGEST_BUCKETS, items: PhantomData })
}

/// Reads the records of a page of [`crate::client::Response::Buckets`]: no more than one has.
pub(crate) fn outlines<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    deserializer.deserialize_seq(AtMost { max: wire::OUTLINES_MAX, items: PhantomData })
}

struct AtMost<T> {
    max: usize,
    items: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for AtMost<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {} items", self.max)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        if seq.size_hint().is_some_and(|len| len > self.max) {
            return Err(A::Error::custom("too many items"));
        }
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(items)
    }
}

pub(crate) fn body(kind: Kind, bytes: &[u8]) -> Result<&[u8], CodecError> {
    match bytes {
        [k, VERSION, body @ ..] if *k == kind as u8 => Ok(body),
        [k, version, ..] if *k == kind as u8 => Err(CodecError::Version(*version)),
        [k, ..] => Err(CodecError::Kind(*k)),
        [] => Err(CodecError::Malformed),
    }
}
