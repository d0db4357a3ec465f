//! Write sets that wait for their place.
//!
//! A [repair](crate::repair()) takes whatever is whole out of a damaged log. What the records do not have
//! of it is kept here until all that it follows on is applied, which peers may have to bring first. It is
//! a log of its own, in the directory `salvage`, whose segments' heads say nothing: its order means no
//! more than that what comes first is worth trying first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use polyarch_protocol::{ChainHeads, LogPosition, LogReadError, LogSource};

use crate::files::{Directory, Files};
use crate::log::{Log, LogConfig, LogError, LogInspection, LogReader};
use crate::marks::{read_mark, write_mark};

/// The salvage's directory within a data directory.
pub(crate) const SALVAGE: &str = "salvage";
/// The name of one that is being removed.
const REMOVED: &str = "salvage.removed";
/// Bytes of write sets that are written between two syncs.
const SYNC_BYTES: u64 = 8 << 20;

/// The write sets that wait in a data directory.
#[derive(Debug)]
pub struct Salvage {
    path: PathBuf,
    reader: SalvageReader<Directory>,
}

/// Reads what waits, on any disk.
#[derive(Debug)]
pub struct SalvageReader<F: Files>(LogReader<F>);

impl<F: Files> SalvageReader<F> {
    /// That of a salvage's files.
    ///
    /// # Errors
    /// When it is damaged or cannot be read.
    pub fn open(files: F) -> Result<Self, LogError> {
        let mark = read_mark(&files).map_err(|error| LogError::Io {
            operation: "read the end of",
            file: SALVAGE.into(),
            source: io::Error::other(error.to_string()),
        })?;
        let (log, _) = Log::open(files, LogConfig::default(), mark)?;
        Ok(Self(log.reader()))
    }

    /// The write sets from a position on, at most about so many bytes, and where they go on; none at the
    /// end. The default position is the beginning.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self, from: LogPosition, bytes_max: usize) -> Result<(Vec<Bytes>, LogPosition), LogReadError> {
        let batch = self.0.read(from, bytes_max)?;
        Ok((batch.write_sets, batch.next))
    }
}

impl Salvage {
    /// That of a data directory, if there is one. The caller has the directory's lock.
    ///
    /// # Errors
    /// When it is damaged or cannot be read.
    pub fn open(data: &Path) -> Result<Option<Self>, LogError> {
        let path = data.join(SALVAGE);
        // What a removal left that was cut short.
        let _ = fs::remove_dir_all(data.join(REMOVED));
        match Directory::existing(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(LogError::Io { operation: "open", file: SALVAGE.into(), source }),
            Ok(files) => Ok(Some(Self { path, reader: SalvageReader::open(files)? })),
        }
    }

    /// What is wrong with that of a data directory, if there is one and anything is. Nothing is changed.
    pub(crate) fn problem(data: &Path) -> Option<String> {
        let files = Directory::existing(data.join(SALVAGE)).ok()?;
        let mark = match read_mark(&files) {
            Ok(mark) => mark,
            Err(error) => return Some(error.to_string()),
        };
        match LogInspection::new(files, mark) {
            Ok(mut inspection) => inspection.find_map(Result::err).map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        }
    }

    /// See [`SalvageReader::read`].
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self, from: LogPosition, bytes_max: usize) -> Result<(Vec<Bytes>, LogPosition), LogReadError> {
        self.reader.read(from, bytes_max)
    }

    /// Removes it: what was in it has its place, durably.
    ///
    /// # Errors
    /// When it cannot be removed: the next open finds it whole, or removes the rest.
    pub fn remove(self) -> io::Result<()> {
        let removed = self.path.with_file_name(REMOVED);
        fs::rename(&self.path, &removed)?;
        // It is gone for good, or is there again: what it says is applied in either case.
        fs::remove_dir_all(&removed)
    }
}

/// A salvage that is being made.
pub(crate) struct SalvageWriter<F: Files> {
    log: Log<F>,
    files: F,
    unsynced: u64,
    pub(crate) write_sets: u64,
}

impl<F: Files> SalvageWriter<F> {
    /// Begins one in a directory that exists and is empty.
    pub(crate) fn begin(files: F, config: LogConfig) -> Result<Self, LogError> {
        let log = Log::open(files.clone(), config, None)?.0;
        Ok(Self { log, files, unsynced: 0, write_sets: 0 })
    }

    pub(crate) fn push(&mut self, write_set: &[u8]) -> Result<(), LogError> {
        self.log.append(write_set, &ChainHeads::default())?;
        self.write_sets += 1;
        self.unsynced += write_set.len() as u64;
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.log.sync()?;
        }
        Ok(())
    }

    /// Makes all of it durable, with a note of where it ends, without which damage to its last group would be
    /// taken for that group's never having been synced; says how many write sets it has.
    pub(crate) fn finish(mut self) -> Result<u64, LogError> {
        let end = self.log.sync()?;
        write_mark(&self.files, end).map_err(LogError::io("note the end of", SALVAGE))?;
        Ok(self.write_sets)
    }
}
