//! Every object that `--json` prints, and, in `input`, the lines that `batch` and `import` read.
//!
//! - Keys and values are bytes. Those that are UTF-8 are printed as `"key"` and `"value"`, others in base64 as
//!   `"key_base64"` and `"value_base64"`; the same holds for what is read.
//! - `"context"` and `"token"` are opaque: base64, to be passed on as they are.
//! - `"gtid"` is a write set's identity, as in `3-9f2c01ab:42`; `"hlc"` its stamp, as in `1764950400000.3`: Unix
//!   milliseconds and a counter.

mod input;

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use polyarch_client::{
    ConditionView, DifferentView, Dot, Edge, EventView, FeedView, ForkMember, ForkSide, KeyspaceView, MemberStatus,
    NodeAddress, Origin, PauseCause, PausedView, Record, RecordKey, RegainedView, SiblingOutline, SiblingView,
    StatusView, Written,
};
use polyarch_node::{NodeIdentity, Restored};
use polyarch_protocol::catalog::SystemRecord;
use polyarch_protocol::{ChainHead, ChainHeads, Change, Dependencies, Effect, KeyspaceId, WriteSet};
use polyarch_store::{BackupManifest, BackupReport, LogEntry, Problem, RepairReport, VerifyReport};
use serde::Serialize;

pub(crate) use input::supersede;
pub use input::{BatchChange, ImportRecord, ImportValue};

use crate::commands::quarantine::to_do;
use crate::commands::topology::{Shape, ShapeMember};

/// `"key"`, or `"key_base64"` if it is not UTF-8.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Key {
    #[serde(rename = "key")]
    Text(String),
    #[serde(rename = "key_base64")]
    Base64(String),
}

/// `"value"`, or `"value_base64"` if it is not UTF-8.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) enum Value {
    #[serde(rename = "value")]
    Text(String),
    #[serde(rename = "value_base64")]
    Base64(String),
}

impl Key {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Base64(BASE64.encode(bytes)),
        }
    }
}

impl Value {
    pub(crate) fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Base64(BASE64.encode(bytes)),
        }
    }
}

/// `get` and each line of `scan`: `{"key", "siblings": [..], "context", "token"}`. A line of `export` has no token.
#[derive(Debug, Serialize)]
pub(crate) struct RecordObject {
    #[serde(flatten)]
    key: Key,
    siblings: Vec<SiblingObject>,
    context: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

/// One live value: `{"value", "gtid", "hlc", "server_id"}`.
#[derive(Debug, Serialize)]
struct SiblingObject {
    #[serde(flatten)]
    value: Value,
    gtid: String,
    hlc: String,
    server_id: u32,
}

impl RecordObject {
    /// A record as it was read; `None` for a key that is not there: no siblings, no context.
    pub(crate) fn read(key: &[u8], record: Option<&Record>, token: &[u8]) -> Self {
        let context = record.and_then(Record::context).map(|context| BASE64.encode(context.as_bytes()));
        let siblings = record.map(Record::siblings).unwrap_or_default();
        Self { context, token: Some(BASE64.encode(token)), ..Self::of(key, siblings) }
    }

    /// A record as it is kept outside of the cluster.
    pub(crate) fn exported(key: &[u8], record: &Record) -> Self {
        let context = record.context().map(|context| BASE64.encode(context.as_bytes()));
        Self { context, ..Self::of(key, record.siblings()) }
    }

    fn of(key: &[u8], siblings: &[SiblingView]) -> Self {
        let siblings = siblings.iter().map(SiblingObject::from).collect();
        Self { key: Key::of(key), siblings, context: None, token: None }
    }
}

impl From<&SiblingView> for SiblingObject {
    fn from(sibling: &SiblingView) -> Self {
        Self {
            value: Value::of(&sibling.value),
            gtid: sibling.dot.to_string(),
            hlc: sibling.hlc.to_string(),
            server_id: sibling.dot.origin.server_id,
        }
    }
}

/// `put`, `delete`, `batch`, `keyspace create`: `{"gtid", "hlc", "token"}`; both null when there was nothing to do.
#[derive(Debug, Serialize)]
pub(crate) struct WrittenObject {
    gtid: Option<String>,
    hlc: Option<String>,
    token: String,
}

impl From<&Written> for WrittenObject {
    fn from(written: &Written) -> Self {
        Self {
            gtid: written.dot.map(|dot| dot.to_string()),
            hlc: written.hlc.map(|hlc| hlc.to_string()),
            token: BASE64.encode(&written.token),
        }
    }
}

/// Each line of `keyspace list`: `{"name", "kind", "id", "by_name"}`.
#[derive(Debug, Serialize)]
pub(crate) struct KeyspaceObject<'a> {
    name: &'a str,
    kind: &'static str,
    id: String,
    /// Whether the name answers to this one; if not, an older keyspace has it, and this one is reached by its id.
    by_name: bool,
}

