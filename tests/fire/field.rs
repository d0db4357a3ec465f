//! A cluster with a relay between its nodes, and, in a process apart, a network and a disk for each.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use polyarch_client::{Client, KeyspaceKind, NodeAddress, Profile};

use crate::apart;
use crate::relay::{Counts, Place, Relay};
use crate::support::Cluster;
use crate::support::clock::Clock;
use crate::support::disk::Disk;

/// A disk's size.
const DISK_MIB: u64 = 192;
/// How long a new cluster may take to stand.
const STANDS_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may take to answer one question.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What all nodes have.
pub(crate) const KEYSPACES: [(&str, KeyspaceKind); 5] = [
    ("adds", KeyspaceKind::Mv),
    ("churn", KeyspaceKind::Mv),
    ("pairs", KeyspaceKind::Mv),
    ("chains", KeyspaceKind::Lww),
    ("sums", KeyspaceKind::Lww),
];

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Serves,
    /// Killed.
    Down,
    /// Stands still.
    Frozen,
    /// Runs, or ran, with an error or a kill waiting for it in a file of this number.
    Traced(u64),
    /// Has a full disk.
    Full,
}

/// A cluster under fire.
pub(crate) struct Field {
    // These go before the cluster's directory, in which they are mounted.
    disks: BTreeMap<u32, Disk>,
    clocks: BTreeMap<u32, Clock>,
    pub(crate) relay: Relay,
    pub(crate) cluster: Cluster,
    lives: BTreeMap<u32, Life>,
    images: BTreeMap<u32, PathBuf>,
    places: Vec<Place>,
    /// A client that may ask any node.
    pub(crate) client: Client,
}

impl Field {
    /// A cluster that stands, in a mesh, with all keyspaces.
    pub(crate) async fn start(nodes: u32, settings: &str, has_clocks: bool, seed: u64, counts: &Arc<Counts>) -> Self {
        let mut cluster = Cluster::prepare(nodes);
        let places: Vec<Place> = (1..=nodes).map(|id| place(&cluster, id)).collect();
        let relay = Relay::start(&places, seed, counts);
        let (mut disks, mut clocks) = (BTreeMap::new(), BTreeMap::new());
        for at in &places {
            let node = cluster.node(at.server_id);
            node.configure(settings);
            if apart::is_apart() {
                node.run_under(apart::within(at.server_id));
                disks.insert(at.server_id, disk_under(&mut cluster, at.server_id));
            }
            if let Some(library) = apart::faketime().filter(|_| has_clocks) {
                clocks.insert(at.server_id, Clock::of(&mut cluster, at.server_id, &library));
            }
        }
        for id in 1..=nodes {
            found(&mut cluster, &places, id);
            cluster.node(id).serve();
        }
        cluster.wait_until_linked(STANDS_WITHIN);
        let profile = Profile::load(cluster.profile()).expect("`certs dev` wrote it");
        let client = Client::connect(profile).expect("a client needs no node yet");
        let lives = (1..=nodes).map(|id| (id, Life::Serves)).collect();
        let field = Self { disks, clocks, relay, cluster, lives, images: BTreeMap::new(), places, client };
        for (name, kind) in KEYSPACES {
            field.client_of(1).create_keyspace(name, kind).await.expect("node 1 takes writes");
        }
        field.cluster.wait_until_equal(&field.ids(), STANDS_WITHIN);
        field
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.cluster.server_ids()
    }

    /// A client of one node with a connection of its own, which waits for no answer for long.
    pub(crate) fn client_of(&self, id: u32) -> Client {
        self.client.with_timeout(ANSWER_MAX).only(&self.address(id))
    }

    pub(crate) fn addresses(&self) -> Vec<NodeAddress> {
        self.ids().into_iter().map(|id| self.address(id)).collect()
    }

    fn address(&self, id: u32) -> NodeAddress {
        self.cluster.address(id).parse().expect("it is an address")
    }

    pub(crate) fn life(&self, id: u32) -> Life {
        self.lives[&id]
    }

    /// The nodes that nothing is done to.
    pub(crate) fn serving(&self) -> Vec<u32> {
        self.ids().into_iter().filter(|id| self.life(*id) == Life::Serves).collect()
    }

