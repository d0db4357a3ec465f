use std::collections::BTreeSet;

use crate::topology::Edge;

/// All pairs of the members 1 to `n`.
pub(super) fn pairs(n: u32) -> Vec<Edge> {
    (1..=n).flat_map(|one| (one + 1..=n).map(move |two| Edge::new(one, two))).collect()
}

/// Of all graphs over the members 1 to `n`, one of each set of graphs that these renamings turn
/// into one another. A renaming is a list of the new ids of 1, 2, and so on.
pub(super) fn graphs(n: u32, renamings: &[Vec<u32>]) -> Vec<BTreeSet<Edge>> {
    let pairs = pairs(n);
    let place = |edge: Edge| pairs.binary_search(&edge).expect("it is one of them");
    let renamed =
        |edge: &Edge, to: &[u32]| place(Edge::new(to[edge.ends()[0] as usize - 1], to[edge.ends()[1] as usize - 1]));
    let moves: Vec<Vec<usize>> =
        renamings.iter().map(|to| pairs.iter().map(|edge| renamed(edge, to)).collect()).collect();
    let mut seen = vec![false; 1 << pairs.len()];
    let mut graphs = Vec::new();
    for mask in 0..seen.len() {
        if !seen[mask] {
            let has = |place: &usize| mask >> place & 1 == 1;
            let image = |to: &Vec<usize>| (0..pairs.len()).filter(has).map(|place| 1 << to[place]).sum::<usize>();
            moves.iter().for_each(|to| seen[image(to)] = true);
            graphs.push((0..pairs.len()).filter(has).map(|place| pairs[place]).collect());
        }
    }
    graphs
}

/// No renaming but that of each to itself.
pub(super) fn fixed(n: u32) -> Vec<Vec<u32>> {
    vec![(1..=n).collect()]
}

/// All renamings of `first` to `n`; those before keep their ids.
pub(super) fn permutations(first: u32, n: u32) -> Vec<Vec<u32>> {
    let mut orders = vec![(1..first).collect::<Vec<u32>>()];
    for id in first..=n {
        let insert = |order: &Vec<u32>, at: usize| [&order[..at], &[id], &order[at..]].concat();
        let places = |order: Vec<u32>| (first as usize - 1..=order.len()).map(move |at| insert(&order, at));
        orders = orders.into_iter().flat_map(places).collect();
    }
    orders
}

/// All turns of a ring, and of its mirror image.
pub(super) fn turns(n: u32) -> Vec<Vec<u32>> {
    let turn = |by: u32| (0..n).map(|at| (at + by) % n + 1).collect::<Vec<u32>>();
    let mirror = |order: Vec<u32>| order.into_iter().rev().collect();
    (0..n).flat_map(|by| [turn(by), mirror(turn(by))]).collect()
}

/// Numbers for samples: splitmix64, so that a failure names its seed.
pub(super) struct Seeded(pub(super) u64);

impl Seeded {
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Each pair with a chance of `part` in `whole`.
    pub(super) fn graph(&mut self, n: u32, part: u64, whole: u64) -> BTreeSet<Edge> {
        pairs(n).into_iter().filter(|_| self.below(whole) < part).collect()
    }

    /// A tree over all, with a few links more.
    pub(super) fn connected(&mut self, n: u32) -> BTreeSet<Edge> {
        let tree: BTreeSet<Edge> = (2..=n).map(|id| Edge::new(id, self.below(u64::from(id) - 1) as u32 + 1)).collect();
        &tree | &self.graph(n, 1, 4)
    }
}

#[test]
fn there_are_as_many_graphs_as_others_have_counted() {
    // OEIS A000088, and A000666: graphs with one node fixed, or with loops on one node less.
    let counts: Vec<usize> = (2..=6).map(|n| graphs(n, &permutations(1, n)).len()).collect();
    assert_eq!(counts, [2, 4, 11, 34, 156]);
    let rooted: Vec<usize> = (2..=6).map(|n| graphs(n, &permutations(2, n)).len()).collect();
    assert_eq!(rooted, [2, 6, 20, 90, 544]);
    assert_eq!(graphs(4, &fixed(4)).len(), 64);
    assert_eq!(graphs(6, &fixed(6)).len(), 1 << 15);
}
