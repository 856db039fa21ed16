//! A model that uses tools, over an endpoint that follows a script.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arges_mcp::agent::serving::with_tools;
use arges_mcp::agent::{Agent, AgentError, Divided, Observer, RouterEndpoint, ToolCall};
use arges_mcp::client::{Builtin, CallLimits, CallResult, Config, OfferedTool, Toolbox};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tower::ServiceExt;

/// Answers that are given one after the other, and the requests for them.
#[derive(Clone, Default)]
struct Script {
    answers: Arc<Mutex<VecDeque<Value>>>,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl Script {
    fn new(answers: impl IntoIterator<Item = Value>) -> Script {
        Script { answers: Arc::new(Mutex::new(answers.into_iter().collect())), ..Script::default() }
    }

    fn router(&self) -> Router {
        Router::new().fallback(answer).with_state(self.clone())
    }

    fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }
}

/// A message as a whole, or character by character with its calls in two pieces.
async fn answer(State(script): State<Script>, request: Request) -> Response {
    if request.headers().get(header::AUTHORIZATION).is_some_and(|given| given != "Bearer right") {
        return (StatusCode::UNAUTHORIZED, Json(json!({ "error": { "message": "wrong key" } })))
            .into_response();
    }
    let path = request.uri().path().to_owned();
    let body: Value =
        serde_json::from_slice(&to_bytes(request.into_body(), usize::MAX).await.unwrap()).unwrap_or_default();
    script.requests.lock().unwrap().push(body.clone());
    let Some(message) = script.answers.lock().unwrap().pop_front() else {
        return (StatusCode::NOT_FOUND, format!("nothing at {path}")).into_response();
    };
    let reason = if message["tool_calls"].is_array() { "tool_calls" } else { "stop" };
    let usage = json!({ "prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12 });
    if body["stream"] != true {
        let choice = json!({ "index": 0, "message": message, "finish_reason": reason });
        return Json(json!({ "id": "whole", "choices": [choice], "usage": usage })).into_response();
    }
    let id = format!("turn-{}", script.requests().len());
    let chunk = |delta: Value, reason: Value| {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": reason });
        format!("data: {}\n\n", json!({ "id": id, "created": 1, "choices": [choice] }))
    };
    let mut events = chunk(json!({ "role": "assistant" }), Value::Null);
    for c in message["content"].as_str().unwrap_or_default().chars() {
        events += &chunk(json!({ "content": c.to_string() }), Value::Null);
    }
    for (index, call) in message["tool_calls"].as_array().into_iter().flatten().enumerate() {
        let mut begin = call.clone();
        begin["index"] = index.into();
        begin["function"]["arguments"] = "".into();
        events += &chunk(json!({ "tool_calls": [begin] }), Value::Null);
        let arguments = json!({ "arguments": call["function"]["arguments"] });
        events += &chunk(json!({ "tool_calls": [{ "index": index, "function": arguments }] }), Value::Null);
    }
    events += &chunk(json!({}), reason.into());
    events += &format!("data: {}\n\n", json!({ "id": id, "choices": [], "usage": usage }));
    events += "data: [DONE]\n\n";
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from(events)).into_response()
}

fn calling(calls: &[(&str, Value)]) -> Value {
    let calls: Vec<Value> = calls
        .iter()
        .enumerate()
        .map(|(number, (name, arguments))| {
            let function = json!({ "name": name, "arguments": arguments.to_string() });
            json!({ "id": format!("id-{number}"), "type": "function", "function": function })
        })
        .collect();
    json!({ "role": "assistant", "content": "", "tool_calls": calls })
}

fn saying(text: &str) -> Value {
    json!({ "role": "assistant", "content": text })
}

fn calculation(expression: &str) -> (&'static str, Value) {
    ("calculator", json!({ "expression": expression }))
}

async fn toolbox() -> Toolbox {
    Toolbox::open(&Config { servers: Vec::new() }, &Builtin::ALL, CallLimits::default()).await.unwrap()
}

/// Notes what it sees.
#[derive(Default)]
struct Notes {
    text: String,
    results: Vec<(String, CallResult)>,
    forbidden: Option<&'static str>,
}

impl Observer for Notes {
    fn chunk(&mut self, chunk: Value) -> BoxFuture<'_, bool> {
        self.text += chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default();
        std::future::ready(true).boxed()
    }

    fn may_run(&mut self, _: &ToolCall, tool: &OfferedTool) -> bool {
        self.forbidden != Some(tool.name.as_str())
    }

    fn started(&mut self, _: &ToolCall) {}

    fn progress(&mut self, _: &ToolCall, _: &str) {}

    fn finished(&mut self, call: &ToolCall, result: &CallResult) {
        self.results.push((call.name.clone(), result.clone()));
    }
}

