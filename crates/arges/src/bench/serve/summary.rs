//! Figures of a load: percentiles, rates, goodput, errors.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::client::Outcome;
use super::measure::Measured;

/// What a request must keep to in order to count as good; all times in seconds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Objectives {
    pub first_token: Option<f64>,
    /// Mean time between the tokens of a request.
    pub per_token: Option<f64>,
    pub whole: Option<f64>,
}

impl Objectives {
    pub fn any(&self) -> bool {
        self.first_token.is_some() || self.per_token.is_some() || self.whole.is_some()
    }

    fn are_met(&self, outcome: &Outcome) -> bool {
        let within = |limit: Option<f64>, value: Option<f64>| {
            limit.is_none_or(|limit| value.is_none_or(|value| value <= limit))
        };
        outcome.error.is_none()
            && within(self.first_token, outcome.first)
            && within(self.per_token, outcome.per_token())
            && within(self.whole, Some(outcome.whole))
    }
}

/// Values in ascending order.
#[derive(Debug, Clone, Default)]
pub struct Sorted(Vec<f64>);

impl Sorted {
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }

    /// The least value that at least `share` of all are no larger than.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let rank = (share * self.0.len() as f64).ceil().max(1.0) as usize;
        self.0.get(rank - 1).copied()
    }

    fn json(&self) -> Value {
        if self.0.is_empty() {
            return Value::Null;
        }
        json!({
            "mean": self.0.iter().sum::<f64>() / self.0.len() as f64,
            "p50": self.percentile(0.50),
            "p90": self.percentile(0.90),
            "p99": self.percentile(0.99),
            "max": self.0.last(),
        })
    }
}

/// The figures of one load; times in seconds.
#[derive(Debug)]
pub struct Summary {
    pub first_token: Sorted,
    pub between_tokens: Sorted,
    pub whole: Sorted,
    pub json: Value,
}

pub fn summary(measured: &Measured, objectives: &Objectives) -> Summary {
    let good: Vec<&Outcome> = measured.outcomes.iter().filter(|outcome| outcome.error.is_none()).collect();
    let sorted = |value: fn(&Outcome) -> Option<f64>| {
        Sorted::new(good.iter().filter_map(|outcome| value(outcome)).collect())
    };
    let first_token = sorted(|outcome| outcome.first);
    let per_token = sorted(Outcome::per_token);
    let whole = sorted(|outcome| Some(outcome.whole));
    let between_tokens = Sorted::new(good.iter().flat_map(|outcome| outcome.gaps.iter().copied()).collect());
    let sum = |value: fn(&Outcome) -> u64| good.iter().map(|outcome| value(outcome)).sum::<u64>();
    let (prompt, output, cached) = (
        sum(|outcome| outcome.prompt_tokens),
        sum(|outcome| outcome.tokens),
        sum(|outcome| outcome.cached_tokens),
    );
    let seconds = measured.seconds;
    let met = measured.outcomes.iter().filter(|outcome| objectives.are_met(outcome)).count();
    let goodput = objectives.any().then(|| {
        json!({
            "requests_per_second": met as f64 / seconds,
            "share": met as f64 / measured.outcomes.len().max(1) as f64,
        })
    });
    let json = json!({
        "seconds": seconds,
        "requests": { "sent": measured.outcomes.len(), "answered": good.len() },
        "errors": errors(&measured.outcomes),
        "requests_per_second": good.len() as f64 / seconds,
        "output_tokens_per_second": output as f64 / seconds,
        "total_tokens_per_second": (prompt + output) as f64 / seconds,
        "tokens": {
            "prompt": prompt,
            "cached_prompt": cached,
            "output": output,
            "counted_by": if good.iter().all(|outcome| outcome.is_counted_by_server) { "server" } else { "chunks" },
        },
        "time_to_first_token_seconds": first_token.json(),
        "inter_token_latency_seconds": between_tokens.json(),
        "time_per_output_token_seconds": per_token.json(),
        "end_to_end_seconds": whole.json(),
        "goodput": goodput,
        "generator": {
            "cpu_seconds": measured.client_cpu_seconds,
            "share_of_one_core": measured.client_cpu_seconds.map(|cpu| cpu / seconds),
            "latest_start_seconds": measured.late,
        },
    });
    Summary { first_token, between_tokens, whole, json }
}

/// Failed requests by kind, with the message of the first of each.
fn errors(outcomes: &[Outcome]) -> Value {
    let mut kinds: BTreeMap<&str, (u64, &str)> = BTreeMap::new();
    for failure in outcomes.iter().filter_map(|outcome| outcome.error.as_ref()) {
        kinds.entry(&failure.kind).or_insert((0, &failure.message)).0 += 1;
    }
    kinds
        .into_iter()
        .map(|(kind, (count, first))| (kind.to_owned(), json!({"count": count, "first": first})))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::client::Failure;
    use super::*;

    #[test]
    fn percentiles_are_values_that_came() {
        let values = Sorted::new((1..=200).rev().map(f64::from).collect());
        let percentiles = [0.0, 0.5, 0.99, 1.0].map(|share| values.percentile(share).unwrap());
        assert_eq!(percentiles, [1.0, 100.0, 198.0, 200.0]);
        assert_eq!(Sorted::default().percentile(0.5), None);
    }

    fn answered(first: f64, gaps: &[f64]) -> Outcome {
        Outcome {
            first: Some(first),
            gaps: gaps.to_vec(),
            whole: first + gaps.iter().sum::<f64>(),
            prompt_tokens: 10,
            tokens: gaps.len() as u64 + 1,
            is_counted_by_server: true,
            ..Outcome::default()
        }
    }

    #[test]
    fn errors_are_counted_by_kind_and_good_requests_by_all_objectives() {
        let failed = |kind: &str, message: &str| Outcome {
            error: Some(Failure { kind: kind.to_owned(), message: message.to_owned() }),
            ..Outcome::default()
        };
        let outcomes = vec![
            answered(0.1, &[0.01, 0.03]),
            answered(0.1, &[0.2, 0.2]),
            answered(3.0, &[0.01]),
            failed("HTTP 429", "full"),
            failed("HTTP 429", "full again"),
            failed("timeout", "late"),
        ];
        let measured = Measured { outcomes, seconds: 2.0, ..Measured::default() };
        let objectives = Objectives { first_token: Some(1.0), per_token: Some(0.05), whole: None };
        let json = summary(&measured, &objectives).json;
        assert_eq!(json["errors"]["HTTP 429"], json!({"count": 2, "first": "full"}));
        assert_eq!(json["errors"]["timeout"]["count"], 1);
        assert_eq!(json["goodput"], json!({"requests_per_second": 0.5, "share": 1.0 / 6.0}));
        assert_eq!(json["requests"], json!({"sent": 6, "answered": 3}));
        assert_eq!(json["output_tokens_per_second"], 4.0);
        assert_eq!(json["time_per_output_token_seconds"]["max"], 0.2);
        assert_eq!(json["inter_token_latency_seconds"]["p50"], 0.03);
        assert_eq!(summary(&measured, &Objectives::default()).json["goodput"], Value::Null);
    }
}
