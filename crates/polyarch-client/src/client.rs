use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use polyarch_crdt::{Dot, Origin, TokenError};
use polyarch_protocol::catalog::{KeyspaceKind, MemberChange};
use polyarch_protocol::client::{
    BucketPage, BucketScan, EventView, KeyspaceView, Refusal, Request, Response, StatusView, Supersede, WriteRequest,
    Written,
};
use polyarch_protocol::condition::ConditionView;
use polyarch_protocol::{ChainHash, PeerDigest, Resume, Topology};
use polyarch_transport::{CloseCode, Endpoint, TransportConfig};

use crate::address::NodeAddress;
use crate::batch::{Batch, change, written};
use crate::error::Error;
use crate::nodes::{Dialler, Nodes};
use crate::profile::Profile;
use crate::record::Record;
use crate::scan::Scan;
use crate::session::{Seen, Session};
use crate::snapshot::SnapshotStream;

/// Longest time a call may take; a greater timeout is taken as this.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// A door to a cluster. Cheap to clone; all clones share one connection, and any number of tasks may use it at once.
///
/// A client belongs to the tokio runtime that it was made in.
#[derive(Clone)]
pub struct Client {
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) timeout: Duration,
    pub(crate) seen: Option<Arc<Seen>>,
}

impl Client {
    /// A client with the default settings. It connects at the first call, to any of the profile's nodes.
    ///
    /// # Errors
    /// [`Error::Profile`], [`Error::Credentials`], [`Error::Socket`]; the last also outside of a tokio runtime.
    pub fn connect(profile: Profile) -> Result<Self, Error> {
        Self::builder(profile).connect()
    }

    /// A client with other settings than the default.
    pub fn builder(profile: Profile) -> Builder {
        Builder::new(profile)
    }

