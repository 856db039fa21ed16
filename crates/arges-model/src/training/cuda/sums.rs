//! Where gradients by parameters go: each to its place among flat sums, or through the adapters of its matrix.

use arges_kernels::adapter::cuda::Step;
use arges_kernels::device::cuda::{Buffer, CudaError};
use arges_kernels::matmul::cuda::{
    Columns, DeviceRows, GradientPlace, ProductGradients, Products, Rows, WeightGradient,
};
use arges_kernels::norm::cuda::NormSums;

use super::adapters::Adapters;
use super::matrix::Matrix;
use crate::params::Param;
use crate::training::Parameters;

/// What the gradient by a matrix is made of: gradients by outputs, and inputs.
#[derive(Clone, Copy)]
pub(super) struct Operands<'a> {
    pub(super) dy: &'a DeviceRows,
    pub(super) x: &'a DeviceRows,
}

impl<'a> Operands<'a> {
    fn columns(&self) -> [Columns<'a>; 2] {
        [self.dy, self.x].map(|rows| Columns::all(rows.data(), rows.k()))
    }
}

/// The gradients of all that learns.
pub(super) struct Sums<'a> {
    pub(super) parameters: &'a Parameters,
    pub(super) gradients: &'a mut Buffer<f32>,
    /// Where those are all that learns.
    pub(super) adapters: Option<&'a mut Adapters>,
    /// Whether the gradients count as zeros.
    pub(super) fresh: bool,
}

impl Sums<'_> {
    /// Adds the gradient by a matrix of a layer.
    pub(super) fn add(
        &mut self,
        layer: usize,
        matrix: Matrix,
        operands: Operands<'_>,
        rows: Rows<'_>,
        products: &Products,
        by_weights: &mut ProductGradients,
    ) -> Result<(), CudaError> {
        if let Some(adapters) = &mut self.adapters {
            let step = Step { dy: operands.dy, x: operands.x, rows };
            return adapters.add((layer, matrix), &step, products, by_weights, self.gradients, self.fresh);
        }
        let [dy, x] = operands.columns();
        let stride = match rows {
            Rows::Grouped { .. } => self.place_of(layer, matrix, 1) - self.place_of(layer, matrix, 0),
            Rows::All(_) => 0,
        };
        let at = self.place_of(layer, matrix, 0);
        let place = GradientPlace { at, stride, gradients: self.gradients, fresh: self.fresh };
        by_weights.weights(dy, x, rows, matrix.is_gated(), place)
    }

    /// The same for two matrices and all rows of a batch.
    pub(super) fn add_two(
        &mut self,
        layer: usize,
        both: [(Matrix, Operands<'_>); 2],
        rows: usize,
        products: &Products,
        by_weights: &mut ProductGradients,
    ) -> Result<(), CudaError> {
        if self.adapters.is_some() {
            return both.into_iter().try_for_each(|(matrix, operands)| {
                self.add(layer, matrix, operands, Rows::All(rows), products, by_weights)
            });
        }
        let gradients = both.map(|(matrix, operands)| {
            let [dy, x] = operands.columns();
            WeightGradient { dy, x, at: self.place_of(layer, matrix, 0) }
        });
        by_weights.weights_of_two(gradients, rows, self.gradients, self.fresh)
    }

    /// The place of a matrix: its parameters lie one behind the other.
    fn place_of(&self, layer: usize, matrix: Matrix, expert: usize) -> usize {
        self.parameters.place(matrix.params(self.parameters.config(), layer, expert)[0])
    }

    /// Where the gradient of a parameter is added. None where it does not learn by itself.
    pub(super) fn at(&self, param: Param) -> Option<usize> {
        self.adapters.is_none().then(|| self.parameters.place(param))
    }

    /// The same for a product.
    pub(super) fn place(&mut self, param: Param) -> Option<GradientPlace<'_>> {
        let at = self.at(param)?;
        Some(GradientPlace { at, stride: 0, gradients: self.gradients, fresh: self.fresh })
    }

    /// Where the sums of a norm's gradient go, which come with the gradient by its input. Nobody reads those of one that
    /// does not learn.
    pub(super) fn norm(&mut self, param: Param) -> NormSums<'_> {
        let (gradients, weight_at) = match &mut self.adapters {
            None => (&mut *self.gradients, self.parameters.place(param)),
            Some(adapters) => (adapters.unread(), 0),
        };
        NormSums { gradients, weight_at, outer_at: None, fresh: self.fresh }
    }
}