impl<'a> From<&'a KeyspaceView> for KeyspaceObject<'a> {
    fn from(view: &'a KeyspaceView) -> Self {
        Self { name: &view.name, kind: view.kind.as_str(), id: view.id.to_string(), by_name: view.by_name }
    }
}

/// `status`; with `--all`, one for each node.
#[derive(Debug, Serialize)]
pub(crate) struct StatusObject<'a> {
    /// The address of the node that answered, as it was dialled.
    node: &'a str,
    cluster_id: &'a str,
    server_id: u32,
    version: &'a str,
    name: &'a str,
    /// Where the member stands; null while it has not said that it is one.
    status: Option<&'static str>,
    topology: String,
    /// Why the node takes no writes; null when it does.
    writes_refused: Option<&'a str>,
    /// The last GTID of each origin that is durably applied, in order.
    applied: Vec<String>,
    digest: &'a str,
    peers: Vec<PeerObject<'a>>,
    feeds: Vec<FeedObject>,
    counters: CountersObject,
    #[serde(flatten)]
    condition: Option<ConditionObject<'a>>,
}

/// What `status` shows beside it; not there of a node older than the question.
#[derive(Debug, Serialize)]
struct ConditionObject<'a> {
    paused: Vec<PausedObject<'a>>,
    regained: Vec<RegainedObject>,
    regained_write_sets: u64,
    snapshot: Option<SnapshotObject>,
    different: Vec<DifferentObject>,
    salvage: Option<SalvageObject>,
}

/// What a repair left waiting.
#[derive(Debug, Serialize)]
struct SalvageObject {
    write_sets: u64,
    first: Vec<String>,
}

/// A snapshot on its way in.
#[derive(Debug, Serialize)]
struct SnapshotObject {
    from: u32,
    phase: &'static str,
    records: u64,
    bytes: u64,
}

/// A member that differs at an equal applied-set.
#[derive(Debug, Serialize)]
struct DifferentObject {
    server_id: u32,
    equal_buckets: Option<u32>,
}

/// A line of `quarantine list`: an origin whose feed the node has stopped.
#[derive(Debug, Serialize)]
pub(crate) struct PausedObject<'a> {
    origin: String,
    cause: &'static str,
    /// Where it stopped; null when it waits for another.
    gtid: Option<String>,
    reason: Option<&'a str>,
    /// The origin it waits for.
    on: Option<String>,
    members: Vec<ForkMemberObject>,
    since_ms: u64,
    applied: u64,
    behind: u64,
    to_do: String,
}

#[derive(Debug, Serialize)]
struct ForkMemberObject {
    server_id: u32,
    side: &'static str,
}

/// An epoch of its own of which the node had lost write sets.
#[derive(Debug, Serialize)]
struct RegainedObject {
    origin: String,
    had: u64,
    peer_has: u64,
    from: u32,
    applied: u64,
    noticed_ms: u64,
    /// Null while some of it is missing.
    complete_ms: Option<u64>,
}

/// `quarantine retry`: `{"origins"}`.
#[derive(Debug, Serialize)]
pub(crate) struct RetriedObject {
    origins: Vec<String>,
}

impl From<&[Origin]> for RetriedObject {
    fn from(origins: &[Origin]) -> Self {
        Self { origins: origins.iter().map(Origin::to_string).collect() }
    }
}

