//! Bits that flip, files that are cut short, pages in each other's place: whatever a disk does to the files of a
//! stopped node, it is detected, healed or irrelevant, and never served or sent.
//!
//! `POLYARCH_DAMAGES` says how many damages are tried (default 20), `POLYARCH_SEED` which.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::load::{Shown, cluster, put, try_all};
use super::{EQUAL_WITHIN, turn};
use crate::support::writers::{Rng, size};
use crate::support::{Cluster, command, eventually, finish};

const KEYS: u64 = 2_000;
const PAGE: usize = 4_096;
/// Segments and checkpoints come often, log is removed, and a state whose pages lead round in a circle is soon found.
const SMALL: &str = "[storage]\nlog_retention = \"members\"\nsegment_mib = 1\nmemtable_mib = 1\ncheckpoint_log_mib = 1\n\
                     open_timeout_ms = 2000\n";

/// What became of a damaged directory.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Outcome {
    /// The node started, and was equal.
    Served,
    /// It started, met the damage and said so, and was well after another start.
    StartedAgain,
    /// It refused to start, and was well after a repair.
    Repaired,
    /// It refused, and a person had to put a small file back first.
    PutBack,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_disk_does_to_the_files_of_a_stopped_node_nothing_damaged_is_served_or_sent() {
    let _turn = turn().await;
    let (_, mut random) = Rng::from_environment();
    let mut cluster = cluster(SMALL).await;
    for id in [1, 2, 3] {
        put(&cluster.client_of(id), &format!("of-{id}"), KEYS).await;
    }
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    let shown = try_all(&cluster.client_of(1)).await.unwrap();
    cluster.node(3).stop();
    let whole = cluster.directory().join("whole");
    copy(&cluster.node(3).data_dir(), &whole);
    let digest = digest(&cluster);

    let mut outcomes = std::collections::BTreeMap::new();
    for number in 0..size("POLYARCH_DAMAGES", 20) {
        let data = cluster.node(3).data_dir();
        fs::remove_dir_all(&data).unwrap();
        copy(&whole, &data);
        let what = damage(&data, &mut random);
        println!("{number}: {what}");
        let outcome = bring_back(&mut cluster, &whole, &shown).await;
        println!("{number}: {outcome:?}");
        *outcomes.entry(outcome).or_insert(0) += 1;
        // Others were sent nothing: node 3 has nothing that they had not.
        assert_eq!(self::digest(&cluster), digest, "{what}");
        assert_eq!(try_all(&cluster.client_of(1)).await.unwrap(), shown, "{what}");
        cluster.node(3).kill();
    }
    // Of which kind they are depends on the seed, and that they all ended well was asserted.
    println!("{outcomes:?}");
}

/// Starts node 3 over damaged files, as an operator would, until it is equal to the others and shows the same.
async fn bring_back(cluster: &mut Cluster, whole: &Path, shown: &Shown) -> Outcome {
    let mut outcome = Outcome::Served;
    for _ in 0..4 {
        if !cluster.node(3).try_serve() {
            outcome = outcome.max(mend(cluster, whole));
            continue;
        }
        match shown_once_equal(cluster).await {
            Some(found) => {
                assert!(found == *shown, "node 3 shows what is not so");
                return outcome;
            }
            None => outcome = outcome.max(Outcome::StartedAgain),
        }
        cluster.node(3).kill();
    }
    panic!("node 3 is not well after four starts: {}", last_lines(&cluster.node(3).log()));
}

/// What node 3 shows once it has applied what the others have; nothing when it met damage.
async fn shown_once_equal(cluster: &mut Cluster) -> Option<Shown> {
    let is_equal = eventually("node 3 to be equal, or to say that it cannot", EQUAL_WITHIN, || {
        let (here, there) = (cluster.status(3), cluster.status(1)?);
        match here {
            None => (!cluster.node(3).is_running()).then_some(false),
            Some(here) if here["writes_refused"].as_str().is_some_and(|why| why.contains("disk")) => Some(false),
            Some(here) => (here["applied"] == there["applied"] && here["salvage"].is_null()).then_some(true),
        }
    });
    if !is_equal {
        return None;
    }
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    try_all(&cluster.client_of(3)).await.ok()
}

/// What the node's complaint asks for.
fn mend(cluster: &mut Cluster, whole: &Path) -> Outcome {
    let repair = |cluster: &mut Cluster| {
        let mut command = command();
        command.args(["repair", "--config"]).arg(cluster.node(3).config());
        finish(command, b"")
    };
    if repair(cluster).code == Some(0) {
        return Outcome::Repaired;
    }
    // Nobody but a copy knows whose the directory is.
    fs::copy(whole.join("identity.toml"), cluster.node(3).data_dir().join("identity.toml")).unwrap();
    repair(cluster).ok();
    Outcome::PutBack
}

/// Damages one file of a directory, and says how.
fn damage(data: &Path, random: &mut Rng) -> String {
    let files = files(data);
    let path = loop {
        let path = &files[random.below(files.len() as u64) as usize];
        if fs::metadata(path).unwrap().len() > 0 {
            break path;
        }
    };
    let mut bytes = fs::read(path).unwrap();
    // Beyond the last byte that is not zero there is nothing to damage, mostly.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(bytes.len(), |last| last + 1) as u64;
    let at = random.below(used) as usize;
    let len = bytes.len();
    let page = |index: usize| index / PAGE * PAGE..((index / PAGE + 1) * PAGE).min(len);
    let what = match random.below(8) {
        0..4 => {
            bytes[at] ^= 1 << random.below(8);
            format!("a bit of byte {at}")
        }
        4 => {
            bytes.truncate(at);
            format!("cut at {at}")
        }
        5 => {
            bytes[page(at)].fill(0);
            format!("zeros in the page of byte {at}")
        }
        _ => {
            let other = random.below(used) as usize;
            let (one, two) = (page(at), page(other));
            let [first, second] = [bytes[one.clone()].to_vec(), bytes[two.clone()].to_vec()];
            let len = first.len().min(second.len());
            bytes[one.start..one.start + len].copy_from_slice(&second[..len]);
            bytes[two.start..two.start + len].copy_from_slice(&first[..len]);
            format!("the pages of bytes {at} and {other} swapped")
        }
    };
    fs::write(path, bytes).unwrap();
    format!("{}: {what}", path.strip_prefix(data).unwrap().display())
}

/// All files that count, in order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(files(&entry.path())),
            false if entry.file_name() == "LOCK" => {}
            false => found.push(entry.path()),
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("every Unix has cp");
    assert!(copied.success(), "cp -a {} {}", from.display(), to.display());
}

/// That of nodes 1 and 2, which nobody writes to.
fn digest(cluster: &Cluster) -> serde_json::Value {
    let equal = cluster.wait_until_equal(&[1, 2], EQUAL_WITHIN);
    equal[0]["digest"].clone()
}

fn last_lines(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(12).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
