//! `POST /v1/orgs/{org}/sql`: one read-only query over one org's tables, answered in the format that `Accept` asks for,
//! streamed, compressed if `Accept-Encoding` says so.
//!
//! A failure before the answer's head is a problem document with its status. A failure after it breaks the connection
//! off, so that an incomplete answer never looks complete; JSON and NDJSON say before that, in a member `error`, what
//! it was. A client that takes trailers (`TE: trailers`) gets `mcpg-rows` after the last byte of a whole answer. Over
//! HTTP/1.0, which proxies still speak, the end of a connection is all that tells an answer's end: there an answer is
//! sent with its length, or not at all.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{ConnectInfo, Path, Request, State};
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, TE, TRAILER, VARY};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::Stream;
use futures::TryStreamExt;
use http_body_util::StreamBody;
use hyper::body::Frame;
use tokio::time::{Instant, Sleep, sleep};

use super::body::{Incoming, json};
use super::metrics::{accept, accept_encoding};
use super::records::{Record, Records};
use super::who::Who;
use super::{Api, Problem, observe};
use crate::ingest::{Encoding, Media};
use crate::model::Role;
use crate::query::formats::{self, Begun, Coding, Format, Options};
use crate::query::{Asker, QueryError, SqlRequest};
use crate::telemetry::metrics::Metrics;

/// JSON may need six bytes for one of the query's (`\u0000`); the rest is for the parameters.
const JSON_OVERHEAD: usize = 6;
const PARAMETER_BYTES: usize = 256 << 10;

/// How many rows the whole answer had, after its last byte.
const ROWS: HeaderName = HeaderName::from_static("mcpg-rows");

/// How long the last bytes before a broken transfer have to reach the client.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Answers a query.
pub(super) async fn post(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let mut body = Incoming::new(&parts.headers, body);
    let mut query = Running::start(Arc::clone(&api.metrics));
    query.record.request_id = observe::current_id();
    query.record.from = parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(address)| *address);
    match answer(&api, &org, &parts, &mut body, &mut query).await {
        Ok(response) => {
            let (trailing, response) = response;
            let mut response = response;
            response.rows.query = Some(query);
            Ok(response.into_response(trailing))
        }
        Err(problem) => {
            query.end(problem.code());
            body.discard(limit(&api)).await;
            Err(problem)
        }
    }
}

/// An answer that has begun.
struct Answer {
    content_type: &'static str,
    coding: Option<Coding>,
    whole: Option<usize>,
    rows: Counted,
}

impl Answer {
    fn into_response(self, trailing: bool) -> Response {
        let whole = self.whole;
        let vary = HeaderValue::from_static("accept, accept-encoding");
        let mut headers =
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(self.content_type)), (VARY, vary)]);
        if let Some(coding) = self.coding {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
        }
        if trailing {
            headers.insert(TRAILER, HeaderValue::from(ROWS));
        } else if let Some(length) = whole {
            headers.insert(axum::http::header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        (headers, Body::new(StreamBody::new(Counted { trailing, ..self.rows }))).into_response()
    }
}

