use std::cmp::Ordering;
use std::fmt;
use std::iter::Peekable;
use std::sync::Arc;

use crdts::{CmRDT, VClock};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Base, Dot, Origin};

/// Which write sets a node has applied: its causal context, and what MySQL calls `gtid_executed`.
///
/// An origin's write sets are applied in `seq` order without gaps, so one number per origin says
/// it all. The order on sets is inclusion: `a <= b` when `b` includes all of `a`.
///
/// A set may be *expressed by* a [`Base`]: then it holds itself only what goes beyond that, and is
/// small, cheap to clone, and quick to compare with others that share the base. By which base a set
/// is expressed, or whether by any, changes none of its answers.
#[derive(Clone, Default)]
pub struct AppliedSet {
    base: Option<Arc<Base>>,
    // What goes beyond the base: no origin with a seq that the base includes, nor with seq 0, so
    // that equal sets over one base are equal values.
    rest: VClock<Origin>,
}

impl AppliedSet {
    /// The empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// The smallest set that includes all of `base` and of `rest`.
    pub fn over(base: Arc<Base>, rest: &AppliedSet) -> Self {
        let mut set = Self { base: Some(base), rest: VClock::default() };
        set.join(rest);
        set
    }

    /// The last applied seq of `origin`; 0 when nothing of it was applied.
    pub fn seq(&self, origin: Origin) -> u64 {
        match (self.rest.get(&origin), &self.base) {
            (0, Some(base)) => base.seq(origin),
            (seq, _) => seq,
        }
    }

    /// Whether the write set `dot` has been applied.
    pub fn includes(&self, dot: Dot) -> bool {
        dot.seq <= self.seq(dot.origin)
    }

    /// Whether every write set of `other` has been applied here.
    pub fn includes_all(&self, other: &AppliedSet) -> bool {
        match self.shares_base(other) {
            true => other.rest_dots().all(|dot| self.includes(dot)),
            false => other.iter().all(|dot| self.includes(dot)),
        }
    }

    /// Adds the next write set of its origin.
    ///
    /// # Panics
    /// When `dot` is not the next of its origin: a gap would make the set claim what was never applied.
    pub fn add(&mut self, dot: Dot) {
        assert_eq!(Some(dot.seq), self.seq(dot.origin).checked_add(1), "{dot} is not the next of its origin");
        self.rest.apply(dot.into());
    }

    /// Adds all that `other` holds. The set stays expressed by its base, if it has one.
    pub fn join(&mut self, other: &AppliedSet) {
        if self.base.is_none() && other.base.is_some() {
            let own = std::mem::replace(self, other.clone());
            return own.rest_dots().for_each(|dot| self.reach(dot));
        }
        match self.shares_base(other) {
            true => other.rest_dots().for_each(|dot| self.reach(dot)),
            false => other.iter().for_each(|dot| self.reach(dot)),
        }
    }

    /// The part of this set that `older` does not include: each origin with its seq here.
    pub fn since(&self, older: &AppliedSet) -> AppliedSet {
        match self.shares_base(older) {
            true => self.rest_dots().filter(|dot| !older.includes(*dot)).collect(),
            false => self.iter().filter(|dot| !older.includes(*dot)).collect(),
        }
    }

