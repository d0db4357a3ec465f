//! Who gets in, and who does not: every refusal over a real loopback connection.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use polyarch_transport::{
    Alpn, BindError, CertificateNameError, CloseCode, ConnectError, Endpoint, Expect, PeerRefusal, TransportConfig,
};
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use support::{
    CLIENT_1, Cluster, PEER_1, RawIdentity, alert, dns, loopback, pair, raw_client, raw_client_config,
    raw_connect_error, raw_server, soon, uri,
};

const ACCESS_DENIED: u64 = 49;
const BOTH: [ExtendedKeyUsagePurpose; 2] = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];

#[tokio::test]
async fn nodes_and_clients_are_known_by_their_certificates_on_both_services() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let ada = Endpoint::client(cluster.client("ada"), TransportConfig::default()).unwrap();
    for (from, alpn, who) in [
        (&one, Alpn::Peer, "polyarch://c/node/1"),
        (&one, Alpn::Client, "polyarch://c/node/1"),
        (&ada, Alpn::Client, "polyarch://c/client/ada"),
    ] {
        let (dialled, accepted) = pair(from, &two, alpn).await;
        assert_eq!((dialled.alpn(), accepted.alpn()), (alpn, alpn));
        assert_eq!(dialled.identity().to_string(), "polyarch://c/node/2");
        assert_eq!(accepted.identity().to_string(), who);
        assert_eq!(dialled.remote_address(), two.local_address().unwrap());
    }
    assert_eq!(two.stats().accepted, 3);
    assert_eq!(one.stats().connected, 2);
}

#[tokio::test]
async fn a_caller_without_certificate_is_refused_and_the_next_one_is_served() {
    let cluster = Cluster::new("c");
    let server = cluster.serve(1);
    for name in [PEER_1, CLIENT_1] {
        let error = raw_connect_error(&server, None, name).await;
        assert_eq!(alert(&error), 116, "{error}");
    }
    pair(&cluster.serve(2), &server, Alpn::Peer).await;
    assert_eq!((server.stats().refused, server.stats().accepted), (2, 1));
}

#[tokio::test]
async fn another_authority_of_the_same_cluster_name_is_refused_by_both_sides() {
    let (ours, theirs) = (Cluster::new("c"), Cluster::new("c"));
    let server = ours.serve(1);
    let stranger = theirs.serve(2);
    let refused = soon(stranger.connect(server.local_address().unwrap(), Expect::Node(1), Alpn::Peer)).await;
    assert!(matches!(refused, Err(ConnectError::Peer { refusal: PeerRefusal::OtherAuthority, .. })), "{refused:?}");
    let forged = theirs.forge_names(&[uri("polyarch://c/node/2")]);
    let error = raw_connect_error(&server, Some(&forged), PEER_1).await;
    assert!([48, 51].contains(&alert(&error)), "{error}");
    assert_eq!(server.stats().accepted, 0);
}

/// Certificates that our own authority signed and that must count for nothing.
fn wrong_names() -> Vec<(Vec<SanType>, PeerRefusal)> {
    use CertificateNameError as E;
    let ours = || uri("polyarch://c/node/2");
    let shape = |text: &str| E::Uri(text.parse::<polyarch_transport::Identity>().unwrap_err());
    vec![
        (vec![], E::NoName.into()),
        (vec![dns("node-2")], E::NotAUri.into()),
        (vec![SanType::IpAddress("127.0.0.1".parse().unwrap())], E::NotAUri.into()),
        (vec![SanType::Rfc822Name("a@b".try_into().unwrap())], E::NotAUri.into()),
        (vec![ours(), ours()], E::SeveralNames { names: 2 }.into()),
        (vec![ours(), uri("polyarch://c/node/3")], E::SeveralNames { names: 2 }.into()),
        (vec![ours(), dns("node-2")], E::SeveralNames { names: 2 }.into()),
        (vec![dns("node-2"), ours()], E::SeveralNames { names: 2 }.into()),
        (vec![uri("polyarch://c/ca")], E::IsAuthority.into()),
        (vec![uri("spiffe://c/node/2")], shape("spiffe://c/node/2").into()),
        (vec![uri("polyarch://c/node/02")], shape("polyarch://c/node/02").into()),
        (
            vec![uri("polyarch://d/node/2")],
            PeerRefusal::OtherCluster { ours: "c".parse().unwrap(), theirs: "d".parse().unwrap() },
        ),
    ]
}

