//! One call: which node it goes to, and whether it is sent again when there is no answer.
//!
//! | what happened | a read | a write |
//! |---|---|---|
//! | no connection, or lost before the request was sent | next node | next node |
//! | refused without effect: stopping, not joined, behind | next node | next node |
//! | lost after the request was sent | next node | outcome unknown |
//! | an answer that is none | protocol error | outcome unknown |
//! | deadline before the request was sent | timed out | timed out |
//! | deadline after it | timed out | outcome unknown |
//!
//! "Next node" lasts until the deadline, with a pause whenever all nodes had their turn. Only a session's call that found
//! every node behind ends sooner: each of them has waited for its share of the time already.

use std::sync::Arc;
use std::time::Duration;

use polyarch_protocol::client::{BucketPage, ClientRequest, Refusal, Request, Response};
use polyarch_protocol::limits::wire::{FRAME_BYTES_MAX, KEY_BYTES_MAX};
use tokio::time::{Instant, sleep_until};

use crate::client::Client;
use crate::error::{Error, Tried};
use crate::link::{Link, Unanswered};
use crate::nodes::{Nodes, backoff};

/// A node that waits for what a session has seen gives up so long before the client does, so that its answer arrives.
/// Of little time left it is a tenth.
const ANSWER_MARGIN: Duration = Duration::from_millis(100);

impl Client {
    /// Asks, and takes the answer apart with `extract`, which gives `None` for an answer to another question.
    pub(crate) async fn call<T>(&self, request: Request, extract: fn(Response) -> Option<T>) -> Result<T, Error> {
        self.call_any(request, extract).await.map(|(_, answer)| answer)
    }

    /// The same, with the index of the node that answered.
    pub(crate) async fn call_any<T>(
        &self,
        request: Request,
        extract: fn(Response) -> Option<T>,
    ) -> Result<(usize, T), Error> {
        let mut course = Course {
            nodes: &self.nodes,
            timeout: self.timeout,
            deadline: Instant::now() + self.timeout,
            is_write: is_write(&request),
            setbacks: 0,
            behind: Vec::new(),
            detour: None,
        };
        let mut request =
            ClientRequest { id: 0, wait_ms: 0, token: self.seen.as_ref().and_then(|seen| seen.token()), request };
        loop {
            let (index, link) = course.link().await?;
            if request.token.is_some() {
                request.wait_ms = course.wait_ms();
            }
            match link.call(&mut request, course.deadline).await {
                Ok(Ok(response)) => match self.accept(&request, response, extract) {
                    Ok(answer) => return Ok((index, answer)),
                    Err(cause) => {
                        link.end_garbled(cause);
                        course.setback(index, &link, Unanswered::Garbled(cause.into())).await?;
                    }
                },
                Ok(Err(refusal)) => course.refused(index, &link, refusal).await?,
                Err(Unanswered::TooLong(len)) => return Err(too_long(&request.request, len)),
                Err(unanswered) => course.setback(index, &link, unanswered).await?,
            }
        }
    }

    /// Checks that a response answers the request, and tells the session what it shows.
    fn accept<T>(
        &self,
        request: &ClientRequest,
        response: Response,
        extract: fn(Response) -> Option<T>,
    ) -> Result<T, &'static str> {
        let token = match &response {
            Response::Record { token, .. } | Response::Page { token, .. } => Some(token.clone()),
            Response::Written(written) => Some(written.token.clone()),
            Response::Buckets(page) => Some(page.token.clone()),
            _ => None,
        };
        if !moves_on(&request.request, &response) {
            return Err("its scan does not move on");
        }
        let answer = extract(response).ok_or("its answer is to another question")?;
        if let (Some(seen), Some(token)) = (&self.seen, token) {
            seen.answered(request.token.as_deref(), &token).map_err(|_| "its session token cannot be read")?;
        }
        Ok(answer)
    }
}

/// The way of one call from node to node.
struct Course<'a> {
    nodes: &'a Nodes,
    timeout: Duration,
    deadline: Instant,
    is_write: bool,
    /// How often a node was of no use to this call.
    setbacks: u32,
    /// Nodes that lack what the session has seen.
    behind: Vec<usize>,
    /// Where a call goes that found the current node behind; other calls stay there.
    detour: Option<(usize, Refusal)>,
}