async fn answer(
    api: &Api,
    org: &str,
    parts: &axum::http::request::Parts,
    body: &mut Incoming,
    query: &mut Running,
) -> Result<(bool, Answer), Problem> {
    let headers = &parts.headers;
    let deadline = Instant::now() + api.limits.request_timeout.as_duration();
    let who = Who::asked(&parts.extensions)?;
    let org = api.allow(&who, org, Role::Read).await?;
    query.record.org = Some(org.clone());
    query.record.who = Some(who.clone());
    query.records = Some(Arc::clone(&api.records));
    let options = options(parts)?;
    let is_json = matches!(
        (Media::from_headers(headers), Encoding::from_headers(headers)),
        (Ok(Media::Json), Ok(Encoding::Identity))
    );
    if !is_json {
        let detail = "a query is sent as application/json, without a Content-Encoding";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    // Set aside from the same buffer as samples: queries on their way are bounded with them.
    let mut admission =
        api.plane.admit(body.announced().filter(|announced| *announced <= limit(api)).unwrap_or(0)).await?;
    let body = body.read(limit(api), deadline, |bytes| Ok(admission.grow_to(bytes)?)).await?;
    let request: SqlRequest = json(&body).map_err(|error| {
        let detail = format!(r#"the body is not {{"query": "…", "params": […]}}: {error}"#);
        Problem::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    })?;
    query.record.text = request.query.clone();
    let view = api.plane.view(&org).await?;
    let asker = Asker::sql(who.label());
    let result = api.engine.query(view, request, asker).await?;
    drop(admission);
    query.record.rows = Some(Arc::clone(&result.rows));
    let begun = formats::begin(result, options).await?;
    let Begun { content_type, coding, body: chunks, whole } = begun;
    if parts.version < Version::HTTP_11 && whole.is_none() {
        return Err(Problem::new(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "http_1_1_needed",
            format!(
                "over HTTP/1.0 an answer that breaks off looks whole, so one of more than {} MiB is not sent; use HTTP/1.1 (in nginx, \
                 `proxy_http_version 1.1`), or select less",
                formats::HEAD_BYTES >> 20
            ),
        ));
    }
    let rows = Counted { chunks, query: None, failing: None, left: whole, trailing: false };
    let takes_trailers = parts.version >= Version::HTTP_11
        && headers
            .get_all(TE)
            .iter()
            .filter_map(|te| te.to_str().ok())
            .any(|te| te.to_ascii_lowercase().contains("trailers"));
    Ok((takes_trailers, Answer { content_type, coding, whole, rows }))
}

/// How the answer is to be written.
fn options(parts: &axum::http::request::Parts) -> Result<Options, Problem> {
    let invalid = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail);
    let format = Format::negotiate(accept(&parts.headers).as_deref())?;
    let mut options =
        Options { coding: Coding::negotiate(accept_encoding(&parts.headers).as_deref()), ..format.into() };
    for (name, value) in url::form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()) {
        match (&*name, &*value) {
            ("csv", "raw") => options.raw_csv = true,
            ("csv", "safe") => options.raw_csv = false,
            ("numbers", "text") => options.text_numbers = true,
            ("numbers", "json") => options.text_numbers = false,
            ("csv", _) => return Err(invalid("csv is raw or safe".to_owned())),
            ("numbers", _) => return Err(invalid("numbers is text or json".to_owned())),
            _ => return Err(invalid("no such parameter; there are csv=raw|safe and numbers=text|json".to_owned())),
        }
    }
    Ok(options)
}

/// The largest body of a query.
fn limit(api: &Api) -> usize {
    api.limits.sql.query_bytes.as_usize().saturating_mul(JSON_OVERHEAD).saturating_add(PARAMETER_BYTES)
}

/// A query that is being answered; counted and recorded once, however it ends.
struct Running {
    metrics: Arc<Metrics>,
    started: Instant,
    outcome: &'static str,
    record: Record,
    /// Once it is known whose it is.
    records: Option<Arc<Records>>,
}

impl Running {
    fn start(metrics: Arc<Metrics>) -> Self {
        // Unless something else is said, its client went away.
        Self { metrics, started: Instant::now(), outcome: "aborted", record: Record::default(), records: None }
    }

    fn end(mut self, outcome: &'static str) {
        self.outcome = outcome;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.metrics.query.ended(self.outcome, took);
        if let Some(records) = &self.records {
            records.ended(std::mem::take(&mut self.record), self.outcome, took);
        }
    }
}

/// The answer's body, noting how it ended.
struct Counted {
    chunks: formats::Body,
    query: Option<Running>,
    /// That the transfer is about to be broken off, once what was said before has left.
    failing: Option<(Pin<Box<Sleep>>, QueryError)>,
    /// Bytes that are still to come, if that is known: nothing is read after the last one.
    left: Option<usize>,
    trailing: bool,
}

impl Counted {
    fn note(&mut self, outcome: &'static str) {
        if let Some(query) = &mut self.query {
            query.outcome = outcome;
        }
    }
}

impl Stream for Counted {
    type Item = Result<Frame<Bytes>, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some((until, error)) = &mut self.failing {
            let error = error.clone();
            return until.as_mut().poll(context).map(|()| Some(Err(error)));
        }
        match self.chunks.try_poll_next_unpin(context) {
            Poll::Ready(Some(Ok(chunk))) => {
                if let Some(query) = &mut self.query {
                    query.record.bytes += chunk.len() as u64;
                }
                self.left = self.left.map(|left| left.saturating_sub(chunk.len()));
                if self.left == Some(0) {
                    self.note("ok");
                }
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::warn!(%error, "an answer was broken off");
                self.note(error.code());
                let mut until = Box::pin(sleep(LAST_WORDS));
                // It is polled here for the first time, so that it wakes this task.
                let over = until.as_mut().poll(context);
                self.failing = Some((until, error.clone()));
                over.map(|()| Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.note("ok");
                if !std::mem::replace(&mut self.trailing, false) {
                    return Poll::Ready(None);
                }
                let rows = self.query.as_ref().map_or(0, |query| query.record.row_count());
                Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::from_iter([(ROWS, HeaderValue::from(rows))])))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
