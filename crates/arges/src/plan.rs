//! Sizes of an engine: from flags where they are given, else from the model and the free memory.

use anyhow::{Result, bail};
use arges_engine::{EngineOptions, PrefixCacheOptions};
use arges_kernels::matmul::Compute;
use arges_kernels::{lightning, softmax_attention};
use arges_model::{AttentionKind, Cache, Config};

use crate::args::EngineArgs;
use crate::failure::usage;

/// Requests that may wait.
const MAX_QUEUE: usize = 1024;
/// Cache for each sequence of a server, where nothing else is said.
const TOKENS_PER_SEQUENCE: usize = 8192;

/// States of earlier requests that are kept, for each sequence at once, where nothing else is said.
const STATES_PER_SEQUENCE: usize = 4;

/// Guesses of a sequence in a step, where nothing else is said.
pub const DRAFTS: usize = 8;

/// What a subcommand needs where flags say nothing.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// How long sequences get.
    pub context: Context,
    /// Sequences at once.
    pub sequences: usize,
    /// Tokens of a step.
    pub step_tokens: usize,
    /// Rows of logits of a step.
    pub logit_rows: usize,
}

/// How long sequences get, in tokens.
#[derive(Debug, Clone, Copy)]
pub enum Context {
    /// One sequence of a known prompt and as many tokens more.
    Known { prompt: usize, more: usize },
    /// As long as a conversation gets, up to this.
    UpTo(usize),
    /// Whatever clients ask for.
    Shared,
}

/// Bytes that caches take.
struct CacheCost {
    sequence: u64,
    /// A state that outlives its sequence.
    state: u64,
    page: u64,
}

impl CacheCost {
    fn of(config: &Config, compute: Compute) -> CacheCost {
        let heads = config.num_heads;
        let head_dim = config.head_dim;
        let layers = |kind| config.count(kind) as u64;
        let lightning = lightning::Shape { heads, head_dim };
        let state_layers = layers(AttentionKind::Lightning) * size_of::<f32>() as u64;
        let (kv_heads, rotary_dim) = (config.num_kv_heads, config.rotary_dim);
        let shape = softmax_attention::Shape { heads, kv_heads, head_dim, rotary_dim };
        let element = match compute {
            Compute::F32 => 4,
            Compute::Bf16 => 2,
        };
        CacheCost {
            sequence: state_layers * lightning.cache_len() as u64,
            state: state_layers * lightning.state_len() as u64,
            page: layers(AttentionKind::Softmax) * (shape.page_len() * element) as u64,
        }
    }

    fn bytes(&self, sequences: usize, tokens: usize) -> u64 {
        let pages = tokens.div_ceil(Cache::page_tokens()) as u64;
        self.sequence.saturating_mul(sequences as u64).saturating_add(self.page.saturating_mul(pages))
    }

    /// Tokens whose pages fit into `bytes`.
    fn tokens_in(&self, bytes: u64) -> usize {
        let pages = bytes.checked_div(self.page).unwrap_or(u64::MAX);
        usize::try_from(pages.saturating_mul(Cache::page_tokens() as u64)).unwrap_or(usize::MAX)
    }
}

