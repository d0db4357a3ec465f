//! Both sides of a snapshot: the donor's walk, and what comes in.

mod donor;
mod receiver;

pub(crate) use donor::{Donor, Pinned, give_up};
pub(crate) use receiver::{Fetch, Incoming, SnapshotProgress};
