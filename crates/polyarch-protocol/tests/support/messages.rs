//! Arbitrary messages, and what may become of their bytes.
#![allow(dead_code, reason = "each test binary compiles all of this and uses its own part")]

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, ClusterKey, Dot, FieldChange, FieldPath, Hlc, Origin, Record, SealedContext, Sibling};
use polyarch_protocol::catalog::{
    BaseDefinition, KeyspaceDefinition, KeyspaceKind, Member, MemberChange, MemberStatus, SystemRecord,
};
use polyarch_protocol::client::{
    BucketPage, BucketScan, ClientRequest, ClientResponse, EventView, KeyspaceView, RecordOutline, RecordView, Refusal,
    Request, Response, ScanRequest, SiblingOutline, SiblingView, Supersede, WriteChange, WriteRequest, Written,
};
use polyarch_protocol::peer::{
    BasedHeartbeat, ClusterId, FeedGroup, Heartbeat, Hello, PeerMessage, Refuse, RefuseReason, Subscribe, Twin,
};
use polyarch_protocol::{
    BasedSet, BucketKeys, ChainHash, ChainHead, ChainHeads, Change, Dependencies, Digest, Effect, FrontierOutline,
    KeyHash, KeysHeld, KeyspaceId, LinkState, LogPosition, MemberProgress, PeerDigest, RecordKey, Resume,
    SnapshotBegin, SnapshotId, SnapshotPart, SnapshotRecord, SnapshotRequest, Topology, WriteSet,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use crate::samples::{condition, refusals, status};

pub(crate) fn cases(default: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(default),
        // Proptest prints the shrunken case; what it found becomes a test of its own.
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

pub(crate) fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..12).prop_map(Bytes::from)
}

pub(crate) fn origin() -> impl Strategy<Value = Origin> {
    prop_oneof![
        4 => (1..5_u32, 1..4_u32).prop_map(|(server_id, epoch)| Origin::new(server_id, epoch)),
        1 => any::<(u32, u32)>().prop_map(|(server_id, epoch)| Origin::new(server_id, epoch)),
    ]
}

pub(crate) fn seq() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 1..8_u64, 1 => 1..=u64::MAX, 1 => Just(u64::MAX)]
}

pub(crate) fn dot() -> impl Strategy<Value = Dot> {
    (origin(), seq()).prop_map(|(origin, seq)| Dot::new(origin, seq))
}

pub(crate) fn applied() -> impl Strategy<Value = AppliedSet> {
    vec(dot(), 0..6).prop_map(|dots| dots.into_iter().collect())
}

fn hlc() -> impl Strategy<Value = Hlc> {
    (0..1_u64 << 48, any::<u16>()).prop_map(|(millis, counter)| Hlc::new(millis, counter))
}

fn head() -> impl Strategy<Value = ChainHead> {
    (any::<u64>(), any::<[u8; 32]>()).prop_map(|(seq, hash)| ChainHead { seq, hash: ChainHash(hash) })
}

fn keyspace() -> impl Strategy<Value = KeyspaceId> {
    let id = (dot(), any::<u16>()).prop_map(|(dot, index)| KeyspaceId { dot, index });
    prop_oneof![3 => id, 1 => Just(KeyspaceId::SYSTEM)]
}

