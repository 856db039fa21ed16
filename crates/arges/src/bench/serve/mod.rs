//! `arges bench serve`: latency and throughput of a server under load, as its clients see them.

mod chart;
mod client;
mod lengths;
mod measure;
mod summary;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::task::LocalSet;

use super::cpu_name;
use crate::args::{EngineArgs, ModelArgs, at_least_1};
use crate::failure::usage;
use crate::output;
use crate::serve::InProcess;
use chart::chart;
use client::{Api, Client};
use lengths::Lengths;
use measure::{Extent, Load, Measured, measure};
use summary::{Objectives, summary};
use workload::Workload;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ServeBenchArgs {
    /// A server with OpenAI's API, such as http://127.0.0.1:8000/v1; --model is then the model's name there, by default
    /// the first that it names [default: a server in this process, for --model]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Key of that server
    #[arg(long, value_name = "KEY", env = "ARGES_ENDPOINT_KEY", hide_env_values = true)]
    api_key: Option<String>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    work: WorkArgs,
    #[command(flatten)]
    objectives: ObjectiveArgs,
    /// Draw a chart into this file, .svg or .png: of one load the distributions of latencies, of several p50 and p99
    /// over the load
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sizes: EngineArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Load")]
struct LoadArgs {
    /// Requests a second, arriving as a Poisson process; several rates are measured one after the other
    #[arg(long, value_name = "RATE", value_delimiter = ',', value_parser = positive, conflicts_with = "clients")]
    rate: Vec<f64>,
    /// Clients, each of which sends its next request when it has its answer; several numbers are measured one after
    /// the other [default: 8, without --rate]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = at_least_1)]
    clients: Vec<usize>,
    /// Requests to send [default: 100, without --duration]
    #[arg(long, value_name = "N", value_parser = at_least_1)]
    requests: Option<usize>,
    /// Seconds after which no more requests are sent; answers under way are still read
    #[arg(long, value_name = "SECONDS", value_parser = positive)]
    duration: Option<f64>,
    /// Requests that go first, one after the other, and do not count
    #[arg(long, value_name = "N", default_value_t = 2)]
    warm_up: u64,
    /// Seconds after which a request is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 600.0, value_parser = positive)]
    timeout: f64,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Requests (lengths are N, LOW..HIGH or lognormal:MEDIAN:SIGMA, in tokens)")]
struct WorkArgs {
    /// Seed of everything random: equal seeds send equal requests at equal times
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The API that is asked
    #[arg(long, value_enum, default_value_t = Api::Completions)]
    api: Api,
    /// Length of prompts without their shared beginning; a word counts as a token unless --vocab is given
    #[arg(long, value_name = "LENGTHS", default_value = "256", value_parser = str::parse::<Lengths>)]
    prompt_tokens: Lengths,
    /// Length of answers at most; with --ignore-eos, exactly
    #[arg(long, value_name = "LENGTHS", default_value = "64", value_parser = str::parse::<Lengths>)]
    output_tokens: Lengths,
    /// Length of a beginning that prompts share
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    shared_prefix: usize,
    /// How many different such beginnings there are
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1)]
    prefixes: usize,
    /// Send prompts as random token ids below this, so that their lengths are exact; completions only
    #[arg(long, value_name = "SIZE", value_parser = clap::value_parser!(u32).range(1..))]
    vocab: Option<u32>,
    /// Ask for answers that go on past the model's end token (`ignore_eos`, as in Arges, vLLM and llama.cpp)
    #[arg(long)]
    ignore_eos: bool,
    /// Randomness of the choice of tokens; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Objectives: goodput counts the requests that meet all that are given")]
struct ObjectiveArgs {
    /// Time to first token at most, in milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    slo_ttft: Option<f64>,
    /// Mean time between a request's tokens at most, in milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    slo_itl: Option<f64>,
    /// Time to the end of the answer at most, in milliseconds
    #[arg(long, value_name = "MS", value_parser = positive)]
    slo_e2e: Option<f64>,
}

const EXAMPLES: &str = "\
Prints JSON: for each load percentiles of the time to first token, of the time between tokens and of the whole, tokens
and requests per second, goodput, errors by kind, and the processor time that the generator itself took.

Examples:
  arges bench serve --clients 16 --requests 200
  arges bench serve --rate 1,2,4,8 --duration 30 --slo-ttft 500 --slo-itl 50 --plot load.svg
  arges bench serve --url http://127.0.0.1:8000/v1 --prompt-tokens lognormal:500:1 --output-tokens 16..256
  arges bench serve --shared-prefix 2000 --prefixes 4 --api chat";

/// Sends the load and prints the report.
///
/// # Errors
/// A server that cannot be started or reached, and arguments that contradict each other.
pub fn run(args: &ServeBenchArgs) -> Result<()> {
    if args.work.vocab.is_some() && args.work.api == Api::Chat {
        return Err(usage("--vocab sends token ids, which --api chat does not take"));
    }
    let own = match args.url {
        Some(_) => None,
        None => Some(InProcess::start(&args.model, &args.sizes)?),
    };
    let url = args.url.clone().or_else(|| own.as_ref().map(InProcess::url)).unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = LocalSet::new().block_on(&runtime, report(args, url.trim_end_matches('/'), own.is_some()));
    drop(own);
    output::line(&serde_json::to_string_pretty(&report?)?)
}

async fn report(args: &ServeBenchArgs, url: &str, is_own: bool) -> Result<Value> {
    // Every request has a connection of its own. Servers close those that were used before, llama.cpp's after five
    // seconds or a hundred requests, and what is sent at that moment is lost.
    let http = arges_mcp::http::builder(CONNECT_TIMEOUT).pool_max_idle_per_host(0);
    // What is on this machine is asked without the environment's proxy.
    let is_near = ["//127.", "//localhost", "//[::1]"].iter().any(|host| url.contains(host));
    let http = if is_near { http.no_proxy() } else { http }.build()?;
    let model = match args.model.model.clone().filter(|_| !is_own) {
        Some(name) => name,
        None => first_model(&http, url, args.api_key.as_deref()).await?,
    };
    let client = Client {
        http,
        url: url.to_owned(),
        key: args.api_key.clone(),
        api: args.work.api,
        model,
        temperature: args.work.temperature,
        ignore_eos: args.work.ignore_eos,
        timeout: Duration::from_secs_f64(args.load.timeout),
    };
    let workload = args.work.workload();
    let warm_up = Extent { requests: args.load.warm_up, duration: None };
    let warm = measure(&client, &workload, Load::Clients(1), warm_up, 0).await;
    refuse_dead(&warm)?;
    let (mut first, mut cases, mut reports) = (args.load.warm_up, Vec::new(), Vec::new());
    for load in args.load.loads() {
        let measured = measure(&client, &workload, load, args.load.extent(), first).await;
        // Further loads get requests of their own, which no cache knows.
        first += measured.outcomes.len() as u64;
        let summary = summary(&measured, &args.objectives.objectives());
        let mut case = match load {
            Load::Rate(rate) => json!({ "case": "rate", "rate": rate }),
            Load::Clients(clients) => json!({ "case": "clients", "clients": clients }),
        };
        if let (Value::Object(case), Value::Object(figures)) = (&mut case, summary.json.clone()) {
            case.extend(figures);
        }
        reports.push(case);
        cases.push((load, summary));
    }
    if let Some(path) = &args.plot {
        chart(format!("{} under load", client.model), &cases).write(path)?;
    }
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("ARGES_COMMIT"),
        "device": {
            "name": cpu_name(),
            "cores": std::thread::available_parallelism().ok().map(usize::from),
        },
        "server": { "url": if is_own { "in this process" } else { url }, "model": client.model },
        "load": args.settings(),
        "cases": reports,
    }))
}

