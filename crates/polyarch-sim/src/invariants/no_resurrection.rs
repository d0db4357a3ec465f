//! A value that was superseded or deleted is never shown again where the write that did so is
//! applied, however long its node was away.
//!
//! Source: the resurrection of deleted data after `gc_grace_seconds` that tombstone designs suffer.

use std::collections::BTreeMap;

use polyarch_crdt::Dot;
use polyarch_protocol::RecordKey;

use super::{Checked, Violation};
use crate::registers::{Seen, Written};

/// The invariant's name.
pub const NAME: &str = "no_resurrection";

/// Who superseded whom, over the whole run.
#[derive(Debug, Default)]
pub struct Graves {
    by: BTreeMap<(RecordKey, Dot), Vec<Dot>>,
}

impl Graves {
    /// Notes what a write named.
    pub fn note(&mut self, written: &Written) {
        for change in &written.changes {
            for named in &change.names {
                self.by.entry((change.key.clone(), *named)).or_default().push(written.dot);
            }
        }
    }

    /// A node that has applied `seen` shows `dot` under `key`.
    pub fn check(&self, server_id: u32, seen: &Seen, key: &RecordKey, dot: Dot) -> Checked {
        let superseders = self.by.get(&(key.clone(), dot));
        match superseders.into_iter().flatten().find(|by| seen.includes(**by)) {
            None => Ok(()),
            Some(by) => Err(Violation::new(
                NAME,
                format!("node {server_id} shows {dot} of {key:?}, and has applied {by}, which replaced it"),
            )),
        }
    }
}
