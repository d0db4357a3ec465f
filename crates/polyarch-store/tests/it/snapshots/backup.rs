//! A snapshot that is kept: a directory with a manifest.

use std::fs;
use std::path::Path;

use polyarch_store::files::Directory;
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::state::{MemoryOpener, MemoryState};
use polyarch_store::{
    BackupDirectory, BackupDirectoryError, BackupManifest, BackupOrigin, DiskStore, SnapshotReceiver, StoreConfig,
    SurveyError, VerifyConfig, verify, verify_backup,
};

use super::walk::Walk;

use crate::support::{Model, Node, Sees, Write};

type MemoryNode = Node<SimulatedDisk, MemoryState>;

/// A donor, its walk with some write sets behind V, and what both add up to.
fn donor() -> (MemoryNode, Walk<SimulatedDisk, MemoryState>, Model) {
    let config = StoreConfig::default();
    let (mut donor, mut both) = (
        Node::open(SimulatedDisk::new(1, 512), MemoryOpener::new(MemoryState::new()), &config).unwrap(),
        Model::default(),
    );
    let mut write = |donor: &mut MemoryNode, number| {
        let (write_set, bytes, _) = donor.write(&Write { origin: 0, changes: vec![(number, Sees::All, true)] });
        both.apply(&write_set, &bytes);
    };
    (0..600).for_each(|number| write(&mut donor, number));
    donor.checkpoint();
    let walk = Walk::begin(&mut donor, 1);
    (300..330).for_each(|number| write(&mut donor, number));
    donor.store.sync().unwrap();
    (donor, walk, both)
}

fn origin() -> BackupOrigin {
    let [cluster, authority, version, time] = ["orders", "c1a5", "0.1.0", "2026-01-02T03:04:05Z"].map(str::to_owned);
    BackupOrigin { cluster, authority, version, time }
}

/// Takes `parts` parts, and gives the directory back.
fn take(walk: &mut Walk<SimulatedDisk, MemoryState>, path: &Path, parts: usize) -> BackupDirectory {
    let directory = BackupDirectory::open(path).unwrap();
    let mut receiver = match directory.begun().unwrap() {
        Some(begun) => {
            walk.resume(begun.resume().keys);
            begun
        }
        None => directory.begin(&walk.next().unwrap()).unwrap(),
    };
    for _ in 0..parts {
        let Some(part) = walk.next() else { break };
        receiver.push(&part).unwrap();
    }
    directory
}

#[test]
fn a_backup_that_broke_off_goes_on_and_says_what_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("backup");
    let (donor, mut walk, _) = donor();
    assert!(matches!(take(&mut walk, &path, 3).complete(origin()), Err(SurveyError::NotWhole)));
    let unfinished = verify_backup(&path).unwrap();
    let said: Vec<String> = unfinished.problems.iter().map(ToString::to_string).collect();
    assert!(unfinished.is_unfinished, "{said:?}");
    assert_eq!(said, ["manifest.toml: it is missing: the backup was not finished"]);
    let manifest = take(&mut walk, &path, usize::MAX).complete(origin()).unwrap();
    assert_eq!((manifest.records, manifest.write_sets, manifest.donor), (600, 30, 1));
    assert_eq!(manifest.log_end, Some(donor.store.durable_end().to_string()));
    assert_eq!(BackupManifest::read(&path).unwrap(), Some(manifest.clone()));
    let report = verify_backup(&path).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    assert_eq!(report.survey.unwrap().blake3, manifest.blake3);
    assert!(matches!(BackupDirectory::open(&path), Err(BackupDirectoryError::Complete(_))));
    assert!(matches!(BackupDirectory::open(dir.path()), Err(BackupDirectoryError::Foreign(_))));
}

#[test]
fn a_manifest_that_names_neither_log_nor_authority_is_one_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let (_donor, mut walk, _) = donor();
    let manifest = take(&mut walk, dir.path(), usize::MAX).complete(origin()).unwrap();
    let path = dir.path().join("manifest.toml");
    let text = fs::read_to_string(&path).unwrap();
    let is_new = |line: &&str| line.starts_with("log_end") || line.starts_with("authority");
    assert_eq!(text.lines().filter(is_new).count(), 2);
    fs::write(&path, text.lines().filter(|line| !is_new(line)).collect::<Vec<_>>().join("\n")).unwrap();
    let report = verify_backup(dir.path()).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    let old = report.manifest.unwrap();
    assert_eq!((&old.log_end, &old.authority, old.records), (&None, &None, manifest.records));
    fs::write(&path, text.replacen("log_end = \"1:", "log_end = \"2:", 1)).unwrap();
    assert!(!verify_backup(dir.path()).unwrap().is_clean());
}

#[test]
fn an_altered_byte_is_found_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (_donor, mut walk, _) = donor();
    take(&mut walk, dir.path(), usize::MAX).complete(origin()).unwrap();
    for file in ["backup.snapshot", "manifest.toml"] {
        let path = dir.path().join(file);
        let sound = fs::read(&path).unwrap();
        // The manifest's comment and the words of its maker say nothing that could be compared.
        let said = String::from_utf8_lossy(&sound).find("\nrecords").filter(|_| file == "manifest.toml");
        for at in (said.unwrap_or(0)..sound.len()).step_by(97) {
            let mut bytes = sound.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert!(!verify_backup(dir.path()).unwrap().is_clean(), "byte {at} of {file}");
        }
        fs::write(&path, sound).unwrap();
    }
    assert!(verify_backup(dir.path()).unwrap().is_clean());
}

#[test]
fn an_empty_store_becomes_what_the_backup_is_and_leaves_it_there() {
    let dir = tempfile::tempdir().unwrap();
    let [backup, data] = ["backup", "data"].map(|name| dir.path().join(name));
    let (_donor, mut walk, both) = donor();
    take(&mut walk, &backup, usize::MAX).complete(origin()).unwrap();
    let snapshot = SnapshotReceiver::read_backup(Directory::existing(&backup).unwrap()).unwrap().unwrap();
    let (mut store, frontier, _) = DiskStore::open_directory(&data, &StoreConfig::default()).unwrap();
    let job = store.begin_join(snapshot, &frontier).ok().expect("all is quiet");
    let joined = job.run(|_| true).unwrap();
    let frontier = store.adopt(joined, &frontier).unwrap();
    assert_eq!(frontier, both.frontier);
    drop(store);
    assert!(verify_backup(&backup).unwrap().is_clean(), "it is still there");
    let report = verify(&data, &VerifyConfig::default()).unwrap();
    assert!(report.is_clean(), "{:?}", report.problems);
    assert_eq!((report.state_records, report.snapshot), (600, None));
}
