//! What a node answers to [`Request::Condition`](crate::client::Request::Condition): what is out of
//! the ordinary on it, beside how it is ([`StatusView`](crate::client::StatusView)).

use polyarch_crdt::{Dot, Origin};
use serde::{Deserialize, Serialize};

/// What is out of the ordinary on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionView {
    /// The origins whose feed is stopped here, in order.
    pub paused: Vec<PausedView>,
    /// The epochs of this server of which its own write sets were lost here, in order.
    pub regained: Vec<RegainedView>,
    /// How many of those write sets are here again, since the process began.
    pub regained_write_sets: u64,
    /// The snapshot that is on its way in, or being joined.
    pub snapshot: Option<SnapshotView>,
    /// Linked members whose digest was not equal at an equal applied-set, in order.
    pub different: Vec<DifferentView>,
    /// What a repair left waiting.
    pub salvage: Option<SalvageView>,
}

/// Write sets that a repair found, and that wait for what they follow on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SalvageView {
    /// How many wait, as far as is known.
    pub write_sets: u64,
    /// The first of each origin that cannot be applied yet, in order; the first few.
    pub first: Vec<Dot>,
}

/// A snapshot that a node gets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// The donor.
    pub from: u32,
    /// Whether all of it is here, and is being joined with what the node has.
    pub is_joining: bool,
    /// Records that are here.
    pub records: u64,
    /// Bytes that are here.
    pub bytes: u64,
}

/// A member that does not hold what this node holds, though both have applied the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DifferentView {
    /// The member.
    pub server_id: u32,
    /// How many of the digest's buckets are equal; `None` while that is not known.
    pub equal_buckets: Option<u32>,
}

/// An origin whose feed is stopped on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedView {
    /// The origin.
    pub origin: Origin,
    /// Why.
    pub cause: PauseCause,
    /// Since when, Unix milliseconds.
    pub since_ms: u64,
    /// The last write set of it that is applied here; 0 for none.
    pub applied: u64,
    /// Write sets that linked members have of it and this node has not.
    pub behind: u64,
}

/// Why an origin's feed is stopped. Variants are appended only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PauseCause {
    /// Two members hold different histories of it.
    Fork {
        /// The last write set whose chain differs.
        dot: Dot,
        /// What is known of other members' histories, in order of server ids.
        members: Vec<ForkMember>,
    },
    /// A write set of it cannot be read here.
    Poison {
        /// The write set.
        dot: Dot,
        /// What is wrong with it.
        reason: String,
    },
    /// Its next write set depends on an origin whose feed is stopped.
    Waits {
        /// That origin.
        on: Origin,
    },
}

/// Where a member stands in a fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkMember {
    /// The member.
    pub server_id: u32,
    /// Which history it holds.
    pub side: ForkSide,
}

/// Which history of a forked origin a member holds, seen from the node that was asked. Variants are
/// appended only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForkSide {
    /// Another than this node: it said so.
    Other,
    /// It has stopped the origin too; which one it holds is not known here.
    Stopped,
}

/// An epoch of a server of which it had lost write sets that other members have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegainedView {
    /// The epoch.
    pub origin: Origin,
    /// The last write set of it that was here when the loss was noticed; 0 for none.
    pub had: u64,
    /// The last one that a member was seen to have.
    pub peer_has: u64,
    /// That member.
    pub from: u32,
    /// The last one that is durably applied here now.
    pub applied: u64,
    /// When the loss was noticed, Unix milliseconds.
    pub noticed_ms: u64,
    /// When all of it was here again, Unix milliseconds; `None` while some is missing.
    pub complete_ms: Option<u64>,
}
