//! What readers see: the memtable over the state.

use std::sync::Arc;

use polyarch_crdt::Record;
use polyarch_protocol::RecordKey;

use crate::memtable::{Entry, Found, Memtable, newest_first};
use crate::state::{ScanRange, StateError, StateStore};

/// The published records of a store.
pub(crate) struct Published<S> {
    pub(crate) memtable: Memtable<S>,
}

impl<S: StateStore> Published<S> {
    pub(crate) fn new(state: Arc<S>) -> Self {
        Self { memtable: Memtable::new(state) }
    }

    /// The record, empty when there is none.
    ///
    /// Between the two look-ups a checkpoint may end and drop what it wrote. That does no harm:
    /// what was not in the memtable then, the state has, or something newer.
    pub(crate) fn get(&self, key: &RecordKey) -> Result<Arc<Record>, StateError> {
        match self.memtable.get(key) {
            Found::Record(record) => Ok(record),
            Found::InState(state) => Ok(state.get(key)?.map_or_else(Arc::default, Arc::new)),
        }
    }

    /// The first `limit` records of a range, all as they were at one moment.
    pub(crate) fn scan(&self, range: &ScanRange, limit: usize) -> Result<Vec<Entry>, StateError> {
        loop {
            let page = self.memtable.page(range, limit);
            let freezes = page.freezes;
            let records = merged(&*page.state, range, limit, page.records)?;
            // The frozen records of that moment cover what a checkpoint of them changes in the
            // state. Those frozen since do not: what they bring may be one half of a write set
            // whose other half the page has in an older version.
            if self.memtable.freezes() == freezes {
                return Ok(records);
            }
        }
    }
}

/// Merges the memtable's page, which holds all that can be among the first `limit`, with the state.
fn merged<S: StateStore>(
    state: &S,
    range: &ScanRange,
    limit: usize,
    newer: Vec<Entry>,
) -> Result<Vec<Entry>, StateError> {
    let mut pages = StatePages {
        state,
        rest: Some(range.clone()),
        page: Vec::new().into_iter(),
        // Some of a page may be covered: a few more save another round.
        page_records: limit.saturating_add(newer.len().min(64)),
        failed: None,
    };
    let merged = newest_first(newer.into_iter(), &mut pages);
    let records: Vec<Entry> = merged.filter(|(_, record)| !record.is_empty()).take(limit).collect();
    match pages.failed {
        Some(error) => Err(error),
        None => Ok(records),
    }
}

/// The state's records of a range, read a page at a time.
struct StatePages<'a, S> {
    state: &'a S,
    // What was not read yet; nothing at the end.
    rest: Option<ScanRange>,
    page: std::vec::IntoIter<(RecordKey, Record)>,
    page_records: usize,
    failed: Option<StateError>,
}

impl<S: StateStore> StatePages<'_, S> {
    fn turn(&mut self) -> Option<()> {
        let range = self.rest.take()?;
        match self.state.scan(&range, self.page_records) {
            Ok(page) => {
                if page.len() == self.page_records {
                    self.rest = page.last().map(|(last, _)| range.after(last.clone()));
                }
                self.page = page.into_iter();
            }
            Err(error) => self.failed = Some(error),
        }
        Some(())
    }
}

impl<S: StateStore> Iterator for StatePages<'_, S> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        loop {
            if let Some((key, record)) = self.page.next() {
                return Some((key, Arc::new(record)));
            }
            self.turn()?;
        }
    }
}

/// Reads what a store has published, on any thread, without waiting for its syncs and checkpoints.
///
/// Clones read the same store. One that outlives it goes on seeing its last published records, and
/// keeps the state open.
pub struct StateReader<S> {
    published: Arc<Published<S>>,
}

impl<S: StateStore> StateReader<S> {
    pub(crate) fn new(published: Arc<Published<S>>) -> Self {
        Self { published }
    }

    /// The record, empty when there is none. Of one reader's answers none is older than one before.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn get(&self, key: &RecordKey) -> Result<Arc<Record>, StateError> {
        self.published.get(key)
    }

    /// The first `limit` records of a range, in order of keys, all as they were at one moment, so
    /// that of a write set all or nothing is seen. A record that shows no value, since all it has
    /// are dots to absorb, is among them. The next page is the part of the range after the last key.
    ///
    /// # Errors
    /// When the state cannot be read.
    pub fn scan(&self, range: &ScanRange, limit: usize) -> Result<Vec<Entry>, StateError> {
        self.published.scan(range, limit)
    }

    /// The bytes of the state on disk.
    ///
    /// # Errors
    /// When they cannot be counted.
    pub fn state_bytes(&self) -> Result<u64, StateError> {
        self.published.memtable.state().size()
    }

    /// The bytes of records that are not in the state yet.
    pub fn memtable_bytes(&self) -> usize {
        self.published.memtable.active_bytes()
    }
}

impl<S> Clone for StateReader<S> {
    fn clone(&self) -> Self {
        Self { published: Arc::clone(&self.published) }
    }
}
