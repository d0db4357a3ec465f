//! A running node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use polyarch_protocol::peer::ClusterId;
use polyarch_protocol::{Event, Now, Replica, ReplicaConfig, StorageError};
use polyarch_store::log::{LogConfig, LogError};
use polyarch_store::state::SledConfig;
use polyarch_store::{
    CheckpointConfig, DiskStore, LogFinding, OpenError, OpenReport, Salvage, StateReport, StoreConfig,
};
use polyarch_transport::{Alpn, BindError, CloseCode, CredentialsError, Endpoint, TransportConfig};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, info, warn};

use crate::config::NodeConfig;
use crate::driver::{Driver, DriverConfig, Snapshots, ToDriver, ToDriverSender};
use crate::events::EventLedger;
use crate::founding::{NodeIdentity, identified};
use crate::links::{DialConfig, Links, Targets};
use crate::salvage::Salvaging;
use crate::service::Service;
use crate::snapshots::{Donor, SnapshotProgress};
use crate::view::{Published, View};
use crate::{random_u64, random_u128};

/// How long a stop waits for the last answers to be delivered.
const STREAMS_END_MAX: Duration = Duration::from_secs(2);

/// Why a node does not start. Nothing was lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The certificate cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The certificate is a client's.
    #[error("{identity} is no node's certificate; make one with `polyarch certs node`")]
    NotANode {
        /// What the certificate states.
        identity: String,
    },
    /// The data directory was neither founded nor joined.
    #[error("{directory} belongs to no cluster yet; run `polyarch init` to found one or `polyarch join` to join one")]
    NotFounded {
        /// The directory.
        directory: PathBuf,
    },
    /// A restore into the data directory did not end.
    #[error(
        "{directory} holds a restore that did not end; run `polyarch restore` again, which does it anew, or remove the directory"
    )]
    RestoreUnfinished {
        /// The directory.
        directory: PathBuf,
    },
    /// The data directory has data and does not say whose.
    #[error(
        "{directory} holds a log, but identity.toml is missing beside it; put that file back from a copy, found and join write it once"
    )]
    IdentityMissing {
        /// The directory.
        directory: PathBuf,
    },
    /// The data directory is somebody else's.
    #[error("{directory} holds the data of {found}, but the certificate is of {wanted}")]
    WrongIdentity {
        /// The directory.
        directory: PathBuf,
        /// Whose data it holds.
        found: String,
        /// Whose certificate it is.
        wanted: String,
    },
    /// `init` and `join` want an empty directory.
    #[error("{directory} already holds {holds}; use an empty directory")]
    NotVacant {
        /// The directory.
        directory: PathBuf,
        /// What is in it.
        holds: String,
    },
    /// `identity.toml` cannot be read or written.
    #[error("{path}: {problem}")]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// `init`, though a peer belongs to a cluster.
    #[error("the member at {address} belongs to cluster {cluster_id} already; run `polyarch join` instead")]
    AlreadyFounded {
        /// The peer.
        address: String,
        /// Its cluster.
        cluster_id: String,
    },
    /// `join` without addresses.
    #[error("`peers` is empty in the configuration: name at least one member's address to join by")]
    NoPeers,
    /// `join`, and nobody there.
    #[error("no member answers ({tried})")]
    NoMemberAnswers {
        /// Each address with what went wrong.
        tried: String,
    },
    /// `join`, and all members that answer have certificates that are not accepted here, or do not accept this node's.
    #[error("no member can be joined: this node and they do not accept each other's certificates ({tried})")]
    NoMemberTrusted {
        /// Each address with what went wrong.
        tried: String,
    },
    /// The data cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The log cannot be written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A record cannot be read.
    #[error(transparent)]
    Storage(StorageError),
    /// The address cannot be listened on.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The socket does not say where it listens.
    #[error("cannot tell the address that is listened on: {0}")]
    Address(std::io::Error),
    /// The system gives no more threads.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// A node that runs until it is stopped. Dropped without [`Node::stop`], it stops without waiting.
pub struct Node {
    endpoint: Endpoint,
    address: SocketAddr,
    server_id: u32,
    driver: ToDriverSender,
    driver_thread: Option<std::thread::JoinHandle<()>>,
    /// Closed once the driver has ended.
    running: watch::Receiver<()>,
    tasks: Vec<JoinHandle<()>>,
    /// How many client streams are open.
    streams: watch::Receiver<usize>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
        // After `stop` nobody listens any more.
        let _ = self.driver.send(ToDriver::Stop);
    }
}

