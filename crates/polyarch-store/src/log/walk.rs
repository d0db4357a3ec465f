//! Reading a log's files from front to back, believing nothing.
//!
//! Recovery and offline inspection are the same walk: through all segment headers, then frame by
//! frame to the first place that holds none, then on from there in search of anything that says
//! that something else should be in that place.

use std::io;
use std::sync::Arc;

use polyarch_protocol::{ChainHeads, LogPosition};

use super::error::{Damage, LogError};
use super::format::{
    ALIGNMENT, FRAME_HEADER_BYTES, FrameHeader, HeaderError, Invalid, SEGMENT_HEADER_BYTES, SegmentHeader, aligned,
    segment_name, segment_number,
};
use crate::files::{Files, LogFile};

/// Bytes read at once.
const WINDOW_BYTES: usize = 256 << 10;

/// A file seen through a buffer that moves forward.
pub(crate) struct Window<L> {
    name: String,
    file: L,
    len: u64,
    start: u64,
    buffer: Vec<u8>,
}

impl<L: LogFile> Window<L> {
    pub(crate) fn open<F: Files<File = L>>(files: &F, number: u64) -> Result<Self, LogError> {
        let name = segment_name(number);
        let file = files.open_to_read(&name).map_err(LogError::io("open", &name))?;
        let len = file.len().map_err(LogError::io("find the length of", &name))?;
        Ok(Self { name, file, len, start: 0, buffer: Vec::new() })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes at `offset`, fewer where the file ends.
    pub(crate) fn bytes(&mut self, offset: u64, len: usize) -> Result<&[u8], LogError> {
        let len = len.min(usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX));
        let end = offset + len as u64;
        if offset < self.start || end > self.start + self.buffer.len() as u64 {
            let want = len.max(WINDOW_BYTES).min((self.len - offset.min(self.len)) as usize);
            self.buffer.resize(want, 0);
            let read = self.file.read_at(&mut self.buffer, offset).map_err(LogError::io("read", &self.name))?;
            self.buffer.truncate(read);
            self.start = offset;
        }
        let from = ((offset - self.start) as usize).min(self.buffer.len());
        let to = (from + len).min(self.buffer.len());
        Ok(&self.buffer[from..to])
    }

    pub(crate) fn header(&mut self) -> Result<Result<SegmentHeader, HeaderError>, LogError> {
        let needed = match SegmentHeader::bytes_needed(self.bytes(0, SEGMENT_HEADER_BYTES)?) {
            Ok(needed) => needed,
            Err(invalid) => return Ok(Err(HeaderError::Invalid(invalid))),
        };
        Ok(SegmentHeader::decode(self.bytes(0, needed)?))
    }

    /// The frame at a place, with all but its link checked.
    pub(crate) fn frame(&mut self, at: LogPosition, salt: u32) -> Result<Result<FrameHeader, Invalid>, LogError> {
        let Ok(header) = <&[u8; FRAME_HEADER_BYTES]>::try_from(self.bytes(at.offset, FRAME_HEADER_BYTES)?) else {
            return Ok(Err(Invalid("the end of the file")));
        };
        let header = match FrameHeader::decode(header, salt, at) {
            Ok(header) => header,
            Err(invalid) => return Ok(Err(invalid)),
        };
        let write_set = self.bytes(at.offset + FRAME_HEADER_BYTES as u64, header.len)?;
        if write_set.len() != header.len {
            return Ok(Err(Invalid("a frame cut short by the end of the file")));
        }
        Ok(header.check(write_set).map(|()| header))
    }

    /// The first frame at or behind `from` whose header is valid and accepted.
    ///
    /// Only headers are tested: that is cheap whatever the bytes claim, and a header says all that
    /// is asked here.
    fn find_header(
        &mut self,
        from: LogPosition,
        salt: u32,
        accept: impl Fn(&FrameHeader) -> bool,
    ) -> Result<Option<(LogPosition, FrameHeader)>, LogError> {
        let mut at = LogPosition { offset: aligned(from.offset), ..from };
        while at.offset + FRAME_HEADER_BYTES as u64 <= self.len {
            let Ok(bytes) = <&[u8; FRAME_HEADER_BYTES]>::try_from(self.bytes(at.offset, FRAME_HEADER_BYTES)?) else {
                break;
            };
            if FrameHeader::is_at(bytes, at)
                && let Ok(header) = FrameHeader::decode(bytes, salt, at)
                && accept(&header)
            {
                return Ok(Some((at, header)));
            }
            at.offset += ALIGNMENT;
        }
        Ok(None)
    }

