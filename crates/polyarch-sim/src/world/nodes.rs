//! How processes are driven: the loop of the real driver, cut into events.

use std::collections::BTreeSet;

use bytes::Bytes;
use polyarch_protocol::client::ClientResponse;
use polyarch_protocol::peer::{FeedGroup, PeerMessage};
use polyarch_protocol::{
    ChainHeads, Durability, FeedStep, Input, Limits, LinkId, LogSource, Output, ReplicaConfig, Storage, Timings,
};
use polyarch_store::{CheckpointConfig, StoreConfig};

use super::faults::End;
use super::network::Parcel;
use super::{CLUSTER, Event, KEYSPACES, Phase, World};
use crate::history::Intent;
use crate::invariants::{
    Checked, Violation, applied_once_and_in_order, no_alarm_without_cause, node_always_starts,
    nothing_leaves_before_durable, register_shows_unsuperseded,
};
use crate::node::{LinkEnd, Process, Serving};
use crate::registers::{Seen, shown_of};

/// The connection of the one who creates keyspaces.
pub(super) const ADMIN: u64 = u64::MAX;
/// Groups of a stream that may be on their way.
const GROUPS_IN_FLIGHT_MAX: usize = 2;

impl World {
    pub(super) fn start(&mut self, at: usize) -> Checked {
        if self.nodes[at].process.is_some() {
            return Ok(());
        }
        let server_id = self.nodes[at].server_id;
        let boot_id = (u128::from(self.rng.bits()) << 64) | u128::from(self.rng.bits());
        let config = self.replica_config(at, boot_id);
        let store = self.store_config();
        if let Some(changes) = self.armed[at].in_recovery.take() {
            self.nodes[at].devices.files().stop_after(changes);
            self.armed[at].power_cut = true;
        }
        let now = self.nodes[at].now(self.now_us);
        match self.nodes[at].start(config, &store, now) {
            Ok(state) => self.note(format_args!("node {server_id} starts, its state: {state:?}")),
            Err(error) if self.armed[at].power_cut => {
                self.note(format_args!("node {server_id} loses power while it starts: {error}"));
                return self.stop(at, End::PowerCut);
            }
            Err(error) => return Err(node_always_starts::violation(server_id, &error.to_string())),
        }
        self.report.starts += 1;
        let Some(process) = &self.nodes[at].process else { return Ok(()) };
        let heads = process.replica.frontier().heads.clone();
        self.history.recovered(at, server_id, &heads)?;
        self.check_digest(at)?;
        self.inspect(at)?;
        let boot = self.nodes[at].boot;
        if at == 0 && !self.is_founded && heads.applied().is_empty() {
            let key = self.cluster_key.clone();
            self.push_input(at, Input::Found(key), None);
        }
        let tick_us = self.rng.below(100_000);
        self.after(tick_us, Event::Tick { at, boot });
        let gap_us = self.between(self.scenario.checkpoint_gap_us);
        self.after(gap_us, Event::Checkpoint { at, boot });
        let look_us = self.between((300_000, 1_500_000));
        self.after(look_us, Event::Inspect { at, boot });
        if std::mem::take(&mut self.armed[at].soon_after_start) {
            let delay_us = self.between((1_000, 600_000));
            self.after(delay_us, Event::Stop { at, boot, how: End::PowerCut });
        }
        Ok(())
    }

    fn replica_config(&self, at: usize, boot_id: u128) -> ReplicaConfig {
        ReplicaConfig {
            server_id: self.nodes[at].server_id,
            boot_id,
            cluster_id: CLUSTER,
            addresses: vec![format!("node-{}:7400", self.nodes[at].server_id)],
            durability: Durability::Sync,
            limits: Limits {
                feed_group_bytes: self.scenario.feed_group_bytes,
                feed_waiting_bytes_max: self.scenario.feed_waiting_bytes,
                ..Limits::default()
            },
            timings: Timings::default(),
        }
    }

    fn store_config(&self) -> StoreConfig {
        let mut config = StoreConfig {
            checkpoint: CheckpointConfig { retry_log_bytes: 0, ..CheckpointConfig::default() },
            ..StoreConfig::default()
        };
        config.log.segment_bytes = self.scenario.segment_bytes;
        config.log.allocate_bytes = 4_096;
        config.log.tail_bytes_max = self.scenario.tail_bytes;
        config.log.mark_bytes = self.scenario.mark_bytes;
        config.log.marks_max = 4;
        crate::bugs::switch_in_store(&mut config);
        config
    }

