//! The peers' half: handshake, heartbeats, subscriptions, and what comes in on feeds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Base, Dot, Origin, seeded_bug};

use super::members::is_refused;
use super::{LinkId, Now, Output, Replica};
use crate::event::Event;
use crate::feed::Feed;
use crate::peer::{Heartbeat, Hello, PeerMessage, PeerVersion, Refuse, RefuseReason, Subscribe, Twin};
use crate::plan::{Peer, Sight};
use crate::storage::Storage;
use crate::waiting::{Waiting, WaitingWriteSet, is_due};
use crate::write_set::WriteSet;

/// A refusal that nothing else made void is forgotten after so many
/// [`FeedTimings::feed_stall_ms`](crate::FeedTimings::feed_stall_ms): the peer's disk may answer again.
const REFUSED_STALLS: u64 = 30;

/// How long a member that sent what is not known here is neither dialled nor listened to. Most
/// times it takes longer to upgrade one of the two.
const UNREADABLE_HOLD_MS: u64 = 10_000;

/// A member that sent what is not known here.
#[derive(Debug)]
pub(super) struct Unreadable {
    /// Its process, once it had said hello: of another the operator is told anew.
    boot_id: Option<u128>,
    /// Until then it is left alone.
    pub(super) until_ms: u64,
}

/// One link, from its handshake to its loss.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) server_id: u32,
    dialed: bool,
    /// What is spoken on it.
    pub(super) version: PeerVersion,
    /// Where the other end was seen.
    pub(super) address: String,
    /// The peer's boot id once it said hello and was accepted.
    pub(super) established: Option<u128>,
    pub(super) heartbeat: Option<Heartbeat>,
    /// A base that the peer has too: what is said to it may name that. Only on links of version 2.
    pub(super) base: Option<Arc<Base>>,
    /// What the peer had when the link came up: with that applied, this node has caught up.
    pub(super) first_applied: Option<AppliedSet>,
    pub(super) clock_offset_ms: Option<i64>,
    /// With equal applied-sets: whether the digests were equal.
    pub(super) equal: Option<bool>,
    subscription: u64,
    subscribed: BTreeSet<Origin>,
    /// When the feed was begun, or last brought something.
    fed_ms: u64,
    /// Origins that this peer cannot feed us, from where we were when it said so.
    pub(super) refused: BTreeMap<Origin, Refused>,
    pub(super) waiting: Waiting,
    /// Origins that the peer's newest subscription asks of this node.
    serving: BTreeSet<Origin>,
    /// Groups whose [`Output::GroupTaken`] is held back while too much waits.
    owed: usize,
    /// Snapshots that this node sends on it.
    pub(super) snapshots_sent: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    seq: u64,
    since_ms: u64,
    reason: RefuseReason,
}

impl Session {
    pub(super) fn new(server_id: u32, dialed: bool, version: PeerVersion, address: String) -> Self {
        Self {
            server_id,
            dialed,
            version,
            address,
            established: None,
            heartbeat: None,
            base: None,
            first_applied: None,
            clock_offset_ms: None,
            equal: None,
            subscription: 0,
            subscribed: BTreeSet::new(),
            fed_ms: 0,
            refused: BTreeMap::new(),
            waiting: Waiting::default(),
            serving: BTreeSet::new(),
            owed: 0,
            snapshots_sent: 0,
        }
    }

    /// Whether the peer was last known to have more of an origin than `applied`.
    pub(super) fn has_more_of(&self, origin: Origin, applied: &AppliedSet) -> bool {
        self.heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.applied.seq(origin) > applied.seq(origin))
    }

    /// Whether the peer said that it does not feed an origin.
    pub(super) fn refuses(&self, origin: Origin) -> bool {
        self.refused.contains_key(&origin)
    }

    /// Whether it said so because its log has not, or does not give, what is wanted of the origin.
    pub(super) fn lacks_log_of(&self, origin: Origin) -> bool {
        let lacks = |reason| matches!(reason, RefuseReason::LogRemoved | RefuseReason::LogUnreadable);
        self.refused.get(&origin).is_some_and(|refused| lacks(refused.reason))
    }

    /// Whether anything may come on its feed.
    pub(super) fn is_fed(&self) -> bool {
        !self.subscribed.is_empty() || !self.waiting.is_empty()
    }
}

