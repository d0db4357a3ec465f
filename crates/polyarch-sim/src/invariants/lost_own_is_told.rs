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
    /// And those that came from what a repair had found.
    was_salvaged: BTreeSet<Dot>,
    /// Something was told to be lost and not yet to be back.
    is_open: bool,
}

impl Told {
    /// A write set of this server, of an earlier process, came from another node.
    pub fn came(&mut self, dot: Dot) {
        self.came.insert(dot);
        // More of what was told already is not told again.
        if let Some(lost) = self.lost.get_mut(&dot.origin).filter(|lost| dot.seq > lost.peer_has) {
            lost.peer_has = dot.seq;
            self.is_open = true;
        }
    }

    /// One of them came, from a peer or from what a repair had found: that is nothing to tell.
    pub fn salvaged(&mut self, dot: Dot) {
        self.was_salvaged.insert(dot);
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
            if self.lost.insert(epoch.origin, *epoch).is_some() {
                return violation(format!("{epoch:?}, and said so before"));
            }
        }
        self.is_open = true;
        Ok(())
    }

    /// The process says that all of it is back.
    pub fn regained(&mut self, server_id: u32, write_sets: u64, durable: &Seen) -> Checked {
        let violation = |what: String| Err(Violation::new(NAME, format!("node {server_id} says all is back, {what}")));
        self.is_open = false;
        if self.lost.is_empty() {
            return violation("and nothing was missing".to_owned());
        }
        let missing = self.lost.values().find(|lost| durable.seq(lost.origin) < lost.peer_has);
        if let Some(missing) = missing {
            return violation(format!("and of {missing:?} it has synced {}", durable.seq(missing.origin)));
        }
        let came = self.came.len() + self.was_salvaged.len();
        if write_sets > came as u64 {
            return violation(format!("{write_sets} of them, and {came} came"));
        }
        Ok(())
    }

    /// In the end: nothing came that was not told of, and what is back was told to be. `is_gone`:
    /// whether some of an epoch was written and no node has it any more; a member may have shown that.
    pub fn check_end(&self, server_id: u32, is_gone: impl Fn(Origin) -> bool) -> Checked {
        if self.is_open && !self.lost.keys().any(|origin| is_gone(*origin)) {
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
