//! The real binary, from certificates to a verified data directory: three nodes, every command, every exit status.

#[path = "cli/cluster.rs"]
mod cluster;
mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Cluster, EQUAL_MAX, Finished, START_MAX, STOP_MAX, command, eventually, finish};
use tempfile::TempDir;

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
    what_cannot_be_printed_is_an_error_and_a_closed_pipe_is_none(&cluster);
    an_import_that_is_interrupted_says_how_far_it_came(&cluster);
    cluster::a_topology_that_makes_no_sense_is_refused(&cluster);
    cluster::a_topology_is_set_at_any_node_and_shown_by_all(&cluster);
    cluster::a_member_is_drained_removed_and_taken_back(&cluster);
    cluster::two_topologies_at_once_are_an_alarm_at_every_node(&cluster);
    cluster::events_are_told_newest_last(&cluster);
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
    for nothing in ["", "null", "None"] {
        let put = cluster.polyarch(["put", "notes", "cart", "v", "--context", nothing]).exits(2);
        put.says(&format!("--context: `{nothing}` is no context")).says("--nothing-seen");
    }
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
    let plain = |keyspace| ["import", keyspace, "-", "--replace", "--node", &at_1];
    cluster.polyarch_with_input(plain("bulk"), lines.as_bytes()).ok().says("2000 records");
    cluster.polyarch(["put", "bulk", "k0007", "another", "--nothing-seen", "--node", &at_1]).ok();
    let file = file.to_str().unwrap();
    cluster.polyarch(["export", "bulk", file, "--node", &at_1]).ok().says("2000 records");

    cluster.polyarch(["keyspace", "create", "copy", "--kind", "mv", "--node", &at_1]).ok();
    // A context is of one keyspace.
    cluster.polyarch(["import", "copy", file, "--node", &at_1]).exits(3).says("is of another; with --replace");
    // Twice: to repeat an import does no harm.
    cluster.polyarch(["import", "copy", file, "--replace", "--node", &at_1]).ok();
    cluster.polyarch(["import", "copy", file, "--replace", "--node", &at_1]).ok();
    let values = |keyspace: &str| -> Vec<(Value, Vec<Value>)> {
        let exported = cluster.polyarch(["export", keyspace, "--node", &at_1]).ok().json_lines();
        let values = |siblings: &Value| siblings.as_array().unwrap().iter().map(|s| s["value"].clone()).collect();
        exported.iter().map(|line| (line["key"].clone(), values(&line["siblings"]))).collect()
    };
    assert_eq!(values("copy"), values("bulk"));
    assert_eq!(values("copy")[7], (json!("k0007"), vec![json!("7"), json!("another")]));

    let broken = "{\"key\":\"a\",\"value\":\"1\"}\n{\"key\":\"b\",\"value\":\"2\"}\n\nnonsense\n";
    cluster
        .polyarch_with_input(plain("copy"), broken.as_bytes())
        .exits(2)
        .says("stopped after 2 records: standard input, line 4")
        .says("hint: it can be repeated");
    cluster.polyarch(["import", "copy", "no-such-file"]).exits(2).says("no-such-file");
}

fn what_is_refused_says_so(cluster: &Cluster) {
    cluster.polyarch(["get", "nowhere", "k"]).exits(3).says("error: there is no keyspace `nowhere`");
    let app = cluster.directory().join("client-app.toml");
    let as_app = ["keyspace", "create", "mine", "--kind", "mv", "--profile", app.to_str().unwrap()];
    cluster.polyarch(as_app).exits(3).says("`app` may not administer");
    cluster.polyarch(["get", "notes"]).exits(2).says("Usage: polyarch get");
    cluster.polyarch(["get", "notes", ""]).exits(2).says("a key has at least one byte");
    cluster
        .polyarch_with_input(["import", "notes", "-"], b"{\"key\":\"\",\"value\":\"v\"}")
        .exits(2)
        .says("its key is empty");
    cluster.polyarch(["get", "notes", "k", "--profile", "no-such-file"]).exits(2).says("no-such-file");
    cluster.polyarch(["link", "cut", "2"]).exits(2).says("hint: the profile knows");
    cluster.polyarch(["link", "cut", "9", "--node", &cluster.address(1)]).exits(3).says("member 9 is not known here");
    let nobody = cluster.unused_address();
    let unreachable = cluster.polyarch(["get", "notes", "k", "--node", &nobody, "--timeout", "300ms"]).exits(4);
    assert_eq!(unreachable.says("error: ").stderr.lines().count(), 2, "one line for the error, one for the hint");
    let data = cluster.directory().join("data/node-1");
    cluster.polyarch(["verify", data.to_str().unwrap()]).exits(3).says("in use by another process");
    let config = cluster.directory().join("node-1.toml");
    cluster.polyarch(["init", "--config", config.to_str().unwrap()]).exits(2).says("already holds server 1");
    cluster.polyarch(["serve", "--config", config.to_str().unwrap()]).exits(3).says("in use by another process");
    let foreign = Cluster::prepare(1);
    let profile = foreign.profile();
    cluster
        .polyarch(["get", "notes", "k", "--node", &cluster.address(1), "--profile", profile.to_str().unwrap()])
        .exits(2)
        .says("was not issued by the authority that is trusted here")
        .says("hint: `ca` of the profile");
}

