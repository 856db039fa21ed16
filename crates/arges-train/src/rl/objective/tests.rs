//! The gradient against finite differences of what the papers write down, in f64 and from logits on; and the mistakes
//! that were made elsewhere.

use super::*;

const ALGORITHMS: [Algorithm; 4] = [Algorithm::Cispo, Algorithm::Grpo, Algorithm::Dapo, Algorithm::Reinforce];

/// Responses of two prompts over a vocabulary of 3. Each token has logits of its own, which are what is learned.
struct Case {
    /// Prompt, advantage and length of each response.
    responses: Vec<(u64, f64, usize)>,
    /// `[tokens, 3]`.
    logits: Vec<f64>,
    sampled: Vec<usize>,
    /// Log-probabilities when they were sampled.
    rollout: Vec<f64>,
}

impl Case {
    /// Ratios from far below 1 to far above 5, at advantages of both signs.
    fn new() -> Self {
        let responses = vec![(7, 1.3, 5), (7, -0.8, 9), (9, 0.4, 2), (9, -2.0, 6), (9, 1.1, 4)];
        let tokens = responses.iter().map(|response| response.2).sum();
        let wave = |i: usize, speed: f64| (i as f64 * speed + 0.3).sin();
        let logits: Vec<f64> = (0..tokens * 3).map(|i| 1.5 * wave(i, 1.7)).collect();
        let sampled: Vec<usize> = (0..tokens).map(|i| (i * 7 + i / 3) % 3).collect();
        let mut case = Self { responses, logits, sampled, rollout: vec![0.0; tokens] };
        // Log-ratios of -1 to 2.4 in uneven steps, none on an edge of any clip.
        case.rollout =
            (0..tokens).map(|i| case.logprob(&case.logits, i) - 0.7 - 1.7 * wave(i, 0.9)).collect();
        case
    }

    fn logprob(&self, logits: &[f64], token: usize) -> f64 {
        let row = &logits[token * 3..][..3];
        row[self.sampled[token]] - row.iter().map(|x| x.exp()).sum::<f64>().ln()
    }

    fn ratio(&self, logits: &[f64], token: usize) -> f64 {
        (self.logprob(logits, token) - self.rollout[token]).exp()
    }

    /// Every response with its place among the responses and the tokens it has.
    fn walk(&self) -> impl Iterator<Item = (usize, f64, std::ops::Range<usize>)> {
        self.responses.iter().enumerate().scan(0, |start, (index, &(_, advantage, length))| {
            let first = std::mem::replace(start, *start + length);
            Some((index, advantage, first..*start))
        })
    }

    /// The code's gradient by the logits.
    fn gradient(&self, objective: &Objective, token: impl Fn(TokenLogprobs, f64, f64) -> f64) -> Vec<f64> {
        let responses: Vec<Response> =
            self.responses.iter().map(|&(group, _, tokens)| Response { group, tokens }).collect();
        let shares = objective.aggregation.shares(&responses);
        let mut gradient = vec![0.0; self.logits.len()];
        for (index, advantage, tokens) in self.walk() {
            for at in tokens {
                let (now, rollout) = (self.logprob(&self.logits, at) as f32, self.rollout[at] as f32);
                let slope = token(TokenLogprobs { now, old: rollout, rollout }, advantage, shares[index]);
                let row = &self.logits[at * 3..][..3];
                let sum: f64 = row.iter().map(|x| x.exp()).sum();
                for j in 0..3 {
                    let hit = f64::from(u8::from(j == self.sampled[at]));
                    gradient[at * 3 + j] = slope * (hit - row[j].exp() / sum);
                }
            }
        }
        gradient
    }

