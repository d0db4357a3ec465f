//! Peers: handshake, heartbeats, which link feeds which origin, and what comes in on it.

use bytes::Bytes;
use polyarch_crdt::{Dot, Hlc, Origin};
use polyarch_protocol::catalog::Member;
use polyarch_protocol::client::{Refusal, Response};
use polyarch_protocol::codec::CodecError;
use polyarch_protocol::peer::{ClusterId, Hello, PeerMessage, Refuse, RefuseReason};
use polyarch_protocol::{Event, Input, LinkId, Storage, WriteSet};

use crate::support::{CLUSTER, Cluster, Node, config, foreign, heartbeat};

const ONE: Origin = Origin::new(11, 9);
const TWO: Origin = Origin::new(12, 9);
const THREE: Origin = Origin::new(13, 9);
const FOUR: Origin = Origin::new(14, 9);

fn dot(origin: Origin, seq: u64) -> Dot {
    Dot::new(origin, seq)
}

fn refuse(node: &Node, link: u64, origin: Origin, reason: RefuseReason) -> PeerMessage {
    let subscription = node.subscription(link).expect("it subscribed").subscription;
    PeerMessage::Refuse(Refuse { subscription, origin, reason })
}

// Handshake.

#[test]
fn a_hello_must_be_of_this_cluster_and_of_whom_the_certificate_names() {
    let hellos = [(2, Some(ClusterId(1)), 2), (2, Some(CLUSTER), 3)];
    for (certified, cluster_id, server_id) in hellos {
        let mut node = Node::founded(1);
        node.link_up(1, certified, false);
        let hello = Hello { cluster_id, server_id, boot_id: 5 };
        node.hear(1, PeerMessage::Hello(hello));
        assert_eq!(node.closed.len(), 1);
        assert_eq!(node.count(|e| matches!(e, Event::Refused { server_id, .. } if *server_id == certified)), 1);
        assert_eq!(node.count(|e| matches!(e, Event::Linked { .. } | Event::Unlinked { .. })), 0);
    }
}

#[test]
fn nothing_is_heard_before_a_hello() {
    let mut node = Node::founded(1);
    node.link_up(1, 2, false);
    node.feed_bytes(1, vec![foreign(dot(TWO, 1), &[], "x").encode(), Bytes::from_static(b"junk")]);
    node.hear_applied(1, &[dot(TWO, 1)]);
    assert_eq!(node.closed.len(), 1);
    assert_eq!(node.subscription(1), None);
    assert!(!node.applied().includes(dot(TWO, 1)));
}

#[test]
fn a_node_about_to_join_only_learns_the_cluster() {
    let mut node = Node::founded(1);
    node.link_up(1, 2, false);
    assert!(matches!(&node.sent[..], [(_, PeerMessage::Hello(h))] if h.cluster_id == Some(CLUSTER)));
    let asks = Hello { cluster_id: None, server_id: 2, boot_id: 1 };
    node.hear(1, PeerMessage::Hello(asks));
    assert!(node.closed.is_empty());
    node.hear_applied(1, &[]);
    assert_eq!(node.closed.len(), 1, "it has not said who it is");
}

#[test]
fn a_second_hello_ends_the_link_and_the_operator_is_told_that_it_did() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.hello(1, 2, 2);
    assert_eq!(node.closed.len(), 1);
    node.handle(Input::LinkDown(LinkId(1)));
    node.settle();
    assert_eq!(node.count(|e| matches!(e, Event::Linked { .. })), 1);
    assert_eq!(node.count(|e| matches!(e, Event::Unlinked { .. })), 1);
}

#[test]
fn of_two_links_to_one_member_both_sides_keep_the_same_in_every_order() {
    let orders = |n: usize| -> Vec<Vec<usize>> {
        let mut orders = vec![vec![]];
        for at in 0..n {
            orders = orders
                .iter()
                .flat_map(|o: &Vec<usize>| (0..=o.len()).map(move |i| [&o[..i], &[at], &o[i..]].concat()))
                .collect();
        }
        orders
    };
    for order in orders(4) {
        let mut cluster = Cluster::of(2);
        let first = cluster.connect(0, 1);
        let second = cluster.connect(1, 0);
        cluster.perform();
        for at in order {
            let (link, to) = [(first, 0), (first, 1), (second, 0), (second, 1)][at];
            cluster.deliver(link, to);
            cluster.perform();
        }
        cluster.settle();
        assert_eq!(cluster.linked(), [first], "that which the smaller server id dialled");
        cluster.run_ms(2_000);
        assert_eq!(cluster.linked(), [first]);
        for node in &cluster.nodes {
            let (up, down) = (
                node.count(|e| matches!(e, Event::Linked { .. })),
                node.count(|e| matches!(e, Event::Unlinked { .. })),
            );
            assert_eq!(up, down + 1);
        }
    }
}