pub(crate) fn peer_message() -> impl Strategy<Value = PeerMessage> {
    let hello = (option::of(any::<u128>()), any::<u32>(), any::<u128>());
    let hello = hello.prop_map(|(cluster, server_id, boot_id)| Hello {
        cluster_id: cluster.map(ClusterId),
        server_id,
        boot_id,
    });
    let heartbeat = (applied(), option::of(any::<u128>()), any::<u64>(), vec(origin(), 0..4));
    let heartbeat =
        heartbeat.prop_map(|(applied, digest, clock_ms, paused)| Heartbeat { applied, digest, clock_ms, paused });
    let subscribe = (0..4_u64, vec((origin(), head()), 0..5))
        .prop_map(|(subscription, origins)| Subscribe { subscription, origins });
    let reason = prop_oneof![
        dot().prop_map(RefuseReason::Fork),
        Just(RefuseReason::LogRemoved),
        Just(RefuseReason::LogUnreadable)
    ];
    let refuse =
        (0..4_u64, origin(), reason).prop_map(|(subscription, origin, reason)| Refuse { subscription, origin, reason });
    prop_oneof![
        hello.prop_map(PeerMessage::Hello),
        heartbeat.prop_map(PeerMessage::Heartbeat),
        subscribe.prop_map(PeerMessage::Subscribe),
        refuse.prop_map(PeerMessage::Refuse),
        vec(link_state(), 0..4).prop_map(PeerMessage::LinkStates),
        vec(".{0,9}", 0..3).prop_map(|addresses| PeerMessage::Twin(Twin { addresses })),
        applied().prop_map(PeerMessage::Removed),
        vec(member_progress(), 0..4).prop_map(PeerMessage::Progress),
        digest().prop_map(|digest| PeerMessage::Digest(Box::new(digest))),
        bucket_keys().prop_map(|keys| PeerMessage::BucketKeys(Box::new(keys))),
        dot().prop_map(PeerMessage::Base),
        based_heartbeat().prop_map(PeerMessage::BasedHeartbeat),
    ]
}

fn member_progress() -> impl Strategy<Value = MemberProgress> {
    let version = prop_oneof![0..5_u64, any::<u64>()];
    let entry = (0..5_u32, any::<u128>(), version, based_set());
    entry.prop_map(|(server_id, boot_id, version, applied)| MemberProgress { server_id, boot_id, version, applied })
}

fn record_key() -> impl Strategy<Value = RecordKey> {
    (keyspace(), bytes()).prop_map(|(keyspace, key)| RecordKey::new(keyspace, &key))
}

fn digest() -> impl Strategy<Value = PeerDigest> {
    (applied(), vec((record_key(), bytes()), 0..4)).prop_map(|(applied, siblings)| {
        let mut digest = Digest::default();
        for (key, value) in siblings {
            let sibling = Sibling { dot: Dot::new(Origin::new(1, 1), 1), hlc: Hlc::default(), value };
            digest.add(&key, &FieldPath::opaque(), &sibling);
        }
        PeerDigest { applied, digest }
    })
}

fn bucket_keys() -> impl Strategy<Value = BucketKeys> {
    let key = (record_key(), any::<u128>()).prop_map(|(key, hash)| KeyHash { key, hash });
    (applied(), vec(any::<u16>(), 0..=16), vec(key, 0..4), any::<bool>())
        .prop_map(|(applied, buckets, keys, cut_short)| BucketKeys { applied, buckets, keys, cut_short })
}

fn outline() -> impl Strategy<Value = RecordOutline> {
    let sibling = (dot(), hlc(), any::<[u8; 16]>()).prop_map(|(dot, hlc, value)| SiblingOutline {
        field: FieldPath::opaque(),
        dot,
        hlc,
        value,
    });
    (record_key(), vec(sibling, 0..3)).prop_map(|(key, siblings)| RecordOutline { key, siblings })
}

fn based_set() -> impl Strategy<Value = BasedSet> {
    (option::of(dot()), applied()).prop_map(|(base, rest)| BasedSet { base, rest })
}

fn based_heartbeat() -> impl Strategy<Value = BasedHeartbeat> {
    (based_set(), option::of(any::<u128>()), any::<u64>(), vec(origin(), 0..4))
        .prop_map(|(applied, digest, clock_ms, paused)| BasedHeartbeat { applied, digest, clock_ms, paused })
}

fn link_state() -> impl Strategy<Value = LinkState> {
    let version = prop_oneof![0..5_u64, any::<u64>()];
    (0..5_u32, any::<u128>(), version, option::of(any::<u128>()), vec(any::<u32>(), 0..4)).prop_map(
        |(server_id, boot_id, version, outdates, linked)| LinkState { server_id, boot_id, version, outdates, linked },
    )
}

