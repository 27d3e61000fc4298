//! How requests reach a remote store: HTTP/1.1 over a pool of connections, with bounds that depend on a body's size.
//!
//! `object_store` has one timeout for all requests of a client, which is too short for a large body or too long to
//! notice a server that hangs; and it retries what must not be retried. So the requests are sent here:
//!
//! - A request and its answer have 10 s, and 60 s where a body of either is above 8 MiB.
//! - **A conditional write is never repeated.** `object_store` repeats a PUT that was answered 5xx, or whose connection
//!   went away before the answer, under the assumption that it had no effect. It may have had one: then the repetition
//!   finds the object there, and the winner gets the answer that it lost. Such an outcome is given a kind of error here
//!   that is not retried. Where the connection could not be made, nothing was sent, and a retry is safe.
//! - Redirects are not followed: they say that region or endpoint are wrong.
//! - Every request that is sent is counted, by what it does.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{IF_MATCH, IF_NONE_MATCH};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use url::Url;

/// How long a request and its answer may take.
pub(super) const SMALL_TIMEOUT: Duration = Duration::from_secs(10);
/// The same where there is a large body.
const LARGE_TIMEOUT: Duration = Duration::from_secs(60);
/// A body above this is large.
const LARGE: u64 = 8 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is kept of an answer that says why a conditional write failed.
const MAX_REASON: usize = 4096;

fn limit(body: u64) -> Duration {
    if body > LARGE { LARGE_TIMEOUT } else { SMALL_TIMEOUT }
}

/// Counts requests as they are sent.
#[derive(Debug, Default)]
pub(super) struct Requests {
    gets: AtomicU64,
    heads: AtomicU64,
    lists: AtomicU64,
    puts: AtomicU64,
    conditional_puts: AtomicU64,
    deletes: AtomicU64,
    others: AtomicU64,
    sent_bytes: AtomicU64,
}

/// Requests sent to a remote store so far, each attempt counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// Objects read, whole or in part.
    pub gets: u64,
    /// Objects looked for.
    pub heads: u64,
    /// Pages of listings.
    pub lists: u64,
    /// Objects, or parts of one, written over whatever is there.
    pub puts: u64,
    /// Objects created if absent, or swapped.
    pub conditional_puts: u64,
    /// Deletions, of one object or in bulk.
    pub deletes: u64,
    /// All else: beginnings and ends of uploads in parts.
    pub others: u64,
    /// Bytes of bodies that were sent.
    pub sent_bytes: u64,
}

impl Requests {
    fn count(&self, method: &Method, url: &Url, conditional: bool, sent: u64) {
        let asks_for = |key: &str| url.query_pairs().any(|(name, _)| name == key);
        let counter = match *method {
            Method::GET if asks_for("list-type") => &self.lists,
            Method::GET => &self.gets,
            Method::HEAD => &self.heads,
            Method::PUT if conditional => &self.conditional_puts,
            Method::PUT => &self.puts,
            Method::DELETE => &self.deletes,
            Method::POST if asks_for("delete") => &self.deletes,
            _ => &self.others,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(sent, Ordering::Relaxed);
    }

    /// What was sent so far.
    pub(super) fn counts(&self) -> RequestCounts {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RequestCounts {
            gets: now(&self.gets),
            heads: now(&self.heads),
            lists: now(&self.lists),
            puts: now(&self.puts),
            conditional_puts: now(&self.conditional_puts),
            deletes: now(&self.deletes),
            others: now(&self.others),
            sent_bytes: now(&self.sent_bytes),
        }
    }
}

/// The HTTP transport to a remote store.
#[derive(Debug, Clone)]
pub(super) struct Transport {
    client: reqwest::Client,
    requests: Arc<Requests>,
}

impl Transport {
    /// A transport that trusts the authorities in `pem` and no others, or those the system trusts.
    pub(super) fn new(pem: Option<&[u8]>, allow_http: bool) -> Result<Self, reqwest::Error> {
        let mut client = reqwest::Client::builder()
            .http1_only()
            .https_only(!allow_http)
            .connect_timeout(CONNECT_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .user_agent(concat!("mcpg/", env!("CARGO_PKG_VERSION")));
        if let Some(pem) = pem {
            client = client.tls_certs_only(reqwest::Certificate::from_pem_bundle(pem)?);
        }
        Ok(Self { client: client.build()?, requests: Arc::default() })
    }

    pub(super) fn requests(&self) -> Arc<Requests> {
        Arc::clone(&self.requests)
    }
}

impl HttpConnector for Transport {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Transport {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let sent = body.content_length() as u64;
        let url = Url::parse(&parts.uri.to_string()).map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let conditional = is_conditional_write(&parts.method, &parts.headers);
        self.requests.count(&parts.method, &url, conditional, sent);

