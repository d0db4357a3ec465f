//! The receiving side's choice: which link feeds which origin.
//!
//! One rule serves every topology. An origin is best fed by the linked peer that has the fewest
//! links between itself and the origin's server, as the graph of links says ([`Distances`]): in a
//! mesh that server itself, in a star the hub, in a ring the neighbour on the shorter way round.
//! Each feed then leads to a node strictly nearer than its own, so feeds make no circle once the
//! nodes know the same graph. Peers that are equally near are equally good: the feed stays where it
//! is, and a new one goes to the smallest server id.
//!
//! An origin whose server cannot be reached, or an earlier epoch of one's own, has no such peer;
//! nor has one whose nearest peers do not have it or refused it (a peer further away may be fed by
//! this very node). It is taken from whoever has most of it, and stays there.
//!
//! Three rules make every connected graph converge, also while nodes know different graphs:
//!
//! - **sticky**: a feed changes only when its link is lost or it stalls, and goes back to the
//!   nearest peer once that one has been as far for a while. ("Whoever has most" flaps.)
//! - **turn**: when another peer becomes the nearest and has more, it is taken at once, that once.
//!   Two neighbours whose way to an origin has just been cut may feed each other in a circle, and
//!   nobody in it is further than they; without this rule each node of a long ring would sit out a
//!   stall of its own before the next one could see it coming. Only once, for a peer may claim and
//!   not deliver.
//! - **stall**: when a linked peer has more of an origin and the feed has not advanced for a while,
//!   that peer is taken; when a write set has waited that long for another origin, that origin is
//!   taken from the link that sent it, whose sender had applied it first.
//!
//! A feed that catches up through a long log is silent on most of its origins for long. While it
//! delivers at all and its peer has more of the origin, it does not stall, or it would be begun
//! anew for ever. A stalled feed goes to *another* peer when one has more, whoever claims most:
//! else one that claims and never delivers would keep it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use polyarch_crdt::{AppliedSet, Origin};

use crate::reach::Distances;
use crate::replica::LinkId;

/// A feed that delivers other origins may leave one standing for so many times
/// [`FeedTimings::feed_stall_ms`] before another peer is tried.
const PATIENCE_STALLS: u64 = 10;

/// When a feed changes, in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedTimings {
    /// How long a feed may stand still while a peer has more. Default 1,000.
    pub feed_stall_ms: u64,
    /// How long the nearest peer must have been as far before a feed goes back to it. Default 3,000.
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
    /// This server.
    pub(crate) me: u32,
    /// Over the links that are up. What they do not know yet, a peer that was just linked is at no
    /// distance from itself: that alone is enough for a mesh.
    pub(crate) distances: &'a Distances,
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
}

#[derive(Debug, Clone, Copy)]
struct Assignment {
    link: LinkId,
    /// Own seq when last looked at.
    seq: u64,
    /// Since when a peer has had more while own seq stood still.
    behind_since_ms: Option<u64>,
    /// Since when the nearest peer, which is another, has been as far.
    return_since_ms: Option<u64>,
    /// The link to the nearest peer, when last looked at.
    nearest: Option<LinkId>,
    /// Whether it became the nearest while this feed was elsewhere, and has not been taken yet.
    turns: bool,
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

    /// The link that feeds an origin.
    pub(crate) fn link_of(&self, origin: Origin) -> Option<LinkId> {
        self.feeds.get(&origin).map(|feed| feed.link)
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
        wishes
    }

