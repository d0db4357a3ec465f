//! A storage without room: what is refused, what is put off, and what goes on.

use polyarch_crdt::{Dot, Origin};
use polyarch_protocol::client::Refusal;
use polyarch_protocol::{Dependencies, Event};

use crate::support::{Node, change, foreign};

const OTHER: Origin = Origin::new(2, 9);

fn full() -> Refusal {
    Refusal::DiskFull { reason: "no space".to_owned() }
}

fn set_full(node: &mut Node, is_full: bool) {
    node.replica.storage_mut().is_full = is_full;
}

fn told(node: &Node) -> (usize, usize) {
    (
        node.count(|event| matches!(event, Event::DiskFull { .. })),
        node.count(|event| matches!(event, Event::DiskHasRoom)),
    )
}

/// A node that is fed by member 2 on link 1, which has so many write sets.
fn fed(write_sets: u64) -> Node {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.hear_applied(1, &[Dot::new(OTHER, write_sets)]);
    node
}

#[test]
fn a_write_without_room_is_refused_and_nothing_of_the_epoch_is_used_up() {
    let mut node = fed(2);
    let before = node.put("k", "1").expect("it is writable").dot.expect("it wrote");
    node.feed(1, &[foreign(Dot::new(OTHER, 1), &[], "x")]);
    set_full(&mut node, true);
    assert_eq!(node.put("k", "2"), Err(full()));
    assert_eq!(node.put("k", "2"), Err(full()));
    assert_eq!(node.status().writes_refused, Some(full().to_string()));
    assert_eq!(node.shown("k"), ["1"]);

    set_full(&mut node, false);
    assert_eq!(node.put("k", "2"), Err(full()), "until a tick finds room");
    node.run_ms(100);
    let after = node.put("k", "2").expect("there is room").dot.expect("it wrote");
    assert_eq!(after, Dot::new(before.origin, before.seq + 1));
    let seen = [Dot::new(OTHER, 1)].into_iter().collect();
    assert_eq!(node.last_own().dependencies, Dependencies::Changed(seen));
    assert_eq!((told(&node), node.status().writes_refused), ((1, 1), None));
}

#[test]
fn the_first_write_of_an_epoch_may_find_no_room() {
    let mut node = fed(1);
    node.crash();
    set_full(&mut node, true);
    assert_eq!(node.put("k", "1"), Err(full()));
    set_full(&mut node, false);
    node.run_ms(100);
    let before = node.applied();
    node.put("k", "1").expect("there is room");
    let own = node.last_own();
    assert_eq!(own.dot.seq, 1);
    assert!(matches!(own.dependencies, Dependencies::Whole { applied, .. } if applied == before));
}

#[test]
fn what_a_peer_sends_meanwhile_is_neither_taken_nor_lost() {
    let mut node = fed(3);
    node.feed(1, &[foreign(Dot::new(OTHER, 1), &[], "x")]);
    set_full(&mut node, true);
    let (taken, heartbeats) = (node.taken.clone(), node.heartbeats_sent(1).len());
    let rest = [foreign(Dot::new(OTHER, 2), &[], "y"), foreign(Dot::new(OTHER, 3), &[], "z")];
    node.feed(1, &rest);
    assert_eq!(node.fed_on(1), [], "it is fed no more");
    assert_eq!(node.applied().seq(OTHER), 1);
    assert!(
        node.taken[&polyarch_protocol::LinkId(1)] > taken[&polyarch_protocol::LinkId(1)],
        "the link is not held up"
    );
    node.run_ms(3_000);
    assert_eq!((node.fed_on(1), told(&node)), (Vec::new(), (1, 0)));
    assert!(node.heartbeats_sent(1).len() > heartbeats + 1, "it goes on saying what it has");
    assert_eq!(node.closed, [], "and keeps its links");

    set_full(&mut node, false);
    node.run_ms(100);
    let subscription = node.subscription(1).expect("it asks again");
    assert_eq!(subscription.origins.iter().map(|(origin, head)| (*origin, head.seq)).collect::<Vec<_>>(), [(OTHER, 1)]);
    node.feed(1, &rest);
    assert_eq!((node.applied().seq(OTHER), told(&node)), (3, (1, 1)));
}

#[test]
fn what_waited_for_another_origin_is_asked_for_again() {
    let (awaited, waiting) = (Dot::new(Origin::new(3, 9), 1), Dot::new(OTHER, 1));
    let mut node = fed(1);
    node.hear_applied(1, &[waiting, awaited]);
    let write_sets = [foreign(waiting, &[awaited], "x"), foreign(awaited, &[], "y")];
    node.feed(1, &write_sets[..1]);
    set_full(&mut node, true);
    node.feed(1, &write_sets[1..]);
    assert_eq!((node.applied().includes(awaited), told(&node)), (false, (1, 0)));
    set_full(&mut node, false);
    node.run_ms(100);
    assert_eq!(node.fed_on(1).len(), 2);
    node.feed(1, &write_sets);
    assert!(node.applied().includes(waiting) && node.applied().includes(awaited));
}

#[test]
fn what_was_staged_before_is_synced_and_answered() {
    let mut node = Node::founded(1);
    node.syncs = false;
    let changes = vec![change("k", Some("1"), polyarch_protocol::client::Supersede::Held)];
    let write = polyarch_protocol::client::WriteRequest { changes };
    let waiting = node.ask(|tag| polyarch_protocol::Input::Write(tag, write));
    set_full(&mut node, true);
    node.syncs = true;
    assert_eq!(node.put("k", "2"), Err(full()));
    assert!(node.written(waiting).is_ok());
}