#[test]
fn a_link_of_a_newer_process_replaces_that_of_the_older() {
    let mut node = Node::founded(1);
    node.link_up(1, 2, true);
    node.hello(1, 2, 100);
    node.link_up(2, 2, false);
    node.hello(2, 2, 101);
    let closed: Vec<LinkId> = node.closed.iter().map(|(link, _)| *link).collect();
    assert_eq!(closed, [LinkId(1)]);
    assert_eq!(node.count(|e| matches!(e, Event::Unlinked { .. })), 0);
}

#[test]
fn a_cut_link_goes_down_stays_down_without_a_word_and_can_be_healed() {
    let mut cluster = Cluster::of(2);
    cluster.link(0, 1);
    let ask = |cluster: &mut Cluster, cuts: bool, server_id| {
        let node = &mut cluster.nodes[0];
        let request = node.ask(|tag| match cuts {
            true => Input::CutLink(tag, server_id),
            false => Input::HealLink(tag, server_id),
        });
        let answer = node.answer(request);
        cluster.settle();
        answer
    };
    assert_eq!(ask(&mut cluster, true, 9), Some(Err(Refusal::UnknownMember(9))));
    assert_eq!(ask(&mut cluster, true, 1), Some(Err(Refusal::UnknownMember(1))), "oneself");
    assert_eq!(ask(&mut cluster, true, 2), Some(Ok(Response::Done)));
    assert!(cluster.linked().is_empty());
    let wanted: Vec<&Member> = cluster.nodes[0].replica.members_to_dial().collect();
    assert!(wanted.is_empty());
    let unlinked = |cluster: &Cluster, at: usize| cluster.nodes[at].count(|e| matches!(e, Event::Unlinked { .. }));
    assert_eq!((unlinked(&cluster, 0), unlinked(&cluster, 1)), (1, 1));
    for _ in 0..3 {
        cluster.link(1, 0);
        assert!(cluster.linked().is_empty(), "the other side keeps dialling");
    }
    let linked = |cluster: &Cluster, at: usize| cluster.nodes[at].count(|e| matches!(e, Event::Linked { .. }));
    assert_eq!((linked(&cluster, 0), linked(&cluster, 1)), (1, 1), "and learns nothing");
    assert!(cluster.nodes[0].status().peers[0].cut);
    assert_eq!(ask(&mut cluster, false, 2), Some(Ok(Response::Done)));
    cluster.nodes[1].put("k", "1").expect("it is writable");
    cluster.link(1, 0);
    cluster.run_ms(300);
    cluster.assert_equal();
}

#[test]
fn a_write_set_that_comes_home_is_counted_and_skipped() {
    let mut node = Node::founded(1);
    node.put("k", "v").expect("it is writable");
    node.meet(1, 2);
    let (applied, own) = (node.applied(), node.replica.storage().write_sets());
    node.feed(1, &own);
    let counters = node.status().counters;
    assert_eq!((counters.returned, counters.skipped), (own.len() as u64, own.len() as u64));
    assert_eq!((node.applied(), node.replica.storage().write_sets()), (applied, own));
    assert!(node.closed.is_empty(), "that it came is nobody's fault");
}

// Heartbeats.

#[test]
fn an_idle_node_sends_a_heartbeat_a_second_and_a_busy_one_ten() {
    let mut cluster = Cluster::of(3);
    for (one, other) in [(0, 1), (1, 2), (0, 2)] {
        cluster.link(one, other);
    }
    // Until how far each is has been told to all as well.
    cluster.run_ms(11_000);
    let beats = |cluster: &Cluster| -> usize {
        let sent = cluster.nodes.iter().flat_map(|node| &node.sent);
        sent.filter(|(_, message)| matches!(message, PeerMessage::Heartbeat(_))).count()
    };
    cluster.nodes.iter_mut().for_each(Node::forget);
    cluster.run_ms(10_000);
    // 6 ends of links for 10 s; nothing else is said.
    assert!((54..=66).contains(&beats(&cluster)), "{}", beats(&cluster));
    assert!(cluster.nodes.iter().all(|node| node.sent.iter().all(|(_, m)| matches!(m, PeerMessage::Heartbeat(_)))));
    cluster.nodes.iter_mut().for_each(Node::forget);
    for i in 0..500 {
        cluster.nodes[i % 3].put("k", &i.to_string()).expect("it is writable");
        cluster.settle();
        if i % 5 == 0 {
            cluster.run_ms(100);
        }
    }
    assert!(beats(&cluster) <= 6 * 110, "{}", beats(&cluster));
    cluster.run_ms(200);
    cluster.assert_equal();
}

#[test]
fn a_new_origin_is_told_at_once_and_only_when_it_is_durable() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.hear_applied(1, &[dot(TWO, 2)]);
    node.run_ms(200);
    node.forget();
    node.syncs = false;
    let subscription = 1;
    node.handle(Input::FeedGroup {
        link: LinkId(1),
        subscription,
        write_sets: vec![foreign(dot(TWO, 1), &[], "x").encode()],
    });
    node.sync();
    node.perform();
    let beats = node.heartbeats_sent(1);
    assert_eq!(beats.len(), 1, "one, not another before it was durable");
    assert!(beats[0].applied.includes(dot(TWO, 1)));
}

