//! The log: write sets in local apply order, the truth, and what peers are sent.
//!
//! One appender, [`Log`], *stages* frames in memory and makes all of them *durable* with one write
//! and one `fdatasync` ([`Log::sync`]). Any number of [`LogReader`]s see the durable part. The
//! bytes are drawn in `log/format.rs`.
//!
//! # Recovery
//!
//! The pages of one group reach the disk in any order, so a log is cut at the first frame that is
//! not valid, unless something says that this place was once synced: then it is damage, and the
//! log does not open. What can say so: a segment after it, for a segment is begun only when all
//! before it is synced; a later frame, which names the last position known synced when it was
//! staged; the checkpoint. Then, before [`Log::open`] returns:
//!
//! 1. a last segment without a header, begun when the power went, is removed;
//! 2. what lies behind the last position known synced is written once more in place, what lies
//!    behind the log's end is written with zeros, and both are synced: after a kill or a failed
//!    sync the page cache may hold, as clean, what the disk does not have (Rebello et al., *Can
//!    Applications Recover from fsync Failures?*, 2020);
//! 3. the directory is synced.
//!
//! A number of a segment that never held a durable frame is used again, once its file is durably
//! gone. Nothing outside can know a position in it, and its blocks cannot come back: the file of
//! that name is a new one, and every byte of it that is read was written, if only with zeros, in
//! its new life. Numbers of segments that were removed because they are no longer needed never
//! come again: a later segment always exists.
//!
//! **Architecture Invariant:** the log has no thread, clock or randomness, and nothing in it knows
//! what a write set means.

mod check;
mod config;
mod error;
mod format;
mod inspect;
mod reader;
mod recovery;
#[cfg(test)]
mod tests;
mod walk;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use polyarch_protocol::limits::wire;
use polyarch_protocol::{ChainHeads, LogPosition, LogReadError};

pub use check::{LogCheck, LogChecked};
#[cfg(feature = "seeded-bugs")]
pub use config::LogBugs;
pub use config::LogConfig;
pub use error::{Damage, LogError};
pub use inspect::{Inspected, LogInspection};
pub use reader::LogReader;
pub use recovery::Recovery;
pub(crate) use recovery::{Survey, check_begins};

use crate::files::{Files, LogFile};
use format::{SegmentHeader, encode_frame, frame_bytes, segment_name};
use reader::{Mark, Published, PublishedSegment};
use walk::Segment;

/// A staging buffer that has grown beyond this is given back after its sync.
const STAGING_BYTES_KEPT: usize = 4 << 20;

/// The appender of a log, of which there is one.
#[derive(Debug)]
pub struct Log<F: Files> {
    files: F,
    config: LogConfig,
    /// The segment that the disk has as the last.
    current: CurrentSegment<F::File>,
    /// What the next sync writes: at most one group for each segment, in order.
    staged: Vec<StagedGroup>,
    /// Marks within `staged`.
    staged_marks: Vec<Mark>,
    /// Where the next frame goes, and its link.
    end: LogPosition,
    link: u32,
    durable_end: LogPosition,
    salt: u32,
    /// Bytes since the last mark.
    unmarked_bytes: u64,
    /// What failed; then nothing more is taken.
    poison: Option<String>,
    /// The segments that opening it did not read, and the one after them, for their check.
    unread: Vec<Segment>,
    published: Arc<Mutex<Published>>,
}

/// A segment's open file.
#[derive(Debug)]
struct CurrentSegment<L> {
    number: u64,
    file: L,
    /// The file's length: zeros are written to there.
    allocated: u64,
}

/// Consecutive bytes of one segment that wait for the sync.
#[derive(Debug, Default)]
struct StagedGroup {
    /// Where they go.
    offset: u64,
    bytes: Vec<u8>,
    /// When they begin a segment with its header: what readers will know of it.
    begins: Option<PublishedSegment>,
}

/// A retained segment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentSummary {
    /// Its number.
    pub number: u64,
    /// Where its first frame is.
    pub start: LogPosition,
    /// Where its last durable frame ends.
    pub end: LogPosition,
    /// The chain heads of all that lies before it.
    pub heads: Arc<ChainHeads>,
}

