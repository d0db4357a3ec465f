//! What members say to each other on a link.
//!
//! A link has one control stream each way ([`PeerMessage`]) and, each way, at most one feed: a
//! stream of [`FeedGroup`]s that belongs to the newest [`Subscribe`] of the side that receives it.

use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Base, Dot, Origin};
use serde::{Deserialize, Serialize};

use crate::bases::{BasedSet, Bases};
use crate::buckets::{BucketKeys, PeerDigest};
use crate::chain::ChainHead;
use crate::codec::{self, CodecError, Kind};
use crate::limits::wire;
use crate::progress::MemberProgress;
use crate::reach::LinkState;

/// A cluster's identity, drawn at its founding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The version of what is spoken on a link: the newest that both ends know, agreed when it is
/// connected (ALPN `polyarch-peer/1`, `polyarch-peer/2`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerVersion {
    /// What 0.1.0 speaks. Its messages are frozen, and any other ends such a link.
    V1,
    /// Version 1, and the messages that [`PeerMessage::since`] says.
    V2,
}

impl PeerVersion {
    /// The newest.
    pub const NEWEST: Self = Self::V2;

    /// The version of a number, as the ALPN has it; `None` for one that is not known here.
    pub fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }
}

/// A message on a link's control stream. Variants are appended only, and each says in
/// [`PeerMessage::since`] on which links it may be.
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
    /// Who has a link to whom: all that the sender knows when a link comes up, then what is new.
    LinkStates(#[serde(deserialize_with = "codec::link_states")] Vec<LinkState>),
    /// Two living processes have the receiver's server id.
    Twin(Twin),
    /// The receiver was removed from the cluster; the link is closed. Names the write sets that say
    /// so, as far as the sender has them: a receiver that has applied those and stands elsewhere
    /// knows better.
    Removed(AppliedSet),
    /// How far members are: all that the sender knows when a link comes up, then what is new.
    Progress(#[serde(deserialize_with = "codec::progress")] Vec<MemberProgress>),
    /// The sender's digest, bucket by bucket: at an equal applied-set the two totals differ.
    Digest(Box<PeerDigest>),
    /// What the sender holds in buckets that differ.
    BucketKeys(Box<BucketKeys>),
    /// The newest base by which the sender expresses sets: what is sent to it may name that. Before
    /// its hello, so that the first heartbeat may. Since version 2.
    Base(Dot),
    /// In place of [`PeerMessage::Heartbeat`], to one that is known to have the base. Since version 2.
    BasedHeartbeat(BasedHeartbeat),
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
    /// The origins whose feed it has stopped (fork, poison), in order.
    pub paused: Vec<Origin>,
}

/// A [`Heartbeat`] whose applied-set names a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasedHeartbeat {
    /// What the sender has durably applied.
    pub applied: BasedSet,
    /// As [`Heartbeat::digest`].
    pub digest: Option<u128>,
    /// As [`Heartbeat::clock_ms`].
    pub clock_ms: u64,
    /// As [`Heartbeat::paused`].
    pub paused: Vec<Origin>,
}

impl Heartbeat {
    /// The message for one who knows `base`; spelled out where the sender is not that far.
    pub(crate) fn message(self, base: Option<&Arc<Base>>) -> PeerMessage {
        let applied = BasedSet::new(&self.applied, base);
        match applied.base {
            None => PeerMessage::Heartbeat(self),
            Some(_) => {
                let Self { digest, clock_ms, paused, .. } = self;
                PeerMessage::BasedHeartbeat(BasedHeartbeat { applied, digest, clock_ms, paused })
            }
        }
    }
}

impl BasedHeartbeat {
    /// What it says; `None` when its base is not known here.
    pub(crate) fn resolve(self, bases: &Bases) -> Option<Heartbeat> {
        let applied = self.applied.resolve(bases)?;
        Some(Heartbeat { applied, digest: self.digest, clock_ms: self.clock_ms, paused: self.paused })
    }
}

