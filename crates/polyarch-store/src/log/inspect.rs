use bytes::Bytes;
use polyarch_protocol::{ChainHeads, LogPosition};

use super::error::LogError;
use super::walk::{Frame, Outline, Segment, Step, Walk, outline};
use crate::files::Files;

/// Goes through all segments and frames of a log that nobody has open, and changes nothing.
///
/// The iterator ends after [`Inspected::End`] or after the first error; for a damaged log that
/// names the first place that is damaged, by the same rules as [`Log::open`](super::Log::open).
pub struct LogInspection<F: Files> {
    walk: Option<Walk<F>>,
    unborn: Option<u64>,
}

/// What an inspection came upon.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inspected {
    /// A segment begins.
    Segment {
        /// Where its first frame is.
        start: LogPosition,
        /// Where the segment before it ended, which may be gone.
        previous: LogPosition,
        /// What its header says was applied before.
        heads: ChainHeads,
    },
    /// A valid frame.
    Frame {
        /// Where it begins.
        start: LogPosition,
        /// Where it ends.
        end: LogPosition,
        /// The position known synced when it was staged.
        known_synced: LogPosition,
        /// Its write set.
        write_set: Bytes,
    },
    /// The log ends, as far as anybody can tell.
    End {
        /// Where.
        at: LogPosition,
        /// The last position that is known to have been synced.
        known_synced: LogPosition,
        /// Bytes behind the end that the next opening will make zeros: a group that was not synced.
        unsynced_bytes: u64,
        /// A last segment without a header that the next opening will remove.
        unborn_segment: Option<u64>,
    },
}

impl<F: Files> LogInspection<F> {
    /// Begins with the first retained segment; a directory without a log gives nothing.
    /// `known_synced` is what the checkpoint says.
    ///
    /// # Errors
    /// When a segment is missing, its header damaged or of a newer version, or the disk fails.
    pub fn new(files: F, known_synced: Option<LogPosition>) -> Result<Self, LogError> {
        let (walk, unborn) = match outline(&files, known_synced)? {
            Outline::Blank { .. } => (None, None),
            Outline::Segments { segments, salt, unborn } => {
                (Some(Walk::new(files, segments, salt, unborn, known_synced, None)?), unborn)
            }
        };
        Ok(Self { walk, unborn })
    }

    /// The place at hand; `None` behind the end.
    fn step(&mut self) -> Result<Option<Inspected>, LogError> {
        let Some(walk) = &mut self.walk else { return Ok(None) };
        let end = match walk.step()? {
            Step::Segment(segment) => return Ok(Some(segment.into())),
            Step::Frame(frame) => return Ok(Some(frame.into())),
            Step::End(end) => end,
        };
        let unsynced_bytes = walk.window().last_byte_from(end.at.offset)? - end.at.offset;
        self.walk = None;
        Ok(Some(Inspected::End { at: end.at, known_synced: end.synced, unsynced_bytes, unborn_segment: self.unborn }))
    }
}

impl<F: Files> Iterator for LogInspection<F> {
    type Item = Result<Inspected, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        let found = self.step();
        if found.is_err() {
            self.walk = None;
        }
        found.transpose()
    }
}

impl From<&Segment> for Inspected {
    fn from(segment: &Segment) -> Self {
        Self::Segment { start: segment.start(), previous: segment.previous, heads: ChainHeads::clone(&segment.heads) }
    }
}

impl From<Frame<'_>> for Inspected {
    fn from(frame: Frame<'_>) -> Self {
        Self::Frame {
            start: frame.at,
            end: frame.end,
            known_synced: frame.synced,
            write_set: Bytes::copy_from_slice(frame.write_set),
        }
    }
}
