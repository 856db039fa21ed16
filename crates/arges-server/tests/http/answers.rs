//! What a request that is right gets.

use arges_engine::{EngineOptions, PrefixCacheOptions};
use arges_server::ServerOptions;
use serde_json::{Value, json};

use crate::support::{MODEL, TestServer, engine_options, server, server_with, with};

fn texts(body: &Value) -> Vec<&str> {
    body["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect()
}

/// A greedy request of `tokens` tokens that no end token cuts short.
fn greedy(prompt: Value, tokens: usize) -> Value {
    json!({"prompt": prompt, "temperature": 0, "max_tokens": tokens, "ignore_eos": true})
}

fn greeting() -> Value {
    json!([{"role": "user", "content": "hello"}])
}

fn delta_text(chunks: &[Value]) -> String {
    let choices = chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap());
    choices.filter_map(|choice| choice["delta"]["content"].as_str()).collect()
}

#[tokio::test]
async fn a_chat_answer_has_the_shape_of_the_api() {
    let server = server();
    let body = json!({"model": MODEL, "messages": greeting(), "temperature": 0, "max_tokens": 8, "ignore_eos": true});
    let answer = server.chat(body).await.ok();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("chat.completion"), &json!(MODEL)));
    let choice = &answer["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    assert_eq!(choice["logprobs"], Value::Null);
    let usage = &answer["usage"];
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert!(prompt > 5);
    assert_eq!(usage["completion_tokens"], 8);
    assert_eq!(usage["total_tokens"], prompt + 8);
}

