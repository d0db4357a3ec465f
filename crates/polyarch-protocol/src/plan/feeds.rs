//! The receiving side's choice: which link feeds which origin.
//!
//! In a mesh an origin is best fed by its own server; when there is no link to it, by a live peer
//! that has it. Two rules make every connected set of links converge:
//!
//! - **sticky**: a feed changes only when its link is lost or it stalls, and goes back to the
//!   preferred peer once that one has been as far for a while. ("Whoever has most" flaps.) When a
//!   link to the origin's own server comes up and that has more, it is taken at once: the others
//!   of a part that was cut off may feed one another in a circle, and nobody is further than it.
//! - **stall**: when a linked peer has more of an origin and the feed has not advanced for a while,
//!   that peer is taken; when a write set has waited that long for another origin, that origin is
//!   taken from the link that sent it, whose sender had applied it first.
//!
//! A feed that catches up through a long log is silent on most of its origins for long. While it
//! delivers at all and its peer has more of the origin, it does not stall, or it would be begun
//! anew for ever. A stalled feed goes to *another* peer when one has more, whoever claims most:
//! else one that claims and never delivers would keep it.

use std::collections::{BTreeMap, BTreeSet};

use polyarch_crdt::{AppliedSet, Origin};

use crate::replica::LinkId;

/// A feed that delivers other origins may leave one standing for so many times
/// [`FeedTimings::feed_stall_ms`] before another peer is tried.
const PATIENCE_STALLS: u64 = 10;

/// When a feed changes, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedTimings {
    /// How long a feed may stand still while a peer has more. Default 1,000.
    pub feed_stall_ms: u64,
    /// How long the preferred peer must have been as far before a feed goes back to it. Default 3,000.
    pub feed_return_ms: u64,
}

impl Default for FeedTimings {
    fn default() -> Self {
        Self { feed_stall_ms: 1_000, feed_return_ms: 3_000 }
    }
}

/// A live link, as far as feeds care.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer<'a> {
    pub(crate) link: LinkId,
    pub(crate) server_id: u32,
    /// What it said it has durably applied, without the origins it refused to feed.
    pub(crate) applied: &'a AppliedSet,
    /// When its feed last delivered something, or was begun.
    pub(crate) fed_ms: u64,
}

/// What the plan looks at.
#[derive(Debug)]
pub(crate) struct Sight<'a> {
    /// One's own staged applied-set.
    pub(crate) applied: &'a AppliedSet,
    /// Origins that need no feed: one's own current epoch, and those paused here.
    pub(crate) unfed: &'a BTreeSet<Origin>,
    /// Live links, in order, at most one to each server.
    pub(crate) peers: &'a [Peer<'a>],
    /// Origins that a write set has waited for too long, each with the link that sent it.
    pub(crate) awaited: &'a [(Origin, LinkId)],
    /// Milliseconds that only rise.
    pub(crate) now_ms: u64,
}

/// Which link feeds which origin, with what is needed to notice a stall.
#[derive(Debug, Default)]
pub(crate) struct FeedPlan {
    feeds: BTreeMap<Origin, Assignment>,
    /// The links that were there the last time.
    known: BTreeSet<LinkId>,
}

#[derive(Debug, Clone, Copy)]
struct Assignment {
    link: LinkId,
    /// Own seq when last looked at.
    seq: u64,
    /// Since when a peer has had more while own seq stood still.
    behind_since_ms: Option<u64>,
    /// Since when the preferred peer, which is another, has been as far.
    return_since_ms: Option<u64>,
    /// Own seq a while ago: heartbeats lag, so that under load a peer never shows what we have now.
    before: Before,
}

/// Own seq between one and two stall times ago.
#[derive(Debug, Clone, Copy)]
struct Before {
    older: u64,
    newer: u64,
    since_ms: u64,
}

/// The origins to subscribe to on each link.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) origins: BTreeMap<LinkId, BTreeSet<Origin>>,
    /// Links whose feed stands still though it is the right one: subscribe anew.
    pub(crate) restart: BTreeSet<LinkId>,
}

impl FeedPlan {
    /// Forgets that `link` feeds `origin`: the peer refused.
    pub(crate) fn leave(&mut self, origin: Origin, link: LinkId) {
        if self.feeds.get(&origin).is_some_and(|feed| feed.link == link) {
            self.feeds.remove(&origin);
        }
    }

    /// Looks at the links and says what to subscribe to now.
    pub(crate) fn update(&mut self, sight: &Sight<'_>, timings: &FeedTimings) -> Wishes {
        let origins: BTreeSet<Origin> =
            sight.peers.iter().flat_map(|peer| peer.applied.iter()).map(|dot| dot.origin).collect();
        self.feeds.retain(|origin, feed| {
            !sight.unfed.contains(origin)
                && origins.contains(origin)
                && sight.peers.iter().any(|peer| peer.link == feed.link)
        });
        let mut wishes = Wishes::default();
        for origin in origins.difference(sight.unfed) {
            let (feed, restart) = self.assign(*origin, sight, timings);
            wishes.origins.entry(feed).or_default().insert(*origin);
            if restart {
                wishes.restart.insert(feed);
            }
        }
        self.known = sight.peers.iter().map(|peer| peer.link).collect();
        wishes
    }

