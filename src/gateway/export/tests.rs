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
use crate::ingest::{DecodeContext, DecodeLimits, Encoding, Fingerprint, Lane, Media, RandomIds, decode};
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

    /// What it was sent under.
    fn numbered(&self) -> (Lane, u64, u64) {
        assert!(!self.headers.contains_key("idempotency-key"));
        let number = |name| self.header(name).parse().unwrap();
        (self.header("mcpg-emitter").parse().unwrap(), number("mcpg-sequence"), number("mcpg-after"))
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
        None | Some((200, _)) => r#"{"accepted": 1, "duplicate": false}"#.into_response(),
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
        client_name: None,
        client_version: None,
        protocol_version: None,
        identity_us: None,
        policy_us: None,
        queue_us: None,
    }
}

fn event(action: &str) -> AuditEvent<'_> {
    AuditEvent::new(Uuid::new_v4(), DateTime::UNIX_EPOCH, "system:gateway", action)
}

async fn drain(emitters: &Emitters) {
    emitters.drain(Instant::now() + Duration::from_secs(60)).await;
}

async fn eventually(mut is: impl FnMut() -> bool) {
    timeout(Duration::from_secs(60), async {
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
    let (lane, number, after) = samples.numbered();
    assert_eq!((lane.lane, number, after), (0, 1, 0));
    let events: Vec<_> = got.iter().filter(|got| got.path == "/v1/orgs/acme/audit").flat_map(Got::lines).collect();
    let shown: Vec<_> = events.iter().map(|event| (&event["action"], &event["emitter_seq"])).collect();
    assert_eq!(shown, [(&"tool.permit".into(), &0.into()), (&"plugin.ready".into(), &1.into())]);
    assert!(events.iter().all(|event| event["workspace"] == "prod" && event["instance"] == "gw-1"));
    let events = got.iter().find(|got| got.path == "/v1/orgs/acme/audit").unwrap();
    assert_eq!(events.numbered().0, Lane { lane: 1, ..lane }, "one emitter, another lane");
    assert_eq!((metrics.samples.delivered.get(), metrics.audit.delivered.get()), (1, 2));
}

#[tokio::test]
async fn a_batch_is_sent_again_under_its_number_until_it_is_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let script = [(503, "unavailable"), (401, "unauthenticated"), (403, "forbidden"), (404, "org_not_found")];
    let (plane, url) = Plane::default().start(&script).await;
    let (emitters, metrics) = start(&settings(folder.path(), &url, "observability: { audit: { enabled: false } }"));
    emitters.sample(&sample("list_repos"));
    eventually(|| plane.got().len() == 5).await;
    drain(&emitters).await;
    let got = plane.got();
    assert!(got.iter().all(|again| again.body == got[0].body));
    assert!(got.iter().all(|again| again.numbered() == got[0].numbered()));
    assert_eq!((metrics.samples.delivered.get(), metrics.samples.retries.get()), (1, 4));
}

#[tokio::test]
async fn a_restart_between_two_attempts_changes_neither_number_nor_bytes() {
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
    assert_eq!((&got[1].body, got[1].numbered()), (&got[0].body, got[0].numbered()));
    assert_ne!(got.last().unwrap().numbered().0, got[0].numbered().0, "an emitter id is one process's");
    assert_eq!(got.last().unwrap().lines()[0]["emitter_seq"], 1, "numbers go on after the restart");
}

#[tokio::test]
async fn each_batch_says_which_number_was_acknowledged_before_it() {
    let folder = tempfile::tempdir().unwrap();
    // The second one is refused for good: nothing was stored under its number.
    let script = [(200, ""), (400, "invalid_sample"), (503, "unavailable")];
    let (plane, url) = Plane::default().start(&script).await;
    let (emitters, metrics) = start(&settings(folder.path(), &url, "observability: { audit: { enabled: false } }"));
    for (n, tool) in (1..).zip(["a", "b", "c", "d"]) {
        emitters.sample(&sample(tool));
        eventually(|| metrics.samples.delivered.get() + metrics.samples.quarantined.get() == n).await;
    }
    let got = plane.got();
    let emitter = got[0].numbered().0;
    let numbers: Vec<_> = got.iter().map(Got::numbered).collect();
    assert_eq!(numbers, [(1, 0), (2, 1), (3, 1), (3, 1), (4, 3)].map(|(number, after)| (emitter, number, after)));
}

#[tokio::test]
async fn a_batch_whose_number_cannot_be_compared_is_sent_again_under_a_new_emitter_id_also_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let script = [(200, ""), (409, "sequence_conflict"), (503, "unavailable")];
    let (plane, url) = Plane::default().start(&script).await;
    let settings = settings(folder.path(), &url, "observability: { audit: { enabled: false } }");
    let (emitters, metrics) = start(&settings);
    emitters.sample(&sample("a"));
    eventually(|| metrics.samples.delivered.get() == 1).await;
    emitters.sample(&sample("b"));
    eventually(|| plane.got().len() >= 3).await;
    assert_eq!(metrics.samples.renumbered.get(), 1);
    emitters.drain(Instant::now()).await;
    drop(emitters);
    let (emitters, _) = start(&settings);
    emitters.sample(&sample("c"));
    drain(&emitters).await;

    let got = plane.got();
    let (first, conflicting, again) = (got[0].numbered(), got[1].numbered(), got[2].numbered());
    assert_eq!(conflicting, (first.0, 2, 1));
    assert!(again.0 != first.0 && (again.1, again.2) == (1, 0), "{again:?}");
    assert!(got[2..got.len() - 1].iter().all(|later| later.numbered() == again && later.body == got[1].body));
    assert!(got.len() >= 5, "sent, in conflict, under a new id, that again after the crash, and the next one");
    let last = got.last().unwrap();
    assert_eq!((last.tools(), last.numbered().1), (vec!["c".to_owned()], 1));
}

