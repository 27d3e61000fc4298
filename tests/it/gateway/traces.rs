//! Stream 2, seen from both ends: OpenTelemetry's own SDK as the agent and in the MCP server, and a real collector
//! between.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use crate::harness::{
    Collector, Config, Gateway, GatewayConfig, Program, Span, eventually, free_port, plain_http, python, python_command,
};

/// An MCP server that traces itself: it has one tool, which answers with the trace context that it got.
struct Traced {
    _program: Program,
    url: String,
}

impl Traced {
    async fn start(collector: &str) -> Self {
        let (mut program, port) = (Program::new("the traced server"), free_port());
        program.spawn(python_command("traced_server.py").args([&port.to_string(), collector]));
        let url = format!("http://127.0.0.1:{port}/mcp");
        let client = plain_http().build().unwrap();
        program.ready(Duration::from_secs(60), async || client.post(&url).send().await.is_ok()).await;
        Self { _program: program, url }
    }
}

/// A gateway before a traced server, which sends its spans to `collector`.
async fn gateway(collector: &Collector, sample_rate: f64) -> (Gateway, Traced) {
    let traced = Traced::start(&collector.authority()).await;
    let headers = json!({ "authorization": "Bearer ${OTEL_TOKEN}" });
    let otlp = json!({ "endpoint": collector.endpoint(), "headers": headers, "sample_rate": sample_rate, "trust_callers": "all" });
    let config = GatewayConfig::new().http("traced", &traced.url).env("OTEL_TOKEN", "canary-token");
    let gateway = config.with(json!({ "observability": { "otlp": otlp } })).start().await;
    // A span is named by its tool once the plugin has listed it.
    gateway.plugins_ready(1).await;
    (gateway, traced)
}

fn is_upstreams(span: &Span) -> bool {
    span.service() == "upstream" && span.name == "tools/call told"
}

fn is_gateways(span: &Span) -> bool {
    span.service() == "mcpg-gateway" && span.kind == "SERVER" && span.name == "tools/call told"
}

/// The one span of a service and kind under a parent.
#[track_caller]
fn child<'a>(spans: &'a [Span], parent: &Span, service: &str, kind: &str) -> &'a Span {
    let children = || spans.iter().filter(|span| span.parent == parent.span && span.trace == parent.trace);
    let mut found = children().filter(|span| span.service() == service && span.kind == kind);
    let child = found
        .next()
        .unwrap_or_else(|| panic!("no {kind} of {service} under {parent:?}: {:?}", children().collect::<Vec<_>>()));
    assert!(found.next().is_none(), "more than one {kind} of {service} under {parent:?}");
    child
}

#[track_caller]
fn has(span: &Span, expected: Value) {
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(span.attributes.get(name), Some(value), "{name} of {span:?}");
    }
}

#[tokio::test]
async fn agent_gateway_and_server_are_one_trace_with_the_right_parents() {
    let collector = Collector::start().await;
    let (gateway, _traced) = gateway(&collector, 0.0).await;
    let agent = python("traced_client.py", &[&gateway.plugin_url("traced"), "told", &collector.authority()]).await;
    assert_eq!(agent["failed"], true);
    let trace = agent["trace"].as_str().unwrap();
    let spans = collector.spans_with("both calls to be told", 2, |span| is_gateways(span) && span.trace == trace).await;

    let told = agent["told"]["meta"].clone();
    assert_eq!(agent["told"]["headers"], told, "the message and the headers tell the same");
    assert_eq!(told["baggage"], "tenant=blue", "what the agent sent along came through");
    let asked = spans.iter().filter(|span| span.name == "MCP send tools/call told" && span.trace == trace);
    let mut dispatched = Vec::new();
    for asked in asked {
        let server = child(&spans, asked, "mcpg-gateway", "SERVER");
        let client = child(&spans, server, "mcpg-gateway", "CLIENT");
        let upstream = child(&spans, client, "upstream", "SERVER");
        assert_eq!(upstream.attributes["gen_ai.tool.name"], "told");
        let steps: Vec<_> = spans.iter().filter(|span| span.parent == server.span && span.kind == "INTERNAL").collect();
        assert_eq!(steps.iter().map(|step| step.name.as_str()).collect::<Vec<_>>(), ["identity", "policy"]);
        let failed = server.status == "ERROR";
        assert_eq!(client.status == "ERROR", failed);
        if failed {
            has(server, json!({ "error.type": "tool_error" }));
        }
        dispatched.push(format!("00-{trace}-{}", client.span));
    }
    assert_eq!(dispatched.len(), 2);
    let parent = told["traceparent"].as_str().unwrap();
    assert!(dispatched.iter().any(|dispatch| parent.starts_with(dispatch)), "{parent} is none of {dispatched:?}");
}

