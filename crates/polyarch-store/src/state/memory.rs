use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use polyarch_crdt::Record;
use polyarch_protocol::RecordKey;

use super::{BatchEntry, Checkpoint, ScanRange, StateError, StateOpener, StateStore, Succession};

/// How many flushed images are kept to roll back to.
const FLUSHED_MAX: usize = 4;

/// A state in memory that forgets like a disk: for tests and for the simulator.
///
/// Clones are handles of one place; what is in it lives on when all but one are dropped, as files do.
/// What is not flushed is lost in a [`MemoryState::crash`]. A new one is a handle of whatever state is
/// current there; one that was opened stays with the state it was opened on when a joined one takes
/// its place.
#[derive(Debug, Clone, Default)]
pub struct MemoryState {
    place: Arc<RwLock<Place>>,
    opened: Option<Arc<RwLock<Images>>>,
}

/// The current state, and the one that may take its place.
#[derive(Debug, Default)]
struct Place {
    current: Arc<RwLock<Images>>,
    next: Option<Arc<RwLock<Images>>>,
    // How many more batches, flushes and adoptions succeed.
    writes_left: Option<usize>,
}

/// What a crash does to a [`MemoryState`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollback {
    /// All that was flushed stays, and what was applied since is gone.
    Unflushed,
    /// The state is back at the `n`-th flush before the newest, or as far back as it remembers:
    /// what sled does when its metadata log is cut.
    Flushes(usize),
    /// Of the records applied since the flush some stay, chosen by the seed, and the metadata is
    /// that of the flush: a backend whose batch is not atomic.
    Torn(u64),
}

#[derive(Debug, Clone, Default)]
struct Image {
    records: BTreeMap<RecordKey, Arc<Record>>,
    checkpoint: Option<Arc<Checkpoint>>,
}

#[derive(Debug, Default)]
struct Images {
    live: Image,
    // The newest last.
    flushed: VecDeque<Image>,
    torn: bool,
    damaged: bool,
}

impl MemoryState {
    /// An empty state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Loses what a crash would lose: also a next state that was not adopted.
    pub fn crash(&self, keep: Rollback) {
        let place = &mut *self.place.write();
        place.next = None;
        place.writes_left = None;
        place.current.write().crash(keep);
    }

    /// Makes every open fail until the state is set aside.
    pub fn damage(&self) {
        self.place.read().current.write().damaged = true;
    }

    /// Makes every batch, flush and adoption after the next `writes` of them fail, until the next
    /// crash.
    pub fn fail_after(&self, writes: usize) {
        self.place.write().writes_left = Some(writes);
    }

    /// How many records the state holds.
    pub fn len(&self) -> usize {
        self.images().read().live.records.len()
    }

    /// Whether the state holds no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether there is a next state that was not adopted.
    pub fn has_next(&self) -> bool {
        self.place.read().next.is_some()
    }

    fn images(&self) -> Arc<RwLock<Images>> {
        match &self.opened {
            Some(images) => Arc::clone(images),
            None => Arc::clone(&self.place.read().current),
        }
    }

    fn opened(&self, images: &Arc<RwLock<Images>>) -> Self {
        Self { place: Arc::clone(&self.place), opened: Some(Arc::clone(images)) }
    }

    fn count_write(&self) -> Result<(), StateError> {
        self.place.write().count_write()
    }
}

impl Place {
    fn count_write(&mut self) -> Result<(), StateError> {
        match &mut self.writes_left {
            Some(0) => return Err(StateError::Stopped("it was told to".into())),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }
}

impl Images {
    fn crash(&mut self, keep: Rollback) {
        if let Rollback::Flushes(flushes) = keep {
            let kept = self.flushed.len().saturating_sub(flushes);
            self.flushed.truncate(kept);
        }
        let flushed = self.flushed.back().cloned().unwrap_or_default();
        let unflushed = std::mem::replace(&mut self.live, flushed);
        self.torn = false;
        if let Rollback::Torn(seed) = keep {
            self.live.keep_some(unflushed.records, seed);
            self.torn = true;
        }
    }
}

impl Succession<MemoryState> for MemoryState {
    fn begin(&self) -> Result<MemoryState, StateError> {
        let images = Arc::default();
        self.place.write().next = Some(Arc::clone(&images));
        Ok(self.opened(&images))
    }