    /// This client with another time for each call, retries included; at most a day.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout: timeout.min(TIMEOUT_MAX), ..self.clone() }
    }

    /// A client of one node only, with a connection of its own: for what must be asked of that node and no other.
    ///
    /// The address need not be one of the profile. A session goes on in it.
    #[must_use]
    pub fn only(&self, node: &NodeAddress) -> Self {
        Self { nodes: Arc::new(Nodes::new(self.nodes.dialler().clone(), [node.clone()], 0)), ..self.clone() }
    }

    /// A new session: it sees what it wrote and what it was shown, whichever node answers.
    pub fn session(&self) -> Session {
        Session::new(self, Arc::default())
    }

    /// Goes on with the session that [`Session::token`] was taken of.
    ///
    /// # Errors
    /// When the bytes are no session's token.
    pub fn resume(&self, token: &[u8]) -> Result<Session, TokenError> {
        Ok(Session::new(self, Arc::new(Seen::resumed(token)?)))
    }

    /// The record of a key; `None` when it has no live value.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`], [`Error::TimedOut`], [`Error::Protocol`].
    pub async fn get(&self, keyspace: &str, key: impl AsRef<[u8]>) -> Result<Option<Record>, Error> {
        let request = Request::Get { keyspace: keyspace.to_owned(), key: Bytes::copy_from_slice(key.as_ref()) };
        let view = self.call(request, |response| match response {
            Response::Record { record, .. } => Some(record),
            _ => None,
        });
        view.await.map(Record::of)
    }

    /// Puts a value in place of all siblings that the node holds.
    ///
    /// # Errors
    /// [`Error::Refused`], [`Error::Unreachable`] and [`Error::TimedOut`], after which nothing was written, and
    /// [`Error::OutcomeUnknown`].
    pub async fn put(&self, keyspace: &str, key: impl AsRef<[u8]>, value: impl Into<Bytes>) -> Result<Written, Error> {
        self.put_with(keyspace, key, value, Supersede::Held).await
    }

    /// Puts a value in place of what is named: what a read showed ([`Record::shown`]), nothing, or all.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn put_with(
        &self,
        keyspace: &str,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        supersede: Supersede,
    ) -> Result<Written, Error> {
        let change = change(keyspace, key.as_ref(), Some(value.into()), supersede);
        self.write(WriteRequest { changes: vec![change] }).await
    }

    /// Deletes all siblings that the node holds. Of a key that is not there it writes nothing.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete(&self, keyspace: &str, key: impl AsRef<[u8]>) -> Result<Written, Error> {
        self.delete_with(keyspace, key, Supersede::Held).await
    }

    /// Deletes what is named; concurrent writes stay.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn delete_with(
        &self,
        keyspace: &str,
        key: impl AsRef<[u8]>,
        supersede: Supersede,
    ) -> Result<Written, Error> {
        let change = change(keyspace, key.as_ref(), None, supersede);
        self.write(WriteRequest { changes: vec![change] }).await
    }

    /// Begins a batch: changes of several keys that become visible together.
    pub fn batch(&self) -> Batch {
        Batch::new(self.clone())
    }

    /// The keys that begin with `prefix`, in order; an empty prefix means all.
    pub fn scan(&self, keyspace: &str, prefix: impl AsRef<[u8]>) -> Scan {
        Scan::new(self.clone(), keyspace, prefix.as_ref())
    }

    /// Defines a keyspace. The other nodes hear of it as of any write.
    ///
    /// # Errors
    /// As [`Client::put`].
    pub async fn create_keyspace(&self, name: &str, kind: KeyspaceKind) -> Result<Written, Error> {
        let name = name.to_owned();
        self.call(Request::CreateKeyspace { name, kind }, written).await
    }

    /// The keyspaces that the node knows.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn keyspaces(&self) -> Result<Vec<KeyspaceView>, Error> {
        let keyspaces = self.call(Request::ListKeyspaces, |response| match response {
            Response::Keyspaces(keyspaces) => Some(keyspaces),
            _ => None,
        });
        keyspaces.await
    }

    /// How the node is that this client talks to.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn status(&self) -> Result<StatusView, Error> {
        self.status_with_node().await.map(|(_, status)| status)
    }

    /// The same, with the address of that node as the client knows it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn status_with_node(&self) -> Result<(NodeAddress, StatusView), Error> {
        let status = self.call_any(Request::Status, |response| match response {
            Response::Status(status) => Some(*status),
            _ => None,
        });
        let (node, status) = status.await?;
        Ok((self.nodes.address(node).clone(), status))
    }

    /// How one node is. Opens a connection for it; to ask often, keep an [`only`](Client::only) client.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn status_of(&self, node: &NodeAddress) -> Result<StatusView, Error> {
        self.only(node).status().await
    }

    /// What is out of the ordinary on the node that this client talks to; `None` of a node older than the question.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn condition(&self) -> Result<Option<ConditionView>, Error> {
        let condition = self.call(Request::Condition, |response| match response {
            Response::Condition(condition) => Some(*condition),
            _ => None,
        });
        match condition.await {
            Ok(condition) => Ok(Some(condition)),
            Err(Error::Refused(Refusal::Malformed(_))) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the stopped feed of an origin at `node` go on from where it stood, with `None` all of them; what waited for
    /// it goes on with it. Says which do. A feed whose cause is still there stops again.
    ///
    /// # Errors
    /// As [`Client::get`], and when the feed is not stopped. To ask again does no harm.
    pub async fn retry_origin(&self, node: &NodeAddress, origin: Option<Origin>) -> Result<Vec<Origin>, Error> {
        let retried = |response| match response {
            Response::Retried(origins) => Some(origins),
            _ => None,
        };
        self.only(node).call(Request::RetryOrigin { origin }, retried).await
    }

    /// Takes the link of `node` to the member `server_id` down, until it is healed or the node restarts. The other side
    /// may still dial; cut both for a full cut.
    ///
    /// # Errors
    /// As [`Client::get`]: to ask again does no harm.
    pub async fn cut_link(&self, node: &NodeAddress, server_id: u32) -> Result<(), Error> {
        self.only(node).call(Request::CutLink { server_id }, done).await
    }

    /// Lets the link of `node` to the member `server_id` come up again.
    ///
    /// # Errors
    /// As [`Client::cut_link`].
    pub async fn heal_link(&self, node: &NodeAddress, server_id: u32) -> Result<(), Error> {
        self.only(node).call(Request::HealLink { server_id }, done).await
    }

    /// Says who should have links to whom, for the whole cluster; every member follows once it has heard of it.
    ///
    /// # Errors
    /// As [`Client::put`], and when the members cannot be linked so.
    pub async fn set_topology(&self, topology: &Topology) -> Result<Written, Error> {
        self.call(Request::SetTopology(topology.clone()), written).await
    }

    /// Drains, removes or takes back a member. This says no more than that the cluster was told; [`Client::status`]
    /// shows where the member stands.
    ///
    /// # Errors
    /// As [`Client::put`], and when the member's status does not allow it.
    pub async fn change_member(&self, server_id: u32, change: MemberChange) -> Result<Written, Error> {
        self.call(Request::ChangeMember { server_id, change }, written).await
    }

    /// The last events that a node told its operator, newest last.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn events(&self, limit: u32) -> Result<Vec<EventView>, Error> {
        let events = |response| match response {
            Response::Events(events) => Some(events),
            _ => None,
        };
        self.call(Request::Events { limit }, events).await
    }

    /// The node's digest, bucket by bucket, and of what it is. Nodes that have applied the same have the same.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn digest(&self) -> Result<PeerDigest, Error> {
        let digest = |response| match response {
            Response::Digest(digest) => Some(*digest),
            _ => None,
        };
        self.call(Request::Digest, digest).await
    }

    /// A page of what the node holds in some buckets of the digest, of all keyspaces, without the values. The node reads
    /// all records for that, and looks at [`BucketScan::limit`] of them for each page. In a session no page is older
    /// than what the session has seen.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn scan_buckets(&self, scan: BucketScan) -> Result<BucketPage, Error> {
        let page = |response| match response {
            Response::Buckets(page) => Some(page),
            _ => None,
        };
        self.call(Request::ScanBuckets(scan), page).await
    }

    /// The hash of an origin's chain up to one of its write sets, as the node's log has it; `None` when the node has not
    /// applied that write set, or its log no longer has it. Two nodes that answer alike hold the same history up to
    /// there. The node may read a segment of its log for it. Needs the role `admin`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn chain_hash(&self, dot: Dot) -> Result<Option<ChainHash>, Error> {
        let hash = |response| match response {
            Response::ChainHash(hash) => Some(hash),
            _ => None,
        };
        self.call(Request::ChainHash { dot }, hash).await
    }

    /// All that a node has, while it goes on serving: its records, and the write sets that come meanwhile. For a backup;
    /// with `resume` it goes on with an earlier one, if the node still holds what that needs, and else begins anew. Needs
    /// the role `admin`.
    ///
    /// The frames are of the format that nodes send each other (`SnapshotPart` of polyarch-protocol); the first says
    /// whether it goes on.
    ///
    /// # Errors
    /// [`Error::Unreachable`], [`Error::TimedOut`]; [`Error::SnapshotGivenUp`] when the node refuses, and
    /// [`Error::Protocol`] when it is older than snapshots.
    pub async fn snapshot_of(&self, node: &NodeAddress, resume: Option<Resume>) -> Result<SnapshotStream, Error> {
        SnapshotStream::open(&self.only(node), resume).await
    }

    /// The name of the cluster that this client's certificate is for.
    pub fn cluster(&self) -> &str {
        self.nodes.dialler().endpoint().identity().cluster().as_str()
    }

    /// SHA-256 fingerprint of the certificate of the authority that this client and its nodes trust, 64 hex digits.
    pub fn authority_sha256(&self) -> &str {
        self.nodes.dialler().endpoint().authority_sha256()
    }

    /// Ends all connections, of clones and sessions too, and lets the nodes know. Without it they find out when the last
    /// clone is dropped, or, if the process ends at once, by their idle time-out. What was sent and is unanswered is lost.
    pub async fn close(&self) {
        self.nodes.dialler().endpoint().close(CloseCode::NONE, "the client is done").await;
    }

    pub(crate) fn within(self, seen: Arc<Seen>) -> Self {
        Self { seen: Some(seen), ..self }
    }

    async fn write(&self, write: WriteRequest) -> Result<Written, Error> {
        self.call(Request::Write(write), written).await
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("nodes", &self.nodes).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// Settings of a [`Client`] beyond its profile. From [`Client::builder`].
#[derive(Debug, Clone)]
#[must_use = "nothing is opened before `connect`"]
pub struct Builder {
    profile: Profile,
    preferred: Option<usize>,
    in_flight_max: u32,
    transport: TransportConfig,
}

impl Builder {
    fn new(profile: Profile) -> Self {
        Self {
            profile,
            preferred: None,
            in_flight_max: 1_024,
            transport: TransportConfig {
                // A call's usual deadline is 5 s. Within it, a node that died in silence must be given up and another
                // one found.
                idle_timeout_ms: 3_000,
                keep_alive_interval_ms: 750,
                handshake_timeout_ms: 3_000,
                bi_streams_max: 0,
                uni_streams_max: 0,
                // A client on a machine of its own does not deserve half a second at its end.
                close_timeout_ms: 500,
                ..TransportConfig::default()
            },
        }
    }

    /// Which of the profile's nodes is tried first, counted from 0 and beyond the last from 0 again; the others follow in
    /// the profile's order. Default: a random one, so that clients spread over the nodes.
    pub fn prefer(mut self, index: usize) -> Self {
        self.preferred = Some(index);
        self
    }

    /// How many requests may be unanswered at once on a connection, at least 1; further calls wait. Default 1,024. A
    /// request of more than 64 KiB counts as one for each 64 KiB, so this also bounds memory: 64 MiB with the default.
    pub fn in_flight_max(mut self, requests: u32) -> Self {
        self.in_flight_max = requests.max(1);
        self
    }

    /// How connections behave. The default gives a silent node up after 3 s.
    pub fn transport(mut self, transport: TransportConfig) -> Self {
        self.transport = transport;
        self
    }

    /// The client. It connects at the first call.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub fn connect(self) -> Result<Client, Error> {
        self.profile.check(Path::new("profile"))?;
        let endpoint = Endpoint::client(self.profile.load_credentials()?, self.transport)?;
        let first = self.preferred.unwrap_or_else(random_index);
        let timeout = self.profile.timeout();
        let dialler = Dialler::new(endpoint, self.in_flight_max);
        Ok(Client { nodes: Arc::new(Nodes::new(dialler, self.profile.nodes, first)), timeout, seen: None })
    }
}

/// Without a source of randomness clients do not spread; that is no reason to fail.
fn random_index() -> usize {
    getrandom::u32().map_or(0, |random| random as usize)
}

// It has the shape of all extractors.
#[allow(clippy::needless_pass_by_value)]
fn done(response: Response) -> Option<()> {
    matches!(response, Response::Done).then_some(())
}
