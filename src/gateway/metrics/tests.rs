use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::calls::MAX_TOOLS;
use super::push::Push;
use super::server::serve;
use super::{GatewayMetrics, Loss};
use crate::config::{MetricsPush, OtlpProtocol, Period, Secret};
use crate::model::{Decision, Outcome};
use crate::telemetry::collector::testing::{Sink, contains};
use crate::telemetry::metrics::promtool;

fn busy() -> GatewayMetrics {
    let metrics = GatewayMetrics::new("acme", "prod");
    let took = Duration::from_millis(80);
    metrics.calls.ended("github", "list_repos", Outcome::Ok, took);
    metrics.calls.ended("github", "list_repos", Outcome::Timeout, took);
    metrics.calls.ended("github", "list_repos", Outcome::PolicyDenied, took);
    metrics.sessions.open.set(3);
    metrics.sessions.opened.inc_by(5);
    metrics.upstreams.set_up("github", true);
    metrics.upstreams.restarted("github");
    metrics.upstreams.in_flight("github").set(2);
    metrics.policy.decided(Decision::Permit);
    metrics.policy.seconds.observe(Duration::from_micros(30));
    metrics.policy.reloaded(true);
    metrics.samples.lost(Loss::SpoolFull, 7);
    metrics.samples.fsync_seconds.observe(Duration::from_millis(2));
    metrics.audit.age_seconds.set(1.5);
    metrics.audit_failures.inc();
    metrics
}

#[test]
fn what_was_recorded_is_rendered() {
    let text = busy().render().unwrap();
    let tool = "org=\"acme\",plugin=\"github\",tool=\"list_repos\",workspace=\"prod\"";
    for line in [
        &format!("mcpg_tool_calls_total{{{tool}}} 3"),
        &format!("mcpg_tool_errors_total{{{tool}}} 1"),
        &format!("mcpg_tool_denials_total{{{tool}}} 1"),
        &format!("mcpg_tool_duration_seconds_count{{{tool}}} 3"),
        "mcpg_gateway_sessions 3",
        "mcpg_gateway_upstream_up{plugin=\"github\"} 1",
        "mcpg_gateway_policy_decisions_total{decision=\"permit\"} 1",
        "mcpg_gateway_policy_decisions_total{decision=\"deny\"} 0",
        "mcpg_gateway_policy_duration_seconds_count 1",
        "mcpg_gateway_telemetry_lost_total{reason=\"spool_full\",stream=\"samples\"} 7",
        "mcpg_gateway_telemetry_lost_total{reason=\"disk\",stream=\"audit\"} 0",
        "mcpg_gateway_spool_fsync_duration_seconds_count{stream=\"samples\"} 1",
        "mcpg_gateway_spool_age_seconds{stream=\"audit\"} 1.5",
        "mcpg_gateway_audit_failures_total 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
}

#[test]
fn tools_past_the_bound_are_counted_as_other() {
    let metrics = GatewayMetrics::new("acme", "prod");
    for n in 0..MAX_TOOLS + 5 {
        metrics.calls.ended("github", &format!("tool-{n}"), Outcome::ClientError, Duration::ZERO);
    }
    metrics.calls.ended("github", "tool-0", Outcome::Ok, Duration::ZERO);
    let text = metrics.render().unwrap();
    let series = text.lines().filter(|line| line.starts_with("mcpg_tool_calls_total{")).count();
    assert_eq!(series, MAX_TOOLS + 1);
    let other = "org=\"acme\",plugin=\"__other__\",tool=\"__other__\",workspace=\"prod\"";
    assert!(text.contains(&format!("mcpg_tool_calls_total{{{other}}} 5\n")));
    assert!(text.contains("tool=\"tool-0\",workspace=\"prod\"} 2\n"), "a known tool keeps its series");
    assert!(text.contains("mcpg_gateway_series_overflowed_total{org=\"acme\",workspace=\"prod\"} 5\n"));
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    assert_eq!(promtool::complaints(&busy().render().unwrap()), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_family_is_pushed_over_either_protocol() {
    for (protocol, expected) in [
        (OtlpProtocol::Http, "/v1/metrics"),
        (OtlpProtocol::Grpc, "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export"),
    ] {
        let mut sink = Sink::start().await;
        let settings = MetricsPush {
            endpoint: sink.url().into(),
            headers: BTreeMap::from([("authorization".to_owned(), Secret::new("Bearer t"))]),
            protocol,
            ca_file: None,
            interval: Period::new(Duration::from_secs(3600)),
        };
        let metrics = GatewayMetrics::new("acme", "prod");
        let push = Push::start(&settings, "gw-1", &metrics).unwrap();
        metrics.calls.ended("github", "list_repos", Outcome::Timeout, Duration::from_millis(80));
        metrics.audit.age_seconds.set(1.5);
        push.shutdown().await;
        let (path, authorization, body) = sink.received();
        assert_eq!((path.as_str(), authorization.as_str()), (expected, "Bearer t"));
        for part in [
            "mcpg_tool_calls_total",
            "mcpg_tool_errors_total",
            "mcpg_tool_duration_seconds",
            "mcpg_gateway_spool_age_seconds",
            "mcpg_gateway_sessions",
            "list_repos",
            "mcpg-gateway",
            "gw-1",
        ] {
            assert!(contains(&body, part.as_bytes()), "{part} is not in the push");
        }
    }
}

#[tokio::test]
async fn the_listener_serves_the_metrics_and_nothing_else() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, Arc::new(busy()), stop.clone()));
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let page = client.get(format!("{url}/metrics")).send().await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(page.text().await.unwrap().contains("mcpg_gateway_sessions 3\n"));
    assert_eq!(client.get(&url).send().await.unwrap().status(), 404);
    stop.cancel();
    server.await.unwrap().unwrap();
}
