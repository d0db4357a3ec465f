//! One named sample of each kind of message: what the fixtures hold. Their values are as frozen as
//! the format.
#![allow(dead_code, reason = "each test binary compiles all of this and uses its own part")]

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, ClusterKey, Dot, FieldChange, FieldPath, Hlc, Origin, Record, SealedContext};
use polyarch_protocol::catalog::{
    BaseDefinition, KeyspaceDefinition, KeyspaceKind, Member, MemberChange, MemberStatus, SystemRecord,
};
use polyarch_protocol::client::{
    BucketPage, BucketScan, ClientRequest, ClientResponse, CountersView, EventView, FeedView, KeyspaceView, PeerView,
    RecordOutline, RecordView, Refusal, Request, Response, ScanRequest, SiblingOutline, SiblingView, StatusView,
    Supersede, WriteChange, WriteRequest, Written,
};
use polyarch_protocol::condition::{
    ConditionView, DifferentView, ForkMember, ForkSide, PauseCause, PausedView, RegainedView, SalvageView, SnapshotView,
};
use polyarch_protocol::peer::{
    BasedHeartbeat, ClusterId, FeedGroup, Heartbeat, Hello, PeerMessage, Refuse, RefuseReason, Subscribe, Twin,
};
use polyarch_protocol::{
    BasedSet, BucketKeys, ChainHash, ChainHead, Change, Dependencies, Effect, FrontierOutline, KeyHash, KeysHeld,
    KeyspaceId, LinkState, LogPosition, MemberProgress, RecordKey, Resume, SnapshotBegin, SnapshotId, SnapshotPart,
    SnapshotRecord, SnapshotRequest, Topology, WriteSet,
};

const O: Origin = Origin::new(3, 0x9f2c_01ab);

fn sample_dot(seq: u64) -> Dot {
    Dot::new(O, seq)
}

fn sample_id() -> KeyspaceId {
    KeyspaceId { dot: Dot::new(Origin::new(1, 7), 2), index: 1 }
}

fn sample_applied() -> AppliedSet {
    [Dot::new(Origin::new(1, 7), 300), sample_dot(42)].into_iter().collect()
}

fn sample_record() -> RecordView {
    RecordView {
        siblings: vec![SiblingView {
            dot: sample_dot(42),
            hlc: Hlc::new(1_764_950_400_000, 3),
            value: Bytes::from_static(b"value"),
        }],
        context: Some(SealedContext::from_bytes(vec![1, 2, 3])),
    }
}

pub(crate) fn status(applied: Vec<Dot>) -> StatusView {
    StatusView {
        cluster_id: "c1a5".to_owned(),
        server_id: 3,
        version: "0.1.0".to_owned(),
        writes_refused: Some("why".to_owned()),
        name: "db3".to_owned(),
        status: Some(MemberStatus::Draining),
        topology: Topology::Star { hubs: vec![1, 300] },
        applied,
        digest: "d1".to_owned(),
        peers: vec![PeerView {
            server_id: 1,
            name: "db1".to_owned(),
            status: MemberStatus::Active,
            addresses: vec!["db1:7400".to_owned()],
            linked: true,
            planned: false,
            reachable: true,
            links: vec![2, 300],
            cut: false,
            behind: 4,
            ahead: 500,
            equal: Some(false),
            clock_offset_ms: Some(-7),
        }],
        feeds: vec![FeedView { origin: O, from: Some(1), behind: 300, behind_ms: 70, paused: false }],
        counters: CountersView {
            written: 1,
            received: 2,
            skipped: 3,
            returned: 2,
            conflicts: 4,
            syncs: 5,
            log_bytes: 600,
            checkpoints: 7,
            link_bytes_sent: 8,
            link_bytes_received: 9,
        },
    }
}

