//! Write sets that come from this node's own disk, where a repair found them behind damage.
//!
//! They enter as a peer's do, and only when it is their turn: what lay in the damaged places has to come
//! from peers first. Whoever has them hands them over again until they are applied.

use bytes::Bytes;

use super::{Now, Replica};
use crate::storage::Storage;
use crate::waiting::is_due;
use crate::write_set::WriteSet;

impl<S: Storage> Replica<S> {
    pub(super) fn take_salvaged(&mut self, write_sets: &[Bytes], now: Now) {
        for bytes in write_sets {
            if self.full.is_some() || self.failed.is_some() {
                return;
            }
            // One of a newer version waits for an upgrade.
            let Ok(write_set) = WriteSet::decode(bytes) else { continue };
            let is_stopped = self.paused.contains_key(&write_set.dot.origin);
            let is_next = is_due(&write_set, self.frontier.heads.applied());
            if is_stopped || !is_next || self.unfit_base_of(&write_set).is_some() {
                continue;
            }
            let result = self.commit_remote(&write_set, bytes, now);
            if self.is_stopped_by(result, bytes.len(), now) {
                return;
            }
        }
        self.take_waiting(now);
    }

    /// Says whether some still wait. Until none does a drained member does not hand over: nobody else may have
    /// them.
    pub fn set_salvage_waits(&mut self, waits: bool) {
        self.salvage_waits = waits;
    }

    /// Whether there is nobody who could bring more than this node has: some member is linked and none of
    /// those that are has more, or there is no other member.
    pub fn has_all_that_is_known(&self) -> bool {
        // One that knows of no member, not even itself, has yet to hear from others.
        let is_alone = self.catalog.present().iter().eq([&self.config.server_id]);
        let mut heard = self.established().filter_map(|(_, session)| session.heartbeat.as_ref()).peekable();
        let applied = self.frontier.heads.applied();
        is_alone || heard.peek().is_some() && heard.all(|heartbeat| applied.includes_all(&heartbeat.applied))
    }
}
