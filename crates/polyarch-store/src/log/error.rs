use std::io;

use polyarch_protocol::LogPosition;

use super::format::segment_name;
use crate::files::is_full;

/// Why the log could not be opened, written or walked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A file could not be read, created or removed while the log was opened, walked or
    /// shortened. What is durable stays so; look at the disk, then open the log again.
    #[error("cannot {operation} {file}: {source}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file's name in the log's directory.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// Something is missing or altered that is known to have been synced. Nothing was changed on
    /// the disk.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The log ends before a position that is known to have been synced: its end is gone. Nothing
    /// was changed on the disk.
    #[error(
        "the log ends at {end}, but a checkpoint holds it up to {synced}: what lies between was synced here and is lost. \
         Nothing was changed. Run `polyarch repair`, which keeps what is whole and gets the rest from the other \
         members, or restore the data directory from a backup"
    )]
    Lost {
        /// Where it ends.
        end: LogPosition,
        /// Up to where it was synced.
        synced: LogPosition,
    },
    /// The log's first segments are gone, and nobody removed them. Nothing was changed on the disk.
    #[error(
        "the log begins with {}, and its segments from {} on were not removed on purpose: they are missing. \
         Nothing was changed. Put them back if they were moved; or run `polyarch repair`, which keeps what is whole \
         and gets the rest from the other members; or restore the data directory from a backup",
        segment_name(*first),
        segment_name(*begins)
    )]
    BeginsLate {
        /// The first segment that is there.
        first: u64,
        /// The first that should be.
        begins: u64,
    },
    /// There are segments of more than one log. Nothing was changed on the disk.
    #[error(
        "the log's directory holds segments of more than one log: {}; move those away that are not this node's",
        segments.iter().map(|of_one| of_one.join(", ")).collect::<Vec<_>>().join(" of one, and of another ")
    )]
    TwoLogs {
        /// The files of each.
        segments: Vec<Vec<String>>,
    },
    /// A newer version of polyarch wrote this segment. Nothing was changed; upgrade this node.
    #[error("{file} has log format version {version}, which this version of polyarch does not know; upgrade this node")]
    Version {
        /// The segment's file.
        file: String,
        /// Its version.
        version: u32,
    },
    /// A write or sync failed. What was staged may or may not be on the disk, and this log takes
    /// nothing more: stop the node, look at the disk, start the node again.
    #[error(
        "cannot {operation} {file}: {source}; the log takes nothing more, look at the disk and start the node again"
    )]
    Write {
        /// What was tried.
        operation: &'static str,
        /// The file's name in the log's directory.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is no room on the disk for more. Nothing was changed: what was staged before is as it was,
    /// and the same may be tried again.
    #[error("cannot {operation} {file}: {source}")]
    Full {
        /// What was tried.
        operation: &'static str,
        /// The file's name in the log's directory, or in the data directory.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// A write or sync failed before. It is not tried again, since a second sync would report
    /// success for what the first one lost. Look at the disk and start the node again.
    #[error("the log takes nothing more since it failed to {0}")]
    Poisoned(String),
    /// The write set cannot be in a log. Nothing was changed.
    #[error("write set of {len} bytes, the log takes from 1 to {max}")]
    WriteSetLength {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The chain heads do not fit in a segment's header: there are too many origins. Nothing was
    /// changed.
    #[error("chain heads of {origins} origins do not fit in a log segment's header")]
    TooManyOrigins {
        /// How many.
        origins: usize,
    },
}

/// Where a log is damaged, and how that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{}, but {evidence}. Nothing was changed. Run `polyarch repair`, which keeps what is whole and gets the \
     rest from the other members, or restore the data directory from a backup",
    self.what()
)]
#[non_exhaustive]
pub struct Damage {
    /// The segment's file.
    pub file: String,
    /// The first place where something else should be.
    pub position: LogPosition,
    /// What is there; nothing when the file is missing.
    pub found: Option<String>,
    /// What says that it was synced.
    pub evidence: String,
}

impl Damage {
    fn what(&self) -> String {
        match &self.found {
            Some(found) => format!("{} is damaged at byte {}: found {found}", self.file, self.position.offset),
            None => format!("{} is missing", self.file),
        }
    }
}

impl LogError {
    pub(crate) fn io(operation: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { operation, file, source }
    }

    /// A failure before anything was written that counts: for lack of room, [`LogError::Full`].
    pub(crate) fn ahead(operation: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| match is_full(&source) {
            true => Self::Full { operation, file, source },
            false => Self::Write { operation, file, source },
        }
    }

    pub(crate) fn write(operation: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Write { operation, file, source }
    }
}