        let mut request = reqwest::Request::new(parts.method, url);
        *request.headers_mut() = parts.headers;
        *request.body_mut() = Some(match body.as_bytes() {
            Some(bytes) => bytes.clone().into(),
            None => reqwest::Body::wrap(body),
        });
        let began = Instant::now();
        let answer = timeout_at(began + limit(sent), self.client.execute(request)).await;
        let answer = answer.map_err(|_| timed_out()).and_then(|answer| answer.map_err(classify));
        let answer = match answer {
            Ok(answer) => answer,
            Err(e) if conditional => return Err(once(e)),
            Err(e) => return Err(e),
        };
        let received = answer.content_length().unwrap_or_default();
        let deadline = began + limit(sent.max(received));
        let (parts, body) = http::Response::<reqwest::Body>::from(answer).into_parts();
        let body = WithDeadline { body, deadline: Box::pin(sleep_until(deadline)) };
        if conditional && may_be_retried(parts.status) {
            return Err(once(refused(parts.status, body).await));
        }
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

fn is_conditional_write(method: &Method, headers: &http::HeaderMap) -> bool {
    *method == Method::PUT && (headers.contains_key(IF_NONE_MATCH) || headers.contains_key(IF_MATCH))
}

/// Answers that `object_store` takes for a reason to send the request again.
fn may_be_retried(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
}

/// The error of a conditional write whose fate is not known.
async fn refused(status: StatusCode, body: WithDeadline) -> HttpError {
    let text = match body.collect().await {
        Ok(body) => {
            let bytes = body.to_bytes();
            String::from_utf8_lossy(bytes.get(..MAX_REASON).unwrap_or(&bytes)).into_owned()
        }
        Err(e) => e.to_string(),
    };
    HttpError::new(HttpErrorKind::Unknown, io::Error::other(format!("answered {status}: {text}")))
}

/// The same error in a kind that is not retried.
fn once(e: HttpError) -> HttpError {
    match e.kind() {
        // Nothing was sent.
        HttpErrorKind::Connect => e,
        _ => HttpError::new(HttpErrorKind::Unknown, e),
    }
}

fn timed_out() -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, io::Error::new(io::ErrorKind::TimedOut, "no answer in time"))
}

/// What kind of failure it was, as `object_store` decides by whether to try again.
fn classify(e: reqwest::Error) -> HttpError {
    let kind = if e.is_timeout() {
        HttpErrorKind::Timeout
    } else if e.is_connect() {
        HttpErrorKind::Connect
    } else if e.is_decode() {
        HttpErrorKind::Decode
    } else {
        kind_of_causes(&e)
    };
    // The URL is in the error around this one.
    HttpError::new(kind, e.without_url())
}

fn kind_of_causes(e: &reqwest::Error) -> HttpErrorKind {
    let mut cause = e.source();
    while let Some(e) = cause {
        if let Some(e) = e.downcast_ref::<hyper::Error>() {
            if e.is_incomplete_message() {
                return HttpErrorKind::Interrupted;
            }
            if e.is_closed() || e.is_body_write_aborted() {
                return HttpErrorKind::Request;
            }
            if e.is_timeout() {
                return HttpErrorKind::Timeout;
            }
        }
        if let Some(e) = e.downcast_ref::<io::Error>() {
            match e.kind() {
                io::ErrorKind::TimedOut => return HttpErrorKind::Timeout,
                io::ErrorKind::ConnectionAborted
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof => return HttpErrorKind::Interrupted,
                _ => {}
            }
        }
        cause = e.source();
    }
    HttpErrorKind::Unknown
}

/// An answer's body, which ends with an error at the deadline.
#[derive(Debug)]
struct WithDeadline {
    body: reqwest::Body,
    deadline: Pin<Box<Sleep>>,
}

impl Body for WithDeadline {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(classify))),
            Poll::Pending => match self.deadline.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err(timed_out()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
