//! Publications from a web server: fetched into a directory of our own, and only there checked and used.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use arges_model::publication::{
    File, LATEST_FILE, MANIFEST_FILE, Manifest, PublicationError, check_file, parse_latest, version_name,
    versions,
};
use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

/// A server that sends nothing for so long is given up.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest `latest.json` or manifest.
const MAX_TEXT: u64 = 16 << 20;

/// Why a publication could not be fetched.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{url} cannot be fetched: {reason}")]
    Http { url: String, reason: String },
    #[error("{url}: {reason}")]
    Malformed { url: String, reason: String },
    #[error("version {version} has {bytes} bytes, more than the {limit} that weights of this model may have")]
    TooLarge { version: u64, bytes: u64, limit: u64 },
    #[error("cannot write what was fetched: {0}")]
    Write(#[from] io::Error),
    #[error(transparent)]
    Publication(#[from] PublicationError),
}

/// The versions that were fetched.
pub(super) struct Spool {
    directory: TempDir,
    client: reqwest::Client,
}

impl Spool {
    pub fn new() -> Result<Self, FetchError> {
        #[cfg(feature = "tls")]
        {
            // An error says that a provider was installed before, which is as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        let client = reqwest::Client::builder().read_timeout(SILENCE).connect_timeout(SILENCE).build();
        let client =
            client.map_err(|error| FetchError::Http { url: String::new(), reason: chain(&error) })?;
        Ok(Self { directory: tempfile::Builder::new().prefix("arges-weights-").tempdir()?, client })
    }

    /// Where they are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Fetches a version, the newest if none is named, with what it is a delta against. What is here already is not
    /// fetched again.
    pub async fn fetch(&self, url: &str, version: Option<u64>, limit: u64) -> Result<u64, FetchError> {
        let url = url.trim_end_matches('/');
        let version = match version {
            Some(version) => version,
            None => {
                let place = format!("{url}/{LATEST_FILE}");
                let text = self.text(&place).await?;
                parse_latest(&text).map_err(|reason| FetchError::Malformed { url: place, reason })?
            }
        };
        let manifest = self.fetch_version(url, version, limit).await?;
        if let Some(base) = manifest.base {
            self.fetch_version(url, base.version, limit).await?;
        }
        Ok(version)
    }

    async fn fetch_version(&self, url: &str, version: u64, limit: u64) -> Result<Manifest, FetchError> {
        let url = format!("{url}/{}", version_name(version));
        let place = format!("{url}/{MANIFEST_FILE}");
        let text = self.text(&place).await?;
        let manifest =
            Manifest::parse(&text).map_err(|reason| FetchError::Malformed { url: place, reason })?;
        let directory = self.directory().join(version_name(version));
        let same = tokio::fs::read(directory.join(MANIFEST_FILE)).await.is_ok_and(|ours| ours == text);
        if same {
            return Ok(manifest);
        }
        let bytes = manifest.files.iter().map(|file| file.bytes).fold(0, u64::saturating_add);
        if bytes > limit {
            return Err(FetchError::TooLarge { version, bytes, limit });
        }
        let partial = self.directory().join(".partial");
        remove(&partial).await?;
        tokio::fs::create_dir(&partial).await?;
        for file in &manifest.files {
            self.file(&format!("{url}/{}", file.name), file, &partial.join(&file.name)).await?;
        }
        tokio::fs::write(partial.join(MANIFEST_FILE), &text).await?;
        remove(&directory).await?;
        tokio::fs::rename(&partial, &directory).await?;
        Ok(manifest)
    }

    async fn get(&self, url: &str) -> Result<reqwest::Response, FetchError> {
        let response = self.client.get(url).send().await.and_then(reqwest::Response::error_for_status);
        response.map_err(|error| FetchError::Http { url: url.to_owned(), reason: chain(&error) })
    }

    async fn text(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        let (mut stream, mut text) = (self.get(url).await?.bytes_stream(), Vec::new());
        while let Some(piece) = stream.next().await {
            let piece =
                piece.map_err(|error| FetchError::Http { url: url.to_owned(), reason: chain(&error) })?;
            text.extend_from_slice(&piece);
            if text.len() as u64 > MAX_TEXT {
                return Err(FetchError::Malformed {
                    url: url.to_owned(),
                    reason: "it is too long".to_owned(),
                });
            }
        }
        Ok(text)
    }

    /// Fetches a file of a version; no more of it than it should have.
    async fn file(&self, url: &str, file: &File, to: &Path) -> Result<(), FetchError> {
        let mut stream = self.get(url).await?.bytes_stream();
        let mut out = tokio::fs::File::create(to).await?;
        let mut length = 0;
        while let Some(piece) = stream.next().await {
            let piece =
                piece.map_err(|error| FetchError::Http { url: url.to_owned(), reason: chain(&error) })?;
            length += piece.len() as u64;
            out.write_all(&piece).await?;
            if length > file.bytes {
                break;
            }
        }
        out.flush().await?;
        drop(out);
        Ok(check_file(to, file, false)?)
    }

    /// Removes all other versions.
    pub fn keep_only(&self, kept: &[u64]) {
        let Ok(all) = versions(self.directory()) else { return };
        for version in all.into_iter().filter(|version| !kept.contains(version)) {
            let place: PathBuf = self.directory().join(version_name(version));
            if let Err(error) = std::fs::remove_dir_all(&place) {
                tracing::warn!(%error, place = %place.display(), "old weights could not be removed");
            }
        }
    }
}

async fn remove(directory: &Path) -> io::Result<()> {
    match tokio::fs::remove_dir_all(directory).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// An error with its causes, which `reqwest` keeps to itself.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
