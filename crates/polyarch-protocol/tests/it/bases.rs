//! Closed epochs stay cheap: bases, who publishes them, and what they leave of sets, heartbeats and tokens.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use polyarch_crdt::{AppliedSet, Base, ClosedEpoch, Dot, FieldPath, Origin, SessionToken};
use polyarch_protocol::catalog::{BaseDefinition, SystemRecord, base_key};
use polyarch_protocol::client::Supersede;
use polyarch_protocol::condition::{PauseCause, PausedView};
use polyarch_protocol::peer::{BasedHeartbeat, PeerMessage, PeerVersion};
use polyarch_protocol::{
    BasedSet, ChainHash, ChainHead, ChainHeads, Change, Dependencies, Effect, Input, KeyspaceId, LinkId,
    MemberProgress, WriteSet,
};
use proptest::prelude::*;

use crate::support::{Cluster, Node, change, foreign, heartbeat};

/// What a node's restarts leave, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Left {
    heartbeat: usize,
    progress: usize,
    subscription: usize,
    token: usize,
    first_write_set: usize,
}

impl Left {
    fn at_most(self, other: Self) -> bool {
        self.heartbeat <= other.heartbeat
            && self.progress <= other.progress
            && self.subscription <= other.subscription
            && self.token <= other.token
            && self.first_write_set <= other.first_write_set
    }

    fn twice(self) -> Self {
        Self {
            heartbeat: 2 * self.heartbeat,
            progress: 2 * self.progress,
            subscription: 2 * self.subscription,
            token: 2 * self.token,
            first_write_set: 2 * self.first_write_set,
        }
    }

    fn or_more(self, other: Self) -> Self {
        Self {
            heartbeat: self.heartbeat.max(other.heartbeat),
            progress: self.progress.max(other.progress),
            subscription: self.subscription.max(other.subscription),
            token: self.token.max(other.token),
            first_write_set: self.first_write_set.max(other.first_write_set),
        }
    }
}

/// Another process of a node, which writes once: linked with `others` before and after.
fn restart(cluster: &mut Cluster, at: usize, others: &[usize]) {
    others.iter().for_each(|other| cluster.unlink_between(at, *other));
    cluster.nodes[at].restart();
    for other in others {
        cluster.connect(at, *other);
    }
    cluster.settle();
    cluster.nodes[at].put("k", "v").expect("it takes writes");
    cluster.run_ms(100);
}

/// Restarts a node so many times, and says what that left at most, of all that was said.
fn restarts(cluster: &mut Cluster, at: usize, others: &[usize], times: usize) -> Left {
    let mut left = Left::default();
    for _ in 0..times {
        cluster.nodes.iter_mut().for_each(Node::forget);
        restart(cluster, at, others);
        left = left.or_more(Left {
            heartbeat: greatest(cluster, |m| matches!(m, PeerMessage::Heartbeat(_) | PeerMessage::BasedHeartbeat(_))),
            progress: greatest_progress(cluster),
            subscription: greatest(cluster, |message| matches!(message, PeerMessage::Subscribe(_))),
            token: token_bytes(&mut cluster.nodes[others[0]]),
            first_write_set: first_write_set(&cluster.nodes[at]),
        });
    }
    left
}

fn greatest(cluster: &Cluster, is_it: fn(&PeerMessage) -> bool) -> usize {
    let sent = cluster.nodes.iter().flat_map(|node| &node.sent).map(|(_, message)| message);
    sent.filter(|message| is_it(message)).map(|message| message.encode().len()).max().unwrap_or(0)
}

/// The bytes of the greatest entry: a link that comes up is told all there are.
fn greatest_progress(cluster: &Cluster) -> usize {
    let sent = cluster.nodes.iter().flat_map(|node| &node.sent);
    let entries = sent.filter_map(|(_, message)| match message {
        PeerMessage::Progress(entries) => Some(entries),
        _ => None,
    });
    let bytes = entries.flatten().map(|entry| PeerMessage::Progress(vec![entry.clone()]).encode().len());
    bytes.max().unwrap_or(0)
}

