//! The bytes of the log, format version 1.
//!
//! All numbers are little-endian. All checksums are CRC-32C (Castagnoli). Offsets in a position
//! count from the segment's start.
//!
//! A **segment** is one file, `0000000001.log`: the number in at least ten decimal digits. It is
//! a header, then frames without gaps, then zeros up to the file's end.
//!
//! ```text
//! segment header                                        at offset 0
//! +--------+------+-----------------------------------------------------------------+
//! | offset | size |                                                                 |
//! +--------+------+-----------------------------------------------------------------+
//! |      0 |    8 | magic: "polyalog"                                               |
//! |      8 |    4 | format version: 1                                               |
//! |     12 |    4 | H, the length of the chain heads                                |
//! |     16 |    8 | number of this segment, as in its name                          |
//! |     24 |    4 | offset where the previous segment ends; 0 in segment 1          |
//! |     28 |    4 | link: that of the first frame there would be in the previous    |
//! |        |      | segment behind its end; 0 in segment 1                          |
//! |     32 |    4 | salt of the log, the same in all of its segments                |
//! |     36 |    4 | CRC of bytes 0..36 and then of the chain heads                  |
//! |     40 |    H | chain heads of all that lies before this segment, in postcard   |
//! |   40+H |  0-7 | zeros, up to a multiple of 8                                    |
//! +--------+------+-----------------------------------------------------------------+
//!
//! frame                                                 at a multiple of 8
//! +--------+------+-----------------------------------------------------------------+
//! |      0 |    4 | L, the length of the write set, 1 to 16 MiB                     |
//! |      4 |    4 | offset of this frame                                            |
//! |      8 |    8 | number of this segment                                          |
//! |     16 |    8 | position known synced when this was staged: segment ...         |
//! |     24 |    4 | ... and offset                                                  |
//! |     28 |    4 | link: the frame CRC of the frame before this one; for the first |
//! |        |      | of a segment the CRC of the segment's header                    |
//! |     32 |    4 | header CRC: of bytes 0..32, begun with the salt                 |
//! |     36 |    4 | frame CRC: of the write set, begun with the header CRC          |
//! |     40 |    L | the bytes of the write set, as its origin encoded them          |
//! |   40+L |  0-7 | zeros, up to a multiple of 8                                    |
//! +--------+------+-----------------------------------------------------------------+
//! ```
//!
//! "A CRC begun with x" is one that goes on where the CRC x of other bytes ended.
//!
//! Magic, version, H and the checksum are where they are in every version, so that a header of a
//! newer one can be told from a damaged one.
//!
//! What each part is for:
//!
//! - **Two checksums in a frame.** The first makes the length trustworthy before anything of that
//!   length is read, and lets recovery test each multiple of 8 behind an invalid frame at the
//!   price of 40 bytes. The second covers all, since it begins with the first.
//! - **The position** keeps frames of another place from being taken for this one.
//! - **The link** keeps frames of an earlier life of this place from being taken for frames of
//!   this one. It runs over segment borders: a frame names the header, whose CRC covers the link
//!   to the previous segment.
//! - **The position known synced** is what tells damage from a group torn by a power cut.
//! - **The salt** is a random number that no client or peer ever sees. Without it a client could
//!   write a value that looks like a frame at a place it guesses, and after a torn group the
//!   node would believe that value's claim of what was synced, and refuse to start.
//! - **The previous segment's end**: a header is written only when all before it is synced, so a
//!   valid header says up to where the previous segment must be whole. It also gives a position
//!   at that end its meaning when the previous segment is gone.

use polyarch_protocol::limits::wire;
use polyarch_protocol::{ChainHeads, LogPosition};

pub(crate) const MAGIC: [u8; 8] = *b"polyalog";
pub(crate) const VERSION: u32 = 1;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 40;
pub(crate) const FRAME_HEADER_BYTES: usize = 40;
/// Frames begin at multiples of this.
pub(crate) const ALIGNMENT: u64 = 8;
/// Longest encoded chain heads: far beyond any cluster, and what a reader allocates at most.
pub(crate) const HEADS_BYTES_MAX: usize = wire::WRITE_SET_BYTES_MAX;
/// Longest segment one may ask for; offsets have 32 bits and the last frame may reach beyond.
pub(crate) const SEGMENT_BYTES_MAX: u64 = 1 << 30;

/// The file of a segment.
pub(crate) fn segment_name(number: u64) -> String {
    format!("{number:010}.log")
}

