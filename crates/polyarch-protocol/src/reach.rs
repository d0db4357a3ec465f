//! Who is linked with whom, cluster-wide: link-state routing.
//!
//! Every node floods one entry, the list of members that it has links to ([`LinkState`]), and
//! keeps the newest entry of every other ([`LinkStates`]). A link counts when both ends name each
//! other, so a dead node's last entry does no harm and nothing has to time out.
//!
//! How entries are flooded, and how a node that starts anew goes beyond its old one, is in
//! `flood.rs`: what [`LinkStates::take`] calls [`Taken::Newer`] goes to all other links at once, and
//! a link that comes up is sent all [`LinkStates::entries`], both ways.
//!
//! Who is not known as a member here and is forgotten, since too many such are, costs a detour: who
//! is not seen is dialled, and says again who it is.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::flood::{self, Entry, Flooded, Found};
use crate::topology::{self, Edge};

/// The members that one server has links to, as it said itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// The server.
    pub server_id: u32,
    /// Its process.
    pub boot_id: u128,
    /// Rises with each change, from 1.
    pub version: u64,
    /// The process of the same server id whose entry this process had to go beyond last.
    ///
    /// It is what tells a second process that runs under one server id from a process that is
    /// gone: an entry that goes beyond *this* process was issued by one that was alive after this
    /// one had begun. (To count how often a foreign entry outran one's own is no proof: a process
    /// that is gone may have left several, each newer than the one before, in parts of the cluster
    /// that are heard one after the other.)
    pub outdates: Option<u128>,
    /// The members it has an established link to, in order, each once.
    pub linked: Vec<u32>,
}

impl LinkState {
    /// Most links of one server.
    pub const LINKED_MAX: usize = 4_096;

    /// The highest version that is accepted. One at the end of the numbers could never be gone
    /// beyond; nobody who counts gets anywhere near this.
    pub const VERSION_MAX: u64 = flood::VERSION_MAX;

    /// Whether it says that it has a link to that server.
    pub fn names(&self, server_id: u32) -> bool {
        self.linked.binary_search(&server_id).is_ok()
    }
}

impl Entry for LinkState {
    fn server_id(&self) -> u32 {
        self.server_id
    }

    fn boot_id(&self) -> u128 {
        self.boot_id
    }

    fn version(&self) -> u64 {
        self.version
    }

    fn set_version(&mut self, version: u64) {
        self.version = version;
    }

    fn is_sound(&self) -> bool {
        let ascends = self.linked.is_sorted_by(|one, two| one < two);
        ascends && self.linked.len() <= Self::LINKED_MAX && !self.names(self.server_id)
    }
}

/// What became of an entry that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Taken {
    /// It is newer than what was known: send it on to all other links.
    Newer,
    /// It says nothing new.
    Stale,
    /// It is an entry of this very server, not older than the last that this process issued.
    OwnOutdated {
        /// This process's entry, which now goes beyond it: send it to all links. Two live
        /// processes of one server id outrun each other without end, so it must not be sent more
        /// often than other changes.
        own: LinkState,
        /// The process that issued the entry was alive when it read one of this process: two
        /// processes ran under one server id at one time. While both live, each hears this again
        /// each time that the other has gone beyond it.
        twin: bool,
    },
    /// It breaks the bounds or rules of an entry and was left alone: a bug of its sender, or worse.
    Unsound,
}

/// The newest entry of each server, one's own among them.
#[derive(Debug, Clone)]
pub struct LinkStates {
    entries: Flooded<LinkState>,
    changes: u64,
}

impl LinkStates {
    /// What a process knows when it starts: that it has no link.
    pub fn new(server_id: u32, boot_id: u128) -> Self {
        let own = LinkState { server_id, boot_id, version: 1, outdates: None, linked: Vec::new() };
        Self { entries: Flooded::new(own), changes: 0 }
    }

    /// One's own entry.
    pub fn own(&self) -> &LinkState {
        self.entries.own()
    }

