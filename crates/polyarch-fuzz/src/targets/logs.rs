//! Logs as a disk may show them: forged, torn, cut and mixed up, with checksums that are right or not.

use bytes::Bytes;
use polyarch_crdt::{Dot, FieldPath, Hlc, Origin};
use polyarch_protocol::{
    ChainHeads, Change, Dependencies, Digest, Effect, Frontier, KeyspaceId, LogPosition, LogReadError, WriteSet,
};
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::log::{Inspected, Log, LogConfig, LogError, LogInspection, salvage};
use polyarch_store::state::{MemoryOpener, MemoryState, ScanRange};
use polyarch_store::{CheckpointConfig, Store, StoreConfig, StoreFiles, verify_parts};

use crate::script::{Script, WALL_MS};
use crate::segments::{Forged, SegmentWriter};

/// The shipped store, in memory.
pub(super) type MemoryStore = Store<SimulatedDisk, MemoryState>;

const SALT: u32 = 0x5a17;
const FRAMES_MAX: usize = 40;
const DAMAGES_MAX: usize = 6;

/// An input is a script of how a log was written and what befell its files since.
///
/// It opens, or says why not, and looking at it says the same. What opens is the same when it is opened again, goes on
/// from there, and holds nothing that a salvage does not find. The store over it opens with the digest of its records.
pub fn log_recovery(data: &[u8]) {
    let mut script = Script::new(data);
    let known_synced = match script.below(4) {
        0 => Some(LogPosition { segment: script.any_number(), offset: script.any_number() }),
        _ => None,
    };
    let written = write(&mut script);
    log(&written.copy(), known_synced, &written.heads);
    store(&written.copy());
}

/// The configuration of what is small.
pub(super) fn small_log() -> LogConfig {
    LogConfig { segment_bytes: 2_048, allocate_bytes: 512, mark_bytes: 512, salt: SALT, ..LogConfig::default() }
}

/// A store's, with its log; its memtable goes to the state often.
pub(super) fn small_store() -> StoreConfig {
    let checkpoint = CheckpointConfig { memtable_bytes_max: 600, ..CheckpointConfig::default() };
    StoreConfig { log: small_log(), checkpoint, ..StoreConfig::default() }
}

/// A log's files, and what its sound part adds up to.
struct Written {
    files: Vec<(String, Vec<u8>)>,
    heads: ChainHeads,
}

impl Written {
    fn copy(&self) -> SimulatedDisk {
        let disk = SimulatedDisk::new(1, 512);
        for (name, bytes) in &self.files {
            disk.damage(name, |content| content.clone_from(bytes));
        }
        disk
    }
}

fn write(script: &mut Script<'_>) -> Written {
    let mut heads = ChainHeads::default();
    let first = match script.one_in(8) {
        true => script.any_number().max(1),
        false => 1,
    };
    let mut segments = vec![SegmentWriter::begin(first, None, SALT, &heads, Forged::of(script))];
    let mut synced = LogPosition::default();
    for _ in 0..script.below(FRAMES_MAX) {
        let segment = segments.last_mut().expect("there is one");
        match script.below(8) {
            0 => synced = segment.end(),
            1 => synced = LogPosition { segment: script.any_number(), offset: script.any_number() },
            2 => segment.rubbish(script.chunk(60)),
            3 => {
                let number = segment.end().segment;
                let number = if script.one_in(8) { script.any_number() } else { number.wrapping_add(1) };
                let salt = if script.one_in(8) { SALT + 1 } else { SALT };
                let next = SegmentWriter::begin(number, Some(segment), salt, &heads, Forged::of(script));
                segments.push(next);
            }
            4 => _ = segment.frame(script.chunk(80), synced, Forged::of(script)),
            _ => {
                let (write_set, bytes) = next(&heads, script);
                let forged = Forged::of(script);
                segment.frame(&bytes, synced, forged);
                if forged.word.is_none() {
                    heads.extend(write_set.dot, &bytes);
                }
            }
        }
    }
    let mut files: Vec<_> = segments.iter().map(|segment| (segment.name(), segment.file(script.below(200)))).collect();
    for _ in 0..script.below(DAMAGES_MAX) {
        damage(&mut files, script);
    }
    Written { files, heads }
}

