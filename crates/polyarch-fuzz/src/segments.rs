//! Segments of a log, written from their drawing in `docs/disk-format.md` and not by the log's own code.
//!
//! A checksum lets next to nothing through that a fuzzer makes up. Here the numbers in headers and frames are choices,
//! and the checksums come out right all the same, unless a choice says otherwise.

use polyarch_protocol::{ChainHeads, LogPosition};

use crate::script::Script;

const HEADER_BYTES: usize = 40;

/// A file of a log, as it grows.
#[derive(Debug, Clone)]
pub struct SegmentWriter {
    number: u64,
    salt: u32,
    bytes: Vec<u8>,
    /// What the next frame names as the one before it.
    link: u32,
}

/// What stands in a frame's or segment's header instead of what should.
#[derive(Debug, Clone, Copy, Default)]
pub struct Forged {
    /// In place of one of its 32-bit words: which, and what.
    pub word: Option<(usize, u32)>,
    /// Whether the checksums are left as they were.
    pub keeps_checksums: bool,
}

impl Forged {
    /// Mostly nothing.
    pub fn of(script: &mut Script<'_>) -> Self {
        match script.one_in(8) {
            false => Self::default(),
            true => {
                Self { word: Some((script.below(10), script.any_number() as u32)), keeps_checksums: script.one_in(4) }
            }
        }
    }

    fn write(self, header: &mut [u8]) {
        if let Some((word, value)) = self.word
            && let Some(place) = header.get_mut(4 * word..4 * word + 4)
        {
            place.copy_from_slice(&value.to_le_bytes());
        }
    }
}

impl SegmentWriter {
    /// A segment behind another, which ends where and with what link `previous` says.
    pub fn begin(number: u64, previous: Option<&Self>, salt: u32, heads: &ChainHeads, forged: Forged) -> Self {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(b"polyalog");
        bytes.extend_from_slice(&1_u32.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes.extend_from_slice(&number.to_le_bytes());
        bytes.extend_from_slice(&(previous.map_or(0, |previous| previous.bytes.len() as u32)).to_le_bytes());
        bytes.extend_from_slice(&previous.map_or(0, |previous| previous.link).to_le_bytes());
        bytes.extend_from_slice(&salt.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        let mut bytes = postcard::to_extend(heads, bytes).expect("a Vec takes all that is written");
        let heads_bytes = (bytes.len() - HEADER_BYTES) as u32;
        bytes[12..16].copy_from_slice(&heads_bytes.to_le_bytes());
        if !forged.keeps_checksums {
            forged.write(&mut bytes[..36]);
        }
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..36]), &bytes[HEADER_BYTES..]);
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        if forged.keeps_checksums {
            forged.write(&mut bytes[..40]);
        }
        let mut segment = Self { number, salt, bytes, link: crc };
        segment.pad();
        segment
    }

    /// Adds a frame, which says that the log was synced up to `synced`. Says where it ends.
    pub fn frame(&mut self, write_set: &[u8], synced: LogPosition, forged: Forged) -> LogPosition {
        let at = self.end();
        let mut header = [0; HEADER_BYTES];
        header[0..4].copy_from_slice(&(write_set.len() as u32).to_le_bytes());
        header[4..8].copy_from_slice(&(at.offset as u32).to_le_bytes());
        header[8..16].copy_from_slice(&self.number.to_le_bytes());
        header[16..24].copy_from_slice(&synced.segment.to_le_bytes());
        header[24..28].copy_from_slice(&(synced.offset as u32).to_le_bytes());
        header[28..32].copy_from_slice(&self.link.to_le_bytes());
        if !forged.keeps_checksums {
            forged.write(&mut header[..32]);
        }
        let header_crc = crc32c::crc32c_append(self.salt, &header[..32]);
        let frame_crc = crc32c::crc32c_append(header_crc, write_set);
        header[32..36].copy_from_slice(&header_crc.to_le_bytes());
        header[36..40].copy_from_slice(&frame_crc.to_le_bytes());
        if forged.keeps_checksums {
            forged.write(&mut header);
        }
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(write_set);
        self.pad();
        self.link = frame_crc;
        self.end()
    }

    /// Bytes that are no frame.
    pub fn rubbish(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// Where the next frame begins.
    pub fn end(&self) -> LogPosition {
        LogPosition { segment: self.number, offset: self.bytes.len() as u64 }
    }

    /// The file's name.
    pub fn name(&self) -> String {
        format!("{:010}.log", self.number)
    }

    /// The file, with so many zeros behind its end.
    pub fn file(&self, zeros: usize) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len() + zeros, 0);
        bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }
}

/// The file of a snapshot that holds these parts; the checksum of each goes on where the one before ended.
pub fn snapshot_file<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut file = b"polysnap".to_vec();
    file.extend_from_slice(&1_u32.to_le_bytes());
    let mut crc = crc32c::crc32c(&file);
    file.extend_from_slice(&crc.to_le_bytes());
    for part in parts {
        let len = (part.len() as u32).to_le_bytes();
        crc = crc32c::crc32c_append(crc32c::crc32c_append(crc, &len), part);
        file.extend_from_slice(&len);
        file.extend_from_slice(&crc.to_le_bytes());
        file.extend_from_slice(part);
    }
    file
}
