//! One run: nodes, network, clients and faults on one virtual clock.
//!
//! Events happen in the order of their times, and those of one time in the order in which they
//! were scheduled; everything else is drawn from the seed. So a seed is a run.

mod clients;
mod clones;
mod counted;
mod damage;
mod faults;
mod happened;
mod images;
mod links;
mod meter;
mod network;
mod nodes;
mod operators;
mod queue;
mod repairs;
mod scripted;
mod snapshots;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use polyarch_crdt::ClusterKey;
use polyarch_protocol::catalog::KeyspaceKind;
use polyarch_protocol::peer::{ClusterId, PeerVersion};
use polyarch_protocol::{Durability, KeyspaceId, RecordKey, SnapshotId};
use polyarch_store::state::ScanRange;

use crate::case::Case;
use crate::coverage::{self, Kind, Times};
use crate::disk::Devices;
use crate::evidence::Evidence;
use crate::fault::Fault;
use crate::formation::Formation;
use crate::history::History;
use crate::invariants::equal_applied_sets_equal_digests::{self, Digests};
use crate::invariants::lost_own_is_told::Told;
use crate::invariants::{
    Checked, Violation, acked_is_durable, believed_was_had, converges, full_disk_is_survived, interval_loses_a_suffix,
    no_lost_sibling, register_shows_unsuperseded,
};
use crate::node::{Node, WallClock};
use crate::registers::{Registers, Seen, shown_of};
use crate::rng::Rng;
use crate::scenario::{Act, LogRemoval, Scenario};
use crate::trace::{Sink, Trace};
use clients::Client;
pub use happened::{Drawn, Happening};
use meter::Meter;
use network::{Network, Parcel};
use operators::Operators;
use queue::Queue;
pub use repairs::Salvaging;
pub use scripted::Replace;
pub use snapshots::Snapshots;
use streams::Streams;

/// The cluster's id in every run.
pub(crate) const CLUSTER: ClusterId = ClusterId(0x9019_a7c4);
/// How long nodes have, after all faults ended, until they must be equal.
const CONVERGENCE_BOUND_MS: u64 = 30_000;
/// The same where logs are cut, or begin anew after a repair: all nodes may need snapshots of each other, and each that is joined ends
/// those that are sent from there.
const CONVERGENCE_BY_SNAPSHOTS_BOUND_MS: u64 = 60_000;
/// A run that has not ended by then never does.
const RUN_MAX_US: u64 = 900_000_000;
/// How long all must have been equal and linked as planned before it counts as rest.
const REST_US: u64 = 1_000_000;

/// What a run did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The fingerprint of everything that happened.
    pub trace_hash: u64,
    /// Client operations that were answered.
    pub operations: usize,
    /// How many machines there were, and how they were linked at first.
    pub formation: Option<Formation>,
    /// Whether the network let only some of them talk with each other.
    pub is_reach_limited: bool,
    /// Whether some spoke another version with each other than the newest.
    pub versions_are_mixed: bool,
    /// Faults that happened, by kind.
    pub faults: BTreeMap<Fault, usize>,
    /// What operators did, by kind.
    pub acts: BTreeMap<Act, usize>,
    /// Times that all others knew of a member's removal.
    pub removals: usize,
    /// What kinds of things the world had, and how often they happened.
    pub kinds: BTreeMap<Kind, Times>,
    /// The topology in the end.
    pub topology: String,
    /// Writes that clients were told are written.
    pub acked: usize,
    /// Write sets applied, over all nodes.
    pub applied: usize,
    /// Acknowledged writes that crashes of interval nodes took back.
    pub acked_and_lost: usize,
    /// Write sets that another node had when the last one joined late, its disk empty.
    pub joined_after: usize,
    /// Log segments removed.
    pub segments_removed: usize,
    /// Log segments cut, whoever lacked them.
    pub segments_cut: usize,
    /// Of those removed, those that went while the node had no link to some member.
    pub segments_removed_from_afar: usize,
    /// Bases that were published, as far as one node knew in the end.
    pub bases: usize,
    /// What became of snapshots.
    pub snapshots: SnapshotReport,
    /// Power cuts that left a part of what a file was to have.
    pub torn: usize,
    /// Of these, those that left a page and not one before it.
    pub reordered: usize,
    /// Repairs, by whether they kept the records.
    pub repairs: BTreeMap<bool, usize>,
    /// Times that all of what a repair had found was applied.
    pub salvages_applied: usize,
    /// Times a node started.
    pub starts: usize,
    /// Milliseconds of virtual time.
    pub virtual_ms: u64,
    /// Events.
    pub events: u64,
}

