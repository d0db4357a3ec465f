//! A link: one connection to one node, one stream on it, and the requests that wait for answers.
//!
//! ```text
//! callers ── push ──> [ queued ] ── writer task ──> [ sent ] ── reader task ──> callers
//!                        one flush for all             answers come in this order
//! ```
//!
//! A request is `queued` until the writer takes it, and until then it can be taken back: it certainly had no effect. From
//! then on it is `sent`, whether or not its bytes have left: if the link ends now, nobody knows what became of it.
//!
//! The stream is in step as long as each request sent has one entry in `sent`. So an entry outlives its caller: when the
//! caller has gone, its answer is read and dropped.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use polyarch_protocol::client::{ClientRequest, ClientResponse, Refusal, Response};
use polyarch_protocol::limits::wire::FRAME_BYTES_MAX;
use polyarch_transport::{CloseCode, CloseReason, Connection, FrameReader, FrameWriter, StreamError};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

/// What the writer hands over in one flush. What is behind it can still be taken back.
const FLUSH_BYTES: usize = 256 << 10;

/// A request takes one of the link's permits, and one more for each of these.
const BYTES_PER_PERMIT: usize = 64 << 10;

/// Answers that are read before their callers are woken.
const ANSWERS_PER_BATCH: usize = 256;

/// The node does not speak this client's protocol.
const CLOSE_PROTOCOL: CloseCode = CloseCode::new(1);

/// One connection to a node, on which requests are pipelined. Ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Link {
    requests: Arc<Requests>,
    connection: Connection,
}

/// What a node said to a request.
pub(crate) type Answer = Result<Response, Refusal>;

/// Why a request has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The link ended before the request was sent.
    NotSent(Arc<str>),
    /// The link ended after the request was sent.
    Lost(Arc<str>),
    /// The node answered in a way that is not understood, and the link was ended for it.
    Garbled(Arc<str>),
    /// The deadline passed, and the request was not sent.
    TimedOutUnsent,
    /// The deadline passed after the request was sent.
    TimedOutSent,
    /// Of so many bytes, which no frame may have. It was not sent.
    TooLong(usize),
}

impl Link {
    /// Opens the stream and starts its two tasks.
    pub(crate) async fn open(connection: Connection, in_flight_max: u32) -> Result<Self, CloseReason> {
        let (writer, reader) = connection.open_bi().await?;
        let requests = Arc::new(Requests::new(in_flight_max));
        tokio::spawn(write_requests(writer, Arc::clone(&requests)));
        tokio::spawn(read_answers(reader, Ender(Arc::clone(&requests), connection.clone())));
        Ok(Self { requests, connection })
    }

    /// Whether the link takes requests.
    pub(crate) fn is_open(&self) -> bool {
        self.requests.is_open.load(Ordering::Acquire)
    }

    /// Sends a request and waits for its answer. Numbers the request. Dropping the future takes the request back if it was
    /// not sent.
    pub(crate) async fn call(&self, request: &mut ClientRequest, deadline: Instant) -> Result<Answer, Unanswered> {
        request.id = self.requests.next_id.fetch_add(1, Ordering::Relaxed);
        let frame = request.encode();
        if frame.len() > FRAME_BYTES_MAX {
            return Err(Unanswered::TooLong(frame.len()));
        }
        let permits = self.requests.permits_for(frame.len());
        let permit = match self.requests.permits.try_acquire_many(permits) {
            Ok(permit) => permit,
            Err(_) => match timeout_at(deadline, self.requests.permits.acquire_many(permits)).await {
                Ok(Ok(permit)) => permit,
                Ok(Err(_closed)) => return Err(self.requests.not_sent()),
                Err(_elapsed) => return Err(Unanswered::TimedOutUnsent),
            },
        };
        let (caller, answer) = oneshot::channel();
        self.requests.push(Queued { entry: Entry { id: request.id, permits, caller }, frame })?;
        // Given back with the answer, or when the request is taken back.
        permit.forget();
        let mut waiting = Waiting { requests: &self.requests, id: request.id, is_answered: false };
        match timeout_at(deadline, answer).await {
            Ok(answer) => {
                waiting.is_answered = true;
                answer.unwrap_or_else(|_| Err(Unanswered::Lost("the client's tasks were ended".into())))
            }
            Err(_elapsed) => {
                waiting.is_answered = true;
                Err(match self.requests.take_back(request.id) {
                    true => Unanswered::TimedOutUnsent,
                    false => Unanswered::TimedOutSent,
                })
            }
        }
    }

    /// Opens a stream of its own on the connection, beside the one of the requests.
    pub(crate) async fn open_stream(&self) -> Result<(FrameWriter, FrameReader), CloseReason> {
        self.connection.open_bi().await
    }

