//! Members come, are drained, removed and taken back, whoever else does what at the same time.

use polyarch_crdt::{Dot, Origin};
use polyarch_protocol::catalog::{MemberChange, MemberStatus};
use polyarch_protocol::client::Refusal;
use polyarch_protocol::peer::PeerMessage;
use polyarch_protocol::{Event, Input, LinkId, LinkState};

use crate::support::{Cluster, Node, foreign};

const DRAIN: MemberChange = MemberChange::Drain;
const REMOVE: MemberChange = MemberChange::Remove { force: false };
const FORCE: MemberChange = MemberChange::Remove { force: true };
const REJOIN: MemberChange = MemberChange::Rejoin;

/// Members of which the others hold links to each other.
fn linked(n: u32) -> Cluster {
    let mut cluster = Cluster::of(n);
    cluster.live_ms(2_000);
    cluster.assert_equal();
    cluster
}

#[track_caller]
fn assert_seen(cluster: &Cluster, server_id: u32, status: MemberStatus) {
    for node in &cluster.nodes {
        assert_eq!(node.sees(server_id), status, "as {} sees it", node.config.server_id);
    }
}

#[track_caller]
fn assert_refused(node: &mut Node, status: MemberStatus) {
    let refused = node.put("refused", "x");
    assert_eq!(refused.expect_err("it takes no writes"), Refusal::MemberIs(status));
}

#[test]
fn a_member_joins_and_is_active_by_itself() {
    let mut nodes = vec![Node::founded(1), Node::new(2)];
    nodes[0].put("k", "before").expect("a founder takes writes");
    let mut cluster = Cluster::over(nodes);
    assert_eq!(cluster.nodes[1].put("m/k", "early"), Err(Refusal::NotJoined));
    cluster.link(0, 1);
    cluster.run_ms(2_000);
    assert_seen(&cluster, 2, MemberStatus::Active);
    assert!(cluster.nodes[1].put("k", "joined").is_ok());
    let steps: Vec<String> = cluster.nodes[0]
        .events
        .iter()
        .filter(|event| matches!(event, Event::MemberChanged { server_id: 2, .. }))
        .map(Event::to_string)
        .collect();
    assert_eq!(steps, ["member 2 is new, and joining", "member 2 was joining and is active"]);
}

#[test]
fn a_drained_member_takes_no_writes_and_the_others_do() {
    let mut cluster = linked(3);
    cluster.nodes[1].put("k", "before").expect("it is active");
    cluster.nodes[0].change_member(2, DRAIN).expect("it is active");
    cluster.settle();
    assert!(matches!(cluster.nodes[1].put("k", "x"), Err(Refusal::MemberIs(_))));
    for at in [0, 2] {
        cluster.nodes[at].put(&format!("k{at}"), "during").expect("only 2 is drained");
    }
    cluster.live_ms(2_000);
    assert_seen(&cluster, 2, MemberStatus::Down);
    assert_refused(&mut cluster.nodes[1], MemberStatus::Down);
    assert_eq!(cluster.nodes[1].status().status, Some(MemberStatus::Down));
    cluster.assert_equal();
}

#[test]
fn a_member_that_is_cut_off_stays_draining() {
    let mut cluster = Cluster::of(2);
    cluster.nodes[1].put("k", "alone").expect("it is active");
    cluster.nodes[1].change_member(2, DRAIN).expect("it is active");
    cluster.run_ms(30_000);
    assert_eq!(cluster.nodes[1].sees(2), MemberStatus::Draining);
    assert_refused(&mut cluster.nodes[1], MemberStatus::Draining);
    cluster.link(0, 1);
    cluster.run_ms(2_000);
    assert_seen(&cluster, 2, MemberStatus::Down);
    assert_eq!(cluster.nodes[0].shown("k"), ["alone"]);
}

#[test]
fn the_last_member_that_takes_writes_is_neither_drained_nor_removed() {
    let mut cluster = Cluster::of(2);
    let refused = |cluster: &mut Cluster, server_id, change| {
        let refusal = cluster.nodes[0].change_member(server_id, change).expect_err("it is the last").to_string();
        assert!(refusal.ends_with("no other member would be left to take writes"), "{refusal}");
    };
    cluster.nodes[0].change_member(2, DRAIN).expect("1 is left");
    cluster.live_ms(2_000);
    for change in [DRAIN, FORCE] {
        refused(&mut cluster, 1, change);
    }
    cluster.nodes[0].put("k", "x").expect("it is a member");
    let mut alone = Cluster::over(vec![Node::founded(1)]);
    for change in [DRAIN, FORCE] {
        refused(&mut alone, 1, change);
    }
}