pub(crate) fn write_set() -> impl Strategy<Value = WriteSet> {
    let effect = prop_oneof![Just(Effect::Delete), bytes().prop_map(Effect::Put)];
    let place = (keyspace(), bytes(), prop_oneof![Just(""), Just("/a"), Just("/a/b")]);
    let changes = btree_map(place, (vec(dot(), 0..4), effect), 1..4);
    (dot(), hlc(), applied(), option::of(dot()), changes).prop_map(|(dot, hlc, applied, predecessor, changes)| {
        let origin = Origin::new(dot.origin.server_id.max(1), dot.origin.epoch);
        let dot = Dot::new(origin, dot.seq);
        let applied: AppliedSet = applied.iter().filter(|d| d.origin != origin).collect();
        let dependencies = match dot.seq {
            1 => Dependencies::Whole { predecessor, applied },
            _ => Dependencies::Changed(applied),
        };
        let changes = changes.into_iter().map(|((keyspace, key, field), (mut supersedes, effect))| {
            supersedes.retain(|old| *old != dot);
            Change { keyspace, key, field: FieldPath::from(field), supersedes, effect }
        });
        WriteSet { dot, hlc, dependencies, changes: changes.collect() }
    })
}

pub(crate) fn feed_group() -> impl Strategy<Value = FeedGroup> {
    let write_sets = vec(vec(any::<u8>(), 1..20).prop_map(Bytes::from), 0..5);
    (any::<u64>(), write_sets).prop_map(|(subscription, write_sets)| FeedGroup { subscription, write_sets })
}

fn heads() -> impl Strategy<Value = ChainHeads> {
    btree_map(origin(), head(), 0..4).prop_map(ChainHeads::from)
}

/// Whatever a record can become, also by write sets that no node would make.
fn record() -> impl Strategy<Value = Record> {
    let path = prop_oneof![Just(""), Just("/a"), Just("/a/b")];
    vec((dot(), hlc(), path, vec(dot(), 0..3), option::of(bytes())), 0..4).prop_map(|changes| {
        let mut record = Record::default();
        for (dot, hlc, path, mut supersedes, put) in changes {
            supersedes.retain(|old| *old != dot);
            let path = FieldPath::from(path);
            let change = FieldChange { path: &path, supersedes: &supersedes, put: put.as_ref() };
            let _ = record.apply(dot, hlc, &change, &AppliedSet::new());
        }
        // One that is shown by one change and absorbed by a later one was superseded.
        let mut sound = Record::default();
        sound.unite(record);
        sound
    })
}

pub(crate) fn snapshot_request() -> impl Strategy<Value = SnapshotRequest> {
    let keys = prop_oneof![option::of(bytes()).prop_map(KeysHeld::Through), Just(KeysHeld::All)];
    option::of((any::<u128>(), keys))
        .prop_map(|resume| SnapshotRequest { resume: resume.map(|(id, keys)| Resume { id: SnapshotId(id), keys }) })
}

pub(crate) fn snapshot_part() -> impl Strategy<Value = SnapshotPart> {
    let start = (heads(), hlc(), btree_map(any::<u32>(), origin(), 0..3), btree_map(any::<u32>(), hlc(), 0..3))
        .prop_map(|(heads, hlc, epochs, stamps)| FrontierOutline { heads, hlc, epochs, stamps });
    let begin = (any::<u128>(), any::<u128>(), any::<u32>(), start).prop_map(|(id, cluster, donor, start)| {
        SnapshotPart::Begin(SnapshotBegin { id: SnapshotId(id), cluster_id: ClusterId(cluster), donor, start })
    });
    let records = (vec((keyspace(), bytes(), record()), 1..5), any::<bool>()).prop_map(|(records, cut)| {
        let records =
            records.into_iter().map(|(id, key, record)| SnapshotRecord { key: RecordKey::new(id, &key), record });
        let mut records: Vec<SnapshotRecord> = records.collect();
        records.sort_by(|one, two| one.key.cmp(&two.key));
        SnapshotPart::Records { records, cut }
    });
    prop_oneof![
        1 => begin,
        1 => any::<u128>().prop_map(|id| SnapshotPart::Resumed(SnapshotId(id))),
        4 => records,
        1 => vec(bytes(), 1..5).prop_map(SnapshotPart::Log),
        1 => heads().prop_map(SnapshotPart::End),
        1 => ".{0,9}".prop_map(SnapshotPart::GivenUp),
        1 => (any::<u64>(), any::<u64>()).prop_map(|(segment, offset)| SnapshotPart::LogEnd(LogPosition { segment, offset })),
    ]
}

