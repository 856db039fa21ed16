//! The CPU as a device: an instruction set chosen once, a thread pool, and aligned memory.

mod buffer;
mod heap;
mod isa;
pub mod limits;
mod pool;
mod scratch;
mod shared;
pub(crate) mod simd;

pub use buffer::AlignedBuffer;
pub use heap::return_freed_memory;
pub use isa::{Isa, IsaError};
pub use pool::Pool;
pub use scratch::Scratch;
pub(crate) use shared::SharedMut;

/// The CPU that operations run on.
pub struct Cpu {
    isa: Isa,
    pool: Pool,
}

/// How to set up the CPU. The default takes the best instruction set and every core.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuOptions {
    /// Worker threads, the calling one included; `None` takes one a core.
    pub threads: Option<usize>,
    /// Instruction set; `None` takes the best that this machine has.
    pub isa: Option<Isa>,
}

impl Cpu {
    /// Starts the worker threads.
    ///
    /// # Errors
    /// When the instruction set asked for is not available here.
    pub fn new(options: CpuOptions) -> Result<Self, IsaError> {
        let isa = match options.isa {
            Some(isa) => isa.require()?,
            None => Isa::detect(),
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self { isa, pool: Pool::new(options.threads.unwrap_or(cores).max(1)) })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Runs `body` over row ranges that cover `0..rows`, each of at most `grain` rows.
    pub(crate) fn for_rows(&self, rows: usize, grain: usize, body: impl Fn(std::ops::Range<usize>) + Sync) {
        let tasks = rows.div_ceil(grain);
        self.pool.run(tasks, |task, _| {
            let start = task * grain;
            body(start..(start + grain).min(rows));
        });
    }
}
