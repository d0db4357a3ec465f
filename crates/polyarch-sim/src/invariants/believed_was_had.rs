//! What a node holds another to have applied, that one has had on its disk at some time. By it log is let go of,
//! feeds are chosen, and a drained member hands over.
//!
//! Source: an acknowledgement that is taken for more than was said is how a leader counts a quorum that it does
//! not have (the bugs of the kind that Jepsen's reports on MongoDB's protocol 0 name).

use polyarch_crdt::AppliedSet;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "believed_was_had";

/// What node `server_id` believes of `other`, and what that ever had.
pub fn check(server_id: u32, other: u32, believed: &AppliedSet, had: &Seen) -> Checked {
    match believed.iter().find(|dot| !had.includes(*dot)) {
        None => Ok(()),
        Some(dot) => {
            let what = format!("node {server_id} believes that node {other} has {dot}, and it never had");
            Err(Violation::new(NAME, what))
        }
    }
}
