//! Snapshots between living replicas: when one is fetched and from whom, and what is joined while
//! all go on writing.

use std::collections::BTreeMap;

use polyarch_crdt::{AppliedSet, Dot, Origin, SealedContext};
use polyarch_protocol::catalog::{KeyspaceKind, MemberChange, MemberStatus};
use polyarch_protocol::client::Supersede;
use polyarch_protocol::peer::{PeerMessage, Refuse, RefuseReason, Subscribe};
use polyarch_protocol::{
    ChainHash, ChainHead, ChainHeads, Dependencies, Event, FeedStep, ForkedOrigin, Frontier, FrontierOutline, Input,
    LinkId, SnapshotBegin, SnapshotId, SnapshotSource, SnapshotStep, Topology, WriteSet,
};

use crate::support::{CLUSTER, Cluster, Fetched, Node, Oracle, change, config, foreign, heartbeat};

/// A feed that stands still for so long is taken elsewhere, or else a snapshot is fetched.
const STALL_MS: u64 = 1_000;
const TWO: Origin = Origin::new(2, 1);
const THREE: Origin = Origin::new(3, 1);

fn dot(origin: Origin, seq: u64) -> Dot {
    Dot::new(origin, seq)
}

fn begun(node: &Node) -> usize {
    node.count(|event| matches!(event, Event::SnapshotBegun { .. }))
}

fn joined(node: &Node) -> usize {
    node.count(|event| matches!(event, Event::SnapshotJoined { .. }))
}

fn put(cluster: &mut Cluster, at: usize, key: &str, value: &str) {
    cluster.nodes[at].put(key, value).expect("it is writable");
}

fn del(cluster: &mut Cluster, at: usize, key: &str) {
    cluster.nodes[at].write(vec![change(key, None, Supersede::Held)]).expect("it is writable");
}

/// A cluster with more keys than a snapshot's first part takes.
fn padded(n: u32) -> Cluster {
    let mut cluster = Cluster::of(n);
    let pad = (0..150).map(|i| change(&format!("k{i:03}"), Some("pad"), Supersede::Held)).collect();
    cluster.nodes[0].write(pad).expect("it is writable");
    mesh(&mut cluster);
    cluster.run_ms(2_000);
    cluster.unlink_all();
    cluster.assert_equal();
    cluster
}

fn mesh(cluster: &mut Cluster) {
    let n = cluster.nodes.len();
    for one in 0..n {
        for other in one + 1..n {
            cluster.link(one, other);
        }
    }
}

/// All of the log but its last segment goes, at each of these nodes.
fn cut_logs(cluster: &mut Cluster, at: &[usize]) {
    at.iter().for_each(|at| cluster.cut_log(*at));
}

fn judge(cluster: &Cluster, oracle: &mut Oracle) {
    cluster.nodes.iter().for_each(|node| oracle.note(node));
    cluster.nodes.iter().for_each(|node| oracle.judge(node));
}

/// Three nodes of which the last was away while the others wrote, deleted and cut their logs.
fn one_was_away() -> Cluster {
    let mut cluster = padded(3);
    put(&mut cluster, 0, "deleted-early", "1");
    put(&mut cluster, 0, "zz-deleted-late", "1");
    put(&mut cluster, 0, "conflict", "base");
    mesh(&mut cluster);
    cluster.run_ms(2_000);
    cluster.unlink_all();
    cluster.link(0, 1);
    for i in 0..20 {
        put(&mut cluster, i % 2, &format!("k{i:03}"), "while it was away");
        cluster.run_ms(100);
    }
    del(&mut cluster, 0, "deleted-early");
    del(&mut cluster, 1, "zz-deleted-late");
    put(&mut cluster, 0, "conflict", "of the others");
    put(&mut cluster, 2, "conflict", "of the one away");
    put(&mut cluster, 2, "own", "1");
    put(&mut cluster, 2, "k001", "own");
    cluster.run_ms(500);
    cut_logs(&mut cluster, &[0, 1]);
    cluster
}