    /// All entries, one's own first: what a link that comes up is sent.
    pub fn entries(&self) -> impl Iterator<Item = &LinkState> {
        self.entries.entries()
    }

    /// Rises whenever an edge may have changed: what was computed from these entries, such as
    /// [`Distances`], holds as long as this stands.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Says whom this process has established links to. Gives the entry to send to all links when
    /// that has changed.
    pub fn set_own(&mut self, linked: &BTreeSet<u32>) -> Option<LinkState> {
        let own = self.own();
        let others = linked.iter().copied().filter(|id| *id != own.server_id);
        let linked: Vec<u32> = others.take(LinkState::LINKED_MAX).collect();
        if linked == own.linked {
            return None;
        }
        self.entries.revise(|own| own.linked = linked);
        self.changes += 1;
        Some(self.own().clone())
    }

    /// Takes an entry that a peer sent, its own or one that it sends on.
    pub fn take(&mut self, entry: &LinkState) -> Taken {
        match self.entries.take(entry) {
            Found::Newer => {
                self.changes += 1;
                Taken::Newer
            }
            Found::Stale => Taken::Stale,
            Found::OwnOutdated => self.outdate(entry),
            Found::Unsound => Taken::Unsound,
        }
    }

    /// Goes beyond an entry of one's own. (One that is forged to the very end cannot be gone beyond;
    /// feeds then fall back on their stall rule.)
    fn outdate(&mut self, entry: &LinkState) -> Taken {
        let boot_id = self.own().boot_id;
        let foreign = entry.boot_id != boot_id;
        self.entries.go_beyond(entry.version, |own| {
            if foreign {
                own.outdates = Some(entry.boot_id);
            }
        });
        self.changes += 1;
        Taken::OwnOutdated { own: self.own().clone(), twin: foreign && entry.outdates == Some(boot_id) }
    }

    /// Says who the members are now. Entries of those that were members and no longer are do not count; of
    /// servers that were never known as members some are kept, for they may be about to be.
    pub fn retain(&mut self, members: &BTreeSet<u32>) {
        if self.entries.retain(members) {
            self.changes += 1;
        }
    }

    /// The links that are up. Of others', those that both ends name. One's own count as they are,
    /// for the entry of the other end may still be on its way.
    pub fn edges(&self) -> BTreeSet<Edge> {
        let me = self.own().server_id;
        let own = self.own().linked.iter().map(|id| Edge::new(me, *id));
        let both = |one: u32, two: u32| self.entries.other(two).is_some_and(|entry| entry.names(one));
        let others = self.entries.others().flat_map(|entry| {
            let later = entry.linked.iter().filter(|id| **id > entry.server_id && both(entry.server_id, **id));
            later.map(|id| Edge::new(entry.server_id, *id))
        });
        own.chain(others).collect()
    }

    /// Who can be reached from `of`, itself included.
    pub fn component(&self, of: u32) -> BTreeSet<u32> {
        topology::component(of, &self.edges())
    }
}

/// How many links lie between any two servers.
///
/// Computed when link states change and kept by whoever asks: feeds are planned anew with every
/// heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distances {
    /// In order.
    ids: Vec<u32>,
    /// A row of links for each id, to each id; [`UNREACHED`] where none leads.
    hops: Vec<u32>,
}

const UNREACHED: u32 = u32::MAX;

impl Distances {
    /// Over the links that are up.
    pub fn of(states: &LinkStates) -> Self {
        let edges = states.edges();
        let ids: BTreeSet<u32> = edges.iter().flat_map(|edge| edge.ends()).collect();
        let ids: Vec<u32> = ids.into_iter().collect();
        let place = |id: u32| ids.binary_search(&id).expect("every end is among them");
        let mut neighbours = vec![Vec::new(); ids.len()];
        for [one, two] in edges.iter().map(|edge| edge.ends().map(place)) {
            neighbours[one].push(two);
            neighbours[two].push(one);
        }
        let hops = (0..ids.len()).flat_map(|from| breadth_first(from, &neighbours)).collect();
        Self { ids, hops }
    }

