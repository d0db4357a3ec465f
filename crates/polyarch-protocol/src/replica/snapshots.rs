//! When a snapshot is fetched, from whom, and what becomes of it.
//!
//! The replica decides and the driver fetches: what comes in goes into files, and the replica hears
//! of it again when all of it is joined with what this node has ([`Replica::adopt`]).

use polyarch_crdt::{AppliedSet, Origin};

use super::sessions::Session;
use super::views::missing;
use super::{LinkId, Now, Output, Replica};
use crate::event::Event;
use crate::frontier::Frontier;
use crate::keyspace::KeyspaceId;
use crate::peer::PeerVersion;
use crate::storage::{Storage, StorageError};

/// After a fetch that failed another is begun, at the earliest, so many
/// [`FeedTimings::feed_stall_ms`](crate::FeedTimings::feed_stall_ms) later; twice as many after each
/// that follows, up to the second number.
const RETRY_STALLS: u64 = 2;
const RETRY_STALLS_MAX: u64 = 8;
/// How often in a row one donor is asked to go on before another is.
const SAME_DONOR_MAX: u32 = 3;

/// Of a snapshot that is fetched already.
const NO_LINK: LinkId = LinkId(0);

/// What this node does about write sets that no peer's log still has.
#[derive(Debug, Default)]
pub(super) struct Snapshots {
    /// Since when there have been such.
    unfed_since_ms: Option<u64>,
    /// The member that a snapshot is being fetched from, and its link.
    fetching: Option<(LinkId, u32)>,
    /// Whom the last one that failed was fetched from, which may still hold what it pinned, and how
    /// many failed since anything was joined.
    last_donor: Option<u32>,
    failures: u32,
    not_before_ms: u64,
}

impl<S: Storage> Replica<S> {
    /// The member that a snapshot is being fetched from.
    pub fn fetches_snapshot_from(&self) -> Option<u32> {
        self.snapshots.fetching.map(|(_, server_id)| server_id)
    }

    /// Asks for a snapshot once there are write sets that others have and no link has fed for a while.
    pub(super) fn fetch_when_unfed(&mut self, now: Now) {
        // What comes in would take the room that the log and the checkpoints need.
        let Some(donor) = self.donor().filter(|_| self.failed.is_none() && self.full.is_none()) else {
            self.snapshots.unfed_since_ms = None;
            return;
        };
        let since_ms = *self.snapshots.unfed_since_ms.get_or_insert(now.mono_ms);
        // A member that has the log may be about to be linked.
        let is_patient = now.mono_ms.saturating_sub(since_ms) < self.config.timings.feeds.feed_stall_ms;
        if is_patient || self.snapshots.fetching.is_some() || now.mono_ms < self.snapshots.not_before_ms {
            return;
        }
        let server_id = self.sessions[&donor].server_id;
        self.snapshots.fetching = Some((donor, server_id));
        self.event(Event::SnapshotBegun { from: server_id });
        self.output(Output::FetchSnapshot(donor));
    }

    /// Whose snapshot to fetch: of those whose log no longer has what others cannot feed either, the
    /// one that was asked before, as long as that is worth it, or else the one that has most.
    fn donor(&self) -> Option<LinkId> {
        let unfed = self.unfed_origins();
        let applied = self.frontier.heads.applied();
        let candidates = self.established().filter(|(_, session)| {
            let cannot_feed = |origin: &Origin| session.lacks_log_of(*origin) && session.has_more_of(*origin, applied);
            session.version >= PeerVersion::V2 && unfed.iter().any(cannot_feed) && self.shares_history(session)
        });
        let rank = |session: &Session| {
            let has = session.heartbeat.as_ref().map_or(0, |heartbeat| missing(applied, &heartbeat.applied));
            let is_last = self.snapshots.last_donor == Some(session.server_id);
            let goes_on = !self.snapshots.failures.is_multiple_of(SAME_DONOR_MAX);
            (is_last == goes_on, has)
        };
        candidates.max_by_key(|(_, session)| rank(session)).map(|(link, _)| link)
    }

    /// Whether nothing speaks for another history of an origin there than here: a join would mix the
    /// two, and nobody could tell them apart again. Which side's feed of it is stopped says nothing of
    /// who holds which, so whoever has any of it is passed over.
    fn shares_history(&self, session: &Session) -> bool {
        let (ours, Some(heard)) = (self.frontier.heads.applied(), &session.heartbeat) else { return false };
        let mut stopped = self.paused.keys().chain(&heard.paused);
        !stopped.any(|origin| ours.seq(*origin) > 0 && heard.applied.seq(*origin) > 0)
    }

