//! Every acknowledged put is shown by every node in the end, or was superseded by a write whose
//! client named it, or whose node held it when the client said "whatever you hold".
//!
//! Source: Jepsen's counterexamples to "last write wins"; computed from what clients were told.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use polyarch_crdt::Dot;
use polyarch_protocol::RecordKey;

use super::{Checked, Violation};
use crate::registers::Written;

/// The invariant's name.
pub const NAME: &str = "no_lost_sibling";

/// In the end: `applied` is what all nodes have, `shown` what a node shows of each key.
pub fn check<'a>(
    server_id: u32,
    applied: &[&Rc<Written>],
    acked: impl IntoIterator<Item = &'a Dot>,
    shown: &BTreeMap<RecordKey, BTreeSet<Dot>>,
) -> Checked {
    let by_dot: BTreeMap<Dot, &Rc<Written>> = applied.iter().map(|written| (written.dot, *written)).collect();
    let changes = applied.iter().flat_map(|written| &written.changes);
    let named: BTreeSet<(&RecordKey, Dot)> =
        changes.flat_map(|change| change.names.iter().map(|dot| (&change.key, *dot))).collect();
    for dot in acked {
        let puts = by_dot.get(dot).into_iter().flat_map(|written| &written.changes);
        for put in puts.filter(|change| change.put.is_some()) {
            let is_shown = shown.get(&put.key).is_some_and(|dots| dots.contains(dot));
            if !is_shown && !named.contains(&(&put.key, *dot)) {
                let what = format!(
                    "{dot} was acked and put {:?}, nobody replaced it, and node {server_id} does not show it",
                    put.key
                );
                return Err(Violation::new(NAME, what));
            }
        }
    }
    Ok(())
}
