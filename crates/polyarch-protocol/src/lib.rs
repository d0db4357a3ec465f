//! The pure replica.

pub mod limits;

mod chain;
mod keyspace;
mod write_set;

pub use chain::{ChainHash, ChainHead, ChainHeads};
pub use keyspace::{KeyspaceId, RecordKey};
pub use limits::Limits;
pub use write_set::{Change, Dependencies, Effect, WriteSet, WriteSetError};
