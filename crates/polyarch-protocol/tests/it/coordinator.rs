//! A client's write: what is refused, what it supersedes, when it is answered, which epoch it is of.

use bytes::Bytes;
use polyarch_crdt::{Dot, Origin, SealedContext};
use polyarch_protocol::catalog::{KeyspaceKind, SystemRecord, member_key};
use polyarch_protocol::client::{Refusal, Response, Supersede, WriteRequest};
use polyarch_protocol::limits::wire;
use polyarch_protocol::{Dependencies, Durability, Event, Input, KeyspaceId, Limits, RecordKey, Storage, WriteSet};

use crate::support::{Cluster, Node, change, config, foreign};

fn limited() -> Node {
    let mut config = config(1, 1);
    config.limits = Limits {
        key_bytes_max: 8,
        value_bytes_max: 16,
        changes_max: 3,
        write_set_bytes_max: 400,
        siblings_max: 2,
        context_dots_max: 2,
        ..Limits::default()
    };
    let mut node = Node::with(config);
    node.found();
    node
}

#[test]
fn what_breaks_a_limit_is_refused_and_changes_nothing() {
    let mut node = limited();
    let before = node.applied();
    let long_key = node.put("123456789", "v");
    assert_eq!(long_key, Err(Refusal::KeyTooLong { len: 9, max: 8 }));
    assert_eq!(node.put("", "v"), Err(Refusal::KeyEmpty));
    let long_value = node.put("k", "12345678901234567");
    assert_eq!(long_value, Err(Refusal::ValueTooLong { len: 17, max: 16 }));
    let many = ["a", "b", "c", "d"].map(|k| change(k, Some("v"), Supersede::Held));
    assert_eq!(node.write(many.to_vec()), Err(Refusal::TooManyChanges { len: 4, max: 3 }));
    assert_eq!(node.put("nowhere/k", "v"), Err(Refusal::UnknownKeyspace("nowhere".to_owned())));
    let twice = ["a", "a"].map(|k| change(k, Some("v"), Supersede::Held));
    assert_eq!(node.write(twice.to_vec()), Err(Refusal::DuplicateKey));
    assert_eq!(node.applied(), before);
    assert_eq!(node.put("12345678", "1234567890123456").map(|w| w.dot.is_some()), Ok(true), "at the limits");
}

#[test]
fn a_write_that_would_not_fit_its_write_set_is_refused() {
    let mut config = config(1, 1);
    config.limits.write_set_bytes_max = 240;
    let mut node = Node::with(config);
    node.found();
    let three = ["a", "b", "c"].map(|k| change(k, Some("12345678901234567890"), Supersede::Held));
    assert!(matches!(node.write(three.to_vec()), Err(Refusal::WriteTooLong { max: 240, .. })));
}

/// What a write supersedes takes room too. A write set beyond the format's bound would stop this
/// node's log for good, and poison the origin everywhere else.
#[test]
fn what_a_write_supersedes_counts_towards_its_length() {
    let mut config = config(1, 1);
    config.limits.write_set_bytes_max = 2_000;
    config.limits.siblings_max = 1_000;
    let mut node = Node::with(config);
    node.found();
    for i in 0..200 {
        node.put_over("k", &i.to_string(), Supersede::Nothing).expect("there is room");
    }
    let refused = node.put("k", "settled");
    assert!(matches!(refused, Err(Refusal::WriteTooLong { max: 2_000, .. })), "{refused:?}");
    assert_eq!(node.shown("k").len(), 200);
    assert_eq!(node.put("j", "v").map(|w| w.dot.is_some()), Ok(true), "the node goes on");
    assert!(node.replica.storage().write_sets().iter().all(|w| w.encode().len() <= 2_000));
}

#[test]
fn limits_beyond_the_wire_format_do_not_count() {
    let mut config = config(1, 1);
    config.limits.key_bytes_max = usize::MAX;
    config.limits.changes_max = usize::MAX;
    config.limits.value_bytes_max = usize::MAX;
    config.limits.write_set_bytes_max = usize::MAX;
    let mut node = Node::with(config);
    node.found();
    let key = "k".repeat(wire::KEY_BYTES_MAX + 1);
    assert!(matches!(node.put(&key, "v"), Err(Refusal::KeyTooLong { .. })));
    let value = "v".repeat(wire::WRITE_SET_BYTES_MAX);
    assert!(matches!(node.put("k", &value), Err(Refusal::WriteTooLong { .. })));
    assert_eq!(node.put("k", "v").map(|w| w.dot.is_some()), Ok(true));
}

