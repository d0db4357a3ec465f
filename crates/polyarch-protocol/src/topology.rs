//! Who is to be linked with whom.
//!
//! A topology is a pure function from the members that can be reached to the links between them.
//! It says nothing about data: which link feeds which origin follows from the links that are up
//! ([`crate::Distances`]), whoever planned them. So every topology, and every transition between
//! two of them, runs the same feeds.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Bound::{Excluded, Unbounded};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::codec;
use crate::limits::wire;

/// A cluster's plan of links. Variants are appended only.
///
/// It prints as one word of a command line, `mesh`, `ring`, `star`, `star:1,2` (the hubs in order)
/// or `custom:1-2,2-3`, and is read from the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Topology {
    /// Every member with every other: one hop to everyone, links grow with the square of members.
    #[default]
    Mesh,
    /// Each with the next in order of server ids, the last with the first.
    Ring,
    /// One hub with all others.
    Star {
        /// Who may be the hub, best first: the first of them that can be reached is. Beyond them,
        /// or with none given, it is the smallest server id that can be reached.
        #[serde(deserialize_with = "codec::topology")]
        hubs: Vec<u32>,
    },
    /// The given links and no others.
    Custom {
        /// Pairs of server ids, in any order.
        #[serde(deserialize_with = "codec::topology")]
        edges: Vec<(u32, u32)>,
    },
}

/// A link between two members, whoever dialled: the smaller server id comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Edge(u32, u32);

/// Why a topology is not fit for these members. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// It names somebody who is no member.
    #[error("{0} is not a member of this cluster")]
    UnknownMember(u32),
    /// A hub is given twice.
    #[error("hub {0} is given twice")]
    DuplicateHub(u32),
    /// A link from a member to itself.
    #[error("member {0} cannot be linked with itself")]
    SelfEdge(u32),
    /// A link is given twice, perhaps the other way round.
    #[error("link {0}-{1} is given twice")]
    DuplicateEdge(u32, u32),
    /// More hubs or links than the format has room for.
    #[error("it names {len} of them, the limit is {max}; a mesh, ring or star needs no list")]
    TooLong {
        /// How many it names.
        len: usize,
        /// How many it may.
        max: usize,
    },
    /// A custom topology without links.
    #[error("a custom topology needs at least one link")]
    NoEdges,
    /// Some members would never hear of each other.
    #[error("no way leads from member {from} to member {to}; add a link that joins the two parts")]
    Disconnected {
        /// The smallest server id.
        from: u32,
        /// The smallest that cannot be reached from there.
        to: u32,
    },
}

/// The text names no topology.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no topology; use mesh, ring, star, star:1,2 (hubs in order) or custom:1-2,2-3 (links)")]
pub struct ParseTopologyError(String);

impl Topology {
    /// The links between these members, planned as if no others existed.
    ///
    /// # Examples
    /// ```
    /// use polyarch_protocol::{Edge, Topology};
    ///
    /// let edges = Topology::Ring.edges(&[1, 2, 5].into());
    /// assert_eq!(edges, [Edge::new(1, 2), Edge::new(2, 5), Edge::new(5, 1)].into());
    /// ```
    pub fn edges(&self, live: &BTreeSet<u32>) -> BTreeSet<Edge> {
        match self {
            Self::Mesh => {
                live.iter().flat_map(|one| live.range((Excluded(one), Unbounded)).map(|two| Edge(*one, *two))).collect()
            }
            Self::Ring => {
                let next = live.iter().skip(1).chain(live.first());
                live.iter().zip(next).filter(|(one, two)| one != two).map(|(one, two)| Edge::new(*one, *two)).collect()
            }
            Self::Star { hubs } => {
                let Some(hub) = hubs.iter().find(|hub| live.contains(hub)).or(live.first()) else {
                    return BTreeSet::new();
                };
                live.iter().filter(|id| *id != hub).map(|id| Edge::new(*hub, *id)).collect()
            }
            Self::Custom { edges } => {
                let is_live = |(one, two): &&(u32, u32)| one != two && live.contains(one) && live.contains(two);
                edges.iter().filter(is_live).map(|(one, two)| Edge::new(*one, *two)).collect()
            }
        }
    }

