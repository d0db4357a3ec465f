//! The replication protocol of Polyarch, free of clocks, disks, sockets and threads.
//!
//! [`Replica`] is the state machine of one node, [`Feed`] the sending side of a feed. Both take
//! time, randomness and storage as arguments, so that a simulator runs the very code that a server
//! runs. The rest of the crate is what they exchange and keep: write sets, peer and client
//! messages, the system keyspace, and the traits of storage.
//!
//! **Architecture Invariant:** nothing in this crate reads a clock, a disk, a socket, a random
//! source or a `HashMap` in iteration order.

pub mod catalog;
pub mod client;
pub mod codec;
pub mod condition;
pub mod limits;
pub mod peer;
pub mod storage;

mod bases;
mod buckets;
mod chain;
mod digest;
mod event;
mod feed;
mod flood;
mod frontier;
mod keyspace;
mod plan;
mod progress;
mod reach;
mod replica;
mod snapshot;
mod topology;
mod waiting;
mod write_set;

pub use bases::{BasedSet, Bases};
pub use buckets::{
    BUCKETS_COMPARED_MAX, BucketKeys, BucketReader, BucketsWanted, DifferingKey, HeldBy, KeyHash, PeerDigest,
};
pub use chain::{ChainHash, ChainHead, ChainHeads};
pub use digest::{DIGEST_BUCKETS, Digest, of_all_buckets};
pub use event::{Event, LostEpoch};
pub use feed::{Feed, FeedStep};
pub use frontier::{ApplySummary, Frontier, FrontierV1};
pub use keyspace::{KeyspaceId, RecordKey};
pub use limits::Limits;
pub use plan::{FeedTimings, LinkPlan, LinkSight, LinkTimings, LinkWishes};
pub use progress::{MemberProgress, Progress, ProgressTaken};
pub use reach::{Distances, LinkState, LinkStates, Taken};
pub use replica::{Durability, Input, LinkId, Now, Output, Replica, ReplicaConfig, RequestTag, Timings, context_scope};
pub use snapshot::{
    ForkedOrigin, FrontierOutline, KeysHeld, Resume, SnapshotBegin, SnapshotId, SnapshotPart, SnapshotRecord,
    SnapshotRecords, SnapshotRequest, SnapshotSource, SnapshotStep,
};
pub use storage::{LogBatch, LogMark, LogPosition, LogReadError, LogSource, Records, Storage, StorageError};
pub use topology::{Edge, ParseTopologyError, Topology, TopologyError};
pub use write_set::{Change, Dependencies, Effect, WriteSet, WriteSetError};
