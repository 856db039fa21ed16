//! Random numbers that are the same on every machine and with every version of the libraries.

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};

/// A ChaCha8 stream with the few draws tasks need. The draws are this crate's own, since those of `rand` may give
/// other values in another version.
#[derive(Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of a task's instance.
    pub fn new(task: &str, seed: u64, difficulty: u32) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&fnv(task.as_bytes()).to_le_bytes());
        key[8..16].copy_from_slice(&seed.to_le_bytes());
        key[16..20].copy_from_slice(&difficulty.to_le_bytes());
        Self(ChaCha8Rng::from_seed(key))
    }

    /// A whole number below `limit`, each as likely (Lemire, "Fast random integer generation in an interval", 2019).
    ///
    /// # Panics
    /// If `limit` is zero.
    pub fn below(&mut self, limit: u64) -> u64 {
        assert!(limit > 0, "no number is below zero");
        let threshold = limit.wrapping_neg() % limit;
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(limit);
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A place in a list of `length` items.
    ///
    /// # Panics
    /// If `length` is zero.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// A whole number from `low` to `high`, both included.
    ///
    /// # Panics
    /// If `high` is below `low`.
    pub fn range(&mut self, low: i64, high: i64) -> i64 {
        assert!(low <= high, "the range from {low} to {high} is empty");
        let width = high.wrapping_sub(low) as u64;
        let offset = if width == u64::MAX { self.0.next_u64() } else { self.below(width + 1) };
        low.wrapping_add(offset as i64)
    }

    /// True in `numerator` of `denominator` cases.
    ///
    /// # Panics
    /// If `denominator` is zero.
    pub fn chance(&mut self, numerator: u64, denominator: u64) -> bool {
        self.below(denominator) < numerator
    }

    /// One of the items.
    ///
    /// # Panics
    /// If there is none.
    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.index(items.len())]
    }

    /// Brings the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.index(last + 1);
            items.swap(last, other);
        }
    }

    /// `count` different places in a list of `length` items, in random order; all of them if there are fewer.
    pub fn sample(&mut self, length: usize, count: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..length).collect();
        let count = count.min(length);
        for place in 0..count {
            let other = place + self.index(length - place);
            places.swap(place, other);
        }
        places.truncate(count);
        places
    }
}

/// The FNV-1a hash of 64 bits.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_stay_within_their_limits_and_reach_them() {
        let mut random = Random::new("test", 0, 1);
        let mut seen = [false; 7];
        for _ in 0..1000 {
            let value = random.range(-3, 3);
            seen[usize::try_from(value + 3).unwrap()] = true;
        }
        assert_eq!(seen, [true; 7]);
        random.range(i64::MIN, i64::MAX);
        assert_eq!(random.range(i64::MAX, i64::MAX), i64::MAX);
    }

    #[test]
    fn the_stream_is_always_the_same() {
        let mut random = Random::new("test", 0, 1);
        let drawn = [0; 4].map(|_: u64| random.below(1_000_000));
        assert_eq!(drawn, [254_282, 2_867, 29_103, 789_924]);
        assert_eq!(random.sample(10, 10), [4, 9, 5, 1, 0, 7, 2, 6, 8, 3]);
    }

    #[test]
    fn samples_are_different_places() {
        let mut random = Random::new("test", 1, 1);
        for count in 0..=12 {
            let mut sample = random.sample(10, count);
            sample.sort_unstable();
            sample.dedup();
            assert_eq!(sample.len(), count.min(10));
        }
    }

    #[test]
    fn name_seed_and_difficulty_each_give_another_stream() {
        let first = |name, seed, difficulty| Random::new(name, seed, difficulty).below(u64::MAX);
        let base = first("a", 0, 1);
        assert_eq!(first("a", 0, 1), base);
        assert!(first("b", 0, 1) != base && first("a", 1, 1) != base && first("a", 0, 2) != base);
    }
}