    /// Whether it can serve these members.
    ///
    /// Members change after a topology was accepted, so nothing else relies on this: what it names
    /// and is not there is left out, and members that its links do not reach find others to link
    /// with.
    ///
    /// # Errors
    /// When it names somebody unknown, something twice, or leaves a member without a way to another.
    pub fn validate(&self, members: &BTreeSet<u32>) -> Result<(), TopologyError> {
        let (len, max) = (self.names(), wire::TOPOLOGY_NAMES_MAX);
        match self {
            _ if len > max => Err(TopologyError::TooLong { len, max }),
            Self::Mesh | Self::Ring => Ok(()),
            Self::Star { hubs } => validate_hubs(hubs, members),
            Self::Custom { edges } => validate_edges(edges, members),
        }
    }

    /// How many hubs or links it names.
    fn names(&self) -> usize {
        match self {
            Self::Mesh | Self::Ring => 0,
            Self::Star { hubs } => hubs.len(),
            Self::Custom { edges } => edges.len(),
        }
    }

    /// In which order `me` tries to reach members that it lost sight of: those first that the plan
    /// would sooner make its neighbours, so that fewer links have to be dropped again later.
    pub(crate) fn preference(&self, me: u32, members: &BTreeSet<u32>) -> Vec<u32> {
        let others = || members.iter().copied().filter(|id| *id != me);
        match self {
            Self::Ring => {
                let ascending: Vec<u32> =
                    others().filter(|id| *id > me).chain(others().filter(|id| *id < me)).collect();
                let both_ways =
                    ascending.iter().zip(ascending.iter().rev()).flat_map(|(next, before)| [*next, *before]);
                first_of_each(both_ways)
            }
            Self::Star { hubs } => {
                let hubs = hubs.iter().copied().filter(|id| *id != me && members.contains(id));
                first_of_each(hubs.chain(others()))
            }
            Self::Mesh | Self::Custom { .. } => others().collect(),
        }
    }
}

impl Edge {
    /// The link between two members.
    pub fn new(one: u32, other: u32) -> Self {
        Self(one.min(other), one.max(other))
    }

    /// Its ends, the smaller server id first.
    pub fn ends(self) -> [u32; 2] {
        [self.0, self.1]
    }

    /// Who is at the other end, if `id` is at one.
    pub fn other(self, id: u32) -> Option<u32> {
        match self {
            Self(one, two) if one == id => Some(two),
            Self(one, two) if two == id => Some(one),
            Self(..) => None,
        }
    }
}

impl fmt::Display for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

impl fmt::Display for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mesh => f.write_str("mesh"),
            Self::Ring => f.write_str("ring"),
            Self::Star { hubs } if hubs.is_empty() => f.write_str("star"),
            Self::Star { hubs } => write!(f, "star:{}", joined(hubs.iter().map(u32::to_string))),
            Self::Custom { edges } => {
                write!(f, "custom:{}", joined(edges.iter().map(|(one, two)| format!("{one}-{two}"))))
            }
        }
    }
}

impl FromStr for Topology {
    type Err = ParseTopologyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let edge =
            |text: &str| text.split_once('-').and_then(|(one, two)| Some((one.parse().ok()?, two.parse().ok()?)));
        let parsed = match text.split_once(':') {
            None if text == "mesh" => Some(Self::Mesh),
            None if text == "ring" => Some(Self::Ring),
            None if text == "star" => Some(Self::Star { hubs: Vec::new() }),
            Some(("star", hubs)) => {
                hubs.split(',').map(|hub| hub.parse().ok()).collect::<Option<_>>().map(|hubs| Self::Star { hubs })
            }
            Some(("custom", edges)) => {
                edges.split(',').map(edge).collect::<Option<_>>().map(|edges| Self::Custom { edges })
            }
            _ => None,
        };
        parsed.ok_or_else(|| ParseTopologyError(text.to_owned()))
    }
}

