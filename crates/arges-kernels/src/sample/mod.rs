//! Choice of the next token from one row of logits `[vocab]`.
//!
//! Steps, in this order, each skipped at its neutral value:
//! 1. Repetition penalty (Keskar et al., "CTRL", 2019, as in Hugging Face): logits of tokens in the prompt or
//!    the answer are divided by it when positive and multiplied when negative.
//! 2. Frequency and presence penalties (OpenAI): `count * frequency + (count > 0) * presence` is subtracted,
//!    counts being of generated tokens alone.
//! 3. Logit bias is added.
//! 4. Tokens that are forbidden, not in the allowed mask, or at or above the sampleable limit are removed.
//! 5. Temperature 0: the largest logit, the lower id among equals. Otherwise logits are divided by it.
//! 6. Top-k: the `k` largest remain.
//! 7. Top-p (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020): of the distribution
//!    renormalised after top-k, the fewest most likely tokens whose probabilities reach `p` remain.
//! 8. Min-p (Nguyen et al., "Turning Up the Heat", 2024): tokens less likely than `min_p` times the most
//!    likely one are removed.
//! 9. A token is drawn from what remains by inverting the cumulative distribution in ascending order of id.
//!
//! Equal logits are ordered by id throughout. The one random number of a draw is a function of the seed and
//! the token's position (Philox, Salmon et al. 2011), so a sequence gets the same tokens whatever runs beside
//! it. Log-probabilities given out are of the raw distribution over the whole row, before any of these steps.

mod cpu;
pub mod cuda;
#[cfg(test)]
mod cuda_tests;
mod logprob;
mod params;
mod philox;
pub mod reference;
mod select;
#[cfg(test)]
mod tests;
mod vector;

pub use cpu::{RowConstraints, SampleScratch, Sampler};
pub use logprob::RowLogprobs;
pub use params::{SamplingParamError, SamplingParams};
pub use philox::{philox4x32_10, uniform};

/// A chosen token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampled {
    /// The token.
    pub id: u32,
    /// Its natural log-probability under the raw distribution of the row.
    pub logprob: f32,
}

/// A row from which no token can be chosen.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A logit that is NaN or positive infinity.
    #[error("the logit of token {id} is {logit}")]
    NotANumber {
        /// Index in the row.
        id: usize,
        /// Its value.
        logit: f32,
    },
    /// Every token is masked, forbidden or impossible.
    #[error("no token is allowed")]
    NothingAllowed,
}
