//! An `lww` register shows, of its live siblings, the one with the greatest `(hlc, origin)`, the
//! same on every node.
//!
//! Source: Thomas's write rule with a total order (Johnson, Thomas, RFC 677, 1975).

use polyarch_protocol::client::SiblingView;

use super::{Checked, Violation};
use crate::registers::Shown;

/// The invariant's name.
pub const NAME: &str = "lww_winner_is_greatest";

/// What a node showed, against what was live.
pub fn check(server_id: u32, shown: &[SiblingView], live: &[Shown]) -> Checked {
    let winner = live.iter().max_by(|one, two| {
        let order = |s: &Shown| (s.hlc, s.dot.origin, s.dot.seq);
        order(one).cmp(&order(two))
    });
    let is_right = match (shown, winner) {
        ([], None) => true,
        ([shown], Some(winner)) => shown.dot == winner.dot && shown.hlc == winner.hlc && shown.value == winner.value,
        _ => false,
    };
    match is_right {
        true => Ok(()),
        false => {
            Err(Violation::new(NAME, format!("node {server_id} shows {shown:?}, the winner of {live:?} is {winner:?}")))
        }
    }
}
