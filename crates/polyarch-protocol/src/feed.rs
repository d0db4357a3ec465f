//! The sending side of a feed.
//!
//! A [`Feed`] walks one node's log from the last mark that the receiver is known to include and
//! picks the write sets it subscribed to. Catch-up and live feed are the same walk at different
//! places. It runs beside the replica, reads only what is durable, and remembers nothing but its
//! place, so a slow receiver costs no memory.
//!
//! Where the receiver's history of an origin ends, both must have the same chain hash. The feed
//! knows its own from the mark and the frames it skips, compares, and refuses a forked origin.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::{Dot, Origin};

use crate::chain::{ChainHead, ChainHeads};
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
        let wanted = subscribe.origins.into_iter().map(|(origin, theirs)| {
            (
                origin,
                Wanted::Skipping {
                    theirs,
                    ours: ChainHead::NONE,
                },
            )
        });
        Self {
            subscription: subscribe.subscription,
            wanted: wanted.collect(),
            next: None,
        }
    }

    /// Reads about `bytes_max` of the log and says what to do.
    pub fn poll(&mut self, log: &impl LogSource, bytes_max: usize) -> FeedStep {
        let Some(from) = self.next.or_else(|| self.begin(log)) else {
            return self.refuse_all(RefuseReason::LogRemoved);
        };
        if self.wanted.is_empty() {
            return FeedStep::Idle;
        }
        let batch = match log.read(from, bytes_max) {
            Ok(batch) => batch,
            Err(LogReadError::Removed(_)) => {
                // Fell behind the log's beginning while being served: begin again if a mark still serves.
                self.rewind();
                return match self.begin(log) {
                    Some(_) => FeedStep::Again,
                    None => self.refuse_all(RefuseReason::LogRemoved),
                };
            }
            Err(_) => return self.refuse_all(RefuseReason::LogUnreadable),
        };
        let at_end = batch.next == from;
        self.next = Some(batch.next);
        self.pick(batch.write_sets, at_end)
    }

    fn begin(&mut self, log: &impl LogSource) -> Option<LogPosition> {
        let mark = log.last_mark(&|heads: &ChainHeads| {
            self.wanted.iter().all(|(origin, wanted)| match wanted {
                Wanted::Skipping { theirs, .. } => heads.head(*origin).seq <= theirs.seq,
                Wanted::Serving { next_seq } => heads.head(*origin).seq < *next_seq,
            })
        })?;
        for (origin, wanted) in &mut self.wanted {
            if let Wanted::Skipping { ours, .. } = wanted {
                *ours = mark.heads.head(*origin);
            }
        }
        self.next = Some(mark.position);
        self.next
    }

    fn rewind(&mut self) {
        self.next = None;
    }

    fn pick(&mut self, write_sets: Vec<Bytes>, at_end: bool) -> FeedStep {
        let mut group = FeedGroup {
            subscription: self.subscription,
            write_sets: Vec::new(),
        };
        let mut refused = Vec::new();
        for bytes in write_sets {
            let Ok(dot) = WriteSet::peek_dot(&bytes) else {
                return self.refuse_all(RefuseReason::LogUnreadable);
            };
            let Some(wanted) = self.wanted.get_mut(&dot.origin) else { continue };
            match wanted.take(dot, &bytes) {
                Ok(true) => group.write_sets.push(bytes),
                Ok(false) => {}
                Err(reason) => {
                    self.wanted.remove(&dot.origin);
                    refused.push(Refuse {
                        subscription: self.subscription,
                        origin: dot.origin,
                        reason,
                    });
                }
            }
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
        let subscription = self.subscription;
        let origins = std::mem::take(&mut self.wanted);
        // An empty feed stays idle from here on, until the receiver subscribes anew.
        self.next.get_or_insert_default();
        FeedStep::Refused(
            origins
                .into_keys()
                .map(|origin| Refuse {
                    subscription,
                    origin,
                    reason,
                })
                .collect(),
        )
    }
}

impl Wanted {
    /// Whether the write set is due now. It is skipped while the receiver has it.
    fn take(&mut self, dot: Dot, bytes: &[u8]) -> Result<bool, RefuseReason> {
        if let Self::Skipping { theirs, ours } = self {
            if dot.seq <= theirs.seq {
                if dot.seq == ours.seq + 1 {
                    *ours = ChainHead {
                        seq: dot.seq,
                        hash: ours.hash.extended(bytes),
                    };
                }
                return Ok(false);
            }
            if ours.seq == theirs.seq && ours.hash != theirs.hash {
                return Err(RefuseReason::Fork(Dot::new(dot.origin, theirs.seq)));
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
            // The log has a gap where a snapshot was joined.
            std::cmp::Ordering::Greater => Err(RefuseReason::LogRemoved),
        }
    }
}
