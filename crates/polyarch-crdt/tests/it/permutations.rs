//! Small histories, in every order that causality allows, and the laws of `join` on every state
//! that such an order can reach.

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use crate::support::{Change, SmallHistory, State, WriteSet, cases, dot, small_history, value};

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn every_order_of_delivery_ends_in_one_state(history in small_history(1..=6)) {
        let orders = check_every_order(&history.write_sets).map_err(TestCaseError::fail)?;
        prop_assert!(orders > 0, "the order of creation is one");
    }
}

proptest! {
    #![proptest_config(cases(5_000))]

    #[test]
    fn join_is_commutative((one, two, _, _) in reachable()) {
        prop_assert_eq!(one.join(&two), two.join(&one));
    }

    #[test]
    fn join_is_associative((one, two, three, _) in reachable()) {
        prop_assert_eq!(one.join(&two).join(&three), one.join(&two.join(&three)));
    }

    #[test]
    fn join_is_idempotent((one, two, _, _) in reachable()) {
        prop_assert_eq!(one.join(&one), one.clone());
        let joined = one.join(&two);
        prop_assert_eq!(joined.join(&two), joined.clone());
        prop_assert_eq!(joined.join(&one), joined);
    }

    #[test]
    fn joining_a_node_that_has_nothing_changes_nothing((one, _, _, _) in reachable()) {
        prop_assert_eq!(one.join(&State::default()), one);
    }

    #[test]
    fn a_joined_state_shows_what_no_applied_write_superseded((one, two, _, history) in reachable()) {
        one.join(&two).check(history.write_sets.iter()).map_err(TestCaseError::fail)?;
    }

    #[test]
    fn join_is_the_same_as_applying_the_write_sets_that_were_missing((one, two, _, history) in reachable()) {
        let mut fed = one.clone();
        for write_set in history.write_sets.iter().filter(|w| two.applied.includes(w.dot)) {
            fed.apply(write_set);
        }
        prop_assert_eq!(one.join(&two).settled(), fed.settled());
    }

    #[test]
    fn a_joined_state_goes_on_as_if_it_had_applied_each_write_set((one, two, _, history) in reachable()) {
        let mut joined = one.join(&two);
        for write_set in &history.write_sets {
            joined.apply(write_set);
            joined.check(history.write_sets.iter()).map_err(TestCaseError::fail)?;
        }
        prop_assert_eq!(joined.settled(), history.reach(&[1; 9]).settled());
    }
}

/// The laws above would hold for little if the states that they are tried on were all alike.
#[test]
fn the_reachable_states_differ_absorb_and_conflict() {
    const TRIES: usize = 1_000;
    let mut runner = TestRunner::deterministic();
    let strategy = reachable();
    let (mut concurrent, mut absorbing, mut in_conflict) = (0, 0, 0);
    for _ in 0..TRIES {
        let tree = strategy.new_tree(&mut runner).expect("histories are not filtered");
        let (one, two, _, _) = tree.current();
        concurrent += usize::from(one.applied.partial_cmp(&two.applied).is_none());
        absorbing += usize::from(one.records.values().any(|record| record.absorb_len() > 0));
        in_conflict += usize::from(one.join(&two).shown().values().any(|values| values.len() > 1));
    }
    assert!(concurrent > TRIES / 10, "{concurrent} pairs of which neither includes the other");
    assert!(absorbing > TRIES / 10, "{absorbing} states that absorb");
    assert!(in_conflict > TRIES / 10, "{in_conflict} joins that show concurrent writes");
}

/// Every history of four write sets to one field, from any origins, each superseding any of those
/// before it, whether its node had applied them or not: in every order of delivery.
#[test]
fn all_histories_of_four_writes_to_one_field_end_in_one_state() {
    const WRITES: usize = 4;
    let mut histories = 0;
    for origins in origins_of(WRITES) {
        for supersedes in 0..1_u32 << (WRITES * (WRITES - 1) / 2) {
            for puts in 0..1_u32 << WRITES {
                let history = one_field_history(&origins, supersedes, puts);
                check_every_order(&history).expect("the states agree");
                histories += 1;
            }
        }
    }
    assert_eq!(histories, 15 * 64 * 16);
}

/// Each way to give `writes` write sets to origins, up to the origins' names.
fn origins_of(writes: usize) -> Vec<Vec<u32>> {
    let mut all = vec![vec![]];
    for _ in 0..writes {
        let longer = all.into_iter().flat_map(|given: Vec<u32>| {
            let fresh = given.iter().max().copied().unwrap_or(0) + 1;
            (1..=fresh).map(move |origin| given.iter().copied().chain([origin]).collect())
        });
        all = longer.collect();
    }
    all
}

fn one_field_history(origins: &[u32], supersedes: u32, puts: u32) -> Vec<WriteSet> {
    let mut history: Vec<WriteSet> = vec![];
    let mut pair = 0;
    for (number, origin) in origins.iter().enumerate() {
        let mut superseded = vec![];
        for before in &history {
            if supersedes >> pair & 1 == 1 {
                superseded.push(before.dot);
            }
            pair += 1;
        }
        let seq = origins[..=number].iter().filter(|o| *o == origin).count() as u64;
        history.push(WriteSet {
            dot: dot(*origin, seq),
            hlc: polyarch_crdt::Hlc::new(1, number as u16),
            // As little as there can be, so that as many orders as there can be are allowed.
            saw: polyarch_crdt::AppliedSet::new(),
            changes: vec![Change {
                key: "a",
                field: "x",
                supersedes: superseded,
                put: (puts >> number & 1 == 1).then(|| value(number as u32)),
            }],
        });
    }
    history
}

/// Applies the history in every order that causality allows, with every state on the way held
/// against the oracle, and says how many orders there were.
fn check_every_order(history: &[WriteSet]) -> Result<usize, String> {
    let mut in_order = State::default();
    history.iter().for_each(|w| in_order.apply(w));
    check_orders_from(&State::default(), history, &in_order.settled())
}

fn check_orders_from(state: &State, history: &[WriteSet], end: &State) -> Result<usize, String> {
    state.check(history.iter())?;
    if state.applied == end.applied {
        let settled = state.settled();
        return match settled == *end {
            true => Ok(1),
            false => Err(format!("one order ends in {settled:?}\n  another in {end:?}")),
        };
    }
    let mut orders = 0;
    for write_set in history.iter().filter(|w| w.is_next_for(&state.applied)) {
        let mut next = state.clone();
        next.apply(write_set);
        orders += check_orders_from(&next, history, end)?;
    }
    Ok(orders)
}

/// Three states that nodes may reach in one history, and the history.
fn reachable() -> impl Strategy<Value = (State, State, State, SmallHistory)> {
    let choices = || prop::collection::vec(any::<u8>(), 0..=7);
    (small_history(3..=9), choices(), choices(), choices()).prop_map(|(history, one, two, three)| {
        (history.reach(&one), history.reach(&two), history.reach(&three), history)
    })
}
