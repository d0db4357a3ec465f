//! What a kind of keyspace shows of a field's siblings. Views read; they never change a record.

use crate::{Sibling, seeded_bug};

/// Last writer wins: the sibling with the greatest `(hlc, origin)`, the same on every node.
///
/// Only writes that did not see one another compete here; a later write that saw this one has
/// superseded it, whatever the clocks said.
pub fn lww(siblings: &[Sibling]) -> Option<&Sibling> {
    if seeded_bug("wrong-tie-in-lww") {
        return siblings.iter().rev().max_by_key(|sibling| sibling.hlc);
    }
    siblings.iter().max_by_key(|sibling| (sibling.hlc, sibling.dot))
}

/// Multi-value: every sibling, in the order of their dots.
pub fn mv(siblings: &[Sibling]) -> &[Sibling] {
    siblings
}
