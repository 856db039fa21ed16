//! Opening a run: its directory, what is trained, the engine that samples.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arges_engine::{Engine, EngineOptions, EngineStats, RepetitionStop};
use arges_model::checkpoint::copy_tokenizer_files;
use arges_model::training::{DeviceTrainer, Parameters, TrainingDevice, TrainingError};
use arges_model::{Checkpoint, NewWeights};
use arges_text::{ChatTemplate, Tokenizer};

use super::{LEARN, Place, QUEUE_FILE, RlError, RlRun};
use crate::checkpoint::{CheckpointError, Checkpoints, State};
use crate::metrics::{self, MetricsWriter};
use crate::optimizer::Optimizer;
use crate::rl::config::RlConfig;
use crate::rl::curriculum::Curriculum;
use crate::rl::groups::Groups;
use crate::rl::inspect::TOKENIZER;
use crate::rl::judged::Judged;
use crate::rl::policy::{LocalPolicy, Policy};
use crate::rl::remote::Remote;
use crate::rl::rollout::{Limits, Player, Rollouts};
use crate::rl::talk::Talk;
use crate::rl::trajectory;
use crate::rl::window::WindowState;
use crate::run::TrainError;
use crate::run::start::{check_context, difference, lock};

pub fn open(config: RlConfig, device: TrainingDevice, resume: bool) -> Result<RlRun, RlError> {
    let judged = Judged::open(&config)?;
    let checkpoints = Checkpoints::of(&config.run);
    let taken = config.run.exists().then(|| lock(&config.run)).transpose()?;
    let left = left_state(&config, &checkpoints, resume)?;
    let start = left.as_ref().map(|state| checkpoints.path(state.step));
    let (mut parameters, tokenizer_files) = parameters(&config, start.as_deref())?;
    let tokenizer = Tokenizer::from_dir(&tokenizer_files)?;
    let template = ChatTemplate::from_dir(&tokenizer_files)?.unwrap_or_else(ChatTemplate::default_m1);
    let longest = config.update.max_tokens;
    check_context(parameters.config(), longest)?;
    if config.rollout.replay_experts {
        check_replay(parameters.config().num_experts, &device)?;
    }
    let mut optimizer = Optimizer::new(config.optimizer.optimizer(), parameters.tensors());
    let (mut tokens, mut targets) = (0, 0);
    let (mut place, mut groups) = (first_place(&config), Groups::default());
    if let Some(state) = left {
        checkpoints.restore(state.step, &mut parameters, &mut optimizer)?;
        (tokens, targets, place) = (state.tokens, state.targets, state.stream);
        groups = read_queue(&checkpoints.path(state.step).join(QUEUE_FILE))?;
    }
    let plan = config.update.plan();
    let mut trainer = DeviceTrainer::new(parameters, config.model.compute.into(), device, plan)?;
    let talk = Talk::new(tokenizer.clone(), template)?;
    let engine = Engine::start(trainer.shared_model(), Some(tokenizer), engine_options(&config))?;
    let policy = Arc::new(LocalPolicy::new(engine, config.rollout.caches.into()));
    policy.publish(NewWeights::Model(trainer.shared_model()), place.batch)?;
    let limits = Limits {
        longest,
        max_turns: config.rollout.max_turns,
        repetition: config
            .rollout
            .repetition
            .map(|stop| RepetitionStop { tokens: stop.tokens, probability: stop.probability }),
        experts: config.rollout.replay_experts,
    };
    let mut concurrency = config.rollout.concurrency;
    let mut sampler: Arc<dyn Policy> = Arc::clone(&policy) as _;
    let mut remote = None;
    if let Some(settings) = &config.remote {
        let local = Some((sampler, concurrency));
        let mut opened = Remote::open(settings.clone(), config.model.compute.into(), local)?;
        let cpu = trainer.shared_cpu();
        opened.publish(place.batch, trainer.fetch()?, &cpu)?;
        concurrency += settings.turns * settings.endpoints.len();
        sampler = Arc::clone(opened.endpoints()) as _;
        remote = Some(opened);
    }
    let player = Player::new(sampler, talk, limits).with_judged(judged);
    let rollouts = Rollouts::new(player, concurrency)
        .map_err(|source| RlError::File { path: "the threads of the rollouts".into(), source })?;
    // The directory is made only when all else is known to be right.
    let lock = taken.map_or_else(|| lock(&config.run), Ok)?;
    keep_tokenizer(&tokenizer_files, &config.run)?;
    let step = optimizer.step();
    trajectory::remove_after(&config.run, place.batch)
        .map_err(|source| RlError::File { path: config.run.clone(), source })?;
    let metrics = MetricsWriter::open(&config.run, step)?;
    let start_evaluated = config.evaluation.is_none() || !metrics::read(&config.run)?.is_empty();
    Ok(RlRun {
        tokenizer: config.run.join(TOKENIZER),
        config,
        trainer,
        optimizer,
        policy,
        remote,
        rollouts,
        place,
        groups,
        checkpoints,
        metrics,
        tokens,
        targets,
        uniform: 0,
        dropped: 0,
        saved: (step > 0).then_some(step),
        start_evaluated,
        waited: 0.0,
        clock: Instant::now(),
        engine_stats: EngineStats::default(),
        _lock: lock,
    })
}

