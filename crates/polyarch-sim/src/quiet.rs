//! What a seed draws for its world that a shrunken case can do without, piece by piece.

use polyarch_protocol::Durability;
use polyarch_protocol::peer::PeerVersion;
use serde::{Deserialize, Serialize};

use crate::formation::Formation;
use crate::scenario::{Scenario, Shape};

/// Something that does not happen in a case, or happens as it does in a healthy cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quiet {
    /// No node joins late.
    LateJoin,
    /// The topology that is set is a mesh, and everybody reaches everybody.
    Topology,
    /// Every node syncs before it acknowledges.
    Interval,
    /// All nodes speak the newest version.
    Versions,
    /// No request and no answer is lost.
    Loss,
    /// No message is slow.
    SlowMessages,
    /// Messages take a millisecond at most.
    Delays,
    /// Syncs take no more than that.
    Syncs,
    /// Wall clocks agree.
    Clocks,
    /// Clients ask one thing after the other.
    Pipelines,
    /// Clients stay with their nodes.
    Switches,
    /// There is one key.
    Keys,
    /// Parts of snapshots are large, and follow each other at once.
    Parts,
    /// Groups of feeds are large, and all may wait.
    Groups,
}

impl Quiet {
    /// All there is to calm.
    pub const ALL: [Self; 14] = [
        Self::LateJoin,
        Self::Topology,
        Self::Interval,
        Self::Versions,
        Self::Loss,
        Self::SlowMessages,
        Self::Delays,
        Self::Syncs,
        Self::Clocks,
        Self::Pipelines,
        Self::Switches,
        Self::Keys,
        Self::Parts,
        Self::Groups,
    ];

    /// Takes it out of a world.
    pub fn calm(self, scenario: &mut Scenario) {
        let nodes = scenario.nodes;
        match self {
            Self::LateJoin => scenario.joins_late_us = None,
            Self::Topology => {
                (scenario.formation, scenario.shape, scenario.reach) = (Formation::Drawn, Shape::Mesh, None);
            }
            Self::Interval => scenario.durability = vec![Durability::Sync; nodes],
            Self::Versions => scenario.versions = vec![PeerVersion::NEWEST; nodes],
            Self::Loss => scenario.lost_permille = 0,
            Self::SlowMessages => scenario.slow_permille = 0,
            Self::Delays => scenario.delay_us = (200, 1_000),
            Self::Syncs => scenario.sync_us = (200, 400),
            Self::Clocks => (scenario.clock_offset_ms, scenario.clock_step_ms) = (0, 1),
            Self::Pipelines => scenario.pipeline = 1,
            Self::Switches => scenario.switch_permille = 0,
            Self::Keys => scenario.keys = 1,
            Self::Parts => (scenario.part_bytes, scenario.walk_gap_us) = (64 << 10, (1_000, 1_000)),
            Self::Groups => (scenario.feed_group_bytes, scenario.feed_waiting_bytes) = (256 << 10, 16 << 20),
        }
    }
}

/// Leaves a world so many of its nodes, the first ones, who reach each other.
pub(crate) fn leave_nodes(scenario: &mut Scenario, nodes: usize) {
    if nodes < scenario.nodes {
        (scenario.formation, scenario.reach) = (Formation::Drawn, None);
        scenario.order.retain(|server_id| *server_id as usize <= nodes);
    }
    scenario.nodes = scenario.nodes.min(nodes);
    scenario.seeds_max = scenario.seeds_max.min(scenario.nodes);
    scenario.durability.truncate(scenario.nodes);
    scenario.versions.truncate(scenario.nodes);
}
