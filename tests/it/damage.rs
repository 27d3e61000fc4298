//! Invariant I2: a damaged object of the log is told exactly and stops the org it belongs to; a torn one, which was never
//! acknowledged, is passed over.

use std::path::{Path, PathBuf};

use reqwest::StatusCode;
use serde_json::json;

use crate::harness::{Client, Config, Sample, Server, ndjson};

/// Nothing is flushed while the test looks at the log.
const UNFLUSHED: &str = "flush: { interval: 1h }\norgs: [{ name: default }, { name: acme }]";

async fn with_two_orgs() -> Server {
    let server = Config::new().with(UNFLUSHED).start().await;
    for org in ["default", "acme"] {
        let client = server.client().with_org(org);
        for _ in 0..3 {
            client.post(ndjson(&vec![Sample::new("github", "list_repos", 5.0); 20]), None).await;
        }
    }
    server
}

/// The log's objects, in order.
fn log(server: &Server) -> Vec<PathBuf> {
    let mut objects: Vec<_> =
        std::fs::read_dir(server.storage().join("wal")).unwrap().map(|entry| entry.unwrap().path()).collect();
    objects.sort();
    objects
}

/// Whether an object has samples of the org; events have a kind between the two words.
fn has_samples(object: &Path, org: &str) -> bool {
    let bytes = std::fs::read(object).unwrap();
    let word = format!("\"org\":\"{org}\",\"rows\"");
    bytes.windows(word.len()).any(|window| window == word.as_bytes())
}

async fn assert_stopped(client: &Client, object: &Path) {
    let object = object.file_name().unwrap().to_str().unwrap();
    let query = client.sql_as("SELECT count(*) FROM tool_invocations", json!([]), "application/json").await;
    let sample =
        client.try_post("application/x-ndjson", None, None, ndjson(&[Sample::new("a", "b", 1.0)])).await.unwrap();
    for answer in [query, client.get("metrics").await, sample] {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
        assert_eq!(answer.problem(), "org_stopped");
        assert!(answer.text().contains(object), "the object is named: {}", answer.text());
    }
}

#[tokio::test]
async fn a_changed_byte_of_samples_stops_their_org_and_no_other() {
    let mut server = with_two_orgs().await;
    server.kill();
    let object = log(&server).into_iter().find(|object| has_samples(object, "acme")).unwrap();
    let mut bytes = std::fs::read(&object).unwrap();
    let last = bytes.len() - 40;
    bytes[last] ^= 1;
    std::fs::write(&object, bytes).unwrap();

    server.start().await;
    assert_stopped(&server.client().with_org("acme"), &object).await;
    assert_eq!(server.client().count().await, 60, "the other org goes on");
    assert_eq!(server.client().post(ndjson(&[Sample::new("a", "b", 1.0)]), None).await, (1, false));
}

#[tokio::test]
async fn an_object_that_is_gone_from_the_middle_of_the_log_is_not_skipped() {
    let mut server = with_two_orgs().await;
    server.kill();
    let objects = log(&server);
    assert!(objects.len() >= 3, "{objects:?}");
    std::fs::remove_file(&objects[1]).unwrap();
    server.spawn();
    let client = server.client();
    // It may refuse to start or refuse to serve, but it must not serve what is left as if it were all.
    for _ in 0..50 {
        if !server.alive() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    if server.alive() {
        for org in ["default", "acme"] {
            let query = "SELECT count(*) FROM tool_invocations";
            let answer = client.with_org(org).sql_as(query, json!([]), "application/json").await;
            let whole = answer.status == StatusCode::OK && answer.json()["rows"][0][0] == 60;
            assert!(whole || answer.status == StatusCode::SERVICE_UNAVAILABLE, "{}: {}", answer.status, answer.text());
        }
    } else {
        assert!(server.logs().contains("wal/"), "the object is named:\n{}", server.logs());
    }
}

#[tokio::test]
async fn a_torn_object_at_the_end_is_passed_over_and_the_log_goes_on() {
    let mut server = with_two_orgs().await;
    server.kill();
    let objects = log(&server);
    let newest = objects.last().unwrap();
    let bytes = std::fs::read(newest).unwrap();
    let number: u64 = newest.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let torn = newest.with_file_name(format!("{:020}", number + 1));
    std::fs::write(&torn, &bytes[..bytes.len() / 2]).unwrap();

    for round in 0..2 {
        server.start().await;
        for org in ["default", "acme"] {
            let client = server.client().with_org(org);
            assert_eq!(client.count().await, 60 + round);
            assert_eq!(client.post(ndjson(&[Sample::new("a", "b", 1.0)]), None).await, (1, false));
            assert_eq!(client.metrics().await.total("mcpg_tool_calls_total"), (61 + round) as f64);
        }
        server.kill();
    }
}