#[test]
fn members_are_announced_once() {
    let mut cluster = Cluster::of(3);
    for (one, other) in [(0, 1), (1, 2), (0, 2)] {
        cluster.link(one, other);
    }
    let before = cluster.nodes[0].applied();
    cluster.run_ms(10_000);
    assert_eq!(cluster.nodes[0].applied(), before);
    // Another address is told once, by another epoch.
    cluster.unlink_all();
    cluster.nodes[2].config.addresses = vec!["moved:1".to_owned()];
    cluster.nodes[2].crash();
    cluster.link(0, 2);
    cluster.link(1, 2);
    cluster.run_ms(10_000);
    cluster.assert_equal();
    assert_eq!(cluster.nodes[0].applied().write_sets(), before.write_sets() + 1);
    assert_eq!(
        cluster.nodes[1].replica.catalog().member(3).map(|m| m.addresses.clone()),
        Some(vec!["moved:1".to_owned()])
    );
}

#[test]
fn equal_sets_with_different_digests_are_an_alarm_once() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    let applied: Vec<Dot> = node.applied().iter().collect();
    let ours = node.replica.frontier().digest.total();
    let mut beat = heartbeat(&applied, node.now.wall_ms);
    beat.digest = Some(ours);
    node.hear(1, PeerMessage::Heartbeat(beat.clone()));
    assert_eq!(node.count(|e| matches!(e, Event::DigestMismatch { .. })), 0);
    beat.digest = Some(ours ^ 1);
    for _ in 0..3 {
        node.hear(1, PeerMessage::Heartbeat(beat.clone()));
    }
    let mismatch = Event::DigestMismatch { server_id: 2, ours, theirs: ours ^ 1 };
    assert_eq!(node.events.iter().filter(|e| **e == mismatch).count(), 1);
    // Staged writes make no false alarm: what is durable is compared.
    node.syncs = false;
    let _ = node.ask(|tag| Input::CreateKeyspace(tag, "n".to_owned(), polyarch_protocol::catalog::KeyspaceKind::Mv));
    beat.digest = Some(ours);
    node.hear(1, PeerMessage::Heartbeat(beat));
    node.sync();
    node.perform();
    assert_eq!(node.count(|e| matches!(e, Event::DigestMismatch { .. })), 1);
}

#[test]
fn a_clock_that_is_off_is_an_alarm_once_until_it_was_right() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    for (clock_ms, alarms) in [(0, 1), (u64::MAX, 1), (node.now.wall_ms + 500, 1), (node.now.wall_ms + 501, 2)] {
        node.hear(1, PeerMessage::Heartbeat(heartbeat(&[], clock_ms)));
        assert_eq!(node.count(|e| matches!(e, Event::ClockOffset { .. })), alarms);
    }
}

#[test]
fn stamps_far_ahead_are_applied_not_merged_and_alarmed_once_an_origin() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.hear_applied(1, &[dot(TWO, 20)]);
    for seq in 1..=20 {
        let mut ahead = foreign(dot(TWO, seq), &[], "x");
        ahead.hlc = Hlc::new(node.now.wall_ms + 3_600_001 + seq, 0);
        node.feed(1, &[ahead]);
    }
    assert!(node.applied().includes(dot(TWO, 20)));
    assert_eq!(node.count(|e| matches!(e, Event::StampAhead { .. })), 1);
    node.put("k", "1").expect("it is writable");
    assert!(node.last_own().hlc.millis() <= node.now.wall_ms + 1);
}

// Which link feeds what.

#[test]
fn each_origin_has_one_feed_and_another_when_its_link_is_lost() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.meet(2, 12);
    let both = [dot(ONE, 3), dot(TWO, 3)];
    node.hear_applied(1, &both);
    node.hear_applied(2, &both);
    assert_eq!((node.fed_on(1), node.fed_on(2)), (vec![ONE], vec![TWO]), "each by its own server, at once");
    for (link, origin) in [(1, ONE), (2, TWO)] {
        (1..=3).for_each(|seq| node.feed(link, &[foreign(dot(origin, seq), &[], "x")]));
    }
    assert_eq!(node.applied().seq(TWO), 3);
    node.run_ms(4_000);
    assert_eq!((node.fed_on(1), node.fed_on(2)), (vec![ONE], vec![TWO]));
    node.handle(Input::LinkDown(LinkId(1)));
    node.settle();
    assert_eq!(node.fed_on(2), [ONE, TWO]);
}