async fn run(script: &Script, stream: bool, notes: &mut Notes) -> arges_mcp::agent::Finished {
    let endpoint = Divided(RouterEndpoint::new(script.router()));
    let toolbox = toolbox().await;
    let request = json!({ "messages": [{ "role": "user", "content": "?" }], "stream": stream });
    Agent::new(&endpoint, &toolbox).run(request, notes).await.unwrap()
}

#[tokio::test]
async fn two_calls_in_order_lead_to_the_answer() {
    for stream in [true, false] {
        let script = Script::new([
            calling(&[calculation("17 + 25")]),
            calling(&[calculation("42 * 2")]),
            saying("It is 84."),
        ]);
        let mut notes = Notes::default();
        let finished = run(&script, stream, &mut notes).await;
        assert_eq!(finished.last.content, "It is 84.");
        assert_eq!(finished.usage.unwrap()["total_tokens"], 36);
        let texts: Vec<&str> = notes.results.iter().map(|(_, result)| result.text.as_str()).collect();
        assert_eq!(texts, ["42", "84"]);
        let requests = script.requests();
        assert_eq!(requests[0]["tools"][0]["function"]["name"], "calculator");
        let roles: Vec<&str> =
            requests[2]["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "assistant", "tool"]);
        let result = json!({ "role": "tool", "tool_call_id": "id-0", "name": "calculator", "content": "84" });
        assert_eq!(requests[2]["messages"][4], result);
        assert_eq!(finished.messages.len(), 5);
    }
}

#[tokio::test]
async fn calls_in_the_text_of_an_endpoint_that_does_not_parse_are_made_too() {
    let text = "<think>\nsum\n</think>\n<tool_calls>\n{\"name\": \"calculator\", \"arguments\": {\"expression\": \"1+1\"}}\n</tool_calls>";
    for stream in [true, false] {
        let script = Script::new([saying(text), saying("2")]);
        let finished = run(&script, stream, &mut Notes::default()).await;
        assert_eq!(finished.last.content, "2");
        assert_eq!(script.requests()[1]["messages"][2]["content"], "2");
        assert_eq!(script.requests()[1]["messages"][1]["reasoning_content"].as_str().unwrap().trim(), "sum");
    }
}

#[tokio::test]
async fn what_goes_wrong_with_a_call_is_for_the_model_to_read() {
    let script = Script::new([
        calling(&[
            ("calculator", json!("no object")),
            ("no_such_tool", json!({})),
            ("clock", json!({})),
            calculation("1 +"),
        ]),
        saying("sorry"),
    ]);
    let mut notes = Notes { forbidden: Some("clock"), ..Notes::default() };
    run(&script, true, &mut notes).await;
    let messages = script.requests()[1]["messages"].clone();
    let said: Vec<&str> = (2..6).map(|index| messages[index]["content"].as_str().unwrap()).collect();
    assert!(said[0].starts_with("the arguments of calculator are not a JSON object"), "{}", said[0]);
    assert_eq!(said[1], "there is no tool \"no_such_tool\"; the tools are calculator, clock");
    assert_eq!(said[2], "the user did not allow this call");
    assert!(said[3].starts_with("expected a number"), "{}", said[3]);
    assert!(notes.results.iter().all(|(_, result)| result.is_error) && notes.results.len() == 4);
}

#[tokio::test]
async fn a_model_that_calls_without_end_is_made_to_answer() {
    let script = Script::new(std::iter::repeat_with(|| calling(&[calculation("1")])).take(100));
    run(&script, false, &mut Notes::default()).await;
    let requests = script.requests();
    assert_eq!(requests.len(), 17);
    assert_eq!(requests[16]["tool_choice"], "none");
}

#[tokio::test]
async fn an_endpoint_that_fails_says_why() {
    let endpoint = RouterEndpoint::new(Script::default().router());
    let toolbox = toolbox().await;
    let request = json!({ "messages": [], "stream": true });
    let error = Agent::new(&endpoint, &toolbox).run(request, &mut Notes::default()).await.unwrap_err();
    assert!(matches!(error, AgentError::Endpoint(_)));
    assert_eq!(error.to_string(), "the endpoint refuses the request (404): nothing at /v1/chat/completions");
}

async fn served(script: &Script, key: Option<&str>, body: Value) -> (StatusCode, String) {
    let router = with_tools(script.router(), Arc::new(toolbox().await));
    let mut request = Request::post("/v1/chat/completions");
    if let Some(key) = key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    let response = router.oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap();
    let status = response.status();
    let body = tokio::time::timeout(Duration::from_secs(20), to_bytes(response.into_body(), usize::MAX));
    (status, String::from_utf8(body.await.unwrap().unwrap().to_vec()).unwrap())
}

fn question(stream: bool) -> Value {
    json!({ "messages": [{ "role": "user", "content": "?" }], "stream": stream })
}

#[tokio::test]
async fn a_client_of_a_server_with_tools_gets_one_answer() {
    let answers = || [calling(&[calculation("6 * 7")]), saying("42!")];
    let script = Script::new(answers());
    let (status, body) = served(&script, Some("right"), question(false)).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, StatusCode::OK);
    assert_eq!(body["choices"][0]["message"]["content"], "42!");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["total_tokens"], 24);

    let script = Script::new(answers());
    let mut request = question(true);
    request["stream_options"] = json!({ "include_usage": true });
    let (_, body) = served(&script, None, request).await;
    let chunks: Vec<Value> = body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
    let text: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "42!");
    assert!(chunks.iter().all(|chunk| chunk["id"] == "turn-1"), "{chunks:?}");
    assert!(!body.contains("tool_calls"), "{body}");
    let reasons: Vec<&str> =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str()).collect();
    assert_eq!(reasons, ["stop"]);
    assert_eq!(chunks.last().unwrap()["usage"]["total_tokens"], 24);
    let roles = chunks.iter().filter(|chunk| chunk["choices"][0]["delta"]["role"].is_string()).count();
    assert_eq!(roles, 1);
}