impl Course<'_> {
    async fn link(&mut self) -> Result<(usize, Arc<Link>), Error> {
        while let Some((index, refusal)) = self.detour.take() {
            // A silent node must not use up the time of those that come after it.
            let until = Instant::now() + self.share();
            match self.nodes.link_to(index, until).await {
                Ok(link) => {
                    self.detour = Some((index, refusal));
                    return Ok((index, link));
                }
                Err(_) => self.take_detour(index, refusal)?,
            }
        }
        self.nodes.link(self.deadline).await
    }

    /// How long a node may wait for what the session has seen: each that was not asked yet has an equal share.
    fn wait_ms(&self) -> u32 {
        let share = self.share();
        let wait = share.saturating_sub(ANSWER_MARGIN.min(share / 10));
        u32::try_from(wait.as_millis()).unwrap_or(u32::MAX)
    }

    fn share(&self) -> Duration {
        let not_asked = self.nodes.len().saturating_sub(self.behind.len()).max(1);
        let not_asked = u32::try_from(not_asked).unwrap_or(u32::MAX);
        self.deadline.saturating_duration_since(Instant::now()) / not_asked
    }

    /// Goes on elsewhere after a refusal that says so; every other refusal is the call's end.
    async fn refused(&mut self, index: usize, link: &Arc<Link>, refusal: Refusal) -> Result<(), Error> {
        match refusal {
            Refusal::Behind { .. } => self.take_detour(index, refusal),
            // This lasts: no use to come back to the same node within one call.
            Refusal::MemberIs(_) | Refusal::Twin { .. } | Refusal::DiskFull { .. } => {
                self.nodes.leave(index, link, false);
                self.take_detour(index, refusal)
            }
            Refusal::Stopping | Refusal::NotJoined | Refusal::WritesStopped(_) => {
                self.nodes.leave(index, link, refusal == Refusal::Stopping);
                self.go_on(index, Error::Refused(refusal)).await
            }
            Refusal::StorageFailed(_) => {
                // It takes no more writes until it is restarted. This one may survive, so it is not sent again.
                self.nodes.leave(index, link, false);
                Err(Error::Refused(refusal))
            }
            refusal => Err(Error::Refused(refusal)),
        }
    }

    /// Goes on elsewhere if the request certainly had no effect, or has none; else it is the call's end.
    async fn setback(&mut self, index: usize, link: &Arc<Link>, unanswered: Unanswered) -> Result<(), Error> {
        let node = self.nodes.address(index).clone();
        let is_gone = !matches!(unanswered, Unanswered::TimedOutUnsent | Unanswered::TimedOutSent);
        self.nodes.leave(index, link, is_gone);
        let had_no_effect = !self.is_write || matches!(unanswered, Unanswered::NotSent(_));
        let cause = match unanswered {
            Unanswered::NotSent(cause) | Unanswered::Lost(cause) if had_no_effect => {
                let tried = vec![Tried::unanswered(node, cause.to_string())];
                return self.go_on(index, Error::Unreachable { tried }).await;
            }
            Unanswered::Garbled(cause) if had_no_effect => {
                let cause = cause.to_string();
                return Err(Error::Protocol { node, cause });
            }
            Unanswered::TimedOutSent if self.is_write => format!("there was no answer within {:?}", self.timeout),
            Unanswered::NotSent(cause) | Unanswered::Lost(cause) | Unanswered::Garbled(cause) => cause.to_string(),
            Unanswered::TimedOutUnsent | Unanswered::TimedOutSent | Unanswered::TooLong(_) => {
                let after = self.timeout;
                return Err(Error::TimedOut { node, after });
            }
        };
        Err(Error::OutcomeUnknown { node, cause })
    }

    /// To the next node; `last` is the call's error if time is up.
    async fn go_on(&mut self, index: usize, last: Error) -> Result<(), Error> {
        if let Some((_, refusal)) = self.detour.take() {
            return self.take_detour(index, refusal);
        }
        self.setbacks += 1;
        let nodes = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        if self.setbacks.is_multiple_of(nodes) {
            let until = Instant::now() + backoff(self.setbacks / nodes - 1);
            sleep_until(until.min(self.deadline)).await;
        }
        if Instant::now() < self.deadline { Ok(()) } else { Err(last) }
    }

    /// To a node that was not found behind yet. When there is none, the refusal is the call's end.
    fn take_detour(&mut self, index: usize, refusal: Refusal) -> Result<(), Error> {
        self.behind.push(index);
        let nodes = self.nodes.len();
        let next = (1..nodes).map(|offset| (index + offset) % nodes).find(|next| !self.behind.contains(next));
        match next {
            Some(next) => {
                self.detour = Some((next, refusal));
                Ok(())
            }
            None => Err(Error::Refused(refusal)),
        }
    }
}

fn is_write(request: &Request) -> bool {
    match request {
        Request::Write(_) | Request::CreateKeyspace { .. } | Request::SetTopology(_) | Request::ChangeMember { .. } => {
            true
        }
        // A link is cut or healed once or twice alike, and always at the same node; so is a feed let go on.
        Request::Get { .. }
        | Request::Scan(_)
        | Request::ListKeyspaces
        | Request::Status
        | Request::Condition
        | Request::Events { .. }
        | Request::Digest
        | Request::ScanBuckets(_)
        | Request::CutLink { .. }
        | Request::HealLink { .. }
        | Request::RetryOrigin { .. }
        | Request::ChainHash { .. } => false,
    }
}

/// A page must end behind where it began, or a scan of it never ends.
fn moves_on(request: &Request, response: &Response) -> bool {
    match (request, response) {
        (Request::Scan(scan), Response::Page { next: Some(next), .. }) => {
            scan.after.as_ref().is_none_or(|after| next > after)
        }
        (Request::ScanBuckets(scan), Response::Buckets(BucketPage { next: Some(next), .. })) => *next > scan.from,
        _ => true,
    }
}

/// The node would close the connection on such a frame, to the harm of all other calls.
fn too_long(request: &Request, len: usize) -> Error {
    let refused = |len: usize, max: usize| (len as u64, max as u64);
    Error::Refused(match request {
        Request::Get { key, .. } => {
            let (len, max) = refused(key.len(), KEY_BYTES_MAX);
            Refusal::KeyTooLong { len, max }
        }
        Request::Scan(scan) => {
            let (len, max) =
                refused(scan.prefix.len() + scan.after.as_ref().map_or(0, |after| after.len()), KEY_BYTES_MAX);
            Refusal::KeyTooLong { len, max }
        }
        _ => {
            let (len, max) = refused(len, FRAME_BYTES_MAX);
            Refusal::WriteTooLong { len, max }
        }
    })
}