/// The bytes of a token that says all that the node has applied.
fn token_bytes(node: &mut Node) -> usize {
    let nothing = node.write(vec![change("nothing", None, Supersede::Held)]).expect("it takes writes");
    nothing.token.len()
}

fn first_write_set(node: &Node) -> usize {
    let log = node.replica.storage().log_bytes();
    let mut decoded = log.iter().rev().map(|bytes| WriteSet::decode(bytes).expect("it was written by a replica"));
    let own = |write_set: &WriteSet| write_set.dot.origin.server_id == node.config.server_id;
    let first = decoded.find(own).expect("it wrote");
    assert!(matches!(first.dependencies, Dependencies::Whole { .. }), "it wrote once");
    first.encode().len()
}

fn newest(node: &Node) -> Option<&Arc<Base>> {
    node.replica.catalog().bases().newest()
}

/// Lowers the number of closed epochs that make a base due.
fn publish_soon(node: &mut Node, base_epochs_min: usize) {
    node.config.limits.base_epochs_min = base_epochs_min;
    node.restart();
}

/// A node that published a base over three closed epochs.
fn with_base() -> Node {
    let mut node = Node::founded(1);
    publish_soon(&mut node, 2);
    for _ in 0..3 {
        node.put("k", "v").expect("it takes writes");
        node.restart();
    }
    node.put("k", "v").expect("it takes writes");
    node.run_ms(100);
    assert!(newest(&node).is_some(), "a base was due");
    node.forget();
    node
}

/// How long a publication takes and a heartbeat to all, with so many epochs.
fn cost(cluster: &mut Cluster) -> Duration {
    const ROUNDS: u32 = 50;
    let since = Instant::now();
    for _ in 0..ROUNDS {
        cluster.nodes[0].put("k", "v").expect("it takes writes");
        cluster.run_ms(100);
    }
    since.elapsed() / ROUNDS
}

/// Five hundred restarts: `BASES_RESTARTS` asks for other numbers.
fn many() -> usize {
    std::env::var("BASES_RESTARTS").ok().and_then(|many| many.parse().ok()).unwrap_or(500)
}

/// Write sets of a server that was started so many times and wrote once each time.
fn of_many_epochs(server_id: u32, epochs: u32) -> Vec<WriteSet> {
    let mut write_sets: Vec<WriteSet> = Vec::new();
    for epoch in 1..=epochs {
        let before = write_sets.last().map(|write_set| write_set.dot);
        write_sets.push(foreign(Dot::new(Origin::new(server_id, epoch), 1), before.as_slice(), "v"));
    }
    write_sets
}

/// A member tells a node of write sets and feeds them.
fn feed_all(node: &mut Node, from: u32, write_sets: &[WriteSet]) {
    const LINK: u64 = 1 << 40;
    node.meet(LINK, from);
    node.hear_applied(LINK, &write_sets.iter().map(|write_set| write_set.dot).collect::<Vec<_>>());
    write_sets.chunks(500).for_each(|group| node.feed(LINK, group));
    node.handle(Input::LinkDown(LinkId(LINK)));
    node.settle();
}

#[test]
fn ten_thousand_closed_epochs_are_said_in_as_little_as_ten() {
    const EPOCHS: usize = 10_000;
    let mut cluster = Cluster::of(5);
    cluster.link(0, 1);
    let after_10 = restarts(&mut cluster, 1, &[0], 10);
    let cost_after_10 = cost(&mut cluster);
    for some in of_many_epochs(5, EPOCHS as u32).chunks(250) {
        feed_all(&mut cluster.nodes[0], 5, some);
        // They go into a base before there are more: this storage keeps the heads of each write set.
        cluster.run_ms(500);
    }
    // Until all have told how far they are since.
    cluster.run_ms(5_000);
    cluster.nodes.iter_mut().for_each(Node::forget);
    let after_many = restarts(&mut cluster, 1, &[0], 40);
    let cost_after_many = cost(&mut cluster);
    println!("10 epochs: {after_10:?}, a write and a round of heartbeats {cost_after_10:?}");
    println!("{EPOCHS} epochs: {after_many:?}, a write and a round of heartbeats {cost_after_many:?}");
    assert!(after_many.at_most(after_10.twice()), "{after_many:?} is more than twice {after_10:?}");
    assert!(cluster.nodes[..2].iter().all(|node| node.applied().len() > EPOCHS), "each epoch is known for ever");

    let whole = cluster.nodes[0].applied();
    assert!(whole.base().is_some_and(|base| base.epochs() > EPOCHS), "{whole}");
}

