//! Snapshots: what a node gets whose peers no longer have the log it needs.
//!
//! A snapshot is *fetched whole, then joined in one local step*. The donor notes its frontier V,
//! walks all its records in order of keys while it goes on taking writes, then sends its log from V
//! to where it was when the walk ended, W. The receiver puts all of it into files and goes on
//! serving what it has. Only then are the records joined under V with its own, which may hold writes
//! that the donor lacks, and the log up to W is applied. (Joining range by range while serving would
//! show values beyond the applied-set, and one applied-set for each range fails too: a write set
//! changes keys of several ranges.)
//!
//! ```text
//! receiver                                    donor
//!    │  SnapshotRequest ───────────────────────▶ │  frontier V, pinned: absorb entries and log stay
//!    │ ◀─────────────────────────── Begin { V }  │
//!    │ ◀──────────────── Records … in key order  │  walked while writes go on
//!    │ ◀───────────────────── Log … from V on    │
//!    │ ◀────────────────── LogEnd { position }   │  where the donor's log was then
//!    │ ◀───────────────────────────── End { W }  │  all of it durable at the donor
//!  join
//! ```
//!
//! [`SnapshotSource`] is the donor's side, a walk like [`crate::Feed`]'s: it runs beside the replica
//! and remembers nothing but its place. A fetch that broke off goes on where it was
//! ([`Resume`]) as long as the donor still holds what it had pinned.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{Hlc, Origin, Record, seeded_bug};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::chain::ChainHeads;
use crate::codec::{self, CodecError, Kind};
use crate::frontier::Frontier;
use crate::keyspace::RecordKey;
use crate::limits::wire;
use crate::peer::ClusterId;
use crate::storage::{LogPosition, LogReadError, LogSource};
use crate::write_set::WriteSet;

/// Names one walk of one donor. Random.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SnapshotId(pub u128);

impl std::fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A frontier without its digest: a digest speaks of records at one moment, and a walk has none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontierOutline {
    /// Which write sets were applied, and each origin's chain hash.
    pub heads: ChainHeads,
    /// The greatest stamp among them.
    pub hlc: Hlc,
    /// The newest epoch of each server, as far as applied.
    pub epochs: BTreeMap<u32, Origin>,
    /// The greatest stamp of each server, as far as applied.
    pub stamps: BTreeMap<u32, Hlc>,
}

/// How a snapshot begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotBegin {
    /// The walk.
    pub id: SnapshotId,
    /// The cluster whose data it is.
    pub cluster_id: ClusterId,
    /// The donor's server id.
    pub donor: u32,
    /// V: what the donor had applied when the walk began.
    pub start: FrontierOutline,
}

/// One part of a snapshot, in the order `Begin`, `Records`, `Log`, `LogEnd`, `End`. Variants are appended only.
///
/// Frame: kind (1), version (1), then this in postcard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotPart {
    /// A walk from the beginning. Whatever the receiver has of another is of no use.
    Begin(SnapshotBegin),
    /// The walk that the receiver asked to go on with goes on.
    Resumed(SnapshotId),
    /// Records in order of keys, behind those of the part before. A key that is not named has none.
    Records {
        /// Records, or pieces of one: the same key again. The record is the union of its pieces.
        #[serde(deserialize_with = "codec::snapshot_records")]
        records: Vec<SnapshotRecord>,
        /// Whether the last record goes on in the next part.
        cut: bool,
    },
    /// The donor's write sets behind V, in the order of its log. After a resume some come again.
    Log(#[serde(deserialize_with = "codec::changes")] Vec<Bytes>),
    /// W: what all of it adds up to.
    End(ChainHeads),
    /// The donor cannot go on, for this reason. The receiver begins again later.
    GivenUp(String),
    /// Where the donor's log was that the write sets came from: all before it is in the snapshot. It is of
    /// use to whoever keeps the snapshot, and not to join it.
    LogEnd(LogPosition),
}

/// A record, or a piece of one, with its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The key.
    pub key: RecordKey,
    /// The record, or a piece of it.
    pub record: Record,
}

impl Serialize for SnapshotRecord {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (Bytes::copy_from_slice(self.key.as_bytes()), &self.record).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for SnapshotRecord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let (key, record) = <(Bytes, Record)>::deserialize(deserializer)?;
        record.validate().map_err(D::Error::custom)?;
        let key = RecordKey::from_bytes(key).ok_or_else(|| D::Error::custom("a record's key is too short"))?;
        Ok(Self { key, record })
    }
}

