//! The laws of applied-sets, against a model that spells out every dot.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use polyarch_crdt::{AppliedSet, Dot};
use proptest::prelude::*;

use crate::support::{cases, dot};

fn applied_set() -> impl Strategy<Value = AppliedSet> {
    prop::collection::vec((1..5_u32, 0..6_u64), 0..5)
        .prop_map(|dots| dots.into_iter().map(|(server_id, seq)| dot(server_id, seq)).collect())
}

/// Every dot that the set includes.
fn spelled_out(set: &AppliedSet) -> BTreeSet<Dot> {
    set.iter().flat_map(|last| (1..=last.seq).map(move |seq| Dot::new(last.origin, seq))).collect()
}

fn join(one: &AppliedSet, two: &AppliedSet) -> AppliedSet {
    let mut joined = one.clone();
    joined.join(two);
    joined
}

fn written(dots: &[Dot]) -> Vec<u8> {
    postcard::to_extend(dots, Vec::new()).expect("a Vec takes all that is written")
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn the_order_is_inclusion(one in applied_set(), two in applied_set()) {
        let (dots_of_one, dots_of_two) = (spelled_out(&one), spelled_out(&two));
        let expected = match (dots_of_one.is_subset(&dots_of_two), dots_of_two.is_subset(&dots_of_one)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Less),
            (false, true) => Some(Ordering::Greater),
            (false, false) => None,
        };
        prop_assert_eq!(one.partial_cmp(&two), expected);
        prop_assert_eq!(two.partial_cmp(&one), expected.map(Ordering::reverse));
        prop_assert_eq!(one == two, expected == Some(Ordering::Equal));
        prop_assert_eq!(one.includes_all(&two), dots_of_two.is_subset(&dots_of_one));
    }

    #[test]
    fn a_set_includes_the_dots_it_counts_and_no_others(set in applied_set(), server_id in 1..6_u32, seq in 1..8_u64) {
        let dots = spelled_out(&set);
        prop_assert_eq!(set.includes(dot(server_id, seq)), dots.contains(&dot(server_id, seq)));
        prop_assert_eq!(set.write_sets(), dots.len() as u64);
        prop_assert_eq!(set.is_empty(), dots.is_empty());
        prop_assert_eq!(set.len(), dots.iter().map(|d| d.origin).collect::<BTreeSet<_>>().len());
        prop_assert!(set.iter().all(|last| last.seq > 0 && last.seq == set.seq(last.origin)));
    }

    #[test]
    fn join_is_union(one in applied_set(), two in applied_set()) {
        let union: BTreeSet<_> = spelled_out(&one).union(&spelled_out(&two)).copied().collect();
        prop_assert_eq!(spelled_out(&join(&one, &two)), union);
    }

    #[test]
    fn join_is_the_least_set_above_both(one in applied_set(), two in applied_set(), other in applied_set()) {
        let joined = join(&one, &two);
        prop_assert!(one <= joined && two <= joined);
        prop_assert_eq!(one <= other && two <= other, joined <= other);
    }

    #[test]
    fn join_is_commutative_associative_and_idempotent(one in applied_set(), two in applied_set(), three in applied_set()) {
        prop_assert_eq!(join(&one, &two), join(&two, &one));
        prop_assert_eq!(join(&join(&one, &two), &three), join(&one, &join(&two, &three)));
        prop_assert_eq!(join(&one, &one), one.clone());
        prop_assert_eq!(join(&one, &AppliedSet::new()), one);
    }

    #[test]
    fn since_is_all_that_an_older_set_lacks_and_nothing_it_has(new in applied_set(), old in applied_set()) {
        let since = new.since(&old);
        prop_assert_eq!(join(&old, &since), join(&old, &new));
        prop_assert!(since <= new);
        prop_assert!(since.iter().all(|last| !old.includes(last)), "no origin is named in vain");
        prop_assert_eq!(since.is_empty(), new <= old);
    }

    #[test]
    fn a_set_is_what_was_added_to_it_in_any_order_of_origins(set in applied_set(), choices in prop::collection::vec(any::<usize>(), 32)) {
        let mut built = AppliedSet::new();
        for choice in choices {
            let missing: Vec<_> = set.iter().filter(|last| !built.includes(*last)).collect();
            if !missing.is_empty() {
                let origin = missing[choice % missing.len()].origin;
                let before = built.clone();
                built.add(Dot::new(origin, built.seq(origin) + 1));
                prop_assert!(before < built);
            }
        }
        prop_assert_eq!(built, set);
    }

    #[test]
    fn equal_sets_are_the_same_bytes_and_text_and_come_back(dots in prop::collection::vec((1..5_u32, 0..6_u64), 0..6)) {
        let dots: Vec<_> = dots.into_iter().map(|(server_id, seq)| dot(server_id, seq)).collect();
        let one: AppliedSet = dots.iter().copied().collect();
        let two: AppliedSet = dots.iter().rev().copied().collect();
        prop_assert_eq!(&one, &two);
        prop_assert_eq!(one.to_string(), two.to_string());
        let bytes = postcard::to_extend(&one, Vec::new()).expect("a Vec takes all that is written");
        prop_assert_eq!(&bytes, &postcard::to_extend(&two, Vec::new()).expect("a Vec takes all that is written"));
        prop_assert_eq!(postcard::from_bytes::<AppliedSet>(&bytes), Ok(one));
    }

    #[test]
    fn only_the_canonical_form_is_read(dots in prop::collection::vec((1..4_u32, 0..3_u64), 0..4)) {
        let dots: Vec<_> = dots.into_iter().map(|(server_id, seq)| dot(server_id, seq)).collect();
        let canonical = dots.iter().all(|d| d.seq > 0) && dots.windows(2).all(|pair| pair[0].origin < pair[1].origin);
        let read = postcard::from_bytes::<AppliedSet>(&written(&dots));
        prop_assert_eq!(read.is_ok(), canonical);
        if let Ok(set) = read {
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), dots);
        }
    }
}

