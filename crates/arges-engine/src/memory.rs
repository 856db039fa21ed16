//! The caches with what outlives a sequence in them: beginnings of sequences that later ones take up.

use std::collections::HashMap;

use arges_kernels::matmul::Compute;
use arges_model::accounting::Accounting;
use arges_model::cache::PAGE_TOKENS;
use arges_model::{DType, DeviceModel, Executor, SequenceId, SnapshotPlan};
use tracing::error;

use crate::prefix::{Costs, NodeId, PrefixCache, ROOT};
use crate::request::PrefixCacheOptions;
use crate::scheduler::{Opened, Progress, Rank, Room};
use crate::sequence::Sequence;
use crate::stats::EngineStats;

/// How far a running sequence is in the tree of prefixes.
#[derive(Debug)]
struct Track {
    slot: SequenceId,
    /// Its last node.
    tip: NodeId,
    /// Tokens in the tree.
    inserted: usize,
    /// Tokens up to the last snapshot on its path.
    saved: usize,
    /// What it computed belongs to weights that are no more.
    stale: bool,
}

/// A model's memory.
pub(crate) struct Memory {
    pub executor: Executor,
    costs: Costs,
    prefix: Option<PrefixCache>,
    /// Tokens after which a snapshot is taken in any case.
    interval: usize,
    tracks: HashMap<Rank, Track>,
    hit_tokens: u64,
}

/// Snapshots that fit into what the options allow.
pub(crate) fn snapshots(model: &DeviceModel, options: Option<PrefixCacheOptions>) -> SnapshotPlan {
    let each = model.snapshot_bytes().max(1);
    let places = |bytes: usize| (bytes / each).min(MAX_SNAPSHOTS);
    options.map_or_else(SnapshotPlan::default, |options| SnapshotPlan {
        device: places(options.state_bytes),
        host: places(options.host_bytes),
    })
}

/// More would take long to choose among.
const MAX_SNAPSHOTS: usize = 4096;

fn costs(model: &DeviceModel) -> Costs {
    let kv = if model.compute() == Compute::F32 { DType::F32 } else { DType::Bf16 };
    let accounting = Accounting::of(model.config(), 1, 1, DType::Bf16, kv);
    let flops = accounting.flops.prefill_token;
    Costs {
        parity: (flops.total - flops.softmax) / flops.softmax,
        state_bytes: model.snapshot_bytes() as f64,
        token_bytes: accounting.memory.kv_per_token as f64,
    }
}

impl Memory {
    pub fn new(executor: Executor, options: Option<PrefixCacheOptions>) -> Self {
        let costs = costs(executor.model());
        let SnapshotPlan { device, host } = snapshots(executor.model(), options);
        let prefix = options.map(|_| PrefixCache::new(device, host, costs));
        let interval = options.map_or(usize::MAX, |options| options.interval.max(PAGE_TOKENS));
        Self { executor, costs, prefix, interval, tracks: HashMap::new(), hit_tokens: 0 }
    }

    /// What tokens cost.
    pub fn costs(&self) -> Costs {
        self.costs
    }

    /// As the scheduler sees it.
    pub fn room<'a>(&'a mut self, sequences: &'a HashMap<Rank, Sequence>) -> View<'a> {
        View { memory: self, sequences }
    }

    /// Forgets all prefixes. What running sequences hold stays theirs and is not shared any more.
    pub fn flush(&mut self) {
        if let Some(prefix) = &mut self.prefix {
            prefix.clear(self.executor.slots_mut());
        }
        self.tracks.values_mut().for_each(|track| track.stale = true);
    }

    /// Notes how many tokens of a running sequence are computed, and takes a snapshot where `worth_saving` says so or
    /// the last one is far behind.
    pub fn note(&mut self, rank: Rank, tokens: &[u32], computed: usize, worth_saving: bool) {
        let (Some(prefix), Some(track)) = (&mut self.prefix, self.tracks.get_mut(&rank)) else { return };
        let grid = computed / PAGE_TOKENS * PAGE_TOKENS;
        if track.stale || grid == 0 {
            return;
        }
        if grid > track.inserted {
            let slots = self.executor.slots_mut();
            let pages = slots.pages(track.slot)[..grid / PAGE_TOKENS].to_vec();
            track.tip = prefix.insert(track.tip, &tokens[..grid], &pages, slots);
            track.inserted = grid;
        }
        let gap = grid.saturating_sub(track.saved);
        if gap == 0 || !(worth_saving || gap >= self.interval) {
            return;
        }
        track.saved = grid;
        let Some(placed) = prefix.place(track.tip) else { return };
        let offloaded = placed.offload.map_or(Ok(()), |(from, to)| self.executor.offload_states(from, to));
        let saved = offloaded.and_then(|()| self.executor.save_states(track.slot, placed.place));
        if let Err(error) = saved {
            error!(%error, "a state could not be kept");
            prefix.unplace(track.tip);
            self.flush();
        }
    }

