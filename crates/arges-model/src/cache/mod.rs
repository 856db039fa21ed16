//! What sequences keep between steps: states of lightning layers, pages of softmax layers.
//!
//! Memory is planned at the start. Every sequence holds one slot, which in each lightning layer is a state on
//! the chunk grid with the keys and values of the unfinished chunk; and as many pages as its length needs,
//! each of which stands for [`PAGE_TOKENS`] tokens in all softmax layers. Full pages may be shared, and states at a grid
//! point copied to [`Snapshots`], so that a sequence can begin where another one was.

mod slots;
mod snapshots;

use std::ops::{Deref, DerefMut};

use arges_kernels::device::cpu::AlignedBuffer;
use arges_kernels::lightning::{self, materialize_state};
use arges_kernels::softmax_attention::{self, Pages};

use crate::config::{AttentionKind, Config};
use crate::model::Model;

pub use slots::{OutOfPages, SequenceId, Slots};
pub use snapshots::{SnapshotPlan, Snapshots};

/// Tokens of a page.
pub const PAGE_TOKENS: usize = softmax_attention::PAGE;

/// How much to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachePlan {
    /// Sequences open at a time.
    pub max_sequences: usize,
    /// Tokens over all sequences; rounded up to pages, of which every sequence can waste a part of one.
    pub max_tokens: usize,
}

impl CachePlan {
    /// The slots and pages of the plan, all free.
    pub(crate) fn slots(self, config: &Config) -> Result<Slots, CacheError> {
        let Self { max_sequences, max_tokens } = self;
        if max_sequences == 0 || max_tokens == 0 {
            return Err(CacheError::Empty);
        }
        let too_large = CacheError::TooLarge(max_sequences, max_tokens);
        let (lightning, softmax) = (lightning_shape(config), softmax_shape(config));
        let pages = max_tokens.div_ceil(PAGE_TOKENS);
        let within = |count: usize, len: usize| {
            count.checked_mul(len).and_then(|n| n.checked_mul(8)).is_some_and(|n| n < isize::MAX as usize)
        };
        if !within(max_sequences, lightning.cache_len()) || !within(pages, softmax.page_len()) {
            return Err(too_large);
        }
        let slots = u32::try_from(max_sequences).map_err(|_| too_large)?;
        Ok(Slots::new(slots, u32::try_from(pages).map_err(|_| too_large)?))
    }
}

/// The cache cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CacheError {
    /// A plan without room for anything.
    #[error("a cache needs room for at least one sequence and one token")]
    Empty,
    /// The size overflows.
    #[error("a cache of {0} sequences and {1} tokens is larger than memory can be")]
    TooLarge(usize, usize),
}

/// States and pages of all open sequences. It is their [`Slots`] with memory of the CPU.
pub struct Cache {
    pub(crate) states: Vec<AlignedBuffer<f32>>,
    pub(crate) pages: Vec<Pages>,
    slots: Slots,
    lightning: lightning::Shape,
    softmax: softmax_attention::Shape,
}

pub(crate) fn lightning_shape(config: &Config) -> lightning::Shape {
    lightning::Shape { heads: config.num_heads, head_dim: config.head_dim }
}

pub(crate) fn softmax_shape(config: &Config) -> softmax_attention::Shape {
    softmax_attention::Shape {
        heads: config.num_heads,
        kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        rotary_dim: config.rotary_dim,
    }
}

impl Cache {
    /// Takes the memory. The system backs it with pages of its own as it is used.
    ///
    /// # Errors
    /// When the plan is empty or its size overflows.
    pub fn new(model: &Model, plan: CachePlan) -> Result<Self, CacheError> {
        let config = model.config();
        let (lightning, softmax) = (lightning_shape(config), softmax_shape(config));
        let element = model.cache_element();
        let slots = plan.slots(config)?;
        let (max_sequences, total_pages) = (plan.max_sequences, slots.pages_total());
        let of_kind = |kind| config.attention.iter().filter(move |attention| **attention == kind);
        Ok(Self {
            states: of_kind(AttentionKind::Lightning)
                .map(|_| AlignedBuffer::zeroed(max_sequences * lightning.cache_len()))
                .collect(),
            pages: of_kind(AttentionKind::Softmax)
                .map(|_| Pages::new(softmax, total_pages, element))
                .collect(),
            slots,
            lightning,
            softmax,
        })
    }

    /// Bytes planned.
    pub fn bytes(&self) -> usize {
        self.states.iter().map(AlignedBuffer::bytes).sum::<usize>()
            + self.pages.iter().map(Pages::bytes).sum::<usize>()
    }

    /// Tokens of a page.
    pub fn page_tokens() -> usize {
        PAGE_TOKENS
    }

    /// The recurrent state of lightning layer `layer` (counted among its kind) after all tokens of the sequence,
    /// `[heads, head_dim, head_dim]`, key channel by value channel.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such layer.
    pub fn state(&self, model: &Model, sequence: SequenceId, layer: usize) -> Vec<f32> {
        let slot = self.slot_index(sequence).expect("the sequence is open");
        let len = self.lightning.cache_len();
        let cache = &self.states[layer][slot * len..][..len];
        materialize_state(self.lightning, model.decays(layer), cache, self.slots.length_of(slot))
    }

    /// Rotated keys of softmax layer `layer` (counted among its kind), `[tokens, kv_heads, head_dim]`.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such layer.
    pub fn keys(&self, sequence: SequenceId, layer: usize) -> Vec<f32> {
        let slot = self.slot_index(sequence).expect("the sequence is open");
        let pages = self.slots.pages_of(slot);
        (0..self.slots.length_of(slot))
            .flat_map(|t| {
                let page = pages[t / PAGE_TOKENS] as usize;
                self.pages[layer].key(self.softmax, page, t % PAGE_TOKENS)
            })
            .collect()
    }

    /// Pages of layer `layer` to write, and the page tables of all slots to read.
    pub(crate) fn pages_and_tables(&mut self, layer: usize) -> (&mut Pages, &Slots) {
        (&mut self.pages[layer], &self.slots)
    }
}

impl Deref for Cache {
    type Target = Slots;

    fn deref(&self) -> &Slots {
        &self.slots
    }
}

impl DerefMut for Cache {
    fn deref_mut(&mut self) -> &mut Slots {
        &mut self.slots
    }
}
