use std::collections::VecDeque;

use bytes::Bytes;
use polyarch_crdt::Record;
use polyarch_protocol::limits::wire;
use polyarch_protocol::{RecordKey, SnapshotPart, SnapshotRecord};

use super::sequence::Sequence;
use super::{FRAME_HEADER_BYTES, HEADER_BYTES, MAGIC, SnapshotError, header};
use crate::files::LogFile;

/// Bytes read from the file at once, unless a frame is longer.
const READ_BYTES: usize = 1 << 20;

/// What a file holds.
pub(super) struct Read {
    pub(super) sequence: Sequence,
    /// Where the last valid frame ends, and its CRC.
    pub(super) end: u64,
    pub(super) crc: u32,
}

/// Reads a file to its first frame that is not valid; `None` when there is not even a beginning.
pub(super) fn read<L: LogFile>(file: L) -> Result<Option<Read>, SnapshotError> {
    let mut frames = match Frames::new(file, None) {
        Ok(frames) => frames,
        Err(SnapshotError::Damaged(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(SnapshotPart::Begin(begin)) = frames.next()? else { return Ok(None) };
    let mut read = Read { sequence: Sequence::new(begin), end: frames.at, crc: frames.crc };
    // What was taken once follows on what was there, unless the file was altered.
    while let Some(part) = frames.next()?
        && let Ok(sequence) = read.sequence.followed_by(&part)
    {
        read = Read { sequence, end: frames.at, crc: frames.crc };
    }
    Ok(Some(read))
}

/// The frames of a file, one after the other.
pub(crate) struct Frames<L> {
    file: L,
    /// Up to where it is known to be sound; if it is not known, that is what is found out.
    sound: Option<u64>,
    len: u64,
    at: u64,
    crc: u32,
    buffer: Bytes,
    buffer_at: u64,
}

impl<L: LogFile> Frames<L> {
    pub(crate) fn new(file: L, sound: Option<u64>) -> Result<Self, SnapshotError> {
        let len = file.len().map_err(SnapshotError::io("find the length of"))?;
        let (at, buffer) = (HEADER_BYTES as u64, Bytes::new());
        let mut frames = Self { file, sound, len, at, crc: 0, buffer, buffer_at: 0 };
        let found = frames.bytes(0, HEADER_BYTES)?;
        let (Some(fixed), Some(crc)) = (found.get(..12), found.get(12..HEADER_BYTES)) else {
            return Err(SnapshotError::Damaged(0));
        };
        frames.crc = crc32c::crc32c(fixed);
        match fixed[..8] == MAGIC && crc == frames.crc.to_le_bytes() {
            true if found[..] == header() => Ok(frames),
            true => Err(SnapshotError::Version(u32_at(fixed, 8))),
            false => Err(SnapshotError::Damaged(0)),
        }
    }

    /// The next part; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<SnapshotPart>, SnapshotError> {
        if self.sound.is_some_and(|sound| self.at >= sound) {
            return Ok(None);
        }
        let at = self.at;
        match self.frame()?.and_then(|part| SnapshotPart::decode(&part).ok()) {
            Some(part) => Ok(Some(part)),
            None if self.sound.is_some() => Err(SnapshotError::Damaged(at)),
            None => Ok(None),
        }
    }

    fn frame(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        let fixed = self.bytes(self.at, FRAME_HEADER_BYTES)?;
        if fixed.len() < FRAME_HEADER_BYTES {
            return Ok(None);
        }
        let len = u32_at(&fixed, 0) as usize;
        if len > wire::FRAME_BYTES_MAX {
            return Ok(None);
        }
        let part = self.bytes(self.at + FRAME_HEADER_BYTES as u64, len)?;
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(self.crc, &fixed[..4]), &part);
        if part.len() < len || crc != u32_at(&fixed, 4) {
            return Ok(None);
        }
        self.at += (FRAME_HEADER_BYTES + len) as u64;
        self.crc = crc;
        Ok(Some(part))
    }

    /// The bytes at `offset`, fewer where the file ends.
    fn bytes(&mut self, offset: u64, len: usize) -> Result<Bytes, SnapshotError> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let len = len.min(left);
        let end = offset + len as u64;
        if offset < self.buffer_at || end > self.buffer_at + self.buffer.len() as u64 {
            let mut buffer = vec![0; len.max(READ_BYTES).min(left)];
            let read = self.file.read_at(&mut buffer, offset).map_err(SnapshotError::io("read"))?;
            buffer.truncate(read);
            (self.buffer, self.buffer_at) = (buffer.into(), offset);
        }
        let from = ((offset - self.buffer_at) as usize).min(self.buffer.len());
        Ok(self.buffer.slice(from..(from + len).min(self.buffer.len())))
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

/// The records of a whole snapshot, in order of keys, and then its log.
pub(crate) struct SnapshotRecordReader<L> {
    frames: Frames<L>,
    page: VecDeque<SnapshotRecord>,
    /// The record at hand, to which the next piece may be another.
    open: Option<(RecordKey, Record)>,
    /// Whether the last record of the part at hand goes on in the next.
    cut: bool,
    /// The first write sets of the log, which end the records.
    log: Option<Vec<Bytes>>,
}

impl<L: LogFile> SnapshotRecordReader<L> {
    pub(super) fn new(frames: Frames<L>) -> Self {
        Self { frames, page: VecDeque::new(), open: None, cut: false, log: None }
    }

    /// The next record; `None` when there are no more.
    pub(crate) fn next_record(&mut self) -> Result<Option<(RecordKey, Record)>, SnapshotError> {
        loop {
            while let Some(SnapshotRecord { key, record }) = self.page.pop_front() {
                match &mut self.open {
                    Some((open, whole)) if *open == key => whole.unite(record),
                    open => {
                        if let Some(whole) = open.replace((key, record)) {
                            return Ok(Some(whole));
                        }
                    }
                }
            }
            if !self.cut && self.open.is_some() {
                return Ok(self.open.take());
            }
            if self.log.is_some() {
                return Ok(None);
            }
            match self.frames.next()? {
                Some(SnapshotPart::Records { records, cut }) => {
                    self.page = records.into();
                    self.cut = cut;
                }
                // The pieces of a record whose rest did not come; the record comes again.
                Some(SnapshotPart::Resumed(_)) => {
                    (self.cut, self.open) = (false, None);
                }
                Some(SnapshotPart::Log(write_sets)) => self.log = Some(write_sets),
                Some(SnapshotPart::LogEnd(_) | SnapshotPart::End(_)) | None => self.log = Some(Vec::new()),
                Some(SnapshotPart::Begin(_) | SnapshotPart::GivenUp(_)) => {}
            }
        }
    }

    /// The next write sets of the log, behind all records; `None` when there are no more.
    pub(crate) fn next_write_sets(&mut self) -> Result<Option<Vec<Bytes>>, SnapshotError> {
        if let Some(write_sets) = self.log.as_mut().filter(|write_sets| !write_sets.is_empty()) {
            return Ok(Some(std::mem::take(write_sets)));
        }
        loop {
            match self.frames.next()? {
                Some(SnapshotPart::Log(write_sets)) => return Ok(Some(write_sets)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }
}
