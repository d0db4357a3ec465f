//! Every order of a few events on three nodes: puts, deletes with each context that there is, feeds,
//! power cuts, kills, disks put back, checkpoints, and snapshots in steps between which the others
//! happen.
//!
//! The nodes are the shipped replica over the shipped store, on simulated disks; what they should hold is worked
//! out from the words of `docs/consistency.md`. Of orders that come to the same, one is run: `order.rs` says
//! why that leaves out nothing. After each event all that it touched is looked
//! at, and after each order all nodes are let to feed one another and have to be equal.
//!
//! Unlike seeds, which go far with luck, this leaves out nothing near: whatever takes no more than so
//! many events to break is broken here, and the order that breaks it is the shortest there is.

mod event;
mod fetches;
mod heal;
mod machine;
mod next;
mod order;
mod search;
mod start;
mod truth;

pub use event::{Context, Ending, Event, Feeding};
pub use order::Order;
pub use search::{Broken, Found, Scope, Search};

/// Nodes.
pub(crate) const NODES: usize = 3;
/// Keys at most.
pub(crate) const KEYS_MAX: usize = 2;
