//! The request fields that the APIs share, and their ranges.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::ops::RangeInclusive;

use arges_engine::{RepetitionStop, SamplingParams, StopConditions};
use serde::Deserialize;

use super::input::StopInput;
use crate::error::ApiError;
use crate::options::{GenerationDefaults, ServerOptions};

/// Answers one request may ask for, over all its prompts.
pub(crate) const MAX_CHOICES: usize = 128;
/// Alternatives per token a request may ask for.
pub(crate) const MAX_TOP_LOGPROBS: usize = 20;
/// Priorities lie between this and its negative.
const MAX_PRIORITY: i64 = 1_000_000;
const MAX_STOP_STRINGS: usize = 16;
const MAX_STOP_BYTES: usize = 4096;

/// Fields of both requests, as a client writes them. Numbers are read wide, so that a value out of range is
/// told apart from a value of the wrong type.
#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "a JSON object")]
pub(crate) struct SharedFields {
    pub model: Option<String>,
    pub n: Option<i64>,
    pub stream: Option<bool>,
    pub stream_options: Option<StreamOptions>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i64>,
    pub min_p: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub presence_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub logit_bias: Option<BTreeMap<String, f64>>,
    pub seed: Option<i64>,
    pub stop: Option<StopInput>,
    pub stop_token_ids: Option<Vec<u32>>,
    pub ignore_eos: Option<bool>,
    pub min_tokens: Option<i64>,
    pub return_token_ids: Option<bool>,
    /// Tokens of a run that ends the answer (an extension); 0 never does.
    pub repetition_stop: Option<i64>,
    /// Requests of lower values go first (an extension, as in vLLM).
    pub priority: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(expecting = "a JSON object")]
pub(crate) struct StreamOptions {
    include_usage: Option<bool>,
}

/// What the shared fields come to once they are known to be in range.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub sampling: SamplingParams,
    pub stop: StopConditions,
    /// Answers per prompt.
    pub n: usize,
    pub stream: bool,
    /// A last chunk with the usage, and `usage: null` in those before.
    pub include_usage: bool,
    /// Token ids beside the text (an extension, as in vLLM).
    pub return_token_ids: bool,
    /// Experts that served the tokens (an extension, of completions alone).
    pub return_experts: bool,
    /// That of the engine, where higher goes first.
    pub priority: i32,
}

