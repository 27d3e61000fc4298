//! `POST /v1/orgs/{org}/sql`: one read-only query over one org's tables, answered in the format that `Accept` asks for,
//! streamed.
//!
//! A failure before the answer's head is a problem document with its status. A failure after it breaks the connection
//! off, so that an incomplete answer never looks complete.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use tokio::time::Instant;

use super::body::Incoming;
use super::metrics::accept;
use super::{Api, Problem};
use crate::ingest::{Encoding, Media};
use crate::model::Role;
use crate::query::formats::{self, Format};
use crate::query::{QueryError, SqlRequest};
use crate::telemetry::metrics::Metrics;

/// JSON may need six bytes for one of the query's (`\u0000`); the rest is for the parameters.
const JSON_OVERHEAD: usize = 6;
const PARAMETER_BYTES: usize = 256 << 10;

/// Answers a query.
pub(super) async fn post(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let mut body = Incoming::new(&headers, body);
    let query = Running::start(Arc::clone(&api.metrics));
    match answer(&api, &org, &headers, &mut body).await {
        Ok((content_type, rows)) => {
            let rows = Body::from_stream(Counted { rows, query });
            Ok((
                [(CONTENT_TYPE, HeaderValue::from_static(content_type)), (VARY, HeaderValue::from_static("accept"))],
                rows,
            )
                .into_response())
        }
        Err(problem) => {
            query.end(problem.code());
            body.discard(limit(&api)).await;
            Err(problem)
        }
    }
}

type Rows = BoxStream<'static, Result<Bytes, QueryError>>;

async fn answer(
    api: &Api,
    org: &str,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<(&'static str, Rows), Problem> {
    let deadline = Instant::now() + api.limits.request_timeout.as_duration();
    let org = api.access.allow(headers, org, Role::Read)?;
    tracing::Span::current().record("org", org.as_str());
    let format = Format::negotiate(accept(headers).as_deref())?;
    let json = matches!(
        (Media::from_headers(headers), Encoding::from_headers(headers)),
        (Ok(Media::Json), Ok(Encoding::Identity))
    );
    if !json {
        let detail = "a query is sent as application/json, without a Content-Encoding";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    let body = body.read(limit(api), deadline, |_| Ok(())).await?;
    let request: SqlRequest = serde_json::from_slice(&body).map_err(|error| {
        let detail = format!(r#"the body is not {{"query": "…", "params": […]}}: {error}"#);
        Problem::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    })?;
    let view = api.plane.view(&org).await?;
    let result = api.engine.query(view, request).await?;
    Ok(formats::begin(result, format).await?)
}

/// The largest body of a query.
fn limit(api: &Api) -> usize {
    api.limits.sql.query_bytes.as_usize().saturating_mul(JSON_OVERHEAD).saturating_add(PARAMETER_BYTES)
}

/// A query that runs; counted once, however it ends.
#[derive(Debug)]
struct Running {
    metrics: Arc<Metrics>,
    started: Instant,
    outcome: &'static str,
}

impl Running {
    fn start(metrics: Arc<Metrics>) -> Self {
        metrics.query.running.inc();
        // Unless something else is said, its client went away.
        Self { metrics, started: Instant::now(), outcome: "aborted" }
    }

    fn end(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.metrics.query.running.dec();
        self.metrics.query.ended(self.outcome, self.started.elapsed());
    }
}

/// The answer's body, noting how it ended.
struct Counted {
    rows: Rows,
    query: Running,
}

impl Stream for Counted {
    type Item = Result<Bytes, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.rows.as_mut().poll_next(context);
        match &next {
            Poll::Ready(None) => self.query.outcome = "ok",
            Poll::Ready(Some(Err(error))) => {
                tracing::warn!(%error, "an answer was broken off");
                self.query.outcome = error.code();
            }
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        next
    }
}
