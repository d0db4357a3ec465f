//! Origins whose feed is stopped: why, since when, and how an operator lets them go on.
//!
//! What is applied of such an origin stays and is fed on to others; it is only not taken any further
//! here. Others are told by heartbeats, and go round this node.

use std::collections::{BTreeMap, BTreeSet};

use polyarch_crdt::{Dot, Origin};

use super::{LinkId, Now, Replica};
use crate::client::Refusal;
use crate::condition::{ForkMember, ForkSide, PauseCause, PausedView};
use crate::event::Event;
use crate::storage::Storage;

/// A stopped feed.
#[derive(Debug)]
pub(super) struct Pause {
    cause: Cause,
    /// Unix milliseconds.
    since_ms: u64,
}

#[derive(Debug)]
enum Cause {
    /// `others` said that they hold another history.
    Fork {
        dot: Dot,
        others: BTreeSet<u32>,
    },
    Poison {
        dot: Dot,
        reason: String,
    },
    Waits {
        on: Origin,
    },
}

impl<S: Storage> Replica<S> {
    /// A member holds another history of an origin.
    pub(super) fn pause_forked(&mut self, origin: Origin, dot: Dot, server_id: u32, now: Now) {
        match self.paused.get_mut(&origin) {
            Some(Pause { cause: Cause::Fork { others, .. }, .. }) => {
                others.insert(server_id);
            }
            _ => self.pause(origin, Cause::Fork { dot, others: [server_id].into() }, now),
        }
        self.event(Event::Fork { dot, server_id });
    }

    /// A write set cannot be read here.
    pub(super) fn pause_poisoned(&mut self, dot: Dot, reason: String, now: Now) {
        self.pause(dot.origin, Cause::Poison { dot, reason: reason.clone() }, now);
        self.event(Event::Poisoned { origin: dot.origin, reason });
    }

    fn pause(&mut self, origin: Origin, cause: Cause, now: Now) {
        self.paused.insert(origin, Pause { cause, since_ms: now.wall_ms });
        self.gossip.changed = true;
    }

    /// What depends on a stopped origin would wait for ever, and use up the room that the others need.
    pub(super) fn pause_what_waits_for_paused(&mut self, now: Now) {
        self.lift_void_pauses();
        if self.paused.is_empty() {
            return;
        }
        let applied = self.frontier.heads.applied();
        let is_paused = |origin: Origin| self.paused.contains_key(&origin);
        let waiting = self.sessions.values().flat_map(|s| s.waiting.behind(is_paused, applied));
        let behind: BTreeMap<Origin, Origin> = waiting.filter(|(origin, _)| !is_paused(*origin)).collect();
        for (origin, on) in behind {
            self.pause(origin, Cause::Waits { on }, now);
            let reason = format!("it depends on {on}, whose feed is stopped");
            self.event(Event::Poisoned { origin, reason });
        }
    }

    /// Lifts pauses whose cause is gone: what could not be read has come another way, or what was
    /// waited for is stopped no more.
    fn lift_void_pauses(&mut self) {
        let applied = self.frontier.heads.applied();
        loop {
            let is_void = |pause: &Pause| match &pause.cause {
                Cause::Fork { .. } => false,
                Cause::Poison { dot, .. } => applied.includes(*dot),
                Cause::Waits { on } => !self.paused.contains_key(on),
            };
            let void: Vec<Origin> = self.paused.iter().filter(|(_, p)| is_void(p)).map(|(origin, _)| *origin).collect();
            if void.is_empty() {
                return;
            }
            self.gossip.changed = true;
            void.iter().for_each(|origin| drop(self.paused.remove(origin)));
        }
    }

    /// Lets the feed of an origin go on from where it stood, or with `None` all that are stopped.
    /// One that waits for another goes on with that other. Says which do.
    pub(super) fn retry_origin(&mut self, origin: Option<Origin>, now: Now) -> Result<Vec<Origin>, Refusal> {
        let before: Vec<Origin> = self.paused.keys().copied().collect();
        match origin {
            Some(origin) if !self.paused.contains_key(&origin) => return Err(Refusal::NotPaused(origin)),
            Some(origin) => drop(self.paused.remove(&self.awaited_at_last(origin))),
            None => self.paused.clear(),
        }
        self.lift_void_pauses();
        let lifted: Vec<Origin> = before.into_iter().filter(|origin| !self.paused.contains_key(origin)).collect();
        for session in self.sessions.values_mut() {
            session.refused.retain(|origin, _| !lifted.contains(origin));
        }
        if !lifted.is_empty() {
            self.gossip.changed = true;
            self.event(Event::FeedsRetried { origins: lifted.clone() });
            self.replan(now);
        }
        Ok(lifted)
    }

    /// What a stopped origin waits for in the end; itself if it waits for none.
    fn awaited_at_last(&self, mut origin: Origin) -> Origin {
        // A pause waits for an older one, so this ends; it is bounded all the same.
        for _ in 0..self.paused.len() {
            match self.paused.get(&origin).map(|pause| &pause.cause) {
                Some(Cause::Waits { on }) => origin = *on,
                _ => break,
            }
        }
        origin
    }

    /// Peers that have stopped an origin and have no more of it than this node: not to be fed by them.
    pub(super) fn exhausted_feeds(&self) -> Vec<(Origin, LinkId)> {
        let applied = self.frontier.heads.applied();
        let of = |(link, heartbeat): (LinkId, &crate::peer::Heartbeat)| -> Vec<(Origin, LinkId)> {
            let stopped = heartbeat.paused.iter().filter(|o| heartbeat.applied.seq(**o) <= applied.seq(**o));
            stopped.map(|origin| (*origin, link)).collect()
        };
        self.established().filter_map(|(link, s)| Some((link, s.heartbeat.as_ref()?))).flat_map(of).collect()
    }

    pub(super) fn paused_views(&self) -> Vec<PausedView> {
        let (known, held) = (self.known_of_others(), self.frontier.heads.applied());
        let view = |(origin, pause): (&Origin, &Pause)| PausedView {
            origin: *origin,
            cause: self.cause_view(*origin, &pause.cause),
            since_ms: pause.since_ms,
            applied: held.seq(*origin),
            behind: known.seq(*origin).saturating_sub(held.seq(*origin)),
        };
        self.paused.iter().map(view).collect()
    }

    fn cause_view(&self, origin: Origin, cause: &Cause) -> PauseCause {
        match cause {
            Cause::Fork { dot, others } => PauseCause::Fork { dot: *dot, members: self.fork_members(origin, others) },
            Cause::Poison { dot, reason } => PauseCause::Poison { dot: *dot, reason: reason.clone() },
            Cause::Waits { on } => PauseCause::Waits { on: *on },
        }
    }

    fn fork_members(&self, origin: Origin, others: &BTreeSet<u32>) -> Vec<ForkMember> {
        let stopped = self.established().filter_map(|(_, session)| {
            let heartbeat = session.heartbeat.as_ref()?;
            heartbeat.paused.contains(&origin).then_some((session.server_id, ForkSide::Stopped))
        });
        let mut sides: BTreeMap<u32, ForkSide> = stopped.collect();
        sides.extend(others.iter().map(|server_id| (*server_id, ForkSide::Other)));
        sides.into_iter().map(|(server_id, side)| ForkMember { server_id, side }).collect()
    }
}