#[test]
fn a_drained_member_whose_neighbours_are_drained_hands_over_to_one_that_stays() {
    let mut cluster = linked(4);
    cluster.nodes[0].set_topology("star:1").expect("they are members");
    cluster.live_ms(6_000);
    for server_id in [1, 2, 3] {
        cluster.nodes[3].change_member(server_id, DRAIN).expect("4 is left");
        cluster.live_ms(3_000);
        assert_seen(&cluster, server_id, MemberStatus::Down);
    }
    assert_eq!(cluster.nodes[3].change_member(2, DRAIN).expect("to ask again is to wait again").dot, None);
}

#[test]
fn members_that_go_together_are_not_each_others_heirs() {
    let mut cluster = Cluster::of(3);
    cluster.part(&[0]);
    cluster.live_ms(1_000);
    for server_id in [2, 3] {
        cluster.nodes[server_id as usize - 1].put(&format!("k{server_id}"), "x").expect("it is active");
        cluster.nodes[1].change_member(server_id, DRAIN).expect("it is active");
    }
    cluster.live_ms(10_000);
    assert_eq!([2, 3].map(|id| cluster.nodes[1].sees(id)), [MemberStatus::Draining; 2]);
    cluster.mend();
    cluster.live_ms(5_000);
    for server_id in [2, 3] {
        assert_seen(&cluster, server_id, MemberStatus::Down);
        assert_eq!(cluster.nodes[0].shown(&format!("k{server_id}")), ["x"]);
    }
}

#[test]
fn a_drained_member_hands_over_what_it_has_of_others_too() {
    let mut cluster = Cluster::of(3);
    let node = &mut cluster.nodes[0];
    let only = Dot::new(Origin::new(2, 77), 1);
    node.meet(901, 2);
    node.hear_applied(901, &[&node.applied().iter().collect::<Vec<_>>()[..], &[only]].concat());
    node.feed(901, &[foreign(only, &[], "the only copy")]);
    assert!(node.applied().includes(only));
    node.handle(Input::LinkDown(LinkId(901)));
    node.change_member(1, DRAIN).expect("it is active");
    node.meet(902, 3);
    let all: Vec<Dot> = node.applied().iter().collect();
    let lacking: Vec<Dot> = all.iter().copied().filter(|dot| *dot != only).collect();
    node.hear_applied(902, &lacking);
    assert_eq!(node.sees(1), MemberStatus::Draining);
    node.hear_applied(902, &all);
    assert_eq!(node.sees(1), MemberStatus::Down);
}

#[test]
fn an_heir_that_may_be_about_to_go_is_none_until_it_is_known_what_it_knew() {
    let mut cluster = Cluster::of(3);
    let node = &mut cluster.nodes[0];
    node.meet(902, 3);
    let later = Dot::new(Origin::new(2, 77), 1);
    node.change_member(1, DRAIN).expect("it is active");
    let ahead: Vec<Dot> = node.applied().iter().chain([later]).collect();
    // What it has more may be the news that it is drained too.
    node.hear_applied(902, &ahead);
    assert_eq!(node.sees(1), MemberStatus::Draining);
    node.feed(902, &[foreign(later, &[], "no such news")]);
    node.hear_applied(902, &ahead);
    assert_eq!(node.sees(1), MemberStatus::Down);
}

