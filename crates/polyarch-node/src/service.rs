//! What clients are served: reads at once from the published state, writes through the driver.
//!
//! Each stream of a client is one pipeline. Answers go out in the order of the requests, and a
//! read waits for the writes before it on its stream, and for no other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use polyarch_crdt::{AppliedSet, CausalContext, FieldPath, Record, SessionToken, lww, mv};
use polyarch_protocol::catalog::{Catalog, KeyspaceKind};
use polyarch_protocol::client::{
    ClientRequest, ClientResponse, KeyspaceView, RecordView, Refusal, Request, Response, ScanRequest, SiblingView,
};
use polyarch_protocol::limits::wire;
use polyarch_protocol::peer::ClusterId;
use polyarch_protocol::{Input, KeyspaceId, RecordKey, RequestTag, SnapshotRequest, context_scope};
use polyarch_store::state::ScanRange;
use polyarch_transport::{CloseCode, Connection, FrameReader, FrameWriter};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use crate::authorize::Verb;
use crate::buckets;
use crate::config::Roles;
use crate::driver::{Answer, ToDriver, ToDriverSender};
use crate::snapshots::{Donor, give_up};
use crate::view::View;

/// Records of one page of a scan at most.
const PAGE_RECORDS_MAX: usize = 1_000;
/// Bytes of keys and values after which a page ends.
const PAGE_BYTES: usize = 1 << 20;
/// Bytes of answers that are queued before they are sent.
const FLUSH_BYTES: usize = 256 << 10;
/// Bytes of requests a stream may have with the driver; it is read no further beyond.
const SENT_BYTES_MAX: usize = 32 << 20;
/// Bytes of siblings that fit a frame, with room for their context.
const RECORD_BYTES_MAX: usize = wire::FRAME_BYTES_MAX - (512 << 10);
/// How long the last answers may take to be delivered when the node stops.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(1);
/// The longest a request may ask the node to wait for a token.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// What all client streams share.
pub(crate) struct Service {
    pub(crate) view: Arc<View>,
    pub(crate) driver: ToDriverSender,
    pub(crate) roles: Roles,
    pub(crate) cluster_id: ClusterId,
    pub(crate) requests_max: usize,
    pub(crate) next_stream: AtomicU64,
    pub(crate) open_streams: watch::Sender<usize>,
    pub(crate) donor: Arc<Donor>,
}

impl Service {
    /// Serves a client until its connection ends.
    pub(crate) async fn serve(self: Arc<Self>, connection: Connection) {
        let Some(name) = connection.identity().client_name().map(|name| name.as_str().to_owned()) else {
            connection.close(CloseCode::NONE, "not a client's certificate");
            return;
        };
        while let Ok((writer, reader)) = connection.accept_bi().await {
            let (service, name, connection) = (self.clone(), name.clone(), connection.clone());
            tokio::spawn(async move {
                if let Err(reason) = service.serve_stream(name, writer, reader).await {
                    debug!(%reason, "closing a client's connection");
                    connection.close(CloseCode::NONE, &reason);
                }
            });
        }
    }

    /// Serves one stream. The first frame tells one of requests from one for a backup.
    async fn serve_stream(
        self: Arc<Self>,
        name: String,
        writer: FrameWriter,
        mut reader: FrameReader,
    ) -> Result<(), String> {
        match reader.next(wire::FRAME_BYTES_MAX).await {
            Ok(None) => Ok(()),
            Ok(Some(frame)) if SnapshotRequest::is_kind(&frame) => {
                self.back_up(&name, &frame, writer).await;
                Ok(())
            }
            Ok(Some(frame)) => Stream::new(self, name, writer).run(&frame, reader).await,
            Err(error) => Err(error.to_string()),
        }
    }

