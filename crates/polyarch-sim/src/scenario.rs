//! What a seed draws before anything happens: the world's size and tempers, as data.
//!
//! Swarm testing (Groce et al. 2012): each seed leaves out some kinds of faults and actions and
//! draws its own rates for the others, for what never happens together is never found together.

use std::collections::BTreeSet;

use polyarch_protocol::peer::PeerVersion;
use polyarch_protocol::{Durability, Limits};

use crate::formation::{self, Formation};
use crate::invariants::links_are_as_planned::Pair;
use crate::rng::Rng;

pub use crate::fault::{FAULTS, Fault};

/// Events after which a run that has not ended never does.
const EVENTS_MAX: u64 = 3_000_000;
/// In how many of 1,000 worlds machines may be cloned.
const CLONES_PERMILLE: u64 = 150;
/// In how many of 1,000 worlds in which logs are cut donors take seconds for a snapshot.
const LONG_WALKS_PERMILLE: u64 = 300;

/// What nodes let go of their logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogRemoval {
    /// Nothing.
    Nothing,
    /// What every member has, once all have joined. Then no disk is set back and no state is lost
    /// whole, for what mends those is a snapshot.
    WhatAllHave,
    /// That, and from time to time all that a store can do without: whoever lacks it needs a snapshot.
    Cuts,
}

/// A kind of topology. Which hubs or links is drawn when it is set, over the members there are then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shape {
    /// Every member with every other.
    Mesh,
    /// Each with the next.
    Ring,
    /// One hub, whoever comes first.
    Star,
    /// One hub, of those that are named if one of them can be reached.
    StarWithHubs,
    /// Links that are drawn, and that lead from everyone to everyone.
    Custom,
}

/// Topologies, with how often each is drawn.
pub(crate) const SHAPES: [(Shape, u64); 5] =
    [(Shape::Mesh, 10), (Shape::Ring, 4), (Shape::Star, 2), (Shape::StarWithHubs, 2), (Shape::Custom, 4)];

/// What an operator does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// Sets another topology.
    SwitchTopology,
    /// Two operators set two topologies at the same time.
    SwitchTwoTopologies,
    /// Drains a member.
    Drain,
    /// Removes a member with force, most times one that is cut off.
    Remove,
    /// Takes back who was drained or removed.
    Rejoin,
}

/// All acts, with how often each is drawn.
pub(crate) const ACTS: [(Act, u64); 5] =
    [(Act::SwitchTopology, 4), (Act::SwitchTwoTopologies, 2), (Act::Drain, 3), (Act::Remove, 3), (Act::Rejoin, 6)];

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Reads a key and remembers its context.
    Get,
    /// Writes a key.
    Put,
    /// Deletes a key.
    Delete,
    /// Writes and deletes several keys at once.
    Batch,
}

/// What a client's write replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Whatever the node holds.
    Held,
    /// Nothing.
    Nothing,
    /// What the client was shown last.
    Fresh,
    /// What the client was shown some time ago.
    Stale,
    /// What anyone was shown, on any node.
    Foreign,
}

