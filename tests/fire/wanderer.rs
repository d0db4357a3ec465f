//! A session whose every call goes to another node.

use std::time::Duration;

use polyarch_client::{Client, NodeAddress};

use crate::support::writers::Rng;

/// How long one node may take to answer before the session turns to another.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// Clients of one session, one for each node. What the session has seen goes along from node to node.
pub(crate) struct Wanderer {
    at: Vec<Client>,
    rng: Rng,
}

impl Wanderer {
    /// A new session over these nodes.
    pub(crate) fn new(client: &Client, nodes: &[NodeAddress], seed: u64) -> Self {
        let session = client.with_timeout(ANSWER_MAX).session();
        Self { at: nodes.iter().map(|node| session.only(node)).collect(), rng: Rng(seed) }
    }

    /// The client of the next call, at a node that is drawn.
    pub(crate) fn anywhere(&mut self) -> Client {
        let at = self.below(self.at.len() as u64) as usize;
        self.at[at].clone()
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.rng.below(bound)
    }
}
