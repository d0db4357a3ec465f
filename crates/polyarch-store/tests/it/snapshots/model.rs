//! Seeded histories of a few stores that write with current, stale and foreign contexts, are fed,
//! take checkpoints, remove their logs, crash, walk for each other and join what they fetched, all
//! of it interleaved. At every moment every store shows what the one-sentence oracle says of what it
//! has applied: the writes that no applied write superseded.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, Dot, FieldPath, Hlc};
use polyarch_protocol::peer::ClusterId;
use polyarch_protocol::{
    Change, Dependencies, Digest, Effect, KeysHeld, LogPosition, LogSource, RecordKey, SnapshotBegin, SnapshotId,
    SnapshotPart, SnapshotRecord, Storage, WriteSet,
};
use polyarch_store::files::simulated::{SimulatedDisk, SplitMix64};
use polyarch_store::log::LogConfig;
use polyarch_store::state::{MemoryOpener, MemoryState, Rollback, ScanRange};
use polyarch_store::{CheckpointConfig, JoinConfig, Pin, SnapshotReceiver, StoreConfig};

use crate::support::{Node, key, keyspace, origin};

const KEYS: u64 = 5;
type Failed = String;

/// A write set, its bytes, and what its origin had applied.
struct Written {
    write_set: WriteSet,
    bytes: Bytes,
    saw: AppliedSet,
}

struct Member {
    disk: SimulatedDisk,
    state: MemoryState,
    node: Node<SimulatedDisk, MemoryState>,
    /// Numbers its origins: every start has another.
    boots: u32,
    fetch: Option<Fetch>,
}

/// A snapshot on its way from another member.
struct Fetch {
    donor: usize,
    walk: Walk,
    receiver: SnapshotReceiver<SimulatedDisk>,
}

/// A walk that reads one record at a time, so that writes come between any two.
struct Walk {
    pin: Pin,
    begin: SnapshotBegin,
    place: Place,
}

enum Place {
    Beginning(KeysHeld),
    Behind(Option<RecordKey>),
    Pieces(RecordKey, Vec<polyarch_crdt::Record>),
    Log(LogPosition, LogPosition, polyarch_protocol::ChainHeads),
    Done,
}

struct World {
    random: SplitMix64,
    config: StoreConfig,
    members: Vec<Member>,
    written: BTreeMap<Dot, Written>,
    contexts: Vec<(u32, Vec<Dot>)>,
    walks: u128,
    /// How often what may happen did.
    joins: u32,
    joined_anew: u32,
}

fn config() -> StoreConfig {
    StoreConfig {
        log: LogConfig { segment_bytes: 600, allocate_bytes: 600, ..LogConfig::default() },
        checkpoint: CheckpointConfig { retry_log_bytes: 0, ..CheckpointConfig::default() },
        // Writes come between any two records of a join.
        join: JoinConfig { page_bytes: 1, batch_bytes: 1, flush_bytes: 500 },
        ..StoreConfig::default()
    }
}

impl World {
    fn new(seed: u64, config: StoreConfig) -> Self {
        let mut random = SplitMix64::new(seed);
        let members = (0..2 + random.below(3)).map(|number| {
            let (disk, state) = (SimulatedDisk::new(seed * 10 + number, 512), MemoryState::new());
            let node = Node::open(disk.clone(), MemoryOpener::new(state.clone()), &config).unwrap();
            Member { disk, state, node, boots: 0, fetch: None }
        });
        let members = members.collect();
        let (written, contexts) = (BTreeMap::new(), Vec::new());
        Self { random, config, members, written, contexts, walks: 0, joins: 0, joined_anew: 0 }
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.random.below(100) < percent
    }

    fn any(&mut self) -> usize {
        self.random.below(self.members.len() as u64) as usize
    }

    fn other(&mut self, at: usize) -> usize {
        (at + 1 + self.random.below(self.members.len() as u64 - 1) as usize) % self.members.len()
    }

