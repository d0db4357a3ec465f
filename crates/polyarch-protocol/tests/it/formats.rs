//! The wire formats of version 1, frozen: these bytes are read and written as they are for ever.
//!
//! A line of a fixture is a name and the bytes in hex. What is added to a format comes as a new
//! line; a line that changes is a break of the format and needs a new version.

use std::fmt::Debug;

use bytes::Bytes;
use polyarch_crdt::{Dot, FieldPath, Hlc, Origin, Sibling};
use polyarch_protocol::catalog::SystemRecord;
use polyarch_protocol::client::{ClientRequest, ClientResponse, Response};
use polyarch_protocol::codec::CodecError;
use polyarch_protocol::peer::{FeedGroup, PeerMessage};
use polyarch_protocol::{Digest, KeyspaceId, PeerDigest, RecordKey, SnapshotPart, SnapshotRequest, WriteSet};

use crate::samples::{
    feed_samples, peer_samples, request_samples, response_samples, snapshot_part_samples, snapshot_request_samples,
    system_samples, write_set_samples,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Each line decodes to its sample and encodes to itself; each sample has a line.
fn check<T: PartialEq + Debug, E: Debug>(
    fixture: &str,
    samples: &[(&str, T)],
    encode: impl Fn(&T) -> Vec<u8>,
    decode: impl Fn(&[u8]) -> Result<T, E>,
) {
    let lines: Vec<(&str, &str)> = fixture.lines().filter_map(|line| line.split_once(' ')).collect();
    let is_missing = |(name, _): &&(&str, T)| !lines.iter().any(|(of, _)| of == name);
    let missing = samples.iter().filter(is_missing).map(|(name, sample)| format!("\n{name} {}", hex(&encode(sample))));
    assert_eq!(missing.collect::<String>(), "", "lines that the fixture needs");
    for ((name, sample), (of, frozen)) in samples.iter().zip(&lines) {
        assert_eq!(name, of, "lines are in the order of the samples");
        assert_eq!(hex(&encode(sample)), *frozen, "{name} is written as ever");
        assert_eq!(&decode(&unhex(frozen)).expect("it reads"), sample, "{name} is read as ever");
    }
    assert_eq!(lines.len(), samples.len(), "each line has its sample");
}

#[test]
fn peer_messages() {
    let fixture = include_str!("../fixtures/peer_message.v1.hex");
    check(fixture, &peer_samples(), PeerMessage::encode, PeerMessage::decode);
}

#[test]
fn feed_groups() {
    let fixture = include_str!("../fixtures/feed_group.v1.hex");
    check(fixture, &feed_samples(), FeedGroup::encode, |bytes| FeedGroup::decode(&Bytes::copy_from_slice(bytes)));
}

#[test]
fn client_requests() {
    let fixture = include_str!("../fixtures/client_request.v1.hex");
    check(fixture, &request_samples(), ClientRequest::encode, ClientRequest::decode);
}

#[test]
fn client_responses() {
    let fixture = include_str!("../fixtures/client_response.v1.hex");
    check(fixture, &response_samples(), ClientResponse::encode, ClientResponse::decode);
}

#[test]
fn write_sets() {
    let fixture = include_str!("../fixtures/write_set.v1.hex");
    check(fixture, &write_set_samples(), |w| w.encode().to_vec(), WriteSet::decode);
}

#[test]
fn system_records() {
    let fixture = include_str!("../fixtures/system_record.v1.hex");
    check(fixture, &system_samples(), |r| r.encode().to_vec(), SystemRecord::decode);
}

/// 64 KiB of buckets are built here from their drawing, and are no line of a fixture.
#[test]
fn digests() {
    let key = RecordKey::new(KeyspaceId::SYSTEM, b"key");
    let mut digest = Digest::default();
    let dot = Dot::new(Origin::new(3, 7), 42);
    let sibling = Sibling { dot, hlc: Hlc::new(1_764_950_400_000, 3), value: Bytes::from_static(b"value") };
    digest.add(&key, &FieldPath::opaque(), &sibling);
    let mut buckets = vec![0; 4_096 * 16];
    // What is hashed of a sibling, and how, is as frozen as the rest.
    let (bucket, hash) = (1_271, unhex("0468e47d3fa673443b4d99d4588e10f5"));
    assert_eq!((Digest::bucket_of(&key), hex(&digest.total().to_le_bytes())), (bucket, hex(&hash)));
    buckets[bucket * 16..][..16].copy_from_slice(&hash);

    // Its applied-set: one origin, server 3, epoch 7, up to 42. Then the length of the buckets, 65,536.
    let body = [&[1, 3, 7, 42, 0x80, 0x80, 0x04][..], &buckets].concat();
    let drawn = PeerDigest { applied: [dot].into_iter().collect(), digest };
    let peer = PeerMessage::Digest(Box::new(drawn.clone()));
    let frame = [&[b'P', 1, 8][..], &body].concat();
    assert_eq!(hex(&peer.encode()[..40]), hex(&frame[..40]));
    assert!(peer.encode() == frame && PeerMessage::decode(&frame) == Ok(peer));
    let answer = ClientResponse { id: 5, result: Ok(Response::Digest(Box::new(drawn))) };
    let frame = [&[b'A', 1, 5, 0, 9][..], &body].concat();
    assert!(answer.encode() == frame && ClientResponse::decode(&frame) == Ok(answer));
    assert_eq!(ClientResponse::decode(&frame[..frame.len() - 1]), Err(CodecError::Malformed));
    let short = [&[b'P', 1, 8, 0, 0xff, 0xff, 0x03][..], &buckets[1..]].concat();
    assert_eq!(PeerMessage::decode(&short), Err(CodecError::Malformed), "not as many buckets as a digest has");
}

#[test]
fn snapshots() {
    #[derive(Debug, PartialEq)]
    enum Frame {
        Request(SnapshotRequest),
        Part(SnapshotPart),
    }
    let requests = snapshot_request_samples().into_iter().map(|(name, request)| (name, Frame::Request(request)));
    let parts = snapshot_part_samples().into_iter().map(|(name, part)| (name, Frame::Part(part)));
    let encode = |frame: &Frame| match frame {
        Frame::Request(request) => request.encode(),
        Frame::Part(part) => part.encode(),
    };
    let decode = |bytes: &[u8]| match SnapshotRequest::is_kind(bytes) {
        true => SnapshotRequest::decode(bytes).map(Frame::Request),
        false => SnapshotPart::decode(bytes).map(Frame::Part),
    };
    let samples: Vec<(&str, Frame)> = requests.chain(parts).collect();
    check(include_str!("../fixtures/snapshot.v1.hex"), &samples, encode, decode);
}

#[test]
fn another_version_and_another_kind_are_told_apart() {
    let [mut bytes, request] = [peer_samples()[0].1.encode(), request_samples()[0].1.encode()];
    assert_eq!(PeerMessage::decode(&request), Err(CodecError::Kind(b'Q')));
    bytes[1] = 2;
    assert_eq!(PeerMessage::decode(&bytes), Err(CodecError::Version(2)));
    assert_eq!(PeerMessage::decode(b"P"), Err(CodecError::Kind(b'P')), "too short for a version");
    assert_eq!(PeerMessage::decode(b""), Err(CodecError::Malformed));
    bytes[1] = 1;
    bytes.push(0);
    assert_eq!(PeerMessage::decode(&bytes), Err(CodecError::Malformed), "bytes behind its end");
}
