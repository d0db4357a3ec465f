//! What the replica's tests share: a storage in memory, a node, a cluster whose links are queues,
//! the receiving side of a snapshot, the oracle, and scripts.
#![allow(dead_code, unused_imports, reason = "each test binary compiles all of this and uses its own part")]

mod cluster;
mod node;
mod script;
mod snapshots;
mod storage;

pub(crate) use cluster::Cluster;
pub(crate) use node::{CLUSTER, Node, change, config, foreign, heartbeat, key};
pub(crate) use script::run;
pub(crate) use snapshots::{Fetched, Oracle, digest_of};
pub(crate) use storage::{MemoryStorage, SEGMENT_WRITE_SETS, position};