#[test]
fn an_origin_that_its_own_server_refuses_is_taken_elsewhere_and_not_asked_for_in_a_loop() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.meet(2, 12);
    let has = [dot(ONE, 3)];
    node.hear_applied(1, &has);
    node.hear_applied(2, &has);
    assert_eq!(node.fed_on(1), [ONE]);
    let before = node.subscribes_sent(1);
    for _ in 0..10 {
        let message = refuse(&node, 1, ONE, RefuseReason::LogRemoved);
        node.hear(1, message);
    }
    assert!(node.subscribes_sent(1) <= before + 1, "it asked {} times", node.subscribes_sent(1));
    assert_eq!(node.count(|e| matches!(e, Event::NotFed { .. })), 1);
    node.run_ms(100);
    assert_eq!(node.fed_on(2), [ONE]);
}

#[test]
fn what_a_write_set_waits_for_is_not_asked_for_in_a_loop_where_it_was_refused() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.meet(2, 12);
    node.hear_applied(1, &[dot(ONE, 1), dot(THREE, 7)]);
    node.feed(1, &[foreign(dot(ONE, 1), &[dot(THREE, 7)], "x")]);
    let message = refuse(&node, 1, THREE, RefuseReason::LogRemoved);
    node.hear(1, message);
    let before = node.subscribes_sent(1);
    node.run_ms(200);
    node.feed(1, &[foreign(dot(ONE, 1), &[dot(THREE, 7)], "x")]);
    for _ in 0..50 {
        node.run_ms(100);
        if node.fed_on(1).contains(&THREE) {
            let message = refuse(&node, 1, THREE, RefuseReason::LogRemoved);
            node.hear(1, message);
        }
    }
    assert!(node.subscribes_sent(1) - before <= 10, "{} in 5 s", node.subscribes_sent(1) - before);
}

#[test]
fn a_refusal_is_void_once_this_node_got_further_or_after_a_while() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.hear_applied(1, &[dot(ONE, 3)]);
    let message = refuse(&node, 1, ONE, RefuseReason::LogUnreadable);
    node.hear(1, message);
    let before = node.subscribes_sent(1);
    node.run_ms(20_000);
    assert_eq!(node.subscribes_sent(1), before);
    node.run_ms(20_000);
    assert!(node.subscribes_sent(1) > before, "the peer's disk may answer again");
    assert_eq!(node.fed_on(1), [ONE]);
    // What it refused from here on, it may have from further on.
    let message = refuse(&node, 1, ONE, RefuseReason::LogRemoved);
    node.hear(1, message);
    let before = node.subscribes_sent(1);
    node.meet(2, 12);
    node.hear_applied(2, &[dot(ONE, 1)]);
    node.feed(2, &[foreign(dot(ONE, 1), &[], "x")]);
    node.run_ms(3_000);
    assert!(node.subscribes_sent(1) > before);
}

/// A peer that says it has more and sends nothing must not hold an origin that another serves.
#[test]
fn a_peer_that_promises_and_does_not_deliver_cannot_starve_an_origin() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.meet(2, 12);
    node.hear_applied(1, &[dot(THREE, 1_000)]);
    let mut applied = 0;
    for _ in 0..100 {
        node.hear_applied(1, &[dot(THREE, 1_000)]);
        node.hear_applied(2, &[dot(THREE, applied + 1)]);
        if node.fed_on(2).contains(&THREE) {
            applied += 1;
            node.feed(2, &[foreign(dot(THREE, applied), &[], "x")]);
        }
        node.run_ms(100);
    }
    assert!(applied >= 40, "{applied} in 10 s");
}

/// Catching up through a long log, a feed is silent on most origins for long: that is no stall.
#[test]
fn a_feed_that_delivers_is_not_begun_anew_for_origins_that_come_later() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    let origins: Vec<Origin> = (0..30).map(|epoch| Origin::new(11, epoch)).collect();
    let all: Vec<Dot> = origins.iter().map(|o| dot(*o, 100)).collect();
    node.hear_applied(1, &all);
    let before = node.subscribes_sent(1);
    for seq in 1..=100 {
        node.feed(1, &[foreign(dot(origins[0], seq), &[], "x")]);
        node.run_ms(100);
    }
    assert_eq!(node.subscribes_sent(1), before);
    assert!(node.applied().includes(dot(origins[0], 100)));
    // Silent altogether, it is begun anew once a second and not once for each origin.
    node.run_ms(5_000);
    let anew = node.subscribes_sent(1) - before;
    assert!((4..=5).contains(&anew), "{anew}");
}

#[test]
fn a_feed_that_is_busy_with_others_is_left_for_an_origin_that_its_peer_lacks() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.meet(2, 12);
    node.hear_applied(1, &[dot(ONE, 100), dot(THREE, 1)]);
    node.feed(1, &[foreign(dot(THREE, 1), &[], "x")]);
    node.hear_applied(2, &[dot(THREE, 2)]);
    for seq in 1..=20 {
        node.feed(1, &[foreign(dot(ONE, seq), &[], "x")]);
        node.run_ms(100);
    }
    assert_eq!(node.fed_on(2), [THREE]);
}