impl<'a> From<&'a PausedView> for PausedObject<'a> {
    fn from(paused: &'a PausedView) -> Self {
        let (cause, gtid, reason, on, members): (_, _, _, _, &[ForkMember]) = match &paused.cause {
            PauseCause::Fork { dot, members } => ("fork", Some(dot), None, None, members),
            PauseCause::Poison { dot, reason } => ("poison", Some(dot), Some(reason.as_str()), None, &[]),
            PauseCause::Waits { on } => ("waits", None, None, Some(on), &[]),
        };
        let member = |member: &ForkMember| ForkMemberObject {
            server_id: member.server_id,
            side: match member.side {
                ForkSide::Other => "other",
                ForkSide::Stopped => "stopped",
            },
        };
        Self {
            origin: paused.origin.to_string(),
            cause,
            gtid: gtid.map(Dot::to_string),
            reason,
            on: on.map(Origin::to_string),
            members: members.iter().map(member).collect(),
            since_ms: paused.since_ms,
            applied: paused.applied,
            behind: paused.behind,
            to_do: to_do(paused),
        }
    }
}

impl From<&DifferentView> for DifferentObject {
    fn from(view: &DifferentView) -> Self {
        Self { server_id: view.server_id, equal_buckets: view.equal_buckets }
    }
}

impl<'a> From<&'a ConditionView> for ConditionObject<'a> {
    fn from(condition: &'a ConditionView) -> Self {
        let regained = |view: &RegainedView| RegainedObject {
            origin: view.origin.to_string(),
            had: view.had,
            peer_has: view.peer_has,
            from: view.from,
            applied: view.applied,
            noticed_ms: view.noticed_ms,
            complete_ms: view.complete_ms,
        };
        Self {
            paused: condition.paused.iter().map(PausedObject::from).collect(),
            regained: condition.regained.iter().map(regained).collect(),
            regained_write_sets: condition.regained_write_sets,
            snapshot: condition.snapshot.as_ref().map(|snapshot| SnapshotObject {
                from: snapshot.from,
                phase: if snapshot.is_joining { "joining" } else { "fetching" },
                records: snapshot.records,
                bytes: snapshot.bytes,
            }),
            different: condition.different.iter().map(DifferentObject::from).collect(),
            salvage: condition
                .salvage
                .as_ref()
                .map(|salvage| SalvageObject { write_sets: salvage.write_sets, first: gtids(&salvage.first) }),
        }
    }
}

/// Another member, as the node sees it.
#[derive(Debug, Serialize)]
struct PeerObject<'a> {
    server_id: u32,
    name: &'a str,
    status: &'static str,
    addresses: &'a [String],
    linked: bool,
    /// Whether the topology wants a link to it.
    planned: bool,
    /// Whether it is reached at all, over whatever links.
    reachable: bool,
    /// Whom it says it has links to.
    links: &'a [u32],
    cut: bool,
    behind: u64,
    ahead: u64,
    /// With equal applied-sets: whether the digests are equal; else null.
    equal: Option<bool>,
    clock_offset_ms: Option<i64>,
}

/// How one origin comes to the node.
#[derive(Debug, Serialize)]
struct FeedObject {
    origin: String,
    /// The member that feeds it; null when nobody does.
    from: Option<u32>,
    behind: u64,
    /// How long ago the oldest missing write set was first heard of, in milliseconds.
    behind_ms: u64,
    paused: bool,
}

/// A line of `events`.
#[derive(Debug, Serialize)]
pub(crate) struct EventObject<'a> {
    time_ms: u64,
    alarm: bool,
    text: &'a str,
}

impl<'a> From<&'a EventView> for EventObject<'a> {
    fn from(event: &'a EventView) -> Self {
        Self { time_ms: event.time_ms, alarm: event.alarm, text: &event.text }
    }
}

/// Totals since the node's process began.
#[derive(Debug, Serialize)]
struct CountersObject {
    written: u64,
    received: u64,
    skipped: u64,
    returned: u64,
    conflicts: u64,
    syncs: u64,
    log_bytes: u64,
    checkpoints: u64,
    link_bytes_sent: u64,
    link_bytes_received: u64,
}

/// A line of `status --all` for a node that did not answer.
#[derive(Debug, Serialize)]
pub(crate) struct NoStatusObject<'a> {
    pub(crate) node: &'a str,
    pub(crate) error: &'a str,
}

