//! Link states from whoever may send them, and streams that wait for each other.

use std::collections::BTreeSet;

use polyarch_crdt::{AppliedSet, Dot, Origin};
use polyarch_protocol::{Distances, Edge, LinkPlan, LinkSight, LinkState, LinkStates, LinkTimings, Taken, Topology};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use crate::support::{Node, foreign};

const OWN: u32 = 1;
/// What [`LinkStates`] keeps of servers that are no members.
const STRANGERS_MAX: usize = 64;

// Link states.

fn server_id() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0_u32..8, 1 => any::<u32>()]
}

fn version() -> impl Strategy<Value = u64> {
    let near_max = LinkState::VERSION_MAX - 2..=LinkState::VERSION_MAX + 2;
    prop_oneof![8 => 0_u64..12, 1 => near_max, 1 => Just(u64::MAX)]
}

fn entry() -> impl Strategy<Value = LinkState> {
    let linked = prop_oneof![9 => btree_set(server_id(), 0..8).prop_map(Vec::from_iter), 1 => vec(server_id(), 0..8)];
    let outdates = proptest::option::of(0_u128..4);
    (server_id(), 0_u128..4, version(), outdates, linked).prop_map(|(server_id, boot_id, version, outdates, linked)| {
        LinkState { server_id, boot_id, version, outdates, linked }
    })
}

#[derive(Debug, Clone)]
enum Step {
    Take(LinkState),
    Link(BTreeSet<u32>),
    Retain(BTreeSet<u32>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => entry().prop_map(Step::Take),
        1 => btree_set(server_id(), 0..8).prop_map(Step::Link),
        1 => btree_set(server_id(), 0..8).prop_map(Step::Retain),
    ]
}

fn topology() -> impl Strategy<Value = Topology> {
    prop_oneof![
        Just(Topology::Mesh),
        Just(Topology::Ring),
        vec(server_id(), 0..4).prop_map(|hubs| Topology::Star { hubs }),
        vec((server_id(), server_id()), 0..8).prop_map(|edges| Topology::Custom { edges }),
    ]
}

/// Takes an entry and checks what came of it against what was there before.
fn take(states: &mut LinkStates, entry: &LinkState) {
    let before = states.own().clone();
    let taken = states.take(entry);
    let own = states.own();
    match &taken {
        Taken::OwnOutdated { own: issued, .. } => {
            assert_eq!((issued, entry.server_id), (own, OWN));
            assert!(own.version > entry.version || own.version == LinkState::VERSION_MAX);
            assert_eq!(own.linked, before.linked, "an entry never says for us whom we are linked with");
        }
        _ => assert_eq!(*own, before),
    }
    if entry.server_id == OWN && taken == Taken::Stale {
        assert!(own.version > entry.version || own == entry);
    }
    let again = states.take(entry);
    let at_the_end = own_is_at_the_end(states);
    assert!(matches!(again, Taken::Stale | Taken::Unsound) || at_the_end, "{entry:?} was {taken:?}, then {again:?}");
}

fn own_is_at_the_end(states: &LinkStates) -> bool {
    states.own().version == LinkState::VERSION_MAX
}

