//! Which members to dial, and which links to give up.
//!
//! A topology plans links over the members that are *live*: those that can be reached from here
//! over links that are up. That alone leaves two things to be done:
//!
//! - **Members out of sight are dialled**, all of them in the end. Otherwise the two halves of a
//!   broken ring, each a ring of its own and complete, never meet again; and a member whose planned
//!   links are all broken stays alone though others could reach it. They are dialled one by one, so
//!   that a node that starts does not open a link to each member only to close it again.
//! - **Links that are up and not planned are kept where they hold the live members together**, and
//!   dropped where they do not. Which ones those are follows from the graph of links that all nodes
//!   know, by the same computation: planned links first, then the others in order of server ids,
//!   each if it joins two parts that are not yet joined (Kruskal's algorithm). So all nodes agree on
//!   what is kept, and no two of them drop each the link that the other relies on, once what they
//!   know is the same. Until then there is `link_hold_ms`, and dialling.
//!
//! A link is dropped by the end with the smaller server id. One end is enough, and if the two do
//! not agree (they may know different topologies for a moment) the link has a chance to stay. The
//! drop is not undone by the other end: it dials whom the topology plans, and such a link is kept,
//! or whom it cannot see, and a link that is all that holds them together is kept too.

use std::collections::{BTreeMap, BTreeSet};

use polyarch_crdt::seeded_bug;

use crate::reach::LinkStates;
use crate::topology::{self, Edge, Parts, Topology};

/// When links are opened and closed, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkTimings {
    /// Of the members out of sight that are not planned neighbours, one more is dialled each time
    /// that this has passed. Default 250.
    pub dial_next_ms: u64,
    /// How long a link must have been unneeded, without interruption, before it is dropped. It has
    /// to be longer than link states take to cross the cluster. Default 3,000.
    pub link_hold_ms: u64,
}

impl Default for LinkTimings {
    fn default() -> Self {
        Self { dial_next_ms: 250, link_hold_ms: 3_000 }
    }
}

/// What the plan looks at.
#[derive(Debug)]
pub struct LinkSight<'a> {
    /// All members that may be linked: joining ones too, not removed ones.
    pub members: &'a BTreeSet<u32>,
    /// Members that an operator cut off here: they are not dialled.
    pub cut: &'a BTreeSet<u32>,
    /// The setting.
    pub topology: &'a Topology,
    /// Who is linked with whom. Its own entry says who asks, and whom that has links to now.
    pub states: &'a LinkStates,
    /// Milliseconds that only rise.
    pub now_ms: u64,
}

/// What to do about links now.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LinkWishes {
    /// Members to keep dialling; whoever is not named any longer is not dialled again.
    pub dial: BTreeSet<u32>,
    /// Members whose link to close.
    pub drop: BTreeSet<u32>,
}

/// Plans links, with what is needed to be patient. Asked when anything in [`LinkSight`] has
/// changed, and every 100 ms or so; always about the same [`LinkStates`].
#[derive(Debug, Default)]
pub struct LinkPlan {
    /// What was computed last: asking is cheap while nothing but the time changes.
    view: Option<View>,
    /// Since when members have been out of sight.
    unseen_ms: BTreeMap<u32, u64>,
    /// Since when one's links have been unneeded.
    unneeded_ms: BTreeMap<u32, u64>,
}

impl LinkPlan {
    /// Looks at the links and says what to do.
    pub fn update(&mut self, sight: &LinkSight<'_>, timings: &LinkTimings) -> LinkWishes {
        let view = match self.view.take() {
            Some(view) if view.is_of(sight) => view,
            _ => View::of(sight),
        };
        let waited_ms = |since_ms: u64| sight.now_ms.saturating_sub(since_ms);
        note_since(&mut self.unseen_ms, &view.unseen, sight.now_ms);
        let is_due = |id: &u32, nth: u64| waited_ms(self.unseen_ms[id]) >= nth.saturating_mul(timings.dial_next_ms);
        let lost = view.lost.iter().filter(|id| !sight.cut.contains(id)).zip(0_u64..);
        let others = lost.filter(|(id, nth)| is_due(id, *nth) && !seeded_bug("dials-only-planned")).map(|(id, _)| id);
        let own = sight.states.own();
        let dial = view.neighbours.iter().chain(others).filter(|id| !sight.cut.contains(id) && !own.names(**id));
        note_since(&mut self.unneeded_ms, &view.unneeded, sight.now_ms);
        let drop = view.unneeded.iter().filter(|id| waited_ms(self.unneeded_ms[*id]) >= timings.link_hold_ms);
        let wishes = LinkWishes { dial: dial.copied().collect(), drop: drop.copied().collect() };
        self.view = Some(view);
        wishes
    }
}

