//! Snapshots between the three nodes, in steps between which anything may happen.

use bytes::Bytes;
use polyarch_protocol::{Input, SnapshotBegin, SnapshotId, SnapshotPart, SnapshotSource, SnapshotStep};
use polyarch_store::{DonorRecords, Pin};

use super::NODES;
use super::machine::Machine;
use super::truth::{Writes, names, violation};
use crate::disk::{SimIncoming, SimJoined};
use crate::invariants::{Checked, Violation};
use crate::world::CLUSTER;

/// How far a node is with a snapshot.
pub(super) enum Fetch {
    No,
    /// The donor's walk is on its way.
    Walking(Box<Walking>),
    /// It is whole in its file, and was found there by a new process.
    Whole {
        from: usize,
        receiver: Box<SimIncoming>,
        end: Writes,
    },
    /// It is joined, and not adopted.
    Merged {
        from: usize,
        joined: Box<SimJoined>,
        end: Writes,
    },
}

pub(super) struct Walking {
    from: usize,
    pin: Pin,
    source: SnapshotSource,
    receiver: SimIncoming,
}

impl Fetch {
    /// Whose snapshot it is.
    pub(super) fn donor(&self) -> Option<usize> {
        match self {
            Self::No => None,
            Self::Walking(walking) => Some(walking.from),
            Self::Whole { from, .. } | Self::Merged { from, .. } => Some(*from),
        }
    }

    fn needs_donor(&self) -> bool {
        matches!(self, Self::Walking(_))
    }
}

