//! What the replica's tests share: a storage in memory, a node, a cluster whose links are queues,
//! and scripts over it.
#![allow(dead_code, unused_imports, reason = "each test binary compiles all of this and uses its own part")]

mod cluster;
mod node;
mod script;
mod storage;

pub(crate) use cluster::Cluster;
pub(crate) use node::{CLUSTER, Node, change, config, foreign, heartbeat, key};
pub(crate) use script::run;
pub(crate) use storage::{MemoryStorage, SEGMENT_WRITE_SETS};
