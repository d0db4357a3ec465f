use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use polyarch_protocol::{ChainHeads, LogBatch, LogMark, LogPosition, LogReadError, LogSource};

use super::LogBoundary;
use super::format::{ALIGNMENT, FRAME_HEADER_BYTES, FrameHeader, Invalid, frame_bytes, segment_name, write_set_bytes};
use crate::files::{Files, LogFile};

/// Bytes read from a file at once, unless a single frame is longer.
const READ_BYTES_MAX: usize = 1 << 20;

/// Places of damage that are logged; with more than that nobody needs another.
const DAMAGE_TOLD_MAX: usize = 1_000;

/// Synced groups taken from memory at once, while the appender may wait.
const BLOCKS_MAX: usize = 256;

/// What the appender tells its readers: the durable log, and nothing else.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) salt: u32,
    pub(crate) end: LogPosition,
    /// The retained segments, oldest first, at least one.
    pub(crate) segments: VecDeque<PublishedSegment>,
    /// Copied when it changes, so that a search needs no lock.
    pub(crate) marks: Arc<Vec<Mark>>,
    pub(crate) tail: Tail,
    /// Where a read failed and it was logged.
    pub(crate) damage_told: BTreeSet<LogPosition>,
    /// Seeded bug: recovery has left invalid frames in the log, so readers pass over them.
    pub(crate) leap: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct PublishedSegment {
    pub(crate) number: u64,
    /// Where the previous segment ends.
    pub(crate) previous: LogPosition,
    /// Offset of the first frame.
    pub(crate) first: u64,
    /// Offset of the durable end.
    pub(crate) end: u64,
}

#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub(crate) position: LogPosition,
    pub(crate) heads: Arc<ChainHeads>,
    /// Whether it is a segment's start, which lasts as long as the segment.
    pub(crate) segment_start: bool,
}

/// The last synced groups, without gaps, up to the durable end.
#[derive(Debug, Default)]
pub(crate) struct Tail {
    blocks: VecDeque<Block>,
    bytes: usize,
}

/// Whole frames of one segment.
#[derive(Debug, Clone)]
struct Block {
    start: LogPosition,
    frames: Bytes,
}

impl Block {
    fn end(&self) -> u64 {
        self.start.offset + self.frames.len() as u64
    }
}

impl Tail {
    pub(crate) fn push(&mut self, start: LogPosition, frames: Bytes, bytes_max: usize) {
        self.bytes += frames.len();
        self.blocks.push_back(Block { start, frames });
        while self.bytes > bytes_max
            && let Some(oldest) = self.blocks.pop_front()
        {
            self.bytes -= oldest.frames.len();
        }
    }

    fn forget_segments_before(&mut self, first: u64) {
        while let Some(oldest) = self.blocks.pop_front_if(|block| block.start.segment < first) {
            self.bytes -= oldest.frames.len();
        }
    }

    /// Blocks of one segment that follow each other from `from` on, no more than needed to pass
    /// `bytes_max`; none when `from` is not in the tail.
    fn blocks_from(&self, from: LogPosition, bytes_max: usize) -> Vec<Block> {
        let first = self.blocks.partition_point(|block| block.start <= from);
        let Some(first) = first.checked_sub(1) else {
            return Vec::new();
        };
        let mut bytes = 0;
        let mut found = Vec::new();
        for block in self.blocks.range(first..) {
            if block.start.segment != from.segment || block.end() <= from.offset {
                break;
            }
            let skipped = from.offset.saturating_sub(block.start.offset) as usize;
            bytes += block.frames.len() - skipped;
            found.push(Block { start: from.max(block.start), frames: block.frames.slice(skipped..) });
            if bytes >= bytes_max || found.len() == BLOCKS_MAX {
                break;
            }
        }
        found
    }
}

/// Where the next frames are.
enum Place {
    End,
    Memory(Vec<Block>),
    File { end: u64, salt: u32, leap: bool },
}