#[test]
fn members_that_missed_a_thousand_epochs_and_their_bases_get_them_from_a_log_or_by_a_snapshot() {
    let mut cluster = Cluster::of(5);
    cluster.link(0, 1);
    feed_all(&mut cluster.nodes[0], 5, &of_many_epochs(5, 1_000));
    cluster.run_ms(3_000);
    assert!(newest(&cluster.nodes[1]).is_some_and(|base| base.epochs() >= 999));
    cluster.link(2, 1);
    cluster.run_ms(3_000);
    (0..3).for_each(|at| cluster.cut_log(at));
    cluster.nodes[3].put("unseen", "v").expect("it takes writes");
    cluster.link(3, 1);
    cluster.run_ms(20_000);
    assert_eq!(cluster.joins, 1, "what it lacked was in no log");
    for at in 1..4 {
        let (one, other) = (&cluster.nodes[0], &cluster.nodes[at]);
        assert_eq!(one.applied(), other.applied());
        assert_eq!(one.replica.frontier().digest, other.replica.frontier().digest);
        assert!(other.applied().beyond_base().len() < 32, "node {} spells out {}", at + 1, other.applied());
        assert!(other.replica.all_members_have(&AppliedSet::new()), "what each has came to all by its base");
    }
    assert_eq!(cluster.nodes[0].shown("unseen"), ["v"]);
}

#[test]
fn a_node_restarted_many_times_leaves_as_little_as_one_restarted_ten_times() {
    let mut cluster = Cluster::of(4);
    // Node 4 is away all the time, and node 3 will be put back to where it is in the middle.
    let (there, others) = ([0, 1, 2], [0, 2]);
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        cluster.connect(one, other);
    }
    cluster.run_ms(200);
    let after_10 = restarts(&mut cluster, 1, &others, 10);
    let cost_after_10 = cost(&mut cluster);
    let _ = restarts(&mut cluster, 1, &others, many() / 2);
    let then = cluster.nodes[2].replica.storage().log_bytes().len();
    let _ = restarts(&mut cluster, 1, &others, many() - many() / 2);
    let after_many = restarts(&mut cluster, 1, &others, 40);
    let cost_after_many = cost(&mut cluster);
    println!("10 restarts: {after_10:?}, a write and a round of heartbeats {cost_after_10:?}");
    println!("{} restarts: {after_many:?}, a write and a round of heartbeats {cost_after_many:?}", many());
    println!("{}", newest(&cluster.nodes[0]).expect("there are bases"));
    assert!(after_many.at_most(after_10.twice()), "{after_many:?} is more than twice {after_10:?}");
    assert!(cluster.nodes[0].applied().len() > many(), "each epoch is known for ever");
    for at in there {
        let applied = cluster.nodes[at].applied();
        assert!(applied.beyond_base().len() < 32, "node {} spells out {applied}", at + 1);
    }

    // The one that was away all that time.
    for at in [0, 2] {
        cluster.connect(3, at);
    }
    cluster.run_ms(3_000);
    cluster.assert_equal();
    assert!(cluster.nodes[3].applied().beyond_base().len() < 32, "it has the bases too");

    // One put back to an image of its disk.
    for other in [0, 1, 3] {
        cluster.unlink_between(2, other);
    }
    let (storage, frontier) = cluster.nodes[2].replica.storage().cut_to(then);
    cluster.nodes[2].reopen(storage, frontier);
    cluster.connect(2, 0);
    cluster.connect(1, 2);
    cluster.run_ms(3_000);
    cluster.assert_equal();
    cluster.nodes[2].put("k", "after").expect("it takes writes");
    cluster.run_ms(1_000);
    cluster.assert_equal();
}

