//! A log with a model of what it must hold beside it.

use bytes::Bytes;
use polyarch_crdt::{Dot, Origin};
use polyarch_protocol::{ChainHeads, LogPosition, LogReadError, LogSource};

use crate::files::Files;
use crate::log::{Log, LogConfig, LogError, Recovery};

pub(super) const ORIGIN: Origin = Origin::new(1, 1);

/// Segments of some twenty frames.
pub(super) fn small_config() -> LogConfig {
    LogConfig {
        segment_bytes: 3_000,
        allocate_bytes: 1_000,
        tail_bytes_max: 2_000,
        mark_bytes: 700,
        marks_max: 10,
        salt: 0x5a17,
        ..LogConfig::default()
    }
}

/// One process with a log, and what it appended, was told to be durable, and must find again.
pub(super) struct Life<F: Files> {
    pub(super) log: Log<F>,
    pub(super) recovery: Recovery,
    files: F,
    config: LogConfig,
    heads: ChainHeads,
    /// Counts lives: the same place in the log has other bytes in another life.
    number: u64,
    /// All write sets ever appended that the log still owes or may owe, each with where it ends.
    pub(super) frames: Vec<(LogPosition, Bytes)>,
    /// Where the first of them begins, and how many came before.
    start: LogPosition,
    forgotten: u64,
}

impl<F: Files> Life<F> {
    pub(super) fn open(files: &F, config: LogConfig, known_synced: Option<LogPosition>) -> Result<Self, LogError> {
        let (log, recovery) = Log::open(files.clone(), config.clone(), known_synced)?;
        let mut life = Self {
            start: log.segments()[0].start,
            heads: ChainHeads::clone(&log.segments()[0].heads),
            forgotten: log.segments()[0].heads.applied().write_sets(),
            log,
            recovery,
            files: files.clone(),
            config,
            number: 0,
            frames: Vec::new(),
        };
        life.frames = life.replayed().expect("what an opened log holds can be read");
        for (_, write_set) in &life.frames {
            let seq = life.heads.applied().seq(ORIGIN) + 1;
            life.heads.extend(Dot::new(ORIGIN, seq), write_set);
        }
        assert_eq!(life.recovery.end, life.log.durable_end());
        Ok(life)
    }

    pub(super) fn reopen(self, known_synced: Option<LogPosition>) -> Result<Self, LogError> {
        let config = self.config.clone();
        self.reopen_with(config, known_synced)
    }

    pub(super) fn reopen_with(self, config: LogConfig, known_synced: Option<LogPosition>) -> Result<Self, LogError> {
        let mut life = Self::open(&self.files, config, known_synced)?;
        life.number = self.number + 1;
        Ok(life)
    }

    /// The next life's number, so that it writes other bytes.
    pub(super) fn numbered(mut self, number: u64) -> Self {
        self.number = number;
        self
    }

    pub(super) fn append_group(&mut self, count: usize, bytes: usize) {
        for _ in 0..count {
            self.append(bytes).expect("the log takes it");
        }
    }

    pub(super) fn append(&mut self, bytes: usize) -> Result<(), LogError> {
        let seq = self.heads.applied().seq(ORIGIN) + 1;
        let mut write_set = format!("life {} seq {seq} ", self.number).into_bytes();
        write_set.resize(bytes.max(write_set.len()), b'.');
        let end = self.log.append(&write_set, &self.heads)?;
        self.heads.extend(Dot::new(ORIGIN, seq), &write_set);
        self.frames.push((end, write_set.into()));
        Ok(())
    }

    /// Where the log stands after so many write sets: at the end of the last, or at the start of
    /// the segment that begins behind it.
    pub(super) fn position_after(&self, write_sets: u64) -> LogPosition {
        let index = write_sets.checked_sub(self.forgotten + 1);
        let end = index.map_or(self.start, |index| self.frames[index as usize].0);
        let segments = self.log.segments();
        let border = segments.windows(2).find(|pair| pair[0].end == end);
        border.map_or(end, |pair| pair[1].start)
    }

    fn replayed(&self) -> Result<Vec<(LogPosition, Bytes)>, LogReadError> {
        let mut frames = Vec::new();
        self.log.replay(self.log.segments()[0].start, |end, write_set| {
            frames.push((end, write_set));
            Ok::<_, LogReadError>(())
        })?;
        Ok(frames)
    }

    /// From every mark and in batches of every kind, reads give what was appended.
    pub(super) fn check_all_reads(&self) {
        let durable = self.log.durable_end();
        let expected: Vec<_> = self.frames.iter().filter(|(end, _)| *end <= durable).cloned().collect();
        assert_eq!(self.replayed().expect("it can be read"), expected);
        let reader = self.log.reader();
        let starts = [self.start].into_iter().chain(expected.iter().map(|(end, _)| *end));
        for (index, from) in starts.enumerate() {
            let mut next = from;
            let mut read = Vec::new();
            while read.len() + index < expected.len() {
                let batch = reader.read(next, 1 + 300 * (index % 7)).expect("it can be read");
                assert!(!batch.write_sets.is_empty());
                read.extend(batch.write_sets);
                next = batch.next;
            }
            assert_eq!(reader.read(next, 1).expect("it can be read").write_sets, Vec::<Bytes>::new());
            let expected: Vec<_> = expected[index..].iter().map(|(_, write_set)| write_set.clone()).collect();
            assert_eq!(read, expected);
        }
    }
}
