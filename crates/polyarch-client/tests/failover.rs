//! From node to node: what is asked again, what never is, and what the caller is told.

mod support;

use std::time::Duration;

use polyarch_client::{Client, Error, MemberStatus, NodeAddress, Obstacle, Refusal};
use polyarch_transport::certs::{self, CertificateOptions};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use support::{Cluster, dot, in_time, key_of, record, written};

fn put(client: &Client, key: &'static str) -> JoinHandle<Result<polyarch_client::Written, Error>> {
    let client = client.clone();
    tokio::spawn(async move { client.put("k", key, "v").await })
}

fn get(client: &Client, key: &'static str) -> JoinHandle<Result<Option<polyarch_client::Record>, Error>> {
    let client = client.clone();
    tokio::spawn(async move { client.get("k", key).await })
}

/// A socket that takes packets and never answers: what a node that is down looks like.
async fn silent_node() -> (UdpSocket, NodeAddress) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().into();
    (socket, address)
}

#[tokio::test]
async fn a_silent_node_is_passed_over_for_one_that_answers_and_left_for_good() {
    let cluster = Cluster::of(1);
    let (_socket, silent) = silent_node().await;
    let profile = cluster.profile(vec![silent, cluster.nodes[0].address()]);
    let client = Client::builder(profile).prefer(0).connect().unwrap();
    let first = put(&client, "a");
    let mut stream = cluster.nodes[0].accept().await;
    let request = stream.next().await;
    stream.answer(&request, written(dot(1, 1))).await;
    in_time(first).await.unwrap().unwrap();
    let second = put(&client, "b");
    let request = stream.next().await;
    stream.answer(&request, written(dot(1, 2))).await;
    in_time(second).await.unwrap().unwrap();
}

#[tokio::test]
async fn no_node_at_all_is_unreachable_at_the_deadline_and_each_is_named() {
    let cluster = Cluster::of(0);
    let (_socket, silent) = silent_node().await;
    let unknown: NodeAddress = "no-such-host.invalid:7401".parse().unwrap();
    let profile = cluster.profile(vec![silent.clone(), unknown.clone()]);
    let client = Client::connect(profile.with_timeout(Duration::from_millis(700))).unwrap();
    let error = in_time(client.put("k", "a", "v")).await.unwrap_err();
    let Error::Unreachable { tried } = &error else { panic!("{error}") };
    assert_eq!(tried.iter().map(|tried| &tried.node).collect::<Vec<_>>(), [&silent, &unknown]);
    assert!(tried[0].reason.contains("did not answer"), "{error}");
    assert!(error.is_unreachable() && !error.is_outcome_unknown());
}

#[tokio::test]
async fn a_node_of_another_authority_is_an_error_at_once_not_at_the_deadline() {
    let (ours, theirs) = (Cluster::of(0), Cluster::of(1));
    let client = Client::connect(ours.profile(theirs.addresses()).with_timeout(Duration::from_secs(3600))).unwrap();
    let error = in_time(client.get("k", "a")).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { tried } if tried[0].reason.contains("authority")), "{error}");
    assert_eq!(error.obstacle(), Some(Obstacle::NotTrusted));
}

#[tokio::test]
async fn a_write_that_a_node_refused_without_effect_goes_to_the_next() {
    let twin = Refusal::Twin { addresses: vec!["a:1".to_owned(), "b:1".to_owned()] };
    let full = Refusal::DiskFull { reason: "no space".to_owned() };
    for refusal in [Refusal::Stopping, Refusal::NotJoined, Refusal::MemberIs(MemberStatus::Draining), twin, full] {
        let cluster = Cluster::of(2);
        let call = put(&cluster.client(), "a");
        let mut first = cluster.nodes[0].accept().await;
        let request = first.next().await;
        first.answer(&request, Err(refusal)).await;
        let mut second = cluster.nodes[1].accept().await;
        let request = second.next().await;
        second.answer(&request, written(dot(2, 1))).await;
        assert_eq!(in_time(call).await.unwrap().unwrap().dot, Some(dot(2, 1)));
    }
}