/// What follows from the graph of links, whatever the time.
#[derive(Debug)]
struct View {
    changes: u64,
    members: BTreeSet<u32>,
    topology: Topology,
    /// Whom the topology links with this node, among those that are live or among all members:
    /// when one of the latter comes back, its place is here.
    neighbours: BTreeSet<u32>,
    /// Members out of sight.
    unseen: BTreeSet<u32>,
    /// Those of them that are not neighbours, in the order in which they are dialled.
    lost: Vec<u32>,
    /// Whose link this node may drop.
    unneeded: BTreeSet<u32>,
}

impl View {
    fn of(sight: &LinkSight<'_>) -> Self {
        let (members, topology) = (sight.members.clone(), sight.topology.clone());
        let me = sight.states.own().server_id;
        let up = sight.states.edges();
        let mut live = topology::component(me, &up);
        // One that joins is linked before its record has come: it has no place in the plan yet.
        live.retain(|id| *id == me || members.contains(id));
        let planned = topology.edges(&live);
        let all = members.iter().copied().chain([me]).collect();
        let neighbours = planned.iter().chain(&topology.edges(&all)).filter_map(|edge| edge.other(me)).collect();
        let unseen: BTreeSet<u32> = members.difference(&live).copied().collect();
        let mut lost = topology.preference(me, &members);
        lost.retain(|id| unseen.contains(id) && !BTreeSet::contains(&neighbours, id));
        let unneeded = unneeded(sight, &kept(&up, &planned));
        Self { changes: sight.states.changes(), members, topology, neighbours, unseen, lost, unneeded }
    }

    fn is_of(&self, sight: &LinkSight<'_>) -> bool {
        self.changes == sight.states.changes() && self.members == *sight.members && self.topology == *sight.topology
    }
}

/// Whose link this node may drop, as it has the smaller server id, and nobody needs.
fn unneeded(sight: &LinkSight<'_>, kept: &BTreeSet<Edge>) -> BTreeSet<u32> {
    let own = sight.states.own();
    // Nobody plans for one that has no record yet, and such a one cannot know what the others plan.
    if !sight.members.contains(&own.server_id) {
        return BTreeSet::new();
    }
    let may_drop = |id: &&u32| sight.members.contains(id) && own.server_id < **id;
    let is_unneeded = |id: &&u32| !kept.contains(&Edge::new(own.server_id, **id));
    own.linked.iter().filter(may_drop).filter(is_unneeded).copied().collect()
}

/// Notes since when something has been so of exactly these members, without interruption.
fn note_since(times: &mut BTreeMap<u32, u64>, ids: &BTreeSet<u32>, now_ms: u64) {
    times.retain(|id, _| ids.contains(id));
    for id in ids {
        times.entry(*id).or_insert(now_ms);
    }
}