/// Whether choices of experts can be noted and given.
fn check_replay(experts: usize, device: &TrainingDevice) -> Result<(), TrainingError> {
    const MOST: usize = 256;
    if device.cuda.is_some() {
        return Err(TrainingError::ExpertsOnCuda);
    }
    let reason = format!("a model of {experts} has more than the {MOST} that can be noted");
    if experts > MOST { Err(TrainingError::Experts { reason }) } else { Ok(()) }
}

fn first_place(config: &RlConfig) -> Place {
    let highest = |task: &str| arges_tasks::find(task).map(|task| task.max_difficulty()).unwrap_or(1);
    let curriculum = Curriculum::new(&config.task, highest);
    Place { batch: 0, window: WindowState::default(), curriculum, length_bias: None }
}

/// The newest state in the run's directory, if it is to be gone on from.
fn left_state(
    config: &RlConfig,
    checkpoints: &Checkpoints,
    resume: bool,
) -> Result<Option<State<Place>>, RlError> {
    let run = || config.run.clone();
    let Some(&step) = checkpoints.steps()?.last() else {
        // Without a checkpoint there may be metrics, of a run that did not come so far: it begins anew.
        let begun = config.run.join(metrics::FILE_NAME).exists();
        return if begun && !resume {
            Err(TrainError::Exists { run: run(), step: 0 }.into())
        } else {
            Ok(None)
        };
    };
    if !resume {
        return Err(TrainError::Exists { run: run(), step }.into());
    }
    let differs = |reason: String| RlError::from(TrainError::Differs { run: run(), reason });
    let state: State<serde_json::Value> = checkpoints.state(step)?;
    if state.learn != LEARN {
        return Err(differs(format!("it is a run of `arges train {}`", state.learn)));
    }
    match difference("", &state.identity, &config.identity()) {
        Some(reason) => Err(differs(reason)),
        None => Ok(Some(checkpoints.state(step)?)),
    }
}

/// What learns, and where the tokenizer's files are.
fn parameters(config: &RlConfig, left: Option<&Path>) -> Result<(Parameters, PathBuf), RlError> {
    let base = config.model.from.as_deref().unwrap_or(Path::new(""));
    if let Some(options) = &config.lora {
        let checkpoint = Arc::new(Checkpoint::open(base)?);
        let parameters = Parameters::lora(checkpoint, options, config.seed)?;
        return Ok((parameters, left.unwrap_or(base).to_owned()));
    }
    let directory = left.unwrap_or(base);
    Ok((Parameters::full(&Checkpoint::open(directory)?)?, directory.to_owned()))
}

/// Keeps the tokenizer beside the trajectories, which are its tokens.
fn keep_tokenizer(files: &Path, run: &Path) -> Result<(), RlError> {
    let directory = run.join(TOKENIZER);
    let error = |source| RlError::File { path: directory.clone(), source };
    std::fs::create_dir_all(&directory).map_err(error)?;
    copy_tokenizer_files(files, &directory).map_err(CheckpointError::from)?;
    Ok(())
}

fn read_queue(path: &Path) -> Result<Groups, RlError> {
    let error = |source| RlError::File { path: path.to_owned(), source };
    let groups: Vec<Groups> = trajectory::from_reader(File::open(path).map_err(error)?).map_err(error)?;
    let missing = || error(std::io::Error::new(std::io::ErrorKind::InvalidData, "it is empty"));
    groups.into_iter().next().ok_or_else(missing)
}

/// Room for as many of the longest sequences as run at once.
fn engine_options(config: &RlConfig) -> EngineOptions {
    const PAGE: usize = arges_model::cache::PAGE_TOKENS;
    let (sequences, longest) = (config.rollout.concurrency, config.update.max_tokens);
    EngineOptions {
        max_sequences: sequences,
        max_tokens: sequences * longest.next_multiple_of(PAGE),
        step_tokens: config.rollout.step_tokens,
        max_queue: sequences,
        max_context: longest,
        max_logit_rows: sequences,
        prefix_cache: None,
        max_drafts: 0,
        exact: true,
    }
}
