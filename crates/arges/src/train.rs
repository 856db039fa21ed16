//! `arges train`: pre-training and fine-tuning.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use arges_kernels::device::cpu::{Cpu, CpuOptions, Isa};
use arges_kernels::device::cuda::Cuda;
use arges_model::training::{DeviceTrainer, TrainingDevice};
use arges_train::run::{Event, Outcome, StepReport};
use arges_train::{Learn, Run, TrainConfig};
use clap::{Args, Subcommand};
use indicatif::ProgressBar;

use crate::args::{DeviceChoice, at_least_1, instruction_set};
use crate::plan::gib;
use crate::progress::steps_bar;
use crate::signals::Signals;

#[derive(Debug, Subcommand)]
pub enum TrainCommand {
    /// Learn every token of texts and conversations
    Pretrain(TrainArgs),
    /// Fine-tune on conversations: learn what the assistant says in them
    Sft(TrainArgs),
}

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// TOML file that describes the run; docs/training.md lists its fields
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Go on from the run's newest checkpoint, if there is one
    #[arg(long)]
    resume: bool,
    /// What to train on: cpu, cuda or cuda:N (the GPU of that number), or auto, which is the CPU
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = str::parse::<DeviceChoice>)]
    device: DeviceChoice,
    /// Threads to compute with; the result does not depend on it [default: one a core]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    threads: Option<usize>,
    /// Instruction set: plain, avx2, avx512, avx512bf16 or amx [default: the best this machine has]
    #[arg(long, value_name = "NAME", value_parser = instruction_set)]
    isa: Option<Isa>,
}

/// Trains until the last step, or until it is interrupted: then the state is saved.
///
/// # Errors
/// What the run says.
pub fn run(command: &TrainCommand) -> Result<()> {
    let (args, learn) = match command {
        TrainCommand::Pretrain(args) => (args, Learn::Everything),
        TrainCommand::Sft(args) => (args, Learn::Answers),
    };
    let config = TrainConfig::from_file(&args.config)?;
    let cpu = Arc::new(Cpu::new(CpuOptions { threads: args.threads, isa: args.isa })?);
    let mut run = Run::open(config, learn, training_device(args.device, cpu)?, args.resume)?;
    introduce(&run);
    let stop = stop_on_interrupt("saving after this step; once more ends at once")?;
    let mut display = Display::new(&run);
    let outcome = run.train(&stop, &mut |event| display.show(event));
    display.bar.finish_and_clear();
    if outcome? == Outcome::Stopped {
        eprintln!("stopped after step {}; --resume goes on from there", run.step());
    }
    Ok(())
}

fn introduce(run: &Run) {
    let (trainer, config) = (run.trainer(), run.config());
    let learning = trainer.parameters().values().len();
    let device = device_name(trainer);
    eprintln!(
        "{}: {:.1} M values learn, {:.2} GiB with gradients and moments; computes in {} on {device}",
        config.run.display(),
        learning as f64 / 1e6,
        gib(run.bytes() as u64),
        arges_kernels::matmul::Compute::from(config.model.compute),
    );
    if run.step() > 0 {
        eprintln!("goes on after step {}", run.step());
    }
    if run.step() >= config.steps {
        eprintln!("all {} steps are taken already", config.steps);
    }
}

/// What to train on: a GPU only if it is asked for.
///
/// # Errors
/// A GPU that cannot be used.
pub fn training_device(choice: DeviceChoice, cpu: Arc<Cpu>) -> Result<TrainingDevice> {
    let cuda = match choice {
        DeviceChoice::Cuda(ordinal) => {
            Some(Cuda::open(ordinal).with_context(|| format!("--device cuda:{ordinal}"))?)
        }
        DeviceChoice::Cpu | DeviceChoice::Auto => None,
    };
    Ok(TrainingDevice { cpu, cuda })
}

/// The GPU, or the CPU's instruction set and threads.
pub fn device_name(trainer: &DeviceTrainer) -> String {
    match trainer.cuda() {
        Some(cuda) => cuda.facts().name.clone(),
        None => format!("{} with {} threads", trainer.cpu().isa(), trainer.cpu().pool().threads()),
    }
}

/// A flag that the first interrupt sets, which is told with `remark`. The second ends the process.
pub fn stop_on_interrupt(remark: &'static str) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot listen for signals")?;
    let mut signals = runtime.block_on(async { Signals::new() }).context("cannot listen for signals")?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            signals.next().await;
            flag.store(true, Ordering::Relaxed);
            eprintln!("{remark}");
            signals.next().await;
            std::process::exit(130);
        });
    });
    Ok(stop)
}

/// Tells on standard error how it goes: a bar on a terminal, else a line now and then.
struct Display {
    bar: ProgressBar,
    steps: u64,
    told: Instant,
}

impl Display {
    const BETWEEN_LINES: Duration = Duration::from_secs(10);

    fn new(run: &Run) -> Self {
        let bar = match std::io::stderr().is_terminal() {
            true => steps_bar(run.config().steps, run.step()),
            false => ProgressBar::hidden(),
        };
        Self { bar, steps: run.config().steps, told: Instant::now() }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Step(report) => self.step(&report),
            Event::Evaluated { step, loss, sources } => {
                let sources = sources.iter().filter(|_| sources.len() > 1);
                let sources: String = sources.map(|(name, loss)| format!(", {name} {loss:.4}")).collect();
                self.line(&format!("step {step}: evaluation loss {loss:.4}{sources}"));
            }
            Event::Saved { path, .. } => self.line(&format!("saved {}", path.display())),
        }
    }

    fn step(&mut self, report: &StepReport) {
        let rate = report.tokens as f64 / report.seconds;
        let told = format!("loss {:.4}, lr {:.2e}, {rate:.0} tokens/s", report.loss, report.learning_rate);
        self.bar.set_position(report.step);
        self.bar.set_message(told.clone());
        let due = report.step == 1 || report.step == self.steps || self.told.elapsed() >= Self::BETWEEN_LINES;
        if self.bar.is_hidden() && due {
            self.told = Instant::now();
            eprintln!("step {}/{}: {told}", report.step, self.steps);
        }
    }

    fn line(&self, text: &str) {
        match self.bar.is_hidden() {
            true => eprintln!("{text}"),
            false => self.bar.println(text),
        }
    }
}
