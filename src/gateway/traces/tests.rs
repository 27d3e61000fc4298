use std::sync::{Arc, Mutex};

use http::{HeaderMap, HeaderValue, Version};
use opentelemetry::trace::{SpanId, SpanKind, Status};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter};
use serde_json::{Map, Value, json};

use super::{Answer, Emitter, Failure, Request, RequestSpans, Target, Traces, Upstream};
use crate::config::Otlp;
use crate::model::{Decision, Outcome};
use crate::telemetry::otlp::Export;
use crate::telemetry::w3c::Inbound;

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const UNSAMPLED: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
const PROXY: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const UPSTREAM: Upstream<'static> = Upstream::Http { address: "10.0.0.7", port: 3001 };

/// Keeps the spans that are exported.
#[derive(Debug, Clone, Default)]
struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().unwrap().extend(batch);
        Ok(())
    }
}

/// What is exported of the requests that `make` opens, at a sample rate.
async fn exported(rate: f64, make: impl FnOnce(&Traces)) -> Vec<SpanData> {
    let kept = Kept::default();
    let traces = Traces::through(Export::through(kept.clone(), rate, Resource::builder_empty().build()), rate);
    make(&traces);
    traces.shutdown().await;
    kept.0.lock().unwrap().clone()
}

fn off() -> Traces {
    let org = "default".parse().unwrap();
    Traces::start(&Otlp::default(), Emitter { org: &org, workspace: "prod", instance: "gw-1" }).unwrap()
}

fn inbound(meta: Option<&str>, header: Option<&'static str>) -> Inbound {
    let mut headers = HeaderMap::new();
    if let Some(header) = header {
        headers.insert("traceparent", HeaderValue::from_static(header));
    }
    let meta = meta.map(|meta| json!({ "traceparent": meta, "tracestate": "v=1", "baggage": "k=2" }));
    Inbound::read(&headers, meta.as_ref().and_then(Value::as_object))
}

fn call(traces: &Traces, inbound: Inbound) -> RequestSpans {
    let request = Request {
        method: "tools/call",
        jsonrpc_id: Some("7"),
        session_id: Some("s-1"),
        protocol_version: Some("2025-11-25"),
        http_version: Some(Version::HTTP_11),
        client: Some("127.0.0.1:5555".parse().unwrap()),
        request_id: Some("r-1"),
        invocation_id: Some("i-1"),
    };
    traces.request(&request, inbound, true, None)
}

/// A call that went well, and the trace headers that its upstream got.
fn whole_call(traces: &Traces, inbound: Inbound) -> Map<String, Value> {
    let mut spans = call(traces, inbound);
    spans.identity().caller("service:ci");
    spans.about("github", Target::Tool("list_repos"));
    spans.policy().decided(Decision::PermitWithObligations, &["p1", "p2"], &["redact"]);
    let dispatch = spans.dispatch("github", Target::Tool("list_repos"), &UPSTREAM);
    let mut meta = Map::new();
    dispatch.outbound().put_meta(&mut meta);
    dispatch.end(None);
    spans.end(Answer { outcome: Some(Outcome::Ok), ..Answer::default() });
    meta
}

fn of_kind(spans: &[SpanData], kind: SpanKind) -> &SpanData {
    spans.iter().find(|span| span.span_kind == kind).unwrap()
}

fn named<'a>(spans: &'a [SpanData], name: &str) -> &'a SpanData {
    spans.iter().find(|span| span.name == name).unwrap()
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    span.attributes.iter().find(|attribute| attribute.key.as_str() == name).map(|found| found.value.to_string())
}

fn has(span: &SpanData, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(attribute(span, name).as_deref(), Some(*value), "{name} of {}", span.name);
    }
}

#[tokio::test]
async fn a_call_is_a_server_span_with_identity_policy_and_dispatch_under_it() {
    let spans = exported(1.0, |traces| drop(whole_call(traces, Inbound::default()))).await;
    assert_eq!(spans.len(), 4);
    let server = of_kind(&spans, SpanKind::Server);
    assert_eq!(server.name, "tools/call list_repos");
    assert_eq!(server.parent_span_id, SpanId::INVALID, "a trace of its own");
    let client = of_kind(&spans, SpanKind::Client);
    for child in [named(&spans, "identity"), named(&spans, "policy"), client] {
        assert_eq!(child.parent_span_id, server.span_context.span_id(), "{}", child.name);
        assert_eq!(child.span_context.trace_id(), server.span_context.trace_id(), "{}", child.name);
        assert_eq!(child.status, Status::Unset, "{}", child.name);
    }
    assert_eq!(client.name, "tools/call list_repos");
}

