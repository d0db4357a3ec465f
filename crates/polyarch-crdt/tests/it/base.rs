//! Bases, and sets expressed by them: every operation gives what it gives on sets that are spelled out.

use std::collections::BTreeMap;
use std::sync::Arc;

use polyarch_crdt::{AppliedSet, Base, BaseError, ClosedEpoch, Dot, Origin};
use proptest::prelude::*;

use crate::support::{cases, dot};

/// What is closed, in a chain of bases, each over the one before.
type Closed = Vec<Vec<(u32, u64)>>;

fn epoch(dot: Dot) -> ClosedEpoch {
    let mut chain = [0; 32];
    chain[..8].copy_from_slice(&dot.seq.to_le_bytes());
    ClosedEpoch { last: dot, chain }
}

/// The write set that publishes a chain's `n`-th base: of a server with an epoch of its own.
fn name(chain: u32, n: usize) -> Dot {
    Dot::new(Origin::new(9, chain), n as u64 + 1)
}

/// The bases of a chain, oldest first; those that would hold nothing are left out.
fn bases(chain: u32, closed: &Closed) -> Vec<Arc<Base>> {
    let mut bases: Vec<Arc<Base>> = Vec::new();
    for (n, added) in closed.iter().enumerate() {
        let added = added.iter().map(|(server_id, seq)| epoch(dot(*server_id, *seq)));
        if let Ok(base) = Base::new(name(chain, n), bases.last().map(|base| &**base), added) {
            bases.push(Arc::new(base));
        }
    }
    bases
}

fn closed() -> impl Strategy<Value = Closed> {
    prop::collection::vec(prop::collection::vec((1..8_u32, 1..6_u64), 0..4), 0..5)
}

fn dots() -> impl Strategy<Value = Vec<Dot>> {
    prop::collection::vec((1..9_u32, 0..7_u64), 0..6)
        .prop_map(|dots| dots.into_iter().map(|(server_id, seq)| dot(server_id, seq)).collect())
}

fn contents(base: &Base) -> AppliedSet {
    base.iter().map(|epoch| epoch.last).collect()
}

fn join(one: &AppliedSet, two: &AppliedSet) -> AppliedSet {
    let mut joined = one.clone();
    joined.join(two);
    joined
}

/// A set in several forms, spelled out first: over bases of two chains, in whatever way it came to be.
fn forms(rest: &[Dot], chains: &[Vec<Arc<Base>>]) -> Vec<(AppliedSet, AppliedSet)> {
    let plain: AppliedSet = rest.iter().copied().collect();
    let mut forms = vec![(plain.clone(), plain.clone())];
    for base in chains.iter().flatten() {
        let spelled = join(&plain, &contents(base));
        forms.push((spelled.clone(), AppliedSet::over(Arc::clone(base), &plain)));
        // The write set that published the base is among what was applied, in a set that is rebased.
        let applied = join(&spelled, &[base.name()].into_iter().collect());
        let rebased = applied.rebased(base).expect("it includes the base and what published it");
        forms.push((applied, rebased));
    }
    forms
}