    fn assign(&mut self, origin: Origin, sight: &Sight<'_>, timings: &FeedTimings) -> (LinkId, bool) {
        let seq = sight.applied.seq(origin);
        let present = self.feeds.get(&origin).map(|feed| feed.link);
        let nearest = nearest(origin, present, sight);
        let begun =
            || nearest.or_else(|| furthest(origin, sight)).expect("an origin is planned only when a peer has it");
        let fresh = Assignment {
            link: present.unwrap_or_else(|| begun().link),
            seq,
            behind_since_ms: None,
            return_since_ms: None,
            nearest: nearest.map(|peer| peer.link),
            turns: false,
            before: Before { older: seq, newer: seq, since_ms: sight.now_ms },
        };
        let feed = self.feeds.entry(origin).or_insert(fresh);
        feed.look_where(nearest);
        if let Some(peer) = nearest.filter(|peer| feed.turns && peer.applied.seq(origin) > seq) {
            *feed = Assignment { link: peer.link, behind_since_ms: Some(sight.now_ms), ..fresh };
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
        let older = feed.before.older;
        match nearest.filter(|peer| peer.link != feed.link && peer.applied.seq(origin) >= older) {
            Some(peer) => {
                let since = *feed.return_since_ms.get_or_insert(sight.now_ms);
                if sight.now_ms.saturating_sub(since) >= timings.feed_return_ms {
                    *feed = Assignment { link: peer.link, ..fresh };
                }
            }
            None => feed.return_since_ms = None,
        }
        (feed.link, false)
    }
}

impl Assignment {
    /// Notes which peer is the nearest now.
    fn look_where(&mut self, nearest: Option<Peer<'_>>) {
        let nearest = nearest.map(|peer| peer.link);
        if self.nearest != nearest {
            self.nearest = nearest;
            self.turns = nearest.is_some_and(|link| link != self.link);
        }
    }

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

/// The peer with the fewest links to the origin's server, of those that have the origin: the
/// present feed if it is one of several.
///
/// One that is no nearer than this node itself does not count. The way from here is one link longer
/// than that of the peer that is nearest of all, whether that has the origin or not.
fn nearest<'a>(origin: Origin, present: Option<LinkId>, sight: &Sight<'a>) -> Option<Peer<'a>> {
    if origin.server_id == sight.me {
        return None;
    }
    let hops = |peer: &Peer<'_>| sight.distances.hops(peer.server_id, origin.server_id);
    let fewest = sight.peers.iter().filter_map(hops).min()?;
    let near = sight.peers.iter().filter(|peer| peer.applied.seq(origin) > 0 && hops(peer) == Some(fewest));
    near.min_by_key(|peer| (Some(peer.link) != present, peer.server_id)).copied()
}

/// The peer that has most of an origin.
fn furthest<'a>(origin: Origin, sight: &Sight<'a>) -> Option<Peer<'a>> {
    let has = sight.peers.iter().filter(|peer| peer.applied.seq(origin) > 0);
    has.max_by_key(|peer| (peer.applied.seq(origin), Reverse(peer.server_id))).copied()
}

#[cfg(test)]
mod tests {
    use polyarch_crdt::Dot;

    use super::*;
    use crate::reach::{LinkState, LinkStates, Taken};
    use crate::topology::Edge;

    const ME: u32 = 1;
    const O: Origin = Origin::new(2, 7);

    fn applied(seq: u64) -> AppliedSet {
        [Dot::new(O, seq)].into_iter().collect()
    }

    /// As before link states are known.
    fn look(
        plan: &mut FeedPlan,
        own: u64,
        peers: &[(u64, u32, u64)],
        awaited: &[(Origin, LinkId)],
        now_ms: u64,
    ) -> Wishes {
        look_far(plan, own, peers, awaited, &Distances::default(), now_ms)
    }

    fn look_far(
        plan: &mut FeedPlan,
        own: u64,
        peers: &[(u64, u32, u64)],
        awaited: &[(Origin, LinkId)],
        distances: &Distances,
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
        let unfed = BTreeSet::new();
        let sight = Sight { me: ME, distances, applied: &own, unfed: &unfed, peers: &peers, awaited, now_ms };
        plan.update(&sight, &FeedTimings::default())
    }

