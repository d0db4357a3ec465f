//! What each node should hold and show, worked out from the words of `docs/consistency.md` alone: a
//! value is shown until a write that saw it replaces it.
//!
//! Sets of writes are bits of a number, in the order in which the writes came into being: no order of
//! events has more of them than it has events. Nothing here calls the code under test, but for reading
//! which dot a write set has, and its stamp.

use std::collections::BTreeMap;

use bytes::Bytes;
use polyarch_crdt::{Dot, Hlc};

use super::NODES;
use crate::invariants::{Checked, Violation};

/// Writes, a bit each.
pub(super) type Writes = u32;

/// A client's write.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) dot: Dot,
    pub(super) hlc: Hlc,
    pub(super) bytes: Bytes,
    pub(super) meant: Meant,
    /// What its node had applied when it wrote it.
    saw: Writes,
}

/// What a client meant a write to do.
#[derive(Debug, Clone)]
pub(super) struct Meant {
    pub(super) key: usize,
    /// `None` deletes.
    pub(super) value: Option<Bytes>,
    /// The writes that it was shown, or that its node held, and that it replaces.
    pub(super) names: Writes,
}

/// What one node should have applied.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Held {
    /// Also what a power cut would take.
    pub(super) staged: Writes,
    pub(super) durable: Writes,
}

/// All that was written, and who should have it.
#[derive(Debug, Default)]
pub(super) struct Truth {
    known: Vec<Known>,
    pub(super) nodes: [Held; NODES],
    /// Written before the first event: every disk has these.
    pub(super) first: Writes,
    acked: Writes,
    /// Of those acknowledged, what the last disk that had it lost when it was set back.
    lost: Writes,
    digests: BTreeMap<Writes, u128>,
}

/// The names of `crate::invariants` that are broken here too.
pub(super) mod names {
    pub(in super::super) use crate::invariants::acked_is_durable::NAME as ACKED;
    pub(in super::super) use crate::invariants::applied_once_and_in_order::NAME as ONCE;
    pub(in super::super) use crate::invariants::causal_order::NAME as CAUSAL;
    pub(in super::super) use crate::invariants::context_matches_values::NAME as CONTEXT;
    pub(in super::super) use crate::invariants::converges::NAME as CONVERGES;
    pub(in super::super) use crate::invariants::equal_applied_sets_equal_digests::NAME as DIGESTS;
    pub(in super::super) use crate::invariants::gtid_never_two_payloads::NAME as PAYLOADS;
    pub(in super::super) use crate::invariants::lww_winner_is_greatest::NAME as WINNER;
    pub(in super::super) use crate::invariants::no_alarm_without_cause::NAME as ALARM;
    pub(in super::super) use crate::invariants::node_always_starts::NAME as STARTS;
    pub(in super::super) use crate::invariants::nothing_leaves_before_durable::NAME as LEAVES;
    pub(in super::super) use crate::invariants::register_shows_unsuperseded::NAME as SHOWS;
    pub(in super::super) use crate::invariants::session_never_goes_back::NAME as SESSION;
    pub(in super::super) use crate::invariants::snapshots_can_be_joined::NAME as JOINED;
    pub(in super::super) use crate::invariants::stamps_follow_causality::NAME as STAMPS;
    /// Every node accepts every write.
    pub(in super::super) const ACCEPTED: &str = "every_write_is_accepted";
}

impl Truth {
    /// The write of a dot.
    pub(super) fn find(&self, dot: Dot) -> Option<usize> {
        self.known.iter().position(|known| known.dot == dot)
    }

    pub(super) fn known(&self) -> impl Iterator<Item = (Writes, &Known)> {
        self.known.iter().enumerate().map(|(at, known)| (1 << at, known))
    }

    /// Adds what every node has in the beginning.
    pub(super) fn begin_with(&mut self, dot: Dot, hlc: Hlc, bytes: Bytes, meant: Meant) {
        let bit = 1 << self.known.len();
        self.known.push(Known { dot, hlc, bytes, meant, saw: self.first });
        self.first |= bit;
        self.acked |= bit;
        self.nodes = [Held { staged: self.first, durable: self.first }; NODES];
    }

