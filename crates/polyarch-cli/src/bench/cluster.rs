//! The cluster that is measured: three nodes started for the occasion, or one that runs already.

use std::path::{Path, PathBuf};
use std::time::Duration;

use polyarch_client::{Client, KeyspaceKind, NodeAddress, Profile, Refusal, StatusView};
use tempfile::TempDir;

use super::{DurabilityArgument, StartedCluster, process};
use crate::failure::Failure;
use crate::local_cluster::LocalCluster;
use crate::waiting::{wait_until, wait_until_equal};

/// Where the load goes.
pub(super) const KEYSPACE: &str = "bench";

const NODES: u32 = 3;

/// Log between two checkpoints of a sustained run, so that there are several.
const SUSTAINED_CHECKPOINT_LOG_MIB: u64 = 32;

/// How long nodes may take to start and to find each other.
const READY_MAX: Duration = Duration::from_secs(60);

/// The nodes that are measured. Those that were started for it end with it.
pub(super) struct Cluster {
    nodes: Vec<MeasuredNode>,
    profile: Profile,
    settings: Settings,
    started: Option<Started>,
}

/// Processes, and the directory that goes after them.
struct Started {
    cluster: LocalCluster,
    directory: TempDir,
}

/// A node, and a connection for questions beside the load.
pub(super) struct MeasuredNode {
    pub(super) address: NodeAddress,
    probe: Client,
    pid: Option<u32>,
    data_dir: Option<PathBuf>,
}

/// How the nodes were started, as far as it is known.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    pub(super) started_here: bool,
    pub(super) durability: Option<&'static str>,
    pub(super) file_system: Option<String>,
    pub(super) checkpoint_log_mib: Option<u64>,
    pub(super) memtable_mib: Option<u64>,
}

/// What a node and its process had come to at a moment.
pub(super) struct Sample {
    pub(super) status: StatusView,
    pub(super) cpu: Option<Duration>,
    pub(super) rss_bytes: Option<u64>,
    pub(super) disk_bytes: Option<u64>,
}

impl Settings {
    fn of(arguments: &StartedCluster, sustained: bool, directory: &Path) -> Self {
        Self {
            started_here: true,
            durability: Some(match arguments.durability {
                DurabilityArgument::Sync => "sync",
                DurabilityArgument::Interval => "interval",
            }),
            file_system: process::file_system(directory),
            checkpoint_log_mib: arguments.checkpoint_log_mib.or(sustained.then_some(SUSTAINED_CHECKPOINT_LOG_MIB)),
            memtable_mib: arguments.memtable_mib,
        }
    }

    /// What a node's configuration has besides.
    fn to_toml(&self) -> String {
        let durability = self.durability.map(|durability| format!("durability = \"{durability}\""));
        let checkpoint_log_mib = self.checkpoint_log_mib.map(|mib| format!("checkpoint_log_mib = {mib}"));
        let memtable_mib = self.memtable_mib.map(|mib| format!("memtable_mib = {mib}"));
        let lines = [durability, checkpoint_log_mib, memtable_mib].into_iter().flatten();
        lines.fold("[storage]\n".to_owned(), |text, line| text + &line + "\n")
    }
}

impl Cluster {
    /// Starts three nodes on this machine with the program's own commands.
    pub(super) async fn start(arguments: &StartedCluster, sustained: bool) -> Result<Self, Failure> {
        let mut directory = tempfile::Builder::new();
        let directory = directory.prefix("polyarch-bench-");
        let directory = match &arguments.dir {
            Some(parent) => directory.tempdir_in(parent).map_err(|error| Failure::file(parent, &error))?,
            None => directory.tempdir().map_err(|error| Failure::system("make a temporary directory", &error))?,
        };
        let settings = Settings::of(arguments, sustained, directory.path());
        let cluster = LocalCluster::start(directory.path(), NODES, &settings.to_toml()).await?;
        let profile = Profile::load(cluster.profile_path())?;
        let nodes = cluster.nodes().iter().map(|node| {
            Ok(MeasuredNode {
                address: node.address.clone(),
                probe: connect(&profile, &node.address)?,
                pid: node.pid(),
                data_dir: Some(directory.path().join(format!("data/node-{}", node.server_id))),
            })
        });
        let nodes = nodes.collect::<Result<_, Failure>>()?;
        Ok(Self { nodes, profile, settings, started: Some(Started { cluster, directory }) })
    }

