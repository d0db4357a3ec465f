//! What an operator is shown of members, links and feeds, and may do to a link.

use std::collections::BTreeSet;

use polyarch_crdt::{AppliedSet, Origin};

use super::{LinkId, Now, Replica, RequestTag};
use crate::catalog::Member;
use crate::client::{FeedView, PeerView, Refusal, Response};
use crate::storage::Storage;

/// Something of an origin that others have and this node has not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lag {
    /// The greatest that was known when this was noted.
    seq: u64,
    since_ms: u64,
}

impl<S: Storage> Replica<S> {
    pub(super) fn cut_link(&mut self, tag: RequestTag, server_id: u32) {
        if let Some(refusal) = self.unknown_member(server_id) {
            return self.answer(tag, Err(refusal));
        }
        self.cut.insert(server_id);
        self.links_due = true;
        let links: Vec<LinkId> =
            self.sessions.iter().filter(|(_, s)| s.server_id == server_id).map(|(link, _)| *link).collect();
        links.into_iter().for_each(|link| self.close(link, "the link is cut by an operator"));
        self.answer(tag, Ok(Response::Done));
    }

    pub(super) fn heal_link(&mut self, tag: RequestTag, server_id: u32) {
        if let Some(refusal) = self.unknown_member(server_id) {
            return self.answer(tag, Err(refusal));
        }
        self.cut.remove(&server_id);
        self.links_due = true;
        self.answer(tag, Ok(Response::Done));
    }

    fn unknown_member(&self, server_id: u32) -> Option<Refusal> {
        let known = server_id != self.config.server_id && self.catalog.member(server_id).is_some();
        (!known).then_some(Refusal::UnknownMember(server_id))
    }

    pub(super) fn peer_views(&self) -> Vec<PeerView> {
        let me = self.config.server_id;
        let mut live = self.link_states.component(me);
        let present = self.catalog.present();
        live.retain(|id| *id == me || present.contains(id));
        let planned: BTreeSet<u32> =
            self.catalog.topology().edges(&live).into_iter().filter_map(|edge| edge.other(me)).collect();
        let others = self.catalog.members().filter(|member| member.server_id != me);
        others.map(|member| self.peer_view(member, &live, &planned)).collect()
    }

    fn peer_view(&self, member: &Member, live: &BTreeSet<u32>, planned: &BTreeSet<u32>) -> PeerView {
        let server_id = member.server_id;
        let session = self.established().map(|(_, s)| s).find(|s| s.server_id == server_id);
        let theirs = session.and_then(|s| s.heartbeat.as_ref()).map(|h| &h.applied);
        let ours = &self.durable.applied;
        let entry = self.link_states.entries().find(|entry| entry.server_id == server_id);
        let reachable = live.contains(&server_id);
        PeerView {
            server_id,
            name: member.name.clone(),
            status: member.status,
            addresses: member.addresses.clone(),
            linked: session.is_some(),
            planned: planned.contains(&server_id),
            reachable,
            // What it said last is of no use once it is gone.
            links: entry.filter(|_| reachable).map(|entry| entry.linked.clone()).unwrap_or_default(),
            cut: self.cut.contains(&server_id),
            behind: theirs.map_or(0, |theirs| missing(ours, theirs)),
            ahead: theirs.map_or(0, |theirs| missing(theirs, ours)),
            equal: session.and_then(|s| s.equal).filter(|_| theirs == Some(ours)),
            clock_offset_ms: session.and_then(|s| s.clock_offset_ms),
        }
    }

    /// The greatest seq of each origin that a linked member says it has.
    pub(super) fn known_of_others(&self) -> AppliedSet {
        let mut known = AppliedSet::new();
        for heartbeat in self.established().filter_map(|(_, session)| session.heartbeat.as_ref()) {
            known.join(&heartbeat.applied);
        }
        known
    }

    /// Notes of which origins the member on `link`, just heard, has more, and since when. Looks at
    /// that member only: there are as many heartbeats as members.
    pub(super) fn note_lags(&mut self, link: LinkId, now: Now) {
        let held = self.frontier.heads.applied();
        let heard = || self.sessions.values().filter_map(|session| session.heartbeat.as_ref());
        self.lags.retain(|origin, lag| {
            held.seq(*origin) < lag.seq && heard().any(|heartbeat| held.seq(*origin) < heartbeat.applied.seq(*origin))
        });
        let Some(heartbeat) = self.sessions.get(&link).and_then(|session| session.heartbeat.as_ref()) else { return };
        for dot in heartbeat.applied.since(held).iter() {
            self.lags.entry(dot.origin).or_insert(Lag { seq: dot.seq, since_ms: now.mono_ms });
        }
    }

    pub(super) fn feed_views(&self, now: Now) -> Vec<FeedView> {
        let (known, held) = (self.known_of_others(), self.frontier.heads.applied());
        let current = self.epoch.as_ref().map(|epoch| epoch.origin);
        // Of the epochs of the base nobody is known to have more.
        let lacking = known.beyond(held.base());
        let origins: BTreeSet<Origin> =
            lacking.iter().map(|dot| dot.origin).chain(self.paused.keys().copied()).collect();
        let of = |origin: Origin| {
            let behind = known.seq(origin).saturating_sub(held.seq(origin));
            let lag = self.lags.get(&origin).filter(|_| behind > 0);
            let link = self.plan.link_of(origin);
            FeedView {
                origin,
                from: link.and_then(|link| self.sessions.get(&link)).map(|session| session.server_id),
                behind,
                behind_ms: lag.map_or(0, |lag| now.mono_ms.saturating_sub(lag.since_ms)),
                paused: self.paused.contains_key(&origin),
            }
        };
        origins.into_iter().filter(|origin| Some(*origin) != current).map(of).collect()
    }
}

/// How many write sets of `wanted` are not in `held`.
pub(super) fn missing(held: &AppliedSet, wanted: &AppliedSet) -> u64 {
    let lacking = wanted.since(held);
    lacking.iter().map(|dot| dot.seq.saturating_sub(held.seq(dot.origin))).fold(0, u64::saturating_add)
}
