//! The emitters against a control plane that answers by a script.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chrono::DateTime;
use opentelemetry::trace::{SpanId, TraceId};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::{AuditEvent, CallSample, EmitParts, Emitters};
use crate::config;
use crate::gateway::metrics::GatewayMetrics;
use crate::ingest::{DecodeContext, DecodeLimits, Encoding, Media, RandomIds, decode};
use crate::model::{Outcome, SystemClock, SystemRandom};

/// A request that arrived.
#[derive(Debug, Clone, PartialEq)]
struct Got {
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Got {
    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }

    fn lines(&self) -> Vec<Value> {
        self.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(json).collect()
    }

    /// The samples' tools, by way of the control plane's own decoder.
    fn tools(&self) -> Vec<String> {
        let now = DateTime::from_timestamp_millis(1_900_000_000_000).unwrap();
        let context = DecodeContext { org: &"acme".parse().unwrap(), now, limits: DecodeLimits::default() };
        let ids = &mut RandomIds::default();
        let batch = decode(&self.body.clone().into(), Media::ArrowStream, Encoding::Identity, &context, ids).unwrap();
        let tools = batch.column_by_name("tool").unwrap();
        (0..batch.num_rows()).map(|row| arrow::util::display::array_value_to_string(tools, row).unwrap()).collect()
    }
}

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

/// A control plane that gives scripted answers in their order, then acknowledges everything.
#[derive(Debug, Clone, Default)]
struct Plane {
    script: Arc<Mutex<VecDeque<(u16, &'static str)>>>,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Plane {
    async fn start(self, script: &[(u16, &'static str)]) -> (Self, String) {
        self.script.lock().unwrap().extend(script);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        (self, url)
    }

    fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }
}

async fn answer(State(plane): State<Plane>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let packed = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let body = zstd::stream::decode_all(packed.as_ref()).unwrap();
    plane.got.lock().unwrap().push(Got { path: head.uri.path().to_owned(), headers: head.headers, body });
    match plane.script.lock().unwrap().pop_front() {
        None => r#"{"accepted": 1, "duplicate": false}"#.into_response(),
        Some((status, code)) => {
            let problem = format!(r#"{{"code": "{code}"}}"#);
            let media = [("content-type", "application/problem+json")];
            (StatusCode::from_u16(status).unwrap(), media, problem).into_response()
        }
    }
}

fn settings(folder: &Path, url: &str, more: &str) -> config::Gateway {
    let text = format!(
        "org: acme\nworkspace: prod\ninstance: gw-1\nidentity: {{ anonymous: true }}\n\
         plugins: [ {{ name: github, url: 'http://127.0.0.1:1/mcp' }} ]\n\
         control_plane: {{ url: '{url}', token: secret, spool: {{ path: '{}' }} }}\n{more}",
        folder.display()
    );
    config::Gateway::parse("gw.yaml", &text, &|_| None).unwrap()
}

fn start(settings: &config::Gateway) -> (Emitters, Arc<GatewayMetrics>) {
    let metrics = Arc::new(GatewayMetrics::new("acme", "prod"));
    let parts =
        EmitParts { clock: Arc::new(SystemClock), random: Arc::new(SystemRandom), metrics: Arc::clone(&metrics) };
    (Emitters::start(settings, &parts).unwrap(), metrics)
}

fn sample(tool: &str) -> CallSample<'_> {
    let at = DateTime::from_timestamp_millis(1_800_000_000_000).unwrap();
    CallSample {
        invocation_id: Uuid::new_v4(),
        plugin: "github",
        tool,
        started_at: at,
        arrived_at: at,
        duration_ms: 1.0,
        outcome: Outcome::Ok,
        error_code: None,
        error_hash: None,
        request_id: None,
        session_id: None,
        trace_id: TraceId::INVALID,
        span_id: SpanId::INVALID,
        caller: None,
        decision: None,
        request_bytes: None,
        response_bytes: None,
    }
}

fn event(action: &str) -> AuditEvent<'_> {
    AuditEvent::new(Uuid::new_v4(), DateTime::UNIX_EPOCH, "system:gateway", action)
}

async fn drain(emitters: &Emitters) {
    emitters.drain(Instant::now() + Duration::from_secs(20)).await;
}

async fn eventually(mut is: impl FnMut() -> bool) {
    timeout(Duration::from_secs(20), async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it comes to pass");
}

#[tokio::test]
async fn samples_and_events_reach_the_control_plane_each_at_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let (plane, url) = Plane::default().start(&[]).await;
    let (emitters, metrics) = start(&settings(folder.path(), &url, ""));
    emitters.sample(&sample("list_repos"));
    emitters.audit(&event("tool.permit")).await.unwrap();
    emitters.audit_soon(&event("plugin.ready"));
    drain(&emitters).await;

    let got = plane.got();
    let samples = got.iter().find(|got| got.path == "/v1/orgs/acme/invocations").unwrap();
    assert_eq!(samples.tools(), ["list_repos"]);
    assert_eq!(samples.header("content-type"), "application/vnd.apache.arrow.stream");
    assert_eq!(samples.header("authorization"), "Bearer secret");
    assert!(Uuid::try_parse(samples.header("idempotency-key")).is_ok());
    let events: Vec<_> = got.iter().filter(|got| got.path == "/v1/orgs/acme/audit").flat_map(Got::lines).collect();
    let shown: Vec<_> = events.iter().map(|event| (&event["action"], &event["emitter_seq"])).collect();
    assert_eq!(shown, [(&"tool.permit".into(), &0.into()), (&"plugin.ready".into(), &1.into())]);
    assert!(events.iter().all(|event| event["workspace"] == "prod" && event["instance"] == "gw-1"));
    assert_eq!((metrics.samples.delivered.get(), metrics.audit.delivered.get()), (1, 2));
}

#[tokio::test]
async fn a_batch_is_sent_again_under_its_key_until_it_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let script = [(503, "unavailable"), (401, "unauthenticated"), (403, "forbidden"), (404, "org_not_found")];
    let (plane, url) = Plane::default().start(&script).await;
    let (emitters, metrics) = start(&settings(folder.path(), &url, "observability: { audit: { enabled: false } }"));
    emitters.sample(&sample("list_repos"));
    eventually(|| plane.got().len() == 5).await;
    drain(&emitters).await;
    let got = plane.got();
    assert!(got.iter().all(|again| again.body == got[0].body));
    assert!(got.iter().all(|again| again.header("idempotency-key") == got[0].header("idempotency-key")));
    assert_eq!((metrics.samples.delivered.get(), metrics.samples.retries.get()), (1, 4));
}

