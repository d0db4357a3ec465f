//! How a data directory comes to belong to a cluster: founding one, or joining one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use polyarch_crdt::ClusterKey;
use polyarch_protocol::limits::wire;
use polyarch_protocol::peer::{ClusterId, Hello, PeerMessage};
use polyarch_protocol::{Input, Output, Replica, StorageError};
use polyarch_store::DiskStore;
use polyarch_store::files::{Directory, Files};
use polyarch_transport::{Alpn, CloseCode, Credentials, Endpoint, Expect, Obstacle, TransportConfig, nobody_listens};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::config::NodeConfig;
use crate::node::{StartError, now, replica_config, store_config};
use crate::{random_u64, random_u128};

pub(crate) const IDENTITY_FILE: &str = "identity.toml";
const IDENTITY_FORMAT: u32 = 1;
/// How long one address may take to answer who it is.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// `identity.toml`: whose data a directory holds. Written once, by `init`, `join` or `restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeIdentity {
    /// Version of the directory's layout.
    pub format: u32,
    /// The cluster's name, as in its certificates.
    pub cluster: String,
    /// The cluster's id, 32 hex digits, drawn at its founding.
    pub cluster_id: String,
    /// This node's server id, as in its certificate.
    pub server_id: u32,
}

impl NodeIdentity {
    /// Reads the identity of a data directory; `None` when it has none yet.
    ///
    /// # Errors
    /// When the file is there and cannot be understood.
    pub fn read(directory: &Path) -> Result<Option<Self>, StartError> {
        let path = directory.join(IDENTITY_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StartError::Identity { path, problem: error.to_string() }),
        };
        Self::parse(&text).map(Some).map_err(|problem| StartError::Identity { path, problem })
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// Says what is wrong when it cannot be understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        match toml::from_str::<Self>(text) {
            Ok(identity) if identity.format == IDENTITY_FORMAT && identity.parsed_cluster_id().is_some() => {
                Ok(identity)
            }
            Ok(identity) if identity.format > IDENTITY_FORMAT => {
                Err(format!("its format is {}, this version knows {IDENTITY_FORMAT}", identity.format))
            }
            Ok(_) => Err("its values make no sense".to_owned()),
            Err(error) => Err(error.message().to_owned()),
        }
    }

    /// The cluster's id.
    pub fn parsed_cluster_id(&self) -> Option<ClusterId> {
        u128::from_str_radix(&self.cluster_id, 16).ok().map(ClusterId)
    }

    fn write(&self, directory: &Path) -> Result<(), StartError> {
        self.write_as(IDENTITY_FILE, directory)
    }

    pub(crate) fn write_as(&self, file: &str, directory: &Path) -> Result<(), StartError> {
        let problem = |problem: String| StartError::Identity { path: directory.join(file), problem };
        let text = toml::to_string(self).map_err(|error| problem(error.to_string()))?;
        let text = format!("# Whose data this directory holds. Do not change or copy it.\n{text}");
        let files = Directory::open(directory).map_err(|error| problem(error.to_string()))?;
        files.write_atomically(file, text.as_bytes()).map_err(|error| problem(error.to_string()))
    }
}

/// What [`init`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Founded {
    /// Whose the directory is now.
    pub identity: NodeIdentity,
    /// The configured peers, none of which said that it belongs to a cluster, each with the reason. If one of them does
    /// and was only out of reach, there are two clusters now.
    pub unanswered: Vec<String>,
}

/// Founds a cluster in an empty data directory. The founder takes writes at once.
///
/// The configured peers are asked first: whoever lost the data of a member must join, and not found a second cluster.
///
/// # Errors
/// When the directory is not empty, or one of the configured peers is founded already.
pub async fn init(config: &NodeConfig) -> Result<Founded, StartError> {
    let (credentials, cluster, server_id) = credentials(config)?;
    check_vacant(&config.data_dir)?;
    let unanswered = match ask_any(&credentials, &config.other_peers(), Patience::WhileSomebodyMayListen).await {
        Ok((address, cluster_id)) => {
            return Err(StartError::AlreadyFounded { address, cluster_id: cluster_id.to_string() });
        }
        Err(problems) => problems.into_iter().map(|problem| problem.text).collect(),
    };
    let cluster_id = ClusterId(random_u128());
    create_directory(&config.data_dir)?;
    let (store, frontier, _) = DiskStore::open_directory(&config.data_dir, &store_config(config))?;
    let replica_config = replica_config(config, server_id, cluster_id);
    let mut replica = Replica::open(replica_config, store, frontier, now()).map_err(StartError::Storage)?;
    replica.handle(Input::Found(ClusterKey { id: 1, secret: random_secret() }), now());
    let end = replica.storage_mut().sync()?;
    replica.handle(Input::Durable(end), now());
    while let Some(output) = replica.poll_output(end) {
        if let Output::Event(event) = output {
            tracing::info!("{event}");
        }
    }
    if let Some(refusal) = replica.writes_refused() {
        return Err(StartError::Storage(StorageError::Failed(refusal.to_string())));
    }
    // Last, so that a directory with an identity is a founded one.
    let identity = identity(cluster, cluster_id, server_id);
    identity.write(&config.data_dir)?;
    Ok(Founded { identity, unanswered })
}

