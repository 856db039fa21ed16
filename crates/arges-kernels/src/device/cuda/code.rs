//! Machine code on its way: sources are compiled side by side while the program goes on, and waited for where a kernel
//! is started, or all at once ([`Cuda::ready`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, JoinHandle};

use cudarc::driver::sys::{CUfunction, CUfunction_attribute_enum};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use cudarc::nvrtc::Ptx;

use super::compile::{Define, Inputs, Source};
use super::{Cuda, CudaError};

type Image = Result<Vec<u8>, CudaError>;

/// A compiled kernel, or one on its way.
#[derive(Clone)]
pub struct Kernel {
    /// Its source and its name there.
    pub(super) name: Arc<str>,
    pub(super) entry: Arc<Entry>,
}

impl Kernel {
    /// The same kernel under a name that says more in profiles.
    #[must_use]
    pub fn called(&self, what: &str) -> Self {
        Self { name: format!("{} {what}", self.name).into(), ..self.clone() }
    }
}

/// Kernels of a source for a device. They may still be on their way.
pub struct Module {
    code: Arc<Code>,
    compiling: Option<Arc<Compiling>>,
}

impl Module {
    /// The kernel of that name, which may use all the shared memory of a block.
    ///
    /// # Errors
    /// When the source does not name one.
    pub fn kernel(&self, name: &str) -> Result<Kernel, CudaError> {
        let Source { name: source, text } = self.code.inputs.source;
        if !text.contains(name) {
            return Err(CudaError::NoKernel { source_name: source, kernel: name.to_owned() });
        }
        let entry =
            Arc::new(Entry { code: Arc::clone(&self.code), name: name.to_owned(), loaded: OnceLock::new() });
        if let Some(compiling) = &self.compiling {
            locked(&compiling.entries).push(Arc::downgrade(&entry));
        }
        Ok(Kernel { name: format!("{source} {name}").into(), entry })
    }
}

impl Cuda {
    /// Begins to compile a source for this device, or to take it from the cache. What goes wrong is told by
    /// [`Cuda::ready`], or by the first launch of a kernel.
    pub fn module(&self, source: Source, defines: &[Define]) -> Module {
        let inputs = self.inputs(source, defines);
        let code = self.code(inputs, |inputs, wanted| {
            let compiling = Arc::clone(&self.compiling);
            let compile = move || {
                let _place = compiling.take_place();
                // Nobody reads it any more otherwise.
                if wanted.load(Ordering::Relaxed) { inputs.image() } else { Ok(Vec::new()) }
            };
            // Without a thread, whoever needs the code compiles it.
            thread::Builder::new().name("compile".to_owned()).spawn(compile).ok()
        });
        Module { code, compiling: Some(Arc::clone(&self.compiling)) }
    }

    /// A source of kernels that usual shapes do not need: it is compiled where one of them is started first, and
    /// [`Cuda::ready`] does not wait for it.
    pub fn seldom(&self, source: Source, defines: &[Define]) -> Module {
        Module { code: self.code(self.inputs(source, defines), |_, _| None), compiling: None }
    }

    /// Waits for all kernels that were asked for, so that no launch does.
    ///
    /// # Errors
    /// When a source does not compile, or the driver does not take it.
    pub fn ready(&self) -> Result<(), CudaError> {
        let entries = std::mem::take(&mut *locked(&self.compiling.entries));
        entries.iter().filter_map(Weak::upgrade).try_for_each(|entry| entry.handle().map(drop))
    }

    fn inputs(&self, source: Source, defines: &[Define]) -> Inputs {
        let facts = self.facts();
        Inputs { source, defines: defines.to_vec(), architecture: facts.architecture, driver: facts.driver }
    }

