//! Choice of tokens on a GPU, so that rows of logits need not travel to the host.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::{SampleError, Sampled};
use crate::device::cuda::{Argument, Buffer, Cuda, CudaError, Kernel, LaunchShape, Pinned, Source};

/// The kernels.
pub const SOURCE: Source = Source {
    name: "sample/choose.cu",
    text: concat!(include_str!("log_sum.cuh"), include_str!("choose.cu")),
};

/// Blocks that share a row, and threads of each, as `log_sum.cuh` has them.
const PARTS: usize = 16;
pub(crate) const PART_THREADS: usize = 512;
/// Bytes of what the device knows of a part: a logit, a token, a sum in f64 with its scale, and a flag.
const PART_BYTES: usize = 32;
/// Threads that draw from a row, and bytes of the histogram that finds where to cut: 256 bins for each lane of a warp.
const DRAW_THREADS: usize = 1024;
const HISTOGRAM_BYTES: usize = 256 * 32 * 8;
/// What the kernel writes for a row from which nothing may be chosen.
const NOTHING_ALLOWED: i32 = -1;

/// How a row's token is chosen: what [`super::SamplingParams`] says but for penalties and biases.
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Rule {
    uniform: f64,
    temperature: f32,
    top_p: f32,
    min_p: f32,
    top_k: i32,
    mask: i32,
    token: i32,
}

impl Rule {
    /// The largest, the lower id among equals.
    pub fn largest() -> Self {
        Self { uniform: 0.0, temperature: 0.0, top_p: 1.0, min_p: 0.0, top_k: 0, mask: -1, token: -1 }
    }

    /// This token, of which only the log-probability is wanted.
    pub fn given(token: u32) -> Self {
        Self { token: token.cast_signed(), ..Self::largest() }
    }

    /// A draw with the number `uniform` in `[0, 1)`, with parameters as of [`super::SamplingParams`].
    pub fn draw(uniform: f64, temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Self {
        let top_k = i32::try_from(top_k).unwrap_or(0);
        Self { uniform, temperature, top_p, min_p, top_k, ..Self::largest() }
    }
}

/// The compiled kernels for one vocabulary, with room for some rows at a time.
pub struct DeviceSampler {
    cuda: Arc<Cuda>,
    vocabulary: usize,
    parts: Kernel,
    join: Kernel,
    draw: Kernel,
    scratch: Buffer<u8>,
    host_rules: Pinned<Rule>,
    rules: Buffer<Rule>,
    /// Masks of the rows that have one, one after the other.
    host_masks: Pinned<u32>,
    masks: Buffer<u32>,
    masks_used: usize,
    tokens: Buffer<i32>,
    logprobs: Buffer<f32>,
    host_tokens: Pinned<i32>,
    host_logprobs: Pinned<f32>,
    /// Rows of the last run.
    rows: usize,
}

impl DeviceSampler {
    /// Compiles them, and takes memory for `rows` rows.
    ///
    /// # Errors
    /// When that fails.
    pub fn new(cuda: &Arc<Cuda>, vocabulary: usize, rows: usize) -> Result<Self, CudaError> {
        let module = cuda.module(SOURCE, &[]);
        let mask_words = rows * vocabulary.div_ceil(32);
        Ok(Self {
            cuda: Arc::clone(cuda),
            vocabulary,
            parts: module.kernel("choose_parts")?,
            join: module.kernel("choose_join")?,
            draw: module.kernel("choose_draw")?,
            scratch: Buffer::zeroed(cuda, rows * PARTS * PART_BYTES)?,
            host_rules: Pinned::zeroed(cuda, rows)?,
            rules: Buffer::zeroed(cuda, rows)?,
            host_masks: Pinned::zeroed(cuda, mask_words)?,
            masks: Buffer::zeroed(cuda, mask_words)?,
            masks_used: 0,
            tokens: Buffer::zeroed(cuda, rows)?,
            logprobs: Buffer::zeroed(cuda, rows)?,
            host_tokens: Pinned::zeroed(cuda, rows)?,
            host_logprobs: Pinned::zeroed(cuda, rows)?,
            rows: 0,
        })
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.scratch.bytes()
            + self.rules.bytes()
            + self.masks.bytes()
            + self.tokens.bytes()
            + self.logprobs.bytes()
    }

