use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use polyarch_crdt::Record;
use polyarch_protocol::RecordKey;

use super::{BatchEntry, Checkpoint, ScanRange, StateError, StateOpener, StateStore};

/// How many flushed images are kept to roll back to.
const FLUSHED_MAX: usize = 4;

/// A state in memory that forgets like a disk: for tests and for the simulator.
///
/// Clones are handles of one state; it lives on when all but one are dropped, as files do. What is
/// not flushed is lost in a [`MemoryState::crash`].
#[derive(Debug, Clone, Default)]
pub struct MemoryState {
    images: Arc<RwLock<Images>>,
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

#[derive(Debug, Clone, Default)]
struct Images {
    live: Image,
    // The newest last.
    flushed: VecDeque<Image>,
    torn: bool,
    damaged: bool,
    // How many more batches and flushes succeed.
    writes_left: Option<usize>,
}

impl MemoryState {
    /// An empty state.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another state that holds the same, as a copied disk does.
    pub fn copy(&self) -> Self {
        Self { images: Arc::new(RwLock::new(self.images.read().clone())) }
    }

    /// Loses what a crash would lose.
    pub fn crash(&self, keep: Rollback) {
        let images = &mut *self.images.write();
        if let Rollback::Flushes(flushes) = keep {
            let kept = images.flushed.len().saturating_sub(flushes);
            images.flushed.truncate(kept);
        }
        let flushed = images.flushed.back().cloned().unwrap_or_default();
        let unflushed = std::mem::replace(&mut images.live, flushed);
        images.torn = false;
        if let Rollback::Torn(seed) = keep {
            images.live.keep_some(unflushed.records, seed);
            images.torn = true;
        }
        images.writes_left = None;
    }

    /// Makes every open fail until the state is set aside.
    pub fn damage(&self) {
        self.images.write().damaged = true;
    }

    /// Makes every batch and flush after the next `writes` of them fail, until the next crash.
    pub fn fail_after(&self, writes: usize) {
        self.images.write().writes_left = Some(writes);
    }

    /// How many records the state holds.
    pub fn len(&self) -> usize {
        self.images.read().live.records.len()
    }

    /// Whether the state holds no record.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Images {
    fn count_write(&mut self) -> Result<(), StateError> {
        match &mut self.writes_left {
            Some(0) => return Err(StateError::Stopped("it was told to".into())),
            Some(left) => *left -= 1,
            None => {}
        }
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
        Ok(self.images.read().live.records.get(key).map(|record| Record::clone(record)))
    }

    fn scan(&self, range: &ScanRange, limit: usize) -> Result<Vec<(RecordKey, Record)>, StateError> {
        let images = self.images.read();
        let from = images.live.records.range::<RecordKey, _>((range.start(), Bound::Unbounded));
        let within = from.take_while(|(key, _)| range.reaches(key.as_bytes()));
        Ok(within.take(limit).map(|(key, record)| (key.clone(), Record::clone(record))).collect())
    }

    fn apply_sorted(&self, batch: Vec<BatchEntry>, checkpoint: &Checkpoint) -> Result<(), StateError> {
        let images = &mut *self.images.write();
        images.count_write()?;
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
        let images = &mut *self.images.write();
        images.count_write()?;
        let live = images.live.clone();
        images.flushed.push_back(live);
        if images.flushed.len() > FLUSHED_MAX {
            images.flushed.pop_front();
        }
        images.torn = false;
        Ok(())
    }

    fn checkpoint(&self) -> Result<Option<Checkpoint>, StateError> {
        Ok(self.images.read().live.checkpoint.as_deref().cloned())
    }

    fn size(&self) -> Result<u64, StateError> {
        let images = self.images.read();
        Ok(images.live.records.iter().map(|(key, record)| crate::memtable::footprint(key, record) as u64).sum())
    }

    fn is_atomic(&self) -> bool {
        !self.images.read().torn
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
        match self.state.images.read().damaged {
            true => Err(StateError::Damaged("so it was told to be".into())),
            false => Ok(self.state.clone()),
        }
    }

    fn set_aside(&mut self) -> Result<String, StateError> {
        *self.state.images.write() = Images::default();
        self.set_aside += 1;
        Ok(format!("memory, forgotten {} times", self.set_aside))
    }
}
