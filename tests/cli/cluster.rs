//! Commands about the cluster itself: topologies, members, events.

use serde_json::{Value, json};

use super::support::{Cluster, EQUAL_MAX, eventually};

pub(super) fn a_topology_that_makes_no_sense_is_refused(cluster: &Cluster) {
    let set = |words: &str| cluster.polyarch(["topology", "set"].into_iter().chain(words.split(' ')));
    set("star --edges 1-2").exits(2).says("error: --edges is for custom");
    set("custom").exits(2).says("error: custom needs --edges, the links, such as 1-2,2-3");
    set("ring --hubs 1").exits(2).says("error: --hubs is for a star");
    set("custom --edges 1-2,3").exits(2).says("`3` is no pair of server ids, such as 1-2");
    set("star --hubs 0").exits(2).says("--hubs");
    set("torus").exits(2).says("[possible values: mesh, ring, star, custom]");
    set("star --hubs 1,9").exits(3).says("error: 9 is not a member of this cluster");
    set("star --hubs 1,1").exits(3).says("error: hub 1 is given twice");
    set("custom --edges 1-2,2-9").exits(3).says("error: 9 is not a member of this cluster");
    set("custom --edges 1-2").exits(3).says("error: no way leads from member 1 to member 3; add a link");
    assert_eq!(shown(cluster, 1)["topology"], "mesh", "nothing was changed");
    let app = cluster.directory().join("client-app.toml");
    let as_app = ["topology", "set", "ring", "--profile", app.to_str().unwrap()];
    cluster.polyarch(as_app).exits(3).says("`app` may not administer");
}

pub(super) fn a_topology_is_set_at_any_node_and_shown_by_all(cluster: &Cluster) {
    let written = cluster.polyarch(["topology", "set", "star", "--hubs", "2", "--json"]).ok().json();
    assert!(written["gtid"].is_string() && written["token"].is_string(), "{written}");
    let star = [1, 3].map(|spoke: u32| json!({"ends": [spoke.min(2), spoke.max(2)], "planned": true, "up": true}));
    eventually("all to see a star and no link beside it", EQUAL_MAX, || {
        cluster.server_ids().iter().all(|id| shown(cluster, *id)["links"] == json!(star)).then_some(())
    });
    let object = shown(cluster, 3);
    assert_eq!(object["topology"], "star:2");
    let member = json!({"server_id": 1, "name": "node-1", "status": "active", "reachable": true});
    assert_eq!(object["members"][0], member);

    let drawn = cluster.polyarch(["topology", "show", "--node", &cluster.address(3)]).ok().text();
    let expected = "star:2, as node 3 sees it: 3 members, 2 links up, 0 planned and not up, 0 beside the plan\n";
    assert!(drawn.starts_with(expected), "{drawn}");
    assert!(drawn.contains("\n  2  # \\ #   node-2 (active)\n"), "{drawn}");
    let status = cluster.polyarch(["status", "--node", &cluster.address(1)]).ok().text();
    assert!(status.contains("member 3 (node-3)  reached by way of others, not compared here"), "{status}");
    assert!(status.contains("note   how far members without a link are is not known here"), "{status}");

    cluster.polyarch(["topology", "set", "mesh"]).ok().keeps_silent();
    cluster.wait_until_linked(EQUAL_MAX);
    let status = cluster.polyarch(["status", "--node", &cluster.address(1)]).ok().text();
    assert!(!status.contains("note   how far"), "{status}");
}

pub(super) fn a_member_is_drained_removed_and_taken_back(cluster: &Cluster) {
    let (at_1, at_3) = (cluster.address(1), cluster.address(3));
    let node = |verb: &str, id: &str| cluster.polyarch(["node", verb, id, "--node", &at_1]);
    node("drain", "9").exits(3).says("member 9 is not known here");
    node("drain", "0").exits(2).says("SERVER_ID");
    node("remove", "3").exits(3).says("error: member 3 is active: drain it first").says("--force");
    node("rejoin", "3").exits(3).says("error: member 3 is active: it is a member already");
    let listed = cluster.polyarch(["node", "list", "--node", &at_1]).ok().text();
    let lines: String = cluster
        .server_ids()
        .iter()
        .map(|id| {
            let how = if *id == 1 { "this node" } else { "linked" };
            format!("{id}\tnode-{id}\tactive\t{how}\t{}\n", cluster.address(*id))
        })
        .collect();
    assert_eq!(listed, lines);

    // Asked of the member itself, the end has to be heard by another one too.
    let drained = cluster.polyarch(["node", "drain", "3", "--json", "--node", &at_3]).ok().json();
    assert!(drained["gtid"].is_string(), "{drained}");
    assert_eq!(member(cluster, 3, 3)["status"], "down");
    let refused = cluster.polyarch(["put", "notes", "late", "v", "--node", &at_3]).exits(3);
    refused.says("error: this member is down; ask another").says("polyarch node rejoin");
    until_known_as(cluster, 1, 3, "down");
    node("drain", "3").ok();

    node("remove", "3").ok().keeps_silent();
    until_known_as(cluster, 3, 3, "removed");
    assert_eq!(shown(cluster, 1)["members"].as_array().map(Vec::len), Some(2), "nobody plans for it");
    cluster.polyarch(["put", "notes", "late", "v", "--node", &at_3]).exits(3).says("error: this member is removed");
    let drawn = cluster.polyarch(["topology", "show", "--node", &at_3]).ok().text();
    assert!(drawn.contains("this member was removed: it has no links"), "{drawn}");
    node("remove", "3").exits(3).says("error: member 3 is removed: it is removed already");
    let rejoin = cluster.polyarch(["node", "rejoin", "3", "--node", &at_3]).exits(3);
    rejoin.says("hint: the others do not hear a member that was removed");
    // Whichever node the profile leads to: the member itself would not be heard.
    cluster.polyarch(["node", "rejoin", "3"]).ok().keeps_silent();
    cluster.server_ids().iter().for_each(|at| until_known_as(cluster, *at, 3, "active"));
    cluster.wait_until_linked(EQUAL_MAX);
    cluster.polyarch(["put", "notes", "late", "v", "--node", &at_3]).ok();
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
}

