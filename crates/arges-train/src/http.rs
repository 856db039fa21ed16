//! What all requests to other machines share.

use std::time::Duration;

/// A client that gives a connection so long to come about.
///
/// # Errors
/// Why it does not start.
pub(crate) fn client(connect_timeout: Duration) -> Result<reqwest::Client, String> {
    #[cfg(feature = "tls")]
    {
        // An error says that a provider was installed before, which is as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    reqwest::Client::builder().connect_timeout(connect_timeout).build().map_err(|error| chain(&error))
}

/// Whether a text is an address that requests can be sent to.
pub(crate) fn is_url(text: &str) -> bool {
    let scheme = reqwest::Url::parse(text).map(|url| url.scheme().to_owned()).unwrap_or_default();
    scheme == "http" || (scheme == "https" && cfg!(feature = "tls"))
}

/// An error with its causes, which `reqwest` keeps to itself.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
