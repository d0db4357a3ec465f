//! The client library of Polyarch: what an application links to read and write a cluster.
//!
//! A [`Client`] knows several nodes and talks to one of them, over one long-lived stream on which requests are
//! pipelined: whatever the tasks of a program ask at the same time travels together. Every node takes every read and
//! write, so when one is gone the client goes to another.
//!
//! ```no_run
//! use polyarch_client::{Client, KeyspaceKind, Profile};
//!
//! # async fn example() -> Result<(), polyarch_client::Error> {
//! let client = Client::connect(Profile::load("client.toml")?)?;
//! client.create_keyspace("carts", KeyspaceKind::Mv).await?;
//! client.put("carts", "ada", "2 apples").await?;
//!
//! // Concurrent writes are all kept. A write with what a read has shown replaces exactly that.
//! if let Some(record) = client.get("carts", "ada").await? {
//!     let merged = record.values().map(|value| String::from_utf8_lossy(value)).collect::<Vec<_>>().join(", ");
//!     client.put_with("carts", "ada", merged, record.shown()).await?;
//! }
//!
//! // A session sees its own writes, and never goes back in time, whichever node answers.
//! let session = client.session();
//! session.put("carts", "bob", "1 pear").await?;
//! assert!(session.get("carts", "bob").await?.is_some());
//! # Ok(())
//! # }
//! ```
//!
//! # What is retried, and what never is
//!
//! Every call has a deadline ([`Profile::timeout_ms`], [`Client::with_timeout`]), and within it:
//!
//! - What only reads is asked again at another node when a connection is lost.
//! - A write is sent again only if it certainly had no effect: it never left this process, or the node refused it
//!   because it is stopping, has not joined its cluster yet, is behind the session, or its storage failed before.
//! - Any other lost write ends as [`Error::OutcomeUnknown`]. To send it again blindly could bring back a value that
//!   somebody else has replaced in between; the error says what to do instead.
//!
//! # Order
//!
//! A connected client sends calls in the order in which their futures are first polled, and a read is answered after the
//! writes sent before it on the same connection have taken effect. A future that is dropped stops waiting. Its request is
//! taken back if it was not sent yet; a write that was sent may have been done.
//!
//! **Architecture Invariant:** this crate interprets no context and no value, and of a token only what it takes to join
//! two. It keeps nothing on disk, and nothing in memory beyond connections, requests in flight and session tokens.

mod address;
mod batch;
mod call;
mod client;
mod error;
mod link;
mod nodes;
mod profile;
mod record;
mod scan;
mod session;
mod snapshot;

pub use address::{AddressError, NodeAddress};
pub use batch::Batch;
pub use client::{Builder, Client};
pub use error::{Error, Tried};
pub use profile::{PROFILE_ENV, Profile, ProfileError};
pub use record::Record;
pub use scan::{Page, Scan};
pub use session::Session;
pub use snapshot::SnapshotStream;

pub use polyarch_crdt::{Dot, Hlc, Origin, SealedContext, TokenError};
pub use polyarch_protocol::catalog::{KeyspaceKind, MemberChange, MemberStatus};
pub use polyarch_protocol::client::{
    BucketPage, BucketScan, CountersView, EventView, FeedView, KeyspaceView, PeerView, RecordOutline, Refusal,
    SiblingOutline, SiblingView, StatusView, Supersede, Written,
};
pub use polyarch_protocol::condition::{
    ConditionView, DifferentView, ForkMember, ForkSide, PauseCause, PausedView, RegainedView, SalvageView, SnapshotView,
};
pub use polyarch_protocol::{
    ChainHash, DIGEST_BUCKETS, Digest, Edge, KeysHeld, KeyspaceId, ParseTopologyError, PeerDigest, RecordKey, Resume,
    SnapshotId, Topology, of_all_buckets,
};
pub use polyarch_transport::{BindError, CredentialsError, Obstacle, TransportConfig};