#[test]
fn a_change_that_leads_nowhere_is_refused_with_what_to_do_instead() {
    let mut cluster = Cluster::of(2);
    let refused = |cluster: &mut Cluster, status: &str, changes: &[(MemberChange, &str)]| {
        for (change, words) in changes {
            let refusal = cluster.nodes[0].change_member(2, *change).expect_err(status).to_string();
            assert_eq!(refusal, format!("member 2 is {status}: {words}"), "{change:?}");
        }
    };
    let by_force = "drain it first; if it is gone for good, remove it with --force";
    assert_eq!(cluster.nodes[0].change_member(9, DRAIN), Err(Refusal::UnknownMember(9)));
    refused(&mut cluster, "active", &[(REMOVE, by_force), (REJOIN, "it is a member already")]);
    cluster.nodes[0].change_member(2, DRAIN).expect("it is active");
    refused(&mut cluster, "draining", &[(REMOVE, by_force)]);
    cluster.nodes[0].change_member(2, FORCE).expect("by force");
    refused(&mut cluster, "removed", &[(DRAIN, "it is no member any more"), (FORCE, "it is removed already")]);
    cluster.nodes[0].change_member(2, REJOIN).expect("it was removed");
    let wait = "wait until it is active, or remove it with --force";
    let first = "wait until it is active and drain it; if it is gone for good, remove it with --force";
    refused(&mut cluster, "joining", &[(DRAIN, wait), (REMOVE, first), (REJOIN, "it is a member already")]);
    cluster.nodes[0].change_member(2, FORCE).expect("by force");
    cluster.nodes[0].change_member(2, REJOIN).expect("it was removed");
    cluster.live_ms(2_000);
    assert_seen(&cluster, 2, MemberStatus::Active);
    cluster.nodes[0].change_member(2, DRAIN).expect("it is active");
    cluster.live_ms(2_000);
    cluster.nodes[0].change_member(2, REMOVE).expect("it is down");
}

#[test]
fn a_removed_member_is_told_and_loses_nothing_when_it_comes_back() {
    let mut cluster = linked(3);
    cluster.part(&[1]);
    cluster.nodes[1].put("unseen", "u").expect("it does not know yet");
    cluster.nodes[0].change_member(2, FORCE).expect("by force");
    cluster.live_ms(1_000);
    cluster.nodes[0].put("meanwhile", "m").expect("it is active");
    cluster.mend();
    cluster.live_ms(1_000);
    assert_refused(&mut cluster.nodes[1], MemberStatus::Removed);
    assert_eq!(cluster.nodes[1].status().status, Some(MemberStatus::Removed));
    assert_eq!(cluster.nodes[1].set_topology("ring"), Err(Refusal::MemberIs(MemberStatus::Removed)));
    assert_eq!(cluster.nodes[1].change_member(2, REJOIN), Err(Refusal::MemberIs(MemberStatus::Removed)));
    assert_eq!(cluster.nodes[1].change_member(3, DRAIN), Err(Refusal::MemberIs(MemberStatus::Removed)));
    cluster.live_ms(60_000);
    assert_refused(&mut cluster.nodes[1], MemberStatus::Removed);
    assert_eq!(cluster.nodes[1].count(|event| matches!(event, Event::ToldRemoved { .. })), 1, "it is told once");
    assert_eq!(cluster.nodes[0].shown("unseen"), Vec::<String>::new());
    assert_eq!(cluster.nodes[1].shown("meanwhile"), Vec::<String>::new());

    cluster.nodes[0].change_member(2, REJOIN).expect("it was removed");
    cluster.live_ms(3_000);
    assert_seen(&cluster, 2, MemberStatus::Active);
    cluster.nodes[1].put("again", "a").expect("it is a member");
    cluster.live_ms(1_000);
    cluster.assert_equal();
    assert_eq!(
        (cluster.nodes[2].shown("unseen"), cluster.nodes[1].shown("meanwhile")),
        (vec!["u".into()], vec!["m".into()])
    );
}

#[test]
fn the_link_of_a_member_that_is_removed_is_closed() {
    let mut cluster = linked(3);
    let before = cluster.links_up();
    cluster.nodes[0].change_member(2, FORCE).expect("by force");
    cluster.settle();
    assert_eq!((before, cluster.links_up()), (3, 1));
    assert_refused(&mut cluster.nodes[1], MemberStatus::Removed);
    cluster.live_ms(5_000);
    let views = cluster.nodes[0].status().peers;
    let flags: Vec<(u32, bool, bool)> = views.iter().map(|v| (v.server_id, v.linked, v.planned)).collect();
    assert_eq!(flags, [(2, false, false), (3, true, true)]);
}

/// 2 is started with another address beside 3, while 1 is apart, and says so later than 1 does what
/// an operator wants.
fn announced_apart(changes: &[MemberChange]) -> Cluster {
    let mut cluster = linked(3);
    cluster.part(&[0]);
    for change in changes {
        cluster.nodes[0].change_member(2, *change).expect("it leads somewhere");
    }
    cluster.stop(1);
    cluster.nodes[1].config.addresses = vec!["elsewhere:7400".to_owned()];
    cluster.nodes[1].advance(60_000);
    cluster.nodes[1].crash();
    cluster.stopped.clear();
    cluster.live_ms(2_000);
    assert_eq!(cluster.nodes[2].replica.catalog().member(2).expect("it is one").addresses, ["elsewhere:7400"]);
    cluster.mend();
    cluster.live_ms(20_000);
    cluster
}

