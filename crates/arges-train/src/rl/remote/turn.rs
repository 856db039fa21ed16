//! A turn sampled over `/v1/completions`, token by token, so that what has arrived is not lost with its endpoint.

use std::future::Future;
use std::time::Duration;

use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;

use super::{Sampled, Turn, TurnEnd};
use crate::http::chain;
use crate::rl::trajectory;

/// Longest line of a stream; the ids of a prompt of a million tokens have 7 MB.
const MAX_LINE: usize = 64 << 20;

/// What came of a turn at one endpoint.
pub(crate) enum Answer {
    /// It ended.
    Whole(Sampled),
    /// The endpoint was lost, or is too slow.
    Broken(Broken),
    /// It has as much work as it takes.
    Busy,
    /// It does not take this turn, nor would another endpoint.
    Refused(String),
}

/// A turn without an end, and what had arrived of it.
pub(crate) struct Broken {
    pub sampled: Sampled,
    pub reason: String,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<Fault>,
}

#[derive(Deserialize)]
struct Fault {
    message: String,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    token_ids: Vec<u32>,
    prompt_token_ids: Option<Vec<u32>>,
    logprobs: Option<Logprobs>,
    weight_version: Option<u64>,
    experts: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Logprobs {
    token_logprobs: Vec<Option<f32>>,
}

/// Samples `turn`, until it ends, nothing comes for so long, or `lost` does.
pub(crate) async fn stream(
    client: &reqwest::Client,
    url: &str,
    key: Option<&str>,
    turn: &Turn,
    timeout: Duration,
    lost: impl Future<Output = ()>,
) -> Answer {
    let sampled = nothing();
    let mut reading = Reading { prompt: &turn.prompt, experts: turn.experts, sampled, ended: false };
    let mut request = client.post(url).json(&body(turn));
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let outcome = {
        let read = read(request, timeout, &mut reading);
        tokio::pin!(read, lost);
        tokio::select! {
            outcome = &mut read => outcome,
            () = &mut lost => Err(Fail::Broken("its endpoint was lost".to_owned())),
        }
    };
    match outcome {
        Ok(()) => Answer::Whole(reading.sampled),
        Err(Fail::Busy) => Answer::Busy,
        Err(Fail::Refused(reason)) => Answer::Refused(reason),
        Err(Fail::Broken(reason)) => Answer::Broken(Broken { sampled: reading.sampled, reason }),
    }
}

fn nothing() -> Sampled {
    Sampled {
        tokens: Vec::new(),
        logprobs: Vec::new(),
        versions: Vec::new(),
        experts: Vec::new(),
        end: TurnEnd::Aborted,
    }
}

/// The model's own distribution, as the engine of the trainer samples from it.
fn body(turn: &Turn) -> serde_json::Value {
    json!({
        "prompt": turn.prompt,
        "max_tokens": turn.max_tokens,
        "temperature": if turn.greedy { 0.0 } else { 1.0 },
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": turn.seed as i64,
        "logprobs": 0,
        "return_token_ids": true,
        "return_experts": turn.experts,
        "stream": true,
        "repetition_stop": turn.repetition.map_or(0, |stop| stop.tokens),
    })
}

enum Fail {
    Broken(String),
    Busy,
    Refused(String),
}

async fn read(
    request: reqwest::RequestBuilder,
    timeout: Duration,
    reading: &mut Reading<'_>,
) -> Result<(), Fail> {
    let broken = |error: reqwest::Error| Fail::Broken(chain(&error));
    let silent = || Fail::Broken(format!("no token came for {timeout:?}"));
    let mut deadline = tokio::time::Instant::now() + timeout;
    let response =
        tokio::time::timeout_at(deadline, request.send()).await.map_err(|_| silent())?.map_err(broken)?;
    let status = response.status();
    if matches!(status.as_u16(), 429 | 503) {
        return Err(Fail::Busy);
    }
    if !status.is_success() {
        let text = response.text().await.unwrap_or_default();
        let reason = format!("{status}: {text}");
        return Err(if status.is_client_error() { Fail::Refused(reason) } else { Fail::Broken(reason) });
    }
    let (mut stream, mut buffer) = (response.bytes_stream(), Vec::new());
    while !reading.ended {
        let piece = tokio::time::timeout_at(deadline, stream.next()).await.map_err(|_| silent())?;
        let piece = piece.ok_or_else(|| Fail::Broken("the answer broke off".to_owned()))?.map_err(broken)?;
        buffer.extend_from_slice(&piece);
        if buffer.len() > MAX_LINE {
            return Err(Fail::Broken("a line of the answer has no end".to_owned()));
        }
        let before = reading.sampled.tokens.len();
        let mut start = 0;
        while let Some(length) = buffer[start..].iter().position(|byte| *byte == b'\n') {
            reading.line(&buffer[start..start + length]).map_err(Fail::Broken)?;
            start += length + 1;
        }
        buffer.drain(..start);
        if reading.sampled.tokens.len() > before {
            deadline = tokio::time::Instant::now() + timeout;
        }
    }
    Ok(())
}

/// What has arrived of a turn.
struct Reading<'a> {
    prompt: &'a [u32],
    /// Whether experts are told.
    experts: bool,
    sampled: Sampled,
    ended: bool,
}

