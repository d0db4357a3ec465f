//! Members that are drained, removed and taken back, and two living processes of one member.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use polyarch_client::{Client, KeyspaceKind, MemberStatus, NodeAddress, Profile};

use crate::support::writers::{Rng, Writers};
use crate::support::{Cluster, command, eventually};
use crate::watch::{Statuses, Watch};
use crate::{EQUAL_WITHIN, assert_nothing_lost, cluster_with_keyspace, turn};

const SHAPED_WITHIN: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_drained_under_load_removed_and_taken_back() {
    let _turn = turn().await;
    let (seed, _) = Rng::from_environment();
    let mut cluster = cluster_with_keyspace(4, KeyspaceKind::Mv, "").await;
    let (all, left) = (cluster.server_ids(), [1, 2, 4]);
    let (of_all, of_left) = (Watch::of(&cluster, &all), Watch::of(&cluster, &left));
    let clients: Vec<_> = all.iter().map(|id| cluster.client_of(*id)).collect();
    let writers = Writers::start(&clients, 2, "k", seed);
    of_all.until_written(100).await;

    cluster.polyarch(["node", "drain", "3", "--node", &cluster.address(1)]).ok();
    let drained = Instant::now();
    let refused = cluster.client_of(3).put("k", "late", "to nobody").await.expect_err("a drained node takes no writes");
    assert!(refused.is_refusal(), "{refused}");
    assert!(cluster.status(3).is_some_and(|status| !status["writes_refused"].is_null()));
    cluster.node(3).kill();
    let ledger = writers.finish().await;
    let of_3 = || ledger.all_acked().iter().filter(|write| write.gtid.is_some_and(|gtid| gtid.origin.server_id == 3));
    assert!(of_3().all(|write| write.acked_at.is_some_and(|at| at < drained)), "a drained node took a write");
    cluster.wait_until_equal(&left, EQUAL_WITHIN);
    assert_nothing_lost(&cluster, &ledger, &left, seed).await;

    cluster.polyarch(["node", "remove", "3", "--node", &cluster.address(1)]).ok();
    until_known_as(&of_left, MemberStatus::Removed).await;
    cluster.node(3).serve();
    cluster.polyarch(["node", "rejoin", "3", "--node", &cluster.address(1)]).ok();
    of_all.until_shaped("mesh", SHAPED_WITHIN).await;
    until_known_as(&of_left, MemberStatus::Active).await;
    eventually("node 3 to take writes again", SHAPED_WITHIN, || {
        cluster.status(3).filter(|status| status["writes_refused"].is_null())
    });
    cluster.client_of(3).put("k", "back", "again").await.expect("it is a member again");
    cluster.wait_until_equal(&all, EQUAL_WITHIN);
    println!("drained under load: {} of {} writes on the drained node", of_3().count(), ledger.acked_len());
    cluster.stop();
    cluster.verify_equal_histories();
}

async fn until_known_as(watch: &Watch, status: MemberStatus) {
    let is_known =
        |s: &Statuses| s.values().all(|s| s.peers.iter().any(|peer| peer.server_id == 3 && peer.status == status));
    watch.until(&format!("member 3 to be {}", status.as_str()), SHAPED_WITHIN, is_known).await;
}

