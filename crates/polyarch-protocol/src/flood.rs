//! What each server says of itself, cluster-wide: entries that are flooded, and the newest of each kept.
//!
//! [`LinkStates`](crate::LinkStates) and [`Progress`](crate::Progress) are made of this.
//!
//! A server that starts anew begins at version 1, while its old entry, of a higher version, is still
//! about. The rule for this is that of OSPF (RFC 2328, section 13.4): whoever is shown an entry of
//! its own that is not older than what it issued last goes one beyond it and floods that.
//!
//! Flooding is reliable when two things are done by whoever sends: what [`Flooded::take`] calls
//! [`Found::Newer`] goes to all other links at once, and a link that comes up is sent all
//! [`Flooded::entries`], both ways. Without the second, what changed while two parts were apart
//! would never cross over, and a node started anew would never hear of its old entry.

use std::collections::{BTreeMap, BTreeSet};

/// Entries of servers that are not known as members here, at most: those that join are linked
/// before everybody has their record. Beyond that they are forgotten.
pub(crate) const STRANGERS_MAX: usize = 64;

/// The highest version that is accepted. One at the end of the numbers could never be gone beyond;
/// nobody who counts gets anywhere near this.
pub(crate) const VERSION_MAX: u64 = u64::MAX / 2;

/// What a server says of itself.
pub(crate) trait Entry: Clone + PartialEq {
    /// The server.
    fn server_id(&self) -> u32;
    /// Its process.
    fn boot_id(&self) -> u128;
    /// Rises with each change, from 1.
    fn version(&self) -> u64;
    /// Says which version it is.
    fn set_version(&mut self, version: u64);
    /// Whether it is within its bounds and says what an entry can say, apart from its version.
    fn is_sound(&self) -> bool;

    /// Of two entries of one server the newer. Two processes may have used one version: then the
    /// boot id decides, so that all nodes settle on the same.
    fn is_newer_than(&self, other: &Self) -> bool {
        (self.version(), self.boot_id()) > (other.version(), other.boot_id())
    }
}

/// What became of an entry that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Found {
    /// It is newer than what was known and was kept: send it on to all other links.
    Newer,
    /// It says nothing new.
    Stale,
    /// It is one's own, not older than the last that this process issued: go beyond it.
    OwnOutdated,
    /// It breaks the bounds or rules of an entry and was left alone.
    Unsound,
}

/// The newest entry of each server, one's own among them.
#[derive(Debug, Clone)]
pub(crate) struct Flooded<E> {
    own: E,
    others: BTreeMap<u32, E>,
    members: BTreeSet<u32>,
    /// Of servers that were members and are none now: nothing to go by, until they are taken back. One that was
    /// heard before the news of its removal, and the news of its return after that, is not sent again.
    gone: BTreeMap<u32, E>,
}

impl<E: Entry> Flooded<E> {
    /// What a process knows when it starts: what it says of itself, as version 1.
    pub(crate) fn new(mut own: E) -> Self {
        own.set_version(1);
        Self { own, others: BTreeMap::new(), members: BTreeSet::new(), gone: BTreeMap::new() }
    }

    /// One's own.
    pub(crate) fn own(&self) -> &E {
        &self.own
    }

    /// That of another server.
    pub(crate) fn other(&self, server_id: u32) -> Option<&E> {
        self.others.get(&server_id)
    }

    /// Those of all other servers.
    pub(crate) fn others(&self) -> impl Iterator<Item = &E> {
        self.others.values()
    }

    /// All, one's own first: what a link that comes up is sent.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &E> {
        [&self.own].into_iter().chain(self.others.values())
    }

    /// Changes one's own entry.
    pub(crate) fn revise(&mut self, change: impl FnOnce(&mut E)) {
        self.go_beyond(self.own.version(), change);
    }

    /// Takes an entry that a peer sent, its own or one that it sends on.
    pub(crate) fn take(&mut self, entry: &E) -> Found {
        if !entry.is_sound() || !(1..=VERSION_MAX).contains(&entry.version()) {
            return Found::Unsound;
        }
        if entry.server_id() == self.own.server_id() {
            let is_older = entry.version() < self.own.version() || *entry == self.own;
            return if is_older { Found::Stale } else { Found::OwnOutdated };
        }
        let known = self.others.get(&entry.server_id());
        let full = known.is_none() && !self.members.contains(&entry.server_id()) && self.strangers() >= STRANGERS_MAX;
        if full || known.is_some_and(|known| !entry.is_newer_than(known)) {
            return Found::Stale;
        }
        self.others.insert(entry.server_id(), entry.clone());
        Found::Newer
    }

    /// Lets one's own entry go one beyond a version. At the very end it stays: only a forged entry
    /// brings one there, and against forgeries by its own members a cluster has no defence here.
    pub(crate) fn go_beyond(&mut self, version: u64, change: impl FnOnce(&mut E)) {
        change(&mut self.own);
        self.own.set_version(version.saturating_add(1).min(VERSION_MAX));
    }

    /// Says who the members are now. Entries of those that were members and no longer are do not count
    /// until they are members again; of servers that were never known as members some are kept, for they may
    /// be about to be. Says whether any went or came.
    pub(crate) fn retain(&mut self, members: &BTreeSet<u32>) -> bool {
        if self.members == *members {
            return false;
        }
        let mut has_changed = false;
        for id in self.members.difference(members) {
            let entry = self.others.remove(id);
            has_changed |= entry.is_some();
            self.gone.extend(entry.map(|entry| (*id, entry)));
        }
        for id in members.difference(&self.members) {
            let known = self.others.get(id);
            let newer = self.gone.remove(id).filter(|gone| known.is_none_or(|known| gone.is_newer_than(known)));
            has_changed |= newer.is_some();
            self.others.extend(newer.map(|entry| (*id, entry)));
        }
        self.members.clone_from(members);
        has_changed
    }

    fn strangers(&self) -> usize {
        self.others.keys().filter(|id| !self.members.contains(id)).count()
    }
}
