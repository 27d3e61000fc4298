//! Invariant I1 on the real program: what was acknowledged is there exactly once, in the samples, both rollups and the
//! counters, through `kill -9` at any moment and through an orderly stop.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::harness::{Config, Ledger, Load, Sample, Server, alone, eventually, ndjson, python};

/// Small enough that commits, flushes of all three tables and catch-up fall between any two kills.
const BUSY: &str = "flush: { interval: 500ms }";

/// Rows in the Delta table, as another engine counts them.
async fn rows_in_table(server: &Server, table: &str, of: &str) -> i64 {
    let storage = server.storage().to_str().unwrap();
    let answer = python("delta.py", &[storage, "default", table, &format!("SELECT {of} FROM t")]).await;
    answer[0][0].as_i64().unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_kills_under_load_lose_nothing_and_double_nothing() {
    let _alone = alone().await;
    let seed = 20_261_122;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut server = Config::new().with(BUSY).start().await;
    let load = Load { gives_up: 0.3, seed, ..Load::on(&[server.client()]) };
    let loader = load.start();
    loader.further(500).await;
    for round in 0..10 {
        tokio::time::sleep(Duration::from_millis(rng.random_range(100..2_500))).await;
        let counters = server.client().metrics().await;
        let before = i64::try_from(loader.acknowledged()).unwrap();
        server.kill();
        server.start().await;
        let found = server.client().count().await;
        assert!(found >= before, "round {round} of seed {seed}: {before} acknowledged, {found} there");
        server.client().metrics().await.assert_not_below(&counters, &format!("round {round} of seed {seed}"));
        loader.further(100).await;
    }
    let ledger = loader.finish().await;
    ledger.assert_kept(&server.client()).await;

    server.kill();
    server.start().await;
    ledger.assert_kept(&server.client()).await;
    assert!(server.stop().await.success());
    let stored = server_count(&ledger, &server).await;
    for table in ["tool_usage_hourly", "tool_usage_daily"] {
        assert_eq!(rows_in_table(&server, table, "sum(calls)").await, stored, "{table}, read by another engine");
    }
}

/// Samples in the table of a stopped server: all acknowledged, and of the given up at most all.
async fn server_count(ledger: &Ledger, server: &Server) -> i64 {
    let stored = rows_in_table(server, "tool_invocations", "count(*)").await;
    let given_up = i64::try_from(ledger.unknown.values().sum::<u64>()).unwrap();
    assert!((ledger.samples()..=ledger.samples() + given_up).contains(&stored), "{stored} samples in the table");
    stored
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_under_load_drains_and_keeps_all() {
    let _alone = alone().await;
    let mut server = Config::new().start().await;
    let loader = Load::on(&[server.client()]).start();
    loader.further(2_000).await;
    let status = server.stop().await;
    assert!(status.success(), "{status}");
    let drained = rows_in_table(&server, "tool_invocations", "count(*)").await;
    assert!(drained >= i64::try_from(loader.acknowledged()).unwrap(), "a drain flushes all: {drained}");
    server.start().await;
    let ledger = loader.finish().await;
    ledger.assert_kept(&server.client()).await;
}

#[tokio::test]
async fn samples_are_counted_once_while_they_move_to_the_tables() {
    let _alone = alone().await;
    let server = Config::new().with(BUSY).start().await;
    let client = server.client();
    let mut sent = 0;
    // Counted after every batch, over several flushes: a sample is never in the buffer and in a file at once, nor in
    // neither.
    for _ in 0..60 {
        client.post(ndjson(&vec![Sample::new("github", "list_repos", 5.0); 50]), None).await;
        sent += 50;
        assert_eq!(client.count().await, sent);
        assert_eq!(client.number("SELECT sum(calls) FROM tool_usage_hourly").await, sent);
        assert_eq!(client.number("SELECT sum(calls) FROM tool_usage_daily").await, sent);
    }
    eventually("the samples in the table", Duration::from_secs(90), async || {
        (rows_in_table(&server, "tool_invocations", "count(*)").await == sent).then_some(())
    })
    .await;
    assert_eq!(client.count().await, sent);
}

#[tokio::test]
async fn a_second_start_on_an_untouched_store_finds_the_same() {
    let mut server = Config::new().start().await;
    server.client().post(ndjson(&vec![Sample::new("github", "list_repos", 5.0); 10]), None).await;
    let before = server.client().metrics().await.counters();
    for _ in 0..2 {
        assert!(server.stop().await.success());
        server.start().await;
        assert_eq!(server.client().metrics().await.counters(), before);
        assert_eq!(server.client().count().await, 10);
    }
}
