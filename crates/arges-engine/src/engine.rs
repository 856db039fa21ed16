//! The engine's thread: it owns the model's caches, the queue and the sequences, and runs one step after the
//! other while there is anything to do.

mod hold;

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use arges_kernels::sample::SampleScratch;
use arges_kernels::sample::cuda::Rule;
use arges_model::cache::PAGE_TOKENS;
use arges_model::model::cuda::{Choice, Chosen};
use arges_model::{
    Batch, CachePlan, DeviceModel, Executor, ExecutorPlan, ForwardError, LogitRows, SequenceId, Slots,
    WorkspacePlan,
};
use arges_text::Tokenizer;
use tokio::sync::watch;
use tracing::{debug, error};

use crate::engine::hold::{Hold, LOOK_FOR_CANCELLED};
use crate::handle::{Engine, Limits, Message, Shared, Submission};
use crate::request::{EngineError, EngineOptions, EngineStats, Event, MemoryPlan};
use crate::scheduler::{Budget, Rank, Room, Scheduler, Step};
use crate::sequence::{ModelFacts, Next, RowError, RowReading, Sequence};

impl Engine {
    /// Sizes and allocates caches and workspace and starts the engine's thread. Without a tokenizer, requests
    /// and answers are token ids alone.
    ///
    /// # Errors
    /// An option that is 0 or contradicts another, caches that do not fit, a thread that does not start.
    pub fn start(
        model: impl Into<DeviceModel>,
        tokenizer: Option<Tokenizer>,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        check(&options)?;
        let model = model.into();
        let vocab_size = model.config().vocab_size;
        let mut end_tokens = model.config().eos_token_ids.clone();
        // MiniMax-M1's configuration names none; its tokenizer does.
        end_tokens.extend(tokenizer.as_ref().and_then(Tokenizer::end_token));
        let sampleable = tokenizer.as_ref().map_or(vocab_size, |t| t.vocab_size().min(vocab_size));
        let runner = Runner::new(model, sampleable, &options)?;
        let limits = Limits {
            vocab_size,
            context: options.max_context.min(options.max_tokens),
            max_queue: options.max_queue,
            has_tokenizer: tokenizer.is_some(),
        };
        let shared = Arc::new(Shared::new(limits, runner.memory()));
        let (messages, receiver) = mpsc::channel();
        let (stopped, when_stopped) = watch::channel(false);
        let facts = ModelFacts { sampleable, end_tokens, tokenizer, weight_version: 0 };
        let worker = Worker {
            runner,
            facts,
            scheduler: Scheduler::new(),
            sequences: HashMap::new(),
            step: Step::default(),
            budget: Budget { tokens: options.step_tokens, rows: options.max_logit_rows },
            arrivals: 0,
            draining: false,
            hold: Hold::default(),
            stats: EngineStats::default(),
            shared: Arc::clone(&shared),
            messages: receiver,
        };
        let body = move || {
            worker.run();
            // An error means that no handle is left to be told.
            let _ = stopped.send(true);
        };
        let thread = thread::Builder::new().name("arges-engine".to_owned()).spawn(body)?;
        Ok(Self::from_parts(shared, messages, when_stopped, thread))
    }
}

fn check(options: &EngineOptions) -> Result<(), EngineError> {
    let invalid = |name, reason: String| Err(EngineError::InvalidOption { name, reason });
    let sizes = [
        ("max_sequences", options.max_sequences),
        ("max_tokens", options.max_tokens),
        ("max_queue", options.max_queue),
        ("max_context", options.max_context),
    ];
    if let Some((name, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
        return invalid(name, "must be at least 1".to_owned());
    }
    for (name, size) in [("step_tokens", options.step_tokens), ("max_logit_rows", options.max_logit_rows)] {
        if size < options.max_sequences {
            let least = options.max_sequences;
            return invalid(name, format!("is {size} but must be at least max_sequences, {least}"));
        }
    }
    Ok(())
}

impl Room for Slots {
    type Slot = SequenceId;

    fn open(&mut self) -> Option<SequenceId> {
        self.open()
    }

    fn reserve(&mut self, slot: SequenceId, length: usize) -> bool {
        self.reserve(slot, length).is_ok()
    }

    fn close(&mut self, slot: SequenceId) {
        self.close(slot);
    }

    fn free_pages(&self) -> usize {
        self.free_pages()
    }

    fn pages_for(&self, length: usize) -> usize {
        length.div_ceil(PAGE_TOKENS)
    }
}

/// The model and everything a step of it needs.
struct Runner {
    executor: Executor,
    batch: Batch,
    /// Whose the step's rows of logits are.
    rows: Vec<Row>,
    /// What was read from them; as many as there can be rows.
    readings: Vec<Mutex<Option<Reading>>>,
    /// One per thread of the pool.
    scratches: Vec<Mutex<SampleScratch>>,
    /// What a GPU is asked for; as many as there can be rows.
    wishes: Vec<Mutex<Wish>>,
    /// Ids below this may be sampled.
    sampleable: usize,
}

/// How a GPU is to read a row, and whether with the mask.
#[derive(Debug, Default)]
struct Wish {
    rule: Option<(Rule, bool)>,
    mask: Vec<u32>,
}

impl Wish {
    fn choice(&self) -> Choice<'_> {
        self.rule.map(|(rule, masked)| (rule, masked.then_some(&self.mask[..])))
    }
}

