//! The API as a client sees it, over a plane whose store is memory.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, Response};
use axum::routing::get;
use chrono::{DateTime, Utc};
use ed25519_dalek::SigningKey;
use object_store::memory::InMemory;
use serde_json::Value;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;

use super::{Access, Api, Sealer, panicked};
use crate::audit::SigningKeys;
use crate::config::{ControlPlane, TokenHash};
use crate::model::{Clock, SystemRandom};
use crate::plane::{Elsewhere, Parts, Plane};
use crate::query::{LocalEngine, SqlLimits};
use crate::storage::Store;
use crate::telemetry::metrics::Metrics;

const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");
const JSON: (&str, &str) = ("content-type", "application/json");
const INVOCATIONS: &str = "/v1/orgs/default/invocations";

/// Noon of a day long gone.
#[derive(Debug)]
struct Noon;

impl Clock for Noon {
    fn now(&self) -> DateTime<Utc> {
        "2026-05-01T12:00:00Z".parse().unwrap()
    }
}

pub(super) struct Served {
    router: Router,
    plane: Arc<Plane>,
    metrics: Arc<Metrics>,
}

fn test_keys() -> Arc<SigningKeys> {
    Arc::new(SigningKeys::new(SigningKey::from_bytes(&[7; 32])))
}

/// The API under this configuration, before the plane has recovered.
fn starting(config: &str) -> Served {
    starting_at(config, Arc::new(Noon))
}

fn starting_at(config: &str, clock: Arc<dyn Clock>) -> Served {
    let settings = ControlPlane::parse("test.yaml", config, &|_| None).unwrap();
    let metrics = Arc::new(Metrics::new());
    let store = Store::new(Arc::new(InMemory::new()), "memory://");
    let engine = LocalEngine::new(Arc::clone(store.objects()), SqlLimits::default()).unwrap();
    let parts = Parts {
        store,
        clock: Arc::clone(&clock),
        random: Arc::new(SystemRandom),
        metrics: Arc::clone(&metrics),
        signing: test_keys(),
        elsewhere: Elsewhere::default(),
        rules: crate::log::Rules::default(),
    };
    let plane = Plane::new(&settings, parts).unwrap();
    let access = Access::new(&settings, 7843, Sealer::new(&[7; 32], None).unwrap()).unwrap();
    let access = access.with(Arc::clone(&clock), Arc::clone(&metrics));
    let api =
        Api::new(Arc::clone(&plane), Arc::new(engine), access, Arc::clone(&metrics), settings.limits.clone(), clock);
    Served { router: api.into_router(), plane, metrics }
}

pub(super) async fn serving(config: &str) -> Served {
    let served = starting(config);
    served.plane.recover().await.unwrap();
    served
}

impl Served {
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.router.clone().oneshot(request.body(body.into()).unwrap()).await.unwrap();
        Answer::read(response).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub(super) async fn post(&self, path: &str, headers: &[(&str, &str)], body: impl Into<Body>) -> Answer {
        self.send(Method::POST, path, headers, body).await
    }
}

pub(super) struct Answer {
    pub(super) status: u16,
    headers: axum::http::HeaderMap,
    pub(super) body: Vec<u8>,
}

