//! What an engine tells of itself: counters, and the memory that it was given.

use std::fmt;

/// How often something had which size, by powers of two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sizes {
    /// How often the size was at most `2^i` and above the power before; the last is for all that are greater.
    pub counts: [u64; Sizes::BUCKETS],
    /// All sizes together.
    pub sum: u64,
}

impl Sizes {
    /// Up to 2^16, and what is above.
    pub const BUCKETS: usize = 18;

    /// Counts one more. 0 is counted as at most 1.
    pub fn observe(&mut self, size: usize) {
        let bucket = size.max(1).next_power_of_two().ilog2() as usize;
        self.counts[bucket.min(Self::BUCKETS - 1)] += 1;
        self.sum += size as u64;
    }
}

/// Counters of an engine at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Sequences in the caches.
    pub running: usize,
    /// Requests that wait for room, those that were set back included.
    pub waiting: usize,
    /// KV pages that no sequence holds, those kept for later ones included.
    pub free_pages: usize,
    /// KV pages altogether.
    pub total_pages: usize,
    /// Steps run.
    pub steps: u64,
    /// Sequences of each step.
    pub step_sequences: Sizes,
    /// Tokens of each step, of prompts, answers and guesses.
    pub step_tokens: Sizes,
    /// Tokens put through the model, of prompts and answers, those computed again included.
    pub computed_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Guesses that were tried.
    pub drafted_tokens: u64,
    /// Of these, those that were right.
    pub accepted_drafts: u64,
    /// Times a running sequence was set back for want of pages.
    pub preemptions: u64,
    /// Tokens that did not have to be computed, because a sequence before had them.
    pub cached_tokens: u64,
    /// KV pages that are kept for later sequences, or would be if they were not in use.
    pub cached_pages: usize,
    /// States that are kept for later sequences.
    pub cached_states: usize,
    /// Pages no longer kept, for want of room.
    pub evicted_pages: u64,
    /// States no longer kept, for want of room.
    pub evicted_states: u64,
    /// Requests that ended by themselves.
    pub finished: u64,
    /// Requests whose generation was dropped.
    pub cancelled: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Requests that a pause ended.
    pub aborted: u64,
    /// Whether no new requests begin: see [`crate::Engine::pause`].
    pub paused: bool,
}

/// Bytes an engine holds, fixed at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Packed weights.
    pub weights: usize,
    /// KV pages and linear states.
    pub cache: usize,
    /// Room for linear states that are kept for later sequences, on the device and on its host.
    pub snapshots: usize,
    /// Activations, logits and sampling buffers of one step.
    pub workspace: usize,
}

impl MemoryPlan {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.cache + self.snapshots + self.workspace
    }
}

impl fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: usize| bytes as f64 / (1 << 20) as f64;
        write!(
            f,
            "weights {:.1} MiB, caches {:.1} MiB, kept states {:.1} MiB, workspace {:.1} MiB, together {:.1} MiB",
            mib(self.weights),
            mib(self.cache),
            mib(self.snapshots),
            mib(self.workspace),
            mib(self.total())
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_counted_at_the_least_power_of_two_that_is_not_below_it() {
        let mut sizes = Sizes::default();
        for size in [1, 2, 3, 4, 5, 1 << 16, (1 << 16) + 1, 1 << 30] {
            sizes.observe(size);
        }
        let found: Vec<(usize, u64)> =
            sizes.counts.into_iter().enumerate().filter(|&(_, count)| count > 0).collect();
        assert_eq!(found, [(0, 1), (1, 1), (2, 2), (3, 1), (16, 1), (17, 2)]);
        assert_eq!(sizes.sum, 15 + (2 << 16) + 1 + (1 << 30));
    }
}
