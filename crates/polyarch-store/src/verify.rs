//! Checking a data directory that no process has open, without changing anything in it: it need not
//! be writable.
//!
//! The parts of a store say the same thing several times, and [`verify`] compares all of it: the
//! frames of the log with their checksums and links; each origin's write sets with their sequence
//! and with the chain heads in the segments' headers; the state with its digest, with the log's
//! chain heads at its position, and with `checkpoint.toml`; the log's first segment with `log.toml`;
//! and, where the log still begins at the
//! beginning, all records with what the log adds up to from nothing. A *boundary*, where a joined
//! snapshot brought what the log does not have, is none of these differences, and ends that last
//! comparison. A snapshot on its way in is looked at, and how far it is is told.

mod scratch;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Origin, Record};
use polyarch_protocol::{ChainHead, ChainHeads, Frontier, LogPosition, RecordKey, Records, StorageError, WriteSet};

use crate::files::{Directory, Files};
use crate::lock::{DirectoryLock, LockError};
use crate::log::{Inspected, LogError, LogInspection, check_begins};
use crate::marks::{CHECKPOINT, MarkError, read_log_begins, read_mark};
use crate::overlay::Overlay;
use crate::published::Published;
use crate::repair;
use crate::salvage::{SALVAGE, Salvage};
use crate::snapshot::{INCOMING, SnapshotError, SnapshotProgress, look};
use crate::state::{
    Checkpoint, Provenance, STATE, ScanRange, SledConfig, StateDirectory, StateOpener, StateStore, count_digest,
    for_each_record,
};
use crate::store::{LOG, SNAPSHOT, StoreFiles};
use scratch::Scratch;

/// How a directory is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyConfig {
    /// Where a copy of the state may lie for a while: sled changes what it opens. Default: the
    /// system's directory for temporary files.
    pub scratch: PathBuf,
    /// sled, for the copy.
    pub sled: SledConfig,
    /// Most problems that are listed. Default 1,000.
    pub problems_max: usize,
}

impl Default for VerifyConfig {
    fn default() -> Self {
        Self { scratch: std::env::temp_dir(), sled: SledConfig::default(), problems_max: 1_000 }
    }
}

/// What was found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    /// The log's segments.
    pub segments: u64,
    /// Its write sets.
    pub write_sets: u64,
    /// Where its last whole frame ends.
    pub log_end: LogPosition,
    /// Bytes behind that of a group that was never synced; the next start removes them.
    pub unsynced_bytes: u64,
    /// A last segment that was begun and never synced; the next start removes it.
    pub unborn_segment: Option<u64>,
    /// Whether the log goes back to the beginning, without a boundary, so that all records were
    /// compared with it.
    pub from_the_beginning: bool,
    /// Places where the log goes on with more than it adds up to, since a snapshot was joined there.
    pub boundaries: u64,
    /// How far a snapshot is that is on its way in; `None` when there is none.
    pub snapshot: Option<SnapshotProgress>,
    /// How far the state holds the log; `None` when there is none.
    pub state_position: Option<LogPosition>,
    /// Records in the state.
    pub state_records: u64,
    /// Where state and log together are, if both could be read.
    pub frontier: Option<Frontier>,
    /// What is wrong, in the order it was found. Empty: all is well.
    pub problems: Vec<Problem>,
    /// Problems beyond the most that are listed.
    pub problems_unlisted: u64,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty() && self.problems_unlisted == 0
    }
}

