//! A request with a session's token is answered only from a state that includes all the session
//! has seen, on whatever node.
//!
//! Source: session guarantees (Terry et al. 1994): read your writes, monotonic reads.

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "session_never_goes_back";

/// `seen` is what the session saw, `answered_from` what the answering node had published.
pub fn check(server_id: u32, seen: &Seen, answered_from: &Seen) -> Checked {
    match answered_from.missing_of(seen) {
        None => Ok(()),
        Some(dot) => Err(Violation::new(
            NAME,
            format!("node {server_id} answered a session that has seen {dot} from a state without it"),
        )),
    }
}
