//! Values of arguments that a client leaves out: those of the original server.

pub const VOICE: &str = "female-shaonv";
pub const SPEECH_MODEL: &str = "speech-2.6-hd";
pub const MUSIC_MODEL: &str = "music-2.0";
pub const FORMAT: &str = "mp3";

pub fn voice() -> String {
    VOICE.to_owned()
}

pub fn speech_model() -> String {
    SPEECH_MODEL.to_owned()
}

pub fn video_model() -> String {
    "MiniMax-Hailuo-2.3".to_owned()
}

pub fn image_to_video_model() -> String {
    "I2V-01".to_owned()
}

pub fn image_model() -> String {
    "image-01".to_owned()
}

pub fn one() -> f64 {
    1.0
}

pub fn emotion() -> String {
    "happy".to_owned()
}

pub fn sample_rate() -> i64 {
    32_000
}

pub fn bitrate() -> i64 {
    128_000
}

pub fn one_channel() -> i64 {
    1
}

pub fn format() -> String {
    FORMAT.to_owned()
}

pub fn language_boost() -> String {
    "auto".to_owned()
}

pub fn all() -> String {
    "all".to_owned()
}

pub fn square() -> String {
    "1:1".to_owned()
}

pub fn one_image() -> i64 {
    1
}

pub fn yes() -> bool {
    true
}