/// Something that should not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where: a file, a position in the log, a key.
    pub place: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Why a directory could not be verified at all. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// It holds nothing of a node's, or is no directory.
    #[error("{} is no data directory: {source}", directory.display())]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A part of it cannot be read, which says nothing about what is in it.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A process has it.
    #[error(transparent)]
    Locked(#[from] LockError),
    /// The state could not be copied.
    #[error("cannot copy the state to {}: {source}", scratch.display())]
    Scratch {
        /// The file or directory of the copy.
        scratch: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Verifies a data directory. Takes memory for all records where the log goes back to the beginning.
///
/// # Errors
/// When it could not be verified; whatever is wrong with it is in the report.
pub fn verify(directory: &Path, config: &VerifyConfig) -> Result<VerifyReport, VerifyError> {
    let files = existing(directory)?;
    let _lock = DirectoryLock::share_existing(directory)?;
    let scratch = Scratch::copy_of(directory, &config.scratch)?;
    let mut state = StateDirectory::sled(scratch.path(), config.sled.clone());
    let mut report = verify_parts(&files, &mut state, config.problems_max)?;
    if let Some(what) = Salvage::problem(directory) {
        let what = format!("{what}; `polyarch repair` takes what is whole of it");
        report.problems.push(Problem { place: "salvage".into(), what });
    }
    if repair::is_unfinished(directory) {
        let what = "it did not end; run `polyarch repair` again, which ends it or does it anew";
        report.problems.insert(0, Problem { place: "repair".into(), what: what.into() });
    }
    Ok(report)
}

/// Verifies the parts of a store. Opens the state, which a backend may take for a reason to change
/// its files; [`verify`] gives it a copy.
///
/// # Errors
/// When a file cannot be read.
pub fn verify_parts<F: Files, O: StateOpener>(
    files: &StoreFiles<F>,
    state: &mut O,
    problems_max: usize,
) -> Result<VerifyReport, VerifyError> {
    let mut findings = Findings { report: VerifyReport::default(), problems_max };
    let mark = findings.read(read_mark(&files.data))?.flatten();
    let begins = findings.read(read_log_begins(&files.data))?;
    findings.snapshot(&files.snapshot)?;
    let base = Base::read(state, mark, &mut findings);
    let mut walk = Walk::new(base);
    walk.log(files.log.clone(), mark, begins, &mut findings)?;
    walk.compare(&mut findings);
    Ok(findings.report)
}

struct Findings {
    report: VerifyReport,
    problems_max: usize,
}

impl Findings {
    /// What a small file says; nothing when it is of no use.
    fn read<T>(&mut self, read: Result<T, MarkError>) -> Result<Option<T>, VerifyError> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(MarkError::Io { file, source }) => Err(VerifyError::Unreadable { path: file.into(), source }),
            Err(error @ (MarkError::Version { file, .. } | MarkError::Damaged { file, .. })) => {
                self.add(file, error);
                Ok(None)
            }
        }
    }

    /// A snapshot on its way in. Whatever part of it is unsound is fetched again.
    fn snapshot(&mut self, files: &impl Files) -> Result<(), VerifyError> {
        match look(files) {
            Ok(progress) => self.report.snapshot = progress,
            Err(SnapshotError::Io { source, .. }) => {
                return Err(VerifyError::Unreadable { path: Path::new(SNAPSHOT).join(INCOMING), source });
            }
            Err(error) => self.add(SNAPSHOT, error),
        }
        Ok(())
    }

    fn add(&mut self, place: impl fmt::Display, what: impl fmt::Display) {
        if self.report.problems.len() >= self.problems_max {
            self.report.problems_unlisted += 1;
            return;
        }
        self.report.problems.push(Problem { place: place.to_string(), what: what.to_string() });
    }
}

/// The state, when it can be read and knows where it is; an empty one when there is none.
struct Base<S> {
    state: Arc<S>,
    held: Checkpoint,
    is_empty: bool,
}

impl<S: StateStore> Base<S> {
    fn read<O: StateOpener<State = S>>(
        opener: &mut O,
        mark: Option<LogPosition>,
        findings: &mut Findings,
    ) -> Option<Self> {
        let read = Self::try_read(opener, findings);
        let base = read.map_err(|error| findings.add("state", error)).ok()?;
        if let Some(mark) = mark.filter(|mark| base.held.position < *mark) {
            let what = format!("it is at {}, and checkpoint.toml says that it was at {mark}", base.held.position);
            findings.add("state", what);
        }
        Some(base)
    }

