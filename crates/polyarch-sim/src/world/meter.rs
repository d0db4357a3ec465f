//! Counts what crosses links, and how each write set gets to each node.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::Dot;
use polyarch_protocol::WriteSet;
use polyarch_protocol::peer::FeedGroup;

use super::World;

/// What was counted since it began.
#[derive(Debug, Default)]
pub(super) struct Meter {
    /// Messages of the control streams.
    pub(super) control_messages: u64,
    /// Their bytes.
    pub(super) control_bytes: u64,
    /// Bytes of the frames of feeds.
    pub(super) feed_bytes: u64,
    /// Write sets in them.
    pub(super) crossings: u64,
    /// What clients wrote.
    pub(super) written: BTreeMap<Dot, Way>,
}

/// How a write set spread.
#[derive(Debug)]
pub(super) struct Way {
    /// Its bytes.
    pub(super) bytes: usize,
    written_us: u64,
    /// Who sent it to whom first.
    from: BTreeMap<usize, usize>,
    /// When a node had it on its disk.
    synced_us: BTreeMap<usize, u64>,
}

impl Way {
    /// How many times it was passed on until it came to each other node.
    pub(super) fn hops(&self) -> impl Iterator<Item = u64> + '_ {
        self.from.keys().map(|to| std::iter::successors(self.from.get(to), |from| self.from.get(*from)).count() as u64)
    }

    /// How long it took until all had it on their disks.
    pub(super) fn until_all_us(&self) -> u64 {
        self.synced_us.values().max().map_or(0, |last_us| last_us - self.written_us)
    }
}

impl World {
    pub(super) fn meter_control(&mut self, message: &Bytes) {
        if let Some(meter) = &mut self.meter {
            meter.control_messages += 1;
            meter.control_bytes += message.len() as u64;
        }
    }

    pub(super) fn meter_group(&mut self, group: &FeedGroup, frame: &Bytes) {
        if let Some(meter) = &mut self.meter {
            meter.feed_bytes += frame.len() as u64;
            meter.crossings += group.write_sets.len() as u64;
        }
    }

    pub(super) fn meter_arrival(&mut self, to: usize, link: u64, frame: &Bytes) {
        let Some(from) = self.end(to, link).map(|end| end.peer) else { return };
        let (Some(meter), Ok(group)) = (&mut self.meter, FeedGroup::decode(frame)) else { return };
        for dot in group.write_sets.iter().filter_map(|bytes| WriteSet::peek_dot(bytes).ok()) {
            if let Some(way) = meter.written.get_mut(&dot) {
                way.from.entry(to).or_insert(from);
            }
        }
    }

    pub(super) fn meter_written(&mut self, dot: Dot, bytes: usize) {
        let written_us = self.now_us;
        if let Some(meter) = &mut self.meter {
            let way = Way { bytes, written_us, from: BTreeMap::new(), synced_us: BTreeMap::new() };
            meter.written.insert(dot, way);
        }
    }

    /// All that a node was given is on its disk.
    pub(super) fn meter_synced(&mut self, at: usize) {
        let now_us = self.now_us;
        let Some(meter) = &mut self.meter else { return };
        for written in self.history.node(at).unsynced() {
            if let Some(way) = meter.written.get_mut(&written.dot) {
                way.synced_us.insert(at, now_us);
            }
        }
    }
}
