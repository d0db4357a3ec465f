use std::sync::Arc;

use polyarch_crdt::Record;
use polyarch_protocol::{
    ChainHeads, LogBatch, LogMark, LogPosition, LogReadError, LogSource, RecordKey, SnapshotRecords,
};

use crate::files::Files;
use crate::log::LogReader;
use crate::published::StateReader;
use crate::state::{ScanRange, StateStore};

/// A store as a donor's walk reads it, on any thread, under a [`Pin`](crate::Pin).
///
/// `published_end` says up to where the log goes whose write sets readers see now: asked behind the
/// last record.
pub struct DonorRecords<'a, F: Files, S, P> {
    /// The published records.
    pub records: &'a StateReader<S>,
    /// The durable log.
    pub log: &'a LogReader<F>,
    /// Up to where the log goes that is published.
    pub published_end: P,
}

impl<F: Files, S, P> LogSource for DonorRecords<'_, F, S, P> {
    fn last_mark(&self, reached: &dyn Fn(&ChainHeads) -> bool) -> Option<LogMark> {
        self.log.last_mark(reached)
    }

    fn read(&self, from: LogPosition, bytes_max: usize) -> Result<LogBatch, LogReadError> {
        self.log.read(from, bytes_max)
    }
}

impl<F: Files, S: StateStore, P: Fn() -> LogPosition> SnapshotRecords for DonorRecords<'_, F, S, P> {
    fn records(&self, after: Option<&RecordKey>, limit: usize) -> Result<Vec<(RecordKey, Arc<Record>)>, String> {
        let range = match after {
            Some(after) => ScanRange::everything().after(after.clone()),
            None => ScanRange::everything(),
        };
        self.records.scan(&range, limit).map_err(|error| error.to_string())
    }

    fn published_end(&self) -> LogPosition {
        (self.published_end)()
    }

    fn durable_end(&self) -> LogPosition {
        self.log.durable_end()
    }
}