#[test]
fn a_node_whose_log_nobody_has_any_more_returns_by_a_snapshot_with_its_own_writes() {
    let mut cluster = one_was_away();
    cluster.parts_at_once = 1;
    let mut oracle = Oracle::default();
    mesh(&mut cluster);
    let mut steps = 0;
    while joined(&cluster.nodes[2]) == 0 {
        // Both sides go on writing while it is fetched.
        put(&mut cluster, 0, "of-donor", &steps.to_string());
        put(&mut cluster, 2, "of-receiver", &steps.to_string());
        cluster.run_ms(200);
        judge(&cluster, &mut oracle);
        assert_eq!(cluster.nodes[0].shown("own"), ["1"], "own writes go to the others meanwhile");
        steps += 1;
        assert!(steps < 100, "a snapshot is fetched");
    }
    assert!(steps > 5, "writes went on while it was fetched");
    assert_eq!(cluster.nodes[2].shown("deleted-early"), Vec::<String>::new());
    assert_eq!(cluster.nodes[2].shown("zz-deleted-late"), Vec::<String>::new());
    cluster.run_ms(3_000);
    cluster.assert_equal();
    judge(&cluster, &mut oracle);
    for node in &mut cluster.nodes {
        assert_eq!(node.shown("deleted-early"), Vec::<String>::new());
        assert_eq!(node.shown("zz-deleted-late"), Vec::<String>::new());
        assert_eq!(node.shown("conflict"), ["of the one away", "of the others"]);
        assert_eq!(node.shown("k001"), ["own", "while it was away"]);
        assert_eq!(node.shown("own"), ["1"]);
    }
    assert_eq!((cluster.joins, begun(&cluster.nodes[2])), (1, 1));
    assert_eq!((begun(&cluster.nodes[0]), begun(&cluster.nodes[1])), (0, 0));
    // And a crash afterwards goes back to no less.
    cluster.crash(2);
    assert_eq!(cluster.nodes[2].applied(), cluster.nodes[0].applied());
    judge(&cluster, &mut oracle);
}

#[test]
fn a_new_member_without_anything_gets_all_of_a_cluster_whose_logs_are_cut() {
    let mut cluster = one_was_away();
    cluster.nodes[2] = Node::with(config(3, 77));
    cluster.nodes[2].now = cluster.nodes[0].now;
    let mut oracle = Oracle::default();
    cluster.nodes.iter().for_each(|node| oracle.note(node));
    mesh(&mut cluster);
    cluster.run_ms(6_000);
    cluster.assert_equal();
    assert_eq!(cluster.joins, 1);
    let donor = cluster.nodes[0].status();
    let status = cluster.nodes[2].status();
    assert_eq!(status.digest, donor.digest);
    put(&mut cluster, 2, "new", "1");
    cluster.run_ms(500);
    cluster.assert_equal();
    assert_eq!(cluster.nodes[1].shown("new"), ["1"]);
}

#[test]
fn what_a_snapshot_brought_counts_as_received() {
    let mut cluster = one_was_away();
    let before = (cluster.nodes[2].applied(), cluster.nodes[2].status().counters.received);
    mesh(&mut cluster);
    cluster.run_ms(6_000);
    assert_eq!(cluster.joins, 1);
    let gained = cluster.nodes[2].applied().write_sets() - before.0.write_sets();
    let own = cluster.nodes[2].status().counters.written;
    let received = cluster.nodes[2].status().counters.received - before.1;
    assert!(gained >= received && received + own >= gained, "{received} received of {gained} write sets that came");
}

#[test]
fn a_donor_that_crashes_in_the_walk_is_asked_again_or_another_is() {
    for parts in 1..5 {
        let mut cluster = one_was_away();
        cluster.parts_at_once = 0;
        mesh(&mut cluster);
        cluster.run_ms(STALL_MS * 3);
        let from = cluster.nodes[2].replica.fetches_snapshot_from().expect("it fetches") as usize - 1;
        for _ in 0..parts {
            cluster.parts_at_once = 1;
            cluster.settle();
        }
        cluster.parts_at_once = 0;
        put(&mut cluster, from, "of-donor", "1");
        cluster.crash(from);
        cluster.settle();
        assert_eq!(cluster.nodes[2].replica.fetches_snapshot_from(), None);
        assert_eq!(cluster.nodes[2].count(|e| matches!(e, Event::SnapshotFailed { .. })), 1);
        cluster.parts_at_once = usize::MAX;
        mesh(&mut cluster);
        cluster.run_ms(STALL_MS * 8);
        cluster.assert_equal();
        assert_eq!((cluster.joins, cluster.resumes), (1, 0), "after {parts} parts");
        judge(&cluster, &mut Oracle::default());
    }
}

