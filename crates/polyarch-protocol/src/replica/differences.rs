//! Members whose digest is another at an equal applied-set: in which buckets, and of which keys.
//!
//! ```text
//! heartbeats: equal sets, other totals   alarm
//!   both ▸ Digest       ▸ compare        alarm: the buckets
//!   both ▸ ScanBuckets  ▸ BucketKeys     alarm: the keys
//! heartbeats: equal sets, equal totals   told too
//! ```
//!
//! A member that speaks only version 1 is told nothing beyond its heartbeat: of that one the total
//! is all that is known.
//!
//! Each step is of one applied-set. When one of the two goes on meanwhile, what was begun is void,
//! and it is begun again at a later moment at which the sets are equal. The pauses between two such
//! attempts double, so a busy cluster does not read its records all the time.

use std::collections::{BTreeMap, BTreeSet};

use polyarch_crdt::AppliedSet;

use super::{LinkId, Now, Output, Replica};
use crate::buckets::{BUCKETS_COMPARED_MAX, BucketKeys, BucketsWanted, DifferingKey, HeldBy, PeerDigest, compare};
use crate::condition::DifferentView;
use crate::digest::DIGEST_BUCKETS;
use crate::event::Event;
use crate::keyspace::{KeyspaceId, RecordKey};
use crate::peer::PeerMessage;
use crate::storage::Storage;

/// The shortest and the longest pause before two members compare their buckets again.
const PAUSE_MS_MIN: u64 = 1_000;
const PAUSE_MS_MAX: u64 = 60_000;
/// Keys that an alarm names.
const KEYS_TOLD_MAX: usize = 8;

/// All that this node knows of members that differ.
#[derive(Debug, Default)]
pub(super) struct Differences {
    members: BTreeMap<u32, Difference>,
    /// What the driver reads now.
    scanning: Option<BucketsWanted>,
    /// Buckets that were told not to hold what this node's own digest says.
    own_told: BTreeSet<u16>,
}

/// A member whose digest is another.
#[derive(Debug, Default)]
struct Difference {
    /// Buckets are not compared of this node's own accord before.
    not_before_ms: u64,
    pause_ms: u64,
    /// The digest of this was sent last, on the present link.
    sent: Option<AppliedSet>,
    /// How many buckets differed when they were compared last.
    buckets: Option<usize>,
    /// Buckets that an alarm was about.
    told: BTreeSet<u16>,
    /// Whether an alarm was about the keys in them.
    keys_told: bool,
    comparing: Option<Comparing>,
}

/// Keys that are being compared.
#[derive(Debug)]
struct Comparing {
    wanted: BucketsWanted,
    ours: Option<BucketKeys>,
    theirs: Option<BucketKeys>,
}

impl Comparing {
    fn is_of(&self, keys: &BucketKeys) -> bool {
        self.wanted.applied == keys.applied && self.wanted.buckets == keys.buckets
    }
}

impl Difference {
    /// Whether it is time to compare again; if so, the next time is a while later.
    fn is_due(&mut self, now: Now) -> bool {
        let is_due = now.mono_ms >= self.not_before_ms;
        if is_due {
            self.pause_ms = self.pause_ms.saturating_mul(2).clamp(PAUSE_MS_MIN, PAUSE_MS_MAX);
            self.not_before_ms = now.mono_ms.saturating_add(self.pause_ms);
        }
        is_due
    }

    /// What was under way on a link that is gone is void; what was told is not told again.
    fn interrupt(&mut self) {
        (self.not_before_ms, self.pause_ms, self.sent, self.comparing) = (0, 0, None, None);
    }
}

impl<S: Storage> Replica<S> {
    /// The digests were found equal at an equal applied-set.
    pub(super) fn note_equal(&mut self, server_id: u32) {
        if self.differences.members.remove(&server_id).is_some() {
            self.event(Event::DigestsEqual { server_id });
        }
    }

    /// The digests were found different at an equal applied-set.
    pub(super) fn note_different(&mut self, link: LinkId, server_id: u32, theirs: u128, now: Now) {
        let Some(ours) = self.durable.digest else { return };
        if !self.differences.members.contains_key(&server_id) {
            self.event(Event::DigestMismatch { server_id, ours, theirs });
        }
        if self.differences.members.entry(server_id).or_default().is_due(now) {
            self.send_digest(link, server_id);
        }
    }

