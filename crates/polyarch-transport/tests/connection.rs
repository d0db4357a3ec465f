//! Frames, ends and strangers: how endpoints and connections behave over real loopback sockets.

mod support;

use std::time::{Duration, Instant};

use polyarch_transport::{
    Alpn, BindError, CloseCode, CloseReason, ConnectError, Connection, Endpoint, Expect, FrameError, StreamError,
    TransportConfig,
};
use support::{
    Cluster, FRAME_BYTES_MAX, PEER_1, Wire, loopback, pair, raw_client, raw_client_config, soon, until, uri,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_small_frames_of_one_flush_arrive_in_order_and_in_batches() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let (dialled, accepted) = pair(&one, &two, Alpn::Peer).await;
    let count = 50_000u32;

    let (mut writer, _answers) = dialled.open_bi().await.unwrap();
    for n in 0..count {
        writer.queue_parts(&[b"number ", &n.to_le_bytes(), b""]);
    }
    assert_eq!(writer.queued_bytes(), count as usize * (4 + 11));
    let sending = tokio::spawn(async move {
        writer.finish().await.unwrap();
        writer.delivered().await.unwrap();
        writer.queued_bytes()
    });

    let (_writer, mut reader) = soon(accepted.accept_bi()).await.unwrap();
    let (mut expected, mut waits) = (0u32, 0);
    while let Some(frame) = soon(reader.next(FRAME_BYTES_MAX)).await.unwrap() {
        waits += 1;
        let mut batch = Some(frame);
        while let Some(frame) = batch {
            assert_eq!(frame, [b"number ".as_slice(), &expected.to_le_bytes()].concat());
            expected += 1;
            batch = reader.try_next(FRAME_BYTES_MAX).unwrap();
        }
    }
    assert_eq!(expected, count);
    assert!(waits < count / 10, "{waits} reads for {count} frames");
    assert_eq!(soon(sending).await.unwrap(), 0);

    let stats = dialled.stats();
    assert!(stats.bytes_sent > u64::from(count) * 15 && stats.bytes_received > 0, "{stats:?}");
    assert!(stats.datagrams_sent > 0 && stats.datagrams_received > 0, "{stats:?}");
}

