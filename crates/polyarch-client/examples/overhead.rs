//! What a call costs, for whoever changes the link: `cargo run --release -p polyarch-client --example overhead`.

#[path = "../tests/support/mod.rs"]
mod support;

use std::time::Instant;

use polyarch_protocol::client::{ClientRequest, ClientResponse};
use polyarch_protocol::limits::wire::FRAME_BYTES_MAX;
use tokio::task::JoinSet;

use support::{Cluster, record};

fn main() {
    for tasks in [1, 16, 64, 256] {
        // The node and the client each on a thread of its own, as on two machines.
        let runtime = |threads| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads).enable_all().build().unwrap()
        };
        let (node_runtime, client_runtime) = (runtime(1), runtime(1));
        let cluster = node_runtime.block_on(async { Cluster::of(1) });
        let client = client_runtime.block_on(async { cluster.client() });
        node_runtime.spawn(async move {
            let (mut writer, mut reader) = cluster.nodes[0].accept().await.into_parts();
            while let Ok(Some(frame)) = reader.next(FRAME_BYTES_MAX).await {
                let mut next = Some(frame);
                while let Some(frame) = next {
                    let id = ClientRequest::decode(&frame).unwrap().id;
                    let result = record(&["a value of some length, say forty bytes."], &[]);
                    writer.queue(&ClientResponse { id, result }.encode());
                    next = reader.try_next(FRAME_BYTES_MAX).unwrap();
                }
                if writer.flush().await.is_err() {
                    break;
                }
            }
            drop(cluster);
        });
        let calls = 200_000 / if tasks == 1 { 10 } else { 1 };
        let measured = client_runtime.spawn(async move {
            client.get("k", "warm").await.unwrap();
            let (began, cpu) = (Instant::now(), thread_cpu_seconds());
            let mut all = JoinSet::new();
            for _ in 0..tasks {
                let client = client.clone();
                all.spawn(async move {
                    for _ in 0..calls / tasks {
                        client.get("keyspace", "0123456789abcdef").await.unwrap();
                    }
                });
            }
            while let Some(done) = all.join_next().await {
                done.unwrap();
            }
            (began.elapsed().as_secs_f64(), thread_cpu_seconds() - cpu)
        });
        let (elapsed, cpu) = client_runtime.block_on(measured).unwrap();
        let per_second = f64::from(calls) / elapsed;
        let cpu = cpu / f64::from(calls) * 1e5;
        println!("{tasks:>4} tasks: {per_second:>9.0} calls/s, client {cpu:>6.3} CPU s per 100,000 calls");
    }
}

/// Of this thread: the client's runtime has one, so all of its work is here.
fn thread_cpu_seconds() -> f64 {
    let schedstat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    schedstat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}