#[test]
fn a_receiver_that_crashes_or_loses_its_link_goes_on_where_it_was() {
    for parts in 1..4 {
        for crashes in [true, false] {
            let mut cluster = one_was_away();
            cluster.parts_at_once = 0;
            mesh(&mut cluster);
            cluster.run_ms(STALL_MS * 3);
            let from = cluster.nodes[2].replica.fetches_snapshot_from().expect("it fetches") as usize - 1;
            for _ in 0..parts {
                cluster.parts_at_once = 1;
                cluster.settle();
            }
            cluster.parts_at_once = 0;
            put(&mut cluster, 2, "of-receiver", "1");
            put(&mut cluster, from, "of-donor", "1");
            match crashes {
                true => cluster.crash(2),
                false => cluster.unlink_between(2, from),
            }
            cluster.cut_log(from);
            cluster.parts_at_once = usize::MAX;
            let other = 1 - from;
            cluster.unlink_between(2, other);
            cluster.unlink_between(from, other);
            cluster.link(2, from);
            cluster.link(from, other);
            cluster.run_ms(STALL_MS * 8);
            cluster.assert_equal();
            assert_eq!((cluster.joins, cluster.resumes), (1, 1), "after {parts} parts, crashes: {crashes}");
            judge(&cluster, &mut Oracle::default());
        }
    }
}

#[test]
fn a_snapshot_that_was_whole_before_a_crash_is_joined_and_no_other_is_fetched() {
    let mut cluster = one_was_away();
    let mut whole = Fetched::default();
    let (donor, receiver) = (0, 2);
    let begin = {
        let node = &mut cluster.nodes[donor];
        node.sync();
        SnapshotBegin {
            id: SnapshotId(5),
            cluster_id: CLUSTER,
            donor: node.config.server_id,
            start: node.replica.frontier().outline(),
        }
    };
    let position = cluster.nodes[donor].replica.storage().durable_end();
    let mut source = SnapshotSource::new(begin, position);
    while let SnapshotStep::Part(part) = source.poll(cluster.nodes[donor].replica.storage()) {
        whole.take(&part);
    }
    cluster.fetched.insert(receiver, whole);
    cluster.crash(receiver);
    mesh(&mut cluster);
    cluster.run_ms(STALL_MS * 10);
    assert_eq!((begun(&cluster.nodes[receiver]), cluster.joins), (0, 0), "not while one is held");
    assert_eq!(cluster.nodes[receiver].replica.fetches_snapshot_from(), Some(1));
    cluster.join_fetched(receiver);
    let from = cluster.nodes[receiver].replica.fetches_snapshot_from();
    assert_eq!((from, begun(&cluster.nodes[receiver])), (None, 0));
    cluster.run_ms(STALL_MS * 3);
    cluster.assert_equal();
    judge(&cluster, &mut Oracle::default());
}

#[test]
fn two_nodes_that_each_need_the_others_snapshot_end_equal() {
    for parts_at_once in [1, 2, 3, usize::MAX] {
        let mut cluster = padded(2);
        let mut oracle = Oracle::default();
        put(&mut cluster, 0, "shared", "base");
        cluster.link(0, 1);
        cluster.run_ms(1_000);
        cluster.unlink_all();
        for at in [0, 1] {
            for i in 0..15 {
                put(&mut cluster, at, &format!("k{:03}", i * 10 + at), "apart");
            }
            put(&mut cluster, at, "shared", &at.to_string());
        }
        del(&mut cluster, 0, "k140");
        cut_logs(&mut cluster, &[0, 1]);
        cluster.parts_at_once = parts_at_once;
        cluster.link(0, 1);
        for i in 0..60 {
            put(&mut cluster, i % 2, &format!("k{i:03}"), "together");
            cluster.run_ms(200);
            judge(&cluster, &mut oracle);
        }
        cluster.parts_at_once = usize::MAX;
        cluster.run_ms(20_000);
        judge(&cluster, &mut oracle);
        cluster.assert_equal();
        assert_eq!(cluster.nodes[0].shown("shared"), ["0", "1"]);
        assert!(cluster.joins >= 2, "each fetched one");
    }
}

#[test]
fn a_donor_that_joins_a_snapshot_itself_ends_its_walks() {
    let mut cluster = padded(2);
    for at in [0, 1] {
        (0..15).for_each(|i| put(&mut cluster, at, &format!("k{i:03}"), &at.to_string()));
    }
    cut_logs(&mut cluster, &[0, 1]);
    cluster.parts_at_once = 0;
    cluster.link(0, 1);
    cluster.run_ms(STALL_MS * 3);
    assert!(cluster.is_fetching(0) && cluster.is_fetching(1));
    cluster.parts_at_once = 1;
    cluster.settle();
    let frontier = cluster.nodes[0].replica.frontier().clone();
    cluster.parts_at_once = 0;
    // Whatever is joined: this node's log has a gap from now on.
    let mut held = Fetched::default();
    let begin = SnapshotBegin { id: SnapshotId(5), cluster_id: CLUSTER, donor: 9, start: FrontierOutline::default() };
    held.begin = Some(begin);
    held.end = Some(ChainHeads::default());
    cluster.fetched.insert(0, held);
    cluster.join_fetched(0);
    assert_eq!(cluster.nodes[0].replica.frontier(), &frontier, "it brought nothing");
    assert!(!cluster.is_fetching(1));
    assert_eq!(cluster.nodes[1].replica.fetches_snapshot_from(), None);
    cluster.parts_at_once = usize::MAX;
    cluster.run_ms(20_000);
    cluster.assert_equal();
    judge(&cluster, &mut Oracle::default());
}

