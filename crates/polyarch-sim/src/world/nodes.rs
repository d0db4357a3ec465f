//! How processes are driven: the loop of the real driver, cut into events.

use std::collections::BTreeSet;

use polyarch_crdt::{AppliedSet, Dot, seeded_bug};
use polyarch_protocol::catalog::topology_key;
use polyarch_protocol::client::ClientResponse;
use polyarch_protocol::peer::PeerMessage;
use polyarch_protocol::{
    BasedSet, ChainHeads, Durability, Input, KeyspaceId, Limits, LinkId, LogSource, Output, RecordKey, ReplicaConfig,
    Storage, Timings,
};
use polyarch_store::{CheckpointConfig, StoreConfig};

use super::faults::End;
use super::network::Parcel;
use super::{CLUSTER, Event, KEYSPACES, Phase, World};
use crate::history::Intent;
use crate::invariants::lost_own_is_told::Told;
use crate::invariants::{
    Checked, Violation, applied_once_and_in_order, base_is_applied, drained_takes_no_writes, full_disk_is_survived,
    log_stays_while_a_member_lacks_it, no_alarm_without_cause, node_always_starts, nothing_leaves_before_durable,
    register_shows_unsuperseded, stamps_follow_causality,
};
use crate::node::Serving;
use crate::registers::{Seen, Written, shown_of};
use crate::scenario::LogRemoval;

/// The connection of the one who creates keyspaces.
pub(super) const ADMIN: u64 = u64::MAX;