/// The next write set of one of few origins: a put of one of few keys that may supersede another.
pub(super) fn next(heads: &ChainHeads, script: &mut Script<'_>) -> (WriteSet, Bytes) {
    let origin = Origin::new(1 + script.below(3) as u32, 7);
    let dot = Dot::new(origin, heads.applied().seq(origin).saturating_add(1));
    let dependencies = match dot.seq {
        1 => Dependencies::Whole { predecessor: None, applied: heads.applied().clone() },
        _ => Dependencies::Changed(script.applied().iter().filter(|of| of.origin != origin).collect()),
    };
    let keyspace = KeyspaceId { dot: Dot::new(Origin::new(1, 7), 1), index: 0 };
    let key = Bytes::copy_from_slice(&[b'a' + script.below(4) as u8]);
    let mut supersedes: Vec<Dot> = heads.applied().iter().take(script.below(4)).chain(script.dots(1)).collect();
    supersedes.retain(|old| *old != dot);
    let effect = match script.below(4) {
        0 => Effect::Delete,
        _ => Effect::Put(Bytes::copy_from_slice(script.chunk(40))),
    };
    let changes = vec![Change { keyspace, key, field: FieldPath::opaque(), supersedes, effect }];
    let write_set = WriteSet { dot, hlc: Hlc::new(WALL_MS + dot.seq, 0), dependencies, changes };
    let bytes = write_set.encode();
    (write_set, bytes)
}

fn damage(files: &mut Vec<(String, Vec<u8>)>, script: &mut Script<'_>) {
    let (of, to) = (script.below(files.len()), script.below(files.len()));
    let at = script.number();
    match script.below(7) {
        0 => {
            if let Some(byte) = files.get_mut(of).and_then(|(_, bytes)| bytes.get_mut(at)) {
                *byte ^= 1 << script.below(8);
            }
        }
        1 => files.iter_mut().skip(of).take(1).for_each(|(_, bytes)| bytes.truncate(at)),
        2 => {
            let with = script.chunk(100);
            files.iter_mut().skip(of).take(1).for_each(|(_, bytes)| overwrite(bytes, at, with));
        }
        3 => {
            let zeros = vec![0; script.number() % 1_024];
            files.iter_mut().skip(of).take(1).for_each(|(_, bytes)| overwrite(bytes, at, &zeros));
        }
        4 if !files.is_empty() => _ = files.remove(of),
        5 if !files.is_empty() => {
            let bytes = files[of].1.clone();
            files[to].1 = bytes;
        }
        _ => {
            let name = ["log.toml", "checkpoint.toml", "0000000009.log", "1.log"][script.below(4)];
            files.push((name.to_owned(), script.chunk(80).to_vec()));
        }
    }
}

fn overwrite(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes.iter_mut().skip(at).zip(with).for_each(|(byte, with)| *byte = *with);
}

type Frames = Vec<(LogPosition, Bytes)>;

fn log(disk: &SimulatedDisk, known_synced: Option<LogPosition>, heads: &ChainHeads) {
    let inspected = inspected(disk, known_synced);
    let salvaged = salvaged(disk);
    let opened = opened(disk, known_synced);
    // Segments before a checkpoint are not read when a log is opened, and looked at later.
    let may_differ = known_synced.is_some() && opened.is_ok();
    assert!(inspected.is_ok() == opened.is_ok() || may_differ, "{inspected:?} and {opened:?}");
    let Ok((frames, end)) = opened else { return };
    assert!(inspected.map_or(may_differ, |seen| seen == frames), "what is opened is what was seen");
    let whole = salvaged.expect("what opens can be salvaged");
    let is_salvaged = |(_, bytes): &(LogPosition, Bytes)| whole.iter().any(|(_, other)| other == bytes);
    assert!(frames.iter().all(is_salvaged), "a salvage finds each frame");
    let again = self::opened(disk, Some(end)).expect("it opens again");
    assert_eq!(again, (frames.clone(), end));
    goes_on(disk, frames, end, heads);
}

