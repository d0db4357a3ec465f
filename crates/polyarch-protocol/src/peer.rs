//! What members say to each other on a link.
//!
//! A link has one control stream each way ([`PeerMessage`]) and, each way, at most one feed: a
//! stream of [`FeedGroup`]s that belongs to the newest [`Subscribe`] of the side that receives it.

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, Origin};
use serde::{Deserialize, Serialize};

use crate::chain::ChainHead;
use crate::codec::{self, CodecError, Kind};
use crate::limits::wire;

/// A cluster's identity, drawn at its founding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A message on a link's control stream. Variants are appended only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// The first message, both ways.
    Hello(Hello),
    /// How far the sender is; at connect, on change, and from time to time.
    Heartbeat(Heartbeat),
    /// What the sender wants to be fed on this link from now on.
    Subscribe(Subscribe),
    /// The sender cannot serve an origin that was subscribed to.
    Refuse(Refuse),
}

/// Who speaks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster it belongs to; `None` while it has not joined one.
    pub cluster_id: Option<ClusterId>,
    /// Its server id, which its certificate must state too.
    pub server_id: u32,
    /// Drawn at each process start: tells two processes of one server id apart.
    pub boot_id: u128,
}

/// How far a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// What it has durably applied.
    pub applied: AppliedSet,
    /// [`crate::Digest::total`] of exactly that, when it was known.
    pub digest: Option<u128>,
    /// Its wall clock, Unix milliseconds.
    pub clock_ms: u64,
    /// The members it has a link to, in order.
    pub linked: Vec<u32>,
    /// The origins whose feed it has stopped (fork, poison), in order.
    pub paused: Vec<Origin>,
}

/// Replaces all that this side was fed on this link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subscribe {
    /// Rises with each subscription of a link; the feed's groups carry it.
    pub subscription: u64,
    /// The origins wanted, each with the receiver's chain head: the feed begins behind it.
    pub origins: Vec<(Origin, ChainHead)>,
}

/// Why an origin is not fed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refuse {
    /// Of which subscription.
    pub subscription: u64,
    /// Which origin.
    pub origin: Origin,
    /// Why.
    pub reason: RefuseReason,
}

/// Why an origin is not fed. Variants are appended only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RefuseReason {
    /// The two hold different histories up to this write set.
    Fork(Dot),
    /// The sender's log no longer reaches back that far.
    LogRemoved,
    /// The sender's log cannot be read there.
    LogUnreadable,
}

impl PeerMessage {
    /// The bytes of its frame.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(Kind::Peer, self)
    }

    /// Reads a frame of a control stream.
    ///
    /// # Errors
    /// When the bytes are no message known here.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(Kind::Peer, bytes)
    }
}

/// Consecutive write sets of the subscribed origins, in the sender's log order.
///
/// Frame: kind (1), version (1), subscription (8, little endian), then for each write set its
/// length (4, little endian) and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedGroup {
    /// The subscription it answers.
    pub subscription: u64,
    /// The bytes of the write sets.
    pub write_sets: Vec<Bytes>,
}

impl FeedGroup {
    const HEADER_BYTES: usize = 2 + 8;

    /// The bytes of its frame, in parts: the write sets are not copied.
    ///
    /// # Panics
    /// When a write set is longer than [`wire::WRITE_SET_BYTES_MAX`], which none is that was decoded.
    pub fn encode_to<T>(&self, take: impl FnOnce(&[&[u8]]) -> T) -> T {
        let mut header = [0; Self::HEADER_BYTES];
        header[..2].copy_from_slice(&[Kind::Feed as u8, 1]);
        header[2..].copy_from_slice(&self.subscription.to_le_bytes());
        let len = |write_set: &Bytes| u32::try_from(write_set.len()).expect("bounded by the format").to_le_bytes();
        let lens: Vec<[u8; 4]> = self.write_sets.iter().map(len).collect();
        let mut parts: Vec<&[u8]> = Vec::with_capacity(1 + 2 * lens.len());
        parts.push(&header);
        for (len, write_set) in lens.iter().zip(&self.write_sets) {
            parts.extend([&len[..], &write_set[..]]);
        }
        take(&parts)
    }

    /// The bytes of its frame.
    pub fn encode(&self) -> Vec<u8> {
        self.encode_to(|parts| parts.concat())
    }

    /// Reads a frame of a feed. The write sets share the frame's memory and are not yet decoded.
    ///
    /// # Errors
    /// When lengths do not add up or exceed the format's limits.
    pub fn decode(frame: &Bytes) -> Result<Self, CodecError> {
        let body = codec::body(Kind::Feed, frame)?;
        let (subscription, mut rest) = body.split_first_chunk::<8>().ok_or(CodecError::Malformed)?;
        let mut write_sets = Vec::new();
        while !rest.is_empty() {
            let (len, behind) = rest.split_first_chunk::<4>().ok_or(CodecError::Malformed)?;
            let len = u32::from_le_bytes(*len) as usize;
            if len == 0 || len > wire::WRITE_SET_BYTES_MAX || len > behind.len() {
                return Err(CodecError::Malformed);
            }
            write_sets.push(frame.slice_ref(&behind[..len]));
            rest = &behind[len..];
        }
        Ok(Self { subscription: u64::from_le_bytes(*subscription), write_sets })
    }
}
