//! Every pattern of links that work, up to six members: all are fed within a bounded time, and then
//! nothing changes any more.

use std::collections::BTreeSet;

use super::Cluster;
use super::graphs::{Seeded, fixed, graphs, pairs, permutations, turns};
use crate::topology::{Edge, Topology};

/// All are fed after so long at most. Whoever sees nobody dials one more each 250 ms.
const FED_MS: u64 = 2_000;
/// And nothing changes after so long: a link that is not needed is held for 3 s.
const REST_MS: u64 = 5_000;

/// How long the slowest took.
#[derive(Default)]
struct Slowest {
    graphs: u64,
    fed_ms: u64,
    rest_ms: u64,
}

impl Slowest {
    fn note(&mut self, mut cluster: Cluster) {
        let (fed_ms, rest_ms) = cluster.settle(REST_MS);
        assert!(fed_ms <= FED_MS, "fed only after {fed_ms} ms\n{cluster}");
        self.graphs += 1;
        self.fed_ms = self.fed_ms.max(fed_ms);
        self.rest_ms = self.rest_ms.max(rest_ms);
    }

    fn over(&mut self, n: u32, topology: &str, graphs: Vec<BTreeSet<Edge>>) {
        for works in graphs {
            let mut cluster = Cluster::of(n, &topology.parse().expect("it is one"));
            cluster.works = works;
            self.note(cluster);
        }
    }

    fn print(&self, what: &str) {
        println!("{what}: {} graphs, fed after {} ms, at rest after {} ms", self.graphs, self.fed_ms, self.rest_ms);
    }
}

fn small(topology: &str) -> Slowest {
    let mut slowest = Slowest::default();
    (2..=5).for_each(|n| slowest.over(n, topology, graphs(n, &fixed(n))));
    slowest
}

/// Of six, up to renaming: which id a member has only decides between peers that are equally near,
/// and in which order the lost are dialled.
#[test]
fn in_a_mesh() {
    let mut slowest = small("mesh");
    slowest.over(6, "mesh", graphs(6, &permutations(1, 6)));
    slowest.print("mesh");
}

/// Of six, up to the turns of the ring and its mirror image.
#[test]
fn in_a_ring() {
    let mut slowest = small("ring");
    slowest.over(6, "ring", graphs(6, &turns(6)));
    slowest.print("ring");
}

/// Of six, up to the renaming of all but the first hub.
#[test]
fn in_a_star() {
    let mut slowest = small("star");
    slowest.over(6, "star", graphs(6, &permutations(2, 6)));
    slowest.print("star");
}

#[test]
fn in_samples_of_custom_topologies() {
    let mut slowest = Slowest::default();
    for seed in 0..300 {
        let mut seeded = Seeded(seed);
        let n = seeded.below(6) as u32 + 2;
        let edges = seeded.connected(n).iter().map(|edge| (edge.ends()[0], edge.ends()[1])).collect();
        let mut cluster = Cluster::of(n, &Topology::Custom { edges });
        cluster.works = seeded.graph(n, 2, 3);
        slowest.note(cluster);
    }
    slowest.print("custom");
}

/// A member behind a firewall dials out and cannot be dialled.
#[test]
fn with_links_that_only_one_end_can_dial() {
    let mut slowest = Slowest::default();
    for seed in 0..300 {
        let mut seeded = Seeded(seed);
        let n = seeded.below(5) as u32 + 2;
        let topology = ["mesh", "ring", "star"][seeded.below(3) as usize];
        let mut cluster = Cluster::of(n, &topology.parse().expect("it is one"));
        cluster.works = seeded.graph(n, 2, 3);
        for [one, two] in pairs(n).into_iter().map(Edge::ends) {
            cluster.undialable.insert(if seeded.one_in(2) { (one, two) } else { (two, one) });
        }
        slowest.note(cluster);
    }
    slowest.print("one way");
}

/// Each link comes and goes every 200 ms to 2 s for 20 s, and a member dies and returns now and then.
#[test]
fn after_links_and_members_have_come_and_gone() {
    let mut slowest = Slowest::default();
    for seed in 0..120 {
        let mut seeded = Seeded(seed);
        let n = seeded.below(5) as u32 + 2;
        let topology = ["mesh", "ring", "star:2,1"][seeded.below(3) as usize];
        let mut cluster = Cluster::of(n, &topology.parse().expect("it is one"));
        let mut due: Vec<(Edge, u64)> = pairs(n).into_iter().map(|edge| (edge, 0)).collect();
        let mut dead = None;
        for boot_id in 2..200 {
            for (edge, at_ms) in &mut due {
                if *at_ms <= cluster.now_ms {
                    *at_ms = cluster.now_ms + 200 + seeded.below(1_800);
                    let broke = cluster.works.remove(edge);
                    let _ = !broke && cluster.works.insert(*edge);
                }
            }
            dead = match dead.take() {
                None if seeded.one_in(30) => Some(cluster.kill(seeded.below(n.into()) as u32 + 1)),
                Some(dead) if seeded.one_in(10) => {
                    cluster.revive(dead, boot_id);
                    None
                }
                dead => dead,
            };
            cluster.round();
        }
        cluster.works = seeded.graph(n, 3, 4);
        slowest.note(cluster);
    }
    slowest.print("come and gone");
}
