//! The wire formats of version 1, frozen: these bytes are read and written as they are for ever.
//!
//! A line of a fixture is a name and the bytes in hex. What is added to a format comes as a new
//! line; a line that changes is a break of the format and needs a new version.

#[path = "support/samples.rs"]
mod samples;

use std::fmt::Debug;

use bytes::Bytes;
use polyarch_protocol::catalog::SystemRecord;
use polyarch_protocol::client::{ClientRequest, ClientResponse};
use polyarch_protocol::codec::CodecError;
use polyarch_protocol::peer::{FeedGroup, PeerMessage};
use polyarch_protocol::{SnapshotPart, SnapshotRequest, WriteSet};
use samples::{
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
    let fixture = include_str!("fixtures/peer_message.v1.hex");
    check(fixture, &peer_samples(), PeerMessage::encode, PeerMessage::decode);
}

#[test]
fn feed_groups() {
    let fixture = include_str!("fixtures/feed_group.v1.hex");
    check(fixture, &feed_samples(), FeedGroup::encode, |bytes| FeedGroup::decode(&Bytes::copy_from_slice(bytes)));
}

#[test]
fn client_requests() {
    let fixture = include_str!("fixtures/client_request.v1.hex");
    check(fixture, &request_samples(), ClientRequest::encode, ClientRequest::decode);
}

#[test]
fn client_responses() {
    let fixture = include_str!("fixtures/client_response.v1.hex");
    check(fixture, &response_samples(), ClientResponse::encode, ClientResponse::decode);
}

#[test]
fn write_sets() {
    let fixture = include_str!("fixtures/write_set.v1.hex");
    check(fixture, &write_set_samples(), |w| w.encode().to_vec(), WriteSet::decode);
}

#[test]
fn system_records() {
    let fixture = include_str!("fixtures/system_record.v1.hex");
    check(fixture, &system_samples(), |r| r.encode().to_vec(), SystemRecord::decode);
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
    check(include_str!("fixtures/snapshot.v1.hex"), &samples, encode, decode);
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
