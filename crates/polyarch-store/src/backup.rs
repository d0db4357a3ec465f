//! A backup: a snapshot of a node that is kept, in a directory of its own.
//!
//! | file | what |
//! |---|---|
//! | `backup.snapshot` | the parts as the donor sent them, in the file format of [`SnapshotReceiver`] |
//! | `manifest.toml` | what it is of and what it holds; written last, so a backup that has one is whole |
//! | `LOCK` | held by the process that makes it; means nothing later |
//!
//! The manifest's numbers are counted by reading the file once more ([`BackupSurvey`]), at the end of
//! a backup as in [`verify_backup`]: what was written is what is described.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use polyarch_crdt::{AppliedSet, Dot, Origin};
use polyarch_protocol::{ChainHeads, LogPosition, SnapshotBegin, SnapshotPart, WriteSet, WriteSetError};
use serde::{Deserialize, Serialize};

use crate::files::{Directory, Files};
use crate::snapshot::{BACKUP, Frames, Sequence, SequenceError, SnapshotError, SnapshotReceiver};
use crate::verify::{Problem, VerifyError};

/// The file that makes a directory a backup.
const MANIFEST: &str = "manifest.toml";
/// The manifest's format.
const FORMAT: u32 = 1;
/// A frontier of very many origins is the longest part of a manifest.
const MANIFEST_BYTES_MAX: usize = 64 << 20;
/// Bytes that are hashed at once.
const HASH_BYTES: usize = 1 << 20;

/// `manifest.toml` of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BackupManifest {
    /// Version of the directory's layout: 1.
    pub format: u32,
    /// The cluster's name, as in its certificates.
    pub cluster: String,
    /// The cluster's id, 32 hex digits.
    pub cluster_id: String,
    /// The server id of the node that the backup was made of.
    pub donor: u32,
    /// The version of polyarch that node ran.
    pub version: String,
    /// When the backup was complete, UTC, as in RFC 3339.
    pub time: String,
    /// Records.
    pub records: u64,
    /// Write sets that came while the records were read, behind them.
    pub write_sets: u64,
    /// Bytes of `backup.snapshot`.
    pub bytes: u64,
    /// BLAKE3 of `backup.snapshot`, 64 hex digits.
    pub blake3: String,
    /// V: the last GTID of each origin that the node had applied when the backup began.
    pub began_with: Vec<String>,
    /// W: the same of what is in the backup.
    pub holds: Vec<String>,
    /// The place in the donor's log, `SEGMENT:OFFSET`, up to which all is in the backup. `None` where the
    /// donor did not say.
    pub log_end: Option<String>,
    /// SHA-256 fingerprint of the certificate of the authority that the donor trusted, 64 hex digits.
    /// `None` in a backup whose maker did not note it.
    pub authority: Option<String>,
}

/// What only its maker knows of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupOrigin {
    /// The cluster's name, as in its certificates.
    pub cluster: String,
    /// SHA-256 fingerprint of the certificate of the authority that donor and maker trust, 64 hex digits.
    pub authority: String,
    /// The version of polyarch that the donor runs.
    pub version: String,
    /// Now, UTC, as in RFC 3339.
    pub time: String,
}

/// What the file of a backup holds, counted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupSurvey {
    /// What it began with.
    pub begin: SnapshotBegin,
    /// W: what it adds up to.
    pub end: ChainHeads,
    /// Records.
    pub records: u64,
    /// Write sets behind the records, each once.
    pub write_sets: u64,
    /// The place in the donor's log that it ends with, if it says so.
    pub log_end: Option<LogPosition>,
    /// Bytes of the file.
    pub bytes: u64,
    /// BLAKE3 of the file, 64 hex digits.
    pub blake3: String,
}

/// Why the file of a backup is of no use. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SurveyError {
    /// It cannot be read, or is damaged.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// There is no file.
    #[error("{BACKUP} is missing")]
    Missing,
    /// It ends before its end.
    #[error("the snapshot ends before its end")]
    NotWhole,
    /// Its log holds what no node may have written.
    #[error("its log holds no valid write set: {0}")]
    WriteSet(#[from] WriteSetError),
    /// Its log does not follow on its records.
    #[error("its log goes on with {dot}, and the records are at seq {applied} of that origin")]
    Gap {
        /// The write set.
        dot: Dot,
        /// What was applied of its origin.
        applied: u64,
    },
    /// Its log does not add up to what it ends with.
    #[error("its records and its log do not add up to the history of {0} that it ends with")]
    OtherEnd(Origin),
}

