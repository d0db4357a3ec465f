//! Taking whole frames out of a log that may be damaged anywhere.
//!
//! Recovery wants to know where a log ends, and refuses one in which a place is damaged. This wants
//! whatever is whole: it reads each segment for itself, passes over what is no frame, and does not ask
//! for links. A frame counts whose two checksums are right and which says that it belongs where it
//! stands.
//!
//! The first checksum is begun with the log's salt, which each segment's header has. Where no header of
//! the log is whole the frames themselves tell it, since a CRC can be computed backwards; what most of
//! them say is believed.

use std::collections::BTreeMap;

use polyarch_protocol::LogPosition;

use super::error::LogError;
use super::format::{ALIGNMENT, FRAME_HEADER_BYTES, FrameHeader, HeaderError, salt_of, segment_name};
use super::walk::{Window, segment_numbers};
use crate::files::Files;

/// How much of a log was whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogSalvaged {
    /// Segments that were read.
    pub segments: u64,
    /// Frames that are whole.
    pub frames: u64,
    /// Bytes of their write sets.
    pub bytes: u64,
    /// Places before whole frames where something stands that is none.
    pub damaged_places: u64,
}

/// Hands over each whole frame of a log's segments, in order, and changes nothing. A directory that does
/// not exist has none.
///
/// # Errors
/// When a file cannot be read, a segment is of a newer version, some are of another log, or `found` fails.
pub fn salvage<F: Files, E: From<LogError>>(
    files: &F,
    mut found: impl FnMut(LogPosition, &[u8]) -> Result<(), E>,
) -> Result<LogSalvaged, E> {
    let mut salvaged = LogSalvaged::default();
    let numbers = segment_numbers(files)?;
    let headers = Headers::read(files, &numbers)?;
    if headers.salts.len() > 1 {
        let segments = headers.salts.into_values().map(|numbers| numbers.iter().map(|n| segment_name(*n)).collect());
        return Err(LogError::TwoLogs { segments: segments.collect() }.into());
    }
    let salt = match headers.salts.into_keys().next() {
        None => most(salts_of_frames(files, &numbers)?),
        salt => salt,
    };
    for number in numbers {
        salvaged.segments += 1;
        let Some(salt) = salt else { continue };
        let mut window = Window::open(files, number)?;
        let first = headers.firsts.get(&number).copied().unwrap_or(0);
        let (mut at, end) = (LogPosition { segment: number, offset: first }, window.last_byte_from(first)?);
        let mut is_whole = true;
        while at.offset < end {
            match window.frame(at, salt)? {
                Ok(header) => {
                    salvaged.damaged_places += u64::from(!is_whole);
                    is_whole = true;
                    salvaged.frames += 1;
                    salvaged.bytes += header.len as u64;
                    found(at, window.bytes(at.offset + FRAME_HEADER_BYTES as u64, header.len)?)?;
                    at.offset += header.frame_bytes();
                }
                Err(_) => {
                    is_whole = false;
                    at.offset += ALIGNMENT;
                }
            }
        }
    }
    Ok(salvaged)
}

/// What the segments' whole headers say.
#[derive(Default)]
struct Headers {
    /// Salts, each with its segments: a log has one.
    salts: BTreeMap<u32, Vec<u64>>,
    /// Offsets of the first frames, by segment.
    firsts: BTreeMap<u64, u64>,
}

impl Headers {
    fn read<F: Files>(files: &F, numbers: &[u64]) -> Result<Self, LogError> {
        let mut headers = Self::default();
        for number in numbers {
            match Window::open(files, *number)?.header()? {
                Ok(header) if header.number == *number => {
                    headers.salts.entry(header.salt).or_default().push(*number);
                    headers.firsts.insert(*number, header.first);
                }
                Err(HeaderError::Version(version)) => {
                    return Err(LogError::Version { file: segment_name(*number), version });
                }
                Ok(_) | Err(HeaderError::Invalid(_)) => {}
            }
        }
        Ok(headers)
    }
}

/// The salt that most speak for.
fn most(salts: BTreeMap<u32, u64>) -> Option<u32> {
    salts.into_iter().max_by_key(|(_, count)| *count).map(|(salt, _)| salt)
}

/// The salts by which frames are whole, each with the number of frames.
fn salts_of_frames<F: Files>(files: &F, numbers: &[u64]) -> Result<BTreeMap<u32, u64>, LogError> {
    let mut salts = BTreeMap::new();
    for number in numbers {
        let mut window = Window::open(files, *number)?;
        let (mut at, end) = (LogPosition { segment: *number, offset: 0 }, window.last_byte_from(0)?);
        while at.offset < end {
            let salt = match <&[u8; FRAME_HEADER_BYTES]>::try_from(window.bytes(at.offset, FRAME_HEADER_BYTES)?) {
                Ok(bytes) if FrameHeader::is_at(bytes, at) => Some(salt_of(bytes)),
                _ => None,
            };
            let header = salt.map(|salt| window.frame(at, salt)).transpose()?.and_then(Result::ok);
            match (header, salt) {
                (Some(header), Some(salt)) => {
                    *salts.entry(salt).or_default() += 1;
                    at.offset += header.frame_bytes();
                }
                _ => at.offset += ALIGNMENT,
            }
        }
    }
    Ok(salts)
}