#[tokio::test]
async fn both_directions_and_great_and_empty_frames_work() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let (dialled, accepted) = pair(&one, &two, Alpn::Client).await;
    let great = vec![7; FRAME_BYTES_MAX];

    let (mut asks, mut answers) = dialled.open_bi().await.unwrap();
    asks.set_priority(1);
    asks.queue(b"");
    asks.queue(&great);
    let serving = tokio::spawn(async move {
        let (mut answers, mut asks) = accepted.accept_bi().await.unwrap();
        while let Some(frame) = asks.next(FRAME_BYTES_MAX).await.unwrap() {
            answers.queue(&frame);
            answers.flush().await.unwrap();
        }
        answers.finish().await.unwrap();
        answers.delivered().await.unwrap();
        accepted
    });
    soon(asks.finish()).await.unwrap();
    assert_eq!(soon(answers.next(FRAME_BYTES_MAX)).await.unwrap().unwrap(), b"".as_slice());
    assert_eq!(soon(answers.next(FRAME_BYTES_MAX)).await.unwrap().unwrap(), great);
    assert_eq!(soon(answers.next(FRAME_BYTES_MAX)).await, Ok(None));
    assert_eq!(asks.flush().await, Ok(()), "nothing is left to flush");
    asks.queue(b"late");
    assert_eq!(asks.flush().await, Err(StreamError::Finished));
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn a_frame_beyond_the_limit_is_refused_and_the_rest_of_the_connection_works() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let (dialled, accepted) = pair(&one, &two, Alpn::Peer).await;

    let mut writer = dialled.open_uni().await.unwrap();
    writer.queue(&[1; 100]);
    writer.queue(&[2; 101]);
    soon(writer.flush()).await.unwrap();
    let mut reader = soon(accepted.accept_uni()).await.unwrap();
    assert_eq!(soon(reader.next(100)).await.unwrap().unwrap(), vec![1; 100]);
    let refused = Err(StreamError::Frame(FrameError::TooLarge { len: 101, max: 100 }));
    assert_eq!(soon(reader.next(100)).await, refused);
    assert_eq!(reader.try_next(100), refused);

    reader.stop(CloseCode::new(9));
    soon(async {
        loop {
            writer.queue(&[3; 10]);
            if let Err(error) = writer.flush().await {
                assert_eq!(error, StreamError::Stopped { code: CloseCode::new(9) });
                break;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;

    let mut other = dialled.open_uni().await.unwrap();
    other.queue(b"still here");
    soon(other.flush()).await.unwrap();
    let mut reader = soon(accepted.accept_uni()).await.unwrap();
    assert_eq!(soon(reader.next(100)).await.unwrap().unwrap(), b"still here".as_slice());
    other.reset(CloseCode::new(8));
    assert_eq!(soon(reader.next(100)).await, Err(StreamError::Reset { code: CloseCode::new(8) }));
}

/// A peer that writes bytes of its choice on a stream, and our end of the connection.
async fn raw_peer(cluster: &Cluster, server: &Endpoint) -> (quinn::Connection, Connection) {
    let valid = cluster.forge_names(&[uri("polyarch://c/node/2")]);
    let client = raw_client(raw_client_config(Some(&valid), PEER_1));
    let connection = soon(client.connect(server.local_address().unwrap(), "x").unwrap()).await.unwrap();
    (connection, soon(server.accept()).await.unwrap())
}

#[tokio::test]
async fn a_stream_that_ends_inside_a_frame_is_not_a_clean_end() {
    let cluster = Cluster::new("c");
    let server = cluster.serve(1);
    let (peer, accepted) = raw_peer(&cluster, &server).await;
    for (bytes, have) in [(&b"\x01"[..], 1), (b"\x03\0\0\0ab", 6), (b"\0\0\0\0\x01\0\0\0", 4)] {
        let mut stream = soon(peer.open_uni()).await.unwrap();
        soon(stream.write_all(bytes)).await.unwrap();
        stream.finish().unwrap();
        let mut reader = soon(accepted.accept_uni()).await.unwrap();
        let mut end = soon(reader.next(100)).await;
        if end.as_ref().is_ok_and(Option::is_some) {
            end = soon(reader.next(100)).await;
        }
        let truncated = Err(StreamError::Frame(FrameError::Truncated { have }));
        assert_eq!(end, truncated);
        assert_eq!(soon(reader.next(100)).await, truncated, "it does not become a clean end later");
    }
}

#[tokio::test]
async fn a_reader_that_is_cancelled_at_every_byte_loses_none() {
    let cluster = Cluster::new("c");
    let server = cluster.serve(1);
    let (peer, accepted) = raw_peer(&cluster, &server).await;
    let mut stream = soon(peer.open_uni()).await.unwrap();
    let bytes = b"\x02\0\0\0ab\0\0\0\0\x05\0\0\0hello";
    soon(stream.write_all(&bytes[..1])).await.unwrap();
    let mut reader = soon(accepted.accept_uni()).await.unwrap();

    let (mut frames, mut cancelled) = (Vec::new(), 0);
    for byte in &bytes[1..] {
        // Polled at least once, and dropped wherever it stands.
        tokio::select! {
            biased;
            frame = reader.next(100) => frames.push(frame.unwrap().unwrap().to_vec()),
            () = tokio::time::sleep(Duration::from_millis(2)) => cancelled += 1,
        }
        soon(stream.write_all(&[*byte])).await.unwrap();
    }
    stream.finish().unwrap();
    while let Some(frame) = soon(reader.next(100)).await.unwrap() {
        frames.push(frame.to_vec());
    }
    assert_eq!(frames, [b"ab".to_vec(), vec![], b"hello".to_vec()]);
    assert!(cancelled > 0);
}

#[tokio::test]
async fn a_flush_that_is_cancelled_again_and_again_repeats_and_loses_nothing() {
    let cluster = Cluster::new("c");
    let narrow =
        TransportConfig { stream_receive_window_bytes: 4096, send_window_bytes: 4096, ..TransportConfig::default() };
    let (one, two) = (cluster.serve_with(1, narrow.clone()), cluster.serve_with(2, narrow));
    let (dialled, accepted) = pair(&one, &two, Alpn::Peer).await;
    let count = 20_000u32;

    let reading = tokio::spawn(async move {
        let mut reader = accepted.accept_uni().await.unwrap();
        let mut expected = 0u32;
        while let Some(frame) = reader.next(100).await.unwrap() {
            assert_eq!(frame, expected.to_le_bytes().as_slice());
            expected += 1;
        }
        expected
    });
    let mut writer = dialled.open_uni().await.unwrap();
    let (mut cancelled, mut next) = (0, 0);
    soon(async {
        while next < count || writer.queued_bytes() > 0 {
            for _ in 0..500.min(count - next) {
                writer.queue(&next.to_le_bytes());
                next += 1;
            }
            tokio::select! {
                biased;
                done = writer.flush() => done.unwrap(),
                () = tokio::task::yield_now() => cancelled += 1,
            }
        }
        writer.finish().await.unwrap();
    })
    .await;
    assert_eq!(soon(reading).await.unwrap(), count);
    assert!(cancelled > 10, "only {cancelled} flushes were cancelled");
}

#[tokio::test]
async fn the_end_of_a_connection_says_who_ended_it_and_why() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let (dialled, accepted) = pair(&one, &two, Alpn::Peer).await;
    let mut writer = dialled.open_uni().await.unwrap();
    writer.queue(b"x");
    soon(writer.flush()).await.unwrap();
    let mut reader = soon(accepted.accept_uni()).await.unwrap();
    soon(reader.next(10)).await.unwrap();
    assert_eq!(dialled.close_reason(), None);

    dialled.close(CloseCode::new(42), "two servers\nwith one id");
    let reason = CloseReason::ByPeer { code: CloseCode::new(42), reason: "two servers\u{fffd}with one id".to_owned() };
    assert_eq!(soon(accepted.closed()).await, reason);
    assert_eq!(accepted.close_reason(), Some(reason.clone()));
    assert_eq!(soon(reader.next(10)).await, Err(StreamError::ConnectionLost(reason.clone())));
    assert_eq!(soon(accepted.accept_bi()).await.unwrap_err(), reason);
    assert_eq!(soon(dialled.closed()).await, CloseReason::Local);
    writer.queue(b"y");
    assert_eq!(soon(writer.flush()).await, Err(StreamError::ConnectionLost(CloseReason::Local)));
}

#[tokio::test]
async fn a_connection_that_is_simply_dropped_is_closed_for_no_reason() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let (dialled, accepted) = pair(&one, &two, Alpn::Peer).await;
    assert_eq!((one.stats().connections_open, two.stats().connections_open), (1, 1));
    drop(dialled);
    let reason = CloseReason::ByPeer { code: CloseCode::NONE, reason: String::new() };
    assert_eq!(soon(accepted.closed()).await, reason);
    drop(accepted);
    assert_eq!((one.stats().connections_open, two.stats().connections_open), (0, 0));
}

#[tokio::test]
async fn a_peer_that_falls_silent_times_out() {
    let cluster = Cluster::new("c");
    let config = TransportConfig { idle_timeout_ms: 1_500, keep_alive_interval_ms: 300, ..TransportConfig::default() };
    let (one, two) = (cluster.serve_with(1, config.clone()), cluster.serve_with(2, config));
    let wire = Wire::to(two.local_address().unwrap(), true).await;
    let connection = soon(one.connect(wire.address, Expect::Node(2), Alpn::Peer)).await.unwrap();
    // The signs of life hold it while nothing else is said.
    let waited = tokio::time::timeout(Duration::from_millis(2_500), connection.closed()).await;
    assert!(waited.is_err(), "{waited:?}");
    wire.cut_answers();
    assert_eq!(soon(connection.closed()).await, CloseReason::TimedOut);
}

#[tokio::test]
async fn callers_that_never_finish_their_handshake_hold_nobody_up() {
    let cluster = Cluster::new("c");
    let config = TransportConfig {
        pending_handshakes_max: 4,
        pending_handshakes_before_retry: 4,
        handshake_timeout_ms: 4_000,
        ..TransportConfig::default()
    };
    let server = cluster.serve_with(1, config);
    let address = server.local_address().unwrap();
    let peer = cluster.serve(2);

    let (mut wires, mut stuck) = (Vec::new(), Vec::new());
    let mut hang = async |pending: usize| {
        let wire = Wire::to(address, false).await;
        let client = raw_client(raw_client_config(None, PEER_1));
        stuck.push((client.connect(wire.address, "x").unwrap(), client));
        wires.push(wire);
        until(|| server.stats().handshakes_pending == pending).await;
    };
    for pending in 1..=3 {
        hang(pending).await;
    }
    let begun = Instant::now();
    pair(&peer, &server, Alpn::Peer).await;
    assert!(begun.elapsed() < Duration::from_millis(3_500), "it waited for the others");

    // One more, and there is no room; until they have had their time.
    hang(4).await;
    let refused = soon(peer.connect(address, Expect::Node(1), Alpn::Peer)).await;
    assert_eq!(refused.unwrap_err(), ConnectError::Busy { address });
    until(|| server.stats().timed_out >= 4).await;
    // Callers go on to knock; without the wires they do not reach anybody.
    drop((wires, stuck));
    until(|| server.stats().handshakes_pending == 0).await;
    pair(&peer, &server, Alpn::Peer).await;
    let stats = server.stats();
    assert!(stats.turned_away >= 1 && stats.retried >= 1, "{stats:?}");
}

#[tokio::test]
async fn an_address_is_proved_first_when_many_are_pending() {
    let cluster = Cluster::new("c");
    let config = TransportConfig { pending_handshakes_before_retry: 0, ..TransportConfig::default() };
    let (one, two) = (cluster.serve_with(1, config), cluster.serve(2));
    pair(&two, &one, Alpn::Peer).await;
    assert_eq!((one.stats().retried, one.stats().accepted), (1, 1));
}

#[tokio::test]
async fn noise_on_the_socket_disturbs_nobody() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let (dialled, accepted) = pair(&two, &one, Alpn::Peer).await;
    let socket = std::net::UdpSocket::bind(loopback()).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for round in 0..2_000usize {
        let noise: Vec<u8> = (0..round % 1400)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            })
            .collect();
        let _ = socket.send_to(&noise, one.local_address().unwrap());
    }
    let mut writer = dialled.open_uni().await.unwrap();
    writer.queue(b"still here");
    soon(writer.flush()).await.unwrap();
    let mut reader = soon(accepted.accept_uni()).await.unwrap();
    assert_eq!(soon(reader.next(100)).await.unwrap().unwrap(), b"still here".as_slice());
    pair(&two, &one, Alpn::Client).await;
}