impl World {
    pub(super) fn start(&mut self, at: usize) -> Checked {
        if self.nodes[at].process.is_some() || !self.is_in_use(at) {
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
            Err(error) if self.evidence[at].may_refuse() => {
                self.note(format_args!("node {server_id} does not start: {error}"));
                self.operator_mends(at);
                return Ok(());
            }
            Err(error) => return Err(node_always_starts::violation(server_id, &error.to_string())),
        }
        self.report.starts += 1;
        self.told[at] = Told::default();
        self.note_late_join(at);
        let Some(process) = &self.nodes[at].process else { return Ok(()) };
        let heads = process.replica.frontier().heads.clone();
        let recovered = Seen::from(heads.applied());
        if self.history.node(at).is_adopting() {
            // It may have come to its end, without anybody hearing of it.
            self.evidence[at].is_cut_off = true;
            self.armed[at].has_rolled_back = true;
        }
        self.note_damaged_end(at, &recovered)?;
        self.evidence[at].recovered(|dot| recovered.includes(dot));
        self.history.recovered(at, server_id, self.scenario.durability[at], &heads)?;
        self.check_digest(at)?;
        self.inspect(at)?;
        let boot = self.nodes[at].boot;
        if at == 0 && !self.is_founded && heads.applied().is_empty() {
            let key = self.cluster_key.clone();
            self.push_input(at, Input::Found(key), None);
        }
        self.find_snapshot(at);
        self.find_salvage(at)?;
        self.operator_verifies(at);
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

    fn note_late_join(&mut self, at: usize) {
        let is_late = self.scenario.joins_late_us.is_some() && at + 1 == self.members();
        if is_late && self.nodes[at].boot == 1 {
            let held = (0..at).map(|other| self.history.node(other).order().len()).max().unwrap_or(0);
            self.report.joined_after = held;
            self.trace.note(self.now_us, format_args!("node {} joins late, after {held} write sets", at + 1));
        }
    }

    fn replica_config(&self, at: usize, boot_id: u128) -> ReplicaConfig {
        ReplicaConfig {
            server_id: self.nodes[at].server_id,
            boot_id,
            cluster_id: CLUSTER,
            name: format!("node-{}", self.nodes[at].server_id),
            addresses: vec![format!("node-{}:7400", self.nodes[at].server_id)],
            durability: self.scenario.durability[at],
            limits: Limits {
                feed_group_bytes: self.scenario.feed_group_bytes,
                feed_waiting_bytes_max: self.scenario.feed_waiting_bytes,
                base_epochs_min: self.scenario.base_epochs_min,
                ..Limits::default()
            },
            timings: Timings { progress_interval_ms: self.scenario.progress_interval_ms, ..Timings::default() },
        }
    }

    pub(super) fn store_config(&self) -> StoreConfig {
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
        self.after_handling(at, boot)
    }

    /// Shows, performs and syncs what was handled, as far as that is due.
    pub(super) fn after_handling(&mut self, at: usize, boot: u64) -> Checked {
        if self.scenario.durability[at] == Durability::Interval {
            self.publish_staged(at)?;
        }
        // Whoever asks before the sync gets only what needs none.
        self.perform(at)?;
        self.go_on_with_snapshots(at)?;
        self.sync_or_go_on(at, boot);
        Ok(())
    }

    /// Begins the sync that is due, or sees to what came in since.
    fn sync_or_go_on(&mut self, at: usize, boot: u64) {
        let now_us = self.now_us;
        let Some(process) = self.nodes[at].process_of(boot) else { return };
        let needs_sync = process.is_staged() && !process.has_failed;
        let has_inputs = !process.inputs.is_empty();
        if needs_sync && process.sync_due_us <= now_us {
            process.is_syncing = true;
            let delay_us = self.between(self.scenario.sync_us);
            return self.after(delay_us, Event::Synced { at, boot });
        }
        let due_us = process.sync_due_us;
        if needs_sync {
            self.after(due_us - now_us, Event::Wake { at, boot });
        }
        if has_inputs {
            self.after(1, Event::Wake { at, boot });
        }
    }

    /// Shows what is staged to this node's clients, as an interval node does after each group.
    fn publish_staged(&mut self, at: usize) -> Checked {
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        if !process.is_staged() || process.has_failed || process.replica.has_failed() {
            return Ok(());
        }
        process.replica.storage_mut().store.publish_staged();
        process.published_end = process.replica.storage().staged_end();
        process.published = process.replica.frontier().heads.applied().clone();
        process.catalog = process.replica.catalog().clone();
        self.history.published(at);
        self.serve_waiting(at)
    }

    pub(super) fn sync_done(&mut self, at: usize, boot: u64) -> Checked {
        if let Some(left_us) = self.pause_left(at) {
            self.after(left_us, Event::Synced { at, boot });
            return Ok(());
        }
        let sync_due_us = match self.scenario.durability[at] {
            Durability::Sync => 0,
            Durability::Interval => self.now_us + self.scenario.sync_interval_us,
        };
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        process.is_syncing = false;
        process.sync_due_us = sync_due_us;
        let synced = process.replica.storage_mut().store.sync();
        match synced {
            Ok(end) => {
                (process.durable_end, process.published_end) = (end, end);
                self.meter_synced(at);
                self.history.synced(at);
                self.history.published(at);
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
        self.go_on_with_snapshots(at)?;
        self.begin_due_checkpoint(at, boot);
        self.serve_waiting(at)?;
        let Some(process) = self.nodes[at].process_of(boot) else { return Ok(()) };
        if !process.inputs.is_empty() {
            self.after(1, Event::Wake { at, boot });
        }
        Ok(())
    }

    pub(super) fn pause_left(&self, at: usize) -> Option<u64> {
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
            self.remove_log(at)?;
            self.dial(at);
            self.serve_waiting(at)?;
        }
        Ok(())
    }

    /// Removes what every member has, as the real driver does, once all have joined.
    fn remove_log(&mut self, at: usize) -> Checked {
        let nodes = self.members();
        let server_id = self.nodes[at].server_id;
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        let is_complete = process.replica.catalog().members().count() == nodes;
        let removes = match self.scenario.log_removal {
            LogRemoval::Nothing => false,
            LogRemoval::WhatAllHave => is_complete,
            LogRemoval::Cuts => true,
        };
        if !removes || process.has_failed {
            return Ok(());
        }
        let mark = process.log.last_mark(&|heads: &ChainHeads| process.replica.all_members_have(heads.applied()));
        let Some(mark) = mark else { return Ok(()) };
        // A disk that fails here fails the next sync too.
        let removed = process.replica.storage_mut().store.remove_log_before(mark.position).unwrap_or_default();
        if removed.is_empty() {
            return Ok(());
        }
        let linked: BTreeSet<usize> = process.links.values().map(|end| end.peer).collect();
        self.evidence[at].removed(&removed);
        self.report.segments_removed += removed.len();
        if linked.len() + 1 < nodes {
            self.report.segments_removed_from_afar += removed.len();
        }
        self.note(format_args!("node {server_id} removes log segments {removed:?}"));
        if self.scenario.log_removal == LogRemoval::Cuts {
            // Disks are lost, and members are yet to join.
            return Ok(());
        }
        let members = self.nodes.iter().map(|node| node.server_id);
        let durable = (0..nodes).map(|at| self.history.node(at).durable().seen());
        log_stays_while_a_member_lacks_it::check(server_id, mark.heads.applied(), members.zip(durable))
    }

    /// Lets go of all log that the store can do without, as a bound on its size does; says whether any went.
    pub(super) fn cut_log(&mut self, at: usize) -> bool {
        let Some(process) = self.nodes[at].process.as_mut().filter(|process| !process.has_failed) else {
            return false;
        };
        let end = process.durable_end;
        let removed = process.replica.storage_mut().store.remove_log_before(end).unwrap_or_default();
        if !removed.is_empty() {
            self.evidence[at].removed(&removed);
            self.report.segments_cut += removed.len();
            self.note(format_args!("node {} cuts log segments {removed:?}", at + 1));
        }
        !removed.is_empty()
    }

    /// Hands one input to the replica, which may notice that the power has failed.
    pub(super) fn handle(&mut self, at: usize, input: Input, intent: Option<&Intent>) -> Checked {
        self.handle_and_check(at, input, intent)?;
        let has_failed = self.nodes[at].process.as_ref().is_some_and(|process| process.replica.has_failed());
        match has_failed && self.armed[at].power_cut {
            true => self.stop(at, End::PowerCut),
            false => Ok(()),
        }
    }

    /// Hands one input to the replica and looks at what it did.
    fn handle_and_check(&mut self, at: usize, input: Input, intent: Option<&Intent>) -> Checked {
        let now = self.nodes[at].now(self.now_us);
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        process.replica.handle(input, now);
        self.note_appended(at, intent)
    }

    /// Looks at what the replica gave its log.
    pub(super) fn note_appended(&mut self, at: usize, intent: Option<&Intent>) -> Checked {
        let server_id = self.nodes[at].server_id;
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        let appended = std::mem::take(&mut process.replica.storage_mut().appended);
        if appended.is_empty() {
            return Ok(());
        }
        let synced = process.durable_end;
        let mut changed = BTreeSet::new();
        for (bytes, end) in &appended {
            let written = self.history.appended(at, server_id, bytes, intent)?;
            self.check_stamp(at, &written)?;
            if let Some(removed) = &self.operators.removed {
                removed.check(server_id, written.dot)?;
            }
            if intent.is_some() {
                self.meter_written(written.dot, bytes.len());
            }
            if written.dot.origin.server_id == server_id && !self.history.node(at).just_wrote(written.dot) {
                self.note_own_came(at, written.dot);
            }
            self.evidence[at].appended(written.dot, bytes.len(), *end, synced);
            changed.extend(written.changes.iter().map(|change| change.key.clone()));
            self.trace.note(self.now_us, format_args!("node {server_id} applies {}", written.dot));
        }
        if intent.is_some() {
            drained_takes_no_writes::check(server_id, self.history.node(at).member_status(server_id))?;
        }
        let staged = self.history.node(at).staged();
        let Some(process) = self.nodes[at].process.as_mut() else { return Ok(()) };
        let frontier = Seen::from(process.replica.frontier().heads.applied());
        if frontier != *staged.seen() && !process.has_failed {
            let what = format!("node {server_id} says it applied {frontier:?}, its log was given {:?}", staged.seen());
            return Err(Violation::new(applied_once_and_in_order::NAME, what));
        }
        if let Some(base) = process.replica.catalog().bases().newest() {
            base_is_applied::check(server_id, staged.seen(), base)?;
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

    /// Looks at the stamp of what a node has just written itself.
    fn check_stamp(&self, at: usize, written: &Written) -> Checked {
        let (history, node) = (self.history.node(at), &self.nodes[at]);
        if !history.just_wrote(written.dot) {
            return Ok(());
        }
        let applied =
            history.order().iter().filter(|other| other.dot != written.dot).map(|other| (other.dot, other.hlc));
        let ahead_max_ms = Timings::default().hlc_ahead_max_ms;
        let merged_max_ms = node.clock.least_ms.saturating_add(ahead_max_ms);
        stamps_follow_causality::check(written.dot, written.hlc, applied, merged_max_ms)
    }

    /// A write set of a node's own server came that this process has not written.
    pub(super) fn note_own_came(&mut self, at: usize, dot: Dot) {
        let has_twin = self.clones.ever.contains(&self.member_of(at));
        match has_twin || self.evidence[at].waiting().contains_key(&dot) {
            true => self.told[at].salvaged(dot),
            false => self.told[at].came(dot),
        }
    }

    pub(super) fn check_digest(&mut self, at: usize) -> Checked {
        let Some(process) = &self.nodes[at].process else { return Ok(()) };
        let digest = process.replica.frontier().digest.total();
        self.digests.check(self.nodes[at].server_id, self.history.node(at).staged().seen(), digest)
    }

    /// What was published is what is synced.
    pub(super) fn check_published(&self, at: usize) -> Checked {
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
    pub(super) fn perform(&mut self, at: usize) -> Checked {
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
                if tag.connection == ADMIN {
                    self.operators.answered = Some(result.map(|_| ()));
                } else {
                    let response = ClientResponse { id: tag.request, result };
                    self.check_leaving_answer(at, &response)?;
                    self.answer(tag, &response);
                }
            }
            Output::Send(link, message) => {
                self.check_leaving_message(at, &message)?;
                self.note_sent(server_id, link, &message);
                let frame = message.encode().into();
                self.meter_control(&frame);
                self.send(at, link.0, Parcel::Control(frame));
            }
            Output::Serve(link, feed) => {
                let boot = self.nodes[at].boot;
                if let Some(end) = self.end(at, link.0) {
                    end.streams += 1;
                    end.serving = Some(Serving { feed, stream: end.streams, sent: Seen::default(), in_flight: 0 });
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
            Output::ScanBuckets(wanted) => {
                let keys = self.nodes[at].process.as_ref().and_then(|process| process.keys_of(wanted));
                self.push_input(at, Input::BucketsScanned(keys), None);
            }
            Output::FetchSnapshot(link) => self.fetch_snapshot(at, link),
            Output::CloseLink(link, reason) => {
                self.note(format_args!("node {server_id} closes link {}: {reason}", link.0));
                self.close_link(at, link.0);
            }
            Output::Event(event) => {
                self.note(format_args!("node {server_id}: {event}"));
                let topology = RecordKey::new(KeyspaceId::SYSTEM, &topology_key());
                let causes = no_alarm_without_cause::Causes {
                    topology_set_at_once: |dot| self.history.is_concurrent(dot, &topology),
                    was_removed: self.operators.ever_removed.contains(&server_id),
                    had_twin: !self.clones.ever.is_empty(),
                    disk_was_full: self.armed[at].disk_was_full,
                    logs_are_cut: self.scenario.log_removal == LogRemoval::Cuts || self.was_damaged,
                };
                no_alarm_without_cause::check(server_id, &event, &causes)?;
                match event {
                    polyarch_protocol::Event::StorageFailed { reason } => {
                        full_disk_is_survived::check(server_id, self.armed[at].disk_fails, &reason)?;
                        self.operator_restarts(at);
                    }
                    polyarch_protocol::Event::OwnWritesLost { epochs, .. } => {
                        let is_written = |dot| self.history.is_written(dot);
                        self.told[at].lost(server_id, &epochs, self.images[at].was_set_back, is_written)?;
                    }
                    polyarch_protocol::Event::SnapshotFailed { .. } => self.report.snapshots.failed += 1,
                    polyarch_protocol::Event::OwnWritesRegained { write_sets, .. } => {
                        let durable = self.history.node(at).durable().seen();
                        self.told[at].regained(server_id, write_sets, durable)?;
                    }
                    _ => {}
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

    pub(super) fn note_sent(&mut self, server_id: u32, link: LinkId, message: &PeerMessage) {
        match message {
            PeerMessage::Subscribe(s) => self.note(format_args!(
                "node {server_id} subscribes on link {} to {:?}",
                link.0,
                s.origins.iter().map(|(origin, head)| (*origin, head.seq)).collect::<Vec<_>>()
            )),
            PeerMessage::Refuse(r) => {
                self.note(format_args!("node {server_id} refuses {} on link {}: {:?}", r.origin, link.0, r.reason));
            }
            PeerMessage::Hello(_)
            | PeerMessage::Heartbeat(_)
            | PeerMessage::LinkStates(_)
            | PeerMessage::Progress(_)
            | PeerMessage::Twin(_)
            | PeerMessage::Removed(_)
            | PeerMessage::Digest(_)
            | PeerMessage::BucketKeys(_)
            | PeerMessage::Base(_)
            | PeerMessage::BasedHeartbeat(_) => {}
        }
    }

    fn check_leaving_message(&self, at: usize, message: &PeerMessage) -> Checked {
        let durable = self.history.node(at).durable().seen();
        let server_id = self.nodes[at].server_id;
        match message {
            PeerMessage::Heartbeat(heartbeat) => {
                nothing_leaves_before_durable::check(server_id, durable, heartbeat.applied.iter(), "a heartbeat")
            }
            PeerMessage::BasedHeartbeat(heartbeat) => {
                let applied = self.spelled_out(at, &heartbeat.applied);
                nothing_leaves_before_durable::check(server_id, durable, applied.iter(), "a heartbeat")
            }
            PeerMessage::Progress(entries) => {
                // What others said of themselves goes on as it is.
                let own = entries.iter().filter(|entry| entry.server_id == server_id);
                let own = own.flat_map(|entry| self.spelled_out(at, &entry.applied).iter().collect::<Vec<_>>());
                nothing_leaves_before_durable::check(server_id, durable, own, "its progress")
            }
            PeerMessage::Base(name) => nothing_leaves_before_durable::check(server_id, durable, [*name], "a base"),
            PeerMessage::Subscribe(subscribe) => {
                let heads = subscribe.origins.iter().map(|(origin, head)| polyarch_crdt::Dot::new(*origin, head.seq));
                nothing_leaves_before_durable::check(server_id, durable, heads, "a subscription")
            }
            PeerMessage::Digest(digest) => {
                nothing_leaves_before_durable::check(server_id, durable, digest.applied.iter(), "a digest")
            }
            PeerMessage::BucketKeys(keys) => {
                nothing_leaves_before_durable::check(server_id, durable, keys.applied.iter(), "keys")
            }
            PeerMessage::Hello(_)
            | PeerMessage::Refuse(_)
            | PeerMessage::LinkStates(_)
            | PeerMessage::Twin(_)
            | PeerMessage::Removed(_) => Ok(()),
        }
    }

    /// What a node says by the name of a base.
    fn spelled_out(&self, at: usize, based: &BasedSet) -> AppliedSet {
        let process = self.nodes[at].process.as_ref();
        process.map_or_else(AppliedSet::new, |process| based.known_by(process.replica.catalog().bases()))
    }

    fn check_leaving_answer(&self, at: usize, response: &ClientResponse) -> Checked {
        let dot = match &response.result {
            Ok(polyarch_protocol::client::Response::Written(written)) => written.dot,
            _ => None,
        };
        let history = self.history.node(at);
        let has_failed = self.nodes[at].process.as_ref().is_some_and(|process| process.replica.has_failed());
        // An interval node acknowledges what it shows, and after a failure what it would have shown.
        let known = match self.scenario.durability[at] {
            Durability::Sync => history.durable(),
            Durability::Interval if has_failed => history.staged(),
            Durability::Interval => history.published(),
        };
        nothing_leaves_before_durable::check(self.nodes[at].server_id, known.seen(), dot, "an ack")
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
        if let Some(process) = self.nodes[at].process_of(boot) {
            process.is_checkpoint_due = true;
        }
        self.begin_due_checkpoint(at, boot);
        Ok(())
    }

    /// Begins a checkpoint if one is due and all is synced.
    pub(super) fn begin_due_checkpoint(&mut self, at: usize, boot: u64) {
        let Some(process) = self.nodes[at].process_of(boot) else { return };
        let is_staged = process.is_staged() && !seeded_bug("checkpoint-of-what-is-staged");
        if !process.is_checkpoint_due || is_staged || process.checkpoint.is_some() || process.has_failed {
            return;
        }
        if process.snapshots.awaits_adoption() {
            return;
        }
        process.is_checkpoint_due = false;
        let frontier = process.replica.frontier().clone();
        process.checkpoint = process.replica.storage_mut().store.begin_checkpoint_now(&frontier);
        if process.checkpoint.is_some() {
            let delay_us = self.between((100, 400_000));
            self.after(delay_us, Event::RunCheckpoint { at, boot });
        }
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
        self.go_on_with_snapshots(at)
    }

    pub(super) fn is_settled_phase(&self) -> bool {
        matches!(self.phase, Phase::Liveness { .. } | Phase::Done)
    }
}