impl<S: Storage> Replica<S> {
    pub(super) fn link_up(&mut self, link: LinkId, session: Session, now: Now) {
        // Without a hello, so that the other side does not take it for a link each time it dials.
        if self.cut.contains(&session.server_id) {
            return self.close(link, "the link is cut by an operator");
        }
        if self.is_unreadable(session.server_id, now) {
            return self.close(link, "it sent what this version does not know, a short while ago");
        }
        self.sessions.insert(link, session);
        let hello = Hello {
            cluster_id: Some(self.config.cluster_id),
            server_id: self.config.server_id,
            boot_id: self.config.boot_id,
        };
        if let Some(name) = self.durable.applied.base().map(|base| base.name()) {
            self.send(link, PeerMessage::Base(name));
        }
        self.send(link, PeerMessage::Hello(hello));
    }

    pub(super) fn link_down(&mut self, link: LinkId, now: Now) {
        let Some(session) = self.sessions.remove(&link) else { return };
        self.unlinked(&session);
        self.replan(now);
    }

    /// A session has ended; the member may have another.
    fn unlinked(&mut self, session: &Session) {
        let server_id = session.server_id;
        if session.established.is_some() && !self.is_linked(server_id) {
            self.event(Event::Unlinked { server_id });
        }
        self.interrupt_comparison(server_id);
        self.linked_changed();
    }

    pub(super) fn message(&mut self, link: LinkId, message: PeerMessage, now: Now) {
        let Some(session) = self.sessions.get(&link) else { return };
        if message.since() > session.version {
            return self.unreadable(link, "a message of a later version than was agreed for the link", now);
        }
        match message {
            PeerMessage::Hello(hello) => self.hello(link, &hello, now),
            // These two may answer a hello, before any link is established.
            PeerMessage::Twin(twin) => self.hold_as_twin(&twin.addresses, now),
            PeerMessage::Removed(because) => {
                let by = session.server_id;
                self.hold_as_removed(by, &because, now);
            }
            PeerMessage::Base(name) => self.note_base_of(link, name),
            _ if session.established.is_none() => self.close(link, "a message came before the hello"),
            PeerMessage::Heartbeat(heartbeat) => self.heartbeat(link, heartbeat, now),
            PeerMessage::BasedHeartbeat(based) => match based.resolve(self.catalog.bases()) {
                Some(heartbeat) => self.heartbeat(link, heartbeat, now),
                None => self.close(link, "its heartbeat names a base that this node does not have"),
            },
            PeerMessage::Subscribe(subscribe) => self.serve(link, subscribe),
            PeerMessage::Refuse(refuse) => self.refused(link, &refuse, now),
            PeerMessage::LinkStates(entries) => self.take_link_states(link, entries, now),
            PeerMessage::Progress(entries) => self.take_progress(link, entries),
            PeerMessage::Digest(digest) => {
                let server_id = session.server_id;
                self.take_digest(link, server_id, &digest);
            }
            PeerMessage::BucketKeys(keys) => {
                let server_id = session.server_id;
                self.take_keys(server_id, *keys);
            }
        }
    }

