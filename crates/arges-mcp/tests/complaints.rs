//! What users complain about in the original servers: each holds here.

mod common;

use std::time::{Duration, Instant};

use arges_mcp::server::{MiniMaxServer, Settings};
use common::{StandIn, call, connect, error, files, settings, short_limits, text, usual_limits};
use serde_json::json;

/// A stand-in that takes a request and never answers.
async fn silent() -> StandIn {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    StandIn::elsewhere(url)
}

#[tokio::test]
async fn a_request_that_is_never_answered_ends_in_an_error() {
    let stand_in = silent().await;
    let base = tempfile::tempdir().unwrap();
    let hasty = Settings { limits: short_limits(), ..settings(&stand_in.url, base.path(), "url") };
    let client = connect(hasty).await;
    let started = Instant::now();
    let message = error(&call(&client, "list_voices", json!({})).await);
    assert!(message.contains("POST /v1/get_voice: no response within 0.4 s"), "{message}");
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_folder_is_made_with_its_parents() {
    let stand_in = StandIn::start().await;
    let base = tempfile::tempdir().unwrap();
    let client = connect(settings(&stand_in.url, &base.path().join("new/base"), "local")).await;
    let arguments = json!({ "text": "x", "output_directory": "a/b/c" });
    let made = text(&call(&client, "text_to_audio", arguments).await);
    assert!(made.starts_with("Success. File saved as: "), "{made}");
    assert!(files(base.path())[0].starts_with("new/base/a/b/c/t2a_x_"));
}

#[tokio::test]
async fn a_file_that_is_not_there_is_not_answered_with_others() {
    let stand_in = StandIn::start().await;
    let base = tempfile::tempdir().unwrap();
    for name in ["secret plan.mp3", "secret-plan.mp3", "private.wav"] {
        std::fs::write(base.path().join(name), "x").unwrap();
    }
    let client = connect(settings(&stand_in.url, base.path(), "url")).await;
    let asked = base.path().join("secret_plan.mp3");
    let message = error(&call(&client, "play_audio", json!({ "input_file_path": asked })).await);
    assert!(message.contains("does not exist"), "{message}");
    assert!(!message.contains("secret plan.mp3") && !message.contains("secret-plan.mp3"), "{message}");
}

#[tokio::test]
async fn numbers_out_of_range_never_reach_the_api() {
    let stand_in = StandIn::start().await;
    let base = tempfile::tempdir().unwrap();
    let client = connect(settings(&stand_in.url, base.path(), "url")).await;
    let speech = |name: &str, value: serde_json::Value| {
        let mut arguments = json!({ "text": "x" });
        arguments[name] = value;
        ("text_to_audio", arguments, format!("`{name}` must be"))
    };
    let wrong = |tool: &'static str, arguments: serde_json::Value, name: &str| {
        (tool, arguments, format!("`{name}` must be"))
    };
    for (tool, arguments, expected) in [
        speech("speed", json!(2.5)),
        speech("speed", json!(0)),
        speech("vol", json!(11)),
        speech("vol", json!(-1)),
        speech("pitch", json!(13)),
        speech("sample_rate", json!(12345)),
        speech("bitrate", json!(1)),
        speech("channel", json!(3)),
        speech("format", json!("../../x")),
        wrong("text_to_image", json!({ "prompt": "x", "n": 10 }), "n"),
        wrong("text_to_image", json!({ "prompt": "x", "n": 0 }), "n"),
        wrong("text_to_image", json!({ "prompt": "x", "aspect_ratio": "5:4" }), "aspect_ratio"),
        wrong("generate_video", json!({ "prompt": "x", "duration": 7 }), "duration"),
        wrong("music_generation", json!({ "prompt": "x", "lyrics": "y", "bitrate": 5 }), "bitrate"),
        wrong("list_voices", json!({ "voice_type": "mine" }), "voice_type"),
        wrong("text_to_audio", json!({ "text": "" }), "text"),
        ("voice_design", json!({ "prompt": "x" }), "`preview_text` is required".to_owned()),
    ] {
        let message = error(&call(&client, tool, arguments).await);
        assert!(message.contains(&expected), "{tool}: {message}");
    }
    assert_eq!(stand_in.received().len(), 0);
}

#[tokio::test]
async fn the_ranges_are_in_the_schemas() {
    let stand_in = StandIn::start().await;
    let base = tempfile::tempdir().unwrap();
    let server = MiniMaxServer::new(settings(&stand_in.url, base.path(), "url")).unwrap();
    let tools = server.tools();
    let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_ref()).collect();
    assert_eq!(
        names,
        [
            "text_to_audio",
            "list_voices",
            "voice_clone",
            "voice_design",
            "play_audio",
            "generate_video",
            "image_to_video",
            "query_video_generation",
            "text_to_image",
            "music_generation",
        ]
    );
    let schema = tools[0].schema_as_json_value();
    assert_eq!(schema["required"], json!(["text"]));
    let speed = &schema["properties"]["speed"];
    assert_eq!(
        (&speed["type"], &speed["minimum"], &speed["maximum"], &speed["default"]),
        (&json!("number"), &json!(0.5), &json!(2.0), &json!(1.0))
    );
    for tool in &tools {
        let schema = tool.schema_as_json_value();
        for (name, property) in schema["properties"].as_object().unwrap() {
            assert!(
                property["description"].is_string() && !property["type"].is_null(),
                "{name} of {}",
                tool.name
            );
        }
    }
}

