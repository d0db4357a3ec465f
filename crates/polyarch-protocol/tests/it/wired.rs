//! Topologies over living replicas: set, switched, set on two sides, and what crosses which link.

use polyarch_protocol::client::Refusal;
use polyarch_protocol::limits::wire;
use polyarch_protocol::{Event, Input, Topology};

use crate::support::{Cluster, Node};

fn lost(node: &Node) -> usize {
    node.count(|event| matches!(event, Event::TopologyLost { .. }))
}

/// A cluster in which nothing moves any more.
fn settled(n: u32, topology: &str) -> Cluster {
    let mut cluster = Cluster::of(n);
    cluster.live_ms(2_000);
    cluster.nodes[0].set_topology(topology).expect("it serves all");
    cluster.live_ms(12_000);
    cluster
}

#[test]
fn each_write_set_crosses_to_each_node_once_in_every_topology() {
    let topologies = [
        ("mesh", 10),
        ("ring", 5),
        ("star", 4),
        ("star:3,4", 4),
        ("custom:1-2,2-3,3-4,4-5", 4),
        ("custom:5-1,1-3,3-5,2-3,4-2", 5),
    ];
    for (topology, links) in topologies {
        let mut cluster = settled(5, topology);
        assert_eq!(cluster.links_up(), links, "{topology}");
        for round in 0..3 {
            for at in 0..5 {
                cluster.nodes[at].put(&format!("k{at}"), &format!("v{round}")).expect("it is active");
            }
            cluster.live_ms(300);
        }
        cluster.live_ms(4_000);
        let before: Vec<_> = cluster.nodes.iter_mut().map(|node| node.status().counters).collect();
        for round in 0..20 {
            for at in 0..5 {
                cluster.nodes[at].put(&format!("k{at}"), &format!("w{round}")).expect("it is active");
            }
            cluster.live_ms(100);
        }
        cluster.live_ms(2_000);
        cluster.assert_equal();
        for (node, before) in cluster.nodes.iter_mut().zip(before) {
            let after = node.status().counters;
            let taken = (after.received - before.received, after.skipped - before.skipped);
            assert_eq!(taken, (80, 0), "{topology} at {}", node.config.server_id);
        }
    }
}

#[test]
fn a_write_is_seen_on_all_of_a_ring_of_five_within_two_seconds() {
    let mut cluster = settled(5, "ring");
    for writer in 0..5 {
        let key = format!("k{writer}");
        cluster.nodes[writer].put(&key, "v").expect("it is active");
        cluster.live_ms(2_000);
        for node in &mut cluster.nodes {
            assert_eq!(node.shown(&key), ["v"], "from {writer} at {}", node.config.server_id);
        }
    }
}

#[test]
fn a_topology_that_is_switched_under_writes_loses_nothing() {
    let mut cluster = settled(5, "mesh");
    let mut written = 0;
    for (at, topology) in ["ring", "star:2", "custom:1-2,2-3,3-4,4-5", "mesh", "star"].into_iter().enumerate() {
        cluster.nodes[at].set_topology(topology).expect("it serves all");
        for _ in 0..40 {
            cluster.nodes[written % 5].put(&format!("k{written}"), "v").expect("it is active");
            written += 1;
            cluster.live_ms(100);
        }
    }
    cluster.live_ms(8_000);
    cluster.assert_equal();
    assert_eq!(cluster.links_up(), 4);
    let events = cluster.nodes[4].count(|event| matches!(event, Event::TopologyChanged { .. }));
    assert_eq!((events, lost(&cluster.nodes[4])), (5, 0), "mesh was what it was");
}

#[test]
fn of_topologies_set_on_two_sides_one_holds_and_the_other_is_told_once() {
    let mut cluster = settled(4, "mesh");
    cluster.part(&[0, 1]);
    cluster.live_ms(1_000);
    cluster.nodes[0].set_topology("ring").expect("it serves all");
    cluster.nodes[3].set_topology("star:3").expect("it serves all");
    cluster.live_ms(3_000);
    cluster.mend();
    cluster.live_ms(10_000);
    cluster.assert_equal();
    for node in &cluster.nodes {
        let catalog = node.replica.catalog();
        assert_eq!(catalog.topology(), cluster.nodes[0].replica.catalog().topology());
        assert_eq!((catalog.topology_losers().len(), lost(node)), (1, 1), "at {}", node.config.server_id);
        assert!(node.events.iter().filter(|e| matches!(e, Event::TopologyLost { .. })).all(Event::is_alarm));
    }
    cluster.nodes[1].set_topology("star:4").expect("it serves all");
    cluster.live_ms(10_000);
    for node in &cluster.nodes {
        let catalog = node.replica.catalog();
        assert_eq!(catalog.topology().to_string(), "star:4");
        assert!(catalog.topology_losers().is_empty());
        assert_eq!(lost(node), 1);
    }
    assert_eq!(cluster.links_up(), 3);
}

#[test]
fn one_topology_set_on_two_sides_is_no_alarm() {
    let mut cluster = settled(4, "mesh");
    cluster.part(&[0, 1]);
    for at in [0, 3] {
        cluster.nodes[at].set_topology("ring").expect("it serves all");
    }
    cluster.mend();
    cluster.live_ms(10_000);
    cluster.assert_equal();
    assert_eq!([0, 1, 2, 3].map(|at| lost(&cluster.nodes[at])), [0; 4]);
    assert_eq!(cluster.links_up(), 4);
}

#[test]
fn a_topology_that_cannot_serve_its_members_is_refused_and_nothing_is_written() {
    let mut cluster = Cluster::of(3);
    let node = &mut cluster.nodes[0];
    let before = node.applied();
    for (topology, words) in [
        ("star:9", "9 is not a member of this cluster"),
        ("custom:1-2", "no way leads from member 1 to member 3; add a link that joins the two parts"),
    ] {
        assert_eq!(node.set_topology(topology), Err(Refusal::Topology(words.to_owned())));
    }
    let edges = (0..=wire::TOPOLOGY_NAMES_MAX as u32).map(|i| (1 + i % 3, 1 + (i + 1) % 3)).collect();
    let request = node.ask(|tag| Input::SetTopology(tag, Topology::Custom { edges }));
    let refused = node.answer(request).expect("it is answered").expect_err("it is too long").to_string();
    assert!(refused.contains("the limit is 65535"), "{refused}");
    assert_eq!(node.applied(), before);
}