/// Makes an empty data directory a member's: asks one of the configured peers which cluster it is.
/// The node takes writes once it has been fed.
///
/// # Errors
/// When the directory is not empty or no peer answers.
pub async fn join(config: &NodeConfig) -> Result<NodeIdentity, StartError> {
    let (credentials, cluster, server_id) = credentials(config)?;
    check_vacant(&config.data_dir)?;
    let peers = config.other_peers();
    if peers.is_empty() {
        return Err(StartError::NoPeers);
    }
    // A member that is only about to start is waited for.
    let asked = ask_any(&credentials, &peers, Patience::Full).await;
    let (_, cluster_id) = asked.map_err(|problems| no_answer(&problems))?;
    create_directory(&config.data_dir)?;
    let identity = identity(cluster, cluster_id, server_id);
    identity.write(&config.data_dir)?;
    Ok(identity)
}

/// The credentials of a node, with the cluster's name and the server id they state.
///
/// # Errors
/// When they cannot be loaded or are a client's.
pub(crate) fn credentials(config: &NodeConfig) -> Result<(Credentials, String, u32), StartError> {
    let credentials = Credentials::load(&config.ca, &config.cert, &config.key)?;
    let identity = credentials.identity();
    let cluster = identity.cluster().as_str().to_owned();
    let server_id = identity.server_id().ok_or_else(|| StartError::NotANode { identity: identity.to_string() })?;
    Ok((credentials, cluster, server_id))
}

/// The credentials of a node, and whose its data directory is: its own.
///
/// # Errors
/// When either cannot be read, or they do not fit together.
pub(crate) fn identified(config: &NodeConfig) -> Result<(Credentials, NodeIdentity), StartError> {
    let (credentials, cluster, server_id) = credentials(config)?;
    let directory = config.data_dir.clone();
    let Some(identity) = NodeIdentity::read(&directory)? else {
        return Err(match directory.join("log").exists() {
            _ if crate::restoring::restore_is_unfinished(&directory)? => StartError::RestoreUnfinished { directory },
            true => StartError::IdentityMissing { directory },
            false => StartError::NotFounded { directory },
        });
    };
    match (&identity.cluster, identity.server_id) == (&cluster, server_id) {
        true => Ok((credentials, identity)),
        false => Err(StartError::WrongIdentity {
            directory,
            found: format!("server {} of cluster {}", identity.server_id, identity.cluster),
            wanted: format!("server {server_id} of cluster {cluster}"),
        }),
    }
}

pub(crate) fn identity(cluster: String, cluster_id: ClusterId, server_id: u32) -> NodeIdentity {
    NodeIdentity { format: IDENTITY_FORMAT, cluster, cluster_id: cluster_id.to_string(), server_id }
}

pub(crate) fn check_vacant(directory: &Path) -> Result<(), StartError> {
    if let Some(identity) = NodeIdentity::read(directory)? {
        let owner = format!("server {} of cluster {}", identity.server_id, identity.cluster);
        return Err(StartError::NotVacant { directory: directory.to_owned(), holds: owner });
    }
    if crate::restoring::restore_is_unfinished(directory)? {
        return Err(StartError::RestoreUnfinished { directory: directory.to_owned() });
    }
    let is_empty = std::fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none());
    match is_empty {
        true => Ok(()),
        false => Err(StartError::NotVacant { directory: directory.to_owned(), holds: "other files".to_owned() }),
    }
}

pub(crate) fn create_directory(directory: &Path) -> Result<(), StartError> {
    let failed = |path: PathBuf| move |error: std::io::Error| StartError::Identity { path, problem: error.to_string() };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory).map_err(failed(directory.to_owned()))
}

