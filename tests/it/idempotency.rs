//! Idempotency keys: a retried batch is stored once, however it is retried.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Method, StatusCode};

use crate::harness::{Answer, Client, Config, Sample, ndjson};

const EMITTER: &str = "7d444840-9dc0-11d1-b245-5ffdce74fad2/0";

/// The same bytes each time: a retry.
fn batch() -> Vec<u8> {
    static BATCH: LazyLock<Vec<u8>> =
        LazyLock::new(|| ndjson(&[Sample::new("github", "list_repos", 5.0), Sample::new("github", "get_file", 7.0)]));
    BATCH.clone()
}

/// Sends a batch as number `number` of a lane, with `after` answered before it.
async fn number(client: &Client, number: u64, after: u64, body: Vec<u8>) -> Answer {
    let (number, after) = (number.to_string(), after.to_string());
    let headers = [
        (CONTENT_TYPE, "application/x-ndjson"),
        (HeaderName::from_static("mcpg-emitter"), EMITTER),
        (HeaderName::from_static("mcpg-sequence"), &number),
        (HeaderName::from_static("mcpg-after"), &after),
    ];
    client.send(Method::POST, "invocations", &headers, body).await.unwrap()
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

#[tokio::test]
async fn the_same_number_again_is_a_duplicate_also_after_a_kill_and_many_times_at_once() {
    let mut server = Config::new().start().await;
    let attempts =
        (0..24).map(|_| async { number(&server.client(), 1, 0, batch()).await.ok().json()["duplicate"].clone() });
    let answers = futures::future::join_all(attempts).await;
    assert_eq!(answers.iter().filter(|duplicate| **duplicate == false).count(), 1, "{answers:?}");
    server.kill();
    server.start().await;
    let again = number(&server.client(), 1, 0, batch()).await.ok().json();
    assert_eq!((&again["accepted"], &again["duplicate"]), (&2.into(), &true.into()));
    assert_stored_once(&server.client()).await;
    assert_eq!(number(&server.client(), 2, 1, batch()).await.ok().json()["duplicate"], false);
    assert_eq!(server.client().count().await, 4);
}

/// An org whose keys are more than are remembered takes batches all the same, says how far back keys are known, and
/// keeps the newest.
#[tokio::test]
async fn keys_past_the_limit_refuse_nothing_and_the_oldest_go_first() {
    let server = Config::new().with("limits: { idempotency_keys: 10 }").start().await;
    let client = server.client();
    let body = |n: usize| ndjson(&[Sample::new("github", "list_repos", n as f64).with("request_id", format!("r{n}"))]);
    let bodies: Vec<_> = (0..40).map(body).collect();
    for (n, body) in bodies.iter().enumerate() {
        assert_eq!(client.post(body.clone(), Some(&format!("k{n}"))).await, (1, false));
    }
    let newest = client.try_post("application/x-ndjson", None, Some("k39"), bodies[39].clone()).await.unwrap().ok();
    assert_eq!(newest.json()["duplicate"], true);
    assert!(
        !newest.header("mcpg-keys-since").is_empty(),
        "it is said how far back keys are known: {:?}",
        newest.headers
    );
    assert_eq!(client.count().await, 40);
}

/// A client that repeats keys by mistake loses nothing in silence (the case `key-with-another-body`): the key names the
/// first batch for good, and the other one is refused.
#[tokio::test]
async fn a_key_with_another_body_is_refused_and_nothing_is_stored() {
    let mut server = Config::new().start().await;
    let one = |tool: &str| ndjson(&[Sample::new("github", tool, 5.0)]);
    let (first, five) = (one("a"), ["b", "c", "d", "e", "f"].map(one).concat());
    assert_eq!(server.client().post(first.clone(), Some("k")).await, (1, false));
    for round in 0..3 {
        let refused = server.client().try_post("application/x-ndjson", None, Some("k"), five.clone()).await.unwrap();
        assert_eq!((refused.status, refused.problem()), (StatusCode::UNPROCESSABLE_ENTITY, "key_reused".to_owned()));
        assert_eq!(
            server.client().post(first.clone(), Some("k")).await,
            (1, true),
            "what it names is a retry all the same"
        );
        assert_eq!(server.client().count().await, 1);
        if round == 0 {
            server.kill();
        } else {
            server.stop().await;
        }
        server.start().await;
    }
    assert_eq!(server.client().post(five, Some("another")).await, (5, false));
    assert_eq!(server.client().count().await, 6);
}

/// Of two batches under one key at once the one is stored and the other refused.
#[tokio::test]
async fn one_key_with_two_bodies_at_once_stores_one_of_them() {
    let server = Config::new().start().await;
    let client = server.client();
    for round in 0..20 {
        let key = format!("key-{round}");
        let body = || ndjson(&[Sample::new("github", "list_repos", 5.0)]);
        let post = |body| client.try_post("application/x-ndjson", None, Some(&key), body);
        let (one, other) = tokio::join!(post(body()), post(body()));
        let mut statuses = [one.unwrap().status.as_u16(), other.unwrap().status.as_u16()];
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 422]);
    }
    assert_eq!(client.count().await, 20);
}

#[tokio::test]
async fn a_number_that_cannot_be_compared_is_a_conflict_and_never_a_duplicate() {
    let mut server = Config::new().start().await;
    let body = |tool: &str| ndjson(&[Sample::new("github", tool, 5.0)]);
    let bodies: Vec<_> = (0..17).map(|n| body(&format!("tool-{n}"))).collect();
    for (n, body) in (1..).zip(&bodies) {
        number(&server.client(), n, n - 1, body.clone()).await.ok();
    }
    for _ in 0..2 {
        let client = server.client();
        let conflict = async |n, body| {
            let answer = number(&client, n, n - 1, body).await;
            assert_eq!(
                (answer.status, answer.problem()),
                (StatusCode::CONFLICT, "sequence_conflict".to_owned()),
                "{n}"
            );
        };
        conflict(17, body("another")).await;
        conflict(1, bodies[0].clone()).await;
        assert_eq!(number(&client, 2, 1, bodies[1].clone()).await.ok().json()["duplicate"], true, "the 16th last");
        assert_eq!(client.count().await, 17);
        server.kill();
        server.start().await;
    }
    // A batch that was given up, and one after batches that this store has lost.
    for (n, after) in [(19, 17), (25, 24)] {
        assert_eq!(number(&server.client(), n, after, body("more")).await.ok().json()["duplicate"], false);
    }
    assert_eq!(server.client().count().await, 19);
}