/// Works out an engine's sizes. `free` is what memory there is beside the weights, in bytes, where it is known:
/// what is not asked for by a flag takes up to half of it.
///
/// # Errors
/// Sizes beyond the model or each other, a prompt that does not fit, and caches that memory cannot hold.
pub fn plan(
    config: &Config,
    compute: Compute,
    args: &EngineArgs,
    needs: Needs,
    free: Option<u64>,
) -> Result<EngineOptions> {
    let limit = config.max_position_embeddings;
    if let Some(asked) = args.context.filter(|asked| *asked > limit) {
        return Err(usage(format!(
            "--context {asked} is more than the {limit} tokens this model is made for"
        )));
    }
    if let (Some(context), Some(tokens)) = (args.context, args.kv_tokens)
        && context > tokens
    {
        return Err(usage(format!("--context {context} is more than --kv-tokens {tokens}")));
    }
    let cost = CacheCost::of(config, compute);
    let budget = free.map_or(u64::MAX, |free| free / 2);
    let fitting = usize::try_from((budget / 2).checked_div(cost.sequence).unwrap_or(u64::MAX));
    let max_sequences =
        args.max_sequences.unwrap_or_else(|| needs.sequences.min(fitting.unwrap_or(usize::MAX)).max(1));
    let states = match needs.context {
        // One sequence, and nothing after it.
        Context::Known { .. } => 0,
        _ => cost.state.saturating_mul((STATES_PER_SEQUENCE * max_sequences) as u64).min(budget / 4),
    };
    let states = args.prefix_cache.unwrap_or(states);
    let host_states = args.prefix_cache_host.unwrap_or(0);
    let left = budget.saturating_sub(cost.bytes(max_sequences, 0)).saturating_sub(states);
    let fit = cost.tokens_in(left).max(Cache::page_tokens());
    let context = match needs.context {
        Context::Known { prompt, more } => {
            let most = args.context.unwrap_or(limit).min(args.kv_tokens.unwrap_or(usize::MAX));
            check_prompt(prompt, more, most, limit)?;
            prompt.saturating_add(more).min(most)
        }
        Context::UpTo(most) => args.context.unwrap_or_else(|| most.min(limit).min(fit)),
        Context::Shared => args.context.unwrap_or_else(|| limit.min(args.kv_tokens.unwrap_or(usize::MAX))),
    };
    let max_tokens = args.kv_tokens.unwrap_or_else(|| match needs.context {
        Context::Shared => {
            let enough = max_sequences.saturating_mul(TOKENS_PER_SEQUENCE.min(context)).min(fit);
            enough.max(args.context.unwrap_or(0))
        }
        _ => context.saturating_mul(max_sequences),
    });
    let needed = cost.bytes(max_sequences, max_tokens).saturating_add(states);
    if let Some(free) = free.filter(|free| needed > *free) {
        bail!(
            "caches for {max_tokens} tokens and {max_sequences} sequences take {:.1} GiB, but only {:.1} GiB of \
             memory are free: ask for less with --context, --kv-tokens, --max-sequences or --prefix-cache",
            gib(needed),
            gib(free)
        );
    }
    let max_context = context.min(max_tokens);
    let default_step = needs.step_tokens.min(max_context.next_multiple_of(64)).max(max_sequences);
    let step_tokens = args.step_tokens.unwrap_or(default_step);
    if step_tokens < max_sequences {
        return Err(usage(format!(
            "--step-tokens {step_tokens} is less than the {max_sequences} sequences that may run at once \
             (--max-sequences)"
        )));
    }
    let max_drafts = args.speculate.unwrap_or(DRAFTS);
    Ok(EngineOptions {
        max_sequences,
        max_tokens,
        step_tokens,
        max_queue: args.max_queue.unwrap_or(MAX_QUEUE),
        max_context,
        max_logit_rows: needs.logit_rows.max(max_sequences) + max_drafts,
        prefix_cache: (states > 0).then(|| PrefixCacheOptions {
            state_bytes: usize::try_from(states).unwrap_or(usize::MAX),
            host_bytes: usize::try_from(host_states).unwrap_or(usize::MAX),
            interval: PrefixCacheOptions::INTERVAL,
        }),
        max_drafts,
        exact: args.exact,
    })
}

/// Refuses a prompt that leaves no room for what is to come, before anything is loaded.
fn check_prompt(prompt: usize, more: usize, most: usize, limit: usize) -> Result<()> {
    if prompt.saturating_add(more.min(1)) <= most {
        return Ok(());
    }
    let way = if most < limit {
        format!("shorten it, or raise --context or --kv-tokens (this model allows up to {limit})")
    } else {
        "shorten it; this model is made for no more".to_owned()
    };
    bail!("the prompt has {prompt} tokens, too many for a context of {most}: {way}");
}

pub fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

#[cfg(test)]
mod tests {
    use arges_model::synth::SynthShape;

    use super::*;

    const KNOWN: Needs = Needs {
        context: Context::Known { prompt: 10, more: 5 },
        sequences: 1,
        step_tokens: 2048,
        logit_rows: 1,
    };
    const SHARED: Needs =
        Needs { context: Context::Shared, sequences: 32, step_tokens: 1024, logit_rows: 64 };

    fn config() -> Config {
        SynthShape { max_positions: 100_000, ..SynthShape::default() }.config().unwrap()
    }