#[tokio::test]
async fn usage_names_the_tokens_that_were_taken_up_from_an_earlier_request() {
    let prefix_cache = Some(PrefixCacheOptions { state_bytes: 16 << 20, host_bytes: 0, interval: 4096 });
    let server = server_with(EngineOptions { prefix_cache, ..engine_options() }, ServerOptions::new(MODEL));
    let long = "the same beginning ".repeat(30);
    let message = |end: &str| json!([{"role": "user", "content": format!("{long}{end}")}]);
    let chat = |end| json!({"messages": message(end), "temperature": 0, "max_tokens": 4});
    let mut cached = Vec::new();
    for end in ["one", "two", "three"] {
        let answer = server.chat(chat(end)).await.ok();
        let usage = &answer["usage"];
        cached.push(usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
        assert!(usage["prompt_tokens"].as_u64() > cached.last().copied());
    }
    assert!(cached[0] == 0 && cached[2] >= 128 && cached[2] % 64 == 0, "{cached:?}");
    let answer = server.post("/v1/messages", chat("four")).await.ok();
    assert_eq!(answer["usage"]["cache_read_input_tokens"], cached[2]);
    let metrics = server.get("/metrics").await.body;
    let hits: u64 = cached.iter().sum::<u64>() + cached[2];
    assert!(metrics.contains(&format!("arges_prefix_cache_hit_tokens_total {hits}")), "{metrics}");
}

#[tokio::test]
async fn a_streamed_chat_says_the_same_as_a_whole_one() {
    let server = server();
    let body = json!({"messages": greeting(), "temperature": 0, "max_tokens": 40});
    let whole = server.chat(body.clone()).await.ok();
    let chunks = server.chat(with(body, json!({"stream": true}))).await.chunks();
    assert_eq!(delta_text(&chunks), whole["choices"][0]["message"]["content"]);
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let last = &chunks.last().unwrap()["choices"][0];
    assert_eq!((&last["delta"], &last["finish_reason"]), (&json!({}), &whole["choices"][0]["finish_reason"]));
    assert!(chunks.iter().all(|chunk| chunk["object"] == "chat.completion.chunk"));
    assert!(chunks.iter().all(|chunk| chunk["id"] == chunks[0]["id"] && chunk.get("usage").is_none()));
}

#[tokio::test]
async fn the_usage_of_a_stream_comes_last_and_without_choices() {
    let server = server();
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = server.completion(with(greedy(json!("hello"), 6), asked)).await.chunks();
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 6);
    assert!(before.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
}

#[tokio::test]
async fn a_batch_of_prompts_gets_the_answers_each_prompt_gets_alone_in_order() {
    let server = server();
    let prompts = ["hello", "what is that", "abc def"];
    let batch = server.completion(greedy(json!(prompts), 12)).await.ok();
    let mut prompt_tokens = 0;
    for (index, prompt) in prompts.iter().enumerate() {
        let alone = server.completion(greedy(json!(prompt), 12)).await.ok();
        assert_eq!(texts(&batch)[index], texts(&alone)[0]);
        assert_eq!(batch["choices"][index]["index"], index);
        prompt_tokens += alone["usage"]["prompt_tokens"].as_u64().unwrap();
        let ids = server.tokenizer.encode(prompt).unwrap();
        let by_ids = server.completion(greedy(json!(ids), 12)).await.ok();
        assert_eq!(texts(&by_ids), texts(&alone));
    }
    assert_eq!(batch["usage"]["prompt_tokens"], prompt_tokens);
    assert_eq!(batch["usage"]["completion_tokens"], 36);
}

#[tokio::test]
async fn several_answers_differ_and_the_first_is_the_one_its_seed_gives_alone() {
    let server = server();
    let body = json!({"prompt": "hello", "max_tokens": 12, "seed": 7, "ignore_eos": true});
    let three = server.completion(with(body.clone(), json!({"n": 3}))).await.ok();
    let one = server.completion(body.clone()).await.ok();
    let [first, second, third] = texts(&three)[..] else { panic!("{three}") };
    assert_eq!(first, texts(&one)[0]);
    assert!(first != second && second != third && first != third);
    assert_eq!(three["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"]);

    let chunks = server.completion(with(body, json!({"n": 3, "stream": true}))).await.chunks();
    for (index, text) in texts(&three).iter().enumerate() {
        let choices =
            chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index);
        let streamed: String = choices.map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(streamed, *text);
    }
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it_streamed_or_not() {
    let server = server();
    let long = server.completion(greedy(json!("hello"), 40)).await.ok();
    let text = texts(&long)[0];
    let characters: Vec<char> = text.chars().collect();
    let stop: String = characters[characters.len() / 2..][..3].iter().collect();
    let expected = text.split(&stop).next().unwrap();
    for stop in [json!(stop), json!(["never in there", stop])] {
        let body = with(greedy(json!("hello"), 40), json!({ "stop": stop }));
        let stopped = server.completion(body.clone()).await.ok();
        assert_eq!(texts(&stopped)[0], expected);
        assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
        let chunks = server.completion(with(body, json!({"stream": true}))).await.chunks();
        let streamed: String =
            chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(streamed, expected);
        assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_biased_token_is_the_only_one_sampled() {
    let server = server();
    let body = json!({"prompt": "hello", "max_tokens": 4, "logit_bias": {"97": 100}, "seed": 1});
    assert_eq!(texts(&server.completion(body).await.ok()), ["aaaa"]);
}

#[tokio::test]
async fn token_ids_are_returned_when_asked_for() {
    let server = server();
    let asked = json!({"return_token_ids": true});
    let plain = server.completion(with(greedy(json!("hello"), 5), asked.clone())).await.ok();
    let choice = &plain["choices"][0];
    assert_eq!(choice["prompt_token_ids"], json!(server.tokenizer.encode("hello").unwrap()));
    let ids: Vec<u32> = serde_json::from_value(choice["token_ids"].clone()).unwrap();
    assert_eq!(ids.len(), 5);
    assert_eq!(server.tokenizer.decode(&ids), choice["text"].as_str().unwrap());

    let chunks = server
        .completion(with(greedy(json!("hello"), 5), json!({"return_token_ids": true, "stream": true})))
        .await
        .chunks();
    let streamed: Vec<u32> = chunks
        .iter()
        .filter_map(|chunk| serde_json::from_value::<Vec<u32>>(chunk["choices"][0]["token_ids"].clone()).ok())
        .flatten()
        .collect();
    assert_eq!(streamed, ids);

    let chat = with(json!({"messages": greeting(), "max_tokens": 3, "ignore_eos": true}), asked);
    let chat = server.chat(chat).await.ok();
    let prompt_tokens = chat["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    assert_eq!(chat["prompt_token_ids"].as_array().unwrap().len(), prompt_tokens);
    assert_eq!(chat["choices"][0]["token_ids"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn experts_are_told_when_asked_for_whole_and_streamed() {
    let server = server();
    let asked = json!({"return_experts": true});
    let whole = server.completion(with(greedy(json!("hello"), 5), asked.clone())).await.ok();
    let experts = whole["choices"][0]["experts"].as_str().unwrap().to_owned();
    let prompt = server.tokenizer.encode("hello").unwrap().len();
    // Two digits for each of the prompt's tokens and the answer's but the last, in each layer and slot.
    assert_eq!(experts.len() % (2 * (prompt + 4)), 0);
    assert!(!experts.is_empty() && experts.chars().all(|digit| digit.is_ascii_hexdigit()));
    let chunks = server
        .completion(with(greedy(json!("hello"), 5), json!({"return_experts": true, "stream": true})))
        .await
        .chunks();
    let streamed: Vec<&str> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["experts"].as_str()).collect();
    assert_eq!((streamed.len(), streamed.concat()), (5, experts));
    let plain = server.completion(greedy(json!("hello"), 5)).await.ok();
    assert!(plain["choices"][0].get("experts").is_none());
    assert_eq!(plain["choices"][0]["text"], whole["choices"][0]["text"]);
}

#[tokio::test]
async fn sixteen_requests_at_once_each_get_the_answer_they_get_alone() {
    let server = server();
    let body = |index: usize| {
        json!({"messages": [{"role": "user", "content": "word ".repeat(index * 5 + 1)}], "temperature": 0,
            "max_tokens": 24, "ignore_eos": true, "stream": true})
    };
    let mut alone = Vec::new();
    for index in 0..16 {
        alone.push(delta_text(&server.chat(body(index)).await.chunks()));
    }
    let together = futures_util::future::join_all((0..16).map(|index| server.chat(body(index)))).await;
    let together: Vec<String> = together.iter().map(|reply| delta_text(&reply.chunks())).collect();
    assert_eq!(together, alone);
}

#[tokio::test]
async fn the_served_model_is_listed_and_found_by_its_id() {
    let server: TestServer = server();
    let list = server.get("/v1/models").await.ok();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!(MODEL)));
    for path in ["/v1/models/tiny/m1", "/v1/models/tiny%2Fm1"] {
        assert_eq!(server.get(path).await.ok(), list["data"][0]);
    }
    assert_eq!(server.get("/v1/models/other").await.error().0, 404);
}