    /// The code that somebody has of the same inputs, or what `start` begins to make.
    fn code(
        &self,
        inputs: Inputs,
        start: impl FnOnce(Inputs, Arc<AtomicBool>) -> Option<JoinHandle<Image>>,
    ) -> Arc<Code> {
        let mut codes = locked(&self.compiling.codes);
        codes.retain(|code| code.strong_count() > 0);
        if let Some(code) = codes.iter().filter_map(Weak::upgrade).find(|code| code.inputs == inputs) {
            return code;
        }
        let wanted = Arc::new(AtomicBool::new(true));
        let code = Arc::new(Code {
            context: Arc::clone(&self.context),
            shared_memory: self.facts().shared_memory,
            task: Mutex::new(start(inputs.clone(), Arc::clone(&wanted))),
            inputs,
            wanted,
            module: OnceLock::new(),
        });
        codes.push(Arc::downgrade(&code));
        code
    }
}

/// What a device compiles.
pub(super) struct Compiling {
    /// All code that somebody has.
    codes: Mutex<Vec<Weak<Code>>>,
    /// Kernels that [`Cuda::ready`] has not seen.
    entries: Mutex<Vec<Weak<Entry>>>,
    /// Threads that may still begin.
    places: Mutex<usize>,
    freed: Condvar,
}

impl Compiling {
    pub(super) fn new() -> Arc<Self> {
        let places = thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            codes: Mutex::default(),
            entries: Mutex::default(),
            places: Mutex::new(places),
            freed: Condvar::new(),
        })
    }

    /// Waits for a place, which is free again when the result is dropped.
    fn take_place(&self) -> Place<'_> {
        let places = locked(&self.places);
        let mut places =
            self.freed.wait_while(places, |places| *places == 0).unwrap_or_else(PoisonError::into_inner);
        *places -= 1;
        Place(self)
    }
}

struct Place<'a>(&'a Compiling);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *locked(&self.0.places) += 1;
        self.0.freed.notify_one();
    }
}

/// A source's machine code: asked for, there, or on the device.
struct Code {
    inputs: Inputs,
    context: Arc<CudaContext>,
    /// Bytes that a block can have.
    shared_memory: usize,
    /// Makes the image; none once it has been taken.
    task: Mutex<Option<JoinHandle<Image>>>,
    /// Whether anybody will take it.
    wanted: Arc<AtomicBool>,
    module: OnceLock<Arc<CudaModule>>,
}

impl Code {
    /// Waits for it, or compiles it here.
    fn module(&self) -> Result<&Arc<CudaModule>, CudaError> {
        let mut task = locked(&self.task);
        if let Some(module) = self.module.get() {
            return Ok(module);
        }
        let image = match task.take() {
            Some(task) => task.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            None => self.inputs.image()?,
        };
        let module = self
            .context
            .load_module(Ptx::from_binary(image))
            .map_err(|e| CudaError::driver("loading kernels", e))?;
        Ok(self.module.get_or_init(|| module))
    }
}

impl Drop for Code {
    /// The compiler must not run on while the process ends.
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::Relaxed);
        if let Some(task) = locked(&self.task).take() {
            let _ = task.join();
        }
    }
}

/// A kernel of a source, by its name.
pub(super) struct Entry {
    code: Arc<Code>,
    name: String,
    loaded: OnceLock<Loaded>,
}

/// A handle, and what holds the module that it is valid with.
struct Loaded {
    handle: CUfunction,
    _function: CudaFunction,
}

// SAFETY: a handle to code on the device, valid in every thread as long as its module, which `_function` holds.
unsafe impl Send for Loaded {}
// SAFETY: as above; it has no state.
unsafe impl Sync for Loaded {}

impl Entry {
    /// Waits for the code where it is not there yet.
    pub(super) fn handle(&self) -> Result<CUfunction, CudaError> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded.handle);
        }
        let function = self.code.module()?.load_function(&self.name).map_err(|_| CudaError::NoKernel {
            source_name: self.code.inputs.source.name,
            kernel: self.name.clone(),
        })?;
        let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let own = function.shared_size_bytes().unwrap_or(0);
        let most = i32::try_from(self.code.shared_memory).unwrap_or(0) - own;
        function
            .set_attribute(attribute, most)
            .map_err(|e| CudaError::driver("giving a kernel its shared memory", e))?;
        let loaded = Loaded { handle: function.cu_function(), _function: function };
        Ok(self.loaded.get_or_init(|| loaded).handle)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