impl<'a> StatusObject<'a> {
    pub(crate) fn of(node: &'a NodeAddress, status: &'a StatusView, condition: Option<&'a ConditionView>) -> Self {
        let counters = &status.counters;
        let peer = |peer: &'a polyarch_client::PeerView| PeerObject {
            server_id: peer.server_id,
            name: &peer.name,
            status: peer.status.as_str(),
            addresses: &peer.addresses,
            linked: peer.linked,
            planned: peer.planned,
            reachable: peer.reachable,
            links: &peer.links,
            cut: peer.cut,
            behind: peer.behind,
            ahead: peer.ahead,
            equal: peer.equal,
            clock_offset_ms: peer.clock_offset_ms,
        };
        let feed = |feed: &FeedView| FeedObject {
            origin: feed.origin.to_string(),
            from: feed.from,
            behind: feed.behind,
            behind_ms: feed.behind_ms,
            paused: feed.paused,
        };
        Self {
            node: node.as_str(),
            cluster_id: &status.cluster_id,
            server_id: status.server_id,
            version: &status.version,
            name: &status.name,
            status: status.status.map(MemberStatus::as_str),
            topology: status.topology.to_string(),
            writes_refused: status.writes_refused.as_deref(),
            applied: gtids(&status.applied),
            digest: &status.digest,
            peers: status.peers.iter().map(peer).collect(),
            feeds: status.feeds.iter().map(feed).collect(),
            counters: CountersObject {
                written: counters.written,
                received: counters.received,
                skipped: counters.skipped,
                returned: counters.returned,
                conflicts: counters.conflicts,
                syncs: counters.syncs,
                log_bytes: counters.log_bytes,
                checkpoints: counters.checkpoints,
                link_bytes_sent: counters.link_bytes_sent,
                link_bytes_received: counters.link_bytes_received,
            },
            condition: condition.map(ConditionObject::from),
        }
    }
}

/// A line of `diff`: `{"keyspace", "keyspace_id", "key", "here": [..], "there": [..]}`.
#[derive(Debug, Serialize)]
pub(crate) struct DifferenceObject<'a> {
    keyspace: &'a str,
    keyspace_id: String,
    #[serde(flatten)]
    key: Key,
    here: Vec<OutlineObject<'a>>,
    there: Vec<OutlineObject<'a>>,
}

/// A live value, without the value: `{"field", "gtid", "hlc", "value_hash"}`.
#[derive(Debug, Serialize)]
struct OutlineObject<'a> {
    /// Empty for an opaque value.
    field: &'a str,
    gtid: String,
    hlc: String,
    /// The first 16 bytes of the value's BLAKE3, in hex.
    value_hash: String,
}

impl<'a> DifferenceObject<'a> {
    pub(crate) fn of(
        keyspace: &'a str,
        key: &RecordKey,
        here: &'a [SiblingOutline],
        there: &'a [SiblingOutline],
    ) -> Self {
        let [here, there] = [here, there].map(|side| side.iter().map(OutlineObject::from).collect());
        Self { keyspace, keyspace_id: key.keyspace().to_string(), key: Key::of(key.key()), here, there }
    }
}

impl<'a> From<&'a SiblingOutline> for OutlineObject<'a> {
    fn from(sibling: &'a SiblingOutline) -> Self {
        Self {
            field: sibling.field.as_str(),
            gtid: sibling.dot.to_string(),
            hlc: sibling.hlc.to_string(),
            value_hash: format!("{:032x}", u128::from_be_bytes(sibling.value)),
        }
    }
}

/// The last line of `diff`.
#[derive(Debug, Serialize)]
pub(crate) struct DiffObject {
    /// The node that was asked.
    pub(crate) here: u32,
    /// The other.
    pub(crate) there: u32,
    pub(crate) equal: bool,
    /// Of 4,096; null where all records were compared instead.
    pub(crate) buckets_equal: Option<usize>,
    /// How many keys were listed.
    pub(crate) keys: u64,
    /// Whether there are more than may be listed.
    pub(crate) more: bool,
    /// Keys that were written too fast to be told.
    pub(crate) unsettled: u64,
}

/// `verify`.
#[derive(Debug, Serialize)]
pub(crate) struct VerifyObject {
    clean: bool,
    segments: u64,
    write_sets: u64,
    log_end: String,
    unsynced_bytes: u64,
    /// Whether the log goes back to the beginning, so that all records were compared with it.
    from_the_beginning: bool,
    state_position: Option<String>,
    state_records: u64,
    /// As in `status`; null when state and log could not be read together.
    applied: Option<Vec<String>>,
    digest: Option<String>,
    /// The hash chain of each origin, up to `applied`.
    chain_heads: Option<Vec<ChainHeadObject>>,
    problems: Vec<ProblemObject>,
    problems_unlisted: u64,
}

