//! Paths to handlers.

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::{from_fn_with_state, map_response};
use axum::routing::{MethodRouter, get, post};

use crate::error::ApiError;
use crate::openai::{chat, completions, models, responses};
use crate::state::AppState;
use crate::{admin, anthropic, auth, health, metrics, openapi, page, tokens, trace};

type Routes = Vec<(&'static str, MethodRouter<Arc<AppState>>)>;

/// For load balancers, and the page, which asks for the key itself; none is needed.
fn open_routes() -> Routes {
    vec![("/", page::index()), ("/health", get(health::health)), ("/ready", get(health::ready))]
}

fn routes() -> Routes {
    vec![
        ("/v1/chat/completions", post(chat::create)),
        ("/v1/completions", post(completions::create)),
        ("/v1/responses", post(responses::create)),
        ("/v1/models", get(models::list)),
        ("/v1/models/{*id}", get(models::retrieve)),
        ("/tokenize", post(tokens::tokenize)),
        ("/detokenize", post(tokens::detokenize)),
        ("/tokenizer_info", get(tokens::tokenizer_info)),
        ("/render", post(page::render)),
        ("/metrics", get(metrics::metrics)),
        ("/openapi.json", get(openapi::document)),
    ]
}

/// A trainer's, behind a key of their own.
fn admin_routes() -> Routes {
    vec![
        ("/admin/pause", post(admin::pause)),
        ("/admin/update_weights", post(admin::update_weights)),
        ("/admin/resume", post(admin::resume)),
        ("/admin/weight_version", get(admin::weight_version)),
    ]
}

/// Those whose errors are in Anthropic's shape.
fn anthropic_routes() -> Routes {
    vec![
        ("/v1/messages", post(anthropic::create)),
        ("/v1/messages/count_tokens", post(anthropic::count_tokens)),
    ]
}

fn all(routes: Routes) -> Router<Arc<AppState>> {
    let router = routes.into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
    router.method_not_allowed_fallback(wrong_method)
}

/// All routes of the server. Everything but `/health`, `/ready` and the page's files is behind the API key, or `/admin`
/// behind its own.
pub fn router(state: Arc<AppState>) -> Router {
    let key = from_fn_with_state(Arc::clone(&state), auth::require_key);
    let anthropic = all(anthropic_routes()).layer(key.clone()).layer(map_response(anthropic::in_own_shape));
    let admin = all(admin_routes()).layer(from_fn_with_state(Arc::clone(&state), admin::require_key));
    all(routes())
        .fallback(unknown_path)
        .layer(key)
        .merge(anthropic)
        .merge(admin)
        .merge(all(open_routes()))
        .merge(all(page::assets()))
        .layer(from_fn_with_state(Arc::clone(&state), trace::follow))
        .with_state(state)
}

async fn unknown_path(method: Method, uri: Uri) -> ApiError {
    ApiError::unknown_path(method.as_str(), uri.path())
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::wrong_method(method.as_str(), uri.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    #[test]
    fn the_description_has_the_routes_there_are() {
        let document: Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
        let described = document["paths"].as_object().unwrap().keys().cloned();
        let all = [routes(), anthropic_routes(), admin_routes(), open_routes()];
        let routed = all.iter().flatten().map(|(path, _)| path.replace("{*id}", "{id}"));
        assert_eq!(described.collect::<BTreeSet<_>>(), routed.collect::<BTreeSet<_>>());
    }

    #[test]
    fn every_reference_of_the_description_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(fields) => {
                    found.extend(fields.get("$ref").and_then(Value::as_str));
                    fields.values().for_each(|value| references(value, found));
                }
                Value::Array(items) => items.iter().for_each(|item| references(item, found)),
                _ => {}
            }
        }
        let document: Value = serde_json::from_str(openapi::DOCUMENT).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
}
