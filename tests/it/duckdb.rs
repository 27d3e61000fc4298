//! Another engine's own figures: DuckDB opens the Delta tables of a running server, and its counts and exact quantiles
//! agree with SQL over HTTP, with the rollups and with the scrape.

use std::time::Duration;

use chrono::TimeDelta;
use mcpg::model::Outcome;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::harness::{Config, Sample, assert_close, eventually, ndjson, now, python};

const SAMPLES: usize = 12_000;
const QUANTILES: [f64; 3] = [0.5, 0.95, 0.99];

/// Calls of six tools, each with a tail of its own; all within the last minute, so that the open windows hold them.
fn samples() -> Vec<Sample> {
    let mut rng = StdRng::seed_from_u64(7);
    let calls = (0..SAMPLES).map(|_| {
        let tool = rng.random_range(0..6);
        let outcome = match rng.random_range(0..20) {
            0 => Outcome::Timeout,
            1 => Outcome::ServerError,
            2 => Outcome::PolicyDenied,
            _ => Outcome::Ok,
        };
        // A Pareto tail: what real latencies look like, and what interpolating sketches get wrong.
        let duration = f64::from(tool + 1) * 3.0 / (1.0 - rng.random::<f64>()).powf(0.7);
        Sample::new("github", &format!("tool_{tool}"), duration)
            .workspace(["prod", "staging"][rng.random_range(0..2)])
            .outcome(outcome)
            .started_at(now() - TimeDelta::milliseconds(rng.random_range(0..60_000)))
    });
    calls.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn duckdb_sql_the_rollups_and_the_scrape_agree() {
    let server = Config::new().with("flush: { interval: 1s }").start().await;
    let client = server.client();
    for part in samples().chunks(1_500) {
        client.post(ndjson(part), None).await;
    }
    let store = server.storage().to_str().unwrap().to_owned();
    let duckdb = async |table: &str, sql: &str| python("delta.py", &[&store, "default", table, sql]).await;
    eventually("all samples in the tables", Duration::from_secs(120), async || {
        let rows = duckdb("tool_invocations", "SELECT count(*) FROM t").await;
        let hourly = duckdb("tool_usage_hourly", "SELECT sum(calls)::BIGINT FROM t").await;
        (rows[0][0] == SAMPLES && hourly[0][0] == SAMPLES).then_some(())
    })
    .await;

    let errors = "count(*) FILTER (WHERE outcome IN ('client_error', 'server_error', 'timeout'))";
    // A call that was denied ran nothing: it has no latency.
    let ran = "FILTER (WHERE outcome NOT IN ('policy_denied', 'quota_exceeded'))";
    let exact = format!("quantile_disc(duration_ms, [0.5, 0.95, 0.99]) {ran}");
    let query = format!("SELECT tool, count(*), {errors}, {exact} FROM t GROUP BY tool ORDER BY tool");
    let theirs = duckdb("tool_invocations", &query).await;
    let theirs = theirs.as_array().unwrap();
    assert_eq!(theirs.len(), 6);

    let ours =
        client.sql(&format!("SELECT tool, count(*), {errors} FROM tool_invocations GROUP BY tool ORDER BY tool")).await;
    let merged = "latency_merge(latency)";
    let quantiles = QUANTILES.map(|q| format!("latency_quantile({merged}, {q})")).join(", ");
    let rollup = |table: &str| {
        format!("SELECT tool, sum(calls), sum(errors), {quantiles} FROM {table} GROUP BY tool ORDER BY tool")
    };
    let hourly = client.sql(&rollup("tool_usage_hourly")).await;
    let daily = client.sql(&rollup("tool_usage_daily")).await;
    let raw = QUANTILES.map(|q| format!("latency_quantile(latency_hist(duration_ms) {ran}, {q})")).join(", ");
    let from_raw = client.sql(&format!("SELECT tool, {raw} FROM tool_invocations GROUP BY tool ORDER BY tool")).await;
    let scrape = client.metrics().await;
    let calls = scrape.sum_by("mcpg_tool_calls_total", &["tool"]);
    let failed = scrape.sum_by("mcpg_tool_errors_total", &["tool"]);
    let gauges = scrape.sum_by("mcpg_tool_latency_ms", &["tool", "quantile"]);

    for (index, row) in theirs.iter().enumerate() {
        let tool = row[0].as_str().unwrap().to_owned();
        for table in [&ours, &hourly, &daily] {
            assert_eq!(table[index][..3], row.as_array().unwrap()[..3], "{tool}");
        }
        assert_eq!(calls[&vec![tool.clone()]], row[1].as_f64().unwrap(), "{tool}");
        assert_eq!(failed[&vec![tool.clone()]], row[2].as_f64().unwrap(), "{tool}");
        for (place, q) in QUANTILES.into_iter().enumerate() {
            let exact = row[3][place].as_f64().unwrap();
            let number = |value: &Value| value.as_f64().unwrap();
            assert_close(number(&hourly[index][3 + place]), exact, 0.01, &format!("{tool} p{q} hourly"));
            assert_close(number(&daily[index][3 + place]), exact, 0.01, &format!("{tool} p{q} daily"));
            assert_close(number(&from_raw[index][1 + place]), exact, 0.01, &format!("{tool} p{q} of samples"));
            let gauge = gauges[&vec![tool.clone(), q.to_string()]];
            assert_close(gauge, exact, 0.01, &format!("{tool} p{q} scraped"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_engine_reads_every_column_and_partition() {
    let server = Config::new().with("flush: { interval: 300ms }").start().await;
    let client = server.client();
    let full = Sample::new("github", "list_repos", 84.5)
        .outcome(Outcome::ServerError)
        .with("error_code", "UPSTREAM_5XX")
        .with("request_id", "r-1")
        .with("session_id", "s-1")
        .with("trace_id", "0af7651916cd43dd8448eb211c80319c")
        .with("span_id", "b7ad6b7169203331")
        .with("caller", "user:alice@acme")
        .with("decision", "permit")
        .with("request_bytes", 120)
        .with("response_bytes", 4_096);
    let yesterday = full.clone().started_at(now() - TimeDelta::days(1));
    client.post(ndjson(&[full, yesterday]), None).await;
    let store = server.storage().to_str().unwrap().to_owned();
    let sql = "SELECT count(*), count(DISTINCT date), bool_and(date = make_timestamp(epoch_us(started_at))::DATE), bool_and(org = 'default'),
        min(length(invocation_id)), min(error_code), min(request_id), min(session_id), min(trace_id), min(span_id), min(caller),
        min(decision), min(request_bytes), min(response_bytes), min(duration_ms), bool_and(arrived_at = started_at),
        bool_and(ingested_at >= started_at) FROM t";
    let row = eventually("the samples in the table", Duration::from_secs(90), async || {
        let rows = python("delta.py", &[&store, "default", "tool_invocations", sql]).await;
        (rows[0][0] == 2).then(|| rows[0].clone())
    })
    .await;
    let expected = serde_json::json!([
        2,
        2,
        true,
        true,
        36,
        "UPSTREAM_5XX",
        "r-1",
        "s-1",
        "0af7651916cd43dd8448eb211c80319c",
        "b7ad6b7169203331",
        "user:alice@acme",
        "permit",
        120,
        4096,
        84.5,
        true,
        true
    ]);
    assert_eq!(row, expected);
}
