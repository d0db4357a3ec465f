//! A server that lost write sets of its own is told so, and told again once they are back.

use polyarch_crdt::{Dot, Origin};
use polyarch_protocol::{Event, LostEpoch};

use crate::support::{Cluster, Node, foreign};

fn losses(node: &Node) -> Vec<(u32, Vec<LostEpoch>)> {
    let of = |event: &Event| match event {
        Event::OwnWritesLost { from, epochs } => Some((*from, epochs.clone())),
        _ => None,
    };
    node.events.iter().filter_map(of).collect()
}

fn regained(node: &Node) -> Vec<(u64, u64)> {
    let of = |event: &Event| match event {
        Event::OwnWritesRegained { write_sets, epochs } => Some((*write_sets, *epochs)),
        _ => None,
    };
    node.events.iter().filter_map(of).collect()
}

/// Two members; the first is put back to an image from before its last three writes.
fn restored() -> (Cluster, Origin, u64) {
    let mut cluster = Cluster::of(2);
    cluster.link(0, 1);
    cluster.nodes[0].put("k", "before").expect("it is writable");
    let last = cluster.nodes[0].last_own().dot;
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
    cluster.nodes.iter_mut().for_each(Node::forget);
    (cluster, last.origin, last.seq)
}

#[test]
fn what_was_lost_is_told_once_and_told_again_when_it_is_back() {
    let (mut cluster, origin, had) = restored();
    cluster.link(0, 1);
    cluster.run_ms(2_000);
    let node = &mut cluster.nodes[0];
    assert_eq!(losses(node), [(2, vec![LostEpoch { origin, had, peer_has: had + 3 }])]);
    assert_eq!(regained(node), [(3, 1)]);
    let alarms = |node: &Node| node.events.iter().filter(|event| event.is_alarm()).count();
    assert_eq!(alarms(node), 1, "that they are back is none");
    let condition = node.condition();
    assert_eq!(condition.regained_write_sets, 3);
    let [view] = condition.regained[..] else { panic!("{condition:?}") };
    assert_eq!((view.origin, view.had, view.peer_has, view.from, view.applied), (origin, had, had + 3, 2, had + 3));
    assert!(view.complete_ms >= Some(view.noticed_ms));
    assert_eq!(losses(&cluster.nodes[1]), [], "the other lost nothing");
    cluster.assert_equal();
    // A restart of the whole disk is none.
    cluster.nodes[0].crash();
    cluster.nodes[0].forget();
    cluster.unlink_all();
    cluster.link(0, 1);
    cluster.run_ms(2_000);
    assert_eq!(losses(&cluster.nodes[0]), []);
}

#[test]
fn it_is_back_only_once_it_is_durable() {
    let (mut cluster, origin, had) = restored();
    cluster.nodes.truncate(1);
    let mut node = cluster.nodes.remove(0);
    node.meet(900, 2);
    node.hear_applied(900, &[Dot::new(origin, had + 2)]);
    assert_eq!(losses(&node).len(), 1);
    node.syncs = false;
    let lost = |seq| foreign(Dot::new(origin, seq), &[], "x");
    node.feed(900, &[lost(had + 1), lost(had + 2)]);
    assert!(node.applied().includes(Dot::new(origin, had + 2)), "it is staged");
    assert_eq!(regained(&node), []);
    node.syncs = true;
    node.settle();
    node.run_ms(600);
    assert_eq!(regained(&node), [(2, 1)]);
}

#[test]
fn an_epoch_is_one_alarm_however_much_of_it_turns_up_later() {
    let (mut cluster, origin, had) = restored();
    let mut node = cluster.nodes.remove(0);
    node.meet(900, 2);
    node.meet(901, 3);
    let lost = |seq| foreign(Dot::new(origin, seq), &[], "x");
    node.hear_applied(900, &[Dot::new(origin, had + 1)]);
    node.hear_applied(901, &[Dot::new(origin, had + 2)]);
    node.hear_applied(901, &[Dot::new(origin, had + 2)]);
    assert_eq!(losses(&node).len(), 1);
    let link = if node.fed_on(900).contains(&origin) { 900 } else { 901 };
    node.feed(link, &[lost(had + 1)]);
    node.run_ms(600);
    assert_eq!(regained(&node), []);
    let feed = |node: &mut Node, seq| {
        let link = if node.fed_on(900).contains(&origin) { 900 } else { 901 };
        node.feed(link, &[lost(seq)]);
    };
    feed(&mut node, had + 2);
    // Before it has been quiet for a while more turns up.
    node.run_ms(300);
    node.hear_applied(901, &[Dot::new(origin, had + 3)]);
    node.run_ms(600);
    assert_eq!(regained(&node), []);
    feed(&mut node, had + 3);
    node.run_ms(600);
    assert_eq!(regained(&node), [(3, 1)]);
    assert_eq!(losses(&node).len(), 1);
}

/// A member that is fed itself passes on what its heartbeats have not shown yet.
#[test]
fn what_a_feed_brings_before_any_heartbeat_shows_it_is_told_too() {
    let (mut cluster, origin, had) = restored();
    let mut node = cluster.nodes.remove(0);
    node.meet(900, 2);
    node.hear_applied(900, &[Dot::new(origin, had)]);
    assert_eq!((losses(&node).len(), node.fed_on(900)), (0, vec![origin]));
    node.feed(900, &[foreign(Dot::new(origin, had + 1), &[], "x")]);
    assert_eq!(losses(&node), [(2, vec![LostEpoch { origin, had, peer_has: had + 1 }])]);
    node.run_ms(600);
    assert_eq!(regained(&node), [(1, 1)]);
}

#[test]
fn an_empty_directory_with_a_used_server_id_is_told_in_one_alarm_of_all_epochs() {
    let mut cluster = Cluster::of(2);
    cluster.link(0, 1);
    let epochs_before = cluster.nodes[1].applied().iter().filter(|dot| dot.origin.server_id == 2).count();
    for _ in 0..3 {
        cluster.unlink_all();
        cluster.nodes[1].crash();
        cluster.nodes[1].put("k", "x").expect("it is writable");
        cluster.link(0, 1);
        cluster.run_ms(300);
    }
    cluster.unlink_all();
    let now = cluster.nodes[1].now;
    cluster.nodes[1] = Node::with(crate::support::config(2, 99));
    cluster.nodes[1].now = now;
    cluster.link(0, 1);
    cluster.run_ms(2_000);
    let told = losses(&cluster.nodes[1]);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].1.iter().all(|epoch| epoch.had == 0));
    assert_eq!(told[0].1.len(), epochs_before + 3);
    assert_eq!(regained(&cluster.nodes[1]).len(), 1);
    cluster.assert_equal();
}

#[test]
fn a_process_that_goes_on_writing_is_told_of_earlier_epochs_only() {
    let mut node = Node::founded(1);
    let own = node.last_own().dot;
    node.meet(1, 2);
    node.hear_applied(1, &[own, Dot::new(Origin::new(3, 7), 3)]);
    assert_eq!(losses(&node), []);
    // A machine that was reverted with its memory: the epoch is closed, and then it is an earlier one.
    node.hear_applied(1, &[Dot::new(own.origin, own.seq + 1)]);
    assert_eq!(node.count(|e| matches!(e, Event::EpochClosed { .. })), 1);
    assert_eq!(losses(&node), [(2, vec![LostEpoch { origin: own.origin, had: own.seq, peer_has: own.seq + 1 }])]);
}
