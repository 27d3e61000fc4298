//! Where wrapped keys lie: a bucket of their own, one that keeps versions, one with Object Lock.

use std::time::Duration;

use serde_json::{Value, json};

use super::{OPERATOR, config, note, told};
use crate::harness::s3::Service;
use crate::harness::{Started, clock_ahead, mcpg, python, run};

const DAY: i64 = 86_400;

#[tokio::test]
async fn in_a_bucket_with_versions_every_version_of_a_key_is_deleted() {
    let moto = Service::moto().await;
    let endpoint = moto.bucket().endpoint.clone();
    let made = python("bucket.py", &[&endpoint, "versions", "make"]).await;
    assert_eq!(made, json!({ "made": true }));
    let bucket = crate::harness::s3::Bucket { name: "versions".to_owned(), ..moto.bucket().clone() };
    let keys = format!("payload_keys: {{ storage: {} }}", bucket.yaml("keys"));
    let mut server = config(", retention: { payloads: 2d }").with(&keys).start().await;
    let first = *note(&server).await.epochs.keys().next().unwrap();
    let args = ["payload", "kek", "rotate", "--url", &server.url(), "--token", OPERATOR].map(str::to_owned);
    assert!(run(mcpg().args(args)).status.success());
    let key = format!("keys/default/{first}");
    let versions = async || python("bucket.py", &[&endpoint, "versions", &key]).await["versions"].as_u64().unwrap();
    assert_eq!(versions().await, 2, "what wrapped it before is a version of it");
    assert!(server.stop().await.success());
    server.set_environment(clock_ahead(4 * DAY));
    server.start().await;
    let destroyed = told(&server, "payload.key_destroyed", 1).await;
    let detail =
        destroyed.iter().map(|entry| &entry["detail"]).find(|detail| detail["epoch"] == json!(first.to_string()));
    let detail: &Value = detail.unwrap_or_else(|| panic!("{destroyed:?}"));
    assert_eq!(detail["versions_deleted"], 2, "{detail}");
    assert_eq!(versions().await, 0);
}

#[tokio::test]
async fn a_bucket_with_object_lock_is_refused() {
    let moto = Service::moto().await;
    python("bucket.py", &[&moto.bucket().endpoint, "locked", "lock"]).await;
    let bucket = crate::harness::s3::Bucket { name: "locked".to_owned(), ..moto.bucket().clone() };
    let keys = format!("payload_keys: {{ storage: {} }}", bucket.yaml("keys"));
    let mut server = config("").with(&keys).server();
    let started = server.try_start(Duration::from_secs(60)).await;
    assert!(matches!(started, Started::Ended(status) if status.code() == Some(2)), "{started:?}");
    assert!(server.logs().contains("Object Lock"), "{}", server.logs());
}