/// Where a log goes on with more than it adds up to: a snapshot was joined there, which brought
/// write sets that the log does not have.
///
/// Two segments make one: an empty one whose header has the heads that the log before adds up to, and
/// the next, whose header has others.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogBoundary {
    /// Where the log goes on.
    pub position: LogPosition,
    /// What the log before it adds up to, from the boundary before that.
    pub before: Arc<ChainHeads>,
    /// The heads it goes on with. Write sets between the two are not in the log.
    pub heads: Arc<ChainHeads>,
}

impl<F: Files> Log<F> {
    /// Opens the log in a directory, and begins one where there is none. `known_synced` is a
    /// position that something outside the log, the checkpoint, knows to have been durable.
    ///
    /// All that the log holds when this returns is durable. Segments before the one that holds
    /// `known_synced` are not read beyond their headers; [`Log::check`] and [`LogInspection`] read them.
    ///
    /// # Errors
    /// When the log is damaged, cut short or of a newer version, then nothing was changed; or when the disk
    /// fails, then it can be opened again.
    pub fn open(files: F, config: LogConfig, known_synced: Option<LogPosition>) -> Result<(Self, Recovery), LogError> {
        Survey::new(files, config, known_synced)?.resume()
    }

    /// Stages a write set behind all others and says where it ends: it is durable once
    /// [`durable_end`](Self::durable_end) is there. `before` is what all write sets before it add
    /// up to; it is copied only when a segment or a mark begins here.
    ///
    /// # Errors
    /// When the log failed before, for good, or the write set has an impossible length.
    pub fn append(&mut self, write_set: &[u8], before: &ChainHeads) -> Result<LogPosition, LogError> {
        self.check_poison()?;
        if write_set.is_empty() || write_set.len() > wire::WRITE_SET_BYTES_MAX {
            return Err(LogError::WriteSetLength { len: write_set.len(), max: wire::WRITE_SET_BYTES_MAX });
        }
        let bytes = frame_bytes(write_set.len());
        if self.end.offset + bytes > self.config.segment_bytes && self.unmarked_bytes > 0 {
            self.begin_segment(before)?;
        } else if self.unmarked_bytes >= self.config.mark_bytes {
            self.stage_mark(before, false);
        }
        let (at, synced, link, salt) = (self.end, self.durable_end, self.link, self.salt);
        self.link = encode_frame(&mut self.group().bytes, write_set, at, synced, link, salt);
        self.end.offset += bytes;
        self.unmarked_bytes += bytes;
        Ok(self.end)
    }

    /// Where the last staged frame ends.
    pub fn staged_end(&self) -> LogPosition {
        self.end
    }

    /// Where the last durable frame ends.
    pub fn durable_end(&self) -> LogPosition {
        self.durable_end
    }

    /// Makes all that is staged durable, and visible to readers, and says up to where. Costs one
    /// write and one `fdatasync`, and the same again with a sync of the directory for each segment
    /// that begins; nothing when nothing is staged.
    ///
    /// # Errors
    /// When a write or sync fails. Whether what was staged is on the disk is then unknown; the log
    /// takes nothing more.
    pub fn sync(&mut self) -> Result<LogPosition, LogError> {
        self.check_poison()?;
        if self.end == self.durable_end {
            return Ok(self.durable_end);
        }
        let mut staged = std::mem::take(&mut self.staged);
        for group in &staged {
            self.write_group(group).inspect_err(|error| self.poison = Some(error.to_string()))?;
        }
        self.publish(&staged);
        // The last buffer serves again: a steady load allocates nothing for staging.
        if let Some(mut group) = staged.pop()
            && group.bytes.capacity() <= STAGING_BYTES_KEPT
        {
            group.bytes.clear();
            self.staged.push(StagedGroup { offset: self.end.offset, bytes: group.bytes, begins: None });
        }
        Ok(self.durable_end)
    }