#[tokio::test]
async fn a_server_refuses_callers_whose_certificate_has_the_wrong_names() {
    let cluster = Cluster::new("c");
    let server = cluster.serve(1);
    for (names, _) in wrong_names() {
        let error = raw_connect_error(&server, Some(&cluster.forge_names(&names)), CLIENT_1).await;
        assert_eq!(alert(&error), ACCESS_DENIED, "{names:?}: {error}");
    }
    assert_eq!(server.stats().accepted, 0);
}

#[tokio::test]
async fn a_dialler_refuses_servers_whose_certificate_has_the_wrong_names() {
    let cluster = Cluster::new("c");
    let dialler = cluster.serve(1);
    for (names, expected) in wrong_names() {
        let refused = dial_raw_server(&dialler, &cluster.forge_names(&names), PEER_1).await;
        match refused {
            ConnectError::Peer { refusal, .. } => assert_eq!(refusal, expected, "{names:?}"),
            other => panic!("{names:?}: {other}"),
        }
    }
}

async fn dial_raw_server(dialler: &Endpoint, identity: &RawIdentity, alpn: &str) -> ConnectError {
    let (server, anyone) = raw_server(identity, alpn);
    let address = server.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        if let Some(incoming) = server.accept().await {
            let _ = incoming.await;
        }
    });
    let error = soon(dialler.connect(address, Expect::AnyNode, Alpn::Peer)).await.unwrap_err();
    accepting.abort();
    assert_eq!(anyone.asked.load(Ordering::SeqCst), 0, "the dialler showed its certificate first");
    error
}

#[tokio::test]
async fn a_client_certificate_is_never_a_peer() {
    let cluster = Cluster::new("c");
    let server = cluster.serve(1);
    // Neither of its own accord,
    let ada = Endpoint::client(cluster.client("ada"), TransportConfig::default()).unwrap();
    let refused = soon(ada.connect(server.local_address().unwrap(), Expect::AnyNode, Alpn::Peer)).await;
    assert!(matches!(refused, Err(ConnectError::NotANode { .. })), "{refused:?}");
    // nor if it does not care,
    let client = cluster.forge(&[uri("polyarch://c/client/ada")], &[ExtendedKeyUsagePurpose::ClientAuth], 0);
    let error = raw_connect_error(&server, Some(&client), PEER_1).await;
    match &error {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(u64::from(close.error_code), CloseCode::NOT_A_NODE.as_u64());
        }
        _ => panic!("{error}"),
    }
    // nor as a server.
    let refused = dial_raw_server(&cluster.serve(2), &client, PEER_1).await;
    assert!(matches!(&refused, ConnectError::Peer { refusal: PeerRefusal::WrongPurpose, .. }), "{refused}");
    let refused = Endpoint::bind(cluster.client("ada"), loopback(), TransportConfig::default());
    assert!(matches!(refused, Err(BindError::NotANode { .. })), "{refused:?}");
    assert_eq!(server.stats().accepted, 0);
}

#[tokio::test]
async fn a_client_that_serves_with_a_nodes_rights_is_still_no_node() {
    let cluster = Cluster::new("c");
    let odd = cluster.forge(&[uri("polyarch://c/client/ada")], &BOTH, 0);
    let refused = dial_raw_server(&cluster.serve(1), &odd, PEER_1).await;
    assert!(matches!(&refused, ConnectError::Peer { refusal: PeerRefusal::NotANode { .. }, .. }), "{refused}");
}

