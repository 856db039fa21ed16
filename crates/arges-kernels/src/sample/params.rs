//! What a request may ask of sampling.

/// How the next token of one sequence is chosen. [`SamplingParams::default`] samples from the model's own
/// distribution (temperature 1, nothing cut off); the steps and their order are in the
/// [module documentation](super).
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 is greedy (ties go to the lower id).
    pub temperature: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keeps tokens at least this many times as likely as the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Subtracted from a token's logit once for every time it was generated (OpenAI).
    pub frequency_penalty: f32,
    /// Subtracted from the logit of a token that was generated at least once (OpenAI).
    pub presence_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the answer (Hugging Face);
    /// 1 changes nothing.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens. An id named twice is biased twice.
    pub logit_bias: Vec<(u32, f32)>,
    /// Seed of the generator; equal seeds give equal tokens. `None` lets the engine draw one.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: None,
        }
    }
}

/// A sampling parameter outside its range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} {reason}")]
pub struct SamplingParamError {
    /// Field of [`SamplingParams`].
    pub name: &'static str,
    /// What was wrong with it, as the end of a sentence that starts with the name.
    pub reason: String,
}

impl SamplingParams {
    /// Greedy decoding: temperature 0, nothing else.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// The first field out of its range, and how.
    pub fn validate(&self) -> Result<(), SamplingParamError> {
        let check = |ok: bool, name: &'static str, value: f32, range: &str| {
            if ok {
                Ok(())
            } else {
                Err(SamplingParamError { name, reason: format!("must be {range}, not {value}") })
            }
        };
        let at_least_0 = |value: f32| value.is_finite() && value >= 0.0;
        check(
            at_least_0(self.temperature),
            "temperature",
            self.temperature,
            "a finite number of at least 0",
        )?;
        check(self.top_p > 0.0 && self.top_p <= 1.0, "top_p", self.top_p, "above 0 and at most 1")?;
        check((0.0..=1.0).contains(&self.min_p), "min_p", self.min_p, "between 0 and 1")?;
        check(
            self.frequency_penalty.is_finite(),
            "frequency_penalty",
            self.frequency_penalty,
            "a finite number",
        )?;
        check(
            self.presence_penalty.is_finite(),
            "presence_penalty",
            self.presence_penalty,
            "a finite number",
        )?;
        let repetition = self.repetition_penalty;
        check(
            repetition.is_finite() && repetition > 0.0,
            "repetition_penalty",
            repetition,
            "a finite number above 0",
        )?;
        for &(_, bias) in &self.logit_bias {
            check(bias.is_finite(), "logit_bias", bias, "finite numbers")?;
        }
        Ok(())
    }

    /// Whether a penalty needs the tokens seen so far.
    pub(crate) fn has_penalties(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}
