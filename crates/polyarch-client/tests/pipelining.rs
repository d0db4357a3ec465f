//! One stream, many callers: order, batches, bounds, and callers that go away.

mod support;

use std::time::Duration;

use polyarch_client::{Error, Refusal};
use polyarch_protocol::client::ClientResponse;
use tokio::task::JoinSet;

use support::{Cluster, dot, in_time, key_of, record, written};

#[tokio::test]
async fn calls_are_sent_in_the_order_they_were_made_and_each_gets_its_own_answer() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let calls = async {
        // The first connects; the others then go out in order.
        client.put("k", "0", "v").await.unwrap();
        let (written, read, deleted) =
            tokio::join!(client.put("k", "1", "v"), client.get("k", "2"), client.delete("k", "3"));
        assert_eq!(written.unwrap().dot, Some(dot(1, 1)));
        assert_eq!(read.unwrap().unwrap().value().unwrap(), "two");
        assert!(matches!(deleted, Err(Error::Refused(Refusal::UnknownKeyspace(name))) if name == "k"));
    };
    let node = async {
        let mut stream = cluster.nodes[0].accept().await;
        let first = stream.next().await;
        stream.answer(&first, written(dot(1, 9))).await;
        let requests = [stream.next().await, stream.next().await, stream.next().await];
        assert_eq!(requests.each_ref().map(key_of), ["1", "2", "3"]);
        stream.queue(&requests[0], written(dot(1, 1)));
        stream.queue(&requests[1], record(&["two"], &[]));
        stream.queue(&requests[2], Err(Refusal::UnknownKeyspace("k".to_owned())));
        stream.flush().await;
    };
    in_time(async { tokio::join!(calls, node) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_share_one_stream_and_no_answer_is_mixed_up() {
    const TASKS: usize = 50;
    const CALLS: usize = 40;
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let client = client.clone();
        tasks.spawn(async move {
            for call in 0..CALLS {
                let key = format!("{task}.{call}");
                let record = client.get("k", &key).await.unwrap().unwrap();
                assert_eq!(record.value().unwrap(), key.as_bytes());
            }
        });
    }
    let node = tokio::spawn(async move {
        let mut stream = cluster.nodes[0].accept().await;
        for _ in 0..TASKS * CALLS {
            let request = stream.next().await;
            let key = key_of(&request);
            stream.answer(&request, record(&[&key], &[])).await;
        }
        // Nothing else came, and there was no second connection.
        drop(cluster);
        stream
    });
    in_time(async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await;
    drop(client);
    assert!(node.await.unwrap().ends().await);
}

#[tokio::test]
async fn a_caller_that_goes_away_does_not_shift_the_answers_of_the_others() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let dropped = tokio::spawn({
        let client = client.clone();
        async move { client.get("k", "dropped").await }
    });
    let mut stream = cluster.nodes[0].accept().await;
    let first = stream.next().await;
    dropped.abort();
    assert!(in_time(dropped).await.unwrap_err().is_cancelled());

    let kept = tokio::spawn({
        let client = client.clone();
        async move { client.get("k", "kept").await }
    });
    let second = stream.next().await;
    assert_eq!([key_of(&first), key_of(&second)], ["dropped", "kept"]);
    stream.queue(&first, record(&["of the dropped"], &[]));
    stream.queue(&second, record(&["of the kept"], &[]));
    stream.flush().await;
    assert_eq!(in_time(kept).await.unwrap().unwrap().unwrap().value().unwrap(), "of the kept");
}

#[tokio::test]
async fn calls_beyond_the_bound_wait_for_their_turn_and_a_waiting_write_that_times_out_was_not_sent() {
    let cluster = Cluster::of(1);
    let client = cluster.builder().in_flight_max(1).connect().unwrap();
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.put("k", "first", "v").await }
    });
    let mut stream = cluster.nodes[0].accept().await;
    let request = stream.next().await;

    let hasty = client.with_timeout(Duration::from_millis(50));
    let error = in_time(hasty.put("k", "hasty", "v")).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(error.is_unreachable() && !error.is_outcome_unknown());

    stream.answer(&request, written(dot(1, 1))).await;
    in_time(first).await.unwrap().unwrap();
    // The timeout has moved the client to "the next node", which is the same one, over the same connection.
    let second = tokio::spawn(async move { client.put("k", "second", "v").await });
    let request = stream.next().await;
    assert_eq!(key_of(&request), "second", "the hasty write was never sent");
    stream.answer(&request, written(dot(1, 2))).await;
    in_time(second).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_great_value_counts_as_many_requests_and_still_passes() {
    let cluster = Cluster::of(1);
    let client = cluster.builder().in_flight_max(2).connect().unwrap();
    let value = vec![7; 1 << 20];
    let calls = async {
        let (a, b) = tokio::join!(client.put("k", "a", value.clone()), client.put("k", "b", value.clone()));
        a.unwrap();
        b.unwrap();
    };
    let node = async {
        let mut stream = cluster.nodes[0].accept().await;
        for seq in 1..=2 {
            let request = stream.next().await;
            stream.answer(&request, written(dot(1, seq))).await;
        }
    };
    in_time(async { tokio::join!(calls, node) }).await;
}