fn what_cannot_be_printed_is_an_error_and_a_closed_pipe_is_none(cluster: &Cluster) {
    let node = format!("--node {}", cluster.address(1));
    cluster.polyarch(["put", "settings", "printed", "v", "--node", &cluster.address(1)]).ok();
    shell(cluster, &format!("polyarch export bulk {node} | head -n 1 >/dev/null; echo ok")).ok().keeps_silent();
    // Where the system has no such device, there is no easy way to a write that fails.
    if !Path::new("/dev/full").exists() {
        return;
    }
    for line in [
        "polyarch --help",
        &format!("polyarch get settings printed {node}"),
        &format!("polyarch scan settings {node}"),
        &format!("polyarch export bulk {node}"),
        &format!("polyarch status --json {node}"),
        "polyarch demo",
    ] {
        let said = shell(cluster, &format!("{line} >/dev/full")).exits(2);
        said.says("error: cannot write to standard output: ");
    }
    let put = shell(cluster, &format!("polyarch put settings unprinted v --json {node} >/dev/full")).exits(2);
    put.says("error: the write is done: cannot write to standard output: ");
    let read = cluster.polyarch(["get", "settings", "unprinted", "--node", &cluster.address(1)]).ok();
    assert_eq!(read.text(), "v");
}

fn an_import_that_is_interrupted_says_how_far_it_came(cluster: &Cluster) {
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let mut import = command();
        import.env("POLYARCH_PROFILE", cluster.profile());
        import.args(["import", "notes", "-", "--replace", "--node", &cluster.address(1)]);
        let import = import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        let mut import = import.expect("the binary can be started");
        let mut input = import.stdin.take().expect("stdin is piped");
        writeln!(input, "{}", json!({"key": format!("until-{signal}"), "value": "v"})).expect("it reads its input");
        let key = format!("until-{signal}");
        eventually("the record to be put", EQUAL_MAX, || {
            (cluster.polyarch(["get", "notes", &key, "--node", &cluster.address(1)]).code == Some(0)).then_some(())
        });
        send(signal, import.id());
        assert_eq!(code_of(&mut import), Some(status), "SIG{signal}");
        let mut said = String::new();
        import.stderr.take().expect("stderr is piped").read_to_string(&mut said).expect("it is text");
        assert!(said.contains(&format!("the import stopped after 1 records: SIG{signal}")), "{said}");
    }
}

#[test]
fn two_nodes_lose_a_link_a_disk_and_each_other() {
    let mut cluster = Cluster::prepare(2);
    for server_id in [1, 2] {
        cluster.node(server_id).found();
        cluster.node(server_id).serve();
    }
    cluster.wait_until_linked(EQUAL_MAX);
    a_status_names_the_node_that_answered(&cluster);
    a_heal_waits_until_the_link_is_up_or_says_that_it_is_not(&cluster);
    a_founder_that_lost_its_disk_founds_no_second_cluster(&mut cluster);
    a_node_of_another_authority_is_not_joined(&cluster);
}

fn a_status_names_the_node_that_answered(cluster: &Cluster) {
    let status = cluster.polyarch(["status", "--json"]).ok().json();
    let server_id = u32::try_from(status["server_id"].as_u64().expect("a number")).expect("a server id");
    assert_eq!(status["node"], json!(cluster.address(server_id)));
    let text = cluster.polyarch(["status"]).ok().text();
    assert!(
        [1, 2].iter().any(|id| text.starts_with(&format!("node {id} (node-{id}) at {}, ", cluster.address(*id)))),
        "{text}"
    );
}