#[tokio::test]
async fn one_connection_too_many_is_refused_by_either_side_until_there_is_room() {
    let cluster = Cluster::new("c");
    let small = TransportConfig { connections_max: 1, ..TransportConfig::default() };
    let (server, peer, other) = (cluster.serve_with(1, small.clone()), cluster.serve(2), cluster.serve_with(3, small));
    let address = server.local_address().unwrap();
    let (first, first_accepted) = pair(&peer, &server, Alpn::Peer).await;
    let refused = soon(other.connect(address, Expect::Node(1), Alpn::Peer)).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused { code: CloseCode::TOO_MANY_CONNECTIONS, .. }), "{refused}");
    drop((first, first_accepted));
    let _full = pair(&other, &server, Alpn::Peer).await;
    let refused = soon(other.connect(peer.local_address().unwrap(), Expect::AnyNode, Alpn::Peer)).await.unwrap_err();
    assert_eq!(refused, ConnectError::TooManyConnections { max: 1 });
}

#[tokio::test]
async fn nobody_at_an_address_is_a_time_out_in_bounded_time() {
    let cluster = Cluster::new("c");
    let config = TransportConfig { handshake_timeout_ms: 200, ..TransportConfig::default() };
    let dialler = cluster.serve_with(1, config);
    let silent = std::net::UdpSocket::bind(loopback()).unwrap();
    let address = silent.local_addr().unwrap();
    let error = soon(dialler.connect(address, Expect::AnyNode, Alpn::Peer)).await.unwrap_err();
    assert_eq!(error, ConnectError::TimedOut { address, after: Duration::from_millis(200) });
    let nowhere = "127.0.0.1:0".parse().unwrap();
    let error = soon(dialler.connect(nowhere, Expect::AnyNode, Alpn::Peer)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Address { .. }), "{error}");
    let v6 = "[::1]:7".parse().unwrap();
    let error = soon(dialler.connect(v6, Expect::AnyNode, Alpn::Peer)).await.unwrap_err();
    assert!(matches!(error, ConnectError::Address { .. }), "{error}");
}