#[tokio::test]
async fn a_frame_beyond_the_limit_is_refused_here_and_the_connection_lives() {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let calls = async {
        let error = client.put("k", "great", vec![0; 17 << 20]).await.unwrap_err();
        assert!(matches!(error.refusal(), Some(Refusal::WriteTooLong { .. })), "{error}");
        assert!(client.get("k", "small").await.unwrap().is_none());
    };
    let node = async {
        let mut stream = cluster.nodes[0].accept().await;
        let request = stream.next().await;
        assert_eq!(key_of(&request), "small");
        stream.answer(&request, record(&[], &[])).await;
    };
    in_time(async { tokio::join!(calls, node) }).await;
}

#[tokio::test]
async fn an_answer_that_is_no_message_closes_the_connection_and_says_so() {
    for garbage in [&b""[..], b"A\x01", b"A\x02\x00", b"Q\x01\x00", b"nonsense", &[0xff; 100]] {
        assert_garbled(Garbage::Bytes(garbage)).await;
    }
}

#[tokio::test]
async fn an_answer_out_of_order_or_to_another_question_closes_the_connection() {
    assert_garbled(Garbage::OtherId).await;
    assert_garbled(Garbage::OtherQuestion).await;
}

enum Garbage<'a> {
    Bytes(&'a [u8]),
    OtherId,
    OtherQuestion,
}

async fn assert_garbled(garbage: Garbage<'_>) {
    let cluster = Cluster::of(1);
    let client = cluster.client();
    let calls = async { tokio::join!(client.get("k", "read"), client.put("k", "write", "v")) };
    let node = async {
        let mut stream = cluster.nodes[0].accept().await;
        let requests = [stream.next().await, stream.next().await];
        let first = &requests[0];
        match garbage {
            Garbage::Bytes(bytes) => stream.send(bytes).await,
            Garbage::OtherId => {
                let (id, result) = (first.id + 77, record(&["x"], &[]));
                stream.send(&ClientResponse { id, result }.encode()).await;
            }
            Garbage::OtherQuestion => {
                let wrong = if key_of(first) == "read" { written(dot(1, 1)) } else { record(&["x"], &[]) };
                stream.answer(first, wrong).await;
            }
        }
        assert!(stream.ends().await);
        stream.connection.closed().await
    };
    let ((read, write), closed) = in_time(async { tokio::join!(calls, node) }).await;
    let (read, write) = (read.unwrap_err(), write.unwrap_err());
    assert!(matches!(&read, Error::Protocol { .. }), "{read}");
    assert!(read.to_string().contains("Compare the versions"), "{read}");
    assert!(!read.is_unreachable() && !read.is_refusal());
    assert!(matches!(&write, Error::OutcomeUnknown { .. }), "{write}");
    assert!(closed.to_string().contains("code 1"), "the node is told why: {closed}");
}
