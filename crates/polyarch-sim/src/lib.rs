//! A seeded simulator of whole clusters.
//!
//! It runs the shipped replica, feeds, log and store, over a virtual network, clock and disk, with
//! everything going wrong that can, and judges what comes out by what is promised. A seed is a run:
//! it replays to the same trace hash. The way of FoundationDB's and TigerBeetle's simulators.
//!
//! - [`scenario`]: what a seed draws, as data: [`formation`], [`fault`] and all the rest
//! - [`world`]: nodes, network, clients and faults on one virtual clock
//! - [`invariants`]: what must hold, one a file
//! - [`registers`], [`History`]: what should be seen, worked out from the outside
//! - [`evidence`]: what a damaged disk may cost, worked out from the outside too
//! - [`script`], [`story`]: small worlds in which nothing happens but what is said
//! - [`exhaustive`]: every order of a few events on three nodes
//! - [`topologies`]: what each topology costs, counted in healthy clusters
//! - [`bugs`]: bugs that a run can switch on, to show that it sees them
//!
//! **Architecture Invariant:** nothing here reads a wall clock, a random source of the system, or a
//! `HashMap` in iteration order; all chance comes from the seed.

pub mod bugs;
pub mod case;
pub mod coverage;
pub mod disk;
pub mod evidence;
pub mod exhaustive;
pub mod fault;
pub mod formation;
pub mod invariants;
pub mod ledger;
pub mod node;
pub mod quiet;
pub mod registers;
pub mod run;
pub mod scenario;
pub mod script;
pub mod shrink;
pub mod story;
pub mod topologies;
pub mod world;

mod history;
mod rng;
mod trace;

pub use history::{History, IntendedChange, Intent, NodeHistory, Replaces};
pub use rng::Rng;
pub use trace::{Sink, Trace};