    /// Says how the tokens of the next rows are to be chosen, each with the mask of tokens that may be, where there is
    /// one: bit `id % 32` of word `id / 32` is that of `id`, and ids past its end may not. No copy to the device may be
    /// under way.
    ///
    /// # Panics
    /// When there is no room for so many rows.
    pub fn set_rules<'a>(&mut self, rules: impl Iterator<Item = (Rule, Option<&'a [u32]>)>) {
        let words = self.vocabulary.div_ceil(32);
        (self.rows, self.masks_used) = (0, 0);
        for (mut rule, mask) in rules {
            if let Some(mask) = mask {
                rule.mask = self.masks_used as i32;
                let to = &mut self.host_masks.as_mut_slice()[self.masks_used * words..][..words];
                let given = mask.len().min(words);
                to[..given].copy_from_slice(&mask[..given]);
                to[given..].fill(0);
                self.masks_used += 1;
            }
            self.host_rules.as_mut_slice()[self.rows] = rule;
            self.rows += 1;
        }
    }

    /// Puts into the stream the choice of a token below id `sampleable` from each row of `logits[rows, vocabulary]`, by
    /// the rules set last. When the stream is done, [`Self::chosen`] has them.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// When shapes do not agree.
    pub fn run(&mut self, logits: &Buffer<f32>, sampleable: usize) -> Result<(), CudaError> {
        let rows = self.rows;
        assert!(logits.len() >= rows * self.vocabulary && sampleable <= self.vocabulary, "rows of logits");
        if rows == 0 {
            return Ok(());
        }
        let words = self.vocabulary.div_ceil(32);
        self.rules.copy_from_pinned(0, &self.host_rules, rows)?;
        self.masks.copy_from_pinned(0, &self.host_masks, self.masks_used * words)?;
        let rules = &self.host_rules.as_slice()[..rows];
        let draws = rules.iter().any(|rule| rule.temperature != 0.0 && rule.token < 0);
        for rule in rules {
            let vocabulary = self.vocabulary as i64;
            assert!(i64::from(rule.token) < vocabulary, "token {} of {vocabulary}", rule.token);
        }
        let logits = Argument::Pointer(logits.address(0));
        let vocabulary = Argument::I32(self.vocabulary as i32);
        let allowed = [
            Argument::I32(sampleable as i32),
            Argument::Pointer(self.rules.address(0)),
            Argument::Pointer(self.masks.address(0)),
            Argument::I32(words as i32),
        ];
        let parts = Argument::Pointer(self.scratch.address(0));
        let results =
            [Argument::Pointer(self.tokens.address(0)), Argument::Pointer(self.logprobs.address(0))];
        let shape = LaunchShape::grid(PARTS, rows, 1, PART_THREADS).overlap();
        let [sampleable, rules, masks, words] = allowed;
        let arguments = [logits, vocabulary, sampleable, rules, masks, words, parts];
        // SAFETY: here and below, the kernels' arguments, in order; there are `rows` rows of logits, rules and results,
        // scratch for each part of them, and a mask for every index that the rules hold.
        unsafe { self.cuda.launch(&self.parts, shape, &arguments)? };
        let count = Argument::I32(rows as i32);
        let arguments = [logits, vocabulary, rules, parts, results[0], results[1], count];
        // A warp a row.
        let shape = LaunchShape::new(rows.div_ceil(4), 128).overlap();
        // SAFETY: see above.
        unsafe { self.cuda.launch(&self.join, shape, &arguments)? };
        if draws {
            let arguments =
                [logits, vocabulary, sampleable, rules, masks, words, parts, results[0], results[1]];
            let shape = LaunchShape::new(rows, DRAW_THREADS).shared(HISTOGRAM_BYTES).overlap();
            // SAFETY: see above.
            unsafe { self.cuda.launch(&self.draw, shape, &arguments)? };
        }
        self.tokens.read_pinned(&mut self.host_tokens, rows)?;
        self.logprobs.read_pinned(&mut self.host_logprobs, rows)
    }

    /// What was chosen from row `row` of the last run, once the stream is done.
    ///
    /// # Errors
    /// When a logit is no number, of which `id` is then not known and told as the vocabulary's size, or no token may be
    /// chosen.
    pub fn chosen(&self, row: usize) -> Result<Sampled, SampleError> {
        let logprob = self.host_logprobs.as_slice()[row];
        match self.host_tokens.as_slice()[row] {
            id if id >= 0 => Ok(Sampled { id: id.cast_unsigned(), logprob }),
            NOTHING_ALLOWED => Err(SampleError::NothingAllowed),
            _ => Err(SampleError::NotANumber { id: self.vocabulary, logit: f32::NAN }),
        }
    }
}