impl SharedFields {
    /// Checks every field.
    ///
    /// # Errors
    /// 404 for a model that is not served, else 400 with the field named.
    pub fn validate(self, options: &ServerOptions) -> Result<Settings, ApiError> {
        if let Some(model) = self.model.as_deref().filter(|&model| model != options.model_name) {
            return Err(ApiError::model_not_found(model, &options.model_name));
        }
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            let message = "`stream_options` is only allowed when `stream` is true.";
            return Err(ApiError::invalid_param("stream_options", message));
        }
        Ok(Settings {
            n: in_range("n", self.n, 1..=MAX_CHOICES as i64)?.unwrap_or(1) as usize,
            stream,
            include_usage: self.stream_options.as_ref().and_then(|o| o.include_usage).unwrap_or(false),
            return_token_ids: self.return_token_ids.unwrap_or(false),
            return_experts: false,
            priority: -in_range("priority", self.priority, -MAX_PRIORITY..=MAX_PRIORITY)?.unwrap_or(0) as i32,
            sampling: self.sampling(&options.defaults)?,
            stop: self.stop_conditions(options)?,
        })
    }

    fn sampling(&self, defaults: &GenerationDefaults) -> Result<SamplingParams, ApiError> {
        let number = |name, value: Option<f64>, range, default: f32| {
            Ok::<f32, ApiError>(in_range(name, value, range)?.map_or(default, |value| value as f32))
        };
        // -1 is how vLLM's clients write "off".
        let top_k = in_range("top_k", self.top_k, -1..=i64::from(i32::MAX))?;
        Ok(SamplingParams {
            temperature: number("temperature", self.temperature, 0.0..=2.0, defaults.temperature)?,
            top_p: above_zero("top_p", self.top_p, 1.0)?.unwrap_or(defaults.top_p),
            top_k: top_k.map_or(defaults.top_k, |k| k.max(0) as usize),
            min_p: number("min_p", self.min_p, 0.0..=1.0, defaults.min_p)?,
            frequency_penalty: number("frequency_penalty", self.frequency_penalty, -2.0..=2.0, 0.0)?,
            presence_penalty: number("presence_penalty", self.presence_penalty, -2.0..=2.0, 0.0)?,
            repetition_penalty: above_zero("repetition_penalty", self.repetition_penalty, 10.0)?
                .unwrap_or(defaults.repetition_penalty),
            logit_bias: self.logit_bias.as_ref().map_or(Ok(Vec::new()), logit_bias)?,
            // Negative seeds are legal; only their being different matters.
            seed: self.seed.map(|seed| seed as u64),
        })
    }

    fn stop_conditions(self, options: &ServerOptions) -> Result<StopConditions, ApiError> {
        let repetition = match in_range("repetition_stop", self.repetition_stop, 0..=i64::from(u32::MAX))? {
            None => options.repetition_stop,
            Some(0) => None,
            Some(tokens) => Some(RepetitionStop { tokens: tokens as usize, ..RepetitionStop::default() }),
        };
        let strings = self.stop.unwrap_or_default().0;
        if strings.len() > MAX_STOP_STRINGS {
            let message = format!("At most {MAX_STOP_STRINGS} stop strings are supported.");
            return Err(ApiError::invalid_param("stop", message));
        }
        if strings.iter().any(String::is_empty) {
            return Err(ApiError::invalid_param("stop", "A stop string must not be empty."));
        }
        if strings.iter().any(|string| string.len() > MAX_STOP_BYTES) {
            let message = format!("A stop string must not be longer than {MAX_STOP_BYTES} bytes.");
            return Err(ApiError::invalid_param("stop", message));
        }
        Ok(StopConditions {
            strings,
            tokens: self.stop_token_ids.unwrap_or_default(),
            ignore_eos: self.ignore_eos.unwrap_or(false),
            min_tokens: in_range("min_tokens", self.min_tokens, 0..=i64::MAX)?.unwrap_or(0) as usize,
            repetition,
        })
    }
}

/// `value`, if it lies in `range`.
///
/// # Errors
/// 400 that names `param` and the range.
pub(crate) fn in_range<T: PartialOrd + Display + Copy>(
    param: &'static str,
    value: Option<T>,
    range: RangeInclusive<T>,
) -> Result<Option<T>, ApiError> {
    match value {
        Some(value) if !range.contains(&value) => Err(ApiError::invalid_param(
            param,
            format!("`{param}` must be between {} and {}, not {value}.", range.start(), range.end()),
        )),
        value => Ok(value),
    }
}

/// As [`in_range`], for `(0, max]`; a value too small for f32 counts as 0.
fn above_zero(param: &'static str, value: Option<f64>, max: f64) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if value as f32 <= 0.0 || value > max => Err(ApiError::invalid_param(
            param,
            format!("`{param}` must be above 0 and at most {max}, not {value}."),
        )),
        value => Ok(value.map(|value| value as f32)),
    }
}

