//! Snapshots: walked at one node, fetched into a file, joined at another beside its running store.

#[path = "../support/mod.rs"]
mod support;

mod joins;
mod walk;