pub(crate) fn request() -> impl Strategy<Value = ClientRequest> {
    let supersede = prop_oneof![
        Just(Supersede::Held),
        Just(Supersede::Nothing),
        vec(any::<u8>(), 0..30).prop_map(|bytes| Supersede::Shown(SealedContext::from_bytes(bytes))),
    ];
    let change = (".{0,5}", bytes(), option::of(bytes()), supersede)
        .prop_map(|(keyspace, key, put, supersede)| WriteChange { keyspace, key, put, supersede });
    let scan = (".{0,5}", bytes(), option::of(bytes()), any::<u32>())
        .prop_map(|(keyspace, prefix, after, limit)| ScanRequest { keyspace, prefix, after, limit });
    let request = prop_oneof![
        (".{0,5}", bytes()).prop_map(|(keyspace, key)| Request::Get { keyspace, key }),
        vec(change, 0..4).prop_map(|changes| Request::Write(WriteRequest { changes })),
        scan.prop_map(Request::Scan),
        ".{0,5}".prop_map(|name| Request::CreateKeyspace { name, kind: KeyspaceKind::Mv }),
        Just(Request::ListKeyspaces),
        Just(Request::Status),
        any::<u32>().prop_map(|server_id| Request::CutLink { server_id }),
        any::<u32>().prop_map(|server_id| Request::HealLink { server_id }),
        topology().prop_map(Request::SetTopology),
        (any::<u32>(), member_change()).prop_map(|(server_id, change)| Request::ChangeMember { server_id, change }),
        any::<u32>().prop_map(|limit| Request::Events { limit }),
        Just(Request::Condition),
        option::of(origin()).prop_map(|origin| Request::RetryOrigin { origin }),
        Just(Request::Digest),
        (vec(any::<u16>(), 0..5), bytes(), any::<u32>())
            .prop_map(|(buckets, from, limit)| Request::ScanBuckets(BucketScan { buckets, from, limit })),
        dot().prop_map(|dot| Request::ChainHash { dot }),
    ];
    (any::<u64>(), any::<u32>(), option::of(bytes()), request).prop_map(|(id, wait_ms, token, request)| ClientRequest {
        id,
        wait_ms,
        token,
        request,
    })
}

pub(crate) fn response() -> impl Strategy<Value = ClientResponse> {
    let sibling = (dot(), hlc(), bytes()).prop_map(|(dot, hlc, value)| SiblingView { dot, hlc, value });
    let context = option::of(vec(any::<u8>(), 0..30).prop_map(SealedContext::from_bytes));
    let record = (vec(sibling, 0..3), context).prop_map(|(siblings, context)| RecordView { siblings, context }).boxed();
    let ok = prop_oneof![
        (record.clone(), bytes()).prop_map(|(record, token)| Response::Record { record, token }),
        (option::of(dot()), option::of(hlc()), bytes()).prop_map(|(dot, hlc, token)| Response::Written(Written {
            dot,
            hlc,
            token
        })),
        (vec((bytes(), record), 0..3), option::of(bytes()), bytes())
            .prop_map(|(records, next, token)| Response::Page { records, next, token }),
        (vec((keyspace(), ".{0,5}", any::<bool>()), 0..3)).prop_map(|views| {
            let view = |(id, name, by_name)| KeyspaceView { id, name, kind: KeyspaceKind::Lww, by_name };
            Response::Keyspaces(views.into_iter().map(view).collect())
        }),
        vec(dot(), 0..3).prop_map(|applied| Response::Status(Box::new(status(applied)))),
        Just(Response::Done),
        vec((any::<u64>(), any::<bool>(), ".{0,9}"), 0..3).prop_map(|events| {
            let view = |(time_ms, alarm, text)| EventView { time_ms, alarm, text };
            Response::Events(events.into_iter().map(view).collect())
        }),
        Just(Response::Condition(Box::new(condition()))),
        vec(origin(), 0..3).prop_map(Response::Retried),
        digest().prop_map(|digest| Response::Digest(Box::new(digest))),
        (vec(outline(), 0..3), any::<u32>(), option::of(bytes()), bytes()).prop_map(
            |(records, examined, next, token)| Response::Buckets(BucketPage { records, examined, next, token })
        ),
        option::of(any::<[u8; 32]>()).prop_map(|hash| Response::ChainHash(hash.map(ChainHash))),
    ];
    let refusals: Vec<Refusal> = refusals().into_iter().map(|(_, refusal)| refusal).collect();
    let result = prop_oneof![ok.prop_map(Ok), prop::sample::select(refusals).prop_map(Err)];
    (any::<u64>(), result).prop_map(|(id, result)| ClientResponse { id, result })
}

