//! Three nodes: the shipped replica, feeds, log, store and snapshots, and nothing between them that
//! takes time. Whatever happens is done to its end, on whom it concerns and nobody else.
//!
//! A node's clock goes with its own events, its boot ids count its own starts, so that what a node does
//! depends on nothing that happens to others.

use std::collections::VecDeque;

use bytes::Bytes;
use polyarch_crdt::{CausalContext, Dot, FieldPath, Hlc, SealedContext, SessionToken, lww, mv};
use polyarch_protocol::catalog::KeyspaceKind;
use polyarch_protocol::client::{Response, Supersede, WriteChange, WriteRequest};
use polyarch_protocol::peer::{FeedGroup, PeerMessage, PeerVersion};
use polyarch_protocol::{
    Durability, Feed, FeedStep, Input, Limits, LinkId, Output, RecordKey, ReplicaConfig, RequestTag, Timings, WriteSet,
    context_scope,
};
use polyarch_store::StoreConfig;

use super::event::{Context, Ending, Event, Feeding};
use super::fetches::Fetch;
use super::order::Order;
use super::start::Start;
use super::truth::{Meant, Truth, Writes, names, violation};
use super::{KEYS_MAX, NODES};
use crate::invariants::no_alarm_without_cause::{self, Causes};
use crate::invariants::{Checked, Violation};
use crate::node::{Node, Process, WallClock};
use crate::world::CLUSTER;

/// Between two events of a node.
const EVENT_US: u64 = 1_000_000;
/// Where all wall clocks stand still, far behind all that was written before: stamps tell what happened
/// before what only as far as nodes learn of each other's.
const WALL_MS: u64 = 2_000_000_000_000;

/// What clients remember of a key on a node: which writes it showed, and the context that went with them.
#[derive(Debug, Clone, Default)]
pub(super) struct Shown {
    pub(super) writes: Writes,
    context: Option<SealedContext>,
}

/// Three nodes and what is known of them.
pub(super) struct Machine<'a> {
    pub(super) start: &'a Start,
    pub(super) nodes: Vec<Node>,
    now_us: [u64; NODES],
    links: u64,
    pub(super) fetches: [Fetch; NODES],
    /// What the file of a snapshot holds that an ended process had fetched whole.
    pub(super) left: [Option<(usize, Writes)>; NODES],
    pub(super) truth: Truth,
    /// What each node shows of each key, and what it showed before that.
    shown: [[[Shown; 2]; KEYS_MAX]; NODES],
    /// What the write under way is meant to do.
    meant: Option<Meant>,
    /// How many values were put on each node.
    values: [u8; NODES],
    /// Whether anything happened to the node's process since it started.
    pub(super) is_touched: [bool; NODES],
    /// Checkpoints that are worth writing: the second lets go of what the first still has to absorb.
    pub(super) checkpoints_due: [u8; NODES],
}

impl<'a> Machine<'a> {
    pub(super) fn new(start: &'a Start) -> Result<Self, Violation> {
        let mut machine = Self {
            start,
            nodes: start.images.iter().enumerate().map(|(at, image)| node_of(at, image)).collect(),
            now_us: [EVENT_US; NODES],
            links: 0,
            fetches: std::array::from_fn(|_| Fetch::No),
            left: [None; NODES],
            truth: Truth::default(),
            shown: Default::default(),
            meant: None,
            values: [0; NODES],
            is_touched: [false; NODES],
            checkpoints_due: [0; NODES],
        };
        for (bytes, meant) in &start.first {
            let write_set = WriteSet::decode(bytes).expect("a node has it in its log");
            machine.truth.begin_with(write_set.dot, write_set.hlc, bytes.clone(), meant.clone());
        }
        for at in 0..NODES {
            machine.boot(at)?;
            machine.look(at)?;
        }
        Ok(machine)
    }

    /// The nodes after an order of events.
    pub(super) fn after(start: &'a Start, order: &Order) -> Result<Self, Violation> {
        let mut machine = Self::new(start)?;
        order.0.iter().try_for_each(|event| machine.happen(*event))?;
        Ok(machine)
    }

