//! A store of version 1, as it was left by a `kill -9`, is brought over at the first start of this version, once.
//!
//! `tests/fixtures/store-v1.tar.gz` was made by the last program of version 1: two orgs, 12 batches of two samples and
//! 12 events each, with keys `k1` to `k12` and `e1` to `e12`, flushed now and then, and one more sample and event of
//! `acme` that were only in the log.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::json;

use crate::harness::{Config, Folder, Server, Started, assert_sound, clock_ahead, now, vkeys};

const ORGS: [&str; 2] = ["acme", "globex"];

/// Minutes after the store was left, by the clock of the nodes here: its keys are remembered for a day, and its samples
/// kept for a month.
fn made() -> DateTime<Utc> {
    "2026-11-26T22:40:00Z".parse().unwrap()
}

fn unpack(folder: &Path) {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/store-v1.tar.gz");
    let unpacked = Command::new("tar").arg("-xzf").arg(fixture).arg("-C").arg(folder).status().unwrap();
    assert!(unpacked.success());
}

fn node(folder: &Path) -> Config {
    let settings = format!(
        "orgs: [{{ name: acme }}, {{ name: globex }}]\nflush: {{ interval: 300ms }}\naudit: {{ key_file: {} }}",
        folder.join("ledger.key").display()
    );
    let ahead = made().signed_duration_since(now()).num_seconds();
    Config::on(&folder.join("store")).with(&settings).environment(clock_ahead(ahead))
}

fn that_brings_over(folder: &Path) -> Config {
    node(folder).with("log: { bring_over: true }")
}

async fn assert_whole(server: &Server, folder: &Path) {
    let client = server.client();
    let keys = vkeys(&client, &ORGS.map(str::to_owned)).await;
    for (org, samples, events) in [("acme", 25, 13), ("globex", 24, 12)] {
        let client = client.with_org(org);
        assert_eq!(client.count().await, samples, "{org}");
        assert_eq!(client.sql("SELECT sum(calls) FROM tool_usage_hourly").await, [[json!(samples)]], "{org}");
        assert_eq!(client.sql("SELECT sum(calls) FROM tool_usage_daily").await, [[json!(samples)]], "{org}");
        assert_eq!(client.metrics().await.total("mcpg_tool_calls_total"), samples as f64, "{org}");
        let entries = client.sql("SELECT count(*) FROM audit_log WHERE action LIKE 'tool.%'").await;
        assert_eq!(entries, [[json!(events)]], "{org}");
        assert_sound(&folder.join("store"), org, &keys[org]).await;
    }
}

#[tokio::test]
async fn a_store_of_version_1_is_brought_over_with_all_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    unpack(folder.path());
    let mut server = that_brings_over(folder.path()).start().await;
    assert_whole(&server, folder.path()).await;
    for org in ORGS {
        let told = "SELECT count(*) FROM audit_log WHERE detail LIKE '%\"brought_over_from\":\"1\"%'";
        let told = server.client().with_org(org).sql(told).await;
        assert_eq!(told, [[json!(1)]], "{org}: its auditor sees when it was believed without a MAC");
    }
    // A key of version 1 is known; its body was not remembered.
    let again = br#"{"workspace":"prod","instance":"gw-1","plugin":"github","tool":"x","started_at":"2026-11-26T22:00:00Z","duration_ms":1,"outcome":"ok"}"#;
    assert!(server.client().with_org("acme").post(again.to_vec(), Some("k7")).await.1, "k7 is a duplicate");
    // Later starts find a store of this version.
    for _ in 0..2 {
        server.kill();
        server.start().await;
        assert_whole(&server, folder.path()).await;
    }
    assert!(folder.path().join("store/wal/layout").is_file());
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn bringing_over_that_is_killed_begins_anew() {
    for kills in 1..4 {
        let folder = tempfile::tempdir().unwrap();
        unpack(folder.path());
        let mut server = that_brings_over(folder.path()).server();
        for _ in 0..kills {
            // It gets as far as it gets.
            server.try_start(Duration::from_millis(120 * kills)).await;
            server.kill();
        }
        server.start().await;
        assert_whole(&server, folder.path()).await;
    }
}

/// What is of version 1 carries no MAC. A thief who takes the layout away, and makes the rest look like that, is not
/// believed unless the configuration says that the store is of version 1: else the node would sign what he wrote.
#[tokio::test]
async fn a_store_without_a_layout_is_refused_unless_it_is_to_be_brought_over() {
    let folder = tempfile::tempdir().unwrap();
    unpack(folder.path());
    let store = Folder::at(&folder.path().join("store"));
    let before = store.digest();
    let mut server = node(folder.path()).server();
    let started = server.try_start(Duration::from_secs(60)).await;
    let Started::Ended(status) = started else { panic!("it starts: {started:?}\n{}", server.logs()) };
    assert_eq!(status.code(), Some(2), "{}", server.logs());
    assert!(server.logs().contains("wal/layout"), "{}", server.logs());
    assert_eq!(store.digest(), before, "nothing is written");
}