// What comes in.

#[test]
fn two_streams_that_wait_for_each_other_both_go_on() {
    let from_p = [foreign(dot(ONE, 1), &[dot(THREE, 1)], "p"), foreign(dot(TWO, 1), &[], "p")];
    let from_q = [foreign(dot(FOUR, 1), &[dot(TWO, 1)], "q"), foreign(dot(THREE, 1), &[], "q")];
    for (first, second) in [(1, 2), (2, 1)] {
        let mut node = Node::founded(1);
        node.meet(1, 21);
        node.hear_applied(1, &[dot(ONE, 1), dot(TWO, 1)]);
        node.meet(2, 22);
        node.hear_applied(2, &[dot(THREE, 1), dot(FOUR, 1)]);
        assert_eq!((node.fed_on(1), node.fed_on(2)), (vec![ONE, TWO], vec![THREE, FOUR]));
        for link in [first, second] {
            let stream = if link == 1 { &from_p } else { &from_q };
            stream.iter().for_each(|w| node.feed(link, std::slice::from_ref(w)));
        }
        for origin in [ONE, TWO, THREE, FOUR] {
            assert!(node.applied().includes(dot(origin, 1)), "{origin}");
        }
        assert_in_causal_order(&node);
        assert_eq!(node.taken[&LinkId(1)] + node.taken[&LinkId(2)], 4);
    }
}

fn assert_in_causal_order(node: &Node) {
    let mut applied = polyarch_crdt::AppliedSet::new();
    for write_set in node.replica.storage().write_sets() {
        assert!(applied.includes_all(write_set.dependencies.applied()), "{}", write_set.dot);
        applied.add(write_set.dot);
    }
}

/// The same with so much before what the other waits for that both links stop reading.
#[test]
fn two_streams_that_wait_beyond_their_bounds_are_untangled() {
    let mut config = config(1, 1);
    config.limits.feed_waiting_bytes_max = 1_000;
    let mut node = Node::with(config);
    node.found();
    let log = |waits: Origin, other: Origin, due: Origin| -> Vec<WriteSet> {
        let waiting = (1..=50).map(|seq| foreign(dot(waits, seq), &[dot(other, 1)], &"x".repeat(100)));
        waiting.chain([foreign(dot(due, 1), &[], "x")]).collect()
    };
    // P: 50 of origin 1 that need 3:1, then 2:1. Q: 50 of origin 4 that need 2:1, then 3:1. Each
    // peer's own log has what it depends on in front.
    let (p, q) = (log(ONE, THREE, TWO), log(FOUR, TWO, THREE));
    let p = [vec![foreign(dot(THREE, 1), &[], "x")], p].concat();
    let q = [vec![foreign(dot(TWO, 1), &[], "x")], q].concat();
    node.meet(1, 21);
    node.hear_applied(1, &[dot(ONE, 50), dot(TWO, 1)]);
    node.meet(2, 22);
    node.hear_applied(2, &[dot(FOUR, 50), dot(THREE, 1)]);
    let everything = [dot(ONE, 50), dot(TWO, 1), dot(THREE, 1)];
    node.hear_applied(1, &everything);
    node.hear_applied(2, &[dot(FOUR, 50), dot(TWO, 1), dot(THREE, 1)]);
    let mut at = [(0, 0), (0, 0)];
    for _ in 0..400 {
        for (link, stream) in [(1_u64, &p), (2, &q)] {
            let subscription = node.subscription(link).expect("it subscribed").clone();
            let place = &mut at[link as usize - 1];
            if place.0 != subscription.subscription {
                *place = (subscription.subscription, 0);
                node.taken.remove(&LinkId(link));
            }
            let sent_and_taken = place.1 <= node.taken.get(&LinkId(link)).copied().unwrap_or(0) + 1;
            let due = stream.iter().filter(|w| {
                let start = subscription.origins.iter().find(|(o, _)| *o == w.dot.origin);
                start.is_some_and(|(_, head)| w.dot.seq > head.seq)
            });
            if let (true, Some(next)) = (sent_and_taken, due.clone().nth(place.1)) {
                place.1 += 1;
                let next = next.clone();
                node.feed(link, &[next]);
            }
        }
        node.run_ms(100);
    }
    for last in [dot(ONE, 50), dot(TWO, 1), dot(THREE, 1), dot(FOUR, 50)] {
        assert!(node.applied().includes(last), "{last}");
    }
    assert_in_causal_order(&node);
}