#[tokio::test]
async fn a_restart_between_two_attempts_changes_neither_key_nor_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (plane, url) = Plane::default().start(&[(503, "unavailable")]).await;
    let settings = settings(folder.path(), &url, "observability: { metrics: { enabled: false } }");
    let (emitters, _) = start(&settings);
    emitters.audit(&event("plugin.ready")).await.unwrap();
    eventually(|| !plane.got().is_empty()).await;
    emitters.drain(Instant::now()).await;
    drop(emitters);
    let (emitters, _) = start(&settings);
    emitters.audit(&event("plugin.stopped")).await.unwrap();
    drain(&emitters).await;
    let got = plane.got();
    assert!(got.len() >= 3, "{got:?}");
    assert_eq!((&got[1].body, got[1].header("idempotency-key")), (&got[0].body, got[0].header("idempotency-key")));
    assert_eq!(got.last().unwrap().lines()[0]["emitter_seq"], 1, "numbers go on after the restart");
}

#[tokio::test]
async fn a_batch_that_is_refused_for_good_is_set_aside_and_the_next_one_is_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let (plane, url) = Plane::default().start(&[(400, "invalid_sample")]).await;
    let (emitters, metrics) = start(&settings(folder.path(), &url, "observability: { audit: { enabled: false } }"));
    emitters.sample(&sample("refused"));
    eventually(|| metrics.samples.quarantined.get() == 1).await;
    emitters.sample(&sample("taken"));
    drain(&emitters).await;
    assert_eq!(plane.got().iter().flat_map(Got::tools).collect::<Vec<_>>(), ["refused", "taken"]);
    assert_eq!((metrics.samples.all_lost(), metrics.samples.delivered.get()), (1, 1));
    let aside: Vec<_> = std::fs::read_dir(folder.path().join("quarantine")).unwrap().collect();
    assert_eq!(aside.len(), 1);
}

#[tokio::test]
async fn each_stream_goes_elsewhere_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (own, own_url) = Plane::default().start(&[]).await;
    let (other, other_url) = Plane::default().start(&[]).await;
    let file = folder.path().join("audit.jsonl");
    let more = format!(
        "observability: {{ metrics: {{ control_plane: {{ url: '{other_url}' }} }}, audit: {{ file: '{}' }} }}",
        file.display()
    );
    let (emitters, metrics) = start(&settings(&folder.path().join("spool"), &own_url, &more));
    emitters.sample(&sample("list_repos"));
    emitters.audit(&event("tool.permit")).await.unwrap();
    drain(&emitters).await;
    assert!(own.got().is_empty());
    let got = other.got();
    assert_eq!(got.iter().flat_map(Got::tools).collect::<Vec<_>>(), ["list_repos"]);
    assert!(!got[0].headers.contains_key("authorization"), "the token is for its own control plane");
    let line = json(&std::fs::read(&file).unwrap());
    assert_eq!(
        (&line["action"], &line["org"], &line["emitter_seq"]),
        (&"tool.permit".into(), &"acme".into(), &0.into())
    );
    assert_eq!(metrics.audit.delivered.get(), 1);
}

#[tokio::test]
async fn a_stream_that_is_off_records_and_sends_nothing_and_holds_up_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (plane, url) = Plane::default().start(&[]).await;
    let spool = folder.path().join("spool");
    let off = "observability: { metrics: { enabled: false }, audit: { enabled: false } }";
    let (emitters, _) = start(&settings(&spool, &url, off));
    emitters.sample(&sample("list_repos"));
    emitters.audit_soon(&event("plugin.ready"));
    emitters.audit(&event("tool.permit")).await.unwrap();
    assert!(!emitters.audits());
    drain(&emitters).await;
    assert!(plane.got().is_empty() && !spool.exists());
}

#[tokio::test]
async fn what_the_control_plane_was_away_for_comes_after_it_is_back_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let off = "observability: { metrics: { enabled: false } }";
    let (emitters, metrics) = start(&settings(folder.path(), &format!("http://{address}"), off));
    for n in 0..300 {
        emitters.audit_soon(&event(&format!("tool.n{n}")));
    }
    eventually(|| metrics.audit.retries.get() >= 2).await;
    let plane = Plane::default();
    let app = Router::new().fallback(answer).with_state(plane.clone());
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    drain(&emitters).await;
    let events: Vec<_> = plane.got().iter().flat_map(Got::lines).collect();
    let seqs: Vec<_> = events.iter().map(|event| event["emitter_seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (0..300).collect::<Vec<_>>());
}
