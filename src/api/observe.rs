//! What is recorded of every request: a request id, a span, metrics.
//!
//! The id is the caller's `x-request-id` where that is valid, else a new UUID; it is on the answer, the span and every
//! log line. The span joins the caller's trace (W3C `traceparent`) and has OpenTelemetry's names for HTTP servers.
//! Routes are recorded by their pattern, never by their path, so that metrics have few series and no org's name.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;
use tracing::{Instrument, Span, field};
use uuid::Uuid;

use super::Api;
use super::problem::ProblemCode;
use super::refusals::Refused;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{traces, w3c};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

tokio::task_local! {
    /// The id of the request that is being handled.
    static REQUEST: String;
}

/// The id of the request that is being handled, if this is within one.
pub(super) fn current_id() -> Option<String> {
    REQUEST.try_with(String::clone).ok()
}

/// The route of requests that no route matches.
const UNMATCHED: &str = "unmatched";

/// Runs the request within its span, and counts it.
pub(super) async fn observe(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    let method = method_name(request.method());
    let id = request_id(&request);
    let span = span(&request, method, route, &id);
    let running = Running::start(Arc::clone(&api.metrics));

    let mut response = REQUEST.scope(id.clone(), next.run(request).instrument(span.clone())).await;

    drop(running);
    if let Some(refused) = response.extensions_mut().remove::<Refused>() {
        api.refusals.note(refused, format!("{method} {route}"));
    }
    if let Some(ProblemCode(code)) = response.extensions_mut().remove() {
        api.metrics.http.problem(code);
    }
    let (status, took) = (response.status(), started.elapsed());
    api.metrics.http.answered(route, method, status.as_u16(), took);
    span.record("http.response.status_code", status.as_u16());
    if status.is_server_error() {
        span.record("otel.status_code", "ERROR");
    }
    span.in_scope(|| {
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), took_ms = took.as_secs_f64() * 1e3, "answered");
        } else {
            tracing::debug!(status = status.as_u16(), took_ms = took.as_secs_f64() * 1e3, "answered");
        }
    });
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

fn span(request: &Request, method: &'static str, route: &str, id: &str) -> Span {
    // The level is that of the least severe lines that are to carry the span: all of them.
    let span = tracing::error_span!(
        "http",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        otel.status_code = field::Empty,
        http.request.method = method,
        http.route = route,
        http.response.status_code = field::Empty,
        request_id = id,
        trace_id = field::Empty,
        org = field::Empty,
        token = field::Empty,
    );
    if let Some(caller) = w3c::from_headers(request.headers()) {
        span.record("trace_id", caller.trace_id().to_string());
        traces::join(&span, caller);
    }
    span
}

/// The caller's id for its request, if it is short and harmless to log; else a new one.
fn request_id(request: &Request) -> String {
    let sane = |id: &&str| {
        (1..=128).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
    };
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(sane);
    given.map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// The method as a label: one of a fixed set.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::PATCH => "PATCH",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}

/// Counts a request as under way for as long as it lives, also when its client goes away.
struct Running(Arc<Metrics>);

impl Running {
    fn start(metrics: Arc<Metrics>) -> Self {
        metrics.http.running.inc();
        Self(metrics)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.http.running.dec();
    }
}