impl Answer {
    async fn read(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Self { status: head.status.as_u16(), headers: head.headers, body }
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Asserts that it is a problem document of this status and code.
    #[track_caller]
    fn is_problem(&self, status: u16, code: &str) -> Value {
        assert_eq!((self.status, self.header("content-type")), (status, "application/problem+json"), "{}", self.text());
        let document = self.json();
        assert_eq!(document["code"], code);
        assert_eq!(document["status"], status);
        assert_eq!(document["type"], format!("urn:mcpg:problem:{code}"));
        assert!(!document["title"].as_str().unwrap().is_empty() && !document["detail"].as_str().unwrap().is_empty());
        document
    }
}

fn sample(tool: &str) -> String {
    format!(
        "{{\"workspace\":\"prod\",\"instance\":\"gw-1\",\"plugin\":\"github\",\"tool\":\"{tool}\",\
         \"started_at\":\"2026-05-01T11:30:00Z\",\"duration_ms\":84,\"outcome\":\"ok\"}}\n"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_sample_is_in_the_next_scrape() {
    let served = serving("").await;
    let answer = served.post(INVOCATIONS, &[NDJSON], sample("list_repos") + &sample("list_repos")).await;
    assert_eq!((answer.status, answer.text()), (200, r#"{"accepted":2,"duplicate":false}"#));
    let scrape = served.get("/v1/orgs/default/metrics?granularity=hour").await;
    assert_eq!(scrape.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let line = r#"mcpg_tool_calls_total{org="default",workspace="prod",plugin="github",tool="list_repos"} 2"#;
    assert!(scrape.text().lines().any(|l| l == line), "{}", scrape.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_sample_is_in_the_next_query() {
    let served = serving("").await;
    served.post(INVOCATIONS, &[JSON], sample("list_repos")).await;
    let query = "SELECT tool, count(*) AS n FROM tool_invocations WHERE plugin = $1 GROUP BY tool";
    let query = serde_json::json!({ "query": query, "params": ["github"] }).to_string();
    let answer = served.post("/v1/orgs/default/sql", &[JSON], query).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["rows"], serde_json::json!([["list_repos", 1]]));
    assert!(served.metrics.render().unwrap().contains("mcpg_cp_queries_total{outcome=\"ok\"} 1"));
}

/// Every answer of every route, to any caller: no cache keeps it, and it is nothing but what its type says.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_an_org_is_kept_by_no_cache_and_what_is_not_taken_says_what_is() {
    let served = serving("").await;
    let query = ("/v1/orgs/default/sql", r#"{"query":"SELECT 1"}"#);
    for answer in [
        served.get("/v1/orgs/default/audit").await,
        served.get("/v1/orgs/default/metrics").await,
        served.get("/v1/orgs/none/audit").await,
        served.post(query.0, &[JSON], query.1).await,
        served.get("/v1/nothing").await,
    ] {
        assert_eq!((answer.header("cache-control"), answer.header("x-content-type-options")), ("no-store", "nosniff"));
    }
    let answer = served.send(Method::OPTIONS, query.0, &[], "").await;
    answer.is_problem(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
    let (head, get) = (
        served.send(Method::HEAD, "/v1/orgs/default/audit", &[], "").await,
        served.get("/v1/orgs/default/audit").await,
    );
    assert_eq!((head.status, head.body.len(), get.status), (200, 0, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_faulty_query_is_a_problem_with_its_place() {
    let served = serving("").await;
    let answer = served.post("/v1/orgs/default/sql", &[JSON], r#"{"query":"SELEC 1"}"#).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let answer = served.post("/v1/orgs/default/sql", &[JSON], r#"{"query":"DROP TABLE tool_invocations"}"#).await;
    answer.is_problem(400, "sql_not_allowed");
    for (headers, body, status, code) in [
        (&[NDJSON][..], r#"{"query":"SELECT 1"}"#, 415, "unsupported_media_type"),
        (&[JSON], "{", 400, "invalid_request"),
        (&[JSON], r#"{"sql":"SELECT 1"}"#, 400, "invalid_request"),
        (&[JSON, ("accept", "image/png")], r#"{"query":"SELECT 1"}"#, 406, "not_acceptable"),
    ] {
        served.post("/v1/orgs/default/sql", headers, body).await.is_problem(status, code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_idempotency_key_stores_once() {
    let served = serving("").await;
    let key = ("idempotency-key", "batch-1");
    assert_eq!(served.post(INVOCATIONS, &[NDJSON, key], sample("a")).await.json()["duplicate"], false);
    assert_eq!(served.post(INVOCATIONS, &[NDJSON, key], sample("a")).await.json()["duplicate"], true);
    let scrape = served.get("/v1/orgs/default/metrics").await;
    assert!(scrape.text().contains("tool=\"a\"} 1\n"), "{}", scrape.text());
    served
        .post(INVOCATIONS, &[NDJSON, ("idempotency-key", "")], sample("a"))
        .await
        .is_problem(400, "invalid_idempotency_key");
    served.post(INVOCATIONS, &[NDJSON, key, key], sample("a")).await.is_problem(400, "invalid_idempotency_key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_numbered_batch_is_stored_once_however_it_is_packed_and_its_headers_go_together() {
    let served = serving("").await;
    let emitter = ("mcpg-emitter", "7d444840-9dc0-11d1-b245-5ffdce74fad2/0");
    let (first, second) =
        ([("mcpg-sequence", "1"), ("mcpg-after", "0")], [("mcpg-sequence", "2"), ("mcpg-after", "1")]);
    let headers = [NDJSON, emitter, first[0], first[1]];
    let answer = served.post(INVOCATIONS, &headers, sample("a")).await;
    assert_eq!((answer.status, &answer.json()["duplicate"]), (200, &false.into()), "{}", answer.text());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(sample("a").as_bytes()).unwrap();
    let packed = [&headers[..], &[("content-encoding", "gzip")]].concat();
    let answer = served.post(INVOCATIONS, &packed, gzip.finish().unwrap()).await;
    assert_eq!((&answer.json()["accepted"], &answer.json()["duplicate"]), (&1.into(), &true.into()));
    let answer = served.post(INVOCATIONS, &[NDJSON, emitter, second[0], second[1]], sample("a")).await;
    assert_eq!(answer.json()["duplicate"], false, "the next number is another batch");
    let scrape = served.get("/v1/orgs/default/metrics").await;
    assert!(scrape.text().contains("tool=\"a\"} 2\n"), "{}", scrape.text());

    for headers in [
        &[NDJSON, emitter, first[0]][..],
        &[NDJSON, emitter, first[0], first[1], ("idempotency-key", "k")],
        &[NDJSON, emitter, ("mcpg-sequence", "0"), ("mcpg-after", "0")],
        &[NDJSON, emitter, ("mcpg-sequence", "2"), ("mcpg-after", "2")],
        &[NDJSON, ("mcpg-emitter", "gw-1"), first[0], first[1]],
    ] {
        served.post(INVOCATIONS, headers, sample("a")).await.is_problem(400, "invalid_sequence");
        served.post("/v1/orgs/default/audit", headers, "{}").await.is_problem(400, "invalid_sequence");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_sample_is_told_by_row_and_field_and_nothing_is_stored() {
    let served = serving("").await;
    let body = sample("good") + &sample("bad").replace("\"ok\"", "\"fine\"");
    let document = served.post(INVOCATIONS, &[NDJSON], body).await.is_problem(400, "invalid_sample");
    assert_eq!((&document["errors"][0]["row"], &document["errors"][0]["field"]), (&1.into(), &"outcome".into()));
    assert!(!served.get("/v1/orgs/default/metrics").await.text().contains("tool=\"good\""));
    assert!(served.metrics.render().unwrap().contains("mcpg_cp_ingest_refused_total{code=\"invalid_sample\"} 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_the_wrong_size_or_kind_is_refused() {
    let served = serving("limits: {body_bytes: 1KiB}").await;
    served.post(INVOCATIONS, &[NDJSON], "x".repeat(1_025)).await.is_problem(413, "body_too_large");
    served
        .post(INVOCATIONS, &[("content-type", "text/csv")], sample("a"))
        .await
        .is_problem(415, "unsupported_media_type");
    served.post(INVOCATIONS, &[], sample("a")).await.is_problem(415, "unsupported_media_type");
    let brotli = ("content-encoding", "br");
    served.post(INVOCATIONS, &[NDJSON, brotli], sample("a")).await.is_problem(415, "unsupported_encoding");
    served.post(INVOCATIONS, &[NDJSON], "").await.is_problem(400, "empty_batch");
    assert_eq!(served.post(INVOCATIONS, &[NDJSON], sample("a")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_unpacks_to_far_more_than_expected_is_taken_within_the_limit() {
    let rows = 2_000;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(sample("a").repeat(rows).as_bytes()).unwrap();
    let body = gzip.finish().unwrap();
    assert!(body.len() * 16 < sample("a").len() * rows);
    let headers = [NDJSON, ("content-encoding", "gzip")];
    let roomy = serving("").await.post(INVOCATIONS, &headers, body.clone()).await;
    assert_eq!((roomy.status, &roomy.json()["accepted"]), (200, &rows.into()), "{}", roomy.text());
    serving("limits: {decoded_bytes: 64KiB}")
        .await
        .post(INVOCATIONS, &headers, body)
        .await
        .is_problem(413, "body_too_large");
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_buffer_is_full_the_client_is_told_when_to_come_again() {
    let served = serving("limits: {buffer_bytes: 64MiB}").await;
    let everything = served.plane.admit(64 << 20).await.unwrap();
    let answer = served.post(INVOCATIONS, &[NDJSON], sample("a")).await;
    answer.is_problem(429, "busy");
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
    drop(everything);
    assert_eq!(served.post(INVOCATIONS, &[NDJSON], sample("a")).await.status, 200);
}

/// A clock that goes back by an hour once it is told to.
#[derive(Debug, Default)]
struct Back(AtomicBool);

impl Clock for Back {
    fn now(&self) -> DateTime<Utc> {
        Noon.now() - chrono::TimeDelta::hours(i64::from(self.0.load(Ordering::Relaxed)))
    }
}

/// A batch that is stored stays stored, whatever would be said of it today.
#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_told_before_its_rows_are_judged() {
    let clock = Arc::new(Back::default());
    let served = starting_at("", Arc::clone(&clock) as _);
    served.plane.recover().await.unwrap();
    let headers = [NDJSON, ("idempotency-key", "k")];
    assert_eq!(served.post(INVOCATIONS, &headers, sample("a")).await.json()["duplicate"], false);
    clock.0.store(true, Ordering::Relaxed);
    let other = [NDJSON, ("idempotency-key", "other")];
    assert_eq!(served.post(INVOCATIONS, &other, sample("a")).await.status, 400, "it is of the future now");
    let again = served.post(INVOCATIONS, &headers, sample("a")).await;
    assert_eq!((again.status, &again.json()["duplicate"]), (200, &true.into()), "{}", again.text());
}

#[tokio::test]
async fn before_the_replay_is_done_requests_are_asked_to_come_again() {
    let served = starting("");
    assert_eq!(served.get("/healthz").await.status, 200);
    let ready = served.get("/readyz").await;
    let document = ready.is_problem(503, "replaying");
    assert_eq!(document["progress"]["done"], 0);
    assert_eq!(ready.header("retry-after"), "1");
    let posted = served.post(INVOCATIONS, &[NDJSON], sample("a")).await;
    posted.is_problem(503, "unavailable");
    assert!(posted.headers.contains_key("retry-after"));
    served.plane.recover().await.unwrap();
    assert_eq!(served.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn an_unknown_path_or_method_is_a_problem_too() {
    let served = starting("");
    served.get("/v1/orgs/default/nothing").await.is_problem(404, "no_such_route");
    let wrong = served.send(Method::DELETE, INVOCATIONS, &[], "").await;
    wrong.is_problem(405, "method_not_allowed");
    assert_eq!(wrong.header("allow"), "POST");
    let metrics = served.metrics.render().unwrap();
    assert!(
        metrics.contains(r#"mcpg_cp_http_requests_total{method="GET",route="unmatched",status="404"} 1"#),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_granularity_is_refused() {
    serving("").await.get("/v1/orgs/default/metrics?granularity=week").await.is_problem(400, "invalid_granularity");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_guard_every_org_route_and_no_other() {
    let hash = TokenHash::of("reader");
    let config = format!(
        "orgs: [{{name: default}}, {{name: other}}]\ntokens: [{{name: r, hash: {hash}, org: default, roles: [read]}}]"
    );
    let served = serving(&config).await;
    let reader = ("authorization", "Bearer reader");
    for (path, method) in [("invocations", Method::POST), ("metrics", Method::GET), ("sql", Method::POST)] {
        let path = |org: &str| format!("/v1/orgs/{org}/{path}");
        let refused = served.send(method.clone(), &path("default"), &[], "").await;
        refused.is_problem(401, "token_missing");
        assert!(refused.header("www-authenticate").starts_with("Bearer"));
        let wrong = served.send(method.clone(), &path("default"), &[("authorization", "Bearer wrong")], "").await;
        wrong.is_problem(401, "token_unknown");
        let others = served.send(method.clone(), &path("other"), &[reader], "").await.is_problem(404, "org_not_found");
        let nobodys = served.send(method, &path("nobody"), &[reader], "").await.is_problem(404, "org_not_found");
        assert_eq!(others, nobodys);
    }
    served.post(INVOCATIONS, &[reader, NDJSON], sample("a")).await.is_problem(403, "role_missing");
    assert_eq!(served.send(Method::GET, "/v1/orgs/default/metrics", &[reader], "").await.status, 200);
    for open in ["/healthz", "/readyz", "/metrics", "/openapi.json"] {
        assert_eq!(served.get(open).await.status, 200, "{open}");
    }
}

#[tokio::test]
async fn a_request_id_is_kept_if_it_is_sane_and_made_if_not() {
    let served = starting("");
    let id = async |given: &str| {
        served.send(Method::GET, "/healthz", &[("x-request-id", given)], "").await.header("x-request-id").to_owned()
    };
    assert_eq!(id("abc-123").await, "abc-123");
    for odd in ["a b", "<script>", &"a".repeat(129)] {
        let made = id(odd).await;
        assert!(made != odd && made.len() == 36, "{made}");
    }
}

#[tokio::test]
async fn a_panic_is_a_problem_that_tells_nothing_of_it() {
    let router: Router = Router::new()
        .route(
            "/",
            get(|| async {
                if true {
                    panic!("secret")
                }
            }),
        )
        .layer(CatchPanicLayer::custom(panicked));
    let response = router.oneshot(Request::get("/").body(Body::empty()).unwrap()).await.unwrap();
    let answer = Answer::read(response).await;
    answer.is_problem(500, "internal");
    assert!(!answer.text().contains("secret"));
}
