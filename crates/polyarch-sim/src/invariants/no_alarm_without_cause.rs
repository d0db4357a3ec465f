//! A node raises the alarms that speak of a bug or a damaged disk only when there is one. The
//! simulated disks keep what was synced, so there is none. That a topology was lost is said when two
//! were set of which neither saw the other, that a server was removed when an operator wanted it, and that
//! a disk is full when it was, and
//! that a peer's log does not reach back when logs are cut, and that a server has two processes when it had.
//!
//! Source: an operator who was woken for nothing three times does not get up the fourth time.

use polyarch_crdt::Dot;
use polyarch_protocol::Event;

use super::{Checked, Violation};

/// The invariant's name.
pub const NAME: &str = "no_alarm_without_cause";

/// What operators did, as the event's node is concerned.
#[derive(Debug)]
pub struct Causes<F> {
    /// Whether the topology of a write set was set while another was, which it did not see and which
    /// did not see it.
    pub topology_set_at_once: F,
    /// Whether the node was ever removed.
    pub was_removed: bool,
    /// Whether any server ever had two processes.
    pub had_twin: bool,
    /// Whether the node's disk had no room at some time since it started.
    pub disk_was_full: bool,
    /// Whether nodes let go of log that others lack.
    pub logs_are_cut: bool,
}

/// An event that a node reported.
pub fn check(server_id: u32, event: &Event, causes: &Causes<impl Fn(Dot) -> bool>) -> Checked {
    let is_false = match event {
        Event::Fork { .. }
        | Event::Poisoned { .. }
        | Event::Unreadable { .. }
        | Event::DigestMismatch { .. }
        | Event::BucketsDiffer { .. }
        | Event::KeysDiffer { .. }
        | Event::RecordsAltered { .. }
        | Event::DigestsEqual { .. }
        | Event::EpochClosed { .. } => true,
        Event::Twin { .. } => !causes.had_twin,
        Event::TopologyLost { dot, .. } => !(causes.topology_set_at_once)(*dot),
        Event::ToldRemoved { .. } => !causes.was_removed,
        Event::NotFed { .. } => !causes.logs_are_cut,
        Event::DiskFull { .. } => !causes.disk_was_full,
        _ => false,
    };
    match is_false {
        true => Err(Violation::new(NAME, format!("node {server_id}: {event}"))),
        false => Ok(()),
    }
}
