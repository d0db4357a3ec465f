//! Within a bound after all faults ended the links that are up are those that the topology plans
//! over all members, each once, and no others.
//!
//! A custom topology may not name a member that joined after it was set, and the network may not let two
//! talk that are to be linked. Then the parts that are left are held together by links of which none could
//! be spared.
//!
//! Source: what each topology means, written down once more here.

use std::collections::{BTreeMap, BTreeSet};

use polyarch_protocol::Topology;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "links_are_as_planned";

/// A link, the smaller server id first.
pub type Pair = (u32, u32);

/// What the topology plans over these members.
pub fn planned(topology: &Topology, members: &BTreeSet<u32>) -> BTreeSet<Pair> {
    let ids: Vec<u32> = members.iter().copied().collect();
    let pairs: Vec<Pair> = match topology {
        Topology::Mesh => ids.iter().flat_map(|one| ids.iter().map(|two| (*one, *two))).collect(),
        Topology::Ring => (0..ids.len()).map(|at| (ids[at], ids[(at + 1) % ids.len()])).collect(),
        Topology::Star { hubs } => {
            let hub = hubs.iter().copied().find(|hub| members.contains(hub)).unwrap_or(ids[0]);
            ids.iter().map(|id| (hub, *id)).collect()
        }
        Topology::Custom { edges } => {
            edges.iter().copied().filter(|(one, two)| members.contains(one) && members.contains(two)).collect()
        }
    };
    let ordered = pairs.into_iter().map(|(one, two)| (one.min(two), one.max(two)));
    ordered.filter(|(one, two)| one != two).collect()
}

/// When the bound has passed, or to know whether it must be waited for. `can`: whether the network lets two
/// talk at all.
pub fn check(topology: &Topology, members: &BTreeSet<u32>, can: impl Fn(Pair) -> bool, up: &[Pair]) -> Checked {
    let planned: BTreeSet<Pair> = planned(topology, members).into_iter().filter(|pair| can(*pair)).collect();
    let links: BTreeSet<Pair> = up.iter().copied().collect();
    let extra = links.difference(&planned).count();
    let needed = parts(members, &planned) - 1;
    let are_so = links.len() == up.len() && planned.is_subset(&links) && extra == needed && parts(members, &links) == 1;
    match are_so {
        true => Ok(()),
        false => Err(Violation::new(NAME, format!("{topology} over {members:?} plans {planned:?}, and up are {up:?}"))),
    }
}

/// Into how many parts the members fall.
fn parts(members: &BTreeSet<u32>, links: &BTreeSet<Pair>) -> usize {
    let mut part_of: BTreeMap<u32, u32> = members.iter().map(|id| (*id, *id)).collect();
    for (one, two) in links {
        let (Some(one), Some(two)) = (part_of.get(one).copied(), part_of.get(two).copied()) else { continue };
        part_of.values_mut().filter(|part| **part == two).for_each(|part| *part = one);
    }
    part_of.into_values().collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_so(topology: &str, members: &[u32], up: &[Pair]) -> bool {
        let topology = topology.parse().expect("it is a topology");
        check(&topology, &members.iter().copied().collect(), |_| true, up).is_ok()
    }

    #[test]
    fn what_the_network_does_not_let_through_is_made_up_for() {
        let members = (1..=4).collect();
        let can = |(one, two): Pair| two - one == 1;
        let is_so = |topology: &Topology, up: &[Pair]| check(topology, &members, can, up).is_ok();
        for topology in [Topology::Mesh, Topology::Ring, Topology::Star { hubs: vec![2] }] {
            assert!(is_so(&topology, &[(1, 2), (2, 3), (3, 4)]), "{topology}");
            assert!(!is_so(&topology, &[(1, 2), (2, 3)]), "{topology}");
        }
    }

    #[test]
    fn exactly_the_planned_links_are_up() {
        for (topology, up) in [
            ("mesh", &[(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)][..]),
            ("ring", &[(1, 2), (2, 3), (3, 4), (1, 4)]),
            ("star", &[(1, 2), (1, 3), (1, 4)]),
            ("star:9,3", &[(1, 3), (2, 3), (3, 4)]),
            ("custom:1-2,3-2,4-3", &[(1, 2), (2, 3), (3, 4)]),
        ] {
            assert!(is_so(topology, &[1, 2, 3, 4], up), "{topology}");
            assert!(!is_so(topology, &[1, 2, 3, 4], &up[1..]), "{topology} with one missing");
            assert!(!is_so(topology, &[1, 2, 3, 4], &[up, &up[..1]].concat()), "{topology} with one twice");
            if topology != "mesh" {
                assert!(!is_so(topology, &[1, 2, 3, 4], &[up, &[(2, 4)]].concat()), "{topology} with one more");
            }
        }
    }

    #[test]
    fn whom_no_link_is_planned_for_is_held_by_one() {
        assert!(is_so("custom:1-2", &[1, 2, 3], &[(1, 2), (2, 3)]));
        assert!(is_so("custom:1-2", &[1, 2, 3], &[(1, 2), (1, 3)]));
        assert!(!is_so("custom:1-2", &[1, 2, 3], &[(1, 2)]));
        assert!(!is_so("custom:1-2", &[1, 2, 3], &[(1, 2), (1, 3), (2, 3)]));
        assert!(!is_so("custom:1-2", &[1, 2, 3], &[(1, 3), (2, 3)]), "what is planned comes first");
    }
}
