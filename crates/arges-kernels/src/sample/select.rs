//! Finding where a descending order reaches an amount, without sorting: radix selection over the bits of the
//! logits, in time linear in the candidates whatever their distribution.

/// Bits of a key looked at in each pass, from the top: shift and width.
const PASSES: [(u32, u32); 3] = [(21, 11), (10, 11), (0, 10)];
/// Buckets of the widest pass.
const BUCKETS: usize = 1 << 11;

/// Keys ascend as logits descend; equal logits (zeros of either sign among them) have equal keys.
#[inline(always)]
fn key(logit: f32) -> u32 {
    let bits = (logit + 0.0).to_bits();
    if bits >> 31 == 0 { bits ^ 0x7fff_ffff } else { bits }
}

/// The logit with this key.
fn logit_of(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 0 { key ^ 0x7fff_ffff } else { key })
}

/// A place in the order of descending logits and ascending ids.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    /// The last logit before the cut.
    logit: f32,
    /// The last id before the cut among those with that logit.
    last: u32,
}

impl Cut {
    /// Behind everything.
    pub const NONE: Self = Self { logit: f32::NEG_INFINITY, last: u32::MAX };

    /// Whether a token is before the cut.
    #[inline(always)]
    pub fn keeps(self, id: u32, logit: f32) -> bool {
        (logit > self.logit) | ((logit == self.logit) & (id <= self.last))
    }
}

/// Working memory of a selection.
#[derive(Debug)]
pub(super) struct Selection {
    amounts: Vec<f64>,
    ids: Vec<u32>,
}

impl Selection {
    /// For rows of up to `len` logits.
    pub fn new(len: usize) -> Self {
        Self { amounts: vec![0.0; BUCKETS], ids: vec![0; len] }
    }

    pub fn bytes(&self) -> usize {
        size_of_val(&*self.amounts) + size_of_val(&*self.ids)
    }

    /// The cut after the shortest prefix of the candidates, by descending logit and ascending id, whose
    /// amounts reach `target`; behind all candidates if they never do.
    pub fn cut(
        &mut self,
        logits: &[f32],
        target: f64,
        is_candidate: impl Fn(u32) -> bool,
        amount: impl Fn(u32) -> f64,
    ) -> Cut {
        let key_of = |id: u32| key(logits[id as usize]);
        let Self { amounts, ids } = self;
        let ids = &mut ids[..logits.len()];
        ids.iter_mut().zip(0..).for_each(|(place, id)| *place = id);
        let mut len = compact(ids, is_candidate);
        let mut before = 0.0;
        let mut key = 0;
        for (shift, width) in PASSES {
            let buckets = &mut amounts[..1 << width];
            buckets.fill(0.0);
            for &id in &ids[..len] {
                buckets[(key_of(id) >> shift) as usize & ((1 << width) - 1)] += amount(id);
            }
            let mut bucket = 0;
            while bucket + 1 < buckets.len() && before + buckets[bucket] < target {
                before += buckets[bucket];
                bucket += 1;
            }
            key = key << width | bucket as u32;
            len = compact(&mut ids[..len], |id| key_of(id) >> shift == key);
        }
        let mut last = 0;
        for &id in &ids[..len] {
            if before >= target {
                break;
            }
            before += amount(id);
            last = id;
        }
        let logit = logit_of(key);
        // Keys that belong to no logit come after all that do.
        if logit.is_nan() { Cut::NONE } else { Cut { logit, last } }
    }
}

/// Moves the ids to keep to the front, in order, and gives their number. Without a branch on what is kept,
/// which would be mispredicted all the time.
fn compact(ids: &mut [u32], keep: impl Fn(u32) -> bool) -> usize {
    let mut len = 0;
    for index in 0..ids.len() {
        let id = ids[index];
        ids[len] = id;
        len += usize::from(keep(id));
    }
    len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(logits: &[f32], target: f64) -> Vec<u32> {
        let cut = Selection::new(logits.len()).cut(logits, target, |_| true, |_| 1.0);
        (0..logits.len() as u32).filter(|&id| cut.keeps(id, logits[id as usize])).collect()
    }

    #[test]
    fn keys_descend_with_logits() {
        let descending = [f32::MAX, 2.0, 1.0, 1e-40, 0.0, -1e-40, -1.0, -2.0, f32::MIN, f32::NEG_INFINITY];
        assert!(descending.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
        assert!(descending.iter().all(|&logit| logit_of(key(logit)) == logit));
        assert_eq!(key(0.0), key(-0.0));
    }

    #[test]
    fn ties_at_the_cut_go_to_the_lower_ids() {
        assert_eq!(kept(&[1.0, 2.0, 1.0, 1.0, 3.0], 4.0), [0, 1, 2, 4]);
    }

    #[test]
    fn a_target_out_of_reach_keeps_everything() {
        assert_eq!(kept(&[1.0, f32::NEG_INFINITY, 0.5], 9.0), [0, 1, 2]);
    }

    #[test]
    fn every_length_of_prefix_is_found_in_close_and_far_logits() {
        for scale in [1e-7, 1.0, 1e6] {
            let logits: Vec<f32> = (0..500u32).map(|id| (id * 7919 % 101) as f32 * scale - 3.0).collect();
            let mut order: Vec<u32> = (0..500).collect();
            order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
            for count in 1..=500 {
                let mut expected = order[..count].to_vec();
                expected.sort_unstable();
                assert_eq!(kept(&logits, count as f64), expected, "{scale} {count}");
            }
        }
    }
}