    fn planned(args: EngineArgs, needs: Needs, free: Option<u64>) -> Result<EngineOptions> {
        plan(&config(), Compute::F32, &args, needs, free)
    }

    #[test]
    fn a_known_prompt_takes_what_it_and_its_answer_need() {
        let options = planned(EngineArgs::default(), KNOWN, None).unwrap();
        assert_eq!((options.max_context, options.max_tokens, options.max_sequences), (15, 15, 1));
        assert_eq!((options.step_tokens, options.max_logit_rows), (64, 1 + DRAFTS));
    }

    #[test]
    fn a_prompt_that_does_not_fit_is_refused_with_the_way_out() {
        let refused = |args: EngineArgs, prompt, more| {
            let needs = Needs { context: Context::Known { prompt, more }, ..KNOWN };
            planned(args, needs, None).unwrap_err().to_string()
        };
        let context = |tokens| EngineArgs { context: Some(tokens), ..EngineArgs::default() };
        assert!(
            refused(context(10), 10, 1)
                .contains("raise --context or --kv-tokens (this model allows up to 100000)")
        );
        let pages = EngineArgs { kv_tokens: Some(10), ..EngineArgs::default() };
        assert!(refused(pages, 10, 1).contains("a context of 10"));
        assert!(refused(EngineArgs::default(), 100_001, 0).contains("this model is made for no more"));
        assert!(refused(context(100_001), 1, 1).contains("--context 100001 is more than"));
        let exact = Needs { context: Context::Known { prompt: 10, more: 0 }, ..KNOWN };
        assert_eq!(planned(context(10), exact, None).unwrap().max_context, 10);
        assert_eq!(planned(context(1000), KNOWN, None).unwrap().max_context, 15);
    }

    #[test]
    fn a_server_shares_its_caches_and_one_request_may_have_them_all() {
        let options = planned(EngineArgs::default(), SHARED, None).unwrap();
        assert_eq!((options.max_sequences, options.max_tokens), (32, 32 * TOKENS_PER_SEQUENCE));
        assert_eq!(options.max_context, 100_000);
    }

    #[test]
    fn a_server_takes_no_more_than_half_of_the_free_memory() {
        let cost = CacheCost::of(&config(), Compute::F32);
        for free in [100 << 20, 400 << 20, 1 << 30] {
            let options = planned(EngineArgs::default(), SHARED, Some(free)).unwrap();
            let states = options.prefix_cache.map_or(0, |prefixes| prefixes.state_bytes as u64);
            let taken = cost.bytes(options.max_sequences, options.max_tokens) + states;
            assert!(states > 0 && taken <= free / 2, "{taken} of {free}");
            assert!(options.max_sequences >= 1 && options.max_context <= options.max_tokens);
        }
    }

    #[test]
    fn states_are_kept_for_requests_that_follow_unless_a_flag_says_otherwise() {
        let states = |prefix_cache, needs| {
            let args = EngineArgs { prefix_cache, ..EngineArgs::default() };
            planned(args, needs, None).unwrap().prefix_cache.map(|prefixes| prefixes.state_bytes as u64)
        };
        assert_eq!(states(None, SHARED), Some(128 * CacheCost::of(&config(), Compute::F32).state));
        assert_eq!(states(Some(1 << 20), SHARED), Some(1 << 20));
        assert_eq!((states(Some(0), SHARED), states(None, KNOWN)), (None, None));
    }

    #[test]
    fn caches_that_memory_cannot_hold_are_refused() {
        let args = EngineArgs { kv_tokens: Some(1 << 30), ..EngineArgs::default() };
        let message = planned(args, SHARED, Some(1 << 30)).unwrap_err().to_string();
        assert!(message.contains("--kv-tokens"), "{message}");
    }

    #[test]
    fn flags_that_contradict_each_other_are_named() {
        let args = EngineArgs { context: Some(1000), kv_tokens: Some(500), ..EngineArgs::default() };
        assert!(planned(args, SHARED, None).unwrap_err().to_string().contains("--kv-tokens 500"));
        let args = EngineArgs { max_sequences: Some(8), step_tokens: Some(4), ..EngineArgs::default() };
        assert!(planned(args, SHARED, None).unwrap_err().to_string().contains("--step-tokens 4"));
    }
}