/// Asks for a snapshot, on a stream of its own.
///
/// Frame: kind (1), version (1), then this in postcard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// What the receiver has of an earlier fetch.
    pub resume: Option<Resume>,
}

/// Where a fetch broke off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// Of which walk.
    pub id: SnapshotId,
    /// Which of its records the receiver has.
    pub keys: KeysHeld,
}

/// How many of a walk's records a receiver has. Variants are appended only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeysHeld {
    /// Those up to this key, the bytes of a [`RecordKey`]; none at all.
    Through(Option<Bytes>),
    /// All. The log is sent again from V on.
    All,
}

impl SnapshotRequest {
    /// The bytes of its frame.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(Kind::SnapshotRequest, self)
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// When the bytes are no request known here.
    pub fn decode(frame: &[u8]) -> Result<Self, CodecError> {
        codec::decode(Kind::SnapshotRequest, frame)
    }

    /// Whether a frame is one, by its first byte.
    pub fn is_kind(frame: &[u8]) -> bool {
        frame.first() == Some(&(Kind::SnapshotRequest as u8))
    }
}

impl SnapshotPart {
    /// The bytes of its frame.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode(Kind::SnapshotPart, self)
    }

    /// Reads a frame: the records in it are sound and in order.
    ///
    /// # Errors
    /// When the bytes are no part known here.
    pub fn decode(frame: &[u8]) -> Result<Self, CodecError> {
        let part: Self = codec::decode(Kind::SnapshotPart, frame)?;
        let in_order = match &part {
            Self::Records { records, .. } => records.is_sorted_by(|one, two| one.key <= two.key) && !records.is_empty(),
            Self::Log(write_sets) => !write_sets.is_empty(),
            Self::Begin(_) | Self::Resumed(_) | Self::LogEnd(_) | Self::End(_) | Self::GivenUp(_) => true,
        };
        in_order.then_some(part).ok_or(CodecError::Malformed)
    }
}

/// Two histories of one origin, of equal length, that are not the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the two sides hold different histories of {0}")]
pub struct ForkedOrigin(pub Origin);

impl Frontier {
    /// This frontier without its digest.
    pub fn outline(&self) -> FrontierOutline {
        let (heads, epochs, stamps) = (self.heads.clone(), self.epochs.clone(), self.stamps.clone());
        FrontierOutline { heads, hlc: self.hlc, epochs, stamps }
    }

    /// What both have applied: of each origin the head that is ahead. `digest` is that of the joined
    /// records.
    ///
    /// # Errors
    /// When the two are equally far with an origin and do not hold the same history of it.
    pub fn join(&self, other: &FrontierOutline, digest: crate::Digest) -> Result<Self, ForkedOrigin> {
        let mut heads: BTreeMap<Origin, crate::ChainHead> = self.heads.iter().collect();
        for (origin, theirs) in other.heads.iter() {
            let ours = heads.entry(origin).or_insert(theirs);
            if ours.seq == theirs.seq && ours.hash != theirs.hash {
                return Err(ForkedOrigin(origin));
            }
            if theirs.seq > ours.seq {
                *ours = theirs;
            }
        }
        let mut epochs = self.epochs.clone();
        for (server_id, theirs) in &other.epochs {
            // Theirs is the newer where they know of ours.
            let ours = epochs.entry(*server_id).or_insert(*theirs);
            if other.heads.applied().seq(*ours) > 0 {
                *ours = *theirs;
            }
        }
        let mut stamps = self.stamps.clone();
        for (server_id, theirs) in &other.stamps {
            let ours = stamps.entry(*server_id).or_default();
            *ours = (*ours).max(*theirs);
        }
        Ok(Self { heads: heads.into(), digest, hlc: self.hlc.max(other.hlc), epochs, stamps })
    }
}

/// The records and the log of a donor, as a walk reads them: on any thread, while writes go on.
pub trait SnapshotRecords: LogSource {
    /// The first `limit` records behind `after`, in order of keys; fewer only at the end.
    ///
    /// # Errors
    /// When they cannot be read.
    fn records(&self, after: Option<&RecordKey>, limit: usize) -> Result<Vec<(RecordKey, Arc<Record>)>, String>;