#[test]
fn a_key_has_at_most_so_many_siblings_and_they_can_be_settled() {
    let mut node = limited();
    node.put_over("k", "1", Supersede::Nothing).expect("the first");
    node.put_over("k", "2", Supersede::Nothing).expect("the second");
    let refused = node.put_over("k", "3", Supersede::Nothing);
    assert_eq!(refused, Err(Refusal::TooManySiblings { siblings: 2, max: 2 }));
    let context = node.context("k");
    node.put_over("k", "3", Supersede::Shown(context)).expect("it settles them");
    assert_eq!(node.shown("k"), ["3"]);
}

#[test]
fn a_context_is_refused_when_it_was_not_issued_for_this_key_here() {
    let mut node = limited();
    node.put("k", "1").expect("it is writable");
    let context = node.context("k");
    let mut altered = context.as_bytes().to_vec();
    *altered.last_mut().expect("it has bytes") ^= 1;
    for (key, context) in [("j", context.clone()), ("l/k", context), ("k", SealedContext::from_bytes(altered))] {
        let refused = node.put_over(key, "2", Supersede::Shown(context));
        assert!(matches!(refused, Err(Refusal::Context(_))), "{refused:?}");
    }
    let dots = [1, 2, 3].map(|seq| Dot::new(Origin::new(9, 9), seq));
    let long = node.context_of("k", &dots);
    assert!(matches!(node.put_over("k", "2", Supersede::Shown(long)), Err(Refusal::Context(_))));
    assert_eq!(node.shown("k"), ["1"]);
}

#[test]
fn a_context_ahead_of_this_node_is_taken_unless_it_is_ahead_of_its_own_epoch() {
    let mut node = Node::founded(1);
    let written = node.put("k", "1").expect("it is writable").dot.expect("it wrote");
    let ahead = Dot::new(written.origin, written.seq + 2);
    let impossible = node.context_of("k", &[ahead]);
    assert!(matches!(node.put_over("k", "2", Supersede::Shown(impossible)), Err(Refusal::Context(_))));
    let foreign = Dot::new(Origin::new(9, 9), 4);
    let context = node.context_of("k", &[foreign]);
    node.put_over("k", "2", Supersede::Shown(context)).expect("the client read elsewhere");
    assert_eq!(node.last_own().changes[0].supersedes, [foreign]);
    assert_eq!(node.shown("k"), ["1", "2"]);
}

/// After a restart the last epoch's dots may be unknown here: synced nowhere, or lost with a disk.
#[test]
fn a_context_ahead_of_an_earlier_epoch_of_this_server_is_taken() {
    let mut node = Node::founded(1);
    let lost = node.put("k", "1").expect("it is writable").dot.expect("it wrote");
    let context = node.context_of("k", &[Dot::new(lost.origin, lost.seq + 5)]);
    node.crash();
    node.put_over("k", "2", Supersede::Shown(context)).expect("it may have been shown before the crash");
}

#[test]
fn a_node_that_has_not_heard_of_its_cluster_takes_no_writes() {
    let mut node = Node::new(2);
    assert_eq!(node.put("k", "v"), Err(Refusal::NotJoined));
    assert_eq!(node.create_keyspace("m", KeyspaceKind::Mv), Err(Refusal::NotJoined));
    assert!(node.status().writes_refused.is_some());
}

#[test]
fn a_keyspace_has_a_name_of_its_own() {
    let mut node = Node::founded(1);
    for name in ["", "1st", "a b", "-x", "ä", "3-9f2c01ab:42.0", &"n".repeat(129)] {
        let refused = node.create_keyspace(name, KeyspaceKind::Mv);
        assert_eq!(refused, Err(Refusal::KeyspaceName(name.to_owned())));
    }
    assert_eq!(node.create_keyspace("m", KeyspaceKind::Lww), Err(Refusal::KeyspaceExists("m".to_owned())));
}

#[test]
fn a_record_that_cannot_be_read_is_refused_and_the_node_goes_on() {
    let mut node = Node::founded(1);
    node.replica.storage_mut().fails_records = true;
    assert!(matches!(node.put("k", "v"), Err(Refusal::Unreadable(_))));
    node.replica.storage_mut().fails_records = false;
    assert_eq!(node.put("k", "v").map(|w| w.dot.is_some()), Ok(true));
}

