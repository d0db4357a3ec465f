//! The real binary, from certificates to a verified data directory: three nodes, every command, every exit status.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{Cluster, EQUAL_MAX};

#[test]
fn every_command_does_what_its_help_says() {
    let mut cluster = Cluster::start(3);
    keyspaces_are_created_once(&cluster);
    a_value_comes_back_as_it_was_put(&cluster);
    siblings_are_settled_with_a_context(&cluster);
    a_session_reads_its_own_write_anywhere(&cluster);
    a_scan_is_in_order_and_bounded(&cluster);
    a_batch_is_all_or_nothing(&cluster);
    an_export_can_be_imported(&cluster);
    what_is_refused_says_so(&cluster);
    a_cut_link_makes_siblings_and_healing_shows_them(&cluster);
    a_node_that_is_gone_is_shown_and_missed(&mut cluster);
    a_stopped_node_verifies_and_its_log_can_be_read(&mut cluster);
}

fn keyspaces_are_created_once(cluster: &Cluster) {
    cluster.polyarch(["keyspace", "create", "notes", "--kind", "mv"]).ok();
    cluster.polyarch(["keyspace", "create", "settings", "--kind", "lww", "--json"]).ok();
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    cluster.polyarch(["keyspace", "create", "notes", "--kind", "lww"]).exits(3).says("error: keyspace `notes` exists");
    let listed = cluster.polyarch(["keyspace", "list", "--json"]).ok().json_lines();
    let listed: Vec<_> = listed.iter().map(|keyspace| (&keyspace["name"], &keyspace["kind"])).collect();
    assert_eq!(listed, [(&json!("notes"), &json!("mv")), (&json!("settings"), &json!("lww"))]);
}

fn a_value_comes_back_as_it_was_put(cluster: &Cluster) {
    let at_1 = cluster.address(1);
    let put = |key: &str, value: &str, input: &[u8]| {
        cluster.polyarch_with_input(["put", "notes", key, value, "--node", &at_1], input).ok();
    };
    let get = |key: &str| cluster.polyarch(["get", "notes", key, "--node", &at_1]);
    put("hello", "world", b"");
    assert_eq!(get("hello").ok().stdout, b"world", "the value and nothing else");
    put("bytes", "-", b"\xff\x00\n");
    assert_eq!(get("bytes").ok().stdout, b"\xff\x00\n");
    let object = cluster.polyarch(["get", "notes", "bytes", "--json", "--node", &at_1]).ok().json();
    let sibling = &object["siblings"][0];
    assert_eq!((&object["key"], &sibling["value_base64"]), (&json!("bytes"), &json!("/wAK")));
    assert!(sibling.get("value").is_none() && sibling["gtid"].is_string() && sibling["hlc"].is_string());
    assert_eq!(sibling["server_id"], 1);

    let missing = get("nothing").exits(1).says("error: keyspace `notes` has no key `nothing`");
    assert_eq!(missing.stdout, b"");
    let missing = cluster.polyarch(["get", "notes", "nothing", "--json", "--node", &at_1]).exits(1).json();
    assert_eq!((&missing["siblings"], &missing["context"]), (&json!([]), &Value::Null));

    let delete = |key: &str| cluster.polyarch(["delete", "notes", key, "--node", &at_1]);
    delete("bytes").ok();
    delete("bytes").exits(1).says("has no key");
    get("bytes").exits(1);
}

fn siblings_are_settled_with_a_context(cluster: &Cluster) {
    let at_2 = cluster.address(2);
    let put = |value: &str, how: &[&str]| {
        cluster.polyarch([&["put", "notes", "cart", value, "--node", &at_2], how].concat()).ok();
    };
    put("apples", &["--nothing-seen"]);
    put("pears", &["--nothing-seen"]);
    let both = cluster.polyarch(["get", "notes", "cart", "--node", &at_2]).ok().says("note: 2 values");
    assert_eq!(both.text(), "apples\npears\n");
    let object = cluster.polyarch(["get", "notes", "cart", "--json", "--node", &at_2]).ok().json();
    let context = object["context"].as_str().unwrap();
    put("plums", &["--nothing-seen"]);
    put("apples and pears", &["--context", context]);
    let settled = cluster.polyarch(["get", "notes", "cart", "--node", &at_2]).ok();
    assert_eq!(settled.text(), "plums\napples and pears\n", "what the context did not name stays");
    cluster.polyarch(["put", "notes", "other", "v", "--context", context]).exits(3).says("context");
    cluster.polyarch(["put", "notes", "cart", "v", "--context", "???"]).exits(2).says("--context");
}

fn a_session_reads_its_own_write_anywhere(cluster: &Cluster) {
    for (round, (writer, reader)) in [(1, 2), (2, 3), (3, 1)].into_iter().enumerate() {
        let (value, writer, reader) = (round.to_string(), cluster.address(writer), cluster.address(reader));
        let written = cluster.polyarch(["put", "settings", "round", &value, "--json", "--node", &writer]).ok().json();
        let token = written["token"].as_str().unwrap();
        let read = cluster.polyarch(["get", "settings", "round", "--token", token, "--node", &reader]).ok();
        assert_eq!(read.text(), value);
    }
    cluster.polyarch(["get", "settings", "round", "--token", "dG9rZW4="]).exits(2).says("--token");
}