    fn try_read<O: StateOpener<State = S>>(
        opener: &mut O,
        findings: &mut Findings,
    ) -> Result<Self, crate::state::StateError> {
        let state = Arc::new(opener.open()?);
        let reading = Arc::clone(&state);
        let (held, digest, absorbing, records) = opener.guarded(move || {
            let (mut absorbing, mut records) = (Vec::new(), 0);
            for_each_record(&*reading, |key, record| {
                records += 1;
                if record.absorb_len() > 0 {
                    absorbing.push(key.clone());
                }
            })?;
            Ok((reading.checkpoint()?, count_digest(&*reading)?, absorbing, records))
        })?;
        let is_empty = held.is_none();
        let held = held.unwrap_or_default();
        if held.provenance == Provenance::Joining {
            findings.add("state", "a snapshot was being joined into it, and not to the end");
        }
        findings.report.state_position = (!is_empty).then_some(held.position);
        findings.report.state_records = records;
        let differing = if state.is_atomic() { held.frontier.digest.differing(&digest) } else { Vec::new() };
        for bucket in differing {
            findings.add("state", format!("the records of digest bucket {bucket} are not those of its checkpoint"));
        }
        for key in absorbing.iter().filter(|key| !held.absorbing.contains(key)) {
            findings.add(format!("state, {key:?}"), "the record absorbs, and the checkpoint's index does not name it");
        }
        Ok(Self { state, held, is_empty })
    }
}

/// The log, frame by frame, applied to whatever it can be applied to.
struct Walk<S> {
    /// State and the log behind its position.
    upon_state: Option<Replica<Overlay<S>>>,
    /// The whole log, from nothing.
    upon_nothing: Option<Replica<Memory>>,
    held: Option<Checkpoint>,
    /// What the frames so far add up to; unknown before the first segment.
    heads: Option<ChainHeads>,
    /// Whether a frame or segment was seen to begin where the state is.
    met_state: bool,
    /// Whether the segment at hand has no frames so far.
    is_segment_empty: bool,
}

struct Replica<R> {
    records: R,
    frontier: Frontier,
}

/// Records that are in memory only.
#[derive(Default)]
struct Memory(BTreeMap<RecordKey, Record>);

impl Records for Memory {
    fn record_mut(&mut self, key: &RecordKey) -> Result<&mut Record, StorageError> {
        Ok(self.0.entry(key.clone()).or_default())
    }
}

/// Whether segments are missing at the front of the log. Where `log.toml` is of no use nobody knows.
fn check_first(first: u64, begins: Option<u64>, findings: &mut Findings) {
    let checked = begins.map_or(Ok(()), |begins| check_begins(first, begins));
    if let Err(error) = checked {
        findings.add("log", error);
    }
}

impl<S: StateStore> Walk<S> {
    fn new(base: Option<Base<S>>) -> Self {
        let held = base.as_ref().map(|base| base.held.clone());
        let met_state = base.as_ref().is_none_or(|base| base.is_empty);
        let upon_state = base.map(|base| Replica {
            records: Overlay::new(Arc::new(Published::new(base.state))),
            frontier: base.held.frontier,
        });
        Self { upon_state, upon_nothing: None, held, heads: None, met_state, is_segment_empty: true }
    }

    fn log<F: Files>(
        &mut self,
        files: F,
        mark: Option<LogPosition>,
        begins: Option<u64>,
        findings: &mut Findings,
    ) -> Result<(), VerifyError> {
        let inspection = match LogInspection::new(files, mark) {
            Ok(inspection) => inspection,
            Err(error) => return self.stop(findings, error),
        };
        for inspected in inspection {
            match inspected {
                Ok(Inspected::Segment { start, previous, heads }) => {
                    let is_first = self.heads.is_none();
                    if is_first {
                        check_first(start.segment, begins, findings);
                    }
                    self.segment(start, heads, findings);
                    if is_first {
                        // Of the segment that ended there nothing more may be left.
                        self.meet_state(previous, findings);
                    }
                }
                Ok(Inspected::Frame { end, write_set, .. }) => self.frame(end, &write_set, findings),
                Ok(Inspected::End { at, unsynced_bytes, unborn_segment, .. }) => {
                    findings.report.log_end = at;
                    findings.report.unsynced_bytes = unsynced_bytes;
                    findings.report.unborn_segment = unborn_segment;
                }
                Err(error) => return self.stop(findings, error),
            }
        }
        match &self.held {
            Some(held) if held.position > findings.report.log_end => {
                let lost = LogError::Lost { end: findings.report.log_end, synced: held.position };
                self.stop(findings, lost)
            }
            _ => Ok(()),
        }
    }

