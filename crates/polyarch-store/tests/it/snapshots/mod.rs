//! Snapshots: walked at one node, fetched into a file, joined at another beside its running store.

mod backup;
mod crashes;
mod file;
mod joins;
mod model;
mod walk;