    /// Sends an operator all that this node has.
    async fn back_up(&self, name: &str, frame: &[u8], mut writer: FrameWriter) {
        match self.roles.of(name) {
            Some(Verb::Administer) => self.donor.clone().serve(frame, writer, format!("client {name}")).await,
            _ => {
                let refusal = Refusal::Forbidden { name: name.to_owned(), verb: Verb::Administer.to_string() };
                give_up(&mut writer, refusal.to_string()).await;
            }
        }
    }
}

/// One stream of a client.
struct Stream {
    service: Arc<Service>,
    client_name: String,
    writer: FrameWriter,
    /// This stream's number towards the driver.
    number: u64,
    answers: mpsc::UnboundedReceiver<Answer>,
    /// Requests not yet answered, in order.
    pending: VecDeque<Pending>,
    next_tag: u64,
    /// Bytes of the requests that are with the driver.
    sent_bytes: usize,
    /// A request that waits until its session's token is reached; nothing behind it is read.
    held: Option<Held>,
    advanced: watch::Receiver<u64>,
}

/// A request that is not answered yet.
enum Pending {
    /// With the driver, under this tag.
    Sent { tag: u64, id: u64, bytes: usize },
    /// A read, due once it is first.
    Read(ClientRequest),
    /// An answer that waits for those before it.
    Ready(ClientResponse),
}

struct Held {
    request: ClientRequest,
    token: SessionToken,
    until: Instant,
}

impl Stream {
    fn new(service: Arc<Service>, client_name: String, writer: FrameWriter) -> Self {
        let number = service.next_stream.fetch_add(1, Ordering::Relaxed);
        let (sender, answers) = mpsc::unbounded_channel();
        // A driver that has stopped answers nothing, which the stream then finds out.
        let _ = service.driver.send(ToDriver::OpenClient(number, sender));
        let advanced = service.view.advanced();
        let pending = VecDeque::new();
        Self {
            service,
            client_name,
            writer,
            number,
            answers,
            pending,
            next_tag: 0,
            sent_bytes: 0,
            held: None,
            advanced,
        }
    }

    async fn run(mut self, first: &Bytes, mut reader: FrameReader) -> Result<(), String> {
        self.service.open_streams.send_modify(|open| *open += 1);
        let result = match self.receive_batch(first, &mut reader) {
            Ok(()) => self.serve(&mut reader).await,
            Err(error) => Err(error),
        };
        self.service.open_streams.send_modify(|open| *open -= 1);
        let _ = self.service.driver.send(ToDriver::CloseClient(self.number));
        result
    }

    async fn serve(&mut self, reader: &mut FrameReader) -> Result<(), String> {
        let mut answers = Vec::new();
        self.send_answers().await?;
        loop {
            let may_read = self.may_read();
            let held_until = self.held.as_ref().map(|held| held.until);
            tokio::select! {
                biased;
                // Without anything pending too: so a stream that is idle hears that the driver has ended.
                received = self.answers.recv_many(&mut answers, 1_024) => {
                    if received == 0 {
                        return self.stop().await;
                    }
                    answers.drain(..).for_each(|answer| self.answered(answer));
                }
                frame = reader.next(wire::FRAME_BYTES_MAX), if may_read => match frame {
                    Ok(Some(frame)) => self.receive_batch(&frame, reader)?,
                    Ok(None) => return self.finish().await,
                    Err(error) => return Err(error.to_string()),
                },
                _ = self.advanced.changed(), if self.held.is_some() => {}
                () = sleep_until(held_until.unwrap_or_else(Instant::now)), if held_until.is_some() => {}
            }
            self.release_held();
            self.send_answers().await?;
        }
    }

    fn may_read(&self) -> bool {
        self.held.is_none() && self.pending.len() < self.service.requests_max && self.sent_bytes < SENT_BYTES_MAX
    }

    /// Sends all answers that are due, some at a time.
    async fn send_answers(&mut self) -> Result<(), String> {
        loop {
            self.answer_ready();
            if self.writer.queued_bytes() == 0 {
                return Ok(());
            }
            self.writer.flush().await.map_err(|error| error.to_string())?;
        }
    }