#[test]
fn two_bases_published_at_once_become_one() {
    let mut cluster = Cluster::of(2);
    cluster.nodes.iter_mut().for_each(|node| publish_soon(node, 2));
    for (at, times) in [(0, 4), (1, 7)] {
        for _ in 0..times {
            restart(&mut cluster, at, &[]);
            cluster.run_ms(200);
        }
    }
    let names = [0, 1].map(|at| newest(&cluster.nodes[at]).expect("each has one of its own").name());
    assert_ne!(names[0], names[1]);
    cluster.link(0, 1);
    cluster.run_ms(2_000);
    cluster.assert_equal();
    let bases = cluster.nodes[0].replica.catalog().bases().clone();
    assert_eq!(cluster.nodes[1].replica.catalog().bases(), &bases, "both know the same");
    assert!(names.iter().all(|name| bases.get(*name).is_some()), "and both that were published at once");
    let newest = bases.newest().expect("there are some");
    for name in names {
        let lost = bases.get(name).expect("it is known");
        let held: AppliedSet = newest.iter().map(|epoch| epoch.last).collect();
        assert!(lost.iter().all(|epoch| held.includes(epoch.last)), "the next one took {lost} in");
    }
    for node in &cluster.nodes {
        assert!(node.applied().base().is_some_and(|own| own.name() == newest.name()), "and both go by it");
    }
}

#[test]
fn more_of_a_closed_epoch_that_turns_up_later_is_taken_in() {
    let mut cluster = Cluster::of(3);
    cluster.nodes.iter_mut().for_each(|node| publish_soon(node, 2));
    // Node 3 writes alone, is put back to before that, and its servers go on.
    cluster.nodes[2].put("lost", "v").expect("it takes writes");
    let (storage, frontier) = cluster.nodes[2].replica.storage().crash();
    cluster.nodes[2].put("found", "v").expect("it takes writes");
    let mut found = Node::new(3);
    found.reopen(cluster.nodes[2].replica.storage().crash().0, cluster.nodes[2].replica.frontier().clone());
    let open = cluster.nodes[2].last_own().dot;
    cluster.nodes[2].reopen(storage, frontier);
    cluster.link(0, 2);
    cluster.link(0, 1);
    for _ in 0..4 {
        restart(&mut cluster, 2, &[0]);
        cluster.run_ms(300);
    }
    let base = newest(&cluster.nodes[0]).expect("a base was due").clone();
    assert_eq!(base.seq(open.origin), open.seq - 1, "closed as far as anybody knew");
    // The old disk turns up, as what node 3 is now.
    cluster.unlink_all();
    found.now = cluster.nodes[2].now;
    // None of its processes is one that was there before.
    (0..20).for_each(|_| found.restart());
    cluster.nodes[2] = found;
    cluster.link(0, 2);
    cluster.link(0, 1);
    cluster.run_ms(3_000);
    cluster.assert_equal();
    assert!(cluster.nodes[1].applied().includes(open), "its last write set too");
    assert_eq!(cluster.nodes[1].shown("found"), ["v"]);
}

#[test]
fn a_base_is_named_to_those_who_have_it_and_to_no_others() {
    let mut node = with_base();
    let name = newest(&node).expect("it published one").name();
    let based = |node: &Node, link: u64| {
        let to = |(on, message): &&(LinkId, PeerMessage)| on.0 == link && !matches!(message, PeerMessage::Hello(_));
        let messages: Vec<PeerMessage> = node.sent.iter().filter(to).map(|(_, message)| message.clone()).collect();
        messages
    };
    // Version 1 hears of none, though it has it.
    node.link_up_of(1, 2, true, PeerVersion::V1);
    node.hello(1, 2, 1);
    let all: Vec<Dot> = node.applied().iter().collect();
    node.hear_applied(1, &all);
    node.run_ms(1_000);
    assert!(node.heartbeats_sent(1).iter().all(|beat| beat.applied == node.applied()), "all of it is spelled out");
    assert!(based(&node, 1).iter().all(|message| message.since() == PeerVersion::V1));
    // One that has said nothing of it is told the whole set, until its heartbeat shows that it has it.
    node.meet(2, 3);
    assert!(matches!(based(&node, 2).first(), Some(PeerMessage::Base(own)) if *own == name));
    assert_eq!(node.heartbeats_sent(2).len(), 1);
    node.hear_applied(2, &all);
    node.run_ms(1_000);
    let named = |message: &PeerMessage| match message {
        PeerMessage::BasedHeartbeat(beat) => beat.applied.base == Some(name) && beat.applied.rest.len() < all.len(),
        _ => false,
    };
    assert!(based(&node, 2).iter().any(named));
    assert_eq!(node.heartbeats_sent(2).len(), 1, "no more is spelled out");
    // One that says which base it has, is told the first heartbeat by it.
    node.link_up(3, 4, true);
    node.hear(3, PeerMessage::Base(name));
    node.hello(3, 4, 1);
    assert!(based(&node, 3).iter().any(named) && node.heartbeats_sent(3).is_empty());
}