#[derive(Debug, Serialize)]
struct ChainHeadObject {
    gtid: String,
    hash: String,
}

#[derive(Debug, Serialize)]
struct ProblemObject {
    place: String,
    what: String,
}

impl From<&Problem> for ProblemObject {
    fn from(problem: &Problem) -> Self {
        Self { place: problem.place.clone(), what: problem.what.clone() }
    }
}

fn chain_heads(heads: &ChainHeads) -> Vec<ChainHeadObject> {
    let head = |(origin, head): (Origin, ChainHead)| ChainHeadObject {
        gtid: Dot::new(origin, head.seq).to_string(),
        hash: head.hash.to_string(),
    };
    heads.iter().map(head).collect()
}

impl From<&VerifyReport> for VerifyObject {
    fn from(report: &VerifyReport) -> Self {
        let frontier = report.frontier.as_ref();
        Self {
            clean: report.is_clean(),
            segments: report.segments,
            write_sets: report.write_sets,
            log_end: report.log_end.to_string(),
            unsynced_bytes: report.unsynced_bytes,
            from_the_beginning: report.from_the_beginning,
            state_position: report.state_position.map(|position| position.to_string()),
            state_records: report.state_records,
            applied: frontier.map(|frontier| gtids(&frontier.heads.applied().iter().collect::<Vec<_>>())),
            digest: frontier.map(|frontier| format!("{:032x}", frontier.digest.total())),
            chain_heads: frontier.map(|frontier| chain_heads(&frontier.heads)),
            problems: report.problems.iter().map(ProblemObject::from).collect(),
            problems_unlisted: report.problems_unlisted,
        }
    }
}

/// `backup`: what the manifest says, and where.
#[derive(Debug, Serialize)]
pub(crate) struct BackupObject<'a> {
    directory: String,
    cluster: &'a str,
    cluster_id: &'a str,
    donor: u32,
    version: &'a str,
    time: &'a str,
    records: u64,
    write_sets: u64,
    bytes: u64,
    blake3: &'a str,
    began_with: &'a [String],
    holds: &'a [String],
    /// `SEGMENT:OFFSET` of the donor's log; null in a backup that does not say.
    log_end: Option<&'a str>,
    authority: Option<&'a str>,
}

impl<'a> BackupObject<'a> {
    pub(crate) fn of(directory: &Path, manifest: &'a BackupManifest) -> Self {
        Self {
            directory: directory.display().to_string(),
            cluster: &manifest.cluster,
            cluster_id: &manifest.cluster_id,
            donor: manifest.donor,
            version: &manifest.version,
            time: &manifest.time,
            records: manifest.records,
            write_sets: manifest.write_sets,
            bytes: manifest.bytes,
            blake3: &manifest.blake3,
            began_with: &manifest.began_with,
            holds: &manifest.holds,
            log_end: manifest.log_end.as_deref(),
            authority: manifest.authority.as_deref(),
        }
    }
}

/// `verify` of a backup: `{"clean", "backup", "chain_heads", "problems"}`. What cannot be read is null.
#[derive(Debug, Serialize)]
pub(crate) struct BackupReportObject<'a> {
    clean: bool,
    backup: Option<BackupObject<'a>>,
    /// The hash chain of each origin, up to what the backup holds.
    chain_heads: Option<Vec<ChainHeadObject>>,
    problems: Vec<ProblemObject>,
}

impl<'a> BackupReportObject<'a> {
    pub(crate) fn of(directory: &Path, report: &'a BackupReport) -> Self {
        Self {
            clean: report.is_clean(),
            backup: report.manifest.as_ref().map(|manifest| BackupObject::of(directory, manifest)),
            chain_heads: report.survey.as_ref().map(|survey| chain_heads(&survey.end)),
            problems: report.problems.iter().map(ProblemObject::from).collect(),
        }
    }
}

/// `restore`: `{"cluster", "cluster_id", "server_id", "backup"}`.
#[derive(Debug, Serialize)]
pub(crate) struct RestoredObject<'a> {
    #[serde(flatten)]
    identity: IdentityObject<'a>,
    backup: BackupObject<'a>,
}

