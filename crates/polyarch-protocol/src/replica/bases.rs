//! Closed epochs go into bases: when, by whom, and what this node does about a new one.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use polyarch_crdt::{AppliedSet, Base, Dot, Origin, seeded_bug};

use super::coordinator::system_change;
use super::sessions::Session;
use super::{LinkId, Now, Replica};
use crate::catalog::{self, BaseDefinition, Member, MemberStatus, SystemRecord};
use crate::chain::ChainHead;
use crate::keyspace::KeyspaceId;
use crate::limits::wire;
use crate::peer::PeerVersion;
use crate::storage::Storage;
use crate::write_set::WriteSet;

/// The most that an epoch takes in the record of a base.
const CLOSED_EPOCH_BYTES: usize = 5 + 5 + 10 + 32;

impl<S: Storage> Replica<S> {
    /// Expresses what is applied by the newest base, as soon as that is durable here: what goes out
    /// names it, and may speak only of what is.
    pub(super) fn follow_bases(&mut self) {
        let Some(base) = self.catalog.bases().newest().cloned() else { return };
        let is_tried = self.is_own_base(&base) || self.unfit_base == Some(base.name());
        if is_tried || !self.durable.applied.includes(base.name()) {
            return;
        }
        let heads = self.frontier.heads.rebased(&base);
        let durable = self.durable.applied.rebased(&base);
        let (Some(heads), Some(durable)) = (heads, durable) else {
            // It came in a snapshot: what is fed is looked at before (`unfit_base_of`). This node goes on
            // without it, and publishes none on top.
            self.unfit_base = Some(base.name());
            return;
        };
        self.frontier.heads = heads;
        self.durable.applied = durable;
        for session in self.sessions.values_mut() {
            let heard = session.heartbeat.as_mut().map(|heartbeat| &mut heartbeat.applied);
            for applied in heard.into_iter().chain(&mut session.first_applied) {
                express_by(&base, applied);
            }
        }
    }

    /// Why a write set that is next must not be applied, if it publishes a base: that whoever has
    /// applied it has applied all that it holds is what sets and tokens that name it rely on. Its server
    /// had applied that, or it would break this rule.
    pub(super) fn unfit_base_of(&self, write_set: &WriteSet) -> Option<String> {
        let changes = write_set.changes.iter().filter(|change| change.keyspace == KeyspaceId::SYSTEM);
        let records = changes.filter_map(|change| SystemRecord::decode(change.effect.value()?).ok());
        let applied = self.frontier.heads.applied();
        let unapplied = records.filter_map(|record| match record {
            SystemRecord::Base(BaseDefinition { parent, closed }) => {
                let closed = closed.into_iter().map(|(origin, head)| Dot::new(origin, head.seq));
                closed.chain(parent).find(|dot| !applied.includes(*dot))
            }
            _ => None,
        });
        unapplied
            .into_iter()
            .next()
            .map(|dot| format!("it publishes a base that holds {dot}, which its server had not applied"))
    }

    /// Whether what is applied here is expressed by this base.
    fn is_own_base(&self, base: &Arc<Base>) -> bool {
        self.durable.applied.base().is_some_and(|own| Arc::ptr_eq(own, base))
    }

    /// Expresses what a peer says it has as what is applied here is: the two are compared often.
    pub(super) fn express_by_own_base(&self, applied: &mut AppliedSet) {
        if let Some(base) = self.durable.applied.base() {
            express_by(base, applied);
        }
    }

    /// A peer says which base it expresses sets by.
    pub(super) fn note_base_of(&mut self, link: LinkId, name: Dot) {
        let known = self.catalog.bases().get(name).cloned();
        if let Some(session) = self.sessions.get_mut(&link) {
            session.base = known.or(session.base.take());
        }
    }

    /// A peer says what it has durably applied. Whatever base is among it, the peer knows.
    pub(super) fn note_base_of_heard(&mut self, link: LinkId, applied: &AppliedSet) {
        let own = self.durable.applied.base().filter(|base| applied.includes(base.name())).cloned();
        if let Some(session) = self.sessions.get_mut(&link).filter(|session| session.version >= PeerVersion::V2) {
            session.base = own.or(session.base.take());
        }
    }

    /// The base that a heartbeat on this link may name.
    pub(super) fn base_for(&self, session: &Session) -> Option<Arc<Base>> {
        match seeded_bug("base-named-to-all") {
            true => self.durable.applied.base().cloned(),
            false => session.base.clone(),
        }
    }

