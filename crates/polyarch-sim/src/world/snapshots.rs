//! Snapshots: the donor's walk, what comes in, the join and its adoption. As the real node's threads
//! and its driver do it, cut into events.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_protocol::{
    Durability, Input, KeysHeld, LinkId, SnapshotBegin, SnapshotId, SnapshotPart, SnapshotRequest, SnapshotSource,
    SnapshotStep, Storage, WriteSet,
};
use polyarch_store::{DonorRecords, Pin};

use super::faults::End;
use super::network::Parcel;
use super::{CLUSTER, Event, World};
use crate::disk::{SimIncoming, SimJoinJob, SimJoined};
use crate::fault::Fault;
use crate::invariants::{
    Checked, Violation, applied_once_and_in_order, nothing_leaves_before_durable, pinned_log_stays,
};
use crate::registers::Seen;

/// Walks that run at one time at a node.
const WALKS_MAX: usize = 4;
/// How long a donor may be silent.
const SILENT_MAX_US: u64 = 5_000_000;

/// What a process has to do with snapshots.
#[derive(Default)]
pub struct Snapshots {
    /// Walks under way, by link and fetch.
    walks: BTreeMap<(u64, u64), Walk>,
    /// What walks that broke off had pinned.
    held: BTreeMap<SnapshotId, (SnapshotBegin, Pin)>,
    /// Walks that are to begin once nothing is staged, by link and fetch.
    wanted: Vec<(u64, u64)>,
    /// A walk waits for what it read to be durable.
    awaits_durable: bool,
    fetching: Option<Fetching>,
    joining: Joining,
}

/// A donor's walk.
struct Walk {
    begin: SnapshotBegin,
    pin: Pin,
    source: SnapshotSource,
}

/// A fetch under way.
struct Fetching {
    link: u64,
    fetch: u64,
    donor: u32,
    /// What an earlier fetch left, until the donor says whether it goes on.
    held: Option<SimIncoming>,
    receiver: Option<SimIncoming>,
    heard_us: u64,
}

/// Where the join of a snapshot is.
#[derive(Default)]
enum Joining {
    #[default]
    No,
    /// The snapshot is whole in its file.
    Due(SimIncoming),
    /// It is to be run.
    Begun(Box<SimJoinJob>),
    /// It has ended, and the driver has not heard of it.
    Ended(Box<SimJoined>),
    /// It is to be adopted.
    Done(Box<SimJoined>),
}

impl Snapshots {
    /// Whether anything waits for a moment at which nothing is staged.
    pub(super) fn wants_sync(&self) -> bool {
        self.awaits_durable || !self.wanted.is_empty() || matches!(self.joining, Joining::Due(_) | Joining::Done(_))
    }

    /// What is joined is to be adopted before another checkpoint begins.
    pub(super) fn awaits_adoption(&self) -> bool {
        matches!(self.joining, Joining::Done(_))
    }

    /// Whether a snapshot that has come whole is not yet adopted.
    pub(super) fn is_joining(&self) -> bool {
        !matches!(self.joining, Joining::No)
    }

    /// Whether a snapshot is on its way in, out, or being joined.
    pub(super) fn is_in_use(&self) -> bool {
        self.fetching.is_some() || !self.walks.is_empty() || self.is_joining()
    }
}

/// The donor's side.
impl World {
    pub(super) fn snapshot_asked(&mut self, at: usize, link: u64, fetch: u64, frame: &Bytes) -> Checked {
        let request = SnapshotRequest::decode(frame).map_err(|error| {
            Violation::new("messages_decode", format!("node {}: {error}", self.nodes[at].server_id))
        })?;
        self.push_input(at, Input::SnapshotSent { link: LinkId(link), begins: true }, None);
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        let snapshots = &mut process.snapshots;
        if snapshots.walks.len() + snapshots.wanted.len() >= WALKS_MAX {
            self.give_up_snapshot(at, link, fetch, format!("it sends {WALKS_MAX} snapshots already"));
            return Ok(());
        }
        let held = request.resume.and_then(|resume| Some((snapshots.held.remove(&resume.id)?, resume.keys)));
        match held.filter(|((_, pin), _)| pin.is_valid()) {
            Some(((begin, pin), keys)) => self.begin_walk(at, (link, fetch), begin, pin, Some(keys)),
            None => {
                snapshots.wanted.push((link, fetch));
                self.push_input(at, Input::Tick, None);
            }
        }
        Ok(())
    }