    /// Ends a link that brought what is not known here. Its sender speaks a version that was not
    /// agreed, or has a bug; dialled again at once it would do the same again, and so without end.
    pub(super) fn unreadable(&mut self, link: LinkId, reason: &str, now: Now) {
        let Some(session) = self.sessions.get(&link) else { return };
        let (server_id, boot_id) = (session.server_id, session.established);
        let until_ms = now.mono_ms.saturating_add(UNREADABLE_HOLD_MS);
        let before = self.unreadable.insert(server_id, Unreadable { boot_id, until_ms });
        if before.is_none_or(|before| before.boot_id != boot_id) {
            self.event(Event::Unreadable { server_id, reason: reason.to_owned() });
        }
        self.links_due = true;
        self.close(link, &format!("it sends what this version does not know: {reason}"));
        self.replan(now);
    }

    /// Whether links to this member are left alone for a while.
    pub(super) fn is_unreadable(&self, server_id: u32, now: Now) -> bool {
        self.unreadable.get(&server_id).is_some_and(|held| now.mono_ms < held.until_ms)
    }

    fn serve(&mut self, link: LinkId, subscribe: Subscribe) {
        if let Some(session) = self.sessions.get_mut(&link) {
            session.serving = subscribe.origins.iter().map(|(origin, _)| *origin).collect();
        }
        self.output(Output::Serve(link, Feed::new(subscribe)));
    }

    /// Wakes the feeds that serve any of these origins; the others would read the log for nothing.
    pub(super) fn wake_feeds(&mut self, origins: &BTreeSet<Origin>) {
        let serves = |session: &Session| origins.iter().any(|origin| session.serving.contains(origin));
        let woken = self.sessions.iter().filter(|(_, session)| serves(session));
        // What is durable needs nothing more of the log.
        self.at_once.extend(woken.map(|(link, _)| Output::FeedMore(*link)));
    }

    fn hello(&mut self, link: LinkId, hello: &Hello, now: Now) {
        let Some(session) = self.sessions.get_mut(&link) else { return };
        let (server_id, own_id) = (session.server_id, self.config.server_id);
        let reason = match hello.cluster_id {
            // A node about to join only wants to learn the cluster's id.
            None => return,
            _ if session.established.is_some() => "a second hello".to_owned(),
            Some(theirs) if theirs != self.config.cluster_id => {
                format!("it belongs to cluster {theirs}, this node to {}", self.config.cluster_id)
            }
            _ if hello.server_id != server_id => {
                format!("its certificate says {server_id}, its hello {}", hello.server_id)
            }
            // This node has dialled itself.
            _ if server_id == own_id && hello.boot_id == self.config.boot_id => {
                return self.close(link, "a node needs no link to itself");
            }
            _ if server_id == own_id => {
                let addresses = vec![self.config.addresses.join(", "), session.address.clone()];
                self.hold_as_twin(&addresses, now);
                self.send(link, PeerMessage::Twin(Twin { addresses }));
                return self.close(link, "it has this node's own server id; stop one of the two");
            }
            Some(_) if self.catalog.member(server_id).is_some_and(is_refused) => {
                return self.refuse_removed(link);
            }
            Some(_) => {
                if !self.refuse_twin(link, hello.boot_id, now) {
                    self.establish(link, server_id, hello.boot_id);
                }
                return;
            }
        };
        self.event(Event::Refused { server_id, reason: reason.clone() });
        self.close(link, &reason);
    }

    fn establish(&mut self, link: LinkId, server_id: u32, boot_id: u128) {
        if let Some(session) = self.sessions.get_mut(&link) {
            session.established = Some(boot_id);
        }
        let others =
            self.sessions.iter().filter(|(id, s)| **id != link && s.server_id == server_id && s.established.is_some());
        let others: Vec<LinkId> = others.map(|(id, _)| *id).collect();
        if others.is_empty() {
            self.event(Event::Linked { server_id });
        }
        for other in others {
            let loser = if self.outranks(link, other) { other } else { link };
            if let Some(displaced) = self.sessions[&loser].established.filter(|_| !self.is_same_process(link, other)) {
                self.displace(server_id, displaced);
            }
            self.close(loser, "another link to the same member is kept");
        }
        if self.sessions.contains_key(&link) {
            self.send_link_states(link);
            self.send_progress(link);
            self.gossip.at_once = true;
        }
        self.linked_changed();
    }

