//! The sending side of a feed: catch-up, live, gaps, forks, a log that is gone.

use polyarch_crdt::{AppliedSet, Dot, Origin};
use polyarch_protocol::client::Supersede;
use polyarch_protocol::limits::wire;
use polyarch_protocol::peer::{FeedGroup, Refuse, RefuseReason, Subscribe};
use polyarch_protocol::{ChainHash, ChainHead, ChainHeads, Feed, FeedStep, LogSource, WriteSet};

use crate::support::{Node, SEGMENT_WRITE_SETS, change, foreign};

const TWO: Origin = Origin::new(2, 9);
const THREE: Origin = Origin::new(3, 9);

/// A node with write sets of its own and, in turn, of two others.
fn sender(of_each: u64) -> Node {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.hear_applied(1, &[Dot::new(TWO, of_each), Dot::new(THREE, of_each)]);
    for seq in 1..=of_each {
        node.feed(1, &[foreign(Dot::new(TWO, seq), &[], "x"), foreign(Dot::new(THREE, seq), &[], "y")]);
        node.put("k", &seq.to_string()).expect("it is writable");
    }
    node
}

/// The chain head after the first `seq` write sets of an origin in a node's log.
fn head(node: &Node, origin: Origin, seq: u64) -> ChainHead {
    let mut heads = ChainHeads::default();
    for bytes in node.replica.storage().log_bytes() {
        let dot = WriteSet::peek_dot(&bytes).expect("it is well formed");
        if dot.origin == origin && dot.seq <= seq {
            heads.extend(dot, &bytes);
        }
    }
    heads.head(origin)
}

fn subscribe(origins: &[(Origin, ChainHead)]) -> Subscribe {
    Subscribe { subscription: 5, origins: origins.to_vec() }
}

fn dots(groups: &[FeedGroup]) -> Vec<Dot> {
    let bytes = groups.iter().flat_map(|group| &group.write_sets);
    bytes.map(|bytes| WriteSet::peek_dot(bytes).expect("it is well formed")).collect()
}

fn sorted(steps: Vec<FeedStep>) -> (Vec<FeedGroup>, Vec<Refuse>) {
    let (mut groups, mut refuses) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            FeedStep::Group(group) => groups.push(group),
            FeedStep::Refused(some) => refuses.extend(some),
            FeedStep::Again | FeedStep::Idle => {}
        }
    }
    (groups, refuses)
}

fn all(origin: Origin, seqs: std::ops::RangeInclusive<u64>) -> Vec<Dot> {
    seqs.map(|seq| Dot::new(origin, seq)).collect()
}

fn refused(origin: Origin, reason: RefuseReason) -> Refuse {
    Refuse { subscription: 5, origin, reason }
}

#[test]
fn a_feed_serves_what_was_subscribed_from_where_the_receiver_is_in_log_order() {
    let node = sender(20);
    for bytes_max in [1, 100, 1_000, 1 << 20] {
        for from in [0, 1, 3, 4, 19, 20] {
            let wanted = subscribe(&[(TWO, head(&node, TWO, from)), (THREE, head(&node, THREE, 18))]);
            let (groups, refuses) = sorted(node.served(wanted, bytes_max));
            assert_eq!(refuses, []);
            assert!(groups.iter().all(|group| group.subscription == 5));
            let served = dots(&groups);
            let of = |origin| served.iter().copied().filter(|dot| dot.origin == origin).collect::<Vec<_>>();
            assert_eq!(of(TWO), all(TWO, from + 1..=20));
            assert_eq!(of(THREE), all(THREE, 19..=20));
            assert_eq!(served.len() as u64, 22 - from, "and nothing else");
        }
    }
}

