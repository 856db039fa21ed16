//! What sequences keep between steps, in the memory of a GPU.

use std::ops::{Deref, DerefMut};

use arges_kernels::device::cuda::{Buffer, CudaError, Fill, Pinned};
use arges_kernels::lightning::Decays;
use arges_kernels::lightning::cuda::DeviceCache;
use arges_kernels::softmax_attention::cuda::DevicePages;

use super::CudaModel;
use crate::cache::{CacheError, CachePlan, PAGE_TOKENS, SequenceId, Slots, lightning_shape, softmax_shape};
use crate::config::AttentionKind;

/// A cache cannot be made on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum CudaCacheError {
    /// The plan is empty or too large.
    #[error(transparent)]
    Plan(#[from] CacheError),
    /// The memory of the device is too small.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// States and pages of all open sequences. It is their [`Slots`] with memory of a GPU.
pub struct CudaCache {
    pub(crate) states: Vec<DeviceCache>,
    pub(crate) pages: Vec<DevicePages>,
    pub(crate) tables: PageTables,
    slots: Slots,
}

/// The numbers of every slot's pages, `[slots, stride]`, as kernels read them.
pub(crate) struct PageTables {
    pub(crate) device: Buffer<i32>,
    pub(crate) stride: usize,
    host: Pinned<i32>,
    /// Of each slot, numbers that the device has, and of which sequence.
    known: Vec<(Option<SequenceId>, usize)>,
}

impl CudaCache {
    /// Takes the memory.
    ///
    /// # Errors
    /// When the plan is empty, or the memory of the device too small.
    pub fn new(model: &CudaModel, plan: CachePlan) -> Result<Self, CudaCacheError> {
        Self::of_layers(model, plan, usize::MAX)
    }

    /// The same with one layer's memory of each kind, which all layers use one after the other: for whole sequences,
    /// of which nothing is needed after their step.
    pub(crate) fn for_whole_sequences(model: &CudaModel, plan: CachePlan) -> Result<Self, CudaCacheError> {
        Self::of_layers(model, plan, 1)
    }

    fn of_layers(model: &CudaModel, plan: CachePlan, most: usize) -> Result<Self, CudaCacheError> {
        let (config, cuda, element) = (model.config(), model.cuda(), model.element());
        let slots = plan.slots(config)?;
        let of_kind = |kind| config.attention.iter().filter(move |attention| **attention == kind).take(most);
        let (lightning, softmax) = (lightning_shape(config), softmax_shape(config));
        let states = of_kind(AttentionKind::Lightning)
            .map(|_| DeviceCache::new(cuda, lightning, element, plan.max_sequences))
            .collect::<Result<_, _>>()?;
        let pages = of_kind(AttentionKind::Softmax)
            .map(|_| DevicePages::new(cuda, softmax, slots.pages_total(), element))
            .collect::<Result<_, _>>()?;
        let stride = slots.pages_total();
        let tables = PageTables {
            device: Buffer::zeroed(cuda, plan.max_sequences * stride)?,
            stride,
            host: Pinned::zeroed(cuda, plan.max_sequences * stride)?,
            known: vec![(None, 0); plan.max_sequences],
        };
        Ok(Self { states, pages, tables, slots })
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.states.iter().map(DeviceCache::bytes).sum::<usize>()
            + self.pages.iter().map(DevicePages::bytes).sum::<usize>()
            + self.tables.device.bytes()
    }

    /// Fills states and pages with random values, for measurements.
    ///
    /// # Errors
    /// When the device fails.
    pub fn fill_random(&mut self, seed: u64) -> Result<(), CudaError> {
        let fill = Fill::new(self.tables.device.cuda())?;
        for (layer, states) in self.states.iter_mut().enumerate() {
            states.fill_random(&fill, seed.wrapping_add(2 * layer as u64))?;
        }
        for (layer, pages) in self.pages.iter_mut().enumerate() {
            fill.normal(pages.data_mut(), seed.wrapping_add(2 * layer as u64 + 1), 1.0)?;
        }
        Ok(())
    }

    /// Tells the device about the pages that a sequence was given since it was last told.
    pub(crate) fn tell_pages(&mut self, sequence: SequenceId) -> Result<(), CudaError> {
        let slot = self.slots.slot_index(sequence).expect("the sequence is open");
        let (pages, tables) = (self.slots.pages_of(slot), &mut self.tables);
        let (holder, known) = &mut tables.known[slot];
        if *holder != Some(sequence) {
            (*holder, *known) = (Some(sequence), 0);
        }
        if *known < pages.len() {
            let row = slot * tables.stride;
            for (place, page) in pages.iter().enumerate().skip(*known) {
                tables.host.as_mut_slice()[row + place] = *page as i32;
            }
            tables.device.copy_from_pinned(row + *known, &tables.host, pages.len() - *known)?;
            *known = pages.len();
        }
        Ok(())
    }

    /// The recurrent state of lightning layer `layer` (counted among its kind) after all tokens of the sequence,
    /// `[heads, head_dim, head_dim]`, key channel by value channel. Waits for the device.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such layer.
    pub fn state(
        &self,
        model: &CudaModel,
        sequence: SequenceId,
        layer: usize,
    ) -> Result<Vec<f32>, CudaError> {
        let slot = self.slot_index(sequence).expect("the sequence is open");
        let config = model.config();
        let lightning =
            (0..config.num_layers).filter(|l| config.attention[*l] == AttentionKind::Lightning).nth(layer);
        let slopes = config.lightning_slopes(lightning.expect("the model has that lightning layer"));
        self.states[layer].materialize_state(&Decays::new(&slopes), slot, self.slots.length_of(slot))
    }

    /// Rotated keys of softmax layer `layer` (counted among its kind), `[tokens, kv_heads, head_dim]`. Waits for the
    /// device.
    ///
    /// # Errors
    /// When the device failed.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such layer.
    pub fn keys(&self, sequence: SequenceId, layer: usize) -> Result<Vec<f32>, CudaError> {
        let slot = self.slot_index(sequence).expect("the sequence is open");
        let pages = self.slots.pages_of(slot);
        let mut keys = Vec::new();
        for t in 0..self.slots.length_of(slot) {
            let page = pages[t / PAGE_TOKENS] as usize;
            keys.append(&mut self.pages[layer].key(page, t % PAGE_TOKENS)?);
        }
        Ok(keys)
    }
}

impl Deref for CudaCache {
    type Target = Slots;

    fn deref(&self) -> &Slots {
        &self.slots
    }
}

impl DerefMut for CudaCache {
    fn deref_mut(&mut self) -> &mut Slots {
        &mut self.slots
    }
}