    /// Puts an input in a process's queue.
    pub(super) fn push_input(&mut self, at: usize, input: Input, intent: Option<Intent>) {
        let boot = self.nodes[at].boot;
        let Some(process) = self.nodes[at].process.as_mut() else { return };
        let is_first = process.inputs.is_empty() && !process.is_syncing;
        process.inputs.push_back((input, intent));
        if is_first {
            let delay_us = self.rng.below(200);
            self.after(delay_us, Event::Wake { at, boot });
        }
    }

    pub(super) fn wake(&mut self, at: usize, boot: u64) -> Checked {
        if let Some(left_us) = self.pause_left(at) {
            self.after(left_us, Event::Wake { at, boot });
            return Ok(());
        }
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        if process.is_syncing {
            return Ok(());
        }
        let taken = (process.inputs.len() as u64).min(1 + self.rng.below(self.scenario.inputs_max));
        for _ in 0..taken {
            let next = self.nodes[at].process_of(boot).and_then(|process| process.inputs.pop_front());
            if let Some((input, intent)) = next {
                self.handle(at, input, intent.as_ref())?;
            }
        }
        // Whoever asks before the sync gets only what needs none.
        self.perform(at)?;
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        let is_staged = process.replica.storage().staged_end() > process.durable_end;
        if is_staged && !process.has_failed {
            process.is_syncing = true;
            let delay_us = self.between(self.scenario.sync_us);
            self.after(delay_us, Event::Synced { at, boot });
        } else if !process.inputs.is_empty() {
            self.after(1, Event::Wake { at, boot });
        }
        Ok(())
    }

    pub(super) fn sync_done(&mut self, at: usize, boot: u64) -> Checked {
        if let Some(left_us) = self.pause_left(at) {
            self.after(left_us, Event::Synced { at, boot });
            return Ok(());
        }
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        process.is_syncing = false;
        let synced = process.replica.storage_mut().store.sync();
        match synced {
            Ok(end) => {
                process.durable_end = end;
                self.history.synced(at);
                self.handle(at, Input::Durable(end), None)?;
                if let Some(process) = self.nodes[at].process_of(boot) {
                    process.published = process.replica.durable_applied().clone();
                    process.catalog = process.replica.catalog().clone();
                    self.check_published(at)?;
                }
            }
            Err(_) if self.armed[at].power_cut => return self.stop(at, End::PowerCut),
            Err(error) => {
                process.has_failed = true;
                self.handle(at, Input::StorageFailed(error.to_string()), None)?;
            }
        }
        self.perform(at)?;
        self.serve_waiting(at)?;
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        if !process.inputs.is_empty() {
            self.after(1, Event::Wake { at, boot });
        }
        Ok(())
    }

    fn pause_left(&self, at: usize) -> Option<u64> {
        let left_us = self.nodes[at].paused_until_us.saturating_sub(self.now_us);
        (left_us > 0).then_some(left_us)
    }

    pub(super) fn tick(&mut self, at: usize, boot: u64) -> Checked {
        if self.nodes[at].process_of(boot).is_none() {
            return Ok(());
        }
        self.after(100_000, Event::Tick { at, boot });
        if self.pause_left(at).is_none() {
            self.push_input(at, Input::Tick, None);
            self.remove_log(at);
            self.dial(at);
            self.serve_waiting(at)?;
        }
        Ok(())
    }

    /// Removes what every member has, as the real driver does, once all have joined.
    fn remove_log(&mut self, at: usize) {
        let nodes = self.nodes.len();
        let server_id = self.nodes[at].server_id;
        let Some(process) = self.nodes[at].process.as_mut() else { return };
        let is_staged = process.replica.storage().staged_end() > process.durable_end;
        let is_complete = process.replica.catalog().members().count() == nodes;
        if !self.scenario.removes_log || process.has_failed || is_staged || !is_complete {
            return;
        }
        let mark = process.log.last_mark(&|heads: &ChainHeads| process.replica.all_members_have(heads.applied()));
        let Some(mark) = mark else { return };
        // A disk that fails here fails the next sync too.
        if let Ok(removed) = process.replica.storage_mut().store.remove_log_before(mark.position)
            && !removed.is_empty()
        {
            self.report.segments_removed += removed.len();
            self.note(format_args!("node {server_id} removes log segments {removed:?}"));
        }
    }