/// The number of a segment from its file's name, in its one canonical form.
pub(crate) fn segment_number(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".log")?.parse().ok()?;
    (number > 0 && segment_name(number) == name).then_some(number)
}

pub(crate) fn aligned(offset: u64) -> u64 {
    offset.next_multiple_of(ALIGNMENT)
}

/// Bytes of a frame with a write set of this length.
pub(crate) fn frame_bytes(write_set_bytes: usize) -> u64 {
    aligned((FRAME_HEADER_BYTES + write_set_bytes) as u64)
}

/// Why bytes are not what belongs there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Invalid(pub(crate) &'static str);

/// The header of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) number: u64,
    /// Where the previous segment ends, and the link of what would follow there.
    pub(crate) previous_end: u32,
    pub(crate) previous_link: u32,
    pub(crate) salt: u32,
    pub(crate) heads: ChainHeads,
    /// Also the link of the first frame.
    pub(crate) crc: u32,
    /// Offset of the first frame.
    pub(crate) first: u64,
}

impl SegmentHeader {
    /// The header and its bytes; `None` when the heads are too many.
    pub(crate) fn encode(
        number: u64,
        previous_end: u32,
        previous_link: u32,
        salt: u32,
        heads: &ChainHeads,
    ) -> Option<(Self, Vec<u8>)> {
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        bytes = postcard::to_extend(heads, bytes).expect("a Vec takes all that is written");
        let heads_bytes = bytes.len() - SEGMENT_HEADER_BYTES;
        if heads_bytes > HEADS_BYTES_MAX {
            return None;
        }
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&(heads_bytes as u32).to_le_bytes());
        bytes[16..24].copy_from_slice(&number.to_le_bytes());
        bytes[24..28].copy_from_slice(&previous_end.to_le_bytes());
        bytes[28..32].copy_from_slice(&previous_link.to_le_bytes());
        bytes[32..36].copy_from_slice(&salt.to_le_bytes());
        let crc = Self::checksum(&bytes);
        bytes[36..40].copy_from_slice(&crc.to_le_bytes());
        let first = aligned(bytes.len() as u64);
        bytes.resize(first as usize, 0);
        let header = Self { number, previous_end, previous_link, salt, heads: heads.clone(), crc, first };
        Some((header, bytes))
    }

    /// How many bytes the whole header has, by its first [`SEGMENT_HEADER_BYTES`].
    pub(crate) fn bytes_needed(fixed: &[u8]) -> Result<usize, Invalid> {
        if fixed.len() < SEGMENT_HEADER_BYTES || fixed[0..8] != MAGIC {
            return Err(Invalid("no segment header"));
        }
        match u32_at(fixed, 12) as usize {
            heads if heads > HEADS_BYTES_MAX => Err(Invalid("a segment header with an impossible length")),
            heads => Ok(SEGMENT_HEADER_BYTES + heads),
        }
    }

    /// Reads a header from exactly the bytes that [`bytes_needed`](Self::bytes_needed) asks for.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let invalid = |what| Err(HeaderError::Invalid(Invalid(what)));
        if bytes.len() != Self::bytes_needed(bytes).map_err(HeaderError::Invalid)? {
            return invalid("a segment header cut short");
        }
        let crc = u32_at(bytes, 36);
        if crc != Self::checksum(bytes) {
            return invalid("a segment header with a wrong checksum");
        }
        // Only now: of a header that was written in part any number may be left.
        match u32_at(bytes, 8) {
            VERSION => {}
            version => return Err(HeaderError::Version(version)),
        }
        let heads = match postcard::take_from_bytes(&bytes[SEGMENT_HEADER_BYTES..]) {
            Ok((heads, [])) => heads,
            _ => return invalid("a segment header with malformed chain heads"),
        };
        Ok(Self {
            number: u64_at(bytes, 16),
            previous_end: u32_at(bytes, 24),
            previous_link: u32_at(bytes, 28),
            salt: u32_at(bytes, 32),
            heads,
            crc,
            first: aligned(bytes.len() as u64),
        })
    }

    fn checksum(bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&bytes[..36]), &bytes[SEGMENT_HEADER_BYTES..])
    }

    /// Where the previous segment ends; nothing lies before segment 1.
    pub(crate) fn previous(&self) -> LogPosition {
        LogPosition { segment: self.number.saturating_sub(1), offset: u64::from(self.previous_end) }
    }
}

/// Why there is no segment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderError {
    /// Written by a newer version.
    Version(u32),
    Invalid(Invalid),
}