    /// Lets something happen, and looks at the nodes that it concerned.
    pub(super) fn happen(&mut self, event: Event) -> Checked {
        let touched = event.nodes();
        let concerned = (0..NODES).filter(|at| touched & 1 << at != 0);
        for at in concerned.clone() {
            self.now_us[at] += EVENT_US;
            // A donor that only reads is as it was; one whose walk goes on is not.
            self.is_touched[at] |= event.named()[0] == Some(at) || matches!(event, Event::Walk { .. });
        }
        match event {
            Event::Write { at, key, puts, context, is_synced } => self.write(at, key, puts, context, is_synced)?,
            Event::Feed { to, from, how } => self.feed(to, from, how).map(drop)?,
            Event::End { at, how } => self.end(at, how)?,
            Event::Checkpoint { at } => self.checkpoint(at)?,
            Event::Walk { to, from, keys } => self.begin_fetch(to, from, keys)?,
            Event::Merge { to, .. } => self.merge(to)?,
            Event::Join { to, .. } => self.join(to)?,
            Event::Snapshot { to, from } => {
                self.begin_fetch(to, from, 0)?;
                self.join(to)?;
            }
        }
        concerned.into_iter().try_for_each(|at| self.look(at))
    }

    pub(super) fn process(&mut self, at: usize) -> &mut Process {
        self.nodes[at].process.as_mut().expect("its process runs while nothing happens to it")
    }

    pub(super) fn clock_us(&self, at: usize) -> u64 {
        self.now_us[at]
    }

    /// A process starts on what the disk has.
    fn boot(&mut self, at: usize) -> Checked {
        let server_id = self.nodes[at].server_id;
        let config = ReplicaConfig {
            server_id,
            boot_id: u128::from(server_id) << 64 | u128::from(self.nodes[at].boot + 1),
            cluster_id: CLUSTER,
            name: format!("node-{server_id}"),
            addresses: vec![format!("node-{server_id}:7400")],
            durability: Durability::Sync,
            limits: Limits::default(),
            timings: Timings::default(),
        };
        let now = self.nodes[at].now(self.now_us[at]);
        let started = self.nodes[at].start(config, &store_config(), now);
        started.map_err(|error| violation(names::STARTS, at, format!("does not start: {error}")))?;
        self.is_touched[at] = false;
        self.check_applied(at)
    }

    pub(super) fn handle(&mut self, at: usize, input: Input) -> Checked {
        let now = self.nodes[at].now(self.now_us[at]);
        self.process(at).replica.handle(input, now);
        self.note_appended(at)
    }

    /// Takes note of what the replica gave its log.
    pub(super) fn note_appended(&mut self, at: usize) -> Checked {
        for (bytes, _) in std::mem::take(&mut self.process(at).replica.storage_mut().appended) {
            let write_set = WriteSet::decode(&bytes).map_err(|error| violation(names::PAYLOADS, at, error))?;
            let is_own = write_set.dot.origin.server_id == at as u32 + 1;
            let meant = self.meant.take_if(|_| is_own);
            self.truth.appended(at, write_set.dot, write_set.hlc, &bytes, meant)?;
            self.checkpoints_due[at] = 2;
        }
        Ok(())
    }

    pub(super) fn is_staged(&self, at: usize) -> bool {
        self.truth.nodes[at].staged != self.truth.nodes[at].durable
    }

    /// Makes durable what is staged.
    pub(super) fn sync(&mut self, at: usize) -> Checked {
        let process = self.process(at);
        if !process.is_staged() {
            return Ok(());
        }
        let end = process.replica.storage_mut().store.sync();
        let end = end.map_err(|error| violation(names::ACCEPTED, at, error))?;
        (process.durable_end, process.published_end) = (end, end);
        self.truth.synced(at);
        self.handle(at, Input::Durable(end))
    }

    /// The next thing that a node's replica wants done.
    pub(super) fn output(&mut self, at: usize) -> Option<Output> {
        let process = self.process(at);
        process.replica.poll_output(process.durable_end)
    }

    /// Does what a node wants done while it has no link.
    pub(super) fn perform(&mut self, at: usize) -> Checked {
        while let Some(output) = self.output(at) {
            self.note_output(at, output)?;
        }
        Ok(())
    }

