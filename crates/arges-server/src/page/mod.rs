//! The chat page at `/`, and what turns its answers into HTML.
//!
//! The page is plain HTML, CSS and JavaScript in `assets`, part of the program, and talks to nothing but this server. It
//! needs no key; what it asks for does. Markdown and formulas are rendered here ([`render`]), so that the page needs no
//! library for either and never makes HTML out of what a model wrote.

mod clean;
mod markdown;
mod math;
mod render;

use std::sync::Arc;

use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get};

use crate::state::AppState;

pub(crate) use render::render;

/// Scripts, styles and requests of this server alone. Nothing may frame the page, and one place in it makes HTML.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types arges";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! asset {
    ($path:literal, $kind:expr) => {
        (concat!("/page/", $path), asset($kind, include_str!(concat!("assets/", $path))))
    };
}

/// The page itself.
pub(crate) fn index() -> MethodRouter<Arc<AppState>> {
    asset(HTML, include_str!("assets/index.html"))
}

/// What the page loads.
pub(crate) fn assets() -> Vec<(&'static str, MethodRouter<Arc<AppState>>)> {
    vec![
        asset!("page.css", CSS),
        asset!("answer.css", CSS),
        asset!("app.js", SCRIPT),
        asset!("api.js", SCRIPT),
        asset!("clipboard.js", SCRIPT),
        asset!("composer.js", SCRIPT),
        asset!("markdown.js", SCRIPT),
        asset!("settings.js", SCRIPT),
        asset!("sidebar.js", SCRIPT),
        asset!("store.js", SCRIPT),
        asset!("turns.js", SCRIPT),
        asset!("icon.svg", "image/svg+xml"),
    ]
}

fn asset(kind: &'static str, content: &'static str) -> MethodRouter<Arc<AppState>> {
    get(move || async move {
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        (headers, content).into_response()
    })
}
