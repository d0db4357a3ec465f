//! The sending side of a feed.
//!
//! A [`Feed`] walks one node's log from the last mark that the receiver is known to include and
//! picks the write sets it subscribed to. Catch-up and live feed are the same walk at different
//! places. It runs beside the replica, reads only what is durable, and remembers nothing but its
//! place, so a slow receiver costs no memory.
//!
//! Where the receiver's history of an origin ends, both must have the same chain hash. The feed
//! knows its own from the mark and the frames it skips, compares, and refuses a forked origin. What
//! it refuses is one origin's matter: the others go on.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::{Dot, Origin, seeded_bug};

use crate::chain::{ChainHead, ChainHeads};
use crate::limits::wire;
use crate::peer::{FeedGroup, Refuse, RefuseReason, Subscribe};
use crate::storage::{LogPosition, LogReadError, LogSource};
use crate::write_set::WriteSet;

/// Serves one subscription from a log.
#[derive(Debug)]
pub struct Feed {
    subscription: u64,
    wanted: BTreeMap<Origin, Wanted>,
    next: Option<LogPosition>,
}

#[derive(Debug)]
enum Wanted {
    /// The receiver's head, and ours at the place in the log where we are.
    Skipping { theirs: ChainHead, ours: ChainHead },
    /// The receiver's history is ours up to here: this seq is due next.
    Serving { next_seq: u64 },
}

/// What a feed does next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum FeedStep {
    /// Send this.
    Group(FeedGroup),
    /// Tell the receiver that these origins are not fed; the others go on.
    Refused(Vec<Refuse>),
    /// What was read held nothing wanted: poll again.
    Again,
    /// All that is durable was sent: poll again when more is.
    Idle,
}

impl Feed {
    /// A feed that answers `subscribe`.
    pub fn new(subscribe: Subscribe) -> Self {
        let wanted = subscribe
            .origins
            .into_iter()
            .map(|(origin, theirs)| (origin, Wanted::Skipping { theirs, ours: ChainHead::NONE }));
        Self { subscription: subscribe.subscription, wanted: wanted.collect(), next: None }
    }

    /// Reads about `bytes_max` of the log and says what to do.
    pub fn poll(&mut self, log: &impl LogSource, bytes_max: usize) -> FeedStep {
        if self.wanted.is_empty() {
            return FeedStep::Idle;
        }
        let Some(from) = self.next.or_else(|| self.begin(log)) else {
            return self.refuse_removed(log);
        };
        let forked = self.refuse_forked();
        if !forked.is_empty() {
            return FeedStep::Refused(forked);
        }
        let batch = match log.read(from, bytes_max.min(wire::FEED_GROUP_BYTES_MAX)) {
            Ok(batch) => batch,
            Err(LogReadError::Removed(_)) => {
                // Fell behind the log's beginning while being served: begin again where a mark still serves.
                self.next = None;
                return FeedStep::Again;
            }
            Err(_) => return self.refuse_all(RefuseReason::LogUnreadable),
        };
        let at_end = batch.next == from;
        self.next = Some(batch.next);
        self.pick(batch.write_sets, batch.joined.as_deref(), at_end)
    }

    fn begin(&mut self, log: &impl LogSource) -> Option<LogPosition> {
        let reached =
            |heads: &ChainHeads| self.wanted.iter().all(|(origin, wanted)| wanted.is_reached(heads.head(*origin)));
        let mark = log.last_mark(&reached)?;
        for (origin, wanted) in &mut self.wanted {
            if let Wanted::Skipping { ours, .. } = wanted {
                *ours = mark.heads.head(*origin);
            }
        }
        self.next = Some(mark.position);
        self.next
    }

    /// Refuses the origins for which the log no longer reaches back far enough.
    fn refuse_removed(&mut self, log: &impl LogSource) -> FeedStep {
        let is_removed = |origin: Origin, wanted: &Wanted| {
            log.last_mark(&|heads: &ChainHeads| wanted.is_reached(heads.head(origin))).is_none()
        };
        let removed: Vec<Origin> = self.wanted.iter().filter(|(o, w)| is_removed(**o, w)).map(|(o, _)| *o).collect();
        match removed.is_empty() {
            // It reaches back far enough for each and not for all: its marks are not in order.
            true => self.refuse_all(RefuseReason::LogUnreadable),
            false => FeedStep::Refused(
                removed.into_iter().map(|origin| self.refuse(origin, RefuseReason::LogRemoved)).collect(),
            ),
        }
    }

    /// Refuses the origins whose history here ends, so far, with another hash than the receiver's.
    fn refuse_forked(&mut self) -> Vec<Refuse> {
        let forked: Vec<(Origin, RefuseReason)> =
            self.wanted.iter().filter_map(|(o, w)| Some((*o, w.fork(*o)?))).collect();
        forked.into_iter().map(|(origin, reason)| self.refuse(origin, reason)).collect()
    }

