//! A state directory is destroyed in every way, on a real disk, and comes back from the log.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use polyarch_protocol::{Frontier, RecordKey};
use polyarch_store::files::Directory;
use polyarch_store::log::LogConfig;
use polyarch_store::state::{SledConfig, SledState, StateDirectory, StateError};
use polyarch_store::{
    DiskStore, LockError, OpenError, OpenReport, StateReport, Store, StoreConfig, StoreFiles, VerifyConfig,
    VerifyError, dump, verify,
};
use tempfile::TempDir;

use crate::support::{Node, Sees, Write, key};

const RECORDS: u32 = 3_000;

type DiskNode = Node<Directory, SledState>;
type Live = BTreeMap<RecordKey, String>;

fn config() -> StoreConfig {
    StoreConfig {
        log: LogConfig { segment_bytes: 64 << 10, allocate_bytes: 16 << 10, ..LogConfig::default() },
        sled: SledConfig { open_timeout: Duration::from_secs(20), ..SledConfig::default() },
        ..StoreConfig::default()
    }
}

/// A data directory with two checkpoints and some log behind them, and what is in it.
struct Data {
    dir: TempDir,
    frontier: Frontier,
    live: Live,
    /// The state as the first checkpoint left it.
    early_state: PathBuf,
}

impl Data {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let mut node = open(&data, &config()).unwrap();
        write(&mut node, 0..RECORDS, 0);
        node.checkpoint();
        drop(node);
        let early_state = dir.path().join("early");
        copy_tree(&data.join("state"), &early_state);
        let mut node = open(&data, &config()).unwrap();
        write(&mut node, RECORDS / 2..RECORDS + 500, 1);
        node.checkpoint();
        write(&mut node, 0..50, 2);
        node.store.sync().unwrap();
        let (frontier, live) = (node.frontier.clone(), node.live());
        Self { dir, frontier, live, early_state }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The directory that sled was given.
    fn sled(&self) -> PathBuf {
        self.path().join("state/0001")
    }

    fn verify(&self) -> polyarch_store::VerifyReport {
        let config = VerifyConfig { scratch: self.dir.path().into(), sled: config().sled, ..VerifyConfig::default() };
        verify(&self.path(), &config).unwrap()
    }

    fn check(&self, node: &DiskNode) {
        assert_eq!(node.frontier, self.frontier);
        assert_eq!(node.live(), self.live);
    }

    /// It comes back as it was, and with the next checkpoint all is well again.
    fn comes_back(&self, config: &StoreConfig) -> StateReport {
        let mut node = open(&self.path(), config).unwrap();
        self.check(&node);
        let report = node.report.state.clone();
        node.checkpoint();
        drop(node);
        let after = self.verify();
        assert!(after.is_clean(), "{after:#?}");
        assert!(after.from_the_beginning);
        report
    }

    /// The same; before, `verify` finds that something is wrong.
    fn is_found_and_comes_back(&self, config: &StoreConfig) -> StateReport {
        let before = self.verify();
        assert!(!before.is_clean());
        self.comes_back(config)
    }
}

fn open(path: &Path, config: &StoreConfig) -> Result<DiskNode, OpenError> {
    let (store, frontier, report) = DiskStore::open_directory(path, config)?;
    Ok(Node { store, frontier, report })
}

/// Opens with another way to open the state.
fn open_with(path: &Path, state: StateDirectory<SledState>) -> Result<(DiskStore, Frontier, OpenReport), OpenError> {
    let log = Directory::open(path.join("log")).unwrap();
    let snapshot = Directory::open(path.join("snapshot")).unwrap();
    Store::open(StoreFiles { data: Directory::open(path).unwrap(), log, snapshot }, state, &config())
}