#[test]
fn a_heartbeat_says_the_same_by_a_base_and_one_that_is_unknown_ends_the_link() {
    let mut node = with_base();
    let base = newest(&node).expect("it published one").clone();
    node.meet(1, 2);
    let more = Dot::new(Origin::new(2, 9), 3);
    let applied = BasedSet { base: Some(base.name()), rest: node.applied().beyond_base() };
    let beat = |applied| {
        PeerMessage::BasedHeartbeat(BasedHeartbeat { applied, digest: None, clock_ms: 0, paused: Vec::new() })
    };
    node.hear(1, beat(applied.clone()));
    assert!(node.fed_on(1).is_empty(), "both have the same: what is closed needs no feed");
    let mut rest = applied.rest.clone();
    rest.join(&[more].into_iter().collect());
    node.hear(1, beat(BasedSet { rest, ..applied }));
    assert_eq!(node.fed_on(1), [more.origin]);
    let unknown = BasedSet { base: Some(more), rest: AppliedSet::new() };
    node.hear(1, beat(unknown));
    assert!(node.closed.iter().any(|(link, reason)| link.0 == 1 && reason.contains("base")), "{:?}", node.closed);
}

#[test]
fn progress_by_an_unknown_base_is_sent_on_and_counts_for_what_goes_beyond() {
    let mut node = with_base();
    let base = newest(&node).expect("it published one").clone();
    node.meet(1, 2);
    node.meet(2, 3);
    node.forget();
    let mut hear = |version, base| {
        let rest = [base].into_iter().collect();
        let applied = BasedSet { base: Some(base), rest };
        let entry = MemberProgress { server_id: 9, boot_id: 1, version, applied };
        node.hear(1, PeerMessage::Progress(vec![entry.clone()]));
        let sent_on = (LinkId(2), PeerMessage::Progress(vec![entry]));
        assert!(node.sent.contains(&sent_on), "as it came");
        node.replica.applied_of(9).expect("it said so").into_owned()
    };
    let unknown = Dot::new(Origin::new(2, 9), 3);
    assert_eq!(hear(1, unknown).iter().collect::<Vec<_>>(), [unknown], "nothing that is closed counts as applied");
    let known = hear(2, base.name());
    assert!(base.iter().all(|epoch| known.includes(epoch.last)) && known.includes(base.name()));
}

#[test]
fn more_of_an_epoch_of_the_base_is_fed() {
    let mut node = with_base();
    let closed = newest(&node).expect("it published one").iter().next().expect("it holds some").last;
    let more = Dot::new(closed.origin, closed.seq + 1);
    node.meet(1, 2);
    let beat = heartbeat(&[more], node.now.wall_ms);
    node.hear(1, PeerMessage::Heartbeat(beat));
    let subscribed = node.subscription(1).expect("there is something to get").origins.clone();
    assert_eq!(subscribed.len(), 1);
    assert_eq!((subscribed[0].0, subscribed[0].1.seq), (closed.origin, closed.seq), "from where the base ends");
}

