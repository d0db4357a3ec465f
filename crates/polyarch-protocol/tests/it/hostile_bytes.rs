//! Bytes from outside: whatever they are, they are read or refused, and a replica outlives them.

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, FieldPath, Origin};
use polyarch_protocol::catalog::{self, MemberChange, MemberStatus, SystemRecord};
use polyarch_protocol::client::{ClientRequest, ClientResponse, Refusal, Supersede};
use polyarch_protocol::limits::wire;
use polyarch_protocol::peer::{FeedGroup, Hello, PeerMessage};
use polyarch_protocol::{
    Change, Effect, FeedStep, Input, KeyspaceId, LinkId, RecordKey, SnapshotPart, SnapshotRecord, SnapshotRequest,
    Topology, WriteSet, WriteSetError,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::messages::{
    applied, cases, feed_group, member, member_change, mutated, peer_message, postcard_number, request, response,
    snapshot_part, snapshot_request, system_record, topology, write_set,
};
use crate::support::{CLUSTER, Node, foreign};

/// What is read is written as something that reads the same.
fn check<T: PartialEq + std::fmt::Debug, E>(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<T, E>,
    encode: impl Fn(&T) -> Vec<u8>,
) -> Result<(), TestCaseError> {
    if let Ok(read) = decode(bytes) {
        let again = decode(&encode(&read)).ok();
        prop_assert_eq!(again, Some(read));
    }
    Ok(())
}

fn check_all(bytes: &[u8]) -> Result<(), TestCaseError> {
    check(bytes, PeerMessage::decode, PeerMessage::encode)?;
    check(bytes, ClientRequest::decode, ClientRequest::encode)?;
    check(bytes, ClientResponse::decode, ClientResponse::encode)?;
    check(bytes, SystemRecord::decode, |r| r.encode().to_vec())?;
    check(bytes, SnapshotRequest::decode, SnapshotRequest::encode)?;
    check(bytes, SnapshotPart::decode, SnapshotPart::encode)?;
    check(bytes, WriteSet::decode, |w| w.encode().to_vec())?;
    check(bytes, |b| FeedGroup::decode(&Bytes::copy_from_slice(b)), FeedGroup::encode)?;
    let compressed = |g: &FeedGroup| g.encode_compressed().unwrap_or_else(|| g.encode());
    check(bytes, |b| FeedGroup::decode(&Bytes::copy_from_slice(b)), compressed)?;
    if let Ok(write_set) = WriteSet::decode(bytes) {
        prop_assert_eq!(WriteSet::peek_dot(bytes), Ok(write_set.dot));
    }
    Ok(())
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn each_message_is_read_as_it_was_written(
        peer in peer_message(), group in feed_group(), write_set in write_set(),
        request in request(), response in response(), record in system_record(),
        asked in snapshot_request(), part in snapshot_part(),
    ) {
        prop_assert_eq!(SnapshotRequest::decode(&asked.encode()), Ok(asked));
        prop_assert_eq!(SnapshotPart::decode(&part.encode()), Ok(part));
        prop_assert_eq!(PeerMessage::decode(&peer.encode()), Ok(peer));
        prop_assert_eq!(FeedGroup::decode(&group.encode().into()), Ok(group));
        prop_assert_eq!(WriteSet::decode(&write_set.encode()), Ok(write_set));
        prop_assert_eq!(ClientRequest::decode(&request.encode()), Ok(request));
        prop_assert_eq!(ClientResponse::decode(&response.encode()), Ok(response));
        prop_assert_eq!(SystemRecord::decode(&record.encode()), Ok(record));
    }

    #[test]
    fn random_bytes_are_read_or_refused(
        kind in prop::sample::select(&b"PFZQASWRN"[..]), version in 0..3_u8, body in vec(any::<u8>(), 0..80),
    ) {
        check_all(&[&[kind, version], &body[..]].concat())?;
        check_all(&body)?;
    }

    #[test]
    fn mutated_messages_are_read_or_refused(
        peer in mutated(peer_message().prop_map(|m| m.encode())),
        group in mutated(feed_group().prop_map(|g| g.encode())),
        write_set in mutated(write_set().prop_map(|w| w.encode().to_vec())),
        request in mutated(request().prop_map(|r| r.encode())),
        response in mutated(response().prop_map(|r| r.encode())),
        record in mutated(system_record().prop_map(|r| r.encode().to_vec())),
        asked in mutated(snapshot_request().prop_map(|r| r.encode())),
        part in mutated(snapshot_part().prop_map(|p| p.encode())),
    ) {
        for bytes in [peer, group, write_set, request, response, record, asked, part] {
            check_all(&bytes)?;
        }
    }

    #[test]
    fn compressed_groups_are_read_as_they_were_written_and_mutated_ones_read_or_refused(
        (group, bytes) in (feed_group(), vec(1..200_usize, 1..4)).prop_flat_map(|(mut group, lens)| {
            group.write_sets.extend(lens.into_iter().map(|len| Bytes::from(vec![b'x'; len + 100])));
            let frame = group.encode_compressed().expect("it becomes shorter");
            (Just(group), mutated(Just(frame)))
        }),
    ) {
        prop_assert_eq!(FeedGroup::decode(&group.encode_compressed().expect("as before").into()), Ok(group));
        check_all(&bytes)?;
    }
}

#[test]
fn a_write_set_beyond_a_rule_of_the_format_is_refused() {
    let good = foreign(Dot::new(Origin::new(2, 9), 2), &[], "x");
    assert_eq!(WriteSet::decode(&good.encode()).as_ref(), Ok(&good));
    type Break = fn(&mut WriteSet);
    let breaks: [(&str, Break); 9] = [
        ("seq 0", |w| w.dot.seq = 0),
        ("server id 0", |w| w.dot.origin.server_id = 0),
        ("only the first is whole", |w| w.dot.seq = 1),
        ("it depends on itself", |w| {
            let own: AppliedSet = [Dot::new(w.dot.origin, 1)].into_iter().collect();
            w.dependencies = polyarch_protocol::Dependencies::Changed(own);
        }),
        ("no changes", |w| w.changes.clear()),
        ("a key too long", |w| w.changes[0].key = vec![0; wire::KEY_BYTES_MAX + 1].into()),
        ("a field too long", |w| w.changes[0].field = "f".repeat(wire::FIELD_BYTES_MAX + 1).as_str().into()),
        ("it supersedes itself", |w| w.changes[0].supersedes.push(w.dot)),
        ("one field twice", |w| w.changes.push(w.changes[0].clone())),
    ];
    for (what, broken) in breaks {
        let mut write_set = good.clone();
        broken(&mut write_set);
        let refused = WriteSet::decode(&write_set.encode());
        assert!(matches!(refused, Err(WriteSetError::Malformed(_))), "{what}: {refused:?}");
    }
    let mut many = good.clone();
    let change =
        |i: usize| polyarch_protocol::Change { key: i.to_be_bytes().to_vec().into(), ..good.changes[0].clone() };
    many.changes = (0..wire::CHANGES_MAX).map(change).collect();
    assert!(WriteSet::decode(&many.encode()).is_ok());
    many.changes.push(change(wire::CHANGES_MAX));
    assert!(WriteSet::decode(&many.encode()).is_err());
    let mut long = good;
    long.changes[0].effect = polyarch_protocol::Effect::Put(vec![0; wire::WRITE_SET_BYTES_MAX].into());
    assert!(matches!(WriteSet::decode(&long.encode()), Err(WriteSetError::TooLong { .. })));
}

#[test]
fn a_part_of_a_snapshot_beyond_a_rule_of_the_format_is_refused() {
    let record = |key: &[u8]| {
        let SnapshotPart::Records { records, .. } = crate::samples::snapshot_part_samples().swap_remove(2).1 else {
            panic!("that sample has records")
        };
        SnapshotRecord { key: RecordKey::new(records[0].key.keyspace(), key), ..records[0].clone() }
    };
    let read = |records: Vec<SnapshotRecord>| {
        let part = SnapshotPart::Records { records, cut: false };
        SnapshotPart::decode(&part.encode()) == Ok(part)
    };
    assert!(read(vec![record(b"a"), record(b"b")]));
    assert!(read(vec![record(b"a"), record(b"a")]), "two pieces of one record");
    assert!(!read(vec![record(b"b"), record(b"a")]), "out of order");
    assert!(!read(Vec::new()), "nothing");
    assert!(read(vec![record(b"a"); 4_096]) && !read(vec![record(b"a"); 4_097]));
    let log = SnapshotPart::Log(Vec::new());
    assert!(SnapshotPart::decode(&log.encode()).is_err(), "nothing");
    // Records that break their own rules: a field of nothing, and a key too short to name a keyspace.
    let raw = |record: &[u8]| SnapshotPart::decode(&[&[b'N', 1, 2, 1][..], record, &[0]].concat());
    let key = [&[28][..], &[1; 28]].concat();
    assert!(raw(&[&key[..], &[0]].concat()).is_ok(), "an empty record is as good as none");
    assert!(raw(&[&key[..], &[1, 0, 0, 0]].concat()).is_err());
    assert!(raw(&[1, 1, 0]).is_err());
}

#[test]
fn lengths_of_a_feed_group_must_add_up() {
    let group = |lens: &[u32], body: &[u8]| {
        let mut bytes = vec![b'F', 1, 0, 0, 0, 0, 0, 0, 0, 0];
        lens.iter().for_each(|len| bytes.extend_from_slice(&len.to_le_bytes()));
        bytes.extend_from_slice(body);
        FeedGroup::decode(&bytes.into())
    };
    assert!(group(&[3], b"abc").is_ok());
    for (lens, body) in [(&[0][..], &b""[..]), (&[4], b"abc"), (&[2], b"abc"), (&[u32::MAX], b"abc"), (&[3, 1], b"abc")]
    {
        assert!(group(lens, body).is_err(), "{lens:?}");
    }
    assert!(FeedGroup::decode(&Bytes::from_static(b"F\x01\x00\x00")).is_err());
    // A group gathers so much and no more; the last write set may go beyond.
    let of = |lens: &[usize]| {
        let write_sets = lens.iter().map(|len| Bytes::from(vec![1; *len])).collect();
        FeedGroup::decode(&FeedGroup { subscription: 1, write_sets }.encode().into())
    };
    assert!(of(&[wire::FEED_GROUP_BYTES_MAX, wire::WRITE_SET_BYTES_MAX]).is_ok());
    assert!(of(&[wire::FEED_GROUP_BYTES_MAX, 1, 1]).is_err());
}

#[test]
fn a_request_with_an_absurd_token_is_refused() {
    let mut request = crate::samples::request_samples().swap_remove(0).1;
    request.token = Some(vec![1; wire::TOKEN_BYTES_MAX].into());
    assert!(ClientRequest::decode(&request.encode()).is_ok());
    request.token = Some(vec![1; wire::TOKEN_BYTES_MAX + 1].into());
    assert!(ClientRequest::decode(&request.encode()).is_err());
}

/// What a hostile member may do to a node, certificate and all.
#[derive(Debug, Clone)]
enum Blow {
    Meet(u64, u32),
    Hello(u64, u32, u128),
    Lost(u64),
    Say(u64, PeerMessage),
    Claim(u64, AppliedSet),
    Feed(u64, Vec<Vec<u8>>),
    FeedNext(u64, Origin, u8),
    Decree(u64, Origin, SystemRecord),
    Set(Topology),
    Change(u32, MemberChange),
    Write(u8),
    Sync,
    Wait(u8),
}

fn blow() -> impl Strategy<Value = Blow> {
    let link = 1..4_u64;
    let member = 1..5_u32;
    let write_sets = || vec(mutated(write_set().prop_map(|w| w.encode().to_vec())), 0..4);
    prop_oneof![
        3 => (link.clone(), member.clone()).prop_map(|(link, id)| Blow::Meet(link, id)),
        1 => (link.clone(), member.clone(), 0..4_u128).prop_map(|(link, id, boot_id)| Blow::Hello(link, id, boot_id)),
        1 => link.clone().prop_map(Blow::Lost),
        4 => (link.clone(), peer_message()).prop_map(|(link, message)| Blow::Say(link, message)),
        4 => (link.clone(), applied()).prop_map(|(link, applied)| Blow::Claim(link, applied)),
        4 => (link.clone(), write_sets()).prop_map(|(link, bytes)| Blow::Feed(link, bytes)),
        6 => (link.clone(), crate::messages::origin(), any::<u8>()).prop_map(|(link, origin, with)| Blow::FeedNext(link, origin, with)),
        3 => (link, crate::messages::origin(), decree()).prop_map(|(link, origin, record)| Blow::Decree(link, origin, record)),
        1 => topology().prop_map(Blow::Set),
        1 => (member, member_change()).prop_map(|(id, change)| Blow::Change(id, change)),
        2 => any::<u8>().prop_map(Blow::Write),
        2 => Just(Blow::Sync),
        2 => any::<u8>().prop_map(Blow::Wait),
    ]
}

fn decree() -> impl Strategy<Value = SystemRecord> {
    prop_oneof![member(1..5_u32).prop_map(SystemRecord::Member), topology().prop_map(SystemRecord::Topology)]
}

fn strike(node: &mut Node, blow: Blow) {
    match blow {
        Blow::Meet(link, server_id) => {
            // A driver never uses a link's number again.
            node.handle(Input::LinkDown(LinkId(link)));
            node.meet(link, server_id);
        }
        Blow::Hello(link, server_id, boot_id) => {
            node.hear(link, PeerMessage::Hello(Hello { cluster_id: Some(CLUSTER), server_id, boot_id }));
        }
        Blow::Lost(link) => node.handle(Input::LinkDown(LinkId(link))),
        Blow::Say(link, message) => node.hear(link, message),
        Blow::Claim(link, applied) => node.hear_applied(link, &applied.iter().collect::<Vec<_>>()),
        Blow::Feed(link, bytes) => node.feed_bytes(link, bytes.into_iter().map(Bytes::from).collect()),
        Blow::FeedNext(link, origin, with) => {
            let next = Dot::new(origin, node.applied().seq(origin) + 1 + u64::from(with % 16 == 0));
            let other = Dot::new(Origin::new(1 + u32::from(with % 4), 1 + u32::from(with % 3)), u64::from(with % 5));
            let needs: Vec<Dot> = Some(other).into_iter().filter(|d| d.origin != origin && d.seq > 0).collect();
            node.feed(link, &[foreign(next, &needs, "x")]);
        }
        Blow::Decree(link, origin, record) => {
            let next = Dot::new(origin, node.applied().seq(origin) + 1);
            let key = match &record {
                SystemRecord::Member(member) => catalog::member_key(member.server_id),
                _ => catalog::topology_key(),
            };
            let (keyspace, field) = (KeyspaceId::SYSTEM, FieldPath::opaque());
            let effect = Effect::Put(record.encode());
            let changes = vec![Change { keyspace, key, field, supersedes: Vec::new(), effect }];
            node.hear_applied(link, &[next]);
            node.feed(link, &[WriteSet { changes, ..foreign(next, &[], "") }]);
        }
        Blow::Set(topology) => _ = node.ask(|tag| Input::SetTopology(tag, topology)),
        Blow::Change(server_id, change) => _ = node.ask(|tag| Input::ChangeMember(tag, server_id, change)),
        Blow::Write(key) => {
            let _ = node.put_over(&format!("k{}", key % 3), "v", Supersede::Held);
        }
        Blow::Sync => node.sync(),
        Blow::Wait(times) => node.run_ms(u64::from(times) * 20),
    }
    // Whoever subscribed is served, whatever was asked for.
    for feed in node.feeds.values_mut() {
        for _ in 0..50 {
            if feed.poll(node.replica.storage(), 1_000) == FeedStep::Idle {
                break;
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn a_replica_outlives_a_hostile_member(blows in vec(blow(), 1..60)) {
        let mut node = Node::founded(1);
        for blow in blows {
            strike(&mut node, blow);
        }
        node.settle();
        let mut log = AppliedSet::new();
        for write_set in node.replica.storage().write_sets() {
            prop_assert!(log.includes_all(write_set.dependencies.applied()));
            log.add(write_set.dot);
        }
        prop_assert_eq!(&log, &node.applied());
        // What it says of twins and removals holds for a while.
        node.run_ms(20_000);
        if !node.sees(1).takes_writes()
            && let Err(refusal) = node.change_member(1, MemberChange::Rejoin)
        {
            // A member may remove another. That one is taken back where others hear of it.
            prop_assert_eq!(&refusal, &Refusal::MemberIs(MemberStatus::Removed));
            prop_assert_eq!(node.put("k", "v"), Err(refusal));
        } else {
            prop_assert!(node.put("k", "still writable").is_ok());
        }
        let (_, replayed) = node.replica.storage().crash();
        prop_assert_eq!(&replayed, node.replica.frontier());
        prop_assert!(node.sent.len() < 3_000, "{} messages", node.sent.len());
    }
}

#[test]
fn a_claim_of_absurd_length_is_refused() {
    for number in [1 << 20, 1 << 32, 1 << 60, u64::MAX] {
        for kind in b"PZQASW" {
            for at in 0..12 {
                let bytes = [&[*kind, 1], &vec![1; at][..], &postcard_number(number)].concat();
                let _ = check_all(&bytes);
            }
        }
    }
}