    /// Ends the link because of an answer that is no answer to its request.
    pub(crate) fn end_garbled(&self, cause: &str) {
        self.requests.end(&End::Garbled(cause.into()));
        self.connection.close(CLOSE_PROTOCOL, cause);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.requests.end(&End::Lost("the client closed the connection".into()));
        self.connection.close(CloseCode::NONE, "");
    }
}

/// A caller that waits; if it goes away, its request is not sent any more.
struct Waiting<'a> {
    requests: &'a Requests,
    id: u64,
    is_answered: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            self.requests.take_back(self.id);
        }
    }
}

/// The requests of one link that are not answered yet.
#[derive(Debug)]
struct Requests {
    next_id: AtomicU64,
    /// Held by each request from before it is queued until it is answered.
    permits: Semaphore,
    permits_max: u32,
    queues: Mutex<Queues>,
    /// Something was queued, or the link has ended.
    changed: Notify,
    /// A copy of `queues.end.is_none()`, to ask without the lock.
    is_open: AtomicBool,
}

#[derive(Debug, Default)]
struct Queues {
    queued: VecDeque<Queued>,
    sent: VecDeque<Entry>,
    /// Set once; from then on nothing is queued.
    end: Option<End>,
}

#[derive(Debug)]
struct Queued {
    entry: Entry,
    frame: Vec<u8>,
}

#[derive(Debug)]
struct Entry {
    id: u64,
    permits: u32,
    caller: oneshot::Sender<Result<Answer, Unanswered>>,
}

/// How a link ended.
#[derive(Debug, Clone)]
enum End {
    Lost(Arc<str>),
    Garbled(Arc<str>),
}

impl Requests {
    fn new(in_flight_max: u32) -> Self {
        Self {
            next_id: AtomicU64::new(1),
            permits: Semaphore::new(in_flight_max as usize),
            permits_max: in_flight_max,
            queues: Mutex::default(),
            changed: Notify::new(),
            is_open: AtomicBool::new(true),
        }
    }

    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn permits_for(&self, frame_bytes: usize) -> u32 {
        u32::try_from(1 + frame_bytes / BYTES_PER_PERMIT)
            .map_or(self.permits_max, |permits| permits.min(self.permits_max))
    }

    fn push(&self, request: Queued) -> Result<(), Unanswered> {
        let mut queues = self.queues();
        if let Some(end) = &queues.end {
            return Err(Unanswered::NotSent(end.cause()));
        }
        let was_empty = queues.queued.is_empty();
        queues.queued.push_back(request);
        drop(queues);
        // Otherwise whoever queued the first of them has woken the writer.
        if was_empty {
            self.changed.notify_one();
        }
        Ok(())
    }

    /// Whether the request was still queued: now it will not be sent.
    fn take_back(&self, id: u64) -> bool {
        let mut queues = self.queues();
        let Some(at) = queues.queued.iter().position(|queued| queued.entry.id == id) else {
            return false;
        };
        let taken = queues.queued.remove(at);
        drop(queues);
        self.permits.add_permits(taken.map_or(0, |queued| queued.entry.permits as usize));
        true
    }

    /// Moves requests of about [`FLUSH_BYTES`] from queued to sent, and their frames to the writer. `false` once the link
    /// has ended.
    fn take_for_sending(&self, writer: &mut FrameWriter, frames: &mut Vec<Vec<u8>>) -> bool {
        {
            let mut queues = self.queues();
            if queues.end.is_some() {
                return false;
            }
            let mut bytes = 0;
            while bytes < FLUSH_BYTES
                && let Some(Queued { entry, frame }) = queues.queued.pop_front()
            {
                bytes += frame.len();
                frames.push(frame);
                queues.sent.push_back(entry);
            }
        }
        frames.drain(..).for_each(|frame| writer.queue(&frame));
        true
    }

    /// Gives answers to their callers. An error when one is not the answer that is due.
    fn answer(&self, answers: &mut Vec<ClientResponse>) -> Result<(), Arc<str>> {
        let mut callers = Vec::with_capacity(answers.len());
        let mut failure = None;
        {
            let mut queues = self.queues();
            for answer in answers.drain(..) {
                match queues.sent.pop_front() {
                    Some(entry) if entry.id == answer.id => callers.push((entry, answer.result)),
                    other => {
                        failure = Some(out_of_step(answer.id, other.as_ref()));
                        // Its caller learns of the end like all behind it.
                        other.into_iter().for_each(|entry| queues.sent.push_front(entry));
                        break;
                    }
                }
            }
        }
        let permits: usize = callers.iter().map(|(entry, _)| entry.permits as usize).sum();
        for (entry, result) in callers {
            // An error says that the caller has gone.
            let _ = entry.caller.send(Ok(result));
        }
        self.permits.add_permits(permits);
        failure.map_or(Ok(()), Err)
    }