#[tokio::test]
async fn when_every_node_refuses_the_last_refusal_is_told_at_the_deadline() {
    let cluster = Cluster::of(1);
    let client = cluster.client().with_timeout(Duration::from_millis(500));
    let call = put(&client, "a");
    let mut stream = cluster.nodes[0].accept().await;
    let mut asked = 0;
    let node = async {
        loop {
            let request = stream.next().await;
            asked += 1;
            stream.answer(&request, Err(Refusal::NotJoined)).await;
        }
    };
    let outcome = in_time(async {
        tokio::select! { () = node => unreachable!(), outcome = call => outcome.unwrap() }
    })
    .await;
    assert!(matches!(outcome, Err(Error::Refused(Refusal::NotJoined))), "{outcome:?}");
    assert!((2..50).contains(&asked), "it pauses between: asked {asked} times");
}

#[tokio::test]
async fn a_member_that_takes_no_writes_is_the_answer_once_all_others_were_asked() {
    let cluster = Cluster::of(2);
    let call = put(&cluster.client().with_timeout(Duration::from_secs(3600)), "a");
    for node in &cluster.nodes {
        let mut stream = node.accept().await;
        let request = stream.next().await;
        stream.answer(&request, Err(Refusal::MemberIs(MemberStatus::Down))).await;
    }
    let outcome = in_time(call).await.unwrap();
    assert!(matches!(outcome, Err(Error::Refused(Refusal::MemberIs(MemberStatus::Down)))), "{outcome:?}");
}

#[tokio::test]
async fn any_other_refusal_is_the_answer() {
    let cluster = Cluster::of(2);
    let call = put(&cluster.client(), "a");
    let mut stream = cluster.nodes[0].accept().await;
    let request = stream.next().await;
    stream.answer(&request, Err(Refusal::KeyEmpty)).await;
    let error = in_time(call).await.unwrap().unwrap_err();
    assert!(error.is_refusal() && !error.is_unreachable());
    assert_eq!(error.refusal(), Some(&Refusal::KeyEmpty));
}

#[tokio::test]
async fn a_write_whose_answer_is_lost_is_not_sent_again_and_the_error_says_what_to_do() {
    let cluster = Cluster::of(2);
    let client = cluster.client();
    let call = put(&client, "lost");
    let mut stream = cluster.nodes[0].accept().await;
    assert_eq!(key_of(&stream.next().await), "lost");
    stream.crash();
    let error = in_time(call).await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::OutcomeUnknown { node, .. } if *node == cluster.nodes[0].address()), "{error}");
    assert!(error.is_outcome_unknown() && error.is_unreachable());
    assert!(error.to_string().contains("write again with the context"), "{error}");

    // The next call goes to the other node, and it is the first thing that node hears.
    let call = put(&client, "next");
    let mut stream = cluster.nodes[1].accept().await;
    let request = stream.next().await;
    assert_eq!(key_of(&request), "next");
    stream.answer(&request, written(dot(2, 1))).await;
    in_time(call).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_read_whose_answer_is_lost_is_asked_at_the_next_node() {
    let cluster = Cluster::of(2);
    let call = get(&cluster.client(), "a");
    let mut stream = cluster.nodes[0].accept().await;
    stream.next().await;
    stream.crash();
    let mut stream = cluster.nodes[1].accept().await;
    let request = stream.next().await;
    stream.answer(&request, record(&["v"], &[])).await;
    assert_eq!(in_time(call).await.unwrap().unwrap().unwrap().value().unwrap(), "v");
}

#[tokio::test]
async fn what_was_answered_before_a_crash_counts() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let (first, second) = (put(&client, "a"), put(&client, "b"));
    let mut stream = cluster.nodes[0].accept().await;
    let requests = [stream.next().await, stream.next().await];
    stream.answer(&requests[0], written(dot(1, 1))).await;
    let (answered, lost) = if key_of(&requests[0]) == "a" { (first, second) } else { (second, first) };
    in_time(answered).await.unwrap().unwrap();
    stream.crash();
    assert!(in_time(lost).await.unwrap().unwrap_err().is_outcome_unknown());
}

