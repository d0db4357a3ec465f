use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use polyarch_protocol::{ChainHeads, LogPosition};

use super::error::LogError;
use super::format::{SegmentHeader, segment_name};
use super::reader::{Mark, Published, PublishedSegment, Tail};
use super::walk::{LogEnd, Outline, Segment, Step, Walk, Window, outline};
use super::{CurrentSegment, Log, LogConfig};
use crate::files::{Files, LogFile};

/// Bytes written at once while a log is opened.
const WRITE_BYTES: usize = 256 << 10;

/// What was found and done when a log was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovery {
    /// The first retained segment.
    pub first_segment: u64,
    /// Where the log ends; all before it is durable.
    pub end: LogPosition,
    /// The last position that was known to be synced before the log was opened.
    pub known_synced: LogPosition,
    /// Bytes behind that position, up to the end, that were written once more and synced.
    pub rewritten_bytes: u64,
    /// Bytes behind the end, of groups that were never synced as a whole, that were made zeros.
    pub discarded_bytes: u64,
    /// A last segment that had no header yet and was removed.
    pub removed_segment: Option<u64>,
}

/// A log that was read to its end, and not changed yet. The first half of [`Log::open`]: between
/// the two others may say what they know of the log.
pub(crate) struct Survey<F: Files> {
    files: F,
    config: LogConfig,
    found: Found<F>,
}

enum Found<F: Files> {
    /// No log yet; perhaps the file of segment 1.
    Blank {
        file_exists: bool,
    },
    Log {
        walk: Box<Walk<F>>,
        end: LogEnd,
        salt: u32,
        unborn: Option<u64>,
    },
}

impl<F: Files> Survey<F> {
    pub(crate) fn new(files: F, config: LogConfig, known_synced: Option<LogPosition>) -> Result<Self, LogError> {
        let config = config.validated();
        let found = match outline(&files, known_synced)? {
            Outline::Blank { file } => Found::Blank { file_exists: file },
            Outline::Segments { segments, salt, unborn } => {
                let mut walk = Walk::new(files.clone(), segments, salt, unborn, known_synced, known_synced)?;
                walk.leap_over_invalid(config.ends_late());
                let end = loop {
                    if let Step::End(end) = walk.step()? {
                        break end;
                    }
                };
                Found::Log { walk: Box::new(walk), end, salt, unborn }
            }
        };
        Ok(Self { files, config, found })
    }

    /// Whether no segment is missing at the front, where the first may be at most `begins`.
    pub(crate) fn check_begins(&self, begins: u64) -> Result<(), LogError> {
        match &self.found {
            Found::Blank { .. } if begins > 1 => {
                let synced = LogPosition { segment: begins, offset: 0 };
                Err(LogError::Lost { end: LogPosition::default(), synced })
            }
            Found::Blank { .. } => Ok(()),
            Found::Log { walk, .. } => check_begins(walk.first_segment(), begins),
        }
    }

    /// Whether the log goes up to where something else knows it to have been synced.
    pub(crate) fn check_reaches(&self, synced: LogPosition) -> Result<(), LogError> {
        let end = match &self.found {
            Found::Blank { .. } => LogPosition::default(),
            Found::Log { end, .. } => end.at,
        };
        match synced > end {
            true => Err(LogError::Lost { end, synced }),
            false => Ok(()),
        }
    }

    /// Mends the end, or begins a log, and opens it.
    pub(crate) fn resume(self) -> Result<(Log<F>, Recovery), LogError> {
        match self.found {
            Found::Blank { file_exists } => begin(self.files, self.config, file_exists),
            Found::Log { walk, end, salt, unborn } => resume(self.files, self.config, *walk, &end, salt, unborn),
        }
    }
}

/// Whether no segment is missing at the front of a log, whose first may be at most `begins`.
pub(crate) fn check_begins(first: u64, begins: u64) -> Result<(), LogError> {
    match first > begins {
        true => Err(LogError::BeginsLate { first, begins }),
        false => Ok(()),
    }
}

/// Begins a log with an empty segment 1.
fn begin<F: Files>(files: F, config: LogConfig, file_exists: bool) -> Result<(Log<F>, Recovery), LogError> {
    begin_behind(files, config, LogPosition::default(), &ChainHeads::default(), file_exists)
}

/// Begins a log with an empty segment, as if those before it, which ended at `previous` and added up to
/// `heads`, had been removed.
pub(super) fn begin_behind<F: Files>(
    files: F,
    config: LogConfig,
    previous: LogPosition,
    heads: &ChainHeads,
    file_exists: bool,
) -> Result<(Log<F>, Recovery), LogError> {
    let number = previous.segment + 1;
    let name = segment_name(number);
    let previous_end = u32::try_from(previous.offset).unwrap_or(u32::MAX);
    let (header, bytes) = SegmentHeader::encode(number, previous_end, 0, config.salt, heads)
        .ok_or_else(|| LogError::TooManyOrigins { origins: heads.iter().count() })?;
    let file = match file_exists {
        true => files.open(&name),
        false => files.create(&name),
    };
    let file = file.map_err(LogError::io("create", &name))?;
    let len = file.len().map_err(LogError::io("find the length of", &name))?;
    let mut current = CurrentSegment { number, file, allocated: len };
    // No sync can be left out by a seeded bug here: a log without its first header is another fault.
    current.grow(header.first.max(len), &files, &config).map_err(LogError::io("allocate space for", &name))?;
    current.file.write_at(&bytes, 0).map_err(LogError::io("write", &name))?;
    write_zeros(&current.file, header.first, len).map_err(LogError::io("write", &name))?;
    current.file.sync().map_err(LogError::io("sync", &name))?;
    files.sync_directory().map_err(LogError::io("sync the directory with", &name))?;

    let segment = Segment::from(header);
    let recovery = Recovery {
        first_segment: number,
        end: segment.start(),
        known_synced: LogPosition::default(),
        rewritten_bytes: 0,
        discarded_bytes: 0,
        removed_segment: None,
    };
    let (end, link, salt) = (segment.start(), segment.link, config.salt);
    Ok((assemble(files, config, current, &[segment], end, link, salt), recovery))
}

