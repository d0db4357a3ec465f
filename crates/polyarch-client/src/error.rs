use std::fmt;
use std::time::Duration;

use polyarch_protocol::client::Refusal;
use polyarch_transport::{BindError, CredentialsError, Obstacle};

use crate::address::NodeAddress;
use crate::profile::ProfileError;

/// Why a call was not answered as asked. Each variant says what became of a write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A node understood the request and refused it. Nothing was written, unless the refusal says otherwise.
    #[error("{0}")]
    Refused(Refusal),
    /// No node could be connected to before the deadline, or ever ([`Error::obstacle`]). Nothing was written.
    #[error("{}: {}", heading(.tried), list(.tried))]
    Unreachable {
        /// Each node, and what was wrong with it.
        tried: Vec<Tried>,
    },
    /// There was no answer before the deadline. Nothing was written: it was a read, or the write was never sent.
    #[error("{node} did not answer within {after:?}; is it overloaded? Ask again, or with a longer timeout")]
    TimedOut {
        /// The node that was waited for.
        node: NodeAddress,
        /// The call's whole time.
        after: Duration,
    },
    /// A write was sent and its answer was lost. It is **not known whether it was done**, and it was not sent again.
    ///
    /// To send it again blindly could replace what others have written since. Read what it was to change, then, if it is
    /// not there, write again with the context of that read ([`Record::shown`](crate::Record::shown)).
    #[error(
        "whether this write was done is not known: {node}: {cause}. \
         Read the keys, and if they do not show it, write again with the context of that read"
    )]
    OutcomeUnknown {
        /// The node that it was sent to.
        node: NodeAddress,
        /// How the answer was lost.
        cause: String,
    },
    /// A node broke the rules of the protocol, or speaks another version of it; its connection was closed. It was a read.
    /// Compare the versions of node and client.
    #[error("{node} does not speak this client's protocol: {cause}. Compare the versions of node and client")]
    Protocol {
        /// The node.
        node: NodeAddress,
        /// What it did.
        cause: String,
    },
    /// A node does not send a snapshot, or not to its end, for the reason that it says. What came of it stands: ask again,
    /// with what is there.
    #[error("{node} sends no snapshot: {reason}")]
    SnapshotGivenUp {
        /// The node.
        node: NodeAddress,
        /// What it said.
        reason: String,
    },
    /// A snapshot broke off. What came of it stands: ask again, with what is there.
    #[error("the snapshot of {node} broke off: {cause}")]
    SnapshotBrokeOff {
        /// The node.
        node: NodeAddress,
        /// What happened.
        cause: String,
    },
    /// The client's settings cannot be used.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The client's certificate, key or authority cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The client's socket could not be opened.
    #[error("the client cannot open its socket: {0}")]
    Socket(#[from] BindError),
}

impl Error {
    /// Whether no answer was had: not reachable, not in time, or lost.
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut { .. } | Self::OutcomeUnknown { .. })
    }

    /// What stands between this client and all nodes alike; `None` unless it is [`Error::Unreachable`].
    pub fn obstacle(&self) -> Option<Obstacle> {
        match self {
            Self::Unreachable { tried } => Some(obstacle(tried)),
            _ => None,
        }
    }

    /// Whether a node refused the request.
    pub fn is_refusal(&self) -> bool {
        self.refusal().is_some()
    }

    /// What a node refused the request for.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whether the write may have been done although there is no answer.
    pub fn is_outcome_unknown(&self) -> bool {
        matches!(self, Self::OutcomeUnknown { .. } | Self::Refused(Refusal::StorageFailed(_)))
    }

    /// Whether the client was set up wrongly: profile, certificates or socket. No node was asked.
    pub fn is_setup(&self) -> bool {
        matches!(self, Self::Profile(_) | Self::Credentials(_) | Self::Socket(_))
    }
}

/// A node that could not be reached, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The node.
    pub node: NodeAddress,
    /// What was wrong with it.
    pub reason: String,
    /// The kind of it.
    pub obstacle: Obstacle,
}

impl Tried {
    /// A node that did not answer, or not to the end.
    pub(crate) fn unanswered(node: NodeAddress, reason: impl Into<String>) -> Self {
        Self { node, reason: reason.into(), obstacle: Obstacle::NoAnswer }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Most reasons begin with the address that was dialled.
        if self.reason.contains(self.node.as_str()) {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.node, self.reason)
        }
    }
}

/// That of all nodes; else that there is no answer, which another node or another time may give.
fn obstacle(tried: &[Tried]) -> Obstacle {
    let first = tried.first().map_or(Obstacle::NoAnswer, |tried| tried.obstacle);
    match tried.iter().all(|tried| tried.obstacle == first) {
        true => first,
        false => Obstacle::NoAnswer,
    }
}

fn heading(tried: &[Tried]) -> &'static str {
    match obstacle(tried) {
        Obstacle::NotTrusted => "no node has a certificate that is accepted here",
        Obstacle::Refused => "this client's certificate is not accepted there",
        _ => "no node could be reached",
    }
}

fn list(tried: &[Tried]) -> String {
    tried.iter().map(Tried::to_string).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_says_what_stands_in_the_way_of_all() {
        let tried = |obstacle| Tried { node: "a:1".parse().unwrap(), reason: "so".to_owned(), obstacle };
        use Obstacle::{NoAnswer, NotTrusted, Refused};
        for (obstacles, expected, message) in [
            (
                vec![NotTrusted, NotTrusted],
                NotTrusted,
                "no node has a certificate that is accepted here: a:1: so; a:1: so",
            ),
            (vec![Refused], Refused, "this client's certificate is not accepted there: a:1: so"),
            (vec![NotTrusted, NoAnswer], NoAnswer, "no node could be reached: a:1: so; a:1: so"),
        ] {
            let error = Error::Unreachable { tried: obstacles.into_iter().map(tried).collect() };
            assert_eq!((error.obstacle(), error.to_string().as_str()), (Some(expected), message));
        }
    }
}