    /// Origins of which linked members have more than this node, none of which can feed it.
    fn unfed_origins(&self) -> Vec<Origin> {
        let applied = self.frontier.heads.applied();
        let mut known = AppliedSet::new();
        for heartbeat in self.established().filter_map(|(_, session)| session.heartbeat.as_ref()) {
            known.join(&heartbeat.applied.since(applied));
        }
        let own = self.epoch.as_ref().map(|epoch| epoch.origin);
        let lacking = known.iter().map(|dot| dot.origin).filter(|o| Some(*o) != own && !self.paused.contains_key(o));
        let fed =
            |origin: Origin| self.established().any(|(_, s)| s.has_more_of(origin, applied) && !s.refuses(origin));
        lacking.filter(|origin| !fed(*origin)).collect()
    }

    /// This node begins or ends to send a snapshot.
    pub(super) fn snapshot_sent(&mut self, link: LinkId, begins: bool) {
        let Some(session) = self.sessions.get_mut(&link) else { return };
        session.snapshots_sent = match begins {
            true => session.snapshots_sent.saturating_add(1),
            false => session.snapshots_sent.saturating_sub(1),
        };
    }

    /// Whether a snapshot is on its way on a link. It is then kept, planned or not: whoever fetches may
    /// lack the very record that plans it, and would lose its fetch again and again.
    pub(super) fn carries_snapshot(&self, link: LinkId) -> bool {
        let is_fetching = self.snapshots.fetching.is_some_and(|(on, _)| on == link);
        is_fetching || self.sessions.get(&link).is_some_and(|session| session.snapshots_sent > 0)
    }

    /// An earlier process fetched a snapshot whole: no other is fetched until that is joined.
    pub(super) fn snapshot_held(&mut self, from: u32) {
        self.snapshots.fetching = Some((NO_LINK, from));
    }

    /// A fetch has ended without a snapshot to join: its link was lost, the donor gave up, or the disk
    /// did not take it.
    pub(super) fn fetch_failed(&mut self, reason: String, now: Now) {
        let Some((_, server_id)) = self.snapshots.fetching.take() else { return };
        self.snapshots.last_donor = Some(server_id);
        let doubled = RETRY_STALLS << self.snapshots.failures.min(8);
        self.snapshots.failures += 1;
        let retry_ms = self.config.timings.feeds.feed_stall_ms.saturating_mul(doubled.min(RETRY_STALLS_MAX));
        self.snapshots.not_before_ms = now.mono_ms.saturating_add(retry_ms);
        self.event(Event::SnapshotFailed { from: server_id, reason, failures: self.snapshots.failures });
    }

    /// Goes on from `frontier`, which a snapshot that was joined with all of this node's records adds
    /// up to. All that was appended is durable, and so is what was joined.
    ///
    /// # Errors
    /// When the system keyspace cannot be read.
    pub fn adopt(&mut self, frontier: Frontier, now: Now) -> Result<(), StorageError> {
        debug_assert!(self.durable.staged.is_empty(), "nothing is staged when a snapshot is adopted");
        let from = self.snapshots.fetching.take().map(|(_, server_id)| server_id);
        self.snapshots = Snapshots::default();
        let gained = frontier.heads.applied().since(self.frontier.heads.applied());
        self.counters.received += missing(self.frontier.heads.applied(), frontier.heads.applied());
        self.close_epoch_if_overtaken(frontier.heads.applied());
        if let Some(from) = from {
            self.note_losses(from, frontier.heads.applied(), now);
        }
        self.frontier = frontier;
        self.durable.position = self.storage.staged_end();
        self.durable.applied = self.frontier.heads.applied().clone();
        self.durable.digest = Some(self.frontier.digest.total());
        self.clock = super::recovered_clock(&self.frontier, self.clock.last(), &self.config, now);
        if let Some(epoch) = &mut self.epoch {
            gained.iter().for_each(|dot| epoch.note_applied(dot));
        }
        let before = self.catalog.clone();
        self.catalog = std::sync::Arc::new(before.reloaded(&self.storage.keyspace_records(KeyspaceId::SYSTEM)?));
        self.catalog_before.get_or_insert(before);
        self.follow_bases();
        self.event(Event::SnapshotJoined { from, origins: gained.len() });
        self.note_regained(now);
        self.gossip.at_once = true;
        // Those that are fed what was gained hear that it is not in the log.
        self.wake_feeds(&gained.iter().map(|dot| dot.origin).collect());
        self.subscribe_anew_to(&gained, now);
        self.take_waiting(now);
        self.replan(now);
        self.follow_catalog();
        self.plan_links(now);
        self.gossip(now);
        debug_assert_eq!(self.validate(), Ok(()));
        Ok(())
    }
}