proptest! {
    #[test]
    fn no_entry_breaks_anything_or_takes_more_room_than_there_is(
        steps in vec(step(), 0..60),
        topology in topology(),
        now_ms in vec(any::<u64>(), 3),
        cut in btree_set(server_id(), 0..3),
    ) {
        let mut states = LinkStates::new(OWN, 2);
        let mut plan = LinkPlan::default();
        let mut members = BTreeSet::new();
        for step in steps {
            let changes = states.changes();
            let edges = states.edges();
            match step {
                Step::Take(entry) => take(&mut states, &entry),
                Step::Link(linked) => _ = states.set_own(&linked),
                Step::Retain(now) => {
                    states.retain(&now);
                    members = now;
                }
            }
            prop_assert!(states.edges() == edges || states.changes() > changes);
            prop_assert!(states.entries().count() <= 1 + members.len() + STRANGERS_MAX);
            prop_assert!(states.entries().all(|entry| entry.linked.len() <= LinkState::LINKED_MAX));
        }
        prop_assert_eq!(states.own().server_id, OWN);
        let distances = Distances::of(&states);
        let reached = states.component(OWN);
        for id in states.edges().into_iter().flat_map(Edge::ends) {
            prop_assert_eq!(distances.hops(OWN, id).is_some(), reached.contains(&id));
            prop_assert_eq!(distances.hops(OWN, id), distances.hops(id, OWN));
        }
        for now_ms in now_ms {
            let sight = LinkSight { members: &members, cut: &cut, topology: &topology, states: &states, now_ms };
            let wishes = plan.update(&sight, &LinkTimings::default());
            let own = &states.own().linked;
            prop_assert!(wishes.drop.iter().all(|id| own.contains(id) && members.contains(id)));
            prop_assert!(wishes.dial.iter().all(|id| *id != OWN && !own.contains(id) && !cut.contains(id)));
        }
    }

    /// Whatever the order in which entries arrive, all nodes come to know the same.
    #[test]
    fn entries_end_the_same_in_every_order(
        (entries, shuffled) in vec(entry(), 0..40).prop_flat_map(|all| (Just(all.clone()), Just(all).prop_shuffle())),
    ) {
        let known = |entries: &[LinkState]| {
            let mut states = LinkStates::new(OWN, 2);
            states.retain(&entries.iter().map(|entry| entry.server_id).collect());
            entries.iter().for_each(|entry| _ = states.take(entry));
            let of_others: Vec<_> = states.entries().skip(1).map(|e| (e.server_id, e.version, e.boot_id)).collect();
            of_others
        };
        prop_assert_eq!(known(&entries), known(&shuffled));
    }

    #[test]
    fn a_topology_is_read_as_it_was_printed_and_plans_nothing_for_those_who_are_not_there(
        topology in topology(),
        live in btree_set(server_id(), 0..8),
    ) {
        let empty = matches!(&topology, Topology::Custom { edges } if edges.is_empty());
        prop_assert!(empty || topology.to_string().parse() == Ok(topology.clone()));
        for edge in topology.edges(&live) {
            let [one, two] = edge.ends();
            prop_assert!(one < two && live.contains(&one) && live.contains(&two));
        }
    }
}

// Streams.

/// P's log is `1:10 (needs 3:7), 2:9`, Q's is `4:5 (needs 2:9), 3:7`. If a write set that waits held
/// up its stream, neither would go on.
#[test]
fn two_streams_that_wait_for_each_other_go_on_without_a_stall() {
    let [one, two, three, four] = [11, 12, 13, 14].map(|id| Origin::new(id, 9));
    let dots = |seqs: [u64; 4]| -> Vec<Dot> {
        [one, two, three, four].into_iter().zip(seqs).map(|(origin, seq)| Dot::new(origin, seq)).collect()
    };
    let sets =
        |origin, seqs: std::ops::RangeInclusive<u64>| seqs.map(move |seq| foreign(Dot::new(origin, seq), &[], "x"));
    let from_p = [foreign(Dot::new(one, 10), &[Dot::new(three, 7)], "p"), foreign(Dot::new(two, 9), &[], "p")];
    let from_q = [foreign(Dot::new(four, 5), &[Dot::new(two, 9)], "q"), foreign(Dot::new(three, 7), &[], "q")];
    // Every way to interleave the two: whose turn it is.
    for turns in [[0, 0, 1, 1], [0, 1, 0, 1], [0, 1, 1, 0], [1, 0, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]] {
        let mut node = Node::founded(1);
        let before = [dots([9, 8, 0, 0]), dots([0, 0, 6, 4])];
        for (link, applied) in [(1, &before[0]), (2, &before[1])] {
            node.meet(link, link as u32 + 20);
            let has: Vec<Dot> = applied.iter().copied().filter(|dot| dot.seq > 0).collect();
            node.hear_applied(link, &has);
        }
        assert_eq!((node.fed_on(1), node.fed_on(2)), (vec![one, two], vec![three, four]));
        node.feed(1, &sets(one, 1..=9).chain(sets(two, 1..=8)).collect::<Vec<_>>());
        node.feed(2, &sets(three, 1..=6).chain(sets(four, 1..=4)).collect::<Vec<_>>());
        for link in [1, 2] {
            node.hear_applied(link, &dots([10, 9, 7, 5]));
        }
        assert_eq!((node.fed_on(1), node.fed_on(2)), (vec![one, two], vec![three, four]), "feeds stay");
        let mut streams = [from_p.iter(), from_q.iter()];
        for turn in turns {
            let next = streams[turn].next().expect("each has two turns");
            node.feed(turn as u64 + 1, std::slice::from_ref(next));
        }
        let expected: AppliedSet = dots([10, 9, 7, 5]).into_iter().collect();
        assert!(node.applied().includes_all(&expected), "{turns:?}: {}", node.applied());
    }
}
