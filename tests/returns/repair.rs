//! A member whose files are damaged, and that has what nobody else has: `polyarch repair` keeps it.

use std::fs;
use std::path::{Path, PathBuf};

use super::load::{all, cluster, count, put};
use super::{EQUAL_WITHIN, turn};
use crate::support::{Cluster, command, eventually, finish};

const KEYS: u64 = 2_000;
/// What only the damaged member has.
const ALONE: u64 = 300;
const GROUP: u64 = 10;
/// Segments and checkpoints come often.
const SMALL: &str = "[storage]\nsegment_mib = 1\nmemtable_mib = 1\ncheckpoint_log_mib = 1\n";

/// What is done to a data directory.
type Damage = fn(&Path);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_a_damaged_member_has_is_kept_and_the_rest_comes_from_the_others() {
    let _turn = turn().await;
    let damages: [(Damage, bool); 4] = [
        (flip_in_the_last_segment, true),
        (remove_the_state, true),
        (lose_the_headers, true),
        // What lay in the damaged places is nowhere else.
        (flip_in_each_file, false),
    ];
    for (damage, is_all_kept) in damages {
        let mut cluster = damaged_alone(damage).await;
        cluster.node(3).kill();
        if !cluster.node(3).try_serve() {
            repair(&mut cluster, 3, "waiting");
            cluster.node(3).serve();
        }
        cluster.heal(3);
        wait_for_salvage(&cluster, 3);
        cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
        for id in [1, 2, 3] {
            let client = cluster.client_of(id);
            assert_eq!(count(&client, "shared").await.unwrap() as u64, KEYS, "on node {id}");
            let alone = count(&client, "alone").await.unwrap() as u64;
            assert!(alone == ALONE || !is_all_kept, "{alone} on node {id}");
        }
        let shown = all(&cluster.client_of(1)).await;
        assert_eq!(all(&cluster.client_of(3)).await, shown);
        cluster.stop();
        cluster.verify_equal_histories();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_on_write_sets_that_are_nowhere_waits_is_told_and_can_be_taken_out() {
    let _turn = turn().await;
    let mut cluster = damaged_alone(|_| ()).await;
    // In the middle of what only this node has: what follows has nothing to follow on.
    let segment = segments(&cluster.node(3).data_dir()).pop().expect("the log has segments");
    change(&segment, |bytes| {
        let end = bytes.iter().rposition(|byte| *byte != 0).expect("the segment has frames");
        bytes[end - end / 20] ^= 1;
    });
    cluster.node(3).kill();
    assert!(!cluster.node(3).try_serve(), "a log with a damaged middle does not open");
    repair(&mut cluster, 3, "whole write sets");
    cluster.node(3).serve();
    cluster.heal(3);
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    let salvage = cluster.status(3).expect("node 3 answers")["salvage"].clone();
    let waiting = salvage["write_sets"].as_u64().expect("some wait");
    assert!(waiting > 0);
    wait_for_salvage(&cluster, 3);
    cluster.node(3).stop();
    let file = cluster.directory().join("left-out.jsonl");
    let config = cluster.node(3).config();
    let abandon = |code: i32| {
        let mut command = command();
        command.args(["repair", "--config"]).arg(&config).arg("--abandon").arg(&file);
        finish(command, b"").exits(code)
    };
    abandon(0);
    assert_eq!(fs::read_to_string(&file).unwrap().lines().count() as u64, waiting);
    abandon(2).says("exists");
    fs::remove_file(&file).unwrap();
    abandon(3).says("nothing waits");
    assert!(!file.exists());
    cluster.node(3).serve();
    cluster.wait_until_linked(EQUAL_WITHIN);
    assert!(cluster.status(3).expect("node 3 answers")["salvage"].is_null());
    cluster.stop();
    cluster.verify_equal_histories();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sound_directory_is_left_alone_and_one_in_use_refused() {
    let _turn = turn().await;
    let mut cluster = cluster("").await;
    let config = cluster.node(3).config();
    let run = |more: &[&str]| {
        let mut command = command();
        command.args(["repair", "--config"]).arg(&config).args(more);
        finish(command, b"")
    };
    run(&[]).exits(3).says("in use by another process");
    cluster.node(3).stop();
    assert!(run(&[]).ok().text().contains("nothing was done"));
    assert!(run(&["--force"]).ok().text().contains("kept"));
    cluster.node(3).serve();
    cluster.wait_until_linked(EQUAL_WITHIN);
    cluster.stop();
    cluster.verify_equal_histories();
}

/// A cluster in which node 3 has written alone, was killed, and has damaged files.
async fn damaged_alone(damage: Damage) -> Cluster {
    let mut cluster = cluster(SMALL).await;
    put(&cluster.client_of(1), "shared", KEYS).await;
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    cluster.isolate(3);
    // One group after the other: a frame says what was synced before its group.
    for group in 0..ALONE / GROUP {
        put(&cluster.client_of(3), &format!("alone-{group}"), GROUP).await;
    }
    cluster.node(3).kill();
    damage(&cluster.node(3).data_dir());
    cluster
}

/// Waits until all that a repair found is applied, or the node has said that the rest waits for what nobody has.
fn wait_for_salvage(cluster: &Cluster, id: u32) {
    eventually("what a repair found to be applied, or told to be stuck", EQUAL_WITHIN, || {
        let is_applied = cluster.status(id)?["salvage"].is_null();
        let events = cluster.polyarch(["events", "--json", "--limit", "1000", "--node", &cluster.address(id)]);
        let is_told = events.ok().text().contains("follow on others that no linked member has");
        (is_applied || is_told).then_some(())
    });
}

/// Runs `polyarch repair` for a node that does not run.
fn repair(cluster: &mut Cluster, id: u32, says: &str) {
    let mut command = command();
    command.args(["repair", "--config"]).arg(cluster.node(id).config());
    let said = finish(command, b"").ok().text();
    assert!(said.contains(says), "{said}");
}

fn segments(data: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(data.join("log")).expect("there is a log").map(|entry| entry.unwrap());
    let written = entries.filter(|entry| entry.metadata().unwrap().len() > 0);
    let mut segments: Vec<PathBuf> = written.map(|entry| entry.path()).collect();
    segments.sort();
    segments
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Early in it, where all members have what was there.
fn flip_in_the_last_segment(data: &Path) {
    change(segments(data).last().unwrap(), |bytes| bytes[3_000] ^= 1);
}

fn remove_the_state(data: &Path) {
    fs::remove_dir_all(data.join("state")).unwrap();
    // And the beginning of the log, from which it could be rebuilt.
    change(&segments(data)[0], |bytes| bytes[3_000] ^= 1);
}

fn flip_in_each_file(data: &Path) {
    fs::remove_dir_all(data.join("state")).unwrap();
    for segment in segments(data) {
        change(&segment, |bytes| {
            let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            [end / 5, end / 2, end - end / 5].into_iter().for_each(|at| bytes[at] ^= 1);
        });
    }
}

fn lose_the_headers(data: &Path) {
    fs::remove_dir_all(data.join("state")).unwrap();
    segments(data).iter().for_each(|segment| change(segment, |bytes| bytes[..40].fill(0)));
}
