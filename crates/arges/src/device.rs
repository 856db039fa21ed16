//! What a model runs on.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use arges_kernels::device::cuda::{Cuda, CudaError};

use crate::args::DeviceChoice;
use crate::plan::gib;

/// A device that was chosen and is there.
pub enum Device {
    Cpu,
    Cuda(Arc<Cuda>),
}

/// The device that was asked for, or, where it was left open, the first GPU if weights of `weight_bytes` leave a tenth
/// of its free memory for caches, and else the CPU.
///
/// # Errors
/// A GPU that was asked for and cannot be used.
pub fn choose(choice: DeviceChoice, weight_bytes: u64) -> Result<Device> {
    let ordinal = match choice {
        DeviceChoice::Cpu => return Ok(Device::Cpu),
        DeviceChoice::Cuda(ordinal) => {
            let cuda = Cuda::open(ordinal).with_context(|| format!("--device cuda:{ordinal}"))?;
            return Ok(Device::Cuda(cuda));
        }
        DeviceChoice::Auto => 0,
    };
    let cuda = match Cuda::open(ordinal) {
        Ok(cuda) => cuda,
        Err(CudaError::NoDriver | CudaError::NoSuchDevice { .. }) => return Ok(Device::Cpu),
        Err(error) => {
            eprintln!("running on the CPU: {error}");
            return Ok(Device::Cpu);
        }
    };
    let free = cuda.free_memory()? as u64;
    if weight_bytes > free / 10 * 9 {
        eprintln!(
            "running on the CPU: weights of {:.1} GiB do not fit on {}, which has {:.1} GiB free",
            gib(weight_bytes),
            cuda.facts().name,
            gib(free)
        );
        return Ok(Device::Cpu);
    }
    Ok(Device::Cuda(cuda))
}
