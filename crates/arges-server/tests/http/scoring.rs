//! Log-probabilities, as lm-eval and RL trainers ask for them.

use serde_json::{Value, json};

use crate::support::{TestServer, server};

fn numbers(list: &Value) -> Vec<Option<f64>> {
    list.as_array().unwrap().iter().map(Value::as_f64).collect()
}

async fn completion(server: &TestServer, body: Value) -> Value {
    server.completion(body).await.ok()["choices"][0].clone()
}

/// lm-eval's loglikelihood request over `ids`.
fn scored(ids: &[u32], max_tokens: usize) -> Value {
    json!({"prompt": ids, "echo": true, "logprobs": 1, "max_tokens": max_tokens, "temperature": 0, "seed": 1234})
}

#[tokio::test]
async fn an_echoed_prompt_carries_a_logprob_for_every_token_but_the_first() {
    let server = server();
    let ids = server.tokenizer.encode("the quick brown fox").unwrap();
    let choice = completion(&server, scored(&ids, 1)).await;
    let logprobs = numbers(&choice["logprobs"]["token_logprobs"]);
    assert_eq!(logprobs.len(), ids.len() + 1);
    assert_eq!(logprobs[0], None);
    assert!(logprobs[1..].iter().all(|logprob| logprob.is_some_and(|logprob| logprob < 0.0)));
    assert!(choice["text"].as_str().unwrap().starts_with("the quick brown fox"));
    let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
    let top = choice["logprobs"]["top_logprobs"].as_array().unwrap();
    assert_eq!(top[0], Value::Null);
    for ((token, logprob), top) in tokens.iter().zip(&logprobs).zip(top).skip(1) {
        let own = top[token.as_str().unwrap()].as_f64();
        assert_eq!(own, *logprob, "{token} is not among {top}");
        let best = top.as_object().unwrap().values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
        assert!(Some(best) >= own);
    }
    let offsets = choice["logprobs"]["text_offset"].as_array().unwrap();
    let first = server.tokenizer.decode(&ids[..1]).chars().count();
    assert_eq!((&offsets[0], &offsets[1]), (&json!(0), &json!(first)));
}

#[tokio::test]
async fn scoring_alone_generates_nothing() {
    let server = server();
    let ids = server.tokenizer.encode("the quick brown fox").unwrap();
    let reply = server.completion(scored(&ids, 0)).await.ok();
    let with_one_more = completion(&server, scored(&ids, 1)).await;
    let choice = &reply["choices"][0];
    assert_eq!(choice["text"], "the quick brown fox");
    assert_eq!(reply["usage"]["completion_tokens"], 0);
    let logprobs = numbers(&choice["logprobs"]["token_logprobs"]);
    assert_eq!(logprobs, numbers(&with_one_more["logprobs"]["token_logprobs"])[..ids.len()]);
}

#[tokio::test]
async fn a_generated_token_scores_the_same_as_part_of_a_prompt() {
    let server = server();
    let prompt = server.tokenizer.encode("hello there").unwrap();
    let body = json!({"prompt": prompt, "logprobs": 3, "max_tokens": 12, "seed": 5, "ignore_eos": true,
        "return_token_ids": true});
    let generated = completion(&server, body).await;
    let ids: Vec<u32> = serde_json::from_value(generated["token_ids"].clone()).unwrap();
    let whole = completion(&server, scored(&[&prompt[..], &ids].concat(), 0)).await;
    let again = numbers(&whole["logprobs"]["token_logprobs"]);
    assert_eq!(numbers(&generated["logprobs"]["token_logprobs"]), again[prompt.len()..]);
}

#[tokio::test]
async fn an_echo_with_logprobs_is_the_same_streamed() {
    let server = server();
    let ids = server.tokenizer.encode("the quick").unwrap();
    let body = scored(&ids, 5);
    let whole = completion(&server, body.clone()).await;
    let mut streamed = body;
    streamed["stream"] = json!(true);
    let chunks = server.completion(streamed).await.chunks();
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, whole["text"]);
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let lists = chunks.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"][key].as_array());
        let joined: Vec<Value> = lists.flatten().cloned().collect();
        assert_eq!(Value::Array(joined), whole["logprobs"][key], "{key}");
    }
}

#[tokio::test]
async fn chat_logprobs_list_as_many_alternatives_as_asked_for() {
    let server = server();
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "logprobs": true, "top_logprobs": 4,
        "temperature": 0, "max_tokens": 6, "ignore_eos": true});
    let reply = server.chat(body).await.ok();
    let content = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 6);
    for token in content {
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 4);
        // Greedy: the token itself is the most likely one.
        assert_eq!(token["top_logprobs"][0]["token"], token["token"]);
        assert_eq!(token["top_logprobs"][0]["logprob"], token["logprob"]);
    }
}