    /// The objective as its paper has it, of logits. What a paper detaches is a function of `at`, the fixed logits.
    fn paper(&self, algorithm: Algorithm, logits: &[f64], at: &[f64]) -> f64 {
        let mut value = 0.0;
        for (_, advantage, tokens) in self.walk() {
            for t in tokens.clone() {
                let (p, r, fixed) = (self.logprob(logits, t), self.ratio(logits, t), self.ratio(at, t));
                let ppo = |low: f64, high: f64| {
                    let bounded = r.max(1.0 - low).min(1.0 + high);
                    (r * advantage).min(bounded * advantage)
                };
                value += match algorithm {
                    Algorithm::Cispo => fixed.min(5.0) * advantage * p / self.group_tokens(t) / 2.0,
                    Algorithm::Grpo => ppo(0.2, 0.2) / tokens.len() as f64 / 5.0,
                    Algorithm::Dapo => ppo(0.2, 0.28) / 26.0,
                    Algorithm::Reinforce => advantage * p / 26.0,
                };
            }
        }
        value
    }

    /// Tokens of all responses to the prompt of a token.
    fn group_tokens(&self, token: usize) -> f64 {
        if token < 14 { 14.0 } else { 12.0 }
    }

    fn finite_differences(&self, algorithm: Algorithm) -> Vec<f64> {
        const STEP: f64 = 1e-6;
        let moved = |i: usize, by: f64| {
            let mut logits = self.logits.clone();
            logits[i] += by;
            self.paper(algorithm, &logits, &self.logits)
        };
        (0..self.logits.len()).map(|i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP)).collect()
    }
}

/// Whether gradients agree to what f32 log-probabilities allow.
fn agree(got: &[f64], expected: &[f64]) -> bool {
    let scale = expected.iter().fold(0.0f64, |most, x| most.max(x.abs()));
    got.iter().zip(expected).all(|(got, expected)| (got - expected).abs() < 1e-6 * scale)
}

#[test]
fn gradients_of_all_algorithms_are_the_slopes_of_what_their_papers_write() {
    let case = Case::new();
    for algorithm in ALGORITHMS {
        let objective = algorithm.objective();
        let got = case.gradient(&objective, |p, a, share| objective.gradient(p, a, share));
        assert!(agree(&got, &case.finite_differences(algorithm)), "{algorithm:?}");
    }
}

#[test]
fn the_case_reaches_every_branch() {
    let case = Case::new();
    let terms = |algorithm: Algorithm| -> Vec<(f64, TokenTerm)> {
        let objective = algorithm.objective();
        let term = |t: usize, advantage| {
            let (now, rollout) = (case.logprob(&case.logits, t) as f32, case.rollout[t] as f32);
            (advantage, objective.token(TokenLogprobs { now, old: rollout, rollout }, advantage))
        };
        case.walk().flat_map(|(_, a, tokens)| tokens.map(move |t| (t, a))).map(|(t, a)| term(t, a)).collect()
    };
    let cispo = terms(Algorithm::Cispo);
    assert!(cispo.iter().any(|(_, term)| term.clipped) && cispo.iter().all(|(_, term)| !term.masked));
    assert!(cispo.iter().any(|(_, term)| term.ratio < 1.0));
    for algorithm in [Algorithm::Grpo, Algorithm::Dapo] {
        let masked = |sign: f64| terms(algorithm).iter().any(|(a, term)| a * sign > 0.0 && term.masked);
        let beyond = |sign: f64, is: fn(f64) -> bool| {
            terms(algorithm).iter().any(|(a, term)| a * sign > 0.0 && is(term.ratio) && !term.masked)
        };
        assert!(masked(1.0) && masked(-1.0));
        // Where the clip does not hold a token back, however far it has gone the other way.
        assert!(beyond(1.0, |r| r < 0.8) && beyond(-1.0, |r| r > 1.28));
    }
}

#[test]
fn a_floor_of_1_is_caught() {
    let case = Case::new();
    let floor = Objective { is_min: 1.0, ..Algorithm::Cispo.objective() };
    let got = case.gradient(&floor, |p, a, share| floor.gradient(p, a, share));
    assert!(!agree(&got, &case.finite_differences(Algorithm::Cispo)));
}

