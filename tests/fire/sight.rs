//! That the relay does what it is told, and that the checks see what they are for.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use polyarch_client::{Dot, Hlc, Origin};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::batches::Winners;
use crate::checks::{Held, Payloads, Sibling};
use crate::faults::Excuse;
use crate::registers::Register;
use crate::relay::{Place, Relay, Rules};

/// Longer than a datagram takes on loopback.
const SILENCE: Duration = Duration::from_millis(300);

/// Two nodes that are sockets.
struct Pair {
    one: UdpSocket,
    other: UdpSocket,
    places: [Place; 2],
    relay: Relay,
}

impl Pair {
    async fn new() -> Self {
        let socket = || async { UdpSocket::bind("127.0.0.1:0").await.expect("loopback") };
        let [one, other, first, second] = [socket().await, socket().await, socket().await, socket().await];
        let at = |socket: &UdpSocket| -> SocketAddr { socket.local_addr().expect("it is bound") };
        let place = |server_id, node, door| Place { server_id, node: at(node), door: at(door) };
        let places = [place(1, &one, &first), place(2, &other, &second)];
        drop((first, second));
        let relay = Relay::start(&places, 1, &Arc::default());
        Self { one, other, places, relay }
    }

    /// Sends from node 1 to node 2 under these rules, and says what comes.
    async fn send(&self, bytes: &[u8], rules: &Rules) -> Vec<Vec<u8>> {
        self.relay.heal();
        self.relay.rule(1, 2, |of_direction| *of_direction = rules.clone());
        self.one.send_to(bytes, self.places[1].door).await.expect("loopback");
        let (mut come, mut buffer) = (Vec::new(), [0; 2_000]);
        while let Ok(received) = timeout(SILENCE, self.other.recv_from(&mut buffer)).await {
            let (len, from) = received.expect("loopback");
            assert_eq!(from.ip(), self.places[0].door.ip(), "it comes from where the relay stands for node 1");
            come.push(buffer[..len].to_vec());
        }
        come
    }
}

#[tokio::test]
async fn the_relay_does_what_it_is_told() {
    let pair = Pair::new().await;
    let as_it_is = Rules::default();
    assert_eq!(pair.send(b"plain", &as_it_is).await, [b"plain"]);
    assert!(pair.send(b"blocked", &Rules { is_blocked: true, ..as_it_is.clone() }).await.is_empty());
    assert!(pair.send(b"lost", &Rules { lost: 1_000, ..as_it_is.clone() }).await.is_empty());
    assert_eq!(pair.send(b"twice", &Rules { doubled: 1_000, ..as_it_is.clone() }).await, [b"twice", b"twice"]);
    assert_eq!(pair.send(b"late", &Rules { late_ms: (20, 40), ..as_it_is.clone() }).await, [b"late"]);
    let corrupted = pair.send(b"corrupt", &Rules { corrupted: 1_000, ..as_it_is.clone() }).await;
    assert!(corrupted.len() == 1 && corrupted[0].len() == 7 && corrupted[0] != b"corrupt", "{corrupted:?}");
    // What is blocked one way passes the other, as an answer.
    pair.relay.rule(1, 2, |rules| rules.is_blocked = true);
    pair.other.send_to(b"answer", pair.places[0].door).await.expect("loopback");
    let mut buffer = [0; 100];
    let (len, _) = timeout(SILENCE, pair.one.recv_from(&mut buffer)).await.expect("it comes").expect("loopback");
    assert_eq!(&buffer[..len], b"answer");
}

fn dot(server_id: u32, seq: u64) -> Dot {
    Dot::new(Origin::new(server_id, 1), seq)
}

fn held(entries: &[(&str, Dot, &str)]) -> Held {
    let mut held = Held::new();
    for (key, gtid, value) in entries {
        let sibling = Sibling { hlc: Hlc::default(), value: (*value).to_owned() };
        held.entry((*key).to_owned()).or_default().insert(*gtid, sibling);
    }
    held
}

#[test]
fn a_register_shows_the_last_write_or_one_that_nobody_knows_of() {
    let mut register = Register::default();
    let shows = |register: &Register, value: Option<&str>| register.may_show(value, &BTreeSet::new());
    assert!(shows(&register, None) && !shows(&register, Some("a")));
    register.acked(Some(dot(1, 1)), Some("a".to_owned()));
    register.acked(Some(dot(2, 1)), None);
    assert!(shows(&register, None) && !shows(&register, Some("a")), "what was deleted is back");
    assert!(register.may_show(Some("a"), &[dot(2, 1)].into()), "its delete went with a disk");
    register.unknown(Some("b".to_owned()));
    assert!(shows(&register, None) && shows(&register, Some("b")) && !shows(&register, Some("a")));
    register.settle(Some("b"));
    assert!(shows(&register, Some("b")) && !shows(&register, None), "it was there a moment ago");
}

#[test]
fn a_gtid_with_two_payloads_is_seen() {
    let mut payloads = Payloads::default();
    assert!(payloads.note("k", &held(&[("a", dot(1, 1), "x"), ("b", dot(1, 1), "y")])).is_empty());
    assert!(payloads.note("k", &held(&[("a", dot(1, 1), "x")])).is_empty());
    assert_eq!(payloads.note("k", &held(&[("a", dot(1, 1), "z")])).len(), 1);
    assert!(payloads.stamps_rise().is_empty());
    payloads.note("k", &held(&[("c", dot(1, 2), "a later one with the same stamp")]));
    assert_eq!(payloads.stamps_rise().len(), 1);
}

#[test]
fn a_batch_that_is_not_whole_is_seen() {
    let nothing = Held::new();
    let check = |pairs: &Held| Winners::default().check(pairs, &nothing, &mut [], &BTreeSet::new()).len();
    let whole = [("group-0.0", dot(1, 1), "n 5"), ("group-0.1", dot(1, 1), "n -2"), ("group-0.2", dot(1, 1), "n -3")];
    assert_eq!((check(&held(&whole)), check(&held(&whole[..2]))), (0, 1));
    let mut other = whole;
    other[2].2 = "n -4";
    assert_eq!(check(&held(&other)), 1);
    other[2].2 = "m -3";
    assert_eq!(check(&held(&other)), 1);
}

#[test]
fn a_replaced_disk_excuses_only_what_it_alone_had() {
    let excuse = Excuse::of(2, vec![vec![dot(2, 5), dot(1, 9)], vec![dot(2, 7)]]);
    let excused: Vec<bool> = [dot(2, 7), dot(2, 8), dot(1, 10)].map(|gtid| excuse.excuses(gtid)).to_vec();
    assert_eq!(excused, [false, true, false]);
}
