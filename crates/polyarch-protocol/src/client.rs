//! What clients ask of a node and what it answers.
//!
//! A client's stream carries [`ClientRequest`]s one way and [`ClientResponse`]s the other.
//! Answers come in the order of the requests, and a read waits for the writes before it.

use bytes::Bytes;
use polyarch_crdt::{ContextError, Dot, FieldPath, Hlc, Origin, Record, SealedContext, Sibling};
use serde::{Deserialize, Serialize};

use crate::buckets::PeerDigest;
use crate::catalog::{KeyspaceKind, MemberChange, MemberStatus};
use crate::chain::ChainHash;
use crate::codec::{self, CodecError, Kind};
use crate::condition::ConditionView;
use crate::keyspace::{KeyspaceId, RecordKey};
use crate::limits::wire;
use crate::topology::Topology;

/// One request, numbered by the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRequest {
    /// Comes back with the answer.
    pub id: u64,
    /// How long the node may wait for [`ClientRequest::token`], in milliseconds.
    pub wait_ms: u32,
    /// The session's token: the answer must include what the session has seen.
    pub token: Option<Bytes>,
    /// What is asked.
    pub request: Request,
}

/// What a client asks. Variants are appended only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// One record.
    Get {
        /// The keyspace's name, or its id as text.
        keyspace: String,
        /// The key.
        key: Bytes,
    },
    /// All changes, atomically.
    Write(WriteRequest),
    /// Records in order of keys.
    Scan(ScanRequest),
    /// Defines a keyspace.
    CreateKeyspace {
        /// 1 to 128 of letters, digits, `_`, `-` and `.`.
        name: String,
        /// What it shows of concurrent writes.
        kind: KeyspaceKind,
    },
    /// The keyspaces known here.
    ListKeyspaces,
    /// How the node is.
    Status,
    /// Takes the link to a member down until it is healed or this node restarts.
    CutLink {
        /// The member.
        server_id: u32,
    },
    /// Lets the link to a member come up again.
    HealLink {
        /// The member.
        server_id: u32,
    },
    /// Says who should have links to whom, for the whole cluster.
    SetTopology(Topology),
    /// Drains, removes or takes back a member.
    ChangeMember {
        /// The member.
        server_id: u32,
        /// What is done to it.
        change: MemberChange,
    },
    /// The last events that the node told its operator, the newest last.
    Events {
        /// At most so many.
        limit: u32,
    },
    /// What is out of the ordinary on the node.
    Condition,
    /// Lets the stopped feed of an origin go on from where it stood.
    RetryOrigin {
        /// Which; `None` for all that are stopped.
        origin: Option<Origin>,
    },
    /// The node's digest, bucket by bucket.
    Digest,
    /// What the node holds in some buckets, of all keyspaces, the system's among them.
    ScanBuckets(BucketScan),
    /// The hash of an origin's chain up to one of its write sets, as the node's log has it: two nodes
    /// that answer alike hold the same history up to there.
    ChainHash {
        /// The write set.
        dot: Dot,
    },
}

/// Changes that become visible together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// At most one per key.
    #[serde(deserialize_with = "codec::changes")]
    pub changes: Vec<WriteChange>,
}

/// A client's change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteChange {
    /// The keyspace's name, or its id as text.
    pub keyspace: String,
    /// The key.
    pub key: Bytes,
    /// The new value; `None` deletes.
    pub put: Option<Bytes>,
    /// What it replaces.
    pub supersede: Supersede,
}

/// What a client's change replaces. Variants are appended only.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Supersede {
    /// Every sibling the node holds.
    #[default]
    Held,
    /// Nothing: the value joins the siblings.
    Nothing,
    /// What the client was shown with this context. In an `lww` keyspace, also all that the node holds.
    Shown(SealedContext),
}

/// A page of records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanRequest {
    /// The keyspace's name, or its id as text.
    pub keyspace: String,
    /// Only keys that begin with this.
    pub prefix: Bytes,
    /// Only keys behind this one.
    pub after: Option<Bytes>,
    /// At most so many records; a node may send fewer, and says where to go on.
    pub limit: u32,
}

/// A page of what a node holds in some buckets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketScan {
    /// The buckets; none means all.
    #[serde(deserialize_with = "codec::buckets")]
    pub buckets: Vec<u16>,
    /// The page begins with this [`RecordKey`], or the next that there is; empty for the first of all.
    pub from: Bytes,
    /// At most so many records are looked at, whatever their bucket: at least 1, at most
    /// [`wire::OUTLINES_MAX`]. A node may look at fewer, and says where to go on.
    pub limit: u32,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientResponse {
    /// The request's number.
    pub id: u64,
    /// What came of it.
    pub result: Result<Response, Refusal>,
}