/// Why a peer did not say which cluster it belongs to.
#[derive(Debug)]
struct Problem {
    /// Begins with its address.
    text: String,
    obstacle: Obstacle,
}

/// How long a peer is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// [`ANSWER_MAX`].
    Full,
    /// The same, but no longer than until its machine says that nobody listens there.
    WhileSomebodyMayListen,
}

fn no_answer(problems: &[Problem]) -> StartError {
    let tried = problems.iter().map(|problem| problem.text.as_str()).collect::<Vec<_>>().join("; ");
    match problems.iter().all(|problem| problem.obstacle != Obstacle::NoAnswer) {
        true => StartError::NoMemberTrusted { tried },
        false => StartError::NoMemberAnswers { tried },
    }
}

/// The first of the peers to say which cluster it belongs to; or what was wrong with each. All are asked at once: one
/// that is not there takes all of its time.
async fn ask_any(
    credentials: &Credentials,
    peers: &[String],
    patience: Patience,
) -> Result<(String, ClusterId), Vec<Problem>> {
    let mut asking = JoinSet::new();
    for address in peers {
        let (credentials, address) = (credentials.clone(), address.clone());
        asking.spawn(async move {
            match ask_cluster_id(credentials, &address, patience).await {
                Ok(cluster_id) => Ok((address, cluster_id)),
                Err((text, obstacle)) if text.contains(&address) => Err(Problem { text, obstacle }),
                Err((text, obstacle)) => Err(Problem { text: format!("{address}: {text}"), obstacle }),
            }
        });
    }
    let mut problems = Vec::new();
    while let Some(answer) = asking.join_next().await {
        match answer.expect("asking neither panics nor is aborted") {
            Ok(founded) => return Ok(founded),
            Err(problem) => problems.push(problem),
        }
    }
    problems.sort_unstable_by(|a, b| a.text.cmp(&b.text));
    Err(problems)
}

/// Asks a member which cluster it belongs to: a hello without a cluster is answered with one.
async fn ask_cluster_id(
    credentials: Credentials,
    address: &str,
    patience: Patience,
) -> Result<ClusterId, (String, Obstacle)> {
    let endpoint = Endpoint::client(credentials, TransportConfig::default()).map_err(unanswered)?;
    let answer = tokio::select! {
        answer = timeout(ANSWER_MAX, ask(&endpoint, address)) => answer.unwrap_or_else(|_| Err(unanswered("no answer"))),
        () = nobody_listens(address), if patience == Patience::WhileSomebodyMayListen => {
            Err(unanswered("nobody listens there"))
        }
    };
    endpoint.close(CloseCode::NONE, "asked").await;
    answer
}

async fn ask(endpoint: &Endpoint, address: &str) -> Result<ClusterId, (String, Obstacle)> {
    let connected = endpoint.connect_host(address, Expect::AnyNode, Alpn::Peer).await;
    let connection = connected.map_err(|error| (error.to_string(), error.obstacle()))?;
    let own_id = endpoint.identity().server_id().unwrap_or_default();
    if connection.identity().server_id() == Some(own_id) {
        return Err(unanswered(format_args!("it has this node's own server id, {own_id}; each needs its own")));
    }
    let (mut writer, mut reader) = connection.open_bi().await.map_err(unanswered)?;
    let hello = Hello { cluster_id: None, server_id: own_id, boot_id: random_u128() };
    writer.queue(&PeerMessage::Hello(hello).encode());
    writer.flush().await.map_err(unanswered)?;
    let mut answer = reader.next(wire::FRAME_BYTES_MAX).await.map_err(unanswered)?;
    if answer.as_ref().is_some_and(|frame| matches!(PeerMessage::decode(frame), Ok(PeerMessage::Base(_)))) {
        answer = reader.next(wire::FRAME_BYTES_MAX).await.map_err(unanswered)?;
    }
    match answer.map(|frame| PeerMessage::decode(&frame)) {
        Some(Ok(PeerMessage::Hello(Hello { cluster_id: Some(cluster_id), .. }))) => Ok(cluster_id),
        _ => Err(unanswered("it did not say which cluster it belongs to")),
    }
}

fn unanswered(problem: impl std::fmt::Display) -> (String, Obstacle) {
    (problem.to_string(), Obstacle::NoAnswer)
}

fn random_secret() -> [u8; 32] {
    let mut secret = [0; 32];
    secret.chunks_exact_mut(8).for_each(|chunk| chunk.copy_from_slice(&random_u64().to_le_bytes()));
    secret
}
