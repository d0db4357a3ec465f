//! The algebra of Polyarch, free of clocks, disks, sockets and threads.
//!
//! One idea carries it: the identity of a transaction ([`Dot`], printed as a GTID), the set of
//! transactions a node has applied ([`AppliedSet`]) and the change a transaction makes to a
//! [`Record`] are the event, the causal context and the delta of a delta-state CRDT (Almeida,
//! Shoker, Baquero 2018), with one context for the whole node (Gonçalves et al., DottedDB, 2017).
//!
//! Two facts follow, and all else rests on them:
//!
//! - a value is live exactly when its dot has been applied and no applied write superseded it;
//! - a dot that is in the applied-set but not in the record was superseded or deleted, so no
//!   tombstone is needed to remember that.
//!
//! **Architecture Invariant:** nothing in this crate reads a clock, a disk, a socket, a random
//! source or a `HashMap` in iteration order. Whatever it needs of the world is an argument.

mod applied_set;
mod base;
mod context;
mod dot;
mod hlc;
mod record;
mod seeded;
mod token;
mod view;

pub use applied_set::AppliedSet;
pub use base::{Base, BaseError, ClosedEpoch};
pub use context::{CausalContext, ClusterKey, ClusterKeys, ContextError, SealedContext};
pub use dot::{Dot, Origin, ParseDotError};
pub use hlc::{Hlc, HlcClock, Observed};
pub use record::{Field, FieldChange, FieldPath, Outcome, Record, Sibling};
pub use seeded::seeded_bug;
#[cfg(feature = "seeded-bugs")]
pub use seeded::switch_on;
pub use token::{SessionToken, TokenError};
pub use view::{lww, mv};
