//! A run's endpoints together with the directory that its weights are published in.

use std::sync::Arc;

use arges_kernels::device::cpu::Cpu;
use arges_kernels::matmul::Compute;
use arges_model::DType;
use arges_model::publication::{PublicationError, PublishOptions, Published, Publisher};
use arges_model::training::Parameters;

use super::{RemoteConfig, RemoteError, RolloutEndpoints};
use crate::rl::policy::Policy;

/// Endpoints, and a trainer's weights for them.
pub struct Remote {
    endpoints: Arc<RolloutEndpoints>,
    publisher: Publisher,
}

impl Remote {
    /// Endpoints for a trainer that computes in `compute`: what is published loses nothing by it.
    ///
    /// # Errors
    /// As [`RolloutEndpoints::new`]; a directory that cannot be made.
    pub fn open(
        config: RemoteConfig,
        compute: Compute,
        local: Option<(Arc<dyn Policy>, usize)>,
    ) -> Result<Self, RemoteError> {
        let dtype = match compute {
            Compute::F32 => DType::F32,
            Compute::Bf16 => DType::Bf16,
        };
        let options = PublishOptions { dtype, deltas: config.deltas, keep: config.keep };
        let publisher = Publisher::new(&config.publish, options)?;
        Ok(Self { endpoints: Arc::new(RolloutEndpoints::new(config, local)?), publisher })
    }

    /// The endpoints.
    pub fn endpoints(&self) -> &Arc<RolloutEndpoints> {
        &self.endpoints
    }

    /// Publishes what learns and tells the endpoints.
    ///
    /// # Errors
    /// A directory that cannot be written; then the endpoints go on with what they have.
    pub fn publish(
        &mut self,
        version: u64,
        parameters: &Parameters,
        cpu: &Cpu,
    ) -> Result<Published, PublicationError> {
        let published = self.publisher.publish(version, &parameters.weights(cpu))?;
        self.endpoints.publish(version);
        Ok(published)
    }
}