    /// What happens beside all else: writes, feeds, checkpoints.
    fn small_step(&mut self) -> Result<(), Failed> {
        let at = self.any();
        match self.random.below(100) {
            0..40 => self.put(at),
            40..52 => {
                let number = self.random.below(KEYS) as u32;
                let record = self.members[at].node.store.record(&key(number)).unwrap();
                let dots = record.siblings(&FieldPath::opaque()).iter().map(|sibling| sibling.dot).collect();
                self.contexts.push((number, dots));
            }
            52..75 => {
                let receiver = self.other(at);
                self.feed(at, receiver);
            }
            75..92 => (0..=self.random.below(2)).for_each(|_| self.checkpoint(at)),
            _ => {
                let node = &mut self.members[at].node;
                let end = node.store.durable_end();
                node.store.remove_log_before(end).map_err(|error| error.to_string())?;
            }
        }
        if self.chance(70) {
            self.members[at].node.store.sync().unwrap();
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Failed> {
        let at = self.any();
        match self.random.below(100) {
            0..85 => self.small_step()?,
            85..88 => self.crash(at)?,
            _ => {
                let donor = self.other(at);
                self.begin_fetch(donor, at);
            }
        }
        for at in 0..self.members.len() {
            if self.chance(25) {
                self.fetch_step(at)?;
            }
        }
        self.judge()
    }

    fn put(&mut self, at: usize) {
        let origin = origin(at as u32 * 1_000 + self.members[at].boots);
        let mut changes = Vec::new();
        for number in 0..KEYS as u32 {
            if !self.chance(30) {
                continue;
            }
            // Mostly new ones: what another member showed and is not here yet.
            let seen = self.contexts.iter().rev().filter(|(of, _)| *of == number).take(4);
            let seen: Vec<_> = seen.cloned().collect();
            let supersedes = match self.random.below(100) {
                0..55 if !seen.is_empty() => seen[self.random.below(seen.len() as u64) as usize].1.clone(),
                0..85 => {
                    let record = self.members[at].node.store.record(&key(number)).unwrap();
                    record.siblings(&FieldPath::opaque()).iter().map(|sibling| sibling.dot).collect()
                }
                _ => Vec::new(),
            };
            let put = Effect::Put(format!("{}", self.random.below(1_000_000)).into());
            let effect = if self.chance(30) { Effect::Delete } else { put };
            let key = key(number).key_bytes();
            changes.push(Change { keyspace: keyspace(), key, field: FieldPath::opaque(), supersedes, effect });
        }
        if changes.is_empty() {
            return;
        }
        let node = &self.members[at].node;
        let saw = node.frontier.heads.applied().clone();
        let dot = Dot::new(origin, saw.seq(origin) + 1);
        let dependencies = match dot.seq {
            1 => Dependencies::Whole { predecessor: None, applied: Default::default() },
            _ => Dependencies::Changed(Default::default()),
        };
        let write_set = WriteSet { dot, hlc: Hlc::new(1_000 + saw.write_sets(), 0), dependencies, changes };
        let bytes = write_set.encode();
        self.apply(at, &write_set, &bytes);
        self.written.insert(dot, Written { write_set, bytes, saw });
    }

    fn apply(&mut self, at: usize, write_set: &WriteSet, bytes: &Bytes) {
        let node = &mut self.members[at].node;
        node.store.append(bytes, &node.frontier.heads).unwrap();
        let _ = node.frontier.apply(&mut node.store, write_set, bytes).unwrap();
    }

    /// One write set that the donor has and the receiver may apply next.
    fn feed(&mut self, donor: usize, receiver: usize) -> bool {
        self.members[donor].node.store.sync().unwrap();
        let has = self.members[donor].node.frontier.heads.applied().clone();
        let applied = self.members[receiver].node.frontier.heads.applied().clone();
        let next = |dot: Dot| Dot::new(dot.origin, applied.seq(dot.origin) + 1);
        let due: Vec<Dot> = has.iter().map(next).filter(|dot| has.includes(*dot)).collect();
        let due: Vec<Dot> = due.into_iter().filter(|dot| applied.includes_all(&self.written[dot].saw)).collect();
        if due.is_empty() {
            return false;
        }
        let dot = due[self.random.below(due.len() as u64) as usize];
        let (write_set, bytes) = (self.written[&dot].write_set.clone(), self.written[&dot].bytes.clone());
        self.apply(receiver, &write_set, &bytes);
        true
    }

    fn checkpoint(&mut self, at: usize) {
        let node = &mut self.members[at].node;
        node.store.sync().unwrap();
        if let Some(job) = node.store.begin_checkpoint_now(&node.frontier) {
            let _counted = node.store.finish_checkpoint(job.run().unwrap());
        }
    }

    /// Back to what is durable, at times with some records of a checkpoint that was cut short.
    fn crash(&mut self, at: usize) -> Result<(), Failed> {
        self.members.iter_mut().for_each(|member| drop(member.fetch.take_if(|fetch| fetch.donor == at)));
        let torn = self.random.below(4);
        let member = &mut self.members[at];
        if torn < 2 && member.node.store.sync().is_ok() {
            member.state.fail_after(1);
            let job = member.node.store.begin_checkpoint_now(&member.node.frontier).expect("nothing is staged");
            assert!(job.run().is_err());
        }
        member.disk.crash();
        member.state.crash(if torn < 2 { Rollback::Torn(torn) } else { Rollback::Unflushed });
        let opened = Node::open(member.disk.clone(), MemoryOpener::new(member.state.clone()), &self.config);
        member.node = opened.map_err(|error| format!("{at} does not open: {error}"))?;
        member.boots += 1;
        // A fetch goes on where its file ends, if the donor still holds what it had pinned.
        let pending = member.node.store.pending_snapshot(&member.node.frontier).map_err(|error| error.to_string())?;
        if let (Some(receiver), Some(fetch)) = (pending, member.fetch.take())
            && receiver.id() == fetch.walk.begin.id
        {
            let place = match receiver.is_whole() {
                true => Place::Done,
                false => Place::Beginning(receiver.resume().keys),
            };
            let walk = Walk { place, ..fetch.walk };
            self.members[at].fetch = Some(Fetch { donor: fetch.donor, walk, receiver });
        }
        Ok(())
    }

    fn begin_fetch(&mut self, donor: usize, at: usize) {
        if self.members[at].fetch.is_some() {
            return;
        }
        self.walks += 1;
        let node = &mut self.members[donor].node;
        node.store.sync().unwrap();
        let pin = node.store.pin(&node.frontier).expect("nothing is staged");
        let (id, start) = (SnapshotId(self.walks), pin.start().outline());
        let begin = SnapshotBegin { id, cluster_id: ClusterId(7), donor: donor as u32 + 1, start };
        let first = SnapshotPart::Begin(begin.clone()).encode();
        let files = self.members[at].node.store.snapshot_files().clone();
        let receiver = SnapshotReceiver::begin(files, &first).unwrap();
        let walk = Walk { pin, begin, place: Place::Behind(None) };
        self.members[at].fetch = Some(Fetch { donor, walk, receiver });
    }

    fn fetch_step(&mut self, at: usize) -> Result<(), Failed> {
        let Some(mut fetch) = self.members[at].fetch.take() else { return Ok(()) };
        if fetch.receiver.is_whole() {
            return self.join(at, fetch);
        }
        if !fetch.walk.pin.is_valid() {
            return Ok(());
        }
        let in_pieces = self.chance(30);
        let donor = &mut self.members[fetch.donor].node;
        donor.store.sync().unwrap();
        if let Some(part) = fetch.walk.next(donor, in_pieces)? {
            fetch.receiver.push(&part.encode()).map_err(|error| error.to_string())?;
        }
        self.members[at].fetch = Some(fetch);
        Ok(())
    }

    fn join(&mut self, at: usize, fetch: Fetch) -> Result<(), Failed> {
        let Fetch { donor, walk, receiver } = fetch;
        let node = &mut self.members[at].node;
        node.store.sync().unwrap();
        let job = node.store.begin_join(receiver, &node.frontier).ok().expect("all is quiet");
        let mut failed = None;
        let joined = job.run(|_| {
            let stepped = if self.chance(50) { self.small_step() } else { Ok(()) };
            failed = stepped.and_then(|()| self.judge()).err();
            failed.is_none()
        });
        if let Some(failed) = failed {
            return Err(failed);
        }
        let joined = joined.map_err(|error| error.to_string())?;
        for _ in 0..self.random.below(4) {
            self.small_step()?;
        }
        match self.random.below(10) {
            // The power goes, or somebody changes their mind: the file is still there.
            0 => {
                drop(joined);
                let node = &self.members[at].node;
                if let Some(receiver) = node.store.pending_snapshot(&node.frontier).map_err(|e| e.to_string())? {
                    self.members[at].fetch = Some(Fetch { donor, walk, receiver });
                    self.joined_anew += 1;
                }
                if self.chance(50) { self.crash(at) } else { Ok(()) }
            }
            _ => {
                let node = &mut self.members[at].node;
                node.store.sync().unwrap();
                node.frontier = node.store.adopt(joined, &node.frontier).map_err(|error| error.to_string())?;
                node.store.publish_staged();
                assert!(node.store.take_retired().is_some() && !self.members[at].state.has_next());
                self.joins += 1;
                Ok(())
            }
        }
    }

    /// Every store shows what the oracle says, and its digest is that of what it shows.
    fn judge(&mut self) -> Result<(), Failed> {
        for (number, member) in self.members.iter_mut().enumerate() {
            member.node.store.sync().unwrap();
            let expected = oracle(&self.written, member.node.frontier.heads.applied());
            let found = member.node.live();
            if found != expected {
                return Err(format!("{number} shows {found:#?} and not {expected:#?}"));
            }
            let mut digest = Digest::default();
            for (key, record) in member.node.store.reader().scan(&ScanRange::everything(), usize::MAX).unwrap() {
                for field in record.fields() {
                    field.siblings().iter().for_each(|sibling| digest.add(&key, field.path(), sibling));
                }
            }
            if digest != member.node.frontier.digest {
                return Err(format!("{number} has a digest of something else"));
            }
        }
        Ok(())
    }

    /// Feeds and snapshots go on until all have all.
    fn converge(&mut self) -> Result<(), Failed> {
        for _ in 0..5_000 {
            let first = self.members[0].node.frontier.heads.clone();
            let is_equal = |member: &Member| member.node.frontier.heads == first && member.fetch.is_none();
            if self.members.iter().all(is_equal) {
                let digest = &self.members[0].node.frontier.digest;
                assert!(self.members.iter().all(|member| member.node.frontier.digest == *digest));
                return self.judge();
            }
            let at = self.any();
            let donor = self.other(at);
            match self.members[at].fetch.is_some() {
                true => self.fetch_step(at)?,
                false => drop(self.feed(donor, at)),
            }
        }
        Err("they did not become equal".into())
    }
}

impl Walk {
    fn next(
        &mut self,
        donor: &Node<SimulatedDisk, MemoryState>,
        in_pieces: bool,
    ) -> Result<Option<SnapshotPart>, Failed> {
        let (part, place) = match std::mem::replace(&mut self.place, Place::Done) {
            Place::Beginning(KeysHeld::Through(after)) => {
                let after = after.and_then(RecordKey::from_bytes);
                (SnapshotPart::Resumed(self.begin.id), Place::Behind(after))
            }
            Place::Beginning(KeysHeld::All) => {
                let end = donor.store.durable_end();
                (SnapshotPart::Resumed(self.begin.id), Place::Log(self.pin.position(), end, self.heads()))
            }
            Place::Behind(after) => {
                let all = ScanRange::everything();
                let rest = after.map_or(all.clone(), |after| all.after(after));
                match donor.store.reader().scan(&rest, 1).unwrap().pop() {
                    Some((key, record)) if in_pieces => {
                        let mut pieces = record.pieces(1);
                        pieces.reverse();
                        let first = pieces.pop().unwrap();
                        self.piece(key, first, pieces)
                    }
                    Some((key, record)) => {
                        let record = polyarch_crdt::Record::clone(&record);
                        let records = vec![SnapshotRecord { key: key.clone(), record }];
                        (SnapshotPart::Records { records, cut: false }, Place::Behind(Some(key)))
                    }
                    None => {
                        let end = donor.store.durable_end();
                        self.place = Place::Log(self.pin.position(), end, self.heads());
                        return self.next(donor, in_pieces);
                    }
                }
            }
            Place::Pieces(key, mut pieces) => {
                let piece = pieces.pop().unwrap();
                self.piece(key, piece, pieces)
            }
            Place::Log(next, end, heads) if next >= end => (SnapshotPart::End(heads), Place::Done),
            Place::Log(next, end, mut heads) => {
                let read = donor.store.log_reader().read(next, 1).map_err(|error| error.to_string())?;
                for bytes in &read.write_sets {
                    heads.extend(WriteSet::peek_dot(bytes).unwrap(), bytes);
                }
                (SnapshotPart::Log(read.write_sets), Place::Log(read.next, end, heads))
            }
            Place::Done => return Ok(None),
        };
        self.place = place;
        Ok(Some(part))
    }

    fn heads(&self) -> polyarch_protocol::ChainHeads {
        self.begin.start.heads.clone()
    }

    fn piece(
        &self,
        key: RecordKey,
        record: polyarch_crdt::Record,
        rest: Vec<polyarch_crdt::Record>,
    ) -> (SnapshotPart, Place) {
        let records = vec![SnapshotRecord { key: key.clone(), record }];
        match rest.is_empty() {
            true => (SnapshotPart::Records { records, cut: false }, Place::Behind(Some(key))),
            false => (SnapshotPart::Records { records, cut: true }, Place::Pieces(key, rest)),
        }
    }
}

/// The register shows the writes that no applied write superseded.
fn oracle(written: &BTreeMap<Dot, Written>, applied: &AppliedSet) -> BTreeMap<RecordKey, String> {
    let applied: Vec<&WriteSet> =
        written.iter().filter(|(dot, _)| applied.includes(**dot)).map(|(_, written)| &written.write_set).collect();
    let changes = || applied.iter().flat_map(|w| w.changes.iter().map(|change| (w.dot, change)));
    let superseded: BTreeSet<(RecordKey, Dot)> =
        changes().flat_map(|(_, c)| c.supersedes.iter().map(|dot| (c.record_key(), *dot))).collect();
    let mut shown: BTreeMap<RecordKey, Vec<String>> = BTreeMap::new();
    for (dot, change) in changes() {
        if let Some(value) = change.effect.value()
            && !superseded.contains(&(change.record_key(), dot))
        {
            shown.entry(change.record_key()).or_default().push(format!("{dot}={}", String::from_utf8_lossy(value)));
        }
    }
    shown.into_iter().map(|(key, values)| (key, values.join(" "))).collect()
}

/// One history; says how many joins it had, and how many that were begun again.
fn run(seed: u64, config: &StoreConfig) -> Result<(u32, u32), Failed> {
    let mut world = World::new(seed, config.clone());
    for _ in 0..[80, 150, 250][world.random.below(3) as usize] {
        world.step()?;
    }
    world.converge()?;
    for at in 0..world.members.len() {
        world.checkpoint(at);
        world.crash(at)?;
    }
    world.judge()?;
    Ok((world.joins, world.joined_anew))
}

/// How many histories to run: set the variable to search for longer.
fn seeds() -> u64 {
    std::env::var("POLYARCH_SNAPSHOT_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(150)
}

#[test]
fn every_store_shows_the_writes_that_no_applied_write_superseded() {
    let (mut joins, mut anew) = (0, 0);
    for seed in 0..seeds() {
        let (joined, joined_anew) = run(seed, &config()).unwrap_or_else(|failed| panic!("seed {seed}: {failed}"));
        joins += joined;
        anew += joined_anew;
    }
    assert!(joins > 100 && anew > 5, "{joins} joins, {anew} begun again");
}

fn is_seen(bug: impl Fn(&mut StoreConfig)) -> bool {
    let mut config = config();
    bug(&mut config);
    (0..seeds()).any(|seed| run(seed, &config).is_err())
}

#[test]
fn a_log_that_no_pin_holds_is_missed() {
    assert!(is_seen(|config| config.bugs.log_not_pinned = true));
}

#[test]
fn without_its_log_a_snapshot_shows_what_was_not_applied() {
    assert!(is_seen(|config| config.bugs.join_without_log = true));
}