/// What became of snapshots in a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotReport {
    /// Fetches begun.
    pub begun: usize,
    /// Fetches that went on with what an earlier one had left.
    pub resumed: usize,
    /// Snapshots that nodes could not get, or join.
    pub failed: usize,
    /// Snapshots joined.
    pub joined: usize,
    /// Processes that ended while they fetched or joined one, or sent one.
    pub crashes_within: usize,
}

impl std::ops::AddAssign for SnapshotReport {
    fn add_assign(&mut self, other: Self) {
        self.begun += other.begun;
        self.resumed += other.resumed;
        self.failed += other.failed;
        self.joined += other.joined;
        self.crashes_within += other.crashes_within;
    }
}

impl Report {
    /// How many faults happened.
    pub fn fault_count(&self) -> usize {
        self.faults.values().sum()
    }
}

/// A run.
pub struct World {
    scenario: Scenario,
    /// What of all that the seed draws is left out.
    case: Case,
    /// What of it that can be left out happened.
    happened: Vec<Happening>,
    /// When all faults ended.
    healed_at_us: Option<u64>,
    /// The stream of what happens at this moment.
    rng: Rng,
    streams: Streams,
    now_us: u64,
    queue: Queue,
    trace: Trace,
    nodes: Vec<Node>,
    network: Network,
    clients: Vec<Client>,
    history: History,
    digests: Digests,
    phase: Phase,
    keyspaces: Vec<Keyspace>,
    /// What anyone was shown, by record.
    contexts: BTreeMap<RecordKey, Vec<clients::Remembered>>,
    cluster_key: ClusterKey,
    is_founded: bool,
    /// What the founder had when clients began.
    founding: Seen,
    dials: BTreeSet<(usize, usize)>,
    images: Vec<images::Images>,
    /// What is known of each node's disk.
    evidence: Vec<Evidence>,
    /// What each node ever had on its disk, as far as it was looked at.
    ever_durable: Vec<Seen>,
    /// Some disk gave back something else than was written, at some time.
    was_damaged: bool,
    /// What each node's process told of its own write sets.
    told: Vec<Told>,
    clones: clones::Clones,
    armed: Vec<faults::Armed>,
    operators: Operators,
    /// What crosses links, while anyone counts.
    meter: Option<Meter>,
    report: Report,
    requests_made: u64,
    fetches_made: u64,
}

/// A keyspace that clients use.
#[derive(Debug, Clone)]
struct Keyspace {
    name: &'static str,
    kind: KeyspaceKind,
    id: KeyspaceId,
}

/// The keyspaces of every run.
const KEYSPACES: [(&str, KeyspaceKind); 2] = [("settings", KeyspaceKind::Lww), ("carts", KeyspaceKind::Mv)];

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The founder founds and creates the keyspaces.
    Founding,
    /// Clients and faults.
    Safety,
    /// Nothing but what a script says.
    Scripted,
    /// No more faults: all must become equal.
    Liveness {
        /// By then they must be.
        until_us: u64,
        /// Since when they are, without interruption.
        rest_since_us: Option<u64>,
    },
    /// Over.
    Done,
}

