//! Streams of chance: each part of a run has its own, so that leaving one out changes nothing of what
//! the others draw.
//!
//! Which stream an event draws from is decided here alone: while it happens, `World::rng` is that stream.

use std::collections::BTreeMap;

use super::{Event, World};
use crate::invariants::Checked;
use crate::rng::Rng;

/// The streams of a run, and how far each is.
#[derive(Debug)]
pub(super) struct Streams {
    seed: u64,
    /// Those that go on from event to event.
    lasting: BTreeMap<Lasting, Rng>,
    /// How often something was drawn that has a stream of its own each time.
    drawn: BTreeMap<Once, u64>,
}

/// A stream that goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lasting {
    /// A node's, from one start of its process to the next.
    Node(usize),
    /// The delays of one direction of a link.
    Network { link: u64, side: usize },
    /// What is nobody's.
    World,
}

/// Something that has a stream of its own each time it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Once {
    Fault,
    Act,
    Start(usize),
    Step(usize),
}

impl Streams {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, lasting: BTreeMap::new(), drawn: BTreeMap::new() }
    }

    /// The delays of what is sent to one side of a link.
    pub(super) fn network(&mut self, link: u64, side: usize) -> &mut Rng {
        let seed = self.seed;
        let begin = || Rng::stream(seed, "network", &[link, side as u64]);
        self.lasting.entry(Lasting::Network { link, side }).or_insert_with(begin)
    }

    /// How many faults were drawn, with the one that is happening.
    pub(super) fn faults_drawn(&self) -> u64 {
        self.drawn(Once::Fault)
    }

    /// How many acts of operators were drawn, with the one that is happening.
    pub(super) fn acts_drawn(&self) -> u64 {
        self.drawn(Once::Act)
    }

    /// How many steps of a client were drawn, with the one that is happening.
    pub(super) fn steps_drawn(&self, client: usize) -> u64 {
        self.drawn(Once::Step(client))
    }

    fn drawn(&self, once: Once) -> u64 {
        self.drawn.get(&once).copied().unwrap_or(0)
    }

    fn next(&mut self, once: Once) -> Rng {
        let drawn = self.drawn.entry(once).or_default();
        *drawn += 1;
        match once {
            Once::Fault => Rng::stream(self.seed, "fault", &[*drawn]),
            Once::Act => Rng::stream(self.seed, "act", &[*drawn]),
            Once::Start(at) => Rng::stream(self.seed, "start", &[at as u64, *drawn]),
            Once::Step(client) => Rng::stream(self.seed, "step", &[client as u64, *drawn]),
        }
    }

    fn take(&mut self, lasting: Lasting) -> Rng {
        let begin = || match lasting {
            Lasting::Node(at) => Rng::stream(self.seed, "node", &[at as u64]),
            Lasting::Network { link, side } => Rng::stream(self.seed, "network", &[link, side as u64]),
            Lasting::World => Rng::stream(self.seed, "world", &[]),
        };
        self.lasting.remove(&lasting).unwrap_or_else(begin)
    }
}

impl World {
    /// Lets an event happen that draws from its own stream.
    pub(super) fn in_its_stream(&mut self, event: Event) -> Checked {
        let (stream, lasting) = self.stream_of(&event);
        let before = std::mem::replace(&mut self.rng, stream);
        let outcome = self.happen(event);
        let after = std::mem::replace(&mut self.rng, before);
        if let Some(lasting) = lasting {
            self.streams.lasting.insert(lasting, after);
        }
        outcome
    }

    fn stream_of(&mut self, event: &Event) -> (Rng, Option<Lasting>) {
        let lasting = match event {
            Event::Fault => return (self.streams.next(Once::Fault), None),
            Event::Act => return (self.streams.next(Once::Act), None),
            Event::Step { client } => return (self.streams.next(Once::Step(*client)), None),
            // A process's stream goes on with this one.
            Event::Start { at } if self.nodes[*at].process.is_none() => {
                return (self.streams.next(Once::Start(*at)), Some(Lasting::Node(*at)));
            }
            Event::Wake { at, .. }
            | Event::Synced { at, .. }
            | Event::Tick { at, .. }
            | Event::Checkpoint { at, .. }
            | Event::RunCheckpoint { at, .. }
            | Event::PollFeed { at, .. }
            | Event::PollSnapshot { at, .. }
            | Event::ForgetWalk { at, .. }
            | Event::SnapshotSilence { at, .. }
            | Event::RunJoin { at, .. }
            | Event::Joined { at, .. }
            | Event::LinkDown { at, .. }
            | Event::Start { at }
            | Event::Stop { at, .. }
            | Event::Mend { at }
            | Event::Verify { at, .. }
            | Event::Salvage { at, .. }
            | Event::Remove { at }
            | Event::Request { at, .. }
            | Event::Inspect { at, .. } => Lasting::Node(*at),
            Event::Connect { from, .. } => Lasting::Node(from.0),
            Event::Deliver { link, side, .. } => match self.network.link(*link) {
                Some(link) => Lasting::Node(link.ends[*side].0),
                None => Lasting::World,
            },
            Event::CloseLink { .. }
            | Event::Impatience { .. }
            | Event::FaultEnds(_)
            | Event::SetTopology
            | Event::Answer { .. }
            | Event::GiveUp { .. }
            | Event::Review => Lasting::World,
        };
        (self.streams.take(lasting), Some(lasting))
    }
}
