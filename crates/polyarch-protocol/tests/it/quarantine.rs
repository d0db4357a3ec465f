//! Feeds that are stopped: what is told of them, how they go on, and how others go round.

use polyarch_crdt::{Dot, Origin};
use polyarch_protocol::client::Refusal;
use polyarch_protocol::condition::{ForkMember, ForkSide, PauseCause};
use polyarch_protocol::peer::{Heartbeat, PeerMessage, Refuse, RefuseReason};
use polyarch_protocol::{Event, LinkId};

use crate::support::{Cluster, Node, foreign, heartbeat};

const ONE: Origin = Origin::new(11, 9);
const TWO: Origin = Origin::new(12, 9);
const THREE: Origin = Origin::new(13, 9);

fn dot(origin: Origin, seq: u64) -> Dot {
    Dot::new(origin, seq)
}

fn refuse_as_forked(node: &mut Node, link: u64, at: Dot) {
    let subscription = node.subscription(link).expect("it subscribed").subscription;
    let reason = RefuseReason::Fork(at);
    node.hear(link, PeerMessage::Refuse(Refuse { subscription, origin: at.origin, reason }));
}

/// A node that 11 feeds three origins.
fn fed() -> Node {
    let mut node = Node::founded(1);
    node.meet(1, 11);
    node.hear_applied(1, &[dot(ONE, 9), dot(TWO, 9), dot(THREE, 9)]);
    node
}

fn feed_poison(node: &mut Node, at: Dot) {
    let mut poison = foreign(at, &[], "x").encode().to_vec();
    poison.push(0);
    node.feed_bytes(1, vec![poison.into()]);
}

#[test]
fn it_is_told_why_and_since_when_a_feed_is_stopped() {
    let mut node = fed();
    let since_ms = node.now.wall_ms;
    feed_poison(&mut node, dot(ONE, 1));
    node.advance(70);
    refuse_as_forked(&mut node, 1, dot(TWO, 4));
    node.feed(1, &[foreign(dot(THREE, 1), &[dot(ONE, 3)], "x")]);
    node.run_ms(100);
    let stopped =
        Heartbeat { paused: vec![TWO], ..heartbeat(&[dot(ONE, 9), dot(TWO, 9), dot(THREE, 9)], node.now.wall_ms) };
    node.meet(2, 12);
    node.hear(2, PeerMessage::Heartbeat(stopped));
    let paused = node.condition().paused;
    let causes: Vec<_> = paused.iter().map(|p| (p.origin, p.since_ms - since_ms, p.behind, p.cause.clone())).collect();
    let members = vec![
        ForkMember { server_id: 11, side: ForkSide::Other },
        ForkMember { server_id: 12, side: ForkSide::Stopped },
    ];
    let PauseCause::Poison { reason, .. } = &causes[0].3 else { panic!("{causes:?}") };
    assert!(!reason.is_empty());
    assert_eq!(
        causes,
        [
            (ONE, 0, 9, PauseCause::Poison { dot: dot(ONE, 1), reason: reason.clone() }),
            (TWO, 70, 9, PauseCause::Fork { dot: dot(TWO, 4), members }),
            (THREE, causes[2].1, 9, PauseCause::Waits { on: ONE }),
        ]
    );
}

#[test]
fn a_retried_feed_goes_on_from_where_it_stood_with_all_that_waited_for_it() {
    let mut node = fed();
    node.feed(1, &[foreign(dot(ONE, 1), &[], "x")]);
    feed_poison(&mut node, dot(ONE, 2));
    node.feed(1, &[foreign(dot(THREE, 1), &[dot(ONE, 2)], "x")]);
    node.run_ms(100);
    assert_eq!(node.fed_on(1), [TWO]);
    // What waits goes on only with what it waits for.
    assert_eq!(node.retry(Some(THREE)), Ok(vec![ONE, THREE]));
    assert_eq!(node.fed_on(1), [ONE, TWO, THREE]);
    let head = node.subscription(1).expect("it subscribed").origins[0].1;
    assert_eq!(head.seq, 1, "from where it stood");
    assert_eq!(node.count(|e| matches!(e, Event::FeedsRetried { .. })), 1);
    node.feed(1, &[foreign(dot(ONE, 2), &[], "x"), foreign(dot(THREE, 1), &[dot(ONE, 2)], "x")]);
    assert_eq!((node.applied().seq(ONE), node.applied().seq(THREE)), (2, 1));
    assert!(node.condition().paused.is_empty());
    node.run_ms(1_100);
    assert_eq!(node.heartbeats_sent(1).last().map(|beat| beat.paused.clone()), Some(vec![]));
}

#[test]
fn a_feed_whose_cause_is_still_there_stops_again_with_an_alarm() {
    let mut node = fed();
    refuse_as_forked(&mut node, 1, dot(ONE, 4));
    feed_poison(&mut node, dot(TWO, 1));
    assert_eq!(node.fed_on(1), [THREE]);
    assert_eq!(node.retry(None), Ok(vec![ONE, TWO]));
    assert_eq!(node.fed_on(1), [ONE, TWO, THREE]);
    refuse_as_forked(&mut node, 1, dot(ONE, 4));
    feed_poison(&mut node, dot(TWO, 1));
    assert_eq!(node.count(|e| matches!(e, Event::Fork { .. })), 2);
    assert_eq!(node.count(|e| matches!(e, Event::Poisoned { .. })), 2);
    assert_eq!(node.condition().paused.len(), 2);
    assert_eq!(node.fed_on(1), [THREE]);
}

#[test]
fn only_what_is_stopped_can_be_retried() {
    let mut node = fed();
    assert_eq!(node.retry(Some(ONE)), Err(Refusal::NotPaused(ONE)));
    assert_eq!(node.retry(None), Ok(vec![]));
    assert_eq!(node.count(|e| matches!(e, Event::FeedsRetried { .. })), 0);
}

/// A ring of four: 3 would be fed the origin of 1 by 2 or 4, each one link from it.
#[test]
fn others_go_round_a_node_that_has_stopped_an_origin() {
    let mut cluster = Cluster::of(4);
    let links: Vec<LinkId> = [(0, 1), (1, 2), (2, 3), (3, 0)].map(|(one, other)| cluster.link(one, other)).into();
    cluster.nodes[0].put("k", "1").expect("it is writable");
    cluster.run_ms(300);
    let origin = cluster.nodes[0].last_own().dot.origin;
    let feed_of = |node: &mut Node| {
        let feeds = node.status().feeds;
        feeds.into_iter().find(|feed| feed.origin == origin).expect("it is known there").from
    };
    assert_eq!(feed_of(&mut cluster.nodes[2]), Some(2));
    // On the link from 1 to 2 comes what 2 cannot read.
    let last = cluster.nodes[1].applied().seq(origin);
    let mut poison = foreign(dot(origin, last + 1), &[], "x").encode().to_vec();
    poison.push(0);
    cluster.nodes[1].feed_bytes(links[0].0, vec![poison.into()]);
    assert_eq!(cluster.nodes[1].condition().paused.len(), 1);
    cluster.run_ms(300);
    assert_eq!(feed_of(&mut cluster.nodes[2]), Some(4), "at once, not after a stall");
    cluster.nodes[0].put("k", "2").expect("it is writable");
    cluster.run_ms(300);
    assert_eq!(cluster.nodes[2].shown("k"), ["2"]);
    assert_eq!(cluster.nodes[1].applied().seq(origin), last);
    // The operator of 2 lets it go on, and it stays where it is.
    cluster.nodes[1].retry(Some(origin)).expect("it is stopped");
    cluster.run_ms(1_000);
    cluster.assert_equal();
}