    /// A link to a member is lost.
    pub(super) fn interrupt_comparison(&mut self, server_id: u32) {
        if let Some(difference) = self.differences.members.get_mut(&server_id) {
            difference.interrupt();
        }
    }

    /// The members that differed at the last equal applied-set, and how many of the
    /// [`DIGEST_BUCKETS`] were equal when they were compared last, if they were.
    pub(super) fn different_views(&self) -> Vec<DifferentView> {
        let equal = |differing: usize| (DIGEST_BUCKETS - differing) as u32;
        let view = |(server_id, difference): (&u32, &Difference)| DifferentView {
            server_id: *server_id,
            equal_buckets: difference.buckets.map(equal),
        };
        self.differences.members.iter().map(view).collect()
    }

    fn send_digest(&mut self, link: LinkId, server_id: u32) {
        let Some(digest) = self.durable_digest() else { return };
        if let Some(difference) = self.differences.members.get_mut(&server_id) {
            difference.sent = Some(digest.applied.clone());
        }
        self.send(link, PeerMessage::Digest(Box::new(digest)));
    }

    /// The digest of what is durable, when nothing is staged beyond.
    fn durable_digest(&self) -> Option<PeerDigest> {
        self.durable.digest?;
        Some(PeerDigest { applied: self.durable.applied.clone(), digest: self.frontier.digest.clone() })
    }

    /// A member tells its buckets.
    pub(super) fn take_digest(&mut self, link: LinkId, server_id: u32, theirs: &PeerDigest) {
        // One of another applied-set says nothing: the two try again when theirs are equal.
        let Some(ours) = self.durable_digest().filter(|ours| ours.applied == theirs.applied) else { return };
        let differing: Vec<u16> = ours.digest.differing(&theirs.digest).into_iter().map(|at| at as u16).collect();
        if differing.is_empty() {
            return self.note_equal(server_id);
        }
        if !self.differences.members.contains_key(&server_id) {
            let (ours, theirs) = (ours.digest.total(), theirs.digest.total());
            self.event(Event::DigestMismatch { server_id, ours, theirs });
        }
        let difference = self.differences.members.entry(server_id).or_default();
        if difference.sent.as_ref() != Some(&theirs.applied) {
            self.send_digest(link, server_id);
        }
        self.tell_buckets(server_id, &differing);
        self.begin_keys(link, server_id, &theirs.applied, &differing);
    }

    fn tell_buckets(&mut self, server_id: u32, differing: &[u16]) {
        let Some(difference) = self.differences.members.get_mut(&server_id) else { return };
        difference.buckets = Some(differing.len());
        let told_before = difference.told.len();
        difference.told.extend(differing);
        if difference.told.len() > told_before {
            difference.keys_told = false;
            self.event(Event::BucketsDiffer { server_id, buckets: differing.to_vec() });
        }
    }

    /// Has the keys of the first buckets that differ read, once for all members that differ alike.
    fn begin_keys(&mut self, link: LinkId, server_id: u32, applied: &AppliedSet, differing: &[u16]) {
        let buckets = differing[..differing.len().min(BUCKETS_COMPARED_MAX)].to_vec();
        let wanted = BucketsWanted { applied: applied.clone(), buckets };
        let Some(difference) = self.differences.members.get_mut(&server_id) else { return };
        if let Some(under_way) = difference.comparing.as_ref().filter(|comparing| comparing.wanted == wanted) {
            // The other may not have been able to use what it was told.
            if let Some(ours) = under_way.ours.clone() {
                self.send(link, PeerMessage::BucketKeys(Box::new(ours)));
            }
            return;
        }
        if !difference.keys_told {
            difference.comparing = Some(Comparing { wanted: wanted.clone(), ours: None, theirs: None });
            self.scan(wanted);
        }
    }

    fn scan(&mut self, wanted: BucketsWanted) {
        if self.differences.scanning.is_none() {
            self.differences.scanning = Some(wanted.clone());
            self.output(Output::ScanBuckets(wanted));
        }
    }