    /// No more requests are taken; those that were sent may still be answered.
    fn end_queue(&self, end: End) {
        let mut queues = self.queues();
        let end = queues.end.get_or_insert(end).clone();
        let queued = std::mem::take(&mut queues.queued);
        drop(queues);
        self.is_open.store(false, Ordering::Release);
        self.permits.close();
        self.changed.notify_one();
        for request in queued {
            let _ = request.entry.caller.send(Err(Unanswered::NotSent(end.cause())));
        }
    }

    /// The link is over, and nothing more will be answered.
    fn end(&self, end: &End) {
        self.end_queue(end.clone());
        let sent = std::mem::take(&mut self.queues().sent);
        for entry in sent {
            let _ = entry.caller.send(Err(end.after_sending()));
        }
    }

    fn not_sent(&self) -> Unanswered {
        let end = self.queues().end.clone();
        Unanswered::NotSent(end.map_or_else(|| "the connection has ended".into(), |end| end.cause()))
    }
}

impl End {
    fn cause(&self) -> Arc<str> {
        match self {
            Self::Lost(cause) | Self::Garbled(cause) => Arc::clone(cause),
        }
    }

    fn after_sending(&self) -> Unanswered {
        match self {
            Self::Lost(cause) => Unanswered::Lost(Arc::clone(cause)),
            Self::Garbled(cause) => Unanswered::Garbled(Arc::clone(cause)),
        }
    }
}

fn out_of_step(id: u64, due: Option<&Entry>) -> Arc<str> {
    match due {
        Some(due) => format!("it answered request {id} when {} was due", due.id).into(),
        None => format!("it answered request {id}, which was not asked").into(),
    }
}

/// Writes what is queued, all that there is in one flush.
///
/// To yield first, so that more callers come along, was measured on a runtime of one thread and cost more than it saved:
/// packets are put together later, by the connection's own task, and so hold what several flushes have left.
async fn write_requests(mut writer: FrameWriter, requests: Arc<Requests>) {
    let mut frames = Vec::new();
    loop {
        requests.changed.notified().await;
        loop {
            if !requests.take_for_sending(&mut writer, &mut frames) {
                return;
            }
            if writer.queued_bytes() == 0 {
                break;
            }
            if let Err(error) = writer.flush().await {
                // The reader goes on: what the node answered before may still be on its way.
                return requests.end_queue(End::Lost(error.to_string().into()));
            }
        }
    }
}

/// Reads answers, and wakes their callers a batch at a time.
async fn read_answers(mut reader: FrameReader, ender: Ender) {
    let mut answers = Vec::new();
    let end = loop {
        let next = reader.next(FRAME_BYTES_MAX).await;
        let failure = read_batch(&mut reader, next, &mut answers);
        // What came before the failure is answered.
        let answered = ender.0.answer(&mut answers);
        match answered.map_err(End::Garbled).and(failure) {
            Ok(()) => {}
            Err(end) => break end,
        }
    };
    if let End::Garbled(cause) = &end {
        ender.1.close(CLOSE_PROTOCOL, cause);
    }
    ender.0.end(&end);
}

fn read_batch(
    reader: &mut FrameReader,
    first: Result<Option<bytes::Bytes>, StreamError>,
    answers: &mut Vec<ClientResponse>,
) -> Result<(), End> {
    let mut frame =
        first.map_err(|error| stream_end(&error))?.ok_or_else(|| End::Lost("the node ended the stream".into()))?;
    loop {
        let answer =
            ClientResponse::decode(&frame).map_err(|error| End::Garbled(format!("its answer is a {error}").into()))?;
        answers.push(answer);
        if answers.len() >= ANSWERS_PER_BATCH {
            return Ok(());
        }
        match reader.try_next(FRAME_BYTES_MAX).map_err(|error| stream_end(&error))? {
            Some(next) => frame = next,
            None => return Ok(()),
        }
    }
}

fn stream_end(error: &StreamError) -> End {
    match error {
        StreamError::Frame(polyarch_transport::FrameError::TooLarge { .. }) => End::Garbled(error.to_string().into()),
        _ => End::Lost(error.to_string().into()),
    }
}

/// Ends the requests when the reader goes away for whatever reason, its runtime's end included.
struct Ender(Arc<Requests>, Connection);

impl Drop for Ender {
    fn drop(&mut self) {
        self.0.end(&End::Lost("the client's tasks were ended".into()));
        self.1.close(CloseCode::NONE, "");
    }
}
