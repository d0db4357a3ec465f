//! The laws of the algebra, from the outside: one binary, so that it is built once.

#[path = "../support/mod.rs"]
mod support;

mod applied_set;
mod base;
mod hlc;
mod hostile_bytes;
mod oracle;
mod permutations;
mod pieces;
mod second_oracle;
mod views;
