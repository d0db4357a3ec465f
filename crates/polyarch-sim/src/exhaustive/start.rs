//! What the nodes have before the first event.

use bytes::Bytes;
use polyarch_protocol::catalog::KeyspaceKind;
use polyarch_protocol::{RecordKey, WriteSet};

use super::truth::Meant;
use super::{KEYS_MAX, NODES};
use crate::disk::Image;
use crate::invariants::Violation;
use crate::trace::Sink;
use crate::world::{Replace, World};

/// The keys that clients write.
const KEYS: [&str; KEYS_MAX] = ["k", "l"];
/// A key that lies behind each of these, so that a walk can be past a key that is not there.
const BEHIND: [&str; KEYS_MAX] = ["k~", "l~"];

/// Three disks of a cluster that was founded and stands still.
pub(super) struct Start {
    pub(super) images: Vec<Image>,
    pub(super) keyspace: &'static str,
    pub(super) kind: KeyspaceKind,
    pub(super) keys: Vec<RecordKey>,
    pub(super) behind: Vec<RecordKey>,
    /// The writes of clients, with what they were meant to do.
    pub(super) first: Vec<(Bytes, Meant)>,
    /// How many write sets each disk has, of whomever.
    pub(super) write_sets: u64,
}

impl Start {
    /// The disks of a cluster, with a value under each key that all nodes have, or without.
    pub(super) fn new(kind: KeyspaceKind, keys: usize, has_values: bool) -> Result<Self, Violation> {
        let keyspace = match kind {
            KeyspaceKind::Lww => "settings",
            KeyspaceKind::Mv => "carts",
        };
        let mut world = World::scripted(NODES, Sink::Nowhere)?;
        let first = KEYS[..keys].iter().filter(|_| has_values);
        for key in BEHIND[..keys].iter().chain(first) {
            let said = world.write(0, keyspace, key, Some("first"), Replace::Held)?;
            assert_eq!(said, "ok", "a quiet world takes writes");
        }
        world.pass(6_000)?;
        let id = world.keyspace_id(keyspace)?;
        let places = |names: &[&str]| names.iter().map(|name| RecordKey::new(id, name.as_bytes())).collect::<Vec<_>>();
        let mut start = Self {
            images: world.images(),
            keyspace,
            kind,
            keys: places(&KEYS[..keys]),
            behind: places(&BEHIND[..keys]),
            first: Vec::new(),
            write_sets: 0,
        };
        start.read_log(&world.log_of(0));
        Ok(start)
    }

    /// Finds what was written of the keys.
    fn read_log(&mut self, log: &[Bytes]) {
        self.write_sets = log.len() as u64;
        for bytes in log {
            let Ok(write_set) = WriteSet::decode(bytes) else { continue };
            for change in &write_set.changes {
                if let Some(key) = self.keys.iter().position(|key| *key == change.record_key()) {
                    let meant = Meant { key, value: change.effect.value().cloned(), names: 0 };
                    self.first.push((bytes.clone(), meant));
                }
            }
        }
    }
}