#[tokio::test]
async fn a_dialler_that_expects_another_node_names_both() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    let address = two.local_address().unwrap();
    let refused = soon(one.connect(address, Expect::Node(3), Alpn::Peer)).await.unwrap_err();
    let expected = PeerRefusal::WrongServerId { expected: 3, found: 2 };
    assert_eq!(refused, ConnectError::Peer { address, refusal: expected });
    assert!(soon(one.connect(address, Expect::Node(2), Alpn::Peer)).await.is_ok());
}

#[tokio::test]
async fn certificates_out_of_their_time_are_refused_by_both_sides() {
    let cluster = Cluster::new("c");
    let server = cluster.serve(1);
    for (age_days, expected) in [(3, PeerRefusal::Expired), (-3, PeerRefusal::NotYetValid)] {
        let forged = cluster.forge(&[uri("polyarch://c/node/2")], &BOTH, age_days);
        let error = raw_connect_error(&server, Some(&forged), PEER_1).await;
        assert_eq!(alert(&error), 45, "{error}");
        match dial_raw_server(&server, &forged, PEER_1).await {
            ConnectError::Peer { refusal, .. } => assert_eq!(refusal, expected),
            other => panic!("{other}"),
        }
    }
}

#[tokio::test]
async fn a_service_of_another_version_is_refused_by_both_sides() {
    let cluster = Cluster::new("c");
    let server = cluster.serve(1);
    let valid = cluster.forge_names(&[uri("polyarch://c/node/2")]);
    let error = raw_connect_error(&server, Some(&valid), "polyarch-peer/3").await;
    assert_eq!(alert(&error), 120, "{error}");
    let refused = dial_raw_server(&server, &valid, "polyarch-peer/3").await;
    assert!(matches!(&refused, ConnectError::Alpn { alpn: Alpn::Peer, .. }), "{refused}");
    assert!(refused.to_string().ends_with("does not speak polyarch-peer/2 or polyarch-peer/1"), "{refused}");
}

#[tokio::test]
async fn the_newest_version_that_both_sides_know_is_agreed() {
    let cluster = Cluster::new("c");
    let (one, two) = (cluster.serve(1), cluster.serve(2));
    for (alpn, newest) in [(Alpn::Peer, 2), (Alpn::Client, 1)] {
        let (dialled, accepted) = pair(&one, &two, alpn).await;
        assert_eq!((dialled.version(), accepted.version()), (newest, newest));
        assert_eq!(alpn.versions().next(), Some(newest));
    }
    let older = cluster.forge_names(&[uri("polyarch://c/node/3")]);

    let dialler = raw_client(raw_client_config(Some(&older), PEER_1));
    let dialled = dialler.connect(one.local_address().unwrap(), "whoever").unwrap();
    let accepted = soon(one.accept()).await.unwrap();
    assert_eq!((accepted.alpn(), accepted.version()), (Alpn::Peer, 1));
    drop(soon(dialled).await.unwrap());

    let (server, _) = raw_server(&older, PEER_1);
    let address = server.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let mut admits = connection.open_uni().await.unwrap();
        admits.write_all(b"\x01").await.unwrap();
        admits.finish().unwrap();
        connection.closed().await
    });
    let dialled = soon(one.connect(address, Expect::Node(3), Alpn::Peer)).await.unwrap();
    assert_eq!(dialled.version(), 1);
    drop(dialled);
    soon(serving).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_shakes_hands_and_does_not_admit_is_no_peer() {
    let cluster = Cluster::new("c");
    let valid = cluster.forge_names(&[uri("polyarch://c/node/2")]);
    for says in [&b"\x02"[..], b"", b"\x01\x01"] {
        let (server, _) = raw_server(&valid, PEER_1);
        let address = server.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            let connection = server.accept().await.unwrap().await.unwrap();
            let mut stream = connection.open_uni().await.unwrap();
            stream.write_all(says).await.unwrap();
            stream.finish().unwrap();
            connection.closed().await
        });
        let refused = soon(cluster.serve(1).connect(address, Expect::Node(2), Alpn::Peer)).await;
        assert!(matches!(refused, Err(ConnectError::NoAdmission)), "{refused:?}");
        soon(serving).await.unwrap();
    }
}

