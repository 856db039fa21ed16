//! What sequences keep between steps: states of lightning layers, pages of softmax layers.
//!
//! Memory is planned at the start. Every sequence holds one slot, which in each lightning layer is a state on
//! the chunk grid with the keys and values of the unfinished chunk; and as many pages as its length needs,
//! each of which stands for [`PAGE_TOKENS`] tokens in all softmax layers.

use arges_kernels::lightning::{self, materialize_state};
use arges_kernels::softmax_attention::{self, Pages};

use arges_kernels::device::cpu::AlignedBuffer;

use crate::config::{AttentionKind, Config};
use crate::model::Model;

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

/// A sequence of a [`Cache`], from [`Cache::open`] to [`Cache::close`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SequenceId {
    slot: u32,
    /// Counts the sequences that had the slot, so that a closed one is not taken for its successor.
    generation: u32,
}

/// There are not enough free pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{needed} more cache pages are needed, {free} are free")]
pub struct OutOfPages {
    /// Pages missing to the length asked for.
    pub needed: usize,
    /// Pages free.
    pub free: usize,
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

struct Slot {
    generation: u32,
    open: bool,
    length: usize,
    pages: Vec<u32>,
}

/// States and pages of all open sequences.
pub struct Cache {
    pub(crate) states: Vec<AlignedBuffer<f32>>,
    pub(crate) pages: Vec<Pages>,
    slots: Vec<Slot>,
    free_slots: Vec<u32>,
    free_pages: Vec<u32>,
    total_pages: usize,
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
        let CachePlan { max_sequences, max_tokens } = plan;
        if max_sequences == 0 || max_tokens == 0 {
            return Err(CacheError::Empty);
        }
        let too_large = CacheError::TooLarge(max_sequences, max_tokens);
        let config = model.config();
        let (lightning, softmax) = (lightning_shape(config), softmax_shape(config));
        let element = model.cache_element();
        let total_pages = max_tokens.div_ceil(PAGE_TOKENS);
        let within = |count: usize, len: usize| {
            count.checked_mul(len).and_then(|n| n.checked_mul(8)).is_some_and(|n| n < isize::MAX as usize)
        };
        let slots = u32::try_from(max_sequences).map_err(|_| too_large)?;
        let page_ids = u32::try_from(total_pages).map_err(|_| too_large)?;
        if !within(max_sequences, lightning.cache_len()) || !within(total_pages, softmax.page_len()) {
            return Err(too_large);
        }
        let of_kind = |kind| config.attention.iter().filter(move |attention| **attention == kind);
        Ok(Self {
            states: of_kind(AttentionKind::Lightning)
                .map(|_| AlignedBuffer::zeroed(max_sequences * lightning.cache_len()))
                .collect(),
            pages: of_kind(AttentionKind::Softmax)
                .map(|_| Pages::new(softmax, total_pages, element))
                .collect(),
            slots: (0..slots)
                .map(|_| Slot {
                    generation: 0,
                    open: false,
                    length: 0,
                    // One sequence may take every page; room for it is taken at once and not while decoding.
                    pages: Vec::with_capacity(total_pages),
                })
                .collect(),
            free_slots: (0..slots).rev().collect(),
            free_pages: (0..page_ids).rev().collect(),
            total_pages,
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

    /// Pages planned.
    pub fn pages_total(&self) -> usize {
        self.total_pages
    }

    /// Pages that no sequence holds.
    pub fn free_pages(&self) -> usize {
        self.free_pages.len()
    }

    /// Sequences that can still be opened.
    pub fn free_sequences(&self) -> usize {
        self.free_slots.len()
    }

    /// A new, empty sequence, or `None` when all slots are taken.
    pub fn open(&mut self) -> Option<SequenceId> {
        let slot = self.free_slots.pop()?;
        let state = &mut self.slots[slot as usize];
        state.open = true;
        Some(SequenceId { slot, generation: state.generation })
    }

    /// Makes sure that the sequence has pages for `length` tokens.
    ///
    /// # Errors
    /// When too few pages are free; then nothing changes.
    ///
    /// # Panics
    /// When the sequence is closed.
    pub fn reserve(&mut self, sequence: SequenceId, length: usize) -> Result<(), OutOfPages> {
        let slot = self.slot_index(sequence).expect("the sequence is open");
        let slot = &mut self.slots[slot];
        let needed = length.div_ceil(PAGE_TOKENS).saturating_sub(slot.pages.len());
        let free = self.free_pages.len();
        if needed > free {
            return Err(OutOfPages { needed, free });
        }
        slot.pages.extend(self.free_pages.drain(free - needed..).rev());
        Ok(())
    }

    /// Tokens of the sequence that the cache holds.
    ///
    /// # Panics
    /// When the sequence is closed.
    pub fn length(&self, sequence: SequenceId) -> usize {
        self.slots[self.slot_index(sequence).expect("the sequence is open")].length
    }

    /// Gives slot and pages back. Closing twice does nothing.
    pub fn close(&mut self, sequence: SequenceId) {
        if let Some(index) = self.slot_index(sequence) {
            let slot = &mut self.slots[index];
            slot.open = false;
            slot.generation = slot.generation.wrapping_add(1);
            slot.length = 0;
            self.free_pages.extend(slot.pages.drain(..).rev());
            self.free_slots.push(sequence.slot);
        }
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
        materialize_state(self.lightning, model.decays(layer), cache, self.slots[slot].length)
    }

    /// Rotated keys of softmax layer `layer` (counted among its kind), `[tokens, kv_heads, head_dim]`.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such layer.
    pub fn keys(&self, sequence: SequenceId, layer: usize) -> Vec<f32> {
        let slot = &self.slots[self.slot_index(sequence).expect("the sequence is open")];
        (0..slot.length)
            .flat_map(|t| {
                let page = slot.pages[t / PAGE_TOKENS] as usize;
                self.pages[layer].key(self.softmax, page, t % PAGE_TOKENS)
            })
            .collect()
    }

    /// The slot of an open sequence.
    pub(crate) fn slot_index(&self, sequence: SequenceId) -> Option<usize> {
        let slot = self.slots.get(sequence.slot as usize)?;
        (slot.open && slot.generation == sequence.generation).then_some(sequence.slot as usize)
    }

    pub(crate) fn length_of(&self, slot: usize) -> usize {
        self.slots[slot].length
    }

    pub(crate) fn page_capacity(&self, slot: usize) -> usize {
        self.slots[slot].pages.len() * PAGE_TOKENS
    }

    /// Pages of layer `layer` to write, and the page tables of all slots to read.
    pub(crate) fn pages_and_tables(&mut self, layer: usize) -> (&mut Pages, Tables<'_>) {
        (&mut self.pages[layer], Tables(&self.slots))
    }

    pub(crate) fn advance(&mut self, slot: usize, tokens: usize) {
        self.slots[slot].length += tokens;
    }
}

/// The page tables of all slots.
#[derive(Clone, Copy)]
pub(crate) struct Tables<'a>(&'a [Slot]);

impl<'a> Tables<'a> {
    pub(crate) fn of(self, slot: usize) -> &'a [u32] {
        &self.0[slot].pages
    }
}
