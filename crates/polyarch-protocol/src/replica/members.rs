//! The cluster's own matters: who is a member and where it stands, and which topology is set.
//!
//! Both are records of the system keyspace, written by whichever node is asked. What a member says
//! of itself, its name and addresses and the steps it takes by itself, it writes too.

use std::collections::{BTreeMap, BTreeSet};

use polyarch_crdt::{AppliedSet, Dot, FieldPath, seeded_bug};

use super::coordinator::system_change;
use super::{LinkId, Now, Replica};
use crate::catalog::{self, Catalog, Member, MemberChange, MemberStatus, SystemRecord};
use crate::client::{Refusal, Written};
use crate::event::Event;
use crate::keyspace::{KeyspaceId, RecordKey};
use crate::peer::PeerMessage;
use crate::storage::{Storage, StorageError};
use crate::topology::Topology;

/// A drain of this member that is under way.
#[derive(Debug)]
pub(super) struct Drain {
    /// What it had applied when it heard of it.
    had: AppliedSet,
    /// Members that said they have all of that, with what they had applied when they first did.
    heirs: BTreeMap<u32, AppliedSet>,
}

impl<S: Storage> Replica<S> {
    pub(super) fn set_topology(&mut self, topology: Topology, now: Now) -> Result<Written, Refusal> {
        self.check_administrable()?;
        let mut members = self.catalog.present();
        members.insert(self.config.server_id);
        topology.validate(&members).map_err(|error| Refusal::Topology(error.to_string()))?;
        self.write_system(&SystemRecord::Topology(topology), now)
    }

    pub(super) fn change_member(&mut self, server_id: u32, change: MemberChange, now: Now) -> Result<Written, Refusal> {
        match server_id == self.config.server_id && change == MemberChange::Rejoin {
            true => self.check_rejoinable()?,
            false => self.check_administrable()?,
        }
        let Some(member) = self.catalog.member(server_id) else {
            return Err(Refusal::UnknownMember(server_id));
        };
        let takes_writes = |other: &&Member| other.server_id != server_id && other.status.takes_writes();
        let is_last = change != MemberChange::Rejoin && !self.catalog.members().any(|other| takes_writes(&other));
        let changed = match member.status.changed(change) {
            Ok(status) if is_last && status != member.status => Err("no other member would be left to take writes"),
            changed => changed,
        };
        match changed {
            Ok(status) if status == member.status => Ok(self.nothing_written()),
            Ok(status) => self.write_system(&SystemRecord::Member(Member { status, ..member.clone() }), now),
            Err(instead) => {
                Err(Refusal::MemberChange { server_id, status: member.status, instead: instead.to_owned() })
            }
        }
    }

    /// Writes this member's record where it is missing or no longer true. `caught_up`: whether this
    /// node has what the others had when it met them; until then what it says of itself may be old.
    pub(super) fn announce_member(&mut self, caught_up: bool, now: Now) {
        if self.check_administrable().is_err() {
            return;
        }
        let is_handed_over = self.is_handed_over();
        let held = self.catalog.member(self.config.server_id);
        let status = match held.map(|member| member.status) {
            None => MemberStatus::Joining,
            Some(_) if !caught_up => return,
            Some(MemberStatus::Joining) if !seeded_bug("stays-joining") => MemberStatus::Active,
            Some(MemberStatus::Draining) if is_handed_over => MemberStatus::Down,
            Some(status) => status,
        };
        let wanted = self.own_member(status);
        if status != MemberStatus::Removed && held != Some(&wanted) {
            // A failure of the storage has been told, and nobody waits for an answer.
            let _ = self.write_system(&SystemRecord::Member(wanted), now);
        }
    }

    /// What this node says of itself.
    pub(super) fn own_member(&self, status: MemberStatus) -> Member {
        Member {
            server_id: self.config.server_id,
            name: self.config.name.clone(),
            addresses: self.config.addresses.clone(),
            status,
        }
    }

    /// Whether another member, one that is not about to go too, has all that this one had when it
    /// heard that it is drained: of others' write sets too it may have the only copy. What comes
    /// later than that comes from members that still have it.
    ///
    /// The other may have heard that it goes too, and this one not yet. So what it had applied when
    /// it said that it has all is awaited here: if it knew, then this one knows.
    fn is_handed_over(&mut self) -> bool {
        let Some(drain) = &mut self.drain else { return false };
        if self.salvage_waits {
            return false;
        }
        for (_, session) in self.sessions.iter().filter(|(_, session)| session.established.is_some()) {
            if let Some(heard) = session.heartbeat.as_ref().filter(|heard| heard.applied.includes_all(&drain.had)) {
                drain.heirs.entry(session.server_id).or_insert_with(|| heard.applied.clone());
            }
        }
        let applied = self.frontier.heads.applied();
        drain.heirs.iter().any(|(server_id, had)| {
            let stays = self.catalog.member(*server_id).is_some_and(|member| member.status.takes_writes());
            stays && applied.includes_all(had)
        })
    }