    /// Over these links, of which this node has all.
    fn distances(links: &[(u32, u32)]) -> Distances {
        let linked = |id: u32| -> BTreeSet<u32> {
            links.iter().filter_map(|(one, two)| Edge::new(*one, *two).other(id)).collect()
        };
        let mut states = LinkStates::new(ME, 1);
        let _ = states.set_own(&linked(ME));
        for server_id in 2..=6 {
            let linked = linked(server_id).into_iter().collect();
            let entry = LinkState { server_id, boot_id: 1, version: 1, outdates: None, linked };
            assert_eq!(states.take(&entry), Taken::Newer);
        }
        Distances::of(&states)
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

    #[test]
    fn an_origin_is_fed_the_shortest_way_and_the_feed_stays_where_two_are_equally_short() {
        let mut plan = FeedPlan::default();
        let short_by_both = distances(&[(1, 3), (1, 4), (1, 5), (3, 2), (5, 2), (4, 6)]);
        let short_by_five = distances(&[(1, 3), (1, 4), (1, 5), (3, 6), (5, 2), (4, 6)]);
        let mut look = |five, distances, now_ms| {
            let peers = [(10, 3, 5), (11, 4, 9), (12, 5, five)];
            fed_by(&look_far(&mut plan, 5, &peers, &[], distances, now_ms))
        };
        assert_eq!(look(5, &short_by_both, 0), Some(10), "not 4, though it has more");
        assert_eq!(look(5, &short_by_five, 100), Some(10), "5 has no more");
        assert_eq!(look(6, &short_by_five, 200), Some(12));
        for now_ms in (300..1_000).step_by(100) {
            assert_eq!(look(6, &short_by_both, now_ms), Some(12), "as short as by 3");
        }
        assert_eq!(look(6, &Distances::default(), 1_000), Some(12), "its server is out of reach");
    }

    #[test]
    fn a_feed_does_not_go_back_to_one_that_is_only_as_near() {
        let mut plan = FeedPlan::default();
        let short_by_five = distances(&[(1, 3), (1, 5), (3, 6), (5, 2)]);
        let short_by_both = distances(&[(1, 3), (1, 5), (3, 2), (5, 2)]);
        let peers = [(10, 3, 5), (12, 5, 5)];
        assert_eq!(fed_by(&look_far(&mut plan, 5, &peers, &[], &short_by_five, 0)), Some(12));
        for now_ms in (100..9_000).step_by(100) {
            let wishes = look_far(&mut plan, 5, &peers, &[], &short_by_both, now_ms);
            assert_eq!(fed_by(&wishes), Some(12));
        }
    }

    #[test]
    fn a_peer_that_becomes_the_nearest_is_taken_at_once_if_it_has_more_and_once_only() {
        let mut plan = FeedPlan::default();
        let one_way = distances(&[(1, 3), (1, 4), (3, 2), (4, 5)]);
        let other_way = distances(&[(1, 3), (1, 4), (3, 6), (4, 2)]);
        let mut look = |seqs: [u64; 2], distances, now_ms| {
            fed_by(&look_far(&mut plan, 5, &[(10, 3, seqs[0]), (11, 4, seqs[1])], &[], distances, now_ms))
        };
        assert_eq!(look([5, 5], &one_way, 0), Some(10));
        assert_eq!(look([5, 5], &other_way, 100), Some(10), "nobody has more");
        assert_eq!(look([5, 6], &other_way, 900), Some(11));
        assert_eq!(look([6, 6], &other_way, 1_900), Some(10), "it delivered nothing");
        assert_eq!(look([6, 7], &other_way, 2_000), Some(10), "and is new no more");
    }

    #[test]
    fn a_peer_that_is_no_nearer_than_this_node_is_not_preferred_to_the_present_feed() {
        let mut plan = FeedPlan::default();
        // 3 is next to the origin's server but refused it; 4 and 5 may be fed by this very node.
        let distances = distances(&[(1, 3), (1, 4), (1, 5), (3, 2)]);
        let mut look = |five, now_ms| {
            fed_by(&look_far(&mut plan, 5, &[(10, 3, 0), (11, 4, 5), (12, 5, five)], &[], &distances, now_ms))
        };
        assert_eq!(look(7, 0), Some(12), "whoever has most");
        (100..900).step_by(100).for_each(|now_ms| assert_eq!(look(5, now_ms), Some(12)));
        assert_eq!(look(5, 9_000), Some(12), "and stays");
    }

    #[test]
    fn an_earlier_epoch_of_ones_own_is_taken_from_whoever_has_most() {
        let mut plan = FeedPlan::default();
        let own = Origin::new(ME, 3);
        let sets: Vec<AppliedSet> = [4, 9, 9].iter().map(|seq| [Dot::new(own, *seq)].into_iter().collect()).collect();
        let peers: Vec<_> = sets
            .iter()
            .zip(2_u32..)
            .map(|(applied, id)| Peer { link: LinkId(id.into()), server_id: id, applied, fed_ms: 0 })
            .collect();
        let (applied, unfed) = (AppliedSet::new(), BTreeSet::new());
        let distances = distances(&[(1, 2), (1, 3), (1, 4)]);
        for now_ms in [0, 900] {
            let sight = Sight {
                me: ME,
                distances: &distances,
                applied: &applied,
                unfed: &unfed,
                peers: &peers,
                awaited: &[],
                now_ms,
            };
            let wishes = plan.update(&sight, &FeedTimings::default());
            assert_eq!(wishes.origins.into_iter().collect::<Vec<_>>(), [(LinkId(3), [own].into())]);
        }
    }
}