#[test]
fn groups_are_owed_while_too_much_waits_and_paid_when_it_no_longer_does() {
    let mut config = config(1, 1);
    config.limits.feed_waiting_bytes_max = 3_000;
    let mut node = Node::with(config);
    node.found();
    node.meet(1, 11);
    node.meet(2, 12);
    node.hear_applied(1, &[dot(ONE, 9)]);
    node.hear_applied(2, &[dot(TWO, 1)]);
    let taken = |node: &Node| node.taken.get(&LinkId(1)).copied().unwrap_or(0);
    for seq in 1..=5 {
        node.feed(1, &[foreign(dot(ONE, seq), &[dot(TWO, 1)], &"x".repeat(1_000))]);
    }
    assert!((1..=2).contains(&taken(&node)), "{}", taken(&node));
    node.feed(2, &[foreign(dot(TWO, 1), &[], "y")]);
    assert_eq!(taken(&node), 5);
    assert!(node.applied().includes(dot(ONE, 5)));
}

#[test]
fn a_gap_ends_the_link_and_repeats_do_not() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.hear_applied(1, &[dot(ONE, 9)]);
    node.feed(1, &[foreign(dot(ONE, 1), &[], "x"), foreign(dot(ONE, 1), &[], "x"), foreign(dot(ONE, 2), &[], "x")]);
    assert_eq!(node.applied().seq(ONE), 2);
    node.feed(1, &[foreign(dot(TWO, 1), &[], "unasked")]);
    assert!(node.closed.is_empty());
    assert_eq!(node.applied().seq(TWO), 0, "what was not subscribed to is not taken");
    node.feed(1, &[foreign(dot(ONE, 4), &[], "x"), foreign(dot(ONE, 3), &[], "x")]);
    assert_eq!(node.closed.len(), 1);
    assert_eq!(node.applied().seq(ONE), 2);
    assert_eq!(node.count(|e| matches!(e, Event::Unlinked { .. })), 1);
}

#[test]
fn groups_of_an_older_subscription_are_taken_and_void() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.hear_applied(1, &[dot(ONE, 9)]);
    let older = node.subscription(1).expect("it subscribed").subscription;
    node.hear_applied(1, &[dot(ONE, 9), dot(TWO, 1)]);
    node.handle(Input::FeedGroup {
        link: LinkId(1),
        subscription: older,
        write_sets: vec![foreign(dot(ONE, 1), &[], "x").encode()],
    });
    node.settle();
    assert_eq!((node.applied().seq(ONE), node.taken[&LinkId(1)]), (0, 1));
}

#[test]
fn a_fork_stops_one_origin_with_an_alarm_and_the_others_go_on() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.hear_applied(1, &[dot(ONE, 9), dot(TWO, 9)]);
    let message = refuse(&node, 1, ONE, RefuseReason::Fork(dot(ONE, 4)));
    node.hear(1, message.clone());
    node.hear(1, message);
    let fork = Event::Fork { dot: dot(ONE, 4), server_id: 11 };
    assert_eq!(node.events.iter().filter(|e| **e == fork).count(), 1);
    node.feed(1, &[foreign(dot(ONE, 1), &[], "x"), foreign(dot(TWO, 1), &[], "x")]);
    assert!(node.applied().includes(dot(TWO, 1)), "the stream goes on");
    assert_eq!(node.applied().seq(ONE), 0);
    node.run_ms(1_500);
    assert_eq!(node.fed_on(1), [TWO], "and never has the origin again");
    assert_eq!(node.heartbeats_sent(1).last().map(|beat| beat.paused.clone()), Some(vec![ONE]));
}

/// Two machines that ran on from one image with its memory: the same GTID, two payloads.
#[test]
fn a_fork_between_real_nodes_is_an_alarm_even_while_neither_has_more() {
    let mut cluster = Cluster::of(2);
    let image = cluster.nodes[0].replica.storage().clone();
    let frontier = cluster.nodes[0].replica.frontier().clone();
    let mut others = cluster.nodes.split_off(1);
    let mut twin = Node::with(cluster.nodes[0].config.clone());
    twin.now = cluster.nodes[0].now;
    for (node, text) in [(&mut cluster.nodes[0], "one"), (&mut twin, "two")] {
        node.config.boot_id = 77;
        let reopened = polyarch_protocol::Replica::open(node.config.clone(), image.clone(), frontier.clone(), node.now);
        node.replica = reopened.expect("it reads");
        node.put("k", text).expect("it is writable");
    }
    assert_eq!(cluster.nodes[0].last_own().dot, twin.last_own().dot);
    // The second twin was heard by the other member and is gone; the first comes back.
    let mut member = others.remove(0);
    member.meet(900, 1);
    let forked = twin.last_own();
    member.hear_applied(900, &twin.applied().iter().collect::<Vec<_>>());
    member.feed_bytes(900, vec![forked.encode()]);
    member.handle(Input::LinkDown(LinkId(900)));
    member.forget();
    member.feeds.clear();
    cluster.nodes.push(member);
    cluster.link(0, 1);
    cluster.run_ms(1_000);
    assert!(cluster.nodes.iter().any(|node| node.count(|e| matches!(e, Event::Fork { .. })) == 1));
}

