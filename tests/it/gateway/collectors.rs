//! Where spans and metrics go: to a real collector over gRPC or HTTP, plain or over TLS, with a certificate that is
//! looked at.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Collector, Config, Gateway, GatewayConfig, Upstream, eventually, mcpg, run};

const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway that sends its spans and its own metrics to `collector`, whose settings `more` adds to.
fn gateway(collector: &Collector, protocol: &str, fixture: &Upstream, more: &Value) -> GatewayConfig {
    let mut to = json!({
        "endpoint": collector.endpoint(),
        "protocol": protocol,
        "headers": { "authorization": "Bearer ${OTEL_TOKEN}" },
    });
    to.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut push = to.clone();
    push["interval"] = json!("1s");
    GatewayConfig::new()
        .http("fixture", &fixture.url())
        .env("OTEL_TOKEN", "t")
        .with(json!({ "observability": { "otlp": to, "metrics": { "push": push } } }))
}

async fn call(gateway: &Gateway) {
    gateway.client().await.call("fixture__echo", json!({ "message": "hi" })).await.result();
}

/// A call through the gateway is a span and counts in a metric at the collector.
async fn is_told(collector: &Collector, gateway: &Gateway) {
    gateway.plugins_ready(1).await;
    call(gateway).await;
    let spans = collector.spans_with("the call's span", 1, |span| span.name == "tools/call echo").await;
    assert!(spans.iter().all(|span| span.authorization.as_deref() == Some("Bearer t")));
    let point = eventually("the call's metric", PATIENCE, async || {
        collector.points().into_iter().find(|point| point.metric == "mcpg_tool_calls_total" && point.value >= 1.0)
    })
    .await;
    assert_eq!(point.authorization.as_deref(), Some("Bearer t"));
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_and_metrics_are_sent_by_grpc_or_http() {
    let fixture = Upstream::fixture().await;
    for protocol in ["grpc", "http"] {
        let collector = Collector::plain(protocol).await;
        is_told(&collector, &gateway(&collector, protocol, &fixture, &json!({})).start().await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_a_collector_of_a_configured_authority_is_trusted() {
    let fixture = Upstream::fixture().await;
    for protocol in ["grpc", "http"] {
        let collector = Collector::over_tls(protocol).await;
        let trusted = json!({ "ca_file": collector.authority_file() });
        is_told(&collector, &gateway(&collector, protocol, &fixture, &trusted).start().await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_a_collector_of_an_authority_of_the_system_is_trusted() {
    let fixture = Upstream::fixture().await;
    for protocol in ["grpc", "http"] {
        let collector = Collector::over_tls(protocol).await;
        let authority = collector.authority_file();
        let gateway = gateway(&collector, protocol, &fixture, &json!({}));
        is_told(&collector, &gateway.env("SSL_CERT_FILE", authority.to_str().unwrap()).start().await).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_an_impostor_gets_nothing_and_no_call_waits_for_it() {
    let fixture = Upstream::fixture().await;
    for protocol in ["grpc", "http"] {
        let (collector, other) = (Collector::over_tls(protocol).await, Collector::over_tls(protocol).await);
        let mistrusted = json!({ "ca_file": other.authority_file() });
        let gateway = gateway(&collector, protocol, &fixture, &mistrusted).start().await;
        call(&gateway).await;
        eventually("the spans to be counted as lost", PATIENCE, async || {
            (gateway.metrics().await.total("mcpg_gateway_spans_dropped_total") >= 1.0).then_some(())
        })
        .await;
        assert!(collector.spans().is_empty() && collector.points().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_planes_own_spans_go_over_tls_too() {
    let collector = Collector::over_tls("grpc").await;
    let otlp = format!(
        "telemetry: {{ otlp: {{ endpoint: {}, ca_file: {} }} }}",
        collector.endpoint(),
        collector.authority_file().display()
    );
    let server = Config::new().with(&otlp).start().await;
    server.client().sql("SELECT 1").await;
    collector.spans_with("the query's span", 1, |span| span.service() == "mcpg-control-plane").await;
}

/// What the gateway says that does not start with this file of authorities.
fn refusal(ca_file: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gateway.yaml");
    std::fs::write(folder.path().join("empty.pem"), "").unwrap();
    std::fs::write(folder.path().join("broken.pem"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    let settings = json!({
        "listen": "127.0.0.1:0",
        "plugins": [{ "name": "a", "url": "http://127.0.0.1:9/mcp" }],
        "identity": { "anonymous": true },
        "policy": "allow_all",
        "observability": {
            "metrics": { "listen": "127.0.0.1:0" },
            "otlp": { "endpoint": "https://127.0.0.1:9", "ca_file": ca_file },
        },
    });
    std::fs::write(&file, settings.to_string()).unwrap();
    let ended = run(mcpg().args(["gateway", "--config"]).arg(&file).current_dir(folder.path()));
    assert!(!ended.status.success());
    String::from_utf8(ended.stderr).unwrap()
}

#[test]
fn a_file_of_authorities_that_is_none_is_refused_at_the_start() {
    for (file, reason) in [
        ("missing.pem", "No such file or directory"),
        ("empty.pem", "no certificate; it must hold certificates in PEM"),
        ("broken.pem", "it must hold certificates in PEM"),
    ] {
        let said = refusal(file);
        assert!(said.contains(&format!("observability.otlp: ca_file: {file}")) && said.contains(reason), "{said}");
    }
}
