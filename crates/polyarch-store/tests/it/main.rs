//! Log, memtable and state, from the outside: one binary, so that it is built once.

#[path = "../support/mod.rs"]
mod support;

mod crash;
mod directory;
mod readers;
mod repair;
mod snapshots;
mod state_damage;
mod storage_suite;
