//! Wall clocks that are wrong: who takes no writes, and that no stamp is given out twice.

use polyarch_crdt::{Dot, Hlc, Origin};
use polyarch_protocol::client::Refusal;
use polyarch_protocol::peer::PeerMessage;
use polyarch_protocol::{Event, Input, LinkId};
use proptest::prelude::*;

use crate::support::{Cluster, Node, foreign, heartbeat};

const HOUR_MS: u64 = 3_600_000;

/// The first of `n` members, with a played link to each other one.
fn among(n: u32) -> Node {
    let mut node = Cluster::of(n).nodes.remove(0);
    (2..=n).for_each(|server_id| node.meet(u64::from(server_id) + 900, server_id));
    node
}

/// What member `server_id` says of its clock: so far behind this node's.
fn hear_clock(node: &mut Node, server_id: u32, behind_ms: u64) {
    let applied: Vec<Dot> = node.applied().iter().collect();
    let beat = heartbeat(&applied, node.now.wall_ms - behind_ms);
    node.hear(u64::from(server_id) + 900, PeerMessage::Heartbeat(beat));
}

#[test]
fn a_clock_far_ahead_of_a_majority_stamps_no_writes_until_it_is_right() {
    let mut node = among(5);
    for server_id in [2, 3] {
        hear_clock(&mut node, server_id, 2 * HOUR_MS);
    }
    hear_clock(&mut node, 4, HOUR_MS);
    node.put("k", "1").expect("two of five are no majority, and an hour is not beyond an hour");
    hear_clock(&mut node, 4, HOUR_MS + 1);
    hear_clock(&mut node, 2, 2 * HOUR_MS);
    let refusal = Refusal::ClockAhead { ahead_ms: HOUR_MS + 1, of: vec![2, 3, 4] };
    assert_eq!(node.put("k", "2"), Err(refusal.clone()));
    assert_eq!(node.set_topology("ring"), Err(refusal.clone()), "settings are stamped too");
    assert_eq!(node.status().writes_refused, Some(refusal.to_string()));
    assert_eq!(node.count(|e| matches!(e, Event::ClockAhead { .. })), 1);
    hear_clock(&mut node, 3, 0);
    node.put("k", "3").expect("the clock was set right");
    assert_eq!(node.count(|e| matches!(e, Event::ClockRight)), 1);
}

#[test]
fn members_without_a_link_count_as_right_and_removed_ones_not_at_all() {
    let mut node = among(3);
    hear_clock(&mut node, 2, 2 * HOUR_MS);
    node.put("k", "1").expect("nothing is known of 3");
    hear_clock(&mut node, 3, 2 * HOUR_MS);
    assert!(matches!(node.put("k", "2"), Err(Refusal::ClockAhead { .. })));
    node.handle(Input::LinkDown(LinkId(903)));
    node.run_ms(100);
    node.put("k", "3").expect("nothing is known of 3 any more");
}

#[test]
fn a_member_whose_clock_is_behind_takes_writes() {
    let mut node = among(3);
    node.now.wall_ms -= 4 * HOUR_MS;
    let beat = heartbeat(&[], node.now.wall_ms + 4 * HOUR_MS);
    node.hear(902, PeerMessage::Heartbeat(beat.clone()));
    node.hear(903, PeerMessage::Heartbeat(beat));
    node.put("k", "1").expect("its stamps are behind, and lose");
}

#[test]
fn a_process_goes_on_from_the_stamps_of_the_one_before_and_says_that_they_are_ahead() {
    let mut node = Node::founded(1);
    node.now.wall_ms += 3 * HOUR_MS;
    node.put("k", "1").expect("it is writable");
    let ahead = node.last_own().hlc;
    node.now.wall_ms -= 3 * HOUR_MS;
    node.crash();
    node.forget();
    node.settle();
    assert_eq!(node.count(|e| matches!(e, Event::OwnStampsAhead { hlc, .. } if *hlc == ahead)), 1);
    node.put("k", "2").expect("it is writable");
    assert!(node.last_own().hlc > ahead);
}

#[test]
fn an_absurd_stamp_of_another_hides_neither_ones_own_nor_those_that_are_not() {
    let mut node = Node::founded(1);
    let origin = |server_id| Origin::new(server_id, 9);
    node.meet(1, 11);
    node.hear_applied(1, &[Dot::new(origin(11), 1), Dot::new(origin(12), 1)]);
    let mut absurd = foreign(Dot::new(origin(11), 1), &[], "x");
    absurd.hlc = Hlc::new(node.now.wall_ms + 1_000 * HOUR_MS, 0);
    let mut near = foreign(Dot::new(origin(12), 1), &[], "x");
    near.hlc = Hlc::new(node.now.wall_ms + 1_000, 0);
    node.feed(1, &[absurd, near.clone()]);
    node.crash();
    node.put("k", "1").expect("it is writable");
    let own = node.last_own().hlc;
    assert!(own > near.hlc && own.millis() < node.now.wall_ms + 2_000, "{own}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    /// Clocks that stand still, jump and strobe, by milliseconds and by hours, and restarts between.
    #[test]
    fn no_stamp_of_one_server_is_given_out_twice(
        steps in prop::collection::vec((prop_oneof![Just(0_i64), -5..5_i64, -20_000_000..20_000_000_i64], any::<bool>()), 1..20)
    ) {
        let mut node = Node::founded(1);
        let mut last = node.last_own().hlc;
        for (jump_ms, restarts) in steps {
            node.now.wall_ms = node.now.wall_ms.saturating_add_signed(jump_ms);
            if restarts {
                node.crash();
            }
            node.put("k", "v").expect("it is writable");
            let stamp = node.last_own().hlc;
            prop_assert!(stamp > last, "{stamp} after {last}");
            last = stamp;
        }
    }
}