pub(super) fn two_topologies_at_once_are_an_alarm_at_every_node(cluster: &Cluster) {
    cluster.isolate(3);
    for (topology, at) in [("mesh", 1), ("ring", 3)] {
        cluster.polyarch(["topology", "set", topology, "--node", &cluster.address(at)]).ok();
        assert_eq!(shown(cluster, at)["topology"], topology);
    }
    cluster.heal(3);
    cluster.wait_until_linked(EQUAL_MAX);
    for at in cluster.server_ids() {
        let alarms = events(cluster, at, &["--alarms"]);
        let lost = alarms.iter().filter(|event| text(event).starts_with("two topologies were set at the same time; "));
        assert_eq!(lost.count(), 1, "at node {at}: {alarms:#?}");
        assert!(alarms.iter().all(|event| event["alarm"] == true), "{alarms:#?}");
    }
    cluster.polyarch(["topology", "set", "mesh"]).ok();
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_MAX);
}

pub(super) fn events_are_told_newest_last(cluster: &Cluster) {
    let all = events(cluster, 1, &["--limit", "1000"]);
    // It may hear of the drain and of its end at one time.
    for told in ["the topology is star:2", "member 3 was active and is d", "link to member 3 is up"] {
        let is_told = |event: &Value| text(event).starts_with(told) && event["alarm"] == false;
        assert!(all.iter().any(is_told), "{told}: {all:#?}");
    }
    let times: Vec<_> = all.iter().map(|event| event["time_ms"].as_u64().expect("a time")).collect();
    assert!(times.is_sorted(), "{times:?}");
    assert_eq!(events(cluster, 1, &["--limit", "2"]), all[all.len() - 2..]);
    let at_1 = cluster.address(1);
    let last = cluster.polyarch(["events", "--limit", "1", "--node", &at_1]).ok().text();
    let (time, said) = last.trim_end().split_once("  ").expect("a time and a text");
    assert!(time.len() == "2025-12-05T16:00:00.000Z".len() && time.ends_with('Z'), "{last}");
    assert_eq!(said.trim_start_matches("ALARM  "), text(&all[all.len() - 1]));
    let alarms = cluster.polyarch(["events", "--alarms", "--limit", "1", "--node", &at_1]).ok().text();
    assert!(alarms.lines().count() == 1 && alarms.contains("Z  ALARM  "), "{alarms}");
}

fn shown(cluster: &Cluster, at: u32) -> Value {
    cluster.polyarch(["topology", "show", "--json", "--node", &cluster.address(at)]).ok().json()
}

fn member(cluster: &Cluster, at: u32, server_id: u32) -> Value {
    let listed = cluster.polyarch(["node", "list", "--json", "--node", &cluster.address(at)]).ok().json_lines();
    let is_it = |member: &Value| member["server_id"] == server_id;
    listed.into_iter().find(is_it).unwrap_or_else(|| panic!("node {at} lists no member {server_id}"))
}

fn until_known_as(cluster: &Cluster, at: u32, server_id: u32, status: &str) {
    eventually(&format!("node {at} to know member {server_id} as {status}"), EQUAL_MAX, || {
        (member(cluster, at, server_id)["status"] == status).then_some(())
    });
}

fn events(cluster: &Cluster, at: u32, how: &[&str]) -> Vec<Value> {
    cluster.polyarch([&["events", "--json", "--node", &cluster.address(at)], how].concat()).ok().json_lines()
}

fn text(event: &Value) -> &str {
    event["text"].as_str().expect("an event has a text")
}
