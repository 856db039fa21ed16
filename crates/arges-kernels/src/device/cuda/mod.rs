//! An NVIDIA GPU as a device. Its driver and its compiler (NVRTC) are libraries loaded when a device is opened:
//! nothing of CUDA is needed to build, and a machine without it runs on the CPU as before.
//!
//! One device has one stream, on which everything happens in order. Memory is taken at the start ([`Buffer`]);
//! kernels are sources beside their operation ([`Source`]), compiled side by side for the card at hand and kept on disk
//! ([`Cuda::module`]); steps that repeat are captured once and replayed ([`Graph`]).

mod activations;
mod buffer;
mod code;
mod compile;
mod error;
mod fill;
mod graph;
mod launch;
pub mod limits;
mod pinned;
mod profile;
mod tensor_map;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::driver::{CudaContext, CudaStream, sys};

pub use activations::Activations;
pub use buffer::{Buffer, DeviceValue};
pub use code::{Kernel, Module};
pub use compile::{Architecture, Define, Source, compile};
pub use error::CudaError;
pub use fill::Fill;
pub use graph::{Graph, Timer};
pub use launch::{Argument, LaunchShape};
pub use pinned::Pinned;
pub use profile::KernelTime;
pub use tensor_map::TensorMap;

/// An open device.
pub struct Cuda {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    facts: Facts,
    allocated: AtomicUsize,
    peak: AtomicUsize,
    profiler: profile::Profiler,
    compiling: Arc<code::Compiling>,
}

/// What the device says of itself.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Its name, as "NVIDIA H200".
    pub name: String,
    /// Its number among the machine's.
    pub ordinal: usize,
    /// Its instruction set.
    pub architecture: Architecture,
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of memory.
    pub memory: usize,
    /// Bytes of the second-level cache.
    pub l2: usize,
    /// Bytes of shared memory that a block can have.
    pub shared_memory: usize,
    /// Version of CUDA that the driver brings, as 13000.
    pub driver: i32,
}

impl Cuda {
    /// Opens device `ordinal`.
    ///
    /// # Errors
    /// Without a driver or a compiler, which the error names; when there is no such device, or it is older than
    /// compute capability 8.0.
    pub fn open(ordinal: usize) -> Result<Arc<Self>, CudaError> {
        let count = Self::devices()?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        // A machine without a GPU is not told that it lacks a compiler for one.
        compile::require_library()?;
        let context = CudaContext::new(ordinal).map_err(|e| CudaError::driver("opening the device", e))?;
        // SAFETY: buffers here are not cudarc's, so that there are no events of theirs to be missed; all work goes
        // to one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(|e| CudaError::driver("making a stream", e))?;
        let facts = Self::read_facts(&context, ordinal)?;
        if facts.architecture.major < 8 {
            return Err(CudaError::TooOld { name: facts.name, architecture: facts.architecture });
        }
        Ok(Arc::new(Self {
            context,
            stream,
            facts,
            allocated: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            profiler: profile::Profiler::default(),
            compiling: code::Compiling::new(),
        }))
    }

    /// The first device, for a test that needs one: `None`, and a line that says so, where there is none, unless the
    /// environment has `ARGES_REQUIRE_GPU`.
    #[doc(hidden)]
    pub fn for_test() -> Option<Arc<Self>> {
        match Self::open(0) {
            Ok(cuda) => Some(cuda),
            Err(error) if std::env::var_os("ARGES_REQUIRE_GPU").is_some() => panic!("{error}"),
            Err(error @ (CudaError::NoDriver | CudaError::NoCompiler | CudaError::NoSuchDevice { .. })) => {
                println!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Devices of this machine.
    ///
    /// # Errors
    /// Without a driver.
    pub fn devices() -> Result<usize, CudaError> {
        // SAFETY: looks for the library and calls nothing in it.
        if !unsafe { sys::is_culib_present() } {
            return Err(CudaError::NoDriver);
        }
        cudarc::driver::result::init().map_err(|e| CudaError::driver("starting CUDA", e))?;
        let count = CudaContext::device_count().map_err(|e| CudaError::driver("counting devices", e))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    fn read_facts(context: &Arc<CudaContext>, ordinal: usize) -> Result<Facts, CudaError> {
        use sys::CUdevice_attribute as A;
        let failed = |e| CudaError::driver("asking the device for its properties", e);
        let number = |attribute| context.attribute(attribute).map_err(failed);
        let size = |attribute| number(attribute).map(|value| usize::try_from(value).unwrap_or(0));
        let mut driver = 0;
        // SAFETY: `driver` is a place for one int.
        unsafe { sys::cuDriverGetVersion(&raw mut driver) }.result().map_err(failed)?;
        Ok(Facts {
            name: context.name().map_err(failed)?,
            ordinal,
            architecture: Architecture {
                major: size(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                minor: size(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            },
            multiprocessors: size(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory: context.total_mem().map_err(failed)?,
            l2: size(A::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
            shared_memory: size(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            driver,
        })
    }

    /// What the device says of itself.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Waits until all that was asked of the device is done.
    ///
    /// # Errors
    /// When something of it failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.stream.synchronize().map_err(|e| CudaError::driver("running kernels", e))
    }

    /// Bytes free on the device, for all programs.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn free_memory(&self) -> Result<usize, CudaError> {
        let free = self.context.mem_get_info().map_err(|e| CudaError::driver("asking for free memory", e))?;
        Ok(free.0)
    }

    /// Bytes that buffers hold now, and the most they ever held.
    pub fn allocated(&self) -> (usize, usize) {
        (self.allocated.load(Ordering::Relaxed), self.peak.load(Ordering::Relaxed))
    }

    pub(super) fn count_allocation(&self, bytes: usize) {
        let now = self.allocated.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn count_release(&self, bytes: usize) {
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Makes this thread's calls go to this device.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(|e| CudaError::driver("choosing the device", e))
    }

    fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }
}
