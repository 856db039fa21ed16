//! States of lightning layers at a grid point, which outlive the sequences that they were copied from.

use arges_kernels::device::cpu::AlignedBuffer;
use arges_kernels::lightning::{self, load_state, save_state};

use super::{Cache, SequenceId, lightning_shape};
use crate::config::AttentionKind;
use crate::model::Model;

/// How many snapshots there is room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SnapshotPlan {
    /// In the device's memory.
    pub device: usize,
    /// In the host's memory, to which a GPU's are moved. On the CPU they are of the same kind.
    pub host: usize,
}

/// Memory for snapshots. On the CPU all places are alike.
pub struct Snapshots {
    shape: lightning::Shape,
    /// Of each lightning layer, `[places, state]`.
    layers: Vec<AlignedBuffer<f32>>,
}

impl Snapshots {
    /// Takes the memory; the system backs it as it is used.
    pub fn new(model: &Model, plan: SnapshotPlan) -> Self {
        let (config, shape) = (model.config(), lightning_shape(model.config()));
        let places = plan.device + plan.host;
        let layers = config.count(AttentionKind::Lightning);
        Self {
            shape,
            layers: (0..layers).map(|_| AlignedBuffer::zeroed(places * shape.state_len())).collect(),
        }
    }

    /// Bytes planned.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(AlignedBuffer::bytes).sum()
    }

    /// Copies the states of a sequence, as of its last grid point, to `place`.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such place.
    pub fn save(&mut self, cache: &Cache, sequence: SequenceId, place: usize) {
        let slot = cache.slot_index(sequence).expect("the sequence is open");
        let (each, len) = (self.shape.state_len(), self.shape.cache_len());
        for (layer, states) in self.layers.iter_mut().zip(&cache.states) {
            let snapshot = &mut layer[place * each..(place + 1) * each];
            save_state(self.shape, &states[slot * len..(slot + 1) * len], snapshot);
        }
    }

    /// Copies the states at `place` into a sequence that has as many tokens as the one they are from had.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such place.
    pub fn load(&self, place: usize, cache: &mut Cache, sequence: SequenceId) {
        let slot = cache.slot_index(sequence).expect("the sequence is open");
        let (each, len) = (self.shape.state_len(), self.shape.cache_len());
        for (layer, states) in self.layers.iter().zip(&mut cache.states) {
            let snapshot = &layer[place * each..(place + 1) * each];
            load_state(self.shape, snapshot, &mut states[slot * len..(slot + 1) * len]);
        }
    }

    /// Copies the states at one place to another.
    ///
    /// # Panics
    /// When there is no such place.
    pub fn offload(&mut self, from: usize, to: usize) {
        let each = self.shape.state_len();
        for layer in &mut self.layers {
            layer.copy_within(from * each..(from + 1) * each, to * each);
        }
    }
}
