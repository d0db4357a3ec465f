//! A node raises the alarms that speak of a bug or a damaged disk only when there is one. The
//! simulated disks keep what was synced, so there is none.
//!
//! Source: an operator who was woken for nothing three times does not get up the fourth time.

use polyarch_protocol::Event;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "no_alarm_without_cause";

/// An event that a node reported.
pub fn check(server_id: u32, event: &Event) -> Checked {
    let is_false = matches!(
        event,
        Event::Fork { .. }
            | Event::Poisoned { .. }
            | Event::DigestMismatch { .. }
            | Event::NotFed { .. }
            | Event::EpochClosed { .. }
            | Event::Twin { .. }
            | Event::TopologyLost { .. }
    );
    match is_false {
        true => Err(Violation::new(NAME, format!("node {server_id}: {event}"))),
        false => Ok(()),
    }
}