fn logit_bias(bias: &BTreeMap<String, f64>) -> Result<Vec<(u32, f32)>, ApiError> {
    bias.iter()
        .map(|(key, &value)| {
            let id = key.parse().map_err(|_| {
                ApiError::invalid_param(
                    "logit_bias",
                    format!("`logit_bias` has the key {key:?}, which is not a token id."),
                )
            })?;
            in_range("logit_bias", Some(value), -100.0..=100.0)?;
            Ok((id, value as f32))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;
    use serde_json::{Value, json};

    fn validate(body: Value) -> Result<Settings, ApiError> {
        let fields: SharedFields = crate::extract::parse_json(body.to_string().as_bytes())?;
        fields.validate(&ServerOptions::new("served"))
    }

    #[test]
    fn a_request_that_says_nothing_gets_the_defaults() {
        let settings = validate(json!({})).unwrap();
        assert_eq!((settings.sampling.temperature, settings.sampling.top_p), (1.0, 0.95));
        assert_eq!((settings.sampling.top_k, settings.sampling.min_p), (0, 0.0));
        assert_eq!(settings.sampling.repetition_penalty, 1.0);
        assert_eq!((settings.n, settings.stream, settings.include_usage), (1, false, false));
        assert_eq!(settings.stop, StopConditions::default());
    }

    #[test]
    fn every_field_reaches_its_place() {
        let settings = validate(json!({
            "model": "served", "n": 3, "stream": true, "stream_options": {"include_usage": true},
            "temperature": 0, "top_p": 0.5, "top_k": 40, "min_p": 0.1, "frequency_penalty": -2,
            "presence_penalty": 2, "repetition_penalty": 1.5, "logit_bias": {"7": -100, "11": 2.5}, "seed": -1,
            "stop": "END", "stop_token_ids": [9], "ignore_eos": true, "min_tokens": 4, "return_token_ids": true,
            "priority": -3,
            "user": "nobody", "some_future_field": {"a": [1]},
        }))
        .unwrap();
        let sampling = &settings.sampling;
        assert_eq!((settings.n, settings.stream, settings.include_usage), (3, true, true));
        assert!(settings.return_token_ids);
        assert_eq!(settings.priority, 3);
        assert_eq!(
            (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p),
            (0.0, 0.5, 40, 0.1)
        );
        assert_eq!((sampling.frequency_penalty, sampling.presence_penalty), (-2.0, 2.0));
        assert_eq!((sampling.repetition_penalty, sampling.seed), (1.5, Some(u64::MAX)));
        let mut bias = sampling.logit_bias.clone();
        bias.sort_by_key(|&(id, _)| id);
        assert_eq!(bias, [(7, -100.0), (11, 2.5)]);
        assert_eq!(settings.stop.strings, ["END"]);
        assert_eq!((&settings.stop.tokens[..], settings.stop.ignore_eos), (&[9][..], true));
        assert_eq!(settings.stop.min_tokens, 4);
    }

    #[test]
    fn a_repetition_stop_is_the_requests_or_else_the_servers() {
        let mut options = ServerOptions::new("served");
        options.repetition_stop = Some(RepetitionStop::default());
        let stop = |tokens| {
            let fields = SharedFields { repetition_stop: tokens, ..SharedFields::default() };
            fields.validate(&options).unwrap().stop.repetition.map(|stop| stop.tokens)
        };
        assert_eq!((stop(None), stop(Some(0)), stop(Some(5))), (Some(3000), None, Some(5)));
    }

    #[test]
    fn null_is_the_same_as_nothing_said() {
        let said =
            validate(json!({"model": null, "n": null, "stop": null, "logit_bias": null, "seed": null}));
        assert_eq!(said, validate(json!({})));
    }

    #[test]
    fn a_value_out_of_range_or_of_the_wrong_type_is_named() {
        for (field, value) in [
            ("n", json!(0)),
            ("n", json!(129)),
            ("n", json!("two")),
            ("temperature", json!(-0.1)),
            ("temperature", json!(2.1)),
            ("temperature", json!("hot")),
            ("top_p", json!(0)),
            ("top_p", json!(1.01)),
            ("top_k", json!(-2)),
            ("min_p", json!(1.5)),
            ("frequency_penalty", json!(2.5)),
            ("presence_penalty", json!(-2.5)),
            ("repetition_penalty", json!(0)),
            ("logit_bias", json!({"x": 1})),
            ("logit_bias", json!({"1": 101})),
            ("logit_bias", json!([])),
            ("seed", json!(1.5)),
            ("stop", json!([""])),
            ("stop", json!(vec!["x"; 17])),
            ("stop", json!("x".repeat(5000))),
            ("min_tokens", json!(-1)),
            ("repetition_stop", json!(-1)),
            ("stream", json!("yes")),
            ("stream_options", json!({"include_usage": true})),
        ] {
            let error = validate(json!({ field: value })).expect_err(field);
            assert_eq!(error.param(), Some(field), "{value}: {error}");
            assert_eq!(error.status(), StatusCode::BAD_REQUEST);
        }
    }

    #[test]
    fn another_model_is_not_found() {
        let error = validate(json!({"model": "gpt-4"})).unwrap_err();
        assert_eq!((error.status(), error.code()), (StatusCode::NOT_FOUND, Some("model_not_found")));
        assert_eq!(error.param(), Some("model"));
    }
}
