//! Keys and values of a layer on a GPU.

use std::sync::Arc;

use crate::device::cuda::{Activations, Cuda, CudaError};
use crate::matmul::Element;
use crate::softmax_attention::{PAGE, Shape};

/// The pages of one layer, `[pages, kv_heads, 2, PAGE * head_dim]`: of each head the keys, then the values, laid out
/// as `page_place` in `pages.cuh` says.
pub struct DevicePages {
    pub(super) shape: Shape,
    pub(super) pages: usize,
    pub(super) data: Activations,
}

impl DevicePages {
    /// `pages` pages of zeros.
    ///
    /// # Errors
    /// When they do not fit.
    pub fn new(cuda: &Arc<Cuda>, shape: Shape, pages: usize, element: Element) -> Result<Self, CudaError> {
        let data = Activations::zeroed(cuda, element, pages * Self::page_len(shape))?;
        Ok(Self { shape, pages, data })
    }

    /// Values of one page.
    pub fn page_len(shape: Shape) -> usize {
        2 * shape.kv_heads * PAGE * shape.head_dim
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data.bytes()
    }

    /// Pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Number format.
    pub fn element(&self) -> Element {
        self.data.element()
    }

    /// The pages' values, `page_len` each.
    pub fn data(&self) -> &Activations {
        &self.data
    }

    /// The same, to be written.
    pub fn data_mut(&mut self) -> &mut Activations {
        &mut self.data
    }

    /// Rotated keys of the token at place `place` of `page`, `[kv_heads, head_dim]`. Waits for the device.
    ///
    /// # Errors
    /// When the driver fails, or a kernel before.
    pub fn key(&self, page: usize, place: usize) -> Result<Vec<f32>, CudaError> {
        self.token(page, place, 0)
    }

    /// The same of the values.
    ///
    /// # Errors
    /// When the driver fails, or a kernel before.
    pub fn value(&self, page: usize, place: usize) -> Result<Vec<f32>, CudaError> {
        self.token(page, place, 1)
    }

    fn token(&self, page: usize, place: usize, part: usize) -> Result<Vec<f32>, CudaError> {
        let Shape { kv_heads, head_dim, .. } = self.shape;
        let (start, len) = (page * Self::page_len(self.shape), Self::page_len(self.shape));
        let values: Vec<f32> = match &self.data {
            Activations::F32(data) => {
                let mut values = vec![0.0; len];
                data.read(start, &mut values)?;
                values
            }
            Activations::Bf16(data) => {
                let mut bits = vec![0; len];
                data.read(start, &mut bits)?;
                bits.into_iter().map(|bits| half::bf16::from_bits(bits).to_f32()).collect()
            }
        };
        let swizzled = self.element() == Element::Bf16 && head_dim.is_multiple_of(64);
        let at = |head: usize, channel: usize| {
            let within = if swizzled {
                (channel / 64 * PAGE + place) * 64 + ((channel % 64) ^ (place % 8 * 8))
            } else {
                place * head_dim + channel
            };
            (2 * head + part) * PAGE * head_dim + within
        };
        Ok((0..kv_heads)
            .flat_map(|h| (0..head_dim).map(move |c| (h, c)))
            .map(|(h, c)| values[at(h, c)])
            .collect())
    }
}