fn write(node: &mut DiskNode, numbers: std::ops::Range<u32>, origin: u32) {
    for number in numbers {
        node.write(&Write { origin, changes: vec![(number, Sees::All, !number.is_multiple_of(7))] });
        if number % 100 == 0 {
            node.store.sync().unwrap();
        }
    }
    node.store.sync().unwrap();
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files_below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

fn copy_tree(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => copy_tree(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}

/// Everything below a directory, byte by byte.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    files_below(dir).into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// The files that hold the leaves, and those that say where each leaf is.
fn slabs(data: &Data) -> Vec<PathBuf> {
    let files = files_below(&data.sled().join("slabs"));
    files.into_iter().filter(|path| fs::metadata(path).unwrap().len() > 0).collect()
}

fn metadata(data: &Data) -> Vec<PathBuf> {
    let files = files_below(&data.sled().join("metadata"));
    files
        .into_iter()
        .filter(|path| fs::metadata(path).unwrap().len() > 0 && !path.ends_with("DO_NOT_PUT_YOUR_FILES_HERE"))
        .collect()
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_sound_state_is_kept_and_verifies() {
    let data = Data::new();
    let before = contents(&data.path());
    let report = data.verify();
    assert!(report.is_clean(), "{report:#?}");
    assert!(report.from_the_beginning && report.segments > 1 && report.state_records > 2_000);
    assert_eq!(report.frontier.as_ref(), Some(&data.frontier));
    assert!(contents(&data.path()) == before, "nothing was changed");
    assert_eq!(data.comes_back(&config()), StateReport::Intact);
}

#[test]
fn a_state_whose_directory_is_gone_is_rebuilt() {
    let data = Data::new();
    fs::remove_dir_all(data.path().join("state")).unwrap();
    assert!(matches!(data.is_found_and_comes_back(&config()), StateReport::Behind { .. }));
}

#[test]
fn a_state_whose_leaves_are_gone_is_rebuilt() {
    let data = Data::new();
    slabs(&data).iter().for_each(|path| fs::remove_file(path).unwrap());
    assert!(matches!(data.is_found_and_comes_back(&config()), StateReport::Rebuilt { .. }));
}

#[test]
fn a_state_whose_index_is_gone_is_rebuilt() {
    let data = Data::new();
    metadata(&data).iter().for_each(|path| fs::remove_file(path).unwrap());
    assert!(!matches!(data.is_found_and_comes_back(&config()), StateReport::Intact));
}

#[test]
fn a_flipped_byte_in_the_leaves_is_found_when_the_state_is_checked() {
    let data = Data::new();
    for path in slabs(&data) {
        change(&path, |bytes| {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        });
    }
    let config = StoreConfig { check_state_at_open: true, ..config() };
    assert!(matches!(data.is_found_and_comes_back(&config), StateReport::Rebuilt { .. }));
}

#[test]
fn a_flipped_byte_that_a_reader_meets_is_mended_at_the_next_open() {
    let data = Data::new();
    for path in slabs(&data) {
        change(&path, |bytes| {
            // Not the leaf of the metadata, which every open reads: it is larger than the others.
            let half = bytes.len() / 2;
            if !path.to_str().is_some_and(|path| bytes.len() > 60_000 && path.contains("slabs")) {
                bytes[half] ^= 1;
            }
        });
    }
    let config = config();
    let met = match open(&data.path(), &config) {
        Err(error) => panic!("{error}"),
        Ok(node) if matches!(node.report.state, StateReport::Rebuilt { .. }) => true,
        Ok(mut node) => {
            let reader = node.store.reader();
            let met = (0..RECORDS + 500).any(|number| reader.get(&key(number)).is_err());
            let job = node.store.begin_checkpoint_now(&node.frontier).expect("nothing is staged or running");
            let failed = job.run().err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(met, failed.contains("takes no more writes since it failed (the state"), "{failed}");
            assert!(!failed.contains(".rs"), "no places of a source: {failed}");
            met
        }
    };
    assert!(met, "some reader meets it");
    data.comes_back(&config);
}

#[test]
fn an_index_with_flipped_bytes_is_rebuilt_or_brought_up() {
    for place in 0..4 {
        let data = Data::new();
        for path in metadata(&data) {
            change(&path, |bytes| {
                let at = bytes.len() * place / 4;
                bytes[at] ^= 0x10;
            });
        }
        assert_ne!(data.comes_back(&config()), StateReport::Intact, "a flip at {place}/4");
    }
}

#[test]
fn an_index_cut_short_is_rebuilt_or_brought_up() {
    for cut in [1, 64, 4_096] {
        let data = Data::new();
        for path in metadata(&data) {
            change(&path, |bytes| bytes.truncate(bytes.len().saturating_sub(cut)));
        }
        assert_ne!(data.comes_back(&config()), StateReport::Intact, "cut by {cut}");
    }
}

#[test]
fn leaves_cut_short_are_rebuilt() {
    let data = Data::new();
    for path in slabs(&data) {
        change(&path, |bytes| bytes.truncate(bytes.len() / 2));
    }
    let config = StoreConfig { check_state_at_open: true, ..config() };
    assert!(matches!(data.is_found_and_comes_back(&config), StateReport::Rebuilt { .. }));
}

#[test]
fn rubbish_in_the_place_of_a_state_is_set_aside() {
    let data = Data::new();
    for path in files_below(&data.sled()) {
        fs::write(path, b"rubbish").unwrap();
    }
    assert!(matches!(data.is_found_and_comes_back(&config()), StateReport::Rebuilt { .. }));
    assert!(data.path().join("state.damaged-1/0001").is_dir());
    assert!(data.path().join("state/0002").is_dir());
}

#[test]
fn a_state_that_rolled_back_is_brought_up_by_the_log() {
    let data = Data::new();
    fs::remove_dir_all(data.path().join("state")).unwrap();
    copy_tree(&data.early_state, &data.path().join("state"));
    assert!(matches!(data.is_found_and_comes_back(&config()), StateReport::Behind { .. }));
}

#[test]
fn a_state_that_rolled_back_in_part_is_rebuilt() {
    let data = Data::new();
    // The index of before, over leaves of today: sled takes their checksums for good.
    fs::remove_dir_all(data.sled().join("metadata")).unwrap();
    copy_tree(&data.early_state.join("0001/metadata"), &data.sled().join("metadata"));
    assert_ne!(data.is_found_and_comes_back(&config()), StateReport::Intact);
}

#[test]
fn an_open_that_hangs_is_given_up_and_the_state_rebuilt() {
    let data = Data::new();
    let calls = Arc::new(AtomicU32::new(0));
    let (_never, wait) = mpsc::channel::<()>();
    let wait = parking_lot::Mutex::new(wait);
    let state = StateDirectory::new(data.path(), Duration::from_secs(2), move |dir| {
        if calls.fetch_add(1, Ordering::Relaxed) == 0 {
            let _ = wait.lock().recv();
        }
        SledState::open(dir, &config().sled)
    });
    let (store, frontier, report) = open_with(&data.path(), state).unwrap();
    assert!(matches!(&report.state, StateReport::Rebuilt { why, .. } if why.contains("did not answer")));
    data.check(&Node { store, frontier, report });
    assert!(matches!(data.comes_back(&config()), StateReport::Behind { .. }), "no checkpoint was made since");
}

#[test]
fn an_open_that_panics_is_given_up_and_the_state_rebuilt() {
    let data = Data::new();
    let calls = AtomicU32::new(0);
    let state = StateDirectory::new(data.path(), Duration::from_secs(20), move |dir| {
        assert!(calls.fetch_add(1, Ordering::Relaxed) > 0, "a panic within the backend");
        SledState::open(dir, &config().sled)
    });
    let (store, frontier, report) = open_with(&data.path(), state).unwrap();
    assert!(matches!(&report.state, StateReport::Rebuilt { why, .. } if why.contains("a panic within")));
    data.check(&Node { store, frontier, report });
}

#[test]
fn an_open_that_is_refused_by_the_system_sets_nothing_aside() {
    let data = Data::new();
    let refused = |_: &Path| {
        let source = io::Error::from(io::ErrorKind::PermissionDenied);
        Err(StateError::Io { doing: "opened", source })
    };
    let state = StateDirectory::new(data.path(), Duration::from_secs(20), refused);
    assert!(matches!(open_with(&data.path(), state), Err(OpenError::State(_))));
    assert_eq!(data.comes_back(&config()), StateReport::Intact);
}

#[test]
fn a_lost_state_whose_log_was_cut_is_an_error_that_changes_nothing() {
    let data = Data::new();
    let mut node = open(&data.path(), &config()).unwrap();
    write(&mut node, 0..1_000, 0);
    node.checkpoint();
    write(&mut node, 0..1_000, 0);
    node.checkpoint();
    let end = node.store.durable_end();
    assert!(!node.store.remove_log_before(end).unwrap().is_empty());
    drop(node);
    fs::write(data.sled().join("metadata/log_0000000000000001"), b"rubbish").unwrap();
    files_below(&data.sled()).iter().for_each(|path| fs::write(path, b"rubbish").unwrap());
    let refused = open(&data.path(), &config()).err().expect("the state is lost");
    assert!(matches!(refused, OpenError::StateLost { .. }), "{refused}");
    assert!(refused.to_string().contains("backup"), "{refused}");
    assert!(data.sled().is_dir(), "nothing was set aside");
}

#[test]
fn a_directory_in_use_is_refused_by_name() {
    let data = Data::new();
    let _node = open(&data.path(), &config()).unwrap();
    let refused = open(&data.path(), &config()).err().expect("it is in use");
    assert!(matches!(refused, OpenError::Locked(LockError::InUse(_))));
    assert!(refused.to_string().contains(&data.path().display().to_string()), "{refused}");
    let refused = verify(&data.path(), &VerifyConfig::default()).unwrap_err();
    assert!(matches!(refused, VerifyError::Locked(_)));
    assert!(dump(&data.path()).is_err());
}

#[test]
fn a_log_is_dumped_in_order() {
    let data = Data::new();
    let entries: Vec<_> = dump(&data.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(entries.len() as u64, data.frontier.heads.applied().write_sets());
    assert!(entries.windows(2).all(|pair| pair[0].end <= pair[1].start && pair[0].start < pair[0].end));
    let first = entries[0].write_set.as_ref().unwrap();
    assert_eq!((first.dot.seq, first.changes.len()), (1, 1));
    assert!(dump(data.dir.path()).is_err(), "no data directory");
}

#[test]
fn a_flipped_bit_in_the_log_is_found_with_file_and_offset() {
    let data = Data::new();
    let path = data.path().join("log/0000000001.log");
    change(&path, |bytes| bytes[5_000] ^= 1);
    let report = data.verify();
    let named = report.problems.iter().any(|problem| problem.to_string().contains("0000000001.log"));
    assert!(named, "{report:#?}");
}
