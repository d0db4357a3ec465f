//! The shape of the cluster as this node sees it: who is linked with whom, whom to dial, which
//! links to drop, and whether somebody else runs under this server id.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use polyarch_crdt::AppliedSet;

use super::{LinkId, Now, Replica};
use crate::catalog::MemberStatus;
use crate::event::Event;
use crate::peer::{PeerMessage, Twin};
use crate::plan::LinkSight;
use crate::reach::{Distances, LinkState, Taken};
use crate::storage::Storage;

/// How long a node takes no writes after a member last told it that it has a twin or was removed.
/// One that is refused dials again well within that, and is told again.
const TOLD_HOLD_MS: u64 = 15_000;
/// Link states in one message: it has to fit a frame also where each names thousands of links.
const LINK_STATES_AT_ONCE: usize = 64;
/// Addresses of twins that are kept, and how long each may be: a peer says them.
const TWIN_ADDRESSES_MAX: usize = 4;
const TWIN_ADDRESS_CHARS_MAX: usize = 256;
/// Where a twin is that only its link state told of.
const ELSEWHERE: &str = "an address not known here";
/// Processes of one server that another took the place of, at most, kept to know them again.
const DISPLACED_MAX: usize = 8;

/// What a member said of this one's removal.
#[derive(Debug)]
pub(super) struct ToldRemoved {
    /// The write sets that say so.
    because: AppliedSet,
    /// Until when it holds, unless it is said again.
    until_ms: u64,
}

impl ToldRemoved {
    /// Whether all that it goes by is applied here.
    fn is_known(&self, applied: &AppliedSet) -> bool {
        !self.because.is_empty() && applied.includes_all(&self.because)
    }
}

/// What is known of processes that share a server id.
#[derive(Debug, Default)]
pub(super) struct Twins {
    /// Of each server that is linked, the processes whose link was closed for that of a newer one,
    /// each with the newest link at that time. One that comes back on a newer one yet, while the
    /// newer process is still there, proves that both live: a restarted process never comes back.
    displaced: BTreeMap<u32, VecDeque<(u128, Option<LinkId>)>>,
    /// Servers that were found to have twins, until when that is not told again.
    told: BTreeMap<u32, u64>,
    /// This server's own: where they were seen, and until when this node holds still.
    own: Option<(Vec<String>, u64)>,
}

impl<S: Storage> Replica<S> {
    /// Notes that sessions have come or gone.
    pub(super) fn linked_changed(&mut self) {
        let linked: BTreeSet<u32> = self.established().map(|(_, session)| session.server_id).collect();
        if let Some(own) = self.link_states.set_own(&linked) {
            self.flood(&PeerMessage::LinkStates(vec![own]), None);
        }
        self.gossip.changed = true;
        self.links_due = true;
    }

    /// Tells a new link all that is known of the others.
    pub(super) fn send_link_states(&mut self, link: LinkId) {
        let entries: Vec<LinkState> = self.link_states.entries().cloned().collect();
        for entries in entries.chunks(LINK_STATES_AT_ONCE) {
            self.send(link, PeerMessage::LinkStates(entries.to_vec()));
        }
    }

    /// Takes what a peer says of links. What it changes is planned for with the next tick: it comes in
    /// hundreds of messages when a mesh forms.
    pub(super) fn take_link_states(&mut self, from: LinkId, entries: Vec<LinkState>, now: Now) {
        let mut newer = Vec::new();
        for entry in entries {
            match self.link_states.take(&entry) {
                Taken::Newer => newer.push(entry),
                Taken::Stale => {}
                // Sent with the next tick: two living processes outrun each other without end.
                Taken::OwnOutdated { twin, .. } => {
                    self.own_outdated = true;
                    if twin {
                        let unknown = || vec![self.config.addresses.join(", "), ELSEWHERE.to_owned()];
                        // A member that saw both says more.
                        let addresses = self.own_twins().map_or_else(unknown, <[String]>::to_vec);
                        self.hold_as_twin(&addresses, now);
                    }
                }
                Taken::Unsound => {
                    self.close(from, "it sends link states that cannot be");
                    break;
                }
            }
        }
        if !newer.is_empty() {
            self.flood(&PeerMessage::LinkStates(newer), Some(from));
        }
    }

    /// Plans links anew where something has changed, and with each tick.
    pub(super) fn plan_links(&mut self, now: Now) {
        if !std::mem::take(&mut self.links_due) || self.failed.is_some() {
            return;
        }
        if self.distances_of != self.link_states.changes() {
            self.distances = Distances::of(&self.link_states);
            self.distances_of = self.link_states.changes();
            self.replan(now);
        }
        let sight = LinkSight {
            members: &self.catalog.present(),
            cut: &self.cut,
            topology: self.catalog.topology(),
            states: &self.link_states,
            now_ms: now.mono_ms,
        };
        let wishes = self.link_plan.update(&sight, &self.config.timings.links);
        self.dial = wishes.dial;
        self.dial.extend(self.heirs_to_dial());
        let unreadable: Vec<u32> = self.dial.iter().copied().filter(|id| self.is_unreadable(*id, now)).collect();
        unreadable.iter().for_each(|id| _ = self.dial.remove(id));
        let dropped = self.sessions.iter().filter(|(_, session)| wishes.drop.contains(&session.server_id));
        let links: Vec<LinkId> = dropped.map(|(link, _)| *link).filter(|link| !self.carries_snapshot(*link)).collect();
        for link in links {
            self.close(link, "the topology has no such link");
        }
    }

