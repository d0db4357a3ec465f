use std::collections::BTreeSet;

use super::Cluster;
use super::cluster::{Node, ROUND_MS, origin};
use crate::topology::{Edge, Topology};

/// What of a scripted change is over after so long: dialling, a hold, a feed's return.
const REST_MS: u64 = 8_000;

fn settled(n: u32, topology: &str) -> Cluster {
    let mut cluster = Cluster::of(n, &topology.parse().expect("it is one"));
    let _ = cluster.settle(REST_MS);
    cluster
}

fn shape(cluster: &Cluster) -> BTreeSet<Edge> {
    cluster.links.keys().copied().collect()
}

fn planned(n: u32, topology: &str) -> BTreeSet<Edge> {
    topology.parse::<Topology>().expect("it is one").edges(&(1..=n).collect())
}

/// Lets something happen, and says how long all that could be fed were not.
fn unfed_ms(cluster: &mut Cluster, happens: impl FnOnce(&mut Cluster)) -> u64 {
    let at_ms = cluster.now_ms;
    happens(cluster);
    let _ = cluster.settle(REST_MS);
    cluster.unfed_ms.saturating_sub(at_ms)
}

#[test]
fn where_all_links_work_those_are_up_that_are_planned_and_no_others() {
    for n in 1..=7 {
        let all = n as usize - 1;
        for (topology, links) in [("mesh", vec![all; n as usize]), ("ring", vec![all.min(2); n as usize])] {
            let cluster = settled(n, topology);
            let counts: Vec<usize> = (1..=n).map(|id| cluster.links_of(id).len()).collect();
            assert_eq!(counts, links, "{topology} of {n}");
        }
        let star = settled(n, "star");
        let counts: Vec<usize> = (1..=n).map(|id| star.links_of(id).len()).collect();
        let spokes = vec![1; all];
        assert_eq!(counts, [&[all], &spokes[..]].concat());
    }
    assert_eq!(shape(&settled(5, "star:4,2")), planned(5, "star:4,2"));
    assert_eq!(shape(&settled(5, "custom:1-2,2-3,3-4,4-5,5-2")), planned(5, "custom:1-2,2-3,3-4,4-5,5-2"));
}

#[test]
fn a_dead_member_is_bypassed_within_a_second_and_has_its_place_when_it_returns() {
    let ring = (1..=5).map(|dead| (5, "ring", dead));
    let others = [(5, "star", 1), (5, "star:3,5", 3), (5, "star", 2), (6, "mesh", 4), (5, "custom:1-2,2-3,3-4,4-5", 3)];
    for (n, topology, dead) in ring.chain(others) {
        let mut cluster = settled(n, topology);
        let first = shape(&cluster);
        let mut gone: Option<Node> = None;
        let unfed = unfed_ms(&mut cluster, |cluster| gone = Some(cluster.kill(dead)));
        assert!(unfed <= 1_000, "{topology} without {dead}: {unfed} ms\n{cluster}");
        let live = (1..=n).filter(|id| *id != dead).collect();
        let plan = topology.parse::<Topology>().expect("it is one").edges(&live);
        assert!(plan.is_subset(&shape(&cluster)), "{topology} without {dead}\n{cluster}");
        let gone = gone.expect("it was killed");
        let unfed = unfed_ms(&mut cluster, |cluster| cluster.revive(gone, 2));
        assert!(unfed <= 1_000, "{topology} with {dead} again: {unfed} ms\n{cluster}");
        assert_eq!(shape(&cluster), first, "{topology} with {dead} again");
    }
}

/// The deadlock of a ring whose members take everything from their predecessor.
#[test]
fn a_ring_of_four_with_one_broken_link_between_live_members_feeds_all() {
    let mut cluster = settled(4, "ring");
    let unfed = unfed_ms(&mut cluster, |cluster| _ = cluster.works.remove(&Edge::new(1, 4)));
    assert!(unfed <= 1_000, "{unfed} ms");
    assert_eq!(shape(&cluster), [Edge::new(1, 2), Edge::new(2, 3), Edge::new(3, 4)].into(), "and no link more");
    assert_eq!(cluster.fed_by(4, origin(1)), Some(3));
    let unfed = unfed_ms(&mut cluster, |cluster| _ = cluster.works.insert(Edge::new(1, 4)));
    assert_eq!(unfed, 0);
    assert_eq!(shape(&cluster), planned(4, "ring"));
    assert_eq!(cluster.fed_by(4, origin(1)), Some(1));
}

/// Half of the feeds have to turn round. The news takes 0.8 s to the last of them and what it asks
/// for 1.5 s round the ring; a stall for each, one after the other, would take 8 s.
#[test]
fn the_feeds_of_a_long_ring_turn_round_without_a_stall_for_each() {
    let mut cluster = settled(16, "ring");
    let unfed = unfed_ms(&mut cluster, |cluster| _ = cluster.works.remove(&Edge::new(1, 16)));
    assert!(unfed <= 2_500, "{unfed} ms");
}

