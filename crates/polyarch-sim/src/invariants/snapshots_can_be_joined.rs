//! What a donor sends can be joined: it is whole, follows on itself, and tells the histories that the receiver
//! knows.
//!
//! Source: a donor goes on taking writes, checkpoints and lets log go while it is read.

/// The invariant's name.
pub const NAME: &str = "snapshots_can_be_joined";
