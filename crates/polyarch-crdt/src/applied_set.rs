use std::cmp::Ordering;
use std::fmt;

use crdts::{CmRDT, VClock};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Dot, Origin};

/// Which write sets a node has applied: its causal context, and what MySQL calls `gtid_executed`.
///
/// An origin's write sets are applied in `seq` order without gaps, so one number per origin says
/// it all. The order on sets is inclusion: `a <= b` when `b` includes all of `a`.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AppliedSet {
    // No origin is ever stored with seq 0, so that equal sets are equal values.
    clock: VClock<Origin>,
}

impl AppliedSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The last applied seq of `origin`; 0 when nothing of it was applied.
    pub fn seq(&self, origin: Origin) -> u64 {
        self.clock.get(&origin)
    }

    /// Whether the write set `dot` has been applied.
    pub fn includes(&self, dot: Dot) -> bool {
        dot.seq <= self.seq(dot.origin)
    }

    /// Whether every write set of `other` has been applied here.
    pub fn includes_all(&self, other: &AppliedSet) -> bool {
        other.iter().all(|dot| self.includes(dot))
    }

    /// Adds the next write set of its origin.
    ///
    /// # Panics
    /// When `dot` is not the next of its origin: a gap would make the set claim what was never applied.
    pub fn add(&mut self, dot: Dot) {
        assert_eq!(Some(dot.seq), self.seq(dot.origin).checked_add(1), "{dot} is not the next of its origin");
        self.clock.apply(dot.into());
    }

    /// Adds all that `other` holds.
    pub fn join(&mut self, other: &AppliedSet) {
        other.iter().for_each(|dot| self.clock.apply(dot.into()));
    }

    /// The part of this set that `older` does not include: each origin with its seq here.
    pub fn since(&self, older: &AppliedSet) -> AppliedSet {
        self.iter().filter(|dot| !older.includes(*dot)).collect()
    }

    /// The last applied dot of each origin, in order of origins.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        self.clock.dots.iter().map(|(origin, seq)| Dot::new(*origin, *seq))
    }

    /// How many origins the set names.
    pub fn len(&self) -> usize {
        self.clock.dots.len()
    }

    /// Whether nothing was applied.
    pub fn is_empty(&self) -> bool {
        self.clock.dots.is_empty()
    }

    /// How many write sets the set includes.
    pub fn write_sets(&self) -> u64 {
        self.iter().fold(0, |sum, dot| sum.saturating_add(dot.seq))
    }
}

impl FromIterator<Dot> for AppliedSet {
    /// The smallest set that includes all the dots.
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut clock = VClock::default();
        for dot in dots.into_iter().filter(|dot| dot.seq > 0) {
            clock.apply(dot.into());
        }
        Self { clock }
    }
}

impl PartialOrd for AppliedSet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.clock.partial_cmp(&other.clock)
    }
}

impl Serialize for AppliedSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for AppliedSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let dots = Vec::<Dot>::deserialize(deserializer)?;
        let canonical =
            dots.iter().all(|dot| dot.seq > 0) && dots.windows(2).all(|pair| pair[0].origin < pair[1].origin);
        if !canonical {
            return Err(serde::de::Error::custom(
                "an applied-set names each origin once, in order, with a seq above 0",
            ));
        }
        Ok(dots.into_iter().collect())
    }
}

impl fmt::Display for AppliedSet {
    /// GTIDs of the last write set of each origin, as in `1-0a0b0c0d:7,2-9f2c01ab:3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, dot) in self.iter().enumerate() {
            write!(f, "{}{dot}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Debug for AppliedSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}