    /// The links between two servers on the shortest way; none lies between a server and itself.
    /// `None` when no way is known.
    pub fn hops(&self, from: u32, to: u32) -> Option<u32> {
        if from == to {
            return Some(0);
        }
        let place = |id: u32| self.ids.binary_search(&id).ok();
        let hops = self.hops[place(from)? * self.ids.len() + place(to)?];
        (hops != UNREACHED).then_some(hops)
    }
}

fn breadth_first(from: usize, neighbours: &[Vec<usize>]) -> Vec<u32> {
    let mut hops = vec![UNREACHED; neighbours.len()];
    hops[from] = 0;
    let mut reached = vec![from];
    let mut next = 0;
    while let Some(at) = reached.get(next).copied() {
        next += 1;
        for neighbour in &neighbours[at] {
            if hops[*neighbour] == UNREACHED {
                hops[*neighbour] = hops[at] + 1;
                reached.push(*neighbour);
            }
        }
    }
    hops
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flood::STRANGERS_MAX;

    fn entry(server_id: u32, boot_id: u128, version: u64, linked: &[u32]) -> LinkState {
        LinkState { server_id, boot_id, version, outdates: None, linked: linked.to_vec() }
    }

    fn states(own: &[u32], others: &[(u32, &[u32])]) -> LinkStates {
        let mut states = LinkStates::new(1, 100);
        let _ = states.set_own(&own.iter().copied().collect());
        for (id, linked) in others {
            assert_eq!(states.take(&entry(*id, 1, 1, linked)), Taken::Newer);
        }
        states
    }

    #[test]
    fn a_link_counts_when_both_ends_name_each_other_or_one_end_is_here() {
        let states = states(&[2, 3], &[(2, &[1, 4]), (3, &[]), (4, &[2, 5]), (5, &[])]);
        let edges: Vec<String> = states.edges().iter().map(Edge::to_string).collect();
        assert_eq!(edges, ["1-2", "1-3", "2-4"], "5 has gone, 3 has not yet said that it has a link");
        assert_eq!(states.component(4), [1, 2, 3, 4].into());
        assert_eq!(states.component(5), [5].into());
        let distances = Distances::of(&states);
        let to_four: Vec<_> = (1..=6).map(|id| distances.hops(id, 4)).collect();
        assert_eq!(to_four, [Some(2), Some(1), Some(3), Some(0), None, None]);
        assert_eq!(Distances::default().hops(6, 6), Some(0));
    }

    #[test]
    fn an_entry_is_told_on_once() {
        let mut states = LinkStates::new(1, 100);
        assert_eq!(states.take(&entry(2, 7, 3, &[1])), Taken::Newer);
        let changes = states.changes();
        assert_eq!(states.take(&entry(2, 7, 3, &[1])), Taken::Stale);
        assert_eq!(states.take(&entry(2, 9, 2, &[1])), Taken::Stale);
        assert_eq!(states.changes(), changes);
        assert_eq!(states.take(&entry(2, 8, 3, &[])), Taken::Newer, "two processes: the boot id decides");
        assert_eq!(states.take(&entry(2, 7, 4, &[])), Taken::Newer);
        assert_eq!(states.set_own(&[].into()), None);
        assert_eq!(states.set_own(&[2].into()).map(|own| own.version), Some(2));
        assert_eq!(states.set_own(&[2].into()), None);
    }

    #[test]
    fn entries_beyond_their_bounds_are_left_alone() {
        let mut states = LinkStates::new(1, 100);
        let many: Vec<u32> = (10..10 + LinkState::LINKED_MAX as u32 + 1).collect();
        let version = LinkState::VERSION_MAX + 1;
        for unsound in [
            entry(2, 1, 1, &many),
            entry(2, 1, 1, &[4, 3]),
            entry(2, 1, 1, &[3, 3]),
            entry(2, 1, 1, &[2]),
            entry(2, 1, 0, &[]),
            entry(2, 1, version, &[]),
            entry(1, 1, u64::MAX, &[]),
        ] {
            assert_eq!(states.take(&unsound), Taken::Unsound);
        }
        assert_eq!(states.entries().count(), 1);
        assert!(matches!(states.take(&entry(1, 1, LinkState::VERSION_MAX, &[])), Taken::OwnOutdated { .. }));
        assert_eq!(states.set_own(&[2].into()).map(|own| own.version), Some(LinkState::VERSION_MAX));
    }

    #[test]
    fn entries_of_removed_members_go_and_those_of_newcomers_wait_for_their_record() {
        let mut states = states(&[2, 9], &[(2, &[1]), (3, &[2]), (9, &[1])]);
        states.retain(&[1, 2, 3].into());
        assert_eq!(states.component(1), [1, 2, 9].into(), "9 is joining");
        states.retain(&[1, 2, 3, 9].into());
        states.retain(&[1, 2, 9].into());
        let kept: Vec<u32> = states.entries().map(|entry| entry.server_id).collect();
        assert_eq!(kept, [1, 2, 9]);
        for id in 1_000..2_000 {
            let _ = states.take(&entry(id, 1, 1, &[]));
        }
        assert_eq!(states.entries().count(), 3 + STRANGERS_MAX);
        states.retain(&(1..=2_000).collect());
        assert_eq!(states.take(&entry(1_999, 1, 1, &[])), Taken::Newer, "a member has its place");
    }

    /// The news that a member was removed may come behind what it said since it was taken back, which nobody
    /// says again.
    #[test]
    fn what_a_member_said_counts_again_when_it_is_taken_back() {
        let mut states = states(&[2], &[(2, &[1, 4]), (4, &[2])]);
        states.retain(&[1, 2, 4].into());
        let before = states.changes();
        states.retain(&[1, 2].into());
        assert_eq!(states.component(1), [1, 2].into());
        states.retain(&[1, 2, 4].into());
        assert_eq!(states.component(1), [1, 2, 4].into());
        assert!(states.changes() > before + 1, "plans are made anew");
    }

    /// What a process left behind, even in several parts of the cluster, is not a twin.
    #[test]
    fn a_process_started_anew_goes_beyond_its_old_entries_without_an_alarm() {
        let mut states = LinkStates::new(1, 100);
        for version in [5, 9, 9, 20] {
            let taken = states.take(&entry(1, 77, version, &[2]));
            let own = states.own().clone();
            match taken {
                Taken::OwnOutdated { own: issued, twin: false } => {
                    assert_eq!((issued, own.version), (own, version + 1));
                }
                taken => assert_eq!((taken, own.version), (Taken::Stale, 10)),
            }
        }
        assert_eq!(states.own().outdates, Some(77));
        let echo = states.own().clone();
        assert_eq!(states.take(&echo), Taken::Stale);
        // This machine was set back with its memory: it is the same process.
        let before = entry(1, 100, 40, &[3]);
        assert!(matches!(states.take(&before), Taken::OwnOutdated { own, twin: false } if own.version == 41));
    }

    #[test]
    fn two_processes_of_one_server_id_notice_each_other_while_both_live() {
        let mut twins = [LinkStates::new(1, 100), LinkStates::new(1, 200)];
        let mut told = [0; 2];
        let mut sent = twins[0].own().clone();
        for turn in 1..=10 {
            let to = turn % 2;
            match twins[to].take(&sent) {
                Taken::OwnOutdated { own, twin } => {
                    sent = own;
                    told[to] += usize::from(twin);
                }
                taken => assert_eq!((turn, taken), (1, Taken::Stale)),
            }
        }
        assert_eq!(told, [5, 4], "each time but the first, when it might be a process that is gone");
        // One is stopped; what the other starts anew as is no twin of anybody.
        let mut anew = LinkStates::new(1, 300);
        for old in &twins {
            let taken = anew.take(old.own());
            assert!(!matches!(taken, Taken::OwnOutdated { twin: true, .. }));
        }
    }
}
