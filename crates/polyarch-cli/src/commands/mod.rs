//! One file for each family of commands.

pub(crate) mod certs;
pub(crate) mod node;