#[tokio::test]
async fn a_closed_endpoint_tells_its_peers_and_accepts_and_dials_no_more() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let (dialled, _accepted) = pair(&one, &two, Alpn::Peer).await;
    let waiting = tokio::spawn({
        let two = two.clone();
        async move { two.accept().await.is_none() }
    });
    soon(two.close(CloseCode::new(7), "going down")).await;
    let reason = CloseReason::ByPeer { code: CloseCode::new(7), reason: "going down".to_owned() };
    assert_eq!(soon(dialled.closed()).await, reason);
    assert!(soon(waiting).await.unwrap());
    assert!(soon(two.accept()).await.is_none());
    let error = soon(two.connect(one.local_address().unwrap(), Expect::Node(1), Alpn::Peer)).await.unwrap_err();
    assert_eq!(error, ConnectError::EndpointClosed);
}

#[tokio::test]
async fn a_dropped_endpoint_gives_its_port_back_and_its_connections_live_on() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let address = two.local_address().unwrap();
    let (dialled, accepted) = pair(&one, &two, Alpn::Peer).await;
    drop(two);
    let mut writer = accepted.open_uni().await.unwrap();
    writer.queue(b"still here");
    soon(writer.flush()).await.unwrap();
    let mut reader = soon(dialled.accept_uni()).await.unwrap();
    assert_eq!(soon(reader.next(100)).await.unwrap().unwrap(), b"still here".as_slice());
    drop((writer, reader, dialled, accepted));
    soon(async {
        while Endpoint::bind(cluster.node(2), address, TransportConfig::default()).is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_client_reaches_nodes_on_both_address_families() {
    let cluster = Cluster::new("c");
    let client = Endpoint::client(cluster.client("ada"), TransportConfig::default()).unwrap();
    assert!(client.accept().await.is_none(), "it only dials");
    pair(&client, &cluster.serve(1), Alpn::Client).await;
    match Endpoint::bind(cluster.node(2), "[::1]:0".parse().unwrap(), TransportConfig::default()) {
        Ok(server) => drop(pair(&client, &server, Alpn::Client).await),
        Err(error) => eprintln!("IPv6 is not there and not tested: {error}"),
    }
    let sockets = client.stats();
    assert!(sockets.socket_receive_buffer_bytes > 0 && sockets.socket_send_buffer_bytes > 0);
}

#[test]
fn an_endpoint_outside_of_a_runtime_or_with_nonsense_settings_is_an_error() {
    let cluster = Cluster::new("c");
    let refused = Endpoint::bind(cluster.node(1), loopback(), TransportConfig::default());
    assert!(matches!(refused, Err(BindError::NoRuntime)), "{refused:?}");
    let config = TransportConfig { connections_max: 0, ..TransportConfig::default() };
    let refused = Endpoint::client(cluster.client("ada"), config);
    assert!(matches!(refused, Err(BindError::Config(_))), "{refused:?}");
}