    fn give_up_snapshot(&mut self, at: usize, link: u64, fetch: u64, reason: String) {
        self.note(format_args!("node {} gives up a snapshot: {reason}", at + 1));
        self.push_input(at, Input::SnapshotSent { link: LinkId(link), begins: false }, None);
        let frame = SnapshotPart::GivenUp(reason).encode().into();
        self.send(at, link, Parcel::Snapshot { fetch, frame });
    }

    fn begin_walk(&mut self, at: usize, key: (u64, u64), begin: SnapshotBegin, pin: Pin, keys: Option<KeysHeld>) {
        let position = pin.position();
        let source = match keys {
            Some(keys) => SnapshotSource::resumed(begin.clone(), position, keys),
            None => SnapshotSource::new(begin.clone(), position),
        };
        let source = source.with_part_bytes(self.scenario.part_bytes);
        let boot = self.nodes[at].boot;
        let Some(process) = self.nodes[at].process.as_mut() else { return };
        process.snapshots.walks.insert(key, Walk { begin, pin, source });
        self.after(1, Event::PollSnapshot { at, boot, link: key.0, fetch: key.1 });
    }

    /// Reads on for a walk.
    pub(super) fn poll_snapshot(&mut self, at: usize, boot: u64, link: u64, fetch: u64) -> Checked {
        let again = Event::PollSnapshot { at, boot, link, fetch };
        if let Some(left_us) = self.pause_left(at) {
            self.after(left_us, again);
            return Ok(());
        }
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        let published_end = process.published_end;
        let records = DonorRecords { records: &process.reader, log: &process.log, published_end: || published_end };
        let Some(walk) = process.snapshots.walks.get_mut(&(link, fetch)) else { return Ok(()) };
        let step = match walk.pin.is_valid() {
            true => {
                let step = walk.source.poll(&records);
                pinned_log_stays::check(at as u32 + 1, self.evidence[at].log_is_damaged(), &step)?;
                step
            }
            false => SnapshotStep::Failed("it joined a snapshot itself".to_owned()),
        };
        match step {
            SnapshotStep::Part(frame) => {
                let frame = Bytes::from(frame);
                self.check_leaving_part(at, &frame)?;
                self.send(at, link, Parcel::Snapshot { fetch, frame });
                let delay_us = self.between(self.scenario.walk_gap_us);
                self.after(delay_us, again);
                if self.is_the_moment(at, |armed| &mut armed.in_walk, Fault::KillDonor) {
                    return self.end_suddenly(at);
                }
                self.checkpoint_within_walk(at, boot);
            }
            SnapshotStep::AwaitDurable => {
                process.snapshots.awaits_durable = true;
                self.push_input(at, Input::Tick, None);
                self.after(1_000, again);
            }
            SnapshotStep::Done => {
                process.snapshots.walks.remove(&(link, fetch));
                self.push_input(at, Input::SnapshotSent { link: LinkId(link), begins: false }, None);
            }
            SnapshotStep::Failed(reason) => {
                process.snapshots.walks.remove(&(link, fetch));
                self.give_up_snapshot(at, link, fetch, reason);
            }
        }
        Ok(())
    }

    /// Checkpoints let go of what no walk needs: some come between the parts of one.
    fn checkpoint_within_walk(&mut self, at: usize, boot: u64) {
        if !self.rng.chance(300) {
            return;
        }
        if let Some(process) = self.nodes[at].process_of(boot) {
            process.is_checkpoint_due = true;
        }
        self.begin_due_checkpoint(at, boot);
    }

