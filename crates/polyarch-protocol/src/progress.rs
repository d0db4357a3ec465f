//! How far each member is, cluster-wide.
//!
//! A heartbeat says how far the peer on a link is. In a ring or a star most members have no link
//! here, and yet what leaves the log must be what *every* member has. So each member floods what it
//! has durably applied ([`MemberProgress`]), and keeps the newest that it heard of every other
//! ([`Progress`]). It is not in a hurry: an entry goes out every so often, and only when it says
//! something new, so an idle cluster is silent.
//!
//! What an entry says was true when it was issued, and an applied-set only ever grows, as long as a
//! disk is not set back. So an entry that is old makes others keep more, never less. A member whose
//! disk *was* set back says so with its next entry; what went in between comes to it as to a member
//! that was away for too long.

use std::collections::BTreeSet;

use polyarch_crdt::AppliedSet;
use serde::{Deserialize, Serialize};

use crate::bases::{BasedSet, Bases};
use crate::flood::{self, Entry, Flooded, Found};
use crate::limits::wire;

/// What one server has durably applied, as it said itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberProgress {
    /// The server.
    pub server_id: u32,
    /// Its process.
    pub boot_id: u128,
    /// Rises with each change, from 1.
    pub version: u64,
    /// What it has durably applied. Whoever does not know the base keeps the entry and sends it on
    /// all the same; until then it counts for what goes beyond the base, which is less.
    pub applied: BasedSet,
}

impl MemberProgress {
    /// Most origins that an entry names beyond the base. A server that has more does not say how far it is, and
    /// then nothing is taken for what it has.
    pub const ORIGINS_MAX: usize = 32_768;

    /// The highest version that is accepted.
    pub const VERSION_MAX: u64 = flood::VERSION_MAX;
}

impl Entry for MemberProgress {
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
        self.applied.rest.len() <= Self::ORIGINS_MAX
    }
}

/// What became of an entry that came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum ProgressTaken {
    /// It is newer than what was known: send it on to all other links.
    Newer,
    /// It says nothing new, or is one's own of an earlier process, which one's own now goes beyond.
    Nothing,
    /// It breaks the bounds of an entry and was left alone: a bug of its sender, or worse.
    Unsound,
}

/// The newest entry of each server, one's own among them.
#[derive(Debug, Clone)]
pub struct Progress {
    entries: Flooded<MemberProgress>,
    /// One's own was changed since it was last told.
    is_untold: bool,
}

impl Progress {
    /// What a process knows when it starts: what its own disk has.
    pub fn new(server_id: u32, boot_id: u128, applied: &AppliedSet) -> Self {
        let own = MemberProgress { server_id, boot_id, version: 1, applied: bounded(applied) };
        Self { entries: Flooded::new(own), is_untold: true }
    }

    /// All entries, one's own first, in messages that fit a frame: what a link that comes up is sent.
    pub fn messages(&self) -> Vec<Vec<MemberProgress>> {
        let mut messages = vec![Vec::new()];
        let mut origins = 0;
        for entry in self.entries.entries() {
            origins += entry.applied.rest.len();
            let message = messages.last_mut().expect("there is one");
            let fits = origins <= MemberProgress::ORIGINS_MAX && message.len() < wire::PROGRESS_MAX;
            match fits || message.is_empty() {
                true => message.push(entry.clone()),
                false => {
                    origins = entry.applied.rest.len();
                    messages.push(vec![entry.clone()]);
                }
            }
        }
        messages
    }

    /// Says what this process has durably applied now. Gives the entry to send to all links when
    /// that is news to them.
    pub fn tell(&mut self, applied: &AppliedSet) -> Option<MemberProgress> {
        let own = &self.entries.own().applied;
        if applied.len_beyond_base() <= MemberProgress::ORIGINS_MAX && !own.is_of(applied) {
            self.entries.revise(|own| own.applied = BasedSet::from(applied));
            self.is_untold = true;
        }
        std::mem::take(&mut self.is_untold).then(|| self.entries.own().clone())
    }

    /// Takes an entry that a peer sent, its own or one that it sends on.
    pub fn take(&mut self, entry: &MemberProgress) -> ProgressTaken {
        match self.entries.take(entry) {
            Found::Newer => ProgressTaken::Newer,
            Found::Stale => ProgressTaken::Nothing,
            Found::OwnOutdated => {
                self.entries.go_beyond(entry.version, |_| {});
                self.is_untold = true;
                ProgressTaken::Nothing
            }
            Found::Unsound => ProgressTaken::Unsound,
        }
    }

    /// What another server is known to have durably applied: all that it said, once its base is among
    /// `bases`.
    pub fn of(&self, server_id: u32, bases: &Bases) -> Option<AppliedSet> {
        self.entries.other(server_id).map(|entry| entry.applied.known_by(bases))
    }

    /// Says who the members are now. Entries of those that were members and no longer are do not count; of
    /// servers that were never known as members a few are kept, for they may be about to be.
    pub fn retain(&mut self, members: &BTreeSet<u32>) {
        let _ = self.entries.retain(members);
    }
}

