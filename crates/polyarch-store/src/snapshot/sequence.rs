use std::sync::Arc;

use polyarch_protocol::{ChainHeads, LogPosition, RecordKey, SnapshotBegin, SnapshotId, SnapshotPart, SnapshotRecord};

/// Bytes that the pieces of one record may have: what a join holds in memory of it.
const RECORD_BYTES_MAX: usize = 1 << 30;

/// Why a part cannot come where it came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SequenceError {
    /// A snapshot begins with its beginning.
    #[error("it is not the beginning of a snapshot")]
    NoBegin,
    /// And has one only.
    #[error("a second beginning")]
    SecondBegin,
    /// Another walk goes on.
    #[error("snapshot {0} goes on, which is another")]
    AnotherWalk(SnapshotId),
    /// Keys that are not behind those before.
    #[error("the key {0:?} is not behind the one before")]
    KeyOrder(RecordKey),
    /// A cut record that does not go on.
    #[error("the record {0:?} was to go on and does not")]
    CutShort(RecordKey),
    /// A record of more bytes than can be.
    #[error("the record {0:?} is longer than {RECORD_BYTES_MAX} bytes")]
    RecordTooLong(RecordKey),
    /// Records behind the log.
    #[error("records behind the log")]
    RecordsBehindLog,
    /// Something behind the end.
    #[error("it came behind the end")]
    BehindEnd,
    /// An end that lacks what the beginning had.
    #[error("it ends with less than it began with")]
    EndsBeforeBeginning,
}

/// Where in the order `Begin`, `Records`, `Log`, `LogEnd`, `End` a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Records,
    Log,
    Whole,
}

/// Checks that parts follow on each other, and knows what the parts so far are.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    begin: Arc<SnapshotBegin>,
    phase: Phase,
    /// The last key whose record is whole.
    last_key: Option<RecordKey>,
    /// The record that goes on in the next part, and its bytes so far.
    cut: Option<(RecordKey, usize)>,
    records: u64,
    write_sets: u64,
    /// Where the donor's log was that it ends with; a donor before 0.2 did not say.
    log_end: Option<LogPosition>,
    end: Option<Arc<ChainHeads>>,
}

impl Sequence {
    pub(crate) fn new(begin: SnapshotBegin) -> Self {
        Self {
            begin: Arc::new(begin),
            phase: Phase::Records,
            last_key: None,
            cut: None,
            records: 0,
            write_sets: 0,
            log_end: None,
            end: None,
        }
    }

    pub(crate) fn begin(&self) -> &SnapshotBegin {
        &self.begin
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn last_key(&self) -> Option<&RecordKey> {
        self.last_key.as_ref()
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    pub(crate) fn write_sets(&self) -> u64 {
        self.write_sets
    }

    pub(crate) fn log_end(&self) -> Option<LogPosition> {
        self.log_end
    }

    pub(crate) fn end(&self) -> Option<&Arc<ChainHeads>> {
        self.end.as_ref()
    }

    /// The same with one part more.
    pub(crate) fn followed_by(&self, part: &SnapshotPart) -> Result<Self, SequenceError> {
        let mut next = self.clone();
        match part {
            _ if self.phase == Phase::Whole => return Err(SequenceError::BehindEnd),
            SnapshotPart::Begin(_) => return Err(SequenceError::SecondBegin),
            SnapshotPart::Resumed(id) if *id != self.begin.id => return Err(SequenceError::AnotherWalk(*id)),
            // Pieces whose rest did not come are forgotten: the record comes again.
            SnapshotPart::Resumed(_) => next.cut = None,
            SnapshotPart::Records { .. } if self.phase != Phase::Records => {
                return Err(SequenceError::RecordsBehindLog);
            }
            SnapshotPart::Records { records, cut } => next.take_records(records, *cut)?,
            SnapshotPart::Log(write_sets) => {
                self.check_not_cut()?;
                next.phase = Phase::Log;
                next.write_sets += write_sets.len() as u64;
            }
            SnapshotPart::LogEnd(position) => {
                self.check_not_cut()?;
                next.phase = Phase::Log;
                next.log_end = Some(*position);
            }
            SnapshotPart::End(heads) => {
                self.check_not_cut()?;
                if !heads.applied().includes_all(self.begin.start.heads.applied()) {
                    return Err(SequenceError::EndsBeforeBeginning);
                }
                next.phase = Phase::Whole;
                next.end = Some(Arc::new(heads.clone()));
            }
            // Never kept.
            SnapshotPart::GivenUp(_) => return Err(SequenceError::BehindEnd),
        }
        Ok(next)
    }

    fn check_not_cut(&self) -> Result<(), SequenceError> {
        match &self.cut {
            Some((key, _)) => Err(SequenceError::CutShort(key.clone())),
            None => Ok(()),
        }
    }

    fn take_records(&mut self, records: &[SnapshotRecord], cut: bool) -> Result<(), SequenceError> {
        let first = records.first().map(|first| &first.key);
        if let Some((open, _)) = &self.cut
            && first != Some(open)
        {
            return Err(SequenceError::CutShort(open.clone()));
        }
        for SnapshotRecord { key, record } in records {
            let bytes = record.encoded_bytes();
            match &mut self.cut {
                Some((open, so_far)) if open == key => {
                    *so_far = so_far.saturating_add(bytes);
                    if *so_far > RECORD_BYTES_MAX {
                        return Err(SequenceError::RecordTooLong(key.clone()));
                    }
                }
                open => {
                    let before = open.as_ref().map(|(open, _)| open).or(self.last_key.as_ref());
                    if before.is_some_and(|before| key <= before) {
                        return Err(SequenceError::KeyOrder(key.clone()));
                    }
                    self.close();
                    self.cut = Some((key.clone(), bytes));
                }
            }
        }
        if !cut {
            self.close();
        }
        Ok(())
    }

    /// The record at hand is whole.
    fn close(&mut self) {
        if let Some((key, _)) = self.cut.take() {
            self.last_key = Some(key);
            self.records += 1;
        }
    }
}
