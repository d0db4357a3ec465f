//! A member that was drained or removed, and knows it, takes no writes of clients.
//!
//! Source: an operator who drains a node waits until it has handed over all it has; each write taken
//! after that begins the wait anew.

use polyarch_protocol::catalog::MemberStatus;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "drained_takes_no_writes";

/// A client's write was taken by a node whose own record says `status`, if it has one.
pub fn check(server_id: u32, status: Option<MemberStatus>) -> Checked {
    match status {
        Some(MemberStatus::Draining | MemberStatus::Down | MemberStatus::Removed) => {
            Err(Violation::new(NAME, format!("node {server_id} took a client's write, and its record says {status:?}")))
        }
        Some(MemberStatus::Active | MemberStatus::Joining) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_in_service_take_writes() {
        assert_eq!(check(1, None), Ok(()));
        assert_eq!(check(1, Some(MemberStatus::Joining)), Ok(()));
        assert!(check(1, Some(MemberStatus::Draining)).is_err());
        assert!(check(1, Some(MemberStatus::Removed)).is_err());
    }
}
