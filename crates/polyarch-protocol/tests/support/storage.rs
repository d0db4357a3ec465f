use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::Record;
use polyarch_protocol::{
    ChainHeads, Frontier, KeyspaceId, LogBatch, LogMark, LogPosition, LogReadError, LogSource, RecordKey, Records,
    Storage, StorageError, WriteSet,
};

/// A segment holds so many write sets; a mark lies before each segment.
pub(crate) const SEGMENT_WRITE_SETS: usize = 4;

/// A log and its records in memory. What was not synced is lost in a crash.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemoryStorage {
    records: BTreeMap<RecordKey, Record>,
    /// Each write set with what the log held before it.
    log: Vec<(Bytes, ChainHeads)>,
    synced: usize,
    removed: usize,
    /// The next appends fail.
    pub(crate) fails_appends: bool,
    /// There is no room for more.
    pub(crate) is_full: bool,
    /// Reads of records fail.
    pub(crate) fails_records: bool,
    /// Reads of the log fail.
    pub(crate) fails_log: bool,
}

fn position(index: usize) -> LogPosition {
    LogPosition { segment: (index / SEGMENT_WRITE_SETS) as u64 + 1, offset: (index % SEGMENT_WRITE_SETS) as u64 }
}

fn index(position: LogPosition) -> usize {
    (position.segment as usize - 1) * SEGMENT_WRITE_SETS + position.offset as usize
}

impl MemoryStorage {
    /// Makes all that is staged durable, and says up to where.
    pub(crate) fn sync(&mut self) -> LogPosition {
        self.synced = self.log.len();
        self.durable_end()
    }

    pub(crate) fn durable_end(&self) -> LogPosition {
        position(self.synced)
    }

    /// What a power cut leaves, recovered: a storage and what it adds up to.
    pub(crate) fn crash(&self) -> (Self, Frontier) {
        self.cut_to(self.synced)
    }

    /// An older image of the disk: its first `len` write sets.
    pub(crate) fn cut_to(&self, len: usize) -> (Self, Frontier) {
        let mut left = Self { log: self.log[..len].to_vec(), synced: len, removed: self.removed, ..Self::default() };
        let mut frontier = Frontier::default();
        for (bytes, _) in left.log.clone() {
            let write_set = WriteSet::decode(&bytes).expect("it was written by a replica");
            let _ = frontier.apply(&mut left, &write_set, &bytes).expect("it fails no records");
        }
        (left, frontier)
    }

    /// Removes all segments but the last.
    pub(crate) fn remove_log(&mut self) {
        self.removed = self.synced / SEGMENT_WRITE_SETS * SEGMENT_WRITE_SETS;
    }

    pub(crate) fn write_sets(&self) -> Vec<WriteSet> {
        self.log
            .iter()
            .map(|(bytes, _)| WriteSet::decode(bytes).expect("it was checked before it was appended"))
            .collect()
    }

    pub(crate) fn log_bytes(&self) -> Vec<Bytes> {
        self.log.iter().map(|(bytes, _)| bytes.clone()).collect()
    }

    fn check_records(&self) -> Result<(), StorageError> {
        match self.fails_records {
            true => Err(StorageError::Failed("a record cannot be read".to_owned())),
            false => Ok(()),
        }
    }
}

impl Records for MemoryStorage {
    fn record_mut(&mut self, key: &RecordKey) -> Result<&mut Record, StorageError> {
        self.check_records()?;
        Ok(self.records.entry(key.clone()).or_default())
    }
}

impl Storage for MemoryStorage {
    fn record(&mut self, key: &RecordKey) -> Result<Record, StorageError> {
        self.check_records()?;
        Ok(self.records.get(key).cloned().unwrap_or_default())
    }

    fn append(&mut self, write_set: &Bytes, before: &ChainHeads) -> Result<LogPosition, StorageError> {
        if self.fails_appends {
            return Err(StorageError::Failed("the disk does not answer".to_owned()));
        }
        if self.is_full {
            return Err(StorageError::Full("no space".to_owned()));
        }
        if write_set.len() > polyarch_protocol::limits::wire::WRITE_SET_BYTES_MAX {
            return Err(StorageError::Failed("a write set of an impossible length".to_owned()));
        }
        self.log.push((write_set.clone(), before.clone()));
        Ok(self.staged_end())
    }

    fn has_room(&mut self, _: usize, _: &ChainHeads) -> Result<bool, StorageError> {
        Ok(!self.is_full)
    }

    fn staged_end(&self) -> LogPosition {
        position(self.log.len())
    }

    fn keyspace_records(&mut self, keyspace: KeyspaceId) -> Result<Vec<(RecordKey, Record)>, StorageError> {
        let of_it = self.records.iter().filter(|(key, _)| key.keyspace() == keyspace);
        Ok(of_it.map(|(key, record)| (key.clone(), record.clone())).collect())
    }
}

impl LogSource for MemoryStorage {
    fn last_mark(&self, reached: &dyn Fn(&ChainHeads) -> bool) -> Option<LogMark> {
        let marked = (self.removed..=self.synced).step_by(SEGMENT_WRITE_SETS);
        let marks = marked.filter_map(|at| match self.log.get(at) {
            Some((_, heads)) => Some((at, heads.clone())),
            None => (at == 0).then(|| (0, ChainHeads::default())),
        });
        let (at, heads) = marks.take_while(|(_, heads)| reached(heads)).last()?;
        Some(LogMark { position: position(at), heads })
    }

    fn read(&self, from: LogPosition, bytes_max: usize) -> Result<LogBatch, LogReadError> {
        let at = index(from);
        if self.fails_log {
            return Err(LogReadError::Io("it does not answer".to_owned()));
        }
        if at < self.removed {
            return Err(LogReadError::Removed(from.segment));
        }
        let (mut write_sets, mut bytes) = (Vec::new(), 0);
        while at + write_sets.len() < self.synced && (write_sets.is_empty() || bytes < bytes_max) {
            let write_set = self.log[at + write_sets.len()].0.clone();
            bytes += write_set.len();
            write_sets.push(write_set);
        }
        let next = position(at + write_sets.len());
        Ok(LogBatch { write_sets, next })
    }
}
