//! What leaves a node's log has been on the disk of every member that was not removed.
//!
//! Source: a member is fed from logs; what is in none can only be had with a snapshot.

use polyarch_crdt::AppliedSet;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "log_stays_while_a_member_lacks_it";

/// A node let go of what lies before a mark. `members`: the disks of all, and of whom.
pub fn check<'a>(server_id: u32, before: &AppliedSet, members: impl IntoIterator<Item = (u32, &'a Seen)>) -> Checked {
    for (member, durable) in members {
        if let Some(lacks) = before.iter().find(|dot| !durable.includes(*dot)) {
            let what = format!("node {server_id} removes log up to {lacks}, which node {member} lacks");
            return Err(Violation::new(NAME, what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use polyarch_crdt::{Dot, Origin};

    use super::*;

    #[test]
    fn it_may_go_when_all_have_it() {
        let dot = |seq| Dot::new(Origin::new(1, 7), seq);
        let of = |seqs: std::ops::RangeInclusive<u64>| {
            let mut seen = Seen::default();
            seqs.for_each(|seq| seen.add(dot(seq)));
            seen
        };
        let (far, near) = (of(1..=5), of(1..=4));
        let before = |seq| [dot(seq)].into_iter().collect::<AppliedSet>();
        assert_eq!(check(1, &before(4), [(1, &far), (2, &near)]), Ok(()));
        assert!(check(1, &before(5), [(1, &far), (2, &near)]).is_err());
    }
}