#[test]
fn a_base_that_holds_what_its_server_had_not_applied_stops_that_epoch_and_no_other() {
    let mut node = Node::founded(1);
    let held = foreign(Dot::new(Origin::new(3, 1), 1), &[], "held");
    let origin = Origin::new(2, 7);
    let name = Dot::new(origin, 1);
    let closed = vec![(held.dot.origin, ChainHead { seq: 1, hash: ChainHash::default().extended(&held.encode()) })];
    let base = SystemRecord::Base(BaseDefinition { parent: None, closed });
    let mut publishes = foreign(name, &[], "base");
    publishes.changes = vec![Change {
        keyspace: KeyspaceId::SYSTEM,
        key: base_key(name),
        field: FieldPath::opaque(),
        supersedes: Vec::new(),
        effect: Effect::Put(base.encode()),
    }];
    let other = foreign(Dot::new(Origin::new(4, 1), 1), &[], "other");
    node.meet(1, 2);
    node.hear_applied(1, &[name, other.dot]);
    node.feed(1, &[publishes.clone(), other.clone()]);
    node.feed(1, std::slice::from_ref(&other));
    assert!(!node.applied().includes(name) && node.applied().includes(other.dot));
    let paused = node.condition().paused;
    assert!(
        matches!(&paused[..], [PausedView { cause: PauseCause::Poison { dot, .. }, .. }] if *dot == name),
        "{paused:?}"
    );
    // With what it holds it is one like any other.
    feed_all(&mut node, 3, std::slice::from_ref(&held));
    node.retry(None).expect("it is stopped");
    node.hear_applied(1, &[name, other.dot]);
    node.feed(1, &[publishes]);
    assert_eq!(newest(&node).map(|base| base.name()), Some(name));
    assert_eq!(node.replica.frontier().heads.applied().base().map(|base| base.name()), Some(name));
}

#[test]
fn a_token_names_what_goes_beyond_the_base_and_with_it_the_base() {
    let mut node = with_base();
    let base = newest(&node).expect("it published one").clone();
    let nothing = node.write(vec![change("nothing", None, Supersede::Held)]).expect("it takes writes");
    let seen = SessionToken::from_bytes(&nothing.token).expect("it reads").seen;
    assert!(seen.includes(base.name()), "who has applied that has applied what the base holds");
    assert!(seen.len() < node.applied().len());
    assert!(node.applied().includes_all(&seen));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chain_heads_answer_alike_by_whatever_base_they_are_expressed(
        heads in prop::collection::btree_map(1..8_u32, (1..5_u64, 0..3_u8), 0..6),
        closed in prop::collection::btree_map(1..8_u32, (1..4_u64, 0..3_u8), 1..5),
        next in 1..9_u32,
    ) {
        let origin = |server_id: u32| Origin::new(server_id, 7);
        let hash = |byte: u8| ChainHash([byte; 32]);
        let name = Dot::new(Origin::new(9, 9), 1);
        let epochs = closed.iter().map(|(server_id, (seq, byte))| ClosedEpoch {
            last: Dot::new(origin(*server_id), *seq),
            chain: hash(*byte).0,
        });
        let base = Arc::new(Base::new(name, None, epochs).expect("it holds some"));
        // What is applied goes at least as far as the base, with the same history or another.
        let mut spelled: BTreeMap<Origin, ChainHead> = BTreeMap::new();
        spelled.insert(name.origin, ChainHead { seq: 1, hash: hash(1) });
        for (server_id, (seq, byte)) in closed.iter().chain(&heads) {
            let head = ChainHead { seq: *seq, hash: hash(*byte) };
            let held = spelled.entry(origin(*server_id)).or_insert(head);
            if head.seq >= held.seq {
                *held = head;
            }
        }
        let mut plain = ChainHeads::from(spelled.clone());
        let mut based = plain.rebased(&base).expect("it goes as far as the base");
        for round in 0..2 {
            prop_assert_eq!(&based, &plain);
            prop_assert_eq!(based.applied(), plain.applied());
            prop_assert_eq!(based.iter().collect::<Vec<_>>(), plain.iter().collect::<Vec<_>>());
            prop_assert_eq!(BTreeMap::from(based.clone()), BTreeMap::from(plain.clone()));
            for server_id in 1..10 {
                prop_assert_eq!(based.head(origin(server_id)), plain.head(origin(server_id)));
            }
            let dot = Dot::new(origin(next), plain.applied().seq(origin(next)) + 1);
            plain.extend(dot, &[round]);
            based.extend(dot, &[round]);
        }
        prop_assert_eq!(based.rebased(&base), Some(plain));
    }
}