#[tokio::test]
async fn a_client_that_asks_for_the_calls_gets_them_and_their_results() {
    let script = Script::new([calling(&[calculation("6 * 7"), calculation("1 / 0")]), saying("42!")]);
    let mut request = question(true);
    request["show_tool_calls"] = json!(true);
    let (_, body) = served(&script, None, request).await;
    let deltas: Vec<Value> = body
        .lines()
        .filter_map(|line| line.strip_prefix("data: ").filter(|data| *data != "[DONE]"))
        .map(|data| serde_json::from_str::<Value>(data).unwrap()["choices"][0]["delta"].take())
        .collect();
    let calls: Vec<&str> = deltas.iter().filter_map(|delta| delta["tool_calls"][0]["id"].as_str()).collect();
    assert_eq!(calls.len(), 2, "{body}");
    let results: Vec<&Value> = deltas.iter().filter(|delta| delta["role"] == "tool").collect();
    for call in calls {
        assert!(results.iter().any(|result| result["tool_call_id"] == call), "{body}");
    }
    assert_eq!(results.iter().filter(|result| result["content"] == "42").count(), 1, "{body}");
    assert_eq!(results.iter().filter(|result| result["is_error"] == true).count(), 1, "{body}");
    // Results come between the turns, each of which begins as the model's own.
    let roles: Vec<&str> = deltas.iter().filter_map(|delta| delta["role"].as_str()).collect();
    assert_eq!(roles, ["assistant", "tool", "tool", "assistant"]);
}

#[tokio::test]
async fn a_client_that_brings_tools_runs_its_calls_itself() {
    for (field, value) in
        [("tools", json!([{ "type": "function" }])), ("tool_choice", json!("none")), ("n", json!(2))]
    {
        let script = Script::new([calling(&[calculation("6 * 7")])]);
        let mut request = question(false);
        request[field] = value;
        let (_, body) = served(&script, None, request.clone()).await;
        assert!(body.contains("tool_calls"), "{body}");
        assert_eq!(script.requests(), [request]);
    }
}

#[tokio::test]
async fn a_refused_request_is_refused_as_without_tools() {
    for stream in [true, false] {
        let (status, body) = served(&Script::new([saying("x")]), Some("wrong"), question(stream)).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        assert!(body.contains("\"message\":\"wrong key\""), "{body}");
    }
    let script = Script::default();
    let router = with_tools(script.router(), Arc::new(toolbox().await));
    let response = router.oneshot(Request::get("/health").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
}
