//! Opens a model and starts an engine over it.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use arges_engine::{Engine, EngineOptions};
use arges_kernels::device::cpu::{Cpu, CpuOptions};
use arges_kernels::device::cuda::Cuda;
use arges_kernels::matmul::Compute;
use arges_model::model::cuda::CudaModel;
use arges_model::{Checkpoint, Config, DeviceModel, LoadOptions, Model};
use arges_text::{ChatTemplate, TextError, Tokenizer};

use crate::args::{EngineArgs, ModelArgs};
use crate::device::{self, Device};
use crate::memory::machine_memory;
use crate::model_source::{self, ModelSource};
use crate::nano;
use crate::plan::{Needs, gib, plan};
use crate::progress::bytes_bar;

/// A checkpoint that was opened and checked, its weights not yet read.
pub struct Opened {
    pub source: ModelSource,
    pub checkpoint: Checkpoint,
    tokenizer: Option<Tokenizer>,
}

impl Opened {
    /// Finds and checks a model's files.
    ///
    /// # Errors
    /// No such model, a file that is wrong, or a tokenizer that cannot be read.
    pub fn open(args: &ModelArgs) -> Result<Opened> {
        if args.model.is_none() {
            eprintln!("without --model it is {}, the small model that is part of the program", nano::NAME);
        }
        let source = model_source::find(args.model.as_deref())?;
        let context = || format!("cannot load {}", args.asked());
        let checkpoint = source.checkpoint().with_context(context)?;
        let tokenizer = source.tokenizer().with_context(context)?;
        Ok(Opened { source, checkpoint, tokenizer })
    }

    pub fn config(&self) -> &Config {
        self.checkpoint.config()
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// The checkpoint has none.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let missing = || TextError::NoTokenizer { dir: self.checkpoint.directory().to_owned() };
        Ok(self.tokenizer.clone().ok_or_else(missing)?)
    }

    pub fn has_tokenizer(&self) -> bool {
        self.tokenizer.is_some()
    }

    /// The checkpoint's chat template, else the built-in one in M1's turn format.
    ///
    /// # Errors
    /// A template that cannot be read.
    pub fn chat_template(&self) -> Result<ChatTemplate> {
        Ok(self.source.chat_template()?.unwrap_or_else(ChatTemplate::default_m1))
    }

    /// Reads the weights and starts the engine. What it takes is told on standard error.
    ///
    /// # Errors
    /// Sizes that do not fit the model or the machine.
    pub fn start(&self, model: &ModelArgs, sizes: &EngineArgs, needs: Needs) -> Result<Engine> {
        let options = model.dtype.asked().map(|compute| LoadOptions { compute });
        let options = options.unwrap_or_else(|| LoadOptions::for_checkpoint(&self.checkpoint));
        // What the flags alone get wrong is said before the weights are read.
        plan(self.config(), options.compute, sizes, needs, None)?;
        let (model, free) = match device::choose(model.device, self.weight_bytes(options.compute))? {
            Device::Cpu => {
                let model = Arc::new(self.load(model, options)?);
                (DeviceModel::Cpu(model), machine_memory().map(|memory| memory.available))
            }
            Device::Cuda(cuda) => {
                let cpu = Cpu::new(CpuOptions { threads: model.threads, isa: model.isa })?;
                let model = self.load_cuda(model, options, &cuda)?;
                (DeviceModel::Cuda(Arc::new(model), Arc::new(cpu)), Some(cuda.free_memory()? as u64))
            }
        };
        let sizes = plan(self.config(), options.compute, sizes, needs, free)?;
        let engine = Engine::start(model, self.tokenizer.clone(), sizes.clone())?;
        tell_sizes(&engine, &sizes);
        Ok(engine)
    }

    /// Reads and packs the weights, with a progress bar.
    ///
    /// # Errors
    /// Weights larger than the machine's memory.
    pub fn load(&self, args: &ModelArgs, options: LoadOptions) -> Result<Model> {
        let cpu = Arc::new(Cpu::new(CpuOptions { threads: args.threads, isa: args.isa })?);
        self.check_memory(options.compute)?;
        let start = Instant::now();
        let bar = bytes_bar("loading", self.checkpoint.weight_bytes() as u64);
        let mut progress = |state: arges_model::LoadProgress| bar.set_position(state.bytes_done as u64);
        let model = Model::load(&self.checkpoint, options, cpu, &mut progress)
            .with_context(|| format!("cannot load {}", args.asked()))?;
        bar.finish_and_clear();
        let (isa, threads) = (model.cpu().isa(), model.cpu().pool().threads());
        eprintln!(
            "{}: computes in {} on {isa} with {}; loaded in {:.1} s",
            self.source.name(),
            options.compute,
            counted(threads, "thread"),
            start.elapsed().as_secs_f64()
        );
        Ok(model)
    }

    /// Copies the weights to a GPU, with a progress bar.
    ///
    /// # Errors
    /// A device that fails or is too small.
    pub fn load_cuda(&self, args: &ModelArgs, options: LoadOptions, cuda: &Arc<Cuda>) -> Result<CudaModel> {
        let start = Instant::now();
        let bytes = self.checkpoint.weight_bytes();
        let bar = bytes_bar("loading", bytes as u64);
        let mut progress = |state: arges_model::LoadProgress| bar.set_position(state.bytes_done as u64);
        let model = CudaModel::load(&self.checkpoint, options, cuda, &mut progress)
            .with_context(|| format!("cannot load {}", args.asked()))?;
        bar.finish_and_clear();
        let seconds = start.elapsed().as_secs_f64();
        eprintln!(
            "{}: computes in {} on {} (GPU {}); loaded in {seconds:.1} s, {:.2} GB/s",
            self.source.name(),
            options.compute,
            cuda.facts().name,
            cuda.facts().ordinal,
            bytes as f64 / seconds / 1e9
        );
        Ok(model)
    }

    fn check_memory(&self, compute: Compute) -> Result<()> {
        let Some(machine) = machine_memory() else { return Ok(()) };
        let weights = self.weight_bytes(compute);
        if weights <= machine.total {
            return Ok(());
        }
        let (weights, total) = (gib(weights), gib(machine.total));
        let way = match compute {
            Compute::F32 => "--dtype bf16 may halve them; else",
            Compute::Bf16 => "",
        };
        bail!(
            "the weights of {} take {weights:.1} GiB in memory, but this machine has {total:.1} GiB: {way} a \
             larger machine or a smaller model is needed",
            self.source.name()
        );
    }

    /// Bytes of the weights in memory, padding aside: bf16 computation rounds what is stored wider.
    fn weight_bytes(&self, compute: Compute) -> u64 {
        let stored = self.checkpoint.weight_bytes() as u64;
        let as_bf16 =
            arges_model::Param::all(self.config()).map(|param| 2 * param.elements(self.config()) as u64);
        match compute {
            Compute::F32 => stored,
            Compute::Bf16 => stored.min(as_bf16.sum()),
        }
    }
}

fn tell_sizes(engine: &Engine, options: &EngineOptions) {
    eprintln!("memory: {}", engine.memory());
    eprintln!(
        "sizes: context {}, {} at once, {} in the cache, {} a step",
        engine.max_context(),
        counted(options.max_sequences, "sequence"),
        counted(options.max_tokens, "token"),
        options.step_tokens
    );
}

/// `1 thread`, `2 threads`.
fn counted(number: usize, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}
