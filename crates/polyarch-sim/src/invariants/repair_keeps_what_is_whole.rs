//! A repair keeps what is whole: the records if they are those of their checkpoint, and each write set that
//! stands whole in the log, or waits since an earlier repair, and that the records do not have.
//!
//! Source: a salvager that gives up at the first bad sector loses what lies behind it (ddrescue, and the
//! `--salvage` of file systems).

use std::collections::BTreeSet;

use polyarch_crdt::Dot;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "repair_keeps_what_is_whole";

/// After a repair. `keeps_state`: whether it kept the records; `is_sound`: whether they are whole for sure; `whole`:
/// what stood whole beside those that are kept; `waiting`: what waits now.
pub fn check<'a>(
    server_id: u32,
    keeps_state: bool,
    is_sound: bool,
    whole: impl IntoIterator<Item = &'a Dot>,
    waiting: &BTreeSet<Dot>,
) -> Checked {
    if is_sound && !keeps_state {
        return Err(Violation::new(NAME, format!("the records of node {server_id} are sound, and were not kept")));
    }
    match whole.into_iter().find(|dot| !waiting.contains(dot)) {
        None => Ok(()),
        Some(dot) => {
            Err(Violation::new(NAME, format!("{dot} stood whole on node {server_id}, and the repair did not take it")))
        }
    }
}

/// What waits was never written.
pub fn from_nowhere(server_id: u32, dot: Option<Dot>) -> Violation {
    Violation::new(NAME, format!("what waits on node {server_id} as {dot:?} was never written"))
}
