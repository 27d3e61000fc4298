//! The three streams: each off, and each sent elsewhere, leaves the other two as they are.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Client, Collector, Config, Gateway, GatewayConfig, Upstream, eventually, free_port};

const PATIENCE: Duration = Duration::from_secs(60);
const CALLS: i64 = 5;

async fn calls(gateway: &Gateway) {
    let client = gateway.client().await;
    for _ in 0..CALLS {
        client.call("fixture__echo", json!({ "message": "hi" })).await.result();
    }
}

/// Waits until a query answers with `CALLS`, or lets it be none where none may come.
async fn counts(client: &Client, query: &str, expected: i64) {
    if expected > 0 {
        let what = format!("{query} to be {expected}");
        eventually(&what, PATIENCE, async || (client.number(query).await == expected).then_some(())).await;
    }
    assert_eq!(client.number(query).await, expected, "{query}");
}

/// Waits until a collector has the spans of so many calls, and no more.
async fn traced(collector: &Collector, workspace: &str, calls: i64) {
    let calls = usize::try_from(calls).unwrap();
    eventually("the spans", PATIENCE, async || (spans(collector, workspace) >= calls).then_some(())).await;
    assert_eq!(spans(collector, workspace), calls, "{workspace}");
}

fn spans(collector: &Collector, workspace: &str) -> usize {
    let ours = |emitter: &serde_json::Map<String, Value>| emitter.values().any(|value| value == workspace);
    collector
        .spans()
        .iter()
        .filter(|span| span.kind == "SERVER" && span.name.starts_with("tools/call") && ours(&span.emitter))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_stream_off_alone_and_together_leaves_the_others_untouched() {
    let fixture = Upstream::fixture().await;
    let server = Config::new().start().await;
    let collector = Collector::start().await;
    for on in 0..8_u8 {
        let [metrics, traces, audit] = [1, 2, 4].map(|bit| on & bit != 0);
        let workspace = format!("ws-{on}");
        let mut gateway = GatewayConfig::new()
            .http("fixture", &fixture.url())
            .control_plane(&server)
            .with(json!({ "workspace": workspace, "observability": {
                "metrics": { "enabled": metrics },
                "otlp": { "enabled": traces, "endpoint": collector.endpoint() },
                "audit": { "enabled": audit },
            } }))
            .start()
            .await;
        calls(&gateway).await;
        let scraped = reqwest::get(format!("http://{}/metrics", gateway.metrics_authority())).await;
        assert_eq!(scraped.is_ok(), metrics, "{workspace}: its own metrics");
        if metrics {
            assert_eq!(gateway.metrics().await.total("mcpg_tool_calls_total") as i64, CALLS);
        }
        let client = server.client();
        let samples = format!("SELECT count(*) FROM tool_invocations WHERE workspace = '{workspace}'");
        let events =
            format!("SELECT count(*) FROM audit_log WHERE action = 'tool.permit' AND workspace = '{workspace}'");
        let (samples, events) = ((samples, if metrics { CALLS } else { 0 }), (events, if audit { CALLS } else { 0 }));
        // A stop waits for deliveries no longer than some seconds: on a busy machine they are waited for before it.
        for (query, expected) in [&samples, &events] {
            counts(&client, query, *expected).await;
        }
        // What is not there after it will not come.
        assert!(gateway.stop().await.success());
        for (query, expected) in [&samples, &events] {
            counts(&client, query, *expected).await;
        }
        traced(&collector, &workspace, if traces { CALLS } else { 0 }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_stream_goes_where_it_is_sent() {
    let fixture = Upstream::fixture().await;
    let (own, other) = (Config::new().start().await, Config::new().start().await);
    let (first, second) = (Collector::start().await, Collector::start().await);
    let port = free_port();
    let mut gateway = GatewayConfig::new()
        .http("fixture", &fixture.url())
        .control_plane(&own)
        .with(json!({ "workspace": "ws", "observability": { "otlp": { "endpoint": first.endpoint() } } }))
        .start()
        .await;
    calls(&gateway).await;
    let samples = "SELECT count(*) FROM tool_invocations";
    let events = "SELECT count(*) FROM audit_log WHERE action = 'tool.permit'";
    counts(&own.client(), samples, CALLS).await;
    counts(&own.client(), events, CALLS).await;
    assert!(gateway.stop().await.success());
    traced(&first, "ws", CALLS).await;

    gateway.reconfigure(json!({ "observability": {
        "metrics": { "listen": format!("127.0.0.1:{port}"), "control_plane": { "url": other.url() } },
        "otlp": { "endpoint": second.endpoint() },
        "audit": { "file": "audit.jsonl" },
    } }));
    gateway.start().await;
    calls(&gateway).await;
    assert!(reqwest::get(format!("http://127.0.0.1:{port}/metrics")).await.unwrap().status().is_success());
    counts(&other.client(), samples, CALLS).await;
    assert!(gateway.stop().await.success());
    counts(&other.client(), samples, CALLS).await;
    counts(&own.client(), samples, CALLS).await;
    counts(&own.client(), events, CALLS).await;
    assert_eq!(other.client().number(events).await, 0);
    for collector in [&first, &second] {
        traced(collector, "ws", CALLS).await;
    }
    let text = std::fs::read_to_string(gateway.path("audit.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let permits = lines.iter().filter(|line| line["action"] == "tool.permit").count();
    assert_eq!(permits, CALLS as usize);
    let seqs: Vec<_> = lines.iter().map(|line| line["emitter_seq"].as_i64().unwrap()).collect();
    let before = own.client().number("SELECT max(emitter_seq) FROM audit_log").await;
    let expected: Vec<_> = (before + 1..).take(seqs.len()).collect();
    assert_eq!(seqs, expected, "the gateway's own count goes on in the file");

    gateway.reconfigure(
        json!({ "observability": { "audit": { "file": null, "control_plane": { "url": other.url() } } } }),
    );
    gateway.start().await;
    calls(&gateway).await;
    counts(&other.client(), events, CALLS).await;
    assert!(gateway.stop().await.success());
    counts(&other.client(), events, CALLS).await;
    counts(&own.client(), events, CALLS).await;
}
