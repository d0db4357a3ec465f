//! Two members that have applied the same and hold other records: they find out which, and say so.

use polyarch_crdt::FieldPath;
use polyarch_protocol::peer::{PeerMessage, PeerVersion};
use polyarch_protocol::{Digest, Event, HeldBy, Records, Storage};

use crate::support::{Cluster, Node, heartbeat};

/// What differs, as a node told its operator.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    mismatches: usize,
    /// Each alarm about buckets.
    buckets: Vec<Vec<u16>>,
    /// Each alarm about keys: what it names, and how many there are in all.
    keys: Vec<(Vec<(String, HeldBy)>, u64)>,
    /// Buckets in which a node's own records are not what it applied.
    own: Vec<Vec<u16>>,
    equal: usize,
}

fn told(node: &Node) -> Told {
    let mut told = Told::default();
    for event in &node.events {
        match event {
            Event::DigestMismatch { .. } => told.mismatches += 1,
            Event::BucketsDiffer { buckets, .. } => told.buckets.push(buckets.clone()),
            Event::KeysDiffer { keys, count, .. } => {
                let name = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
                let keys = keys.iter().map(|k| (format!("{}/{}", k.keyspace, name(&k.key)), k.held_by));
                told.keys.push((keys.collect(), *count));
            }
            Event::RecordsAltered { buckets } => told.own.push(buckets.clone()),
            Event::DigestsEqual { .. } => told.equal += 1,
            _ => {}
        }
    }
    told
}

/// Two linked nodes that are equal, with keys `m/k0` to `m/k9`.
fn pair() -> Cluster {
    let mut cluster = Cluster::of(2);
    (0..10).for_each(|i| _ = cluster.nodes[0].put(&format!("m/k{i}"), "v").expect("it takes writes"));
    cluster.link(0, 1);
    cluster.run_ms(3_000);
    cluster.assert_equal();
    cluster.nodes.iter_mut().for_each(Node::forget);
    cluster
}

/// Takes keys away from a node while it is stopped, as a bug would: its digest goes with them, if `with_digest`.
fn lose(cluster: &mut Cluster, at: usize, keys: &[&str], with_digest: bool) {
    cluster.unlink_all();
    let node = &mut cluster.nodes[at];
    let places: Vec<_> = keys.iter().map(|key| node.place(key).expect("the keyspace is known")).collect();
    let (mut storage, mut frontier) = node.replica.storage().crash();
    for place in places {
        let record = storage.record(&place).expect("it is in memory");
        if with_digest {
            let path = FieldPath::opaque();
            record.siblings(&path).iter().for_each(|sibling| frontier.digest.remove(&place, &path, sibling));
        }
        *storage.record_mut(&place).expect("it is in memory") = Default::default();
    }
    node.reopen(storage, frontier);
    cluster.nodes.iter_mut().for_each(Node::forget);
}

fn buckets_of(node: &Node, keys: &[&str]) -> Vec<u16> {
    let bucket = |key: &&str| Digest::bucket_of(&node.place(key).expect("the keyspace is known")) as u16;
    let mut buckets: Vec<u16> = keys.iter().map(bucket).collect();
    buckets.sort_unstable();
    buckets
}

fn named(keys: &[&str], held_by: HeldBy) -> (Vec<(String, HeldBy)>, u64) {
    (keys.iter().map(|key| ((*key).to_owned(), held_by)).collect(), keys.len() as u64)
}

#[test]
fn both_name_the_buckets_and_keys_once_and_say_when_they_are_equal_again() {
    let mut cluster = pair();
    let lost = ["m/k3", "m/k7"];
    lose(&mut cluster, 1, &lost, true);
    cluster.link(0, 1);
    cluster.run_ms(200_000);
    let buckets = buckets_of(&cluster.nodes[0], &lost);
    for (at, held_by) in [(0, HeldBy::Here), (1, HeldBy::There)] {
        let expected = Told {
            mismatches: 1,
            buckets: vec![buckets.clone()],
            keys: vec![named(&lost, held_by)],
            ..Told::default()
        };
        assert_eq!(told(&cluster.nodes[at]), expected, "at {at}");
    }
    let digests_sent = |node: &Node| node.sent.iter().filter(|(_, m)| matches!(m, PeerMessage::Digest(_))).count();
    assert!(digests_sent(&cluster.nodes[0]) <= 12, "each minute in the long run: {}", digests_sent(&cluster.nodes[0]));

    // Each write replaces what the other still has.
    lost.iter().for_each(|key| _ = cluster.nodes[0].put(key, "new").expect("it takes writes"));
    cluster.run_ms(5_000);
    cluster.assert_equal();
    assert_eq!(cluster.nodes.iter().map(|node| told(node).equal).collect::<Vec<_>>(), [1, 1]);
}

