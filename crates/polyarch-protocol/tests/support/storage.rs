use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, Record};
use polyarch_protocol::{
    ChainHeads, Frontier, KeyspaceId, LogBatch, LogMark, LogPosition, LogReadError, LogSource, RecordKey, Records,
    SnapshotRecords, Storage, StorageError, WriteSet,
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
    /// What a crash goes back to before it replays the log: all that was joined, or nothing yet.
    checkpoint: Checkpoint,
    /// Where snapshots were joined: what the log before does not add up to.
    gaps: BTreeMap<usize, Gap>,
    /// The next appends fail.
    pub(crate) fails_appends: bool,
    /// There is no room for more.
    pub(crate) is_full: bool,
    /// Reads of records fail.
    pub(crate) fails_records: bool,
    /// Reads of the log fail.
    pub(crate) fails_log: bool,
}

#[derive(Debug, Clone, Default)]
struct Checkpoint {
    at: usize,
    records: BTreeMap<RecordKey, Record>,
    frontier: Frontier,
}

/// A place in the log where a snapshot was joined.
#[derive(Debug, Clone)]
struct Gap {
    /// What was applied behind it.
    heads: ChainHeads,
    /// The part of it that no log entry before brought.
    gained: ChainHeads,
}

pub(crate) fn position(index: usize) -> LogPosition {
    LogPosition { segment: (index / SEGMENT_WRITE_SETS) as u64 + 1, offset: (index % SEGMENT_WRITE_SETS) as u64 }
}

fn index(position: LogPosition) -> usize {
    (position.segment as usize - 1) * SEGMENT_WRITE_SETS + position.offset as usize
}

impl MemoryStorage {
    /// Makes all that is staged durable, and says up to where.
    pub(crate) fn sync(&mut self) -> LogPosition {
        self.synced = self.log.len();
        position(self.synced)
    }

    pub(crate) fn durable_end(&self) -> LogPosition {
        SnapshotRecords::durable_end(self)
    }

    /// What a power cut leaves, recovered: a storage and what it adds up to.
    pub(crate) fn crash(&self) -> (Self, Frontier) {
        self.cut_to(self.synced)
    }

    /// An older image of the disk: its first `len` write sets.
    pub(crate) fn cut_to(&self, len: usize) -> (Self, Frontier) {
        let checkpoint = self.checkpoint.clone();
        assert!(len >= checkpoint.at, "that image was overwritten by a checkpoint");
        let mut frontier = checkpoint.frontier.clone();
        let mut left = Self {
            records: checkpoint.records.clone(),
            log: self.log[..len].to_vec(),
            synced: len,
            removed: self.removed,
            gaps: self.gaps.clone(),
            checkpoint,
            ..Self::default()
        };
        for (bytes, _) in &self.log[left.checkpoint.at..len] {
            let write_set = WriteSet::decode(bytes).expect("it was written by a replica");
            let _ = frontier.apply(&mut left, &write_set, bytes).expect("it fails no records");
        }
        (left, frontier)
    }

    /// Takes a checkpoint of all that is appended, and forgets absorb entries that it and all of
    /// `pinned`, the beginnings of running walks, include.
    pub(crate) fn checkpoint(&mut self, frontier: &Frontier, pinned: &[AppliedSet]) {
        assert_eq!(self.synced, self.log.len(), "only what is durable is checkpointed");
        let mut void = frontier.heads.applied().clone();
        for pin in pinned {
            void = void.iter().map(|dot| Dot::new(dot.origin, dot.seq.min(pin.seq(dot.origin)))).collect();
        }
        for record in self.records.values_mut() {
            record.drop_void_absorb(&void);
        }
        self.records.retain(|_, record| !record.is_empty());
        self.checkpoint = Checkpoint { at: self.log.len(), records: self.records.clone(), frontier: frontier.clone() };
    }

    /// Puts joined records in place of all others, at once and durably: the log has a gap here.
    pub(crate) fn replace(&mut self, records: BTreeMap<RecordKey, Record>, before: &ChainHeads, frontier: &Frontier) {
        let heads = frontier.heads.clone();
        let earlier = self.gaps.remove(&self.log.len()).map(|gap| gap.gained).unwrap_or_default();
        let is_gained = |origin, seq| earlier.head(origin).seq > 0 || before.head(origin).seq < seq;
        let gained = heads.iter().filter(|(origin, head)| is_gained(*origin, head.seq)).collect::<BTreeMap<_, _>>();
        self.gaps.insert(self.log.len(), Gap { heads, gained: gained.into() });
        self.records = records;
        self.checkpoint(frontier, &[]);
    }

    pub(crate) fn all_records(&self) -> &BTreeMap<RecordKey, Record> {
        &self.records
    }

    /// Removes all segments but the last.
    pub(crate) fn remove_log(&mut self) {
        self.removed = self.synced.saturating_sub(1) / SEGMENT_WRITE_SETS * SEGMENT_WRITE_SETS;
    }

    /// Removes all segments before this place, as with a walk that holds what lies behind.
    pub(crate) fn remove_log_before(&mut self, place: LogPosition) {
        self.remove_log();
        self.removed = self.removed.min(index(place) / SEGMENT_WRITE_SETS * SEGMENT_WRITE_SETS);
    }

    fn is_marked(&self, at: usize) -> bool {
        at == 0 || self.gaps.contains_key(&at) || (at < self.log.len() && at.is_multiple_of(SEGMENT_WRITE_SETS))
    }

    /// The mark before the entry at this index, where there is one.
    fn mark(&self, at: usize) -> Option<LogMark> {
        let heads = match (self.gaps.get(&at), self.log.get(at)) {
            (Some(gap), _) => gap.heads.clone(),
            (None, Some((_, heads))) if at.is_multiple_of(SEGMENT_WRITE_SETS) => heads.clone(),
            (None, None) if at == 0 => ChainHeads::default(),
            _ => return None,
        };
        Some(LogMark { position: position(at), heads })
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
        let marked: Vec<usize> = (self.removed..=self.synced).filter(|at| self.is_marked(*at)).collect();
        let count = marked.partition_point(|at| self.mark(*at).is_some_and(|mark| reached(&mark.heads)));
        let last = self.mark(marked[count.checked_sub(1)?])?;
        // Whoever lacks what a snapshot brought is not served across the place where it was joined.
        let behind = self.gaps.range(index(last.position) + 1..);
        behind.map(|(_, gap)| &gap.gained).all(reached).then_some(last)
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
        Ok(LogBatch { write_sets, next, joined: None })
    }
}

/// Walked as it is staged: what an `interval` node publishes ahead of its disk.
impl SnapshotRecords for MemoryStorage {
    fn records(&self, after: Option<&RecordKey>, limit: usize) -> Result<Vec<(RecordKey, Arc<Record>)>, String> {
        self.check_records().map_err(|error| error.to_string())?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind =
            self.records.range::<RecordKey, _>((from, Bound::Unbounded)).filter(|(_, record)| !record.is_empty());
        Ok(behind.take(limit).map(|(key, record)| (key.clone(), Arc::new(record.clone()))).collect())
    }

    fn published_end(&self) -> LogPosition {
        self.staged_end()
    }

    fn durable_end(&self) -> LogPosition {
        position(self.synced)
    }
}