/// One run's world. Times are in microseconds where nothing else is said.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// How many nodes.
    pub nodes: usize,
    /// How many clients.
    pub clients: usize,
    /// Client operations answered before all is healed.
    pub operations: usize,
    /// Faults before all is healed.
    pub faults: usize,
    /// Keys in each keyspace.
    pub keys: usize,
    /// Kinds of faults with their weights.
    pub fault_kinds: Vec<(Fault, u64)>,
    /// Time between faults.
    pub fault_gap_us: (u64, u64),
    /// How long a fault that lasts does last.
    pub fault_lasts_us: (u64, u64),
    /// How long a node stays down.
    pub down_us: (u64, u64),
    /// How many machines there are, and how they are linked at first.
    pub formation: Formation,
    /// Their server ids, in the order in which they stand in it.
    pub order: Vec<u32>,
    /// Which can reach each other at all, where that is not everyone.
    pub reach: Option<BTreeSet<Pair>>,
    /// Whether there is a machine for clones: a copy of a disk that runs beside the first.
    pub has_clones: bool,
    /// The topology that is set once clients begin, where the formation does not say.
    pub shape: Shape,
    /// What operators do, with weights; in many runs nothing.
    pub acts: Vec<(Act, u64)>,
    /// Time between two of their acts.
    pub act_gap_us: (u64, u64),
    /// Nodes that everybody dials who has no link: the first so many.
    pub seeds_max: usize,
    /// Events after which a run that has not ended never does.
    pub events_max: u64,
    /// How long messages take.
    pub delay_us: (u64, u64),
    /// How long some messages take.
    pub slow_delay_us: (u64, u64),
    /// How many of 1,000 messages are slow.
    pub slow_permille: u64,
    /// When each node acknowledges.
    pub durability: Vec<Durability>,
    /// What each node speaks with others at most: while an upgrade is under way, not all the same.
    pub versions: Vec<PeerVersion>,
    /// How often a node with [`Durability::Interval`] syncs.
    pub sync_interval_us: u64,
    /// When the last node is first started, counted from when clients begin: it joins with an empty
    /// disk what has been at work without it. `None`: with the others.
    pub joins_late_us: Option<u64>,
    /// How long a sync takes.
    pub sync_us: (u64, u64),
    /// Inputs that share a sync, at most.
    pub inputs_max: u64,
    /// When a silent link is given up.
    pub link_patience_us: u64,
    /// Steps of the wall clocks, in milliseconds.
    pub clock_step_ms: u64,
    /// How far wall clocks are off from the start, in milliseconds.
    pub clock_offset_ms: u64,
    /// Time between checkpoints of a node.
    pub checkpoint_gap_us: (u64, u64),
    /// What nodes let go of their logs.
    pub log_removal: LogRemoval,
    /// How often nodes say how far they are to those they have no link to, in milliseconds.
    pub progress_interval_ms: u64,
    /// Bytes of a snapshot's part.
    pub part_bytes: usize,
    /// Time between two parts that a donor reads.
    pub walk_gap_us: (u64, u64),
    /// Whether nothing happens but what a script says.
    pub is_scripted: bool,
    /// Bytes of a log segment.
    pub segment_bytes: u64,
    /// Bytes of the log kept in memory.
    pub tail_bytes: usize,
    /// Bytes between two marks of the log.
    pub mark_bytes: u64,
    /// Bytes of write sets in a feed's group.
    pub feed_group_bytes: usize,
    /// Bytes of write sets that may wait on a link.
    pub feed_waiting_bytes: usize,
    /// What clients do, with weights.
    pub actions: Vec<(Action, u64)>,
    /// What their writes replace, with weights.
    pub choices: Vec<(Choice, u64)>,
    /// Time between two operations of a client.
    pub think_us: (u64, u64),
    /// How many of 1,000 operations follow the one before at once.
    pub burst_permille: u64,
    /// Operations of one client that may be under way.
    pub pipeline: usize,
    /// How many of 1,000 operations a client does on another node than before.
    pub switch_permille: u64,
    /// How many of 1,000 requests carry the session's token.
    pub token_permille: u64,
    /// How many of 1,000 requests or answers are lost.
    pub lost_permille: u64,
    /// Closed epochs that make a base due.
    pub base_epochs_min: usize,
}

