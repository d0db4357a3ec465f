//! A write set supersedes what its client meant, no more and no less: what the context named, or
//! what the node held of all that was written there before, acked or not.
//!
//! Source: "a write can only remove what it saw". The trap is a coordinator that looks at the
//! durable state while earlier writes wait for their sync.

use polyarch_crdt::Dot;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "supersedes_what_was_shown";

/// Both in order.
pub fn check(dot: Dot, superseded: &[Dot], meant: &[Dot]) -> Checked {
    match superseded == meant {
        true => Ok(()),
        false => Err(Violation::new(NAME, format!("{dot} supersedes {superseded:?}, its client meant {meant:?}"))),
    }
}