/// What can be said of an applied-set: all of it, or nothing.
fn bounded(applied: &AppliedSet) -> BasedSet {
    match applied.len_beyond_base() <= MemberProgress::ORIGINS_MAX {
        true => applied.into(),
        false => BasedSet::default(),
    }
}

#[cfg(test)]
mod tests {
    use polyarch_crdt::{Dot, Origin};

    use super::*;

    fn applied(seq: u64) -> AppliedSet {
        [Dot::new(Origin::new(1, 1), seq)].into_iter().collect()
    }

    fn entry(server_id: u32, boot_id: u128, version: u64, seq: u64) -> MemberProgress {
        MemberProgress { server_id, boot_id, version, applied: BasedSet::from(&applied(seq)) }
    }

    fn of(progress: &Progress, server_id: u32) -> Option<AppliedSet> {
        progress.of(server_id, &Bases::default())
    }

    fn origins(count: usize) -> AppliedSet {
        (1..=count as u32).map(|epoch| Dot::new(Origin::new(9, epoch), 1)).collect()
    }

    #[test]
    fn the_newest_of_each_server_is_kept_and_told_on_once() {
        let mut progress = Progress::new(1, 100, &applied(1));
        assert_eq!(progress.take(&entry(2, 7, 3, 5)), ProgressTaken::Newer);
        assert_eq!(progress.take(&entry(2, 7, 3, 5)), ProgressTaken::Nothing);
        assert_eq!(progress.take(&entry(2, 9, 2, 9)), ProgressTaken::Nothing);
        assert_eq!(of(&progress, 2), Some(applied(5)));
        assert_eq!(progress.take(&entry(2, 7, 4, 6)), ProgressTaken::Newer);
        assert_eq!((of(&progress, 2), of(&progress, 3)), (Some(applied(6)), None));
    }

    #[test]
    fn ones_own_is_told_when_it_says_something_new() {
        let mut progress = Progress::new(1, 100, &applied(1));
        assert_eq!(progress.tell(&applied(1)), Some(entry(1, 100, 1, 1)), "nobody has heard it yet");
        assert_eq!(progress.tell(&applied(1)), None);
        assert_eq!(progress.tell(&applied(2)), Some(entry(1, 100, 2, 2)));
        assert_eq!(progress.tell(&applied(2)), None);
    }

    #[test]
    fn a_process_started_anew_goes_beyond_its_old_entry() {
        let mut progress = Progress::new(1, 100, &applied(1));
        let _ = progress.tell(&applied(1));
        assert_eq!(progress.take(&entry(1, 77, 9, 4)), ProgressTaken::Nothing);
        assert_eq!(progress.tell(&applied(1)), Some(entry(1, 100, 10, 1)));
        assert_eq!(progress.take(&entry(1, 77, 9, 4)), ProgressTaken::Nothing);
        assert_eq!(progress.tell(&applied(1)), None);
    }

    #[test]
    fn entries_beyond_their_bounds_are_left_alone_and_strangers_are_few() {
        let mut progress = Progress::new(1, 100, &applied(1));
        let many =
            MemberProgress { applied: BasedSet::from(&origins(MemberProgress::ORIGINS_MAX + 1)), ..entry(2, 1, 1, 1) };
        for unsound in [many, entry(2, 1, 0, 1), entry(2, 1, MemberProgress::VERSION_MAX + 1, 1)] {
            assert_eq!(progress.take(&unsound), ProgressTaken::Unsound);
        }
        for id in 10..1_000 {
            let _ = progress.take(&entry(id, 1, 1, 1));
        }
        let known = |progress: &Progress| progress.messages().concat().len();
        assert_eq!(known(&progress), 1 + 64);
        progress.retain(&(1..=2_000).collect());
        assert_eq!(progress.take(&entry(1_500, 1, 1, 1)), ProgressTaken::Newer, "a member has its place");
        progress.retain(&[1].into());
        assert_eq!(known(&progress), 1);
    }

    #[test]
    fn what_is_too_long_for_an_entry_is_not_told() {
        let mut progress = Progress::new(1, 100, &origins(MemberProgress::ORIGINS_MAX + 1));
        assert_eq!(progress.tell(&origins(MemberProgress::ORIGINS_MAX + 1)).map(|own| own.applied.rest.len()), Some(0));
        assert_eq!(progress.tell(&origins(MemberProgress::ORIGINS_MAX + 1)), None);
    }

    #[test]
    fn all_entries_go_in_messages_that_fit_a_frame() {
        let mut progress = Progress::new(1, 100, &origins(MemberProgress::ORIGINS_MAX));
        progress.retain(&(1..100).collect());
        for id in 2..10 {
            let applied = BasedSet::from(&origins(MemberProgress::ORIGINS_MAX / (id as usize)));
            assert_eq!(progress.take(&MemberProgress { applied, ..entry(id, 1, 1, 1) }), ProgressTaken::Newer);
        }
        let messages = progress.messages();
        assert_eq!(messages.concat().len(), 9);
        assert!(messages.len() > 2);
        for message in messages {
            let bytes = crate::peer::PeerMessage::Progress(message).encode().len();
            assert!((1..wire::CONTROL_BYTES_MAX).contains(&bytes), "{bytes}");
        }
    }
}