pub(crate) fn system_record() -> impl Strategy<Value = SystemRecord> {
    prop_oneof![
        member(any::<u32>()).prop_map(SystemRecord::Member),
        topology().prop_map(SystemRecord::Topology),
        (".{0,9}", hlc()).prop_map(|(name, created)| SystemRecord::Keyspace(KeyspaceDefinition {
            name,
            kind: KeyspaceKind::Lww,
            created
        })),
        (any::<u32>(), any::<[u8; 32]>()).prop_map(|(id, secret)| SystemRecord::ClusterKey(ClusterKey { id, secret })),
        (option::of(dot()), vec((origin(), head()), 0..4))
            .prop_map(|(parent, closed)| SystemRecord::Base(BaseDefinition { parent, closed })),
    ]
}

pub(crate) fn member(server_id: impl Strategy<Value = u32>) -> impl Strategy<Value = Member> {
    use MemberStatus::{Active, Down, Draining, Joining, Removed};
    let status = prop::sample::select(&[Active, Joining, Draining, Down, Removed][..]);
    (server_id, ".{0,5}", vec(".{0,9}", 0..3), status).prop_map(|(server_id, name, addresses, status)| Member {
        server_id,
        name,
        addresses,
        status,
    })
}

pub(crate) fn member_change() -> impl Strategy<Value = MemberChange> {
    prop_oneof![
        Just(MemberChange::Drain),
        any::<bool>().prop_map(|force| MemberChange::Remove { force }),
        Just(MemberChange::Rejoin),
    ]
}

pub(crate) fn topology() -> impl Strategy<Value = Topology> {
    let id = || prop_oneof![4 => 0..5_u32, 1 => any::<u32>()];
    prop_oneof![
        Just(Topology::Mesh),
        Just(Topology::Ring),
        vec(id(), 0..4).prop_map(|hubs| Topology::Star { hubs }),
        vec((id(), id()), 0..6).prop_map(|edges| Topology::Custom { edges }),
    ]
}

/// Bytes that were sent and what may become of them: cut, overwritten, with numbers put in.
pub(crate) fn mutated(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let numbers = prop_oneof![
        Just(0),
        Just(1),
        Just(127),
        Just(1 << 14),
        Just(u64::from(u32::MAX)),
        Just(1 << 60),
        Just(u64::MAX)
    ];
    let strike = (any::<prop::sample::Index>(), any::<u8>(), 0..5_u8, numbers);
    (bytes, vec(strike, 0..4)).prop_map(|(mut bytes, strikes)| {
        for (at, byte, how, number) in strikes {
            let at = at.index(bytes.len() + 1);
            match how {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                2 if at < bytes.len() => drop(bytes.remove(at)),
                3 => {
                    let number = postcard_number(number);
                    bytes.splice(at..at, number);
                }
                _ if at < bytes.len() => bytes[at] = byte,
                _ => {}
            }
        }
        bytes
    })
}

/// A number as postcard writes it: 7 bits a byte, the low ones first.
pub(crate) fn postcard_number(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}