    /// What a snapshot is joined up to is on the donor's disk.
    fn check_leaving_part(&self, at: usize, frame: &Bytes) -> Checked {
        let durable = self.history.node(at).durable().seen();
        let server_id = self.nodes[at].server_id;
        match SnapshotPart::decode(frame) {
            Ok(SnapshotPart::Begin(begin)) => {
                nothing_leaves_before_durable::check(server_id, durable, begin.start.heads.applied().iter(), "a walk")
            }
            Ok(SnapshotPart::Log(write_sets)) => {
                let dots = write_sets.iter().filter_map(|bytes| WriteSet::peek_dot(bytes).ok());
                nothing_leaves_before_durable::check(server_id, durable, dots, "a snapshot's log")
            }
            Ok(SnapshotPart::End(heads)) => {
                nothing_leaves_before_durable::check(server_id, durable, heads.applied().iter(), "a snapshot")
            }
            Ok(
                SnapshotPart::Resumed(_)
                | SnapshotPart::Records { .. }
                | SnapshotPart::LogEnd(_)
                | SnapshotPart::GivenUp(_),
            ) => Ok(()),
            Err(error) => Err(Violation::new("messages_decode", format!("node {server_id} sends {error}"))),
        }
    }

    /// A link is gone: what its walks had pinned is held for a while.
    pub(super) fn break_walks(&mut self, at: usize, link: u64) {
        let boot = self.nodes[at].boot;
        let Some(process) = self.nodes[at].process.as_mut() else { return };
        let snapshots = &mut process.snapshots;
        snapshots.wanted.retain(|(of, _)| *of != link);
        let broken: Vec<_> = snapshots.walks.extract_if(.., |(of, _), _| *of == link).map(|(_, walk)| walk).collect();
        for Walk { begin, pin, .. } in broken {
            let id = begin.id;
            if let Some(process) = self.nodes[at].process.as_mut() {
                process.snapshots.held.insert(id, (begin, pin));
            }
            let delay_us = self.between((500_000, 20_000_000));
            self.after(delay_us, Event::ForgetWalk { at, boot, id });
        }
    }

    pub(super) fn forget_walk(&mut self, at: usize, boot: u64, id: SnapshotId) {
        if let Some(process) = self.nodes[at].process_of(boot) {
            process.snapshots.held.remove(&id);
        }
    }

    /// Begins the walks that waited for a moment at which nothing is staged.
    fn begin_walks(&mut self, at: usize) {
        let Some(process) = self.nodes[at].process.as_mut() else { return };
        process.snapshots.awaits_durable = false;
        for key in std::mem::take(&mut process.snapshots.wanted) {
            let id = SnapshotId((u128::from(self.rng.bits()) << 64) | u128::from(self.rng.bits()));
            let Some(process) = self.nodes[at].process.as_mut() else { return };
            let frontier = process.replica.frontier().clone();
            let Some(pin) = process.replica.storage_mut().store.pin(&frontier) else {
                process.snapshots.wanted.push(key);
                continue;
            };
            let start = pin.start().outline();
            let begin = SnapshotBegin { id, cluster_id: CLUSTER, donor: self.nodes[at].server_id, start };
            self.begin_walk(at, key, begin, pin, None);
        }
    }
}

/// The receiver's side.
impl World {
    /// Fetches a snapshot, or goes on with what an earlier fetch left.
    pub(super) fn fetch_snapshot(&mut self, at: usize, link: LinkId) {
        self.report.snapshots.begun += 1;
        let boot = self.nodes[at].boot;
        let Some(process) = self.nodes[at].process.as_mut() else { return };
        let from = process.replica.fetches_snapshot_from();
        let (true, Some(donor)) = (process.links.contains_key(&link), from) else {
            return self.fetch_ends(at, "its link is gone".to_owned());
        };
        let files = process.replica.storage().store.snapshot_files().clone();
        let held = match SimIncoming::open(files) {
            Ok(held) => held.filter(|held| held.begun().donor == donor && held.begun().cluster_id == CLUSTER),
            Err(error) => return self.fetch_ends(at, error.to_string()),
        };
        let held = match held {
            Some(whole) if whole.is_whole() => {
                process.snapshots.joining = Joining::Due(whole);
                return self.push_input(at, Input::Tick, None);
            }
            held => held,
        };
        let resume = held.as_ref().map(SimIncoming::resume);
        self.fetches_made += 1;
        let (fetch, heard_us) = (self.fetches_made, self.now_us);
        process.snapshots.fetching = Some(Fetching { link: link.0, fetch, donor, held, receiver: None, heard_us });
        let frame = SnapshotRequest { resume }.encode().into();
        self.send(at, link.0, Parcel::AskSnapshot { fetch, frame });
        self.after(SILENT_MAX_US, Event::SnapshotSilence { at, boot, fetch });
    }