/// What it wrote next depends on what the snapshot brought: whoever lacks that lets it wait.
#[test]
fn the_open_epoch_goes_on_and_its_next_write_set_depends_on_what_was_gained() {
    let mut cluster = one_was_away();
    cluster.unlink_all();
    let epoch = cluster.nodes[2].last_own().dot;
    let behind = cluster.nodes[2].applied();
    cluster.link(0, 2);
    cluster.run_ms(5_000);
    assert_eq!(cluster.joins, 1);
    put(&mut cluster, 2, "k002", "after");
    let after = cluster.nodes[2].last_own();
    assert_eq!(after.dot.origin, epoch.origin, "the epoch goes on");
    assert_eq!(cluster.nodes[2].count(|e| matches!(e, Event::EpochClosed { .. })), 0);
    let Dependencies::Changed(needs) = &after.dependencies else { panic!("it is not the first of its epoch") };
    let gained: AppliedSet = cluster.nodes[0].applied().since(&behind);
    let gained: AppliedSet = gained.iter().filter(|dot| dot.origin != epoch.origin).collect();
    assert!(!gained.is_empty() && needs.includes_all(&gained), "{needs} of {gained}");

    // A node that lacks it all, a member played by this test, is fed the write set alone.
    let mut third = Node::new(9);
    third.meet(1, 3);
    let applied: Vec<Dot> = cluster.nodes[2].applied().iter().collect();
    third.hear_applied(1, &applied);
    let own: Vec<_> = cluster.nodes[2].replica.storage().write_sets();
    let own: Vec<_> = own.into_iter().filter(|w| w.dot.origin == epoch.origin).collect();
    third.feed(1, &own);
    assert!(!third.applied().includes(after.dot), "it waits for what it depends on");
    put(&mut cluster, 2, "k003", "once more");
    let Dependencies::Changed(needs) = cluster.nodes[2].last_own().dependencies else { panic!("as before") };
    assert!(needs.is_empty(), "it was said once");
}

#[test]
fn an_epoch_that_the_snapshot_shows_further_is_closed() {
    let mut node = Node::founded(1);
    node.put("k", "1").expect("it is writable");
    let own = node.last_own().dot;
    // This machine was set back with its memory, and a member has what it wrote before.
    let lost = foreign(dot(own.origin, own.seq + 1), &[], "x");
    let before = node.replica.frontier().clone();
    let mut theirs = before.outline();
    theirs.heads.extend(lost.dot, &lost.encode());
    node.sync();
    node.replica
        .adopt(before.join(&theirs, before.digest.clone()).expect("it is no fork"), node.now)
        .expect("it reads");
    node.settle();
    let closed = |e: &Event| matches!(e, Event::EpochClosed { had, peer_has, .. } if *had + 1 == *peer_has);
    assert_eq!(node.count(closed), 1);
    node.put("k", "later").expect("it is writable");
    let next = node.last_own();
    assert_ne!(next.dot.origin, own.origin);
    let Dependencies::Whole { predecessor, applied } = next.dependencies else {
        panic!("it is the first of its epoch")
    };
    assert_eq!((predecessor, applied.includes(lost.dot)), (Some(lost.dot), true));
}

#[test]
fn two_histories_of_one_origin_are_not_joined() {
    let mut node = Node::founded(1);
    node.put("k", "1").expect("it is writable");
    let own = node.last_own().dot;
    let mut heads: BTreeMap<_, _> = node.replica.frontier().heads.iter().collect();
    heads.get_mut(&own.origin).expect("it wrote").hash = ChainHash([7; 32]);
    let other = FrontierOutline { heads: heads.into(), ..node.replica.frontier().outline() };
    let frontier = node.replica.frontier();
    assert_eq!(frontier.join(&other, frontier.digest.clone()), Err(ForkedOrigin(own.origin)));
    assert_eq!(frontier.join(&frontier.outline(), frontier.digest.clone()).as_ref(), Ok(frontier), "it is idempotent");
    let nothing = Frontier::default();
    assert_eq!(nothing.join(&frontier.outline(), frontier.digest.clone()).as_ref(), Ok(frontier));
    let none = FrontierOutline::default();
    assert_eq!(frontier.join(&none, frontier.digest.clone()).as_ref(), Ok(frontier));
}

