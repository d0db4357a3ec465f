//! Bugs that a test build can switch on at run time, to prove that the tests would see them.
//!
//! Without the cargo feature `seeded-bugs`, which no shipped binary has, [`seeded_bug`] is a
//! constant `false` and the code behind it is gone.

/// Whether the bug of this name is switched on in this thread.
#[cfg(not(feature = "seeded-bugs"))]
#[inline(always)]
pub const fn seeded_bug(_name: &str) -> bool {
    false
}

#[cfg(feature = "seeded-bugs")]
pub use on::{seeded_bug, switch_on};

#[cfg(feature = "seeded-bugs")]
mod on {
    use std::cell::Cell;

    thread_local! {
        static BUG: Cell<Option<&'static str>> = const { Cell::new(None) };
    }

    /// Whether the bug of this name is switched on in this thread.
    pub fn seeded_bug(name: &str) -> bool {
        BUG.get() == Some(name)
    }

    /// Switches one bug on in this thread, or all off.
    pub fn switch_on(name: Option<&'static str>) {
        BUG.set(name);
    }
}
