//! SQL over HTTP.

use reqwest::StatusCode;
use serde_json::json;

use crate::harness::{Config, Sample, ndjson};

#[tokio::test]
async fn a_batch_is_seen_by_the_next_query() {
    let server = Config::new().start().await;
    let client = server.client();
    for sent in 1..=20 {
        client.post(ndjson(&[Sample::new("github", "list_repos", 5.0)]), None).await;
        assert_eq!(client.count().await, sent);
    }
}

#[tokio::test]
async fn a_fault_in_the_query_is_told_with_its_place() {
    let server = Config::new().start().await;
    let answer = server.client().sql_as("SELECT toool\nFROM tool_invocations", json!([]), "application/json").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(answer.problem(), "invalid_query");
    assert!(answer.text().contains("toool"), "{}", answer.text());
    let syntax = server.client().sql_as("SELECT FROM WHERE", json!([]), "application/json").await;
    assert_eq!((syntax.status, syntax.problem().as_str()), (StatusCode::BAD_REQUEST, "invalid_query"));
    assert!(syntax.text().to_lowercase().contains("line"), "{}", syntax.text());
}