#[tokio::test]
async fn spans_are_named_and_described_by_the_conventions_for_mcp() {
    let collector = Collector::start().await;
    let (gateway, _traced) = gateway(&collector, 1.0).await;
    let client = gateway.client().await;
    client.call("traced__told", json!({ "fail": false })).await.result();
    let spans = collector.spans_with("the call to be told", 1, is_gateways).await;
    let server = spans.iter().find(|span| is_gateways(span)).unwrap();
    assert!(server.parent.is_empty(), "a trace of its own");
    assert_eq!(server.authorization.as_deref(), Some("Bearer canary-token"), "the configured header goes with it");
    let both = json!({
        "mcp.method.name": "tools/call",
        "gen_ai.tool.name": "told",
        "gen_ai.operation.name": "execute_tool",
        "network.transport": "tcp",
        "network.protocol.name": "http",
        "mcpg.plugin": "traced",
    });
    has(server, both.clone());
    has(
        server,
        json!({ "mcp.protocol.version": "2025-11-25", "network.protocol.version": "1.1", "client.address": "127.0.0.1", "mcpg.outcome": "ok" }),
    );
    for name in ["mcp.session.id", "jsonrpc.request.id", "client.port", "mcpg.invocation_id", "mcpg.request_id"] {
        assert!(server.attributes.contains_key(name), "{name} of {server:?}");
    }
    let dispatch = child(&spans, server, "mcpg-gateway", "CLIENT");
    assert_eq!(dispatch.name, "tools/call told");
    has(dispatch, both);
    has(dispatch, json!({ "server.address": "127.0.0.1" }));
    for (name, value) in [("mcpg.workspace", "prod"), ("mcpg.org", "default"), ("service.instance.id", "gw-1")] {
        assert_eq!(server.emitter[name], value);
    }
}

#[tokio::test]
async fn the_message_names_the_parent_and_the_transport_is_linked() {
    let collector = Collector::start().await;
    let (gateway, _traced) = gateway(&collector, 0.0).await;
    let client = gateway.client().await;
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
    let message = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let params = json!({ "name": "traced__told", "arguments": { "fail": false }, "_meta": { "traceparent": message, "tracestate": "v=1" } });
    let told = client.request_with("tools/call", params, &headers).await.result()["structuredContent"].clone();
    assert_eq!(told["meta"]["tracestate"], "v=1");
    let spans = collector.spans_with("the call to be told", 1, is_gateways).await;
    let server = spans.iter().find(|span| is_gateways(span)).unwrap();
    assert_eq!(
        (server.trace.as_str(), server.parent.as_str()),
        ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    );
    assert_eq!(server.links, ["00f067aa0ba902b7"]);
}

/// The names of the spans of a call that is kept whole.
const WHOLE: [&str; 5] = [
    "mcpg-gateway CLIENT tools/call told",
    "mcpg-gateway INTERNAL identity",
    "mcpg-gateway INTERNAL policy",
    "mcpg-gateway SERVER tools/call told",
    "upstream SERVER tools/call told",
];

/// The calls that a collector has been told of: the names of the spans of each.
fn calls_told(collector: &Collector) -> Vec<Vec<String>> {
    let mut traces: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for span in collector.spans() {
        traces.entry(span.trace.clone()).or_default().push(format!("{} {} {}", span.service(), span.kind, span.name));
    }
    traces.retain(|_, spans| spans.iter().any(|span| span.ends_with("tools/call told")));
    let sorted = |mut spans: Vec<String>| {
        spans.sort_unstable();
        spans
    };
    traces.into_values().map(sorted).collect()
}

/// How many calls were kept of `calls` at a sample rate: each with all its spans, or with none.
async fn kept(sample_rate: f64, calls: usize) -> usize {
    let collector = Collector::start().await;
    let (mut gateway, _traced) = gateway(&collector, sample_rate).await;
    let client = gateway.client().await;
    for _ in 0..calls {
        client.call("traced__told", json!({ "fail": false })).await.result();
    }
    drop(client);
    gateway.stop().await;
    // The server tells of a call once it has answered it, and what the collector prints is read a little later.
    let mut before = None;
    let told = eventually("each trace to be whole, and no more to come", Duration::from_secs(60), async || {
        let told = calls_told(&collector);
        let is_settled = before.replace(told.len()) == Some(told.len());
        (is_settled && told.iter().all(|spans| spans.len() >= WHOLE.len())).then_some(told)
    })
    .await;
    for spans in &told {
        assert_eq!(*spans, WHOLE, "a trace is kept whole");
    }
    told.len()
}

