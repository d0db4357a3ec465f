//! Nodes that have applied the same write sets have the same digest, at every moment, and it is the
//! digest of the records they hold.
//!
//! Source: strong eventual consistency (Shapiro et al. 2011), made checkable.

use std::collections::BTreeMap;

use super::{Checked, Violation};
use crate::registers::Seen;

/// The invariant's name.
pub const NAME: &str = "equal_applied_sets_equal_digests";

/// The digest of each applied-set that any node ever had.
#[derive(Debug, Default)]
pub struct Digests {
    /// By how many write sets it includes, and which: most are told apart by the number.
    known: BTreeMap<u64, BTreeMap<Seen, (u128, u32)>>,
}

impl Digests {
    /// Notes that a node has this digest now. It is compared over all nodes and all times.
    pub fn check(&mut self, server_id: u32, seen: &Seen, digest: u128) -> Checked {
        let known = self.known.entry(seen.iter().map(|dot| dot.seq).sum()).or_default();
        match known.get(seen) {
            Some((known, by)) if *known != digest => Err(Violation::new(
                NAME,
                format!("node {server_id} has digest {digest:032x} under {seen:?}, node {by} had {known:032x}"),
            )),
            Some(_) => Ok(()),
            None => {
                known.insert(seen.clone(), (digest, server_id));
                Ok(())
            }
        }
    }
}

/// The digest that a node keeps up write by write is that of a full scan of its records.
pub fn check_recount(server_id: u32, kept: u128, counted: u128) -> Checked {
    match kept == counted {
        true => Ok(()),
        false => Err(Violation::new(
            NAME,
            format!("node {server_id} keeps digest {kept:032x}, its records add up to {counted:032x}"),
        )),
    }
}