/// What a node answers. Variants are appended only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// To [`Request::Get`]. No siblings: no such key here.
    Record {
        /// What the keyspace's kind shows.
        record: RecordView,
        /// A session that saw this passes it on.
        token: Bytes,
    },
    /// To [`Request::Write`] and [`Request::CreateKeyspace`].
    Written(Written),
    /// To [`Request::Scan`].
    Page {
        /// Keys with live values, in order.
        records: Vec<(Bytes, RecordView)>,
        /// Where to go on: [`ScanRequest::after`]; `None` when there is no more.
        next: Option<Bytes>,
        /// A session that saw this passes it on.
        token: Bytes,
    },
    /// To [`Request::ListKeyspaces`].
    Keyspaces(Vec<KeyspaceView>),
    /// To [`Request::Status`].
    Status(Box<StatusView>),
    /// Done; nothing to say.
    Done,
    /// To [`Request::Events`].
    Events(Vec<EventView>),
    /// To [`Request::Condition`].
    Condition(Box<ConditionView>),
    /// To [`Request::RetryOrigin`]: the origins whose feed goes on, in order.
    Retried(Vec<Origin>),
    /// To [`Request::Digest`]. What was written and is not yet durable waits for that first.
    Digest(Box<PeerDigest>),
    /// To [`Request::ScanBuckets`].
    Buckets(BucketPage),
    /// To [`Request::ChainHash`]; `None` when the node has not applied that write set, or its log does
    /// not have it, nor begins right behind it.
    ChainHash(Option<ChainHash>),
}

/// Records of some buckets, in order of keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BucketPage {
    /// Those with live values.
    #[serde(deserialize_with = "codec::outlines")]
    pub records: Vec<RecordOutline>,
    /// How many records were looked at.
    pub examined: u32,
    /// Where to go on: [`BucketScan::from`]; `None` when there is no more.
    pub next: Option<Bytes>,
    /// A session that saw this passes it on.
    pub token: Bytes,
}

/// What a node holds of a key, without the values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordOutline {
    /// The key, with its keyspace.
    pub key: RecordKey,
    /// All live siblings of all fields, in order of fields and dots.
    pub siblings: Vec<SiblingOutline>,
}

/// A live value of a node, without the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiblingOutline {
    /// The field; empty for an opaque value.
    pub field: FieldPath,
    /// The write set that put it.
    pub dot: Dot,
    /// That write set's stamp.
    pub hlc: Hlc,
    /// The first 16 bytes of the value's BLAKE3: enough to compare by, and no way back to a secret.
    pub value: [u8; 16],
}

/// What became of a write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its write set; `None` when there was nothing to do, as for a delete of nothing.
    pub dot: Option<Dot>,
    /// The write set's stamp.
    pub hlc: Option<Hlc>,
    /// A session that wrote this passes it on.
    pub token: Bytes,
}

/// One key as its keyspace shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordView {
    /// In order of dots; at most one in an `lww` keyspace.
    pub siblings: Vec<SiblingView>,
    /// For the client's next write to this key.
    pub context: Option<SealedContext>,
}

/// One live value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiblingView {
    /// The write set that put it.
    pub dot: Dot,
    /// That write set's stamp.
    pub hlc: Hlc,
    /// The value.
    pub value: Bytes,
}

/// A keyspace as clients see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyspaceView {
    /// Its identity.
    pub id: KeyspaceId,
    /// The name it was created under.
    pub name: String,
    /// What it shows of concurrent writes.
    pub kind: KeyspaceKind,
    /// Whether the name answers to this one; if not, an older keyspace has it and this one is
    /// reached by its id.
    pub by_name: bool,
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusView {
    /// The cluster.
    pub cluster_id: String,
    /// The node.
    pub server_id: u32,
    /// Its version of polyarch.
    pub version: String,
    /// Whether it takes writes; if not, why.
    pub writes_refused: Option<String>,
    /// What people call it.
    pub name: String,
    /// Where it stands; `None` while it has not said that it is a member.
    pub status: Option<MemberStatus>,
    /// Who should have links to whom.
    pub topology: Topology,
    /// What it has durably applied: the last GTID of each origin.
    pub applied: Vec<Dot>,
    /// The digest of that.
    pub digest: String,
    /// Each other member, in order; those too that were removed.
    pub peers: Vec<PeerView>,
    /// Each origin that others have and this node may lack, in order.
    pub feeds: Vec<FeedView>,
    /// Totals since the process began.
    pub counters: CountersView,
}

