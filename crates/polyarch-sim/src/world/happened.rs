//! What of all that was drawn happened, so that a case can name it, and be told in words.

use std::fmt;

use polyarch_protocol::client::{Request, Supersede, WriteRequest};

use super::{Phase, World};
use crate::case::Step;

/// One of the things that a case can leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drawn {
    /// The n-th fault.
    Fault(u64),
    /// The n-th act of operators.
    Act(u64),
    /// A step of a client.
    Step(Step),
}

/// One of them that happened, or was to and found nothing to happen to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happening {
    /// When.
    pub at_us: u64,
    /// Which.
    pub drawn: Drawn,
    /// In words.
    pub words: String,
}

impl fmt::Display for Happening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8}.{:03} ms  ", self.at_us / 1_000, self.at_us % 1_000)?;
        match self.drawn {
            Drawn::Fault(nth) => write!(f, "fault {nth}: {}", self.words),
            Drawn::Act(nth) => write!(f, "act {nth}: {}", self.words),
            Drawn::Step(step) => write!(f, "step {step}: {}", self.words),
        }
    }
}

impl World {
    /// All that happened of what a case can leave out, in order, since this was last asked.
    pub fn take_happened(&mut self) -> Vec<Happening> {
        std::mem::take(&mut self.happened)
    }

    /// When all faults ended, if they have.
    pub fn healed_at_us(&self) -> Option<u64> {
        self.healed_at_us
    }

    /// What time it is.
    pub fn now_us(&self) -> u64 {
        self.now_us
    }

    pub(super) fn has_happened(&mut self, drawn: Drawn, words: String) {
        self.happened.push(Happening { at_us: self.now_us, drawn, words });
    }

    /// The step that a client is at.
    pub(super) fn step_of(&self, client: usize) -> Step {
        Step { client, step: self.streams.steps_drawn(client) }
    }

    /// Notes what a client asks at its own time.
    pub(super) fn note_asked(&mut self, client: usize, request: &Request) {
        if self.phase == Phase::Safety {
            let node = self.nodes[self.clients[client].home].server_id;
            let words = format!("client {client} asks node {node} to {}", in_words(request));
            self.has_happened(Drawn::Step(self.step_of(client)), words);
        }
    }
}

fn in_words(request: &Request) -> String {
    match request {
        Request::Get { keyspace, key } => format!("get {keyspace}/{}", String::from_utf8_lossy(key)),
        Request::Write(write) => changes_in_words(write),
        other => format!("{other:?}"),
    }
}

fn changes_in_words(write: &WriteRequest) -> String {
    let changes = write.changes.iter().map(|change| {
        let key = format!("{}/{}", change.keyspace, String::from_utf8_lossy(&change.key));
        let what = match &change.put {
            Some(value) => format!("put {key} = {}", String::from_utf8_lossy(value)),
            None => format!("delete {key}"),
        };
        match change.supersede {
            Supersede::Held => format!("{what} over what it holds"),
            Supersede::Nothing => format!("{what} over nothing"),
            Supersede::Shown(_) => format!("{what} over what a read had shown"),
        }
    });
    changes.collect::<Vec<_>>().join(", ")
}