    /// The log cannot be read on: nothing after this can be compared.
    fn stop(&mut self, findings: &mut Findings, error: LogError) -> Result<(), VerifyError> {
        if let LogError::Io { file, source, .. } = error {
            return Err(VerifyError::Unreadable { path: Path::new(LOG).join(file), source });
        }
        findings.add("log", error);
        self.upon_nothing = None;
        self.upon_state = None;
        self.met_state = true;
        Ok(())
    }

    fn segment(&mut self, start: LogPosition, heads: ChainHeads, findings: &mut Findings) {
        findings.report.segments += 1;
        match &self.heads {
            None if heads.applied().is_empty() => {
                findings.report.from_the_beginning = true;
                self.upon_nothing = Some(Replica { records: Memory::default(), frontier: Frontier::default() });
            }
            None => self.check_start(start, &heads, findings),
            Some(counted) if *counted != heads && self.is_boundary(counted, &heads) => {
                self.boundary(start, &heads, findings);
            }
            Some(counted) if *counted != heads => {
                let what = difference(counted, &heads);
                findings.add(start, format!("the segment's header does not fit the frames before it: {what}"));
                self.cannot_compare();
            }
            Some(_) => {}
        }
        self.heads = Some(heads);
        self.is_segment_empty = true;
        self.meet_state(start, findings);
    }

    /// Whether a snapshot was joined between two segments.
    fn is_boundary(&self, before: &ChainHeads, after: &ChainHeads) -> bool {
        self.is_segment_empty && after.applied().includes_all(before.applied())
    }

    /// From here on the log goes on with what it does not have.
    fn boundary(&mut self, start: LogPosition, heads: &ChainHeads, findings: &mut Findings) {
        findings.report.boundaries += 1;
        findings.report.from_the_beginning = false;
        self.upon_nothing = None;
        let crosses = |held: &Checkpoint| held.position < start && held.frontier.heads != *heads;
        if let Some(held) = self.held.as_ref().filter(|held| crosses(held)) {
            let (at, remedy) = (held.position, "`polyarch repair` goes on from there");
            findings
                .add("state", format!("it is at {at}, and a snapshot was joined at {start} that it lacks; {remedy}"));
            self.upon_state = None;
        }
    }

    /// A log whose beginning was removed must begin before the state's position.
    fn check_start(&mut self, start: LogPosition, heads: &ChainHeads, findings: &mut Findings) {
        let reaches = self.held.as_ref().is_none_or(|held| held.frontier.heads.applied().includes_all(heads.applied()));
        if !reaches {
            findings.add(start, "the log begins behind the state: what lies between is lost");
            self.upon_state = None;
        }
    }

    fn meet_state(&mut self, at: LogPosition, findings: &mut Findings) {
        let (Some(held), Some(heads)) = (&self.held, &self.heads) else {
            return;
        };
        if at != held.position {
            return;
        }
        self.met_state = true;
        let logged = match &held.provenance {
            Provenance::Joined(logged) => {
                // The boundary comes next, or a crash came before it.
                self.upon_nothing = None;
                findings.report.from_the_beginning = false;
                logged
            }
            Provenance::Log | Provenance::Joining => &held.frontier.heads,
        };
        if logged != heads {
            let what = format!("at {at} it is not what the log has: {}", difference(heads, logged));
            findings.add("state", what);
        }
    }

    fn frame(&mut self, end: LogPosition, bytes: &Bytes, findings: &mut Findings) {
        findings.report.write_sets += 1;
        findings.report.log_end = end;
        self.is_segment_empty = false;
        let write_set = match WriteSet::decode(bytes) {
            Ok(write_set) => write_set,
            Err(error) => return self.pass_over(end, findings, error),
        };
        let heads = self.heads.get_or_insert_default();
        let applied = heads.applied().seq(write_set.dot.origin);
        if write_set.dot.seq != applied + 1 {
            let what = format!("{} comes after seq {applied} of its origin", write_set.dot);
            return self.pass_over(end, findings, what);
        }
        heads.extend(write_set.dot, bytes);
        self.apply(end, &write_set, bytes, findings);
        self.meet_state(end, findings);
    }

