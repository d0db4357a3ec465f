use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::files::private_file;

/// The file that is locked.
const LOCK: &str = "LOCK";

/// How long a lock is waited for. A process that is just being started by a holder of the lock, as sled
/// starts `sync`, has the lock too until it runs its own program, also when the holder has let go.
const PATIENCE: Duration = Duration::from_millis(200);

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
        let file = private_file().create(true).truncate(false).open(directory.join(LOCK));
        Self::lock(directory, file, File::try_lock)
    }

    /// Keeps those out who would [`acquire`](Self::acquire) a data directory, while others may read
    /// it too, and creates nothing: for a directory that need not be writable. `None` when it has
    /// no `LOCK` file, so that nobody can have locked it.
    ///
    /// # Errors
    /// As [`DirectoryLock::acquire`].
    pub fn share_existing(directory: &Path) -> Result<Option<Self>, LockError> {
        match File::open(directory.join(LOCK)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            file => Self::lock(directory, file, File::try_lock_shared).map(Some),
        }
    }

    fn lock(
        directory: &Path,
        file: io::Result<File>,
        try_lock: impl Fn(&File) -> Result<(), TryLockError>,
    ) -> Result<Self, LockError> {
        let io = |source| LockError::Io { directory: directory.to_path_buf(), source };
        let file = file.map_err(io)?;
        let started = Instant::now();
        loop {
            match try_lock(&file) {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if started.elapsed() < PATIENCE => thread::sleep(PATIENCE / 10),
                Err(TryLockError::WouldBlock) => return Err(LockError::InUse(directory.to_path_buf())),
                Err(TryLockError::Error(source)) => return Err(io(source)),
            }
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
        assert!(matches!(DirectoryLock::share_existing(dir.path()), Err(LockError::InUse(_))));
        drop(first);
        let readers = [(); 2].map(|()| DirectoryLock::share_existing(dir.path()).unwrap());
        assert!(readers.iter().all(Option::is_some));
        assert!(DirectoryLock::acquire(dir.path()).is_err());
        drop(readers);
        DirectoryLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn nothing_is_created_where_nobody_locked() {
        let dir = tempfile::tempdir().unwrap();
        assert!(DirectoryLock::share_existing(dir.path()).unwrap().is_none());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