#[test]
fn what_a_snapshot_says_of_members_topology_and_keyspaces_is_followed() {
    let mut cluster = padded(3);
    mesh(&mut cluster);
    cluster.run_ms(5_000);
    cluster.unlink_all();
    cluster.link(0, 1);
    cluster.nodes[0].set_topology("star:1").expect("it serves all");
    cluster.nodes[1].create_keyspace("new", KeyspaceKind::Lww).expect("it is new");
    cluster.nodes[0].change_member(3, MemberChange::Drain).expect("it is active");
    (0..12).for_each(|i| put(&mut cluster, i % 2, "k", &i.to_string()));
    cluster.run_ms(500);
    cut_logs(&mut cluster, &[0, 1]);
    assert_eq!(cluster.nodes[2].sees(3), MemberStatus::Active);
    cluster.link(0, 2);
    cluster.run_ms(STALL_MS * 3);
    assert_eq!(cluster.joins, 1);
    cluster.run_ms(3_000);
    let node = &mut cluster.nodes[2];
    assert_eq!(node.replica.catalog().topology(), &Topology::Star { hubs: vec![1] });
    assert_eq!(node.count(|e| matches!(e, Event::TopologyChanged { .. })), 1);
    assert_eq!(node.count(|e| matches!(e, Event::MemberChanged { server_id: 3, to: MemberStatus::Draining, .. })), 1);
    assert!(node.put("k", "no more").is_err(), "it is drained");
    let planned: Vec<u32> = node.status().peers.iter().filter(|peer| peer.planned).map(|peer| peer.server_id).collect();
    assert_eq!(planned, [1], "its hub");
    assert!(node.replica.catalog().keyspace("new").is_some());
}

// Whom to ask, and when: members played by the test.

fn refuse(node: &mut Node, link: u64, origin: Origin, reason: RefuseReason) {
    let subscription = node.subscription(link).map_or(0, |s| s.subscription);
    node.hear(link, PeerMessage::Refuse(Refuse { subscription, origin, reason }));
}

/// Lets time pass while each of these members refuses what it is asked for, and says what it has.
fn refusing(node: &mut Node, members: &[(u64, RefuseReason)], has: &[Dot], ms: u64) {
    for _ in 0..ms / 100 {
        for (link, reason) in members {
            let dots = has.to_vec();
            node.hear_applied(*link, &dots);
            for origin in node.fed_on(*link) {
                refuse(node, *link, origin, *reason);
            }
        }
        node.run_ms(100);
    }
}

#[test]
fn no_snapshot_is_fetched_while_a_linked_member_can_still_feed() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.meet(2, 3);
    node.hear_applied(2, &[dot(TWO, 9)]);
    refusing(&mut node, &[(1, RefuseReason::LogRemoved)], &[dot(TWO, 9)], 20_000);
    assert_eq!((begun(&node), node.fetches.len()), (0, 0), "member 3 has not refused");
    assert_eq!(node.fed_on(2), [TWO]);
    node.handle(Input::LinkDown(LinkId(2)));
    refusing(&mut node, &[(1, RefuseReason::LogRemoved)], &[dot(TWO, 9)], STALL_MS - 100);
    assert_eq!(begun(&node), 0, "one that has the log may be about to be linked");
    refusing(&mut node, &[(1, RefuseReason::LogRemoved)], &[dot(TWO, 9)], 2 * STALL_MS);
    assert_eq!((begun(&node), &node.fetches[..]), (1, &[LinkId(1)][..]));
    assert_eq!(node.replica.fetches_snapshot_from(), Some(2));
    refusing(&mut node, &[(1, RefuseReason::LogRemoved)], &[dot(TWO, 9)], 40_000);
    assert_eq!(begun(&node), 1, "one at a time");
}

#[test]
fn a_link_to_one_that_feeds_ends_the_patience() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    refusing(&mut node, &[(1, RefuseReason::LogRemoved)], &[dot(TWO, 9)], STALL_MS - 300);
    node.meet(2, 3);
    node.hear_applied(2, &[dot(TWO, 9)]);
    node.run_ms(300);
    node.feed(2, &(1..=9).map(|seq| foreign(dot(TWO, seq), &[], "x")).collect::<Vec<_>>());
    refusing(&mut node, &[(1, RefuseReason::LogRemoved)], &[dot(TWO, 9)], 10_000);
    assert_eq!(begun(&node), 0);
}