    fn note_output(&mut self, at: usize, output: Output) -> Checked {
        match output {
            Output::Answer(_, Ok(Response::Written(written))) => {
                let Some(dot) = written.dot else { return Ok(()) };
                self.truth.acknowledged(at, dot)?;
                let token = SessionToken::from_bytes(&written.token).map_err(|e| violation(names::SESSION, at, e))?;
                let is_seen = self.process(at).replica.durable_applied().includes_all(&token.seen);
                match token.seen.includes(dot) && is_seen {
                    true => Ok(()),
                    false => {
                        Err(violation(names::SESSION, at, format!("gave another token for {dot}: {}", token.seen)))
                    }
                }
            }
            Output::Answer(_, Ok(other)) => Err(violation(names::ACCEPTED, at, format!("answers {other:?}"))),
            Output::Answer(_, Err(refusal)) => Err(violation(names::ACCEPTED, at, format!("refuses: {refusal}"))),
            Output::Event(event) => {
                let causes = Causes {
                    topology_set_at_once: |_: Dot| false,
                    was_removed: false,
                    had_twin: false,
                    disk_was_full: false,
                    // The log that a snapshot leaves has a gap.
                    logs_are_cut: true,
                };
                no_alarm_without_cause::check(at as u32 + 1, &event, &causes)
            }
            // Snapshots are fetched when the order says so.
            Output::FetchSnapshot(_) => self.handle(at, Input::SnapshotFailed("not now".to_owned())),
            Output::CloseLink(_, reason) => Err(violation(names::ALARM, at, format!("closes a link: {reason}"))),
            _ => Ok(()),
        }
    }

    fn write(&mut self, at: usize, key: usize, puts: bool, context: Context, is_synced: bool) -> Checked {
        let names = self.context_of(at, key, context).writes;
        let own = self.truth.live(self.truth.nodes[at].staged, key);
        let supersede = match context {
            // With and without a context: it comes to the same where nothing is staged.
            Context::Held if puts || self.is_staged(at) => Supersede::Held,
            Context::Held => self.shown[at][key][0].context.clone().map_or(Supersede::Held, Supersede::Shown),
            Context::Nothing => Supersede::Nothing,
            _ => self.context_of(at, key, context).context.map_or(Supersede::Nothing, Supersede::Shown),
        };
        let names = match self.start.kind {
            KeyspaceKind::Mv => names,
            KeyspaceKind::Lww => names | own,
        };
        self.values[at] += 1;
        let value = puts.then(|| Bytes::from(vec![b'a' + at as u8, b'0' + self.values[at]]));
        let change = WriteChange {
            keyspace: self.start.keyspace.to_owned(),
            key: self.start.keys[key].key_bytes(),
            put: value.clone(),
            supersede,
        };
        self.meant = Some(Meant { key, value, names });
        let tag = RequestTag { connection: 1, request: u64::from(self.values[at]) };
        self.handle(at, Input::Write(tag, WriteRequest { changes: vec![change] }))?;
        self.meant = None;
        // What needs no sync leaves before it.
        self.perform(at)?;
        if is_synced {
            self.sync(at)?;
            self.perform(at)?;
        }
        Ok(())
    }

    /// What a write's context shows, and the context.
    pub(super) fn context_of(&self, at: usize, key: usize, context: Context) -> Shown {
        match context {
            Context::Held => {
                let writes = self.truth.live(self.truth.nodes[at].staged, key);
                Shown { writes, context: None }
            }
            Context::Nothing => Shown::default(),
            Context::Stale => self.shown[at][key][1].clone(),
            Context::ShownBy(other) => self.shown[other][key][0].clone(),
        }
    }

    /// Links two nodes, as long as the first takes what it lacks. Says whether it was refused any of it.
    pub(super) fn feed(&mut self, to: usize, from: usize, how: Feeding) -> Result<bool, Violation> {
        let before = self.truth.nodes[to].staged;
        self.links += 1;
        let link = LinkId(self.links);
        for (at, other) in [(to, from), (from, to)] {
            let address = format!("node-{}:7400", other + 1);
            let server_id = other as u32 + 1;
            let input = Input::LinkUp { link, server_id, dialed: at == to, version: PeerVersion::NEWEST, address };
            self.handle(at, input)?;
        }
        let mut is_refused = false;
        while let Some(mut feed) = self.talk(to, from)? {
            if !self.serve(to, from, link, &mut feed, how)? {
                break;
            }
            is_refused = true;
        }
        for at in [to, from] {
            self.handle(at, Input::LinkDown(link))?;
            self.perform(at)?;
        }
        if how != Feeding::Unsynced {
            self.sync(to)?;
            self.perform(to)?;
        }
        let gained = self.truth.nodes[to].staged & !before;
        match how == Feeding::One && gained.count_ones() > 1 {
            true => Err(violation(names::ONCE, to, "applied more than the one write set that came")),
            false => Ok(is_refused),
        }
    }

