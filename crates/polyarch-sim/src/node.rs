//! One simulated node: its devices, its clocks, and the process that runs on them.
//!
//! A process does what the real driver does, around the shipped replica, store and feeds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Record};
use polyarch_protocol::catalog::Catalog;
use polyarch_protocol::peer::PeerVersion;
use polyarch_protocol::{
    Bases, BucketKeys, BucketReader, BucketsWanted, ChainHeads, Feed, Input, KeyspaceId, LinkId, LogPosition, Now,
    RecordKey, Records, Replica, ReplicaConfig, RequestTag, Storage, StorageError,
};
use polyarch_store::state::ScanRange;
use polyarch_store::{OpenError, StateReport, StoreConfig};

use crate::disk::{Devices, SimCheckpointJob, SimLogReader, SimStateReader, SimStore};
use crate::history::Intent;
use crate::registers::Seen;
use crate::world::{Salvaging, Snapshots};

/// A machine with a place in the cluster.
#[derive(Debug)]
pub struct Node {
    /// Its server id.
    pub server_id: u32,
    /// Its devices.
    pub devices: Devices,
    /// Its clock.
    pub clock: WallClock,
    /// The process, while one runs.
    pub process: Option<Process>,
    /// How many processes were started; tells events for an earlier one apart.
    pub boot: u64,
    /// Nothing happens here until then, as on a suspended machine.
    pub paused_until_us: u64,
}

/// A wall clock that may be wrong.
#[derive(Debug, Clone)]
pub struct WallClock {
    /// Added to the true time.
    pub offset_ms: i64,
    /// The clock moves in steps of so many milliseconds.
    pub step_ms: u64,
    /// Where it stands still, if it does.
    pub frozen_ms: Option<u64>,
    /// It jumps to and fro each so many microseconds, by so many milliseconds, if it does.
    pub strobe: Option<(u64, i64)>,
    /// The least that a process here read of it.
    pub least_ms: u64,
}

/// Unix milliseconds at which runs begin.
const EPOCH_MS: u64 = 1_764_950_400_000;

impl WallClock {
    /// What it shows.
    pub fn read(&self, now_us: u64) -> u64 {
        let true_ms = EPOCH_MS + now_us / 1_000;
        let strobe_ms = match self.strobe {
            Some((every_us, by_ms)) if now_us / every_us % 2 == 1 => by_ms,
            _ => 0,
        };
        let shown = self.frozen_ms.unwrap_or_else(|| true_ms.saturating_add_signed(self.offset_ms + strobe_ms));
        shown - shown % self.step_ms.max(1)
    }
}

/// A running process.
pub struct Process {
    /// The shipped replica over the shipped store.
    pub replica: Replica<Observed>,
    /// Reads what is published.
    pub reader: SimStateReader,
    /// Reads the durable log, for feeds.
    pub log: SimLogReader,
    /// What waits to be handled, with what a client meant by it.
    pub inputs: VecDeque<(Input, Option<Intent>)>,
    /// A sync is running.
    pub is_syncing: bool,
    /// Before then an interval node does not sync again.
    pub sync_due_us: u64,
    /// Up to where the log is synced.
    pub durable_end: LogPosition,
    /// Up to where the log goes whose write sets readers see.
    pub published_end: LogPosition,
    /// What is published to readers.
    pub published: AppliedSet,
    /// What the system keyspace says, as published.
    pub catalog: Arc<Catalog>,
    /// Requests that wait for what their session has seen.
    pub waiting: Vec<WaitingRequest>,
    /// Links to other nodes.
    pub links: BTreeMap<LinkId, LinkEnd>,
    /// Checkpoint that is to be run.
    pub checkpoint: Option<SimCheckpointJob>,
    /// One is to begin as soon as all is synced.
    pub is_checkpoint_due: bool,
    /// What it sends and takes of snapshots.
    pub snapshots: Snapshots,
    /// What it has yet to apply of what a repair found.
    pub salvaging: Option<Salvaging>,
    /// The log failed: no more writes until a restart.
    pub has_failed: bool,
}

/// A request that waits for its token, or for its turn.
#[derive(Debug, Clone)]
pub struct WaitingRequest {
    /// Who asks.
    pub tag: RequestTag,
    /// What, as it came.
    pub frame: Bytes,
    /// When the node gives up.
    pub deadline_us: u64,
    /// What the client means by it, if it writes.
    pub intent: Option<Intent>,
}