    /// Which of two links to one member is kept, the same on both sides: that of its running
    /// process, which connected later, then the one that the smaller server id dialled, then the one
    /// that said hello later.
    fn outranks(&self, newer: LinkId, older: LinkId) -> bool {
        let (new, old) = (&self.sessions[&newer], &self.sessions[&older]);
        let by_smaller = |session: &Session| session.dialed == (self.config.server_id < session.server_id);
        match self.is_same_process(newer, older) {
            true => by_smaller(new) || !by_smaller(old),
            false => newer > older,
        }
    }

    fn is_same_process(&self, one: LinkId, other: LinkId) -> bool {
        self.sessions[&one].established == self.sessions[&other].established
    }

    pub(super) fn close(&mut self, link: LinkId, reason: &str) {
        if let Some(session) = self.sessions.remove(&link) {
            self.unlinked(&session);
        }
        self.output(Output::CloseLink(link, reason.to_owned()));
    }

    fn heartbeat(&mut self, link: LinkId, mut heartbeat: Heartbeat, now: Now) {
        self.express_by_own_base(&mut heartbeat.applied);
        self.note_base_of_heard(link, &heartbeat.applied);
        self.close_epoch_if_overtaken(&heartbeat.applied);
        if let Some(server_id) = self.sessions.get(&link).map(|session| session.server_id) {
            self.note_losses(server_id, &heartbeat.applied, now);
        }
        self.check_digest(link, &heartbeat, now);
        self.check_clock(link, &heartbeat, now);
        self.compare_clocks();
        let Some(session) = self.sessions.get_mut(&link) else { return };
        let caught_up = session.first_applied.get_or_insert_with(|| heartbeat.applied.clone());
        let is_caught_up = self.durable.applied.includes_all(caught_up);
        session.heartbeat = Some(heartbeat);
        self.replan(now);
        self.note_lags(link, now);
        self.announce_member(is_caught_up, now);
    }

    fn check_digest(&mut self, link: LinkId, heartbeat: &Heartbeat, now: Now) {
        let comparable = heartbeat.applied == self.durable.applied;
        let digests = (self.durable.digest, heartbeat.digest);
        let Some(session) = self.sessions.get_mut(&link) else { return };
        let server_id = session.server_id;
        session.equal = match digests {
            (Some(ours), Some(theirs)) if comparable => Some(ours == theirs),
            _ => None,
        };
        match (session.equal, heartbeat.digest) {
            (Some(true), _) => self.note_equal(server_id),
            (Some(false), Some(theirs)) => self.note_different(link, server_id, theirs, now),
            _ => {}
        }
    }

    fn check_clock(&mut self, link: LinkId, heartbeat: &Heartbeat, now: Now) {
        if now.mono_ms < self.paused_until_ms {
            return;
        }
        let max = self.config.timings.clock_offset_max_ms;
        let offset_ms = i128::from(heartbeat.clock_ms) - i128::from(now.wall_ms);
        let offset_ms = offset_ms.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        let Some(session) = self.sessions.get_mut(&link) else { return };
        let was_off = session.clock_offset_ms.is_some_and(|before| before.unsigned_abs() > max);
        session.clock_offset_ms = Some(offset_ms);
        let server_id = session.server_id;
        if offset_ms.unsigned_abs() > max && !was_off {
            self.event(Event::ClockOffset { server_id, offset_ms });
        }
    }