    /// Members to hand over to, while this one is drained and has a link to none that stays: in a
    /// star whose hub is drained, say. The topology has no such link, so it lasts for a moment only.
    fn heirs_to_dial(&self) -> Vec<u32> {
        let stays = |id: u32| self.catalog.member(id).is_some_and(|member| member.status.takes_writes());
        if !self.is_draining() || self.established().any(|(_, session)| stays(session.server_id)) {
            return Vec::new();
        }
        self.catalog.present().into_iter().filter(|id| stays(*id) && !self.cut.contains(id)).collect()
    }

    /// What is due with each tick.
    pub(super) fn tick_links(&mut self, now: Now) {
        if std::mem::take(&mut self.own_outdated) {
            self.flood(&PeerMessage::LinkStates(vec![self.link_states.own().clone()]), None);
        }
        self.links_due = true;
        self.twins.own.take_if(|(_, until_ms)| *until_ms <= now.mono_ms);
        let applied = self.frontier.heads.applied();
        let is_removed = self.own_record_is(MemberStatus::Removed);
        self.told_removed.take_if(|told| told.until_ms <= now.mono_ms || (!is_removed && told.is_known(applied)));
        let members = self.catalog.present();
        self.unreadable.retain(|server_id, held| held.until_ms > now.mono_ms || members.contains(server_id));
        self.twins.told.retain(|_, until_ms| *until_ms > now.mono_ms);
        let linked: BTreeSet<u32> = self.established().map(|(_, session)| session.server_id).collect();
        self.twins.displaced.retain(|server_id, _| linked.contains(server_id));
    }

    /// A newer process of a server takes the place of an older one.
    pub(super) fn displace(&mut self, server_id: u32, boot_id: u128) {
        let newest = self.sessions.keys().next_back().copied();
        let displaced = self.twins.displaced.entry(server_id).or_default();
        displaced.retain(|(known, _)| *known != boot_id);
        displaced.push_back((boot_id, newest));
        if displaced.len() > DISPLACED_MAX {
            displaced.pop_front();
        }
    }

    /// Whether a process that says hello on `link` lost its link to another of the same server id
    /// that is still linked. If so both are told, and the one that came back is refused.
    pub(super) fn refuse_twin(&mut self, link: LinkId, boot_id: u128, now: Now) -> bool {
        let server_id = self.sessions[&link].server_id;
        let Some(displaced) = self.twins.displaced.get_mut(&server_id) else { return false };
        if !displaced.iter().any(|(known, newest)| *known == boot_id && Some(link) > *newest) {
            return false;
        }
        let Some((other, _)) =
            self.established().find(|(_, s)| s.server_id == server_id && s.established != Some(boot_id))
        else {
            // The other has gone: this one has the place to itself.
            self.twins.displaced.remove(&server_id);
            return false;
        };
        let addresses = vec![self.sessions[&other].address.clone(), self.sessions[&link].address.clone()];
        if self.twins.told.insert(server_id, now.mono_ms.saturating_add(TOLD_HOLD_MS)).is_none() {
            self.event(Event::Twin { server_id, addresses: addresses.clone() });
        }
        let reason = format!("two living processes have server id {server_id}, at {}", addresses.join(" and "));
        for link in [other, link] {
            let twin = Twin { addresses: addresses.clone() };
            self.send(link, PeerMessage::Twin(twin));
        }
        self.close(link, &reason);
        true
    }

    /// Takes no writes for a while: another living process has this server id.
    pub(super) fn hold_as_twin(&mut self, addresses: &[String], now: Now) {
        let server_id = self.config.server_id;
        let shortened = |address: &String| address.chars().take(TWIN_ADDRESS_CHARS_MAX).collect();
        let addresses: Vec<String> = addresses.iter().take(TWIN_ADDRESSES_MAX).map(shortened).collect();
        // Told again once where they are is known.
        let is_told = self.own_twins().is_some_and(|told| !told.iter().any(|address| address == ELSEWHERE));
        if !is_told && self.own_twins() != Some(&addresses[..]) {
            self.event(Event::Twin { server_id, addresses: addresses.clone() });
        }
        self.twins.own = Some((addresses, now.mono_ms.saturating_add(TOLD_HOLD_MS)));
    }

    /// A member says that this server was removed. It may know more than the catalog here.
    pub(super) fn hold_as_removed(&mut self, by: u32, because: &AppliedSet, now: Now) {
        let told = ToldRemoved { because: because.clone(), until_ms: now.mono_ms.saturating_add(TOLD_HOLD_MS) };
        if !self.own_record_is(MemberStatus::Removed) && told.is_known(self.frontier.heads.applied()) {
            // It was taken back since, and that member has not heard of it.
            return;
        }
        if self.own_status() != Some(MemberStatus::Removed) {
            self.event(Event::ToldRemoved { by });
        }
        self.told_removed = Some(told);
    }

    fn own_record_is(&self, status: MemberStatus) -> bool {
        self.catalog.member(self.config.server_id).is_some_and(|member| member.status == status)
    }

    /// Where this server's twins were seen, if it has any.
    pub(super) fn own_twins(&self) -> Option<&[String]> {
        self.twins.own.as_ref().map(|(addresses, _)| &addresses[..])
    }
}