impl<'a> RestoredObject<'a> {
    pub(crate) fn of(directory: &Path, restored: &'a Restored) -> Self {
        Self {
            identity: IdentityObject::from(&restored.identity),
            backup: BackupObject::of(directory, &restored.manifest),
        }
    }
}

/// `repair`: what was wrong, and what was done.
#[derive(Debug, Default, Serialize)]
pub(crate) struct RepairedObject<'a> {
    problems: Vec<ProblemObject>,
    repaired: bool,
    /// An earlier repair was ended: the counts are not known.
    resumed: bool,
    segments: u64,
    write_sets: u64,
    damaged_places: u64,
    waiting: u64,
    state_lost: Option<&'a str>,
    set_aside: Vec<String>,
}

impl<'a> RepairedObject<'a> {
    /// Nothing was wrong.
    pub(crate) fn unneeded() -> Self {
        Self::default()
    }

    pub(crate) fn of(problems: &'a [Problem], report: &'a RepairReport) -> Self {
        Self {
            problems: problems.iter().map(ProblemObject::from).collect(),
            repaired: true,
            resumed: report.is_resumed,
            segments: report.log.segments,
            write_sets: report.log.frames,
            damaged_places: report.log.damaged_places,
            waiting: report.waiting,
            state_lost: report.state_lost.as_deref(),
            set_aside: report.set_aside.iter().map(|path| path.display().to_string()).collect(),
        }
    }
}

/// `repair --abandon`: how many write sets wait no longer.
#[derive(Debug, Serialize)]
pub(crate) struct AbandonedObject {
    pub(crate) abandoned: u64,
}

/// `fork show`: how far two nodes hold the same history of an origin.
#[derive(Debug, Serialize)]
pub(crate) struct ForkObject {
    pub(crate) origin: String,
    pub(crate) here: u32,
    pub(crate) there: u32,
    /// Whether what both have is the same.
    pub(crate) equal: bool,
    /// The last seq that both are known to have in common, and the first that is known to differ.
    pub(crate) common: Option<u64>,
    pub(crate) differs: Option<u64>,
    pub(crate) applied_here: u64,
    pub(crate) applied_there: u64,
}

/// `fork keep`: what was left out, and where the node's files are now.
#[derive(Debug, Serialize)]
pub(crate) struct KeptObject {
    pub(crate) origin: String,
    pub(crate) common: u64,
    pub(crate) left_out: u64,
    pub(crate) waiting: u64,
    pub(crate) set_aside: Vec<String>,
}

/// Each line of `log dump`: `{"start", "end", "known_synced", "bytes"}` with either the write set or `"error"`.
#[derive(Debug, Serialize)]
pub(crate) struct LogEntryObject {
    start: String,
    end: String,
    known_synced: String,
    bytes: usize,
    #[serde(flatten)]
    write_set: Option<WriteSetObject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct WriteSetObject {
    gtid: String,
    hlc: String,
    dependencies: DependenciesObject,
    changes: Vec<ChangeObject>,
}

/// What the origin had applied: all of it, or what changed since its write set before.
#[derive(Debug, Serialize)]
struct DependenciesObject {
    whole: bool,
    predecessor: Option<String>,
    applied: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ChangeObject {
    op: &'static str,
    /// The keyspace's id.
    keyspace: String,
    #[serde(flatten)]
    key: Key,
    #[serde(skip_serializing_if = "str::is_empty")]
    field: String,
    supersedes: Vec<String>,
    #[serde(flatten)]
    value: Option<Value>,
}

impl From<&LogEntry> for LogEntryObject {
    fn from(entry: &LogEntry) -> Self {
        Self {
            start: entry.start.to_string(),
            end: entry.end.to_string(),
            known_synced: entry.known_synced.to_string(),
            bytes: entry.bytes,
            write_set: entry.write_set.as_ref().ok().map(WriteSetObject::from),
            error: entry.write_set.as_ref().err().map(ToString::to_string),
        }
    }
}

impl From<&WriteSet> for WriteSetObject {
    fn from(write_set: &WriteSet) -> Self {
        let predecessor = match &write_set.dependencies {
            Dependencies::Whole { predecessor, .. } => predecessor.map(|dot| dot.to_string()),
            Dependencies::Changed(_) => None,
        };
        Self {
            gtid: write_set.dot.to_string(),
            hlc: write_set.hlc.to_string(),
            dependencies: DependenciesObject {
                whole: matches!(write_set.dependencies, Dependencies::Whole { .. }),
                predecessor,
                applied: gtids(&write_set.dependencies.applied().iter().collect::<Vec<_>>()),
            },
            changes: write_set.changes.iter().map(ChangeObject::from).collect(),
        }
    }
}

impl From<&Change> for ChangeObject {
    fn from(change: &Change) -> Self {
        Self {
            op: match change.effect {
                Effect::Put(_) => "put",
                Effect::Delete => "delete",
            },
            keyspace: change.keyspace.to_string(),
            key: Key::of(&change.key),
            field: change.field.as_str().to_owned(),
            supersedes: gtids(&change.supersedes),
            value: change.effect.value().filter(|value| !is_secret(change, value)).map(|value| Value::of(value)),
        }
    }
}

/// Whether a change puts a key of the cluster, with which contexts could be forged. What this version cannot read of
/// the system keyspace may be one, too.
fn is_secret(change: &Change, value: &[u8]) -> bool {
    let is_open = || matches!(SystemRecord::decode(value), Ok(SystemRecord::Member(_) | SystemRecord::Keyspace(_)));
    change.keyspace == KeyspaceId::SYSTEM && !is_open()
}

fn gtids(dots: &[Dot]) -> Vec<String> {
    dots.iter().map(Dot::to_string).collect()
}

/// `init`, `join`: `{"cluster", "cluster_id", "server_id"}`.
#[derive(Debug, Serialize)]
pub(crate) struct IdentityObject<'a> {
    cluster: &'a str,
    cluster_id: &'a str,
    server_id: u32,
}

impl<'a> From<&'a NodeIdentity> for IdentityObject<'a> {
    fn from(identity: &'a NodeIdentity) -> Self {
        Self { cluster: &identity.cluster, cluster_id: &identity.cluster_id, server_id: identity.server_id }
    }
}

