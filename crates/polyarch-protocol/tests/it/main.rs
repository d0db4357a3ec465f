//! The pure replica, from the outside: one binary, for each would compile the whole replica again.

#[path = "../support/messages.rs"]
mod messages;
#[path = "../support/samples.rs"]
mod samples;
#[path = "../support/mod.rs"]
mod support;

mod amnesia;
mod bases;
mod clocks;
mod coordinator;
mod differences;
mod disk_full;
mod feeds;
mod formats;
mod hostile_bytes;
mod members;
mod progress;
mod quarantine;
mod scripts;
mod sessions;
mod snapshot_source;
mod snapshots;
mod topology;
mod twins;
mod wired;
