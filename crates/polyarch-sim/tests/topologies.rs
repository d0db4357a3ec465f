//! What crosses links in steady state, for each topology.

use polyarch_sim::topologies::{Cluster, Count, Layout, WRITES, count, count_each};

fn counted(nodes: usize, layout: Layout) -> Count {
    count(Cluster { nodes, layout }).unwrap_or_else(|violation| panic!("{nodes} nodes, {layout:?}: {violation}"))
}

#[test]
fn in_every_topology_each_node_is_fed_each_write_set_once() {
    for nodes in [3, 5, 9] {
        for count in count_each(nodes) {
            let count = count.unwrap_or_else(|violation| panic!("{nodes} nodes: {violation}"));
            let layout = count.cluster.layout;
            assert_eq!(count.write_sets, WRITES, "{count:?}");
            assert_eq!(count.crossings, ((nodes - 1) * WRITES) as u64, "{count:?}");
            assert!((1.0..=1.1).contains(&count.bytes_ratio), "{count:?}");
            let (links, per_node, hops) = match layout {
                Layout::Mesh => (nodes * (nodes - 1) / 2, nodes - 1, 1),
                Layout::Star => (nodes - 1, nodes - 1, 2),
                Layout::Ring => (nodes, 2, nodes / 2),
                Layout::RingWithChord if nodes == 3 => (3, 2, 1),
                // The chord spares the way round to some, not to those that are furthest apart.
                Layout::RingWithChord => (nodes + 1, 3, nodes / 2),
            };
            assert_eq!(
                (count.links, count.links_per_node_max, count.hops_max),
                (links, per_node, hops as u64),
                "{count:?}"
            );
        }
    }
}

#[test]
fn a_count_is_the_same_each_time() {
    assert_eq!(counted(3, Layout::Ring), counted(3, Layout::Ring));
    let json = counted(3, Layout::Star).to_json();
    assert!(json.starts_with("{\"nodes\":3,\"topology\":\"star\",\"links\":2,\"links_per_node_max\":2,"), "{json}");
}