#[test]
fn a_write_set_that_cannot_be_read_stops_one_origin_and_the_others_go_on() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.hear_applied(1, &[dot(ONE, 9), dot(TWO, 9)]);
    let mut poison = foreign(dot(ONE, 1), &[], "x").encode().to_vec();
    poison.push(0);
    node.feed_bytes(1, vec![poison.into(), foreign(dot(TWO, 1), &[], "x").encode()]);
    assert_eq!(node.count(|e| matches!(e, Event::Poisoned { origin, .. } if *origin == ONE)), 1);
    assert_eq!(node.fed_on(1), [TWO], "its stream begins anew without the origin");
    node.feed(1, &[foreign(dot(TWO, 1), &[], "x")]);
    assert!(node.applied().includes(dot(TWO, 1)));
    assert!(node.closed.is_empty());
}

/// A write set as a later version may write it: of another layout, or with an effect unknown here.
fn of_the_future(dot: Dot) -> [Bytes; 2] {
    let mut layout = foreign(dot, &[], "x").encode().to_vec();
    layout[1] = 9;
    // The effect of the one change comes last: its variant, and a value of one byte with its length.
    let mut effect = foreign(dot, &[], "x").encode().to_vec();
    let at = effect.len() - 3;
    assert_eq!(effect[at..], [1, 1, b'x']);
    effect[at] = 7;
    [layout.into(), effect.into()]
}

#[test]
fn a_write_set_of_the_future_pauses_its_origin_drops_nothing_and_an_upgrade_goes_on_from_there() {
    for unknown in of_the_future(dot(ONE, 2)) {
        let mut node = Node::founded(1);
        node.meet(1, 11);
        node.hear_applied(1, &[dot(ONE, 9), dot(TWO, 9)]);
        node.feed_bytes(1, vec![foreign(dot(ONE, 1), &[], "x").encode(), unknown]);
        assert_eq!(node.count(|e| matches!(e, Event::Poisoned { origin, .. } if *origin == ONE)), 1);
        assert!(node.closed.is_empty());
        assert_eq!(node.fed_on(1), [TWO]);
        node.feed_bytes(1, vec![foreign(dot(ONE, 3), &[], "x").encode(), foreign(dot(TWO, 1), &[], "x").encode()]);
        assert_eq!((node.applied().seq(ONE), node.applied().seq(TWO)), (1, 1), "the others go on");
        assert_eq!(node.heartbeats_sent(1).last().map(|beat| &beat.paused[..]), Some(&[ONE][..]));

        // The same disk under a binary that can read it.
        node.crash();
        node.meet(1, 11);
        node.hear_applied(1, &[dot(ONE, 9), dot(TWO, 9)]);
        let subscribed = node.subscription(1).expect("it subscribed").origins.clone();
        assert!(subscribed.iter().any(|(origin, head)| (*origin, head.seq) == (ONE, 1)), "{subscribed:?}");
        node.feed(1, &[foreign(dot(ONE, 2), &[], "x"), foreign(dot(ONE, 3), &[], "x")]);
        assert_eq!(node.applied().seq(ONE), 3);
    }
}

#[test]
fn a_message_unknown_here_is_told_once_and_its_sender_left_alone_for_a_while() {
    let mut cluster = Cluster::of(2);
    let node = &mut cluster.nodes[0];
    let told = |node: &Node| node.count(|e| matches!(e, Event::Unreadable { server_id: 2, .. }));
    for again in 0..3 {
        let (known, links) = (100 + 2 * again, node.closed.len());
        node.meet(known, 2);
        node.handle(Input::Unreadable(LinkId(known), CodecError::Malformed));
        node.settle();
        assert_eq!((node.closed.len(), told(node)), (links + 1, 1));
        node.forget_sent();
        node.link_up(known + 1, 2, false);
        assert_eq!((node.closed.len(), node.sent.len()), (links + 2, 0), "not even a hello");
        node.run_ms(10_100);
    }
    // Another process of it may be another version.
    node.link_up(150, 2, false);
    node.hello(150, 2, 77);
    node.handle(Input::Unreadable(LinkId(150), CodecError::Version(3)));
    node.settle();
    assert_eq!(told(node), 2);
}

#[test]
fn who_sends_what_is_unknown_here_is_not_dialled_for_a_while() {
    let mut cluster = Cluster::of(2);
    let link = cluster.link(0, 1);
    let node = &mut cluster.nodes[0];
    node.handle(Input::Unreadable(link, CodecError::Kind(b'?')));
    let dials = |node: &Node| node.replica.members_to_dial().map(|member| member.server_id).collect::<Vec<_>>();
    node.settle();
    assert!(dials(node).is_empty());
    node.run_ms(9_900);
    assert!(dials(node).is_empty());
    node.run_ms(500);
    assert_eq!(dials(node), [2]);
}

