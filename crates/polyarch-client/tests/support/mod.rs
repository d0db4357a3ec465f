//! Fake nodes over the real transport: each test scripts, in its own order, what a node hears and says.

// Each test binary uses its own part.
#![allow(dead_code)]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use polyarch_client::{
    Builder, Client, Dot, Hlc, NodeAddress, Origin, Profile, Refusal, SealedContext, SiblingView, Written,
};
use polyarch_crdt::SessionToken;
use polyarch_protocol::client::{ClientRequest, ClientResponse, RecordView, Request, Response};
use polyarch_protocol::limits::wire::FRAME_BYTES_MAX;
use polyarch_transport::certs::{self, CertificateOptions};
use polyarch_transport::{CloseCode, Connection, Credentials, Endpoint, FrameReader, FrameWriter, TransportConfig};
use tokio::time::timeout;

/// Longer than anything here takes; to fail rather than hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// An authority, the certificates it issued, and the fake nodes that use them.
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    pub(crate) nodes: Vec<Node>,
}

pub(crate) struct Node {
    endpoint: Endpoint,
    /// So that a stream whose script is over does not take what was answered on it along.
    accepted: Mutex<Vec<Connection>>,
}

/// A client's stream, as the node has it.
pub(crate) struct Stream {
    pub(crate) connection: Connection,
    writer: FrameWriter,
    reader: FrameReader,
}

impl Cluster {
    pub(crate) fn of(nodes: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        certs::create_ca(directory.path(), &"c".parse().unwrap(), &CertificateOptions::default()).unwrap();
        let issue = |identity: String| {
            certs::issue(directory.path(), &identity.parse().unwrap(), &CertificateOptions::default()).unwrap()
        };
        issue("polyarch://c/client/ada".to_owned());
        let nodes = (1..=nodes).map(|server_id| {
            let files = issue(format!("polyarch://c/node/{server_id}"));
            let credentials = Credentials::load(directory.path().join("ca.pem"), files.certificate, files.key).unwrap();
            let any = SocketAddr::from(([127, 0, 0, 1], 0));
            Node {
                endpoint: Endpoint::bind(credentials, any, TransportConfig::default()).unwrap(),
                accepted: Mutex::default(),
            }
        });
        Self { nodes: nodes.collect(), directory }
    }

    pub(crate) fn addresses(&self) -> Vec<NodeAddress> {
        self.nodes.iter().map(Node::address).collect()
    }

    pub(crate) fn profile(&self, nodes: Vec<NodeAddress>) -> Profile {
        let file = |name| self.directory.path().join(name);
        Profile::new(nodes, file("ca.pem"), file("client-ada.pem"), file("client-ada.key"))
    }

    pub(crate) fn builder(&self) -> Builder {
        Client::builder(self.profile(self.addresses()).with_timeout(PATIENCE)).prefer(0)
    }

    /// A client that tries the first node first.
    pub(crate) fn client(&self) -> Client {
        self.builder().connect().unwrap()
    }

    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }
}

impl Node {
    pub(crate) fn address(&self) -> NodeAddress {
        self.endpoint.local_address().unwrap().into()
    }

    /// The next connection's stream, once the client has sent something on it.
    pub(crate) async fn accept(&self) -> Stream {
        let connection = in_time(self.endpoint.accept()).await.unwrap();
        self.accepted.lock().unwrap().push(connection.clone());
        let (writer, reader) = in_time(connection.accept_bi()).await.unwrap();
        Stream { connection, writer, reader }
    }
}

impl Stream {
    pub(crate) async fn next(&mut self) -> ClientRequest {
        let frame = in_time(self.reader.next(FRAME_BYTES_MAX)).await.unwrap().expect("a request");
        ClientRequest::decode(&frame).unwrap()
    }

    /// Whether the client ends the stream or the connection without another request.
    pub(crate) async fn ends(&mut self) -> bool {
        !matches!(in_time(self.reader.next(FRAME_BYTES_MAX)).await, Ok(Some(_)))
    }

    pub(crate) async fn answer(&mut self, request: &ClientRequest, result: Result<Response, Refusal>) {
        let id = request.id;
        self.send(&ClientResponse { id, result }.encode()).await;
    }

    pub(crate) async fn send(&mut self, frame: &[u8]) {
        self.writer.queue(frame);
        self.writer.flush().await.unwrap();
    }

    pub(crate) fn queue(&mut self, request: &ClientRequest, result: Result<Response, Refusal>) {
        let id = request.id;
        self.writer.queue(&ClientResponse { id, result }.encode());
    }

    pub(crate) async fn flush(&mut self) {
        self.writer.flush().await.unwrap();
    }

    pub(crate) fn into_parts(self) -> (FrameWriter, FrameReader) {
        (self.writer, self.reader)
    }

    /// What a crash of the node looks like, but at once.
    pub(crate) fn crash(self) {
        self.connection.close(CloseCode::new(9), "crashed");
    }
}

pub(crate) async fn in_time<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("the test hangs")
}

pub(crate) fn dot(server_id: u32, seq: u64) -> Dot {
    Dot::new(Origin::new(server_id, 7), seq)
}

pub(crate) fn token(dots: &[Dot]) -> Bytes {
    let seen = dots.iter().copied().collect();
    SessionToken { seen }.to_bytes().into()
}

pub(crate) fn seen(token: &[u8]) -> Vec<Dot> {
    SessionToken::from_bytes(token).unwrap().seen.iter().collect()
}

pub(crate) fn view(values: &[&str]) -> RecordView {
    let siblings = values.iter().zip(1..).map(|(value, seq)| SiblingView {
        dot: dot(1, seq),
        hlc: Hlc::default(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    });
    RecordView { siblings: siblings.collect(), context: Some(SealedContext::from_bytes(values.concat().into_bytes())) }
}

pub(crate) fn record(values: &[&str], seen: &[Dot]) -> Result<Response, Refusal> {
    Ok(Response::Record { record: view(values), token: token(seen) })
}

pub(crate) fn written(dot: Dot) -> Result<Response, Refusal> {
    Ok(Response::Written(Written { dot: Some(dot), hlc: Some(Hlc::default()), token: token(&[dot]) }))
}

pub(crate) fn key_of(request: &ClientRequest) -> String {
    let key = match &request.request {
        Request::Get { key, .. } => key,
        Request::Write(write) => &write.changes[0].key,
        other => panic!("no key in {other:?}"),
    };
    String::from_utf8(key.to_vec()).unwrap()
}
