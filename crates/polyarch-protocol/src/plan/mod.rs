//! What a node plans from what it sees: which links it keeps ([`links`]), and which link feeds
//! which origin ([`feeds`]).
//!
//! Both are state machines without a clock that are asked again and again. All they share is the
//! graph of links that are up ([`crate::reach`]): the topology decides about links alone, feeds go
//! the shortest way over whatever links there are.

mod feeds;
mod links;

pub use feeds::FeedTimings;
pub(crate) use feeds::{FeedPlan, Peer, Sight};
pub use links::{LinkPlan, LinkSight, LinkTimings, LinkWishes};

#[cfg(test)]
mod tests;
