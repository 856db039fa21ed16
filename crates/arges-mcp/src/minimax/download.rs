//! Files from addresses, which the API or the user gave.

use reqwest::header::CONTENT_TYPE;
use tokio::fs::File;
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use std::io::SeekFrom;

use super::body::header;
use super::{CallError, Repeat, Transfer, parse_url};

impl Transfer {
    /// Writes what is at an address into a file, from its beginning, and gives the number of bytes. The key is not
    /// sent along. Memory does not grow with the file.
    ///
    /// # Errors
    /// See [`CallError`]; a page of HTML is one, as no file that tools ask for is a page.
    pub async fn download(&self, address: &str, file: &mut File) -> Result<u64, CallError> {
        let url = parse_url("download", address)?;
        let what = format!("download from {}", url.host_str().unwrap_or_default());
        let mut attempts = self.attempts(Repeat::Always);
        loop {
            match self.in_turn(&what, self.download_once(&what, url.clone(), file)).await {
                Ok(length) => return Ok(length),
                Err(error) => attempts.after(error).await?,
            }
        }
    }

    async fn download_once(&self, what: &str, url: reqwest::Url, file: &mut File) -> Result<u64, CallError> {
        let response = self.send(what, self.client.get(url)).await?;
        let trace_id = header(response.headers(), "Trace-Id");
        let mut response = self.successful(what, response, &trace_id).await?;
        if let Some(content_type) = header(response.headers(), CONTENT_TYPE.as_str())
            && content_type.starts_with("text/html")
        {
            return Err(CallError::NotAFile { what: what.to_owned(), content_type });
        }
        let limit = self.limits.download_bytes;
        let too_large = || CallError::TooLarge { what: what.to_owned(), limit };
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let failed = |source| CallError::File { what: what.to_owned(), source };
        file.set_len(0).await.map_err(failed)?;
        file.seek(SeekFrom::Start(0)).await.map_err(failed)?;
        let mut length = 0;
        while let Some(piece) = self.piece(what, &mut response).await? {
            length += piece.len() as u64;
            if length > limit {
                return Err(too_large());
            }
            file.write_all(&piece).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        Ok(length)
    }
}
