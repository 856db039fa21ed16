//! File handles, which are counted for the whole process: this test is alone in its file.
#![cfg(target_os = "linux")]

mod common;

use common::{Client, StandIn, call, connect, files, settings};
use serde_json::json;

fn handles() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Calls that send, save and fetch files, and some that fail in the middle of it.
async fn work(client: &Client, url: &str) {
    let recording = json!({ "voice_id": "v", "file": "recording.mp3", "text": "t" });
    call(client, "voice_clone", recording).await;
    let fetched =
        json!({ "voice_id": "v", "file": format!("{url}/files/r.mp3"), "is_url": true, "text": "t" });
    call(client, "voice_clone", fetched).await;
    call(client, "text_to_audio", json!({ "text": "x" })).await;
    call(client, "generate_video", json!({ "prompt": "x" })).await;
    call(client, "text_to_image", json!({ "prompt": "x" })).await;
    let missing = json!({ "input_file_path": format!("{url}/missing.mp3"), "is_url": true });
    call(client, "play_audio", missing).await;
}

#[tokio::test]
async fn no_handles_are_left_open() {
    let stand_in = StandIn::answering(|_, request| {
        // Every second picture cannot be had.
        request.path.ends_with("1.jpg").then(|| common::status(404, "gone"))
    })
    .await;
    let base = tempfile::tempdir().unwrap();
    std::fs::write(base.path().join("recording.mp3"), "a recording").unwrap();
    let client = connect(settings(&stand_in.url, base.path(), "local")).await;
    work(&client, &stand_in.url).await;
    let before = handles();
    for _ in 0..20 {
        work(&client, &stand_in.url).await;
    }
    let after = handles();
    // A connection more or less that is kept for later, at both ends.
    assert!(after <= before + 4, "{before} handles before and {after} after");
    assert!(!files(base.path()).iter().any(|name| name.ends_with(".part")));
}