    /// Up to where the log goes whose write sets [`SnapshotRecords::records`] shows.
    fn published_end(&self) -> LogPosition;

    /// Up to where the log is durable.
    fn durable_end(&self) -> LogPosition;
}

/// What a donor's walk does next.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum SnapshotStep {
    /// Send this.
    Part(Vec<u8>),
    /// What was read is not durable yet: poll again when more is.
    AwaitDurable,
    /// That was all.
    Done,
    /// It cannot be walked to its end, for this reason. The receiver begins again.
    Failed(String),
}

/// Where a walk is.
#[derive(Debug)]
enum Place {
    Beginning,
    /// Behind this record.
    Records(Option<RecordKey>),
    /// Pieces of a record, the first of which was sent.
    Pieces(RecordKey, std::vec::IntoIter<Record>),
    /// All records are read; the log is to be durable up to here.
    RecordsRead(LogPosition),
    /// In the log, which is sent up to `end`.
    Log {
        next: LogPosition,
        end: LogPosition,
        heads: ChainHeads,
    },
    /// All is sent that this adds up to.
    End(ChainHeads),
    Done,
}

/// A donor's walk over its records and its log: one snapshot.
#[derive(Debug)]
pub struct SnapshotSource {
    begin: SnapshotBegin,
    /// V's place in the donor's log.
    position: LogPosition,
    resumes: bool,
    place: Place,
    /// Where it goes on behind the first part.
    from: KeysHeld,
    /// How many records are read at a time: as many as make a part.
    page_records: usize,
    part_bytes: usize,
    records: u64,
}

/// Bytes that a part has, about.
const PART_BYTES: usize = wire::FEED_GROUP_BYTES_MAX / 2;
/// Records of a part at most.
pub(crate) const PART_RECORDS_MAX: usize = 4_096;

impl SnapshotSource {
    /// A walk that begins with what was durable and published at `position` of the donor's log. From
    /// then on until it ends, the donor keeps absorb entries that its frontier does not cover, and
    /// its log from there on.
    pub fn new(begin: SnapshotBegin, position: LogPosition) -> Self {
        let from = KeysHeld::Through(None);
        Self {
            begin,
            position,
            resumes: false,
            place: Place::Beginning,
            from,
            page_records: 64,
            part_bytes: PART_BYTES,
            records: 0,
        }
    }

    /// The same in parts of about so many bytes. Default 256 KiB, and no more.
    #[must_use]
    pub fn with_part_bytes(self, bytes: usize) -> Self {
        Self { part_bytes: bytes.clamp(1, PART_BYTES), ..self }
    }

    /// The same walk once more, from where a receiver has it. Not for keys that cannot be.
    pub fn resumed(begin: SnapshotBegin, position: LogPosition, keys: KeysHeld) -> Self {
        Self { resumes: true, from: keys, ..Self::new(begin, position) }
    }

    /// How many records were sent.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The next step. It reads about as much as one part holds.
    pub fn poll(&mut self, donor: &impl SnapshotRecords) -> SnapshotStep {
        let (step, place) = match std::mem::replace(&mut self.place, Place::Done) {
            Place::Beginning => self.begin(donor),
            Place::Records(after) => self.page(donor, after),
            Place::Pieces(key, pieces) => self.piece(key, pieces),
            Place::RecordsRead(end) if donor.durable_end() < end => {
                (SnapshotStep::AwaitDurable, Place::RecordsRead(end))
            }
            Place::RecordsRead(end) => {
                let heads = self.begin.start.heads.clone();
                self.log(donor, self.position, end, heads)
            }
            Place::Log { next, end, heads } => self.log(donor, next, end, heads),
            Place::End(heads) => (SnapshotStep::Part(SnapshotPart::End(heads).encode()), Place::Done),
            Place::Done => (SnapshotStep::Done, Place::Done),
        };
        self.place = place;
        step
    }

    fn begin(&mut self, donor: &impl SnapshotRecords) -> (SnapshotStep, Place) {
        let place = match std::mem::replace(&mut self.from, KeysHeld::All) {
            KeysHeld::Through(None) => Place::Records(None),
            KeysHeld::Through(Some(key)) => match RecordKey::from_bytes(key) {
                Some(key) => Place::Records(Some(key)),
                None => return (SnapshotStep::Failed("the key to go on from is none".to_owned()), Place::Done),
            },
            KeysHeld::All => Place::RecordsRead(self.log_end(donor)),
        };
        let part = match self.resumes {
            true => SnapshotPart::Resumed(self.begin.id),
            false => SnapshotPart::Begin(self.begin.clone()),
        };
        (SnapshotStep::Part(part.encode()), place)
    }