/// A member as another sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// The member.
    pub server_id: u32,
    /// What people call it.
    pub name: String,
    /// Where it stands.
    pub status: MemberStatus,
    /// Where it is reached.
    pub addresses: Vec<String>,
    /// Whether a link is up.
    pub linked: bool,
    /// Whether the topology wants a link to it.
    pub planned: bool,
    /// Whether it is reached at all, over whatever links.
    pub reachable: bool,
    /// Whom it says it has links to, in order.
    pub links: Vec<u32>,
    /// Whether an operator took the link down here.
    pub cut: bool,
    /// Write sets that it was last known to have and this node has not.
    pub behind: u64,
    /// Write sets that this node has and it was last known not to have.
    pub ahead: u64,
    /// With equal applied-sets: whether the digests are equal. `None` when the sets differ.
    pub equal: Option<bool>,
    /// Its wall clock less ours when it was last heard, in milliseconds.
    pub clock_offset_ms: Option<i64>,
}

/// How one origin comes to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedView {
    /// The origin.
    pub origin: Origin,
    /// The member whose link feeds it.
    pub from: Option<u32>,
    /// Write sets that linked members have of it and this node has not.
    pub behind: u64,
    /// How long ago the oldest of them was first heard of, in milliseconds; 0 when none lacks.
    pub behind_ms: u64,
    /// Whether it was stopped, because of a fork or of what cannot be read.
    pub paused: bool,
}

/// Something that a node told its operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventView {
    /// When, Unix milliseconds.
    pub time_ms: u64,
    /// Whether someone should be woken.
    pub alarm: bool,
    /// What happened.
    pub text: String,
}

/// What a node counted since it began.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountersView {
    /// Write sets written here.
    pub written: u64,
    /// Write sets applied from peers.
    pub received: u64,
    /// Write sets that came again and were skipped.
    pub skipped: u64,
    /// Of those, write sets that this server had written itself.
    pub returned: u64,
    /// Times a field came to hold concurrent values.
    pub conflicts: u64,
    /// Syncs of the log.
    pub syncs: u64,
    /// Bytes appended to the log.
    pub log_bytes: u64,
    /// Checkpoints finished.
    pub checkpoints: u64,
    /// UDP payload bytes sent on links to members.
    pub link_bytes_sent: u64,
    /// UDP payload bytes received on links to members.
    pub link_bytes_received: u64,
}