impl Published {
    /// Where the frames at `position` are; moves it over a segment's border.
    fn locate(&self, position: &mut LogPosition, bytes_max: usize) -> Result<Place, LogReadError> {
        let first = self.segments.front().expect("a log has a current segment");
        // For a log that begins with segment 1 that is the position 0:0, before all that ever was.
        if *position == first.previous {
            *position = first.start();
        }
        if position.segment < first.number {
            return Err(LogReadError::Removed(position.segment));
        }
        let behind = || damaged(*position, "a position behind the durable end of the log");
        let index = usize::try_from(position.segment - first.number).map_err(|_| behind())?;
        let mut segment = self.segments.get(index).ok_or_else(behind)?;
        // At a boundary lies a segment without frames.
        for next in self.segments.iter().skip(index + 1) {
            if position.offset != segment.end {
                break;
            }
            segment = next;
            *position = next.start();
        }
        if position.offset == 0 {
            *position = segment.start();
        }
        if position.offset > segment.end || position.offset < segment.first {
            return Err(damaged(*position, "a position that is not in the durable log"));
        }
        if position.offset == segment.end {
            return Ok(Place::End);
        }
        let blocks = self.tail.blocks_from(*position, bytes_max);
        Ok(match blocks.is_empty() {
            false => Place::Memory(blocks),
            true => Place::File { end: segment.end, salt: self.salt, leap: self.leap },
        })
    }

    /// Adds marks of what has become durable, and lets the oldest between the segments' starts go.
    pub(crate) fn add_marks(&mut self, staged: &mut Vec<Mark>, marks_max: usize) {
        if staged.is_empty() {
            return;
        }
        let marks = Arc::make_mut(&mut self.marks);
        marks.append(staged);
        let between = marks.iter().filter(|mark| !mark.segment_start).count();
        let mut excess = between.saturating_sub(marks_max);
        marks.retain(|mark| {
            let goes = excess > 0 && !mark.segment_start;
            excess -= usize::from(goes);
            !goes
        });
    }

    /// The first segment is about to be removed.
    pub(crate) fn forget_first_segment(&mut self) {
        self.segments.pop_front();
        let Some(first) = self.segments.front().map(|segment| segment.number) else {
            return;
        };
        Arc::make_mut(&mut self.marks).retain(|mark| mark.position.segment >= first);
        self.tail.forget_segments_before(first);
    }

    /// Where a segment without frames is followed by one whose header has other heads.
    pub(crate) fn boundaries(&self) -> Vec<LogBoundary> {
        let starts = self.marks.iter().filter(|mark| mark.segment_start);
        let segments: Vec<_> = self.segments.iter().zip(starts).collect();
        let pairs = segments.windows(2).filter(|pair| pair[0].0.is_empty() && pair[0].1.heads != pair[1].1.heads);
        let boundary = |pair: &[(&PublishedSegment, &Mark)]| LogBoundary {
            position: pair[1].1.position,
            before: Arc::clone(&pair[0].1.heads),
            heads: Arc::clone(&pair[1].1.heads),
        };
        pairs.map(boundary).collect()
    }

    pub(crate) fn is_removed(&self, segment: u64) -> bool {
        self.segments.front().is_some_and(|first| segment < first.number)
    }
}

impl PublishedSegment {
    fn start(&self) -> LogPosition {
        LogPosition { segment: self.number, offset: self.first }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.end == self.first
    }
}

/// Reads the durable part of a log, beside its appender and other readers.
///
/// Recent frames come from memory, older ones from their files; both give the same. A reader
/// holds the appender up only for as long as it takes to find the place and to count up a few
/// references.
#[derive(Debug)]
pub struct LogReader<F: Files> {
    files: F,
    published: Arc<Mutex<Published>>,
}

impl<F: Files> Clone for LogReader<F> {
    fn clone(&self) -> Self {
        Self { files: self.files.clone(), published: Arc::clone(&self.published) }
    }
}

