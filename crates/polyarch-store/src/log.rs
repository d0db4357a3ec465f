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
//! # A full disk
//!
//! What is staged has its room already: [`Log::append`] makes it before it stages, so that a disk
//! without any refuses what is new ([`LogError::Full`]) and puts nothing at risk. A sync writes over
//! zeros and makes no file. The file of the next segment is made ahead, too, and stays without a
//! header until all before it is synced. There is one such file at most, or recovery could not tell
//! a segment that is gone from one that never was.
//!
//! (A file system that never writes in place, as btrfs and ZFS do, may run out of room all the same
//! when zeros are written over. Then the sync fails, as for any other reason.)
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
mod salvage;
#[cfg(test)]
mod tests;
mod walk;

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use parking_lot::Mutex;
use polyarch_crdt::seeded_bug;
use polyarch_protocol::limits::wire;
use polyarch_protocol::{Bases, ChainHeads, LogPosition, LogReadError};

pub use check::{LogCheck, LogChecked};
#[cfg(feature = "seeded-bugs")]
pub use config::LogBugs;
pub use config::LogConfig;
pub use error::{Damage, LogError};
pub use inspect::{Inspected, LogInspection};
pub use reader::LogReader;
pub use recovery::Recovery;
pub(crate) use recovery::{Survey, check_begins};
pub use salvage::{LogSalvaged, salvage};

use crate::files::{Directory, Files, LogFile, is_full};
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
    /// The file of the one after it, which has no header yet.
    next: Option<CurrentSegment<F::File>>,
    /// What the next sync makes visible: groups for one segment after the other, in order.
    staged: Vec<StagedGroup>,
    /// How many of them are on the disk already: see [`Self::make_next`].
    written: usize,
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

impl Log<Directory> {
    /// When a segment's file was last written to.
    pub(crate) fn modified(&self, number: u64) -> io::Result<SystemTime> {
        self.files.modified(&segment_name(number))
    }
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

    /// Begins a log in an empty directory, as if the segments before, which ended at `previous` and added
    /// up to `heads`, had been removed as no longer needed.
    ///
    /// # Errors
    /// When the disk fails or is full, or the heads are too many.
    pub(crate) fn begin_behind(
        files: F,
        config: LogConfig,
        previous: LogPosition,
        heads: &ChainHeads,
    ) -> Result<Self, LogError> {
        Ok(recovery::begin_behind(files, config.validated(), previous, heads, false)?.0)
    }

    /// Stages a write set behind all others and says where it ends: it is durable once
    /// [`durable_end`](Self::durable_end) is there. `before` is what all write sets before it add
    /// up to; it is copied only when a segment or a mark begins here.
    ///
    /// # Errors
    /// When the disk has no room for it or its length is impossible: nothing was changed. When the
    /// log failed, now or before, for good.
    pub fn append(&mut self, write_set: &[u8], before: &ChainHeads) -> Result<LogPosition, LogError> {
        self.check_poison()?;
        if write_set.is_empty() || write_set.len() > wire::WRITE_SET_BYTES_MAX {
            return Err(LogError::WriteSetLength { len: write_set.len(), max: wire::WRITE_SET_BYTES_MAX });
        }
        let bytes = frame_bytes(write_set.len());
        match self.make_room(bytes, before)? {
            Some((header, header_bytes)) => self.begin_segment(&header, header_bytes, before),
            None if self.unmarked_bytes >= self.config.mark_bytes => self.stage_mark(before, false),
            None => {}
        }
        let (at, synced, link, salt) = (self.end, self.durable_end, self.link, self.salt);
        self.link = encode_frame(&mut self.group().bytes, write_set, at, synced, link, salt);
        self.end.offset += bytes;
        self.unmarked_bytes += bytes;
        Ok(self.end)
    }

