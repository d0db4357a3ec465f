//! A member that was drained or removed and is taken back becomes active again, within a bound after
//! all faults ended, and all nodes know it.
//!
//! Source: the steps of a member's status ([`MemberStatus`]) that the member takes itself.

use polyarch_protocol::catalog::MemberStatus;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "members_come_back";

/// When the bound has passed: what `knows` has of `server_id`.
pub fn check(knows: u32, server_id: u32, status: Option<MemberStatus>) -> Checked {
    match status {
        Some(MemberStatus::Active) => Ok(()),
        _ => Err(Violation::new(NAME, format!("in the end node {knows} has member {server_id} as {status:?}"))),
    }
}