#[tokio::test]
async fn spans_have_the_names_of_the_conventions_for_mcp() {
    let spans = exported(1.0, |traces| drop(whole_call(traces, Inbound::default()))).await;
    let both = [
        ("mcp.method.name", "tools/call"),
        ("gen_ai.tool.name", "list_repos"),
        ("gen_ai.operation.name", "execute_tool"),
        ("network.transport", "tcp"),
        ("network.protocol.name", "http"),
        ("mcpg.plugin", "github"),
    ];
    let (server, client) = (of_kind(&spans, SpanKind::Server), of_kind(&spans, SpanKind::Client));
    has(server, &both);
    has(client, &both);
    has(
        server,
        &[
            ("jsonrpc.request.id", "7"),
            ("mcp.session.id", "s-1"),
            ("mcp.protocol.version", "2025-11-25"),
            ("network.protocol.version", "1.1"),
            ("client.address", "127.0.0.1"),
            ("client.port", "5555"),
            ("mcpg.request_id", "r-1"),
            ("mcpg.invocation_id", "i-1"),
            ("mcpg.outcome", "ok"),
        ],
    );
    has(client, &[("server.address", "10.0.0.7"), ("server.port", "3001")]);
    has(named(&spans, "identity"), &[("mcpg.caller", "service:ci")]);
    has(named(&spans, "policy"), &[("mcpg.decision", "permit_with_obligations")]);
    assert_eq!(attribute(named(&spans, "policy"), "mcpg.policy_ids").unwrap(), "[\"p1\",\"p2\"]");
}