fn a_heal_waits_until_the_link_is_up_or_says_that_it_is_not(cluster: &Cluster) {
    let (node_1, node_2) = (cluster.address(1), cluster.address(2));
    let link = |verb: &str, peer: &str, node: &str, more: &[&str]| {
        cluster.polyarch([&["link", verb, peer, "--node", node], more].concat()).ok()
    };
    let is_linked = |server_id| cluster.status(server_id).expect("it answers")["peers"][0]["linked"] == true;
    link("cut", "2", &node_1, &[]);
    assert!(!is_linked(1));
    link("heal", "2", &node_1, &["--timeout", "30s"]).keeps_silent();
    assert!(is_linked(1), "it is up when the command ends");
    link("cut", "2", &node_1, &[]);
    link("cut", "1", &node_2, &[]);
    link("heal", "2", &node_1, &["--no-wait"]).keeps_silent();
    link("heal", "2", &node_1, &["--timeout", "300ms"])
        .says("note: the link to member 2 is healed at this end and not up");
    link("heal", "1", &node_2, &["--timeout", "30s"]).keeps_silent();
    assert!(is_linked(2));
}

fn a_founder_that_lost_its_disk_founds_no_second_cluster(cluster: &mut Cluster) {
    cluster.node(1).kill();
    fs::remove_dir_all(cluster.node(1).data_dir()).expect("nobody has it open");
    let config = cluster.node(1).config();
    let config = config.to_str().unwrap();
    cluster.polyarch(["init", "--config", config]).exits(3).says("run `polyarch join` instead");
    cluster.polyarch(["join", "--config", config]).ok();
    cluster.node(1).serve();
    cluster.wait_until_linked(EQUAL_MAX);
}

fn a_node_of_another_authority_is_not_joined(cluster: &Cluster) {
    let mut foreign = Cluster::prepare(1);
    let config = foreign.node(1).config();
    let text =
        fs::read_to_string(&config).unwrap().replace("peers = []", &format!("peers = [\"{}\"]", cluster.address(2)));
    fs::write(&config, text).unwrap();
    let join = foreign.polyarch(["join", "--config", config.to_str().unwrap()]).exits(2);
    join.says("do not accept each other's certificates").says("hint: all nodes need the same `ca`");
}

#[test]
fn a_first_founder_is_told_that_nobody_answered_and_a_port_in_use_is_named() {
    let mut cluster = Cluster::prepare(2);
    let config = cluster.node(1).config();
    let config = config.to_str().unwrap();
    let init = cluster.polyarch(["init", "--config", config]).ok();
    init.says("note: of the configured peers nobody answered").says(&cluster.address(2));
    let address = cluster.address(1);
    let _taken = UdpSocket::bind(&address).expect("the cluster's ports are free");
    let serve = cluster.polyarch(["serve", "--config", config]).exits(2);
    serve.says(&format!("cannot use the address {address}: ")).says("hint: `listen`");
}

#[test]
fn a_validity_beyond_what_there_can_be_is_refused_with_the_most() {
    let directory = TempDir::new().unwrap();
    let certs = |more: &[&str]| {
        let mut command = command();
        command.arg("certs").args(more).arg("--dir").arg(directory.path());
        finish(command, b"")
    };
    certs(&["ca", "--cluster", "c", "--days", "4000000000"]).exits(2).says("may be from 1 to 29");
    certs(&["ca", "--cluster", "c", "--days", "30"]).ok();
    certs(&["node", "--server-id", "1", "--days", "31"]).exits(2).says("outlives the authority");
    certs(&["node", "--server-id", "1", "--days", "30"]).ok();
}

#[test]
fn the_demo_and_the_benchmark_leave_nothing_behind_but_what_they_are_told_to_keep() {
    let parent = TempDir::with_prefix("polyarch-test-").unwrap();
    a_demo_whose_reader_has_seen_enough_ends_in_silence(parent.path());
    a_demo_waits_for_enter(parent.path());
    a_demo_that_is_interrupted_has_the_signals_exit_status(parent.path());
    a_benchmark_that_is_interrupted_has_the_signals_exit_status(parent.path());
    a_demo_that_is_kept_can_be_played_with_as_it_says(parent.path());
}

fn a_demo_whose_reader_has_seen_enough_ends_in_silence(parent: &Path) {
    let mut demo = begun(parent, &["demo"]);
    let mut lines = lines_of(&mut demo);
    let nodes: Vec<String> = [1, 2, 3].map(|id| line_with(&mut lines, &format!("  node {id} listens on "))).into();
    drop(lines);
    assert_eq!(code_of(&mut demo), Some(0));
    let mut said = String::new();
    demo.stderr.take().expect("stderr is piped").read_to_string(&mut said).expect("it is text");
    assert_eq!(said, "");
    nothing_is_left(parent);
    for node in nodes {
        let address = node.split_whitespace().nth(4).expect("the address follows").to_owned();
        UdpSocket::bind(&address).unwrap_or_else(|error| panic!("{address} is still in use: {error}"));
    }
}