impl Scenario {
    /// Draws a world.
    pub fn draw(rng: &mut Rng) -> Self {
        let formation = Formation::draw(rng);
        let nodes = formation.draw_nodes(rng);
        let order = formation::draw_order(rng, nodes);
        let reach = formation.draw_reach(rng, &order);
        let has_clones = rng.chance(CLONES_PERMILLE);
        let log_removal =
            rng.weighted(&[(LogRemoval::Nothing, 45), (LogRemoval::WhatAllHave, 25), (LogRemoval::Cuts, 30)]);
        let is_cut = log_removal == LogRemoval::Cuts;
        let mut fault_kinds = swarm(rng, &FAULTS, 250);
        let versions = if is_cut || has_clones { vec![PeerVersion::NEWEST; nodes] } else { draw_versions(rng, nodes) };
        let is_mixed = versions.iter().any(|version| *version != PeerVersion::NEWEST);
        fault_kinds.retain(|(kind, _)| {
            let has_what_it_takes = match kind {
                Fault::Clone => has_clones && reach.is_none(),
                kind => !is_mixed || !kind.may_need_snapshots(),
            };
            has_what_it_takes && kind.happens_with(log_removal)
        });
        // Walks over a node's records that take longer than partitions, while keys and logs change below them.
        let walks_are_long = is_cut && rng.chance(LONG_WALKS_PERMILLE);
        // Small ones, or there is nothing to let go of.
        let (segment_bytes_max, checkpoint_gaps) = match is_cut {
            true if walks_are_long => (1_500, [((20_000, 150_000), 5), ((50_000, 300_000), 4)]),
            true => (3_000, [((50_000, 300_000), 5), ((200_000, 1_000_000), 4)]),
            false => (16_384, [((50_000, 500_000), 5), ((500_000, 4_000_000), 4)]),
        };
        Self {
            nodes,
            clients: rng.between((3, 8)) as usize,
            operations: rng.between((500, 600)) as usize,
            faults: rng.between((20, 30)) as usize,
            keys: rng.between((1, 4)) as usize,
            fault_kinds,
            log_removal,
            durability: draw_durability(rng, nodes),
            sync_interval_us: rng.weighted(&[(5_000, 2), (100_000, 4), (1_000_000, 2), (4_000_000, 1)]),
            joins_late_us: rng.chance(200).then(|| rng.between((500_000, 10_000_000))),
            has_clones: has_clones && reach.is_none(),
            reach,
            formation,
            order,
            shape: rng.weighted(&SHAPES),
            acts: draw_acts(rng, log_removal),
            act_gap_us: rng.weighted(&[((200_000, 2_000_000), 3), ((1_000_000, 6_000_000), 3)]),
            seeds_max: nodes,
            events_max: EVENTS_MAX,
            is_scripted: false,
            fault_gap_us: rng.weighted(&[((50_000, 800_000), 5), ((200_000, 2_000_000), 4), ((1_000, 200_000), 1)]),
            fault_lasts_us: rng.weighted(&[((50_000, 1_000_000), 4), ((500_000, 6_000_000), 4)]),
            down_us: rng.weighted(&[((1_000, 300_000), 6), ((100_000, 3_000_000), 4)]),
            delay_us: rng.weighted(&[((50, 500), 5), ((500, 20_000), 3), ((10, 100_000), 2)]),
            slow_delay_us: (20_000, rng.between((50_000, 1_500_000))),
            slow_permille: rng.weighted(&[(0, 2), (20, 4), (150, 3)]),
            sync_us: rng.weighted(&[((100, 400), 4), ((1_000, 10_000), 4), ((100, 60_000), 3)]),
            inputs_max: rng.weighted(&[(1, 1), (4, 2), (64, 6)]),
            link_patience_us: rng.between((300_000, 3_000_000)),
            clock_step_ms: rng.weighted(&[(1, 3), (10, 2), (100, 3), (1_000, 2)]),
            clock_offset_ms: rng.weighted(&[(0, 3), (20, 2), (2_000, 2), (1_700_000, 1)]),
            checkpoint_gap_us: rng.weighted(&checkpoint_gaps),
            segment_bytes: rng.between((1_024, segment_bytes_max)),
            tail_bytes: rng.weighted(&[(0, 3), (1_000, 3), (1 << 20, 3)]),
            mark_bytes: rng.between((200, 4_096)),
            feed_group_bytes: rng.weighted(&[(1, 1), (300, 3), (2_000, 3), (256 << 10, 2)]),
            feed_waiting_bytes: rng.weighted(&[(200, 2), (2_000, 2), (16 << 20, 5)]),
            actions: swarm(rng, &[(Action::Get, 30), (Action::Put, 40), (Action::Delete, 12), (Action::Batch, 18)], 60),
            choices: swarm(
                rng,
                &[
                    (Choice::Held, 25),
                    (Choice::Nothing, 15),
                    (Choice::Fresh, 25),
                    (Choice::Stale, 12),
                    (Choice::Foreign, 25),
                ],
                120,
            ),
            think_us: rng.weighted(&[((1_000, 150_000), 5), ((20_000, 400_000), 4)]),
            burst_permille: rng.weighted(&[(0, 2), (300, 4), (800, 2)]),
            pipeline: rng.between((1, 5)) as usize,
            switch_permille: rng.weighted(&[(0, 1), (100, 3), (500, 3)]),
            token_permille: rng.weighted(&[(0, 1), (300, 2), (1_000, 2)]),
            lost_permille: rng.weighted(&[(0, 3), (20, 3)]),
            versions,
            progress_interval_ms: rng.weighted(&[(200, 2), (1_000, 4), (5_000, 2)]),
            part_bytes: match walks_are_long {
                true => 1,
                false => rng.weighted(&[(1, 3), (150, 3), (600, 2), (64 << 10, 1)]),
            },
            walk_gap_us: match walks_are_long {
                true => (100_000, 400_000),
                false => rng.weighted(&[((1, 1_000), 3), ((1_000, 100_000), 4), ((50_000, 300_000), 2)]),
            },
            base_epochs_min: rng.weighted(&[(16, 2), (4, 3), (1, 3)]),
        }
    }
}