impl SurveyError {
    /// Whether the disk does not answer, which says nothing about the backup.
    pub fn is_unreadable(&self) -> bool {
        matches!(self, Self::Snapshot(SnapshotError::Io { .. }))
    }
}

impl BackupManifest {
    /// Whether the directory has a manifest, or the file of a backup that was not completed.
    pub fn is_in(directory: &Path) -> bool {
        directory.join(MANIFEST).is_file() || directory.join(BACKUP).is_file()
    }

    /// Reads the manifest of a backup; `None` when there is none: it was not completed.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when it is of a later format or not what was written, and any other
    /// when it cannot be read.
    pub fn read(directory: &Path) -> io::Result<Option<Self>> {
        let Some(bytes) = Directory::existing(directory)?.read_small(MANIFEST, MANIFEST_BYTES_MAX)? else {
            return Ok(None);
        };
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let text = str::from_utf8(&bytes).map_err(|_| invalid("it is not text".to_owned()))?;
        Self::parse(text).map(Some).map_err(invalid)
    }

    /// Reads the text of a manifest.
    ///
    /// # Errors
    /// Says what is wrong when it is of a later format or not what was written.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parsed = |error: toml::de::Error| error.message().to_owned();
        match toml::from_str::<Versioned>(text).map_err(parsed)?.format {
            FORMAT => toml::from_str(text).map_err(parsed),
            format => Err(format!("its format is {format}, this version of polyarch knows {FORMAT}")),
        }
    }

    /// Completes a backup whose file is whole: reads the file once, and writes the manifest. Returns it.
    ///
    /// # Errors
    /// When the file cannot be read or is not what a backup is, or the manifest cannot be written: then
    /// the directory holds a backup that is not completed.
    fn complete(directory: &Path, origin: BackupOrigin) -> Result<Self, SurveyError> {
        let survey = BackupSurvey::of(directory)?;
        let files = Directory::existing(directory).map_err(SnapshotError::io("open the directory of"))?;
        let BackupOrigin { cluster, authority, version, time } = origin;
        let manifest = Self {
            format: FORMAT,
            cluster,
            cluster_id: survey.begin.cluster_id.to_string(),
            donor: survey.begin.donor,
            version,
            time,
            records: survey.records,
            write_sets: survey.write_sets,
            bytes: survey.bytes,
            blake3: survey.blake3,
            began_with: gtids(survey.begin.start.heads.applied()),
            holds: gtids(survey.end.applied()),
            log_end: survey.log_end.map(|end| end.to_string()),
            authority: Some(authority),
        };
        let failed = SnapshotError::io("write the manifest of");
        let text = toml::to_string(&manifest).map_err(io::Error::other);
        let text = text.map(|text| {
            format!("# A backup. It holds the key of the cluster: keep it as you keep a node's data.\n{text}")
        });
        text.and_then(|text| files.write_atomically(MANIFEST, text.as_bytes())).map_err(failed)?;
        Ok(manifest)
    }

    /// How what the file holds differs from what this says.
    fn differences(&self, survey: &BackupSurvey) -> Vec<String> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, said: String, found: String| {
            if said != found {
                differences.push(format!("it says {what} {said}, and the file has {found}"));
            }
        };
        compare("cluster_id", self.cluster_id.clone(), survey.begin.cluster_id.to_string());
        compare("donor", self.donor.to_string(), survey.begin.donor.to_string());
        compare("records", self.records.to_string(), survey.records.to_string());
        compare("write_sets", self.write_sets.to_string(), survey.write_sets.to_string());
        compare("began_with", self.began_with.join(", "), gtids(survey.begin.start.heads.applied()).join(", "));
        compare("holds", self.holds.join(", "), gtids(survey.end.applied()).join(", "));
        if let Some(log_end) = &self.log_end {
            compare("log_end", log_end.clone(), survey.log_end.map_or("none".to_owned(), |end| end.to_string()));
        }
        compare("bytes", self.bytes.to_string(), survey.bytes.to_string());
        compare("blake3", self.blake3.clone(), survey.blake3.clone());
        differences
    }
}