    /// Puts a record of the system keyspace in place of all that is held under its key.
    fn write_system(&mut self, record: &SystemRecord, now: Now) -> Result<Written, Refusal> {
        let key = match record {
            SystemRecord::Member(member) => catalog::member_key(member.server_id),
            SystemRecord::Topology(_) => catalog::topology_key(),
            SystemRecord::ClusterKey(held) => catalog::cluster_key_key(held.id),
            SystemRecord::Keyspace(_) | SystemRecord::Base(_) => unreachable!("its key is its own write set"),
        };
        let held = self.held(&key).map_err(|error| Refusal::StorageFailed(error.into_reason()))?;
        let changes = vec![system_change(key, held, record)];
        self.check_length(&changes)?;
        self.write_changes(now, |_, _| changes)
    }

    /// What is held under a key of the system keyspace. A storage that cannot say fails for good.
    fn held(&mut self, key: &[u8]) -> Result<Vec<Dot>, StorageError> {
        let record = self.storage.record(&RecordKey::new(KeyspaceId::SYSTEM, key));
        let record = record.inspect_err(|error| self.fail(error.clone().into_reason()))?;
        Ok(record.siblings(&FieldPath::opaque()).iter().map(|sibling| sibling.dot).collect())
    }

    /// Does what a new catalog asks for.
    pub(super) fn follow_catalog(&mut self) {
        let Some(before) = self.catalog_before.take() else { return };
        let after = self.catalog.clone();
        self.follow_own_record(&before);
        self.tell_of_catalog(&before, &after);
        self.link_states.retain(&after.present());
        self.progress.retain(&after.present());
        self.links_due = true;
        let removed: BTreeSet<u32> = after.members().filter(|member| is_refused(member)).map(|m| m.server_id).collect();
        let links: Vec<_> =
            self.sessions.iter().filter(|(_, s)| removed.contains(&s.server_id)).map(|(link, _)| *link).collect();
        for link in links {
            self.refuse_removed(link);
        }
    }

    fn follow_own_record(&mut self, before: &Catalog) {
        let of = |catalog: &Catalog| catalog.member(self.config.server_id).map(|member| member.status);
        let (before, after) = (of(before), of(&self.catalog));
        if before == after {
            return;
        }
        self.note_drain();
        // Nothing but a rejoin leads there from anywhere. Who said that it was removed had not heard of it.
        if before.is_some() && after == Some(MemberStatus::Joining) {
            self.told_removed = None;
        }
    }

    /// Notes what there is to be handed over, if this member is drained.
    pub(super) fn note_drain(&mut self) {
        let status = self.catalog.member(self.config.server_id).map(|member| member.status);
        let had = || self.frontier.heads.applied().clone();
        self.drain = (status == Some(MemberStatus::Draining)).then(|| Drain { had: had(), heirs: BTreeMap::new() });
    }

    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Tells a server that it is no member any more, and closes its link.
    pub(super) fn refuse_removed(&mut self, link: LinkId) {
        let Some(server_id) = self.sessions.get(&link).map(|session| session.server_id) else { return };
        let Ok(held) = self.held(&catalog::member_key(server_id)) else { return };
        self.send(link, PeerMessage::Removed(held.into_iter().collect()));
        self.close(link, "this member was removed from the cluster");
    }

    fn tell_of_catalog(&mut self, before: &Catalog, after: &Catalog) {
        for member in after.members() {
            let from = before.member(member.server_id).map(|member| member.status);
            if from != Some(member.status) {
                self.event(Event::MemberChanged { server_id: member.server_id, from, to: member.status });
            }
        }
        if before.topology() != after.topology() {
            self.event(Event::TopologyChanged { to: after.topology().clone() });
        }
        for (dot, topology) in after.topology_losers() {
            if !before.topology_losers().iter().any(|(known, _)| known == dot) {
                self.event(Event::TopologyLost { dot: *dot, topology: topology.clone() });
            }
        }
    }
}

/// Whether nobody has a link to this member.
pub(super) fn is_refused(member: &Member) -> bool {
    member.status == MemberStatus::Removed && !seeded_bug("removed-is-heard")
}