    fn refused(&mut self, link: LinkId, refuse: &Refuse, now: Now) {
        let Some(session) = self.sessions.get_mut(&link) else { return };
        let server_id = session.server_id;
        if refuse.subscription != session.subscription || !session.subscribed.remove(&refuse.origin) {
            return;
        }
        let refused = Refused {
            seq: self.frontier.heads.applied().seq(refuse.origin),
            since_ms: now.mono_ms,
            reason: refuse.reason,
        };
        session.refused.insert(refuse.origin, refused);
        self.plan.leave(refuse.origin, link);
        match refuse.reason {
            RefuseReason::Fork(dot) => {
                self.pause_forked(refuse.origin, dot, server_id, now);
            }
            RefuseReason::LogRemoved | RefuseReason::LogUnreadable => {
                self.event(Event::NotFed { origin: refuse.origin, server_id });
            }
        }
        // The next tick chooses other feeds, once for all that are refused: a member that was away for
        // thousands of epochs is refused each of them.
    }

    /// Chooses feeds anew and subscribes where the choice changed.
    pub(super) fn replan(&mut self, now: Now) {
        self.forget_void_refusals(now);
        self.pause_what_waits_for_paused(now);
        let exhausted = self.exhausted_feeds();
        exhausted.iter().for_each(|(origin, link)| self.plan.leave(*origin, *link));
        let applied = self.frontier.heads.applied();
        let mut unfed: BTreeSet<Origin> = self.paused.keys().copied().collect();
        unfed.extend(self.epoch.as_ref().map(|epoch| epoch.origin));
        let links: Vec<LinkId> = self.established().map(|(link, _)| link).collect();
        let sights: Vec<(LinkId, u32, u64, AppliedSet)> = self
            .established()
            // Whoever has no room is fed by nobody: what comes would be lost, and is asked for again.
            .filter(|_| self.full.is_none())
            .filter_map(|(link, session)| {
                let heartbeat = session.heartbeat.as_ref()?;
                let is_feedable =
                    |dot: &Dot| !session.refused.contains_key(&dot.origin) && !exhausted.contains(&(dot.origin, link));
                let feedable = heartbeat.applied.beyond(applied.base()).iter().filter(is_feedable).collect();
                Some((link, session.server_id, session.fed_ms, feedable))
            })
            .collect();
        let peers: Vec<Peer<'_>> = sights
            .iter()
            .map(|(link, server_id, fed_ms, applied)| Peer {
                link: *link,
                server_id: *server_id,
                applied,
                fed_ms: *fed_ms,
            })
            .collect();
        let stall_ms = self.config.timings.feeds.feed_stall_ms;
        let awaited: Vec<(Origin, LinkId)> = match now.mono_ms.checked_sub(stall_ms) {
            Some(since) => self
                .sessions
                .iter()
                .flat_map(|(link, s)| s.waiting.awaited(applied, since).map(move |o| (o, *link, s)))
                .filter(|(origin, _, s)| !s.refused.contains_key(origin))
                .map(|(origin, link, _)| (origin, link))
                .collect(),
            None => Vec::new(),
        };
        let sight = Sight {
            me: self.config.server_id,
            distances: &self.distances,
            applied,
            unfed: &unfed,
            peers: &peers,
            awaited: &awaited,
            now_ms: now.mono_ms,
        };
        let mut wishes = self.plan.update(&sight, &self.config.timings.feeds);
        // No feed is begun anew only to leave out what has come to its end.
        let planned: BTreeSet<Origin> = wishes.origins.values().flatten().copied().collect();
        let base = applied.base().cloned();
        let is_over = |origin: &Origin| {
            let is_closed = base.as_ref().is_some_and(|base| base.epoch(*origin).is_some());
            is_closed && !planned.contains(origin) && !unfed.contains(origin)
        };
        for link in links {
            let wanted = wishes.origins.remove(&link).unwrap_or_default();
            let is_held = |s: &Session| self.full.is_some() && s.is_fed();
            let is_other =
                |s: &Session| !wanted.is_subset(&s.subscribed) || !s.subscribed.difference(&wanted).all(is_over);
            if self.sessions.get(&link).is_some_and(|s| is_other(s) || is_held(s)) || wishes.restart.contains(&link) {
                self.subscribe(link, wanted, now);
            }
        }
    }

