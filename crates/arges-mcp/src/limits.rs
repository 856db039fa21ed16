//! Bounds on what a tool may take of time and memory.

use std::time::Duration;

/// What one server grants its tools. The defaults let the slowest of MiniMax's answers through.
#[derive(Debug, Clone)]
pub struct Limits {
    /// To open a connection.
    pub connect: Duration,
    /// From the request to the head of its response; music and long texts are made meanwhile.
    pub answer: Duration,
    /// Between two pieces of a body.
    pub idle: Duration,
    /// One attempt altogether.
    pub total: Duration,
    /// Attempts at a request, the first included.
    pub attempts: u32,
    /// Pause before the second attempt; each later one is twice as long.
    pub backoff: Duration,
    /// Bytes of a JSON response: twice those of the audio it carries in hexadecimal.
    pub json_bytes: u64,
    /// Bytes of a downloaded file.
    pub download_bytes: u64,
    /// Bytes of a file that is sent: a voice to clone, a picture to start from.
    pub upload_bytes: u64,
    /// Bytes of pictures and sound that go into a result itself, all together; others are told by their place alone.
    /// Some clients take no message beyond 1 MiB, of which base64 makes a third more.
    pub inline_bytes: u64,
    /// Requests in flight at once; others wait for their turn.
    pub concurrent: usize,
    /// Responses beyond [`Self::small_bytes`] held at once; others wait in the network.
    pub large_responses: usize,
    /// Bytes up to which a response is small.
    pub small_bytes: u64,
    /// Between two questions whether a video is there.
    pub poll: Duration,
    /// Between two reports of progress while nothing else happens.
    pub report: Duration,
    /// A playback or synthesis on this machine.
    pub local: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(300),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(600),
            attempts: 3,
            backoff: Duration::from_millis(500),
            json_bytes: 128 << 20,
            download_bytes: 1 << 30,
            upload_bytes: 64 << 20,
            inline_bytes: 512 << 10,
            concurrent: 64,
            large_responses: 2,
            small_bytes: 256 << 10,
            poll: Duration::from_secs(20),
            report: Duration::from_secs(5),
            local: Duration::from_secs(1800),
        }
    }
}