/// Why a node did not do what it was asked. Nothing was written, except where a variant says
/// otherwise. Variants are appended only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No keyspace of that name or id.
    #[error(
        "there is no keyspace `{0}` here; create it with `polyarch keyspace create`, or wait until this node has heard of it"
    )]
    UnknownKeyspace(String),
    /// The name is taken.
    #[error("keyspace `{0}` exists already")]
    KeyspaceExists(String),
    /// Not a keyspace's name.
    #[error("`{0}` cannot be a keyspace's name: 1 to 128 letters, digits, `_`, `-` and `.`, the first a letter")]
    KeyspaceName(String),
    /// Too long a key.
    #[error("key of {len} bytes, the limit is {max}")]
    KeyTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// An empty key.
    #[error("a key has at least one byte")]
    KeyEmpty,
    /// Too long a value.
    #[error("value of {len} bytes, the limit is {max}; store a reference instead")]
    ValueTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// Too much for one atomic write.
    #[error("{len} changes in one write, the limit is {max}; split it")]
    TooManyChanges {
        /// How many there are.
        len: u64,
        /// How many there may be.
        max: u64,
    },
    /// Too many bytes for one atomic write.
    #[error("write of {len} bytes, the limit is {max}; split it")]
    WriteTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// One write changes a key twice.
    #[error("a write changes a key at most once")]
    DuplicateKey,
    /// The context cannot be used.
    #[error("{0}")]
    Context(String),
    /// Too many siblings.
    #[error(
        "this key already has {siblings} siblings, the limit is {max}; write with the context of a read to settle them"
    )]
    TooManySiblings {
        /// How many it has.
        siblings: u64,
        /// How many it may.
        max: u64,
    },
    /// The node has not yet heard from the cluster it joins.
    #[error("this node has not yet heard from a member of its cluster; it takes no writes until then")]
    NotJoined,
    /// A write or sync of the log failed on this node: it writes no more until it is restarted.
    /// Whether *this* write survives is not known.
    #[error(
        "storage failed on this node ({0}); whether this write survives is not known. Restart the node, then read before you write again"
    )]
    StorageFailed(String),
    /// The node lacks what the session has seen.
    #[error("this node is behind the session by {missing}; retry, or ask another node")]
    Behind {
        /// The GTIDs awaited.
        missing: String,
    },
    /// The token cannot be read.
    #[error("not a session token; start a new session")]
    Token,
    /// The certificate's name lacks the role.
    #[error("`{name}` may not {verb}; list it under [roles] in the node's configuration")]
    Forbidden {
        /// The client's name.
        name: String,
        /// What it wanted to do.
        verb: String,
    },
    /// No such member.
    #[error("member {0} is not known here, or is this node itself")]
    UnknownMember(u32),
    /// The node is stopping.
    #[error("this node is stopping; ask another")]
    Stopping,
    /// The request cannot be read, or not by this version.
    #[error("the node does not understand this request: {0}")]
    Malformed(String),
    /// A record cannot be read from this node's disk.
    #[error("this node cannot read that record: {0}")]
    Unreadable(String),
    /// The node's storage failed before this came.
    #[error(
        "this node's storage failed ({0}) and it takes no writes until it is restarted; nothing was written. Ask another"
    )]
    WritesStopped(String),
    /// The record does not fit a frame.
    #[error(
        "this record has {len} bytes in its siblings, a frame takes {max}; put or delete it without a context to settle it"
    )]
    RecordTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// The member takes no writes where it stands.
    #[error(
        "this member is {0}; ask another, or let it take writes again: tell another member with `polyarch node rejoin`"
    )]
    MemberIs(MemberStatus),
    /// Another living process has this server id.
    #[error(
        "two living processes have this server id, at {}; neither takes writes until one is stopped",
        addresses.join(" and ")
    )]
    Twin {
        /// Where a member saw them.
        addresses: Vec<String>,
    },
    /// A member's status cannot change so.
    #[error("member {server_id} is {status}: {instead}")]
    MemberChange {
        /// The member.
        server_id: u32,
        /// Where it stands.
        status: MemberStatus,
        /// What to do instead.
        instead: String,
    },
    /// No topology for this cluster.
    #[error("{0}")]
    Topology(String),
    /// The node's disk has no room. It takes writes again by itself once there is some.
    #[error("this node's disk is full ({reason}); nothing was written. Ask another, or make room on this one")]
    DiskFull {
        /// What the disk said.
        reason: String,
    },
    /// The feed of this origin is not stopped.
    #[error("the feed of {0} is not stopped on this node; `polyarch quarantine list` shows those that are")]
    NotPaused(Origin),
    /// The node's wall clock is too far ahead to stamp writes.
    #[error(
        "this node's clock is {} s ahead of those of members {}, a majority; it takes no writes until its clock is right. Set it, or ask another node",
        ahead_ms / 1_000,
        listed(of)
    )]
    ClockAhead {
        /// By this much at least, in milliseconds.
        ahead_ms: u64,
        /// Of these members, in order.
        of: Vec<u32>,
    },
}

/// Numbers in words, as in `2, 3`.
pub(crate) fn listed(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

impl RecordOutline {
    /// What to tell of a record.
    pub fn of(key: RecordKey, record: &Record) -> Self {
        let siblings = record.fields().iter().flat_map(|field| {
            let outline = |sibling: &Sibling| SiblingOutline::of(field.path(), sibling);
            field.siblings().iter().map(outline).collect::<Vec<_>>()
        });
        Self { key, siblings: siblings.collect() }
    }
}

impl SiblingOutline {
    fn of(field: &FieldPath, sibling: &Sibling) -> Self {
        let hash = blake3::hash(&sibling.value);
        let value = *hash.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes");
        Self { field: field.clone(), dot: sibling.dot, hlc: sibling.hlc, value }
    }
}

impl From<ContextError> for Refusal {
    fn from(error: ContextError) -> Self {
        Self::Context(error.to_string())
    }
}

impl ClientRequest {
    /// The bytes of its frame.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(Kind::Request, self)
    }

    /// The number of a request that may be of a kind unknown here, so that it can be refused.
    pub fn peek_id(bytes: &[u8]) -> Option<u64> {
        let body = codec::body(Kind::Request, bytes).ok()?;
        postcard::take_from_bytes(body).ok().map(|(id, _)| id)
    }

    /// Reads a client's frame.
    ///
    /// # Errors
    /// When the bytes are no request known here.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let request: Self = codec::decode(Kind::Request, bytes)?;
        match request.token.as_ref().is_some_and(|token| token.len() > wire::TOKEN_BYTES_MAX) {
            true => Err(CodecError::Malformed),
            false => Ok(request),
        }
    }
}

impl ClientResponse {
    /// The bytes of its frame.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(Kind::Response, self)
    }

    /// Reads a node's frame.
    ///
    /// # Errors
    /// When the bytes are no response known here.
    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        codec::decode(Kind::Response, bytes)
    }
}
