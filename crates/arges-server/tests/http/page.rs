//! The chat page, and what renders for it.

use arges_server::ServerOptions;
use axum::http::StatusCode;
use serde_json::json;

use crate::support::{MODEL, engine_options, post, server, server_with};

#[tokio::test]
async fn the_page_and_all_that_it_loads_are_there_without_a_key() {
    let options = ServerOptions { api_keys: vec!["secret".to_owned()], ..ServerOptions::new(MODEL) };
    let server = server_with(engine_options(), options);
    let page = server.get("/").await;
    assert_eq!(page.status, StatusCode::OK);
    // Every address in the page, and in the modules that it loads.
    let mut left: Vec<String> =
        page.body.split(['"', '\'']).filter(|text| text.starts_with("page/")).map(str::to_owned).collect();
    let mut seen = Vec::new();
    while let Some(path) = left.pop() {
        if seen.contains(&path) {
            continue;
        }
        let asset = server.get(&format!("/{path}")).await;
        assert_eq!(asset.status, StatusCode::OK, "{path}");
        assert_eq!(asset.headers["x-content-type-options"], "nosniff");
        let imports = asset.body.lines().filter(|line| line.starts_with("import "));
        left.extend(imports.filter_map(|line| {
            line.split("\"./").nth(1)?.strip_suffix("\";").map(|name| format!("page/{name}"))
        }));
        seen.push(path);
    }
    assert!(seen.len() > 8, "{seen:?}");
    // The routes behind it want the key.
    assert_eq!(server.send(post("/render", r#"{"text": "a"}"#)).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_page_may_load_nothing_from_elsewhere() {
    let page = server().get("/").await;
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
    for source in policy.split(';').flat_map(|directive| directive.split_whitespace().skip(1)) {
        assert!(["'none'", "'self'", "'script'", "arges"].contains(&source), "{policy}");
    }
    assert!(!page.body.contains("http:") && !page.body.contains("https:"));
}

#[tokio::test]
async fn texts_are_rendered_and_wrong_ones_refused() {
    let server = server();
    let rendered = server.post("/render", json!({"text": "é **b**\n\n$x$"})).await.ok();
    let blocks = rendered["blocks"].as_array().unwrap();
    assert_eq!(blocks[0], json!({"start": 0, "html": "<p>é <strong>b</strong></p>\n"}));
    assert_eq!(blocks[1]["start"], 9);
    assert!(blocks[1]["html"].as_str().unwrap().contains("<math"), "{rendered}");
    let long = "a".repeat((1 << 20) + 1);
    for body in [json!({}), json!({"text": 1}), json!({"text": long})] {
        let (status, param, _) = server.post("/render", body).await.error();
        assert_eq!((status, param.as_deref()), (400, Some("text")));
    }
}
