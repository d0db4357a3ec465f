//! What the program does, one command a file.

pub(crate) mod cases;
pub(crate) mod exhaust;
pub(crate) mod outside;
pub(crate) mod run;

use std::io::{IsTerminal, Write};
use std::num::NonZero;

/// Threads where nothing else is said.
pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

/// Shows on a terminal how far something is.
pub(crate) fn show_progress(done: u64, words: &dyn Fn() -> String) {
    if done.is_multiple_of(10) && std::io::stderr().is_terminal() {
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "\r{:<70}", words());
        let _ = stderr.flush();
    }
}

/// Takes it away again.
pub(crate) fn clear_progress() {
    if std::io::stderr().is_terminal() {
        eprint!("\r{:70}\r", "");
    }
}
