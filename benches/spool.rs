//! What telemetry costs a call: a sample recorded, an audit event recorded, and one waited for until it is durable.
//!
//! Nothing is delivered: the control plane is away, as in the worst hour. The spool lies in a temporary folder; set
//! `TMPDIR` to measure another disk.

#![expect(clippy::unwrap_used, reason = "a bench that cannot be set up should stop")]

use std::sync::Arc;

use chrono::DateTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::future::join_all;
use mcpg::config;
use mcpg::gateway::export::{AuditEvent, CallSample, EmitParts, Emitters};
use mcpg::gateway::metrics::GatewayMetrics;
use mcpg::model::{Decision, Outcome, SystemClock, SystemRandom};
use opentelemetry::trace::{SpanId, TraceId};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

/// How many calls wait for one fsync together.
const AT_ONCE: usize = 64;

fn emitters(folder: &TempDir) -> Emitters {
    let text = format!(
        "org: acme\nworkspace: prod\ninstance: gw-1\nidentity: {{ anonymous: true }}\n\
         plugins: [ {{ name: github, url: 'http://127.0.0.1:1/mcp' }} ]\n\
         control_plane: {{ url: 'http://127.0.0.1:1', spool: {{ path: '{}' }} }}\n",
        folder.path().display()
    );
    let settings = config::Gateway::parse("gateway.yaml", &text, &|_| None).unwrap();
    let metrics = Arc::new(GatewayMetrics::new("acme", "prod"));
    let parts = EmitParts { clock: Arc::new(SystemClock), random: Arc::new(SystemRandom), metrics };
    Emitters::start(&settings, &parts).unwrap()
}

fn sample() -> CallSample<'static> {
    let at = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
    CallSample {
        invocation_id: Uuid::from_u128(7),
        plugin: "github",
        tool: "list_repos",
        started_at: at,
        arrived_at: at,
        duration_ms: 12.25,
        outcome: Outcome::Ok,
        error_code: None,
        error_hash: None,
        request_id: Some("17"),
        session_id: Some("8b1f6f0e-6a3c-4b0c-9d35-0f6a7f1f2a11"),
        trace_id: TraceId::from(42),
        span_id: SpanId::from(43),
        caller: Some("user:alice@acme"),
        decision: Some(Decision::Permit),
        request_bytes: Some(310),
        response_bytes: Some(4_200),
        client_name: None,
        client_version: None,
        protocol_version: None,
        identity_us: None,
        policy_us: None,
        queue_us: None,
    }
}

fn event(policies: &[String]) -> AuditEvent<'_> {
    let at = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
    AuditEvent {
        target: Some("github/list_repos"),
        decision: Some(Decision::Permit),
        policy_ids: policies,
        request_id: Some("17"),
        trace_id: TraceId::from(42),
        span_id: SpanId::from(43),
        invocation_id: Some(Uuid::from_u128(7)),
        ..AuditEvent::new(Uuid::from_u128(9), at, "user:alice@acme", "tool.permit")
    }
}

fn recording(criterion: &mut Criterion) {
    let (runtime, folder) = (Runtime::new().unwrap(), TempDir::new().unwrap());
    let emitters = runtime.block_on(async { emitters(&folder) });
    let policies = ["allow-reads".to_owned()];
    let mut group = criterion.benchmark_group("record");
    group.bench_function("sample", |bencher| bencher.iter(|| emitters.sample(&sample())));
    group.bench_function("audit_soon", |bencher| bencher.iter(|| emitters.audit_soon(&event(&policies))));
    group.bench_function("audit", |bencher| {
        bencher.to_async(&runtime).iter(|| async { emitters.audit(&event(&policies)).await.unwrap() });
    });
    group.throughput(Throughput::Elements(AT_ONCE as u64));
    group.bench_function("audit_64_at_once", |bencher| {
        bencher.to_async(&runtime).iter(|| async {
            for recorded in join_all((0..AT_ONCE).map(|_| emitters.audit(&event(&policies)))).await {
                recorded.unwrap();
            }
        });
    });
    group.finish();
}

criterion_group!(benches, recording);
criterion_main!(benches);