/// What an inspection comes upon.
fn inspected(disk: &SimulatedDisk, known_synced: Option<LogPosition>) -> Result<Frames, LogError> {
    let mut frames = Vec::new();
    for seen in LogInspection::new(disk.clone(), known_synced)? {
        if let Inspected::Frame { end, write_set, .. } = seen? {
            frames.push((end, write_set));
        }
    }
    Ok(frames)
}

fn salvaged(disk: &SimulatedDisk) -> Result<Frames, LogError> {
    let mut frames = Vec::new();
    let salvaged = salvage(disk, |at, bytes| {
        frames.push((at, Bytes::copy_from_slice(bytes)));
        Ok::<_, LogError>(())
    })?;
    assert_eq!(salvaged.frames, frames.len() as u64);
    Ok(frames)
}

fn opened(disk: &SimulatedDisk, known_synced: Option<LogPosition>) -> Result<(Frames, LogPosition), String> {
    let (mut log, _) = Log::open(disk.clone(), small_log(), known_synced).map_err(|error| error.to_string())?;
    let _checked = log.check().run(|| true, |_| {});
    let frames = replayed(&log)?;
    Ok((frames, log.durable_end()))
}

fn replayed(log: &Log<SimulatedDisk>) -> Result<Frames, String> {
    let mut frames = Vec::new();
    let replay = log.replay(log.segments()[0].start, |end, write_set| {
        frames.push((end, write_set));
        Ok::<_, LogReadError>(())
    });
    replay.map(|()| frames).map_err(|error| error.to_string())
}

/// It takes what is next, and has it after a power cut.
fn goes_on(disk: &SimulatedDisk, mut frames: Frames, end: LogPosition, heads: &ChainHeads) {
    let (mut log, _) = Log::open(disk.clone(), small_log(), Some(end)).expect("it opened before");
    let next = Bytes::from_static(b"what is next");
    let Ok(end) = log.append(&next, heads) else { return };
    assert_eq!(log.sync().ok(), Some(end));
    frames.push((end, next));
    drop(log);
    disk.crash();
    let (log, _) = Log::open(disk.clone(), small_log(), Some(end)).expect("what was synced opens");
    assert_eq!(replayed(&log), Ok(frames));
}

/// The store over the files, and over what it made of them.
fn store(disk: &SimulatedDisk) {
    let files = StoreFiles::from(disk.clone());
    let state = MemoryState::new();
    let verified = verify_parts(&files, &mut MemoryOpener::new(state.clone()), 10).expect("the disk answers");
    let Ok((mut store, frontier, _)) =
        MemoryStore::open(files.clone(), MemoryOpener::new(state.clone()), &small_store())
    else {
        return;
    };
    check_digest(&store, &frontier);
    if let Some(job) = store.begin_checkpoint_now(&frontier) {
        let done = job.run().expect("memory and the disk take it");
        store.finish_checkpoint(done);
    }
    drop(store);
    disk.crash();
    let opened = MemoryStore::open(files.clone(), MemoryOpener::new(state.clone()), &small_store());
    let (store, again, _) = opened.expect("what was opened and synced opens");
    assert_eq!(again, frontier);
    check_digest(&store, &again);
    drop(store);
    let report = verify_parts(&files, &mut MemoryOpener::new(state), 10).expect("the disk answers");
    assert!(report.is_clean() || !verified.is_clean(), "{report:?} after {verified:?}");
}

/// **Law:** the digest is that of the records.
pub(super) fn check_digest(store: &MemoryStore, frontier: &Frontier) {
    let mut digest = Digest::default();
    for (key, record) in store.reader().scan(&ScanRange::everything(), usize::MAX).expect("memory is read") {
        assert_eq!(record.validate(), Ok(()));
        for field in record.fields() {
            field.siblings().iter().for_each(|sibling| digest.add(&key, field.path(), sibling));
        }
    }
    assert_eq!(digest, frontier.digest, "the digest is that of the records");
}
