//! Invariant I6 at the gateway: no token, header, argument, result or error text is found in any log, metric, sample,
//! audit entry or span, nor in any file of the gateway's or the control plane's.

use std::time::Duration;

use mcpg::config::TokenHash;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use serde_json::json;

use crate::harness::{Collector, Config, GatewayConfig, Mcp, Upstream, eventually, plain_http, python};

/// What is in each of the secrets, and in nothing else.
const CANARY: &str = "canary-7d1f";

const PATIENCE: Duration = Duration::from_secs(60);

fn secret(of: &str) -> String {
    format!("{CANARY}-{of}")
}

#[tokio::test]
async fn no_secret_of_a_call_is_found_anywhere() {
    let fixture = Upstream::fixture().await;
    let collector = Collector::start().await;
    let mut server =
        Config::new().with("flush: { interval: 300ms }\ntelemetry: { log: { level: trace } }").start().await;
    let policy = r#"
        @id("most") permit(principal, action, resource);
        @id("no-count") forbid(principal, action, resource == Tool::"fix/count");
        @id("no-such-echo") forbid(principal, action == Action::"call_tool", resource == Tool::"fix/echo")
        when { context.arguments.text.hasTag("/deny") };
        @id("watched") @redact("result:/token") @notify("security")
        permit(principal, action, resource == Tool::"fix/echo");
    "#;
    let plugin = json!({
        "name": "fix", "url": fixture.url(), "headers": { "x-upstream-key": secret("upstream-header") }, "timeout": "10s",
    });
    let mut gateway = GatewayConfig::new()
        .plugin(plugin)
        .control_plane(&server)
        .policy(policy)
        .with(json!({
            "identity": { "tokens": [{ "hash": TokenHash::of(&secret("token")).to_string(), "caller": "service:ci" }] },
            "observability": { "otlp": {
                "endpoint": collector.endpoint(), "sample_rate": 1.0,
                "headers": { "x-collector-key": "${COLLECTOR_KEY}" },
            } },
            "telemetry": { "log": { "level": "trace" } },
        }))
        // The variable keeps the collector's secret out of the file, as a person would.
        .env("COLLECTOR_KEY", &secret("collector-header"))
        .env("MCPG_LOG", "trace")
        .start()
        .await;
    gateway.plugins_ready(1).await;

    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {}", secret("token"))).unwrap());
    headers.insert(HeaderName::from_static("x-secret"), HeaderValue::try_from(secret("header")).unwrap());
    let client = Mcp::connect(&gateway.url(), headers).await;
    let told =
        client.call("fix__echo", json!({ "message": secret("argument"), "token": secret("result") })).await.result();
    assert!(told.to_string().contains(&secret("argument")), "the caller gets what is the caller's");
    client.call("fix__fail", json!({ "message": secret("tool-error") })).await.result();
    client.call("fix__fail", json!({ "message": secret("rpc-error"), "rpc": true })).await.error();
    client.call("fix__count", json!({ "text": secret("denied-argument") })).await.error();
    client.call("fix__echo", json!({ "deny": secret("judged-argument") })).await.error();
    client.call("fix__sleep", json!({ "ms": 80_000, "note": secret("late-argument") })).await.error();
    client.call(&secret("unknown-tool"), json!({ "x": secret("lost-argument") })).await.error();
    client.call("fix__no_such_tool", json!({ "x": secret("unknown-argument") })).await.error();
    client.request(&secret("unknown-method"), json!({ "x": secret("parameter") })).await.error();
    let garbage = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":{}", secret("garbage"));
    client.post(garbage.into_bytes(), &HeaderMap::new()).await.unwrap();
    let wrong =
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {}", secret("wrong"))).unwrap())]);
    Mcp::try_connect(&gateway.url(), wrong).await.unwrap_err();

    // All of it has been delivered: eight calls of tools, each in all three streams.
    let calls = server.client();
    let rows = eventually("the samples", PATIENCE, async || {
        let rows = calls.sql("SELECT * FROM tool_invocations").await;
        (rows.len() >= 8).then_some(rows)
    })
    .await;
    let entries = eventually("the audit entries", PATIENCE, async || {
        let entries = calls.sql("SELECT * FROM audit_log").await;
        (entries.iter().filter(|entry| json!(entry).to_string().contains("fix/")).count() >= 6).then_some(entries)
    })
    .await;
    let spans =
        collector.spans_with("the spans", 8, |span| span.kind == "SERVER" && span.name.starts_with("tools/call")).await;
    let metrics = calls.get("metrics").await.text() + &calls.get("/metrics").await.text();
    let own = plain_http().build().unwrap();
    let own =
        own.get(format!("http://{}/metrics", gateway.metrics_authority())).send().await.unwrap().text().await.unwrap();
    assert!(own.contains("echo"), "the metrics count the calls: {own}");

    assert!(gateway.stop().await.success());
    assert!(server.stop().await.success());
    for (place, text) in [
        ("samples", json!(rows).to_string()),
        ("audit entries", json!(entries).to_string()),
        ("spans", format!("{spans:?}")),
        ("the control plane's metrics", metrics),
        ("the gateway's metrics", own),
        ("the gateway's log", gateway.logs()),
        ("the control plane's log", server.logs()),
    ] {
        let found: Vec<_> = text.lines().filter(|line| line.contains(CANARY)).collect();
        assert!(found.is_empty(), "{place}: {found:#?}");
    }
    // In the gateway's folder is its config, with the one secret that a person wrote into it.
    std::fs::remove_file(gateway.path("gateway.yaml")).unwrap();
    for folder in [server.storage(), gateway.folder()] {
        assert_eq!(python("search.py", &[folder.to_str().unwrap(), CANARY]).await, json!([]), "{folder:?}");
    }
}
