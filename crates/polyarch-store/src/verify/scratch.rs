use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::VerifyError;
use crate::files::{private_directory, private_file};
use crate::state::STATE;

/// A copy of a data directory's state, removed when it is no longer needed.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    pub(super) fn copy_of(directory: &Path, scratch: &Path) -> Result<Self, VerifyError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let scratch = scratch.join(format!("polyarch-verify-{}-{number}", std::process::id()));
        create(&scratch)?;
        let scratch = Self(scratch);
        copy_tree(&directory.join(STATE), &scratch.0.join(STATE))?;
        Ok(scratch)
    }

    /// A data directory with that state.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(directory = %self.0.display(), %error, "cannot remove the copy of the state");
        }
    }
}

/// Copies a directory and all in it; one that does not exist is not copied. The copy is its owner's
/// and writable, whatever the original is.
fn copy_tree(from: &Path, to: &Path) -> Result<(), VerifyError> {
    let unreadable = |source| VerifyError::Unreadable { path: from.to_path_buf(), source };
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(unreadable)?,
    };
    create(to)?;
    for entry in entries {
        let entry = entry.map_err(unreadable)?;
        let to = to.join(entry.file_name());
        match entry.file_type().map_err(unreadable)?.is_dir() {
            true => copy_tree(&entry.path(), &to)?,
            false => copy_file(&entry.path(), &to)?,
        }
    }
    Ok(())
}

fn copy_file(from: &Path, to: &Path) -> Result<(), VerifyError> {
    let source = fs::File::open(from);
    let mut source = source.map_err(|source| VerifyError::Unreadable { path: from.to_path_buf(), source })?;
    let copied = private_file().create_new(true).open(to).and_then(|mut to| io::copy(&mut source, &mut to));
    match copied {
        Ok(_bytes) => Ok(()),
        Err(source) => Err(VerifyError::Scratch { scratch: to.to_path_buf(), source }),
    }
}

fn create(directory: &Path) -> Result<(), VerifyError> {
    let created = private_directory().create(directory);
    created.map_err(|source| VerifyError::Scratch { scratch: directory.to_path_buf(), source })
}