    fn forget_void_refusals(&mut self, now: Now) {
        let applied = self.frontier.heads.applied();
        let forget_ms = self.config.timings.feeds.feed_stall_ms.saturating_mul(REFUSED_STALLS);
        for session in self.sessions.values_mut() {
            let stands = |origin: &Origin, r: &mut Refused| {
                applied.seq(*origin) <= r.seq && now.mono_ms.saturating_sub(r.since_ms) < forget_ms
            };
            session.refused.retain(stands);
        }
    }

    /// Begins those feeds anew that would still bring what has come in another way.
    pub(super) fn subscribe_anew_to(&mut self, gained: &AppliedSet, now: Now) {
        let brings = |session: &Session| gained.iter().any(|dot| session.subscribed.contains(&dot.origin));
        let links: Vec<(LinkId, BTreeSet<Origin>)> =
            self.established().filter(|(_, s)| brings(s)).map(|(link, s)| (link, s.subscribed.clone())).collect();
        for (link, subscribed) in links {
            self.subscribe(link, subscribed, now);
        }
    }

    fn subscribe(&mut self, link: LinkId, wanted: BTreeSet<Origin>, now: Now) {
        let Some(session) = self.sessions.get_mut(&link) else { return };
        session.subscription += 1;
        session.fed_ms = now.mono_ms;
        // The new stream begins at the applied-set, so whatever waited comes again.
        session.waiting = Waiting::default();
        let owed = std::mem::take(&mut session.owed);
        let subscription = session.subscription;
        session.subscribed.clone_from(&wanted);
        let origins = wanted.into_iter().map(|origin| (origin, self.frontier.heads.head(origin))).collect();
        self.send(link, PeerMessage::Subscribe(Subscribe { subscription, origins }));
        (0..owed).for_each(|_| self.output(Output::GroupTaken(link)));
    }

    pub(super) fn feed_group(&mut self, link: LinkId, subscription: u64, write_sets: Vec<Bytes>, now: Now) {
        let Some(session) = self.sessions.get_mut(&link) else { return };
        if session.established.is_some() && session.subscription == subscription {
            if !write_sets.is_empty() {
                session.fed_ms = now.mono_ms;
            }
            for bytes in write_sets {
                if self.take(link, bytes, now) {
                    break;
                }
            }
            self.take_waiting(now);
        }
        if let Some(session) = self.sessions.get_mut(&link) {
            session.owed += 1;
        }
        self.pay_owed_groups();
    }

    /// Takes one write set off a feed: skips it, applies it, or lets it wait. Says whether the rest
    /// of the group is void.
    fn take(&mut self, link: LinkId, bytes: Bytes, now: Now) -> bool {
        let Some(session) = self.sessions.get(&link) else { return true };
        let write_set = match WriteSet::peek_dot(&bytes) {
            Ok(dot) if self.frontier.heads.applied().includes(dot) => {
                self.counters.skipped += 1;
                self.counters.returned += u64::from(dot.origin.server_id == self.config.server_id);
                return false;
            }
            Ok(dot) if seeded_bug("drop-by-origin") && dot.origin.server_id == self.config.server_id => return false,
            // Neither read nor judged: a peer has a say only on what it was asked for.
            Ok(dot) if !session.subscribed.contains(&dot.origin) || self.paused.contains_key(&dot.origin) => {
                self.counters.skipped += 1;
                return false;
            }
            Ok(dot) => match WriteSet::decode(&bytes) {
                Ok(write_set) => write_set,
                Err(error) => return self.poison(dot, error.to_string(), now),
            },
            Err(error) => {
                self.unreadable(link, &error.to_string(), now);
                return true;
            }
        };
        if write_set.dot.origin.server_id == self.config.server_id {
            let from = session.server_id;
            self.note_losses(from, &[write_set.dot].into_iter().collect(), now);
        }
        let Some(session) = self.sessions.get_mut(&link) else { return true };
        let applied = self.frontier.heads.applied();
        let dot = write_set.dot;
        let last = applied.seq(dot.origin).max(session.waiting.last_seq(dot.origin).unwrap_or(0));
        if dot.seq <= last {
            self.counters.skipped += 1;
            return false;
        }
        if dot.seq != last + 1 {
            self.close(link, "its feed has a gap");
            self.replan(now);
            return true;
        }
        if session.waiting.last_seq(dot.origin).is_none() && is_due(&write_set, applied) {
            if let Some(reason) = self.unfit_base_of(&write_set) {
                return self.poison(dot, reason, now);
            }
            let result = self.commit_remote(&write_set, &bytes, now);
            return self.is_stopped_by(result, bytes.len(), now);
        }
        session.waiting.push(WaitingWriteSet { write_set, bytes, since_ms: now.mono_ms });
        false
    }

