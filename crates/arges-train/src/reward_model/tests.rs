use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

/// What an endpoint does with a request: a status and body, or silence.
pub(crate) type Reply = Box<dyn Fn(&Value) -> Option<(u16, String)> + Send>;

/// An endpoint that answers each connection by the function; its address, and the requests it had.
pub(crate) fn endpoint(reply: Reply) -> (String, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1/", listener.local_addr().unwrap());
    let (sender, received) = mpsc::channel();
    std::thread::spawn(move || {
        let mut silent = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let request = read_request(&stream);
            match reply(&request) {
                Some((status, body)) => {
                    let length = body.len();
                    let head = format!(
                        "HTTP/1.1 {status} x\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                    );
                    stream.write_all((head + &body).as_bytes()).unwrap();
                }
                None => silent.push(stream),
            }
            if sender.send(request).is_err() {
                return;
            }
        }
    });
    (url, received)
}

fn read_request(stream: &TcpStream) -> Value {
    let mut reader = BufReader::new(stream);
    let (mut length, mut line) = (0, String::new());
    while reader.read_line(&mut line).unwrap() > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    serde_json::from_slice(&body).unwrap()
}

pub(crate) fn said(text: &str) -> Option<(u16, String)> {
    Some((200, json!({ "choices": [{ "message": { "role": "assistant", "content": text } }] }).to_string()))
}

/// A judge, and what it says of answers to the question "q".
struct Judge(RewardModel);

impl Judge {
    fn compare(&self, answer: &str, reference: &str) -> Result<Comparison, RewardModelError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.0.compare("q", answer, reference))
    }
}

fn judge(url: &str) -> Judge {
    with(RewardModelConfig {
        url: url.to_owned(),
        model: "judge".to_owned(),
        timeout: Duration::from_millis(500),
        retries: 2,
        pause: Duration::from_millis(1),
        ..RewardModelConfig::default()
    })
}

fn with(config: RewardModelConfig) -> Judge {
    Judge(RewardModel::new(config).unwrap())
}

/// Whether a prompt has `good` as its answer A.
fn good_is_first(request: &Value) -> bool {
    request["messages"][0]["content"].as_str().unwrap().contains("[answer A]\ngood\n")
}

#[test]
fn a_preference_counts_that_holds_in_both_orders() {
    let (url, requests) = endpoint(Box::new(|request| {
        said(if good_is_first(request) {
            "A is right.\n\n**Verdict: A**"
        } else {
            "B is right.\nVerdict: B."
        })
    }));
    let judge = judge(&url);
    assert_eq!(judge.compare("good", "bad").unwrap().score, Some(1));
    assert_eq!(judge.compare("bad", "good").unwrap().score, Some(-1));
    let request = requests.recv().unwrap();
    assert_eq!((&request["model"], &request["temperature"]), (&json!("judge"), &json!(0)));
    assert!(request["messages"][0]["content"].as_str().unwrap().contains("[question]\nq\n"));
}

#[test]
fn the_judge_goes_by_the_rubric() {
    let (url, requests) = endpoint(Box::new(|_| said("Verdict: tie")));
    let judge = with(RewardModelConfig { url, rubric: "by rhyme".to_owned(), ..Default::default() });
    assert_eq!(judge.compare("good", "bad").unwrap().score, Some(0));
    let told = requests.recv().unwrap()["messages"][0]["content"].as_str().unwrap().to_owned();
    assert!(told.contains("Judge which is better: by rhyme. Its length"), "{told}");
}

#[test]
fn a_judge_that_always_takes_the_first_prefers_neither() {
    let (url, _requests) = endpoint(Box::new(|_| said("Verdict: A")));
    let comparison = judge(&url).compare("good", "bad").unwrap();
    assert_eq!((comparison.score, comparison.votes), (Some(0), [Some(1), Some(-1)]));
}