    /// Whether the donor has been silent for too long.
    pub(super) fn snapshot_silence(&mut self, at: usize, boot: u64, fetch: u64) {
        let now_us = self.now_us;
        let Some(process) = self.nodes[at].process_of(boot) else { return };
        let Some(fetching) = process.snapshots.fetching.as_ref().filter(|fetching| fetching.fetch == fetch) else {
            return;
        };
        match (fetching.heard_us + SILENT_MAX_US).checked_sub(now_us).filter(|left_us| *left_us > 0) {
            Some(left_us) => self.after(left_us, Event::SnapshotSilence { at, boot, fetch }),
            None => self.fetch_ends(at, "it is silent".to_owned()),
        }
    }

    /// A fetch has ended without a snapshot.
    fn fetch_ends(&mut self, at: usize, reason: String) {
        if let Some(process) = self.nodes[at].process.as_mut() {
            process.snapshots.fetching = None;
        }
        self.push_input(at, Input::SnapshotFailed(reason), None);
    }

    /// A link is gone, and with it what was fetched on it.
    pub(super) fn break_fetch(&mut self, at: usize, link: u64) {
        let Some(process) = self.nodes[at].process.as_ref() else { return };
        if process.snapshots.fetching.as_ref().is_some_and(|fetching| fetching.link == link) {
            self.fetch_ends(at, "the link is gone".to_owned());
        }
    }

    /// A part has come.
    pub(super) fn snapshot_part(&mut self, at: usize, fetch: u64, frame: &Bytes) -> Checked {
        let now_us = self.now_us;
        if self.nodes[at].process.is_some() && self.is_the_moment(at, |armed| &mut armed.in_fetch, Fault::KillReceiver)
        {
            return self.end_suddenly(at);
        }
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        let files = process.replica.storage().store.snapshot_files().clone();
        let Some(fetching) = process.snapshots.fetching.as_mut().filter(|fetching| fetching.fetch == fetch) else {
            return Ok(());
        };
        fetching.heard_us = now_us;
        let is_resumed = fetching.receiver.is_none() && fetching.held.is_some();
        let pushed = match fetching.receiver.as_mut() {
            Some(receiver) => receiver.push(frame).map_err(|error| error.to_string()),
            None => fetching.first_part(files, frame),
        };
        if let Err(reason) = pushed {
            if self.armed[at].power_cut {
                return self.stop(at, End::PowerCut);
            }
            self.fetch_ends(at, reason);
            return Ok(());
        }
        let took_up = is_resumed
            && fetching.held.is_none()
            && matches!(SnapshotPart::decode(frame), Ok(SnapshotPart::Resumed(_)));
        self.report.snapshots.resumed += usize::from(took_up);
        if let Some(receiver) = fetching.receiver.take_if(|receiver| receiver.is_whole()) {
            process.snapshots.fetching = None;
            process.snapshots.joining = Joining::Due(receiver);
            self.push_input(at, Input::Tick, None);
        }
        Ok(())
    }

    /// An earlier process may have fetched a snapshot whole and not come to join it.
    pub(super) fn find_snapshot(&mut self, at: usize) {
        let Some(process) = self.nodes[at].process.as_mut() else { return };
        let (store, frontier) = process.replica.storage_and_frontier();
        match store.store.pending_snapshot(frontier) {
            Ok(Some(snapshot)) if snapshot.is_whole() => {
                let donor = snapshot.begun().donor;
                process.snapshots.joining = Joining::Due(snapshot);
                self.note(format_args!("node {} finds a whole snapshot of node {donor}", at + 1));
                self.push_input(at, Input::SnapshotHeld(donor), None);
            }
            Ok(_) => {}
            Err(error) => self.note(format_args!("node {}: {error}", at + 1)),
        }
    }
}

impl Fetching {
    /// The first part says whether it goes on with what is held.
    fn first_part(
        &mut self,
        files: polyarch_store::files::simulated::SimulatedDisk,
        frame: &Bytes,
    ) -> Result<(), String> {
        self.receiver = Some(match SnapshotPart::decode(frame).map_err(|error| error.to_string())? {
            SnapshotPart::Begin(begin) if begin.cluster_id != CLUSTER || begin.donor != self.donor => {
                return Err(format!("it is of server {} of cluster {}", begin.donor, begin.cluster_id));
            }
            SnapshotPart::Begin(_) => SimIncoming::begin(files, frame).map_err(|error| error.to_string())?,
            SnapshotPart::GivenUp(reason) => return Err(reason),
            _ => {
                let mut held = self.held.take().ok_or_else(|| "it goes on with what was not asked for".to_owned())?;
                held.push(frame).map_err(|error| error.to_string())?;
                held
            }
        });
        Ok(())
    }
}

