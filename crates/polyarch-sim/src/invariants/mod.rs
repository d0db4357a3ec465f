//! What must hold, one invariant a file, each named after what it says.
//!
//! **Architecture Invariant:** no invariant is told by the code under test what to expect. They know
//! the promises, the writes as clients meant them, and what came out.

pub mod acked_is_durable;
pub mod applied_once_and_in_order;
pub mod base_is_applied;
pub mod believed_was_had;
pub mod causal_order;
pub mod context_matches_values;
pub mod converges;
pub mod drained_takes_no_writes;
pub mod equal_applied_sets_equal_digests;
pub mod full_disk_is_survived;
pub mod gtid_never_two_payloads;
pub mod interval_loses_a_suffix;
pub mod link_carries_once;
pub mod links_are_as_planned;
pub mod log_stays_while_a_member_lacks_it;
pub mod lost_own_is_told;
pub mod lww_winner_is_greatest;
pub mod members_come_back;
pub mod no_alarm_without_cause;
pub mod no_lost_sibling;
pub mod no_resurrection;
pub mod node_always_starts;
pub mod nothing_leaves_before_durable;
pub mod older_links_stay_as_they_were;
pub mod own_stamps_rise;
pub mod pinned_log_stays;
pub mod register_shows_unsuperseded;
pub mod removed_is_not_heard;
pub mod repair_keeps_what_is_whole;
pub mod replays_exactly;
pub mod salvage_is_applied;
pub mod session_never_goes_back;
pub mod snapshots_can_be_joined;
pub mod stamps_follow_causality;
pub mod supersedes_what_was_shown;

/// What a check says.
pub type Checked = Result<(), Violation>;

/// An invariant does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {what}")]
pub struct Violation {
    /// The invariant's name, which is its file's.
    pub invariant: &'static str,
    /// What was seen instead.
    pub what: String,
}

impl Violation {
    /// A violation of `invariant`.
    pub fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}