/// Two living processes with one server id, as a member sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Twin {
    /// Where each was seen.
    #[serde(deserialize_with = "codec::addresses")]
    pub addresses: Vec<String>,
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
    /// The first version that knows this message: it goes on links of that version and of later
    /// ones, and never on others.
    pub fn since(&self) -> PeerVersion {
        match self {
            Self::Hello(_)
            | Self::Heartbeat(_)
            | Self::Subscribe(_)
            | Self::Refuse(_)
            | Self::LinkStates(_)
            | Self::Twin(_)
            | Self::Removed(_) => PeerVersion::V1,
            Self::Progress(_) | Self::Digest(_) | Self::BucketKeys(_) | Self::Base(_) | Self::BasedHeartbeat(_) => {
                PeerVersion::V2
            }
        }
    }

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

/// A byte of an LZ4 block becomes at most so many: a claim of more is refused before memory is taken.
const LZ4_RATIO_MAX: usize = 255;

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
    const COMPRESSED_HEADER_BYTES: usize = 2 + 4;

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

    /// The bytes of its frame, compressed, where that makes it an eighth shorter at least.
    ///
    /// Frame: kind (1), version (1), length of what is compressed (4, little endian), then that as
    /// one LZ4 block: a frame as [`FeedGroup::encode`] makes it.
    pub fn encode_compressed(&self) -> Option<Vec<u8>> {
        let plain = self.encode();
        let len = u32::try_from(plain.len()).ok().filter(|_| plain.len() <= wire::FRAME_BYTES_MAX)?;
        let mut frame = vec![0; Self::COMPRESSED_HEADER_BYTES + lz4_flex::block::get_maximum_output_size(plain.len())];
        frame[..2].copy_from_slice(&[Kind::CompressedFeed as u8, 1]);
        frame[2..Self::COMPRESSED_HEADER_BYTES].copy_from_slice(&len.to_le_bytes());
        let compressed = lz4_flex::block::compress_into(&plain, &mut frame[Self::COMPRESSED_HEADER_BYTES..]).ok()?;
        frame.truncate(Self::COMPRESSED_HEADER_BYTES + compressed);
        (frame.len() <= plain.len() - plain.len() / 8).then_some(frame)
    }

    /// The bytes of its write sets.
    pub fn write_set_bytes(&self) -> usize {
        self.write_sets.iter().map(Bytes::len).sum()
    }

    /// Reads a frame of a feed, compressed or not. The write sets share the frame's memory and are
    /// not yet decoded.
    ///
    /// # Errors
    /// When lengths do not add up or exceed the format's limits.
    pub fn decode(frame: &Bytes) -> Result<Self, CodecError> {
        match frame.first() {
            Some(kind) if *kind == Kind::CompressedFeed as u8 => Self::decode_plain(&Self::decompressed(frame)?),
            _ => Self::decode_plain(frame),
        }
    }

    fn decompressed(frame: &Bytes) -> Result<Bytes, CodecError> {
        let body = codec::body(Kind::CompressedFeed, frame)?;
        let (len, block) = body.split_first_chunk::<4>().ok_or(CodecError::Malformed)?;
        let len = u32::from_le_bytes(*len) as usize;
        if len > wire::FRAME_BYTES_MAX || len / LZ4_RATIO_MAX > block.len() {
            return Err(CodecError::Malformed);
        }
        let plain = lz4_flex::block::decompress(block, len).map_err(|_| CodecError::Malformed)?;
        match plain.len() == len {
            true => Ok(plain.into()),
            false => Err(CodecError::Malformed),
        }
    }

    fn decode_plain(frame: &Bytes) -> Result<Self, CodecError> {
        let body = codec::body(Kind::Feed, frame)?;
        let (subscription, mut rest) = body.split_first_chunk::<8>().ok_or(CodecError::Malformed)?;
        let (mut write_sets, mut gathered) = (Vec::new(), 0);
        while !rest.is_empty() {
            let (len, behind) = rest.split_first_chunk::<4>().ok_or(CodecError::Malformed)?;
            let len = u32::from_le_bytes(*len) as usize;
            let is_full = gathered > wire::FEED_GROUP_BYTES_MAX;
            if is_full || len == 0 || len > wire::WRITE_SET_BYTES_MAX || len > behind.len() {
                return Err(CodecError::Malformed);
            }
            gathered += len;
            write_sets.push(frame.slice_ref(&behind[..len]));
            rest = &behind[len..];
        }
        Ok(Self { subscription: u64::from_le_bytes(*subscription), write_sets })
    }
}