/// Two nodes have joined and not yet heard of the cluster, and meet each other while its only member is down.
/// That one knows nobody to dial.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_meet_each_other_before_any_member_still_find_the_cluster() {
    let _turn = turn().await;
    let mut cluster = Cluster::prepare(3);
    let config = cluster.node(1).config();
    let text = fs::read_to_string(&config).expect("the configuration can be read");
    let peers = text.lines().find(|line| line.starts_with("peers = ")).expect("it names peers");
    fs::write(&config, text.replace(peers, "peers = []")).expect("it can be written");
    cluster.node(1).found();
    cluster.node(1).serve();
    for id in [2, 3] {
        cluster.node(id).found();
    }
    cluster.node(1).stop();
    for id in [2, 3] {
        cluster.node(id).serve();
    }
    for (id, peer) in [(2, 3), (3, 2)] {
        let log = cluster.node(id).log();
        eventually(&format!("node {id} to meet node {peer}"), SHAPED_WITHIN, || {
            fs::read_to_string(&log).ok()?.contains(&format!("link to member {peer} is up")).then_some(())
        });
    }
    cluster.node(1).serve();
    cluster.wait_until_linked(SHAPED_WITHIN);
    cluster.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_living_processes_of_one_member_take_no_writes_until_one_is_gone() {
    let _turn = turn().await;
    let mut cluster = cluster_with_keyspace(3, KeyspaceKind::Mv, "").await;
    cluster.client_of(2).put("k", "before", "the copy").await.expect("node 2 takes writes");
    let addresses = [cluster.address(2), cluster.unused_address()];
    let names_both = |text: &str| addresses.iter().all(|address| text.contains(address));
    let twin = Twin::start(&mut cluster, 2, &addresses[1]);
    for address in &addresses {
        let why = eventually(&format!("the process at {address} to take no writes"), SHAPED_WITHIN, || {
            writes_refused(&cluster, address)?.filter(|why| names_both(why))
        });
        println!("{address}: {why}");
        let client = client_at(&cluster, address);
        let refused = client.put("k", "twin", "no").await.expect_err("neither takes writes");
        assert!(refused.is_refusal(), "{refused}");
        let told = alarms(&cluster, address);
        let is_told = told.contains("two living processes have server id 2") && names_both(&told);
        assert!(is_told, "no alarm with both addresses at {address}: {told}");
    }
    let others = [1, 3].map(|id| alarms(&cluster, &cluster.address(id)));
    assert!(others.iter().any(|alarms| names_both(alarms)), "no other member names both addresses: {others:#?}");
    drop(twin);
    // A node holds still for 15 s after it was last told.
    eventually("node 2 to take writes again", Duration::from_secs(40), || {
        writes_refused(&cluster, &addresses[0])?.is_none().then_some(())
    });
    cluster.client_of(2).put("k", "after", "alone again").await.expect("node 2 is alone again");
    cluster.wait_until_equal(&[1, 2, 3], EQUAL_WITHIN);
    cluster.stop();
    cluster.verify_equal_histories();
}

/// Why the process at this address takes no writes, if it does not; `None` when it does not answer.
fn writes_refused(cluster: &Cluster, address: &str) -> Option<Option<String>> {
    let finished = cluster.polyarch(["status", "--json", "--timeout", "2s", "--node", address]);
    (finished.code == Some(0)).then(|| finished.json()["writes_refused"].as_str().map(str::to_owned))
}

/// The alarms that the process at this address has told, as text.
fn alarms(cluster: &Cluster, address: &str) -> String {
    cluster.polyarch(["events", "--alarms", "--json", "--node", address]).ok().text()
}

fn client_at(cluster: &Cluster, address: &str) -> Client {
    let address: NodeAddress = address.parse().expect("it is an address");
    let profile = Profile::load(cluster.profile()).expect("`certs dev` wrote it");
    Client::connect(profile).expect("a client needs no node yet").only(&address)
}

/// A second living process of a node, with a copy of its data; killed when dropped.
struct Twin(Child);

impl Twin {
    fn start(cluster: &mut Cluster, server_id: u32, address: &str) -> Self {
        let config = Self::configure(cluster, server_id, address);
        let log = fs::File::create(cluster.directory().join("twin.log")).expect("a log file can be made");
        let mut command = command();
        command.args(["serve", "--config"]).arg(config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Self(command.spawn().expect("the binary can be started"))
    }

    /// Copies its data and its configuration, with another port.
    fn configure(cluster: &mut Cluster, server_id: u32, address: &str) -> PathBuf {
        let original = cluster.address(server_id);
        let (data, copy) = (cluster.node(server_id).data_dir(), cluster.directory().join("data/twin"));
        copy_directory(&data, &copy);
        let text = fs::read_to_string(cluster.node(server_id).config()).expect("`certs dev` wrote it");
        let text = text.replace(&format!("data/node-{server_id}"), "data/twin");
        let text = text.replace(&format!("listen = \"{original}\""), &format!("listen = \"{address}\""));
        let config = cluster.directory().join("twin.toml");
        fs::write(&config, text).expect("the configuration can be written");
        config
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn copy_directory(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory can be made");
    for entry in fs::read_dir(from).expect("it is a directory") {
        let entry = entry.expect("it can be read");
        let (path, copy) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy_directory(&path, &copy),
            false => drop(fs::copy(&path, &copy).expect("it can be copied")),
        }
    }
}
