//! What `docs/operations.md` tells an operator to do day by day, done: an org is added, and growth is what the page
//! says.

use std::path::Path;
use std::time::Duration;

use reqwest::StatusCode;
use serde_json::json;

use crate::harness::{Config, Sample, eventually, ndjson, now};

/// How long a flush or a checkpoint may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn an_org_is_added_as_the_page_says() {
    let mut server = Config::new().with("orgs: [{ name: default }]").start().await;
    let (client, acme) = (server.client(), server.client().with_org("acme"));
    let sample = || ndjson(&[Sample::new("github", "list_repos", 5.0)]);
    client.post(sample(), None).await;
    assert_eq!(acme.get("metrics").await.status, StatusCode::NOT_FOUND);
    server.reconfigure(&["orgs: [{ name: default }, { name: acme, tier: team }]"]);
    assert!(server.stop().await.success());
    server.start().await;
    acme.post(sample(), None).await;
    assert_eq!((acme.count().await, client.count().await), (1, 1));
    let made = eventually("the entry that the org was made", PATIENCE, async || {
        let page = acme.get("audit?action=operator.org_made").await.ok().json();
        page["entries"].as_array().unwrap().first().cloned()
    })
    .await;
    assert_eq!(made["target"], "acme");
    let told = acme.get("audit/vkey").await.ok().text();
    assert!(told.starts_with("mcpg.local/orgs/acme/audit/1+"), "{told}");
    // Taken out again: it is unknown, and nothing of it is deleted.
    server.reconfigure(&["orgs: [{ name: default }]"]);
    assert!(server.stop().await.success());
    server.start().await;
    assert_eq!(acme.get("metrics").await.status, StatusCode::NOT_FOUND);
    assert!(server.storage().join("orgs/acme/tool_invocations").is_dir());
    assert_eq!(client.count().await, 1);
}

/// The number on the page of operations that stands before these words.
fn figure(words: &str) -> f64 {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md")).unwrap();
    let (before, _) = page.split_once(words).unwrap_or_else(|| panic!("the page does not say: {words}"));
    let number = before.trim_end().rsplit([' ', '(']).next().unwrap();
    number.parse().unwrap_or_else(|e| panic!("{number}: {e}"))
}

/// Bytes of all files under a folder whose names end so.
fn bytes(folder: &Path, end: &str) -> u64 {
    let mut total = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            total += bytes(&path, end);
        } else if path.to_string_lossy().ends_with(end) {
            total += entry.metadata().unwrap().len();
        }
    }
    total
}

#[tokio::test(flavor = "multi_thread")]
async fn it_grows_by_no_more_than_the_page_says() {
    const SAMPLES: usize = 30_000;
    let mut server = Config::new().with("flush: { interval: 1h }").start().await;
    let client = server.client();
    for part in 0..SAMPLES / 5_000 {
        let sample = |n: usize| {
            Sample::new("github", ["list_repos", "search_code", "get_issue"][n % 3], (n % 977) as f64 * 1.37)
                .started_at(now())
                .with("trace_id", format!("{:032x}", u128::from(mixed(part * 5_000 + n)) << 64 | n as u128))
                .with("span_id", format!("{:016x}", mixed(n)))
                .with("caller", format!("user:{}@acme", n % 50))
                .with("decision", "permit")
        };
        client.post(ndjson(&(0..5_000).map(sample).collect::<Vec<_>>()), None).await;
        let event = |n: usize| json!({ "actor": format!("user:{}@acme", n % 50), "action": "tool.permit", "target": "github/list_repos", "decision": "permit" });
        let events: String = (0..5_000).map(|n| format!("{}\n", event(n))).collect();
        let headers = [(reqwest::header::CONTENT_TYPE, "application/x-ndjson")];
        client.send(reqwest::Method::POST, "audit", &headers, events.into_bytes()).await.unwrap().ok();
    }
    assert!(server.stop().await.success());
    let org = server.storage().join("orgs/default");
    // What a test makes of names is less alike than a fleet's, so twice the page's figure is the bound here: it is
    // about the order.
    let sample = bytes(&org.join("tool_invocations"), ".parquet") as f64 / SAMPLES as f64;
    assert!(sample > 10.0 && sample <= 2.0 * figure(" bytes a sample with all ids filled"), "{sample} bytes a sample");
    let entry = bytes(&org.join("audit"), "") as f64 / SAMPLES as f64;
    assert!(entry > 10.0 && entry <= 2.0 * figure(" bytes an entry:"), "{entry} bytes an entry");
}

/// A number that looks like chance, the same each time.
fn mixed(n: usize) -> u64 {
    let mut state = (n as u64).wrapping_add(0x9e37_79b9_7f4a_7c15);
    state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}
