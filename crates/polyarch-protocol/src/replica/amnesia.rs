//! The amnesia guard: a server that lost write sets of its own is told so, and told again once they
//! are back.
//!
//! A node that was started from an old image or backup, or with an empty directory, has less of its
//! own earlier epochs than other members do. They are fed to it like any origin's; what is done here
//! is to notice. It looks at applied-sets only, never at how something came to be applied.

use std::collections::BTreeMap;

use polyarch_crdt::{AppliedSet, Origin, seeded_bug};

use super::{Now, Replica};
use crate::condition::RegainedView;
use crate::event::{Event, LostEpoch};
use crate::storage::Storage;

/// Epochs of which a loss is remembered at most: heartbeats name them. Beyond that they are fed all
/// the same, and not told of.
const LOSSES_MAX: usize = 4_096;

/// What this server was found to have lost of its own, by epoch, since the process began.
#[derive(Debug, Default)]
pub(super) struct Amnesia {
    losses: BTreeMap<Origin, Loss>,
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

impl Amnesia {
    /// Whether something is missing yet.
    fn is_open(&self) -> bool {
        self.losses.values().any(|loss| loss.complete_ms.is_none())
    }
}

impl<S: Storage> Replica<S> {
    /// Looks in what member `from` says it has for more of this server's own epochs than is here.
    /// The open one is no matter of this: [`Replica::close_epoch_if_overtaken`] comes first.
    pub(super) fn note_losses(&mut self, from: u32, theirs: &AppliedSet, now: Now) {
        // A twin's write sets were never here, and of a twin more is said.
        if self.own_twins().is_some() || seeded_bug("amnesia-unnoticed") {
            return;
        }
        let (own_id, open) = (self.config.server_id, self.epoch.as_ref().map(|epoch| epoch.origin));
        let applied = self.frontier.heads.applied();
        let is_lost = |dot: &polyarch_crdt::Dot| {
            dot.origin.server_id == own_id && Some(dot.origin) != open && dot.seq > applied.seq(dot.origin)
        };
        let mut epochs = Vec::new();
        for dot in theirs.iter().filter(is_lost) {
            let (had, has_room) = (applied.seq(dot.origin), self.amnesia.losses.len() < LOSSES_MAX);
            match self.amnesia.losses.get_mut(&dot.origin) {
                Some(loss) if dot.seq <= loss.peer_has => continue,
                Some(loss) => {
                    (loss.peer_has, loss.from) = (dot.seq, from);
                    // Of what is on its way the operator knows.
                    if loss.complete_ms.take().is_none() {
                        continue;
                    }
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
            self.event(Event::OwnWritesLost { from, epochs });
        }
    }

    /// Looks whether what was lost is durably here again, whichever way it came: off a feed, or with
    /// a whole applied-set.
    pub(super) fn note_regained(&mut self, now: Now) {
        if !self.amnesia.is_open() {
            return;
        }
        let applied = &self.durable.applied;
        let back = |(origin, loss): &(&Origin, &mut Loss)| {
            loss.complete_ms.is_none() && applied.seq(**origin) >= loss.peer_has
        };
        let mut any = false;
        for (_, loss) in self.amnesia.losses.iter_mut().filter(back) {
            loss.complete_ms = Some(now.wall_ms);
            any = true;
        }
        if any && !self.amnesia.is_open() {
            let (write_sets, epochs) = (self.regained_write_sets(), self.amnesia.losses.len());
            self.event(Event::OwnWritesRegained { write_sets, epochs: epochs as u64 });
        }
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
