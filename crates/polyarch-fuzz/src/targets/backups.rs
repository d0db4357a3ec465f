//! Backups: a snapshot's file and a manifest, in a directory.

use std::fs;

use polyarch_crdt::AppliedSet;
use polyarch_store::files::Directory;
use polyarch_store::files::simulated::SimulatedDisk;
use polyarch_store::state::MemoryOpener;
use polyarch_store::{BackupManifest, BackupSurvey, SnapshotReceiver, verify_backup};

use super::logs::{MemoryStore, check_digest, small_store};
use super::snapshots::{INCOMING, parts};
use crate::script::Script;
use crate::segments::snapshot_file;

const FILE: &str = "backup.snapshot";
const MANIFEST: &str = "manifest.toml";

/// An input is a script of the parts that a backup's file holds, and of what its manifest says beside the truth.
///
/// A backup is sound exactly when its file can be read from beginning to end and its manifest says what is in it; then
/// its log goes on where its records are. With another byte anywhere in the file it is not.
pub fn backups(data: &[u8]) {
    let mut script = Script::new(data);
    let directory = tempfile::tempdir().expect("there is room for temporary files");
    let path = directory.path();
    let file = snapshot_file(parts(&mut script).iter().map(Vec::as_slice));
    fs::write(path.join(FILE), &file).expect("the disk takes it");
    let survey = BackupSurvey::of(path);
    let Ok(survey) = survey else {
        fs::write(path.join(MANIFEST), script.rest()).expect("the disk takes it");
        assert!(!verify_backup(path).expect("the disk answers").is_clean(), "no manifest makes an unsound file sound");
        return;
    };
    let lie = script.below(16);
    fs::write(path.join(MANIFEST), manifest(&survey, lie)).expect("the disk takes it");
    let report = verify_backup(path).expect("the disk answers");
    assert_eq!(report.is_clean(), lie >= LIES, "{report:?}");
    assert!(BackupManifest::read(path).expect("the disk answers").is_some());
    if report.is_clean() {
        restored(&Directory::existing(path).expect("it is there"), &survey, &file);
        let mut altered = file;
        let at = script.number() % altered.len();
        altered[at] ^= 1 << script.below(8);
        fs::write(path.join(FILE), altered).expect("the disk takes it");
        assert!(!verify_backup(path).expect("the disk answers").is_clean(), "another byte at {at} is seen");
    }
}

/// What [`manifest`] can say that is not so.
const LIES: usize = 8;

/// The truth but for one lie, if `lie` is one.
fn manifest(survey: &BackupSurvey, lie: usize) -> String {
    let off = |number: u64, at: usize| number.wrapping_add(u64::from(lie == at)) & i64::MAX as u64;
    let gtids = |set: &AppliedSet, at: usize| {
        let mut gtids: Vec<String> = set.iter().map(|dot| format!("\"{dot}\"")).collect();
        if lie == at {
            gtids.push("\"9-00000009:9\"".to_owned());
        }
        gtids.join(", ")
    };
    let log_end = survey.log_end.map_or(String::new(), |end| format!("log_end = \"{end}\"\n"));
    format!(
        "format = 1\ncluster = \"c\"\ncluster_id = \"{:032x}\"\ndonor = {}\nversion = \"0.2.0\"\ntime = \"t\"\nrecords = {}\n\
         write_sets = {}\nbytes = {}\nblake3 = \"{}{}\"\nbegan_with = [{}]\nholds = [{}]\n{log_end}",
        survey.begin.cluster_id.0 ^ u128::from(lie == 0),
        survey.begin.donor ^ u32::from(lie == 1),
        off(survey.records, 2),
        off(survey.write_sets, 3),
        off(survey.bytes, 4),
        survey.blake3,
        if lie == 5 { "0" } else { "" },
        gtids(survey.begin.start.heads.applied(), 6),
        gtids(survey.end.applied(), 7),
    )
}

/// What is verified can be restored: an empty node that joins it has what it holds.
fn restored(directory: &Directory, survey: &BackupSurvey, file: &[u8]) {
    let backup = SnapshotReceiver::read_backup(directory.clone()).expect("the disk answers").expect("it is there");
    assert!(backup.is_whole() && backup.heads() == Some(&survey.end));
    let disk = SimulatedDisk::new(1, 512);
    disk.damage(INCOMING, |content| *content = file.to_vec());
    let opened = MemoryStore::open(disk.clone(), MemoryOpener::default(), &small_store());
    let (mut store, empty, _) = opened.unwrap_or_else(|error| panic!("{error}"));
    let incoming = SnapshotReceiver::open(disk).expect("the disk answers").expect("it is there");
    let job = store.begin_join(incoming, &empty).unwrap_or_else(|_| panic!("it is whole"));
    let joined = job.run(|_| true).unwrap_or_else(|error| panic!("it was verified: {error}"));
    let frontier = store.adopt(joined, &empty).expect("the disk takes it");
    store.publish_staged();
    check_digest(&store, &frontier);
    assert_eq!(frontier.heads, survey.end);
}