    /// Hands one input to the replica and looks at what it did.
    fn handle(&mut self, at: usize, input: Input, intent: Option<&Intent>) -> Checked {
        let now = self.nodes[at].now(self.now_us);
        let server_id = self.nodes[at].server_id;
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        process.replica.handle(input, now);
        let appended = std::mem::take(&mut process.replica.storage_mut().appended);
        if appended.is_empty() {
            return Ok(());
        }
        let mut changed = BTreeSet::new();
        for bytes in &appended {
            let written = self.history.appended(at, server_id, bytes, intent)?;
            changed.extend(written.changes.iter().map(|change| change.key.clone()));
            self.trace.note(self.now_us, format_args!("node {server_id} applies {}", written.dot));
        }
        let staged = self.history.node(at).staged();
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        let frontier = Seen::from(process.replica.frontier().heads.applied());
        if frontier != *staged.seen() && !process.has_failed {
            let what = format!("node {server_id} says it applied {frontier:?}, its log was given {:?}", staged.seen());
            return Err(Violation::new(applied_once_and_in_order::NAME, what));
        }
        for key in changed {
            use polyarch_protocol::Records;
            // As the code under test changes it, not as it would look it up.
            let record = process.replica.storage_mut().record_mut(&key);
            let record =
                record.map_err(|error| Violation::new(register_shows_unsuperseded::NAME, error.to_string()))?;
            register_shows_unsuperseded::check(server_id, "staged", &key, &shown_of(record), &staged.live(&key))?;
        }
        self.check_digest(at)
    }

    fn check_digest(&mut self, at: usize) -> Checked {
        let Some(process) = &self.nodes[at].process else { return Ok(()) };
        let digest = process.replica.frontier().digest.total();
        self.digests.check(self.nodes[at].server_id, self.history.node(at).staged().seen(), digest)
    }

    /// What was published is what is synced.
    fn check_published(&self, at: usize) -> Checked {
        let node = &self.nodes[at];
        let Some(process) = &node.process else { return Ok(()) };
        let published = Seen::from(&process.published);
        let durable = self.history.node(at).durable().seen();
        match published == *durable {
            true => Ok(()),
            false => Err(Violation::new(
                nothing_leaves_before_durable::NAME,
                format!("node {} calls {published:?} durable, it synced {durable:?}", node.server_id),
            )),
        }
    }

    /// Does what the replica wants done.
    fn perform(&mut self, at: usize) -> Checked {
        loop {
            let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
            let durable_end = process.durable_end;
            match process.replica.poll_output(durable_end) {
                Some(output) => self.perform_one(at, output)?,
                None => return Ok(()),
            }
        }
    }

    fn perform_one(&mut self, at: usize, output: Output) -> Checked {
        let server_id = self.nodes[at].server_id;
        match output {
            Output::Answer(tag, result) => {
                if tag.connection != ADMIN {
                    let response = ClientResponse { id: tag.request, result };
                    self.check_leaving_answer(at, &response)?;
                    self.answer(tag, &response);
                }
            }
            Output::Send(link, message) => {
                self.check_leaving_message(at, &message)?;
                self.note_sent(server_id, link, &message);
                self.send(at, link.0, Parcel::Control(message.encode().into()));
            }
            Output::Serve(link, feed) => {
                let boot = self.nodes[at].boot;
                if let Some(end) = self.end(at, link.0) {
                    end.streams += 1;
                    end.serving = Some(Serving { feed, stream: end.streams, in_flight: 0 });
                    let delay_us = self.rng.below(2_000);
                    self.after(delay_us, Event::PollFeed { at, boot, link: link.0 });
                }
            }
            Output::FeedMore(link) => {
                let boot = self.nodes[at].boot;
                let delay_us = self.rng.below(3_000);
                self.after(delay_us, Event::PollFeed { at, boot, link: link.0 });
            }
            Output::GroupTaken(link) => {
                if let Some(stream) = self.end(at, link.0).and_then(|end| end.in_hand.pop_front()) {
                    self.send(at, link.0, Parcel::Taken { stream });
                    self.hand_over(at, link.0)?;
                }
            }
            Output::CloseLink(link, reason) => {
                self.note(format_args!("node {server_id} closes link {}: {reason}", link.0));
                self.break_link(link.0);
            }
            Output::Event(event) => {
                self.note(format_args!("node {server_id}: {event}"));
                no_alarm_without_cause::check(server_id, &event)?;
                if let polyarch_protocol::Event::StorageFailed { .. } = event {
                    self.operator_restarts(at);
                }
            }
        }
        Ok(())
    }

