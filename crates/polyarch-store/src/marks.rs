//! The small files beside log and state that say what must be there, so that what is missing is missed.
//!
//! | file | says | written |
//! |---|---|---|
//! | `checkpoint.toml` | how far the state was at least | after the flush of each checkpoint |
//! | `log.toml` | with which segment the log begins at the latest | before segments are removed |
//!
//! Each is replaced as a whole and synced before what it speaks of may happen or be relied upon. A
//! log that begins earlier than `log.toml` says is one whose removal was cut short. Without the file
//! nothing was ever removed.

use std::io;

use polyarch_protocol::LogPosition;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::files::Files;

/// The file that says how far the state was.
pub(crate) const CHECKPOINT: &str = "checkpoint.toml";
/// The file that says where the log begins.
pub(crate) const LOG_BEGINS: &str = "log.toml";
const BYTES_MAX: usize = 4_096;
const VERSION: u32 = 1;

// Unknown fields are passed over: a newer version is known by its number, which then is read.
#[derive(Serialize, Deserialize)]
struct CheckpointMark {
    version: u32,
    segment: u64,
    offset: u64,
}

#[derive(Serialize, Deserialize)]
struct LogBegins {
    version: u32,
    begins: u64,
}

/// Why `checkpoint.toml` or `log.toml` is of no use. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MarkError {
    /// The disk does not answer.
    #[error("cannot read {file}: {source}")]
    Io {
        /// The file.
        file: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Written by a newer version: upgrade this node.
    #[error("{file} has format version {version}, which this version of polyarch does not know; upgrade this node")]
    Version {
        /// The file.
        file: &'static str,
        /// Its version.
        version: u32,
    },
    /// It is not what was written.
    #[error(
        "{file} is damaged: {what}. It only guards against {}: if the disk is sound otherwise, {}",
        guards(file),
        remedy(file)
    )]
    Damaged {
        /// The file.
        file: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

fn guards(file: &str) -> &'static str {
    match file {
        LOG_BEGINS => "segments of the log that went missing",
        _ => "a state that rolled back",
    }
}

fn remedy(file: &str) -> &'static str {
    match file {
        LOG_BEGINS => {
            "write the two lines `version = 1` and `begins = N` into it, N being the number of the first segment in log/"
        }
        _ => "run `polyarch verify`, and when that finds nothing else, remove the file and start again",
    }
}

/// How far the state was at least; nothing before the first checkpoint.
pub(crate) fn read_mark(data: &impl Files) -> Result<Option<LogPosition>, MarkError> {
    let mark: Option<CheckpointMark> = read(data, CHECKPOINT)?;
    Ok(mark.map(|mark| LogPosition { segment: mark.segment, offset: mark.offset }))
}

/// Notes, durably, how far the state is.
pub(crate) fn write_mark(data: &impl Files, position: LogPosition) -> io::Result<()> {
    let LogPosition { segment, offset } = position;
    write(data, CHECKPOINT, &CheckpointMark { version: VERSION, segment, offset })
}

/// The segment that the log begins with at the latest.
pub(crate) fn read_log_begins(data: &impl Files) -> Result<u64, MarkError> {
    let found: Option<LogBegins> = read(data, LOG_BEGINS)?;
    Ok(found.map_or(1, |found| found.begins))
}

/// Notes, durably, that all segments before this one may be gone.
pub(crate) fn write_log_begins(data: &impl Files, begins: u64) -> io::Result<()> {
    write(data, LOG_BEGINS, &LogBegins { version: VERSION, begins })
}

#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

fn read<T: DeserializeOwned>(data: &impl Files, file: &'static str) -> Result<Option<T>, MarkError> {
    let damaged = |what: String| MarkError::Damaged { file, what };
    let bytes = match data.read_small(file, BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(damaged(error.to_string())),
        Err(source) => return Err(MarkError::Io { file, source }),
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => bytes,
    };
    let text = std::str::from_utf8(&bytes).map_err(|_| damaged("it is not text".into()))?;
    let parsed = |error: toml::de::Error| damaged(error.message().into());
    match toml::from_str::<Versioned>(text).map_err(parsed)?.version {
        VERSION => toml::from_str(text).map(Some).map_err(parsed),
        version => Err(MarkError::Version { file, version }),
    }
}

fn write(data: &impl Files, file: &str, contents: &impl Serialize) -> io::Result<()> {
    let text = toml::to_string(contents).map_err(io::Error::other)?;
    data.write_atomically(file, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::simulated::SimulatedDisk;

    #[test]
    fn the_texts_are_frozen() {
        let disk = SimulatedDisk::new(1, 512);
        assert_eq!((read_mark(&disk).unwrap(), read_log_begins(&disk).unwrap()), (None, 1));
        let position = LogPosition { segment: 7, offset: 4_711 };
        write_mark(&disk, position).unwrap();
        write_log_begins(&disk, 5).unwrap();
        let text = |name: &str| String::from_utf8(disk.contents(name).unwrap()).unwrap();
        assert_eq!(text("checkpoint.toml"), "version = 1\nsegment = 7\noffset = 4711\n");
        assert_eq!(text("log.toml"), "version = 1\nbegins = 5\n");
        assert_eq!((read_mark(&disk).unwrap(), read_log_begins(&disk).unwrap()), (Some(position), 5));
    }

    #[test]
    fn what_is_not_ours_is_named_with_its_file() {
        let disk = SimulatedDisk::new(1, 512);
        let said = |text: &[u8]| {
            disk.damage("log.toml", |bytes| *bytes = text.to_vec());
            read_log_begins(&disk).unwrap_err().to_string()
        };
        assert!(said(b"version = 2\nwhatever = 1").starts_with("log.toml has format version 2"));
        for text in [&b""[..], b"version = 1", b"\xff", &[b'#'; 5_000]] {
            assert!(said(text).starts_with("log.toml is damaged"), "{}", said(text));
        }
    }
}
