//! Real numbers: three million flights' delays go in over HTTP, and p50, p95 and p99 agree between the scrape, the
//! rollups, DuckDB on the tables, and the exact ranks of the source.
//!
//! The file names no airline, so the airport of origin stands for the tool that was called; `tests/it/py/flights.py`
//! says how a flight becomes a sample. All start within one minute, so that the open window of the scrape holds them
//! all.

use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{Config, alone, assert_close, eventually, now, python};

const FLIGHTS: u64 = 3_000_000;
const QUANTILES: [&str; 3] = ["0.5", "0.95", "0.99"];

#[tokio::test(flavor = "multi_thread")]
async fn quantiles_of_three_million_real_delays_agree_within_one_percent() {
    let _alone = alone().await;
    let folder = TempDir::new().unwrap();
    let path = folder.path().to_str().unwrap();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/.venv/share/flights-3m.parquet");
    let exact = python("flights.py", &[source, path, &now().to_rfc3339()]).await;
    let exact = exact.as_array().unwrap();

    // To merge so many histograms takes a busy machine longer than a query may take by default.
    let server = Config::new().with("limits: { sql: { timeout: 5m } }").start().await;
    let client = server.client();
    let mut bodies: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    bodies.sort();
    let began = Instant::now();
    let mut sent = 0;
    for (number, body) in bodies.iter().enumerate() {
        let key = format!("flights-{number}");
        // Full buffers are an answer, not a fault: the same batch again, under its key.
        sent += eventually("a batch to be taken", Duration::from_secs(300), async || {
            let body = std::fs::read(body).unwrap();
            let answer = client.try_post("application/vnd.apache.arrow.stream", None, Some(&key), body).await.unwrap();
            (answer.status != 429 && answer.status != 503).then(|| answer.ok().json()["accepted"].as_u64().unwrap())
        })
        .await;
    }
    eprintln!("flights: {sent} samples in {:.1} s", began.elapsed().as_secs_f64());
    assert_eq!(sent, FLIGHTS);

    let scrape = client.metrics().await;
    assert_eq!(scrape.total("mcpg_tool_calls_total"), FLIGHTS as f64);
    let calls = scrape.sum_by("mcpg_tool_calls_total", &["tool"]);
    let errors = scrape.sum_by("mcpg_tool_errors_total", &["tool"]);
    let gauges = scrape.sum_by("mcpg_tool_latency_ms", &["tool", "quantile"]);
    let quantiles = QUANTILES.map(|q| format!("latency_quantile(latency_merge(latency), {q})")).join(", ");
    let query = |table: &str| format!("SELECT tool, sum(calls), {quantiles} FROM {table} GROUP BY tool ORDER BY tool");
    let hourly = client.sql(&query("tool_usage_hourly")).await;
    let daily = client.sql(&query("tool_usage_daily")).await;

    let store = server.storage().to_str().unwrap().to_owned();
    let duckdb = async |sql: &str| python("delta.py", &[&store, "default", "tool_invocations", sql]).await;
    eventually("all flights in the table", Duration::from_secs(300), async || {
        (duckdb("SELECT count(*) FROM t").await[0][0] == FLIGHTS).then_some(())
    })
    .await;
    let theirs =
        "SELECT tool, count(*), quantile_disc(duration_ms, [0.5, 0.95, 0.99]) FROM t GROUP BY tool ORDER BY tool";
    let theirs = duckdb(theirs).await;
    assert_eq!(hourly.len(), exact.len());

    let number = |value: &Value| value.as_f64().unwrap();
    for (index, airport) in exact.iter().enumerate() {
        let tool = airport["tool"].as_str().unwrap().to_owned();
        let counted = number(&airport["calls"]);
        assert_eq!(calls[&vec![tool.clone()]], counted, "{tool}");
        assert_eq!(errors[&vec![tool.clone()]], number(&airport["errors"]), "{tool}");
        for table in [&hourly[index], &daily[index], theirs[index].as_array().unwrap()] {
            assert_eq!((table[0].as_str().unwrap(), number(&table[1])), (tool.as_str(), counted));
        }
        for (place, q) in QUANTILES.into_iter().enumerate() {
            let exact = number(&airport["quantiles"][place]);
            assert_eq!(number(&theirs[index][2][place]), exact, "{tool} p{q}: DuckDB on the table");
            assert_close(gauges[&vec![tool.clone(), q.to_owned()]], exact, 0.01, &format!("{tool} p{q} scraped"));
            assert_close(number(&hourly[index][2 + place]), exact, 0.01, &format!("{tool} p{q} hourly"));
            assert_close(number(&daily[index][2 + place]), exact, 0.01, &format!("{tool} p{q} daily"));
        }
    }
}