/// The header of a frame. Decoded ones have passed the header CRC, the length limit and the
/// comparison with the place they were read from; the link and the write set are still to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    pub(crate) len: usize,
    pub(crate) synced: LogPosition,
    pub(crate) link: u32,
    header_crc: u32,
    frame_crc: u32,
}

impl FrameHeader {
    pub(crate) fn decode(bytes: &[u8; FRAME_HEADER_BYTES], salt: u32, at: LogPosition) -> Result<Self, Invalid> {
        if !Self::is_at(bytes, at) {
            return Err(match bytes.iter().all(|byte| *byte == 0) {
                true => Invalid("zeros"),
                false => Invalid("no frame"),
            });
        }
        let header_crc = u32_at(bytes, 32);
        if header_crc != crc32c::crc32c_append(salt, &bytes[..32]) {
            return Err(Invalid("a frame header with a wrong checksum"));
        }
        let len = u32_at(bytes, 0) as usize;
        if len == 0 || len > wire::WRITE_SET_BYTES_MAX {
            return Err(Invalid("a frame with an impossible length"));
        }
        Ok(Self {
            len,
            synced: LogPosition { segment: u64_at(bytes, 16), offset: u64::from(u32_at(bytes, 24)) },
            link: u32_at(bytes, 28),
            header_crc,
            frame_crc: u32_at(bytes, 36),
        })
    }

    /// Whether the bytes claim to be the frame at this place: cheap, and the first thing to ask.
    pub(crate) fn is_at(bytes: &[u8; FRAME_HEADER_BYTES], at: LogPosition) -> bool {
        u64::from(u32_at(bytes, 4)) == at.offset && u64_at(bytes, 8) == at.segment
    }

    /// Checks the write set.
    pub(crate) fn check(&self, write_set: &[u8]) -> Result<(), Invalid> {
        match crc32c::crc32c_append(self.header_crc, write_set) == self.frame_crc {
            true => Ok(()),
            false => Err(Invalid("a write set with a wrong checksum")),
        }
    }

    /// The link of the next frame.
    pub(crate) fn next_link(&self) -> u32 {
        self.frame_crc
    }

    /// Bytes of the whole frame.
    pub(crate) fn frame_bytes(&self) -> u64 {
        frame_bytes(self.len)
    }
}

/// Appends a frame to `out` and gives the link of the next.
pub(crate) fn encode_frame(
    out: &mut Vec<u8>,
    write_set: &[u8],
    at: LogPosition,
    synced: LogPosition,
    link: u32,
    salt: u32,
) -> u32 {
    debug_assert!(at.offset.is_multiple_of(ALIGNMENT) && !write_set.is_empty());
    let mut header = [0; FRAME_HEADER_BYTES];
    header[0..4].copy_from_slice(&(write_set.len() as u32).to_le_bytes());
    header[4..8].copy_from_slice(&(at.offset as u32).to_le_bytes());
    header[8..16].copy_from_slice(&at.segment.to_le_bytes());
    header[16..24].copy_from_slice(&synced.segment.to_le_bytes());
    header[24..28].copy_from_slice(&(synced.offset as u32).to_le_bytes());
    header[28..32].copy_from_slice(&link.to_le_bytes());
    let header_crc = crc32c::crc32c_append(salt, &header[..32]);
    let frame_crc = crc32c::crc32c_append(header_crc, write_set);
    header[32..36].copy_from_slice(&header_crc.to_le_bytes());
    header[36..40].copy_from_slice(&frame_crc.to_le_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(write_set);
    let padding = frame_bytes(write_set.len()) as usize - FRAME_HEADER_BYTES - write_set.len();
    out.extend_from_slice(&[0; ALIGNMENT as usize][..padding]);
    frame_crc
}

/// The salt by which the header CRC of these bytes, which are taken for a frame's header, is right: what
/// the CRC would have begun with, computed backwards, a bit at a time.
pub(crate) fn salt_of(header: &[u8; FRAME_HEADER_BYTES]) -> u32 {
    /// CRC-32C's polynomial, reflected as its register is.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut register = !u32_at(header, 32);
    for byte in header[..32].iter().rev() {
        for _ in 0..8 {
            register = match register >> 31 {
                1 => ((register ^ POLYNOMIAL) << 1) | 1,
                _ => register << 1,
            };
        }
        register ^= u32::from(*byte);
    }
    !register
}

/// The length of the write set in a frame of one's own memory.
pub(crate) fn write_set_bytes(frame: &[u8]) -> usize {
    u32_at(frame, 0) as usize
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}