    /// Someone reads the alarm and starts the node again; some think it helps to cut the power.
    fn operator_restarts(&mut self, at: usize) {
        let boot = self.nodes[at].boot;
        if let Some(process) = self.nodes[at].process.as_mut() {
            process.has_failed = true;
        }
        let delay_us = self.between((1_000, 1_500_000));
        let how = if self.rng.chance(700) { End::Kill } else { End::PowerCut };
        self.armed[at].soon_after_start = how == End::Kill && self.rng.chance(600);
        self.after(delay_us, Event::Stop { at, boot, how });
    }

    fn note_sent(&mut self, server_id: u32, link: LinkId, message: &PeerMessage) {
        match message {
            PeerMessage::Subscribe(s) => self.note(format_args!(
                "node {server_id} subscribes on link {} to {:?}",
                link.0,
                s.origins.iter().map(|(origin, head)| (*origin, head.seq)).collect::<Vec<_>>()
            )),
            PeerMessage::Refuse(r) => {
                self.note(format_args!("node {server_id} refuses {} on link {}: {:?}", r.origin, link.0, r.reason));
            }
            PeerMessage::Hello(_) | PeerMessage::Heartbeat(_) => {}
        }
    }

    fn check_leaving_message(&self, at: usize, message: &PeerMessage) -> Checked {
        let durable = self.history.node(at).durable().seen();
        let server_id = self.nodes[at].server_id;
        match message {
            PeerMessage::Heartbeat(heartbeat) => {
                nothing_leaves_before_durable::check(server_id, durable, heartbeat.applied.iter(), "a heartbeat")
            }
            PeerMessage::Subscribe(subscribe) => {
                let heads = subscribe.origins.iter().map(|(origin, head)| polyarch_crdt::Dot::new(*origin, head.seq));
                nothing_leaves_before_durable::check(server_id, durable, heads, "a subscription")
            }
            PeerMessage::Hello(_) | PeerMessage::Refuse(_) => Ok(()),
        }
    }

    fn check_leaving_answer(&self, at: usize, response: &ClientResponse) -> Checked {
        let dot = match &response.result {
            Ok(polyarch_protocol::client::Response::Written(written)) => written.dot,
            _ => None,
        };
        nothing_leaves_before_durable::check(
            self.nodes[at].server_id,
            self.history.node(at).durable().seen(),
            dot,
            "an ack",
        )
    }

    pub(super) fn end(&mut self, at: usize, link: u64) -> Option<&mut LinkEnd> {
        self.nodes[at].process.as_mut()?.links.get_mut(&LinkId(link))
    }

    /// Puts a parcel on a link.
    pub(super) fn send(&mut self, at: usize, link: u64, parcel: Parcel) {
        let Some(side) = self.end(at, link).map(|end| 1 - end.side) else { return };
        let range = match self.rng.chance(self.scenario.slow_permille) {
            true => self.scenario.slow_delay_us,
            false => self.scenario.delay_us,
        };
        let delay_us = self.between(range);
        if let Some(arrives_us) = self.network.send(link, side, &parcel, self.now_us, delay_us) {
            self.after(arrives_us - self.now_us, Event::Deliver { link, side, parcel });
        }
    }

    pub(super) fn deliver(&mut self, link: u64, side: usize, parcel: Parcel) -> Checked {
        let Some((at, boot)) = self.network.deliver(link, side, &parcel) else { return Ok(()) };
        if self.nodes[at].process_of(boot).is_none() || self.end(at, link).is_none() {
            return Ok(());
        }
        match parcel {
            Parcel::Control(frame) => {
                let message = PeerMessage::decode(&frame).map_err(|error| {
                    Violation::new("messages_decode", format!("node {}: {error}", self.nodes[at].server_id))
                })?;
                self.push_input(at, Input::Message(LinkId(link), message), None);
            }
            Parcel::Group { stream, frame } => {
                if let Some(end) = self.end(at, link) {
                    end.arrived.push_back((stream, frame));
                }
                self.hand_over(at, link)?;
            }
            Parcel::Taken { stream } => {
                if let Some(serving) = self.end(at, link).and_then(|end| end.serving.as_mut())
                    && serving.stream == stream
                {
                    serving.in_flight -= 1;
                    self.after(1, Event::PollFeed { at, boot, link });
                }
            }
        }
        Ok(())
    }

