//! A step of the model, and what its rows of logits say.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arges_kernels::sample::cuda::Rule;
use arges_kernels::sample::{SampleScratch, Sampled};
use arges_model::model::cuda::{Choice, Chosen};
use arges_model::{
    Batch, CachePlan, DeviceModel, Executor, ExecutorPlan, ForwardError, LogitRows, SequenceId, WorkspacePlan,
};

use crate::memory::{Memory, snapshots};
use crate::request::{EngineError, EngineOptions};
use crate::scheduler::{Rank, Step};
use crate::sequence::{RowError, RowReading, Sequence};
use crate::stats::MemoryPlan;

/// The model and everything a step of it needs.
pub(crate) struct Runner {
    pub memory: Memory,
    batch: Batch,
    /// Of the piece that is put into the batch.
    tokens: Vec<u32>,
    /// Room for so many.
    snapshots: usize,
    /// Whose the step's rows of logits are.
    pub rows: Vec<Row>,
    /// What was read from them; as many as there can be rows.
    pub readings: Vec<Mutex<Option<Reading>>>,
    /// One per thread of the pool.
    scratches: Vec<Mutex<SampleScratch>>,
    /// What a GPU is asked for; as many as there can be rows.
    wishes: Vec<Mutex<Wish>>,
    /// The tokens that it chose.
    chosen: Vec<Option<Sampled>>,
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
pub(crate) struct Row {
    pub rank: Rank,
    pub position: usize,
    /// The token there, if that is a guess.
    pub guess: Option<u32>,
}

pub(crate) type Reading = Result<RowReading, RowError>;

impl Runner {
    pub fn new(model: DeviceModel, sampleable: usize, options: &EngineOptions) -> Result<Self, EngineError> {
        let plan = ExecutorPlan {
            cache: CachePlan { max_sequences: options.max_sequences, max_tokens: options.max_tokens },
            workspace: WorkspacePlan {
                max_tokens: options.step_tokens,
                max_logit_rows: options.max_logit_rows,
            },
            snapshots: snapshots(&model, options.prefix_cache),
            exact: options.exact,
        };
        let (vocab_size, threads) = (model.config().vocab_size, model.cpu().pool().threads());
        let executor = Executor::new(model, plan).map_err(|error| EngineError::Cache(error.to_string()))?;
        Ok(Self {
            memory: Memory::new(executor, options.prefix_cache),
            batch: Batch::new(),
            tokens: Vec::with_capacity(options.step_tokens),
            snapshots: plan.snapshots.device + plan.snapshots.host,
            rows: Vec::with_capacity(options.max_logit_rows),
            readings: (0..options.max_logit_rows).map(|_| Mutex::new(None)).collect(),
            scratches: (0..threads).map(|_| Mutex::new(SampleScratch::new(vocab_size))).collect(),
            wishes: (0..options.max_logit_rows).map(|_| Mutex::default()).collect(),
            chosen: Vec::with_capacity(options.max_logit_rows),
            sampleable,
        })
    }

    pub fn memory_plan(&self) -> MemoryPlan {
        let executor = &self.memory.executor;
        MemoryPlan {
            weights: executor.model().weight_bytes(),
            cache: executor.cache_bytes(),
            snapshots: self.snapshots * executor.model().snapshot_bytes(),
            workspace: executor.workspace_bytes()
                + self.scratches.iter().map(|scratch| lock(scratch).bytes()).sum::<usize>(),
        }
    }

    /// Runs the step's pieces through the model. What is guessed of a sequence follows its tokens.
    pub fn forward(
        &mut self,
        step: &Step<SequenceId>,
        sequences: &HashMap<Rank, Sequence>,
    ) -> Result<(), ForwardError> {
        self.batch.clear();
        self.rows.clear();
        for piece in &step.pieces {
            let Range { start, end } = piece.tokens;
            let (sequence, known) = (&sequences[&piece.rank], end - piece.drafts);
            self.tokens.clear();
            self.tokens.extend_from_slice(&sequence.tokens()[start..known]);
            self.tokens.extend_from_slice(&sequence.drafts()[..piece.drafts]);
            self.batch.push(piece.slot, &self.tokens, piece.rows);
            let with_logits = match piece.rows {
                LogitRows::None => end..end,
                LogitRows::Last => end - 1..end,
                LogitRows::All => start..end,
            };
            self.rows.extend(with_logits.map(|position| Row {
                rank: piece.rank,
                position,
                guess: (position >= known).then(|| self.tokens[position - start]),
            }));
        }
        let Self { memory, batch, rows, wishes, chosen, sampleable, .. } = self;
        let executor = &mut memory.executor;
        executor.note_experts(step.pieces.iter().any(|piece| sequences[&piece.rank].wants_experts()));
        let wishes = &mut wishes[..rows.len()];
        wishes.iter_mut().for_each(|wish| wish.get_mut().unwrap_or_else(PoisonError::into_inner).rule = None);
        if executor.chooses() {
            executor.model().cpu().pool().run(rows.len(), |task, _| {
                let Row { rank, position, guess } = rows[task];
                // What comes after a guess may depend on whether it was right.
                if guess.is_none() {
                    let Wish { rule, mask } = &mut *lock(&wishes[task]);
                    *rule = sequences[&rank].device_rule(position, mask);
                }
            });
        }
        let wishes: Vec<_> =
            wishes.iter_mut().map(|wish| &*wish.get_mut().unwrap_or_else(PoisonError::into_inner)).collect();
        let choices: Vec<_> = wishes.iter().map(|wish| wish.choice()).collect();
        let (_, Chosen { tokens, .. }) = executor.forward_choosing(batch, *sampleable, &choices)?;
        chosen.clear();
        chosen.extend(tokens.iter().copied());
        Ok(())
    }

    /// Reads some rows of the last step's logits, of different sequences if they are guesses.
    pub fn read(&self, due: &[usize], sequences: &HashMap<Rank, Sequence>) {
        let Self { memory, rows, readings, scratches, chosen, .. } = self;
        let (model, logits) = (memory.executor.model(), memory.executor.logits());
        let vocab_size = model.config().vocab_size;
        model.cpu().pool().run(due.len(), |task, thread| {
            let row = due[task];
            let Row { rank, position, .. } = rows[row];
            let Some(sequence) = sequences.get(&rank) else { return };
            let reading = match chosen.get(row).copied().flatten() {
                Some(token) => Ok(Sequence::device_reading(token)),
                None => {
                    let logits = &logits[row * vocab_size..(row + 1) * vocab_size];
                    sequence.read_row(position, logits, &mut lock(&scratches[thread]))
                }
            };
            *lock(&readings[row]) = Some(reading);
        });
    }
}

/// What was locked by one that panicked is written anew before it is read, so nothing is lost by going on.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
