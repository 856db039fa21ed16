//! The steps of the [module documentation](super) in plain f64, with a full sort.

use super::SamplingParams;

/// The distribution a token is drawn from: probabilities of all ids, `[vocab]`, zero for those cut off.
/// Greedy sampling is a distribution with a single one.
///
/// `prompt` and `answer` are the tokens so far; `may_sample` says which ids the constraints leave. `None` if
/// they leave none.
pub fn distribution(
    logits: &[f32],
    params: &SamplingParams,
    prompt: &[u32],
    answer: &[u32],
    may_sample: impl Fn(u32) -> bool,
) -> Option<Vec<f64>> {
    let adjusted = adjusted(logits, params, prompt, answer);
    let mut order: Vec<usize> = (0..logits.len()).filter(|&id| may_sample(id as u32)).collect();
    order.retain(|&id| adjusted[id] > f64::NEG_INFINITY);
    // A stable sort: equal logits stay in order of id.
    order.sort_by(|&a, &b| adjusted[b].total_cmp(&adjusted[a]));
    let &best = order.first()?;
    let temperature = f64::from(params.temperature);
    if temperature == 0.0 {
        order.truncate(1);
    } else if params.top_k > 0 {
        order.truncate(params.top_k);
    }
    let scale = if temperature == 0.0 { 1.0 } else { temperature };
    let weight = |id: usize| ((adjusted[id] - adjusted[best]) / scale).exp();
    let mass: f64 = order.iter().map(|&id| weight(id)).sum();
    if params.top_p < 1.0 {
        let mut reached = 0.0;
        let kept = order.iter().take_while(|&&id| {
            let keep = reached < f64::from(params.top_p) * mass;
            reached += weight(id);
            keep
        });
        order.truncate(kept.count());
    }
    order.retain(|&id| weight(id) >= f64::from(params.min_p));
    let mass: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for id in order {
        probabilities[id] = weight(id) / mass;
    }
    Some(probabilities)
}

/// Logits after penalties and biases.
fn adjusted(logits: &[f32], params: &SamplingParams, prompt: &[u32], answer: &[u32]) -> Vec<f64> {
    let adjust = |(id, &logit): (usize, &f32)| {
        let is_id = |other: &&u32| **other as usize == id;
        let count = answer.iter().filter(is_id).count() as f64;
        let mut logit = f64::from(logit);
        if count > 0.0 || prompt.iter().any(|other| is_id(&other)) {
            let penalty = f64::from(params.repetition_penalty);
            logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
        }
        if count > 0.0 {
            logit -= count * f64::from(params.frequency_penalty) + f64::from(params.presence_penalty);
        }
        let biases = params.logit_bias.iter().filter(|(other, _)| *other as usize == id);
        logit + biases.map(|&(_, bias)| f64::from(bias)).sum::<f64>()
    };
    logits.iter().enumerate().map(adjust).collect()
}

/// Draws an id from a distribution with the number `u` in `[0, 1)`: the first at which the sum passes it.
pub fn draw(probabilities: &[f64], u: f64) -> Option<usize> {
    let mut sum = 0.0;
    probabilities.iter().position(|&probability| {
        sum += probability;
        sum > u
    })
}

/// `ln softmax(logits)[id]`.
pub fn logprob(logits: &[f32], id: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let difference = |logit: f32| f64::from(logit) - f64::from(max);
    let sum: f64 = logits.iter().map(|&logit| difference(logit).exp()).sum();
    difference(logits[id]) - sum.ln()
}