impl Scenario {
    /// A quiet world to count in: links of one delay, and every node but the first dials that one.
    pub fn counted(nodes: usize, delay_us: u64) -> Self {
        Self {
            delay_us: (delay_us, delay_us),
            seeds_max: 1,
            events_max: u64::MAX,
            feed_group_bytes: 256 << 10,
            segment_bytes: 1 << 20,
            checkpoint_gap_us: (5_000_000, 6_000_000),
            ..Self::scripted(nodes)
        }
    }

    /// A quiet world for a script: nothing happens but what it says.
    pub fn scripted(nodes: usize) -> Self {
        Self {
            nodes,
            clients: 1,
            operations: 0,
            faults: 0,
            keys: 1,
            fault_kinds: Vec::new(),
            fault_gap_us: (0, 0),
            fault_lasts_us: (0, 0),
            down_us: (1_000, 1_000),
            delay_us: (200, 1_000),
            slow_delay_us: (0, 0),
            slow_permille: 0,
            durability: vec![Durability::Sync; nodes],
            versions: vec![PeerVersion::NEWEST; nodes],
            sync_interval_us: 0,
            joins_late_us: None,
            formation: Formation::Drawn,
            order: (1..=nodes as u32).collect(),
            reach: None,
            has_clones: false,
            shape: Shape::Mesh,
            acts: Vec::new(),
            act_gap_us: (0, 0),
            seeds_max: nodes,
            events_max: EVENTS_MAX,
            sync_us: (200, 400),
            inputs_max: 16,
            link_patience_us: 500_000,
            clock_step_ms: 1,
            clock_offset_ms: 0,
            checkpoint_gap_us: (200_000, 400_000),
            log_removal: LogRemoval::Nothing,
            progress_interval_ms: 5_000,
            part_bytes: 64 << 10,
            walk_gap_us: (1_000, 1_000),
            is_scripted: true,
            segment_bytes: 16_384,
            tail_bytes: 1 << 20,
            mark_bytes: 4_096,
            feed_group_bytes: 4_096,
            feed_waiting_bytes: 16 << 20,
            actions: vec![(Action::Get, 1)],
            choices: vec![(Choice::Held, 1)],
            think_us: (0, 0),
            burst_permille: 0,
            pipeline: 1,
            switch_permille: 0,
            token_permille: 0,
            lost_permille: 0,
            base_epochs_min: Limits::default().base_epochs_min,
        }
    }
}

