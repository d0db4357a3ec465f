//! What only a removed member has does not reach the others while it is removed.
//!
//! Source: the purpose of a removal; a machine that was stolen or sold goes on running.

use polyarch_crdt::Dot;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "removed_is_not_heard";

/// A member that all others have as removed, on their disks.
#[derive(Debug)]
pub struct Removed {
    /// The member.
    pub server_id: u32,
    /// What the others had when the last of them knew.
    pub others_have: Seen,
}

impl Removed {
    /// Node `server_id` applied `dot`.
    pub fn check(&self, server_id: u32, dot: Dot) -> Checked {
        let is_unheard = dot.origin.server_id == self.server_id && !self.others_have.includes(dot);
        match is_unheard && server_id != self.server_id {
            true => Err(Violation::new(
                NAME,
                format!("node {server_id} applied {dot}, which only the removed member {} had", self.server_id),
            )),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use polyarch_crdt::Origin;

    use super::*;

    #[test]
    fn what_the_others_had_may_go_round_and_the_rest_may_not() {
        let dot = |server_id, seq| Dot::new(Origin::new(server_id, 7), seq);
        let mut others_have = Seen::default();
        others_have.add(dot(3, 4));
        let removed = Removed { server_id: 3, others_have };
        assert_eq!(removed.check(1, dot(3, 4)), Ok(()));
        assert_eq!(removed.check(1, dot(2, 9)), Ok(()));
        assert_eq!(removed.check(3, dot(3, 5)), Ok(()), "its own");
        assert!(removed.check(1, dot(3, 5)).is_err());
    }
}