#[test]
fn what_a_member_says_of_itself_undoes_no_change_of_an_operator() {
    let drained = announced_apart(&[DRAIN]);
    assert_seen(&drained, 2, MemberStatus::Down);
    drained.assert_equal();
    let removed = announced_apart(&[FORCE]);
    assert_eq!([0, 2].map(|at| removed.nodes[at].sees(2)), [MemberStatus::Removed; 2]);
    let back = announced_apart(&[DRAIN, REJOIN]);
    assert_seen(&back, 2, MemberStatus::Active);
    for cluster in [drained, back] {
        for node in &cluster.nodes {
            let member = node.replica.catalog().member(2).expect("it is one");
            assert_eq!(member.addresses, ["elsewhere:7400"], "nor is what it said of itself lost");
        }
    }
}

#[test]
fn a_drain_that_is_taken_back_while_the_member_goes_down_is_taken_back() {
    let mut cluster = linked(3);
    cluster.part(&[0]);
    cluster.nodes[1].advance(60_000);
    cluster.part(&[1]);
    cluster.nodes[2].change_member(2, DRAIN).expect("it is active");
    cluster.mend();
    cluster.stop(1);
    cluster.live_ms(2_000);
    cluster.stopped.clear();
    // 1 knows of the drain and takes it back; 2 hears of the drain only.
    cluster.part(&[0]);
    cluster.nodes[0].change_member(2, REJOIN).expect("it is draining");
    cluster.live_ms(3_000);
    assert_eq!(cluster.nodes[2].sees(2), MemberStatus::Down);
    cluster.mend();
    cluster.live_ms(3_000);
    assert_seen(&cluster, 2, MemberStatus::Active);
    cluster.assert_equal();
    cluster.nodes[1].put("k", "x").expect("it is active");
}

#[test]
fn changes_by_two_operators_at_the_same_time_end_the_same_everywhere() {
    for (one, other) in [(DRAIN, FORCE), (FORCE, DRAIN)] {
        let mut cluster = linked(4);
        cluster.part(&[0, 1]);
        cluster.nodes[0].change_member(2, one).expect("it is active");
        cluster.nodes[3].change_member(2, other).expect("it is active");
        cluster.live_ms(1_000);
        cluster.mend();
        cluster.live_ms(20_000);
        let seen = [0, 2, 3].map(|at| cluster.nodes[at].sees(2));
        assert!(seen.iter().all(|status| *status == seen[0]), "{seen:?}");
        assert!(!seen[0].takes_writes());
        assert!(cluster.nodes[1].put("k", "x").is_err());
    }
}

#[test]
fn a_member_that_was_removed_leaves_the_graph() {
    let mut cluster = linked(3);
    cluster.nodes[0].change_member(2, FORCE).expect("by force");
    cluster.live_ms(500);
    let node = &mut cluster.nodes[0];
    let reachable = |node: &mut Node| node.status().peers.iter().map(|peer| peer.reachable).collect::<Vec<_>>();
    assert_eq!(reachable(node), [false, true]);
    // Somebody who has not heard of the removal still tells of it.
    node.meet(900, 3);
    let stale = LinkState { server_id: 2, boot_id: 2, version: 900, outdates: None, linked: vec![1, 3] };
    node.hear(900, PeerMessage::LinkStates(vec![stale]));
    assert_eq!(reachable(node), [false, true]);
}

#[test]
fn who_was_taken_back_does_not_heed_one_that_knows_only_of_the_removal() {
    let mut node = Node::founded(1);
    node.meet(1, 2);
    node.put("k", "1").expect("it is writable");
    let known = node.applied();
    node.hear(1, PeerMessage::Removed(known));
    assert!(node.put("k", "2").is_ok(), "its own record says more");
    let unknown = [Dot::new(Origin::new(2, 9), 1)].into_iter().collect();
    node.hear(1, PeerMessage::Removed(unknown));
    assert_eq!(node.put("k", "3"), Err(Refusal::MemberIs(MemberStatus::Removed)));
}