#[tokio::test]
async fn a_read_without_an_answer_times_out_and_a_write_is_unknown() {
    let cluster = Cluster::of(1);
    let client = cluster.client().with_timeout(Duration::from_millis(300));
    let (read, write) = (get(&client, "a"), put(&client, "b"));
    let mut stream = cluster.nodes[0].accept().await;
    let (a, b) = (stream.next().await, stream.next().await);
    let (read, write) = in_time(async { (read.await.unwrap().unwrap_err(), write.await.unwrap().unwrap_err()) }).await;
    assert!(matches!(read, Error::TimedOut { after, .. } if after == Duration::from_millis(300)), "{read}");
    assert!(matches!(&write, Error::OutcomeUnknown { cause, .. } if cause.contains("300ms")), "{write}");

    // Late answers are read and dropped: the stream stays in step.
    for late in [a, b] {
        let result = if key_of(&late) == "a" { record(&["late"], &[]) } else { written(dot(1, 1)) };
        stream.answer(&late, result).await;
    }
    let call = get(&client.with_timeout(Duration::from_secs(10)), "c");
    let request = stream.next().await;
    stream.answer(&request, record(&["c"], &[])).await;
    assert_eq!(in_time(call).await.unwrap().unwrap().unwrap().value().unwrap(), "c");
}

#[tokio::test]
async fn a_failed_log_is_told_and_the_next_call_goes_elsewhere() {
    let cluster = Cluster::of(2);
    let client = cluster.client();
    let call = put(&client, "a");
    let mut stream = cluster.nodes[0].accept().await;
    let request = stream.next().await;
    stream.answer(&request, Err(Refusal::StorageFailed("EIO".to_owned()))).await;
    let error = in_time(call).await.unwrap().unwrap_err();
    assert!(error.is_refusal() && error.is_outcome_unknown());
    let call = put(&client, "b");
    let mut stream = cluster.nodes[1].accept().await;
    let request = stream.next().await;
    stream.answer(&request, written(dot(2, 1))).await;
    in_time(call).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_question_to_one_node_goes_to_that_node() {
    let cluster = Cluster::of(2);
    let (client, second) = (cluster.client(), cluster.nodes[1].address());
    let call = tokio::spawn(async move { client.cut_link(&second, 1).await });
    let mut stream = cluster.nodes[1].accept().await;
    let request = stream.next().await;
    assert_eq!(request.request, polyarch_protocol::client::Request::CutLink { server_id: 1 });
    stream.answer(&request, Ok(polyarch_protocol::client::Response::Done)).await;
    in_time(call).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_node_that_comes_back_is_found_again_within_the_deadline() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    for _ in 0..3 {
        let call = get(&client, "a");
        let mut stream = cluster.nodes[0].accept().await;
        stream.next().await;
        stream.crash();
        let mut stream = cluster.nodes[0].accept().await;
        let request = stream.next().await;
        stream.answer(&request, record(&["v"], &[])).await;
        in_time(call).await.unwrap().unwrap();
        stream.crash();
    }
}

#[tokio::test]
async fn a_closed_client_says_so_and_the_node_learns_of_it() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let call = get(&client, "a");
    let mut stream = cluster.nodes[0].accept().await;
    let request = stream.next().await;
    stream.answer(&request, record(&["v"], &[])).await;
    in_time(call).await.unwrap().unwrap();
    in_time(client.close()).await;
    assert!(stream.ends().await);
    let error = in_time(client.get("k", "a")).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { tried } if tried[0].reason.contains("closed")), "{error}");
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_named() {
    let cluster = Cluster::of(1);
    let mut profile = cluster.profile(cluster.addresses());
    profile.key = cluster.directory().join("nowhere.key");
    let error = Client::connect(profile.clone()).unwrap_err();
    assert!(matches!(error, Error::Credentials(_)) && error.is_setup());
    assert!(error.to_string().contains("nowhere.key"), "{error}");
    profile.nodes.clear();
    assert!(matches!(Client::connect(profile), Err(Error::Profile(_))));
    // The fixture holds certificates of one authority only.
    assert!(certs::create_ca(cluster.directory(), &"c".parse().unwrap(), &CertificateOptions::default()).is_err());
}
