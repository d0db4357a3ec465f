//! What a session has seen travels with every request; scans go page by page.

mod support;

use std::time::Duration;

use bytes::Bytes;
use polyarch_client::{Client, Error, KeyspaceKind, Refusal, Supersede};
use polyarch_protocol::client::{Request, Response};
use tokio::time::Instant;

use support::{Cluster, dot, in_time, record, seen, token, view, written};

fn behind() -> Result<Response, Refusal> {
    Err(Refusal::Behind { missing: dot(1, 5).to_string() })
}

fn session_of(client: &Client, dots: &[polyarch_client::Dot]) -> polyarch_client::Session {
    client.resume(&token(dots)).unwrap()
}

#[tokio::test]
async fn every_request_carries_what_the_answers_before_it_imply() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let calls = async {
        let session = client.session();
        session.put("k", "a", "v").await.unwrap();
        session.get("k", "a").await.unwrap();
        session.with_timeout(Duration::from_secs(9)).create_keyspace("n", KeyspaceKind::Mv).await.unwrap();
        session.batch().put("k", "b", "v").delete("k", "c").commit().await.unwrap();
        assert_eq!(seen(&session.token()), [dot(1, 9)], "a write depends on all that was seen before it");
        client.get("k", "outside").await.unwrap();
        // Another process goes on from the token's bytes.
        client.resume(&session.token()).unwrap().get("k", "a").await.unwrap();
    };
    let node = async {
        let mut stream = cluster.nodes[0].accept().await;
        let mut carried = Vec::new();
        let answers = [
            written(dot(1, 4)),
            record(&["v"], &[dot(1, 4), dot(2, 3)]),
            written(dot(3, 1)),
            written(dot(1, 9)),
            record(&["v"], &[dot(9, 9)]),
            record(&["v"], &[dot(1, 9)]),
        ];
        for answer in answers {
            let request = stream.next().await;
            carried.push(request.token.as_ref().map(|token| seen(token)));
            assert_eq!(request.token.is_none(), request.wait_ms == 0);
            stream.answer(&request, answer).await;
        }
        let expected = [
            None,
            Some(vec![dot(1, 4)]),
            Some(vec![dot(1, 4), dot(2, 3)]),
            Some(vec![dot(3, 1)]),
            None,
            Some(vec![dot(1, 9)]),
        ];
        assert_eq!(carried, expected);
    };
    in_time(async { tokio::join!(calls, node) }).await;
}

#[tokio::test]
async fn a_session_ahead_of_a_node_is_taken_to_another_while_other_calls_stay() {
    let cluster = Cluster::of(2);
    let client = cluster.client();
    let session = session_of(&client, &[dot(1, 5)]);
    let call = tokio::spawn(async move { session.get("k", "a").await });
    let mut first = cluster.nodes[0].accept().await;
    let request = first.next().await;
    assert!((1..=10_000).contains(&request.wait_ms), "half of the time for each: {}", request.wait_ms);
    first.answer(&request, behind()).await;
    let mut second = cluster.nodes[1].accept().await;
    let request = second.next().await;
    assert!(request.wait_ms > 10_000, "the last has all that is left: {}", request.wait_ms);
    second.answer(&request, record(&["v"], &[dot(1, 5)])).await;
    assert_eq!(in_time(call).await.unwrap().unwrap().unwrap().value().unwrap(), "v");

    let call = tokio::spawn(async move { client.get("k", "b").await });
    let request = first.next().await;
    first.answer(&request, record(&["v"], &[])).await;
    in_time(call).await.unwrap().unwrap();
}

#[tokio::test]
async fn when_every_node_is_behind_the_session_that_is_told() {
    let cluster = Cluster::of(3);
    let session = session_of(&cluster.client(), &[dot(1, 5)]);
    let began = Instant::now();
    let call = tokio::spawn(async move { session.put("k", "a", "v").await });
    for node in &cluster.nodes {
        let mut stream = node.accept().await;
        let request = stream.next().await;
        stream.answer(&request, behind()).await;
    }
    let error = in_time(call).await.unwrap().unwrap_err();
    assert!(matches!(error.refusal(), Some(Refusal::Behind { .. })), "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "not only at the deadline");
}

#[tokio::test]
async fn bytes_that_are_no_token_are_refused_on_both_sides() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    assert!(client.resume(b"").is_err());
    assert!(client.session().join(b"no token").is_err());
    let call = tokio::spawn(async move { client.session().get("k", "a").await });
    let mut stream = cluster.nodes[0].accept().await;
    let request = stream.next().await;
    let token = Bytes::from_static(b"no token");
    stream.answer(&request, Ok(Response::Record { record: view(&["v"]), token })).await;
    let error = in_time(call).await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Protocol { cause, .. } if cause.contains("token")), "{error}");
    assert!(stream.ends().await);
}