#[test]
fn a_log_that_cannot_be_read_is_as_good_as_removed() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    refusing(&mut node, &[(1, RefuseReason::LogUnreadable)], &[dot(TWO, 9)], 3 * STALL_MS);
    assert_eq!(begun(&node), 1);
}

#[test]
fn no_snapshot_is_fetched_from_a_member_that_holds_another_history() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.hear_applied(1, &[dot(TWO, 5), dot(THREE, 9)]);
    node.feed(1, &(1..=5).map(|seq| foreign(dot(TWO, seq), &[], "x")).collect::<Vec<_>>());
    let both = [dot(TWO, 6), dot(THREE, 9)];
    node.hear_applied(1, &both);
    refuse(&mut node, 1, TWO, RefuseReason::Fork(dot(TWO, 5)));
    refusing(&mut node, &[(1, RefuseReason::LogRemoved)], &both, 60_000);
    assert_eq!(begun(&node), 0, "its snapshot would mix the two");
    // One that has nothing of the forked origin does.
    node.meet(2, 4);
    node.hear_applied(2, &[dot(THREE, 9)]);
    for _ in 0..60 {
        refusing(&mut node, &[(1, RefuseReason::LogRemoved)], &both, 100);
        refusing(&mut node, &[(2, RefuseReason::LogRemoved)], &[dot(THREE, 9)], 100);
    }
    assert_eq!(node.replica.fetches_snapshot_from(), Some(4));
}

#[test]
fn no_snapshot_is_fetched_from_a_member_that_found_a_fork_itself() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.hear_applied(1, &[dot(TWO, 5), dot(THREE, 9)]);
    node.feed(1, &(1..=5).map(|seq| foreign(dot(TWO, seq), &[], "x")).collect::<Vec<_>>());
    for _ in 0..600 {
        let mut beat = heartbeat(&[dot(TWO, 3), dot(THREE, 9)], node.now.wall_ms);
        beat.paused = vec![TWO];
        node.hear(1, PeerMessage::Heartbeat(beat));
        for origin in node.fed_on(1) {
            refuse(&mut node, 1, origin, RefuseReason::LogRemoved);
        }
        node.run_ms(100);
    }
    assert_eq!(begun(&node), 0, "it stopped the feed of an origin that this node has");
}

#[test]
fn the_member_that_has_most_is_asked_and_after_a_failure_the_same_again() {
    let mut node = Node::founded(1);
    let old = Origin::new(5, 1);
    node.meet(1, 2);
    node.hear_applied(1, &[dot(old, 40)]);
    node.feed(1, &(1..=40).map(|seq| foreign(dot(old, seq), &[], "x")).collect::<Vec<_>>());
    node.meet(2, 3);
    // Member 2 has 12 that this node lacks; member 3 has 2, though of a longer origin.
    let has: [(u64, Vec<Dot>); 2] = [(1, vec![dot(TWO, 12)]), (2, vec![dot(old, 41), dot(TWO, 1)])];
    let pass = |node: &mut Node, has: &[(u64, Vec<Dot>)], ms: u64| {
        for _ in 0..ms / 100 {
            for (link, dots) in has {
                node.hear_applied(*link, dots);
                for origin in node.fed_on(*link) {
                    refuse(node, *link, origin, RefuseReason::LogRemoved);
                }
            }
            node.run_ms(100);
        }
    };
    pass(&mut node, &has, 3 * STALL_MS);
    assert_eq!(node.replica.fetches_snapshot_from(), Some(2), "it has most of what is lacking");
    node.handle(Input::SnapshotFailed("why".to_owned()));
    node.settle();
    assert_eq!(node.replica.fetches_snapshot_from(), None);
    assert_eq!(node.count(|e| matches!(e, Event::SnapshotFailed { from: 2, .. })), 1);
    let more: [(u64, Vec<Dot>); 2] = [(1, vec![dot(TWO, 12)]), (2, vec![dot(old, 41), dot(TWO, 100)])];
    pass(&mut node, &more, 2 * STALL_MS - 100);
    assert_eq!(node.replica.fetches_snapshot_from(), None, "not at once");
    pass(&mut node, &more, 2 * STALL_MS);
    assert_eq!(node.replica.fetches_snapshot_from(), Some(2), "it may still hold what it had pinned");
    node.handle(Input::SnapshotFailed("why".to_owned()));
    node.handle(Input::LinkDown(LinkId(1)));
    pass(&mut node, &more[1..], 4 * STALL_MS);
    assert_eq!(node.replica.fetches_snapshot_from(), Some(3), "it is gone");
    node.handle(Input::SnapshotFailed("why".to_owned()));
    node.handle(Input::SnapshotFailed("again".to_owned()));
    node.settle();
    assert_eq!(node.count(|e| matches!(e, Event::SnapshotFailed { .. })), 3, "what nobody fetches cannot fail");
}

