//! Every order of a few events keeps what is promised, and shows the bugs that it can.

use polyarch_protocol::catalog::KeyspaceKind;
use polyarch_sim::exhaustive::{Found, Scope, Search};

/// All that there is, on one key that nobody has written.
const ALL: Scope = Scope {
    events: 4,
    keys: 1,
    kind: KeyspaceKind::Mv,
    has_values: false,
    deletes: true,
    ends: true,
    unsynced: true,
    set_back: true,
    checkpoints: true,
    snapshots: true,
};

/// Puts, deletes, feeds and power cuts.
const PLAIN: Scope = Scope { unsynced: false, set_back: false, checkpoints: false, snapshots: false, ..ALL };

fn search(scope: Scope) -> Search {
    let jobs = std::thread::available_parallelism().map_or(1, |processors| processors.get());
    Search { scope, bug: None, jobs, leaves_out_alike: true }
}

fn found(search: &Search) -> Found {
    let found = search.run().expect("the nodes come up");
    assert_eq!(found.broken.as_ref().map(ToString::to_string), None);
    found
}

#[test]
fn every_order_of_four_events_keeps_what_is_promised() {
    let orders = found(&search(ALL)).orders;
    assert!(orders[4] > 15_000, "{orders:?}");
}

#[test]
fn every_order_of_five_puts_deletes_feeds_and_power_cuts_does() {
    let orders = found(&search(Scope { events: 5, ..PLAIN })).orders;
    assert!(orders[5] > 30_000, "{orders:?}");
}

#[test]
fn so_does_every_order_of_three_on_two_keys_that_have_values() {
    for kind in [KeyspaceKind::Mv, KeyspaceKind::Lww] {
        let orders = found(&search(Scope { events: 3, keys: 2, kind, has_values: true, ..ALL })).orders;
        assert!(orders[3] > 1_000, "{orders:?}");
    }
}

#[test]
fn what_is_left_out_keeps_it_too() {
    let few = found(&search(Scope { events: 2, ..ALL }));
    let all = found(&Search { leaves_out_alike: false, ..search(Scope { events: 2, ..ALL }) });
    assert!(all.orders.iter().sum::<u64>() >= few.renamed, "{all} against {few}");
}

#[cfg(feature = "seeded-bugs")]
#[test]
fn the_seeded_bugs_are_broken_by_so_many_events() {
    use polyarch_sim::bugs;

    for (name, events) in BROKEN_BY {
        let bug = bugs::find(name);
        assert!(bug.is_some(), "there is no bug {name}");
        let found = Search { bug, ..search(ALL) }.run().expect("the nodes come up");
        let broken = found.broken.map(|broken| broken.order.0.len());
        assert_eq!(broken, Some(events), "{name}");
    }
}

/// How many events the shortest order has that shows a bug.
#[cfg(feature = "seeded-bugs")]
const BROKEN_BY: [(&str, usize); 16] = [
    ("no-sync", 2),
    ("send-before-durable", 1),
    ("no-absorb", 2),
    ("epoch-reused", 3),
    ("drop-by-origin", 3),
    ("wrong-tie-in-lww", 2),
    ("join-without-log", 2),
    ("snapshot-ends-where-it-began", 2),
    ("durable-instead-of-staged", 2),
    ("delete-removes-all", 3),
    ("absorb-left-out-of-join", 3),
    ("digest-counts-absorbed", 2),
    ("hlc-not-merged", 3),
    ("no-sync-at-recovery", 4),
    ("context-is-a-maximum", 4),
    ("apply-out-of-order", 4),
];