    fn refuse(&mut self, origin: Origin, reason: RefuseReason) -> Refuse {
        self.wanted.remove(&origin);
        Refuse { subscription: self.subscription, origin, reason }
    }

    fn pick(&mut self, write_sets: Vec<Bytes>, joined: Option<&ChainHeads>, at_end: bool) -> FeedStep {
        let mut group = FeedGroup { subscription: self.subscription, write_sets: Vec::new() };
        let mut refused = Vec::new();
        for bytes in write_sets {
            let Ok(dot) = WriteSet::peek_dot(&bytes) else {
                return self.refuse_all(RefuseReason::LogUnreadable);
            };
            let Some(wanted) = self.wanted.get_mut(&dot.origin) else { continue };
            match wanted.take(dot, &bytes) {
                Ok(true) => group.write_sets.push(bytes),
                Ok(false) => {}
                Err(reason) => refused.push(self.refuse(dot.origin, reason)),
            }
        }
        for origin in
            joined.filter(|_| !seeded_bug("feeds-across-a-join")).map_or_else(Vec::new, |heads| self.fallen_into(heads))
        {
            refused.push(self.refuse(origin, RefuseReason::LogRemoved));
        }
        match (refused.is_empty(), group.write_sets.is_empty(), at_end) {
            (false, _, _) => {
                // What was picked beside the refusal is picked again: nothing may be lost between the two.
                self.unpick(&group);
                FeedStep::Refused(refused)
            }
            (true, false, _) => FeedStep::Group(group),
            (true, true, true) => FeedStep::Idle,
            (true, true, false) => FeedStep::Again,
        }
    }

    /// Origins of which something is still due though the log goes on with `heads`: a snapshot that was
    /// joined brought it, and the log never has it.
    fn fallen_into(&self, heads: &ChainHeads) -> Vec<Origin> {
        let is_due = |origin: Origin, wanted: &Wanted| wanted.due() <= heads.head(origin).seq;
        self.wanted.iter().filter(|(origin, wanted)| is_due(**origin, wanted)).map(|(origin, _)| *origin).collect()
    }

    /// Forgets that a group was picked, so that the walk begins again before it.
    fn unpick(&mut self, group: &FeedGroup) {
        for bytes in &group.write_sets {
            let Ok(dot) = WriteSet::peek_dot(bytes) else { continue };
            if let Some(Wanted::Serving { next_seq }) = self.wanted.get_mut(&dot.origin) {
                *next_seq = (*next_seq).min(dot.seq);
            }
        }
        self.next = None;
    }

    fn refuse_all(&mut self, reason: RefuseReason) -> FeedStep {
        // An empty feed stays idle from here on, until the receiver subscribes anew.
        let origins: Vec<Origin> = self.wanted.keys().copied().collect();
        FeedStep::Refused(origins.into_iter().map(|origin| self.refuse(origin, reason)).collect())
    }
}

impl Wanted {
    /// Whether nothing that is due lies before the point where our chain has this head.
    fn is_reached(&self, head: ChainHead) -> bool {
        match self {
            Self::Skipping { theirs, .. } => head.seq <= theirs.seq,
            Self::Serving { next_seq } => head.seq < *next_seq,
        }
    }

    /// The next seq that the receiver lacks.
    fn due(&self) -> u64 {
        match self {
            Self::Skipping { theirs, .. } => theirs.seq.saturating_add(1),
            Self::Serving { next_seq } => *next_seq,
        }
    }

    /// Whether the histories differ, once ours is known as far as theirs goes.
    fn fork(&self, origin: Origin) -> Option<RefuseReason> {
        match self {
            Self::Skipping { theirs, ours } if ours.seq == theirs.seq && theirs.seq > 0 && ours.hash != theirs.hash => {
                Some(RefuseReason::Fork(Dot::new(origin, theirs.seq)))
            }
            _ => None,
        }
    }

    /// Whether the write set is due now. It is skipped while the receiver has it.
    fn take(&mut self, dot: Dot, bytes: &[u8]) -> Result<bool, RefuseReason> {
        if let Self::Skipping { theirs, ours } = self {
            if dot.seq <= theirs.seq {
                if dot.seq == ours.seq + 1 {
                    *ours = ChainHead { seq: dot.seq, hash: ours.hash.extended(bytes) };
                }
                return self.fork(dot.origin).map_or(Ok(false), Err);
            }
            *self = Self::Serving { next_seq: theirs.seq + 1 };
        }
        let Self::Serving { next_seq } = self else { return Ok(false) };
        match dot.seq.cmp(next_seq) {
            std::cmp::Ordering::Less => Ok(false),
            std::cmp::Ordering::Equal => {
                *next_seq += 1;
                Ok(true)
            }
            // The log has a gap.
            std::cmp::Ordering::Greater => Err(RefuseReason::LogRemoved),
        }
    }
}