    /// Hands groups to the replica while it has not too many in hand.
    fn hand_over(&mut self, at: usize, link: u64) -> Checked {
        loop {
            let Some(end) = self.end(at, link) else { return Ok(()) };
            if end.in_hand.len() >= GROUPS_IN_FLIGHT_MAX {
                return Ok(());
            }
            let Some((stream, frame)) = end.arrived.pop_front() else { return Ok(()) };
            end.in_hand.push_back(stream);
            let group = FeedGroup::decode(&frame).map_err(|error| {
                Violation::new("messages_decode", format!("node {}: {error}", self.nodes[at].server_id))
            })?;
            let input =
                Input::FeedGroup { link: LinkId(link), subscription: group.subscription, write_sets: group.write_sets };
            self.push_input(at, input, None);
        }
    }

    pub(super) fn poll_feed(&mut self, at: usize, boot: u64, link: u64) -> Checked {
        if self.pause_left(at).is_some() {
            let left_us = self.pause_left(at).unwrap_or(0);
            self.after(left_us, Event::PollFeed { at, boot, link });
            return Ok(());
        }
        let group_bytes = self.scenario.feed_group_bytes;
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        let Process { log, links, .. } = process;
        let Some(serving) = links.get_mut(&LinkId(link)).and_then(|end| end.serving.as_mut()) else { return Ok(()) };
        if serving.in_flight >= GROUPS_IN_FLIGHT_MAX {
            return Ok(());
        }
        let stream = serving.stream;
        match serving.feed.poll(log, group_bytes) {
            FeedStep::Group(group) => {
                serving.in_flight += 1;
                self.check_leaving_group(at, &group)?;
                let frame = Bytes::from(group.encode());
                self.send(at, link, Parcel::Group { stream, frame });
                self.after(20, Event::PollFeed { at, boot, link });
            }
            FeedStep::Refused(refusals) => {
                for refuse in refusals {
                    let message = PeerMessage::Refuse(refuse);
                    self.note_sent(self.nodes[at].server_id, LinkId(link), &message);
                    self.send(at, link, Parcel::Control(message.encode().into()));
                }
                self.after(20, Event::PollFeed { at, boot, link });
            }
            FeedStep::Again => self.after(20, Event::PollFeed { at, boot, link }),
            FeedStep::Idle => {}
        }
        Ok(())
    }

    fn check_leaving_group(&self, at: usize, group: &FeedGroup) -> Checked {
        let dots = group.write_sets.iter().filter_map(|bytes| polyarch_protocol::WriteSet::peek_dot(bytes).ok());
        let durable = self.history.node(at).durable().seen();
        nothing_leaves_before_durable::check(self.nodes[at].server_id, durable, dots, "a feed")
    }

    /// Dials the members, and the seeds, that there is no link to.
    fn dial(&mut self, at: usize) {
        let boot = self.nodes[at].boot;
        let Some(process) = &self.nodes[at].process else { return };
        let mut wanted: BTreeSet<usize> =
            process.replica.members_to_link().map(|member| member.server_id as usize - 1).collect();
        if process.links.is_empty() {
            wanted.extend((0..self.nodes.len()).filter(|to| *to != at));
        }
        for end in process.links.values() {
            wanted.remove(&end.peer);
        }
        wanted.retain(|to| !process.replica.cut().contains(&(*to as u32 + 1)));
        for to in wanted {
            let is_reachable = !self.network.is_blocked(at, to) && !self.network.is_blocked(to, at);
            if self.dials.contains(&(at, to))
                || !is_reachable
                || self.nodes[to].process.is_none()
                || self.rng.chance(300)
            {
                continue;
            }
            self.dials.insert((at, to));
            let delay_us = 2 * self.between(self.scenario.delay_us);
            let to_boot = self.nodes[to].boot;
            self.after(delay_us, Event::Connect { from: (at, boot), to: (to, to_boot) });
        }
    }

