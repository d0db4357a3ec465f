//! What `lww` and `mv` show of the same record.

use polyarch_crdt::{CausalContext, Dot, FieldPath, Hlc, Sibling, lww, mv};
use proptest::prelude::*;

use crate::support::{Change, State, WriteSet, cases, dot, value};

/// One server writes at an instant of its own clock, over what it names.
fn write(state: &mut State, at: Dot, hlc: Hlc, supersedes: &[Dot], put: Option<&'static [u8]>) {
    let change =
        Change { key: "a", field: "x", supersedes: supersedes.to_vec(), put: put.map(bytes::Bytes::from_static) };
    let write_set = WriteSet { dot: at, hlc, saw: state.applied.clone(), changes: vec![change] };
    state.apply(&write_set);
}

fn shown_by_lww(state: &State) -> Option<Vec<u8>> {
    lww(state.record("a").siblings(&FieldPath::from("x"))).map(|s| s.value.to_vec())
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn the_lww_winner_does_not_depend_on_the_order(
        (siblings, shuffled) in siblings().prop_flat_map(|s| (Just(s.clone()), Just(s).prop_shuffle())),
    ) {
        let winner = lww(&siblings);
        prop_assert_eq!(winner, lww(&shuffled));
        prop_assert_eq!(winner.is_none(), siblings.is_empty());
        for other in &siblings {
            let winner = winner.expect("there is a sibling");
            prop_assert!((winner.hlc, winner.dot.origin) >= (other.hlc, other.dot.origin));
        }
    }

    #[test]
    fn mv_shows_every_sibling_once_in_the_order_of_dots(siblings in siblings()) {
        let mut state = State::default();
        for sibling in &siblings {
            // Each from an origin of its own, as its first.
            write(&mut state, Dot::new(sibling.dot.origin, 1), sibling.hlc, &[], Some(b"v"));
        }
        let record = state.record("a");
        let shown: Vec<_> = mv(record.siblings(&FieldPath::from("x"))).iter().map(|s| s.dot.origin).collect();
        let mut expected: Vec<_> = siblings.iter().map(|s| s.dot.origin).collect();
        expected.sort();
        prop_assert_eq!(shown, expected);
    }
}

/// Concurrent siblings, each of another origin; few instants, so that ties are common.
fn siblings() -> impl Strategy<Value = Vec<Sibling>> {
    let sibling = (0..3_u64, 0..2_u16, 1..9_u64);
    prop::collection::btree_map(1..9_u32, sibling, 0..6).prop_map(|of_server| {
        let siblings = of_server.into_iter().map(|(server_id, (millis, counter, seq))| Sibling {
            dot: dot(server_id, seq),
            hlc: Hlc::new(millis, counter),
            value: value(server_id),
        });
        siblings.collect()
    })
}

#[test]
fn a_tie_of_stamps_is_broken_by_the_origin() {
    let now = Hlc::new(7, 0);
    for first_to_arrive in [1, 2] {
        let mut state = State::default();
        for server_id in [first_to_arrive, 3 - first_to_arrive] {
            // Server 1 has the greater seq: it must not decide.
            let put: &[u8] = if server_id == 1 { b"one" } else { b"two" };
            if server_id == 1 {
                write(&mut state, dot(1, 1), Hlc::new(1, 0), &[], None);
            }
            let seq = if server_id == 1 { 2 } else { 1 };
            write(&mut state, dot(server_id, seq), now, &[], Some(put));
        }
        assert_eq!(shown_by_lww(&state), Some(b"two".to_vec()));
    }
}

#[test]
fn a_write_that_saw_another_wins_whatever_the_clocks_say() {
    let mut state = State::default();
    write(&mut state, dot(1, 1), Hlc::new(1_000_000, 0), &[], Some(b"seen"));
    write(&mut state, dot(2, 1), Hlc::new(1, 0), &[dot(1, 1)], Some(b"later"));
    assert_eq!(shown_by_lww(&state), Some(b"later".to_vec()));
}

#[test]
fn a_write_that_saw_another_wins_also_where_it_comes_first() {
    let mut state = State::default();
    write(&mut state, dot(2, 1), Hlc::new(1, 0), &[dot(1, 1)], Some(b"later"));
    write(&mut state, dot(1, 1), Hlc::new(1_000_000, 0), &[], Some(b"seen"));
    assert_eq!(shown_by_lww(&state), Some(b"later".to_vec()));
}

#[test]
fn a_delete_keeps_the_write_it_never_saw() {
    let mut state = State::default();
    write(&mut state, dot(1, 1), Hlc::new(1, 0), &[], Some(b"seen"));
    write(&mut state, dot(2, 1), Hlc::new(2, 0), &[], Some(b"unseen"));
    write(&mut state, dot(3, 1), Hlc::new(9, 0), &[dot(1, 1)], None);
    assert_eq!(shown_by_lww(&state), Some(b"unseen".to_vec()));
}

#[test]
fn deleting_the_winner_uncovers_an_older_write_that_the_deleter_had_not_seen() {
    let mut state = State::default();
    write(&mut state, dot(1, 1), Hlc::new(1, 0), &[], Some(b"older"));
    write(&mut state, dot(2, 1), Hlc::new(2, 0), &[], Some(b"winner"));
    assert_eq!(shown_by_lww(&state), Some(b"winner".to_vec()));
    write(&mut state, dot(2, 2), Hlc::new(3, 0), &[dot(2, 1)], None);
    assert_eq!(shown_by_lww(&state), Some(b"older".to_vec()));
}

#[test]
fn deleting_all_that_is_shown_leaves_nothing_and_needs_no_tombstone() {
    let mut state = State::default();
    write(&mut state, dot(1, 1), Hlc::new(1, 0), &[], Some(b"one"));
    write(&mut state, dot(2, 1), Hlc::new(2, 0), &[], Some(b"two"));
    let shown = CausalContext::of(&state.record("a")).dots(&FieldPath::from("x")).to_vec();
    write(&mut state, dot(1, 2), Hlc::new(3, 0), &shown, None);
    assert_eq!(shown_by_lww(&state), None);
    assert!(state.records.is_empty());
    assert!(state.record("a").is_deleted());
}