fn a_demo_waits_for_enter(parent: &Path) {
    let mut demo = command();
    demo.args(["demo", "--pause"]).env("TMPDIR", parent);
    let played = finish(demo, b"\n\n\n\n\n").ok();
    assert_eq!(played.text().matches("[Enter]").count(), 5);
    assert!(played.text().contains("What you saw"), "{}", played.text());
    nothing_is_left(parent);
}

fn a_demo_that_is_interrupted_has_the_signals_exit_status(parent: &Path) {
    for (signal, status) in [("INT", 130), ("TERM", 143)] {
        let mut demo = begun(parent, &["demo", "--pause"]);
        let mut lines = lines_of(&mut demo);
        // The first act is over, and it waits for Enter, which nobody presses.
        line_with(&mut lines, "  imported ");
        send(signal, demo.id());
        assert_eq!(code_of(&mut demo), Some(status), "SIG{signal}");
        nothing_is_left(parent);
    }
}

fn a_benchmark_that_is_interrupted_has_the_signals_exit_status(parent: &Path) {
    let mut bench = begun(parent, &["bench", "--clients", "1", "--seconds", "600"]);
    eventually("its directory, which it makes once it listens for signals", START_MAX, || {
        (entries(parent) > 0).then_some(())
    });
    send("TERM", bench.id());
    assert_eq!(code_of(&mut bench), Some(143));
    nothing_is_left(parent);
}

fn a_demo_that_is_kept_can_be_played_with_as_it_says(parent: &Path) {
    let mut demo = command();
    demo.args(["demo", "--keep"]).env("TMPDIR", parent);
    let told = finish(demo, b"").ok().text();
    let (_, told) = told.split_once("To play:\n").expect("it says how to go on");
    let (play, end) = told.split_once("To end it:\n").expect("it says how to end it");
    let end = EndOfPlay(end.to_owned());
    let played = run_shell(&format!("set -e\n{play}"), &[]).ok().text();
    assert!(played.contains("all 3 that answered are equal"), "{played}");
    assert!(played.contains("\"context\":"), "{played}");
    let profile = play.lines().find_map(|line| line.strip_prefix("export POLYARCH_PROFILE=")).expect("it names one");
    eventually("the healed link to bring what node 3 wrote", EQUAL_MAX, || {
        let get = run_shell(&format!("POLYARCH_PROFILE={profile} polyarch get types image/png"), &[]);
        (get.text() == "written at node 3").then_some(())
    });
    drop(end);
    nothing_is_left(parent);
}

/// Ends what a demo left running, as it said.
struct EndOfPlay(String);

impl Drop for EndOfPlay {
    fn drop(&mut self) {
        let ended = run_shell(&self.0, &[]);
        assert!(std::thread::panicking() || ended.code == Some(0), "{ended:?}");
    }
}

/// The binary with its files for the time being in `parent`.
fn begun(parent: &Path, arguments: &[&str]) -> Child {
    let mut command = command();
    command.args(arguments).env("TMPDIR", parent);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("the binary can be started")
}

fn lines_of(child: &mut Child) -> BufReader<ChildStdout> {
    BufReader::new(child.stdout.take().expect("stdout is piped"))
}

/// The next line that begins so.
fn line_with(lines: &mut BufReader<ChildStdout>, beginning: &str) -> String {
    let mut line = String::new();
    while !line.starts_with(beginning) {
        line.clear();
        let read = lines.read_line(&mut line).expect("it prints text");
        assert!(read > 0, "it ended without a line that begins with `{beginning}`");
    }
    line
}

fn code_of(child: &mut Child) -> Option<i32> {
    eventually("the command to end", STOP_MAX, || child.try_wait().expect("a child can be waited for")).code()
}

fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status();
    assert!(sent.expect("every Unix has kill").success(), "kill -{signal} {pid}");
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).expect("it is there").count()
}

#[track_caller]
fn nothing_is_left(directory: &Path) {
    assert_eq!(entries(directory), 0, "{:?}", fs::read_dir(directory).unwrap().collect::<Vec<_>>());
}

/// Runs a script in which `polyarch` is the binary, and the client is the cluster's.
fn shell(cluster: &Cluster, script: &str) -> Finished {
    run_shell(
        script,
        &[("POLYARCH_PROFILE", cluster.profile().as_os_str()), ("TMPDIR", cluster.directory().as_os_str())],
    )
}

fn run_shell(script: &str, environment: &[(&str, &OsStr)]) -> Finished {
    let binaries = Path::new(env!("CARGO_BIN_EXE_polyarch")).parent().expect("it is in a directory");
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).env_remove("POLYARCH_PROFILE").env_remove("RUST_LOG").env_remove("NO_COLOR");
    shell.env("PATH", format!("{}:{path}", binaries.display())).envs(environment.iter().copied());
    finish(shell, b"")
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