/// Two neighbours whose way to a silent origin was cut may feed each other: that must be over
/// before it writes again.
#[test]
fn feeds_turn_round_also_while_nobody_writes() {
    for n in [4, 5, 6, 9] {
        let mut cluster = settled(n, "ring");
        cluster.writes = false;
        cluster.run_ms(2_000);
        cluster.works.remove(&Edge::new(1, n));
        let _ = cluster.settle(REST_MS);
        let unfed = unfed_ms(&mut cluster, |cluster| cluster.writes = true);
        assert_eq!(unfed, 0, "ring of {n}");
    }
}

/// Spokes that fled to two hubs, each of which sees a complete star.
#[test]
fn two_halves_of_a_star_that_are_complete_by_themselves_find_each_other() {
    let mut cluster = Cluster::of(6, &"star:1,4".parse().expect("it is one"));
    let bridge = Edge::new(3, 6);
    let crosses = |edge: &Edge| edge.ends()[0] < 4 && edge.ends()[1] >= 4;
    let all = cluster.works.clone();
    cluster.works.retain(|edge| !crosses(edge));
    let _ = cluster.settle(REST_MS);
    assert_eq!(cluster.links.len(), 4);
    let unfed = unfed_ms(&mut cluster, |cluster| _ = cluster.works.insert(bridge));
    assert!(unfed <= 1_000, "{unfed} ms");
    assert!(cluster.links.contains_key(&bridge));
    let unfed = unfed_ms(&mut cluster, |cluster| cluster.works = all);
    assert!(unfed <= 1_000, "{unfed} ms");
    assert_eq!(shape(&cluster), planned(6, "star:1,4"));
}

/// The setting reaches the members one after the other.
#[test]
fn a_topology_can_be_switched_under_load() {
    let topologies = ["mesh", "ring", "star", "star:4", "custom:1-3,3-5,5-2,2-4,4-6"];
    for (from, to) in topologies.iter().flat_map(|from| topologies.iter().map(move |to| (from, to))) {
        let mut cluster = settled(6, from);
        let unfed = unfed_ms(&mut cluster, |cluster| {
            for id in [3, 6, 1, 5, 2, 4] {
                let node = cluster.nodes.get_mut(&id).expect("it lives");
                node.topology = to.parse().expect("it is one");
                cluster.run_ms(300);
            }
        });
        assert_eq!(unfed, 0, "from {from} to {to}");
        assert_eq!(shape(&cluster), planned(6, to), "from {from} to {to}");
    }
}

/// Two masters set two topologies at one time, and for a while nothing tells one of the winners.
#[test]
fn members_that_plan_different_topologies_all_the_same_feed_each_other() {
    let mut cluster = settled(6, "mesh");
    for (node, topology) in cluster.nodes.values_mut().zip(["ring", "star", "star:5", "ring", "star", "mesh"]) {
        node.topology = topology.parse().expect("it is one");
    }
    for _ in 0..60_000 / ROUND_MS {
        cluster.round();
        assert!(cluster.now_ms - cluster.fed_ms <= 2_000, "{cluster}");
    }
    assert!(cluster.now_ms - cluster.links_changed_ms < 5_000, "they do not agree, and go on not to");
    cluster.set_topology("ring");
    let _ = cluster.settle(REST_MS);
    assert_eq!(shape(&cluster), planned(6, "ring"));
}

#[test]
fn a_newcomer_whose_record_has_not_reached_everybody_stays_linked() {
    let mut cluster = settled(5, "ring");
    let six: BTreeSet<u32> = (1..=6).collect();
    cluster.works = Topology::Mesh.edges(&six);
    cluster.start(6, 1, &six, &Topology::Ring);
    cluster.run_ms(8_000);
    assert!(!cluster.links_of(6).is_empty(), "{cluster}");
    for id in 1..=5 {
        cluster.nodes.get_mut(&id).expect("it lives").members.clone_from(&six);
        cluster.run_ms(500);
        assert!(!cluster.links_of(6).is_empty(), "{cluster}");
    }
    let _ = cluster.settle(REST_MS);
    assert_eq!(shape(&cluster), planned(6, "ring"));
}

#[test]
fn a_link_that_an_operator_cut_is_gone_round_and_comes_back_when_it_is_healed() {
    for topology in ["mesh", "ring", "star"] {
        let mut cluster = settled(4, topology);
        let first = shape(&cluster);
        let cut = |cluster: &mut Cluster, cut: BTreeSet<u32>| cluster.cut(1, cut);
        let unfed = unfed_ms(&mut cluster, |cluster| cut(cluster, [2].into()));
        assert!(unfed <= 1_000, "{topology}: {unfed} ms\n{cluster}");
        assert!(!cluster.links.contains_key(&Edge::new(1, 2)));
        let unfed = unfed_ms(&mut cluster, |cluster| cut(cluster, BTreeSet::new()));
        assert_eq!(unfed, 0);
        assert_eq!(shape(&cluster), first, "{topology}");
    }
}
