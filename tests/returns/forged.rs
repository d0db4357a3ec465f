//! Write sets that no process wrote, put into the data of a node that does not run.

use std::path::Path;

use polyarch_crdt::{Dot, Hlc, Origin};
use polyarch_protocol::{Change, Dependencies, Storage, WriteSet};
use polyarch_store::{DiskStore, StoreConfig};

/// The origin of a server that has most in a data directory, and how much.
pub(crate) fn newest_of(data: &Path, server_id: u32) -> (Origin, u64) {
    let (_store, frontier, _) = DiskStore::open_directory(data, &StoreConfig::default()).unwrap();
    let own = frontier.heads.applied().iter().filter(|dot| dot.origin.server_id == server_id);
    own.max_by_key(|dot| dot.seq).map(|dot| (dot.origin, dot.seq)).expect("it has written")
}

/// Writes as the process of that origin would: a write set for each change.
pub(crate) fn append(data: &Path, origin: Origin, changes: Vec<Change>) {
    let (mut store, mut frontier, _) = DiskStore::open_directory(data, &StoreConfig::default()).unwrap();
    for change in changes {
        let dot = Dot::new(origin, frontier.heads.applied().seq(origin) + 1);
        let (hlc, dependencies) = (Hlc::new(frontier.hlc.millis() + 1, 0), Dependencies::Changed(Default::default()));
        let write_set = WriteSet { dot, hlc, dependencies, changes: vec![change] };
        let bytes = write_set.encode();
        store.append(&bytes, &frontier.heads).unwrap();
        let _ = frontier.apply(&mut store, &write_set, &bytes).unwrap();
    }
    store.sync().unwrap();
}