fn a_scan_is_in_order_and_bounded(cluster: &Cluster) {
    let at_3 = cluster.address(3);
    for key in ["user/b", "user/a", "user/c", "group/a"] {
        cluster.polyarch(["put", "settings", key, "tab\there", "--node", &at_3]).ok();
    }
    let scan = |more: &[&str]| cluster.polyarch([&["scan", "settings", "--node", &at_3], more].concat()).ok();
    assert_eq!(scan(&["--prefix", "user/", "--limit", "2"]).text(), "user/a\ttab\\there\nuser/b\ttab\\there\n");
    let objects = scan(&["--prefix", "user/", "--json"]).json_lines();
    let keys: Vec<_> = objects.iter().map(|object| &object["key"]).collect();
    assert_eq!(keys, ["user/a", "user/b", "user/c"]);
    assert!(objects.iter().all(|object| object["context"].is_string() && object["token"].is_string()));
    assert_eq!(scan(&["--prefix", "nobody/"]).text(), "");
}

fn a_batch_is_all_or_nothing(cluster: &Cluster) {
    let at_1 = cluster.address(1);
    let batch = |lines: &[Value]| {
        let input: String = lines.iter().map(|line| format!("{line}\n")).collect();
        cluster.polyarch_with_input(["batch", "-", "--json", "--node", &at_1], input.as_bytes())
    };
    let put = |key: &str| json!({"op": "put", "keyspace": "settings", "key": key, "value_base64": "/w=="});
    let written =
        batch(&[put("x"), put("y"), json!({"op": "delete", "keyspace": "notes", "key": "hello"})]).ok().json();
    let gtid = &written["gtid"];
    for key in ["x", "y"] {
        let object = cluster.polyarch(["get", "settings", key, "--json", "--node", &at_1]).ok().json();
        assert_eq!(&object["siblings"][0]["gtid"], gtid, "one write set holds them all");
    }
    cluster.polyarch(["get", "notes", "hello", "--node", &at_1]).exits(1);
    batch(&[put("z"), put("z")]).exits(3).says("at most once");
    batch(&[put("z"), json!({"op": "put", "keyspace": "settings", "key": "z"})])
        .exits(2)
        .says("line 2: it has no `value`");
    batch(&[]).exits(2).says("holds no changes");
    cluster.polyarch(["get", "settings", "z", "--node", &at_1]).exits(1);
}

fn an_export_can_be_imported(cluster: &Cluster) {
    let file = cluster.directory().join("records.jsonl");
    let at_1 = cluster.address(1);
    let lines: String =
        (0..2_000).map(|n| format!("{}\n", json!({"key": format!("k{n:04}"), "value": n.to_string()}))).collect();
    cluster.polyarch(["keyspace", "create", "bulk", "--kind", "mv", "--node", &at_1]).ok();
    cluster.polyarch_with_input(["import", "bulk", "-", "--node", &at_1], lines.as_bytes()).ok().says("2000 records");
    cluster.polyarch(["put", "bulk", "k0007", "another", "--nothing-seen", "--node", &at_1]).ok();
    let file = file.to_str().unwrap();
    cluster.polyarch(["export", "bulk", file, "--node", &at_1]).ok().says("2000 records");

    cluster.polyarch(["keyspace", "create", "copy", "--kind", "mv", "--node", &at_1]).ok();
    // Twice: to repeat an import does no harm.
    cluster.polyarch(["import", "copy", file, "--node", &at_1]).ok();
    cluster.polyarch(["import", "copy", file, "--node", &at_1]).ok();
    let values = |keyspace: &str| -> Vec<(Value, Vec<Value>)> {
        let exported = cluster.polyarch(["export", keyspace, "--node", &at_1]).ok().json_lines();
        let values = |siblings: &Value| siblings.as_array().unwrap().iter().map(|s| s["value"].clone()).collect();
        exported.iter().map(|line| (line["key"].clone(), values(&line["siblings"]))).collect()
    };
    assert_eq!(values("copy"), values("bulk"));
    assert_eq!(values("copy")[7], (json!("k0007"), vec![json!("7"), json!("another")]));

    let broken = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n\nnonsense\n";
    cluster
        .polyarch_with_input(["import", "copy", "-", "--node", &at_1], broken.as_bytes())
        .exits(2)
        .says("stopped after 2 records were put: standard input, line 4")
        .says("hint: it can be repeated");
    cluster.polyarch(["import", "copy", "no-such-file"]).exits(2).says("no-such-file");
}