    /// Up to where the log is sent, once all records are read: they may show all that was published.
    fn log_end(&self, donor: &impl SnapshotRecords) -> LogPosition {
        match seeded_bug("snapshot-ends-where-it-began") {
            true => self.position,
            false => donor.published_end(),
        }
    }

    fn page(&mut self, donor: &impl SnapshotRecords, after: Option<RecordKey>) -> (SnapshotStep, Place) {
        let read = match donor.records(after.as_ref(), self.page_records) {
            Ok(read) => read,
            Err(reason) => return (SnapshotStep::Failed(reason), Place::Done),
        };
        let is_last = read.len() < self.page_records;
        let (mut records, mut bytes, mut taken) = (Vec::new(), 0, 0);
        for (key, record) in &read {
            let record_bytes = key.as_bytes().len() + record.encoded_bytes();
            if bytes > 0 && bytes + record_bytes > self.part_bytes {
                break;
            }
            if record_bytes > self.part_bytes {
                self.records += 1;
                return self.piece(key.clone(), record.pieces(self.part_bytes).into_iter());
            }
            bytes += record_bytes;
            taken += 1;
            records.push(SnapshotRecord { key: key.clone(), record: Record::clone(record) });
        }
        // As many as a part takes, should the next be alike.
        self.page_records = match taken == read.len() && bytes < self.part_bytes / 2 {
            true => self.page_records * 2,
            false => taken + taken / 8,
        };
        self.page_records = self.page_records.clamp(1, PART_RECORDS_MAX);
        self.records += taken as u64;
        let place = match is_last && taken == read.len() {
            true => Place::RecordsRead(self.log_end(donor)),
            false => Place::Records(records.last().map(|last| last.key.clone()).or(after)),
        };
        match (records.is_empty(), place) {
            (false, place) => (SnapshotStep::Part(SnapshotPart::Records { records, cut: false }.encode()), place),
            (true, place) => {
                self.place = place;
                let step = self.poll(donor);
                (step, std::mem::replace(&mut self.place, Place::Done))
            }
        }
    }

    fn piece(&mut self, key: RecordKey, mut pieces: std::vec::IntoIter<Record>) -> (SnapshotStep, Place) {
        let Some(piece) = pieces.next() else {
            return (SnapshotStep::Failed("a record lost its pieces".to_owned()), Place::Done);
        };
        let cut = pieces.len() > 0;
        let place = match cut {
            true => Place::Pieces(key.clone(), pieces),
            false => Place::Records(Some(key.clone())),
        };
        (SnapshotStep::Part(of_record(key, piece, cut).encode()), place)
    }

    fn log(
        &mut self,
        donor: &impl SnapshotRecords,
        next: LogPosition,
        end: LogPosition,
        mut heads: ChainHeads,
    ) -> (SnapshotStep, Place) {
        if next >= end {
            return (SnapshotStep::Part(SnapshotPart::LogEnd(next).encode()), Place::End(heads));
        }
        let failed = |reason: String| (SnapshotStep::Failed(reason), Place::Done);
        let batch = match donor.read(next, self.part_bytes) {
            Ok(batch) => batch,
            Err(error @ (LogReadError::Removed(_) | LogReadError::Damaged { .. } | LogReadError::Io(_))) => {
                return failed(error.to_string());
            }
        };
        for bytes in &batch.write_sets {
            let Ok(dot) = WriteSet::peek_dot(bytes) else {
                return failed("the log holds what is no write set".to_owned());
            };
            if heads.applied().seq(dot.origin) + 1 != dot.seq {
                return failed(format!("the log goes on with {dot}, which is not next"));
            }
            heads.extend(dot, bytes);
        }
        if batch.write_sets.is_empty() {
            return failed(format!("the log ends before {end}"));
        }
        let part = SnapshotPart::Log(batch.write_sets);
        (SnapshotStep::Part(part.encode()), Place::Log { next: batch.next, end, heads })
    }
}

fn of_record(key: RecordKey, record: Record, cut: bool) -> SnapshotPart {
    SnapshotPart::Records { records: vec![SnapshotRecord { key, record }], cut }
}