    /// Stops an origin's feed; the others go on.
    fn poison(&mut self, dot: Dot, reason: String, now: Now) -> bool {
        self.pause_poisoned(dot, reason, now);
        self.replan(now);
        true
    }

    /// Applies whatever waits on any link and no longer has to.
    pub(super) fn take_waiting(&mut self, now: Now) {
        loop {
            let applied = self.frontier.heads.applied();
            let Some(due) =
                self.sessions.values_mut().filter(|s| !s.waiting.is_empty()).find_map(|s| s.waiting.pop_due(applied))
            else {
                return;
            };
            if let Some(reason) = self.unfit_base_of(&due.write_set) {
                self.poison(due.write_set.dot, reason, now);
                continue;
            }
            let result = self.commit_remote(&due.write_set, &due.bytes, now);
            if self.is_stopped_by(result, due.bytes.len(), now) {
                return;
            }
        }
    }

    fn pay_owed_groups(&mut self) {
        let max = self.config.limits.feed_waiting_bytes_max;
        let mut taken = Vec::new();
        for (link, session) in &mut self.sessions {
            if session.waiting.bytes() <= max {
                taken.extend(std::iter::repeat_n(*link, std::mem::take(&mut session.owed)));
            }
        }
        taken.into_iter().for_each(|link| self.output(Output::GroupTaken(link)));
    }

    /// Sends heartbeats that are due.
    pub(super) fn gossip(&mut self, now: Now) {
        let waited_ms = now.mono_ms.saturating_sub(self.gossip.sent_ms);
        let timings = &self.config.timings;
        let changed = self.gossip.changed && waited_ms >= timings.gossip_coalesce_ms;
        if self.failed.is_some() || !(self.gossip.at_once || changed || waited_ms >= timings.gossip_interval_ms) {
            return;
        }
        self.gossip = super::Gossip { sent_ms: now.mono_ms, ..Default::default() };
        let heartbeat = self.own_heartbeat(now);
        let links: Vec<(LinkId, Option<Arc<Base>>)> =
            self.established().map(|(link, session)| (link, self.base_for(session))).collect();
        for (link, base) in links {
            self.send(link, heartbeat.clone().message(base.as_ref()));
        }
    }

    fn own_heartbeat(&self, now: Now) -> Heartbeat {
        Heartbeat {
            applied: self.durable.applied.clone(),
            digest: self.durable.digest,
            clock_ms: now.wall_ms,
            paused: self.paused.keys().copied().collect(),
        }
    }

    /// Whether a member has said hello on this link and was accepted.
    pub fn is_established(&self, link: LinkId) -> bool {
        self.sessions.get(&link).is_some_and(|session| session.established.is_some())
    }

    pub(super) fn established(&self) -> impl Iterator<Item = (LinkId, &Session)> {
        self.sessions.iter().filter(|(_, s)| s.established.is_some()).map(|(link, s)| (*link, s))
    }

    fn is_linked(&self, server_id: u32) -> bool {
        self.established().any(|(_, s)| s.server_id == server_id)
    }
}
