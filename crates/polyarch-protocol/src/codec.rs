//! The envelope of every message: a kind byte, a version byte, and the message in postcard.
//!
//! postcard decodes an appended field wrongly and drops trailing bytes in silence, so each layout
//! has a version of its own, and the rest behind a message must be empty. Enums only ever gain
//! variants at their end. Lengths are checked by the frame reader before anything is read, and a
//! length inside a message never allocates more than the message has bytes.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What the bytes of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A [`crate::peer::PeerMessage`].
    Peer = b'P',
    /// A [`crate::peer::FeedGroup`].
    Feed = b'F',
    /// A [`crate::client::ClientRequest`].
    Request = b'Q',
    /// A [`crate::client::ClientResponse`].
    Response = b'A',
    /// A [`crate::catalog::SystemRecord`], as a value of the system keyspace.
    System = b'S',
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

pub(crate) fn body(kind: Kind, bytes: &[u8]) -> Result<&[u8], CodecError> {
    match bytes {
        [k, VERSION, body @ ..] if *k == kind as u8 => Ok(body),
        [k, version, ..] if *k == kind as u8 => Err(CodecError::Version(*version)),
        [k, ..] => Err(CodecError::Kind(*k)),
        [] => Err(CodecError::Malformed),
    }
}