    /// Measures nodes that run already.
    pub(super) fn running(profile: Profile, nodes: &[NodeAddress], pids: &[u32]) -> Result<Self, Failure> {
        let addresses = if nodes.is_empty() { profile.nodes.clone() } else { nodes.to_vec() };
        if !pids.is_empty() && pids.len() != addresses.len() {
            return Err(Failure::usage(format_args!("--pids: {} for {} nodes", pids.len(), addresses.len())));
        }
        let nodes = addresses.iter().enumerate().map(|(index, address)| {
            let probe = connect(&profile, address)?;
            Ok(MeasuredNode { address: address.clone(), probe, pid: pids.get(index).copied(), data_dir: None })
        });
        let nodes: Vec<_> = nodes.collect::<Result<_, Failure>>()?;
        Ok(Self { nodes, profile, settings: Settings::default(), started: None })
    }

    pub(super) fn nodes(&self) -> &[MeasuredNode] {
        &self.nodes
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Whether nothing that is synced gets anywhere.
    pub(super) fn is_in_memory(&self) -> bool {
        matches!(self.settings.file_system.as_deref(), Some("tmpfs" | "ramfs"))
    }

    /// A client of one node, with a connection and a socket of its own.
    pub(super) fn connect(&self, address: &NodeAddress) -> Result<Client, Failure> {
        connect(&self.profile, address)
    }

    pub(super) async fn statuses(&self) -> Result<Vec<StatusView>, Failure> {
        let mut statuses = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            statuses.push(node.probe.status().await?);
        }
        Ok(statuses)
    }

    pub(super) async fn sample(&self) -> Result<Vec<Sample>, Failure> {
        let statuses = self.statuses().await?;
        let sample = |(node, status): (&MeasuredNode, StatusView)| Sample {
            status,
            cpu: node.pid.and_then(process::cpu),
            rss_bytes: node.pid.and_then(process::rss_bytes),
            disk_bytes: node.data_dir.as_deref().and_then(process::disk_bytes),
        };
        Ok(self.nodes.iter().zip(statuses).map(sample).collect())
    }

    /// Waits until all nodes have applied the same. Nobody may write meanwhile.
    pub(super) async fn wait_until_equal(&self, at_most: Duration) -> Result<(), Failure> {
        wait_until_equal(at_most, async || self.statuses().await).await.map(drop)
    }

    /// Ends what was started.
    pub(super) async fn stop(self) {
        for node in &self.nodes {
            node.probe.close().await;
        }
        if let Some(Started { cluster, directory }) = self.started {
            cluster.stop().await;
            drop(directory);
        }
    }

    /// Sees to it that every node can be written to and knows the keyspace.
    pub(super) async fn prepare(&self) -> Result<(), Failure> {
        self.create_keyspace().await?;
        self.wait_until_ready().await
    }

    /// One that is there is used as it is.
    async fn create_keyspace(&self) -> Result<(), Failure> {
        match self.nodes[0].probe.create_keyspace(KEYSPACE, KeyspaceKind::Lww).await {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.refusal(), Some(Refusal::KeyspaceExists(_))) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until every node takes writes, knows the keyspace, and is linked to all others.
    async fn wait_until_ready(&self) -> Result<(), Failure> {
        let are_ready = async || {
            for node in &self.nodes {
                let status = node.probe.status().await?;
                let is_linked =
                    status.peers.len() + 1 >= self.nodes.len() && status.peers.iter().all(|peer| peer.linked);
                let keyspaces = node.probe.keyspaces().await?;
                let knows_keyspace = keyspaces.iter().any(|keyspace| keyspace.name == KEYSPACE);
                if !(is_linked && knows_keyspace && status.writes_refused.is_none()) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        match wait_until(READY_MAX, are_ready).await? {
            true => Ok(()),
            false => {
                let seconds = READY_MAX.as_secs();
                Err(Failure::unreachable(format_args!("the nodes have not all found each other within {seconds} s")))
            }
        }
    }
}

/// The time between two readings of one clock.
pub(super) fn difference(before: Option<Duration>, after: Option<Duration>) -> Option<Duration> {
    after?.checked_sub(before?)
}

fn connect(profile: &Profile, address: &NodeAddress) -> Result<Client, Failure> {
    // One node, so that no other answers in its place.
    let profile = Profile { nodes: vec![address.clone()], ..profile.clone() };
    Ok(Client::connect(profile)?)
}
