//! What a store does with a directory of a real file system, and what becomes of those who may not
//! write it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use polyarch_store::files::{Directory, Files, LogFile};
use polyarch_store::log::{LogConfig, LogError};
use polyarch_store::state::SledState;
use polyarch_store::{DiskStore, LogFinding, StoreConfig, VerifyConfig, VerifyError, VerifyReport, dump, verify};
use tempfile::TempDir;

use crate::support::Node;

type DiskNode = Node<Directory, SledState>;

fn config() -> StoreConfig {
    let log = LogConfig { segment_bytes: 8 << 10, ..LogConfig::default() };
    StoreConfig { log, ..StoreConfig::default() }
}

fn open(path: &Path) -> DiskNode {
    let (store, frontier, report) = DiskStore::open_directory(path, &config()).unwrap();
    Node { store, frontier, report }
}

/// A data directory with a few segments and a checkpoint, which is closed.
fn data() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let mut node = open(&path);
    for number in 0..300 {
        node.put(number);
        node.store.sync().unwrap();
    }
    node.checkpoint();
    drop(node);
    (dir, path)
}

fn verified(dir: &TempDir, path: &Path) -> Result<VerifyReport, VerifyError> {
    verify(path, &VerifyConfig { scratch: dir.path().into(), ..VerifyConfig::default() })
}

/// Everything below a directory, with what it may be used for.
fn all_below(dir: &Path) -> BTreeMap<PathBuf, (u32, std::time::SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let metadata = entry.metadata().unwrap();
        found.insert(entry.path(), (metadata.permissions().mode() & 0o777, metadata.modified().unwrap()));
        if metadata.is_dir() {
            found.extend(all_below(&entry.path()));
        }
    }
    found
}

#[test]
fn what_the_store_creates_is_for_its_owner_only() {
    let (_dir, path) = data();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let sled = path.join("state/0001");
    for (path, (mode, _)) in all_below(&path) {
        // What sled creates lies within a directory that nobody else may enter.
        match path.is_dir() {
            _ if path.starts_with(&sled) && path != sled => {}
            true => assert_eq!(mode, 0o700, "{}", path.display()),
            false => assert_eq!(mode, 0o600, "{}", path.display()),
        }
    }
}

#[test]
fn a_directory_that_may_only_be_read_is_verified() {
    let (dir, path) = data();
    for path in all_below(&path).keys().rev() {
        let mode = if path.is_dir() { 0o500 } else { 0o400 };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let before = all_below(&path);
    let report = verified(&dir, &path).unwrap();
    assert!(report.is_clean(), "{report:#?}");
    assert!(dump(&path).unwrap().all(|entry| entry.is_ok()));
    assert_eq!(all_below(&path), before);
    before.keys().filter(|path| path.is_dir()).for_each(|path| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    });
}

#[test]
fn a_file_that_is_opened_to_read_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let files = Directory::open(dir.path()).unwrap();
    files.create("file").unwrap().write_at(b"kept", 0).unwrap();
    let file = files.open_to_read("file").unwrap();
    assert!(file.write_at(b"gone", 0).is_err());
    assert_eq!(file.read_at(&mut [0; 8], 0).unwrap(), 4);
}

#[test]
fn what_cannot_be_read_is_not_called_damaged() {
    let (dir, path) = data();
    fs::rename(path.join("log"), dir.path().join("log")).unwrap();
    fs::write(path.join("log"), "no directory").unwrap();
    assert!(matches!(verified(&dir, &path), Err(VerifyError::Unreadable { .. })));
    fs::remove_file(path.join("log")).unwrap();
    let report = verified(&dir, &path).unwrap();
    assert!(report.problems[0].what.starts_with("the log ends at 0:0, but a checkpoint"), "{report:#?}");
    fs::rename(dir.path().join("log"), path.join("log")).unwrap();
    fs::remove_file(path.join("checkpoint.toml")).unwrap();
    fs::create_dir(path.join("checkpoint.toml")).unwrap();
    let unreadable = verified(&dir, &path).unwrap_err().to_string();
    assert!(unreadable.starts_with("cannot read checkpoint.toml"), "{unreadable}");
}

#[test]
fn a_directory_of_something_else_is_no_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    for path in [dir.path().to_owned(), dir.path().join("none"), dir.path().join("file")] {
        assert!(matches!(verified(&dir, &path), Err(VerifyError::Directory { .. })), "{}", path.display());
    }
    // A node that joined and was never started has no log yet.
    fs::write(dir.path().join("identity.toml"), "").unwrap();
    assert!(verified(&dir, dir.path()).unwrap().is_clean());
}

#[test]
fn a_missing_segment_is_called_missing() {
    let (dir, path) = data();
    fs::remove_file(path.join("log/0000000001.log")).unwrap();
    let report = verified(&dir, &path).unwrap();
    assert!(report.problems[0].what.starts_with("the log begins with 0000000002.log"), "{report:#?}");
    fs::remove_file(path.join("log/0000000003.log")).unwrap();
    let report = verified(&dir, &path).unwrap();
    assert!(report.problems[0].what.starts_with("0000000003.log is missing, but"), "{report:#?}");
}

#[test]
fn damage_before_the_checkpoint_is_told_soon_after_the_start() {
    let (_dir, path) = data();
    let segment = path.join("log/0000000002.log");
    let mut bytes = fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let mut node = open(&path);
    let (tell, told) = mpsc::channel();
    node.store.begin_log_check(move |finding| tell.send(finding).unwrap()).unwrap();
    let next = || told.recv_timeout(Duration::from_secs(60)).unwrap();
    let problem = next();
    assert!(
        matches!(&problem, LogFinding::Problem(LogError::Damaged(damage)) if damage.file == "0000000002.log"),
        "{problem:?}"
    );
    let done = next();
    assert!(matches!(done, LogFinding::Done(checked) if checked.problems == 1 && checked.segments > 0), "{done:?}");
}

#[test]
fn the_check_of_the_log_ends_with_the_store() {
    let (_dir, path) = data();
    let mut node = open(&path);
    let (tell, told) = mpsc::channel();
    node.store.begin_log_check(move |finding| tell.send(finding).unwrap()).unwrap();
    drop(node);
    // Through or not, nobody holds the other end any more.
    assert!(told.iter().all(|finding| matches!(finding, LogFinding::Done(_))));
    drop(open(&path));
}