impl Reading<'_> {
    /// Takes a line of the stream. What is not told apart to the last figure is of no use to a trainer.
    fn line(&mut self, line: &[u8]) -> Result<(), String> {
        let Some(data) = line.strip_prefix(b"data: ") else { return Ok(()) };
        if data == b"[DONE]" {
            return if self.ended { Ok(()) } else { Err("the answer has no finish_reason".to_owned()) };
        }
        let chunk: Chunk =
            serde_json::from_slice(data).map_err(|error| format!("a chunk is unreadable: {error}"))?;
        if let Some(fault) = chunk.error {
            return Err(fault.message);
        }
        for choice in chunk.choices {
            if choice.prompt_token_ids.is_some_and(|ids| ids != self.prompt) {
                return Err("the endpoint's prompt is another one".to_owned());
            }
            let logprobs = choice.logprobs.map(|logprobs| logprobs.token_logprobs).unwrap_or_default();
            if logprobs.len() != choice.token_ids.len() {
                return Err("a token came without its log-probability".to_owned());
            }
            if self.experts && !choice.token_ids.is_empty() {
                let experts = choice.experts.as_deref().and_then(trajectory::from_hexadecimal);
                let experts = experts.filter(|experts| !experts.is_empty());
                self.sampled.experts.extend(experts.ok_or("a token came without its experts")?);
            }
            for (id, logprob) in choice.token_ids.into_iter().zip(logprobs) {
                let logprob = logprob.filter(|logprob| logprob.is_finite() && *logprob <= 0.0);
                let (Some(logprob), Some(version)) = (logprob, choice.weight_version) else {
                    return Err("a token came without a log-probability or a weight version".to_owned());
                };
                self.sampled.tokens.push(id);
                self.sampled.logprobs.push(logprob);
                self.sampled.versions.push(version);
            }
            if let Some(reason) = choice.finish_reason {
                self.sampled.end = match reason.as_str() {
                    "stop" => TurnEnd::Stop,
                    "length" => TurnEnd::Length,
                    "repetition" => TurnEnd::Repetition,
                    "abort" => TurnEnd::Aborted,
                    other => return Err(format!("finish_reason {other:?} is not known")),
                };
                self.ended = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Result<(Sampled, bool), String> {
        let mut reading = Reading { prompt: &[1, 2], experts: false, sampled: nothing(), ended: false };
        for line in lines {
            reading.line(line.as_bytes())?;
        }
        Ok((reading.sampled, reading.ended))
    }

    const TOKEN: &str = r#"data: {"choices":[{"token_ids":[7],"logprobs":{"token_logprobs":[-0.33333334]},"weight_version":4}]}"#;

    #[test]
    fn a_stream_becomes_tokens_with_figures_and_versions() {
        let end =
            r#"data: {"choices":[{"text":"","logprobs":null,"finish_reason":"length","weight_version":5}]}"#;
        let opening = r#"data: {"choices":[{"prompt_token_ids":[1,2]}]}"#;
        let (sampled, ended) = read(&[": ping", opening, TOKEN, "", TOKEN, end, "data: [DONE]"]).unwrap();
        assert!(ended);
        assert_eq!(
            (sampled.tokens, sampled.versions, sampled.end),
            (vec![7, 7], vec![4, 4], TurnEnd::Length)
        );
        assert_eq!(sampled.logprobs, [-0.333_333_34_f32; 2]);
        let (sampled, ended) = read(&[TOKEN]).unwrap();
        assert_eq!((sampled.tokens.len(), sampled.end, ended), (1, TurnEnd::Aborted, false));
    }

    #[test]
    fn experts_come_with_each_token_where_they_are_asked_for() {
        let mut reading = Reading { prompt: &[1, 2], experts: true, sampled: nothing(), ended: false };
        let told =
            |experts: &str| TOKEN.replace("\"token_ids\"", &format!("\"experts\":{experts},\"token_ids\""));
        reading.line(told("\"00ff10\"").as_bytes()).unwrap();
        reading.line(told("\"07\"").as_bytes()).unwrap();
        assert_eq!(reading.sampled.experts, [0, 255, 16, 7]);
        for experts in ["null", "\"\"", "\"0\"", "\"0g\""] {
            let error = reading.line(told(experts).as_bytes()).unwrap_err();
            assert!(error.contains("without its experts"), "{experts}: {error}");
        }
    }

    #[test]
    fn what_a_trainer_cannot_use_is_refused() {
        for (line, reason) in [
            (r#"data: {"choices":[{"token_ids":[7],"weight_version":4}]}"#, "log-probability"),
            (
                r#"data: {"choices":[{"token_ids":[7],"logprobs":{"token_logprobs":[null]},"weight_version":4}]}"#,
                "without",
            ),
            (
                r#"data: {"choices":[{"token_ids":[7],"logprobs":{"token_logprobs":[0.5]},"weight_version":4}]}"#,
                "without",
            ),
            (
                r#"data: {"choices":[{"token_ids":[7],"logprobs":{"token_logprobs":[-0.5]}}]}"#,
                "weight version",
            ),
            (r#"data: {"choices":[{"prompt_token_ids":[1,3]}]}"#, "prompt"),
            (r#"data: {"choices":[{"finish_reason":"content_filter"}]}"#, "content_filter"),
            (r#"data: {"error":{"message":"out of luck"}}"#, "out of luck"),
            ("data: {", "unreadable"),
            ("data: [DONE]", "finish_reason"),
        ] {
            let error = read(&[line]).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