    /// Whether only zeros lie behind `offset`.
    fn is_blank_from(&mut self, offset: u64) -> Result<bool, LogError> {
        Ok(self.last_byte_from(offset)? == offset)
    }

    /// The end of the last byte from `offset` on that is not zero.
    pub(crate) fn last_byte_from(&mut self, offset: u64) -> Result<u64, LogError> {
        let mut last = offset;
        let mut at = offset;
        while at < self.len {
            let bytes = self.bytes(at, WINDOW_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            if let Some(index) = bytes.iter().rposition(|byte| *byte != 0) {
                last = at + index as u64 + 1;
            }
            at += bytes.len() as u64;
        }
        Ok(last)
    }
}

/// A segment as its header describes it.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    /// Offset of the first frame.
    pub(crate) first: u64,
    /// Where the previous segment ends.
    pub(crate) previous: LogPosition,
    pub(crate) previous_link: u32,
    /// The link of the first frame.
    pub(crate) link: u32,
    pub(crate) heads: Arc<ChainHeads>,
}

impl From<SegmentHeader> for Segment {
    fn from(header: SegmentHeader) -> Self {
        Self {
            number: header.number,
            first: header.first,
            previous: header.previous(),
            previous_link: header.previous_link,
            link: header.crc,
            heads: Arc::new(header.heads),
        }
    }
}

impl Segment {
    pub(crate) fn start(&self) -> LogPosition {
        LogPosition { segment: self.number, offset: self.first }
    }
}

/// What the headers of a directory's segments say.
pub(crate) enum Outline {
    /// There is no log yet, or one whose creation was cut off before anything could be in it.
    Blank {
        /// Whether segment 1 has a file all the same.
        file: bool,
    },
    Segments {
        /// At least one, without gaps in their numbers.
        segments: Vec<Segment>,
        salt: u32,
        /// A last file that holds no header: the power cut came while it was begun.
        unborn: Option<u64>,
    },
}

/// Reads the headers of all segments.
pub(crate) fn outline<F: Files>(files: &F, known_synced: Option<LogPosition>) -> Result<Outline, LogError> {
    // The position before all that ever was says nothing.
    let known_synced = known_synced.filter(|synced| *synced > LogPosition::default());
    let numbers = segment_numbers(files)?;
    let Some((&first, &last)) = numbers.first().zip(numbers.last()) else {
        return match known_synced {
            None => Ok(Outline::Blank { file: false }),
            Some(synced) => Err(LogError::Lost { end: LogPosition::default(), synced }),
        };
    };
    let mut segments: Vec<Segment> = Vec::with_capacity(numbers.len());
    let mut salt = None;
    let mut unborn = None;
    for (index, number) in numbers.into_iter().enumerate() {
        let expected = first + index as u64;
        if number != expected {
            return Err(missing(expected, format!("{} exists", segment_name(number))));
        }
        let mut window = Window::open(files, number)?;
        match window.header()? {
            Ok(header) if header.number != number || salt.is_some_and(|salt| salt != header.salt) => {
                let found = Invalid("the header of a segment of another place or log");
                return Err(damaged(header_of(number), found, "the file's name says otherwise"));
            }
            Ok(header) => {
                salt = Some(header.salt);
                segments.push(header.into());
            }
            Err(HeaderError::Version(version)) => {
                let file = segment_name(number);
                return Err(LogError::Version { file, version });
            }
            Err(HeaderError::Invalid(found)) if number < last => {
                let evidence = format!("{} was begun only when this was synced", segment_name(number + 1));
                return Err(damaged(header_of(number), found, evidence));
            }
            // A log's first header is synced before the first frame is written.
            Err(HeaderError::Invalid(found)) if number == first => {
                if number == 1 && known_synced.is_none() && window.is_blank_from(SEGMENT_HEADER_BYTES as u64)? {
                    return Ok(Outline::Blank { file: true });
                }
                return Err(damaged(header_of(number), found, "it is the first segment of a log that was in use"));
            }
            Err(HeaderError::Invalid(_)) => unborn = Some(number),
        }
    }
    let salt = salt.expect("a first segment without a valid header has returned");
    Ok(Outline::Segments { segments, salt, unborn })
}