fn validate_hubs(hubs: &[u32], members: &BTreeSet<u32>) -> Result<(), TopologyError> {
    let mut seen = BTreeSet::new();
    for hub in hubs {
        if !members.contains(hub) {
            return Err(TopologyError::UnknownMember(*hub));
        }
        if !seen.insert(*hub) {
            return Err(TopologyError::DuplicateHub(*hub));
        }
    }
    Ok(())
}

fn validate_edges(edges: &[(u32, u32)], members: &BTreeSet<u32>) -> Result<(), TopologyError> {
    let mut seen = BTreeSet::new();
    for (one, two) in edges {
        if let Some(unknown) = [one, two].into_iter().find(|id| !members.contains(id)) {
            return Err(TopologyError::UnknownMember(*unknown));
        }
        if one == two {
            return Err(TopologyError::SelfEdge(*one));
        }
        if !seen.insert(Edge::new(*one, *two)) {
            return Err(TopologyError::DuplicateEdge(*one, *two));
        }
    }
    let Some(from) = members.first().copied().filter(|_| !seen.is_empty()) else {
        return Err(TopologyError::NoEdges);
    };
    let reached = component(from, &seen);
    match members.difference(&reached).next() {
        Some(to) => Err(TopologyError::Disconnected { from, to: *to }),
        None => Ok(()),
    }
}

/// Who can be reached from `from` over these links, itself included.
pub(crate) fn component(from: u32, edges: &BTreeSet<Edge>) -> BTreeSet<u32> {
    let mut parts = Parts::default();
    edges.iter().for_each(|edge| _ = parts.join(*edge));
    let part = parts.part_of(from);
    let ends: BTreeSet<u32> = edges.iter().flat_map(|edge| edge.ends()).chain([from]).collect();
    ends.into_iter().filter(|id| parts.part_of(*id) == part).collect()
}

/// The connected parts of a graph that grows by links (a union-find forest).
#[derive(Debug, Default)]
pub(crate) struct Parts {
    parents: std::collections::BTreeMap<u32, u32>,
}

impl Parts {
    /// Adds a link. Says whether it joined two parts.
    pub(crate) fn join(&mut self, edge: Edge) -> bool {
        let [one, two] = edge.ends().map(|id| self.part_of(id));
        if one != two {
            self.parents.insert(two, one);
        }
        one != two
    }

    /// A part's name: one of its ids.
    pub(crate) fn part_of(&mut self, id: u32) -> u32 {
        let mut root = id;
        while let Some(parent) = self.parents.get(&root) {
            root = *parent;
        }
        if root != id {
            self.parents.insert(id, root);
        }
        root
    }
}

fn first_of_each(ids: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut seen = BTreeSet::new();
    ids.filter(|id| seen.insert(*id)).collect()
}