/// `certs show`; moments as in RFC 3339.
#[derive(Debug, Serialize)]
pub(crate) struct CertificateObject {
    pub(crate) name: String,
    pub(crate) not_before: String,
    pub(crate) not_after: String,
    pub(crate) fingerprint_sha256: String,
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use polyarch_client::{Hlc, Origin};

    use super::*;

    fn sibling(value: &[u8]) -> SiblingView {
        let dot = Dot::new(Origin::new(3, 0x9f2c_01ab), 42);
        SiblingView { dot, hlc: Hlc::new(1_764_950_400_000, 3), value: Bytes::copy_from_slice(value) }
    }

    fn json(object: &impl Serialize) -> String {
        serde_json::to_string(object).unwrap()
    }

    #[test]
    fn a_record_has_its_documented_shape() {
        let (context, token) = (Some("Y3R4".to_owned()), Some("dG9r".to_owned()));
        let record = RecordObject { context, token, ..RecordObject::of(b"k", &[sibling(b"v"), sibling(b"\xff")]) };
        assert_eq!(
            json(&record),
            r#"{"key":"k","siblings":[{"value":"v","gtid":"3-9f2c01ab:42","hlc":"1764950400000.3","server_id":3},"#
                .to_owned()
                + r#"{"value_base64":"/w==","gtid":"3-9f2c01ab:42","hlc":"1764950400000.3","server_id":3}],"#
                + r#""context":"Y3R4","token":"dG9r"}"#
        );
    }

    #[test]
    fn a_key_that_is_not_there_has_no_siblings_and_no_context() {
        assert_eq!(
            json(&RecordObject::read(b"\xfe", None, b"t")),
            r#"{"key_base64":"/g==","siblings":[],"context":null,"token":"dA=="}"#
        );
    }

    #[test]
    fn a_key_of_the_cluster_is_never_printed() {
        let secret = SystemRecord::ClusterKey(polyarch_crdt::ClusterKey { id: 1, secret: [b'S'; 32] });
        let change = |value: &[u8]| Change {
            keyspace: KeyspaceId::SYSTEM,
            key: polyarch_protocol::catalog::cluster_key_key(1),
            field: polyarch_crdt::FieldPath::opaque(),
            supersedes: Vec::new(),
            effect: Effect::Put(Bytes::copy_from_slice(value)),
        };
        for value in [secret.encode().to_vec(), b"of a later version: SSSSSSSS".to_vec()] {
            let printed = json(&ChangeObject::from(&change(&value)));
            assert!(!printed.contains("value") && !printed.contains("SSSS"), "{printed}");
        }
    }