    /// Those of them that do not run all the same.
    pub(crate) fn ended_by_themselves(&mut self) -> Vec<u32> {
        self.serving().into_iter().filter(|id| !self.cluster.node(*id).is_running()).collect()
    }

    pub(crate) fn kill(&mut self, id: u32) {
        self.cluster.node(id).kill();
        self.lives.insert(id, Life::Down);
    }

    pub(crate) fn serve(&mut self, id: u32) {
        self.cluster.node(id).serve();
        self.lives.insert(id, Life::Serves);
    }

    pub(crate) fn freeze(&mut self, id: u32) {
        self.cluster.node(id).signal("STOP");
        self.lives.insert(id, Life::Frozen);
    }

    /// Ends whatever is done to a node.
    pub(crate) fn relieve(&mut self, id: u32) {
        match self.life(id) {
            Life::Serves => {}
            Life::Down => self.serve(id),
            Life::Frozen => {
                self.cluster.node(id).signal("CONT");
                self.lives.insert(id, Life::Serves);
            }
            Life::Traced(_) => {
                self.kill(id);
                self.cluster.node(id).run_under(apart::within(id));
                self.serve(id);
            }
            Life::Full => self.give_room(id),
        }
    }

    /// Cuts the power of nodes that serve, all at the same moment, and turns it on again.
    pub(crate) fn cut_power(&mut self, ids: &[u32]) {
        ids.iter().for_each(|id| self.disks[id].cut_power());
        ids.iter().for_each(|id| self.kill(*id));
        ids.iter().for_each(|id| self.disks[id].power_on());
        ids.iter().for_each(|id| self.serve(*id));
    }

    /// Starts a node anew so that something happens at its n-th system call of a kind, in any of its threads.
    pub(crate) fn trace(&mut self, id: u32, calls: &str, injected: &str, number: u64) {
        self.kill(id);
        let file = self.trace_file(number).to_string_lossy().into_owned();
        let mut wrapper = apart::within(id);
        let tracer = ["strace", "-D", "-f", "--seccomp-bpf", "-qq", "-s", "0", "-o", file.as_str()];
        wrapper.extend(tracer.map(str::to_owned));
        wrapper.extend([
            "-e".to_owned(),
            format!("trace={calls}"),
            "-e".to_owned(),
            format!("inject={calls}:{injected}"),
        ]);
        let node = self.cluster.node(id);
        node.run_under(wrapper);
        // What was to happen may have happened before it listens.
        let _ = node.try_serve();
        self.lives.insert(id, Life::Traced(number));
    }

    /// Whether it has happened.
    pub(crate) fn has_struck(&self, id: u32) -> bool {
        let Life::Traced(number) = self.life(id) else { return false };
        let said = fs::read_to_string(self.trace_file(number)).unwrap_or_default();
        said.contains("INJECTED") || said.contains("killed by SIGKILL")
    }

    fn trace_file(&self, number: u64) -> PathBuf {
        self.cluster.directory().join(format!("trace-{number}"))
    }

    /// Takes the room of a node's disk but for so many bytes.
    pub(crate) fn fill(&mut self, id: u32, left: u64) {
        self.disks[&id].take_all_but(left);
        self.lives.insert(id, Life::Full);
    }

    /// Kills a node whose disk is full and starts it. It may say that it needs room, and end.
    pub(crate) fn start_on_full_disk(&mut self, id: u32) {
        let node = self.cluster.node(id);
        node.kill();
        let _ = node.try_serve();
    }

    /// Gives it back. Where the state met the full disk the node says that it needs a restart.
    fn give_room(&mut self, id: u32) {
        self.disks[&id].give_back();
        let log = fs::read_to_string(self.cluster.node(id).log()).unwrap_or_default();
        if log.contains("takes no more checkpoints") || !self.cluster.node(id).is_running() {
            self.kill(id);
            self.serve(id);
        }
        self.lives.insert(id, Life::Serves);
    }

    /// Sets a node's clock so far ahead, or behind; says whether it has one that can be set.
    pub(crate) fn set_clock(&self, id: u32, seconds: i64) -> bool {
        self.clocks.get(&id).map(|clock| clock.set_ahead(seconds)).is_some()
    }

