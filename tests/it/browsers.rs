//! What reaches a control plane that asks nobody for a token: its machine's programs, and no web page.

use reqwest::header::{CONTENT_TYPE, HOST, HeaderName, ORIGIN};
use reqwest::{Method, StatusCode};

use crate::harness::Config;

#[tokio::test]
async fn without_tokens_no_page_of_another_site_is_answered() {
    let server = Config::new().start().await;
    let client = server.client();
    let fetch_site = HeaderName::from_static("sec-fetch-site");
    let query = br#"{"query": "SELECT 1"}"#.to_vec();
    for foreign in [
        [(ORIGIN, "https://evil.example"), (CONTENT_TYPE, "application/json")],
        [(ORIGIN, "null"), (CONTENT_TYPE, "text/plain")],
        [(fetch_site, "cross-site"), (CONTENT_TYPE, "application/json")],
    ] {
        let answer = client.send(Method::POST, "sql", &foreign, query.clone()).await.unwrap();
        assert_eq!((answer.status, answer.problem().as_str()), (StatusCode::FORBIDDEN, "origin_not_allowed"));
    }
    let rebound = client.send(Method::GET, "metrics", &[(HOST, "evil.example:7843")], Vec::new()).await.unwrap();
    assert_eq!((rebound.status, rebound.problem().as_str()), (StatusCode::FORBIDDEN, "host_not_allowed"));
    let health = client.send(Method::GET, "/healthz", &[(HOST, "10.0.0.7:7843")], Vec::new()).await.unwrap();
    assert_eq!(health.status, StatusCode::OK, "probes name addresses");
    let other_port = [(ORIGIN, "http://localhost:3000"), (CONTENT_TYPE, "application/json")];
    let refused = client.send(Method::POST, "sql", &other_port, query.clone()).await.unwrap();
    assert_eq!(refused.problem(), "origin_not_allowed", "another program of this machine's serves that page");
    let (own, csrf) = (server.url(), HeaderName::from_static("mcpg-csrf"));
    let own = [(ORIGIN, own.as_str()), (csrf, "1"), (CONTENT_TYPE, "application/json")];
    assert_eq!(client.send(Method::POST, "sql", &own, query).await.unwrap().status, StatusCode::OK);
}

#[tokio::test]
async fn a_host_that_is_configured_is_allowed() {
    let server = Config::new().with("allowed_hosts: [mcpg.internal, 127.0.0.1]").start().await;
    let client = server.client();
    let host = server.authority().replace("127.0.0.1", "mcpg.internal");
    let named = client.send(Method::GET, "metrics", &[(HOST, host.as_str())], Vec::new()).await.unwrap();
    assert_eq!(named.status, StatusCode::OK);
}