pub(crate) fn condition() -> ConditionView {
    let paused = |epoch, cause| PausedView {
        origin: Origin::new(3, epoch),
        cause,
        since_ms: 1_764_950_400_000,
        applied: 41,
        behind: 300,
    };
    let members = vec![
        ForkMember { server_id: 1, side: ForkSide::Other },
        ForkMember { server_id: 300, side: ForkSide::Stopped },
    ];
    ConditionView {
        paused: vec![
            paused(1, PauseCause::Fork { dot: sample_dot(41), members }),
            paused(2, PauseCause::Poison { dot: sample_dot(42), reason: "text".to_owned() }),
            paused(3, PauseCause::Waits { on: O }),
        ],
        regained: vec![
            RegainedView {
                origin: O,
                had: 0,
                peer_has: 300,
                from: 1,
                applied: 200,
                noticed_ms: 1_764_950_400_000,
                complete_ms: None,
            },
            RegainedView {
                origin: Origin::new(3, 7),
                had: 2,
                peer_has: 3,
                from: 300,
                applied: 3,
                noticed_ms: 1_764_950_400_000,
                complete_ms: Some(1_764_950_400_300),
            },
        ],
        regained_write_sets: 201,
        snapshot: Some(SnapshotView { from: 1, is_joining: true, records: 300, bytes: 70_000 }),
        different: vec![
            DifferentView { server_id: 1, equal_buckets: None },
            DifferentView { server_id: 300, equal_buckets: Some(4_095) },
        ],
        salvage: Some(SalvageView { write_sets: 300, first: vec![sample_dot(43)] }),
    }
}

pub(crate) fn peer_samples() -> Vec<(&'static str, PeerMessage)> {
    let hello = |cluster_id| PeerMessage::Hello(Hello { cluster_id, server_id: 3, boot_id: 1 << 100 });
    let refuse = |reason| PeerMessage::Refuse(Refuse { subscription: 300, origin: O, reason });
    vec![
        ("hello", hello(Some(ClusterId(0xc1a5)))),
        ("hello-joining", hello(None)),
        (
            "heartbeat",
            PeerMessage::Heartbeat(Heartbeat {
                applied: sample_applied(),
                digest: Some(0xd1 << 64),
                clock_ms: 1_764_950_400_000,
                paused: vec![O],
            }),
        ),
        (
            "subscribe",
            PeerMessage::Subscribe(Subscribe {
                subscription: 2,
                origins: vec![(O, ChainHead { seq: 42, hash: ChainHash([0xab; 32]) })],
            }),
        ),
        ("refuse-fork", refuse(RefuseReason::Fork(sample_dot(42)))),
        ("refuse-log-removed", refuse(RefuseReason::LogRemoved)),
        ("refuse-log-unreadable", refuse(RefuseReason::LogUnreadable)),
        (
            "link-states",
            PeerMessage::LinkStates(vec![
                LinkState { server_id: 3, boot_id: 1 << 100, version: 300, outdates: None, linked: vec![1, 2] },
                LinkState { server_id: 4, boot_id: 5, version: 1, outdates: Some(6), linked: vec![] },
            ]),
        ),
        ("twin", PeerMessage::Twin(Twin { addresses: vec!["10.0.0.1:7400".to_owned(), "10.0.0.2:7400".to_owned()] })),
        ("removed", PeerMessage::Removed(sample_applied())),
        (
            "progress",
            PeerMessage::Progress(vec![
                MemberProgress {
                    server_id: 3,
                    boot_id: 1 << 100,
                    version: 300,
                    applied: BasedSet { base: Some(sample_dot(42)), rest: sample_applied() },
                },
                MemberProgress { server_id: 4, boot_id: 5, version: 1, applied: BasedSet::default() },
            ]),
        ),
        // PeerMessage::Digest has a test of its own: 64 KiB are no line.
        (
            "bucket-keys",
            PeerMessage::BucketKeys(Box::new(BucketKeys {
                applied: sample_applied(),
                buckets: vec![7, 300],
                keys: vec![KeyHash { key: RecordKey::new(sample_id(), b"key"), hash: 1 << 100 }],
                cut_short: true,
            })),
        ),
        ("base", PeerMessage::Base(sample_dot(42))),
        (
            "based-heartbeat",
            PeerMessage::BasedHeartbeat(BasedHeartbeat {
                applied: BasedSet { base: Some(sample_dot(42)), rest: sample_applied() },
                digest: Some(0xd1 << 64),
                clock_ms: 1_764_950_400_000,
                paused: vec![O],
            }),
        ),
    ]
}

pub(crate) fn feed_samples() -> Vec<(&'static str, FeedGroup)> {
    let group = |write_sets: &[&'static [u8]]| FeedGroup {
        subscription: 0x0102,
        write_sets: write_sets.iter().map(|bytes| Bytes::from_static(bytes)).collect(),
    };
    vec![("empty", group(&[])), ("two", group(&[b"one", b"twotwo"]))]
}

