//! The nodes a client knows, which of them it talks to, and how it comes to another.
//!
//! A node that is down is silent, so nodes, and the addresses of one node's name, are dialled in a staggered race
//! ([`first_success`]).
//!
//! A round of dials runs in a task of its own and belongs to nobody: whoever needs a connection waits for it as long as its
//! deadline allows, so that calls with short deadlines do not begin the same dial again and again.

use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use polyarch_transport::{Alpn, DialError, Endpoint, Expect, Obstacle, first_success};
use tokio::sync::Mutex as AsyncMutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::address::NodeAddress;
use crate::error::{Error, Tried};
use crate::link::Link;

/// Pauses between rounds in which no node was of use: they double from the first to the last, each with jitter.
const BACKOFF_MIN: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_millis(1_000);

/// The nodes of a client.
pub(crate) struct Nodes {
    dialler: Dialler,
    nodes: Arc<[Node]>,
    /// The node that calls go to.
    current: AtomicUsize,
    rounds: AsyncMutex<Rounds>,
}

/// Opens links.
#[derive(Clone)]
pub(crate) struct Dialler {
    endpoint: Endpoint,
    in_flight_max: u32,
}

struct Node {
    address: NodeAddress,
    link: RwLock<Option<Arc<Link>>>,
    /// One dial at a time.
    dialling: AsyncMutex<()>,
    /// Of the last dial.
    failure: Mutex<Option<DialFailure>>,
}

#[derive(Debug, Clone)]
struct DialFailure {
    reason: String,
    obstacle: Obstacle,
    /// To dial again is of no use before somebody has changed certificates or versions.
    is_lasting: bool,
}

/// Rounds of dials over all nodes. Whoever holds the lock drives them.
#[derive(Default)]
struct Rounds {
    /// Holds one task at most: which node has a link, or what was wrong with each.
    running: JoinSet<Result<usize, Vec<DialFailure>>>,
    failed: u32,
    not_before: Option<Instant>,
}

impl Nodes {
    pub(crate) fn new(dialler: Dialler, nodes: impl IntoIterator<Item = NodeAddress>, first: usize) -> Self {
        let nodes: Arc<[Node]> = nodes.into_iter().map(Node::new).collect();
        assert!(!nodes.is_empty(), "a client has at least one node");
        Self { current: AtomicUsize::new(first % nodes.len()), dialler, nodes, rounds: AsyncMutex::default() }
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(crate) fn dialler(&self) -> &Dialler {
        &self.dialler
    }

    pub(crate) fn address(&self, index: usize) -> &NodeAddress {
        &self.nodes[index].address
    }

    /// A link to the current node, or to the next that answers, which becomes the current one.
    pub(crate) async fn link(&self, deadline: Instant) -> Result<(usize, Arc<Link>), Error> {
        if let Some(link) = self.current_link() {
            return Ok(link);
        }
        match timeout_at(deadline, self.run_rounds()).await {
            Ok(Some(link)) => Ok(link),
            Ok(None) | Err(_) => Err(self.unreachable()),
        }
    }

    /// A link to one node, without making it the current one.
    pub(crate) async fn link_to(&self, index: usize, deadline: Instant) -> Result<Arc<Link>, Error> {
        match timeout_at(deadline, self.nodes[index].open(&self.dialler)).await {
            Ok(Ok(link)) => Ok(link),
            Ok(Err(_)) | Err(_) => Err(self.unreachable()),
        }
    }

    /// The node is of no use now: calls go on to the next, if they went there. With `is_gone`, its link is not used again.
    pub(crate) fn leave(&self, index: usize, link: &Arc<Link>, is_gone: bool) {
        let next = (index + 1) % self.nodes.len();
        // An error says that somebody has left it before.
        let _ = self.current.compare_exchange(index, next, Ordering::AcqRel, Ordering::Acquire);
        if is_gone {
            self.nodes[index].forget(link);
        }
    }

    fn current_link(&self) -> Option<(usize, Arc<Link>)> {
        let index = self.current.load(Ordering::Acquire);
        self.nodes[index].live_link().map(|link| (index, link))
    }

    /// Dials, round after round, until there is a link. `None` when it never will be.
    async fn run_rounds(&self) -> Option<(usize, Arc<Link>)> {
        let mut rounds = self.rounds.lock().await;
        loop {
            if let Some(link) = self.current_link() {
                return Some(link);
            }
            if rounds.running.is_empty() {
                if let Some(not_before) = rounds.not_before {
                    sleep_until(not_before).await;
                }
                let round = self.round();
                rounds.running.spawn(round);
            }
            // Cancel safe: the round goes on, and the next who needs a link waits for it.
            match rounds.running.join_next().await {
                Some(Ok(Ok(index))) => {
                    rounds.failed = 0;
                    rounds.not_before = None;
                    self.current.store(index, Ordering::Release);
                }
                Some(Ok(Err(failures))) => {
                    rounds.not_before = Some(Instant::now() + backoff(rounds.failed));
                    rounds.failed = rounds.failed.saturating_add(1);
                    if failures.iter().all(|failure| failure.is_lasting) {
                        return None;
                    }
                }
                // The runtime ends.
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Dials all nodes from the current one on, until one has a link.
    fn round(&self) -> impl Future<Output = Result<usize, Vec<DialFailure>>> + Send + 'static {
        let first = self.current.load(Ordering::Acquire);
        let attempts: Vec<_> = (0..self.nodes.len())
            .map(|offset| {
                let (nodes, dialler) = (Arc::clone(&self.nodes), self.dialler.clone());
                let index = (first + offset) % nodes.len();
                async move { nodes[index].open(&dialler).await.map(|_link| index) }
            })
            .collect();
        first_success(attempts)
    }

    fn unreachable(&self) -> Error {
        let tried = self.nodes.iter().map(|node| match node.last_failure() {
            Some(DialFailure { reason, obstacle, .. }) => Tried { node: node.address.clone(), reason, obstacle },
            None => Tried::unanswered(
                node.address.clone(),
                "it did not answer in time; is it running, and is UDP let through?",
            ),
        });
        Error::Unreachable { tried: tried.collect() }
    }
}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.nodes.iter().map(|node| node.address.as_str())).finish()
    }
}

