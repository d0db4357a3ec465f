/// A seeded source of chance: xoshiro256** (Blackman, Vigna 2018), seeded by SplitMix64.
///
/// Everything random in a run comes from here, so the seed is the run.
#[derive(Debug, Clone)]
pub struct Rng {
    state: [u64; 4],
}

impl Rng {
    /// The source that a seed names.
    pub fn new(seed: u64) -> Self {
        let mut mixed = seed;
        let state = std::array::from_fn(|_| {
            mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = mixed;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        Self { state }
    }

    /// The stream of a part of a run: of `name`, and of which of those that have it. What other parts draw
    /// does not change what this one does, so a part can be left out of a run and the rest stays as it was.
    pub fn stream(seed: u64, name: &str, which: &[u64]) -> Self {
        let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
        let bytes = name.bytes().chain(which.iter().flat_map(|number| number.to_le_bytes()));
        for byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Self::new(hash)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= t;
        *d = d.rotate_left(45);
        result
    }

    /// A number below `end`, which is at least 1.
    pub fn below(&mut self, end: u64) -> u64 {
        ((u128::from(self.bits()) * u128::from(end)) >> 64) as u64
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, (low, high): (u64, u64)) -> u64 {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// True in `permille` of 1,000 cases.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.below(1_000) < permille
    }

    /// An index below `len`, which is at least 1.
    pub fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// One of `items`; `None` when there are none.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        match items.len() {
            0 => None,
            len => items.get(self.index(len)),
        }
    }

    /// One of `items`, each as often as its weight says. At least one weight is above 0.
    pub fn weighted<T: Copy>(&mut self, items: &[(T, u64)]) -> T {
        let total = items.iter().map(|(_, weight)| weight).sum();
        let mut at = self.below(total);
        for (item, weight) in items {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *item,
            }
        }
        unreachable!("the weights add up to the total")
    }

    /// A source of its own for a part of the run, so that the part draws the same whatever others do.
    pub fn fork(&mut self) -> Self {
        Self::new(self.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_draws_the_same_again_and_another_seed_does_not() {
        let draw = |seed| {
            std::iter::repeat_with(|| 0)
                .scan(Rng::new(seed), |rng, _: i32| Some(rng.bits()))
                .take(8)
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn streams_differ_by_seed_by_name_and_by_number() {
        let streams = [(1, "fault", 1), (2, "fault", 1), (1, "act", 1), (1, "fault", 2)];
        let drawn = streams.map(|(seed, name, which)| Rng::stream(seed, name, &[which]).bits());
        assert_eq!(drawn[0], Rng::stream(1, "fault", &[1]).bits());
        assert_eq!(drawn.iter().collect::<std::collections::BTreeSet<_>>().len(), streams.len());
    }

    #[test]
    fn weights_are_kept_roughly() {
        let mut rng = Rng::new(1);
        let drawn = (0..10_000).filter(|_| rng.weighted(&[(true, 1), (false, 9)])).count();
        assert!((800..1_200).contains(&drawn), "{drawn}");
    }
}