/// Says why nothing can be measured, before all is sent in vain.
fn refuse_dead(warm: &Measured) -> Result<()> {
    let mut failures = warm.outcomes.iter().map(|outcome| &outcome.error);
    match failures.next() {
        Some(Some(failure)) if failures.all(Option::is_some) => {
            bail!("the server did not answer the first request: {}: {}", failure.kind, failure.message)
        }
        _ => Ok(()),
    }
}

/// The first model that the server names.
async fn first_model(http: &reqwest::Client, url: &str, key: Option<&str>) -> Result<String> {
    let mut request = http.get(format!("{url}/models"));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let context = || format!("cannot ask {url}/models for the model's name (--model gives it)");
    let reply = request
        .send()
        .await
        .map_err(arges_mcp::http::reason)
        .map_err(anyhow::Error::msg)
        .with_context(context)?;
    let status = reply.status();
    let models: Value = reply
        .json()
        .await
        .map_err(arges_mcp::http::reason)
        .map_err(anyhow::Error::msg)
        .with_context(context)?;
    match models["data"][0]["id"].as_str() {
        Some(name) => Ok(name.to_owned()),
        None => bail!("{url}/models names no model (HTTP {status}): give its name with --model"),
    }
}

impl LoadArgs {
    fn loads(&self) -> Vec<Load> {
        if !self.rate.is_empty() {
            self.rate.iter().copied().map(Load::Rate).collect()
        } else if self.clients.is_empty() {
            vec![Load::Clients(8)]
        } else {
            self.clients.iter().copied().map(Load::Clients).collect()
        }
    }

    fn extent(&self) -> Extent {
        let duration = self.duration.map(Duration::from_secs_f64);
        let unless_given = if duration.is_some() { u64::MAX >> 1 } else { 100 };
        Extent { requests: self.requests.map_or(unless_given, |requests| requests as u64), duration }
    }
}

impl WorkArgs {
    fn workload(&self) -> Workload {
        Workload {
            seed: self.seed,
            prompt: self.prompt_tokens,
            output: self.output_tokens,
            shared_prefix: self.shared_prefix,
            prefixes: self.prefixes,
            vocab_size: self.vocab,
        }
    }
}

impl ObjectiveArgs {
    fn objectives(&self) -> Objectives {
        let seconds = |milliseconds: Option<f64>| milliseconds.map(|ms| ms / 1e3);
        Objectives {
            first_token: seconds(self.slo_ttft),
            per_token: seconds(self.slo_itl),
            whole: seconds(self.slo_e2e),
        }
    }
}

impl ServeBenchArgs {
    fn settings(&self) -> Value {
        let (load, work, objectives) = (&self.load, &self.work, &self.objectives);
        json!({
            "requests": load.requests,
            "duration_seconds": load.duration,
            "warm_up": load.warm_up,
            "seed": work.seed,
            "api": if work.api == Api::Chat { "chat" } else { "completions" },
            "prompt_tokens": work.prompt_tokens.to_string(),
            "output_tokens": work.output_tokens.to_string(),
            "shared_prefix": work.shared_prefix,
            "prefixes": work.prefixes,
            "prompts": if work.vocab.is_some() { "ids" } else { "words" },
            "ignore_eos": work.ignore_eos,
            "temperature": work.temperature,
            "objectives_ms": {
                "time_to_first_token": objectives.slo_ttft,
                "inter_token_latency": objectives.slo_itl,
                "end_to_end": objectives.slo_e2e,
            },
        })
    }
}

/// A finite number above 0.
fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        Ok(_) => Err("must be above 0".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
