//! Polyarch is a multi-master key-value store. Every node accepts every write, at any time, also alone. Nodes exchange
//! what they wrote until they are equal; what was written concurrently is kept, shown, and merged by the rule that a
//! keyspace was created with.
//!
//! This crate is the front door: what an application needs to use a cluster, and to run a node of its own.
//!
//! - [`Client`] reads and writes a cluster. [`Session`] sees its own writes, whichever node answers.
//! - [`Node`] is a server, for programs that run one within themselves. The `polyarch` binary does it with `serve`.
//!
//! ```no_run
//! use polyarch::{Client, KeyspaceKind, Profile};
//!
//! # async fn example() -> Result<(), polyarch::Error> {
//! let client = Client::connect(Profile::load("certs/client.toml")?)?;
//! client.create_keyspace("carts", KeyspaceKind::Mv).await?;
//! client.put("carts", "ada", "2 apples").await?;
//! for value in client.get("carts", "ada").await?.iter().flat_map(|record| record.values()) {
//!     println!("{}", String::from_utf8_lossy(value));
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A node within a program, from a configuration file and a data directory that [`node::init`] or [`node::join`] has
//! prepared:
//!
//! ```no_run
//! use polyarch::{Node, NodeConfig};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = NodeConfig::load("certs/node-1.toml".as_ref())?;
//! let node = Node::start(&config)?;
//! println!("listening on {}", node.address());
//! node.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! The feature `cli`, on by default, is the `polyarch` binary. A program that only uses a cluster or runs a node leaves
//! it out.

pub use polyarch_client as client;
pub use polyarch_node as node;

pub use polyarch_client::{
    Batch, Client, Dot, Error, Hlc, KeyspaceKind, NodeAddress, Profile, Record, Refusal, Scan, SealedContext, Session,
    SiblingView, StatusView, Supersede, Written,
};
pub use polyarch_node::{Node, NodeConfig};