impl Node {
    /// Opens the data, listens, and dials the other members. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// When the configuration, the certificate and the data do not fit together, or a part of the
    /// machine does not answer.
    pub fn start(config: &NodeConfig) -> Result<Self, StartError> {
        let (credentials, identity) = identified(config)?;
        let NodeIdentity { cluster, server_id, .. } = identity.clone();
        let (mut store, frontier, report) = DiskStore::open_directory(&config.data_dir, &store_config(config))?;
        log_report(&report);
        store.begin_log_check(log_finding).map_err(StartError::Thread)?;
        let (log, records) = (store.log_reader(), store.reader());
        let cluster_id = identity.parsed_cluster_id().expect("NodeIdentity::read checks it");
        let replica_config = replica_config(config, server_id, cluster_id);
        let replica = Replica::open(replica_config, store, frontier, now()).map_err(StartError::Storage)?;
        let published = Published::new(
            replica.durable_applied().clone(),
            replica.catalog().clone(),
            replica.storage().durable_end(),
        );
        let endpoint = Endpoint::bind(credentials, config.listen, transport_config(config))?;
        let address = endpoint.local_address().map_err(StartError::Address)?;

        let view = Arc::new(View::new(records, published));
        let (driver, inbox) = mpsc::channel();
        let (targets_sender, targets) = watch::channel(Targets::default());
        let driver_config = DriverConfig {
            durability: config.durability(),
            sync_interval: Duration::from_millis(config.storage.sync_interval_ms),
            retention: config.retention(),
        };
        let mut events = EventLedger::open(&config.data_dir);
        let salvage = Salvage::open(&config.data_dir).unwrap_or_else(|error| {
            events.tell(&Event::SalvageUnreadable { reason: error.to_string() });
            None
        });
        let snapshots = Snapshots {
            runtime: tokio::runtime::Handle::current(),
            cluster_id,
            // The log stops at the reserve, and is to find room after a snapshot has stopped.
            floor_bytes: config.storage.disk_reserve_mib << 21,
            progress: Arc::new(SnapshotProgress::default()),
        };
        let runs = Driver::new(
            replica,
            (driver.clone(), inbox),
            view.clone(),
            events,
            targets_sender,
            snapshots,
            driver_config,
        )
        .with_salvage(salvage.map(Salvaging::new));
        let (running_sender, running) = watch::channel(());
        let driver_thread = std::thread::Builder::new()
            .name("driver".to_owned())
            .spawn(move || {
                // Dropped at the end, by a panic too.
                let _running = running_sender;
                runs.run();
            })
            .map_err(StartError::Thread)?;

        let dial = DialConfig {
            seeds: config.peers.clone(),
            backoff_min: Duration::from_millis(config.gossip.dial_backoff_ms_min),
            backoff_max: Duration::from_millis(config.gossip.dial_backoff_ms_max),
            feed_group_bytes: config.replica_limits().feed_group_bytes,
        };
        let donor = Arc::new(Donor::new(view.clone(), log.clone(), driver.clone(), cluster_id, server_id));
        let links =
            Arc::new(Links::new(endpoint.clone(), server_id, driver.clone(), log, targets, dial, donor.clone()));
        let service = Arc::new(Service {
            view,
            driver: driver.clone(),
            roles: config.roles.clone(),
            cluster_id,
            requests_max: config.limits.requests_max,
            next_stream: AtomicU64::new(1),
            open_streams: watch::Sender::new(0),
            donor,
        });
        let streams = service.open_streams.subscribe();
        let tasks = vec![tokio::spawn(links.clone().dial()), tokio::spawn(accept(endpoint.clone(), links, service))];
        info!(%address, server_id, %cluster, "serving");
        Ok(Self { endpoint, address, server_id, driver, driver_thread: Some(driver_thread), running, tasks, streams })
    }

    /// Where the node listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The node's server id.
    pub fn server_id(&self) -> u32 {
        self.server_id
    }

    /// Waits until the driver has ended by itself, which only a bug makes it do.
    pub async fn ended(&self) {
        let mut running = self.running.clone();
        while running.changed().await.is_ok() {}
    }

