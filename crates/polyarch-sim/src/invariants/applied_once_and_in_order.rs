//! Each node applies each write set once, and those of an origin in the order of their seqs without
//! gaps; what it recovers is a prefix of what it had applied, with the same history.
//!
//! Source: the per-origin order that makes one number per origin a causal context (Almeida, Shoker,
//! Baquero 2018); the prefix is the log's promise (`polyarch_store::log`).

use polyarch_crdt::Dot;
use polyarch_protocol::ChainHash;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "applied_once_and_in_order";

/// Before a node takes `dot`.
pub fn check_next(server_id: u32, seen: &Seen, dot: Dot) -> Checked {
    let due = seen.seq(dot.origin) + 1;
    match dot.seq == due {
        true => Ok(()),
        false => {
            Err(Violation::new(NAME, format!("node {server_id} applied {dot}, and the next of that origin was {due}")))
        }
    }
}

/// After a recovery: how much of `order`, all that the node ever appended, it has.
///
/// # Errors
/// When it is no prefix.
pub fn check_prefix(
    server_id: u32,
    order: impl IntoIterator<Item = Dot>,
    recovered: &Seen,
) -> Result<usize, Violation> {
    let mut seen = Seen::default();
    let mut len = 0;
    for dot in order {
        if !recovered.includes(dot) {
            break;
        }
        seen.add(dot);
        len += 1;
    }
    match seen == *recovered {
        true => Ok(len),
        false => Err(Violation::new(
            NAME,
            format!(
                "node {server_id} recovered {recovered:?}, which is no prefix of what it had applied ({seen:?} is the longest within)"
            ),
        )),
    }
}

/// One dot, one history up to it: every node's chain hash there is the same.
pub fn check_chain(server_id: u32, dot: Dot, known: ChainHash, found: ChainHash) -> Checked {
    match known == found {
        true => Ok(()),
        false => Err(Violation::new(
            NAME,
            format!("the chain up to {dot} is {found} on node {server_id} and {known} elsewhere"),
        )),
    }
}
