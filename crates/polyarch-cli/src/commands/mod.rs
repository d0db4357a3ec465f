//! One file for each family of commands.

pub(crate) mod batch;
pub(crate) mod certs;
pub(crate) mod keyspace;
pub(crate) mod link;
pub(crate) mod log;
pub(crate) mod node;
pub(crate) mod record;
pub(crate) mod status;
pub(crate) mod transfer;
pub(crate) mod verify;
