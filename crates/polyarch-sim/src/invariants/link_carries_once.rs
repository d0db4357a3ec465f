//! A feed sends a write set once, and those of an origin in order: whoever asks again says from where on.
//!
//! Source: a cursor that goes back is how a ring of replicas circulates what it has (`docs/loops.md`).

use polyarch_protocol::WriteSet;
use polyarch_protocol::peer::FeedGroup;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "link_carries_once";

/// A group leaves on a stream on which `sent` was sent before, and is added to that.
pub fn check(server_id: u32, link: u64, sent: &mut Seen, group: &FeedGroup) -> Checked {
    for dot in group.write_sets.iter().filter_map(|bytes| WriteSet::peek_dot(bytes).ok()) {
        if sent.includes(dot) {
            return Err(Violation::new(NAME, format!("node {server_id} sends {dot} on link {link} once more")));
        }
        sent.add(dot);
    }
    Ok(())
}
