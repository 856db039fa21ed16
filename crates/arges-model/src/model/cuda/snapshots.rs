//! States that outlive their sequences, in the memory of a GPU and of its host.

use arges_kernels::device::cuda::CudaError;
use arges_kernels::lightning::cuda::DeviceSnapshots;

use super::{CudaCache, CudaModel};
use crate::cache::{SequenceId, SnapshotPlan, lightning_shape};
use crate::config::AttentionKind;

/// Memory for snapshots: places on the device, then those on the host.
pub struct CudaSnapshots {
    layers: Vec<DeviceSnapshots>,
}

impl CudaSnapshots {
    /// Takes the memory.
    ///
    /// # Errors
    /// When the memory of the device or the host is too small.
    pub fn new(model: &CudaModel, plan: SnapshotPlan) -> Result<Self, CudaError> {
        let (config, shape) = (model.config(), lightning_shape(model.config()));
        let layer = |_| DeviceSnapshots::new(model.cuda(), shape, plan.device, plan.host);
        Ok(Self { layers: (0..config.count(AttentionKind::Lightning)).map(layer).collect::<Result<_, _>>()? })
    }

    /// Copies the states of a sequence, as of its last grid point, to `place`, in the order of the stream.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such place.
    pub fn save(&mut self, cache: &CudaCache, sequence: SequenceId, place: usize) -> Result<(), CudaError> {
        let slot = cache.slot_index(sequence).expect("the sequence is open");
        let mut layers = self.layers.iter_mut().zip(&cache.states);
        layers.try_for_each(|(layer, states)| layer.save(states, slot, place))
    }

    /// Copies the states at `place` into a sequence that has as many tokens as the one they are from had.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the sequence is closed or there is no such place.
    pub fn load(&self, place: usize, cache: &mut CudaCache, sequence: SequenceId) -> Result<(), CudaError> {
        let slot = cache.slot_index(sequence).expect("the sequence is open");
        let mut layers = self.layers.iter().zip(&mut cache.states);
        layers.try_for_each(|(layer, states)| layer.load(place, states, slot))
    }

    /// Copies the states at a place on the device to one on the host.
    ///
    /// # Errors
    /// When the device fails.
    ///
    /// # Panics
    /// When the places are others.
    pub fn offload(&mut self, from: usize, to: usize) -> Result<(), CudaError> {
        self.layers.iter_mut().try_for_each(|layer| layer.offload(from, to))
    }
}
