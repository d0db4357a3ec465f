//! How many machines a world has, and how they are linked at first: the shapes of the test matrix, written
//! down here as pairs, whatever the code under test makes of them.

use std::collections::BTreeSet;
use std::fmt;

use polyarch_protocol::Topology;

use crate::invariants::links_are_as_planned::Pair;
use crate::rng::Rng;

/// How many machines there are, and how they are linked at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Formation {
    /// Two to five, in any topology.
    Drawn,
    /// Three, each with each.
    Mesh3,
    /// Five, each with each.
    Mesh5,
    /// Five, each with the next.
    Ring5,
    /// The same, and one link across.
    RingWithChord5,
    /// Five, two of them hubs, of which one is spare.
    StarWithSpareHub5,
    /// Four in a row.
    Chain4,
    /// Three and three, each three a mesh, and one link between them.
    TwoMeshes,
}

impl Formation {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Drawn,
        Self::Mesh3,
        Self::Mesh5,
        Self::Ring5,
        Self::RingWithChord5,
        Self::StarWithSpareHub5,
        Self::Chain4,
        Self::TwoMeshes,
    ];

    /// One of them.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let weights = [40, 14, 7, 8, 8, 8, 9, 6];
        let weighted: Vec<(Self, u64)> = Self::ALL.into_iter().zip(weights).collect();
        rng.weighted(&weighted)
    }

    /// How many machines.
    pub(crate) fn draw_nodes(self, rng: &mut Rng) -> usize {
        match self {
            Self::Drawn => rng.weighted(&[(2, 12), (3, 53), (4, 20), (5, 15)]),
            Self::Mesh3 => 3,
            Self::Chain4 => 4,
            Self::TwoMeshes => 6,
            Self::Mesh5 | Self::Ring5 | Self::RingWithChord5 | Self::StarWithSpareHub5 => 5,
        }
    }

    /// The topology that an operator sets first, over server ids in the order in which they stand; `None`
    /// where any may be.
    pub(crate) fn topology(self, order: &[u32]) -> Option<Topology> {
        let edges = || self.links(order).into_iter().collect();
        match self {
            Self::Drawn => None,
            Self::Mesh3 | Self::Mesh5 => Some(Topology::Mesh),
            // In the order of server ids, whatever the machines' order.
            Self::Ring5 => Some(Topology::Ring),
            Self::StarWithSpareHub5 => Some(Topology::Star { hubs: order[..2].to_vec() }),
            Self::RingWithChord5 | Self::Chain4 | Self::TwoMeshes => Some(Topology::Custom { edges: edges() }),
        }
    }

    /// Which machines can reach each other at all, where that is not everyone: sites behind one link, cables in
    /// a row. In half of the worlds for which it would make a difference.
    pub(crate) fn draw_reach(self, rng: &mut Rng, order: &[u32]) -> Option<BTreeSet<Pair>> {
        let is_partial = !matches!(self, Self::Drawn | Self::Mesh3 | Self::Mesh5);
        (rng.chance(500) && is_partial).then(|| self.links(order))
    }

    /// The pairs that are linked, or can be: of a star each spoke with both hubs.
    fn links(self, order: &[u32]) -> BTreeSet<Pair> {
        let places: &[(usize, usize)] = match self {
            Self::Drawn => &[],
            Self::Mesh3 => &[(0, 1), (1, 2), (0, 2)],
            Self::Mesh5 => &[(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)],
            Self::Ring5 => &[(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)],
            Self::RingWithChord5 => &[(0, 1), (1, 2), (2, 3), (3, 4), (4, 0), (0, 2)],
            Self::StarWithSpareHub5 => &[(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)],
            Self::Chain4 => &[(0, 1), (1, 2), (2, 3)],
            Self::TwoMeshes => &[(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5), (2, 3)],
        };
        let pairs = places.iter().map(|(one, two)| (order[*one], order[*two]));
        pairs.map(|(one, two)| (one.min(two), one.max(two))).collect()
    }
}

impl fmt::Display for Formation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drawn => "drawn",
            Self::Mesh3 => "mesh-3",
            Self::Mesh5 => "mesh-5",
            Self::Ring5 => "ring-5",
            Self::RingWithChord5 => "ring-5 with a chord",
            Self::StarWithSpareHub5 => "star-5 with a spare hub",
            Self::Chain4 => "chain-4",
            Self::TwoMeshes => "two meshes of 3, one link between",
        })
    }
}

/// Server ids from 1 on, in any order.
pub(crate) fn draw_order(rng: &mut Rng, nodes: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (1..=nodes as u32).collect();
    for at in (1..nodes).rev() {
        let with = rng.index(at + 1);
        order.swap(at, with);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_as_large_as_its_links_say_and_hangs_together() {
        let mut rng = Rng::new(1);
        for formation in Formation::ALL.into_iter().filter(|formation| *formation != Formation::Drawn) {
            let nodes = formation.draw_nodes(&mut rng);
            let order = draw_order(&mut rng, nodes);
            let links = formation.links(&order);
            let ends: BTreeSet<u32> = links.iter().flat_map(|(one, two)| [*one, *two]).collect();
            assert_eq!(ends, (1..=nodes as u32).collect(), "{formation}");
            let mut reached = BTreeSet::from([order[0]]);
            for _ in 0..nodes {
                let next = links.iter().filter(|(one, two)| reached.contains(one) || reached.contains(two));
                reached.extend(next.flat_map(|(one, two)| [*one, *two]).collect::<Vec<_>>());
            }
            assert_eq!(reached.len(), nodes, "{formation}");
        }
    }

    #[test]
    fn every_formation_is_drawn_and_some_are_limits_of_the_network() {
        let mut rng = Rng::new(1);
        let drawn: Vec<_> = (0..1_000).map(|_| Formation::draw(&mut rng)).collect();
        for formation in Formation::ALL {
            assert!(drawn.iter().filter(|one| **one == formation).count() > 30, "{formation}");
        }
        let order = [3, 1, 4, 2];
        let limited = (0..100).filter(|_| Formation::Chain4.draw_reach(&mut rng, &order).is_some()).count();
        assert!((30..70).contains(&limited), "{limited}");
    }
}
