//! Fuzzing of all that reads bytes from outside: frames, files, texts, and what members and clients make of them.
//!
//! A [`Target`] is a function of bytes that panics when something is wrong: when a reader panics, when what it read is
//! written as something else, or when a node comes out of it with less than its laws promise. Each runs under a bound of
//! memory and time ([`bounds`]).
//!
//! The same functions run in two ways. `cargo test -p polyarch-fuzz` gives them the inputs in `corpus/`, which fuzzing
//! found and people chose, and those that the golden fixtures make ([`seeds`]). `cargo run -p polyarch-fuzz -- run` builds
//! this crate once more, instrumented, and lets libFuzzer look for new ones.

pub mod bounds;
pub mod script;
pub mod seeds;
pub mod segments;
pub mod targets;

use bounds::{Cost, MemoryBound};

/// A function of bytes, and what it may cost.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: that of the function, of its directory in `corpus/`, and on the command line.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Bytes of an input at most.
    pub len_max: usize,
    /// What an input may hold of memory.
    pub memory: MemoryBound,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

const fn target(
    name: &'static str,
    run: fn(&[u8]),
    len_max: usize,
    memory: (usize, usize),
    seeds: fn() -> Vec<Vec<u8>>,
) -> Target {
    Target { name, run, len_max, memory: MemoryBound { ahead: memory.0, per_byte: memory.1 }, seeds }
}

/// All of them.
pub const TARGETS: &[Target] = &[
    target("wire_frames", targets::wire_frames, 4_096, (64 << 10, 200), seeds::frames),
    target("compressed_groups", targets::compressed_groups, 1_024, (64 << 10, 5_000), seeds::compressed_groups),
    target("applied_sets", targets::applied_sets, 512, (256 << 10, 200), seeds::scripts),
    target("contexts_and_tokens", targets::contexts_and_tokens, 1_024, (256 << 10, 200), seeds::scripts),
    target("histories", targets::histories, 1_024, (2 << 20, 500), seeds::scripts),
    target("log_recovery", targets::log_recovery, 2_048, (4 << 20, 500), seeds::scripts),
    target("snapshot_parts", targets::snapshot_parts, 1_024, (4 << 20, 500), seeds::scripts),
    target("snapshot_requests", targets::snapshot_requests, 512, (4 << 20, 500), seeds::scripts),
    target("backups", targets::backups, 1_024, (8 << 20, 500), seeds::scripts),
    target("hostile_members", targets::hostile_members, 1_024, (8 << 20, 1_000), seeds::scripts),
    target("configurations", targets::configurations, 2_048, (2 << 20, 500), seeds::configurations),
    target("names", targets::names, 2_048, (64 << 10, 200), seeds::names),
    target("command_lines", targets::command_lines, 2_048, (64 << 10, 200), seeds::command_lines),
];

impl Target {
    /// The target of that name.
    pub fn find(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Runs it on an input, within its bounds.
    ///
    /// # Panics
    /// When something is wrong.
    pub fn check(&self, data: &[u8]) -> Cost {
        bounds::check(self.name, self.memory, self.run, data)
    }
}
