//! Upgrades: what an older version wrote, says and is told.
//!
//! `POLYARCH_OLD_BINARY` names the binary of an older version; `docs/testing.md` says how to make that of 0.1.0.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use polyarch_client::KeyspaceKind;
use polyarch_crdt::AppliedSet;
use polyarch_protocol::catalog::SystemRecord;
use polyarch_protocol::client::{ClientRequest, ClientResponse};
use polyarch_protocol::peer::{ClusterId, FeedGroup, Heartbeat, Hello, PeerMessage, PeerVersion};
use polyarch_protocol::{
    Durability, Input, Limits, LinkId, LogSource, Now, Output, Replica, ReplicaConfig, Storage, Timings, WriteSet,
};
use polyarch_store::{DiskStore, StoreConfig};
use support::writers::{Rng, Writers};
use support::{BINARY, Cluster};
use tempfile::TempDir;

const UPGRADED_WITHIN: Duration = Duration::from_secs(30);
const CLUSTER: ClusterId = ClusterId(7);
const NOW: Now = Now { wall_ms: 1_764_950_400_000, mono_ms: 1_000 };

// Processes.

/// The older version, if one is named; otherwise the one under test takes its place.
fn older() -> PathBuf {
    std::env::var_os("POLYARCH_OLD_BINARY").map_or_else(|| PathBuf::from(BINARY), PathBuf::from)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_upgraded_node_by_node_while_it_is_written_to() {
    let (seed, _) = Rng::from_environment();
    let older = older();
    let mut cluster = Cluster::start_of(&older, 3, "");
    cluster.client_of(1).create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], UPGRADED_WITHIN);
    let clients: Vec<_> = (1..=3).map(|server_id| cluster.client_of(server_id)).collect();
    let mut ledger = Writers::start(&clients, 1, "k", seed).finish().await;
    for upgraded in 1..=3 {
        let writers = Writers::start(&clients, 1, "k", seed.wrapping_add(upgraded.into()));
        let node = cluster.node(upgraded);
        node.stop();
        node.set_binary(Path::new(BINARY));
        node.serve();
        // While more is written.
        cluster.wait_for_links(UPGRADED_WITHIN);
        ledger.merge(writers.finish().await);
        cluster.wait_until_equal(&[1, 2, 3], UPGRADED_WITHIN);
    }
    for server_id in 1..=3 {
        let breaches = ledger.breaches(&cluster.client_of(server_id), "k").await;
        assert!(breaches.is_empty(), "seed {seed}, node {server_id}:\n{}", breaches.join("\n"));
        let events = cluster.polyarch(["events", "--alarms", "--node", &cluster.address(server_id)]).ok().text();
        let misunderstood = ["does not know", "stopped", "digests differ"].iter().any(|words| events.contains(words));
        assert!(!misunderstood, "node {server_id}:\n{events}");
    }
    println!("{} writes acknowledged, 3 nodes upgraded from {}", ledger.acked_len(), older.display());
    assert!(ledger.acked_len() > 100, "there was hardly any load");
    cluster.stop();
    cluster.verify_equal_histories();
}

// What version 1 wrote.

/// The fixtures of version 1: each line a name and bytes.
const FIXTURES: [(&str, &str); 6] = [
    ("client_request", include_str!("../crates/polyarch-protocol/tests/fixtures/client_request.v1.hex")),
    ("client_response", include_str!("../crates/polyarch-protocol/tests/fixtures/client_response.v1.hex")),
    ("feed_group", include_str!("../crates/polyarch-protocol/tests/fixtures/feed_group.v1.hex")),
    ("peer_message", include_str!("../crates/polyarch-protocol/tests/fixtures/peer_message.v1.hex")),
    ("system_record", include_str!("../crates/polyarch-protocol/tests/fixtures/system_record.v1.hex")),
    ("write_set", include_str!("../crates/polyarch-protocol/tests/fixtures/write_set.v1.hex")),
];

/// The lines of a fixture: names, and bytes.
fn frozen(kind: &str) -> Vec<(&'static str, Vec<u8>)> {
    let (_, text) = FIXTURES.into_iter().find(|(of, _)| *of == kind).expect("it is a fixture");
    text.lines().filter_map(|line| line.split_once(' ')).map(|(name, hex)| (name, unhex(hex))).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits");
    (0..text.len()).step_by(2).map(byte).collect()
}

/// Whether the current code reads these bytes of version 1.
fn reads(kind: &str, bytes: &[u8]) -> bool {
    match kind {
        "client_request" => ClientRequest::decode(bytes).is_ok(),
        "client_response" => ClientResponse::decode(bytes).is_ok(),
        "feed_group" => FeedGroup::decode(&bytes.to_vec().into()).is_ok(),
        "peer_message" => PeerMessage::decode(bytes).is_ok(),
        "system_record" => SystemRecord::decode(bytes).is_ok(),
        "write_set" => WriteSet::decode(bytes).is_ok(),
        _ => false,
    }
}