/// A row of logits: whose it is, and after which position.
#[derive(Debug, Clone, Copy)]
struct Row {
    rank: Rank,
    position: usize,
}

type Reading = Result<RowReading, RowError>;

impl Runner {
    fn new(model: DeviceModel, sampleable: usize, options: &EngineOptions) -> Result<Self, EngineError> {
        let plan = ExecutorPlan {
            cache: CachePlan { max_sequences: options.max_sequences, max_tokens: options.max_tokens },
            workspace: WorkspacePlan {
                max_tokens: options.step_tokens,
                max_logit_rows: options.max_logit_rows,
            },
            exact: options.exact,
        };
        let (vocab_size, threads) = (model.config().vocab_size, model.cpu().pool().threads());
        let executor = Executor::new(model, plan).map_err(|error| EngineError::Cache(error.to_string()))?;
        Ok(Self {
            executor,
            batch: Batch::new(),
            rows: Vec::with_capacity(options.max_logit_rows),
            readings: (0..options.max_logit_rows).map(|_| Mutex::new(None)).collect(),
            scratches: (0..threads).map(|_| Mutex::new(SampleScratch::new(vocab_size))).collect(),
            wishes: (0..options.max_logit_rows).map(|_| Mutex::default()).collect(),
            sampleable,
        })
    }

    fn memory(&self) -> MemoryPlan {
        MemoryPlan {
            weights: self.executor.model().weight_bytes(),
            cache: self.executor.cache_bytes(),
            workspace: self.executor.workspace_bytes()
                + self.scratches.iter().map(|scratch| lock(scratch).bytes()).sum::<usize>(),
        }
    }

    /// Runs the step's pieces through the model and reads the rows of logits that come out.
    fn run(
        &mut self,
        step: &Step<SequenceId>,
        sequences: &HashMap<Rank, Sequence>,
    ) -> Result<(), ForwardError> {
        self.batch.clear();
        self.rows.clear();
        for piece in &step.pieces {
            let Range { start, end } = piece.tokens;
            self.batch.push(piece.slot, &sequences[&piece.rank].tokens()[start..end], piece.rows);
            let with_logits = match piece.rows {
                LogitRows::None => end..end,
                LogitRows::Last => end - 1..end,
                LogitRows::All => start..end,
            };
            self.rows.extend(with_logits.map(|position| Row { rank: piece.rank, position }));
        }
        let Self { executor, batch, rows, readings, scratches, wishes, sampleable } = self;
        let wishes = &mut wishes[..rows.len()];
        wishes.iter_mut().for_each(|wish| wish.get_mut().unwrap_or_else(PoisonError::into_inner).rule = None);
        if executor.chooses() {
            executor.model().cpu().pool().run(rows.len(), |task, _| {
                let Row { rank, position } = rows[task];
                let Wish { rule, mask } = &mut *lock(&wishes[task]);
                *rule = sequences[&rank].device_rule(position, mask);
            });
        }
        let wishes: Vec<_> =
            wishes.iter_mut().map(|wish| &*wish.get_mut().unwrap_or_else(PoisonError::into_inner)).collect();
        let choices: Vec<_> = wishes.iter().map(|wish| wish.choice()).collect();
        let (model, Chosen { tokens, logits }) = executor.forward_choosing(batch, *sampleable, &choices)?;
        let vocab_size = model.config().vocab_size;
        model.cpu().pool().run(rows.len(), |task, thread| {
            let Row { rank, position } = rows[task];
            let reading = match tokens.get(task).copied().flatten() {
                Some(token) => Ok(Sequence::device_reading(token)),
                None => {
                    let logits = &logits[task * vocab_size..(task + 1) * vocab_size];
                    sequences[&rank].read_row(position, logits, &mut lock(&scratches[thread]))
                }
            };
            *lock(&readings[task]) = Some(reading);
        });
        Ok(())
    }
}