fn joined(parts: impl Iterator<Item = String>) -> String {
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u32]) -> BTreeSet<u32> {
        ids.iter().copied().collect()
    }

    fn planned(topology: &str, live: &[u32]) -> String {
        let topology: Topology = topology.parse().expect("it is one");
        joined(topology.edges(&set(live)).iter().map(Edge::to_string))
    }

    #[test]
    fn each_topology_plans_its_links_over_those_that_are_live() {
        for (topology, live, links) in [
            ("mesh", &[][..], ""),
            ("mesh", &[7], ""),
            ("mesh", &[1, 2, 4], "1-2,1-4,2-4"),
            ("ring", &[], ""),
            ("ring", &[7], ""),
            ("ring", &[3, 7], "3-7"),
            ("ring", &[2, 3, 5, 9], "2-3,2-9,3-5,5-9"),
            ("star", &[], ""),
            ("star", &[7], ""),
            ("star", &[2, 3, 4], "2-3,2-4"),
            ("star:4,3", &[2, 3, 4], "2-4,3-4"),
            ("star:4,3", &[2, 3, 5], "2-3,3-5"),
            ("star:4,3", &[2, 5, 6], "2-5,2-6"),
            ("custom:3-1,2-3", &[1, 2, 3], "1-3,2-3"),
            ("custom:3-1,2-3", &[1, 3], "1-3"),
            ("custom:3-1,2-3", &[1, 2], ""),
        ] {
            assert_eq!(planned(topology, live), links, "{topology} over {live:?}");
        }
        assert_eq!(planned("mesh", &[1, u32::MAX]), format!("1-{}", u32::MAX));
    }

    #[test]
    fn a_topology_prints_as_it_is_read() {
        for text in ["mesh", "ring", "star", "star:1,2", "star:7", "custom:1-2,3-2"] {
            let topology: Topology = text.parse().expect("it is one");
            assert_eq!(topology.to_string(), text);
        }
        assert_eq!(Topology::default().to_string(), "mesh");
        for text in ["", "Mesh", "star:", "star:a", "star:-1", "custom:", "custom:1", "custom:1-2-3", "ring:1", "mesh:"]
        {
            let error = text.parse::<Topology>().expect_err(text).to_string();
            assert!(error.contains("use mesh, ring, star"), "{error}");
        }
    }

    #[test]
    fn a_topology_that_cannot_serve_its_members_is_refused_in_plain_words() {
        for (topology, words) in [
            ("star:9", "9 is not a member of this cluster"),
            ("star:1,2,1", "hub 1 is given twice"),
            ("custom:1-2,2-9", "9 is not a member of this cluster"),
            ("custom:1-2,2-2", "member 2 cannot be linked with itself"),
            ("custom:1-2,2-3,2-1", "link 2-1 is given twice"),
            ("custom:1-2,3-4", "no way leads from member 1 to member 3; add a link that joins the two parts"),
        ] {
            let parsed: Topology = topology.parse().expect("it is one");
            let error = parsed.validate(&set(&[1, 2, 3, 4])).expect_err(topology);
            assert_eq!(error.to_string(), words, "{topology}");
        }
        let none = Topology::Custom { edges: Vec::new() };
        assert_eq!(none.validate(&set(&[1, 2])), Err(TopologyError::NoEdges));
        assert_eq!(
            "custom:1-2".parse::<Topology>().expect("it is one").validate(&set(&[])),
            Err(TopologyError::UnknownMember(1))
        );
    }

    #[test]
    fn a_topology_that_serves_its_members_is_accepted() {
        for topology in ["mesh", "ring", "star", "star:2", "star:4,1", "custom:1-2,3-4,4-1"] {
            let topology: Topology = topology.parse().expect("it is one");
            assert_eq!(topology.validate(&set(&[1, 2, 3, 4])), Ok(()), "{topology}");
        }
    }

    #[test]
    fn members_lost_sight_of_are_tried_in_the_order_in_which_they_would_become_neighbours() {
        let members = set(&[1, 2, 3, 4, 5, 6]);
        let order = |topology: &str, me| topology.parse::<Topology>().expect("it is one").preference(me, &members);
        assert_eq!(order("ring", 3), [4, 2, 5, 1, 6], "ahead, back, ahead, back");
        assert_eq!(order("ring", 9), [1, 6, 2, 5, 3, 4], "one that is no member yet");
        assert_eq!(order("star:5,9,2", 3), [5, 2, 1, 4, 6]);
        assert_eq!(order("star:5,2", 5), [2, 1, 3, 4, 6]);
        assert_eq!(order("mesh", 3), [1, 2, 4, 5, 6]);
        assert_eq!(order("custom:1-2", 3), [1, 2, 4, 5, 6]);
    }
}