    /// Frees what a sequence holds.
    pub fn close(&mut self, rank: Rank, slot: SequenceId) {
        self.executor.slots_mut().close(slot);
        self.tracks.remove(&rank);
    }

    /// Makes room for `length` tokens of a sequence, if need be at the cost of prefixes.
    fn reserve(&mut self, slot: SequenceId, length: usize) -> bool {
        loop {
            let slots = self.executor.slots_mut();
            if slots.reserve(slot, length).is_ok() {
                return true;
            }
            if slots.idle_pages() == 0 || !self.prefix.as_mut().is_some_and(|prefix| prefix.evict_page(slots))
            {
                return false;
            }
        }
    }

    pub fn describe(&self, stats: &mut EngineStats) {
        let slots = self.executor.slots();
        stats.free_pages = slots.free_pages() + slots.idle_pages();
        stats.total_pages = slots.pages_total();
        stats.cached_tokens = self.hit_tokens;
        if let Some(prefix) = &self.prefix {
            stats.cached_pages = prefix.pages();
            stats.cached_states = prefix.snapshots();
            (stats.evicted_pages, stats.evicted_states) =
                (prefix.evictions().pages, prefix.evictions().states);
        }
    }
}

/// The memory while a step is planned.
pub(crate) struct View<'a> {
    memory: &'a mut Memory,
    sequences: &'a HashMap<Rank, Sequence>,
}

impl View<'_> {
    fn tokens(&self, rank: Rank) -> &[u32] {
        self.sequences.get(&rank).map_or(&[], Sequence::tokens)
    }
}

impl Room for View<'_> {
    type Slot = SequenceId;

    fn open(&mut self, rank: Rank, progress: Progress) -> Option<Opened<SequenceId>> {
        let Self { memory, sequences } = self;
        let sequence = sequences.get(&rank)?;
        let tokens = sequence.tokens().get(..progress.length)?;
        // Which experts served what is kept of others is not known.
        let limit = if sequence.wants_experts() { 0 } else { progress.rows_from };
        let mut found = memory.prefix.as_ref().map_or_else(Default::default, |p| p.find(tokens, limit));
        let pages = memory.prefix.as_ref().map_or_else(Vec::new, |prefix| prefix.path(found.node));
        let mut slot = memory.executor.slots_mut().open_with(&pages)?;
        // Before room is made, which may cost the snapshot its place.
        if let Some(place) = memory.prefix.as_mut().and_then(|prefix| prefix.take_up(found.node))
            && let Err(error) = memory.executor.load_states(place, slot)
        {
            error!(%error, "a state could not be taken up");
            memory.executor.slots_mut().close(slot);
            memory.flush();
            (found.length, found.node) = (0, ROOT);
            slot = memory.executor.slots_mut().open()?;
        }
        if !memory.reserve(slot, progress.length) {
            memory.executor.slots_mut().close(slot);
            return None;
        }
        memory.hit_tokens += found.length as u64;
        let at = found.length;
        memory.tracks.insert(rank, Track { slot, tip: found.node, inserted: at, saved: at, stale: false });
        let branch = found.known.min(limit) / PAGE_TOKENS * PAGE_TOKENS;
        Some(Opened { slot, computed: at, stop: (branch > at).then_some(branch) })
    }

    fn reserve(&mut self, slot: SequenceId, length: usize) -> bool {
        self.memory.reserve(slot, length)
    }

    fn close(&mut self, rank: Rank, slot: SequenceId) {
        self.memory.close(rank, slot);
    }

    fn free_pages(&self) -> usize {
        let slots = self.memory.executor.slots();
        slots.free_pages() + slots.idle_pages()
    }

    fn pages_for(&self, length: usize) -> usize {
        length.div_ceil(PAGE_TOKENS)
    }

    fn pages_in_use(&self, rank: Rank, progress: Progress) -> usize {
        let Some(prefix) = &self.memory.prefix else { return 0 };
        let found = prefix.find(self.tokens(rank), progress.rows_from);
        let slots = self.memory.executor.slots();
        prefix.path(found.node).iter().filter(|&&page| slots.is_in_use(page)).count()
    }

    fn common(&self, rank: Rank, other: Rank) -> usize {
        if self.memory.prefix.is_none() {
            return 0;
        }
        let chunks = |rank| self.tokens(rank).chunks_exact(PAGE_TOKENS);
        chunks(rank).zip(chunks(other)).take_while(|(a, b)| a == b).count() * PAGE_TOKENS
    }

    fn whole_pages(&self, length: usize) -> usize {
        length / PAGE_TOKENS * PAGE_TOKENS
    }
}