    /// A write set that cannot be applied: the log is walked on, and records are no longer compared.
    fn pass_over(&mut self, end: LogPosition, findings: &mut Findings, what: impl fmt::Display) {
        findings.add(format!("log, before {end}"), what);
        self.cannot_compare();
    }

    fn cannot_compare(&mut self) {
        self.upon_nothing = None;
        self.upon_state = None;
    }

    fn apply(&mut self, end: LogPosition, write_set: &WriteSet, bytes: &Bytes, findings: &mut Findings) {
        if let Some(replica) = &mut self.upon_nothing {
            let _counted = replica.frontier.apply(&mut replica.records, write_set, bytes).expect("memory can be read");
        }
        let Some(replica) = &mut self.upon_state else { return };
        if self.held.as_ref().is_some_and(|held| end <= held.position) {
            return;
        }
        let is_next = replica.frontier.heads.applied().seq(write_set.dot.origin) + 1 == write_set.dot.seq;
        let failed = match is_next {
            true => replica.frontier.apply(&mut replica.records, write_set, bytes).err().map(|error| error.to_string()),
            false => Some(format!("{} does not follow on the state", write_set.dot)),
        };
        if let Some(what) = failed {
            findings.add(format!("log, before {end}"), what);
            self.upon_state = None;
        }
    }

    /// Compares what was reached on the two ways.
    fn compare(mut self, findings: &mut Findings) {
        if !self.met_state {
            let position = self.held.map(|held| held.position).unwrap_or_default();
            findings.add("state", format!("it is at {position}, where the log has no write set's end"));
            return;
        }
        let Some(upon_state) = &mut self.upon_state else { return };
        upon_state.records.publish();
        findings.report.frontier = Some(upon_state.frontier.clone());
        if let Some(upon_nothing) = &self.upon_nothing {
            compare_replicas(upon_nothing, upon_state, findings);
        }
    }
}

fn compare_replicas<S: StateStore>(whole: &Replica<Memory>, upon_state: &Replica<Overlay<S>>, findings: &mut Findings) {
    let applied = whole.frontier.heads.applied();
    if whole.frontier.heads != upon_state.frontier.heads {
        findings.add("state", difference(&whole.frontier.heads, &upon_state.frontier.heads));
    }
    if whole.frontier.digest != upon_state.frontier.digest {
        findings.add("state", "its digest, brought up by the log, is not that of the whole log");
    }
    let published = upon_state.records.published();
    let mut expected = whole.records.0.iter().filter(|(_, record)| !essence(record, applied).is_empty()).peekable();
    let mut range = ScanRange::everything();
    loop {
        let page = match published.scan(&range, 1_024) {
            Ok(page) => page,
            Err(error) => return findings.add("state", error),
        };
        let Some((last, _)) = page.last() else { break };
        range = range.after(last.clone());
        for (key, record) in page.iter().filter(|(_, record)| !essence(record, applied).is_empty()) {
            while let Some((missing, _)) = expected.next_if(|(expected, _)| *expected < key) {
                findings.add(format!("state, {missing:?}"), "the record is missing");
            }
            match expected.next_if(|(expected, _)| *expected == key) {
                None => findings.add(format!("state, {key:?}"), "the log knows no such record"),
                Some((_, other)) if essence(other, applied) != essence(record, applied) => {
                    findings.add(format!("state, {key:?}"), "the record is not what the log adds up to");
                }
                Some(_) => {}
            }
        }
    }
    expected.for_each(|(missing, _)| findings.add(format!("state, {missing:?}"), "the record is missing"));
}

/// A record without what checkpoints may have removed.
fn essence(record: &Record, applied: &AppliedSet) -> Record {
    let mut record = record.clone();
    record.drop_void_absorb(applied);
    record
}

fn difference(expected: &ChainHeads, found: &ChainHeads) -> String {
    let origins = expected.iter().chain(found.iter()).map(|(origin, _)| origin);
    let differing = origins.filter(|origin| expected.head(*origin) != found.head(*origin));
    let mut texts: Vec<String> = differing
        .map(|origin| {
            let (expected, found) = (expected.head(origin), found.head(origin));
            format!(
                "{origin} should be at seq {} ({}) and is at seq {} ({})",
                expected.seq, expected.hash, found.seq, found.hash
            )
        })
        .collect();
    texts.dedup();
    texts.join(", ")
}