fn bytes(set: &AppliedSet) -> Vec<u8> {
    postcard::to_extend(set, Vec::new()).expect("a Vec takes all that is written")
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_base_holds_all_of_its_chain_and_of_each_epoch_the_greatest_seq(closed in closed()) {
        let mut model: BTreeMap<Origin, u64> = BTreeMap::new();
        let mut bases = bases(1, &closed).into_iter();
        for added in &closed {
            for (server_id, seq) in added {
                let Dot { origin, seq } = dot(*server_id, *seq);
                let held = model.entry(origin).or_default();
                *held = seq.max(*held);
            }
            if model.is_empty() {
                continue;
            }
            let base = bases.next().expect("it holds something");
            let expected: Vec<Dot> = model.iter().map(|(origin, seq)| Dot::new(*origin, *seq)).collect();
            prop_assert_eq!(base.iter().map(|epoch| epoch.last).collect::<Vec<_>>(), expected);
            prop_assert!(base.iter().all(|held| *held == epoch(held.last)), "each has the hash that goes with its seq");
            prop_assert_eq!(base.epochs(), model.len());
            prop_assert_eq!(base.write_sets(), model.values().sum::<u64>());
            for server_id in 1..10 {
                let origin = dot(server_id, 1).origin;
                let seq = model.get(&origin).copied().unwrap_or(0);
                prop_assert_eq!(base.seq(origin), seq);
                prop_assert_eq!(base.epoch(origin).map(|epoch| epoch.last.seq), (seq > 0).then_some(seq));
                prop_assert!(!base.includes(Dot::new(origin, seq + 1)) && base.includes(Dot::new(origin, seq)));
            }
        }
        prop_assert!(bases.next().is_none());
    }

    #[test]
    fn a_set_answers_alike_by_whatever_base_it_is_expressed(
        rest in dots(), one in closed(), two in closed(), server_id in 1..10_u32, seq in 0..8_u64,
    ) {
        for (plain, set) in forms(&rest, &[bases(1, &one), bases(2, &two)]) {
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), plain.iter().collect::<Vec<_>>());
            prop_assert_eq!(set.seq(dot(server_id, 1).origin), plain.seq(dot(server_id, 1).origin));
            prop_assert_eq!(set.includes(dot(server_id, seq)), plain.includes(dot(server_id, seq)));
            prop_assert_eq!((set.len(), set.is_empty()), (plain.len(), plain.is_empty()));
            prop_assert_eq!(set.write_sets(), plain.write_sets());
            prop_assert_eq!(set.to_string(), plain.to_string());
            prop_assert_eq!(bytes(&set), bytes(&plain), "disk and version 1 of the wire spell it out");
            for base in bases(1, &one).iter().chain(set.base()) {
                prop_assert_eq!(join(&set.beyond(Some(base)), &contents(base)), join(&plain, &contents(base)));
                prop_assert!(set.beyond(Some(base)).iter().all(|dot| !base.includes(dot)));
            }
            prop_assert_eq!(set.beyond(None), plain);
        }
    }

    #[test]
    fn two_sets_relate_alike_by_whatever_bases_they_are_expressed(
        rest_of_one in dots(), rest_of_two in dots(), closed_one in closed(), closed_two in closed(),
    ) {
        // The same chains for both: they share bases in some forms, and not in others.
        let chains = [bases(1, &closed_one), bases(2, &closed_two)];
        for (plain, set) in forms(&rest_of_one, &chains) {
            for (other_plain, other) in forms(&rest_of_two, &chains) {
                prop_assert_eq!(set == other, plain == other_plain);
                prop_assert_eq!(set.partial_cmp(&other), plain.partial_cmp(&other_plain));
                prop_assert_eq!(set.includes_all(&other), plain.includes_all(&other_plain));
                prop_assert_eq!(set.since(&other), plain.since(&other_plain));
                prop_assert_eq!(join(&set, &other), join(&plain, &other_plain));
            }
        }
    }

    #[test]
    fn what_a_set_gains_goes_beyond_its_base(rest in dots(), closed in closed(), more in 1..9_u32) {
        for (mut plain, mut set) in forms(&rest, &[bases(1, &closed)]) {
            let origin = dot(more, 1).origin;
            let next = Dot::new(origin, plain.seq(origin) + 1);
            plain.add(next);
            set.add(next);
            prop_assert_eq!(&set, &plain);
            prop_assert!(set.beyond_base().includes(next));
        }
    }

    #[test]
    fn a_set_is_expressed_only_by_a_base_that_it_includes(rest in dots(), closed in closed(), other in closed()) {
        let (bases, others) = (bases(1, &closed), bases(2, &other));
        for (plain, set) in forms(&rest, &[bases]) {
            for base in &others {
                let includes = plain.includes(base.name()) && plain.includes_all(&contents(base));
                match set.rebased(base) {
                    Some(rebased) => {
                        prop_assert!(includes);
                        prop_assert_eq!(&rebased, &plain);
                        prop_assert!(rebased.base().is_some_and(|own| Arc::ptr_eq(own, base)));
                        prop_assert!(rebased.beyond_base().includes(base.name()), "the rest tells of the base");
                    }
                    None => prop_assert!(!includes),
                }
            }
        }
    }
}

#[test]
fn what_no_base_can_be_is_refused() {
    let of = |closed: &[Dot]| Base::new(name(1, 4), None, closed.iter().copied().map(epoch)).unwrap_err();
    assert_eq!(of(&[]), BaseError::Empty);
    assert_eq!(of(&[dot(1, 0)]), BaseError::NothingOf(dot(1, 0).origin));
    assert_eq!(of(&[dot(1, 3), name(1, 5)]), BaseError::HoldsItself(name(1, 4)));
    let parent = Base::new(name(1, 2), None, [epoch(name(1, 0))]).expect("its own write set comes later");
    assert!(Base::new(name(1, 0), Some(&parent), [epoch(dot(1, 1))]).is_err(), "a parent may hold it too");
}

#[test]
fn a_chain_of_many_bases_stays_a_handful_of_levels_and_drops_without_recursion() {
    let mut base: Option<Base> = None;
    for n in 0..20_000_u32 {
        // Every other one adds nothing.
        let last = Dot::new(Origin::new(1, n / 2), 1);
        base = Some(Base::new(name(1, n as usize), base.as_ref(), [epoch(last)]).expect("it is sound"));
    }
    let base = base.expect("there are many");
    assert_eq!((base.length(), base.epochs(), base.write_sets()), (20_000, 10_000, 10_000));
    assert_eq!(base.iter().count(), 10_000);
    assert_eq!(base.to_string(), "9-00000001:20000 with 10000 closed epochs");
}