    /// Whether there is a copy of a node's data directory.
    pub(crate) fn has_image(&self, id: u32) -> bool {
        self.images.contains_key(&id)
    }

    /// Copies the data directory of a node that is down.
    pub(crate) fn take_image(&mut self, id: u32) {
        let image = self.cluster.directory().join(format!("image-{id}"));
        let _ = fs::remove_dir_all(&image);
        copy(&self.data_dir(id), &image);
        self.images.insert(id, image);
    }

    /// Replaces the data directory of a node that is down by the copy.
    pub(crate) fn put_image_back(&mut self, id: u32) {
        self.empty(id);
        let (image, data) = (self.images[&id].clone(), self.data_dir(id));
        copy(&image.join("."), &data);
    }

    /// Replaces the data directory of a node that is down by that of a member that joins.
    pub(crate) fn join_anew(&mut self, id: u32) {
        self.empty(id);
        found(&mut self.cluster, &self.places, id);
    }

    fn empty(&mut self, id: u32) {
        let data = self.data_dir(id);
        for entry in fs::read_dir(data).expect("it is a directory").flatten() {
            match entry.path().is_dir() {
                true => fs::remove_dir_all(entry.path()).expect("it can be removed"),
                false => fs::remove_file(entry.path()).expect("it can be removed"),
            }
        }
    }

    fn data_dir(&mut self, id: u32) -> PathBuf {
        fs::canonicalize(self.cluster.node(id).data_dir()).expect("the node was founded")
    }

    /// Where the data of all nodes is.
    pub(crate) fn data_dirs(&mut self) -> Vec<PathBuf> {
        self.ids().into_iter().map(|id| self.data_dir(id)).collect()
    }

    /// The greatest resident memory of any process that runs, in KiB.
    pub(crate) fn resident_kib(&mut self) -> u64 {
        let pids: Vec<u32> = self.ids().into_iter().filter_map(|id| self.cluster.node(id).pid()).collect();
        let resident = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().trim_end_matches(" kB").parse().ok()
        };
        pids.into_iter().filter_map(resident).max().unwrap_or(0)
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cluster.keep_files();
            eprintln!("what the nodes left is in {}", self.cluster.directory().display());
        }
        // Before their disks go.
        self.ids().into_iter().for_each(|id| self.cluster.node(id).kill());
    }
}

/// Apart each node has its address and the relay another; else both are on loopback.
fn place(cluster: &Cluster, id: u32) -> Place {
    if apart::is_apart() {
        return Place { server_id: id, node: apart::address_of(id), door: apart::door_of(id) };
    }
    let node: SocketAddr = cluster.address(id).parse().expect("it is an address");
    let door = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 100 + id as u8)), node.port());
    Place { server_id: id, node, door }
}

/// Makes the data directory of a node, which asks the others where they are: the relay knows nobody who only asks. From
/// then on it finds them by way of the relay.
fn found(cluster: &mut Cluster, places: &[Place], id: u32) {
    let of_others = |address: fn(&Place) -> SocketAddr| -> Vec<SocketAddr> {
        places.iter().filter(|place| place.server_id != id).map(address).collect()
    };
    let at = places.iter().find(|place| place.server_id == id).expect("it has a place");
    let node = cluster.node(id);
    node.place(at.node, at.door, &of_others(|place| place.node));
    node.found();
    node.place(at.node, at.door, &of_others(|place| place.door));
}

/// Puts the data directory of a node that is not founded yet on a disk of its own.
fn disk_under(cluster: &mut Cluster, id: u32) -> Disk {
    let disk = Disk::make(cluster.directory(), &format!("disk-{id}"), DISK_MIB);
    fs::create_dir(disk.path().join("data")).expect("there is room");
    let data = cluster.node(id).data_dir();
    fs::create_dir_all(data.parent().expect("it lies in the cluster's directory")).expect("there is room");
    symlink(disk.path().join("data"), data).expect("the data directory is not there yet");
    disk
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("every Unix has cp");
    assert!(copied.success(), "cp -a {} {}", from.display(), to.display());
}
