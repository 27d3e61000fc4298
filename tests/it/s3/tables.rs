//! Tables in a bucket, kept by two nodes: flushed, merged, looked through for what nobody needs, and read by another
//! engine meanwhile.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::Value;

use crate::harness::s3::{Bucket, Seaweed};
use crate::harness::{Client, Cluster, Sample, Server, eventually, ndjson, now, python_command, run};

const SOON: Duration = Duration::from_secs(180);
const TABLES: [&str; 3] = ["tool_invocations", "tool_usage_hourly", "tool_usage_daily"];
/// Samples of a batch, half of them of yesterday.
const BATCH: usize = 20;

fn batch() -> Vec<u8> {
    let call = |n: usize| {
        let began = now() - TimeDelta::days((n % 2) as i64);
        Sample::new("github", &format!("tool_{}", n % 7), n as f64 + 0.5).started_at(began)
    };
    ndjson(&(0..BATCH).map(call).collect::<Vec<_>>())
}

/// What DuckDB says of a table.
async fn duckdb(bucket: &Bucket, table: &str, sql: &str) -> i64 {
    let mut command = python_command("delta_bucket.py");
    command.args([&bucket.url("prod"), "default", table, sql]).envs(bucket.environment());
    let output = tokio::task::spawn_blocking(move || run(&mut command)).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()[0][0].as_i64().unwrap()
}

async fn assert_whole(client: &Client, sent: usize) {
    let calls = client.metrics_once_loaded().await.sum_by("mcpg_tool_calls_total", &[]);
    assert_eq!(calls[&vec![]], sent as f64);
    assert_eq!(client.count().await, sent as i64);
    for table in &TABLES[1..] {
        assert_eq!(client.number(&format!("SELECT sum(calls) FROM {table}")).await, sent as i64, "{table}");
    }
}

/// Has a batch taken, under a key, by a node that may ask to be asked again.
async fn take(client: &Client) {
    let (batch, key) = (batch(), uuid::Uuid::new_v4().to_string());
    eventually("a batch to be taken", SOON, async || {
        let answer = client.try_post("application/x-ndjson", None, Some(&key), batch.clone()).await.unwrap();
        if [429, 503].contains(&answer.status.as_u16()) {
            assert!(!answer.header("retry-after").is_empty(), "{}", answer.text());
            return None;
        }
        answer.ok();
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_merge_the_tables_of_a_bucket_and_each_row_is_there_once() {
    let seaweed = Seaweed::shared().await;
    let bucket = seaweed.bucket().await;
    let quick = "commit: { window: 20ms }\nflush: { interval: 300ms }\nmaintenance: { interval: 1s, small_files: 4 }";
    let cluster = Cluster::new(quick);
    let mut nodes = Vec::new();
    for _ in 0..2 {
        nodes.push(cluster.node().on_bucket(&bucket.yaml("prod")).start().await);
    }
    let clients: Vec<_> = nodes.iter().map(Server::client).collect();
    let (mut sent, mut seen) = (0, 0);
    // Both nodes take samples, flush and merge, until each table was merged.
    let merges = async |client: &Client| {
        let page = client.get("/metrics").await.ok().text();
        let line = page.lines().find(|line| line.starts_with("mcpg_cp_merges_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    eventually("merges of all tables", SOON, async || {
        for client in &clients {
            take(client).await;
            sent += BATCH;
        }
        let storage = clients[0].get("storage").await.ok().json();
        let is_merged = TABLES.iter().all(|table| storage["tables"][*table]["last_compaction"].is_string());
        let is_looked_through = TABLES.iter().any(|table| storage["tables"][*table]["last_vacuum"].is_string());
        let merges = merges(&clients[0]).await + merges(&clients[1]).await;
        (is_merged && is_looked_through && merges >= 8.0).then_some(())
    })
    .await;
    for client in &clients {
        assert_whole(client, sent).await;
    }
    // Another engine sees no row twice while the last of it is flushed and merged.
    eventually("all of it in the bucket's tables", SOON, async || {
        let count = duckdb(&bucket, TABLES[0], "SELECT count(*) FROM t").await;
        assert!((seen..=sent as i64).contains(&count), "{count} rows after {seen}, and {sent} were sent");
        seen = count;
        (count == sent as i64).then_some(())
    })
    .await;
    let distinct = duckdb(&bucket, TABLES[0], "SELECT count(DISTINCT invocation_id) FROM t").await;
    assert_eq!(distinct, sent as i64);
    for table in &TABLES[1..] {
        eventually("rollups in the bucket", SOON, async || {
            (duckdb(&bucket, table, "SELECT sum(calls)::BIGINT FROM t").await == sent as i64).then_some(())
        })
        .await;
    }
    // A node that finds all of it anew says the same.
    for node in &mut nodes {
        node.kill();
    }
    nodes[1].start().await;
    assert_whole(&nodes[1].client(), sent).await;
}