#[test]
fn leaving_out_the_log_probability_is_caught() {
    // `sg(clip(r)) A` alone is a constant: nothing is learned from it.
    let case = Case::new();
    let objective = Algorithm::Cispo.objective();
    let got = case.gradient(&objective, |_, _, _| 0.0);
    assert!(!agree(&got, &case.finite_differences(Algorithm::Cispo)));
    assert!(case.finite_differences(Algorithm::Cispo).iter().all(|slope| *slope != 0.0));
}

#[test]
fn grpo_drops_a_token_that_cispo_keeps() {
    // A rare token that opens a new way of thinking, and has become twice as likely.
    let logprobs = TokenLogprobs { now: (0.02f32).ln(), old: (0.01f32).ln(), rollout: (0.01f32).ln() };
    let slope = |algorithm: Algorithm, advantage| algorithm.objective().gradient(logprobs, advantage, 1.0);
    assert_eq!(slope(Algorithm::Grpo, 1.0), 0.0);
    assert_eq!(slope(Algorithm::Dapo, 1.0), 0.0);
    assert!((slope(Algorithm::Cispo, 1.0) - 2.0).abs() < 1e-6);
    // With a negative advantage none is dropped.
    assert!((slope(Algorithm::Grpo, -1.0) + 2.0).abs() < 1e-6);
    assert!((slope(Algorithm::Cispo, -1.0) + 2.0).abs() < 1e-6);
}

#[test]
fn bounds_are_absolute_and_differences_are_clamped_before_the_exponential() {
    let token = |objective: Objective, now: f32| {
        objective.token(TokenLogprobs { now, old: 0.0, rollout: 0.0 }, 1.0).weight
    };
    let cispo = Algorithm::Cispo.objective();
    assert!((token(cispo, 5.5f32.ln()) - 5.0).abs() < 1e-6);
    assert!((token(cispo, 4.9f32.ln()) - 4.9).abs() < 1e-5);
    assert!((token(cispo, 0.1f32.ln()) - 0.1).abs() < 1e-6);
    let open = Objective { is_max: f64::INFINITY, ..cispo };
    assert_eq!(token(open, 300.0), 20f64.exp());
    assert_eq!(token(open, -300.0), (-20f64).exp());
}

#[test]
fn the_anchor_decides_the_ratio_and_the_correction_is_truncated() {
    let logprobs = TokenLogprobs { now: -1.0, old: -1.5, rollout: -2.5 };
    let objective = Algorithm::Cispo.objective();
    let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
    assert!(close(objective.token(logprobs, 1.0).weight, 1.5f64.exp()));
    let old = Objective { anchor: Anchor::Old, ..objective };
    assert!(close(old.token(logprobs, 1.0).weight, 0.5f64.exp()));
    let corrected = Objective { rollout_correction: Some(2.0), ..old };
    assert!(close(corrected.token(logprobs, 1.0).weight, 0.5f64.exp() * 2.0));
    let loose = Objective { rollout_correction: Some(10.0), ..old };
    assert!(close(loose.token(logprobs, 1.0).weight, 1.5f64.exp()));
}

#[test]
fn shares_add_up_to_1_and_weigh_what_they_are_named_for() {
    let response = |group, tokens| Response { group, tokens };
    let responses = [response(1, 10), response(1, 30), response(2, 5), response(2, 0), response(1, 20)];
    let total = |aggregation: Aggregation, group| -> f64 {
        let shares = aggregation.shares(&responses);
        responses.iter().zip(shares).filter(|(r, _)| r.group == group).map(|(r, w)| r.tokens as f64 * w).sum()
    };
    let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
    for (aggregation, of_first) in [
        (Aggregation::Token, 60.0 / 65.0),
        (Aggregation::Sample, 0.75),
        (Aggregation::Prompt, 0.5),
        (Aggregation::Combined, 0.5),
    ] {
        assert!(close(total(aggregation, 1), of_first) && close(total(aggregation, 2), 1.0 - of_first));
    }
    let prompt = Aggregation::Prompt.shares(&responses);
    assert!(close(prompt[0] * 10.0, prompt[1] * 30.0));
    let combined = Aggregation::Combined.shares(&responses);
    assert!(close(combined[0], combined[1]) && combined[3] == 0.0);
}