fn what_is_refused_says_so(cluster: &Cluster) {
    cluster.polyarch(["get", "nowhere", "k"]).exits(3).says("error: there is no keyspace `nowhere`");
    let app = cluster.directory().join("client-app.toml");
    let as_app = ["keyspace", "create", "mine", "--kind", "mv", "--profile", app.to_str().unwrap()];
    cluster.polyarch(as_app).exits(3).says("`app` may not administer");
    cluster.polyarch(["get", "notes"]).exits(2).says("Usage: polyarch get");
    cluster.polyarch(["get", "notes", "k", "--profile", "no-such-file"]).exits(2).says("no-such-file");
    cluster.polyarch(["link", "cut", "2"]).exits(2).says("hint: the profile knows");
    cluster.polyarch(["link", "cut", "9", "--node", &cluster.address(1)]).exits(3).says("no other member 9");
    let nobody = cluster.unused_address();
    let unreachable = cluster.polyarch(["get", "notes", "k", "--node", &nobody, "--timeout", "300ms"]).exits(4);
    assert_eq!(unreachable.says("error: ").stderr.lines().count(), 2, "one line for the error, one for the hint");
    let data = cluster.directory().join("data/node-1");
    cluster.polyarch(["verify", data.to_str().unwrap()]).exits(3).says("in use by another process");
    let config = cluster.directory().join("node-1.toml");
    cluster.polyarch(["init", "--config", config.to_str().unwrap()]).exits(2).says("already holds server 1");
    cluster.polyarch(["serve", "--config", config.to_str().unwrap()]).exits(3).says("in use by another process");
}

fn a_cut_link_makes_siblings_and_healing_shows_them(cluster: &Cluster) {
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    cluster.isolate(3);
    cluster.polyarch(["put", "notes", "split", "left", "--node", &cluster.address(1)]).ok();
    cluster.polyarch(["put", "notes", "split", "right", "--node", &cluster.address(3)]).ok();
    cluster.wait_until_equal(&[1, 2], EQUAL_MAX);
    let status = cluster.status(3).unwrap();
    assert!(status["peers"].as_array().unwrap().iter().all(|peer| peer["cut"] == true && peer["linked"] == false));
    assert_eq!(cluster.polyarch(["get", "notes", "split", "--node", &cluster.address(2)]).ok().text(), "left");
    cluster.heal(3);
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    for server_id in cluster.server_ids() {
        let read = cluster.polyarch(["get", "notes", "split", "--node", &cluster.address(server_id)]).ok();
        assert_eq!(read.text(), "left\nright\n", "at node {server_id}");
    }
}

fn a_node_that_is_gone_is_shown_and_missed(cluster: &mut Cluster) {
    cluster.node(2).kill();
    let asked = cluster.polyarch(["status", "--all", "--json", "--timeout", "500ms"]).exits(4);
    let statuses = asked.json_lines();
    let answered: Vec<_> = statuses.iter().map(|status| status.get("error").is_none()).collect();
    assert_eq!(answered, [true, false, true]);
    assert_eq!(statuses[1]["node"], json!(cluster.address(2)));
    cluster.polyarch(["put", "notes", "meanwhile", "v", "--node", &cluster.address(1)]).ok();
    cluster.node(2).serve();
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
    assert_eq!(cluster.polyarch(["get", "notes", "meanwhile", "--node", &cluster.address(2)]).ok().text(), "v");
    let all = cluster.polyarch(["status", "--all"]).ok();
    assert!(all.text().ends_with("all 3 that answered are equal\n"), "{}", all.text());
}

fn a_stopped_node_verifies_and_its_log_can_be_read(cluster: &mut Cluster) {
    let statuses = cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(5));
    cluster.stop();
    for server_id in cluster.server_ids() {
        let data = cluster.node(server_id).data_dir();
        let report = cluster.polyarch(["verify", data.to_str().unwrap(), "--json"]).ok().json();
        assert_eq!((&report["clean"], &report["problems"]), (&json!(true), &json!([])));
        assert_eq!(report["digest"], statuses[0]["digest"], "what was served is what is on the disk");
        assert_eq!(report["applied"], statuses[0]["applied"]);
    }
    let data = cluster.node(1).data_dir();
    let data = data.to_str().unwrap();
    assert!(cluster.polyarch(["verify", data]).ok().text().ends_with("all is well\n"));
    let dump = |more: &[&str]| cluster.polyarch([&["log", "dump", data, "--json"], more].concat()).ok().json_lines();
    let all = dump(&[]);
    assert!(all.len() > 2_000 && all.iter().all(|entry| entry["gtid"].is_string()));
    let from = all[3]["start"].as_str().unwrap();
    assert_eq!(dump(&["--from", from, "--limit", "2"]), all[3..5]);
    let puts_a_value = |entry: &Value| entry["changes"].as_array().unwrap().iter().any(|c| c["value"] == "world");
    assert!(all.iter().any(puts_a_value), "what was put is in the log");
    cluster.polyarch(["log", "dump", "no-such-directory"]).exits(2).says("no-such-directory");
}