#[test]
fn pipelined_writes_supersede_one_another_before_any_sync_and_nothing_is_said_of_them() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.hear_applied(1, &[]);
    node.forget();
    node.syncs = false;
    let asked = |node: &mut Node, i: usize| {
        let changes = vec![change("k", Some(&i.to_string()), Supersede::Held)];
        node.ask(|tag| Input::Write(tag, WriteRequest { changes }))
    };
    let requests: Vec<u64> = (0..64).map(|i| asked(&mut node, i)).collect();
    node.run_ms(3_000);
    assert!(requests.iter().all(|request| !node.answers.contains_key(request)));
    assert!(node.sent.is_empty() && node.events.is_empty(), "nothing leaves before it is durable");
    assert_eq!(node.served(all_of(&node), 1 << 20).iter().map(write_sets_in).sum::<usize>(), 3, "what was founded");
    assert_eq!(node.shown("k"), ["63"]);
    let writes = node.replica.storage().write_sets();
    for pair in writes[writes.len() - 64..].windows(2) {
        assert_eq!(pair[1].changes[0].supersedes, [pair[0].dot]);
    }
    node.sync();
    node.perform();
    assert!(requests.iter().all(|request| matches!(node.answers[request], Ok(Response::Written(_)))));
    assert_eq!(node.replica.storage().crash().1, *node.replica.frontier(), "replayed, it is the same");
}

fn all_of(node: &Node) -> polyarch_protocol::peer::Subscribe {
    let origins = node.applied().iter().map(|dot| (dot.origin, polyarch_protocol::ChainHead::NONE)).collect();
    polyarch_protocol::peer::Subscribe { subscription: 1, origins }
}