    /// Publishes a base once there are enough closed epochs for it and it is for this node to do so.
    pub(super) fn publish_base_when_due(&mut self, now: Now) {
        let Some(definition) = self.base_due() else { return };
        // A failure of the storage has been told, and nobody waits for an answer.
        let _ = self.write_changes(now, |name, _| {
            vec![system_change(catalog::base_key(name), Vec::new(), &SystemRecord::Base(definition))]
        });
    }

    fn base_due(&self) -> Option<BaseDefinition> {
        let reachable = self.reachable();
        if !self.is_to_publish(&reachable) {
            return None;
        }
        let beyond = self.durable.applied.beyond_base();
        // Once for all epochs: of a member without a link it is put together anew.
        let known: Vec<Cow<'_, AppliedSet>> = reachable.iter().filter_map(|id| self.applied_of(*id)).collect();
        let mut closed: Vec<(Origin, ChainHead)> = beyond
            .iter()
            .filter(|last| self.is_closed(*last, &known))
            .map(|last| (last.origin, self.frontier.heads.head(last.origin)))
            .collect();
        if closed.len() < self.config.limits.base_epochs_min {
            return None;
        }
        let fitting = self.config.limits.write_set_bytes_max / 2 / CLOSED_EPOCH_BYTES;
        closed.truncate(wire::BASE_EPOCHS_MAX.min(fitting));
        if seeded_bug("base-of-unapplied") {
            closed.iter_mut().for_each(|(_, head)| head.seq += 1);
        }
        Some(BaseDefinition { parent: self.durable.applied.base().map(|base| base.name()), closed })
    }

    /// The members that can be reached now, over whatever links, this one included.
    fn reachable(&self) -> BTreeSet<u32> {
        let mut reachable = self.link_states.component(self.config.server_id);
        let present = self.catalog.present();
        reachable.retain(|id| present.contains(id));
        reachable
    }

    /// Whether the next base is for this node to publish: of those that can be reached and take
    /// writes the one with the smallest server id does, having what the others have, and one base at
    /// a time. Two that cannot reach each other may both publish one; the next takes in what the
    /// other of them holds.
    fn is_to_publish(&self, reachable: &BTreeSet<u32>) -> bool {
        let takes_writes = |member: &&Member| member.status.takes_writes() && reachable.contains(&member.server_id);
        let first = self.catalog.members().find(takes_writes).map(|member| member.server_id);
        let status = self.catalog.member(self.config.server_id).map(|member| member.status);
        first == Some(self.config.server_id)
            && status == Some(MemberStatus::Active)
            && self.writes_refused().is_none()
            && self.newest_base_is_known(reachable)
            && self
                .established()
                .all(|(_, session)| session.first_applied.as_ref().is_some_and(|first| self.has(first)))
    }

    fn has(&self, applied: &AppliedSet) -> bool {
        self.durable.applied.includes_all(applied)
    }

    /// Whether the last base has come to all members of which it is known what they have.
    fn newest_base_is_known(&self, reachable: &BTreeSet<u32>) -> bool {
        let Some(newest) = self.catalog.bases().newest() else { return true };
        let knows = |id: &u32| self.applied_of(*id).is_none_or(|applied| applied.includes(newest.name()));
        self.is_own_base(newest) && reachable.iter().all(knows)
    }

    /// Whether an epoch has come to its end here, at `last`, and as far as known everywhere else.
    ///
    /// That its server has opened another proves only that it takes no more of its own. Somewhere
    /// there may be more of it, on a disk that nobody has seen since. Then it goes on beyond the base.
    /// So the base need not wait for members that are away.
    fn is_closed(&self, last: Dot, known: &[Cow<'_, AppliedSet>]) -> bool {
        let is_newest = self.frontier.newest_epoch(last.origin.server_id) == Some(last.origin);
        let is_open = self.epoch.as_ref().is_some_and(|epoch| epoch.origin == last.origin);
        let is_staged = self.frontier.heads.applied().seq(last.origin) > last.seq;
        let is_agreed = || known.iter().all(|applied| applied.seq(last.origin) == last.seq);
        !is_newest && !is_open && !is_staged && !self.paused.contains_key(&last.origin) && is_agreed()
    }
}

fn express_by(base: &Arc<Base>, applied: &mut AppliedSet) {
    if let Some(expressed) = applied.rebased(base) {
        *applied = expressed;
    }
}