#[test]
fn what_cannot_be_read_is_unknown_and_not_a_tie() {
    for text in ["", "A is better", "Verdict: both", "<think>Verdict: A", "Verdict: A or B", "[[A]]"] {
        let (url, _requests) = endpoint(Box::new(move |_| said(text)));
        let comparison = judge(&url).compare("good", "bad").unwrap();
        assert_eq!((comparison.score, comparison.votes), (None, [None, None]), "{text}");
        assert!(!comparison.reason.is_empty());
    }
    let (url, requests) = endpoint(Box::new(|_| Some((200, "{\"choices\": []}".to_owned()))));
    assert_eq!(judge(&url).compare("good", "bad").unwrap().score, None);
    // The endpoint tells of a request after it has answered it.
    let second = std::time::Duration::from_secs(1);
    assert!((0..6).all(|_| requests.recv_timeout(second).is_ok()));
    assert!(requests.try_recv().is_err());
}

#[test]
fn a_verdict_is_read_after_the_thinking_and_from_the_last_line() {
    assert_eq!(read_vote("<think>\nVerdict: A\n</think>\nHm.\nverdict: tie"), Some(0));
    assert_eq!(read_vote("The answer says \"Verdict: A\".\nVerdict: A\nNo:\n`Verdict: B`"), Some(-1));
}

#[test]
fn a_busy_endpoint_is_asked_again_and_a_lost_or_silent_one_is_unknown() {
    let count = std::sync::atomic::AtomicUsize::new(0);
    let (url, requests) =
        endpoint(Box::new(move |_| match count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 => Some((503, "later".to_owned())),
            1 => Some((429, String::new())),
            _ => said("Verdict: tie"),
        }));
    assert_eq!(judge(&url).compare("good", "bad").unwrap().score, Some(0));
    assert_eq!(requests.try_iter().count(), 4);

    let (url, _requests) = endpoint(Box::new(|_| None));
    let hasty = RewardModelConfig {
        url,
        retries: 1,
        timeout: Duration::from_millis(50),
        pause: Duration::ZERO,
        ..RewardModelConfig::default()
    };
    let started = Instant::now();
    let comparison = with(hasty).compare("good", "bad").unwrap();
    assert_eq!(comparison.score, None);
    assert!(started.elapsed() < Duration::from_secs(5));

    let lost = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let comparison = judge(&format!("http://{lost}/v1")).compare("good", "bad").unwrap();
    assert!(comparison.score.is_none() && comparison.reason.contains("cannot be reached"), "{comparison:?}");
}

#[test]
fn a_refusal_is_an_error_that_says_what_was_refused() {
    let (url, requests) = endpoint(Box::new(|_| Some((401, "no such key".to_owned()))));
    let error = judge(&url).compare("good", "bad").unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("no such key"), "{error}");
    // Once for each order at most: it is not asked again.
    assert!((1..=2).contains(&requests.try_iter().count()));
    let error = RewardModel::new(RewardModelConfig { url: "judge:80".to_owned(), ..Default::default() });
    assert!(error.unwrap_err().to_string().contains("\"judge:80\" is no URL"));
}

#[test]
fn rewards_that_follow_lengths_are_noticed_and_others_are_not() {
    let mut bias = LengthBias::new(100, 0.5);
    assert_eq!(bias.correlation(), None);
    for n in 0..100_usize {
        bias.record((n / 10) as f64, n);
        assert!(n == 99 || !bias.is_biased());
    }
    assert!(bias.is_biased() && bias.correlation().unwrap() > 0.99);
    for n in 0..100_usize {
        bias.record((n % 2) as f64, n / 2);
    }
    assert!(!bias.is_biased() && bias.correlation().unwrap().abs() < 0.01);
    for n in 0..100 {
        bias.record(1.0, n);
    }
    assert_eq!(bias.correlation(), None);
    // By hand: r = 1, 2, 3 and l = 1, 3, 2 give 1 / sqrt(2 * 2).
    let mut three = LengthBias::new(3, 0.4);
    [(1.0, 1), (2.0, 3), (3.0, 2)].into_iter().for_each(|(reward, length)| three.record(reward, length));
    assert!((three.correlation().unwrap() - 0.5).abs() < 1e-12 && three.is_biased());
}
