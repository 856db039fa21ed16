//! Every tool: what it asks the API, and what it gives, as addresses and as files.

mod common;

use common::{FILE, HEX, SOUND, StandIn, call, connect, error, files, settings, text};
use rmcp::model::CallToolResult;
use serde_json::{Value, json};

/// A call in either mode: its result, what the API was asked, and the files made with their bytes.
struct Done {
    result: CallToolResult,
    asked: Vec<common::Received>,
    url: String,
    base: tempfile::TempDir,
}

impl Done {
    async fn new(mode: &str, tool: &'static str, arguments: Value) -> Done {
        let stand_in = StandIn::start().await;
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("voice.mp3"), "a recording").unwrap();
        let client = connect(settings(&stand_in.url, base.path(), mode)).await;
        let result = call(&client, tool, arguments).await;
        Done { result, asked: stand_in.received(), url: stand_in.url, base }
    }

    /// Paths asked for, in order.
    fn paths(&self) -> Vec<String> {
        self.asked.iter().map(|request| format!("{} {}", request.method, request.path)).collect()
    }

    fn text(&self) -> String {
        assert_ne!(self.result.is_error, Some(true), "{:?}", self.result);
        text(&self.result)
    }

    /// The one file that was made, checked for its name and bytes.
    fn file(&self, start: &str, end: &str, bytes: &[u8]) -> String {
        let made: Vec<String> =
            files(self.base.path()).into_iter().filter(|name| name != "voice.mp3").collect();
        let [name] = made.as_slice() else { panic!("made {made:?}") };
        let file_name = name.rsplit('/').next().unwrap();
        let middle = file_name.strip_prefix(start).and_then(|rest| rest.strip_suffix(end));
        let middle = middle.unwrap_or_else(|| panic!("{file_name} is not {start}…{end}"));
        let is_time = middle.len() == 15 && middle.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
        assert!(is_time, "{middle}");
        let path = self.base.path().join(name);
        assert_eq!(std::fs::read(&path).unwrap(), bytes);
        path.display().to_string()
    }

    fn kinds(&self) -> Vec<String> {
        let value = serde_json::to_value(&self.result).unwrap();
        let blocks = value["content"].as_array().unwrap().iter();
        blocks.map(|block| block["type"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn speech_is_asked_for_with_the_defaults_of_the_original() {
    let done = Done::new("url", "text_to_audio", json!({ "text": "hello" })).await;
    let expected = json!({
        "model": "speech-2.6-hd",
        "text": "hello",
        "voice_setting": {
            "voice_id": "female-shaonv", "speed": 1.0, "vol": 1.0, "pitch": 0, "emotion": "happy",
        },
        "audio_setting": { "sample_rate": 32000, "bitrate": 128000, "format": "mp3", "channel": 1 },
        "language_boost": "auto",
        "output_format": "url",
    });
    assert_eq!(done.paths(), ["POST /v1/t2a_v2"]);
    assert_eq!(done.asked[0].json(), expected);
    assert_eq!(done.asked[0].header("authorization"), "Bearer the-key");
    assert_eq!(done.asked[0].header("mm-api-source"), "Minimax-MCP");
    assert_eq!(done.asked[0].header("content-type"), "application/json");
    assert_eq!(done.text(), format!("Success. Audio URL: {}/files/a.mp3?sign=x%2Fy", done.url));
    assert_eq!(done.kinds(), ["text", "resource_link"]);
}

#[tokio::test]
async fn speech_is_saved_and_comes_as_content_too() {
    let arguments = json!({
        "text": "hello, world", "voice_id": "bo", "speed": 1.5, "vol": 2, "pitch": -3, "emotion": "sad",
        "sample_rate": 8000, "bitrate": 64000, "channel": 2, "format": "flac", "language_boost": "English",
        "model": "speech-02-turbo", "output_directory": "new/folder",
    });
    let done = Done::new("local", "text_to_audio", arguments).await;
    let asked = done.asked[0].json();
    assert_eq!(asked.get("output_format"), None);
    assert_eq!(asked["voice_setting"]["speed"], 1.5);
    assert_eq!(asked["audio_setting"]["channel"], 2);
    let path = done.file("t2a_hello,_wor_", ".flac", SOUND);
    assert!(path.contains("/new/folder/"), "{path}");
    assert_eq!(done.text(), format!("Success. File saved as: {path}. Voice used: bo"));
    let audio = done.result.content[1].as_audio().unwrap();
    assert_eq!((audio.mime_type.as_str(), audio.data.as_str()), ("audio/flac", "SUQzBAD/"));
}

#[tokio::test]
async fn voices_are_listed_as_by_the_original() {
    let done = Done::new("url", "list_voices", json!({})).await;
    assert_eq!(done.asked[0].json(), json!({ "voice_type": "all" }));
    assert_eq!(
        done.text(),
        "Success. System Voices: [\"Name: Ann's, ID: ann\", 'Name: Bo, ID: bo'], \
         Voice Cloning Voices: ['Name: None, ID: mine']"
    );
}

#[tokio::test]
async fn a_voice_is_cloned_from_a_file() {
    let arguments = json!({ "voice_id": "mine", "file": "voice.mp3", "text": "a sample" });
    let done = Done::new("local", "voice_clone", arguments).await;
    assert_eq!(done.paths(), ["POST /v1/files/upload", "POST /v1/voice_clone", "GET /files/demo.wav"]);
    let form = String::from_utf8_lossy(&done.asked[0].body).into_owned();
    assert!(done.asked[0].header("content-type").starts_with("multipart/form-data; boundary="));
    assert!(form.contains("name=\"purpose\"\r\n\r\nvoice_clone\r\n"), "{form}");
    assert!(form.contains("name=\"file\"; filename=\"voice.mp3\"\r\n\r\na recording\r\n"), "{form}");
    assert_eq!(
        done.asked[1].json(),
        json!({ "file_id": 77, "voice_id": "mine", "text": "a sample", "model": "speech-2.6-hd" })
    );
    // The key is for the API alone.
    assert_eq!(done.asked[2].header("authorization"), "");
    let path = done.file("voice_clone_a_sample_", ".wav", FILE);
    assert_eq!(
        done.text(),
        format!("Voice cloned successfully: Voice ID: mine, demo audio saved as: {path}")
    );
}

#[tokio::test]
async fn a_voice_is_cloned_from_an_address() {
    let stand_in = StandIn::start().await;
    let base = tempfile::tempdir().unwrap();
    let client = connect(settings(&stand_in.url, base.path(), "url")).await;
    let file = format!("{}/files/recording.mp3", stand_in.url);
    let arguments = json!({ "voice_id": "mine", "file": file, "is_url": true });
    let result = call(&client, "voice_clone", arguments).await;
    assert_eq!(text(&result), format!("Success. Demo audio URL: {}/files/demo.wav", stand_in.url));
    let asked = stand_in.received();
    let form = String::from_utf8_lossy(&asked[1].body).into_owned();
    let part =
        "name=\"file\"; filename=\"audio_file.mp3\"\r\ncontent-type: audio/mpeg\r\n\r\nthe bytes of a file";
    assert!(form.to_lowercase().contains(part), "{form}");
    assert_eq!(asked[2].json(), json!({ "file_id": 77, "voice_id": "mine" }));
}

#[tokio::test]
async fn a_voice_is_designed() {
    let arguments = json!({ "prompt": "deep and calm", "preview_text": "good night" });
    let done = Done::new("url", "voice_design", arguments.clone()).await;
    assert_eq!(done.asked[0].json(), arguments);
    assert_eq!(done.text(), "Success. Voice ID generated: designed");
    assert_eq!(done.result.content[1].as_audio().unwrap().data, "SUQzBAD/");

    let arguments = json!({ "prompt": "deep", "preview_text": "good night", "voice_id": "mine" });
    let done = Done::new("local", "voice_design", arguments.clone()).await;
    assert_eq!(done.asked[0].json(), arguments);
    let path = done.file("voice_design_good_night_", ".mp3", SOUND);
    assert_eq!(done.text(), format!("Success. File saved as: {path}. Voice ID generated: designed"));
}

#[tokio::test]
async fn a_film_is_ordered_and_fetched() {
    let arguments = json!({ "prompt": "a cat" });
    let done = Done::new("url", "generate_video", arguments).await;
    assert_eq!(
        done.paths(),
        [
            "POST /v1/video_generation",
            "GET /v1/query/video_generation?task_id=task-5",
            "GET /v1/files/retrieve?file_id=file-6",
        ]
    );
    assert_eq!(done.asked[0].json(), json!({ "model": "MiniMax-Hailuo-2.3", "prompt": "a cat" }));
    assert_eq!(done.text(), format!("Success. Video URL: {}/files/film.mp4", done.url));

    let arguments = json!({
        "prompt": "a cat", "model": "MiniMax-Hailuo-02", "first_frame_image": "https://example.com/cat.jpg",
        "duration": 6, "resolution": "768P",
    });
    let done = Done::new("local", "generate_video", arguments.clone()).await;
    assert_eq!(done.asked[0].json(), arguments);
    let path = done.file("video_task-5_", ".mp4", FILE);
    assert_eq!(done.text(), format!("Success. Video saved as: {path}"));
    assert_eq!(done.kinds(), ["text", "resource_link"]);
}

#[tokio::test]
async fn a_film_is_ordered_without_waiting() {
    let arguments = json!({ "prompt": "a cat", "first_frame_image": "voice.mp3", "async_mode": true });
    let done = Done::new("local", "image_to_video", arguments).await;
    assert_eq!(done.paths(), ["POST /v1/video_generation"]);
    let picture = "data:image/jpeg;base64,YSByZWNvcmRpbmc=";
    let expected = json!({ "model": "I2V-01", "prompt": "a cat", "first_frame_image": picture });
    assert_eq!(done.asked[0].json(), expected);
    assert!(done.text().starts_with("Success. Video generation task submitted: Task ID: task-5. "));
}

#[tokio::test]
async fn a_task_is_asked_after() {
    let done = Done::new("local", "query_video_generation", json!({ "task_id": "a/b&c" })).await;
    assert_eq!(done.paths()[0], "GET /v1/query/video_generation?task_id=a%2Fb%26c");
    let path = done.file("video_a_b&c_", ".mp4", FILE);
    assert_eq!(done.text(), format!("Success. Video saved as: {path}"));

    for (status, expected, is_error) in [
        ("Fail", "could not make the video of task t: bad prompt", true),
        ("Queueing", "Video generation task is still processing: Task ID: t", false),
    ] {
        let stand_in = StandIn::answering(move |_, _| {
            Some(common::ok(json!({ "status": status, "error_message": "bad prompt" })))
        })
        .await;
        let base = tempfile::tempdir().unwrap();
        let client = connect(settings(&stand_in.url, base.path(), "url")).await;
        let result = call(&client, "query_video_generation", json!({ "task_id": "t" })).await;
        assert!(text(&result).contains(expected), "{result:?}");
        assert_eq!(result.is_error == Some(true), is_error);
    }
}

#[tokio::test]
async fn pictures_are_made() {
    let arguments =
        json!({ "prompt": "a cat in a hat", "aspect_ratio": "16:9", "n": 2, "prompt_optimizer": false });
    let done = Done::new("url", "text_to_image", arguments.clone()).await;
    let mut expected = arguments.clone();
    expected["model"] = "image-01".into();
    assert_eq!(done.asked[0].json(), expected);
    let url = &done.url;
    assert_eq!(done.text(), format!("Success. Image URLs: ['{url}/files/0.jpg', '{url}/files/1.jpg']"));
    assert_eq!(done.kinds(), ["text", "resource_link", "resource_link"]);

    let done = Done::new("local", "text_to_image", arguments).await;
    let made: Vec<String> = files(done.base.path());
    assert!(made[0].starts_with("image_0_a_cat_in_") && made[1].starts_with("image_1_a_cat_in_"), "{made:?}");
    assert!(made[0].ends_with(".jpg"));
    let path = |name: &str| done.base.path().join(name).display().to_string();
    assert_eq!(
        done.text(),
        format!("Success. Images saved as: ['{}', '{}']", path(&made[0]), path(&made[1]))
    );
    assert_eq!(done.kinds(), ["text", "image", "image"]);
}

#[tokio::test]
async fn music_is_made() {
    let arguments = json!({ "prompt": "sad piano", "lyrics": "[Verse]\nrain" });
    let done = Done::new("url", "music_generation", arguments.clone()).await;
    let mut expected = json!({
        "model": "music-2.0",
        "prompt": "sad piano",
        "lyrics": "[Verse]\nrain",
        "audio_setting": { "sample_rate": 32000, "bitrate": 128000, "format": "mp3" },
        "output_format": "url",
    });
    assert_eq!(done.asked[0].json(), expected);
    assert_eq!(done.text(), format!("Success. Music url: {}/files/a.mp3?sign=x%2Fy", done.url));

    let done = Done::new("local", "music_generation", arguments).await;
    expected.as_object_mut().unwrap().remove("output_format");
    assert_eq!(done.asked[0].json(), expected);
    let path = done.file("music_sad_piano_", ".mp3", SOUND);
    assert_eq!(done.text(), format!("Success. Music saved as: {path}"));
    assert_eq!(HEX.len(), 2 * SOUND.len());
}

#[tokio::test]
async fn errors_of_the_api_come_with_code_and_trace() {
    for (code, hint) in [(1004, "MINIMAX_API_KEY and MINIMAX_API_HOST"), (2038, "verified"), (1026, "")] {
        let stand_in = StandIn::answering(move |_, _| Some(common::api_error(code, "what it says"))).await;
        let base = tempfile::tempdir().unwrap();
        let client = connect(settings(&stand_in.url, base.path(), "url")).await;
        let result = call(&client, "text_to_audio", json!({ "text": "x" })).await;
        let message = error(&result);
        for part in
            ["text_to_audio: ", &format!("API error {code}: what it says"), hint, "(Trace-Id: trace-9)"]
        {
            assert!(message.contains(part), "{message}");
        }
        assert!(!message.contains("the-key"), "{message}");
        assert_eq!(stand_in.received().len(), 1);
    }
}

#[tokio::test]
async fn a_success_without_what_it_should_bring_is_an_error() {
    let calls = [
        ("text_to_audio", json!({ "text": "x" }), "data.audio"),
        ("music_generation", json!({ "prompt": "x", "lyrics": "y" }), "data.audio"),
        ("text_to_image", json!({ "prompt": "x" }), "data.image_urls"),
        ("generate_video", json!({ "prompt": "x" }), "task_id"),
        ("voice_design", json!({ "prompt": "x", "preview_text": "y" }), "voice_id"),
    ];
    let stand_in = StandIn::answering(|_, _| Some(common::ok(json!({ "data": null })))).await;
    let base = tempfile::tempdir().unwrap();
    for mode in ["url", "local"] {
        let client = connect(settings(&stand_in.url, base.path(), mode)).await;
        for (tool, arguments, field) in &calls {
            let message = error(&call(&client, tool, arguments.clone()).await);
            assert!(message.contains(&format!("the response has no {field}")), "{message}");
        }
    }
    assert_eq!(files(base.path()), [""; 0]);
}