/// In four of five worlds every node syncs before it acknowledges; in the others some do, or none.
fn draw_durability(rng: &mut Rng, nodes: usize) -> Vec<Durability> {
    let permille = rng.weighted(&[(0, 16), (600, 3), (1_000, 1)]);
    let drawn = (0..nodes).map(|_| match rng.chance(permille) {
        true => Durability::Interval,
        false => Durability::Sync,
    });
    drawn.collect()
}

/// In three of four worlds every node is of the newest version; in the others some are, or none.
fn draw_versions(rng: &mut Rng, nodes: usize) -> Vec<PeerVersion> {
    let permille = rng.weighted(&[(0, 15), (400, 4), (1_000, 1)]);
    let drawn = (0..nodes).map(|_| match rng.chance(permille) {
        true => PeerVersion::V1,
        false => PeerVersion::NEWEST,
    });
    drawn.collect()
}

/// In half of the worlds operators do nothing. Log that every member has may be log that a removed
/// one lacks: where it goes and nobody sends snapshots nobody is removed.
fn draw_acts(rng: &mut Rng, log_removal: LogRemoval) -> Vec<(Act, u64)> {
    let mut acts = match rng.chance(500) {
        true => swarm(rng, &ACTS, 200),
        false => Vec::new(),
    };
    acts.retain(|(act, _)| log_removal != LogRemoval::WhatAllHave || *act != Act::Remove);
    acts
}

/// Leaves out some of `items`, `permille` of each 1,000, and draws new weights for the others.
/// The first item stays, so that there is always one.
fn swarm<T: Copy>(rng: &mut Rng, items: &[(T, u64)], permille: u64) -> Vec<(T, u64)> {
    let mut drawn = Vec::new();
    for (at, (item, weight)) in items.iter().enumerate() {
        let stays = !rng.chance(permille);
        let factor = rng.weighted(&[(1, 2), (2, 3), (6, 2)]);
        if stays || at == 0 {
            drawn.push((*item, weight * factor));
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    use polyarch_protocol::Topology;

    use super::*;

    #[test]
    fn half_the_worlds_are_no_mesh_and_in_half_operators_are_at_work() {
        let mut rng = Rng::new(1);
        let worlds: Vec<Scenario> = (0..1_000).map(|_| Scenario::draw(&mut rng)).collect();
        let of = |is: &dyn Fn(&Scenario) -> bool| worlds.iter().filter(|world| is(world)).count();
        let is_mesh = |world: &Scenario| match world.formation.topology(&world.order) {
            Some(topology) => topology == Topology::Mesh,
            None => world.shape == Shape::Mesh,
        };
        assert!((300..600).contains(&of(&is_mesh)));
        assert!((400..600).contains(&of(&|world| world.acts.is_empty())));
        let removes = |world: &Scenario| world.acts.iter().any(|(act, _)| *act == Act::Remove);
        assert!(of(&removes) > 150);
        assert_eq!(of(&|world| world.log_removal == LogRemoval::WhatAllHave && removes(world)), 0);
    }

    #[test]
    fn most_worlds_sync_first_and_the_others_are_mixed_or_interval_alone() {
        let mut rng = Rng::new(1);
        let worlds: Vec<Vec<Durability>> = (0..1_000).map(|_| Scenario::draw(&mut rng).durability).collect();
        let having = |durability| worlds.iter().filter(|nodes| nodes.contains(&durability)).count();
        let (with_sync, with_interval) = (having(Durability::Sync), having(Durability::Interval));
        assert!((140..260).contains(&with_interval), "{with_interval}");
        assert!((20..100).contains(&(1_000 - with_sync)), "{with_sync}");
        assert!(with_sync + with_interval > 1_050, "{with_sync} + {with_interval}");
    }
}
