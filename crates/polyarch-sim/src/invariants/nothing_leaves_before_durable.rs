//! What a client, a peer or a heartbeat is told, the node that tells it has synced.
//!
//! Source: the output commit rule (Strom, Yemini 1985): what the world saw cannot be taken back.

use polyarch_crdt::Dot;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "nothing_leaves_before_durable";

/// `dots` left the node by way of `what`; `durable` is what it has synced.
pub fn check(server_id: u32, durable: &Seen, dots: impl IntoIterator<Item = Dot>, what: &str) -> Checked {
    match dots.into_iter().find(|dot| !durable.includes(*dot)) {
        None => Ok(()),
        Some(dot) => {
            Err(Violation::new(NAME, format!("node {server_id} let out {dot} in {what} before it was synced")))
        }
    }
}