#[test]
fn a_feed_that_caught_up_goes_on_with_what_comes_once_it_is_durable() {
    let mut node = sender(3);
    let own = node.last_own().dot;
    let mut feed = Feed::new(subscribe(&[(own.origin, head(&node, own.origin, own.seq))]));
    let drain = |feed: &mut Feed, node: &Node| {
        let mut groups = Vec::new();
        loop {
            match feed.poll(node.replica.storage(), 1_000) {
                FeedStep::Group(group) => groups.push(group),
                FeedStep::Refused(refuses) => panic!("{refuses:?}"),
                FeedStep::Again => {}
                FeedStep::Idle => return dots(&groups),
            }
        }
    };
    assert_eq!(drain(&mut feed, &node), []);
    node.syncs = false;
    let _ = node.ask(|tag| polyarch_protocol::Input::Write(tag, Default::default()));
    let changes = vec![change("k", Some("later"), Supersede::Held)];
    node.ask(|tag| polyarch_protocol::Input::Write(tag, polyarch_protocol::client::WriteRequest { changes }));
    assert_eq!(drain(&mut feed, &node), [], "it is staged only");
    node.sync();
    assert_eq!(drain(&mut feed, &node), [Dot::new(own.origin, own.seq + 1)]);
    assert_eq!(drain(&mut feed, &node), []);
}

#[test]
fn a_receiver_that_is_ahead_is_fed_once_there_is_more() {
    let mut node = sender(2);
    let ahead =
        ChainHead { seq: 3, hash: head(&node, TWO, 2).hash.extended(&foreign(Dot::new(TWO, 3), &[], "x").encode()) };
    let mut feed = Feed::new(subscribe(&[(TWO, ahead)]));
    let mut poll = |node: &Node| loop {
        match feed.poll(node.replica.storage(), 1_000) {
            FeedStep::Again => {}
            step => return step,
        }
    };
    assert_eq!(poll(&node), FeedStep::Idle);
    node.hear_applied(1, &[Dot::new(TWO, 4)]);
    node.feed(1, &[foreign(Dot::new(TWO, 3), &[], "x")]);
    assert_eq!(poll(&node), FeedStep::Idle);
    node.feed(1, &[foreign(Dot::new(TWO, 4), &[], "x")]);
    let FeedStep::Group(group) = poll(&node) else { panic!("it is due") };
    assert_eq!(dots(&[group]), [Dot::new(TWO, 4)]);
}

#[test]
fn a_forked_origin_is_refused_and_the_others_go_on() {
    let node = sender(20);
    let forked = |seq| ChainHead { seq, hash: ChainHash([9; 32]) };
    // Within a segment, at its border, and where neither side has more.
    for (at, bytes_max) in [(1, 1), (5, 100), (4, 1 << 20), (19, 300), (20, 1 << 20)] {
        let wanted = subscribe(&[(TWO, forked(at)), (THREE, head(&node, THREE, 2))]);
        let (groups, refuses) = sorted(node.served(wanted, bytes_max));
        assert_eq!(refuses, [refused(TWO, RefuseReason::Fork(Dot::new(TWO, at)))]);
        assert_eq!(dots(&groups), all(THREE, 3..=20), "nothing is lost beside a refusal, nothing comes twice");
    }
}

#[test]
fn only_the_origins_whose_log_is_gone_are_refused() {
    let mut node = sender(20);
    let own = node.last_own().dot;
    node.replica.storage_mut().remove_log();
    let mark = node.replica.storage().last_mark(&|_| true).expect("a segment is left");
    let left = mark.heads.head(THREE).seq;
    let wanted = subscribe(&[
        (TWO, head(&node, TWO, 2)),
        (THREE, head(&node, THREE, left)),
        (own.origin, head(&node, own.origin, own.seq)),
    ]);
    let (groups, refuses) = sorted(node.served(wanted, 1_000));
    assert_eq!(refuses, [refused(TWO, RefuseReason::LogRemoved)]);
    assert_eq!(dots(&groups), all(THREE, left + 1..=20));
}