#[tokio::test]
async fn at_a_sample_rate_of_one_every_call_is_kept() {
    assert_eq!(kept(1.0, 30).await, 30);
}

#[tokio::test]
async fn at_a_sample_rate_of_a_tenth_about_a_tenth_of_the_calls_is_kept_whole() {
    let kept = kept(0.1, 300).await;
    assert!((10..=55).contains(&kept), "{kept} of 300");
}

#[tokio::test]
async fn the_sample_the_audit_entry_and_the_span_of_a_call_name_each_other() {
    let (collector, server) = (Collector::start().await, Config::new().start().await);
    let traced = Traced::start(&collector.authority()).await;
    let otlp = json!({ "observability": { "otlp": { "endpoint": collector.endpoint() } } });
    let gateway = GatewayConfig::new().http("traced", &traced.url).control_plane(&server).with(otlp).start().await;
    gateway.plugins_ready(1).await;
    gateway.client().await.call("traced__told", json!({ "fail": false })).await.result();
    let spans = collector.spans_with("the call to be told", 1, is_gateways).await;
    let span = spans.iter().find(|span| is_gateways(span)).unwrap();
    let ids = |record: &Value| {
        ["trace_id", "span_id", "request_id", "invocation_id"].map(|id| record[id].as_str().map(str::to_owned))
    };
    let expected = [
        Some(span.trace.clone()),
        Some(span.span.clone()),
        span.attributes["mcpg.request_id"].as_str().map(str::to_owned),
        span.attributes["mcpg.invocation_id"].as_str().map(str::to_owned),
    ];
    let client = server.client();
    let sample = eventually("the sample", Duration::from_secs(60), async || {
        let rows = client.sql("SELECT trace_id, span_id, request_id, invocation_id FROM tool_invocations").await;
        rows.into_iter()
            .next()
            .map(|row| json!({ "trace_id": row[0], "span_id": row[1], "request_id": row[2], "invocation_id": row[3] }))
    });
    assert_eq!(ids(&sample.await), expected);
    let entry = eventually("the audit entry", Duration::from_secs(60), async || {
        client.get("audit?action_prefix=tool.").await.ok().json()["entries"].as_array().unwrap().first().cloned()
    });
    assert_eq!(ids(&entry.await), expected);
}

#[tokio::test]
async fn with_the_collector_away_calls_are_answered_and_lost_spans_counted() {
    let collector = Collector::start().await;
    let traced = Traced::start(&collector.authority()).await;
    let otlp = json!({ "observability": { "otlp": { "endpoint": format!("http://127.0.0.1:{}", free_port()) } } });
    let gateway = GatewayConfig::new().http("traced", &traced.url).with(otlp).start().await;
    let client = gateway.client().await;
    for _ in 0..20 {
        client.call("traced__told", json!({ "fail": false })).await.result();
    }
    eventually("lost spans to be counted", Duration::from_secs(60), async || {
        let lost = gateway.metrics().await.total("mcpg_gateway_spans_dropped_total");
        (lost >= 80.0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn with_the_stream_off_the_agents_context_reaches_the_server_as_it_came() {
    let collector = Collector::start().await;
    let traced = Traced::start(&collector.authority()).await;
    let otlp = json!({ "observability": { "otlp": { "enabled": false, "endpoint": collector.endpoint() } } });
    let gateway = GatewayConfig::new().http("traced", &traced.url).with(otlp).start().await;
    let agent = python("traced_client.py", &[&gateway.plugin_url("traced"), "told", &collector.authority()]).await;
    let trace = agent["trace"].as_str().unwrap();
    let spans =
        collector.spans_with("both calls to be told", 2, |span| is_upstreams(span) && span.trace == trace).await;
    assert!(spans.iter().all(|span| span.service() != "mcpg-gateway"));
    for upstream in spans.iter().filter(|span| is_upstreams(span)) {
        let parent = spans.iter().find(|span| span.span == upstream.parent).unwrap();
        assert_eq!(parent.service(), "agent", "no gap in the trace");
    }
}
