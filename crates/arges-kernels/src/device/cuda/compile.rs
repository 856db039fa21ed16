//! From a kernel's source to machine code, through NVRTC and a cache on disk.

use std::ffi::{CStr, CString};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use cudarc::nvrtc::{result, sys};

use super::CudaError;

/// What all kernels share: vectors, bf16, reductions within a warp.
const PRELUDE: &str = include_str!("prelude.cuh");

/// A file of kernels, compiled as a whole after the prelude.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its path within the crate.
    pub name: &'static str,
    /// Its text.
    pub text: &'static str,
}

/// A number that a source is compiled for, as a macro.
pub type Define = (&'static str, i64);

/// Compute capability of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Architecture {
    /// Generation: 8 for Ampere, 9 for Hopper, 10 for Blackwell.
    pub major: usize,
    /// Member of it.
    pub minor: usize,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Architecture {
    /// Whether it has `wgmma` and the bulk tensor copies of Hopper.
    pub fn has_wgmma(self) -> bool {
        self.major == 9
    }

    /// As NVRTC calls it; Hopper with what only it has.
    fn target(self) -> String {
        let suffix = if self.has_wgmma() { "a" } else { "" };
        format!("sm_{}{}{suffix}", self.major, self.minor)
    }
}

/// Whether the compiler's library can be loaded.
pub(super) fn require_library() -> Result<(), CudaError> {
    // SAFETY: looks for the library and calls nothing in it.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(CudaError::NoCompiler) }
}

/// All that decides on machine code.
#[derive(Clone, PartialEq)]
pub(super) struct Inputs {
    pub(super) source: Source,
    pub(super) defines: Vec<Define>,
    pub(super) architecture: Architecture,
    /// Version of CUDA that the driver brings.
    pub(super) driver: i32,
}

impl Inputs {
    /// The machine code, from the cache or compiled.
    ///
    /// # Errors
    /// As for [`compile`].
    pub(super) fn image(&self) -> Result<Vec<u8>, CudaError> {
        let Self { source, ref defines, architecture, driver } = *self;
        let path = cache_path(source, defines, architecture, driver)?;
        if let Some(image) = path.as_deref().and_then(read_cached) {
            return Ok(image);
        }
        let image = compile(source, defines, architecture)?;
        if let Some(path) = &path {
            // A cache that cannot be written costs the next start some seconds and nothing else.
            let _ = write_cached(path, &image);
        }
        Ok(image)
    }
}

/// Compiles a source to machine code. Needs NVRTC and no GPU.
///
/// # Errors
/// Without NVRTC, or with its log when the source does not compile.
pub fn compile(source: Source, defines: &[Define], architecture: Architecture) -> Result<Vec<u8>, CudaError> {
    require_library()?;
    let failed = |log: String| CudaError::Compile { source_name: source.name, architecture, log };
    let text = CString::new(whole_text(source)).map_err(|e| failed(e.to_string()))?;
    let name = CString::new(source.name).map_err(|e| failed(e.to_string()))?;
    let program =
        result::create_program(&text, Some(name.as_c_str())).map_err(|e| failed(format!("{e:?}")))?;
    // SAFETY: the program was just made.
    let compiled = unsafe { result::compile_program(program, &options(defines, architecture)) };
    let image = match compiled {
        Ok(()) => machine_code(program).map_err(failed),
        Err(_) => Err(failed(log(program))),
    };
    // SAFETY: the program is this function's and not used any more.
    let _ = unsafe { result::destroy_program(program) };
    image
}

fn whole_text(source: Source) -> String {
    format!("{PRELUDE}\n#line 1 \"{}\"\n{}", source.name, source.text)
}

fn options(defines: &[Define], architecture: Architecture) -> Vec<String> {
    let mut options = vec![
        format!("--gpu-architecture={}", architecture.target()),
        "--std=c++17".to_owned(),
        "--device-as-default-execution-space".to_owned(),
        // Sums keep their order and their fused multiply-adds on every compiler.
        "--fmad=true".to_owned(),
        "-lineinfo".to_owned(),
    ];
    options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    options
}

fn machine_code(program: sys::nvrtcProgram) -> Result<Vec<u8>, String> {
    let mut size = 0;
    // SAFETY: the program is alive and compiled, `size` a place for its result.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) }.result().map_err(|e| format!("{e:?}"))?;
    let mut image = vec![0u8; size];
    // SAFETY: as above; the image has the size that NVRTC named.
    unsafe { sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()) }
        .result()
        .map_err(|e| format!("{e:?}"))?;
    Ok(image)
}

fn log(program: sys::nvrtcProgram) -> String {
    // SAFETY: the program is alive.
    let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let bytes: Vec<u8> = log.iter().map(|c| c.cast_unsigned()).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
}

/// Where the code for these very inputs lies, or `None` where the user has no directory for caches.
fn cache_path(
    source: Source,
    defines: &[Define],
    architecture: Architecture,
    driver: i32,
) -> Result<Option<PathBuf>, CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: two places for ints.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|e| CudaError::Unsupported(format!("NVRTC does not tell its version: {e:?}")))?;
    let key =
        format!("{major}.{minor} {driver} {:?}\n{}", options(defines, architecture), whole_text(source));
    let stem =
        Path::new(source.name).file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
    let directory = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    Ok(directory
        .map(|d| d.join("arges/kernels").join(format!("{stem}-{:032x}.cubin", digest(key.as_bytes())))))
}

/// 128 bits of FNV-1a: keys here are chosen by nobody, so that a cryptographic hash is not needed.
fn digest(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

/// A cached image, unless it was cut off.
fn read_cached(path: &Path) -> Option<Vec<u8>> {
    let image = fs::read(path).ok()?;
    image.starts_with(b"\x7fELF").then_some(image)
}

/// Writes the image whole or not at all.
fn write_cached(path: &Path, image: &[u8]) -> Result<(), CudaError> {
    let failed = |source| CudaError::Cache { path: path.to_owned(), source };
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(failed)?;
    // Threads may write the same image at the same time.
    static PARTS: AtomicUsize = AtomicUsize::new(0);
    let number = PARTS.fetch_add(1, Ordering::Relaxed);
    let part = path.with_extension(format!("part-{}-{number}", std::process::id()));
    fs::write(&part, image).and_then(|()| fs::rename(&part, path)).map_err(failed)
}
