//! An engine held still and given new weights.

mod support;

use std::sync::Arc;
use std::time::Duration;

use arges_engine::{
    ControlError, Engine, EngineOptions, Event, FinishReason, GenerateRequest, Generation, NewWeights,
    PauseMode, RunningCaches, TokenEvent, UpdateError,
};
use arges_kernels::matmul::{Compute, RowMajor};
use arges_model::training::{Parameters, Trainer, TrainingPlan};
use arges_model::{Checkpoint, CheckpointError, Config, DType, DeviceModel, Model, Param, WeightSource};
use support::*;

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&data().join("fp32")).unwrap()
}

/// A trainer whose model is that of the small checkpoint with its weights moved.
fn trainer() -> Trainer {
    let parameters = Parameters::full(&checkpoint()).unwrap();
    let mut trainer = Trainer::new(parameters, Compute::F32, cpu(), TrainingPlan::new(64, 2)).unwrap();
    change(&mut trainer, 0.9);
    trainer
}

fn cpu() -> Arc<arges_kernels::device::cpu::Cpu> {
    let options = arges_kernels::device::cpu::CpuOptions { threads: Some(2), isa: None };
    Arc::new(arges_kernels::device::cpu::Cpu::new(options).unwrap())
}

/// Scales every second weight, and brings that into the trainer's model.
fn change(trainer: &mut Trainer, factor: f32) {
    trainer.parameters_mut().values_mut().iter_mut().step_by(2).for_each(|value| *value *= factor);
    trainer.publish().unwrap();
}

fn start(model: impl Into<DeviceModel>) -> Engine {
    Engine::start(model, Some(TOKENIZER.clone()), options()).unwrap()
}

fn answer_of(model: &Arc<Model>, request: GenerateRequest) -> Answer {
    collect(start(Arc::clone(model)).submit(request).unwrap())
}

/// A generation's first tokens, and then the engine stands still with it.
fn begin(engine: &Engine, request: GenerateRequest, tokens: usize) -> (Generation, Vec<TokenEvent>) {
    let mut generation = engine.submit(request).unwrap();
    let mut events = Vec::new();
    while events.len() < tokens {
        match generation.blocking_next().unwrap() {
            Event::Token(token) => events.push(token),
            other => panic!("{other:?}"),
        }
    }
    engine.pause(PauseMode::Keep).unwrap();
    (generation, events)
}

fn model_weights(trainer: &Trainer) -> NewWeights {
    NewWeights::Model(trainer.shared_model().into())
}

/// Tokens without what names their weights, to be compared.
fn bits(tokens: &[TokenEvent]) -> Vec<(u32, u32)> {
    tokens.iter().map(|token| (token.id, token.logprob.to_bits())).collect()
}

#[test]
fn a_generation_goes_on_with_new_weights_as_they_alone_would_go_on() {
    let (engine, trainer) = (engine(options()), trainer());
    let request = |prompt: Vec<u32>, max_tokens| {
        let mut request = greedy(prompt, max_tokens);
        request.stop.ignore_eos = true;
        request
    };
    let start = prompt(70, 1);
    let (generation, mut tokens) = begin(&engine, request(start.clone(), 500), 80);
    assert_eq!(engine.weight_version(), 0);
    engine.update_weights(model_weights(&trainer), 7, RunningCaches::Recompute).unwrap();
    assert_eq!(engine.weight_version(), 7);
    engine.resume().unwrap();
    let rest = collect_rest(generation);
    assert_eq!(rest.finished.weight_version, 7);
    tokens.extend(rest.tokens);

    let changed = tokens.iter().position(|token| token.weight_version == 7).unwrap();
    assert!((80..500).contains(&changed));
    assert!(tokens[..changed].iter().all(|token| token.weight_version == 0));
    assert!(tokens[changed..].iter().all(|token| token.weight_version == 7));
    let old = alone(request(start.clone(), changed));
    assert_eq!(bits(&tokens[..changed]), bits(&old.tokens));
    let so_far = start.into_iter().chain(old.ids()).collect();
    let new = answer_of(&trainer.shared_model(), request(so_far, 500 - changed));
    assert_eq!(bits(&tokens[changed..]), bits(&new.tokens));
}