pub(crate) fn write_set_samples() -> Vec<(&'static str, WriteSet)> {
    let change = |key: &'static [u8], field: &str, effect| Change {
        keyspace: sample_id(),
        key: Bytes::from_static(key),
        field: FieldPath::from(field),
        supersedes: vec![Dot::new(Origin::new(1, 7), 300)],
        effect,
    };
    let of = |seq, dependencies, changes| WriteSet {
        dot: sample_dot(seq),
        hlc: Hlc::new(1_764_950_400_000, 3),
        dependencies,
        changes,
    };
    let applied: AppliedSet = [Dot::new(Origin::new(1, 7), 300)].into_iter().collect();
    let whole = Dependencies::Whole { predecessor: Some(Dot::new(Origin::new(3, 1), 9)), applied: applied.clone() };
    let put = change(b"key", "", Effect::Put(Bytes::from_static(b"value")));
    let first = Dependencies::Whole { predecessor: None, applied: AppliedSet::new() };
    vec![
        ("founding", of(1, first, vec![put.clone()])),
        ("whole", of(1, whole, vec![put.clone()])),
        ("changed", of(42, Dependencies::Changed(applied), vec![put, change(b"key", "/a", Effect::Delete)])),
    ]
}

pub(crate) fn system_samples() -> Vec<(&'static str, SystemRecord)> {
    let member = |status| {
        SystemRecord::Member(Member {
            server_id: 3,
            name: "db3".to_owned(),
            addresses: vec!["db3:7400".to_owned()],
            status,
        })
    };
    let keyspace = |kind| {
        SystemRecord::Keyspace(KeyspaceDefinition {
            name: "users".to_owned(),
            kind,
            created: Hlc::new(1_764_950_400_000, 3),
        })
    };
    let base = |parent| {
        let closed = vec![(O, ChainHead { seq: 300, hash: ChainHash([0xab; 32]) })];
        SystemRecord::Base(BaseDefinition { parent, closed })
    };
    vec![
        ("member", member(MemberStatus::Active)),
        ("member-joining", member(MemberStatus::Joining)),
        ("member-draining", member(MemberStatus::Draining)),
        ("member-down", member(MemberStatus::Down)),
        ("member-removed", member(MemberStatus::Removed)),
        ("keyspace-lww", keyspace(KeyspaceKind::Lww)),
        ("keyspace-mv", keyspace(KeyspaceKind::Mv)),
        ("topology-mesh", SystemRecord::Topology(Topology::Mesh)),
        ("topology-ring", SystemRecord::Topology(Topology::Ring)),
        ("topology-star", SystemRecord::Topology(Topology::Star { hubs: vec![1, 300] })),
        ("topology-custom", SystemRecord::Topology(Topology::Custom { edges: vec![(1, 2), (2, 300)] })),
        ("cluster-key", SystemRecord::ClusterKey(ClusterKey { id: 1, secret: [0xcd; 32] })),
        ("base-first", base(None)),
        ("base", base(Some(sample_dot(7)))),
    ]
}