    /// Stops in order: no new connections, what was taken is made durable, links and clients are told.
    pub async fn stop(mut self) {
        self.tasks.drain(..).for_each(|task| task.abort());
        // The driver may have ended already.
        let _ = self.driver.send(ToDriver::Stop);
        if let Some(thread) = self.driver_thread.take() {
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                warn!("the driver's thread panicked");
            }
        }
        // What the driver answered last is still on its way out.
        let mut streams = self.streams.clone();
        let _ = tokio::time::timeout(STREAMS_END_MAX, streams.wait_for(|open| *open == 0)).await;
        self.endpoint.close(CloseCode::NONE, "the node is stopping").await;
        info!("stopped");
    }
}

/// Hands each connection to those who speak its protocol.
async fn accept(endpoint: Endpoint, links: Arc<Links>, service: Arc<Service>) {
    while let Some(connection) = endpoint.accept().await {
        match (connection.alpn(), connection.identity().server_id()) {
            (Alpn::Peer, Some(server_id)) => {
                let links = links.clone();
                tokio::spawn(async move { links.run(connection, server_id, false).await });
            }
            (Alpn::Client, _) => {
                tokio::spawn(service.clone().serve(connection));
            }
            (Alpn::Peer, None) => connection.close(CloseCode::NONE, "not a node's certificate"),
        }
    }
}

/// The time, for what happens before the driver runs.
pub(crate) fn now() -> Now {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { wall_ms: wall.as_millis() as u64, mono_ms: 0 }
}

/// What the replica of this process is told; its boot id is drawn here.
pub(crate) fn replica_config(config: &NodeConfig, server_id: u32, cluster_id: ClusterId) -> ReplicaConfig {
    ReplicaConfig {
        server_id,
        boot_id: random_u128(),
        cluster_id,
        name: config.name.clone().unwrap_or_else(|| format!("node-{server_id}")),
        addresses: config.advertised(),
        durability: config.durability(),
        limits: config.replica_limits(),
        timings: config.timings(),
    }
}

pub(crate) fn store_config(config: &NodeConfig) -> StoreConfig {
    let storage = &config.storage;
    StoreConfig {
        // The salt counts where a log begins; one that exists keeps its own.
        log: LogConfig {
            segment_bytes: storage.segment_mib << 20,
            reserve_bytes: storage.disk_reserve_mib << 20,
            salt: random_u64() as u32,
            #[cfg(feature = "seeded-bugs")]
            bugs: seeded_log_bugs(),
            ..LogConfig::default()
        },
        checkpoint: CheckpointConfig {
            memtable_bytes_max: (storage.memtable_mib as usize) << 20,
            log_bytes_max: storage.checkpoint_log_mib << 20,
            ..CheckpointConfig::default()
        },
        sled: SledConfig { open_timeout: Duration::from_millis(storage.open_timeout_ms), ..SledConfig::default() },
        ..StoreConfig::default()
    }
}

/// The bug that a test asks for, to prove that it would see it. Not in any shipped binary.
#[cfg(feature = "seeded-bugs")]
fn seeded_log_bugs() -> polyarch_store::log::LogBugs {
    let no_sync = std::env::var("POLYARCH_SEEDED_BUG").is_ok_and(|bug| bug == "no-sync");
    polyarch_store::log::LogBugs { no_sync, ..Default::default() }
}

fn transport_config(config: &NodeConfig) -> TransportConfig {
    TransportConfig {
        peer_idle_timeout_ms: config.gossip.idle_timeout_ms,
        // Only for peers to hear it: the data is closed before. Dials of members that are gone would take all of it.
        close_timeout_ms: 500,
        ..TransportConfig::default()
    }
}

fn log_report(report: &OpenReport) {
    info!(replayed = report.replayed, from = %report.replayed_from, "opened the data");
    match &report.state {
        StateReport::New | StateReport::Intact => {}
        StateReport::Behind { held, mark } => {
            warn!(%held, %mark, "the state had gone back behind its checkpoint; the log brought it up again");
        }
        StateReport::Rebuilt { why, set_aside } => {
            warn!(%why, %set_aside, "the state was of no use and was rebuilt from the log; keep the old one until this node is known to be whole");
        }
        other => warn!(?other, "the state needed care"),
    }
}

/// What the check of the log's older segments says: such damage stops nothing by itself.
fn log_finding(finding: LogFinding) {
    match finding {
        LogFinding::Problem(problem) => {
            error!(%problem, "an older segment of the log is damaged or cannot be read; peers cannot be fed from it");
        }
        LogFinding::Done(checked) => {
            info!(
                segments = checked.segments,
                bytes = checked.bytes,
                problems = checked.problems,
                "checked the older log"
            );
        }
        other => warn!(?other, "the log's check says something else"),
    }
}
