use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// The file that is locked.
const LOCK: &str = "LOCK";

/// Keeps a data directory to one process: an advisory lock on its `LOCK` file, which the system
/// lets go of when the process ends, however it ends. The file itself stays and means nothing.
#[derive(Debug)]
pub struct DirectoryLock {
    // Locked until it is closed.
    _file: File,
}

/// Why a data directory could not be locked. Nothing in it was read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process has it.
    #[error("the data directory {} is in use by another process; stop that one first, or give this one a directory of its own", .0.display())]
    InUse(PathBuf),
    /// The system refused.
    #[error("cannot lock the data directory {}: {source}", directory.display())]
    Io {
        /// The data directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl DirectoryLock {
    /// Locks a data directory, which must exist.
    ///
    /// # Errors
    /// When another process, or another part of this one, has locked it.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        Self::lock(directory, options.open(directory.join(LOCK)))
    }

    /// Locks a data directory without creating anything; `None` when it has no `LOCK` file, so
    /// that nobody can have locked it.
    ///
    /// # Errors
    /// As [`DirectoryLock::acquire`].
    pub fn acquire_existing(directory: &Path) -> Result<Option<Self>, LockError> {
        match File::open(directory.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => Self::lock(directory, file).map(Some),
        }
    }

    fn lock(directory: &Path, file: io::Result<File>) -> Result<Self, LockError> {
        let io = |source| LockError::Io { directory: directory.to_path_buf(), source };
        let file = file.map_err(io)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(LockError::InUse(directory.to_path_buf())),
            Err(TryLockError::Error(source)) => Err(io(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirectoryLock::acquire(dir.path()).unwrap();
        let refused = DirectoryLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&dir.path().display().to_string()), "{refused}");
        drop(first);
        DirectoryLock::acquire(dir.path()).unwrap();
    }
}