#[test]
fn a_difference_in_another_bucket_is_told_anew_and_a_lost_link_is_not() {
    let mut cluster = pair();
    lose(&mut cluster, 1, &["m/k3"], true);
    cluster.link(0, 1);
    cluster.run_ms(3_000);
    lose(&mut cluster, 1, &["m/k3", "m/k5"], true);
    cluster.link(0, 1);
    cluster.run_ms(3_000);
    let all = told(&cluster.nodes[0]);
    // Taken away from what the log adds up to: `k3` once more, and `k5`.
    assert_eq!(all.buckets, [buckets_of(&cluster.nodes[0], &["m/k3", "m/k5"])]);
    assert_eq!((all.mismatches, all.keys), (0, vec![named(&["m/k3", "m/k5"], HeldBy::Here)]));
    cluster.unlink_all();
    cluster.nodes.iter_mut().for_each(Node::forget);
    cluster.link(0, 1);
    cluster.run_ms(3_000);
    assert_eq!(told(&cluster.nodes[0]), Told::default());
    // A process that is new has told nothing yet, and is told the keys by the one that has.
    lose(&mut cluster, 1, &["m/k3", "m/k5"], true);
    cluster.link(0, 1);
    cluster.run_ms(3_000);
    assert_eq!(told(&cluster.nodes[1]).keys, [named(&["m/k3", "m/k5"], HeldBy::There)]);
    assert_eq!(told(&cluster.nodes[0]), Told::default());
}

#[test]
fn what_was_lost_without_the_digest_is_found_by_the_node_itself_once_it_is_overwritten() {
    let mut cluster = pair();
    lose(&mut cluster, 1, &["m/k3"], false);
    cluster.link(0, 1);
    cluster.run_ms(3_000);
    assert_eq!(told(&cluster.nodes[0]), Told::default(), "a digest that is kept up does not see it");
    cluster.nodes[0].put("m/k3", "new").expect("it takes writes");
    cluster.run_ms(5_000);
    let buckets = buckets_of(&cluster.nodes[0], &["m/k3"]);
    let [one, other] = [told(&cluster.nodes[0]), told(&cluster.nodes[1])];
    assert_eq!((one.mismatches, &one.buckets, &one.own), (1, &vec![buckets.clone()], &Vec::new()));
    assert_eq!((other.mismatches, &other.own), (1, &vec![buckets]));
    assert_eq!([one.keys, other.keys], [vec![(Vec::new(), 0)], vec![(Vec::new(), 0)]], "the records are the same");
}

#[test]
fn records_that_do_not_stand_still_are_read_again_later() {
    let mut cluster = pair();
    lose(&mut cluster, 1, &["m/k3"], true);
    cluster.nodes[1].scans = false;
    cluster.link(0, 1);
    cluster.run_ms(10_000);
    for node in &cluster.nodes {
        assert_eq!((told(node).mismatches, told(node).buckets.len(), told(node).keys.len()), (1, 1, 0));
    }
    cluster.nodes[1].scans = true;
    cluster.run_ms(20_000);
    assert_eq!(told(&cluster.nodes[0]).keys, [named(&["m/k3"], HeldBy::Here)]);
    assert_eq!(told(&cluster.nodes[1]).keys, [named(&["m/k3"], HeldBy::There)]);
}

#[test]
fn of_many_keys_a_few_are_named_and_all_are_counted() {
    let mut cluster = pair();
    let keys: Vec<String> = (0..10).map(|i| format!("m/k{i}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    lose(&mut cluster, 0, &keys, true);
    cluster.link(0, 1);
    cluster.run_ms(3_000);
    let [(named, count)] = &told(&cluster.nodes[1]).keys[..] else { panic!("keys are told once") };
    assert_eq!((named.len(), *count), (8, 10));
}

#[test]
fn a_member_of_version_1_is_told_nothing_that_it_cannot_read() {
    let mut node = Node::founded(1);
    node.link_up_of(1, 2, true, PeerVersion::V1);
    node.hello(1, 2, 2);
    let applied: Vec<_> = node.applied().iter().collect();
    let mut beat = heartbeat(&applied, node.now.wall_ms);
    beat.digest = Some(node.replica.frontier().digest.total() ^ 1);
    node.hear(1, PeerMessage::Heartbeat(beat));
    assert_eq!(told(&node).mismatches, 1);
    assert!(node.sent.iter().all(|(_, message)| message.since() == PeerVersion::V1), "{:?}", node.sent);
}