    fn assign(&mut self, origin: Origin, sight: &Sight<'_>, timings: &FeedTimings) -> (LinkId, bool) {
        let seq = sight.applied.seq(origin);
        let preferred = preferred(origin, sight).expect("an origin is planned only when a peer has it");
        let fresh = Assignment {
            link: preferred.link,
            seq,
            behind_since_ms: None,
            return_since_ms: None,
            before: Before { older: seq, newer: seq, since_ms: sight.now_ms },
        };
        let feed = self.feeds.entry(origin).or_insert(fresh);
        let has_more = preferred.applied.seq(origin) > seq && feed.link != preferred.link;
        if has_more && preferred.server_id == origin.server_id && !self.known.contains(&preferred.link) {
            *feed = Assignment { behind_since_ms: Some(sight.now_ms), ..fresh };
            return (feed.link, false);
        }
        if let Some(link) = awaited_from(origin, feed.link, sight) {
            *feed = Assignment { link, ..fresh };
            return (feed.link, false);
        }
        if feed.is_stalled(origin, sight, timings) {
            let others = sight.peers.iter().filter(|peer| peer.link != feed.link && peer.applied.seq(origin) > seq);
            let other = others.max_by_key(|peer| peer.applied.seq(origin));
            let link = other.map_or(feed.link, |peer| peer.link);
            *feed = Assignment { link, ..fresh };
            return (link, other.is_none());
        }
        feed.before.note(seq, sight.now_ms, timings.feed_stall_ms);
        if feed.link != preferred.link && preferred.applied.seq(origin) >= feed.before.older {
            let since = *feed.return_since_ms.get_or_insert(sight.now_ms);
            if sight.now_ms.saturating_sub(since) >= timings.feed_return_ms {
                *feed = fresh;
            }
        } else {
            feed.return_since_ms = None;
        }
        (feed.link, false)
    }
}

impl Assignment {
    /// Whether a peer has had more for too long while own seq stood still.
    fn is_stalled(&mut self, origin: Origin, sight: &Sight<'_>, timings: &FeedTimings) -> bool {
        let seq = sight.applied.seq(origin);
        let behind = sight.peers.iter().any(|peer| peer.applied.seq(origin) > seq);
        if seq > self.seq || !behind {
            self.behind_since_ms = None;
        }
        self.seq = seq;
        if !behind {
            return false;
        }
        let behind_ms = sight.now_ms.saturating_sub(*self.behind_since_ms.get_or_insert(sight.now_ms));
        let delivers = sight.peers.iter().any(|peer| {
            let silent_ms = sight.now_ms.saturating_sub(peer.fed_ms);
            peer.link == self.link && peer.applied.seq(origin) > seq && silent_ms < timings.feed_stall_ms
        });
        let others = || sight.peers.iter().any(|peer| peer.link != self.link && peer.applied.seq(origin) > seq);
        match delivers {
            false => behind_ms >= timings.feed_stall_ms,
            true => behind_ms >= timings.feed_stall_ms.saturating_mul(PATIENCE_STALLS) && others(),
        }
    }
}

impl Before {
    fn note(&mut self, seq: u64, now_ms: u64, every_ms: u64) {
        if now_ms.saturating_sub(self.since_ms) >= every_ms {
            *self = Self { older: self.newer, newer: seq, since_ms: now_ms };
        }
    }
}

/// The link that sent what waits for this origin, unless it feeds the origin already.
fn awaited_from(origin: Origin, link: LinkId, sight: &Sight<'_>) -> Option<LinkId> {
    let mut from = sight.awaited.iter().filter(|(awaited, _)| *awaited == origin).map(|(_, from)| *from);
    let first = from.clone().next()?;
    (!from.any(|from| from == link)).then_some(first)
}

/// The origin's own server when there is a link to it and it has the origin (it may have lost or
/// refused it), else the first peer that has.
fn preferred<'a>(origin: Origin, sight: &Sight<'a>) -> Option<Peer<'a>> {
    let has = || sight.peers.iter().filter(|peer| peer.applied.seq(origin) > 0);
    let own = has().find(|peer| peer.server_id == origin.server_id);
    own.or_else(|| has().min_by_key(|peer| peer.server_id)).copied()
}

#[cfg(test)]
mod tests {
    use polyarch_crdt::Dot;

    use super::*;

    const O: Origin = Origin::new(2, 7);

    fn applied(seq: u64) -> AppliedSet {
        [Dot::new(O, seq)].into_iter().collect()
    }

    fn look(
        plan: &mut FeedPlan,
        own: u64,
        peers: &[(u64, u32, u64)],
        awaited: &[(Origin, LinkId)],
        now_ms: u64,
    ) -> Wishes {
        let own = applied(own);
        let sets: Vec<_> = peers.iter().map(|(.., seq)| applied(*seq)).collect();
        let peers: Vec<_> = peers
            .iter()
            .zip(&sets)
            .map(|((link, server_id, _), applied)| Peer {
                link: LinkId(*link),
                server_id: *server_id,
                applied,
                fed_ms: 0,
            })
            .collect();
        let sight = Sight { applied: &own, unfed: &BTreeSet::new(), peers: &peers, awaited, now_ms };
        plan.update(&sight, &FeedTimings::default())
    }