#[test]
fn every_frozen_line_of_version_1_is_read() {
    for (kind, _) in FIXTURES {
        let lines = frozen(kind);
        assert!(!lines.is_empty(), "{kind}");
        for (name, bytes) in lines {
            assert!(reads(kind, &bytes), "{kind} {name}");
        }
    }
}

fn open(directory: &Path) -> Replica<DiskStore> {
    let (store, frontier, _) = DiskStore::open_directory(directory, &StoreConfig::default()).expect("it opens");
    let config = ReplicaConfig {
        server_id: 1,
        boot_id: 1,
        cluster_id: CLUSTER,
        name: "node-1".to_owned(),
        addresses: vec!["node-1:7400".to_owned()],
        durability: Durability::Sync,
        limits: Limits::default(),
        timings: Timings::default(),
    };
    Replica::open(config, store, frontier, NOW).expect("its records are read")
}

/// Lets a replica handle something; gives back what it then says on links, all of it synced.
fn handle(replica: &mut Replica<DiskStore>, input: Input) -> Vec<PeerMessage> {
    replica.handle(input, NOW);
    let end = replica.storage_mut().sync().expect("the disk works");
    replica.handle(Input::Durable(end), NOW);
    let mut said = Vec::new();
    while let Some(output) = replica.poll_output(end) {
        if let Output::Send(_, message) = output {
            said.push(message);
        }
    }
    said
}

/// A member of 0.1.0 says hello.
fn meet(replica: &mut Replica<DiskStore>, link: u64, server_id: u32) -> Vec<PeerMessage> {
    let (link, address) = (LinkId(link), format!("node-{server_id}:7400"));
    let up = Input::LinkUp { link, server_id, dialed: false, version: PeerVersion::V1, address };
    let hello = Hello { cluster_id: Some(CLUSTER), server_id, boot_id: u128::from(server_id) };
    let mut said = handle(replica, up);
    said.extend(handle(replica, Input::Message(link, PeerMessage::Hello(hello))));
    said
}

#[test]
fn a_frozen_write_set_is_fed_logged_and_found_again() {
    let directory = TempDir::with_prefix("polyarch-test-").expect("a temporary directory can be made");
    let frozen = frozen("write_set").into_iter().find(|(name, _)| *name == "founding").expect("it is frozen").1;
    let dot = WriteSet::peek_dot(&frozen).expect("it has one");
    let mut replica = open(directory.path());
    meet(&mut replica, 1, dot.origin.server_id);
    let applied: AppliedSet = [dot].into_iter().collect();
    let beat = PeerMessage::Heartbeat(Heartbeat { applied, digest: None, clock_ms: NOW.wall_ms, paused: Vec::new() });
    let said = handle(&mut replica, Input::Message(LinkId(1), beat));
    let asked = said.iter().find_map(|message| match message {
        PeerMessage::Subscribe(subscribe) => Some(subscribe.subscription),
        _ => None,
    });
    let subscription = asked.expect("it lacks the write set");
    let group = Input::FeedGroup { link: LinkId(1), subscription, write_sets: vec![frozen.clone().into()] };
    handle(&mut replica, group);
    drop(replica);

    let mut replica = open(directory.path());
    assert!(replica.durable_applied().includes(dot));
    let log = replica.storage().log_reader();
    let begin = log.last_mark(&|heads| heads.applied().is_empty()).expect("the log goes back to its beginning");
    assert_eq!(
        log.read(begin.position, 1).expect("it is sound").write_sets,
        std::slice::from_ref(&frozen),
        "byte by byte"
    );
    let change = &WriteSet::decode(&frozen).expect("it is read").changes[0];
    let record = replica.storage_mut().record(&change.record_key()).expect("it is read");
    let values = record.fields().iter().flat_map(|field| field.siblings()).map(|sibling| Some(&sibling.value));
    assert_eq!(values.collect::<Vec<_>>(), [change.effect.value()]);
}

#[test]
fn a_member_of_version_1_is_told_nothing_that_it_does_not_know() {
    let directory = TempDir::with_prefix("polyarch-test-").expect("a temporary directory can be made");
    let mut replica = open(directory.path());
    let mut said = Vec::new();
    for (link, (name, bytes)) in (1..).zip(frozen("peer_message")) {
        let message = PeerMessage::decode(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        if message.since() > PeerVersion::V1 {
            continue;
        }
        said.extend(meet(&mut replica, link, 2));
        said.extend(handle(&mut replica, Input::Message(LinkId(link), message)));
        said.extend(handle(&mut replica, Input::LinkDown(LinkId(link))));
    }
    assert!(said.iter().any(|message| matches!(message, PeerMessage::Heartbeat(_))));
    for message in said {
        assert_eq!(message.since(), PeerVersion::V1, "{message:?}");
    }
}
