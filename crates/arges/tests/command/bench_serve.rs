//! Measures servers under load, as an operator would.

use serde_json::{Value, json};

use crate::support::{TinyModel, arges};

/// The flags of a load that takes no time.
const SHORT: [&str; 13] = [
    "bench",
    "serve",
    "--clients",
    "4",
    "--requests",
    "12",
    "--prompt-tokens",
    "5..9",
    "--output-tokens",
    "6",
    "--ignore-eos",
    "--vocab",
    "200",
];

fn with_model<'a>(model: &'a TinyModel, extra: &[&'a str]) -> Vec<&'a str> {
    let sizes = ["--model", model.dir(), "--max-sequences", "4", "--context", "128"];
    SHORT.iter().copied().chain(sizes).chain(extra.iter().copied()).collect()
}

#[test]
fn a_load_on_a_server_of_its_own_is_measured_and_drawn() {
    let model = TinyModel::new(&[]);
    let chart = model.file("load.svg");
    let more = ["--slo-ttft", "60000", "--slo-e2e", "0.001", "--plot", chart.to_str().unwrap()];
    let report = arges(with_model(&model, &more)).json();
    let case = &report["cases"][0];
    assert_eq!(case["requests"], json!({"sent": 12, "answered": 12}), "{report:#}");
    assert_eq!(case["errors"], json!({}));
    assert_eq!(case["tokens"]["output"], 12 * 6);
    assert_eq!(case["tokens"]["counted_by"], "server");
    let prompt = case["tokens"]["prompt"].as_u64().unwrap();
    assert!((12 * 5..=12 * 9).contains(&prompt), "{prompt}");
    for figure in ["time_to_first_token_seconds", "inter_token_latency_seconds", "end_to_end_seconds"] {
        let of = |share: &str| case[figure][share].as_f64().unwrap();
        assert!(0.0 < of("p50") && of("p50") <= of("p90") && of("p90") <= of("p99"), "{figure}: {case:#}");
    }
    // Nothing ends within a microsecond.
    assert_eq!(case["goodput"]["share"], 0.0);
    assert_eq!(report["server"]["model"], "tiny");
    let svg = std::fs::read_to_string(chart).unwrap();
    assert!(svg.contains("tiny under load") && svg.contains("time to first token"));
}

#[test]
fn rates_are_measured_one_after_the_other() {
    let model = TinyModel::new(&[]);
    let sizes = ["--model", model.dir(), "--max-sequences", "4", "--context", "128"];
    let load =
        ["bench", "serve", "--rate", "100,200", "--requests", "10", "--prompt-tokens", "4", "--api", "chat"];
    let report = arges(load.iter().chain(&["--output-tokens", "3"]).chain(&sizes).copied()).json();
    let rates: Vec<&Value> = report["cases"].as_array().unwrap().iter().map(|case| &case["rate"]).collect();
    assert_eq!(rates, [&json!(100.0), &json!(200.0)]);
    assert!(
        report["cases"].as_array().unwrap().iter().all(|case| case["requests"]["answered"] == 10),
        "{report:#}"
    );
}

#[test]
fn requests_that_are_refused_are_counted_by_kind() {
    let model = TinyModel::new(&[]);
    // The first requests fit, longer ones do not.
    let flags = ["--prompt-tokens", "60..200", "--warm-up", "0", "--seed", "1"];
    let mut args = with_model(&model, &[]);
    args.retain(|flag| !["--prompt-tokens", "5..9"].contains(flag));
    let report = arges(args.into_iter().chain(flags)).json();
    let case = &report["cases"][0];
    let refused = case["errors"]["HTTP 400"]["count"].as_u64().unwrap();
    assert!(refused > 0 && case["requests"]["answered"].as_u64().unwrap() == 12 - refused, "{report:#}");
    assert!(
        case["errors"]["HTTP 400"]["first"].as_str().unwrap().contains("context_length_exceeded"),
        "{report:#}"
    );
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let message = arges(["bench", "serve", "--url", "http://127.0.0.1:9/v1"]).failed(1);
    assert!(message.contains("http://127.0.0.1:9/v1/models"), "{message}");
    let message = arges(["bench", "serve", "--api", "chat", "--vocab", "9"]).failed(2);
    assert!(message.contains("--vocab"), "{message}");
    arges(["bench", "serve", "--rate", "0"]).failed(2);
    arges(["bench", "serve", "--prompt-tokens", "9..3"]).failed(2);
}
