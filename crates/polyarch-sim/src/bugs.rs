//! Bugs that a run can switch on, to show that it would see them.
//!
//! They exist only with the cargo feature `seeded-bugs`, which no shipped binary has.

use polyarch_store::StoreConfig;

/// A bug and the trap it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bug {
    /// Its name.
    pub name: &'static str,
    /// What is wrong when it is on.
    pub what: &'static str,
}

/// All bugs there are.
pub const BUGS: [Bug; 42] = [
    Bug { name: "no-sync", what: "the log says that it is synced and is not" },
    Bug { name: "no-sync-at-recovery", what: "what a start finds in the page cache is taken for durable" },
    Bug {
        name: "log-ends-late-after-torn-group",
        what: "recovery takes valid frames behind an invalid one for part of the log",
    },
    Bug { name: "full-is-failed", what: "a disk without room is taken for one that failed" },
    Bug { name: "send-before-durable", what: "outputs do not wait for the sync they need" },
    Bug { name: "no-absorb", what: "a dot that is superseded before it arrives is not remembered" },
    Bug {
        name: "absorb-removed-at-once",
        what: "an absorb entry is removed when its dot arrives, not at a checkpoint",
    },
    Bug { name: "apply-out-of-order", what: "a write set does not wait for its dependencies" },
    Bug { name: "epoch-reused", what: "a process goes on with the epoch of the one before" },
    Bug { name: "drop-by-origin", what: "a node drops write sets of its own server id" },
    Bug { name: "amnesia-unnoticed", what: "a node does not notice that it lost write sets of its own" },
    Bug { name: "own-stamps-forgotten", what: "a process does not go on from the stamps of the one before" },
    Bug { name: "wrong-tie-in-lww", what: "equal stamps are not told apart by their origin" },
    Bug {
        name: "context-apart-from-values",
        what: "a read's context comes from another look at the record than its values",
    },
    Bug { name: "drained-takes-writes", what: "a drained member takes writes all the same" },
    Bug { name: "removed-is-heard", what: "a removed member keeps its links and is heard" },
    Bug { name: "stays-joining", what: "a member that has caught up does not say so" },
    Bug { name: "dials-everyone", what: "a driver dials all members, not those that the plan names" },
    Bug { name: "unknown-is-taken-for-all", what: "a member of which nothing is known is taken to have all" },
    Bug { name: "join-without-log", what: "a snapshot is joined without the log that came with it" },
    Bug {
        name: "snapshot-ends-where-it-began",
        what: "a snapshot's log ends where its walk began, not where it ended",
    },
    Bug { name: "base-of-unapplied", what: "a base holds what its publisher has not applied" },
    Bug { name: "base-named-to-all", what: "a base is named to whoever may not have it" },
    Bug { name: "durable-instead-of-staged", what: "the coordinator looks at what is synced, not at what is staged" },
    Bug { name: "order-of-a-hash-set", what: "the simulator itself dials in an order that no seed gives" },
    Bug {
        name: "delete-removes-all",
        what: "a delete removes all that is there when it comes, and not only what its writer saw",
    },
    Bug { name: "context-is-a-maximum", what: "a write removes all of an origin up to what its writer saw of it" },
    Bug { name: "absorb-left-out-of-join", what: "a join of records leaves out what both sides are to absorb" },
    Bug { name: "log-not-pinned", what: "segments of the log are removed that a walk is yet to read" },
    Bug { name: "pins-outlive-a-join", what: "a walk goes on on a donor that has joined a snapshot itself" },
    Bug { name: "join-under-the-end", what: "a snapshot's records are joined under what its donor had at the end" },
    Bug { name: "feeds-across-a-join", what: "a feed goes on over the place where a snapshot was joined" },
    Bug { name: "digest-counts-absorbed", what: "the digest counts a value that was absorbed" },
    Bug {
        name: "dependencies-left-out",
        what: "a write set does not say what its origin applied since the one before",
    },
    Bug { name: "hlc-not-merged", what: "stamps of others do not move a node's own clock" },
    Bug { name: "token-not-waited-for", what: "a node answers a session without what that has seen" },
    Bug { name: "dials-only-planned", what: "members out of sight are not dialled" },
    Bug { name: "checkpoint-of-what-is-staged", what: "a checkpoint holds what the log has not synced" },
    Bug { name: "mark-without-flush", what: "a checkpoint is noted before the state is flushed" },
    Bug { name: "log-cut-to-last-checkpoint", what: "the log goes back to the last checkpoint, not to the one before" },
    Bug { name: "failed-sync-is-good", what: "a log whose sync failed goes on" },
    Bug { name: "no-directory-sync", what: "a new segment's name is not synced" },
];

/// The bug of a name.
pub fn find(name: &str) -> Option<Bug> {
    BUGS.into_iter().find(|bug| bug.name == name)
}

/// Whether bugs can be switched on in this build.
pub const fn are_built_in() -> bool {
    cfg!(feature = "seeded-bugs")
}

/// Switches a bug on in this thread, or all off. Nothing happens in a build without them.
pub fn switch_on(bug: Option<Bug>) {
    #[cfg(feature = "seeded-bugs")]
    polyarch_crdt::switch_on(bug.map(|bug| bug.name));
    #[cfg(not(feature = "seeded-bugs"))]
    let _ = bug;
}

/// Switches on what the store keeps in its configuration.
pub(crate) fn switch_in_store(config: &mut StoreConfig) {
    #[cfg(feature = "seeded-bugs")]
    {
        use polyarch_crdt::seeded_bug;
        config.log.bugs.no_sync = seeded_bug("no-sync");
        config.log.bugs.no_sync_at_recovery = seeded_bug("no-sync-at-recovery");
        config.log.bugs.ends_late_after_torn_group = seeded_bug("log-ends-late-after-torn-group");
        config.log.bugs.full_is_failed = seeded_bug("full-is-failed");
        config.bugs.absorb_removed_at_once = seeded_bug("absorb-removed-at-once");
        config.bugs.log_not_pinned = seeded_bug("log-not-pinned");
        config.bugs.join_without_log = seeded_bug("join-without-log");
        config.bugs.reads_durable_instead_of_staged = seeded_bug("durable-instead-of-staged");
    }
    #[cfg(not(feature = "seeded-bugs"))]
    let _ = config;
}
