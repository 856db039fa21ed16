//! A random order of `0..len` that is computed and not stored: an index goes through a small block cipher.

use super::mix;

const ROUNDS: u64 = 6;

/// A permutation of `0..len`, one for each key. A Feistel network over the next even power of two, walked along its
/// cycles back into the range (Black, Rogaway, "Ciphers with arbitrary finite domains", 2002).
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    len: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    pub fn new(len: u64, key: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// Where `index`, which is below the length, goes.
    pub fn at(&self, index: u64) -> u64 {
        debug_assert!(index < self.len);
        let mut value = index;
        loop {
            value = self.encrypt(value);
            if value < self.len {
                return value;
            }
        }
    }

    fn encrypt(&self, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            (left, right) = (right, left ^ (mix(&[self.key, round, right]) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_comes_once_whatever_the_length_and_the_key() {
        for len in [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097] {
            for key in [0, 1, u64::MAX] {
                let mut seen = vec![false; len as usize];
                for index in 0..len {
                    let place = Permutation::new(len, key).at(index) as usize;
                    assert!(!std::mem::replace(&mut seen[place], true), "{len} {key} {index}");
                }
            }
        }
    }

    #[test]
    fn another_key_gives_another_order() {
        let order = |key| -> Vec<u64> { (0..100).map(|i| Permutation::new(100, key).at(i)).collect() };
        assert_ne!(order(1), order(2));
        assert_ne!(order(1), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn the_order_is_spread_evenly() {
        // The first tenth of the places gets about a tenth of each tenth of the indices.
        let order = Permutation::new(10_000, 7);
        let mut counts = [0; 10];
        for index in 0..1000 {
            counts[(order.at(index) / 1000) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (60..150).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_largest_lengths_stay_within_their_range() {
        for len in [u64::MAX, 1 << 63, (1 << 62) + 1] {
            assert!(Permutation::new(len, 3).at(len - 1) < len);
        }
    }
}