/// What was locked by one that panicked is written anew before it is read, so nothing is lost by going on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The result of `body`, or the message of its panic.
fn catch<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        format!("internal error: {}", text.as_deref().unwrap_or("a panic without a message"))
    })
}

/// What the thread runs.
struct Worker {
    runner: Runner,
    facts: ModelFacts,
    scheduler: Scheduler<SequenceId>,
    /// Everything queued or running.
    sequences: HashMap<Rank, Sequence>,
    step: Step<SequenceId>,
    budget: Budget,
    /// Requests so far.
    arrivals: u64,
    /// Whether the thread ends when there is nothing left to do.
    draining: bool,
    /// Whether steps are run.
    hold: Hold,
    stats: EngineStats,
    shared: Arc<Shared>,
    messages: Receiver<Message>,
}

/// What to do after the messages were read.
#[derive(PartialEq, Eq)]
enum Todo {
    Work,
    End,
}

impl Worker {
    fn run(mut self) {
        self.publish_stats();
        while self.receive() == Todo::Work {
            self.drop_cancelled();
            if self.hold.runs() {
                self.run_step();
            }
            self.notice_empty();
            self.publish_stats();
        }
        self.shared.closed.store(true, Ordering::Release);
        self.fail_all("the engine was shut down");
        for submission in std::mem::take(&mut self.hold.arrived) {
            submission.refuse();
        }
        for message in self.messages.try_iter() {
            if let Message::Submit(submission) = message {
                submission.refuse();
            }
        }
        self.publish_stats();
    }

