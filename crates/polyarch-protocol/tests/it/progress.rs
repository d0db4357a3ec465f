//! How far members are, cluster-wide, and what links of version 1 are told of it.

use std::borrow::Cow;

use polyarch_crdt::{AppliedSet, Dot, Origin};
use polyarch_protocol::catalog::MemberChange;
use polyarch_protocol::peer::{PeerMessage, PeerVersion};
use polyarch_protocol::{BasedSet, Event, MemberProgress};

use crate::support::{Cluster, Node};

const FAR: Origin = Origin::new(31, 9);

fn progress_sent(node: &Node) -> usize {
    node.sent.iter().filter(|(_, message)| matches!(message, PeerMessage::Progress(_))).count()
}

/// Nodes in a line, each with a link to the next.
fn line(nodes: u32) -> Cluster {
    let mut cluster = Cluster::of(nodes);
    for at in 1..nodes as usize {
        cluster.link(at - 1, at);
    }
    cluster
}

fn far(seq: u64) -> AppliedSet {
    [Dot::new(FAR, seq)].into_iter().collect()
}

fn entry(server_id: u32, version: u64, applied: &AppliedSet) -> MemberProgress {
    MemberProgress { server_id, boot_id: 1, version, applied: BasedSet::from(applied) }
}

fn applied_of(node: &Node, server_id: u32) -> Option<AppliedSet> {
    node.replica.applied_of(server_id).map(Cow::into_owned)
}

#[test]
fn every_member_learns_how_far_those_are_that_it_has_no_link_to() {
    let mut cluster = line(5);
    cluster.link(4, 0);
    cluster.nodes[2].put("k", "1").expect("it is writable");
    let written = cluster.nodes[2].applied();
    cluster.run_ms(100);
    assert!(!cluster.nodes[0].replica.all_members_have(&written), "it has not been told yet");
    cluster.run_ms(10_000);
    cluster.assert_equal();
    for node in &cluster.nodes {
        assert!(node.replica.all_members_have(&node.applied()), "{}", node.config.server_id);
        assert!(!node.replica.all_members_have(&far(1)));
        assert_eq!(applied_of(node, 3), Some(node.applied()));
        assert_eq!(applied_of(node, 9), None);
    }
}

#[test]
fn an_idle_cluster_says_nothing_of_it_and_a_busy_one_little() {
    let mut cluster = line(4);
    cluster.run_ms(11_000);
    cluster.nodes.iter_mut().for_each(Node::forget);
    cluster.run_ms(30_000);
    assert_eq!(cluster.nodes.iter().map(progress_sent).sum::<usize>(), 0);
    for i in 0..100 {
        cluster.nodes[i % 4].put("k", &i.to_string()).expect("it is writable");
        cluster.run_ms(200);
    }
    // In 20 s at most 5 entries of each of 4 members, each over 3 links.
    let sent: usize = cluster.nodes.iter().map(progress_sent).sum();
    assert!((4..=60).contains(&sent), "{sent}");
}

#[test]
fn a_member_that_is_down_keeps_the_log_until_it_is_back_or_removed() {
    let mut cluster = line(3);
    cluster.run_ms(11_000);
    cluster.unlink_between(1, 2);
    cluster.nodes[0].put("k", "1").expect("it is writable");
    let written = cluster.nodes[0].applied();
    cluster.run_ms(11_000);
    assert!(!cluster.nodes[0].replica.all_members_have(&written));
    // Another process of it, whose first entries are older than what is known of the one before.
    cluster.nodes[2].crash();
    cluster.link(1, 2);
    cluster.run_ms(11_000);
    assert!(cluster.nodes[0].replica.all_members_have(&written));

    cluster.unlink_between(1, 2);
    cluster.nodes[0].put("k", "2").expect("it is writable");
    cluster.run_ms(11_000);
    let written = cluster.nodes[0].applied();
    assert!(!cluster.nodes[0].replica.all_members_have(&written));
    cluster.nodes[0].change_member(3, MemberChange::Remove { force: true }).expect("it may be removed");
    cluster.run_ms(11_000);
    assert!(cluster.nodes[0].replica.all_members_have(&written), "of a removed member nothing is asked");
    assert_eq!(applied_of(&cluster.nodes[0], 3), None);
}

#[test]
fn of_a_linked_member_its_heartbeat_counts() {
    let mut cluster = Cluster::of(2);
    let node = &mut cluster.nodes[0];
    node.meet(100, 2);
    node.hear(100, PeerMessage::Progress(vec![entry(2, 900, &far(9))]));
    assert_eq!(applied_of(node, 2), Some(far(9)));
    node.hear_applied(100, &[Dot::new(FAR, 4)]);
    assert_eq!(applied_of(node, 2), Some(far(4)), "its disk may have been set back");
}

#[test]
fn what_goes_on_links_of_version_1_is_as_it_was() {
    let mut cluster = line(3);
    cluster.unlink_all();
    cluster.older.insert(1);
    cluster.nodes.iter_mut().for_each(Node::forget);
    cluster.link(0, 1);
    cluster.link(1, 2);
    cluster.nodes[2].put("k", "1").expect("it is writable");
    cluster.run_ms(20_000);
    cluster.assert_equal();
    assert_eq!(cluster.nodes.iter().map(progress_sent).sum::<usize>(), 0);
    assert!(!cluster.nodes[0].replica.all_members_have(&cluster.nodes[0].applied()), "nobody told it of node 3");
    assert!(cluster.nodes[1].replica.all_members_have(&cluster.nodes[1].applied()), "it has links to all");
    // It is upgraded.
    cluster.unlink_all();
    cluster.older.clear();
    cluster.link(0, 1);
    cluster.link(1, 2);
    cluster.run_ms(11_000);
    assert!(cluster.nodes[0].replica.all_members_have(&cluster.nodes[0].applied()));
}

#[test]
fn a_message_that_was_not_agreed_for_a_link_ends_it() {
    let mut cluster = Cluster::of(2);
    let node = &mut cluster.nodes[0];
    node.link_up_of(100, 2, false, PeerVersion::V1);
    node.hello(100, 2, 2);
    let closed = node.closed.len();
    node.hear(100, PeerMessage::Progress(vec![entry(2, 900, &far(9))]));
    assert_eq!(node.closed.len(), closed + 1);
    assert_eq!(node.count(|e| matches!(e, Event::Unreadable { server_id: 2, .. })), 1);
    assert_ne!(applied_of(node, 2), Some(far(9)));
}

#[test]
fn progress_that_cannot_be_ends_the_link_and_says_nothing() {
    let many: AppliedSet =
        (0..=MemberProgress::ORIGINS_MAX as u32).map(|epoch| Dot::new(Origin::new(9, epoch + 1), 1)).collect();
    for hostile in [entry(3, 0, &far(1)), entry(3, u64::MAX, &far(1)), entry(3, 1, &many)] {
        let mut cluster = Cluster::of(2);
        let node = &mut cluster.nodes[0];
        node.meet(100, 2);
        let closed = node.closed.len();
        node.hear(100, PeerMessage::Progress(vec![hostile]));
        assert_eq!(node.closed.len(), closed + 1);
        assert_eq!(applied_of(node, 3), None);
    }
}