/// One end of a link.
#[derive(Debug)]
pub struct LinkEnd {
    /// The network's number of the link.
    pub network_id: u64,
    /// Which of its two ends this is.
    pub side: usize,
    /// The node at the other end.
    pub peer: usize,
    /// What is spoken on it.
    pub version: PeerVersion,
    /// What is served on it.
    pub serving: Option<Serving>,
    /// How many streams were opened on it.
    pub streams: u64,
    /// Groups that came and wait for their turn, each with its stream.
    pub arrived: VecDeque<(u64, Bytes)>,
    /// Streams of the groups that the replica has and has not yet taken.
    pub in_hand: VecDeque<u64>,
}

/// A feed on its way.
#[derive(Debug)]
pub struct Serving {
    /// The shipped feed.
    pub feed: Feed,
    /// The stream its groups go on.
    pub stream: u64,
    /// What was sent on it.
    pub sent: Seen,
    /// Groups sent and not yet taken by the other side.
    pub in_flight: usize,
}

impl Node {
    /// Starts a process, as a machine does that finds its data directory.
    ///
    /// # Errors
    /// When the store does not open.
    pub fn start(&mut self, config: ReplicaConfig, store: &StoreConfig, now: Now) -> Result<StateReport, OpenError> {
        let (store, frontier, report) = self.devices.open(store)?;
        let (reader, log, durable_end) = (store.reader(), store.log_reader(), store.durable_end());
        let published = frontier.heads.applied().clone();
        let observed = Observed { store, appended: Vec::new() };
        let replica = Replica::open(config, observed, frontier, now).map_err(OpenError::Replay)?;
        let catalog = Arc::clone(replica.catalog());
        self.boot += 1;
        self.process = Some(Process {
            replica,
            catalog,
            reader,
            log,
            inputs: VecDeque::new(),
            is_syncing: false,
            sync_due_us: 0,
            durable_end,
            published_end: durable_end,
            published,
            waiting: Vec::new(),
            links: BTreeMap::new(),
            checkpoint: None,
            is_checkpoint_due: false,
            snapshots: Snapshots::default(),
            salvaging: None,
            has_failed: false,
        });
        Ok(report.state)
    }

    /// The time as a process here reads it.
    pub fn now(&mut self, now_us: u64) -> Now {
        let wall_ms = self.clock.read(now_us);
        self.clock.least_ms = self.clock.least_ms.min(wall_ms);
        Now { wall_ms, mono_ms: now_us / 1_000 }
    }

    /// The running process, if it is the one that `boot` names and is not paused.
    pub fn process_of(&mut self, boot: u64) -> Option<&mut Process> {
        match self.boot == boot {
            true => self.process.as_mut(),
            false => None,
        }
    }
}

impl Process {
    /// Whether anything waits for a sync.
    pub fn is_staged(&self) -> bool {
        self.replica.storage().staged_end() > self.durable_end
    }

    /// The keys of some buckets, if they are published as they are wanted.
    pub fn keys_of(&self, wanted: BucketsWanted) -> Option<BucketKeys> {
        let mut reader = BucketReader::new(wanted);
        if *reader.applied() != self.published {
            return None;
        }
        let records = self.reader.scan(&ScanRange::everything(), usize::MAX).ok()?;
        records.iter().for_each(|(key, record)| _ = reader.take(key, record));
        Some(reader.finish())
    }

    /// Whether all that came in is handled and synced.
    pub fn is_at_rest(&self) -> bool {
        !self.is_syncing && self.inputs.is_empty() && !self.is_staged()
    }
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("durable_end", &self.durable_end).finish_non_exhaustive()
    }
}

/// The shipped store, with an ear to what the replica gives its log.
pub struct Observed {
    /// The store.
    pub store: SimStore,
    /// What was appended since it was last asked, each with where it ends.
    pub appended: Vec<(Bytes, LogPosition)>,
}

impl Records for Observed {
    fn record_mut(&mut self, key: &RecordKey) -> Result<&mut Record, StorageError> {
        self.store.record_mut(key)
    }
}

impl Storage for Observed {
    fn record(&mut self, key: &RecordKey) -> Result<Record, StorageError> {
        self.store.record(key)
    }

    fn append(&mut self, write_set: &Bytes, before: &ChainHeads) -> Result<LogPosition, StorageError> {
        let end = self.store.append(write_set, before)?;
        self.appended.push((write_set.clone(), end));
        Ok(end)
    }

    fn has_room(&mut self, write_set_bytes: usize, before: &ChainHeads) -> Result<bool, StorageError> {
        self.store.has_room(write_set_bytes, before)
    }

    fn staged_end(&self) -> LogPosition {
        self.store.staged_end()
    }

    fn share_bases(&mut self, bases: &Bases) {
        self.store.share_bases(bases);
    }

    fn keyspace_records(&mut self, keyspace: KeyspaceId) -> Result<Vec<(RecordKey, Record)>, StorageError> {
        self.store.keyspace_records(keyspace)
    }
}