    /// Whether there is room for a write set of so many bytes, and for some more, so that a log
    /// that ran out of it does not begin again for a moment only. Makes that room if it can.
    /// `before` is what all write sets until now add up to.
    ///
    /// # Errors
    /// When the log failed, now or before, for good.
    pub fn has_room(&mut self, write_set_bytes: usize, before: &ChainHeads) -> Result<bool, LogError> {
        self.check_poison()?;
        let bytes = frame_bytes(write_set_bytes).max(self.config.allocate_bytes);
        match self.make_room(bytes, before) {
            Ok(_) => Ok(true),
            Err(LogError::Full { .. }) => Ok(false),
            Err(error) => Err(error),
        }
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
        if let Err(error) = self.write_staged()
            && !seeded_bug("failed-sync-is-good")
        {
            self.poison = Some(error.to_string());
            return Err(error);
        }
        let mut staged = std::mem::take(&mut self.staged);
        self.written = 0;
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

    /// Goes on with a segment that is empty, if the last one is not: behind it a boundary can be given
    /// room. Nothing is staged.
    ///
    /// # Errors
    /// [`LogError::Full`] when there is no room: nothing has changed. Otherwise as [`Log::sync`].
    pub(crate) fn begin_spare_segment(&mut self, heads: &ChainHeads) -> Result<(), LogError> {
        assert!(self.end == self.durable_end, "nothing is staged where a snapshot is joined");
        self.check_poison()?;
        match self.last_segment_is_empty() {
            true => Ok(()),
            false => {
                self.begin_empty_segment(heads)?;
                self.sync().map(drop)
            }
        }
    }

    /// Sees to it that [`Log::begin_boundary`] finds room, behind a spare segment.
    ///
    /// # Errors
    /// [`LogError::Full`] when there is none; any other when the disk fails.
    pub(crate) fn make_room_for_boundary(&mut self, heads: &ChainHeads) -> Result<(), LogError> {
        let (header, _) = self.next_header(heads)?;
        self.make_next(header.number, header.first)
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
                log.begin_empty_segment(before)?;
            }
            log.begin_empty_segment(heads)
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

    /// Expresses the chain heads of each mark by the newest base that they reach: together they take
    /// little more memory than the greatest of them. On disk they are spelled out.
    pub(crate) fn share_bases(&self, bases: &Bases) {
        let newest_first = bases.newest_first();
        if newest_first.is_empty() {
            return;
        }
        let shared = |mark: &Mark| match newest_first.iter().find_map(|base| mark.heads.rebased(base)) {
            Some(heads) => Mark { heads: Arc::new(heads), ..mark.clone() },
            None => mark.clone(),
        };
        let mut published = self.published.lock();
        published.marks = Arc::new(published.marks.iter().map(shared).collect());
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
        if self.staged.len() == self.written {
            self.staged.push(StagedGroup { offset: self.end.offset, ..StagedGroup::default() });
        }
        self.staged.last_mut().expect("there is one now")
    }

    /// Sees to it that what a frame of so many bytes will be written to is there: the rest of the
    /// segment, or else the next one's file, for which it gives the header. Changes nothing that
    /// anybody reads.
    fn make_room(
        &mut self,
        frame_bytes: u64,
        before: &ChainHeads,
    ) -> Result<Option<(SegmentHeader, Vec<u8>)>, LogError> {
        let made = self.try_make_room(frame_bytes, before);
        if let Err(error) = &made
            && (matches!(error, LogError::Write { .. }) || self.config.takes_full_for_failed())
        {
            self.poison = Some(error.to_string());
        }
        made
    }

    fn try_make_room(
        &mut self,
        frame_bytes: u64,
        before: &ChainHeads,
    ) -> Result<Option<(SegmentHeader, Vec<u8>)>, LogError> {
        let end = self.end.offset + frame_bytes;
        if end <= self.config.segment_bytes || self.unmarked_bytes == 0 {
            let last = self.next.as_mut().filter(|next| next.number == self.end.segment);
            last.unwrap_or(&mut self.current).allocate(end, &self.files, &self.config)?;
            return Ok(None);
        }
        let (header, bytes) = self.next_header(before)?;
        self.make_next(header.number, header.first + frame_bytes)?;
        Ok(Some((header, bytes)))
    }

    /// The header of the segment that follows the last one where that ends now.
    fn next_header(&self, before: &ChainHeads) -> Result<(SegmentHeader, Vec<u8>), LogError> {
        let number = self.end.segment + 1;
        let offset = u32::try_from(self.end.offset).expect("a segment ends within a frame of its limit");
        SegmentHeader::encode(number, offset, self.link, self.salt, before)
            .ok_or_else(|| LogError::TooManyOrigins { origins: before.applied().len() })
    }

    /// Makes the file of the segment after the last, to `len` bytes. Where what is staged goes to such
    /// a file already, it is written first: a file is made only when the one before it has its header.
    fn make_next(&mut self, number: u64, len: u64) -> Result<(), LogError> {
        if self.next.as_ref().is_some_and(|next| next.number < number) {
            self.write_staged()?;
        }
        let next = match &mut self.next {
            Some(next) => next,
            none => {
                let name = segment_name(number);
                let file = self.files.create(&name).map_err(LogError::ahead("create", name))?;
                none.insert(CurrentSegment { number, file, allocated: 0 })
            }
        };
        next.allocate(len, &self.files, &self.config)
    }

    /// Begins a segment that nothing asks for yet.
    fn begin_empty_segment(&mut self, before: &ChainHeads) -> Result<(), LogError> {
        let (header, bytes) = self.next_header(before)?;
        self.make_next(header.number, header.first)?;
        self.begin_segment(&header, bytes, before);
        Ok(())
    }

    fn begin_segment(&mut self, header: &SegmentHeader, bytes: Vec<u8>, before: &ChainHeads) {
        let (number, previous, first) = (header.number, self.end, header.first);
        self.end = LogPosition { segment: number, offset: first };
        self.link = header.crc;
        let begins = Some(PublishedSegment { number, previous, first, end: first });
        self.staged.push(StagedGroup { offset: 0, bytes, begins });
        self.stage_mark(before, true);
    }

    fn stage_mark(&mut self, heads: &ChainHeads, segment_start: bool) {
        self.unmarked_bytes = 0;
        self.staged_marks.push(Mark { position: self.end, heads: Arc::new(heads.clone()), segment_start });
    }

    /// Writes and syncs what is staged and not on the disk yet.
    fn write_staged(&mut self) -> Result<(), LogError> {
        let staged = std::mem::take(&mut self.staged);
        let written = staged[self.written..].iter().try_for_each(|group| self.write_group(group));
        self.written = staged.len();
        self.staged = staged;
        written
    }

    /// Writes and syncs one group. Between two groups lies a segment's border, and the second is
    /// begun only when the first is synced: so a segment's header says that all before it was.
    fn write_group(&mut self, group: &StagedGroup) -> Result<(), LogError> {
        if group.bytes.is_empty() {
            return Ok(());
        }
        if group.begins.is_some() {
            self.current = self.next.take().expect("a segment is staged only when its file is there");
        }
        let name = segment_name(self.current.number);
        debug_assert!(group.offset + group.bytes.len() as u64 <= self.current.allocated, "staged without room");
        let file = &self.current.file;
        file.write_at(&group.bytes, group.offset).map_err(LogError::write("write", &name))?;
        if self.config.leaves_out_sync() {
            return Ok(());
        }
        file.sync().map_err(LogError::write("sync", &name))?;
        if group.begins.is_some() && !seeded_bug("no-directory-sync") {
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
    /// Makes the file reach `end`, and on to the next step within the segment's size if there is room.
    fn allocate<F: Files<File = L>>(&mut self, end: u64, files: &F, config: &LogConfig) -> Result<(), LogError> {
        if end <= self.allocated {
            return Ok(());
        }
        let name = segment_name(self.number);
        self.grow(end, files, config).map_err(LogError::ahead("allocate space for", name))
    }

    fn grow<F: Files<File = L>>(&mut self, end: u64, files: &F, config: &LogConfig) -> io::Result<()> {
        let step = end.next_multiple_of(config.allocate_bytes).min(config.segment_bytes).max(end);
        let longest = self.longest(files, config);
        if end > longest {
            let what = format!("no more than {} MiB are free, which checkpoints may need", config.reserve_bytes >> 20);
            return Err(io::Error::new(io::ErrorKind::StorageFull, what));
        }
        let len = if step > longest { end } else { step };
        let allocated = self.file.allocate(len);
        match allocated {
            Ok(()) => self.allocated = len,
            // A part of the step is there, and may be enough.
            Err(error) if is_full(&error) => {
                self.allocated = self.file.len()?.max(self.allocated);
                if self.allocated < end {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// How long the file may become, by what the disk has free.
    fn longest<F: Files<File = L>>(&self, files: &F, config: &LogConfig) -> u64 {
        match config.reserve_bytes {
            0 => u64::MAX,
            reserve => files.free_bytes().map_or(u64::MAX, |free| self.allocated + free.saturating_sub(reserve)),
        }
    }
}