    /// Reads all messages; waits for one when there is nothing to do.
    fn receive(&mut self) -> Todo {
        loop {
            let has_requests = !self.scheduler.is_idle() || !self.hold.arrived.is_empty();
            let message = if has_requests && self.hold.runs() {
                self.messages.try_recv().map_err(|error| match error {
                    TryRecvError::Empty => RecvTimeoutError::Timeout,
                    TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                })
            } else if has_requests {
                self.messages.recv_timeout(LOOK_FOR_CANCELLED)
            } else if self.draining {
                return Todo::End;
            } else {
                self.messages.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match message {
                Ok(Message::Submit(submission)) if self.draining => submission.refuse(),
                Ok(Message::Submit(submission)) => {
                    self.receive_submission(*submission);
                    self.publish_stats();
                }
                Ok(Message::Order(order, reply)) => self.take_order(*order, &reply),
                Ok(Message::Drain) => self.drain(),
                Ok(Message::Shutdown) => return Todo::End,
                Err(RecvTimeoutError::Timeout) => return Todo::Work,
                Err(RecvTimeoutError::Disconnected) if has_requests => {
                    self.drain();
                    return Todo::Work;
                }
                Err(RecvTimeoutError::Disconnected) => return Todo::End,
            }
        }
    }

    /// Ends when all requests have; a pause would keep them from that.
    fn drain(&mut self) {
        self.draining = true;
        self.reopen();
    }

    fn enqueue(&mut self, submission: Submission) {
        let rank = Rank::new(submission.request.priority, self.arrivals);
        self.arrivals += 1;
        let events = submission.events.clone();
        match Sequence::new(submission, &self.facts) {
            Ok(mut sequence) => match sequence.work() {
                Some((length, rows_from)) => {
                    self.scheduler.enqueue(rank, length, rows_from);
                    self.sequences.insert(rank, sequence);
                }
                None => {
                    sequence.finish_without_work();
                    self.stats.finished += 1;
                }
            },
            Err(error) => {
                self.stats.failed += 1;
                // An error means that the generation was dropped already.
                let _ = events.send(Event::Failed(error.to_string()));
            }
        }
    }

    fn drop_cancelled(&mut self) {
        let Self { sequences, scheduler, runner, stats, hold, .. } = self;
        hold.arrived.retain(|submission| {
            let cancelled = submission.events.is_closed();
            stats.cancelled += u64::from(cancelled);
            !cancelled
        });
        sequences.retain(|&rank, sequence| {
            let cancelled = sequence.is_cancelled();
            if cancelled {
                scheduler.remove(rank, runner.executor.slots_mut());
                stats.cancelled += 1;
            }
            !cancelled
        });
    }

    fn run_step(&mut self) {
        self.scheduler.plan(self.runner.executor.slots_mut(), self.budget, &mut self.step);
        for rank in &self.step.admitted {
            if let Some(sequence) = self.sequences.get_mut(rank) {
                sequence.leave_queue();
            }
        }
        for rank in &self.step.preempted {
            debug!(?rank, "set back for want of cache pages");
            self.stats.preemptions += 1;
        }
        if self.step.pieces.is_empty() {
            self.give_up_on_stuck();
            return;
        }
        self.stats.steps += 1;
        let Self { runner, step, sequences, .. } = self;
        let result = catch(|| runner.run(step, sequences).map_err(|error| error.to_string()));
        match result.and_then(|result| result) {
            Ok(()) => self.take_readings(),
            Err(message) => {
                error!(message, "a step failed");
                for index in 0..self.step.pieces.len() {
                    self.fail(self.step.pieces[index].rank, message.clone());
                }
            }
        }
    }

    /// A step without pieces is one that made room for the next, or nothing to do, or a request that does not
    /// fit even alone, which would be tried forever.
    fn give_up_on_stuck(&mut self) {
        if self.step.preempted.is_empty()
            && let Some(rank) = self.scheduler.first_waiting()
        {
            error!(?rank, "a request does not fit into the empty caches");
            self.fail(rank, "the request does not fit into the caches".to_owned());
        }
    }

    fn take_readings(&mut self) {
        for piece in &self.step.pieces {
            self.stats.computed_tokens += piece.tokens.len() as u64;
            self.scheduler.advance(piece.rank, piece.tokens.len());
        }
        for index in 0..self.runner.rows.len() {
            let row = self.runner.rows[index];
            let reading = lock(&self.runner.readings[index]).take();
            if let Some(reading) = reading {
                self.take_reading(row, reading);
            }
        }
    }

    fn take_reading(&mut self, Row { rank, position }: Row, reading: Reading) {
        // A sequence that ended at an earlier row is gone.
        let Some(sequence) = self.sequences.get_mut(&rank) else { return };
        let version = self.facts.weight_version;
        let next = catch(|| reading.and_then(|reading| sequence.accept(position, reading, version)));
        match next {
            Ok(Ok(Next::Prompt)) => self.scheduler.skip_rows(rank, position + 1),
            Ok(Ok(Next::Grown)) => {
                self.stats.generated_tokens += 1;
                self.scheduler.append(rank);
            }
            Ok(Ok(Next::Ended { sampled })) => {
                self.stats.generated_tokens += u64::from(sampled);
                self.stats.finished += 1;
                self.remove(rank);
            }
            // The fault of the request alone, which is no news for the operator.
            Ok(Err(RowError::Grammar(error))) => self.end(rank, Event::GrammarFailed(error.to_string())),
            Ok(Err(RowError::Sample(error))) => {
                self.fail(rank, format!("no token could be chosen after position {position}: {error}"));
            }
            Err(message) => self.fail(rank, message),
        }
    }

    fn fail(&mut self, rank: Rank, message: String) {
        error!(message, "a request failed");
        self.end(rank, Event::Failed(message));
    }

    /// Ends a sequence before its time.
    fn end(&mut self, rank: Rank, event: Event) {
        if let Some(sequence) = self.remove(rank) {
            sequence.send(event);
            self.stats.failed += 1;
        }
    }

    fn fail_all(&mut self, message: &str) {
        let ranks: Vec<Rank> = self.sequences.keys().copied().collect();
        for rank in ranks {
            self.fail(rank, message.to_owned());
        }
    }

    fn remove(&mut self, rank: Rank) -> Option<Sequence> {
        self.scheduler.remove(rank, self.runner.executor.slots_mut());
        self.sequences.remove(&rank)
    }

    fn publish_stats(&mut self) {
        self.stats.running = self.scheduler.running();
        self.stats.waiting = self.scheduler.waiting() + self.hold.arrived.len();
        self.stats.paused = !self.hold.admits();
        self.stats.free_pages = self.runner.executor.slots().free_pages();
        self.stats.total_pages = self.runner.executor.slots().pages_total();
        *self.shared.stats() = self.stats;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_a_message() {
        assert_eq!(catch(|| 5), Ok(5));
        let number = 7;
        let message = |result: Result<(), String>| result.unwrap_err();
        assert_eq!(message(catch(|| panic!("plain"))), "internal error: plain");
        assert_eq!(message(catch(|| panic!("number {number}"))), "internal error: number 7");
        let odd = catch(|| std::panic::panic_any(number));
        assert_eq!(message(odd), "internal error: a panic without a message");
    }
}
