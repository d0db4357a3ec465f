//! Whether this node's own wall clock can be trusted to stamp writes.
//!
//! A stamp decides only between writes that are truly concurrent, in `lww` keyspaces and for
//! settings. A clock that is hours ahead would win all of those for hours, so a node that finds its
//! clock that far ahead of a majority of the members takes no writes. (Rejected: to stop the feeds of
//! a server whose stamps are ahead. Whatever depends on them stops too, and soon the cluster does.)

use std::collections::BTreeSet;

use super::Replica;
use crate::client::Refusal;
use crate::event::Event;
use crate::storage::Storage;

/// This node's clock is far ahead of a majority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ClockAhead {
    /// Of each of these by this much at least, in milliseconds.
    ahead_ms: u64,
    /// The members, in order.
    of: Vec<u32>,
}

impl<S: Storage> Replica<S> {
    /// Compares this node's clock with what linked members said of theirs. A member without a link
    /// counts as one that is right with it.
    pub(super) fn compare_clocks(&mut self) {
        let mut members: BTreeSet<u32> = self.catalog.present();
        members.insert(self.config.server_id);
        let max = self.config.timings.hlc_ahead_max_ms;
        let behind = self.established().filter_map(|(_, session)| {
            let offset_ms = session.clock_offset_ms.filter(|_| members.contains(&session.server_id))?;
            let ahead_ms = offset_ms.checked_neg().map_or(u64::MAX, |ahead| u64::try_from(ahead).unwrap_or(0));
            (ahead_ms > max).then_some((session.server_id, ahead_ms))
        });
        let mut behind: Vec<(u32, u64)> = behind.collect();
        behind.sort_unstable();
        let is_majority = 2 * behind.len() > members.len();
        let ahead = is_majority.then(|| ClockAhead {
            ahead_ms: behind.iter().map(|(_, ahead_ms)| *ahead_ms).min().unwrap_or(0),
            of: behind.iter().map(|(server_id, _)| *server_id).collect(),
        });
        match (&self.clock_ahead, &ahead) {
            (None, Some(ClockAhead { ahead_ms, of })) => {
                self.event(Event::ClockAhead { ahead_ms: *ahead_ms, of: of.clone() });
            }
            (Some(_), None) => self.event(Event::ClockRight),
            _ => {}
        }
        self.clock_ahead = ahead;
    }

    /// Why this node's clock may stamp no writes, if it may not.
    pub(super) fn clock_refusal(&self) -> Option<Refusal> {
        let ClockAhead { ahead_ms, of } = self.clock_ahead.clone()?;
        Some(Refusal::ClockAhead { ahead_ms, of })
    }
}
