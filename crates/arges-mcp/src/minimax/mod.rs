//! MiniMax's HTTP API: requests with bounded time and memory, retries, and the API's own errors.
//!
//! Paths, bodies and headers are those that the original servers send. A response is read under limits; of those
//! that are not small, only a few are held at once, so that memory stays bounded whatever the number of calls.

mod body;
mod download;
mod error;
mod reply;
mod transfer;

use std::path::PathBuf;
use std::sync::Arc;

use reqwest::multipart::{Form, Part};
use reqwest::{RequestBuilder, Url};
use serde_json::Value;
use tokio_util::io::ReaderStream;

pub use error::{CallError, Repeat};
pub use reply::Reply;
pub use transfer::Transfer;

/// The API for the owner of one key.
#[derive(Debug)]
pub struct Api {
    transfer: Arc<Transfer>,
    host: String,
    key: String,
}

/// A file to send.
#[derive(Debug)]
pub struct Upload {
    /// Where it is.
    pub path: PathBuf,
    /// The name that the API is told.
    pub name: String,
    /// Its type, where the API is to be told one.
    pub mime: Option<&'static str>,
}

impl Api {
    /// The API at `host`, such as `https://api.minimax.io`.
    pub fn new(transfer: Arc<Transfer>, host: &str, key: &str) -> Api {
        Api { transfer, host: host.trim_end_matches('/').to_owned(), key: key.to_owned() }
    }

    /// Sends a JSON body.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn post(&self, path: &str, body: &Value, repeat: Repeat) -> Result<Reply, CallError> {
        let what = format!("POST {path}");
        let url = self.url(&what, path)?;
        let mut attempts = self.transfer.attempts(repeat);
        loop {
            let request = self.transfer.client.post(url.clone()).json(body);
            match self.call(&what, request).await {
                Ok(reply) => return Ok(reply),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// Asks for something by one parameter.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get(&self, path: &str, parameter: (&str, &str)) -> Result<Reply, CallError> {
        let what = format!("GET {path}");
        let mut url = self.url(&what, path)?;
        url.query_pairs_mut().append_pair(parameter.0, parameter.1);
        let mut attempts = self.transfer.attempts(Repeat::Always);
        loop {
            let request = self.transfer.client.get(url.clone()).header("content-type", "application/json");
            match self.call(&what, request).await {
                Ok(reply) => return Ok(reply),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    /// Sends a file for a purpose.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn upload(&self, path: &str, purpose: &str, file: &Upload) -> Result<Reply, CallError> {
        let what = format!("POST {path}");
        let url = self.url(&what, path)?;
        let mut attempts = self.transfer.attempts(Repeat::Always);
        loop {
            let form = Form::new().text("purpose", purpose.to_owned()).part("file", part(&what, file).await?);
            match self.call(&what, self.transfer.client.post(url.clone()).multipart(form)).await {
                Ok(reply) => return Ok(reply),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    fn url(&self, what: &str, path: &str) -> Result<Url, CallError> {
        parse_url(what, &format!("{}{path}", self.host))
    }

    /// One attempt at a call.
    async fn call(&self, what: &str, request: RequestBuilder) -> Result<Reply, CallError> {
        let request = request.bearer_auth(&self.key).header("MM-API-Source", "Minimax-MCP");
        let attempt = async {
            let response = self.transfer.send(what, request).await?;
            self.transfer.reply(what, response).await
        };
        self.transfer.in_turn(what, attempt).await
    }
}

/// The part of a form that streams a file.
async fn part(what: &str, file: &Upload) -> Result<Part, CallError> {
    let failed = |source| CallError::File { what: format!("{what} of {}", file.path.display()), source };
    let opened = tokio::fs::File::open(&file.path).await.map_err(failed)?;
    let length = opened.metadata().await.map_err(failed)?.len();
    let stream = reqwest::Body::wrap_stream(ReaderStream::new(opened));
    let part = Part::stream_with_length(stream, length).file_name(file.name.clone());
    let Some(mime) = file.mime else { return Ok(part) };
    part.mime_str(mime).map_err(|error| failed(std::io::Error::other(error)))
}

fn parse_url(what: &str, address: &str) -> Result<Url, CallError> {
    let url = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| CallError::Address { what: what.to_owned(), address: address.to_owned() })
}