#[test]
fn a_feed_that_the_removal_of_the_log_overtakes_goes_on_or_says_so() {
    let mut node = sender(20);
    let mut slow = Feed::new(subscribe(&[(TWO, ChainHead::NONE)]));
    let first = loop {
        match slow.poll(node.replica.storage(), 1) {
            FeedStep::Again => {}
            FeedStep::Group(group) => break group,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(dots(&[first]), [Dot::new(TWO, 1)]);
    node.replica.storage_mut().remove_log();
    let mut steps = Vec::new();
    for _ in 0..100 {
        steps.push(slow.poll(node.replica.storage(), 1));
    }
    let (groups, refuses) = sorted(steps);
    assert_eq!((dots(&groups), refuses), (Vec::new(), vec![refused(TWO, RefuseReason::LogRemoved)]));
    // The receiver asks again from where it is by then, and what is left serves.
    let mark = node.replica.storage().last_mark(&|_| true).expect("a segment is left");
    let at = mark.heads.head(TWO).seq;
    let (groups, refuses) = sorted(node.served(subscribe(&[(TWO, head(&node, TWO, at))]), 1));
    assert_eq!((dots(&groups), refuses), (all(TWO, at + 1..=20), Vec::new()));
}

#[test]
fn a_log_that_cannot_be_read_refuses_all() {
    let mut node = sender(3);
    node.replica.storage_mut().fails_log = true;
    let (groups, refuses) = sorted(node.served(subscribe(&[(TWO, ChainHead::NONE), (THREE, ChainHead::NONE)]), 1_000));
    assert!(groups.is_empty());
    assert_eq!(refuses, [TWO, THREE].map(|origin| refused(origin, RefuseReason::LogUnreadable)));
}

#[test]
fn an_empty_or_absurd_subscription_costs_nothing() {
    let node = sender(3);
    assert_eq!(node.served(subscribe(&[]), 1_000), []);
    let absurd = ChainHead { seq: u64::MAX, hash: ChainHash([1; 32]) };
    let unknown = Origin::new(77, 7);
    assert_eq!(node.served(subscribe(&[(TWO, absurd), (unknown, absurd), (unknown, ChainHead::NONE)]), 1_000), []);
    let forged_nothing = ChainHead { seq: 0, hash: ChainHash([1; 32]) };
    let (groups, refuses) = sorted(node.served(subscribe(&[(unknown, forged_nothing)]), 1_000));
    assert!(groups.is_empty() && refuses.is_empty());
}

#[test]
fn a_group_fits_its_frame_whatever_was_asked_and_written() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    let long = "v".repeat(wire::WRITE_SET_BYTES_MAX - 200);
    node.hear_applied(1, &[Dot::new(TWO, 9)]);
    for seq in 1..=9 {
        let value = if seq == 9 { &*long } else { &long[..100_000] };
        node.feed(1, &[foreign(Dot::new(TWO, seq), &[], value)]);
    }
    assert!(node.applied().includes(Dot::new(TWO, 9)));
    for bytes_max in [256 << 10, usize::MAX] {
        let (groups, _) = sorted(node.served(subscribe(&[(TWO, ChainHead::NONE)]), bytes_max));
        assert_eq!(dots(&groups), all(TWO, 1..=9));
        assert!(groups.iter().all(|group| group.encode().len() <= wire::FRAME_BYTES_MAX));
    }
}

#[test]
fn a_feed_begins_at_the_last_segment_that_the_receiver_includes() {
    let node = sender(20);
    let has: AppliedSet = [Dot::new(TWO, 15), Dot::new(THREE, 15)].into_iter().collect();
    let mark = node
        .replica
        .storage()
        .last_mark(&|heads| [TWO, THREE].iter().all(|o| heads.head(*o).seq <= has.seq(*o)))
        .expect("it reaches back to the beginning");
    assert_eq!(mark.position.offset, 0);
    assert!(mark.position.segment as usize > 30 / SEGMENT_WRITE_SETS);
}