/// The log of a node that joined a snapshot lacks what that brought.
#[test]
fn a_feed_across_a_joined_snapshot_is_refused_and_skips_nothing() {
    let mut cluster = one_was_away();
    cluster.unlink_all();
    let before = cluster.nodes[2].applied();
    let served = |node: &Node, from: &AppliedSet| {
        let heads = |o| node.replica.frontier().heads.head(o);
        let origins = node.applied().iter().map(|dot| dot.origin).collect::<Vec<_>>();
        let wanted = origins.into_iter().map(|o| {
            let seq = from.seq(o);
            let head = if heads(o).seq == seq { heads(o) } else { head_at(node, o, seq) };
            (o, head)
        });
        let subscribe = Subscribe { subscription: 1, origins: wanted.collect() };
        node.served(subscribe, 1_000)
    };
    cluster.link(0, 2);
    cluster.run_ms(5_000);
    assert_eq!(cluster.joins, 1);
    cluster.unlink_all();
    let gained = cluster.nodes[2].applied().since(&before);
    put(&mut cluster, 2, "k", "behind the gap");
    let steps = served(&cluster.nodes[2], &before);
    let mut next = before.clone();
    let mut refused = Vec::new();
    for step in steps {
        match step {
            FeedStep::Group(group) => {
                for bytes in group.write_sets {
                    next.add(WriteSet::peek_dot(&bytes).expect("a replica wrote it"));
                }
            }
            FeedStep::Refused(refuses) => refused.extend(refuses.into_iter().map(|r| (r.origin, r.reason))),
            other => panic!("{other:?}"),
        }
    }
    let expected: Vec<_> = gained.iter().map(|dot| (dot.origin, RefuseReason::LogRemoved)).collect();
    refused.sort_by_key(|(origin, _)| *origin);
    assert_eq!(refused, expected, "what the snapshot brought, and nothing else");
    let own = cluster.nodes[2].last_own().dot;
    assert_eq!(next.seq(own.origin), own.seq, "its own it feeds across");
    // Whoever has what was gained is fed on.
    let now = cluster.nodes[2].applied();
    let caught_up: AppliedSet =
        now.iter().map(|dot| if dot.origin == own.origin { Dot::new(dot.origin, dot.seq - 1) } else { dot }).collect();
    let steps = served(&cluster.nodes[2], &caught_up);
    assert!(matches!(&steps[..], [FeedStep::Group(group)] if group.write_sets.len() == 1), "{steps:?}");
}

/// The head of an origin when it stood at `seq`, as this node's log knows it.
fn head_at(node: &Node, origin: Origin, seq: u64) -> ChainHead {
    let mut head = ChainHead::NONE;
    for bytes in node.replica.storage().log_bytes() {
        let dot = WriteSet::peek_dot(&bytes).expect("a replica wrote it");
        if dot.origin == origin && dot.seq <= seq {
            head = ChainHead { seq: dot.seq, hash: head.hash.extended(&bytes) };
        }
    }
    assert_eq!(head.seq, seq);
    head
}

/// A feed that stands at the end of the log while its node joins: nothing of what was gained comes
/// after, and when the receiver asks again it is told.
#[test]
fn a_feed_that_a_snapshot_overtakes_says_so_when_it_is_asked_again() {
    let mut cluster = one_was_away();
    cluster.unlink_all();
    // Another node is as far as the one that was away, and linked with it only.
    let (storage, frontier) = {
        let storage = cluster.nodes[2].replica.storage();
        storage.cut_to(storage.log_bytes().len())
    };
    let mut fourth = Node::new(4);
    fourth.now = cluster.nodes[2].now;
    fourth.reopen(storage, frontier);
    cluster.nodes.push(fourth);
    cluster.link(2, 3);
    cluster.run_ms(500);
    cluster.link(0, 2);
    cluster.run_ms(20_000);
    assert_eq!(cluster.joins, 2, "the fourth needed one too");
    put(&mut cluster, 0, "k", "on and on");
    put(&mut cluster, 3, "k", "too");
    cluster.run_ms(20_000);
    cluster.unlink_all();
    assert_eq!(cluster.nodes[3].applied(), cluster.nodes[2].applied());
    assert_eq!(cluster.nodes[3].replica.frontier().digest.total(), cluster.nodes[2].replica.frontier().digest.total());
    judge(&cluster, &mut Oracle::default());
}