#[tokio::test]
async fn a_call_joins_the_trace_that_its_message_names_and_links_the_transports() {
    let spans = exported(0.0, |traces| drop(whole_call(traces, inbound(Some(CALLER), Some(PROXY))))).await;
    let server = of_kind(&spans, SpanKind::Server);
    assert_eq!(server.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(server.parent_span_id.to_string(), "b7ad6b7169203331");
    assert!(server.parent_span_is_remote);
    let links: Vec<String> = server.links.iter().map(|link| link.span_context.span_id().to_string()).collect();
    assert_eq!(links, ["00f067aa0ba902b7"]);
}

#[tokio::test]
async fn the_upstream_is_told_the_dispatch_span_and_what_the_caller_sent_along() {
    let mut told = Map::new();
    let spans = exported(1.0, |traces| told = whole_call(traces, inbound(Some(CALLER), None))).await;
    let dispatch = of_kind(&spans, SpanKind::Client).span_context.span_id();
    assert_eq!(told["traceparent"], format!("00-0af7651916cd43dd8448eb211c80319c-{dispatch}-01"));
    assert_eq!((&told["tracestate"], &told["baggage"]), (&json!("v=1"), &json!("k=2")));
}

#[tokio::test]
async fn a_trace_is_kept_whole_or_not_at_all() {
    let calls = 2_000;
    let mut kept = 0;
    let spans = exported(0.1, |traces| {
        for _ in 0..calls {
            let told = whole_call(traces, Inbound::default());
            kept += usize::from(told["traceparent"].as_str().unwrap().ends_with("-01"));
        }
    })
    .await;
    assert!((140..=260).contains(&kept), "{kept} of {calls} at a tenth");
    assert_eq!(spans.len(), 4 * kept, "what the upstream is sent is what was done");
}

#[tokio::test]
async fn a_callers_decision_on_its_trace_is_followed() {
    let mut told = Map::new();
    let none = exported(1.0, |traces| told = whole_call(traces, inbound(Some(UNSAMPLED), None))).await;
    assert!(none.is_empty(), "the caller does not keep it");
    assert!(told["traceparent"].as_str().unwrap().ends_with("-00"), "{told:?}");
    assert_eq!(exported(0.0, |traces| drop(whole_call(traces, inbound(Some(CALLER), None)))).await.len(), 4);
}

#[tokio::test]
async fn there_are_ids_also_when_nothing_is_exported() {
    let traces = off();
    let (one, other) = (call(&traces, Inbound::default()), call(&traces, Inbound::default()));
    for spans in [&one, &other] {
        assert_eq!((spans.trace_id().to_string().len(), spans.span_id().to_string().len()), (32, 16));
        assert_ne!(spans.trace_id().to_string(), "0".repeat(32));
        assert_ne!(spans.span_id().to_string(), "0".repeat(16));
    }
    assert_ne!(one.trace_id(), other.trace_id());
    let joined = call(&traces, inbound(Some(CALLER), None));
    assert_eq!(joined.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c", "the caller's trace all the same");
    let unsampled =
        exported(0.0, |traces| assert_ne!(call(traces, Inbound::default()).span_id(), SpanId::INVALID)).await;
    assert!(unsampled.is_empty());
}

#[tokio::test]
async fn a_gateway_that_exports_nothing_passes_the_callers_context_on_as_it_came() {
    let told = whole_call(&off(), inbound(Some(CALLER), Some(PROXY)));
    assert_eq!(Value::Object(told), json!({ "traceparent": CALLER, "tracestate": "v=1", "baggage": "k=2" }));
    assert!(whole_call(&off(), Inbound::default()).is_empty(), "nothing is made up");
}

#[tokio::test]
async fn the_stream_is_off_without_an_endpoint() {
    assert!(off().counts().is_none());
}

#[tokio::test]
async fn failures_are_told_by_their_class_alone() {
    for (failure, kind, code) in [
        (Failure::Rpc(-32602), "-32602", Some("-32602")),
        (Failure::Tool, "tool_error", None),
        (Failure::Kind("timeout"), "timeout", None),
    ] {
        let spans = exported(1.0, |traces| {
            let spans = call(traces, Inbound::default());
            spans.dispatch("github", Target::Tool("list_repos"), &Upstream::Stdio).end(Some(failure));
            let answer = Answer {
                outcome: Some(Outcome::ServerError),
                error_code: Some("UPSTREAM_5XX"),
                failure: Some(failure),
            };
            spans.end(answer);
        })
        .await;
        assert_eq!(spans.len(), 2);
        for span in &spans {
            has(span, &[("error.type", kind)]);
            assert_eq!(attribute(span, "rpc.response.status_code").as_deref(), code);
            assert_eq!(span.status, Status::error(""));
        }
        has(
            of_kind(&spans, SpanKind::Server),
            &[("mcpg.outcome", "server_error"), ("mcpg.error_code", "UPSTREAM_5XX")],
        );
        has(of_kind(&spans, SpanKind::Client), &[("network.transport", "pipe")]);
    }
}

#[tokio::test]
async fn a_request_that_is_dropped_ends_as_cancelled() {
    let spans = exported(1.0, |traces| {
        let spans = call(traces, Inbound::default());
        let dispatch = spans.dispatch("github", Target::Tool("list_repos"), &UPSTREAM);
        drop((dispatch, spans));
    })
    .await;
    assert_eq!(spans.len(), 2);
    spans.iter().for_each(|span| has(span, &[("error.type", "cancelled")]));
}

#[tokio::test]
async fn who_is_not_known_is_an_error_of_the_identity_span() {
    let spans = exported(1.0, |traces| call(traces, Inbound::default()).identity().refused()).await;
    has(named(&spans, "identity"), &[("error.type", "unauthenticated")]);
}

#[tokio::test]
async fn what_a_client_made_up_is_not_in_a_span() {
    let long = "x".repeat(1_000);
    let spans = exported(1.0, |traces| {
        let request =
            Request { method: "made/up", jsonrpc_id: Some(&long), session_id: Some(&long), ..Request::default() };
        traces.request(&request, inbound(Some(CALLER), None), true, None).end(Answer::default());
    })
    .await;
    let server = of_kind(&spans, SpanKind::Server);
    assert_eq!(server.name, "_OTHER");
    assert!(!format!("{:?}", server.attributes).contains("xxx") && !format!("{server:?}").contains("made/up"));
}

#[tokio::test]
async fn a_prompt_names_its_span_and_a_resource_does_not() {
    let spans = exported(1.0, |traces| {
        for (method, target) in [("prompts/get", Target::Prompt("review")), ("resources/read", Target::Unnamed)] {
            let mut spans = traces.request(&Request { method, ..Request::default() }, Inbound::default(), true, None);
            spans.about("files", target);
            spans.end(Answer::default());
        }
    })
    .await;
    has(named(&spans, "prompts/get review"), &[("gen_ai.prompt.name", "review"), ("mcpg.plugin", "files")]);
    let resource = named(&spans, "resources/read");
    has(resource, &[("mcpg.plugin", "files")]);
    assert_eq!(attribute(resource, "gen_ai.operation.name"), None);
}

#[tokio::test]
async fn whether_a_trace_is_kept_is_for_the_gateway_unless_the_caller_is_trusted() {
    let request = |traces: &Traces, trusted| {
        let request = Request { method: "tools/call", ..Request::default() };
        traces.request(&request, inbound(Some(CALLER), None), trusted, None).end(Answer::default());
    };
    assert_eq!(exported(0.0, |traces| request(traces, true)).await.len(), 1);
    assert_eq!(exported(0.0, |traces| request(traces, false)).await.len(), 0);
    let joined = exported(1.0, |traces| request(traces, false)).await;
    assert_eq!(joined[0].span_context.trace_id().to_string(), CALLER[3..35], "it is joined all the same");
}

#[test]
fn with_nothing_exported_the_context_of_any_caller_is_passed_on_as_it_came() {
    let traces = off();
    let request = Request { method: "tools/call", ..Request::default() };
    let mut spans = traces.request(&request, inbound(Some(CALLER), None), false, None);
    spans.about("github", Target::Tool("t"));
    let mut meta = Map::new();
    spans.dispatch("github", Target::Tool("t"), &UPSTREAM).outbound().put_meta(&mut meta);
    assert_eq!(meta["traceparent"], CALLER);
}
