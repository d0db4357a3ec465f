//! Backups of real nodes: made while they are written to, verified, and restored to one node and to all; and exports,
//! which bring back what is missing and leave what was written since.

mod support;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use polyarch_client::KeyspaceKind;
use serde_json::{Value, json};
use support::ledger::Ledger;
use support::writers::{Rng, Writers};
use support::{Cluster, EQUAL_MAX, Finished, command, eventually};

/// As long as a restored node may take to have what the others have.
const REGAINED_MAX: Duration = Duration::from_secs(60);
/// What takes long enough to be interrupted.
const LARGE_VALUES: u64 = 100;
const LARGE_VALUE_BYTES: usize = 512 << 10;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_is_restored_from_a_backup_of_another() {
    let (seed, _) = Rng::from_environment();
    let mut cluster = Cluster::start(3);
    cluster.client_of(1).create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    let clients: Vec<_> = (1..=3).map(|server_id| cluster.client_of(server_id)).collect();
    let writers = Writers::start(&clients, 2, "k", seed);
    let directory = cluster.directory().join("backup");
    let made = back_up(&cluster, 2, &directory).ok().json();
    assert_eq!((&made["donor"], &made["cluster"]), (&json!(2), &cluster_name(&mut cluster)));
    cluster.polyarch(["backup".as_ref(), directory.as_os_str()]).exits(2).says("holds a backup; use a new directory");
    let verified = verify(&cluster, &directory).ok().json();
    assert_eq!((&verified["clean"], &verified["backup"]), (&json!(true), &made));
    assert!(made["log_end"].as_str().is_some_and(|end| end.contains(':')), "{made}");

    cluster.node(3).kill();
    let mut ledger = writers.finish().await;
    fs::remove_dir_all(cluster.node(3).data_dir()).expect("its disk is gone");
    restore(&mut cluster, 3, &directory.with_file_name("none")).exits(2);
    damaged_backups_are_refused(&mut cluster, &directory);
    half_restored_directories_are_refused(&mut cluster, &directory);
    let restored = restore(&mut cluster, 3, &directory).ok().json();
    assert_eq!((&restored["server_id"], &restored["backup"]["donor"]), (&json!(3), &json!(2)));
    restore(&mut cluster, 3, &directory).exits(2).says("already holds server 3");
    let data = cluster.node(3).data_dir();
    cluster.polyarch([Path::new("verify"), &data]).ok();

    cluster.node(3).serve();
    cluster.wait_until_linked(REGAINED_MAX);
    // What only it had and did not get to another before it was killed is the one thing that may be lost.
    let applied = cluster.client_of(1).status().await.expect("node 1 answers").applied;
    let lost = ledger.take_lost(&applied);
    assert!(lost.iter().all(|write| write.gtid.is_some_and(|gtid| gtid.origin.server_id == 3)), "{lost:?}");
    check(&cluster, &ledger, &[1, 2, 3], seed).await;
    cluster.client_of(3).put("k", "again", "v").await.expect("node 3 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    cluster.stop();
    cluster.verify_equal_histories();
}

/// A byte is enough, anywhere; and `verify` and `restore` say the same of it.
fn damaged_backups_are_refused(cluster: &mut Cluster, backup: &Path) {
    let copy = backup.with_file_name("damaged");
    fs::create_dir(&copy).expect("a directory can be made");
    for file in ["manifest.toml", "backup.snapshot"] {
        fs::copy(backup.join(file), copy.join(file)).expect("a file can be copied");
    }
    let file = copy.join("backup.snapshot");
    let sound = fs::read(&file).expect("it can be read");
    for at in [3, 40, sound.len() / 2, sound.len() - 1] {
        let mut bytes = sound.clone();
        bytes[at] ^= 1;
        fs::write(&file, bytes).expect("it can be written");
        assert_eq!(verify(cluster, &copy).exits(3).json()["clean"], json!(false), "byte {at}");
        restore(cluster, 3, &copy).exits(3).says("is not well, and nothing was restored");
    }
    fs::write(&file, &sound[..sound.len() / 2]).expect("it can be written");
    verify(cluster, &copy).exits(3);
    fs::remove_file(copy.join("manifest.toml")).expect("it is there");
    let unfinished = verify(cluster, &copy).exits(3).says("is a backup that was not finished").json();
    assert_eq!(unfinished["problems"][0]["what"], "it is missing: the backup was not finished");
    assert_eq!(unfinished["problems"].as_array().map(Vec::len), Some(1), "no word of damage: {unfinished}");
    assert!(!cluster.node(3).data_dir().exists(), "nothing was restored");
}

/// What a crash within leaves is known to everybody.
fn half_restored_directories_are_refused(cluster: &mut Cluster, backup: &Path) {
    restore(cluster, 3, backup).ok();
    let data = cluster.node(3).data_dir();
    fs::rename(data.join("identity.toml"), data.join("restoring.toml")).expect("it was restored");
    let config = cluster.node(3).config();
    let config = config.to_str().expect("it is text");
    for command in ["serve", "join"] {
        cluster.polyarch([command, "--config", config]).exits(2).says("a restore that did not end");
    }
    fs::remove_file(data.join("checkpoint.toml")).expect("it was restored");
    restore(cluster, 3, backup).ok();
    fs::remove_dir_all(data).expect("it can be removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_are_restored_from_backups_of_different_ages() {
    let mut cluster = Cluster::start(3);
    let client = cluster.client_of(1);
    client.create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    client.put("k", "kept", "1").await.expect("node 1 takes writes");
    client.put("k", "deleted", "1").await.expect("node 1 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    let [old, new] = ["old", "new"].map(|name| cluster.directory().join(name));
    back_up(&cluster, 3, &old).ok();

    client.delete("k", "deleted").await.expect("node 1 takes writes");
    cluster.client_of(2).put("k", "later", "2").await.expect("node 2 takes writes");
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    back_up(&cluster, 2, &new).ok();
    client.put("k", "too-late", "3").await.expect("node 1 takes writes");
    cluster.stop();
    for (server_id, backup) in [(1, &old), (2, &new), (3, &old)] {
        fs::remove_dir_all(cluster.node(server_id).data_dir()).expect("its disk is gone");
        restore(&mut cluster, server_id, backup).ok();
    }
    for server_id in 1..=3 {
        cluster.node(server_id).serve();
    }
    cluster.wait_until_linked(REGAINED_MAX);
    let shown = |server_id: u32, key: &str| {
        let read = cluster.polyarch(["get", "k", key, "--node", &cluster.address(server_id)]);
        (read.code, read.text())
    };
    for server_id in 1..=3 {
        assert_eq!(shown(server_id, "kept"), (Some(0), "1".to_owned()), "at node {server_id}");
        assert_eq!(shown(server_id, "later"), (Some(0), "2".to_owned()), "at node {server_id}");
        for gone in ["deleted", "too-late"] {
            assert_eq!(shown(server_id, gone).0, Some(1), "{gone} at node {server_id}");
        }
    }
    for server_id in 1..=3 {
        cluster.client_of(server_id).put("k", "again", "v").await.expect("it takes writes");
    }
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    cluster.stop();
    cluster.verify_equal_histories();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_that_was_interrupted_goes_on() {
    let cluster = Cluster::start(1);
    let client = cluster.client_of(1);
    client.create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    for number in 0..LARGE_VALUES {
        client.put("k", format!("{number:03}"), vec![7; LARGE_VALUE_BYTES]).await.expect("node 1 takes writes");
    }
    let directory = cluster.directory().join("backup");
    let file = directory.join("backup.snapshot");
    let mut interrupted = command();
    interrupted.env("POLYARCH_PROFILE", cluster.profile()).args(["backup".as_ref(), directory.as_os_str()]);
    let mut interrupted = interrupted.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it can be started");
    eventually("some of the backup to be there", EQUAL_MAX, || {
        fs::metadata(&file).is_ok_and(|file| file.len() > LARGE_VALUE_BYTES as u64).then_some(())
    });
    let sent = Command::new("kill").args(["-TERM", &interrupted.id().to_string()]).status();
    assert!(sent.expect("every Unix has kill").success(), "it is there until it was waited for");
    let code = interrupted.wait().expect("a child can be waited for").code();
    let mut said = String::new();
    interrupted.stderr.take().expect("stderr is piped").read_to_string(&mut said).expect("it is text");
    match code {
        Some(143) => {
            assert!(said.contains("the backup is not complete: SIGTERM"), "{said}");
            verify(&cluster, &directory).exits(3);
            let begun = fs::metadata(&file).expect("it stays").len();
            let made = back_up(&cluster, 1, &directory).ok().json();
            assert!(made["bytes"].as_u64().expect("it is a number") > begun, "it was interrupted before its end");
        }
        // It was faster.
        code => assert_eq!(code, Some(0), "{said}"),
    }
    let verified = verify(&cluster, &directory).ok().json();
    assert!(verified["backup"]["records"].as_u64().expect("it is a number") >= LARGE_VALUES);
}

#[test]
fn a_backup_wants_an_administrator_and_a_directory_of_its_own() {
    let cluster = Cluster::start(1);
    let directory = cluster.directory().join("backup");
    let app = cluster.directory().join("client-app.toml");
    let as_app = [Path::new("backup"), &directory, Path::new("--profile"), &app];
    cluster.polyarch(as_app).exits(3).says("`app` may not administer");
    assert!(!directory.exists(), "nothing came, and nothing is left");
    cluster.polyarch([Path::new("backup"), cluster.directory()]).exits(2).says("holds other files");
    let said = cluster.polyarch([Path::new("backup"), &directory]).ok();
    assert!(said.text().starts_with("backed up server 1 of cluster "), "{}", said.text());
    let verified = cluster.polyarch([Path::new("verify"), &directory]).ok();
    assert!(verified.text().ends_with("all is well\n"), "{}", verified.text());
    assert_eq!(mode(&directory), 0o700);
    assert!(["manifest.toml", "backup.snapshot"].iter().all(|file| mode(&directory.join(file)) == 0o600));
}

#[test]
fn a_backup_of_another_cluster_of_the_same_name_is_refused() {
    let (cluster, mut other) = (Cluster::start(1), Cluster::prepare(1));
    let directory = cluster.directory().join("backup");
    back_up(&cluster, 1, &directory).ok();
    restore(&mut other, 1, &directory).exits(2).says("it is another cluster of that name").says("--other-ca");
    assert!(!other.node(1).data_dir().exists(), "nothing was restored");
    let config = other.node(1).config();
    let config = ["--other-ca".as_ref(), "--config".as_ref(), config.as_os_str()];
    other.polyarch([["restore".as_ref(), directory.as_os_str()].as_slice(), &config].concat()).ok();
}

#[test]
fn an_import_leaves_what_was_written_since_the_export() {
    let cluster = Cluster::start(1);
    for (keyspace, kind) in [("mv", "mv"), ("lww", "lww")] {
        cluster.polyarch(["keyspace", "create", keyspace, "--kind", kind]).ok();
        for key in ["kept", "deleted", "replaced"] {
            cluster.polyarch(["put", keyspace, key, "old"]).ok();
        }
    }
    cluster.polyarch(["put", "mv", "siblings", "one"]).ok();
    cluster.polyarch(["put", "mv", "siblings", "two", "--nothing-seen"]).ok();
    let files = ["mv", "lww"].map(|keyspace| {
        let file = cluster.directory().join(format!("{keyspace}.jsonl"));
        cluster.polyarch(["export".as_ref(), keyspace.as_ref(), file.as_os_str()]).ok();
        cluster.polyarch(["delete", keyspace, "deleted"]).ok();
        cluster.polyarch(["put", keyspace, "replaced", "new"]).ok();
        file
    });
    cluster.polyarch(["put", "mv", "siblings", "three", "--nothing-seen"]).ok();
    let gtid = |key: &str| cluster.polyarch(["get", "mv", key, "--json"]).ok().json()["siblings"][0]["gtid"].clone();
    let kept = gtid("kept");
    let import = |keyspace: &str, file: &PathBuf| {
        cluster.polyarch(["import".as_ref(), keyspace.as_ref(), file.as_os_str()]).ok()
    };
    // Twice: what an import has put is there for the next.
    let said = [["2 put, 2 unchanged", "1 put, 1 unchanged"], ["0 put, 4 unchanged", "0 put, 2 unchanged"]];
    for [mv, lww] in said {
        import("mv", &files[0]).says(&format!("imported 4 records: {mv}"));
        import("lww", &files[1]).says(&format!("imported 3 records: {lww}, 1 with a newer value there"));
        assert_eq!(gtid("kept"), kept, "it was not written again");
        assert_eq!(values(&cluster, "mv", "deleted"), ["old"]);
        assert_eq!(values(&cluster, "mv", "replaced"), ["new", "old"]);
        assert_eq!(values(&cluster, "mv", "siblings"), ["one", "three", "two"]);
        assert_eq!(values(&cluster, "lww", "deleted"), ["old"]);
        assert_eq!(values(&cluster, "lww", "replaced"), ["new"]);
    }
    let replace = |keyspace: &str, file: &PathBuf| {
        cluster.polyarch(["import".as_ref(), keyspace.as_ref(), file.as_os_str(), "--replace".as_ref()]).ok()
    };
    replace("mv", &files[0]);
    replace("lww", &files[1]);
    assert_eq!(values(&cluster, "mv", "replaced"), ["old"]);
    assert_eq!(values(&cluster, "mv", "siblings"), ["one", "two"]);
    assert_eq!(values(&cluster, "lww", "replaced"), ["old"]);

    let plain = b"{\"key\":\"kept\",\"value\":\"plain\"}";
    let refused = cluster.polyarch_with_input(["import", "mv", "-"], plain).exits(2);
    refused.says("line 1: the record has no context").says("hint: with --replace");
    assert_eq!(values(&cluster, "mv", "kept"), ["old"]);
}

fn back_up(cluster: &Cluster, server_id: u32, directory: &Path) -> Finished {
    let node = cluster.address(server_id);
    cluster.polyarch(["backup".as_ref(), directory.as_os_str(), "--json".as_ref(), "--node".as_ref(), node.as_ref()])
}

fn verify(cluster: &Cluster, directory: &Path) -> Finished {
    cluster.polyarch(["verify".as_ref(), directory.as_os_str(), "--json".as_ref()])
}

fn restore(cluster: &mut Cluster, server_id: u32, backup: &Path) -> Finished {
    let config = cluster.node(server_id).config();
    let config = ["--config".as_ref(), config.as_os_str(), "--json".as_ref()];
    cluster.polyarch([["restore".as_ref(), backup.as_os_str()].as_slice(), &config].concat())
}

/// As `identity.toml` of a node has it.
fn cluster_name(cluster: &mut Cluster) -> Value {
    let text = fs::read_to_string(cluster.node(1).data_dir().join("identity.toml")).expect("node 1 is founded");
    let identity: toml::Table = toml::from_str(&text).expect("it is TOML");
    json!(identity["cluster"].as_str())
}

async fn check(cluster: &Cluster, ledger: &Ledger, server_ids: &[u32], seed: u64) {
    for server_id in server_ids {
        let breaches = ledger.breaches(&cluster.client_of(*server_id), "k").await;
        assert!(breaches.is_empty(), "seed {seed}, node {server_id}:\n{}", breaches.join("\n"));
    }
}

/// The values of a key, sorted.
fn values(cluster: &Cluster, keyspace: &str, key: &str) -> Vec<String> {
    let read = cluster.polyarch(["get", keyspace, key, "--json"]).ok().json();
    let siblings = read["siblings"].as_array().expect("it is a list");
    let mut values: Vec<String> =
        siblings.iter().map(|sibling| sibling["value"].as_str().expect("it is text").to_owned()).collect();
    values.sort();
    values
}

fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&fs::metadata(path).expect("it is there").permissions()) & 0o777
}