    /// The client sends no more: answers what is pending, then ends the stream.
    async fn finish(&mut self) -> Result<(), String> {
        while !self.pending.is_empty() {
            let Some(answer) = self.answers.recv().await else { return self.stop().await };
            self.answered(answer);
            self.send_answers().await?;
        }
        self.writer.finish().await.map_err(|error| error.to_string())
    }

    /// The driver has ended. It answered all that it took; what it did not take was not done.
    async fn stop(&mut self) -> Result<(), String> {
        for pending in &mut self.pending {
            if let Pending::Sent { id, .. } = *pending {
                *pending = Pending::Ready(ClientResponse { id, result: Err(Refusal::Stopping) });
            }
        }
        let last_answers = async {
            self.send_answers().await?;
            self.writer.finish().await.map_err(|error| error.to_string())?;
            self.writer.delivered().await.map_err(|error| error.to_string())
        };
        // A client that does not take them learns nothing more from this node.
        let _ = tokio::time::timeout(LAST_ANSWERS_MAX, last_answers).await;
        Err("the node is stopping".to_owned())
    }

    /// Takes a frame and those that came with it.
    fn receive_batch(&mut self, first: &Bytes, reader: &mut FrameReader) -> Result<(), String> {
        self.receive(first)?;
        while self.may_read() {
            match reader.try_next(wire::FRAME_BYTES_MAX) {
                Ok(Some(frame)) => self.receive(&frame)?,
                Ok(None) => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, frame: &[u8]) -> Result<(), String> {
        let request = match ClientRequest::decode(frame) {
            Ok(request) => request,
            Err(error) => {
                let id = ClientRequest::peek_id(frame).ok_or_else(|| error.to_string())?;
                let refusal = Refusal::Malformed(error.to_string());
                self.pending.push_back(Pending::Ready(ClientResponse { id, result: Err(refusal) }));
                return Ok(());
            }
        };
        let id = request.id;
        if let Err(refusal) = self.service.roles.authorize(&self.client_name, &request.request) {
            self.pending.push_back(Pending::Ready(ClientResponse { id, result: Err(refusal) }));
            return Ok(());
        }
        match request.token.as_deref().map(SessionToken::from_bytes).transpose() {
            Err(_) => self.pending.push_back(Pending::Ready(ClientResponse { id, result: Err(Refusal::Token) })),
            Ok(Some(token)) if !self.has_reached(&token) => {
                let until = Instant::now() + Duration::from_millis(u64::from(request.wait_ms)).min(WAIT_MAX);
                self.held = Some(Held { request, token, until });
            }
            Ok(_) => self.start(request),
        }
        Ok(())
    }

    fn has_reached(&self, token: &SessionToken) -> bool {
        self.service.view.published().applied.includes_all(&token.seen)
    }

    /// Lets a held request go on once its token is reached, or refuses it once it is late.
    fn release_held(&mut self) {
        let Some(held) = self.held.take() else { return };
        if self.has_reached(&held.token) {
            return self.start(held.request);
        }
        if Instant::now() < held.until {
            self.held = Some(held);
            return;
        }
        let missing = missing(&held.token.seen, &self.service.view.published().applied);
        let response = ClientResponse { id: held.request.id, result: Err(Refusal::Behind { missing }) };
        self.pending.push_back(Pending::Ready(response));
    }

    fn start(&mut self, request: ClientRequest) {
        let tag = self.next_tag;
        let request_tag = RequestTag { connection: self.number, request: tag };
        let (id, bytes) = (request.id, size_of_request(&request.request));
        let input = match request.request {
            Request::Get { .. } | Request::Scan(_) | Request::ScanBuckets(_) | Request::ListKeyspaces => {
                self.pending.push_back(Pending::Read(request));
                return;
            }
            Request::Write(write) => Input::Write(request_tag, write),
            Request::CreateKeyspace { name, kind } => Input::CreateKeyspace(request_tag, name, kind),
            Request::Status => Input::Status(request_tag),
            Request::Condition => Input::Condition(request_tag),
            Request::RetryOrigin { origin } => Input::RetryOrigin(request_tag, origin),
            Request::Digest => Input::Digest(request_tag),
            Request::CutLink { server_id } => Input::CutLink(request_tag, server_id),
            Request::HealLink { server_id } => Input::HealLink(request_tag, server_id),
            Request::SetTopology(topology) => Input::SetTopology(request_tag, topology),
            Request::ChangeMember { server_id, change } => Input::ChangeMember(request_tag, server_id, change),
            Request::ChainHash { dot } => {
                return self.send_on(id, tag, bytes, ToDriver::ChainHash(request_tag, dot));
            }
            Request::Events { limit } => {
                return self.send_on(id, tag, bytes, ToDriver::Events(request_tag, limit as usize));
            }
        };
        self.send_on(id, tag, bytes, input.into());
    }

    /// Hands a request to the driver.
    fn send_on(&mut self, id: u64, tag: u64, bytes: usize, message: ToDriver) {
        self.next_tag += 1;
        self.pending.push_back(match self.service.driver.send(message) {
            Ok(()) => {
                self.sent_bytes += bytes;
                Pending::Sent { tag, id, bytes }
            }
            Err(_) => Pending::Ready(ClientResponse { id, result: Err(Refusal::Stopping) }),
        });
    }

    fn answered(&mut self, (answered, result): Answer) {
        let sent = self.pending.iter_mut().find(|p| matches!(p, Pending::Sent { tag, .. } if *tag == answered));
        if let Some(pending) = sent
            && let Pending::Sent { id, bytes, .. } = *pending
        {
            self.sent_bytes -= bytes;
            *pending = Pending::Ready(ClientResponse { id, result });
        }
    }

    /// Queues answers that no other has to go before, up to about [`FLUSH_BYTES`].
    fn answer_ready(&mut self) {
        while self.writer.queued_bytes() < FLUSH_BYTES {
            let response = match self.pending.pop_front() {
                None => return,
                Some(Pending::Ready(response)) => response,
                Some(Pending::Read(request)) => self.service.read(request),
                Some(sent) => {
                    self.pending.push_front(sent);
                    return;
                }
            };
            self.writer.queue(&response.encode());
        }
    }
}

impl Service {
    fn read(&self, request: ClientRequest) -> ClientResponse {
        let result = match request.request {
            Request::Get { keyspace, key } => self.get(&keyspace, &key),
            Request::Scan(scan) => self.scan(&scan),
            Request::ScanBuckets(scan) => buckets::page(&self.view, &scan).map(Response::Buckets),
            Request::ListKeyspaces => Ok(Response::Keyspaces(keyspaces(&self.view.published().catalog))),
            _ => Err(Refusal::Malformed("not a read".to_owned())),
        };
        ClientResponse { id: request.id, result }
    }

    fn get(&self, keyspace: &str, key: &[u8]) -> Result<Response, Refusal> {
        let (id, kind, catalog) = self.resolve(keyspace)?;
        let record_key = RecordKey::new(id, key);
        let record = self.view.records.get(&record_key).map_err(|error| Refusal::Unreadable(error.to_string()))?;
        // After the record, so that the token includes it.
        let token = self.view.published().token;
        check_fits(bytes_of(&record))?;
        Ok(Response::Record { record: self.show(kind, &catalog, &record_key, &record), token })
    }

    fn scan(&self, scan: &ScanRequest) -> Result<Response, Refusal> {
        let (id, kind, catalog) = self.resolve(&scan.keyspace)?;
        let limit = (scan.limit as usize).clamp(1, PAGE_RECORDS_MAX);
        let range = ScanRange::prefix(id, &scan.prefix);
        let range = match &scan.after {
            Some(after) => range.after(RecordKey::new(id, after)),
            None => range,
        };
        let found = self.view.records.scan(&range, limit).map_err(|error| Refusal::Unreadable(error.to_string()))?;
        let token = self.view.published().token;
        let (mut records, mut bytes, mut last) = (Vec::new(), 0, None);
        let found_all = found.len() < limit;
        let mut cut_short = false;
        for (record_key, record) in found {
            let len = bytes_of(&record);
            if bytes + len > PAGE_BYTES && !records.is_empty() {
                cut_short = true;
                break;
            }
            check_fits(len)?;
            last = Some(record_key.key_bytes());
            let shown = self.show(kind, &catalog, &record_key, &record);
            if !shown.siblings.is_empty() {
                bytes += record_key.key().len() + len;
                records.push((record_key.key_bytes(), shown));
            }
        }
        let next = if found_all && !cut_short { None } else { last };
        Ok(Response::Page { records, next, token })
    }

    fn resolve(&self, keyspace: &str) -> Result<(KeyspaceId, KeyspaceKind, Arc<Catalog>), Refusal> {
        let catalog = self.view.published().catalog;
        match catalog.keyspace(keyspace) {
            Some((id, definition)) => Ok((id, definition.kind, catalog.clone())),
            None => Err(Refusal::UnknownKeyspace(keyspace.to_owned())),
        }
    }

    /// What a keyspace of this kind shows of a record, with a context that names all of its siblings.
    fn show(&self, kind: KeyspaceKind, catalog: &Catalog, record_key: &RecordKey, record: &Record) -> RecordView {
        let siblings = record.siblings(&FieldPath::opaque());
        let shown = match kind {
            KeyspaceKind::Lww => lww(siblings).into_iter().cloned().collect(),
            KeyspaceKind::Mv => mv(siblings).to_vec(),
        };
        let cluster_id = self.cluster_id.to_bytes();
        let scope = context_scope(&cluster_id, record_key);
        let context = catalog.cluster_keys().sealing().map(|key| CausalContext::of(record).seal(key, &scope));
        let siblings = shown.into_iter().map(|s| SiblingView { dot: s.dot, hlc: s.hlc, value: s.value }).collect();
        RecordView { siblings, context }
    }
}

/// Bytes of a record's values.
fn bytes_of(record: &Record) -> usize {
    record.siblings(&FieldPath::opaque()).iter().map(|sibling| sibling.value.len()).sum()
}

fn check_fits(len: usize) -> Result<(), Refusal> {
    match len > RECORD_BYTES_MAX {
        true => Err(Refusal::RecordTooLong { len: len as u64, max: RECORD_BYTES_MAX as u64 }),
        false => Ok(()),
    }
}

/// Bytes that a request holds on to while the driver has it.
fn size_of_request(request: &Request) -> usize {
    match request {
        Request::Write(write) => {
            let size = |put: &Option<Bytes>| put.as_ref().map_or(0, Bytes::len);
            write.changes.iter().map(|change| 64 + change.key.len() + size(&change.put)).sum()
        }
        _ => 64,
    }
}

fn keyspaces(catalog: &Catalog) -> Vec<KeyspaceView> {
    let view = |(id, definition, by_name): (_, &polyarch_protocol::catalog::KeyspaceDefinition, _)| KeyspaceView {
        id,
        name: definition.name.clone(),
        kind: definition.kind,
        by_name,
    };
    catalog.keyspaces().map(view).collect()
}

/// The write sets that `wanted` has and `applied` has not, in words; a few of them.
fn missing(wanted: &AppliedSet, applied: &AppliedSet) -> String {
    let lacking = wanted.since(applied);
    let shown: Vec<String> = lacking.iter().take(3).map(|dot| dot.to_string()).collect();
    let more = lacking.len().saturating_sub(shown.len());
    match more {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