fn collect_rest(mut generation: Generation) -> Answer {
    let mut tokens = Vec::new();
    loop {
        match generation.blocking_next().unwrap() {
            Event::Token(token) => tokens.push(token),
            Event::Finished(finished) => return Answer { prompt: None, tokens, finished },
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn kept_caches_are_not_computed_again() {
    let request = seeded(prompt(100, 2), 300, 5);
    let whole = alone(request.clone());
    let engine = engine(EngineOptions { max_drafts: 0, ..options() });
    let (generation, mut tokens) = begin(&engine, request, 5);
    let computed = engine.stats().computed_tokens;
    engine.update_weights(NewWeights::Model(MODEL.clone().into()), 1, RunningCaches::Keep).unwrap();
    engine.resume().unwrap();
    let rest = collect_rest(generation);
    tokens.extend(rest.tokens);
    assert_eq!(bits(&tokens), bits(&whole.tokens));
    let all = (100 + whole.tokens.len() - 1) as u64;
    assert!(computed < all);
    assert_eq!(wait_for(&engine, nothing_held).computed_tokens, all);
}

#[test]
fn log_probabilities_of_a_prompt_are_all_of_the_new_weights() {
    let (engine, trainer) = (engine(options()), trainer());
    let request = GenerateRequest { prompt_logprobs: Some(0), ..greedy(prompt(2000, 3), 1) };
    let generation = engine.submit(request.clone()).unwrap();
    wait_for(&engine, |stats| stats.computed_tokens > 0);
    engine.update_weights(model_weights(&trainer), 1, RunningCaches::Recompute).unwrap();
    let mut answer = collect(generation);
    let fresh = answer_of(&trainer.shared_model(), request);
    answer.tokens[0].weight_version = 0;
    assert_eq!((answer.prompt, answer.tokens), (fresh.prompt, fresh.tokens));
}

#[test]
fn aborting_ends_everything_at_once_and_later_requests_wait() {
    let engine = engine(options());
    let running: Vec<_> = (0..20).map(|i| engine.submit(greedy(prompt(20, i), 1900)).unwrap()).collect();
    wait_for(&engine, |stats| stats.generated_tokens > 0);
    engine.pause(PauseMode::Abort).unwrap();
    let stats = engine.stats();
    assert!(stats.paused && nothing_held(stats));
    assert_eq!((stats.aborted, stats.steps), (20, engine.stats().steps));
    for generation in running {
        let answer = collect(generation);
        assert_eq!((answer.finished.reason, answer.finished.stop), (FinishReason::Abort, None));
        assert_eq!(answer.text(), TOKENIZER.decode(&answer.ids()));
    }
    let later = engine.submit(greedy(prompt(20, 1), 5)).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!((engine.stats().waiting, engine.stats().steps), (1, stats.steps));
    engine.resume().unwrap();
    assert_eq!(bits(&collect(later).tokens), bits(&alone(greedy(prompt(20, 1), 5)).tokens));
    assert!(!engine.stats().paused);
}

#[test]
fn waiting_lets_everything_finish_but_begins_nothing() {
    let engine = engine(options());
    let running: Vec<_> =
        (0..20).map(|i| engine.submit(seeded(prompt(20, i), 60, u64::from(i))).unwrap()).collect();
    let pausing = engine.clone();
    let pause = std::thread::spawn(move || pausing.pause(PauseMode::Wait));
    wait_for(&engine, |stats| stats.paused);
    let later = engine.submit(greedy(prompt(20, 1), 5)).unwrap();
    pause.join().unwrap().unwrap();
    for (i, generation) in (0..).zip(running) {
        let answer = collect(generation);
        assert_eq!(bits(&answer.tokens), bits(&alone(seeded(prompt(20, i), 60, u64::from(i))).tokens));
    }
    assert_eq!(engine.stats().waiting, 1);
    engine.resume().unwrap();
    assert_eq!(collect(later).tokens.len(), 5);
}

#[test]
fn a_pause_that_waits_ends_when_somebody_resumes() {
    let engine = engine(options());
    let generation = engine.submit(greedy(prompt(20, 1), 2000)).unwrap();
    let pausing = engine.clone();
    let pause = std::thread::spawn(move || pausing.pause(PauseMode::Wait));
    wait_for(&engine, |stats| stats.paused);
    engine.resume().unwrap();
    assert!(matches!(pause.join().unwrap(), Err(ControlError::Resumed)));
    drop(generation);
}

#[test]
fn a_client_that_leaves_a_paused_engine_frees_its_memory() {
    let engine = engine(options());
    let (generation, _) = begin(&engine, greedy(prompt(20, 1), 2000), 1);
    assert!(!nothing_held(engine.stats()));
    drop((generation, engine.submit(greedy(prompt(20, 1), 5)).unwrap()));
    let stats = wait_for(&engine, nothing_held);
    assert_eq!(stats.cancelled, 2);
}

#[test]
fn a_paused_engine_can_be_drained_and_shut_down() {
    for drain in [true, false] {
        let engine = engine(options());
        let (generation, _) = begin(&engine, greedy(prompt(20, 1), 2000), 1);
        let later = engine.submit(greedy(prompt(20, 1), 5)).unwrap();
        if drain {
            drop(generation);
            tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(engine.drain());
            assert_eq!(collect(later).tokens.len(), 5);
        } else {
            engine.shutdown();
            assert!(try_collect(generation).is_err() && try_collect(later).is_err());
        }
        assert!(matches!(engine.pause(PauseMode::Keep), Err(ControlError::ShutDown)));
    }
}

/// The checkpoint as a source, perhaps without one of its parameters.
struct Lacking(Checkpoint, Option<Param>);

impl WeightSource for Lacking {
    fn config(&self) -> &Config {
        self.0.config()
    }

    fn dtype(&self, param: Param) -> Result<DType, CheckpointError> {
        if Some(param) == self.1 {
            return Err(CheckpointError::NoSuchParam { param });
        }
        Ok(self.0.param(param)?.dtype)
    }

    fn show(&self, param: Param, take: &mut dyn FnMut(RowMajor<'_>)) -> Result<(), CheckpointError> {
        if Some(param) == self.1 {
            return Err(CheckpointError::NoSuchParam { param });
        }
        WeightSource::show(&self.0, param, take)
    }

    fn bytes(&self) -> usize {
        self.0.weight_bytes()
    }
}

#[test]
fn refused_weights_leave_the_old_ones_in_force() {
    let engine = engine(options());
    let before = collect(engine.submit(greedy(prompt(20, 1), 20)).unwrap());
    let lacking = NewWeights::Source(Arc::new(Lacking(checkpoint(), Some(Param::FinalNorm))));
    let result = engine.update_weights(lacking, 1, RunningCaches::Recompute);
    assert!(matches!(result, Err(ControlError::Update(UpdateError::Checkpoint(_)))), "{result:?}");
    let mut config = checkpoint().config().clone();
    config.intermediate_size += 32;
    let parameters = Parameters::initialized(&config, 1);
    let other = Trainer::new(parameters, Compute::F32, cpu(), TrainingPlan::new(64, 2)).unwrap();
    let result = engine.update_weights(model_weights(&other), 1, RunningCaches::Recompute);
    let message = result.unwrap_err().to_string();
    assert!(message.contains("intermediate_size"), "{message}");
    assert_eq!(engine.weight_version(), 0);
    let after = collect(engine.submit(greedy(prompt(20, 1), 20)).unwrap());
    assert_eq!(after.tokens, before.tokens);
}

#[test]
fn weights_are_packed_in_place_or_anew_to_the_same_bits() {
    let request = || seeded(prompt(90, 4), 40, 1);
    let trained = trainer();
    let own = trained.shared_model();
    drop(trained);
    // The first engine alone holds its model; the second shares it, and the other keeps what it has.
    for shared in [false, true] {
        let other = shared.then(|| Arc::clone(&own));
        let model = match &other {
            Some(model) => Arc::clone(model),
            None => trainer().shared_model(),
        };
        let engine = start(model);
        let source = NewWeights::Source(Arc::new(Lacking(checkpoint(), None)));
        engine.update_weights(source, 3, RunningCaches::Recompute).unwrap();
        let answer = collect(engine.submit(request()).unwrap());
        assert_eq!(bits(&answer.tokens), bits(&alone(request()).tokens));
        assert_ne!(bits(&answer.tokens), bits(&answer_of(&own, request()).tokens));
    }
}

#[test]
fn a_trainer_goes_on_without_changing_what_an_engine_computes_with() {
    let mut trainer = trainer();
    let request = || seeded(prompt(40, 4), 30, 1);
    let engine = start(trainer.shared_model());
    let first = collect(engine.submit(request()).unwrap());
    change(&mut trainer, 0.8);
    assert_eq!(collect(engine.submit(request()).unwrap()).tokens, first.tokens);
    engine.update_weights(model_weights(&trainer), 1, RunningCaches::Recompute).unwrap();
    let second = collect(engine.submit(request()).unwrap());
    assert_ne!(bits(&second.tokens), bits(&first.tokens));
    assert_eq!(bits(&second.tokens), bits(&answer_of(&trainer.shared_model(), request()).tokens));
}

#[test]
fn what_old_weights_computed_is_not_taken_up_under_new_ones() {
    let (engine, trainer) = (engine(options()), trainer());
    let request = greedy(prompt(300, 1), 20);
    let cached = |answer: &Answer| answer.finished.usage.cached_tokens;
    for expected in [0, 256] {
        assert_eq!(cached(&collect(engine.submit(request.clone()).unwrap())), expected);
    }
    for (version, caches) in [(1, RunningCaches::Recompute), (2, RunningCaches::Keep)] {
        // One that runs on through the change leaves nothing behind either.
        let (running, _) = begin(&engine, greedy(prompt(200, 2), 300), 1);
        engine.update_weights(model_weights(&trainer), version, caches).unwrap();
        engine.resume().unwrap();
        collect_rest(running);
        let answer = collect(engine.submit(request.clone()).unwrap());
        assert_eq!(cached(&answer), 0);
        let new = answer_of(&trainer.shared_model(), request.clone());
        assert_eq!(bits(&answer.tokens), bits(&new.tokens));
        if caches == RunningCaches::Keep {
            let begins = [&prompt(200, 2)[..], &[1; 70]].concat();
            assert_eq!(cached(&collect(engine.submit(greedy(begins, 1)).unwrap())), 0);
        }
    }
}
