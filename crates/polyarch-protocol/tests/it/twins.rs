//! Two living processes of one server id, and restarts that look like it.

use polyarch_protocol::client::Refusal;
use polyarch_protocol::peer::PeerMessage;
use polyarch_protocol::{Event, Input, LinkId};

use crate::support::{Cluster, Node};

/// A second process over a copy of a node's disk.
fn twin_of(node: &Node) -> Node {
    let mut twin = Node::new(node.config.server_id);
    let (storage, frontier) = node.replica.storage().crash();
    twin.now = node.now;
    twin.reopen(storage, frontier);
    twin
}

fn alarms(node: &Node) -> usize {
    node.count(|event| matches!(event, Event::Twin { .. }))
}

#[track_caller]
fn addresses_of_twins(node: &mut Node) -> Vec<String> {
    match node.put("k", "x") {
        Err(Refusal::Twin { addresses }) => addresses,
        other => panic!("{other:?} though it has a twin"),
    }
}

#[test]
fn two_processes_at_one_neighbour_both_hold_still_until_one_is_gone() {
    let mut cluster = Cluster::of(2);
    let twin = twin_of(&cluster.nodes[1]);
    cluster.nodes.push(twin);
    cluster.live_ms(1_000);
    for at in [1, 2] {
        let addresses = addresses_of_twins(&mut cluster.nodes[at]);
        assert_eq!(addresses, ["node-2:7400"; 2], "where each was seen");
    }
    cluster.live_ms(60_000);
    for at in [1, 2] {
        addresses_of_twins(&mut cluster.nodes[at]);
    }
    assert_eq!([0, 1, 2].map(|at| alarms(&cluster.nodes[at])), [1; 3], "each tells its operator once");
    cluster.nodes[0].put("k", "others go on").expect("it has no twin");
    // Stopped is the one or the other.
    cluster.stop(2);
    cluster.live_ms(16_000);
    cluster.nodes[1].put("k", "alone again").expect("its twin is gone");
    cluster.live_ms(1_000);
    assert_eq!(alarms(&cluster.nodes[0]), 1);
    assert_eq!(cluster.nodes[0].shown("k"), ["alone again"]);
}

#[test]
fn two_processes_at_different_neighbours_both_hold_still_until_one_is_gone() {
    let mut cluster = Cluster::of(3);
    let twin = twin_of(&cluster.nodes[1]);
    cluster.nodes.push(twin);
    cluster.link(0, 2);
    cluster.link(1, 0);
    cluster.link(3, 2);
    cluster.run_ms(2_000);
    for at in [1, 3] {
        addresses_of_twins(&mut cluster.nodes[at]);
    }
    cluster.run_ms(30_000);
    assert_eq!([1, 3].map(|at| alarms(&cluster.nodes[at])), [1; 2]);
    cluster.stop(1);
    cluster.run_ms(17_000);
    cluster.nodes[3].put("k", "x").expect("its twin is gone");
}

/// What reaches a member when server 2 is killed and started again.
#[derive(Debug, Clone, Copy)]
enum Step {
    Connect(u64),
    /// A link's hello, of the old process or of the new one.
    Hello(u64, u128),
    Lost(u64),
    Wait,
}

#[test]
fn a_restarted_process_is_no_twin_in_whatever_order_its_links_come_and_go() {
    use Step::{Connect, Hello, Lost, Wait};
    const OLD: u128 = 1;
    const NEW: u128 = 2;
    let orders: &[&[Step]] = &[
        &[Connect(1), Hello(1, OLD), Lost(1), Connect(2), Hello(2, NEW), Lost(2), Connect(3), Hello(3, NEW)],
        &[Connect(1), Hello(1, OLD), Connect(2), Hello(2, NEW), Lost(1), Wait, Lost(2), Connect(3), Hello(3, NEW)],
        // Both dial.
        &[Connect(1), Hello(1, OLD), Connect(2), Connect(3), Hello(3, NEW), Hello(2, NEW), Lost(1), Lost(2)],
        &[Connect(1), Connect(2), Hello(2, OLD), Hello(1, OLD), Connect(3), Connect(4), Hello(3, NEW), Hello(4, NEW)],
        // The old process's hello is read last.
        &[Connect(1), Connect(2), Hello(2, NEW), Hello(1, OLD), Wait, Connect(3), Hello(3, NEW)],
        &[
            Connect(1),
            Connect(2),
            Connect(3),
            Hello(1, OLD),
            Hello(3, NEW),
            Hello(2, OLD),
            Wait,
            Connect(4),
            Hello(4, NEW),
        ],
        // It is started twice.
        &[Connect(1), Hello(1, OLD), Connect(2), Hello(2, NEW), Connect(3), Hello(3, 3), Lost(1), Lost(2), Wait],
    ];
    for order in orders {
        for dials in [true, false] {
            let mut node = Node::founded(1);
            for step in *order {
                match *step {
                    Connect(link) => node.link_up(link, 2, dials == (link % 2 == 0)),
                    Hello(link, boot_id) => node.hello(link, 2, boot_id),
                    Lost(link) => node.handle(Input::LinkDown(LinkId(link))),
                    Wait => node.run_ms(1_000),
                }
                node.settle();
            }
            assert_eq!(alarms(&node), 0, "{order:?}");
            assert!(!node.sent.iter().any(|(_, message)| matches!(message, PeerMessage::Twin(_))), "{order:?}");
            let linked = node.status().peers;
            assert!(linked.is_empty(), "2 has no record here");
        }
    }
}

#[test]
fn a_killed_node_that_starts_again_is_no_twin() {
    for loses_links_first in [true, false] {
        let mut cluster = Cluster::of(3);
        cluster.live_ms(2_000);
        for _ in 0..3 {
            let old = cluster.linked();
            if loses_links_first {
                cluster.stop(1);
                cluster.live_ms(500);
                cluster.stopped.clear();
            }
            cluster.nodes[1].crash();
            for other in [0, 2] {
                cluster.connect(1, other);
                cluster.connect(other, 1);
            }
            cluster.live_ms(300);
            old.into_iter().for_each(|link| cluster.unlink(link));
            cluster.live_ms(3_000);
            cluster.nodes[1].put("k", "x").expect("it has no twin");
        }
        assert_eq!([0, 1, 2].map(|at| alarms(&cluster.nodes[at])), [0; 3]);
    }
}

#[test]
fn what_a_member_says_of_twins_is_kept_short() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    let addresses = vec!["x".repeat(100_000); 1_000];
    node.hear(1, PeerMessage::Twin(polyarch_protocol::peer::Twin { addresses }));
    let addresses = addresses_of_twins(&mut node);
    assert!(addresses.iter().map(String::len).sum::<usize>() <= 1_024);
    node.run_ms(16_000);
    node.put("k", "x").expect("nobody says it any more");
}