    fn fed_by(wishes: &Wishes) -> Option<u64> {
        wishes.origins.iter().find(|(_, origins)| origins.contains(&O)).map(|(link, _)| link.0)
    }

    #[test]
    fn an_origin_is_fed_by_its_own_server_or_else_by_a_peer_that_has_it() {
        let mut plan = FeedPlan::default();
        assert_eq!(fed_by(&look(&mut plan, 0, &[(10, 3, 5), (11, 2, 5)], &[], 0)), Some(11));
        assert_eq!(fed_by(&look(&mut plan, 0, &[(10, 3, 5)], &[], 0)), Some(10), "the link to its server is lost");
        assert_eq!(fed_by(&look(&mut plan, 0, &[(10, 3, 0)], &[], 0)), None, "nobody has it");
    }

    #[test]
    fn a_feed_that_stands_still_is_left_and_one_that_advances_is_kept() {
        let mut plan = FeedPlan::default();
        let peers = [(10, 3, 9), (11, 2, 5)];
        assert_eq!(fed_by(&look(&mut plan, 1, &peers, &[], 0)), Some(11));
        assert_eq!(fed_by(&look(&mut plan, 2, &peers, &[], 900)), Some(11));
        assert_eq!(fed_by(&look(&mut plan, 2, &peers, &[], 1_800)), Some(11), "it advanced 900 ms ago");
        assert_eq!(fed_by(&look(&mut plan, 2, &peers, &[], 1_900)), Some(10));
    }

    #[test]
    fn the_right_feed_is_restarted_when_it_stands_still() {
        let mut plan = FeedPlan::default();
        look(&mut plan, 1, &[(11, 2, 5)], &[], 1_000);
        let wishes = look(&mut plan, 1, &[(11, 2, 5)], &[], 2_000);
        assert!(wishes.restart.contains(&LinkId(11)));
        assert!(look(&mut plan, 1, &[(11, 2, 5)], &[], 2_100).restart.is_empty(), "and then given time");
    }

    #[test]
    fn a_new_link_to_an_origins_own_server_is_taken_at_once_if_that_has_more() {
        let mut plan = FeedPlan::default();
        assert_eq!(fed_by(&look(&mut plan, 4, &[(10, 3, 4)], &[], 0)), Some(10));
        assert_eq!(fed_by(&look(&mut plan, 4, &[(10, 3, 4), (11, 2, 9)], &[], 1)), Some(11));
        assert_eq!(fed_by(&look(&mut plan, 4, &[(10, 3, 9), (11, 2, 9)], &[], 1_001)), Some(10), "it delivers nothing");
        assert_eq!(fed_by(&look(&mut plan, 4, &[(10, 3, 9), (11, 2, 9)], &[], 1_002)), Some(10), "and is new no more");
    }

    #[test]
    fn a_feed_goes_back_once_the_preferred_peer_has_been_as_far_for_a_while() {
        let mut plan = FeedPlan::default();
        assert_eq!(fed_by(&look(&mut plan, 4, &[(10, 3, 4)], &[], 0)), Some(10));
        let peers = [(10, 3, 4), (11, 2, 4)];
        assert_eq!(fed_by(&look(&mut plan, 4, &peers, &[], 100)), Some(10));
        assert_eq!(fed_by(&look(&mut plan, 4, &peers, &[], 3_000)), Some(10));
        look(&mut plan, 4, &peers, &[], 3_100);
        assert_eq!(fed_by(&look(&mut plan, 4, &peers, &[], 3_101)), Some(11));
    }

    #[test]
    fn a_feed_goes_back_under_load_though_heartbeats_lag() {
        let mut plan = FeedPlan::default();
        look(&mut plan, 0, &[(10, 3, 4)], &[], 0);
        let mut back_ms = None;
        for now_ms in (0..10_000_u64).step_by(100) {
            // Both peers show what they had 300 ms ago.
            let (own, shown) = (now_ms, now_ms.saturating_sub(300) + 1);
            if fed_by(&look(&mut plan, own, &[(10, 3, shown), (11, 2, shown)], &[], now_ms)) == Some(11) {
                back_ms = back_ms.or(Some(now_ms));
            }
        }
        assert!(back_ms.is_some_and(|ms| ms <= 6_000), "{back_ms:?}");
    }

    #[test]
    fn what_a_write_set_has_waited_for_is_taken_where_that_write_set_came_from() {
        let mut plan = FeedPlan::default();
        let peers = [(10, 3, 4), (11, 2, 4)];
        look(&mut plan, 4, &peers, &[], 0);
        assert_eq!(fed_by(&look(&mut plan, 4, &peers, &[(O, LinkId(10))], 1)), Some(10));
    }
}
