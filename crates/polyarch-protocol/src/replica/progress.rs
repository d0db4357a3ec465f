//! How far the other members are, as far as it is known here: by the heartbeat of one that is
//! linked, by what it flooded of any other.

use std::borrow::Cow;

use polyarch_crdt::{AppliedSet, seeded_bug};

use super::{LinkId, Now, Replica};
use crate::peer::PeerMessage;
use crate::progress::{MemberProgress, ProgressTaken};
use crate::storage::Storage;

impl<S: Storage> Replica<S> {
    /// Whether every other member is known to have durably applied `applied`: what every one has
    /// may leave the log. Members count that were not removed, also those that are down.
    ///
    /// Nothing is known of a member that no way over links of version 2 leads to since this process
    /// started: then the answer is no.
    pub fn all_members_have(&self, applied: &AppliedSet) -> bool {
        let has = |server_id: u32| match self.applied_of(server_id) {
            Some(theirs) => theirs.includes_all(applied),
            None => seeded_bug("unknown-is-taken-for-all"),
        };
        self.catalog.present().into_iter().all(has)
    }

    /// What a server is known to have durably applied: this one, or any of which something is known.
    /// It may have more by now.
    pub fn applied_of(&self, server_id: u32) -> Option<Cow<'_, AppliedSet>> {
        if server_id == self.config.server_id {
            return Some(Cow::Borrowed(&self.durable.applied));
        }
        let linked = self.established().find(|(_, session)| session.server_id == server_id);
        let heard = linked.and_then(|(_, session)| session.heartbeat.as_ref());
        heard
            .map(|heartbeat| Cow::Borrowed(&heartbeat.applied))
            .or_else(|| self.progress.of(server_id, self.catalog.bases()).map(Cow::Owned))
    }

    /// Tells a new link all that is known of everybody.
    pub(super) fn send_progress(&mut self, link: LinkId) {
        for entries in self.progress.messages() {
            self.send(link, PeerMessage::Progress(entries));
        }
    }

    /// Takes what a peer says of members.
    pub(super) fn take_progress(&mut self, from: LinkId, entries: Vec<MemberProgress>) {
        let mut newer = Vec::new();
        for entry in entries {
            match self.progress.take(&entry) {
                ProgressTaken::Newer => newer.push(entry),
                ProgressTaken::Nothing => {}
                ProgressTaken::Unsound => {
                    self.close(from, "it sends progress that cannot be");
                    break;
                }
            }
        }
        if !newer.is_empty() {
            self.flood(&PeerMessage::Progress(newer), Some(from));
        }
    }

    /// Tells all how far this member is, when that is due and news.
    pub(super) fn tell_progress(&mut self, now: Now) {
        if now.mono_ms.saturating_sub(self.progress_told_ms) < self.config.timings.progress_interval_ms {
            return;
        }
        if let Some(own) = self.progress.tell(&self.durable.applied) {
            self.progress_told_ms = now.mono_ms;
            self.flood(&PeerMessage::Progress(vec![own]), None);
        }
    }
}
