//! What products multiply, in the memory of the device.

use std::sync::Arc;

use super::tiling::{TILINGS, Tiling};
use crate::device::cuda::{Activations, Cuda, CudaError, Pinned, TensorMap};
use crate::matmul::Element;

/// Weights on the device: one matrix `[outputs, k]`, or those of all experts, one after the other.
pub struct DeviceMatrix {
    pub(super) outputs: usize,
    pub(super) k: usize,
    pub(super) experts: usize,
    pub(super) data: Activations,
    /// For tiles of 64, 128 and 256 outputs; none where the copy engine is not used.
    pub(super) maps: Option<[TensorMap; 3]>,
    /// Whether a kernel just ahead in the stream may have written the weights. Products ask for others before it has
    /// ended.
    pub(super) fresh: bool,
}

impl DeviceMatrix {
    /// Zeros.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn zeroed(
        cuda: &Arc<Cuda>,
        experts: usize,
        outputs: usize,
        k: usize,
        element: Element,
    ) -> Result<Self, CudaError> {
        let data = Activations::zeroed(cuda, element, experts * outputs * k)?;
        let mut matrix = Self { outputs, k, experts, data, maps: None, fresh: false };
        matrix.reshape(experts, outputs, k)?;
        Ok(matrix)
    }

    /// Outputs of one matrix.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Matrices.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Number format.
    pub fn element(&self) -> Element {
        self.data.element()
    }

    /// Bytes of all.
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// The weights as they lie on the device, `[experts, outputs, k]`.
    pub fn data(&self) -> &Activations {
        &self.data
    }

    /// Copies rows `[rows, k]` from page-locked memory to outputs `first..`, of which every `group` ones are followed
    /// by a gap of `gap`, in the order of the stream. The values are bytes of the matrix's element.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When the rows reach beyond the matrices, or do not fill whole groups.
    pub fn write_outputs(
        &mut self,
        first: usize,
        rows: usize,
        group: usize,
        gap: usize,
        from: &Pinned<u8>,
    ) -> Result<(), CudaError> {
        assert!(group > 0 && rows.is_multiple_of(group), "{rows} rows in groups of {group}");
        let size = match self.element() {
            Element::F32 => 4,
            Element::Bf16 => 2,
        };
        let row = self.k * size;
        self.data.write_rows(first * row, (group + gap) * row, from, rows / group, group * row)
    }

    /// The weights, to be filled on the device.
    pub fn data_mut(&mut self) -> &mut Activations {
        &mut self.data
    }

    /// Gives matrices of another shape the memory of these, which must be enough. Their values mean nothing then.
    pub(super) fn reshape(&mut self, experts: usize, outputs: usize, k: usize) -> Result<(), CudaError> {
        assert!(experts * outputs * k <= self.data.len(), "room for {experts} matrices of {outputs} by {k}");
        (self.outputs, self.k, self.experts) = (outputs, k, experts);
        self.maps = match &self.data {
            Activations::Bf16(buffer) if uses_tensor_cores(buffer.cuda(), k) => {
                let map = |tile| TensorMap::bf16(buffer, experts * outputs, k, tile);
                Some([map(64)?, map(128)?, map(256)?])
            }
            _ => None,
        };
        Ok(())
    }

    /// For tiles of so many outputs.
    pub(super) fn map(&self, outputs: usize) -> Option<&TensorMap> {
        let [small, middle, large] = self.maps.as_ref()?;
        Some(match outputs {
            64 => small,
            128 => middle,
            _ => large,
        })
    }
}

/// Whether products with `k` inputs run on Hopper's tensor cores: rows must begin at multiples of 16 bytes.
pub(super) fn uses_tensor_cores(cuda: &Cuda, k: usize) -> bool {
    cuda.facts().architecture.has_wgmma() && k.is_multiple_of(8)
}

/// Rows that products read, `[rows, k]`.
pub struct DeviceRows {
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) data: Activations,
    /// For each of [`TILINGS`]; none where the copy engine is not used.
    pub(super) maps: Option<Vec<TensorMap>>,
}

impl DeviceRows {
    /// Room for `rows` rows.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn zeroed(cuda: &Arc<Cuda>, rows: usize, k: usize, element: Element) -> Result<Self, CudaError> {
        let data = Activations::zeroed(cuda, element, rows * k)?;
        let maps = match &data {
            Activations::Bf16(buffer) if uses_tensor_cores(cuda, k) => {
                let map = |tiling: &Tiling| TensorMap::bf16(buffer, rows, k, tiling.row_box());
                Some(TILINGS.iter().map(map).collect::<Result<_, _>>()?)
            }
            _ => None,
        };
        Ok(Self { rows, k, data, maps })
    }

    /// Rows there is room for.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Width of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The values.
    pub fn data(&self) -> &Activations {
        &self.data
    }

    /// The values, to be written by the host.
    pub fn data_mut(&mut self) -> &mut Activations {
        &mut self.data
    }
}