#[tokio::test]
async fn a_record_gives_its_values_and_what_a_write_in_view_of_it_replaces() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let calls = async {
        let record = client.get("k", "a").await.unwrap().unwrap();
        assert!(record.is_conflict());
        assert_eq!(record.value(), None);
        assert_eq!(record.values().collect::<Vec<_>>(), ["x", "y"]);
        client.put_with("k", "a", "xy", record.shown()).await.unwrap();
        client.delete_with("k", "a", Supersede::Nothing).await.unwrap();
    };
    let node = async {
        let mut stream = cluster.nodes[0].accept().await;
        let request = stream.next().await;
        stream.answer(&request, record(&["x", "y"], &[])).await;
        let context = view(&["x", "y"]).context.unwrap();
        for (put, supersede) in [(Some("xy".into()), Supersede::Shown(context)), (None, Supersede::Nothing)] {
            let request = stream.next().await;
            let Request::Write(write) = &request.request else { panic!("{request:?}") };
            assert_eq!((&write.changes[0].put, &write.changes[0].supersede), (&put, &supersede));
            stream.answer(&request, written(dot(1, 3))).await;
        }
    };
    in_time(async { tokio::join!(calls, node) }).await;
}

fn page(keys: &[&str], next: Option<&str>) -> Result<Response, Refusal> {
    Ok(Response::Page {
        records: keys.iter().map(|key| (Bytes::copy_from_slice(key.as_bytes()), view(&[key]))).collect(),
        next: next.map(|next| Bytes::copy_from_slice(next.as_bytes())),
        token: token(&[]),
    })
}

#[tokio::test]
async fn a_scan_goes_on_where_the_last_page_ended_and_survives_a_refused_page() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let calls = async {
        let mut scan = client.scan("k", "a").page_records(2).after("a0");
        assert_eq!(scan.next().await.unwrap().unwrap().0, "a1");
        // What `next` has left of its page.
        let rest = scan.next_page().await.unwrap().unwrap();
        assert_eq!((rest.records[0].0.as_ref(), rest.next.as_deref()), (&b"a2"[..], Some(&b"a2"[..])));
        assert!(scan.next_page().await.unwrap_err().is_refusal());
        assert!(scan.next_page().await.unwrap().unwrap().records.is_empty(), "an empty page is not the end");
        assert_eq!(scan.next().await.unwrap().unwrap().0, "a4");
        assert!(scan.next().await.unwrap().is_none());
        assert!(scan.next_page().await.unwrap().is_none());
    };
    let node = async {
        let mut stream = cluster.nodes[0].accept().await;
        let script = [
            ("a0", page(&["a1", "a2"], Some("a2"))),
            ("a2", Err(Refusal::Unreadable("x".to_owned()))),
            ("a2", page(&[], Some("a3"))),
            ("a3", page(&["a4"], None)),
        ];
        for (after, answer) in script {
            let request = stream.next().await;
            let Request::Scan(scan) = &request.request else { panic!("{request:?}") };
            assert_eq!(
                (scan.prefix.as_ref(), scan.after.as_deref(), scan.limit),
                (&b"a"[..], Some(after.as_bytes()), 2)
            );
            stream.answer(&request, answer).await;
        }
    };
    in_time(async { tokio::join!(calls, node) }).await;
}

#[tokio::test]
async fn a_scan_that_does_not_move_on_is_an_error_and_not_a_loop() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let call = tokio::spawn(async move { client.scan("k", "").after("b").next_page().await });
    let mut stream = cluster.nodes[0].accept().await;
    let request = stream.next().await;
    stream.answer(&request, page(&["b"], Some("b"))).await;
    let error = in_time(call).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}