#[tokio::test]
async fn no_argument_leads_out_of_the_base_path() {
    let stand_in = StandIn::start().await;
    let outside = tempfile::tempdir().unwrap();
    let base = outside.path().join("base");
    let client = connect(settings(&stand_in.url, &base, "local")).await;
    let escapes = [
        ("text_to_audio", json!({ "text": "../../../x" })),
        ("text_to_image", json!({ "prompt": "/../../etc/x" })),
        ("music_generation", json!({ "prompt": "..\\..\\x/y", "lyrics": "z" })),
        ("voice_design", json!({ "prompt": "p", "preview_text": "../x" })),
        ("query_video_generation", json!({ "task_id": "../../../../tmp/x" })),
    ];
    for (tool, arguments) in escapes {
        assert_ne!(call(&client, tool, arguments).await.is_error, Some(true), "{tool}");
    }
    let made = files(outside.path());
    assert_eq!(made.len(), 6, "{made:?}");
    assert!(made.iter().all(|name| name.starts_with("base/") && name.matches('/').count() == 1), "{made:?}");

    let before = stand_in.received().len();
    for directory in ["..", "../other", "/tmp", outside.path().to_str().unwrap()] {
        let arguments = json!({ "text": "x", "output_directory": directory });
        let message = error(&call(&client, "text_to_audio", arguments).await);
        assert!(message.contains("is not below"), "{message}");
    }
    // Found out before anything is paid for.
    assert_eq!(stand_in.received().len(), before);
    assert_eq!(files(outside.path()), made);
}

#[tokio::test]
async fn calls_of_one_second_do_not_overwrite_each_other() {
    let stand_in = StandIn::start().await;
    let base = tempfile::tempdir().unwrap();
    let client = connect(settings(&stand_in.url, base.path(), "local")).await;
    let calls = (0..20).map(|_| call(&client, "text_to_audio", json!({ "text": "same" })));
    let results = futures_util::future::join_all(calls).await;
    let named: std::collections::HashSet<String> = results.iter().map(text).collect();
    assert_eq!((named.len(), files(base.path()).len()), (20, 20));
}

#[tokio::test]
async fn a_failed_playback_is_not_called_a_success() {
    let stand_in = StandIn::start().await;
    let base = tempfile::tempdir().unwrap();
    let client = connect(settings(&stand_in.url, base.path(), "url")).await;
    for (path, expected) in [("/", "is not a file"), ("/etc/hostname", "is not an audio file")] {
        let message = error(&call(&client, "play_audio", json!({ "input_file_path": path })).await);
        assert!(message.contains(expected), "{message}");
    }
    let page = StandIn::answering(|_, _| Some(common::status(404, "gone"))).await;
    let arguments = json!({ "input_file_path": format!("{}/a.mp3", page.url), "is_url": true });
    let message = error(&call(&client, "play_audio", arguments).await);
    assert!(message.contains("HTTP status 404: gone"), "{message}");
}

#[tokio::test]
async fn a_paid_request_is_not_sent_twice_when_its_fate_is_unknown() {
    let stand_in = StandIn::answering(|_, _| Some(common::status(502, "<html>bad gateway</html>"))).await;
    let base = tempfile::tempdir().unwrap();
    let client = connect(settings(&stand_in.url, base.path(), "url")).await;
    let message = error(&call(&client, "text_to_audio", json!({ "text": "x" })).await);
    assert!(message.contains("HTTP status 502"), "{message}");
    assert_eq!(stand_in.received().len(), 1);
    error(&call(&client, "list_voices", json!({})).await);
    assert_eq!(stand_in.received().len(), 1 + usual_limits().attempts as usize);
}

#[tokio::test]
async fn what_was_made_and_cannot_be_fetched_is_not_lost() {
    let stand_in = StandIn::answering(|_, request| {
        request.path.starts_with("/files/").then(|| common::status(403, "expired"))
    })
    .await;
    let base = tempfile::tempdir().unwrap();
    let client = connect(settings(&stand_in.url, base.path(), "local")).await;
    let message = error(&call(&client, "generate_video", json!({ "prompt": "x" })).await);
    assert!(message.contains(&format!("What was made is at {}/files/film.mp4", stand_in.url)), "{message}");
    let message = error(&call(&client, "text_to_image", json!({ "prompt": "x" })).await);
    assert!(message.contains("/files/0.jpg") && message.contains("/files/1.jpg"), "{message}");
    std::fs::write(base.path().join("a.mp3"), "x").unwrap();
    let cloned = call(&client, "voice_clone", json!({ "voice_id": "v", "file": "a.mp3", "text": "t" })).await;
    let told = text(&cloned);
    assert!(
        told.starts_with("Voice cloned successfully: Voice ID: v. The demo audio could not be saved"),
        "{told}"
    );
}
