use std::path::PathBuf;

use cudarc::driver::DriverError;

use super::Architecture;

/// Why something cannot be done on a GPU.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver's library is missing.
    #[error("no NVIDIA driver was found (libcuda.so.1); install one, or use --device cpu")]
    NoDriver,
    /// The compiler's library is missing.
    #[error(
        "NVRTC was not found (libnvrtc.so.13 or .12), which compiles kernels for the card; install CUDA's runtime \
         compiler (in PyPI it is nvidia-cuda-nvrtc) and put its directory into LD_LIBRARY_PATH, or use --device cpu"
    )]
    NoCompiler,
    /// No device of that number.
    #[error("there is no GPU {ordinal}: this machine has {count}")]
    NoSuchDevice { ordinal: usize, count: usize },
    /// A device without bf16 products.
    #[error("{name} is of compute capability {architecture}; 8.0 or later is needed")]
    TooOld { name: String, architecture: Architecture },
    /// The driver refused something.
    #[error("{what} failed: {message}")]
    Driver { what: &'static str, message: String },
    /// Memory that is not there.
    #[error("{bytes} bytes do not fit on the GPU, which has {free} free")]
    OutOfMemory { bytes: usize, free: usize },
    /// A kernel's source does not compile.
    #[error("the kernels in {source_name} do not compile for compute capability {architecture}:\n{log}")]
    Compile { source_name: &'static str, architecture: Architecture, log: String },
    /// A module lacks a kernel.
    #[error("{source_name} has no kernel {kernel}")]
    NoKernel { source_name: &'static str, kernel: String },
    /// A size that the kernels cannot take.
    #[error("{0}")]
    Unsupported(String),
    /// A file of the kernel cache could not be used.
    #[error("{}: {source}", path.display())]
    Cache { path: PathBuf, source: std::io::Error },
}

impl CudaError {
    pub(crate) fn driver(what: &'static str, error: DriverError) -> Self {
        let name = error.error_name().ok().and_then(|name| name.to_str().ok()).unwrap_or("unknown error");
        let text = error.error_string().ok().and_then(|text| text.to_str().ok()).unwrap_or("");
        Self::Driver { what, message: format!("{name}: {text}") }
    }
}
