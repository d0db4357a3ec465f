//! A node starts again after whatever happened to it, as long as its disk keeps what was synced.
//!
//! Source: recovery that refuses a sound log is data loss with better manners (Alagappan et al.,
//! *Protocol-Aware Recovery*, 2018).

use super::Violation;

/// The invariant's name.
pub const NAME: &str = "node_always_starts";

/// A node whose store did not open.
pub fn violation(server_id: u32, why: &str) -> Violation {
    Violation::new(NAME, format!("node {server_id} does not start: {why}"))
}