impl Dialler {
    pub(crate) fn new(endpoint: Endpoint, in_flight_max: u32) -> Self {
        Self { endpoint, in_flight_max }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    async fn dial(&self, address: &NodeAddress) -> Result<Link, DialFailure> {
        let connection = self.endpoint.connect_host(address.as_str(), Expect::AnyNode, Alpn::Client).await?;
        Link::open(connection, self.in_flight_max).await.map_err(|reason| DialFailure {
            reason: format!("the connection was lost: {reason}"),
            obstacle: Obstacle::NoAnswer,
            is_lasting: false,
        })
    }
}

impl Node {
    fn new(address: NodeAddress) -> Self {
        Self { address, link: RwLock::default(), dialling: AsyncMutex::default(), failure: Mutex::default() }
    }

    fn live_link(&self) -> Option<Arc<Link>> {
        let link = self.link.read().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().filter(|link| link.is_open()).map(Arc::clone)
    }

    fn forget(&self, link: &Arc<Link>) {
        let mut held = self.link.write().unwrap_or_else(PoisonError::into_inner);
        if held.as_ref().is_some_and(|held| Arc::ptr_eq(held, link)) {
            *held = None;
        }
    }

    async fn open(&self, dialler: &Dialler) -> Result<Arc<Link>, DialFailure> {
        let _one_at_a_time = self.dialling.lock().await;
        if let Some(link) = self.live_link() {
            return Ok(link);
        }
        let dialled = dialler.dial(&self.address).await;
        let failure = dialled.as_ref().err().cloned();
        if let Some(failure) = &failure {
            tracing::debug!(node = %self.address, reason = failure.reason, "cannot connect");
        }
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        let link = Arc::new(dialled?);
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&link));
        Ok(link)
    }

    fn last_failure(&self) -> Option<DialFailure> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl From<DialError> for DialFailure {
    fn from(error: DialError) -> Self {
        Self { reason: error.to_string(), obstacle: error.obstacle(), is_lasting: error.is_lasting() }
    }
}

/// How long to pause after a number of failures: twice as long each time, less up to a half at random so that clients that
/// failed together do not come back together.
pub(crate) fn backoff(failures: u32) -> Duration {
    let longest = BACKOFF_MIN.saturating_mul(1 << failures.min(10)).min(BACKOFF_MAX);
    // Without a source of randomness there is no jitter; the pause is still right.
    let jitter = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX) / 2.0;
    longest.mul_f64(1.0 - jitter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_limit_and_keep_at_least_a_half() {
        for (failures, longest) in [(0, BACKOFF_MIN), (1, 2 * BACKOFF_MIN), (10, BACKOFF_MAX), (u32::MAX, BACKOFF_MAX)]
        {
            let pause = backoff(failures);
            assert!(pause <= longest && pause >= longest / 2, "{failures}: {pause:?}");
        }
    }
}