impl<F: Files> LogReader<F> {
    pub(crate) fn new(files: F, published: Arc<Mutex<Published>>) -> Self {
        Self { files, published }
    }

    /// The end of what can be read.
    pub fn durable_end(&self) -> LogPosition {
        self.published.lock().end
    }

    /// Where snapshots were joined, oldest first: a feed that reads across one goes on behind write
    /// sets that are not in this log.
    pub fn boundaries(&self) -> Vec<LogBoundary> {
        self.published.lock().boundaries()
    }

    /// Hands over each frame from `from` on, with the position where it ends, to the durable end.
    pub(crate) fn for_each<E: From<LogReadError>>(
        &self,
        from: LogPosition,
        mut f: impl FnMut(LogPosition, Bytes) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut next = from;
        loop {
            let mut piece = Piece::new(next, READ_BYTES_MAX);
            self.read_piece(&mut piece)?;
            if piece.frames.is_empty() {
                return Ok(());
            }
            next = piece.next;
            for (end, write_set) in piece.frames {
                f(end, write_set)?;
            }
        }
    }

    fn read_piece(&self, piece: &mut Piece) -> Result<(), LogReadError> {
        while !piece.is_full() {
            let bytes_left = piece.bytes_left();
            let place = self.published.lock().locate(&mut piece.next, bytes_left);
            let read = match place {
                Ok(Place::End) => return Ok(()),
                Ok(Place::Memory(blocks)) => blocks.iter().try_for_each(|block| piece.take_from_memory(block)),
                Ok(Place::File { end, salt, leap }) => self.read_file(piece, end, salt, leap),
                Err(error) => Err(error),
            };
            match read {
                // What was read is good; the next call will meet the error again.
                Err(_) if !piece.frames.is_empty() => return Ok(()),
                read => read?,
            }
        }
        Ok(())
    }

    /// Logs, once for each place, that this node cannot read its own log: whoever it feeds learns
    /// of it too, and can do nothing about it.
    fn tell(&self, at: LogPosition, error: &LogReadError) {
        let is_removed = matches!(error, LogReadError::Removed(_));
        let told = &mut self.published.lock().damage_told;
        if is_removed || told.len() >= DAMAGE_TOLD_MAX || !told.insert(at) {
            return;
        }
        tracing::error!(
            segment = segment_name(at.segment),
            offset = at.offset,
            %error,
            "the log cannot be read, and peers cannot be fed from there; stop the node, keep a copy of the data \
             directory and run `polyarch verify` on it"
        );
    }

    fn read_file(&self, piece: &mut Piece, end: u64, salt: u32, leap: bool) -> Result<(), LogReadError> {
        let at = piece.next;
        let wanted = match leap {
            false => piece.bytes_left().clamp(4 << 10, READ_BYTES_MAX),
            true => usize::MAX,
        };
        let mut bytes = self.read_bytes(at, wanted, end)?;
        if let Ok(header) = frame_header(&bytes, salt, at)
            && header.frame_bytes() > bytes.len() as u64
        {
            bytes = self.read_bytes(at, header.frame_bytes() as usize, end)?;
        }
        piece.take_from_file(&bytes, salt, leap)
    }

    fn read_bytes(&self, at: LogPosition, len: usize, end: u64) -> Result<Bytes, LogReadError> {
        let len = len.min(usize::try_from(end - at.offset).unwrap_or(usize::MAX));
        let mut bytes = vec![0; len];
        let name = segment_name(at.segment);
        let read = self.files.open_to_read(&name).and_then(|file| file.read_at(&mut bytes, at.offset));
        match read {
            Ok(read) => bytes.truncate(read),
            Err(_) if self.published.lock().is_removed(at.segment) => return Err(LogReadError::Removed(at.segment)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(damaged(at, "no such file")),
            Err(error) => return Err(LogReadError::Io(format!("{name}: {error}"))),
        }
        Ok(bytes.into())
    }
}

impl<F: Files> LogSource for LogReader<F> {
    fn last_mark(&self, reached: &dyn Fn(&ChainHeads) -> bool) -> Option<LogMark> {
        let marks = Arc::clone(&self.published.lock().marks);
        let count = marks.partition_point(|mark| reached(&mark.heads));
        let mark = &marks[count.checked_sub(1)?];
        Some(LogMark { position: mark.position, heads: ChainHeads::clone(&mark.heads) })
    }

