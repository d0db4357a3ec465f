//! Links between processes: ordered within a stream, slow, breakable, and blind to some directions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::invariants::links_are_as_planned::Pair;

/// What travels on a link.
#[derive(Debug, Clone)]
pub(super) enum Parcel {
    /// A frame of the control stream.
    Control(Bytes),
    /// A frame of a feed's stream.
    Group { stream: u64, frame: Bytes },
    /// A group of this stream was taken: another may be sent.
    Taken { stream: u64 },
    /// Asks for a snapshot, on a stream of its own.
    AskSnapshot { fetch: u64, frame: Bytes },
    /// A part of it.
    Snapshot { fetch: u64, frame: Bytes },
}

/// The channels of snapshots, away from those of feeds.
const SNAPSHOT_CHANNELS: u64 = 1 << 63;

impl Parcel {
    /// Parcels of one channel stay in order.
    fn channel(&self) -> u64 {
        match self {
            Self::Control(_) => 0,
            Self::Taken { .. } => 1,
            Self::Group { stream, .. } => 2 + stream,
            Self::AskSnapshot { fetch, .. } | Self::Snapshot { fetch, .. } => SNAPSHOT_CHANNELS | fetch,
        }
    }
}

/// A connection of two processes.
#[derive(Debug)]
pub(super) struct Link {
    /// The nodes at its ends, the dialler first, each with the boot of its process.
    pub(super) ends: [(usize, u64); 2],
    /// When the last parcel of a channel arrives, for each side.
    arrivals: [BTreeMap<u64, u64>; 2],
    /// What waits for a direction to open again.
    held: [VecDeque<Parcel>; 2],
}

/// All links, and which directions are closed.
#[derive(Debug, Default)]
pub(super) struct Network {
    links: BTreeMap<u64, Link>,
    links_made: u64,
    blocked: BTreeMap<(usize, usize), u32>,
    /// Who can reach whom at all, if not everyone everyone.
    reach: Option<BTreeSet<(usize, usize)>>,
    /// Added to every delay.
    pub(super) extra_delay_us: u64,
}

impl Network {
    /// One that lets only these pairs of server ids talk, if any are named.
    pub(super) fn new(reach: Option<&BTreeSet<Pair>>) -> Self {
        let directions =
            |(one, two): &Pair| [(*one as usize - 1, *two as usize - 1), (*two as usize - 1, *one as usize - 1)];
        Self { reach: reach.map(|pairs| pairs.iter().flat_map(directions).collect()), ..Self::default() }
    }

    pub(super) fn connect(&mut self, ends: [(usize, u64); 2]) -> u64 {
        self.links_made += 1;
        let link = Link { ends, arrivals: Default::default(), held: Default::default() };
        self.links.insert(self.links_made, link);
        self.links_made
    }

    pub(super) fn link(&self, id: u64) -> Option<&Link> {
        self.links.get(&id)
    }

    pub(super) fn ids(&self) -> Vec<u64> {
        self.links.keys().copied().collect()
    }

    /// Takes a link down; what is on its way is lost.
    pub(super) fn disconnect(&mut self, id: u64) -> Option<[(usize, u64); 2]> {
        self.links.remove(&id).map(|link| link.ends)
    }

    /// Links with an end at a node.
    pub(super) fn links_of(&self, node: usize) -> Vec<u64> {
        let links = self.links.iter().filter(|(_, link)| link.ends.iter().any(|(at, _)| *at == node));
        links.map(|(id, _)| *id).collect()
    }

    pub(super) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked.contains_key(&(from, to)) || !self.may_reach(from, to)
    }

    /// Whether there is a way at all, open or closed.
    pub(super) fn may_reach(&self, from: usize, to: usize) -> bool {
        self.reach.as_ref().is_none_or(|reach| reach.contains(&(from, to)))
    }

    pub(super) fn block(&mut self, from: usize, to: usize) {
        *self.blocked.entry((from, to)).or_default() += 1;
    }

    pub(super) fn unblock(&mut self, from: usize, to: usize) {
        if let Some(times) = self.blocked.get_mut(&(from, to)) {
            *times -= 1;
            if *times == 0 {
                self.blocked.remove(&(from, to));
            }
        }
    }

    pub(super) fn unblock_all(&mut self) {
        self.blocked.clear();
    }

    /// When a parcel to `side` arrives that takes `delay_us`; `None` when the link is down.
    pub(super) fn send(&mut self, id: u64, side: usize, parcel: &Parcel, now_us: u64, delay_us: u64) -> Option<u64> {
        let extra_us = self.extra_delay_us;
        let link = self.links.get_mut(&id)?;
        let last = link.arrivals[side].entry(parcel.channel()).or_default();
        *last = (now_us + delay_us + extra_us).max(*last + 1);
        Some(*last)
    }

    /// When the last control parcel to `side` arrives that was sent.
    pub(super) fn control_arrives_us(&self, id: u64, side: usize) -> Option<u64> {
        self.links.get(&id)?.arrivals[side].get(&0).copied()
    }

    /// Whether a parcel that is due may be delivered; if the direction is closed it is held.
    pub(super) fn deliver(&mut self, id: u64, side: usize, parcel: &Parcel) -> Option<(usize, u64)> {
        let (from, to) = self.direction(id, side)?;
        let blocked = self.is_blocked(from, to);
        let link = self.links.get_mut(&id)?;
        if blocked {
            link.held[side].push_back(parcel.clone());
            return None;
        }
        Some(link.ends[side])
    }

    /// What was held and is to be delivered now, in order. What is still on its way comes later.
    pub(super) fn release(&mut self) -> Vec<(u64, usize, Parcel)> {
        let mut released = Vec::new();
        for (id, link) in &mut self.links {
            for side in 0..2 {
                let direction = (link.ends[1 - side].0, link.ends[side].0);
                if !self.blocked.contains_key(&direction) {
                    released.extend(link.held[side].drain(..).map(|parcel| (*id, side, parcel)));
                }
            }
        }
        released
    }

    fn direction(&self, id: u64, side: usize) -> Option<(usize, usize)> {
        let link = self.links.get(&id)?;
        Some((link.ends[1 - side].0, link.ends[side].0))
    }
}
