//! The engine's thread: it owns the model's caches, the queue and the sequences, and runs one step after the
//! other while there is anything to do.

mod hold;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::Instant;

use arges_model::cache::PAGE_TOKENS;
use arges_model::{DeviceModel, LogitRows, SequenceId};
use arges_text::Tokenizer;
use tokio::sync::watch;
use tracing::{debug, error};

use crate::engine::hold::{Hold, LOOK_FOR_CANCELLED};
use crate::handle::{Engine, Limits, Message, Shared, Submission};
use crate::prefix::Costs;
use crate::request::{EngineError, EngineOptions, Event};
use crate::runner::{Reading, Row, Runner, lock};
use crate::scheduler::{Budget, Rank, Scheduler, Step};
use crate::sequence::{ModelFacts, Next, RowError, Sequence};
use crate::stats::EngineStats;
use crate::timing::{Load, StepTimes};

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
        // Of guesses a GPU's logits are read by the host, to other bits than the device reads its own.
        let by_device = matches!(model, DeviceModel::Cuda(..));
        let max_drafts = if options.exact && by_device { 0 } else { options.max_drafts };
        let runner = Runner::new(model, sampleable, &options)?;
        let limits = Limits {
            vocab_size,
            context: options.max_context.min(options.max_tokens),
            max_queue: options.max_queue,
            has_tokenizer: tokenizer.is_some(),
            tells_experts: runner.memory.executor.can_note_experts(),
        };
        let shared = Arc::new(Shared::new(limits, runner.memory_plan()));
        let (messages, receiver) = mpsc::channel();
        let (stopped, when_stopped) = watch::channel(false);
        let speculates = max_drafts > 0;
        let facts = ModelFacts { sampleable, end_tokens, speculates, tokenizer, weight_version: 0 };
        let worker = Worker {
            runner,
            facts,
            scheduler: Scheduler::new(),
            sequences: HashMap::new(),
            step: Step::default(),
            tokens: options.step_tokens,
            logit_rows: options.max_logit_rows,
            max_drafts,
            times: StepTimes::default(),
            due: Vec::new(),
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
    /// Of a step.
    tokens: usize,
    logit_rows: usize,
    /// Guesses of a sequence in a step.
    max_drafts: usize,
    times: StepTimes,
    /// Rows to read next.
    due: Vec<usize>,
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

/// Guesses that a sequence of `length` tokens, of which the last is still to be computed, may try: as many as leave the
/// chunk that they begin in unfinished, since a state that has moved on does not come back.
fn guesses_before_grid_point(length: usize) -> usize {
    PAGE_TOKENS - 1 - length % PAGE_TOKENS
}

fn load(step: &Step<SequenceId>, costs: Costs) -> Load {
    let mut load = Load::default();
    for piece in &step.pieces {
        if piece.tokens.len() == piece.drafts + 1 && piece.rows == LogitRows::All {
            load.decoders += 1;
            load.drafts += piece.drafts;
        } else {
            load.prompts += costs.work(piece.tokens.start, piece.tokens.end);
        }
    }
    load
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
                Ok(Message::FlushPrefixes) => {
                    self.runner.memory.flush();
                    self.publish_stats();
                }
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
        let cancelled: Vec<Rank> =
            sequences.iter().filter(|(_, s)| s.is_cancelled()).map(|(&rank, _)| rank).collect();
        for rank in cancelled {
            scheduler.remove(rank, &mut runner.memory.room(sequences));
            sequences.remove(&rank);
            stats.cancelled += 1;
        }
    }

    fn run_step(&mut self) {
        let decoders = self.guess();
        let budget = Budget {
            tokens: self.tokens,
            rows: self.logit_rows,
            work: self.times.prompt_work(decoders),
            parity: self.runner.memory.costs().parity,
        };
        let mut room = self.runner.memory.room(&self.sequences);
        self.scheduler.plan(&mut room, budget, &mut self.step);
        for &rank in &self.step.admitted {
            if let Some(sequence) = self.sequences.get_mut(&rank) {
                sequence.leave_queue(self.scheduler.computed(rank).unwrap_or(0));
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
        self.count_step();
        let Self { runner, step, sequences, .. } = self;
        let start = Instant::now();
        let result = catch(|| runner.forward(step, sequences).map_err(|error| error.to_string()));
        let load = load(step, runner.memory.costs());
        self.times.record(load, start.elapsed().as_secs_f64());
        match result.and_then(|result| result) {
            Ok(()) => self.take_readings(),
            Err(message) => {
                error!(message, "a step failed");
                // A device that failed may have lost what its memory held.
                self.runner.memory.flush();
                for index in 0..self.step.pieces.len() {
                    self.fail(self.step.pieces[index].rank, message.clone());
                }
            }
        }
    }

    fn count_step(&mut self) {
        let pieces = &self.step.pieces;
        self.stats.steps += 1;
        self.stats.step_sequences.observe(pieces.len());
        self.stats.step_tokens.observe(pieces.iter().map(|piece| piece.tokens.len()).sum());
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

    /// Has decoding sequences guess what comes next. Returns how many decode.
    fn guess(&mut self) -> usize {
        let decoders: Vec<(Rank, usize)> = self.scheduler.decoding().collect();
        if self.max_drafts > 0 {
            let price = self.times.price(decoders.len());
            for &(rank, length) in &decoders {
                let most = self.max_drafts.min(guesses_before_grid_point(length));
                let drafts = self.sequences.get_mut(&rank).map_or(0, |sequence| sequence.draft(price, most));
                self.scheduler.propose(rank, drafts);
            }
        }
        decoders.len()
    }

    fn take_readings(&mut self) {
        self.take_experts();
        for piece in &self.step.pieces {
            let end = piece.tokens.end - piece.drafts;
            self.stats.computed_tokens += piece.tokens.len() as u64;
            self.stats.drafted_tokens += piece.drafts as u64;
            self.scheduler.advance(piece.rank, end - piece.tokens.start);
            if let Some(sequence) = self.sequences.get(&piece.rank) {
                let prompt = sequence.prompt_len();
                let ends_prompt = piece.tokens.start < prompt && prompt <= end;
                let worth_saving = piece.branches || ends_prompt;
                self.runner.memory.note(piece.rank, sequence.tokens(), end, worth_saving);
            }
        }
        let mut due = std::mem::take(&mut self.due);
        due.clear();
        due.extend((0..self.runner.rows.len()).filter(|&row| self.runner.rows[row].guess.is_none()));
        while !due.is_empty() {
            self.runner.read(&due, &self.sequences);
            due.retain_mut(|index| {
                let row = self.runner.rows[*index];
                let reading = lock(&self.runner.readings[*index]).take();
                if let Some(reading) = reading {
                    self.take_reading(row, reading);
                }
                *index += 1;
                self.was_right(*index)
            });
        }
        self.due = due;
        self.forget_guesses();
    }

    /// Gives sequences that ask for them the experts of their tokens.
    fn take_experts(&mut self) {
        let noted = self.runner.memory.executor.noted_experts();
        let tokens: usize = self.step.pieces.iter().map(|piece| piece.tokens.len()).sum();
        let Some(each) = noted.len().checked_div(tokens).filter(|each| *each > 0) else { return };
        let mut first = 0;
        for piece in &self.step.pieces {
            let after = first + piece.tokens.len() * each;
            if let Some(sequence) = self.sequences.get_mut(&piece.rank) {
                sequence.note_experts(piece.tokens.start, &noted[first..after], each);
            }
            first = after;
        }
    }

    /// Whether a row is that of a guess which the token just taken has proved right.
    fn was_right(&mut self, row: usize) -> bool {
        let Some(&Row { rank, position, guess: Some(guess) }) = self.runner.rows.get(row) else {
            return false;
        };
        let right = self.sequences.get(&rank).is_some_and(|s| s.tokens().get(position) == Some(&guess));
        if right {
            self.stats.accepted_drafts += 1;
            self.scheduler.advance(rank, 1);
        }
        right
    }

    /// Takes wrong guesses out of the caches again.
    fn forget_guesses(&mut self) {
        for piece in self.step.pieces.iter().filter(|piece| piece.drafts > 0) {
            if let Some(computed) = self.scheduler.computed(piece.rank) {
                self.runner.memory.executor.slots_mut().truncate(piece.slot, computed);
            }
        }
    }

    fn take_reading(&mut self, Row { rank, position, .. }: Row, reading: Reading) {
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
                if let (Some(computed), Some(sequence)) =
                    (self.scheduler.computed(rank), self.sequences.get(&rank))
                {
                    self.runner.memory.note(rank, sequence.tokens(), computed, true);
                }
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
        self.scheduler.remove(rank, &mut self.runner.memory.room(&self.sequences));
        self.sequences.remove(&rank)
    }

    fn publish_stats(&mut self) {
        self.stats.running = self.scheduler.running();
        self.stats.waiting = self.scheduler.waiting() + self.hold.arrived.len();
        self.stats.paused = !self.hold.admits();
        self.runner.memory.describe(&mut self.stats);
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