/// The join, and its adoption.
impl World {
    /// Does what waits for a moment at which nothing is staged.
    pub(super) fn go_on_with_snapshots(&mut self, at: usize) -> Checked {
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        if !process.snapshots.wants_sync() {
            return Ok(());
        }
        if process.has_failed || process.replica.has_failed() {
            for (link, fetch) in std::mem::take(&mut process.snapshots.wanted) {
                self.give_up_snapshot(at, link, fetch, "its log takes nothing more".to_owned());
            }
            return Ok(());
        }
        if process.is_syncing || process.is_staged() {
            process.sync_due_us = 0;
            return Ok(());
        }
        self.begin_walks(at);
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        match std::mem::take(&mut process.snapshots.joining) {
            Joining::Due(snapshot) => self.begin_join(at, snapshot),
            Joining::Done(joined) => return self.adopt(at, *joined),
            other => process.snapshots.joining = other,
        }
        Ok(())
    }

    fn begin_join(&mut self, at: usize, snapshot: SimIncoming) {
        let boot = self.nodes[at].boot;
        let Some(process) = self.nodes[at].process.as_mut() else { return };
        let frontier = process.replica.frontier().clone();
        match process.replica.storage_mut().store.begin_join(snapshot, &frontier) {
            Ok(job) => {
                process.snapshots.joining = Joining::Begun(Box::new(job));
                let delay_us = self.between((100, 500_000));
                self.after(delay_us, Event::RunJoin { at, boot });
            }
            Err(snapshot) => process.snapshots.joining = Joining::Due(snapshot),
        }
    }

    /// Joins, in one go.
    pub(super) fn run_join(&mut self, at: usize, boot: u64) -> Checked {
        if let Some(left_us) = self.pause_left(at) {
            self.after(left_us, Event::RunJoin { at, boot });
            return Ok(());
        }
        let dies = std::mem::take(&mut self.armed[at].in_join);
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        let Joining::Begun(job) = std::mem::take(&mut process.snapshots.joining) else { return Ok(()) };
        if dies {
            self.lose_power_soon(at);
        }
        let joined = job.run(|_| true);
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        match joined {
            Ok(joined) => {
                process.snapshots.joining = Joining::Ended(Box::new(joined));
                let delay_us = self.between((100, 300_000));
                self.after(delay_us, Event::Joined { at, boot });
            }
            Err(error) => {
                let is_of_the_snapshot = error.is_of_the_snapshot();
                self.note(format_args!("node {}: {error}", at + 1));
                if is_of_the_snapshot && !std::mem::take(&mut self.evidence[at].snapshot_is_damaged) {
                    // No donor sends, and no disk keeps, what cannot be joined.
                    let what = format!("node {} cannot join what its donor sent: {error}", at + 1);
                    return Err(Violation::new(crate::invariants::snapshots_can_be_joined::NAME, what));
                }
                self.push_input(at, Input::SnapshotFailed(error.to_string()), None);
            }
        }
        match dies {
            true => self.stop(at, End::PowerCutInCheckpoint),
            false => Ok(()),
        }
    }

    /// The power goes after some more changes of the disk or of the state.
    fn lose_power_soon(&mut self, at: usize) {
        let changes = self.rng.below(8);
        match self.rng.chance(500) {
            true => self.nodes[at].devices.state().fail_after(changes as usize),
            false => self.nodes[at].devices.files().stop_after(changes),
        }
        self.armed[at].power_cut = true;
    }

    /// The driver hears that the join has ended.
    pub(super) fn join_ended(&mut self, at: usize, boot: u64) {
        if let Some(left_us) = self.pause_left(at) {
            return self.after(left_us, Event::Joined { at, boot });
        }
        let Some(process) = self.nodes[at].process_of(boot) else { return };
        process.snapshots.joining = match std::mem::take(&mut process.snapshots.joining) {
            Joining::Ended(joined) => Joining::Done(joined),
            other => other,
        };
        self.push_input(at, Input::Tick, None);
    }