    /// Hands over each durable frame from `from` on, with the position where it ends. `0:0` is the
    /// beginning of a log that still has its first segment.
    ///
    /// # Errors
    /// When that part of the log is gone, damaged or unreadable, or `f` fails.
    pub fn replay<E: From<LogReadError>>(
        &self,
        from: LogPosition,
        f: impl FnMut(LogPosition, Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        self.reader().for_each(from, f)
    }

    /// Removes each segment that ends at or before `keep`, oldest first, and says which. The last
    /// segment always stays. A reader that is still there learns that it is gone.
    ///
    /// # Errors
    /// When a file cannot be removed, durably: the log takes nothing more. Opened again it still
    /// has that segment or begins behind it.
    pub fn remove_segments_before(&mut self, keep: LogPosition) -> Result<Vec<u64>, LogError> {
        self.check_poison()?;
        let mut removed = Vec::new();
        while let Some(number) = self.removable_segment(keep) {
            // Readers first: they must not meet a missing file and take it for damage.
            self.published.lock().forget_first_segment();
            self.remove_segment(number).inspect_err(|error| self.poison = Some(error.to_string()))?;
            removed.push(number);
        }
        Ok(removed)
    }

    /// The segment that the log begins with once all that ends at or before `keep` is removed;
    /// `None` when nothing would be.
    pub(crate) fn first_kept(&self, keep: LogPosition) -> Option<u64> {
        let published = self.published.lock();
        let goes = |segment: &&PublishedSegment| LogPosition { segment: segment.number, offset: segment.end } <= keep;
        let removed = published.segments.iter().take(published.segments.len() - 1).take_while(goes).count();
        (removed > 0).then(|| published.segments[removed].number)
    }

    /// Takes nothing more, because of what failed.
    pub(crate) fn poison(&mut self, cause: String) {
        self.poison = Some(cause);
    }

    /// The check of the segments that opening the log did not read. A second one has nothing to do.
    pub fn check(&mut self) -> LogCheck<F> {
        let segments = std::mem::take(&mut self.unread);
        LogCheck::new(self.files.clone(), segments, self.salt, Arc::clone(&self.published))
    }

    /// The retained segments, oldest first.
    pub fn segments(&self) -> Vec<SegmentSummary> {
        let published = self.published.lock();
        let starts = published.marks.iter().filter(|mark| mark.segment_start);
        let summary = |(segment, mark): (&PublishedSegment, &Mark)| SegmentSummary {
            number: segment.number,
            start: mark.position,
            end: LogPosition { segment: segment.number, offset: segment.end },
            heads: Arc::clone(&mark.heads),
        };
        published.segments.iter().zip(starts).map(summary).collect()
    }

    /// The retained segments' boundaries, oldest first.
    pub fn boundaries(&self) -> Vec<LogBoundary> {
        self.published.lock().boundaries()
    }

    /// Goes on, durably, with other heads than those that the log adds up to. Nothing is staged.
    ///
    /// # Errors
    /// As [`Log::sync`].
    pub(crate) fn begin_boundary(&mut self, before: &ChainHeads, heads: &ChainHeads) -> Result<(), LogError> {
        assert!(self.end == self.durable_end, "nothing is staged where a snapshot is joined");
        self.check_poison()?;
        if before == heads {
            return Ok(());
        }
        let begin = |log: &mut Self| {
            if !log.last_segment_is_empty() {
                log.begin_segment(before)?;
            }
            log.begin_segment(heads)
        };
        begin(self).inspect_err(|error| self.poison = Some(error.to_string()))?;
        self.sync().map(drop)
    }

    /// Whether no frame lies behind a position of the log.
    pub(crate) fn ends_at(&self, position: LogPosition) -> bool {
        let published = self.published.lock();
        let behind = published.segments.iter().filter(|segment| segment.number > position.segment);
        let mut behind = behind.peekable();
        match behind.peek() {
            None => position == published.end,
            Some(next) => position >= next.previous && behind.all(PublishedSegment::is_empty),
        }
    }

    fn last_segment_is_empty(&self) -> bool {
        self.published.lock().segments.back().is_some_and(PublishedSegment::is_empty)
    }

    /// A reader of the durable part.
    pub fn reader(&self) -> LogReader<F> {
        LogReader::new(self.files.clone(), Arc::clone(&self.published))
    }

    fn check_poison(&self) -> Result<(), LogError> {
        match &self.poison {
            None => Ok(()),
            Some(cause) => Err(LogError::Poisoned(cause.clone())),
        }
    }

    /// The group that takes the next frame.
    fn group(&mut self) -> &mut StagedGroup {
        if self.staged.is_empty() {
            self.staged.push(StagedGroup { offset: self.end.offset, ..StagedGroup::default() });
        }
        self.staged.last_mut().expect("there is one now")
    }

    fn begin_segment(&mut self, before: &ChainHeads) -> Result<(), LogError> {
        let previous = self.end;
        let offset = u32::try_from(previous.offset).expect("a segment ends within a frame of its limit");
        let number = previous.segment + 1;
        let Some((header, bytes)) = SegmentHeader::encode(number, offset, self.link, self.salt, before) else {
            let origins = before.applied().len();
            return Err(LogError::TooManyOrigins { origins });
        };
        self.end = LogPosition { segment: number, offset: header.first };
        self.link = header.crc;
        self.staged.push(StagedGroup {
            offset: 0,
            bytes,
            begins: Some(PublishedSegment { number, previous, first: header.first, end: header.first }),
        });
        self.stage_mark(before, true);
        Ok(())
    }

    fn stage_mark(&mut self, heads: &ChainHeads, segment_start: bool) {
        self.unmarked_bytes = 0;
        self.staged_marks.push(Mark { position: self.end, heads: Arc::new(heads.clone()), segment_start });
    }

    /// Writes and syncs one group. Between two groups lies a segment's border, and the second is
    /// begun only when the first is synced: so a segment's header says that all before it was.
    fn write_group(&mut self, group: &StagedGroup) -> Result<(), LogError> {
        if group.bytes.is_empty() {
            return Ok(());
        }
        if let Some(segment) = &group.begins {
            let name = segment_name(segment.number);
            let file = self.files.create(&name).map_err(LogError::write("create", name))?;
            self.current = CurrentSegment { number: segment.number, file, allocated: 0 };
        }
        let name = segment_name(self.current.number);
        let end = group.offset + group.bytes.len() as u64;
        self.current.allocate(end, &self.config).map_err(LogError::write("allocate space for", &name))?;
        let file = &self.current.file;
        file.write_at(&group.bytes, group.offset).map_err(LogError::write("write", &name))?;
        if self.config.leaves_out_sync() {
            return Ok(());
        }
        file.sync().map_err(LogError::write("sync", &name))?;
        if group.begins.is_some() {
            let synced = self.files.sync_directory();
            synced.map_err(LogError::write("sync the directory with", &name))?;
        }
        Ok(())
    }

    fn publish(&mut self, staged: &[StagedGroup]) {
        self.durable_end = self.end;
        let blocks: Vec<_> = staged.iter().filter_map(StagedGroup::frames).map(Bytes::copy_from_slice).collect();
        let mut blocks = blocks.into_iter();
        let mut published = self.published.lock();
        for group in staged {
            if let Some(segment) = group.begins {
                published.segments.push_back(segment);
            }
            let Some(frames) = group.frames() else { continue };
            let segment = published.segments.back_mut().expect("a log has a current segment");
            let start = LogPosition { segment: segment.number, offset: segment.end };
            segment.end += frames.len() as u64;
            let block = blocks.next().expect("one for each group with frames");
            published.tail.push(start, block, self.config.tail_bytes_max);
        }
        published.end = self.durable_end;
        published.add_marks(&mut self.staged_marks, self.config.marks_max);
    }

    /// Durably, for a power cut that keeps a later removal and not this one would leave a gap.
    fn remove_segment(&self, number: u64) -> Result<(), LogError> {
        let name = segment_name(number);
        self.files.remove(&name).map_err(LogError::write("remove", &name))?;
        let synced = self.files.sync_directory();
        synced.map_err(LogError::write("sync the directory after removing", &name))
    }

    fn removable_segment(&self, keep: LogPosition) -> Option<u64> {
        let published = self.published.lock();
        let first = published.segments.front()?;
        let end = LogPosition { segment: first.number, offset: first.end };
        (published.segments.len() > 1 && end <= keep).then_some(first.number)
    }
}

impl StagedGroup {
    /// The frames without the segment's header.
    fn frames(&self) -> Option<&[u8]> {
        let header = self.begins.map_or(0, |segment| segment.first as usize);
        self.bytes.get(header..).filter(|frames| !frames.is_empty())
    }
}

impl<L: LogFile> CurrentSegment<L> {
    /// Makes the file reach `end`, and on to the next step within the segment's size.
    fn allocate(&mut self, end: u64, config: &LogConfig) -> io::Result<()> {
        if end > self.allocated {
            let allocated = end.next_multiple_of(config.allocate_bytes).min(config.segment_bytes).max(end);
            self.file.allocate(allocated)?;
            self.allocated = allocated;
        }
        Ok(())
    }
}