    /// A node gave its log a write set: one that is known, or its own as a client meant it.
    pub(super) fn appended(&mut self, at: usize, dot: Dot, hlc: Hlc, bytes: &Bytes, meant: Option<Meant>) -> Checked {
        let staged = self.nodes[at].staged;
        let place = match (self.find(dot), meant) {
            (Some(place), _) => {
                let known = &self.known[place];
                if known.bytes != *bytes {
                    return Err(violation(names::PAYLOADS, at, format!("has another write set under {dot}")));
                }
                if known.saw & !staged != 0 {
                    return Err(violation(names::CAUSAL, at, format!("applied {dot} before what that depends on")));
                }
                place
            }
            (None, Some(meant)) => {
                let seen = self.known().filter(|(bit, _)| staged & bit != 0);
                if seen.map(|(_, known)| known.hlc).max().is_some_and(|last| last >= hlc) {
                    return Err(violation(names::STAMPS, at, format!("stamps {dot} no later than what it saw")));
                }
                self.known.push(Known { dot, hlc, bytes: bytes.clone(), meant, saw: staged });
                self.known.len() - 1
            }
            (None, None) => return Err(violation(names::PAYLOADS, at, format!("has {dot}, which nobody wrote"))),
        };
        if staged & 1 << place != 0 {
            return Err(violation(names::ONCE, at, format!("applied {dot} twice")));
        }
        self.nodes[at].staged |= 1 << place;
        Ok(())
    }

    /// All that a node staged is synced.
    pub(super) fn synced(&mut self, at: usize) {
        self.nodes[at].durable = self.nodes[at].staged;
    }

    /// A client was told that a write is written.
    pub(super) fn acknowledged(&mut self, at: usize, dot: Dot) -> Checked {
        let bit = self.find(dot).map_or(0, |place| 1 << place);
        self.acked |= bit;
        match self.nodes[at].durable & bit != 0 {
            true => Ok(()),
            false => Err(violation(names::LEAVES, at, format!("acknowledged {dot}, which is not synced"))),
        }
    }

    /// A process ended; `durable` is what its disk has.
    pub(super) fn ended(&mut self, at: usize, durable: Writes) {
        self.nodes[at] = Held { staged: durable, durable };
        let kept = self.nodes.iter().fold(0, |all, node| all | node.durable);
        self.lost = self.acked & !kept;
    }

    /// The writes that a key should show to whoever has applied these.
    pub(super) fn live(&self, applied: Writes, key: usize) -> Writes {
        let of_key = || self.known().filter(|(bit, known)| applied & bit != 0 && known.meant.key == key);
        let superseded = of_key().fold(0, |all, (_, known)| all | known.meant.names);
        let put = of_key().filter(|(_, known)| known.meant.value.is_some()).fold(0, |all, (bit, _)| all | bit);
        put & !superseded
    }

    /// Judges what a key shows: dots, stamps and values, in order of dots; says which writes these are.
    pub(super) fn check_shown(
        &self,
        at: usize,
        key: usize,
        applied: Writes,
        shown: &[(Dot, Hlc, Bytes)],
    ) -> Result<Writes, Violation> {
        let live = self.live(applied, key);
        let expected = || self.known().filter(|(bit, _)| live & bit != 0).map(|(_, known)| known);
        let is_known = |(dot, hlc, value): &(Dot, Hlc, Bytes)| {
            expected().any(|known| known.dot == *dot && known.hlc == *hlc && known.meant.value.as_ref() == Some(value))
        };
        let is_once = shown.windows(2).all(|pair| pair[0].0 < pair[1].0);
        match shown.len() == live.count_ones() as usize && is_once && shown.iter().all(is_known) {
            true => Ok(live),
            false => {
                let dots: Vec<Dot> = shown.iter().map(|(dot, ..)| *dot).collect();
                let expected: Vec<Dot> = expected().map(|known| known.dot).collect();
                Err(violation(names::SHOWS, at, format!("shows {dots:?} of key {key}, and should show {expected:?}")))
            }
        }
    }

    /// Whoever has applied the same has the same digest, whenever and wherever that is.
    pub(super) fn check_digest(&mut self, at: usize, digest: u128) -> Checked {
        match *self.digests.entry(self.nodes[at].staged).or_insert(digest) == digest {
            true => Ok(()),
            false => Err(violation(names::DIGESTS, at, "has another digest than was seen with the same applied")),
        }
    }

    /// Judges the end, when all feed all: nothing that was acknowledged is missing anywhere, but what the
    /// only disk that had it lost.
    pub(super) fn check_healed(&self) -> Checked {
        for (at, node) in self.nodes.iter().enumerate() {
            let missing = self.acked & !self.lost & !node.durable;
            if let Some((_, known)) = self.known().find(|(bit, _)| missing & bit != 0) {
                return Err(violation(names::ACKED, at, format!("has lost {}, which was acknowledged", known.dot)));
            }
            if node.durable != self.nodes[0].durable {
                return Err(violation(names::CONVERGES, at, "has not become equal with the first"));
            }
        }
        Ok(())
    }
}

pub(super) fn violation(invariant: &'static str, at: usize, what: impl std::fmt::Display) -> Violation {
    Violation::new(invariant, format!("node {} {what}", char::from(b'a' + at as u8)))
}