#[tokio::test]
async fn after_a_conflict_of_its_own_number_a_process_goes_on_under_another_emitter_id() {
    let folder = tempfile::tempdir().unwrap();
    let (plane, url) = Plane::default().start(&[(409, "sequence_conflict")]).await;
    let (emitters, metrics) = start(&settings(folder.path(), &url, "observability: { audit: { enabled: false } }"));
    for (n, tool) in (1..).zip(["a", "b", "c", "d"]) {
        emitters.sample(&sample(tool));
        eventually(|| metrics.samples.delivered.get() == n).await;
    }
    let got = plane.got();
    assert_eq!(got.iter().flat_map(Got::tools).collect::<Vec<_>>(), ["a", "a", "b", "c", "d"], "none lost, none twice");
    let numbers: Vec<_> = got.iter().map(Got::numbered).collect();
    let [old, new, open, next, last] = numbers[..] else { panic!("{numbers:?}") };
    assert_eq!((old.1, new.1, open.0, open.1), (1, 1, old.0, 2), "a segment that was begun keeps its number");
    assert!(new.0 != old.0 && next.0 != old.0 && next.0 != new.0);
    assert_eq!([(next.1, next.2), (last.1, last.2)], [(1, 0), (2, 1)]);
    assert_eq!(last.0, next.0);
    assert_eq!((metrics.samples.renumbered.get(), metrics.samples.all_lost()), (1, 0));
}

/// The control plane compares bodies: an encoder that writes other bytes makes what was sent before an upgrade, and not
/// answered, look like another batch. Should this test fail, write segments of the old form with the old encoder.
#[test]
fn the_bytes_of_a_batch_are_the_same_in_every_version() {
    let sample = CallSample { invocation_id: Uuid::from_u128(7), caller: Some("user:alice"), ..sample("list_repos") };
    let record = super::sample::record(&sample, "prod", "gw-1").unwrap();
    let body = super::sample::body(&[&record, &record]).unwrap();
    let mut lines = Vec::new();
    let event = AuditEvent::new(Uuid::from_u128(9), DateTime::UNIX_EPOCH, "system:gateway", "plugin.ready");
    super::event::push_line(&mut lines, &super::event::record(&event, "prod", "gw-1").unwrap(), 12, None);
    assert_eq!(
        (Fingerprint::of(&body), Fingerprint::of(&lines)),
        (Fingerprint(8_128_751_037_969_589_432), Fingerprint(7_719_027_325_882_506_322))
    );
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