#[derive(Deserialize)]
struct Versioned {
    format: u32,
}

fn gtids(applied: &AppliedSet) -> Vec<String> {
    applied.iter().map(|dot| dot.to_string()).collect()
}

impl BackupSurvey {
    /// Reads the whole file of a backup: checksums, order, each record and each write set, and that the
    /// hash chains go from where it began to what it ends with.
    ///
    /// # Errors
    /// When the file cannot be read, or is not sound.
    pub fn of(directory: &Path) -> Result<Self, SurveyError> {
        let files = Directory::existing(directory).map_err(SnapshotError::io("open the directory of"))?;
        let file = match files.open_to_read(BACKUP) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(SurveyError::Missing),
            file => file.map_err(SnapshotError::io("open"))?,
        };
        let bytes = crate::files::LogFile::len(&file).map_err(SnapshotError::io("find the length of"))?;
        let mut frames = Frames::new(file, Some(bytes))?;
        let Some(SnapshotPart::Begin(begin)) = frames.next()? else { return Err(SurveyError::NotWhole) };
        let mut walk = Walk { heads: begin.start.heads.clone(), write_sets: 0 };
        let mut sequence = Sequence::new(begin);
        while let Some(part) = frames.next()? {
            sequence = sequence.followed_by(&part)?;
            if let SnapshotPart::Log(write_sets) = part {
                write_sets.iter().try_for_each(|bytes| walk.extend(bytes))?;
            }
        }
        let Some(end) = sequence.end().cloned() else { return Err(SurveyError::NotWhole) };
        walk.check_end(&end)?;
        Ok(Self {
            begin: sequence.begin().clone(),
            end: ChainHeads::clone(&end),
            records: sequence.records(),
            write_sets: walk.write_sets,
            log_end: sequence.log_end(),
            bytes,
            blake3: hash(&directory.join(BACKUP)).map_err(SnapshotError::io("read"))?,
        })
    }
}

/// The log of a backup, write set by write set.
struct Walk {
    heads: ChainHeads,
    write_sets: u64,
}

impl Walk {
    /// Takes the next write set, unless it came before: after a resume some come again.
    fn extend(&mut self, bytes: &[u8]) -> Result<(), SurveyError> {
        let dot = WriteSet::decode(bytes)?.dot;
        let applied = self.heads.applied().seq(dot.origin);
        if dot.seq <= applied {
            return Ok(());
        }
        if dot.seq != applied + 1 {
            return Err(SurveyError::Gap { dot, applied });
        }
        self.heads.extend(dot, bytes);
        self.write_sets += 1;
        Ok(())
    }

    fn check_end(&self, end: &ChainHeads) -> Result<(), SurveyError> {
        let differs = |origin: &Origin| self.heads.head(*origin) != end.head(*origin);
        let origins = self.heads.iter().chain(end.iter()).map(|(origin, _)| origin);
        match { origins }.find(differs) {
            Some(origin) => Err(SurveyError::OtherEnd(origin)),
            None => Ok(()),
        }
    }
}

fn hash(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; HASH_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finalize().to_string()),
            Ok(read) => drop(hasher.update(&buffer[..read])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What [`verify_backup`] found.
#[derive(Debug, Clone, Default)]
pub struct BackupReport {
    /// The manifest, when there is one that can be understood.
    pub manifest: Option<BackupManifest>,
    /// What the file holds, when it is sound.
    pub survey: Option<BackupSurvey>,
    /// Whether it was not completed: it may be as sound as can be, and is no backup.
    pub is_unfinished: bool,
    /// What is wrong, in the order it was found. Empty: all is well.
    pub problems: Vec<Problem>,
}

impl BackupReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    fn add(&mut self, place: &str, what: impl std::fmt::Display) {
        self.problems.push(Problem { place: place.to_owned(), what: what.to_string() });
    }
}

