//! Idempotency keys: a retried batch is stored once, however it is retried.

use std::collections::BTreeSet;

use reqwest::StatusCode;

use crate::harness::{Client, Config, Sample, ndjson};

fn batch() -> Vec<u8> {
    ndjson(&[Sample::new("github", "list_repos", 5.0), Sample::new("github", "get_file", 7.0)])
}

async fn assert_stored_once(client: &Client) {
    assert_eq!(client.count().await, 2);
    assert_eq!(client.number("SELECT sum(calls) FROM tool_usage_hourly").await, 2);
    assert_eq!(client.metrics().await.total("mcpg_tool_calls_total"), 2.0);
}

#[tokio::test]
async fn the_same_key_again_is_a_duplicate() {
    let server = Config::new().start().await;
    let client = server.client();
    assert_eq!(client.post(batch(), Some("k1")).await, (2, false));
    assert_eq!(client.post(batch(), Some("k1")).await, (2, true));
    assert_stored_once(&client).await;
}

#[tokio::test]
async fn a_key_holds_over_a_stop_and_over_a_kill() {
    let mut server = Config::new().start().await;
    assert_eq!(server.client().post(batch(), Some("k1")).await, (2, false));
    assert!(server.stop().await.success());
    server.start().await;
    assert_eq!(server.client().post(batch(), Some("k1")).await, (2, true));
    server.kill();
    server.start().await;
    assert_eq!(server.client().post(batch(), Some("k1")).await, (2, true));
    assert_stored_once(&server.client()).await;
}

#[tokio::test]
async fn a_key_sent_many_times_at_once_is_stored_once() {
    let server = Config::new().start().await;
    let client = server.client();
    let body = batch();
    let attempts = (0..24).map(|_| client.post(body.clone(), Some("k1")));
    let answers = futures::future::join_all(attempts).await;
    assert_eq!(answers.iter().filter(|answer| **answer == (2, false)).count(), 1, "{answers:?}");
    assert!(answers.iter().all(|answer| answer.0 == 2));
    assert_stored_once(&client).await;
}

#[tokio::test]
async fn a_refused_batch_does_not_use_up_its_key() {
    let server = Config::new().start().await;
    let client = server.client();
    let bad = b"{\"workspace\":\"prod\"}\n".to_vec();
    let answer = client.try_post("application/x-ndjson", None, Some("k1"), bad).await.unwrap();
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert_eq!(client.post(batch(), Some("k1")).await, (2, false));
}

#[tokio::test]
async fn keys_belong_to_their_org() {
    let server = Config::new().with("orgs: [{ name: default }, { name: acme }]").start().await;
    assert_eq!(server.client().post(batch(), Some("k1")).await, (2, false));
    assert_eq!(server.client().with_org("acme").post(batch(), Some("k1")).await, (2, false));
    assert_eq!(server.client().count().await, 2);
}

#[tokio::test]
async fn without_a_key_the_same_body_is_new() {
    let server = Config::new().start().await;
    let client = server.client();
    for _ in 0..2 {
        assert_eq!(client.post(batch(), None).await, (2, false));
    }
    assert_eq!(client.count().await, 4);
}

#[tokio::test]
async fn a_key_that_is_none_is_refused() {
    let server = Config::new().start().await;
    let mut codes = BTreeSet::new();
    for key in ["", &"k".repeat(256)] {
        let answer = server.client().try_post("application/x-ndjson", None, Some(key), batch()).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{key:?}");
        codes.insert(answer.problem());
    }
    assert_eq!(codes.len(), 1, "one fault, one code: {codes:?}");
    assert_eq!(server.client().count().await, 0);
}
