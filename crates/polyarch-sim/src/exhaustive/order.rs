//! An order of events, and which of those that come to the same is run.
//!
//! Three things make orders come to the same. *Renaming*: the nodes are alike, so an order and the same
//! with its nodes renamed have the same outcome, renamed. *Exchange*: two events in a row that have no
//! node in common may change places (nodes that an event looks at count, too; a node's clock goes with its
//! own events). *Naming*: a write may go by any context that names the same writes. Of all orders that can
//! be made of one another by such steps the least is run, by [`Event`]'s `Ord`, place by place. No step
//! makes that one less, nor is there one that would make a beginning of it less. So whatever is left out
//! here, and where what may follow is asked for, is an order that one step makes less, or one with an event
//! that changes nothing, without which it is a shorter order. Some that are not the least are run, too.

use std::fmt;

use super::event::Event;

/// Events in the order in which they happen.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(pub Vec<Event>);

impl Order {
    /// Whether this order, of whose events all but the last were found to pass, may be the least of its
    /// class.
    pub(super) fn is_least(&self) -> bool {
        self.names_in_order() && !self.ends_exchanged()
    }

    /// Whether nodes are named in the order of their places, each for the first time.
    fn names_in_order(&self) -> bool {
        let mut next = 0;
        let named = self.0.iter().flat_map(|event| event.named()).flatten();
        named.into_iter().all(|at| {
            let is_in_order = at <= next;
            next = next.max(at + 1);
            is_in_order
        })
    }

    fn ends_exchanged(&self) -> bool {
        match self.0.as_slice() {
            [.., one, two] => one.nodes() & two.nodes() == 0 && two < one,
            _ => false,
        }
    }

    /// How many orders are this one with its nodes renamed.
    pub(super) fn renamings(&self) -> u64 {
        let nodes = self.0.iter().fold(0, |nodes, event| nodes | event.nodes());
        match nodes.count_ones() {
            0 => 1,
            1 => 3,
            _ => 6,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(Event::to_string).collect();
        f.write_str(&words.join("; "))
    }
}

impl std::str::FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words = text.split(';').map(str::trim).filter(|word| !word.is_empty());
        words.map(str::parse).collect::<Result<_, _>>().map(Self)
    }
}
