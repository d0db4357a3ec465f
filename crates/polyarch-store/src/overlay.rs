use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use polyarch_crdt::Record;
use polyarch_protocol::{KeyspaceId, RecordKey, Records, StorageError};

use crate::memtable::{Entry, newest_first};
use crate::published::Published;
use crate::state::{ScanRange, StateError, StateStore};

/// Records changed since the last publication, over those that are published.
pub(crate) struct Overlay<S> {
    published: Arc<Published<S>>,
    staged: BTreeMap<RecordKey, Arc<Record>>,
    // Records that were read and not changed: a coordinator reads what its write set will change,
    // and each is looked up in the state once. None is out of date, since all changes come by here.
    read: BTreeMap<RecordKey, Arc<Record>>,
    // A state that takes the place of all that is published with the next publication.
    adopted: Option<Arc<S>>,
}

/// Most records that are kept because they were read.
const READ_MAX: usize = 4_096;

impl<S: StateStore> Overlay<S> {
    pub(crate) fn new(published: Arc<Published<S>>) -> Self {
        Self { published, staged: BTreeMap::new(), read: BTreeMap::new(), adopted: None }
    }

    pub(crate) fn published(&self) -> &Arc<Published<S>> {
        &self.published
    }

    /// Whether all records are published.
    pub(crate) fn is_empty(&self) -> bool {
        self.staged.is_empty() && self.adopted.is_none()
    }

    /// How many records are not published.
    pub(crate) fn len(&self) -> usize {
        self.staged.len()
    }

    /// The record as staged.
    pub(crate) fn get(&mut self, key: &RecordKey) -> Result<Arc<Record>, StateError> {
        if let Some(record) = self.staged.get(key).or_else(|| self.read.get(key)) {
            return Ok(Arc::clone(record));
        }
        let record = self.below(key)?;
        if self.read.len() >= READ_MAX {
            self.read.clear();
        }
        self.read.insert(key.clone(), Arc::clone(&record));
        Ok(record)
    }

    /// Puts a state in the place of all that is published, as of the next publication. Nothing is
    /// staged.
    pub(crate) fn adopt(&mut self, state: Arc<S>) {
        assert!(self.is_empty(), "nothing is staged where a snapshot is joined");
        self.read.clear();
        self.adopted = Some(state);
    }

    /// The record that lies below what is staged.
    fn below(&self, key: &RecordKey) -> Result<Arc<Record>, StateError> {
        match &self.adopted {
            Some(state) => Ok(state.get(key)?.map_or_else(Arc::default, Arc::new)),
            None => self.published.get(key),
        }
    }

    /// All staged records of a keyspace, without empty ones.
    pub(crate) fn keyspace(&self, keyspace: KeyspaceId) -> Result<Vec<Entry>, StateError> {
        let range = ScanRange::prefix(keyspace, b"");
        let published = match &self.adopted {
            Some(state) => state.scan(&range, usize::MAX)?.into_iter().map(|(key, r)| (key, Arc::new(r))).collect(),
            None => self.published.scan(&range, usize::MAX)?,
        };
        let from = self.staged.range::<RecordKey, _>((range.start(), std::ops::Bound::Unbounded));
        let staged = from
            .take_while(|(key, _)| range.reaches(key.as_bytes()))
            .map(|(key, record)| (key.clone(), Arc::clone(record)));
        let merged = newest_first(staged, published.into_iter());
        Ok(merged.filter(|(_, record)| !record.is_empty()).collect())
    }

    /// Makes an adopted state visible to readers, and then all staged records, each at one moment.
    /// Gives back a state that was current.
    pub(crate) fn publish(&mut self) -> Option<Arc<S>> {
        self.read.clear();
        let retired = self.adopted.take().map(|state| self.published.memtable.replace(state));
        if !self.staged.is_empty() {
            self.published.memtable.publish(mem::take(&mut self.staged));
        }
        retired
    }

    /// The seeded bug that forgets what to absorb as soon as it was absorbed.
    #[cfg(feature = "seeded-bugs")]
    pub(crate) fn drop_void_absorb(&mut self, applied: &polyarch_crdt::AppliedSet) {
        for record in self.staged.values_mut().filter(|record| record.absorb_len() > 0) {
            Arc::make_mut(record).drop_void_absorb(applied);
        }
    }
}

impl<S: StateStore> Records for Overlay<S> {
    fn record_mut(&mut self, key: &RecordKey) -> Result<&mut Record, StorageError> {
        // Looked up before the entry: `entry` wants an owned key, and most keys are new here.
        if !self.staged.contains_key(key) {
            let record = match self.read.remove(key) {
                Some(record) => record,
                None => self.below(key).map_err(storage_error)?,
            };
            self.staged.insert(key.clone(), record);
        }
        let record = self.staged.get_mut(key).expect("it was there or was just inserted");
        Ok(Arc::make_mut(record))
    }
}

pub(crate) fn storage_error(error: impl std::fmt::Display) -> StorageError {
    StorageError(error.to_string())
}
