//! Maintenance of a running server's tables: merging while DuckDB reads and clients write, retention, and what is said
//! of both.

use std::time::Duration;

use chrono::TimeDelta;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Client, Cluster, Config, Sample, Server, eventually, ndjson, now, org_names, python};

const SOON: Duration = Duration::from_secs(120);

async fn post(client: &Client, path: &str) -> Value {
    client.send(Method::POST, path, &[], Vec::new()).await.unwrap().ok().json()
}

/// DuckDB's sum over a table.
async fn duckdb(server: &Server, table: &str, sql: &str) -> i64 {
    let store = server.storage().to_str().unwrap();
    python("delta.py", &[store, "default", table, sql]).await[0][0].as_i64().unwrap()
}

fn calls(count: usize) -> Vec<u8> {
    let calls: Vec<_> = (0..count).map(|n| Sample::new("github", &format!("tool_{}", n % 7), n as f64 + 0.5)).collect();
    ndjson(&calls)
}

#[tokio::test(flavor = "multi_thread")]
async fn duckdb_reads_in_a_loop_while_files_are_flushed_and_merged() {
    let server = Config::new().with("flush: { interval: 50ms }\nmaintenance: { interval: 1s }").start().await;
    let client = server.client();
    let mut sent = 0;
    let mut seen = 0;
    let writes = async {
        for _ in 0..150 {
            client.post(calls(20), None).await;
            sent += 20;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    let reads = async {
        for _ in 0..12 {
            let count = duckdb(&server, "tool_invocations", "SELECT count(*) FROM t").await;
            assert!(count >= seen, "{count} after {seen}");
            seen = count;
        }
    };
    futures::join!(writes, reads);
    eventually("few files with all that was sent", SOON, async || {
        let storage = client.get("storage").await.ok().json();
        let tables = ["tool_invocations", "tool_usage_hourly", "tool_usage_daily"];
        let few = tables.iter().all(|table| storage["tables"][table]["files"].as_u64().unwrap() < 25);
        let merged = tables.iter().all(|table| storage["tables"][table]["last_compaction"].is_string());
        (few && merged).then_some(())
    })
    .await;
    assert_eq!(duckdb(&server, "tool_invocations", "SELECT count(*) FROM t").await, sent);
    assert_eq!(client.count().await, sent);
    for table in ["tool_usage_hourly", "tool_usage_daily"] {
        assert_eq!(duckdb(&server, table, "SELECT sum(calls)::BIGINT FROM t").await, sent, "{table}");
        assert_eq!(client.number(&format!("SELECT sum(calls) FROM {table}")).await, sent, "{table}");
    }
    let metrics = client.metrics().await;
    assert_eq!(metrics.sum_by("mcpg_tool_calls_total", &[])[&vec![]], sent as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_too_old_go_by_whole_days_and_the_ledger_says_so() {
    let config = "orgs: [{ name: default, tier: community, retention: { hourly: 45d } }]\nflush: { interval: 100ms }";
    // By itself nothing is to go before it is asked for.
    let server = Config::new().with(config).with("maintenance: { interval: 1h }").start().await;
    let client = server.client();
    let of_day = |days: i64| {
        let call = Sample::new("github", "list", 7.0).started_at(now() - TimeDelta::days(days));
        ndjson(&[call.clone(), call])
    };
    for days in [0, 20, 40, 60] {
        client.post(of_day(days), None).await;
    }
    let sum = "SELECT sum(calls) FROM";
    eventually("all of it in the tables", SOON, async || {
        (duckdb(&server, "tool_usage_daily", &format!("{sum} t")).await == 8).then_some(())
    })
    .await;
    let counters = client.metrics().await.sum_by("mcpg_tool_calls_total", &["tool"]);

    let planned = post(&client, "storage/retention?dry_run=true").await;
    assert_eq!((planned["dry_run"].as_bool(), &planned["hold"]), (Some(true), &Value::Null));
    let of = |table: &str| {
        planned["tables"].as_array().unwrap().iter().find(|of| of["table"] == table).cloned().unwrap_or_default()
    };
    assert_eq!(of("tool_invocations")["rows"], 4, "{planned}");
    assert_eq!(of("tool_invocations")["rule"], "30d (tier community)");
    assert_eq!(of("tool_usage_hourly")["rule"], "45d (retention.hourly)");
    assert_eq!(of("tool_usage_hourly")["partitions"].as_array().unwrap().len(), 1, "{planned}");
    assert_eq!(of("tool_usage_daily"), Value::Null);
    assert_eq!(client.count().await, 8, "a dry run changes nothing");

    // On hold nothing goes.
    let reason = serde_json::to_vec(&json!({ "reason": "a case" })).unwrap();
    let json_body = [(CONTENT_TYPE, "application/json")];
    client.send(Method::POST, "audit/hold", &json_body, reason.clone()).await.unwrap().ok();
    let held = post(&client, "storage/retention").await;
    assert!(held["hold"].is_number(), "{held}");
    assert_eq!(client.count().await, 8);
    client.send(Method::POST, "audit/release", &json_body, reason).await.unwrap().ok();

    let done = post(&client, "storage/retention").await;
    // Meanwhile a second may have passed.
    let timeless = |tables: &Value| {
        let mut tables = tables.clone();
        tables.as_array_mut().unwrap().iter_mut().for_each(|of| of["before"] = Value::Null);
        tables
    };
    assert_eq!(timeless(&done["tables"]), timeless(&planned["tables"]));
    assert_eq!(client.count().await, 4);
    assert_eq!(client.number(&format!("{sum} tool_usage_hourly")).await, 6);
    assert_eq!(client.number(&format!("{sum} tool_usage_daily")).await, 8);
    assert_eq!(duckdb(&server, "tool_invocations", "SELECT count(*) FROM t").await, 4);
    assert_eq!(client.metrics().await.sum_by("mcpg_tool_calls_total", &["tool"]), counters);
    let entries = client.get("audit?action=operator.retention").await.ok().json();
    let detail = &entries["entries"][0]["detail"];
    assert_eq!(timeless(&detail["tables"]), timeless(&planned["tables"]), "{entries}");
    assert_eq!(entries["entries"].as_array().unwrap().len(), 1);
    let storage = client.get("storage").await.ok().json();
    assert!(storage["tables"]["tool_invocations"]["last_retention"].is_string(), "{storage}");
    assert_eq!(post(&client, "storage/retention").await["tables"], json!([]), "all of it is done");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_is_erased_and_counters_and_ledger_stay() {
    let server = Config::new().with("flush: { interval: 1h }").start().await;
    let client = server.client();
    let of = |caller: &str| ndjson(&vec![Sample::new("github", "list", 7.0).with("caller", caller); 3]);
    client.post(of("user:alice@acme"), None).await;
    client.post(of("user:bob@acme"), None).await;
    let counters = client.metrics().await.sum_by("mcpg_tool_calls_total", &["tool"]);
    let body = json!({ "caller": "user:alice@acme", "reason": "request 4711" }).to_string().into_bytes();
    let erased = client.send(Method::POST, "erasure", &[], body.clone()).await.unwrap().ok().json();
    assert_eq!((&erased["rows"], &erased["hold"]), (&json!(3), &Value::Null), "{erased}");
    assert_eq!(client.number("SELECT count(*) FROM tool_invocations WHERE caller = 'user:alice@acme'").await, 0);
    assert_eq!(client.count().await, 3);
    assert_eq!(client.number("SELECT sum(calls) FROM tool_usage_daily").await, 6);
    assert_eq!(client.metrics().await.sum_by("mcpg_tool_calls_total", &["tool"]), counters);
    let entries = client.get("audit?action=operator.erasure").await.ok().json();
    assert_eq!(entries["entries"][0]["reason"], "request 4711");
    assert!(!entries.to_string().contains("alice"), "{entries}");
    let again = client.send(Method::POST, "erasure", &[], body).await.unwrap().ok().json();
    assert_eq!(again["rows"], 0);
    let nobody = client.send(Method::POST, "erasure", &[], b"{}".to_vec()).await.unwrap();
    assert_eq!(nobody.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn the_routes_of_the_storage_are_for_operators() {
    let server = Config::new().start().await;
    let client = server.client();
    for (method, path) in
        [(Method::GET, "storage"), (Method::POST, "storage/compact"), (Method::POST, "storage/retention")]
    {
        let other = client.with_org("nobody").send(method.clone(), path, &[], Vec::new()).await.unwrap();
        assert_eq!(other.status, StatusCode::NOT_FOUND, "{method} {path}");
        client.send(method, path, &[], Vec::new()).await.unwrap().ok();
    }
    let wrong = client.send(Method::POST, "storage/retention?dry_run=maybe", &[], Vec::new()).await.unwrap();
    assert_eq!(wrong.status, StatusCode::BAD_REQUEST);
}

/// What one node takes out is seen on no other node for long, neither in the files that it knows nor among what it has
/// not flushed.
#[tokio::test(flavor = "multi_thread")]
async fn an_erased_caller_is_seen_on_no_other_node_either() {
    let orgs = org_names(1);
    let settings = "flush: { interval: 1h }\nmaintenance: { interval: 1s }";
    let cluster = Cluster::new(&format!("{}\n{settings}", Cluster::orgs(&orgs)));
    let (one, two) = (cluster.node().start().await, cluster.node().start().await);
    let (client, other) = (one.client().with_org(&orgs[0]), two.client().with_org(&orgs[0]));
    for caller in ["user:alice@acme", "user:bob@acme", "user:carol@acme"] {
        client.post(ndjson(&vec![Sample::new("github", "list", 7.0).with("caller", caller); 3]), None).await;
    }
    assert_eq!(other.count().await, 9);
    // Of the first the other node knows by the log alone, of the second by a file.
    for (caller, left) in [("user:alice@acme", 6), ("user:bob@acme", 3)] {
        let body = json!({ "caller": caller, "reason": "request 4711" }).to_string().into_bytes();
        let erased = client.send(Method::POST, "erasure", &[], body).await.unwrap().ok().json();
        assert_eq!(erased["rows"], 3, "{erased}");
        assert_eq!(client.count().await, left);
        eventually("the other node to see it", SOON, async || (other.count().await == left).then_some(())).await;
        assert_eq!(other.number("SELECT sum(calls) FROM tool_usage_daily").await, 9);
    }
    let callers = other.sql("SELECT DISTINCT caller FROM tool_invocations").await;
    assert_eq!(callers, [[json!("user:carol@acme")]]);
}

/// A node that was not started anew since an org's rows are kept longer takes none out that the others are to keep.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_an_older_and_shorter_period_removes_nothing_that_is_kept_longer() {
    let cluster = Cluster::new("flush: { interval: 100ms }\nmaintenance: { interval: 1h }");
    let node = |samples: &str| {
        let org = format!("orgs: [{{ name: default, retention: {{ samples: {samples}, hourly: 30d }} }}]");
        cluster.node().with(&org).start()
    };
    let old = node("30d").await;
    let client = old.client();
    for days in [0, 40] {
        let call = Sample::new("github", "list", 7.0).started_at(now() - TimeDelta::days(days));
        client.post(ndjson(&[call.clone(), call]), None).await;
    }
    let planned = eventually("both days in the tables", SOON, async || {
        let planned = post(&client, "storage/retention?dry_run=true").await;
        (planned["tables"].as_array().unwrap().len() == 2).then_some(planned)
    });
    assert_eq!(planned.await["tables"][0]["rule"], "30d (retention.samples)");

    let mut longer = node("90d").await;
    let planned = post(&client, "storage/retention?dry_run=true").await;
    assert_eq!(planned["tables"].as_array().unwrap().len(), 1, "{planned}");
    assert_eq!(planned["tables"][0]["table"], "tool_usage_hourly");
    assert_eq!(post(&client, "storage/retention").await["tables"][0]["table"], "tool_usage_hourly");
    assert_eq!((client.count().await, longer.client().count().await), (4, 4));
    assert!(longer.stop().await.success());

    // What was loaded last is shorter again: nothing keeps the rows any more.
    let _shorter = node("30d").await;
    let removed = post(&client, "storage/retention").await;
    assert_eq!(
        (&removed["tables"][0]["table"], &removed["tables"][0]["rows"]),
        (&json!("tool_invocations"), &json!(2))
    );
    assert_eq!(client.count().await, 2);
}