pub(crate) fn request_samples() -> Vec<(&'static str, ClientRequest)> {
    let of = |request| ClientRequest { id: 300, wait_ms: 5_000, token: Some(Bytes::from_static(b"token")), request };
    let change = |put: Option<&'static [u8]>, supersede| WriteChange {
        keyspace: "users".to_owned(),
        key: Bytes::from_static(b"key"),
        put: put.map(Bytes::from_static),
        supersede,
    };
    let write = |change| of(Request::Write(WriteRequest { changes: vec![change] }));
    vec![
        ("get", of(Request::Get { keyspace: "users".to_owned(), key: Bytes::from_static(b"key") })),
        ("put-held", write(change(Some(b"value"), Supersede::Held))),
        ("put-nothing", write(change(Some(b"value"), Supersede::Nothing))),
        ("delete-shown", write(change(None, Supersede::Shown(SealedContext::from_bytes(vec![1, 2, 3]))))),
        (
            "scan",
            of(Request::Scan(ScanRequest {
                keyspace: "users".to_owned(),
                prefix: Bytes::from_static(b"k"),
                after: Some(Bytes::from_static(b"key")),
                limit: 300,
            })),
        ),
        ("create-keyspace", of(Request::CreateKeyspace { name: "users".to_owned(), kind: KeyspaceKind::Mv })),
        ("list-keyspaces", of(Request::ListKeyspaces)),
        ("status", ClientRequest { token: None, ..of(Request::Status) }),
        ("cut-link", of(Request::CutLink { server_id: 3 })),
        ("heal-link", of(Request::HealLink { server_id: 3 })),
        ("set-topology", of(Request::SetTopology(Topology::Custom { edges: vec![(1, 2), (2, 300)] }))),
        ("drain-member", of(Request::ChangeMember { server_id: 300, change: MemberChange::Drain })),
        ("remove-member", of(Request::ChangeMember { server_id: 300, change: MemberChange::Remove { force: true } })),
        ("rejoin-member", of(Request::ChangeMember { server_id: 300, change: MemberChange::Rejoin })),
        ("events", of(Request::Events { limit: 300 })),
        ("condition", ClientRequest { token: None, ..of(Request::Condition) }),
        ("retry-origin", of(Request::RetryOrigin { origin: Some(O) })),
        ("retry-all-origins", of(Request::RetryOrigin { origin: None })),
        ("digest", of(Request::Digest)),
        (
            "scan-buckets",
            of(Request::ScanBuckets(BucketScan {
                buckets: vec![7, 300],
                from: Bytes::from_static(b"from"),
                limit: 300,
            })),
        ),
        ("chain-hash", of(Request::ChainHash { dot: sample_dot(300) })),
    ]
}

pub(crate) fn refusals() -> Vec<(&'static str, Refusal)> {
    let text = || "text".to_owned();
    let (len, max) = (300, 200);
    vec![
        ("unknown-keyspace", Refusal::UnknownKeyspace(text())),
        ("keyspace-exists", Refusal::KeyspaceExists(text())),
        ("keyspace-name", Refusal::KeyspaceName(text())),
        ("key-too-long", Refusal::KeyTooLong { len, max }),
        ("key-empty", Refusal::KeyEmpty),
        ("value-too-long", Refusal::ValueTooLong { len, max }),
        ("too-many-changes", Refusal::TooManyChanges { len, max }),
        ("write-too-long", Refusal::WriteTooLong { len, max }),
        ("duplicate-key", Refusal::DuplicateKey),
        ("context", Refusal::Context(text())),
        ("too-many-siblings", Refusal::TooManySiblings { siblings: len, max }),
        ("not-joined", Refusal::NotJoined),
        ("storage-failed", Refusal::StorageFailed(text())),
        ("behind", Refusal::Behind { missing: text() }),
        ("token", Refusal::Token),
        ("forbidden", Refusal::Forbidden { name: text(), verb: text() }),
        ("unknown-member", Refusal::UnknownMember(3)),
        ("stopping", Refusal::Stopping),
        ("malformed", Refusal::Malformed(text())),
        ("unreadable", Refusal::Unreadable(text())),
        ("writes-stopped", Refusal::WritesStopped(text())),
        ("record-too-long", Refusal::RecordTooLong { len, max }),
        ("member-is", Refusal::MemberIs(MemberStatus::Down)),
        ("twin", Refusal::Twin { addresses: vec![text()] }),
        ("member-change", Refusal::MemberChange { server_id: 300, status: MemberStatus::Removed, instead: text() }),
        ("topology", Refusal::Topology(text())),
        ("disk-full", Refusal::DiskFull { reason: text() }),
        ("not-paused", Refusal::NotPaused(O)),
        ("clock-ahead", Refusal::ClockAhead { ahead_ms: 7_200_300, of: vec![1, 300] }),
    ]
}

