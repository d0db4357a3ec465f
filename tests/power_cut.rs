//! Power cuts under load. Needs root, loop devices and e2fsprogs:
//!
//! ```sh
//! cargo test --features power-cut --test power_cut -- --nocapture --test-threads 1
//! ```
//!
//! Each node's data lies on an ext4 image of its own. A cut is `FS_IOC_SHUTDOWN` without a flush of
//! the journal: whatever was not synced is gone, as when a machine loses power. Then the node is
//! killed, the file system checked and mounted again, and the node started. `POLYARCH_POWER_CUTS`
//! says how often (default 50).

mod support;

use std::fs;
use std::time::Duration;

use polyarch_client::KeyspaceKind;
use support::Cluster;
use support::disk::Disk;
use support::ledger::Ledger;
use support::writers::{Rng, Writers, size};

const SETTINGS: &str = "[storage]\nmemtable_mib = 1\nsegment_mib = 4\ncheckpoint_log_mib = 2\n";

/// A cluster with each node's data on a disk of its own. The nodes go before the disks.
struct CutCluster {
    cluster: Cluster,
    disks: Vec<Disk>,
}

impl CutCluster {
    fn start(nodes: u32, bug: &str) -> Self {
        let mut cluster = Cluster::prepare(nodes);
        let disks = (1..=nodes).map(|id| Disk::make(cluster.directory(), &format!("disk-{id}"), 512)).collect();
        for id in 1..=nodes {
            let node = cluster.node(id);
            let config = fs::read_to_string(node.config()).expect("`certs dev` wrote it");
            let moved = config.replace(&format!("\"data/node-{id}\""), &format!("\"disk-{id}/node-{id}\""));
            assert_ne!(config, moved);
            fs::write(node.config(), format!("{moved}\n{SETTINGS}")).expect("the configuration can be written");
            node.set_environment("POLYARCH_SEEDED_BUG", bug);
            node.found();
            node.serve();
        }
        cluster.wait_until_linked(Duration::from_secs(30));
        Self { cluster, disks }
    }

    fn cut(&mut self, victims: &[u32]) {
        victims.iter().for_each(|id| self.disks[*id as usize - 1].cut_power());
        victims.iter().for_each(|id| self.cluster.node(*id).kill());
        victims.iter().for_each(|id| self.disks[*id as usize - 1].power_on());
        victims.iter().for_each(|id| self.cluster.node(*id).serve());
    }

    /// Runs load through so many cuts, each of one node or of all, and returns what clients were told.
    async fn suffer(&mut self, cuts: u64, rng: &mut Rng, seed: u64) -> Ledger {
        let ids = self.cluster.server_ids();
        let clients: Vec<_> = ids.iter().map(|id| self.cluster.client_of(*id)).collect();
        let writers = Writers::start(&clients, 4, "k", seed);
        for _ in 0..cuts {
            // The load's time between two cuts, not a wait for anything.
            tokio::time::sleep(Duration::from_millis(100 + rng.below(600))).await;
            let victims = match rng.below(3) {
                0 => ids.clone(),
                _ => vec![ids[rng.below(ids.len() as u64) as usize]],
            };
            self.cut(&victims);
        }
        writers.finish().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_the_power_is_cut() {
    let cuts = size("POLYARCH_POWER_CUTS", 50);
    let (seed, mut rng) = Rng::from_environment();
    let mut machines = CutCluster::start(3, "");
    machines.cluster.client_of(1).create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    machines.cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(20));
    let ledger = machines.suffer(cuts, &mut rng, seed).await;
    machines.cluster.wait_until_equal(&[1, 2, 3], Duration::from_secs(60));
    for id in 1..=3 {
        let breaches = ledger.breaches(&machines.cluster.client_of(id), "k").await;
        assert!(breaches.is_empty(), "seed {seed}, node {id}:\n{}", breaches.join("\n"));
    }
    println!("{cuts} cuts, {} writes acknowledged, {} unknown", ledger.acked_len(), ledger.unknown_len());
    assert!(ledger.acked_len() as u64 > cuts * 10, "there was hardly any load");
    machines.cluster.stop();
}

/// That the test above can see: one node that says it synced and did not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_the_sync_out_is_found_out() {
    let (seed, mut rng) = Rng::from_environment();
    let mut machine = CutCluster::start(1, "no-sync");
    machine.cluster.client_of(1).create_keyspace("k", KeyspaceKind::Mv).await.expect("node 1 takes writes");
    let clients = [machine.cluster.client_of(1)];
    let writers = Writers::start(&clients, 4, "k", seed);
    tokio::time::sleep(Duration::from_millis(500 + rng.below(500))).await;
    machine.disks[0].cut_power();
    machine.cluster.node(1).kill();
    machine.disks[0].power_on();
    let ledger = writers.finish().await;
    // Either it cannot even start, or it has lost what it acknowledged.
    let lost = match machine.cluster.node(1).try_serve() {
        false => vec!["the node does not start".to_owned()],
        true => match machine.cluster.client_of(1).keyspaces().await.is_ok_and(|all| all.is_empty()) {
            true => vec!["the keyspace is lost".to_owned()],
            false => ledger.breaches(&machine.cluster.client_of(1), "k").await,
        },
    };
    println!("found: {}", lost.first().map_or("nothing", String::as_str));
    assert!(!lost.is_empty(), "a node without syncs passed: the test is blind (seed {seed})");
}
