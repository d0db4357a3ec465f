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

/// A file that is being written, JSON lines, its owner's only.
pub(crate) struct LeftOutFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl LeftOutFile {
    /// Begins one where there is no file.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let created = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = created.map_err(|error| Failure::file(path, &error))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// Removes it: nothing was taken out.
    pub(crate) fn remove(self) {
        // It says no more than what is still where it was.
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
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}