fn write_sets_in(step: &polyarch_protocol::FeedStep) -> usize {
    match step {
        polyarch_protocol::FeedStep::Group(group) => group.write_sets.len(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn with_interval_durability_answers_do_not_wait_for_the_disk_but_peers_do() {
    let mut config = config(1, 1);
    config.durability = Durability::Interval;
    let mut node = Node::with(config);
    node.found();
    node.meet(1, 2);
    node.hear_applied(1, &[]);
    node.forget();
    node.syncs = false;
    node.put("k", "1").expect("it is writable");
    node.run_ms(1_000);
    let durable = node.replica.durable_applied().clone();
    let told = node.sent.iter().filter_map(|(_, message)| match message {
        polyarch_protocol::peer::PeerMessage::Heartbeat(heartbeat) => Some(heartbeat.applied.clone()),
        _ => None,
    });
    assert!(told.into_iter().all(|applied| applied == durable), "peers are told only what is synced");
    // Whatever is held back for peers holds back no client.
    assert_eq!(node.put("k", "2").map(|w| w.dot.is_some()), Ok(true));
}

#[test]
fn a_batch_is_one_write_set_without_the_deletes_of_nothing() {
    let mut node = Node::founded(1);
    node.put("i", "1").expect("it is writable");
    let batch = vec![
        change("i", None, Supersede::Held),
        change("j", None, Supersede::Held),
        change("l/k", Some("2"), Supersede::Held),
    ];
    let written = node.write(batch).expect("it is writable");
    let last = node.last_own();
    assert_eq!(written.dot, Some(last.dot));
    assert_eq!(last.changes.len(), 2);
    let before = node.applied();
    let nothing = node.write(vec![change("j", None, Supersede::Held)]).expect("it is writable");
    assert_eq!((nothing.dot, nothing.hlc), (None, None));
    assert_eq!(node.write(Vec::new()).expect("it is writable").dot, None);
    assert_eq!(node.applied(), before);
    let token = polyarch_crdt::SessionToken::from_bytes(&nothing.token).expect("it reads");
    assert_eq!(token.seen, before);
}

#[test]
fn of_two_keyspaces_created_under_one_name_at_once_the_older_answers_to_it() {
    let mut cluster = Cluster::of(2);
    let older = cluster.nodes[0].create_keyspace("n", KeyspaceKind::Mv).expect("it is new");
    cluster.nodes[1].advance(5);
    let newer = cluster.nodes[1].create_keyspace("n", KeyspaceKind::Lww).expect("it is new here");
    cluster.nodes[1].put("n/k", "newer").expect("it is writable");
    cluster.link(0, 1);
    cluster.run_ms(1_500);
    cluster.assert_equal();
    for node in &mut cluster.nodes {
        let (id, definition) = node.replica.catalog().keyspace("n").expect("it exists");
        assert_eq!((Some(id.dot), definition.kind), (older.dot, KeyspaceKind::Mv));
        assert_eq!(node.shown("n/k"), [""; 0]);
        let by_id = format!("{}.0", newer.dot.expect("it wrote"));
        assert_eq!(node.shown(&format!("{by_id}/k")), ["newer"], "the other answers to its id");
        let by_name: Vec<bool> =
            node.replica.catalog().keyspaces().filter(|(_, d, _)| d.name == "n").map(|k| k.2).collect();
        assert_eq!(by_name.iter().filter(|by_name| **by_name).count(), 1);
        assert_eq!(node.create_keyspace("n", KeyspaceKind::Mv), Err(Refusal::KeyspaceExists("n".to_owned())));
    }
}

#[test]
fn an_epoch_begins_with_all_that_was_applied_and_goes_on_with_what_changed() {
    let mut node = Node::founded(1);
    let first = node.replica.storage().write_sets().swap_remove(0);
    assert!(matches!(&first.dependencies, Dependencies::Whole { predecessor: None, applied } if applied.is_empty()));
    node.meet(1, 2);
    let other = Origin::new(2, 9);
    node.hear_applied(1, &[Dot::new(other, 2)]);
    node.feed(1, &[foreign(Dot::new(other, 1), &[], "x"), foreign(Dot::new(other, 2), &[], "y")]);
    node.put("k", "1").expect("it is writable");
    let seen = [Dot::new(other, 2)].into_iter().collect();
    assert_eq!(node.last_own().dependencies, Dependencies::Changed(seen));
    node.put("k", "2").expect("it is writable");
    assert_eq!(node.last_own().dependencies, Dependencies::Changed(Default::default()));
    let (before, last) = (node.applied(), node.last_own().dot);
    node.crash();
    node.put("k", "3").expect("it is writable");
    let opened = node.last_own();
    assert_ne!(opened.dot.origin, last.origin);
    assert_eq!((opened.dot.origin.server_id, opened.dot.seq), (1, 1));
    let whole = Dependencies::Whole { predecessor: Some(last), applied: before };
    assert_eq!(opened.dependencies, whole);
    assert_eq!(node.count(|e| matches!(e, Event::EpochOpened { .. })), 2);
}

#[test]
fn an_epoch_is_closed_when_a_peer_has_more_of_it_and_what_the_peer_has_is_taken_in() {
    let mut node = Node::founded(1);
    let last = node.put("k", "1").expect("it is writable").dot.expect("it wrote");
    node.meet(1, 2);
    node.hear_applied(1, &[last]);
    assert_eq!(node.count(|e| matches!(e, Event::EpochClosed { .. })), 0);
    assert!(!node.fed_on(1).contains(&last.origin), "one's own epoch needs no feed");
    let lost = Dot::new(last.origin, last.seq + 1);
    node.hear_applied(1, &[lost]);
    let closed = Event::EpochClosed { origin: last.origin, had: last.seq, peer_has: lost.seq };
    assert!(node.events.contains(&closed));
    assert!(node.fed_on(1).contains(&last.origin), "a closed epoch is fed like any origin");
    node.feed(1, &[foreign(lost, &[], "lost")]);
    node.put("k", "2").expect("it is writable");
    let opened = node.last_own();
    assert_ne!(opened.dot.origin, last.origin);
    assert!(matches!(opened.dependencies, Dependencies::Whole { predecessor: Some(p), .. } if p == lost));
}

/// A machine put back with its memory draws the same numbers again. What a peer knows tells.
#[test]
fn an_epoch_that_a_peer_knows_is_never_opened() {
    let drawn = {
        let mut node = Node::founded(1);
        node.crash();
        node.put("k", "1").expect("it is writable");
        node.last_own().dot.origin
    };
    let mut again = Node::founded(1);
    again.crash();
    again.meet(1, 2);
    again.hear_applied(1, &[Dot::new(drawn, 3)]);
    again.put("k", "1").expect("it is writable");
    assert_ne!(again.last_own().dot.origin, drawn);
}

#[test]
fn a_failed_disk_is_told_to_all_who_wait_and_nothing_else_leaves() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.hear_applied(1, &[Dot::new(Origin::new(2, 9), 3)]);
    node.forget();
    node.syncs = false;
    let changes = vec![change("k", Some("lost"), Supersede::Held)];
    let waiting = node.ask(|tag| Input::Write(tag, WriteRequest { changes }));
    node.feed(1, &[foreign(Dot::new(Origin::new(2, 9), 1), &[], "x")]);
    node.run_ms(1_000);
    node.handle(Input::StorageFailed("no space".to_owned()));
    node.perform();
    assert_eq!(node.answers[&waiting], Err(Refusal::StorageFailed("no space".to_owned())));
    assert_eq!(node.count(|e| matches!(e, Event::StorageFailed { .. })), 1);
    assert_eq!(node.closed.len(), 1);
    // Its peers go on talking until their links are gone; new ones come.
    node.hear_applied(1, &[Dot::new(Origin::new(2, 9), 9), Dot::new(Origin::new(3, 9), 9)]);
    node.hear(1, polyarch_protocol::peer::PeerMessage::Subscribe(all_of(&node)));
    node.feed(1, &[foreign(Dot::new(Origin::new(2, 9), 2), &[], "y")]);
    node.meet(2, 3);
    node.handle(Input::StorageFailed("again".to_owned()));
    node.run_ms(5_000);
    assert_eq!(node.sent, [], "nothing leaves a failed node");
    assert!(node.feeds.is_empty());
    assert_eq!(node.put("k", "2"), Err(Refusal::WritesStopped("no space".to_owned())));
    assert!(node.status().writes_refused.is_some(), "it can still be asked how it is");
}

#[test]
fn a_log_that_takes_no_more_stops_the_node() {
    let mut node = Node::founded(1);
    node.replica.storage_mut().fails_appends = true;
    assert_eq!(node.put("k", "1"), Err(Refusal::StorageFailed("the disk does not answer".to_owned())));
    node.replica.storage_mut().fails_appends = false;
    assert_eq!(node.put("k", "1"), Err(Refusal::WritesStopped("the disk does not answer".to_owned())));
}

#[test]
fn a_peers_write_set_that_cannot_be_appended_stops_the_node() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    let dot = Dot::new(Origin::new(2, 9), 1);
    node.hear_applied(1, &[dot]);
    node.replica.storage_mut().fails_appends = true;
    node.feed(1, &[foreign(dot, &[], "x")]);
    assert_eq!(node.count(|e| matches!(e, Event::StorageFailed { .. })), 1);
    assert!(!node.applied().includes(dot));
}

#[test]
fn clients_cannot_reach_the_system_keyspace() {
    let mut node = Node::founded(1);
    let name = KeyspaceId::SYSTEM.to_string();
    assert_eq!(node.put(&format!("{name}/member"), "v"), Err(Refusal::UnknownKeyspace(name)));
}

#[test]
fn a_system_record_counts_only_under_the_key_that_names_it() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    let dot = Dot::new(Origin::new(2, 9), 1);
    node.hear_applied(1, &[dot]);
    let mut forged = foreign(dot, &[], "");
    let imposter = polyarch_protocol::catalog::Member {
        server_id: 1,
        name: "imposter".to_owned(),
        addresses: vec!["elsewhere:1".to_owned()],
        status: polyarch_protocol::catalog::MemberStatus::Active,
    };
    let definition = polyarch_protocol::catalog::KeyspaceDefinition {
        name: "sys".to_owned(),
        kind: KeyspaceKind::Mv,
        created: forged.hlc,
    };
    let change = |key: Bytes, record: SystemRecord| polyarch_protocol::Change {
        keyspace: KeyspaceId::SYSTEM,
        key,
        effect: polyarch_protocol::Effect::Put(record.encode()),
        ..foreign(dot, &[], "").changes.swap_remove(0)
    };
    forged.changes = vec![
        change(member_key(7), SystemRecord::Member(imposter)),
        change("keyspace/0-00000000:0.0".into(), SystemRecord::Keyspace(definition.clone())),
        change("keyspace/1-00000001:1.00".into(), SystemRecord::Keyspace(definition)),
    ];
    node.feed(1, &[forged]);
    assert!(node.applied().includes(dot), "it is applied all the same");
    let own = node.replica.catalog().member(1).expect("it founded").clone();
    assert_eq!(own.addresses, ["node-1:7400"]);
    assert!(node.replica.catalog().keyspace("sys").is_none());
    assert_eq!(node.replica.catalog().unreadable().len(), 3);
}

#[test]
fn a_founders_records_are_read_again_after_a_restart() {
    let mut node = Node::founded(1);
    node.put("k", "1").expect("it is writable");
    let catalog = node.replica.catalog().clone();
    node.crash();
    assert_eq!(*node.replica.catalog(), catalog);
    assert_eq!(node.shown("k"), ["1"]);
    let key = RecordKey::new(KeyspaceId::SYSTEM, &member_key(1));
    assert!(!node.replica.storage_mut().record(&key).expect("it is in memory").is_deleted());
}

#[test]
fn what_a_replica_wrote_passes_its_own_check() {
    let mut node = Node::founded(1);
    for i in 0..20 {
        node.put(&format!("k{}", i % 3), "v").expect("it is writable");
    }
    for bytes in node.replica.storage().log_bytes() {
        let write_set = WriteSet::decode(&bytes).expect("it is well formed");
        assert_eq!(write_set.encode(), bytes);
        assert_eq!(WriteSet::peek_dot(&bytes), Ok(write_set.dot));
    }
}
