//! The plans of all nodes at once, over a network in which links work or do not.
//!
//! [`Cluster`] is a model: no messages but link states, no write sets but numbers that rise. What
//! decides in it is the code that decides in a replica.

mod cluster;
mod every_graph;
mod graphs;
mod scripted;

use cluster::Cluster;