/// Takes up a log where it ends.
fn resume<F: Files>(
    files: F,
    config: LogConfig,
    mut walk: Walk<F>,
    end: &LogEnd,
    salt: u32,
    unborn: Option<u64>,
) -> Result<(Log<F>, Recovery), LogError> {
    if let Some(number) = unborn {
        remove_unborn(&files, number)?;
    }
    let name = segment_name(end.at.segment);
    let file = files.open(&name).map_err(LogError::io("open", &name))?;
    let window = walk.window();
    let allocated = window.len();
    let discarded_bytes = window.last_byte_from(end.at.offset)? - end.at.offset;
    let rewritten_bytes = match config.leaves_out_recovery_sync() {
        true => 0,
        false => secure(window, &file, &name, end)?,
    };
    files.sync_directory().map_err(LogError::io("sync the directory with", &name))?;

    let current = CurrentSegment { number: end.at.segment, file, allocated };
    let unread = walk.passed_over().to_vec();
    let segments = walk.into_segments();
    let recovery = Recovery {
        first_segment: segments[0].number,
        end: end.at,
        known_synced: end.synced,
        rewritten_bytes,
        discarded_bytes,
        removed_segment: unborn,
    };
    let log = assemble(files, config, current, &segments, end.at, end.link, salt);
    Ok((Log { unread, ..log }, recovery))
}

/// Its number comes again with the next segment, so it must be gone for good first.
fn remove_unborn<F: Files>(files: &F, number: u64) -> Result<(), LogError> {
    let name = segment_name(number);
    files.remove(&name).map_err(LogError::io("remove", &name))?;
    files.sync_directory().map_err(LogError::io("sync the directory after removing", &name))
}

/// Makes the last segment on the disk equal to what was read of it up to the end, and zeros behind
/// it, whatever the page cache claims; gives the number of bytes written once more.
fn secure<L: LogFile>(window: &mut Window<L>, file: &L, name: &str, end: &LogEnd) -> Result<u64, LogError> {
    let from = match end.synced.segment == end.at.segment {
        true => end.synced.offset,
        false => 0,
    };
    // The zeros behind the last frame may be cut off: then the file is shorter than the log.
    let to = end.at.offset.min(window.len());
    let mut at = from;
    while at < to {
        let bytes = window.bytes(at, WRITE_BYTES.min((to - at) as usize))?.to_vec();
        if bytes.is_empty() {
            let source = std::io::ErrorKind::UnexpectedEof.into();
            return Err(LogError::io("read", name)(source));
        }
        file.write_at(&bytes, at).map_err(LogError::io("write", name))?;
        at += bytes.len() as u64;
    }
    write_zeros(file, end.at.offset, window.len()).map_err(LogError::io("write", name))?;
    file.sync().map_err(LogError::io("sync", name))?;
    Ok(to.saturating_sub(from))
}

fn write_zeros<L: LogFile>(file: &L, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = vec![0; WRITE_BYTES.min(usize::try_from(to.saturating_sub(from)).unwrap_or(WRITE_BYTES))];
    let mut at = from;
    while at < to {
        let bytes = zeros.len().min((to - at) as usize);
        file.write_at(&zeros[..bytes], at)?;
        at += bytes as u64;
    }
    Ok(())
}

fn assemble<F: Files>(
    files: F,
    config: LogConfig,
    current: CurrentSegment<F::File>,
    segments: &[Segment],
    end: LogPosition,
    link: u32,
    salt: u32,
) -> Log<F> {
    let mark =
        |segment: &Segment| Mark { position: segment.start(), heads: Arc::clone(&segment.heads), segment_start: true };
    let last = segments.last().expect("a log has a segment");
    let published = Published {
        salt,
        end,
        segments: published_segments(segments, end),
        marks: Arc::new(segments.iter().map(mark).collect()),
        tail: Tail::default(),
        damage_told: BTreeSet::new(),
        leap: config.ends_late(),
    };
    Log {
        files,
        config,
        current,
        next: None,
        staged: Vec::new(),
        written: 0,
        staged_marks: Vec::new(),
        end,
        link,
        durable_end: end,
        salt,
        unmarked_bytes: end.offset - last.first,
        poison: None,
        unread: Vec::new(),
        published: Arc::new(Mutex::new(published)),
    }
}

fn published_segments(segments: &[Segment], end: LogPosition) -> VecDeque<PublishedSegment> {
    let ends = segments[1..].iter().map(|next| next.previous.offset).chain([end.offset]);
    let published = |(segment, end): (&Segment, u64)| PublishedSegment {
        number: segment.number,
        previous: segment.previous,
        first: segment.first,
        end,
    };
    segments.iter().zip(ends).map(published).collect()
}
