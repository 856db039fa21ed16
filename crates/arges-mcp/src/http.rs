//! The HTTP client that everything here uses.

use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, ClientBuilder};

/// Redirects followed at most.
const REDIRECTS: usize = 5;

/// A client that gives up on a connection after `connect`. Proxies are those of the environment.
///
/// # Errors
/// TLS that cannot be set up.
pub fn client(connect: Duration) -> reqwest::Result<Client> {
    builder(connect).build()
}

/// As [`client`], to be completed.
pub fn builder(connect: Duration) -> ClientBuilder {
    #[cfg(feature = "tls")]
    {
        // An error says that a provider was installed before, which is as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    Client::builder()
        .user_agent(concat!("arges/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect)
        .redirect(Policy::limited(REDIRECTS))
}

/// An error and its causes on one line, without the address, which may carry a signature.
pub fn reason(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}