impl Machine<'_> {
    /// Whether a snapshot is joined here, and not adopted.
    pub(super) fn is_merged(&self, at: usize) -> bool {
        matches!(self.fetches[at], Fetch::Merged { .. })
    }

    /// Begins a walk on the donor, and lets it come past so many keys.
    pub(super) fn begin_fetch(&mut self, to: usize, from: usize, keys: usize) -> Checked {
        let number = u128::from(self.nodes[to].boot) << 32 | (to as u128) << 8 | from as u128;
        let process = self.process(from);
        let frontier = process.replica.frontier().clone();
        let pin = process.replica.storage_mut().store.pin(&frontier);
        let pin = pin.ok_or_else(|| violation(names::JOINED, from, "gives no pin with all synced"))?;
        let start = pin.start().outline();
        let begin = SnapshotBegin { id: SnapshotId(number), cluster_id: CLUSTER, donor: from as u32 + 1, start };
        let source = SnapshotSource::new(begin.clone(), pin.position()).with_part_bytes(1);
        let files = self.process(to).replica.storage().store.snapshot_files().clone();
        let first = SnapshotPart::Begin(begin).encode();
        let receiver = SimIncoming::begin(files, &first).map_err(|error| violation(names::JOINED, to, error))?;
        let mut walking = Walking { from, pin, source, receiver };
        // Its first part has just been taken.
        let _first = self.walk(&mut walking)?;
        let last = keys.checked_sub(1).map(|key| self.start.behind[key].clone());
        while let Some(last) = &last {
            let Some(frame) = self.walk(&mut walking)? else { break };
            push(to, &mut walking.receiver, &frame)?;
            let part = SnapshotPart::decode(&frame).map_err(|error| violation(names::JOINED, from, error))?;
            if matches!(&part, SnapshotPart::Records { records, cut: false } if records.iter().any(|r| r.key == *last))
            {
                break;
            }
        }
        self.fetches[to] = Fetch::Walking(Box::new(walking));
        Ok(())
    }

    /// The next part of a walk; `None` behind the last.
    fn walk(&mut self, walking: &mut Walking) -> Result<Option<Bytes>, Violation> {
        if !walking.pin.is_valid() {
            return Err(violation(names::JOINED, walking.from, "has let go of what a walk needs"));
        }
        let process = self.process(walking.from);
        let published_end = process.published_end;
        let records = DonorRecords { records: &process.reader, log: &process.log, published_end: || published_end };
        match walking.source.poll(&records) {
            SnapshotStep::Part(frame) => Ok(Some(frame.into())),
            SnapshotStep::Done => Ok(None),
            other => Err(violation(names::JOINED, walking.from, format!("does not go on with its walk: {other:?}"))),
        }
    }

    /// Fetches the rest, if need be, and joins it.
    pub(super) fn merge(&mut self, to: usize) -> Checked {
        let (from, receiver, end) = match std::mem::replace(&mut self.fetches[to], Fetch::No) {
            Fetch::Walking(mut walking) => {
                let (from, end) = (walking.from, self.truth.nodes[walking.from].durable);
                while let Some(frame) = self.walk(&mut walking)? {
                    push(to, &mut walking.receiver, &frame)?;
                }
                (from, walking.receiver, end)
            }
            Fetch::Whole { from, receiver, end } => (from, *receiver, end),
            other => {
                self.fetches[to] = other;
                return Ok(());
            }
        };
        let process = self.process(to);
        let frontier = process.replica.frontier().clone();
        let job = process.replica.storage_mut().store.begin_join(receiver, &frontier);
        let job = job.map_err(|_| violation(names::JOINED, to, "does not begin to join what is whole"))?;
        let joined = job.run(|_| true).map_err(|error| violation(names::JOINED, to, error))?;
        self.fetches[to] = Fetch::Merged { from, joined: Box::new(joined), end };
        Ok(())
    }

    /// Joins a snapshot and adopts it.
    pub(super) fn join(&mut self, to: usize) -> Checked {
        self.merge(to)?;
        let Fetch::Merged { joined, end, .. } = std::mem::replace(&mut self.fetches[to], Fetch::No) else {
            return Ok(());
        };
        let now_us = self.clock_us(to);
        let now = self.nodes[to].now(now_us);
        let process = self.process(to);
        let frontier = process.replica.frontier().clone();
        let adopted = process.replica.storage_mut().store.adopt(*joined, &frontier);
        let adopted = adopted.map_err(|error| violation(names::JOINED, to, error))?;
        process.replica.adopt(adopted, now).map_err(|error| violation(names::JOINED, to, error))?;
        let held = &mut self.truth.nodes[to];
        held.staged |= end;
        held.durable |= end;
        let process = self.process(to);
        let store = &mut process.replica.storage_mut().store;
        store.publish_staged();
        let (durable_end, retired) = (store.durable_end(), store.take_retired());
        process.durable_end = durable_end;
        process.published_end = durable_end;
        drop(retired);
        self.note_appended(to)?;
        self.end_walks_of(to);
        self.checkpoints_due[to] = 1;
        self.perform(to)
    }

    /// A process ends, and with it what it fetches and sends.
    pub(super) fn end_fetches(&mut self, at: usize) {
        self.fetches[at] = match std::mem::replace(&mut self.fetches[at], Fetch::No) {
            // What the file has is found again.
            Fetch::Merged { from, end, .. } | Fetch::Whole { from, end, .. } => {
                self.left[at] = Some((from, end));
                Fetch::No
            }
            _ => Fetch::No,
        };
        self.end_walks_of(at);
    }

    fn end_walks_of(&mut self, donor: usize) {
        for to in 0..NODES {
            if self.fetches[to].needs_donor() && self.fetches[to].donor() == Some(donor) {
                self.fetches[to] = Fetch::No;
            }
        }
    }

    /// A new process looks for a snapshot that the one before had fetched whole.
    pub(super) fn find_fetched(&mut self, at: usize) -> Checked {
        let left = self.left[at].take();
        let (storage, frontier) = self.process(at).replica.storage_and_frontier();
        let pending = storage.store.pending_snapshot(frontier).map_err(|error| violation(names::JOINED, at, error))?;
        let (Some(receiver), Some((from, end))) = (pending.filter(|found| found.is_whole()), left) else {
            return Ok(());
        };
        self.fetches[at] = Fetch::Whole { from, receiver: Box::new(receiver), end };
        self.handle(at, Input::SnapshotHeld(from as u32 + 1))?;
        self.perform(at)
    }
}

fn push(to: usize, receiver: &mut SimIncoming, frame: &Bytes) -> Checked {
    receiver.push(frame).map_err(|error| violation(names::JOINED, to, error))
}