/// Something that happens at a moment.
#[derive(Debug)]
enum Event {
    /// A process looks at what came in.
    Wake { at: usize, boot: u64 },
    /// A process's sync is done.
    Synced { at: usize, boot: u64 },
    /// A process is told that time has passed, and dials.
    Tick { at: usize, boot: u64 },
    /// A process begins a checkpoint.
    Checkpoint { at: usize, boot: u64 },
    /// A checkpoint is written.
    RunCheckpoint { at: usize, boot: u64 },
    /// A process reads on for a feed.
    PollFeed { at: usize, boot: u64, link: u64 },
    /// A process reads on for a snapshot.
    PollSnapshot { at: usize, boot: u64, link: u64, fetch: u64 },
    /// What a walk that broke off had pinned is let go.
    ForgetWalk { at: usize, boot: u64, id: SnapshotId },
    /// The donor of a snapshot may have been silent for too long.
    SnapshotSilence { at: usize, boot: u64, fetch: u64 },
    /// A snapshot is joined.
    RunJoin { at: usize, boot: u64 },
    /// The driver hears that a snapshot is joined.
    Joined { at: usize, boot: u64 },
    /// A dial came through.
    Connect { from: (usize, u64), to: (usize, u64) },
    /// A parcel comes to one side of a link.
    Deliver { link: u64, side: usize, parcel: Parcel },
    /// A process learns that a link is gone.
    LinkDown { at: usize, boot: u64, link: u64 },
    /// The last that was said on a link has been heard.
    CloseLink { link: u64 },
    /// A link was silent for too long.
    Impatience { link: u64 },
    /// A node's process is started.
    Start { at: usize },
    /// Someone mends a node that does not start.
    Mend { at: usize },
    /// Someone has a node's disk verified.
    Verify { at: usize, boot: u64 },
    /// A process goes on with what a repair left.
    Salvage { at: usize, boot: u64 },
    /// A node's process ends.
    Stop { at: usize, boot: u64, how: faults::End },
    /// A fault happens.
    Fault,
    /// A fault ends.
    FaultEnds(faults::Lasting),
    /// The seed's topology is set.
    SetTopology,
    /// An operator does something.
    Act,
    /// An operator removes a member.
    Remove { at: usize },
    /// A client does something.
    Step { client: usize },
    /// A request comes to a node.
    Request { at: usize, client: usize, request: u64, frame: Bytes },
    /// An answer comes to a client.
    Answer { client: usize, request: u64, frame: Bytes },
    /// A client gives up on a request.
    GiveUp { client: usize, request: u64 },
    /// Whether the phase is over is looked at.
    Review,
    /// All of a node's records are looked at.
    Inspect { at: usize, boot: u64 },
}

impl World {
    /// The world that a case names.
    pub fn new(case: &Case, sink: Sink) -> Self {
        Self { case: case.clone(), ..Self::of(case.scenario(), case.seed, sink) }
    }