#[tokio::test]
async fn no_ticket_is_given_and_the_second_handshake_is_a_full_one() {
    let cluster = Cluster::new("c");
    let server = cluster.serve(1);
    let tickets = Arc::new(Tickets::default());
    let valid = cluster.forge_names(&[uri("polyarch://c/node/2")]);
    let mut config = raw_client_config(Some(&valid), PEER_1);
    config.resumption = rustls::client::Resumption::store(Arc::clone(&tickets) as _);
    config.enable_early_data = true;
    let client = raw_client(config);
    for _ in 0..2 {
        let connecting = client.connect(server.local_address().unwrap(), "whoever").unwrap();
        let connecting = connecting.into_0rtt().map(|_| ()).expect_err("early data was possible");
        let connection = soon(connecting).await.unwrap();
        // A ticket would come before or with the admission, and everything on the way has come by its end.
        let mut admission = soon(connection.accept_uni()).await.unwrap();
        assert_eq!(soon(admission.read_to_end(8)).await.unwrap(), [1]);
        soon(server.accept()).await.unwrap().close(CloseCode::NONE, "");
        soon(connection.closed()).await;
    }
    assert_eq!(tickets.given.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_dialler_never_resumes_even_where_tickets_are_given() {
    let cluster = Cluster::new("c");
    let (server, anyone) = raw_server(&cluster.forge_names(&[uri("polyarch://c/node/2")]), PEER_1);
    let address = server.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            let connection = incoming.await.unwrap();
            let mut stream = connection.open_uni().await.unwrap();
            stream.write_all(&[1]).await.unwrap();
            stream.finish().unwrap();
            connection.closed().await;
        }
    });
    let dialler = cluster.serve(1);
    for full_handshakes in 1..=3 {
        let connection = soon(dialler.connect(address, Expect::Node(2), Alpn::Peer)).await.unwrap();
        assert_eq!(anyone.asked.load(Ordering::SeqCst), full_handshakes);
        connection.close(CloseCode::NONE, "");
    }
    // The server can be resumed: whoever wants to does so, and is not asked for a certificate again.
    let valid = cluster.forge_names(&[uri("polyarch://c/node/3")]);
    let client = raw_client(raw_client_config(Some(&valid), PEER_1));
    for _ in 0..3 {
        let connection = soon(client.connect(address, "whoever").unwrap()).await.unwrap();
        soon(soon(connection.accept_uni()).await.unwrap().read_to_end(8)).await.unwrap();
        connection.close(0u32.into(), b"");
    }
    assert_eq!(anyone.asked.load(Ordering::SeqCst), 3 + 1);
    serving.abort();
}

/// A store that counts the tickets it is given.
#[derive(Debug, Default)]
struct Tickets {
    given: AtomicUsize,
}

impl rustls::client::ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: rustls::pki_types::ServerName<'static>, _: rustls::NamedGroup) {}

    fn kx_hint(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: rustls::pki_types::ServerName<'static>, _: rustls::client::Tls12ClientSessionValue) {
    }

    fn tls12_session(&self, _: &rustls::pki_types::ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &rustls::pki_types::ServerName<'static>) {}

    fn insert_tls13_ticket(
        &self,
        _: rustls::pki_types::ServerName<'static>,
        _: rustls::client::Tls13ClientSessionValue,
    ) {
        self.given.fetch_add(1, Ordering::SeqCst);
    }

    fn take_tls13_ticket(
        &self,
        _: &rustls::pki_types::ServerName<'static>,
    ) -> Option<rustls::client::Tls13ClientSessionValue> {
        None
    }
}
