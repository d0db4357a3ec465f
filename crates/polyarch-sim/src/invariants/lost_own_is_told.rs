//! A node that came up without write sets of its own server which others have says so, and says so
//! again once they are back: each exactly when it happened.
//!
//! Source: MySQL's restored server, which skips its own later writes without a word because of their
//! server id.

use std::collections::{BTreeMap, BTreeSet};

use polyarch_crdt::{Dot, Origin};
use polyarch_protocol::LostEpoch;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "lost_own_is_told";

/// What one process told, and what came to it of its own server's.
#[derive(Debug, Default)]
pub struct Told {
    /// Up to where each epoch was said to be lost.
    lost: BTreeMap<Origin, LostEpoch>,
    /// Own server's write sets that came from others.
    came: BTreeSet<Dot>,
    /// Something was told to be lost and not yet to be back.
    is_open: bool,
}

impl Told {
    /// A write set of this server, of an earlier process, came from another node.
    pub fn came(&mut self, dot: Dot) {
        self.came.insert(dot);
    }

    /// The process says that it had lost write sets. `is_written`: whether there is such a write set;
    /// `was_set_back`: whether its disk was ever replaced by an older one.
    pub fn lost(
        &mut self,
        server_id: u32,
        epochs: &[LostEpoch],
        was_set_back: bool,
        is_written: impl Fn(Dot) -> bool,
    ) -> Checked {
        let violation = |what: String| Err(Violation::new(NAME, format!("node {server_id} says it had lost {what}")));
        if !was_set_back {
            return violation(format!("{epochs:?}, and kept its disk"));
        }
        for epoch in epochs {
            let last = Dot::new(epoch.origin, epoch.peer_has);
            if epoch.origin.server_id != server_id || epoch.had >= epoch.peer_has || !is_written(last) {
                return violation(format!("{epoch:?}, which cannot be"));
            }
            let before = self.lost.insert(epoch.origin, *epoch);
            if self.is_open && before.is_some_and(|before| before.peer_has > epoch.had) {
                return violation(format!("{epoch:?}, and said so before"));
            }
        }
        self.is_open = true;
        Ok(())
    }

    /// The process says that all of it is back.
    pub fn regained(&mut self, server_id: u32, write_sets: u64, durable: &Seen) -> Checked {
        let violation = |what: String| Err(Violation::new(NAME, format!("node {server_id} says all is back, {what}")));
        if !std::mem::take(&mut self.is_open) {
            return violation("and nothing was missing".to_owned());
        }
        let missing = self.lost.values().find(|lost| durable.seq(lost.origin) < lost.peer_has);
        if let Some(missing) = missing {
            return violation(format!("and of {missing:?} it has synced {}", durable.seq(missing.origin)));
        }
        if write_sets > self.came.len() as u64 {
            return violation(format!("{write_sets} of them, and {} came", self.came.len()));
        }
        Ok(())
    }

    /// In the end: nothing came that was not told of, and all that was told to be lost is back.
    /// `is_somewhere`: whether a node has it; what was lost with the disks of all cannot come back.
    pub fn check_end(&self, server_id: u32, is_somewhere: impl Fn(Dot) -> bool) -> Checked {
        let can_be_back = |lost: &LostEpoch| is_somewhere(Dot::new(lost.origin, lost.peer_has));
        if self.is_open && self.lost.values().all(can_be_back) {
            let what = format!("in the end node {server_id} still says that it lost {:?}", self.lost);
            return Err(Violation::new(NAME, what));
        }
        match self.came.iter().find(|dot| !self.lost.contains_key(&dot.origin)) {
            None => Ok(()),
            Some(dot) => {
                let what = format!("{dot} came back to node {server_id}, which never said that it had lost any of it");
                Err(Violation::new(NAME, what))
            }
        }
    }
}