    /// A world of a given scenario.
    pub fn of(mut scenario: Scenario, seed: u64, sink: Sink) -> Self {
        if scenario.has_clones {
            scenario.durability.push(Durability::Sync);
            scenario.versions.push(PeerVersion::NEWEST);
        }
        let mut rng = Rng::stream(seed, "machines", &[]);
        let nodes = (0..scenario.machines()).map(|at| Node {
            server_id: at as u32 + 1,
            devices: Devices::new(rng.bits()),
            clock: WallClock {
                offset_ms: rng.below(2 * scenario.clock_offset_ms + 1) as i64 - scenario.clock_offset_ms as i64,
                step_ms: scenario.clock_step_ms,
                frozen_ms: None,
                strobe: None,
                least_ms: u64::MAX,
            },
            process: None,
            boot: 0,
            paused_until_us: 0,
        });
        let nodes: Vec<Node> = nodes.collect();
        let clients = (0..scenario.clients)
            .map(|at| Client::new(at % scenario.nodes, Rng::stream(seed, "client", &[at as u64])))
            .collect();
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&rng.bits().to_le_bytes());
        Self {
            history: History::new(nodes.len()),
            images: nodes.iter().map(|_| images::Images::default()).collect(),
            evidence: vec![Evidence::default(); nodes.len()],
            ever_durable: vec![Seen::default(); nodes.len()],
            was_damaged: false,
            clones: clones::Clones::default(),
            told: nodes.iter().map(|_| Told::default()).collect(),
            armed: vec![faults::Armed::default(); nodes.len()],
            network: Network::new(scenario.reach.as_ref()),
            report: Report {
                formation: Some(scenario.formation),
                is_reach_limited: scenario.reach.is_some(),
                versions_are_mixed: scenario.versions.iter().any(|version| *version != scenario.versions[0]),
                ..Report::default()
            },
            nodes,
            clients,
            scenario,
            rng,
            case: Case::of_seed(seed, None),
            happened: Vec::new(),
            healed_at_us: None,
            streams: Streams::new(seed),
            now_us: 0,
            queue: Queue::default(),
            trace: Trace::new(sink),
            digests: Digests::default(),
            phase: Phase::Founding,
            keyspaces: Vec::new(),
            contexts: BTreeMap::new(),
            cluster_key: ClusterKey { id: 1, secret },
            is_founded: false,
            founding: Seen::default(),
            dials: BTreeSet::new(),
            operators: Operators::default(),
            meter: None,
            requests_made: 0,
            fetches_made: 0,
        }
    }

    /// The scenario.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// When an invariant does not hold.
    pub fn run(&mut self) -> Result<Report, Violation> {
        self.begin();
        while self.phase != Phase::Done {
            self.step()?;
        }
        Ok(self.finished_report())
    }

    /// Lets the next event happen.
    fn step(&mut self) -> Checked {
        let Some((at_us, event)) = self.queue.pop() else {
            return Err(Violation::new(converges::NAME, "nothing is left to happen, and the run is not over"));
        };
        self.now_us = at_us;
        self.report.events += 1;
        if self.now_us > RUN_MAX_US || self.report.events > self.scenario.events_max {
            let what = format!(
                "no end after {} ms and {} events in {:?}",
                self.now_us / 1_000,
                self.report.events,
                self.phase
            );
            return Err(Violation::new(converges::NAME, what));
        }
        self.in_its_stream(event)
    }

    /// What the run did so far.
    pub fn finished_report(&self) -> Report {
        Report {
            trace_hash: self.trace.hash(),
            acked: self.history.acked_count(),
            acked_and_lost: self.history.acked_and_lost_count(),
            applied: (0..self.nodes.len()).map(|at| self.history.node(at).order().len()).sum(),
            virtual_ms: self.now_us / 1_000,
            kinds: coverage::counted(&self.scenario, &self.report),
            topology: self.history.node(0).topology().to_string(),
            bases: self.nodes.iter().filter_map(|node| node.process.as_ref()).map(known_bases).max().unwrap_or(0),
            ..self.report.clone()
        }
    }

    fn begin(&mut self) {
        let late = usize::from(self.scenario.joins_late_us.is_some());
        for at in 0..self.members() - late {
            let delay_us = self.rng.below(20_000);
            self.after(delay_us, Event::Start { at });
        }
        self.after(100_000, Event::Review);
    }

    fn happen(&mut self, event: Event) -> Checked {
        match event {
            Event::Wake { at, boot } => self.wake(at, boot),
            Event::Synced { at, boot } => self.sync_done(at, boot),
            Event::Tick { at, boot } => self.tick(at, boot),
            Event::Checkpoint { at, boot } => self.begin_checkpoint(at, boot),
            Event::RunCheckpoint { at, boot } => self.run_checkpoint(at, boot),
            Event::PollFeed { at, boot, link } => self.poll_feed(at, boot, link),
            Event::PollSnapshot { at, boot, link, fetch } => self.poll_snapshot(at, boot, link, fetch),
            Event::ForgetWalk { at, boot, id } => {
                self.forget_walk(at, boot, id);
                Ok(())
            }
            Event::SnapshotSilence { at, boot, fetch } => {
                self.snapshot_silence(at, boot, fetch);
                Ok(())
            }
            Event::RunJoin { at, boot } => self.run_join(at, boot),
            Event::Joined { at, boot } => {
                self.join_ended(at, boot);
                Ok(())
            }
            Event::Connect { from, to } => self.connect(from, to),
            Event::Deliver { link, side, parcel } => self.deliver(link, side, parcel),
            Event::LinkDown { at, boot, link } => self.link_down(at, boot, link),
            Event::CloseLink { link } => {
                self.break_link(link);
                Ok(())
            }
            Event::Impatience { link } => self.lose_patience(link),
            Event::Start { at } => self.start(at),
            Event::Mend { at } => self.mend_disk(at),
            Event::Verify { at, boot } => self.verify(at, boot),
            Event::Salvage { at, boot } => self.salvage(at, boot),
            Event::Stop { at, boot, how } => self.stop_if(at, boot, how),
            Event::Fault => self.fault(),
            Event::FaultEnds(lasting) => self.fault_ends(lasting),
            Event::SetTopology => {
                self.set_first_topology();
                Ok(())
            }
            Event::Act => {
                self.act();
                Ok(())
            }
            Event::Remove { at } => {
                self.remove(at);
                Ok(())
            }
            Event::Step { client } => self.client_steps(client),
            Event::Request { at, client, request, frame } => self.request_arrives(at, client, request, frame),
            Event::Answer { client, request, frame } => self.answer_arrives(client, request, &frame),
            Event::GiveUp { client, request } => self.give_up(client, request),
            Event::Review => self.review(),
            Event::Inspect { at, boot } => self.inspect_from_time_to_time(at, boot),
        }
    }

    /// Schedules an event.
    fn after(&mut self, delay_us: u64, event: Event) {
        self.queue.push(self.now_us + delay_us, event);
    }

    fn between(&mut self, range: (u64, u64)) -> u64 {
        self.rng.between(range)
    }

    fn note(&mut self, what: fmt::Arguments<'_>) {
        self.trace.note(self.now_us, what);
    }

    /// Ends phases.
    fn review(&mut self) -> Checked {
        match self.phase {
            Phase::Founding => self.review_founding(),
            Phase::Safety => {
                self.review_removal();
                if self.is_safety_over() {
                    self.healed_at_us = Some(self.now_us);
                    self.heal()?;
                    let until_us = self.now_us + self.convergence_bound_ms() * 1_000;
                    self.phase = Phase::Liveness { until_us, rest_since_us: None };
                }
            }
            Phase::Liveness { until_us, rest_since_us } => self.review_liveness(until_us, rest_since_us)?,
            Phase::Scripted | Phase::Done => {}
        }
        if self.phase != Phase::Done {
            self.after(100_000, Event::Review);
        }
        Ok(())
    }

    /// Whether enough has happened, or the time has come at which the case ends it.
    fn is_safety_over(&self) -> bool {
        match self.case.heals_at_us {
            Some(heals_at_us) => self.now_us >= heals_at_us,
            None => {
                let report = &self.report;
                report.operations >= self.scenario.operations && report.fault_count() >= self.scenario.faults
            }
        }
    }

    fn review_founding(&mut self) {
        let Some(process) = &self.nodes[0].process else { return };
        let catalog = process.replica.catalog();
        let found: Vec<Keyspace> = KEYSPACES
            .iter()
            .filter_map(|(name, kind)| catalog.keyspace(name).map(|(id, _)| Keyspace { name, kind: *kind, id }))
            .collect();
        if found.len() == KEYSPACES.len() && process.is_at_rest() {
            self.keyspaces = found;
            self.founding = self.history.node(0).durable().seen().clone();
            self.is_founded = true;
            if self.scenario.is_scripted {
                self.phase = Phase::Scripted;
                return;
            }
            self.phase = Phase::Safety;
            self.note(format_args!("clients and faults begin"));
            for client in 0..self.clients.len() {
                let delay_us = self.rng.below(200_000);
                self.after(delay_us, Event::Step { client });
            }
            if let Some(delay_us) = self.scenario.joins_late_us {
                self.after(delay_us, Event::Start { at: self.members() - 1 });
            }
            let gap_us = self.between(self.scenario.fault_gap_us);
            self.after(gap_us, Event::Fault);
            self.operators_begin();
            return;
        }
        self.create_missing_keyspaces();
    }

    fn review_liveness(&mut self, until_us: u64, rest_since_us: Option<u64>) -> Checked {
        self.rejoin_all();
        let is_quiet = self.clients.iter().all(Client::is_quiet)
            && self.nodes[..self.members()].iter().all(|node| {
                let process = node.process.as_ref();
                process.is_some_and(|p| p.is_at_rest() && !p.has_failed)
            });
        let sets: Vec<&Seen> = (0..self.members()).map(|at| self.history.node(at).durable().seen()).collect();
        let are_equal = sets.windows(2).all(|pair| pair[0] == pair[1]);
        // A tick that waits to be handled disturbs no rest, but only what is handled can be looked at.
        let are_salvaged = (0..self.members()).all(|at| self.check_salvage(at).is_ok());
        let is_rest = are_equal && are_salvaged && self.check_order().is_ok();
        let rest_since_us = is_rest.then(|| rest_since_us.unwrap_or(self.now_us));
        if is_quiet && rest_since_us.is_some_and(|since_us| self.now_us - since_us >= REST_US) {
            self.check_end()?;
            self.phase = Phase::Done;
            return Ok(());
        }
        if self.now_us < until_us {
            self.phase = Phase::Liveness { until_us, rest_since_us };
            return Ok(());
        }
        let nodes: Vec<(u32, &Seen)> = self.nodes.iter().map(|node| node.server_id).zip(sets).collect();
        let bound_ms = self.convergence_bound_ms();
        converges::check(bound_ms, &nodes)?;
        (0..self.members()).try_for_each(|at| self.check_salvage(at))?;
        self.check_order()?;
        Err(Violation::new(converges::NAME, format!("no rest {bound_ms} ms after all faults ended")))
    }

    fn check_end(&mut self) -> Checked {
        let waiting = self.waiting_in_the_end();
        for at in 0..self.members() {
            self.inspect(at)?;
            let server_id = self.nodes[at].server_id;
            let is_full = self.nodes[at].process.as_ref().is_some_and(|process| process.replica.is_full());
            full_disk_is_survived::check_end(server_id, is_full)?;
            let node = self.history.node(at);
            self.check_salvage(at)?;
            let acked: Vec<_> = self.history.acked_and_kept().filter(|dot| !waiting.contains(dot)).collect();
            acked_is_durable::check_everywhere(server_id, node.durable().seen(), acked.iter().copied())?;
            self.told[at].check_end(server_id, |origin| self.history.is_missing(at, origin))?;
            interval_loses_a_suffix::check_gone(server_id, node.staged().seen(), self.history.lost())?;
            let fresh = Registers::of(node.order());
            let live = |key: &RecordKey| (key.clone(), fresh.live_dots(key).into_iter().collect::<BTreeSet<_>>());
            let expected: BTreeMap<_, _> = fresh.live_keys().map(live).collect();
            let shown = self.all_shown(at)?;
            if shown != expected {
                let what = format!("in the end node {server_id} shows {shown:?}, and the oracle says {expected:?}");
                return Err(Violation::new(register_shows_unsuperseded::NAME, what));
            }
            let applied: Vec<_> = node.order().iter().collect();
            no_lost_sibling::check(server_id, &applied, acked, &shown)?;
        }
        self.note(format_args!("all nodes are equal"));
        Ok(())
    }

    /// The dots of all that a node shows.
    fn all_shown(&self, at: usize) -> Result<BTreeMap<RecordKey, BTreeSet<polyarch_crdt::Dot>>, Violation> {
        let Some(process) = &self.nodes[at].process else { return Ok(BTreeMap::new()) };
        let records = process.reader.scan(&ScanRange::everything(), usize::MAX);
        let records = records.map_err(|error| Violation::new(register_shows_unsuperseded::NAME, error.to_string()))?;
        let shown =
            records.into_iter().map(|(key, record)| (key, shown_of(&record).into_iter().map(|s| s.dot).collect()));
        Ok(shown.filter(|(_, dots): &(_, BTreeSet<_>)| !dots.is_empty()).collect())
    }

    fn inspect_from_time_to_time(&mut self, at: usize, boot: u64) -> Checked {
        if self.nodes[at].boot != boot || self.nodes[at].process.is_none() {
            return Ok(());
        }
        self.inspect(at)?;
        let delay_us = self.between((300_000, 1_500_000));
        self.after(delay_us, Event::Inspect { at, boot });
        Ok(())
    }

    /// What a node holds others to have is what they had.
    fn check_beliefs(&mut self, at: usize) -> Checked {
        for other in 0..self.nodes.len() {
            let member = self.member_of(other);
            self.ever_durable[member].join(self.history.node(other).durable().seen());
        }
        let Some(process) = &self.nodes[at].process else { return Ok(()) };
        let member = self.member_of(at);
        let others = self.ever_durable[..self.members()].iter().enumerate();
        for (other, ever) in others.filter(|(other, _)| *other != member) {
            if let Some(believed) = process.replica.applied_of(other as u32 + 1) {
                believed_was_had::check(self.nodes[at].server_id, other as u32 + 1, &believed, ever)?;
            }
        }
        Ok(())
    }

    /// Looks at all that a node has published, and counts its digest anew.
    fn inspect(&mut self, at: usize) -> Checked {
        let node = &self.nodes[at];
        let (server_id, published) = (node.server_id, self.history.node(at).published());
        let Some(process) = &node.process else { return Ok(()) };
        let records = process.reader.scan(&ScanRange::everything(), usize::MAX);
        let records = records.map_err(|error| Violation::new(register_shows_unsuperseded::NAME, error.to_string()))?;
        let mut counted = polyarch_protocol::Digest::default();
        let mut shown_keys = BTreeSet::new();
        for (key, record) in &records {
            let shown = shown_of(record);
            for sibling in &shown {
                self.history.graves.check(server_id, published.seen(), key, sibling.dot)?;
            }
            register_shows_unsuperseded::check(server_id, "published", key, &shown, &published.live(key))?;
            if let Err(why) = record.validate() {
                return Err(Violation::new(
                    register_shows_unsuperseded::NAME,
                    format!("node {server_id}: {key:?}: {why}"),
                ));
            }
            for field in record.fields() {
                field.siblings().iter().for_each(|sibling| counted.add(key, field.path(), sibling));
            }
            shown_keys.insert(key);
        }
        if let Some(key) = published.live_keys().find(|key| !shown_keys.contains(key)) {
            register_shows_unsuperseded::check(server_id, "published", key, &[], &published.live(key))?;
        }
        self.check_beliefs(at)?;
        let node = &self.nodes[at];
        let published = self.history.node(at).published();
        let Some(process) = &node.process else { return Ok(()) };
        if self.history.node(at).staged().seen() == published.seen() {
            let kept = process.replica.frontier().digest.total();
            equal_applied_sets_equal_digests::check_recount(server_id, kept, counted.total())?;
        }
        Ok(())
    }
}

impl World {
    fn convergence_bound_ms(&self) -> u64 {
        match self.scenario.log_removal {
            _ if self.was_damaged => CONVERGENCE_BY_SNAPSHOTS_BOUND_MS,
            LogRemoval::Cuts => CONVERGENCE_BY_SNAPSHOTS_BOUND_MS,
            LogRemoval::Nothing | LogRemoval::WhatAllHave => CONVERGENCE_BOUND_MS,
        }
    }
}

fn known_bases(process: &crate::node::Process) -> usize {
    process.replica.catalog().bases().len()
}