    /// Takes the joined state in the place of the present one, if no checkpoint runs.
    fn adopt(&mut self, at: usize, joined: SimJoined) -> Checked {
        let server_id = self.nodes[at].server_id;
        let now = self.nodes[at].now(self.now_us);
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        if !process.replica.storage().store.may_adopt() {
            process.snapshots.joining = Joining::Done(Box::new(joined));
            return Ok(());
        }
        self.history.adopts(at, server_id, joined.snapshot_heads())?;
        let dies = std::mem::take(&mut self.armed[at].in_adoption);
        if dies {
            self.lose_power_soon(at);
        }
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        let frontier = process.replica.frontier().clone();
        let adopted = process.replica.storage_mut().store.adopt(joined, &frontier);
        let is_fatal = adopted.as_ref().is_err_and(polyarch_store::AdoptError::is_fatal);
        if dies || (is_fatal && self.armed[at].power_cut) {
            self.note(format_args!("node {server_id} loses power in an adoption: {:?}", adopted.err()));
            return self.stop(at, End::PowerCut);
        }
        let frontier = match adopted {
            Ok(frontier) => frontier,
            Err(error) if is_fatal => {
                process.has_failed = true;
                self.push_input(at, Input::StorageFailed(error.to_string()), None);
                return Ok(());
            }
            Err(error) => {
                self.history.adopts_not(at);
                process.durable_end = process.replica.storage().store.durable_end();
                self.push_input(at, Input::SnapshotFailed(error.to_string()), None);
                return Ok(());
            }
        };
        if let Err(error) = process.replica.adopt(frontier, now) {
            process.has_failed = true;
            self.push_input(at, Input::StorageFailed(error.to_string()), None);
            return Ok(());
        }
        self.adopted(at)
    }

    /// A joined state is current: looks at it, and shows it.
    fn adopted(&mut self, at: usize) -> Checked {
        let server_id = self.nodes[at].server_id;
        self.report.snapshots.joined += 1;
        // What the state was before cannot be had from the log.
        self.armed[at].has_rolled_back = true;
        let gained = self.history.adopted(at);
        self.evidence[at].adopted(gained.iter().map(|written| &written.dot));
        self.note(format_args!("node {server_id} adopts a snapshot, {} write sets", gained.len()));
        for written in &gained {
            if let Some(removed) = &self.operators.removed {
                removed.check(server_id, written.dot)?;
            }
            if written.dot.origin.server_id == server_id {
                self.note_own_came(at, written.dot);
            }
        }
        // What had waited for what the snapshot brought.
        self.note_appended(at, None)?;
        let Some(process) = &self.nodes[at].process else { return Ok(()) };
        let applied = Seen::from(process.replica.frontier().heads.applied());
        let heads = process.replica.frontier().heads.clone();
        let staged = self.history.node(at).staged().seen();
        if applied != *staged {
            let what = format!("node {server_id} says it has joined {applied:?}, and both sides had {staged:?}");
            return Err(Violation::new(applied_once_and_in_order::NAME, what));
        }
        self.history.check_chains(server_id, &heads)?;
        self.check_digest(at)?;
        self.show_adopted(at)
    }

    /// Readers see it, and what was applied over it, as this node's durability has it.
    fn show_adopted(&mut self, at: usize) -> Checked {
        let boot = self.nodes[at].boot;
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        process.durable_end = process.replica.storage().store.durable_end();
        if process.is_staged() && self.scenario.durability[at] == Durability::Sync {
            self.sync_done(at, boot)?;
        } else {
            process.replica.storage_mut().store.publish_staged();
            process.published_end = process.replica.storage().staged_end();
            process.published = match self.scenario.durability[at] {
                Durability::Sync => process.replica.durable_applied().clone(),
                Durability::Interval => process.replica.frontier().heads.applied().clone(),
            };
            process.catalog = process.replica.catalog().clone();
            self.history.published(at);
        }
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        if let Some(retired) = process.replica.storage_mut().store.take_retired() {
            // A walk that ends with this reads it no more.
            drop(retired.remove());
        }
        self.inspect(at)?;
        self.perform(at)?;
        self.serve_waiting(at)
    }
}
