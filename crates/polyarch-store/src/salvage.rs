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

use crate::files::Directory;
use crate::log::{Log, LogConfig, LogError, LogReader};

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
    reader: LogReader<Directory>,
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
            Ok(files) => {
                let (log, _) = Log::open(files, LogConfig::default(), None)?;
                Ok(Some(Self { path, reader: log.reader() }))
            }
        }
    }

    /// The write sets from a position on, at most about so many bytes, and where they go on; none at the
    /// end. The default position is the beginning.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn read(&self, from: LogPosition, bytes_max: usize) -> Result<(Vec<Bytes>, LogPosition), LogReadError> {
        let batch = self.reader.read(from, bytes_max)?;
        Ok((batch.write_sets, batch.next))
    }

    /// Removes it: what was in it has its place, durably.
    ///
    /// # Errors
    /// When it cannot be removed: the next open finds it whole, or removes the rest.
    pub fn remove(self) -> io::Result<()> {
        let removed = self.path.with_file_name(REMOVED);
        fs::rename(&self.path, &removed)?;
        fs::remove_dir_all(&removed)
    }
}

/// A salvage that is being made.
pub(crate) struct SalvageWriter {
    log: Log<Directory>,
    unsynced: u64,
    pub(crate) write_sets: u64,
}

impl SalvageWriter {
    /// Begins one in a directory that exists and is empty.
    pub(crate) fn begin(files: Directory, config: LogConfig) -> Result<Self, LogError> {
        Ok(Self { log: Log::open(files, config, None)?.0, unsynced: 0, write_sets: 0 })
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

    /// Makes all of it durable; says how many write sets it has.
    pub(crate) fn finish(mut self) -> Result<u64, LogError> {
        self.log.sync()?;
        Ok(self.write_sets)
    }
}