/// The numbers of the segments that have a file, in order.
pub(crate) fn segment_numbers<F: Files>(files: &F) -> Result<Vec<u64>, LogError> {
    let names = match files.list() {
        // A node that has joined and was never started has none yet.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        names => names.map_err(LogError::io("list", "the log's directory"))?,
    };
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment_number(name)).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// What the walk came upon.
pub(crate) enum Step<'a> {
    /// A segment begins here.
    Segment(&'a Segment),
    /// A valid frame.
    Frame(Frame<'a>),
    /// The end of the log: nothing says that something should be there.
    End(LogEnd),
}

/// A valid frame.
pub(crate) struct Frame<'a> {
    pub(crate) at: LogPosition,
    pub(crate) end: LogPosition,
    /// What it says was synced when it was staged.
    pub(crate) synced: LogPosition,
    pub(crate) write_set: &'a [u8],
}

/// Where a log ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogEnd {
    pub(crate) at: LogPosition,
    /// The link of the frame that will come there.
    pub(crate) link: u32,
    /// The last position that is known synced: by a header, a frame or the checkpoint.
    pub(crate) synced: LogPosition,
}

/// Goes through the frames of a log.
pub(crate) struct Walk<F: Files> {
    files: F,
    segments: Vec<Segment>,
    salt: u32,
    unborn: Option<u64>,
    known_synced: Option<LogPosition>,
    /// Which of `segments` is walked, and whether its beginning was told.
    index: usize,
    told: bool,
    /// The segment it began with.
    began: usize,
    window: Window<F::File>,
    at: LogPosition,
    link: u32,
    synced: LogPosition,
    /// Seeded bug: go on behind an invalid frame.
    leap: bool,
}

impl<F: Files> Walk<F> {
    /// Begins at the start of the segment that holds `from`, or of the first.
    pub(crate) fn new(
        files: F,
        segments: Vec<Segment>,
        salt: u32,
        unborn: Option<u64>,
        known_synced: Option<LogPosition>,
        from: Option<LogPosition>,
    ) -> Result<Self, LogError> {
        let from = from.map_or(0, |from| from.segment);
        let index = segments.iter().rposition(|segment| segment.number <= from).unwrap_or(0);
        let segment = &segments[index];
        let window = Window::open(&files, segment.number)?;
        let (at, link, synced) = (segment.start(), segment.link, header_of(segment.number));
        Ok(Self {
            files,
            segments,
            salt,
            unborn,
            known_synced,
            index,
            told: false,
            began: index,
            window,
            at,
            link,
            synced: known_synced.unwrap_or_default().max(synced),
            leap: false,
        })
    }

    /// Seeded bug: invalid frames are passed over where valid ones follow.
    pub(crate) fn leap_over_invalid(&mut self, leap: bool) {
        self.leap = leap;
    }

    pub(crate) fn window(&mut self) -> &mut Window<F::File> {
        &mut self.window
    }

    /// The segments before the one it began with, and that one.
    pub(crate) fn passed_over(&self) -> &[Segment] {
        &self.segments[..=self.began]
    }

    pub(crate) fn first_segment(&self) -> u64 {
        self.segments[0].number
    }

    pub(crate) fn into_segments(self) -> Vec<Segment> {
        self.segments
    }