    pub(super) fn connect(&mut self, from: (usize, u64), to: (usize, u64)) -> Checked {
        self.dials.remove(&(from.0, to.0));
        let is_blocked = self.network.is_blocked(from.0, to.0) || self.network.is_blocked(to.0, from.0);
        if is_blocked || [from, to].iter().any(|(at, boot)| self.nodes[*at].process_of(*boot).is_none()) {
            return Ok(());
        }
        let id = self.network.connect([from, to]);
        let (one, two) = (self.nodes[from.0].server_id, self.nodes[to.0].server_id);
        self.note(format_args!("link {id} connects node {one} to node {two}"));
        for (side, (at, boot)) in [from, to].into_iter().enumerate() {
            let peer = [to, from][side].0;
            let Some(process) = self.nodes[at].process_of(boot) else { continue };
            let end = LinkEnd {
                network_id: id,
                side,
                peer,
                serving: None,
                streams: 0,
                arrived: Default::default(),
                in_hand: Default::default(),
            };
            process.links.insert(LinkId(id), end);
            let input = Input::LinkUp { link: LinkId(id), server_id: self.nodes[peer].server_id, dialed: side == 0 };
            self.push_input(at, input, None);
        }
        Ok(())
    }

    /// Takes a link down; both ends learn it soon.
    pub(super) fn break_link(&mut self, link: u64) {
        let Some(ends) = self.network.disconnect(link) else { return };
        for (at, boot) in ends {
            let delay_us = self.rng.below(50_000);
            self.after(delay_us, Event::LinkDown { at, boot, link });
        }
    }

    pub(super) fn link_down(&mut self, at: usize, boot: u64, link: u64) -> Checked {
        if let Some(process) = self.nodes[at].process_of(boot)
            && process.links.remove(&LinkId(link)).is_some()
        {
            self.push_input(at, Input::LinkDown(LinkId(link)), None);
        }
        Ok(())
    }

    pub(super) fn create_missing_keyspaces(&mut self) {
        let Some(process) = &self.nodes[0].process else { return };
        if process.replica.writes_refused().is_some() {
            return;
        }
        let catalog = process.replica.catalog().clone();
        for (name, kind) in KEYSPACES {
            if catalog.keyspace(name).is_none() {
                self.requests_made += 1;
                let tag = polyarch_protocol::RequestTag { connection: ADMIN, request: self.requests_made };
                self.push_input(0, Input::CreateKeyspace(tag, name.to_owned(), kind), None);
            }
        }
    }

    pub(super) fn begin_checkpoint(&mut self, at: usize, boot: u64) -> Checked {
        if self.nodes[at].process_of(boot).is_none() {
            return Ok(());
        }
        let gap_us = self.between(self.scenario.checkpoint_gap_us);
        self.after(gap_us, Event::Checkpoint { at, boot });
        if self.pause_left(at).is_some() {
            return Ok(());
        }
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        if process.checkpoint.is_some() || process.has_failed {
            return Ok(());
        }
        let frontier = process.replica.frontier().clone();
        process.checkpoint = process.replica.storage_mut().store.begin_checkpoint_now(&frontier);
        if process.checkpoint.is_some() {
            let delay_us = self.between((100, 400_000));
            self.after(delay_us, Event::RunCheckpoint { at, boot });
        }
        Ok(())
    }

    pub(super) fn run_checkpoint(&mut self, at: usize, boot: u64) -> Checked {
        let server_id = self.nodes[at].server_id;
        let dies = std::mem::take(&mut self.armed[at].in_checkpoint);
        let Some(job) = self.nodes[at].process_of(boot).and_then(|process| process.checkpoint.take()) else {
            return Ok(());
        };
        if dies {
            match self.rng.chance(700) {
                true => self.nodes[at].devices.state().fail_after(1),
                false => {
                    let changes = self.rng.below(6);
                    self.nodes[at].devices.files().stop_after(changes);
                }
            }
        }
        let done = job.run();
        if dies {
            self.note(format_args!("node {server_id} loses power in a checkpoint"));
            return self.stop(at, End::PowerCutInCheckpoint);
        }
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        match done {
            Ok(done) => {
                let summary = process.replica.storage_mut().store.finish_checkpoint(done);
                self.armed[at].has_rolled_back = false;
                self.note(format_args!(
                    "node {server_id} has a checkpoint at {}, {} records",
                    summary.position, summary.records
                ));
            }
            Err(_) if self.armed[at].power_cut => return self.stop(at, End::PowerCut),
            Err(error) => self.note(format_args!("node {server_id}: {error}")),
        }
        Ok(())
    }

    pub(super) fn is_settled_phase(&self) -> bool {
        matches!(self.phase, Phase::Liveness { .. } | Phase::Done)
    }
}