    /// Lets two linked nodes say what they have to, until one serves the other.
    fn talk(&mut self, to: usize, from: usize) -> Result<Option<Feed>, Violation> {
        let mut said: VecDeque<(usize, LinkId, PeerMessage)> = VecDeque::new();
        let mut feed = None;
        loop {
            for (at, other) in [(to, from), (from, to)] {
                while let Some(output) = self.output(at) {
                    match output {
                        Output::Send(link, message) => said.push_back((other, link, message)),
                        Output::Serve(_, serving) if at == from => feed = Some(serving),
                        output => self.note_output(at, output)?,
                    }
                }
            }
            let Some((at, link, message)) = said.pop_front() else { return Ok(feed) };
            let message = PeerMessage::decode(&message.encode()).map_err(|e| violation(names::ALARM, at, e))?;
            self.handle(at, Input::Message(link, message))?;
        }
    }

    /// Brings over what a feed serves. Says whether it refused something, and the two have more to say.
    fn serve(
        &mut self,
        to: usize,
        from: usize,
        link: LinkId,
        feed: &mut Feed,
        how: Feeding,
    ) -> Result<bool, Violation> {
        let group_bytes = if how == Feeding::One { 1 } else { usize::MAX };
        let mut is_refused = false;
        loop {
            match feed.poll(&self.process(from).log, group_bytes) {
                FeedStep::Group(group) => {
                    let group =
                        FeedGroup::decode(&group.encode().into()).map_err(|e| violation(names::ALARM, from, e))?;
                    let FeedGroup { subscription, write_sets } = group;
                    self.handle(to, Input::FeedGroup { link, subscription, write_sets })?;
                    if how == Feeding::One {
                        return Ok(false);
                    }
                }
                FeedStep::Refused(refuses) => {
                    for refuse in refuses {
                        self.handle(to, Input::Message(link, PeerMessage::Refuse(refuse)))?;
                    }
                    is_refused = true;
                }
                FeedStep::Again => {}
                FeedStep::Idle => break,
            }
        }
        if is_refused {
            // Then it looks for others to be fed by.
            self.handle(to, Input::Tick)?;
        }
        Ok(is_refused)
    }

    fn end(&mut self, at: usize, how: Ending) -> Checked {
        self.end_fetches(at);
        let held = self.truth.nodes[at];
        if how == Ending::Killed {
            // Between the log's write and its sync.
            self.nodes[at].devices.files().stop_after(1);
            let _cut_short = self.process(at).replica.storage_mut().store.sync();
        }
        let node = &mut self.nodes[at];
        node.process = None;
        let left = match how {
            Ending::Cut => {
                node.devices.lose_unsynced();
                held.durable
            }
            Ending::Killed => {
                node.devices.kill();
                held.staged
            }
            Ending::SetBack => {
                node.devices.restore(&self.start.images[at], true);
                self.checkpoints_due[at] = 0;
                self.truth.first
            }
        };
        self.truth.ended(at, left);
        self.boot(at)?;
        self.perform(at)?;
        self.find_fetched(at)
    }

    fn checkpoint(&mut self, at: usize) -> Checked {
        let process = self.process(at);
        let frontier = process.replica.frontier().clone();
        let store = &mut process.replica.storage_mut().store;
        let job = store.begin_checkpoint_now(&frontier);
        let job = job.ok_or_else(|| violation(names::ACCEPTED, at, "begins no checkpoint with all synced"))?;
        let done = job.run().map_err(|error| violation(names::ACCEPTED, at, error))?;
        let _summary = store.finish_checkpoint(done);
        self.checkpoints_due[at] -= 1;
        Ok(())
    }

    /// Looks at all that a node has and shows.
    pub(super) fn look(&mut self, at: usize) -> Checked {
        self.check_applied(at)?;
        let digest = self.process(at).replica.frontier().digest.total();
        self.truth.check_digest(at, digest)?;
        for key in 0..self.start.keys.len() {
            self.look_at_key(at, key)?;
        }
        Ok(())
    }