    /// The next frame or the end; after the end, the end again.
    pub(crate) fn step(&mut self) -> Result<Step<'_>, LogError> {
        if !self.told {
            self.told = true;
            return Ok(Step::Segment(&self.segments[self.index]));
        }
        let header = loop {
            let found = match self.window.frame(self.at, self.salt)? {
                Ok(header) if header.link != self.link && !self.leap => {
                    Invalid("a frame that does not follow the one before it")
                }
                Ok(header) => break header,
                Err(found) => found,
            };
            if self.leap
                && let Some(at) = self.next_valid()?
            {
                self.at = at;
                continue;
            }
            match self.index + 1 < self.segments.len() {
                true => return self.enter_next_segment(found).map(Step::Segment),
                false => return self.end(found).map(Step::End),
            }
        };
        let at = self.at;
        self.link = header.next_link();
        self.synced = self.synced.max(header.synced);
        self.at.offset += header.frame_bytes();
        Ok(Step::Frame(Frame {
            at,
            end: self.at,
            synced: header.synced,
            write_set: self.window.bytes(at.offset + FRAME_HEADER_BYTES as u64, header.len)?,
        }))
    }

    /// Seeded bug: the next valid frame behind the invalid one at hand.
    fn next_valid(&mut self) -> Result<Option<LogPosition>, LogError> {
        let mut from = self.at;
        loop {
            from.offset += ALIGNMENT;
            let Some((at, _)) = self.window.find_header(from, self.salt, |_| true)? else {
                return Ok(None);
            };
            if self.window.frame(at, self.salt)?.is_ok() {
                return Ok(Some(at));
            }
            from = at;
        }
    }

    fn enter_next_segment(&mut self, found: Invalid) -> Result<&Segment, LogError> {
        let next = &self.segments[self.index + 1];
        if self.at != next.previous || self.link != next.previous_link {
            let evidence = format!("{} continues from {}", segment_name(next.number), next.previous);
            return Err(damaged(self.at, found, evidence));
        }
        self.window = Window::open(&self.files, next.number)?;
        self.at = next.start();
        self.link = next.link;
        self.synced = self.synced.max(header_of(next.number));
        self.index += 1;
        Ok(&self.segments[self.index])
    }

    /// The place at hand holds no frame: is there anything that says it should?
    fn end(&mut self, found: Invalid) -> Result<LogEnd, LogError> {
        let end = LogEnd { at: self.at, link: self.link, synced: self.synced };
        if let Some(synced) = self.known_synced.filter(|synced| *synced > end.at) {
            return Err(match self.window.is_blank_from(end.at.offset)? && self.unborn.is_none() {
                true => LogError::Lost { end: end.at, synced },
                false => damaged(end.at, found, checkpoint_says(synced)),
            });
        }
        if end.synced > end.at {
            let evidence = format!("an earlier frame says that the log was synced to {}", end.synced);
            return Err(damaged(end.at, found, evidence));
        }
        if self.leap {
            return Ok(end);
        }
        let mut witness = self.window.find_header(end.at, self.salt, |header| header.synced > end.at)?;
        if let (None, Some(number)) = (witness, self.unborn) {
            let mut window = Window::open(&self.files, number)?;
            witness = window.find_header(header_of(number), self.salt, |header| header.synced > end.at)?;
        }
        match witness {
            None => Ok(end),
            Some((at, header)) => {
                let evidence = format!("the frame at {at} says that the log was synced to {}", header.synced);
                Err(damaged(end.at, found, evidence))
            }
        }
    }
}

fn header_of(segment: u64) -> LogPosition {
    LogPosition { segment, offset: 0 }
}

fn checkpoint_says(synced: LogPosition) -> String {
    format!("the checkpoint says that the log was synced to {synced}")
}

fn missing(segment: u64, evidence: String) -> LogError {
    LogError::Damaged(Damage { file: segment_name(segment), position: header_of(segment), found: None, evidence })
}

fn damaged(position: LogPosition, found: Invalid, evidence: impl Into<String>) -> LogError {
    LogError::Damaged(Damage {
        file: segment_name(position.segment),
        position,
        found: Some(found.0.into()),
        evidence: evidence.into(),
    })
}
