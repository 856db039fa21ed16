//! Starting kernels.

use cudarc::driver::sys;

use super::{Cuda, CudaError, Kernel, TensorMap};

/// How many threads run a kernel, and how.
#[derive(Debug, Clone, Copy)]
pub struct LaunchShape {
    /// Blocks in three directions.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// Whether it may start before the kernel ahead of it in the stream has ended. Such a kernel waits itself, with
    /// `griddepcontrol.wait`, before it touches what others write.
    pub overlap: bool,
}

impl LaunchShape {
    /// A line of blocks, without dynamic shared memory or overlap.
    pub fn new(blocks: usize, threads: usize) -> Self {
        Self { grid: [blocks as u32, 1, 1], threads: threads as u32, shared: 0, overlap: false }
    }

    /// A grid in several directions.
    pub fn grid(x: usize, y: usize, z: usize, threads: usize) -> Self {
        Self { grid: [x as u32, y as u32, z as u32], threads: threads as u32, shared: 0, overlap: false }
    }

    /// With dynamic shared memory.
    pub fn shared(self, bytes: usize) -> Self {
        Self { shared: bytes as u32, ..self }
    }

    /// May start early.
    pub fn overlap(self) -> Self {
        Self { overlap: true, ..self }
    }
}

/// A value handed to a kernel.
#[derive(Clone, Copy)]
pub enum Argument<'a> {
    /// An address on the device.
    Pointer(u64),
    /// An `int`.
    I32(i32),
    /// A `long long`.
    I64(i64),
    /// A `float`.
    F32(f32),
    /// A tensor map, as a `__grid_constant__` parameter.
    Map(&'a TensorMap),
}

impl Argument<'_> {
    fn address(&self) -> *mut std::ffi::c_void {
        let address: *const std::ffi::c_void = match self {
            Self::Pointer(value) => (&raw const *value).cast(),
            Self::I32(value) => (&raw const *value).cast(),
            Self::I64(value) => (&raw const *value).cast(),
            Self::F32(value) => (&raw const *value).cast(),
            Self::Map(map) => map.as_ptr().cast(),
        };
        address.cast_mut()
    }
}

/// The most arguments that a kernel here has.
const MAX_ARGUMENTS: usize = 32;

impl Cuda {
    /// Puts a kernel into the stream.
    ///
    /// # Errors
    /// When the kernel does not compile, or the driver refuses the shape. What goes wrong while it runs is told when the
    /// stream is waited for.
    ///
    /// # Panics
    /// With more than 32 arguments.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in order and type, and all that it reads or writes through them stays
    /// within buffers that live until the stream has been waited for.
    pub unsafe fn launch(
        &self,
        kernel: &Kernel,
        shape: LaunchShape,
        arguments: &[Argument<'_>],
    ) -> Result<(), CudaError> {
        if shape.grid.contains(&0) {
            return Ok(());
        }
        let handle = kernel.entry.handle()?;
        self.bind()?;
        let mut addresses = [std::ptr::null_mut(); MAX_ARGUMENTS];
        for (address, argument) in addresses[..arguments.len()].iter_mut().zip(arguments) {
            *address = argument.address();
        }
        let overlap = shape.overlap && self.facts().architecture.major >= 9 && !self.is_profiling();
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: shape.grid[0],
            gridDimY: shape.grid[1],
            gridDimZ: shape.grid[2],
            blockDimX: shape.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared,
            hStream: self.stream(),
            attrs: &raw mut attribute,
            numAttrs: u32::from(overlap),
        };
        let _timed = self.profile_launch(&kernel.name)?;
        // SAFETY: `config` and the argument addresses outlive the call, which copies them; the rest is the caller's
        // contract.
        unsafe {
            sys::cuLaunchKernelEx(&raw const config, handle, addresses.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()
        .map_err(|e| CudaError::driver("starting a kernel", e))
    }
}
