//! Where the weights of a model come from.

use arges_kernels::matmul::{RowMajor, Stored};

use crate::checkpoint::{Checkpoint, CheckpointError, WeightView};
use crate::config::Config;
use crate::dtype::DType;
use crate::params::Param;

/// Weights by parameter: a checkpoint, or parameters that are being trained.
pub trait WeightSource {
    /// The model they belong to.
    fn config(&self) -> &Config;

    /// How a parameter is stored.
    ///
    /// # Errors
    /// When it is missing.
    fn dtype(&self, param: Param) -> Result<DType, CheckpointError>;

    /// Shows a parameter to `take`.
    ///
    /// # Errors
    /// When it is missing.
    fn show(&self, param: Param, take: &mut dyn FnMut(RowMajor<'_>)) -> Result<(), CheckpointError>;

    /// Bytes of all parameters as stored.
    fn bytes(&self) -> usize;

    /// Whether a parameter may differ from the one in the model that these weights are for. One that does not is not
    /// packed again where a model is updated in place.
    fn differs(&self, _param: Param) -> bool {
        true
    }
}

impl WeightSource for Checkpoint {
    fn config(&self) -> &Config {
        Checkpoint::config(self)
    }

    fn dtype(&self, param: Param) -> Result<DType, CheckpointError> {
        Ok(self.param(param)?.dtype)
    }

    /// The mapped bytes are released afterwards, so that packed weights do not count twice.
    fn show(&self, param: Param, take: &mut dyn FnMut(RowMajor<'_>)) -> Result<(), CheckpointError> {
        take(row_major(&self.param(param)?));
        self.release(param);
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.weight_bytes()
    }
}

/// A stored parameter as kernels read it.
pub(crate) fn row_major<'a>(view: &WeightView<'a>) -> RowMajor<'a> {
    let stored = match view.dtype {
        DType::F32 => Stored::F32,
        DType::Bf16 => Stored::Bf16,
        DType::F16 => Stored::F16,
    };
    RowMajor { stored, rows: view.rows, cols: view.cols, data: view.data }
}
