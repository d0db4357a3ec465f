//! Links and feeds: what the real node's links do, cut into events.

use std::collections::BTreeSet;

use bytes::Bytes;
use polyarch_crdt::seeded_bug;
use polyarch_protocol::peer::{FeedGroup, PeerMessage, PeerVersion};
use polyarch_protocol::{FeedStep, Input, LinkId};

use super::network::Parcel;
use super::{Event, World};
use crate::fault::Fault;
use crate::invariants::{
    Checked, Violation, link_carries_once, nothing_leaves_before_durable, older_links_stay_as_they_were,
};
use crate::node::{LinkEnd, Process};

/// Groups of a stream that may be on their way.
const GROUPS_IN_FLIGHT_MAX: usize = 2;

impl World {
    pub(super) fn end(&mut self, at: usize, link: u64) -> Option<&mut LinkEnd> {
        self.nodes[at].process.as_mut()?.links.get_mut(&LinkId(link))
    }

    /// Puts a parcel on a link.
    pub(super) fn send(&mut self, at: usize, link: u64, parcel: Parcel) {
        let Some(side) = self.end(at, link).map(|end| 1 - end.side) else { return };
        let chance = self.streams.network(link, side);
        let range = match chance.chance(self.scenario.slow_permille) {
            true => self.scenario.slow_delay_us,
            false => self.scenario.delay_us,
        };
        let delay_us = chance.between(range);
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
                let version = self.end(at, link).map_or(PeerVersion::NEWEST, |end| end.version);
                older_links_stay_as_they_were::check(self.nodes[at].server_id, version, &frame)?;
                self.push_input(at, Input::Message(LinkId(link), message), None);
            }
            Parcel::Group { stream, frame } => {
                self.meter_arrival(at, link, &frame);
                if let Some(end) = self.end(at, link) {
                    end.arrived.push_back((stream, frame));
                }
                self.hand_over(at, link)?;
                if self.is_the_moment(at, |armed| &mut armed.in_feed, Fault::LoseLinkInFeed) {
                    self.break_link(link);
                }
            }
            Parcel::Taken { stream } => {
                if let Some(serving) = self.end(at, link).and_then(|end| end.serving.as_mut())
                    && serving.stream == stream
                {
                    serving.in_flight -= 1;
                    self.after(1, Event::PollFeed { at, boot, link });
                }
            }
            Parcel::AskSnapshot { fetch, frame } => self.snapshot_asked(at, link, fetch, &frame)?,
            Parcel::Snapshot { fetch, frame } => self.snapshot_part(at, fetch, &frame)?,
        }
        Ok(())
    }

    /// Hands groups to the replica while it has not too many in hand.
    pub(super) fn hand_over(&mut self, at: usize, link: u64) -> Checked {
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
                link_carries_once::check(at as u32 + 1, link, &mut serving.sent, &group)?;
                self.check_leaving_group(at, &group)?;
                let frame = Bytes::from(group.encode());
                self.meter_group(&group, &frame);
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
    pub(super) fn dial(&mut self, at: usize) {
        let boot = self.nodes[at].boot;
        let Some(process) = &self.nodes[at].process else { return };
        let mut wanted: BTreeSet<usize> =
            process.replica.members_to_dial().map(|member| member.server_id as usize - 1).collect();
        if process.links.is_empty() || process.replica.wants_seeds() {
            let seen = process.replica.in_sight();
            let is_there = |to: &usize| !process.links.is_empty() && seen.contains(&(*to as u32 + 1));
            wanted.extend((0..self.scenario.seeds_max).filter(|to| *to != at && !is_there(to)));
        }
        if seeded_bug("dials-everyone") {
            wanted.extend((0..self.members()).filter(|to| *to != at));
        }
        for end in process.links.values() {
            wanted.remove(&self.member_of(end.peer));
        }
        wanted.remove(&self.member_of(at));
        wanted.retain(|to| !process.replica.cut().contains(&(*to as u32 + 1)));
        for to in in_some_order(wanted) {
            let to = self.one_of_twins(to);
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
        let version = self.scenario.versions[from.0].min(self.scenario.versions[to.0]);
        self.note(format_args!("link {id} connects node {one} to node {two}, {version:?}"));
        for (side, (at, boot)) in [from, to].into_iter().enumerate() {
            let peer = [to, from][side].0;
            let Some(process) = self.nodes[at].process_of(boot) else { continue };
            let end = LinkEnd {
                network_id: id,
                side,
                peer,
                version,
                serving: None,
                streams: 0,
                arrived: Default::default(),
                in_hand: Default::default(),
            };
            process.links.insert(LinkId(id), end);
            let server_id = self.nodes[peer].server_id;
            let machine = if peer < self.members() { "node" } else { "clone" };
            let address = format!("{machine}-{server_id}:7400");
            let input = Input::LinkUp { link: LinkId(id), server_id, dialed: side == 0, version, address };
            self.push_input(at, input, None);
        }
        Ok(())
    }

    /// Takes a link down once what was said on its control stream has been heard, as the real node does.
    pub(super) fn close_link(&mut self, at: usize, link: u64) {
        let to = self.end(at, link).map(|end| 1 - end.side);
        match to.and_then(|side| self.network.control_arrives_us(link, side)).filter(|us| *us >= self.now_us) {
            Some(arrives_us) => self.after(arrives_us + 1 - self.now_us, Event::CloseLink { link }),
            None => self.break_link(link),
        }
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
            self.break_walks(at, link);
            self.break_fetch(at, link);
            self.push_input(at, Input::LinkDown(LinkId(link)), None);
        }
        Ok(())
    }
}

fn in_some_order(nodes: BTreeSet<usize>) -> Vec<usize> {
    match seeded_bug("order-of-a-hash-set") {
        // Another one each time, whatever the seed.
        true => nodes.into_iter().collect::<std::collections::HashSet<_>>().into_iter().collect(),
        false => nodes.into_iter().collect(),
    }
}