/// Verifies a backup: its file's checksum, all that is in the file, and that the manifest says the same.
/// Changes nothing; the directory need not be writable.
///
/// # Errors
/// When it could not be verified; whatever is wrong with it is in the report.
pub fn verify_backup(directory: &Path) -> Result<BackupReport, VerifyError> {
    let unreadable = |file: &str, source| VerifyError::Unreadable { path: directory.join(file), source };
    let mut report = BackupReport::default();
    match BackupManifest::read(directory) {
        Ok(manifest) => report.manifest = manifest,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => report.add(MANIFEST, error),
        Err(error) => return Err(unreadable(MANIFEST, error)),
    }
    report.is_unfinished = report.manifest.is_none() && report.problems.is_empty();
    if report.is_unfinished {
        report.add(MANIFEST, "it is missing: the backup was not finished");
    }
    match BackupSurvey::of(directory) {
        Ok(survey) => {
            let differences = report.manifest.as_ref().map(|manifest| manifest.differences(&survey));
            differences.unwrap_or_default().into_iter().for_each(|difference| report.add(MANIFEST, difference));
            report.survey = Some(survey);
        }
        Err(SurveyError::Snapshot(SnapshotError::Io { source, .. })) => return Err(unreadable(BACKUP, source)),
        // Its end is not there yet, and what lies at it need not be whole.
        Err(_) if report.is_unfinished => {}
        Err(error) => report.add(BACKUP, error),
    }
    Ok(report)
}

/// The directory of a backup that is being made: a new one, or one in which a backup was not completed.
#[derive(Debug)]
pub struct BackupDirectory {
    path: PathBuf,
    files: Directory,
    _lock: crate::DirectoryLock,
}

/// Why a backup cannot be made in a directory. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupDirectoryError {
    /// It has a manifest.
    #[error("{} holds a backup; use a new directory", .0.display())]
    Complete(PathBuf),
    /// It holds something else.
    #[error("{} holds other files; use a new directory", .0.display())]
    Foreign(PathBuf),
    /// It cannot be read or made.
    #[error("{}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process makes a backup there.
    #[error(transparent)]
    Locked(#[from] crate::LockError),
}

impl BackupDirectory {
    /// Opens the directory of a backup that is to be made, or gone on with; makes it if it is not there
    /// (its parent must be), and keeps other processes from making another in it.
    ///
    /// # Errors
    /// When it holds a backup, or what is none.
    pub fn open(path: &Path) -> Result<Self, BackupDirectoryError> {
        let io = |source| BackupDirectoryError::Io { path: path.to_owned(), source };
        let files = Directory::open(path).map_err(io)?;
        if path.join(MANIFEST).exists() {
            return Err(BackupDirectoryError::Complete(path.to_owned()));
        }
        let temporary = format!("{MANIFEST}.tmp");
        for entry in fs::read_dir(path).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            if ![BACKUP, "LOCK", temporary.as_str()].iter().any(|own| name == **own) {
                return Err(BackupDirectoryError::Foreign(path.to_owned()));
            }
        }
        let _lock = crate::DirectoryLock::acquire(path)?;
        Ok(Self { path: path.to_owned(), files, _lock })
    }

    /// Removes the directory of a backup of which nothing came; leaves any other.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn remove_unbegun(path: &Path) -> io::Result<()> {
        if BackupManifest::is_in(path) {
            return Ok(());
        }
        match fs::remove_file(path.join("LOCK")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::remove_dir(path)
    }

    /// What is there of a backup that was not completed. Reads the whole of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn begun(&self) -> Result<Option<SnapshotReceiver<Directory>>, SnapshotError> {
        SnapshotReceiver::open_backup(self.files.clone())
    }

    /// Begins a backup with the first part of a snapshot, in the place of one that was not completed.
    ///
    /// # Errors
    /// As [`SnapshotReceiver::begin`].
    pub fn begin(&self, begin: &[u8]) -> Result<SnapshotReceiver<Directory>, SnapshotError> {
        SnapshotReceiver::begin_backup(self.files.clone(), begin)
    }

    /// Completes the backup once its file is whole.
    ///
    /// # Errors
    /// When the file cannot be read or is not what a backup is, or the manifest cannot be written: then
    /// the directory holds a backup that is not completed.
    pub fn complete(self, origin: BackupOrigin) -> Result<BackupManifest, SurveyError> {
        BackupManifest::complete(&self.path, origin)
    }
}

impl From<SequenceError> for SurveyError {
    fn from(error: SequenceError) -> Self {
        Self::Snapshot(error.into())
    }
}