#[test]
fn origins_out_of_order_named_twice_or_with_nothing_applied_are_refused() {
    for dots in [
        vec![dot(2, 1), dot(1, 1)],
        vec![dot(1, 1), dot(1, 1)],
        vec![dot(1, 1), dot(1, 2)],
        vec![dot(1, 0)],
        vec![dot(1, 1), dot(2, 0), dot(3, 1)],
    ] {
        assert!(postcard::from_bytes::<AppliedSet>(&written(&dots)).is_err(), "{dots:?}");
    }
    assert!(postcard::from_bytes::<AppliedSet>(&written(&[dot(1, 9), dot(2, 1)])).is_ok());
}

#[test]
fn a_set_prints_the_last_gtid_of_each_origin() {
    let set: AppliedSet = [dot(2, 3), dot(1, 7), dot(1, 2)].into_iter().collect();
    assert_eq!(set.to_string(), "1-00000001:7,2-00000001:3");
    assert_eq!(format!("{set:?}"), "{1-00000001:7,2-00000001:3}");
    assert_eq!(AppliedSet::new().to_string(), "");
}

#[test]
fn two_epochs_of_one_server_are_two_origins() {
    let (old, new) = (dot(1, 5), Dot::new(polyarch_crdt::Origin::new(1, 2), 1));
    let set: AppliedSet = [old].into_iter().collect();
    assert!(!set.includes(new));
    assert_eq!(set.seq(new.origin), 0);
}

#[test]
fn the_greatest_seq_is_counted_without_overflow() {
    let set: AppliedSet = [dot(1, u64::MAX), dot(2, 1)].into_iter().collect();
    assert_eq!(set.write_sets(), u64::MAX);
    assert!(set.includes(dot(1, u64::MAX)));
}

#[test]
#[should_panic(expected = "is not the next of its origin")]
fn a_gap_is_never_added() {
    AppliedSet::from_iter([dot(1, 1)]).add(dot(1, 3));
}

#[test]
#[should_panic(expected = "is not the next of its origin")]
fn what_is_included_is_not_added_again() {
    AppliedSet::from_iter([dot(1, 2)]).add(dot(1, 2));
}
