//! The server's options from its flags.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use arges_engine::{RepetitionStop, SamplingParams};
use arges_server::{GenerationDefaults, ServerOptions};
use clap::Args;

use super::ServeArgs;
use crate::args::at_least_1;
use crate::failure::usage;

/// Sampling where a request says nothing.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sampling, where a request says nothing")]
pub struct DefaultArgs {
    /// Randomness of the choice of tokens; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 1.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Keep the fewest most likely tokens that together have this probability; 1 keeps all
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true)]
    top_p: f32,
    /// Keep this many of the most likely tokens; 0 keeps all
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Keep tokens at least this many times as likely as the most likely one; 0 keeps all
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Divide the logits of tokens seen so far, prompt included; 1 changes nothing
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
}

/// What clients may take up.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Requests that may wait for their turn; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_1)]
    pub max_queue: usize,
    /// Connections open at once; more wait
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = at_least_1)]
    max_connections: usize,
    /// Largest body of a request, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 32, value_parser = at_least_1)]
    max_body_mib: usize,
    /// Bodies of all requests that are being read, in MiB; more are refused with 429
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = at_least_1)]
    max_bodies_mib: usize,
    /// Seconds that a body may take to arrive
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = seconds)]
    body_seconds: u64,
    /// Seconds that a request's head may take to arrive, and a connection may be idle between requests
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = seconds)]
    header_seconds: u64,
    /// Seconds of silence after which a stream sends a comment, so that nothing between closes the connection
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = seconds)]
    keep_alive_seconds: u64,
    /// Seconds that running requests have to end once the server is told to stop
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_seconds: u64,
    /// Requests that are rendered and tokenised at the same time
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = at_least_1)]
    text_workers: usize,
}

/// A number of seconds from 1 to a year.
fn seconds(text: &str) -> Result<u64, String> {
    match text.parse::<u64>() {
        Ok(seconds) if (1..=31_536_000).contains(&seconds) => Ok(seconds),
        Ok(_) => Err("must be from 1 to 31536000".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

impl ServeArgs {
    /// The options, but for the model's name.
    ///
    /// # Errors
    /// Keys that are empty or cannot be read, and sampling parameters out of their ranges.
    pub(super) fn options(&self) -> Result<ServerOptions> {
        let limits = &self.limits;
        let repetition_stop =
            self.repetition_stop.map(|tokens| RepetitionStop { tokens, ..RepetitionStop::default() });
        Ok(ServerOptions {
            api_keys: self.api_keys()?,
            admin_key: self.admin_key()?,
            defaults: self.defaults.checked()?,
            body_limit: mib("--max-body-mib", limits.max_body_mib)?,
            body_budget: mib("--max-bodies-mib", limits.max_bodies_mib)?,
            body_timeout: Duration::from_secs(limits.body_seconds),
            text_workers: limits.text_workers,
            header_timeout: Duration::from_secs(limits.header_seconds),
            max_connections: limits.max_connections,
            repetition_stop,
            keep_alive: Duration::from_secs(limits.keep_alive_seconds),
            drain_limit: Duration::from_secs(limits.drain_seconds),
            ..ServerOptions::new("")
        })
    }

    fn admin_key(&self) -> Result<Option<String>> {
        let key = match &self.admin_key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("--admin-key-file {} cannot be read", path.display()))?;
                Some(text.trim().to_owned())
            }
            None => self.admin_key.clone(),
        };
        let Some(key) = key else { return Ok(None) };
        if key.is_empty() {
            return Err(usage("the admin key is empty: give a key, or leave it out"));
        }
        if self.api_keys()?.contains(&key) {
            return Err(usage("the admin key is an API key too: clients could change the weights"));
        }
        Ok(Some(key))
    }

    fn api_keys(&self) -> Result<Vec<String>> {
        if self.api_key.as_deref() == Some("") {
            return Err(usage("--api-key (or ARGES_API_KEY) is empty: give a key, or leave it out"));
        }
        let mut keys: Vec<String> = self.api_key.iter().cloned().collect();
        if let Some(path) = &self.api_key_file {
            keys.extend(keys_of(path)?);
        }
        Ok(keys)
    }
}

/// The keys in a file.
fn keys_of(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the keys of --api-key-file {}", path.display()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Vec<String> = lines.map(str::to_owned).collect();
    // A server that was meant to have a key does not start without.
    if keys.is_empty() {
        return Err(usage(format!("--api-key-file {} has no key", path.display())));
    }
    Ok(keys)
}

fn mib(flag: &str, mib: usize) -> Result<usize> {
    mib.checked_mul(1 << 20).ok_or_else(|| usage(format!("{flag} {mib} is more than can be counted")))
}

impl DefaultArgs {
    fn checked(&self) -> Result<GenerationDefaults> {
        let DefaultArgs { temperature, top_p, top_k, min_p, repetition_penalty } = *self;
        let params = SamplingParams {
            temperature,
            top_p,
            top_k,
            min_p,
            repetition_penalty,
            ..SamplingParams::default()
        };
        let flag = |name: &str| format!("--{}", name.replace('_', "-"));
        params.validate().map_err(|error| usage(format!("{} {}", flag(error.name), error.reason)))?;
        Ok(GenerationDefaults { temperature, top_p, top_k, min_p, repetition_penalty })
    }
}
