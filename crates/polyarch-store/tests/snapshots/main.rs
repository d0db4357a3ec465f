//! Snapshots: walked at one node, fetched into a file, joined at another beside its running store.

#[path = "../support/mod.rs"]
mod support;

mod backup;
mod crashes;
mod file;
mod joins;
mod model;
mod walk;
