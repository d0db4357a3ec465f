//! A Polyarch server: the replica, the store and the transport wired together.
//!
//! - `driver`: the one thread that owns the replica and the log; group commit happens here.
//! - `links`: one task set for each link to another member.
//! - `service`: one task for each stream of a client; reads are answered there, beside the driver.
//! - `snapshots`: both sides of a snapshot: the donor's walk, and what comes in.
//! - `view`: what those tasks may see: what is durable.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let config = polyarch_node::NodeConfig::load("node.toml".as_ref())?;
//! let node = polyarch_node::Node::start(&config)?;
//! println!("listening on {}", node.address());
//! node.stop().await;
//! # Ok(())
//! # }
//! ```

mod authorize;
mod buckets;
mod chain_hash;
mod config;
mod driver;
mod events;
mod founding;
mod links;
mod node;
mod repairing;
mod restoring;
mod retention;
mod salvage;
mod service;
mod snapshots;
mod view;

pub use authorize::Verb;
pub use config::{
    ConfigError, DurabilityConfig, GossipConfig, LimitsConfig, LogRetention, NodeConfig, Roles, RuntimeConfig,
    StorageConfig,
};
pub use founding::{Founded, NodeIdentity, init, join};
pub use node::{Node, StartError};
pub use repairing::{RepairDataError, abandon_salvage, repair, resume_repair, survey};
pub use restoring::{RestoreError, RestoreSource, Restored, restore, restore_is_unfinished};

/// Reads records on any thread.
pub(crate) type Reader = polyarch_store::StateReader<polyarch_store::state::SledState>;
/// Reads the log on any thread.
pub(crate) type LogReader = polyarch_store::log::LogReader<polyarch_store::files::Directory>;

/// 64 random bits from the system.
///
/// # Panics
/// When the system has no random numbers to give: epochs would then not be unique.
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("the system gives random numbers");
    u64::from_le_bytes(bytes)
}

pub(crate) fn random_u128() -> u128 {
    u128::from(random_u64()) << 64 | u128::from(random_u64())
}
