use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{Dot, Origin};

/// How an epoch that its server has left behind ended, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClosedEpoch {
    /// Its last write set.
    pub last: Dot,
    /// The hash over its write sets up to that one; opaque here.
    pub chain: [u8; 32],
}

/// Closed epochs that sets need not spell out: they name the base, and only what goes beyond it.
///
/// Each process that writes opens an epoch, and none is ever forgotten, so that a set would name one
/// more origin with every restart of every node. A base is a dictionary of such epochs, named by the
/// write set that published it, and a *lower bound*: a set that names a base includes all of it, and
/// may go beyond it with any origin, those in the base too. So which base a set is expressed by
/// changes nothing about what it includes.
///
/// A base adds to its parent's epochs. They lie in levels that bases share, each at least twice as
/// long as the one above it: a look-up asks a handful of levels, and all bases together take the room of
/// the last of them, times half the logarithm of their number.
#[derive(Clone)]
pub struct Base {
    name: Dot,
    length: u64,
    origins: usize,
    write_sets: u64,
    top: Arc<Level>,
}

/// Epochs in order of origins, one each. What lies above goes further than what lies below.
struct Level {
    epochs: Vec<ClosedEpoch>,
    below: Option<Arc<Level>>,
}

/// Why there is no such base.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BaseError {
    /// Neither it nor its parent holds an epoch.
    #[error("a base holds at least one epoch")]
    Empty,
    /// An epoch without write sets.
    #[error("epoch {0} of a base has no write sets")]
    NothingOf(Origin),
    /// A set that names it would go without saying that its own write set was applied.
    #[error("base {0} holds its own write set")]
    HoldsItself(Dot),
}

impl Base {
    /// The base that write set `name` publishes: all of its parent, and these epochs.
    ///
    /// # Errors
    /// When it holds nothing, or what no base can.
    pub fn new(
        name: Dot,
        parent: Option<&Base>,
        closed: impl IntoIterator<Item = ClosedEpoch>,
    ) -> Result<Self, BaseError> {
        let mut added: BTreeMap<Origin, ClosedEpoch> = BTreeMap::new();
        for epoch in closed {
            let Dot { origin, seq } = epoch.last;
            if seq == 0 {
                return Err(BaseError::NothingOf(origin));
            }
            let known = parent.map_or(0, |parent| parent.seq(origin)).max(added.get(&origin).map_or(0, |e| e.last.seq));
            if seq > known {
                added.insert(origin, epoch);
            }
        }
        let base = Self::over(name, parent, added.into_values().collect())?;
        match base.includes(name) {
            true => Err(BaseError::HoldsItself(name)),
            false => Ok(base),
        }
    }

    /// `added` goes beyond the parent throughout.
    fn over(name: Dot, parent: Option<&Base>, added: Vec<ClosedEpoch>) -> Result<Self, BaseError> {
        let Some(parent) = parent else {
            let write_sets = added.iter().fold(0_u64, |sum, epoch| sum.saturating_add(epoch.last.seq));
            let origins = added.len();
            return match added.is_empty() {
                true => Err(BaseError::Empty),
                false => Ok(Self { name, length: 1, origins, write_sets, top: Level::new(added, None) }),
            };
        };
        let gained = |epoch: &ClosedEpoch| epoch.last.seq - parent.seq(epoch.last.origin);
        Ok(Self {
            name,
            length: parent.length.saturating_add(1),
            origins: parent.origins + added.iter().filter(|epoch| parent.seq(epoch.last.origin) == 0).count(),
            write_sets: added.iter().fold(parent.write_sets, |sum, epoch| sum.saturating_add(gained(epoch))),
            top: match added.is_empty() {
                true => Arc::clone(&parent.top),
                false => Level::new(added, Some(&parent.top)),
            },
        })
    }

    /// The write set that published it.
    pub fn name(&self) -> Dot {
        self.name
    }

    /// How many bases it adds up, itself included.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How many epochs it holds, at least one.
    pub fn epochs(&self) -> usize {
        self.origins
    }

    /// How many write sets they have.
    pub fn write_sets(&self) -> u64 {
        self.write_sets
    }

    /// How an epoch ended; `None` for one it does not hold.
    pub fn epoch(&self, origin: Origin) -> Option<&ClosedEpoch> {
        let mut level = Some(&self.top);
        while let Some(here) = level {
            if let Ok(at) = here.epochs.binary_search_by_key(&origin, |epoch| epoch.last.origin) {
                return Some(&here.epochs[at]);
            }
            level = here.below.as_ref();
        }
        None
    }

    /// The last seq of an epoch; 0 for one it does not hold.
    pub fn seq(&self, origin: Origin) -> u64 {
        self.epoch(origin).map_or(0, |epoch| epoch.last.seq)
    }

    /// Whether the write set `dot` is of an epoch it holds, and not beyond it.
    pub fn includes(&self, dot: Dot) -> bool {
        dot.seq <= self.seq(dot.origin)
    }

    /// All epochs, in order of origins.
    pub fn iter(&self) -> impl Iterator<Item = &ClosedEpoch> {
        let levels = std::iter::successors(Some(&*self.top), |level| level.below.as_deref());
        Merged { levels: levels.map(|level| &level.epochs[..]).collect() }
    }
}

impl Level {
    /// A level on top of others, one with those that are not twice as long.
    fn new(mut epochs: Vec<ClosedEpoch>, below: Option<&Arc<Self>>) -> Arc<Self> {
        let mut below = below;
        while let Some(level) = below.filter(|level| level.epochs.len() < 2 * epochs.len()) {
            epochs = Merged { levels: vec![&epochs, &level.epochs] }.copied().collect();
            below = level.below.as_ref();
        }
        Arc::new(Self { epochs, below: below.cloned() })
    }
}

/// Levels in one: of an origin, what the uppermost says.
struct Merged<'a> {
    levels: Vec<&'a [ClosedEpoch]>,
}

impl<'a> Iterator for Merged<'a> {
    type Item = &'a ClosedEpoch;

    fn next(&mut self) -> Option<&'a ClosedEpoch> {
        let next = self.levels.iter().filter_map(|level| level.first()).min_by_key(|epoch| epoch.last.origin)?;
        for level in &mut self.levels {
            if level.first().is_some_and(|epoch| epoch.last.origin == next.last.origin) {
                *level = &level[1..];
            }
        }
        Some(next)
    }
}

impl PartialEq for Base {
    /// The same name and the same epochs.
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
            && self.length == other.length
            && (Arc::ptr_eq(&self.top, &other.top) || self.iter().eq(other.iter()))
    }
}

impl Eq for Base {}

impl fmt::Display for Base {
    /// As in `3-9f2c01ab:17 with 9990 closed epochs`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with {} closed epochs", self.name, self.origins)
    }
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Base({self})")
    }
}