    fn adopt(&self) -> Result<(), StateError> {
        let place = &mut *self.place.write();
        place.count_write()?;
        let next = place.next.take();
        place.current = next.ok_or_else(|| StateError::Damaged("there is no next state".into()))?;
        Ok(())
    }

    fn abandon(&self) -> Result<(), StateError> {
        self.place.write().next = None;
        Ok(())
    }

    fn remove_previous(&self) -> Result<(), StateError> {
        Ok(())
    }
}

impl Image {
    fn keep_some(&mut self, newer: BTreeMap<RecordKey, Arc<Record>>, seed: u64) {
        let stays = |key: &RecordKey| polyarch_protocol::Digest::bucket_of(key) as u64 & 1 == seed & 1;
        let gone: Vec<RecordKey> =
            self.records.keys().filter(|key| stays(key) && !newer.contains_key(key)).cloned().collect();
        gone.iter().for_each(|key| drop(self.records.remove(key)));
        self.records.extend(newer.into_iter().filter(|(key, _)| stays(key)));
    }
}

impl StateStore for MemoryState {
    fn get(&self, key: &RecordKey) -> Result<Option<Record>, StateError> {
        Ok(self.images().read().live.records.get(key).map(|record| Record::clone(record)))
    }

    fn scan(&self, range: &ScanRange, limit: usize) -> Result<Vec<(RecordKey, Record)>, StateError> {
        let images = self.images();
        let images = images.read();
        let from = images.live.records.range::<RecordKey, _>((range.start(), Bound::Unbounded));
        let within = from.take_while(|(key, _)| range.reaches(key.as_bytes()));
        Ok(within.take(limit).map(|(key, record)| (key.clone(), Record::clone(record))).collect())
    }

    fn apply_sorted(&self, batch: Vec<BatchEntry>, checkpoint: &Checkpoint) -> Result<(), StateError> {
        self.count_write()?;
        let images = self.images();
        let images = &mut *images.write();
        for (key, record) in batch {
            match record {
                Some(record) => images.live.records.insert(key, record),
                None => images.live.records.remove(&key),
            };
        }
        images.live.checkpoint = Some(Arc::new(checkpoint.clone()));
        Ok(())
    }

    fn flush(&self) -> Result<(), StateError> {
        self.count_write()?;
        let images = self.images();
        let images = &mut *images.write();
        let live = images.live.clone();
        images.flushed.push_back(live);
        if images.flushed.len() > FLUSHED_MAX {
            images.flushed.pop_front();
        }
        images.torn = false;
        Ok(())
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, StateError> {
        Ok(self.images().read().live.checkpoint.as_deref().cloned())
    }

    fn size(&self) -> Result<u64, StateError> {
        let images = self.images();
        let images = images.read();
        Ok(images.live.records.iter().map(|(key, record)| crate::memtable::footprint(key, record) as u64).sum())
    }

    fn is_atomic(&self) -> bool {
        !self.images().read().torn
    }
}

/// Opens one [`MemoryState`] again and again.
#[derive(Debug, Clone, Default)]
pub struct MemoryOpener {
    state: MemoryState,
    set_aside: usize,
}

impl MemoryOpener {
    /// Opens `state`.
    pub fn new(state: MemoryState) -> Self {
        Self { state, set_aside: 0 }
    }
}

impl StateOpener for MemoryOpener {
    type State = MemoryState;

    fn open(&mut self) -> Result<MemoryState, StateError> {
        let images = Arc::clone(&self.state.place.read().current);
        self.state.place.write().next = None;
        match images.read().damaged {
            true => Err(StateError::Damaged("so it was told to be".into())),
            false => Ok(self.state.opened(&images)),
        }
    }

    fn set_aside(&mut self) -> Result<String, StateError> {
        self.state.place.write().current = Arc::default();
        self.set_aside += 1;
        Ok(format!("memory, forgotten {} times", self.set_aside))
    }

    fn succession(&self) -> Arc<dyn Succession<MemoryState>> {
        Arc::new(self.state.clone())
    }
}