    /// What the driver read for [`Output::ScanBuckets`]; nothing, when more was applied meanwhile or
    /// a record could not be read.
    pub(super) fn take_scanned(&mut self, ours: Option<BucketKeys>) {
        let Some(wanted) = self.differences.scanning.take() else { return };
        let Some(ours) = ours else {
            // Begun again the next time.
            for difference in self.differences.members.values_mut() {
                difference.comparing.take_if(|comparing| comparing.wanted == wanted);
            }
            return;
        };
        self.check_own(&ours);
        let waits = |difference: &Difference| {
            difference.comparing.as_ref().is_some_and(|comparing| comparing.is_of(&ours) && comparing.ours.is_none())
        };
        let waiting = self.differences.members.iter().filter(|(_, difference)| waits(difference));
        let waiting: Vec<u32> = waiting.map(|(server_id, _)| *server_id).collect();
        let links: Vec<(LinkId, u32)> = self.established().map(|(link, session)| (link, session.server_id)).collect();
        for server_id in waiting {
            if let Some(link) = links.iter().find(|(_, id)| *id == server_id).map(|(link, _)| *link) {
                self.send(link, PeerMessage::BucketKeys(Box::new(ours.clone())));
            }
            self.go_on_comparing(server_id, |comparing| comparing.ours = Some(ours.clone()));
        }
    }

    /// Whether this node's records are those that its digest was kept up with.
    fn check_own(&mut self, ours: &BucketKeys) {
        let Some(digest) = self.durable_digest().filter(|digest| digest.applied == ours.applied) else { return };
        let wrong = ours.not_adding_up_to(&digest.digest);
        let told_before = self.differences.own_told.len();
        self.differences.own_told.extend(&wrong);
        if self.differences.own_told.len() > told_before {
            self.event(Event::RecordsAltered { buckets: wrong });
        }
    }

    /// A member tells its keys, and wants to know this node's: it may have forgotten what this node
    /// has told its operator already.
    pub(super) fn take_keys(&mut self, server_id: u32, theirs: BucketKeys) {
        let Some(difference) = self.differences.members.get_mut(&server_id) else { return };
        if !difference.comparing.as_ref().is_some_and(|comparing| comparing.is_of(&theirs)) {
            if theirs.applied != self.durable.applied {
                return;
            }
            let wanted = BucketsWanted { applied: theirs.applied.clone(), buckets: theirs.buckets.clone() };
            difference.comparing = Some(Comparing { wanted: wanted.clone(), ours: None, theirs: None });
            self.scan(wanted);
        }
        self.go_on_comparing(server_id, |comparing| comparing.theirs = Some(theirs));
    }

    /// Compares once both sides are known.
    fn go_on_comparing(&mut self, server_id: u32, learn: impl FnOnce(&mut Comparing)) {
        let Some(difference) = self.differences.members.get_mut(&server_id) else { return };
        let Some(comparing) = &mut difference.comparing else { return };
        learn(comparing);
        let (Some(ours), Some(theirs)) = (&comparing.ours, &comparing.theirs) else { return };
        let compared = compare(ours, theirs, KEYS_TOLD_MAX);
        // Ours are kept: the other may ask for them once more.
        comparing.theirs = None;
        if std::mem::replace(&mut difference.keys_told, true) {
            return;
        }
        let told = compared.first.iter().map(|(key, held_by)| self.differing_key(key, *held_by)).collect();
        self.event(Event::KeysDiffer { server_id, keys: told, count: compared.count, is_all: compared.is_all });
    }

    fn differing_key(&self, key: &RecordKey, held_by: HeldBy) -> DifferingKey {
        let id = key.keyspace();
        let named = self.catalog.keyspaces().find(|(of, _, by_name)| *of == id && *by_name);
        let keyspace = match named {
            Some((_, definition, _)) => definition.name.clone(),
            None if id == KeyspaceId::SYSTEM => "system".to_owned(),
            None => id.to_string(),
        };
        DifferingKey { keyspace, key: key.key_bytes(), held_by }
    }
}
