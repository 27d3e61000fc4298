//! Invariant I2: a damaged object of the log is reported exactly and stops the org it belongs to. An object that did
//! not arrive whole is damage too, since no store that the program accepts can tear one. Every kind of object is
//! spoiled in `faults::objects`.

use std::path::{Path, PathBuf};

use reqwest::StatusCode;
use serde_json::json;

use crate::harness::{Client, Config, Folder, Sample, Server, Started, ndjson};

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
    let store = Folder::at(server.storage());
    store.log().into_iter().map(|number| store.file(&format!("wal/{number:020}"))).collect()
}

/// Whether an object has samples of the org.
fn has_samples(object: &Path, org: &str) -> bool {
    let bytes = std::fs::read(object).unwrap();
    let length = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[20..20 + length]).unwrap();
    header["sections"].as_array().unwrap().iter().any(|s| s["org"] == org && s["rows"]["kind"] == "samples")
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
    // It may refuse to start or refuse to serve, but it must not serve what is left as if it were all.
    let started = server.try_start(std::time::Duration::from_secs(60)).await;
    let client = server.client();
    if !matches!(started, Started::Ended(_)) {
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

/// A write either is there whole or is not there: half an object at the log's end is not one that was never
/// acknowledged.
#[tokio::test]
async fn half_an_object_at_the_end_is_told_and_not_passed_over() {
    let mut server = with_two_orgs().await;
    server.kill();
    let objects = log(&server);
    let newest = objects.last().unwrap();
    let bytes = std::fs::read(newest).unwrap();
    let number: u64 = newest.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let half = newest.with_file_name(format!("{:020}", number + 1));
    std::fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();

    let name = half.file_name().unwrap().to_str().unwrap();
    if server.try_start(std::time::Duration::from_secs(60)).await == Started::Ready {
        for org in ["default", "acme"] {
            let client = server.client().with_org(org);
            let sample = ndjson(&[Sample::new("a", "b", 1.0)]);
            let answer = client.try_post("application/x-ndjson", None, None, sample).await.unwrap();
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text());
            assert!(answer.text().contains(name), "the object is named: {}", answer.text());
        }
    } else {
        assert!(server.logs().contains(name), "the object is named:\n{}", server.logs());
    }
}