    /// The node says that it has applied what it should have, and no more.
    fn check_applied(&mut self, at: usize) -> Checked {
        let held = self.truth.nodes[at];
        let process = self.nodes[at].process.as_ref().expect("it runs");
        let staged = process.replica.frontier().heads.applied();
        let is_right = |(bit, dot): (Writes, Dot)| staged.includes(dot) == (held.staged & bit != 0);
        let first = self.start.write_sets;
        let count = first + u64::from((held.staged & !self.truth.first).count_ones());
        match staged.write_sets() == count && self.truth.known().map(|(bit, known)| (bit, known.dot)).all(is_right) {
            true => Ok(()),
            false => {
                Err(violation(names::ACKED, at, format!("has applied {staged}, which is not what it should have")))
            }
        }
    }

    /// Reads a key as a client does, and remembers what it shows.
    fn look_at_key(&mut self, at: usize, key: usize) -> Checked {
        let place = &self.start.keys[key];
        let process = self.nodes[at].process.as_ref().expect("it runs");
        let record = process.reader.get(place).map_err(|error| violation(names::SHOWS, at, error))?;
        let siblings = record.siblings(&FieldPath::opaque());
        let shown: Vec<(Dot, Hlc, Bytes)> = mv(siblings).iter().map(|s| (s.dot, s.hlc, s.value.clone())).collect();
        let writes = self.truth.check_shown(at, key, self.truth.nodes[at].durable, &shown)?;
        let greatest = shown.iter().map(|(dot, hlc, _)| (*hlc, dot.origin)).max();
        let winner = lww(siblings).map(|sibling| (sibling.hlc, sibling.dot.origin));
        if winner != greatest {
            return Err(violation(names::WINNER, at, format!("shows {winner:?} of {shown:?}")));
        }
        let [now, before] = &mut self.shown[at][key];
        if now.writes != writes || now.context.is_none() {
            let context = seal(process, place, &CausalContext::of(&record));
            check_context(at, process, place, &context, &shown)?;
            let next = Shown { writes, context: Some(context) };
            *before = std::mem::replace(now, next);
        }
        Ok(())
    }

    /// Writes that a node lacks and another has durably.
    pub(super) fn lacking(&self, to: usize, from: usize) -> Writes {
        self.truth.nodes[from].durable & !self.truth.nodes[to].staged
    }
}

/// Seals a context as the node's service does.
fn seal(process: &Process, place: &RecordKey, context: &CausalContext) -> SealedContext {
    let cluster = CLUSTER.to_bytes();
    let key = process.replica.catalog().cluster_keys().sealing().cloned();
    context.seal(&key.expect("the cluster was founded"), &context_scope(&cluster, place))
}

/// A context names what was shown with it.
fn check_context(
    at: usize,
    process: &Process,
    place: &RecordKey,
    context: &SealedContext,
    shown: &[(Dot, Hlc, Bytes)],
) -> Checked {
    let cluster = CLUSTER.to_bytes();
    let opened = context.open(process.replica.catalog().cluster_keys(), &context_scope(&cluster, place), usize::MAX);
    let opened = opened.map_err(|error| violation(names::CONTEXT, at, error))?;
    match opened.iter().eq(shown.iter().map(|(dot, ..)| *dot)) {
        true => Ok(()),
        false => Err(violation(names::CONTEXT, at, format!("gives {opened:?} with {shown:?}"))),
    }
}

fn node_of(at: usize, image: &crate::disk::Image) -> Node {
    let mut devices = crate::disk::Devices::new(at as u64);
    devices.restore(image, true);
    Node {
        server_id: at as u32 + 1,
        devices,
        clock: WallClock { offset_ms: 0, step_ms: 1, frozen_ms: Some(WALL_MS), strobe: None, least_ms: u64::MAX },
        process: None,
        boot: 0,
        paused_until_us: 0,
    }
}

fn store_config() -> StoreConfig {
    let mut config = StoreConfig::default();
    config.log.segment_bytes = 16 << 10;
    config.log.allocate_bytes = 1 << 10;
    config.log.tail_bytes_max = 4 << 10;
    config.log.mark_bytes = 256;
    config.log.marks_max = 16;
    crate::bugs::switch_in_store(&mut config);
    config
}