#[test]
fn a_peer_can_poison_only_what_it_was_asked_for() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.meet(2, 12);
    node.hear_applied(1, &[dot(ONE, 9)]);
    node.hear_applied(2, &[dot(TWO, 9)]);
    let own = node.last_own().dot.origin;
    for origin in [TWO, THREE, own] {
        let mut poison = foreign(dot(origin, 99), &[], "x").encode().to_vec();
        poison.push(0);
        node.feed_bytes(1, vec![poison.into(), foreign(dot(ONE, node.applied().seq(ONE) + 1), &[], "x").encode()]);
    }
    assert_eq!(node.count(|e| matches!(e, Event::Poisoned { .. })), 0);
    assert_eq!(node.applied().seq(ONE), 3, "the rest of the group is good");
    assert_eq!(node.fed_on(2), [TWO]);
    node.feed_bytes(1, vec![Bytes::from_static(b"no write set")]);
    assert_eq!(node.closed.len(), 1);
}

/// What depends on a stopped origin waits for ever; it must not use up what the others need.
#[test]
fn what_depends_on_a_stopped_origin_does_not_hold_up_the_others() {
    let mut config = config(1, 1);
    config.limits.feed_waiting_bytes_max = 2_000;
    let mut node = Node::with(config);
    node.found();
    node.meet(1, 11);
    node.hear_applied(1, &[dot(ONE, 90), dot(TWO, 90), dot(THREE, 90)]);
    let message = refuse(&node, 1, ONE, RefuseReason::Fork(dot(ONE, 4)));
    node.hear(1, message);
    let mut seq_two = 0;
    for seq in 1..=50 {
        let mut group = Vec::new();
        if node.fed_on(1).contains(&TWO) {
            seq_two += 1;
            group.push(foreign(dot(TWO, seq_two), &[dot(ONE, 5)], &"x".repeat(500)));
        }
        group.push(foreign(dot(THREE, seq), &[], "x"));
        let before = node.subscription(1).expect("it subscribed").subscription;
        node.feed(1, &group);
        if node.subscription(1).expect("it subscribed").subscription != before {
            // A new stream begins where the node is.
            node.feed(1, &[foreign(dot(THREE, seq), &[], "x")]);
        }
        node.run_ms(100);
    }
    assert_eq!(node.applied().seq(THREE), 50);
    let sent = node.taken[&LinkId(1)];
    assert!(sent >= 50, "all groups were taken: {sent}");
    assert_eq!(node.fed_on(1), [THREE]);
}

/// One small write set that waits must not keep the whole frame it came in.
#[test]
fn what_waits_does_not_hold_on_to_its_frame() {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.hear_applied(1, &[dot(ONE, 1), dot(TWO, 1), dot(THREE, 1)]);
    let small = foreign(dot(ONE, 1), &[dot(TWO, 1)], "x").encode();
    let frame = Bytes::from([&small[..], &vec![0; 100_000]].concat());
    node.feed_bytes(1, vec![frame.slice(..small.len())]);
    assert!(frame.is_unique(), "nobody else holds the frame");
}

#[test]
fn own_write_sets_from_before_a_restore_come_back() {
    let mut cluster = Cluster::of(2);
    cluster.link(0, 1);
    cluster.nodes[0].put("k", "before").expect("it is writable");
    let (storage, frontier) = {
        let log = cluster.nodes[0].replica.storage();
        log.cut_to(log.log_bytes().len())
    };
    for value in ["1", "2", "3"] {
        cluster.nodes[0].put("k", value).expect("it is writable");
    }
    cluster.run_ms(300);
    cluster.unlink_all();
    cluster.nodes[0].reopen(storage, frontier);
    assert_eq!(cluster.nodes[0].shown("k"), ["before"]);
    cluster.nodes[0].put("k", "after the restore").expect("it is writable");
    cluster.link(0, 1);
    cluster.run_ms(1_500);
    cluster.assert_equal();
    assert_eq!(cluster.nodes[0].shown("k"), ["3", "after the restore"]);
}

#[test]
fn a_node_without_the_log_that_another_needs_says_so_once_and_feeds_the_rest() {
    let mut cluster = Cluster::of(2);
    let heads = cluster.nodes[0].replica.frontier().heads.clone();
    let _ = heads;
    for i in 0..20 {
        cluster.nodes[0].put("k", &i.to_string()).expect("it is writable");
    }
    cluster.nodes[0].replica.storage_mut().remove_log();
    cluster.nodes[0].crash();
    cluster.nodes[0].put("j", "1").expect("it is writable");
    cluster.link(0, 1);
    cluster.run_ms(5_000);
    let not_fed = cluster.nodes[1].count(|e| matches!(e, Event::NotFed { .. }));
    assert!((1..=2).contains(&not_fed), "{not_fed}");
    assert!(cluster.nodes[1].sent.len() < 100);
    // What depends on it waits; nothing broke.
    let staged = cluster.nodes[1].replica.storage().staged_end();
    assert_eq!(staged, cluster.nodes[1].replica.storage().durable_end());
}