pub(crate) fn response_samples() -> Vec<(&'static str, ClientResponse)> {
    let token = || Bytes::from_static(b"token");
    let answers = vec![
        ("record", Response::Record { record: sample_record(), token: token() }),
        (
            "written",
            Response::Written(Written {
                dot: Some(sample_dot(42)),
                hlc: Some(Hlc::new(1_764_950_400_000, 3)),
                token: token(),
            }),
        ),
        (
            "page",
            Response::Page {
                records: vec![(Bytes::from_static(b"key"), sample_record())],
                next: Some(Bytes::from_static(b"key")),
                token: token(),
            },
        ),
        (
            "keyspaces",
            Response::Keyspaces(vec![KeyspaceView {
                id: sample_id(),
                name: "users".to_owned(),
                kind: KeyspaceKind::Lww,
                by_name: true,
            }]),
        ),
        ("status", Response::Status(Box::new(status(sample_applied().iter().collect())))),
        ("done", Response::Done),
        (
            "events",
            Response::Events(vec![EventView { time_ms: 1_764_950_400_000, alarm: true, text: "text".to_owned() }]),
        ),
        (
            "buckets",
            Response::Buckets(BucketPage {
                records: vec![RecordOutline {
                    key: RecordKey::new(sample_id(), b"key"),
                    siblings: vec![SiblingOutline {
                        field: FieldPath::from("/a"),
                        dot: sample_dot(42),
                        hlc: Hlc::new(1_764_950_400_000, 3),
                        value: [0xef; 16],
                    }],
                }],
                examined: 300,
                next: Some(Bytes::from_static(b"next")),
                token: token(),
            }),
        ),
    ];
    let answers = answers.into_iter().map(|(name, answer)| (name, Ok(answer)));
    let refused = refusals().into_iter().map(|(name, refusal)| (name, Err(refusal)));
    let newer = [
        ("condition", Ok(Response::Condition(Box::new(condition())))),
        ("retried", Ok(Response::Retried(vec![Origin::new(1, 7), O]))),
        ("chain-hash", Ok(Response::ChainHash(Some(ChainHash([0xab; 32]))))),
        ("chain-hash-none", Ok(Response::ChainHash(None))),
    ];
    let all = answers.chain(refused).chain(newer);
    all.map(|(name, result)| (name, ClientResponse { id: 300, result })).collect()
}

pub(crate) fn snapshot_request_samples() -> Vec<(&'static str, SnapshotRequest)> {
    let resume = |keys| SnapshotRequest { resume: Some(Resume { id: SnapshotId(1 << 100), keys }) };
    let key = RecordKey::new(sample_id(), b"key");
    vec![
        ("request", SnapshotRequest::default()),
        ("request-resume", resume(KeysHeld::Through(Some(Bytes::copy_from_slice(key.as_bytes()))))),
        ("request-resume-none", resume(KeysHeld::Through(None))),
        ("request-resume-all", resume(KeysHeld::All)),
    ]
}

pub(crate) fn snapshot_part_samples() -> Vec<(&'static str, SnapshotPart)> {
    let heads: std::collections::BTreeMap<Origin, ChainHead> =
        [(O, ChainHead { seq: 42, hash: ChainHash([0xab; 32]) })].into_iter().collect();
    let start = FrontierOutline {
        heads: heads.clone().into(),
        hlc: Hlc::new(1_764_950_400_000, 3),
        epochs: [(3, O)].into_iter().collect(),
        stamps: [(3, Hlc::new(1_764_950_400_000, 3))].into_iter().collect(),
    };
    let begin = SnapshotBegin { id: SnapshotId(1 << 100), cluster_id: ClusterId(0xc1a5), donor: 3, start };
    // A sibling, a field of a document, and a dot that is to be absorbed.
    let mut record = Record::default();
    for (field, supersedes) in [("", vec![]), ("/a", vec![sample_dot(43)])] {
        let (path, value) = (FieldPath::from(field), Bytes::from_static(b"value"));
        let change = FieldChange { path: &path, supersedes: &supersedes, put: Some(&value) };
        let hlc = Hlc::new(1_764_950_400_000, 3);
        let _ = record.apply(Dot::new(Origin::new(1, 7), 300), hlc, &change, &AppliedSet::new());
    }
    let of = |key: &[u8]| SnapshotRecord { key: RecordKey::new(sample_id(), key), record: record.clone() };
    vec![
        ("begin", SnapshotPart::Begin(begin)),
        ("resumed", SnapshotPart::Resumed(SnapshotId(1 << 100))),
        ("records", SnapshotPart::Records { records: vec![of(b"key"), of(b"key2")], cut: false }),
        ("records-cut", SnapshotPart::Records { records: vec![of(b"key")], cut: true }),
        ("log", SnapshotPart::Log(vec![Bytes::from_static(b"one"), Bytes::from_static(b"twotwo")])),
        ("end", SnapshotPart::End(heads.into())),
        ("given-up", SnapshotPart::GivenUp("why".to_owned())),
        ("log-end", SnapshotPart::LogEnd(LogPosition { segment: 7, offset: 4_711 })),
    ]
}
