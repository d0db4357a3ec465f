//! A node whose state was altered on disk, with all checksums right: which keys, says an alarm, and `polyarch diff`.

mod support;

use std::path::Path;
use std::time::Duration;

use polyarch_protocol::{Digest, KeyspaceId, RecordKey};
use polyarch_store::state::{SledConfig, StateDirectory, StateOpener, StateStore};
use serde_json::Value;
use support::{Cluster, EQUAL_MAX, Finished, eventually};

/// A checkpoint after each MiB, so that the state holds what is altered.
const SMALL: &str = "[storage]\nmemtable_mib = 1\nsegment_mib = 1\ncheckpoint_log_mib = 1\n";
const TOLD_MAX: Duration = Duration::from_secs(30);

#[test]
fn what_a_disk_altered_is_named_by_an_alarm_and_listed_by_diff() {
    let mut cluster = Cluster::start_with(3, SMALL);
    cluster.polyarch(["keyspace", "create", "notes", "--kind", "mv"]).ok();
    let records: String = (0..10).map(|i| format!("{{\"key\": \"k{i}\", \"value\": \"v\"}}\n")).collect();
    cluster.polyarch_with_input(["import", "notes", "-", "--replace"], records.as_bytes()).ok();
    fill_until_checkpointed(&cluster, 3);
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    let at_1 = cluster.address(1);
    let diff = |cluster: &Cluster, arguments: &str| -> Finished {
        cluster.polyarch(["diff"].into_iter().chain(arguments.split(' ')).chain(["--node", &at_1]))
    };
    let said = diff(&cluster, "3").ok().text();
    assert_eq!(said, "nodes 1 and 3 are equal: 4,096 of 4,096 buckets\n");

    // First without its digest, as a disk alters it: only a look at all records finds that.
    let keyspace = keyspace(&cluster, "notes");
    let lost = [RecordKey::new(keyspace, b"k3"), RecordKey::new(keyspace, b"k7")];
    alter(&mut cluster, 3, &lost[..1], false);
    diff(&cluster, "3").ok();
    diff(&cluster, "3 --all").exits(1).says("nodes 1 and 3 differ: 1 key");

    // With its digest, as a bug would: the rest of what is lost.
    alter(&mut cluster, 3, &lost[1..], true);
    let bucket = Digest::bucket_of(&lost[1]);
    for (at, peer, held) in [(1, 3, "only here"), (3, 1, "only there")] {
        let buckets = format!("member {peer} differs in 1 of 4,096 buckets of the digest: {bucket}");
        let keys = format!("member {peer} holds 1 key otherwise: notes/k7 ({held})");
        for text in [&buckets, &keys] {
            eventually(text, TOLD_MAX, || alarms(&cluster, at).iter().any(|told| told == text).then_some(()));
        }
    }
    let said = diff(&cluster, "3 --json").exits(1).json_lines();
    assert_eq!(said[0]["keyspace"], "notes");
    assert_eq!((&said[0]["key"], said[0]["here"].as_array().map(Vec::len)), (&Value::from("k7"), Some(1)));
    assert_eq!(said[0]["there"], Value::Array(Vec::new()));
    assert_eq!((&said[1]["keys"], &said[1]["buckets_equal"]), (&Value::from(1), &Value::from(4_095)));
    assert_eq!(said.len(), 2);
    let said = diff(&cluster, "3 --all --keyspace notes --json").exits(1).json_lines();
    let keys: Vec<&Value> = said.iter().map(|line| &line["key"]).take(2).collect();
    assert_eq!((keys, &said[2]["keys"]), (vec![&Value::from("k3"), &Value::from("k7")], &Value::from(2)));
    diff(&cluster, "3 --all --limit 1").exits(1).says("1 keys and more");
    // The others have nothing to do with it.
    diff(&cluster, "2").ok();
    diff(&cluster, &format!("{} --all", cluster.address(2))).ok();

    diff(&cluster, "1").exits(2).says("node 1 is the one that is asked");
    diff(&cluster, "9").exits(3).says("member 9 is not known here");
    diff(&cluster, "3 --keyspace none").exits(3).says("there is no keyspace `none`");

    // Each node is equal again once the keys were written anew.
    for key in ["k3", "k7"] {
        cluster.polyarch(["put", "notes", key, "new", "--node", &at_1]).ok();
    }
    eventually("all records to be equal", TOLD_MAX, || (diff(&cluster, "3 --all").code == Some(0)).then_some(()));
}

fn fill_until_checkpointed(cluster: &Cluster, at: u32) {
    let value = "x".repeat(100_000);
    let mut written = 0;
    eventually("a checkpoint", EQUAL_MAX, || {
        let record = format!("{{\"key\": \"fill{written}\", \"value\": \"{value}\"}}\n");
        written += 1;
        cluster.polyarch_with_input(["import", "notes", "-", "--replace"], record.as_bytes()).ok();
        cluster.status(at).filter(|status| status["counters"]["checkpoints"] != 0).map(|_| ())
    });
}

fn keyspace(cluster: &Cluster, name: &str) -> KeyspaceId {
    let listed = cluster.polyarch(["keyspace", "list", "--json"]).ok().json_lines();
    let found = listed.iter().find(|keyspace| keyspace["name"] == name).expect("it was created");
    found["id"].as_str().expect("an id is text").parse().expect("an id reads back")
}

fn alarms(cluster: &Cluster, at: u32) -> Vec<String> {
    let told = cluster.polyarch(["events", "--alarms", "--json", "--node", &cluster.address(at)]).ok().json_lines();
    told.iter().filter_map(|event| event["text"].as_str().map(str::to_owned)).collect()
}

/// Takes records out of the state of a node while it is stopped; out of its digest too, if that is wanted.
fn alter(cluster: &mut Cluster, at: u32, keys: &[RecordKey], with_digest: bool) {
    cluster.node(at).stop();
    remove(&cluster.node(at).data_dir(), keys, with_digest);
    cluster.node(at).serve();
    cluster.wait_for_links(EQUAL_MAX);
}

fn remove(data: &Path, keys: &[RecordKey], with_digest: bool) {
    let state = StateDirectory::sled(data, SledConfig::default()).open().expect("it was closed in order");
    let mut checkpoint = state.checkpoint().expect("it reads").expect("there was one");
    for key in keys.iter().filter(|_| with_digest) {
        let record = state.get(key).expect("it reads").expect("it came before the checkpoint");
        for field in record.fields() {
            let digest = &mut checkpoint.frontier.digest;
            field.siblings().iter().for_each(|sibling| digest.remove(key, field.path(), sibling));
        }
    }
    let batch = keys.iter().map(|key| (key.clone(), None)).collect();
    state.apply_sorted(batch, &checkpoint).expect("it takes a batch");
    state.flush().expect("it is written");
}