    fn read(&self, from: LogPosition, bytes_max: usize) -> Result<LogBatch, LogReadError> {
        let mut piece = Piece::new(from, bytes_max);
        self.read_piece(&mut piece).inspect_err(|error| self.tell(piece.next, error))?;
        Ok(LogBatch {
            write_sets: piece.frames.into_iter().map(|(_, write_set)| write_set).collect(),
            next: piece.next,
        })
    }
}

/// Consecutive frames on their way to whoever reads.
struct Piece {
    /// Each write set and where its frame ends.
    frames: Vec<(LogPosition, Bytes)>,
    next: LogPosition,
    bytes: usize,
    bytes_max: usize,
}

impl Piece {
    fn new(from: LogPosition, bytes_max: usize) -> Self {
        Self { frames: Vec::new(), next: from, bytes: 0, bytes_max }
    }

    fn is_full(&self) -> bool {
        !self.frames.is_empty() && self.bytes >= self.bytes_max
    }

    fn bytes_left(&self) -> usize {
        self.bytes_max.saturating_sub(self.bytes)
    }

    fn push(&mut self, write_set: Bytes) {
        self.next.offset += frame_bytes(write_set.len());
        self.bytes += write_set.len();
        self.frames.push((self.next, write_set));
    }

    /// Takes frames that this process wrote and synced: only that a frame begins here is checked.
    fn take_from_memory(&mut self, block: &Block) -> Result<(), LogReadError> {
        while !self.is_full() && self.next.offset < block.end() {
            let frame = block.frames.slice((self.next.offset - block.start.offset) as usize..);
            let begins = frame.first_chunk().is_some_and(|header| FrameHeader::is_at(header, self.next));
            if !begins {
                return Err(damaged(self.next, "no frame"));
            }
            self.push(frame.slice(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + write_set_bytes(&frame)));
        }
        Ok(())
    }

    /// Takes whole frames from bytes of a file that begin at `next`.
    fn take_from_file(&mut self, bytes: &Bytes, salt: u32, leap: bool) -> Result<(), LogReadError> {
        let start = self.next.offset;
        while !self.is_full() {
            let at = (self.next.offset - start) as usize;
            // The zeros behind the last frame may be cut off: then `at` is behind the bytes' end.
            match write_set_in(bytes.get(at..).unwrap_or_default(), salt, self.next) {
                Ok(len) => self.push(bytes.slice(at + FRAME_HEADER_BYTES..at + FRAME_HEADER_BYTES + len)),
                Err(_) if leap && at + FRAME_HEADER_BYTES < bytes.len() => self.next.offset += ALIGNMENT,
                // Cut short by the end of what was read, or damaged: the next read begins here.
                Err(_) if at > 0 => return Ok(()),
                Err(found) => return Err(damaged(self.next, found.0)),
            }
        }
        Ok(())
    }
}

fn frame_header(bytes: &[u8], salt: u32, at: LogPosition) -> Result<FrameHeader, Invalid> {
    let header = bytes.first_chunk().ok_or(Invalid("a frame cut short"))?;
    FrameHeader::decode(header, salt, at)
}

/// The length of the write set in the frame that `bytes` begin with.
fn write_set_in(bytes: &[u8], salt: u32, at: LogPosition) -> Result<usize, Invalid> {
    let header = frame_header(bytes, salt, at)?;
    let write_set = bytes.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + header.len);
    header.check(write_set.ok_or(Invalid("a frame cut short"))?)?;
    Ok(header.len)
}

fn damaged(position: LogPosition, what: &str) -> LogReadError {
    LogReadError::Damaged { position, what: what.into() }
}