    /// The last applied dot of each origin, in order of origins.
    pub fn iter(&self) -> impl Iterator<Item = Dot> + '_ {
        let closed = self.base.iter().flat_map(|base| base.iter()).map(|epoch| epoch.last);
        Dots { rest: self.rest_dots().peekable(), closed: closed.peekable() }
    }

    /// How many origins the set names.
    pub fn len(&self) -> usize {
        let Some(base) = &self.base else { return self.rest.dots.len() };
        base.epochs() + self.rest.dots.keys().filter(|origin| base.seq(**origin) == 0).count()
    }

    /// Whether nothing was applied.
    pub fn is_empty(&self) -> bool {
        // No base is empty.
        self.base.is_none() && self.rest.dots.is_empty()
    }

    /// How many write sets the set includes.
    pub fn write_sets(&self) -> u64 {
        let (closed, base) = (self.base.as_ref().map_or(0, |base| base.write_sets()), &self.base);
        let beyond = |dot: Dot| dot.seq - base.as_ref().map_or(0, |base| base.seq(dot.origin));
        self.rest_dots().fold(closed, |sum, dot| sum.saturating_add(beyond(dot)))
    }

    /// The base that the set is expressed by.
    pub fn base(&self) -> Option<&Arc<Base>> {
        self.base.as_ref()
    }

    /// What goes beyond the base that the set is expressed by; all of it, without one.
    ///
    /// **Of a set that some node has applied, whoever has applied this has applied all of it**: among
    /// it is the base's own write set, which is applied nowhere before what the base holds. So where
    /// a set only says what must be there, as a session's token and a write set's dependencies do,
    /// this says the same, to nodes too that do not know what a base is.
    pub fn beyond_base(&self) -> AppliedSet {
        Self { base: None, rest: self.rest.clone() }
    }

    /// How many origins [`AppliedSet::beyond_base`] names.
    pub fn len_beyond_base(&self) -> usize {
        self.rest.dots.len()
    }

    /// Whether this set is [`AppliedSet::beyond_base`] of another, without making that.
    pub fn is_rest_of(&self, other: &AppliedSet) -> bool {
        self.base.is_none() && self.rest == other.rest
    }

    /// What goes beyond some base.
    pub fn beyond(&self, base: Option<&Arc<Base>>) -> AppliedSet {
        match (base, &self.base) {
            (Some(base), Some(own)) if Arc::ptr_eq(base, own) => self.beyond_base(),
            (Some(base), _) => self.iter().filter(|dot| !base.includes(*dot)).collect(),
            (None, _) => self.iter().collect(),
        }
    }

    /// The same set, expressed by another base. `None` when it does not include that, or not the
    /// write set that published it.
    pub fn rebased(&self, base: &Arc<Base>) -> Option<AppliedSet> {
        if self.base.as_ref().is_some_and(|own| Arc::ptr_eq(own, base)) {
            return Some(self.clone());
        }
        let holds = self.includes(base.name()) && base.iter().all(|epoch| self.includes(epoch.last));
        holds.then(|| Self { base: Some(Arc::clone(base)), rest: self.beyond(Some(base)).rest })
    }

    /// Whether both are expressed by the very same base, or neither by any.
    fn shares_base(&self, other: &Self) -> bool {
        match (&self.base, &other.base) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }

    fn rest_dots(&self) -> impl Iterator<Item = Dot> + '_ {
        self.rest.dots.iter().map(|(origin, seq)| Dot::new(*origin, *seq))
    }

    /// Adds all of an origin up to `dot`.
    fn reach(&mut self, dot: Dot) {
        if !self.includes(dot) {
            self.rest.apply(dot.into());
        }
    }
}

/// The dots of a base and of what goes beyond it, in order of origins.
struct Dots<R: Iterator<Item = Dot>, C: Iterator<Item = Dot>> {
    rest: Peekable<R>,
    closed: Peekable<C>,
}

impl<R: Iterator<Item = Dot>, C: Iterator<Item = Dot>> Iterator for Dots<R, C> {
    type Item = Dot;

    fn next(&mut self) -> Option<Dot> {
        let (rest, closed) = (self.rest.peek().copied(), self.closed.peek().copied());
        match (rest, closed) {
            (Some(rest), Some(closed)) if rest.origin > closed.origin => self.closed.next(),
            (Some(rest), Some(closed)) if rest.origin == closed.origin => {
                self.closed.next();
                self.rest.next()
            }
            (Some(_), _) => self.rest.next(),
            (None, _) => self.closed.next(),
        }
    }
}

impl FromIterator<Dot> for AppliedSet {
    /// The smallest set that includes all the dots.
    fn from_iter<I: IntoIterator<Item = Dot>>(dots: I) -> Self {
        let mut rest = VClock::default();
        for dot in dots.into_iter().filter(|dot| dot.seq > 0) {
            rest.apply(dot.into());
        }
        Self { base: None, rest }
    }
}

impl PartialEq for AppliedSet {
    fn eq(&self, other: &Self) -> bool {
        match self.shares_base(other) {
            true => self.rest == other.rest,
            false => self.iter().eq(other.iter()),
        }
    }
}

impl Eq for AppliedSet {}

impl PartialOrd for AppliedSet {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (other.includes_all(self), self.includes_all(other)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Less),
            (false, true) => Some(Ordering::Greater),
            (false, false) => None,
        }
    }
}

impl Serialize for AppliedSet {
    /// Spelled out, whatever the base.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut dots = serializer.serialize_seq(Some(self.len()))?;
        self.iter().try_for_each(|dot| dots.serialize_element(&dot))?;
        dots.end()
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
