//! What a replica is told once.

use crate::limits::Limits;
use crate::peer::ClusterId;
use crate::plan::{FeedTimings, LinkTimings};

/// When a write is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Once it is synced: an acknowledged write survives a power cut.
    #[default]
    Sync,
    /// At once, with a sync every so often: the writes since the last one can be lost.
    Interval,
}

/// What a replica is told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaConfig {
    /// This server, at least 1.
    pub server_id: u32,
    /// Random, drawn anew at each process start; epochs are derived from it.
    pub boot_id: u128,
    /// The cluster.
    pub cluster_id: ClusterId,
    /// What people call it.
    pub name: String,
    /// `HOST:PORT` where other members reach this one.
    pub addresses: Vec<String>,
    /// When a write is acknowledged.
    pub durability: Durability,
    /// What is accepted at most.
    pub limits: Limits,
    /// Intervals and time-outs.
    pub timings: Timings,
}

/// Intervals and time-outs, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timings {
    /// A heartbeat goes out at least so often. Default 1,000.
    pub gossip_interval_ms: u64,
    /// Changes within this time share a heartbeat. Default 100.
    pub gossip_coalesce_ms: u64,
    /// What this member has durably applied is told to all others, those without a link too, at
    /// most so often, and only when it has changed. Default 5,000.
    pub progress_interval_ms: u64,
    /// When feeds change.
    pub feeds: FeedTimings,
    /// When links are opened and closed.
    pub links: LinkTimings,
    /// A greater difference of two wall clocks is an alarm. Default 500.
    pub clock_offset_max_ms: u64,
    /// A stamp further ahead than this is not merged into one's own clock. Default 3,600,000.
    pub hlc_ahead_max_ms: u64,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            gossip_interval_ms: 1_000,
            gossip_coalesce_ms: 100,
            progress_interval_ms: 5_000,
            feeds: FeedTimings::default(),
            links: LinkTimings::default(),
            clock_offset_max_ms: 500,
            hlc_ahead_max_ms: 3_600_000,
        }
    }
}