/// A write set in a log, for whoever wants to look at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Where its frame begins.
    pub start: LogPosition,
    /// Where its frame ends.
    pub end: LogPosition,
    /// The position known synced when it was staged.
    pub known_synced: LogPosition,
    /// How many bytes it has.
    pub bytes: usize,
    /// Its dot, stamp, dependencies and changes; or why it is none.
    pub write_set: Result<WriteSet, polyarch_protocol::WriteSetError>,
}

/// All write sets in the log of a data directory that no process has open, in order; the last item
/// is an error when the log cannot be read to its end. Nothing is changed.
///
/// # Errors
/// When there is no log, a process has the directory, or the log does not begin as one.
pub fn dump(directory: &Path) -> Result<impl Iterator<Item = Result<LogEntry, LogError>>, DumpError> {
    let files = existing(directory)?;
    let lock = DirectoryLock::share_existing(directory).map_err(VerifyError::Locked)?;
    let mark = read_mark(&files.data).unwrap_or(None);
    let inspection = LogInspection::new(files.log, mark)?;
    Ok(inspection.filter_map(move |inspected| {
        let _held = &lock;
        match inspected {
            Ok(Inspected::Frame { start, end, known_synced, write_set }) => Some(Ok(LogEntry {
                start,
                end,
                known_synced,
                bytes: write_set.len(),
                write_set: WriteSet::decode(&write_set),
            })),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }))
}

/// The heads of an origin's chain, in order, at each place at which the log of a data directory tells them:
/// the first retained segment's start, if the origin was known there, and behind each of its write sets. No
/// process has the directory open. Nothing is changed.
///
/// # Errors
/// When there is no log, a process has the directory, or the log cannot be read to its end.
pub fn chain_heads(directory: &Path, origin: Origin) -> Result<Vec<ChainHead>, DumpError> {
    let files = existing(directory)?;
    let _lock = DirectoryLock::share_existing(directory).map_err(VerifyError::Locked)?;
    let mark = read_mark(&files.data).unwrap_or(None);
    let mut heads: Vec<ChainHead> = Vec::new();
    for inspected in LogInspection::new(files.log, mark)? {
        let last = heads.last().copied().unwrap_or(ChainHead::NONE);
        match inspected? {
            // Behind a boundary the chain goes on with more than the log has.
            Inspected::Segment { heads: at, .. } if at.head(origin).seq > last.seq => heads.push(at.head(origin)),
            Inspected::Frame { write_set, .. } => match WriteSet::peek_dot(&write_set) {
                Ok(dot) if dot.origin == origin && dot.seq == last.seq + 1 => {
                    heads.push(ChainHead { seq: dot.seq, hash: last.hash.extended(&write_set) });
                }
                _ => {}
            },
            _ => {}
        }
    }
    Ok(heads)
}

/// Why a log could not be dumped. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The directory is not to be read.
    #[error(transparent)]
    Directory(#[from] VerifyError),
    /// The log is not to be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The parts of a data directory, of which it has one at least.
const PARTS: [&str; 5] = ["identity.toml", LOG, STATE, CHECKPOINT, SALVAGE];

/// The files of a data directory that exists; its log need not.
fn existing(directory: &Path) -> Result<StoreFiles<Directory>, VerifyError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            VerifyError::Directory { directory: directory.to_path_buf(), source }
        }
        _ => VerifyError::Unreadable { path: directory.to_path_buf(), source },
    };
    let data = Directory::existing(directory).map_err(failed)?;
    for part in PARTS {
        if fs::exists(directory.join(part)).map_err(failed)? {
            return Ok(StoreFiles {
                data,
                log: Directory::unopened(directory.join(LOG)),
                snapshot: Directory::unopened(directory.join(SNAPSHOT)),
            });
        }
    }
    Err(failed(io::Error::new(io::ErrorKind::NotFound, format!("it holds none of {}", PARTS.join(", ")))))
}