/// A seed's numbers, one after another (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }
}

/// What one seed had come about.
#[derive(Debug, Default)]
struct Seen {
    joins: usize,
    resumes: usize,
    crashes_while_fetching: usize,
    donor_crashes: usize,
}

/// Before, among and behind the keys that make the parts of a snapshot.
const KEYS: [&str; 5] = ["a", "b", "k070", "y", "z"];

fn act(cluster: &mut Cluster, dice: &mut Dice, contexts: &mut Vec<(usize, SealedContext)>, seen: &mut Seen) {
    let n = cluster.nodes.len();
    let (at, other, key) = (dice.roll(n), dice.roll(n), dice.roll(KEYS.len()));
    match dice.roll(20) {
        0..=7 => {
            let known: Vec<_> = contexts.iter().filter(|(of, _)| *of == key).collect();
            let supersede = match (dice.roll(6), known.len()) {
                (0, _) => Supersede::Nothing,
                (1 | 2, 1..) => Supersede::Shown(known[dice.roll(known.len())].1.clone()),
                _ => Supersede::Held,
            };
            let value = dice.roll(1_000_000).to_string();
            let first = change(KEYS[key], (dice.roll(3) > 0).then_some(&*value), supersede);
            let second = change(KEYS[(key + 1) % KEYS.len()], Some(&value), Supersede::Held);
            let changes = if dice.roll(3) == 0 { vec![first, second] } else { vec![first] };
            // A context may name what its own process lost in a crash, or more than a field takes.
            let _ = cluster.nodes[at].write(changes);
        }
        8 | 9 => contexts.push((key, cluster.nodes[at].context(KEYS[key]))),
        10..=12 if at != other => _ = cluster.link(at, other),
        13 => cluster.unlink_between(at, other),
        14 | 15 => cluster.cut_log(at),
        16 => cluster.checkpoint(at),
        17 => {
            seen.crashes_while_fetching += usize::from(cluster.is_fetching(at));
            let donates = (0..n).any(|r| {
                cluster.is_fetching(r) && cluster.nodes[r].replica.fetches_snapshot_from() == Some(at as u32 + 1)
            });
            seen.donor_crashes += usize::from(donates);
            cluster.crash(at);
            if cluster.fetched.get(&at).is_some_and(|fetched| fetched.end.is_some()) {
                cluster.join_fetched(at);
            }
        }
        _ => cluster.run_ms(100 * (1 + dice.roll(15) as u64)),
    }
}

fn run(seed: u64, start: &dyn Fn(u32) -> Cluster) -> Seen {
    let mut dice = Dice(seed);
    let mut cluster = start(2 + dice.roll(3) as u32);
    let (mut contexts, mut seen, mut oracle) = (Vec::new(), Seen::default(), Oracle::default());
    judge(&cluster, &mut oracle);
    for _ in 0..60 + dice.roll(60) {
        // Now and then a part comes in: walks are long.
        cluster.parts_at_once = usize::from(dice.roll(4) == 0);
        act(&mut cluster, &mut dice, &mut contexts, &mut seen);
        cluster.settle();
        judge(&cluster, &mut oracle);
    }
    cluster.parts_at_once = usize::MAX;
    cluster.unlink_all();
    mesh(&mut cluster);
    for _ in 0..20 {
        cluster.run_ms(2_000);
        judge(&cluster, &mut oracle);
    }
    cluster.assert_equal();
    Seen { joins: cluster.joins, resumes: cluster.resumes, ..seen }
}

/// Writes with any contexts, links that come and go, logs cut, crashes, and snapshots fetched part by
/// part: at every step each node shows the writes that no applied write superseded.
#[test]
fn whatever_happens_each_node_shows_what_no_applied_write_superseded_and_all_end_equal() {
    let asked = std::env::var("POLYARCH_SEEDS").ok().and_then(|seeds| seeds.parse().ok());
    let (mut all, seeds) = (Seen::default(), asked.unwrap_or(40));
    for seed in 0..seeds {
        let seen = std::panic::catch_unwind(|| run(seed, &padded)).unwrap_or_else(|_| panic!("seed {seed}"));
        all.joins += seen.joins;
        all.resumes += seen.resumes;
        all.crashes_while_fetching += seen.crashes_while_fetching;
        all.donor_crashes += seen.donor_crashes;
    }
    println!("{all:?}");
    if seeds >= 40 {
        assert!(
            all.joins > 20 && all.resumes > 0 && all.crashes_while_fetching > 0 && all.donor_crashes > 0,
            "{all:?}"
        );
    }
}