/// The links of those that are up that are to stay: the planned, and as many of the others as hold
/// the parts together that the planned ones leave.
fn kept(up: &BTreeSet<Edge>, planned: &BTreeSet<Edge>) -> BTreeSet<Edge> {
    let mut parts = Parts::default();
    let mut kept: BTreeSet<Edge> = up.intersection(planned).copied().collect();
    kept.iter().for_each(|edge| _ = parts.join(*edge));
    kept.extend(up.difference(planned).filter(|edge| parts.join(**edge)));
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reach::{LinkState, Taken};

    /// A node 3 among members 1 to 6.
    struct Node {
        plan: LinkPlan,
        states: LinkStates,
        topology: Topology,
        members: BTreeSet<u32>,
        cut: BTreeSet<u32>,
        version: u64,
    }

    impl Node {
        fn in_a(topology: &str) -> Self {
            Self {
                plan: LinkPlan::default(),
                states: LinkStates::new(3, 1),
                topology: topology.parse().expect("it is one"),
                members: (1..=6).collect(),
                cut: BTreeSet::new(),
                version: 0,
            }
        }

        /// Makes these the links that are up, all over the cluster.
        fn see(&mut self, links: &[(u32, u32)]) {
            self.version += 1;
            let linked = |id: u32| -> BTreeSet<u32> {
                links.iter().filter_map(|(one, two)| Edge::new(*one, *two).other(id)).collect()
            };
            let _ = self.states.set_own(&linked(3));
            for server_id in self.members.iter().copied().filter(|id| *id != 3) {
                let linked = linked(server_id).into_iter().collect();
                let entry = LinkState { server_id, boot_id: 1, version: self.version, outdates: None, linked };
                assert_eq!(self.states.take(&entry), Taken::Newer);
            }
        }

        fn at(&mut self, now_ms: u64) -> (Vec<u32>, Vec<u32>) {
            let (members, cut, topology, states) = (&self.members, &self.cut, &self.topology, &self.states);
            let sight = LinkSight { members, cut, topology, states, now_ms };
            let wishes = self.plan.update(&sight, &LinkTimings::default());
            (wishes.dial.into_iter().collect(), wishes.drop.into_iter().collect())
        }
    }

    #[test]
    fn planned_neighbours_are_dialled_at_once_and_the_others_one_by_one_until_they_are_seen() {
        let mut node = Node::in_a("ring");
        assert_eq!(node.at(0).0, [2, 4, 5], "two neighbours, and the first of the others");
        assert_eq!(node.at(249).0, [2, 4, 5]);
        assert_eq!(node.at(250).0, [1, 2, 4, 5]);
        assert_eq!(node.at(500).0, [1, 2, 4, 5, 6]);
        node.see(&[(3, 4), (4, 5), (5, 6)]);
        assert_eq!(node.at(600).0, [1, 2, 6], "6 is a neighbour while 1 and 2 are not seen");
        node.see(&[(3, 4), (4, 5), (5, 6), (6, 1), (1, 2)]);
        assert_eq!(node.at(700).0, [2]);
    }

    #[test]
    fn a_member_that_was_cut_off_is_not_dialled() {
        let mut node = Node::in_a("mesh");
        node.cut = [2, 6].into();
        assert_eq!(node.at(0).0, [1, 4, 5]);
    }

    #[test]
    fn an_unneeded_link_is_dropped_after_a_while_by_its_smaller_end() {
        let mut node = Node::in_a("ring");
        let ring = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 1)];
        node.see(&[&ring[..], &[(3, 5), (1, 3)]].concat());
        assert_eq!(node.at(100).1, []);
        assert_eq!(node.at(3_099).1, []);
        assert_eq!(node.at(3_100).1, [5], "1 drops its own");
        assert_eq!(node.at(3_100).0, []);
    }

    #[test]
    fn a_link_that_was_needed_in_between_is_given_its_time_anew() {
        let mut node = Node::in_a("ring");
        let ring = [(1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 1), (3, 5)];
        node.see(&ring);
        assert_eq!(node.at(0).1, []);
        node.see(&ring[1..]);
        assert_eq!(node.at(2_000).1, [], "3-5 is not needed for that");
        node.see(&[(1, 2), (2, 3), (3, 5), (5, 6), (6, 1)]);
        assert_eq!(node.at(2_500).1, [], "4 is gone");
        node.see(&ring);
        assert_eq!(node.at(2_600).1, []);
        assert_eq!(node.at(5_599).1, []);
        assert_eq!(node.at(5_600).1, [5]);
    }

    #[test]
    fn of_unplanned_links_those_are_kept_that_hold_the_parts_together() {
        // The ring is broken at 2-3 and 5-6; 3-6 and 4-6 both mend it.
        let mut node = Node::in_a("ring");
        node.see(&[(1, 2), (3, 4), (4, 5), (6, 1), (3, 6), (4, 6), (3, 5)]);
        assert_eq!(node.at(0), (vec![2], vec![]));
        assert_eq!(node.at(3_000), (vec![2], vec![5]), "3-6 comes first and stays");
    }

    #[test]
    fn a_newcomer_is_not_dropped_before_everybody_knows_it() {
        let mut node = Node::in_a("star:1");
        node.see(&[(1, 2), (1, 3), (1, 4), (1, 5), (1, 6), (3, 9)]);
        let _ = node.states.set_own(&[1, 4, 9].into());
        node.at(0);
        assert_eq!(node.at(3_000).1, [4], "9 is no member yet");
        // And one that has no record itself drops nothing.
        node.members.remove(&3);
        assert_eq!(node.at(9_000).1, []);
    }
}
