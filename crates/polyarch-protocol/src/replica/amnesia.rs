//! The amnesia guard: a server that lost write sets of its own is told so, and told again once they
//! are back.
//!
//! A node that was started from an old image or backup, or with an empty directory, has less of its
//! own earlier epochs than other members do. They are fed to it like any origin's; what is done here
//! is to notice. It looks at applied-sets only, never at how something came to be applied.
//!
//! Members that catch up themselves show a little more each moment. So an epoch is an alarm once, and
//! all is back only when nothing has been missing for a while.

use std::collections::BTreeMap;

use polyarch_crdt::{AppliedSet, Origin, seeded_bug};

use super::{Now, Replica};
use crate::condition::RegainedView;
use crate::event::{Event, LostEpoch};
use crate::storage::Storage;

/// Epochs of which a loss is remembered at most: heartbeats name them. Beyond that they are fed all
/// the same, and not told of.
const LOSSES_MAX: usize = 4_096;
/// All is back when nothing has been missing for so many times
/// [`Timings::gossip_coalesce_ms`](crate::Timings::gossip_coalesce_ms).
const QUIET_GOSSIPS: u64 = 5;

/// What this server was found to have lost of its own, by epoch, since the process began.
#[derive(Debug, Default)]
pub(super) struct Amnesia {
    losses: BTreeMap<Origin, Loss>,
    /// Something was found missing since all was last told to be back.
    is_open: bool,
    /// Since when nothing is missing, while that is not yet told.
    whole_since_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Loss {
    /// What was here when it was first noticed.
    had: u64,
    peer_has: u64,
    from: u32,
    noticed_ms: u64,
    complete_ms: Option<u64>,
}

impl<S: Storage> Replica<S> {
    /// Looks in what member `from` has for more of this server's own epochs than is here. To be told
    /// of all that a member shows or sends, before it is taken in: a feed may be ahead of heartbeats.
    /// The open epoch is no matter of this: [`Replica::close_epoch_if_overtaken`] comes first.
    pub(super) fn note_losses(&mut self, from: u32, theirs: &AppliedSet, now: Now) {
        // A twin's write sets were never here, and of a twin more is said.
        if self.own_twins().is_some() || seeded_bug("amnesia-unnoticed") {
            return;
        }
        let (own_id, open) = (self.config.server_id, self.epoch.as_ref().map(|epoch| epoch.origin));
        let applied = self.frontier.heads.applied();
        let is_lost = |dot: &polyarch_crdt::Dot| dot.origin.server_id == own_id && Some(dot.origin) != open;
        let mut epochs = Vec::new();
        for dot in theirs.since(applied).iter().filter(is_lost) {
            let (had, has_room) = (applied.seq(dot.origin), self.amnesia.losses.len() < LOSSES_MAX);
            match self.amnesia.losses.get_mut(&dot.origin) {
                Some(loss) if dot.seq <= loss.peer_has => continue,
                Some(loss) => {
                    (loss.peer_has, loss.from, loss.complete_ms) = (dot.seq, from, None);
                    self.amnesia.is_open = true;
                    continue;
                }
                None if has_room => {
                    let loss = Loss { had, peer_has: dot.seq, from, noticed_ms: now.wall_ms, complete_ms: None };
                    self.amnesia.losses.insert(dot.origin, loss);
                }
                None => continue,
            }
            epochs.push(LostEpoch { origin: dot.origin, had, peer_has: dot.seq });
        }
        if !epochs.is_empty() {
            self.amnesia.is_open = true;
            self.event(Event::OwnWritesLost { from, epochs });
        }
    }

    /// Looks whether what was lost is durably here again, whichever way it came: off a feed, or with
    /// a whole applied-set.
    pub(super) fn note_regained(&mut self, now: Now) {
        if !self.amnesia.is_open {
            return;
        }
        if !self.note_whole(now) {
            self.amnesia.whole_since_ms = None;
            return;
        }
        let since_ms = *self.amnesia.whole_since_ms.get_or_insert(now.mono_ms);
        let quiet_ms = self.config.timings.gossip_coalesce_ms.saturating_mul(QUIET_GOSSIPS);
        if now.mono_ms.saturating_sub(since_ms) >= quiet_ms {
            (self.amnesia.is_open, self.amnesia.whole_since_ms) = (false, None);
            let (write_sets, epochs) = (self.regained_write_sets(), self.amnesia.losses.len());
            self.event(Event::OwnWritesRegained { write_sets, epochs: epochs as u64 });
        }
    }

    /// Notes which epochs are whole again. Says whether all are.
    fn note_whole(&mut self, now: Now) -> bool {
        let applied = &self.durable.applied;
        let mut is_whole = true;
        for (origin, loss) in &mut self.amnesia.losses {
            if applied.seq(*origin) < loss.peer_has {
                is_whole = false;
            } else if loss.complete_ms.is_none() {
                loss.complete_ms = Some(now.wall_ms);
            }
        }
        is_whole
    }

    /// Own write sets that were lost and are here again.
    pub(super) fn regained_write_sets(&self) -> u64 {
        let of = |view: RegainedView| view.applied.min(view.peer_has).saturating_sub(view.had);
        self.regained_views().into_iter().map(of).fold(0, u64::saturating_add)
    }

    pub(super) fn regained_views(&self) -> Vec<RegainedView> {
        let view = |(origin, loss): (&Origin, &Loss)| RegainedView {
            origin: *origin,
            had: loss.had,
            peer_has: loss.peer_has,
            from: loss.from,
            applied: self.durable.applied.seq(*origin),
            noticed_ms: loss.noticed_ms,
            complete_ms: loss.complete_ms,
        };
        self.amnesia.losses.iter().map(view).collect()
    }
}
