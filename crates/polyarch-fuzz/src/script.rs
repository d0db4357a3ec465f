//! An input taken as a script: a source of choices.
//!
//! Most random bytes are refused at the first check, a checksum above all. A target that is to come further makes what
//! it tests from choices, and the fuzzer changes those. Where the bytes end every choice is 0, the first.

use polyarch_crdt::{AppliedSet, Dot, FieldPath, Hlc, Origin};

/// What is left of an input.
#[derive(Debug, Clone)]
pub struct Script<'a> {
    rest: &'a [u8],
}

impl<'a> Script<'a> {
    /// All of an input.
    pub fn new(data: &'a [u8]) -> Self {
        Self { rest: data }
    }

    /// Whether every choice is 0 from here on.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// Up to so many bytes, as they are.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(len.min(self.rest.len()));
        self.rest = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    /// A number below `bound`, which is at most 256; 0 where `bound` is.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::from(self.byte()).checked_rem(bound).unwrap_or(0)
    }

    /// A number of two bytes.
    pub fn number(&mut self) -> usize {
        usize::from(self.byte()) | usize::from(self.byte()) << 8
    }

    /// Any number: most are small, and some at the edge of what 64 bits can hold.
    pub fn any_number(&mut self) -> u64 {
        match self.byte() {
            small @ 0..=199 => u64::from(small),
            200..=219 => self.number() as u64,
            220..=234 => u64::from(u32::MAX) - u64::from(self.byte()),
            235..=249 => u64::MAX - u64::from(self.byte()),
            _ => self.bytes(8).iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
        }
    }

    /// One choice in two.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 1
    }

    /// One choice in `of`, which is at most 256.
    pub fn one_in(&mut self, of: usize) -> bool {
        self.below(of) == of - 1
    }

    /// One of several.
    pub fn pick<T: Clone>(&mut self, among: &[T]) -> Option<T> {
        among.get(self.below(among.len().min(256))).cloned()
    }

    /// Up to so many bytes, with their length before them.
    pub fn chunk(&mut self, len_max: usize) -> &'a [u8] {
        let len = match len_max {
            0..256 => self.below(len_max + 1),
            _ => self.number() % (len_max + 1),
        };
        self.bytes(len)
    }

    /// One of few origins, so that they meet.
    pub fn origin(&mut self) -> Origin {
        let choice = self.below(24);
        let server_id = 1 + choice as u32 % 4;
        Origin::new(server_id, 1 + choice as u32 / 4 % 3)
    }

    /// A write set of one of few origins; at times of one that cannot be.
    pub fn dot(&mut self) -> Dot {
        match self.one_in(16) {
            true => Dot::new(Origin::new(self.any_number() as u32, self.any_number() as u32), self.any_number()),
            false => Dot::new(self.origin(), 1 + self.below(8) as u64),
        }
    }

    /// Up to so many of them.
    pub fn dots(&mut self, len_max: usize) -> Vec<Dot> {
        (0..self.below(len_max + 1)).map(|_| self.dot()).collect()
    }

    /// An applied-set of few origins.
    pub fn applied(&mut self) -> AppliedSet {
        self.dots(4).into_iter().collect()
    }

    /// A stamp, near the time at which runs begin.
    pub fn hlc(&mut self) -> Hlc {
        match self.one_in(16) {
            true => Hlc::new(self.any_number() >> 16, self.number() as u16),
            false => Hlc::new(WALL_MS + u64::from(self.byte()), u16::from(self.byte() % 4)),
        }
    }

    /// One of few fields.
    pub fn field(&mut self) -> FieldPath {
        FieldPath::from(["", "/a", "/a/b"][self.below(3)])
    }
}

/// When runs begin, Unix milliseconds.
pub const WALL_MS: u64 = 1_764_950_400_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_come_from_the_bytes_and_are_0_behind_their_end() {
        let mut script = Script::new(&[7, 0x34, 0x12, 2, b'a', b'b', 249, 1]);
        assert_eq!((script.byte(), script.number(), script.chunk(5)), (7, 0x1234, &b"ab"[..]));
        assert_eq!(script.any_number(), u64::MAX - 1);
        assert!(script.is_at_end());
        assert_eq!((script.byte(), script.number(), script.any_number(), script.below(0)), (0, 0, 0, 0));
        assert_eq!((script.chunk(9), script.pick::<u8>(&[]), script.pick(&[3, 4])), (&[][..], None, Some(3)));
    }
}
