//! Frames: what members and clients say to each other, byte by byte.

use std::fmt::Debug;

use bytes::Bytes;
use polyarch_protocol::catalog::SystemRecord;
use polyarch_protocol::client::{ClientRequest, ClientResponse};
use polyarch_protocol::limits::wire;
use polyarch_protocol::peer::{FeedGroup, PeerMessage, PeerVersion};
use polyarch_protocol::{SnapshotPart, SnapshotRequest, WriteSet};
use polyarch_transport::{FRAME_HEADER_BYTES, FrameDecoder, FrameError};

/// An input is a frame, whose first byte says which reader it is for, and a stream of frames.
///
/// What a reader takes, it writes as something that it reads as the same. The frames of a stream do not depend on the
/// pieces in which it came.
pub fn wire_frames(data: &[u8]) {
    frame(data);
    let frames = stream(data, data.len().max(1));
    assert_eq!(frames, stream(data, 1 + data.len() % 7), "the same stream in other pieces");
    frames.iter().for_each(|bytes| frame(bytes));
    let header = (data.len() as u32).to_le_bytes();
    let twice = [&header, data, &header, data].concat();
    assert_eq!(stream(&twice, 1 + data.len() / 3), [data, data], "each frame comes as it was sent");
}

/// An input is a compressed group of a feed, without its kind and version.
pub fn compressed_groups(data: &[u8]) {
    feed_group(&[b"Z\x01", data].concat());
    let group = FeedGroup { subscription: 7, write_sets: vec![Bytes::copy_from_slice(data)] };
    if !data.is_empty() {
        let frame = group.encode_compressed().unwrap_or_else(|| group.encode());
        assert_eq!(FeedGroup::decode(&frame.into()), Ok(group), "what was compressed comes back");
    }
}

/// The frames of a stream that comes in pieces of so many bytes.
fn stream(bytes: &[u8], piece: usize) -> Vec<Bytes> {
    let mut decoder = FrameDecoder::default();
    let mut frames = Vec::new();
    let mut taken = 0;
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        loop {
            match decoder.next(wire::CONTROL_BYTES_MAX) {
                Ok(Some(frame)) => {
                    taken += FRAME_HEADER_BYTES + frame.len();
                    frames.push(frame);
                }
                Ok(None) => break,
                Err(FrameError::TooLarge { len, max }) => {
                    assert!(len > max);
                    return frames;
                }
                Err(error) => unreachable!("{error} in the middle of a stream"),
            }
        }
    }
    assert_eq!(taken + decoder.buffered_bytes(), bytes.len(), "no byte is lost or made up");
    assert_eq!(decoder.finish().is_ok(), taken == bytes.len());
    frames
}

/// What is read is written as something that reads the same.
fn read_again<T: PartialEq + Debug, E: Debug>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> Option<T> {
    let read = decode(bytes).ok()?;
    let again = decode(&encode(&read)).expect("what was written reads");
    assert_eq!(again, read);
    Some(read)
}

/// Reads a frame as its kind byte says.
pub(super) fn frame(bytes: &[u8]) {
    match bytes.first() {
        Some(b'P') => peer_message(bytes),
        Some(b'F') => feed_group(bytes),
        Some(b'Q') => request(bytes),
        Some(b'A') => _ = read_again(bytes, ClientResponse::decode, ClientResponse::encode),
        Some(b'S') => _ = read_again(bytes, SystemRecord::decode, |record| record.encode().to_vec()),
        Some(b'R') => {
            assert!(SnapshotRequest::is_kind(bytes));
            read_again(bytes, SnapshotRequest::decode, SnapshotRequest::encode);
        }
        Some(b'N') => _ = read_again(bytes, SnapshotPart::decode, SnapshotPart::encode),
        Some(b'W') => write_set(bytes),
        // Each reader refuses what is another's.
        _ => {
            assert!(PeerMessage::decode(bytes).is_err() && ClientRequest::decode(bytes).is_err());
            assert!(ClientResponse::decode(bytes).is_err() && SystemRecord::decode(bytes).is_err());
            assert!(SnapshotRequest::decode(bytes).is_err() && SnapshotPart::decode(bytes).is_err());
            assert!(WriteSet::decode(bytes).is_err() && ClientRequest::peek_id(bytes).is_none());
        }
    }
}

fn peer_message(bytes: &[u8]) {
    let Some(message) = read_again(bytes, PeerMessage::decode, PeerMessage::encode) else { return };
    assert!(message.since() <= PeerVersion::NEWEST);
}

fn request(bytes: &[u8]) {
    let Some(request) = read_again(bytes, ClientRequest::decode, ClientRequest::encode) else { return };
    assert_eq!(ClientRequest::peek_id(bytes), Some(request.id));
}

fn feed_group(bytes: &[u8]) {
    let decode = |bytes: &[u8]| FeedGroup::decode(&Bytes::copy_from_slice(bytes));
    let Some(group) = read_again(bytes, decode, FeedGroup::encode) else { return };
    assert!(group.write_sets.iter().all(|bytes| (1..=wire::WRITE_SET_BYTES_MAX).contains(&bytes.len())));
    if let Some(compressed) = group.encode_compressed() {
        assert_eq!(decode(&compressed).as_ref(), Ok(&group), "compressed, it is the same");
    }
    group.write_sets.iter().for_each(|bytes| write_set(bytes));
}

fn write_set(bytes: &[u8]) {
    let Some(write_set) = read_again(bytes, WriteSet::decode, |write_set| write_set.encode().to_vec()) else { return };
    assert_eq!(WriteSet::peek_dot(bytes), Ok(write_set.dot));
}
