use std::fmt;

use serde::{Deserialize, Serialize};

/// A hybrid logical clock's stamp (Kulkarni et al. 2014): 48 bits of Unix milliseconds, then 16
/// bits of counter that carries into the milliseconds when it overflows.
///
/// It orders only writes that are truly concurrent; causality never asks it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hlc(u64);

impl Hlc {
    /// The stamp of `millis` (of which 48 bits count) and `counter`.
    pub const fn new(millis: u64, counter: u16) -> Self {
        Self((millis << 16) | counter as u64)
    }

    /// Unix milliseconds.
    pub const fn millis(self) -> u64 {
        self.0 >> 16
    }

    /// What tells stamps of the same millisecond apart.
    pub const fn counter(self) -> u16 {
        self.0 as u16
    }
}

impl fmt::Display for Hlc {
    /// `MILLIS.COUNTER`, as in `1764950400000.3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.millis(), self.counter())
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Gives out stamps that only rise, whatever the wall clock does.
#[derive(Debug, Clone, Default)]
pub struct HlcClock {
    last: Hlc,
}

/// What became of a stamp that another node made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Observed {
    /// Own stamps are now greater.
    Merged,
    /// So far ahead of the wall clock that it was not merged into one's own clock.
    TooFarAhead {
        /// How far ahead, in milliseconds.
        ahead_ms: u64,
    },
}

impl HlcClock {
    /// A clock whose stamps are greater than `last`.
    pub const fn starting_after(last: Hlc) -> Self {
        Self { last }
    }

    /// The greatest stamp given out or merged.
    pub const fn last(&self) -> Hlc {
        self.last
    }

    /// A stamp greater than every earlier one, and not before `now_ms` (Unix milliseconds).
    pub fn tick(&mut self, now_ms: u64) -> Hlc {
        self.last = Hlc((self.last.0.saturating_add(1)).max(Hlc::new(now_ms, 0).0));
        self.last
    }

    /// Goes on behind a stamp of one's own server, however far ahead it lies: no stamp is given out
    /// twice, whichever process made the first.
    pub fn rise_above(&mut self, own: Hlc) {
        self.last = self.last.max(own);
    }

    /// Takes note of another node's stamp, unless it lies more than `ahead_max_ms` before `now_ms`.
    pub fn observe(&mut self, stamp: Hlc, now_ms: u64, ahead_max_ms: u64) -> Observed {
        let ahead_ms = stamp.millis().saturating_sub(now_ms);
        if ahead_ms > ahead_max_ms {
            return Observed::TooFarAhead { ahead_ms };
        }
        self.last = self.last.max(stamp);
        Observed::Merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_or_backward_clock_never_repeats_a_stamp() {
        let mut clock = HlcClock::default();
        let mut last = clock.tick(1_000);
        for now_ms in std::iter::repeat_n(1_000, 70_000).chain([999, 0, 500]) {
            let next = clock.tick(now_ms);
            assert!(next > last);
            last = next;
        }
        assert!(last.millis() > 1_000, "the counter carries into the milliseconds");
    }

    #[test]
    fn an_absurd_stamp_is_not_merged() {
        let mut clock = HlcClock::default();
        assert_eq!(clock.observe(Hlc::new(10_000, 7), 0, 9_999), Observed::TooFarAhead { ahead_ms: 10_000 });
        assert_eq!(clock.tick(5), Hlc::new(5, 0));
        assert_eq!(clock.observe(Hlc::new(10_000, 7), 1, 9_999), Observed::Merged);
        assert_eq!(clock.tick(5), Hlc::new(10_000, 8));
    }
}
