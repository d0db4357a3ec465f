//! A file of write sets that a node goes on without, for a person to look at.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use polyarch_protocol::WriteSet;
use polyarch_store::LeftOut;

use crate::failure::Failure;
use crate::json::WriteSetObject;
use crate::terminal::write_json;

/// A file that is being written, JSON lines, its owner's only. It has its name once it is whole.
pub(crate) struct LeftOutFile {
    path: PathBuf,
    unfinished: PathBuf,
    file: BufWriter<File>,
}

impl LeftOutFile {
    /// Begins one where there is no file. What an earlier one left that was cut short is written over.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        if path.exists() {
            return Err(Failure::file(path, &io::ErrorKind::AlreadyExists.into()));
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(".tmp");
        let unfinished = PathBuf::from(unfinished);
        let created = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
        let file = created.map_err(|error| Failure::file(&unfinished, &error))?;
        Ok(Self { path: path.to_owned(), unfinished, file: BufWriter::new(file) })
    }

    /// Removes it: nothing was taken out.
    pub(crate) fn remove(self) {
        // It says no more than what is still where it was, if it is there at all.
        let _ = fs::remove_file(&self.unfinished);
        let _ = fs::remove_file(&self.path);
    }
}

impl LeftOut for LeftOutFile {
    fn take(&mut self, write_set: &WriteSet) -> io::Result<()> {
        write_json(&mut self.file, &WriteSetObject::from(write_set))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.unfinished, &self.path)?;
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}