    #[test]
    fn what_export_writes_import_reads() {
        let context = Some(BASE64.encode([7; 32]));
        let line = json(&RecordObject { context, ..RecordObject::of(b"\xfe", &[sibling(b"v"), sibling(b"\xff")]) });
        let value = |value: &'static [u8]| {
            let SiblingView { dot, hlc, .. } = sibling(value);
            ImportValue { value: value.into(), gtid: Some(dot), hlc: Some(hlc) }
        };
        let context = Some(polyarch_client::SealedContext::from_bytes(vec![7; 32]));
        let expected = ImportRecord { key: b"\xfe"[..].into(), values: vec![value(b"v"), value(b"\xff")], context };
        assert_eq!(ImportRecord::parse(line.as_bytes()), Ok(expected));
    }

    #[test]
    fn what_get_prints_import_reads_too() {
        let line = json(&RecordObject { token: Some(String::new()), ..RecordObject::of(b"k", &[sibling(b"v")]) });
        let record = ImportRecord::parse(line.as_bytes()).unwrap();
        assert_eq!((record.values[0].value.as_ref(), record.context), (&b"v"[..], None));
    }
}

/// A line of `node list`.
#[derive(Debug, Serialize)]
pub(crate) struct MemberObject<'a> {
    server_id: u32,
    name: &'a str,
    status: Option<&'static str>,
    /// Whether it is reached at all from the node that was asked.
    reachable: bool,
    /// Whether that node has a link to it; null for the node itself.
    linked: Option<bool>,
    addresses: &'a [String],
}

impl<'a> MemberObject<'a> {
    /// All members that the node knows, itself among them, in order. Its own addresses it does not tell.
    pub(crate) fn all(status: &'a StatusView, own_addresses: &'a [String]) -> Vec<Self> {
        let own = Self {
            server_id: status.server_id,
            name: &status.name,
            status: status.status.map(MemberStatus::as_str),
            reachable: true,
            linked: None,
            addresses: own_addresses,
        };
        let peer = |peer: &'a polyarch_client::PeerView| Self {
            server_id: peer.server_id,
            name: &peer.name,
            status: Some(peer.status.as_str()),
            reachable: peer.reachable,
            linked: Some(peer.linked),
            addresses: &peer.addresses,
        };
        let mut members: Vec<Self> = status.peers.iter().map(peer).chain([own]).collect();
        members.sort_by_key(|member| member.server_id);
        members
    }
}

impl std::fmt::Display for MemberObject<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let link = match (self.linked, self.reachable) {
            (None, _) => "this node",
            (Some(true), _) => "linked",
            (Some(false), true) => "reached by way of others",
            (Some(false), false) => "not reached",
        };
        let status = self.status.unwrap_or("no member yet");
        write!(f, "{}\t{}\t{status}\t{link}\t{}", self.server_id, self.name, self.addresses.join(", "))
    }
}

/// `topology show`.
#[derive(Debug, Serialize)]
pub(crate) struct TopologyObject<'a> {
    topology: String,
    members: Vec<TopologyMemberObject<'a>>,
    links: Vec<LinkObject>,
}

#[derive(Debug, Serialize)]
struct TopologyMemberObject<'a> {
    server_id: u32,
    name: &'a str,
    status: Option<&'static str>,
    reachable: bool,
}

/// A link that is up or planned.
#[derive(Debug, Serialize)]
struct LinkObject {
    ends: [u32; 2],
    planned: bool,
    up: bool,
}

impl<'a> TopologyObject<'a> {
    pub(crate) fn of(status: &StatusView, shape: &'a Shape) -> Self {
        let member = |(server_id, member): (&u32, &'a ShapeMember)| TopologyMemberObject {
            server_id: *server_id,
            name: &member.name,
            status: member.status.map(MemberStatus::as_str),
            reachable: member.reachable,
        };
        let link = |edge: &Edge| LinkObject {
            ends: edge.ends(),
            planned: shape.planned.contains(edge),
            up: shape.up.contains(edge),
        };
        Self {
            topology: status.topology.to_string(),
            members: shape.members.iter().map(member).collect(),
            links: shape.up.union(&shape.planned).map(link).collect(),
        }
    }
}
