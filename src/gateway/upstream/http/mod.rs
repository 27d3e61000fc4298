//! Streamable HTTP to one plugin: single exchanges, and what their answers are read as.
//!
//! | answer | is |
//! |---|---|
//! | 202, 204, or no body | taken |
//! | `text/event-stream` | events ([`EventStream`]) |
//! | any other success | a message, or an array of messages (2025-03-26), whatever its type says |
//! | 3xx | refused: a plugin is where its setting says, and its headers are for nobody else. The log says where it redirects to |
//! | 4xx, 5xx | refused, with the JSON-RPC error of the body where it is one |
//!
//! Nothing a server sends is taken in whole before its size is known to be allowed, whatever its `Content-Length`
//! claims. No error holds anything that was said, except a JSON-RPC error.

mod events;
pub(super) mod metadata;
mod stream;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use url::Url;

pub(super) use self::stream::EventStream;
use super::share::Share;
use super::{MAX_BATCH, UpstreamError};
use crate::gateway::message::{Message, Response, RpcError};
use crate::gateway::protocol::SESSION_HEADER;

/// What a client of Streamable HTTP must take.
const EITHER: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// How much of an answer that is no success is read, for the error that it may be, and how long that may take.
const REFUSAL_BYTES: usize = 64 * 1024;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(5);

/// Room for a message around the largest result that is passed on.
pub(super) const ENVELOPE_BYTES: usize = 4 * 1024;

/// The longest address of a redirect that is logged.
const LOGGED_ADDRESS: usize = 256;

/// How long a server that opens a stream late is not waited for.
const SLOW_TIME: Duration = Duration::from_secs(60);

/// How often the log says the same of a server.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// One plugin's server. Connections are shared.
pub(super) struct HttpServer {
    plugin: Arc<str>,
    client: reqwest::Client,
    url: Url,
    /// The configured headers; they may hold secrets.
    headers: HeaderMap,
    limit: usize,
    share: Share,
    /// The redirect that was logged last.
    redirect: Mutex<Option<String>>,
    /// When it was logged last that it forgot a session, and that it sends requests where it must not.
    forgot: Mutex<Option<Instant>>,
    /// When a stream for what belongs to no request took too long to open.
    slow: Mutex<Option<Instant>>,
    asked: AtomicBool,
}

/// An answer that is a success.
pub(super) struct Reply {
    /// The id of the session that the server gave.
    pub(super) session: Option<HeaderValue>,
    pub(super) content: Content,
}

/// How the body of an answer is read.
pub(super) enum Content {
    Nothing,
    Messages(Vec<Message>),
    Events(Box<EventStream>),
}

/// Why an exchange brought no success.
#[derive(Debug)]
pub(super) enum ExchangeError {
    Unreachable,
    Broken,
    TooLarge {
        limit: u64,
    },
    NotMcp,
    Refused(Refusal),
    /// It has to do with the gateway itself.
    Upstream(UpstreamError),
}

/// Why a request brought no result.
#[derive(Debug)]
pub(super) enum Failure {
    /// Its exchange was no success.
    Exchange(ExchangeError),
    /// It was, but brought an error, or no answer.
    Upstream(UpstreamError),
}

impl From<Failure> for UpstreamError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Exchange(error) => error.into(),
            Failure::Upstream(error) => error,
        }
    }
}

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) error: Option<RpcError>,
    /// What it says is about a session.
    pub(super) is_about_session: bool,
}

impl From<ExchangeError> for UpstreamError {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Unreachable => Self::Unreachable,
            ExchangeError::Broken => Self::Broken,
            ExchangeError::TooLarge { limit } => Self::TooLarge { limit },
            ExchangeError::NotMcp => Self::NotMcp,
            ExchangeError::Upstream(error) => error,
            ExchangeError::Refused(refusal) => match refusal.status {
                status @ 300..=399 => Self::Redirected(status),
                // What it says of credentials is about the gateway's own, and nothing for a caller.
                status @ (401 | 403 | 407) => Self::Status(status),
                status => refusal.error.map_or(Self::Status(status), Self::Refused),
            },
        }
    }
}

impl From<reqwest::Error> for ExchangeError {
    fn from(error: reqwest::Error) -> Self {
        if error.is_connect() { Self::Unreachable } else { Self::Broken }
    }
}

impl HttpServer {
    pub(super) fn new(
        plugin: Arc<str>,
        client: reqwest::Client,
        url: Url,
        headers: HeaderMap,
        max_result_bytes: usize,
        share: Share,
    ) -> Self {
        let limit = max_result_bytes.saturating_add(ENVELOPE_BYTES);
        Self {
            plugin,
            client,
            url,
            headers,
            limit,
            share,
            redirect: Mutex::default(),
            forgot: Mutex::default(),
            slow: Mutex::default(),
            asked: AtomicBool::new(false),
        }
    }

    pub(super) fn plugin(&self) -> &Arc<str> {
        &self.plugin
    }

    /// Sends a message. `headers` go over the configured ones.
    pub(super) async fn post(&self, headers: HeaderMap, message: Bytes) -> Result<Reply, ExchangeError> {
        let headers = self.headers(headers, &EITHER);
        let request = self.client.post(self.url.clone()).headers(headers).header(CONTENT_TYPE, JSON).body(message);
        let response = request.send().await?;
        let status = response.status();
        if !status.is_success() {
            return Err(self.refused(response).await);
        }
        let session = response.headers().get(SESSION_HEADER).cloned();
        let content = match status {
            StatusCode::ACCEPTED | StatusCode::NO_CONTENT => Content::Nothing,
            _ if is(&response, "text/event-stream") => Content::Events(self.events(response)),
            _ => messages(&bounded(response, self.limit, &self.share).await?)?,
        };
        Ok(Reply { session, content })
    }

    /// Opens a stream for what belongs to no request, or resumes one.
    pub(super) async fn get(&self, headers: HeaderMap) -> Result<Box<EventStream>, ExchangeError> {
        let headers = self.headers(headers, &EVENTS);
        let response = self.client.get(self.url.clone()).headers(headers).send().await?;
        if !response.status().is_success() {
            return Err(self.refused(response).await);
        }
        if !is(&response, "text/event-stream") {
            return Err(ExchangeError::NotMcp);
        }
        Ok(self.events(response))
    }

    fn events(&self, response: reqwest::Response) -> Box<EventStream> {
        Box::new(EventStream::new(response, self.share.clone(), self.limit))
    }

    /// Ends a session. A server may refuse; it is forgotten here all the same.
    pub(super) async fn delete(&self, headers: HeaderMap) -> Result<(), ExchangeError> {
        let headers = self.headers(headers, &EITHER);
        self.client.delete(self.url.clone()).headers(headers).send().await?;
        Ok(())
    }

    fn headers(&self, own: HeaderMap, accept: &HeaderValue) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.extend(own);
        headers.insert(ACCEPT, accept.clone());
        headers
    }

    async fn refused(&self, response: reqwest::Response) -> ExchangeError {
        let status = response.status();
        if status.is_redirection() {
            self.log_redirect(&response);
        }
        let body = timeout(REFUSAL_TIMEOUT, bounded(response, REFUSAL_BYTES, &self.share)).await;
        let body = body.ok().and_then(Result::ok).unwrap_or_default();
        ExchangeError::Refused(refusal(status.as_u16(), &body))
    }

    /// Whether its streams are not waited for, since one took too long to open lately.
    pub(super) fn streams_slowly(&self) -> bool {
        self.slow.lock().is_some_and(|at| at.elapsed() < SLOW_TIME)
    }

    pub(super) fn note_slow_stream(&self) {
        *self.slow.lock() = Some(Instant::now());
    }

    /// Once a while: at a restart all its sessions are forgotten.
    pub(super) fn log_forgotten(&self) {
        let mut forgot = self.forgot.lock();
        if forgot.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            tracing::warn!(
                plugin = &*self.plugin,
                "the server has forgotten a session, as it does when it was restarted; a new one is open"
            );
            *forgot = Some(Instant::now());
        }
    }

    /// Once.
    pub(super) fn log_question(&self) {
        if !self.asked.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                plugin = &*self.plugin,
                "the server sends requests, which servers of 2026-07-28 must not; they are ignored"
            );
        }
    }

    /// Once for each address it redirects to.
    fn log_redirect(&self, response: &reqwest::Response) {
        let to = response.headers().get(LOCATION).and_then(|to| to.to_str().ok());
        let to = to.and_then(|to| self.url.join(to).ok()).map_or_else(|| "nowhere".to_owned(), shown);
        let mut redirect = self.redirect.lock();
        if redirect.as_ref() != Some(&to) {
            tracing::warn!(
                plugin = &*self.plugin,
                status = response.status().as_u16(),
                to,
                "the server redirects, which is not followed: set the plugin's url to where it redirects to"
            );
            *redirect = Some(to);
        }
    }
}

/// An address without what may be a secret in it.
fn shown(mut url: Url) -> String {
    url.set_query(None);
    url.set_fragment(None);
    // An address that cannot have them has none.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.as_str().chars().take(LOGGED_ADDRESS).collect()
}

/// What an answer that is no success says.
fn refusal(status: u16, body: &Bytes) -> Refusal {
    let error = match Message::parse(body) {
        Ok(Message::Response(Response { outcome: Err(error), .. })) => Some(error),
        _ => None,
    };
    Refusal { status, error, is_about_session: is_about_session(&String::from_utf8_lossy(body)) }
}

/// Whether a text is about a session.
pub(super) fn is_about_session(text: &str) -> bool {
    text.to_ascii_lowercase().contains("session")
}

/// What the body of a success is.
pub(super) fn messages(body: &Bytes) -> Result<Content, ExchangeError> {
    if body.trim_ascii().is_empty() {
        return Ok(Content::Nothing);
    }
    let body = match body.strip_prefix(b"\xEF\xBB\xBF") {
        Some(rest) => body.slice_ref(rest),
        None => body.clone(),
    };
    match Message::parse_batch(&body, MAX_BATCH) {
        Ok(Some(messages)) => Ok(Content::Messages(messages.into_iter().filter_map(Result::ok).collect())),
        Ok(None) => {
            Message::parse(&body).map(|message| Content::Messages(vec![message])).map_err(|_| ExchangeError::NotMcp)
        }
        Err(_) => Err(ExchangeError::NotMcp),
    }
}

/// The largest result that a message of at most `limit` bytes can have: what the configuration calls the limit.
fn result_bytes(limit: usize) -> u64 {
    limit.saturating_sub(ENVELOPE_BYTES) as u64
}

async fn bounded(mut response: reqwest::Response, limit: usize, share: &Share) -> Result<Bytes, ExchangeError> {
    let too_large = || ExchangeError::TooLarge { limit: result_bytes(limit) };
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let (mut body, mut reading) = (BytesMut::new(), share.reading());
    while let Some(chunk) = response.chunk().await? {
        if chunk.len() > limit.saturating_sub(body.len()) {
            return Err(too_large());
        }
        reading.has(body.len().saturating_add(chunk.len())).map_err(ExchangeError::Upstream)?;
        body.extend_from_slice(&chunk);
    }
    drop(reading);
    share.hold(body.freeze()).map_err(ExchangeError::Upstream)
}

fn is(response: &reqwest::Response, media_type: &str) -> bool {
    response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(media_type))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use url::Url;

    use super::{Content, ExchangeError, messages, refusal, shown};
    use crate::gateway::upstream::UpstreamError;

    #[test]
    fn an_answer_is_a_message_an_array_of_them_or_nothing() {
        let read = |text: &str| messages(&Bytes::copy_from_slice(text.as_bytes()));
        let message = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
        assert!(matches!(read(message), Ok(Content::Messages(found)) if found.len() == 1));
        assert!(matches!(read(&format!("\u{feff}{message}")), Ok(Content::Messages(found)) if found.len() == 1));
        assert!(matches!(read(&format!("[{message},1,{message}]")), Ok(Content::Messages(found)) if found.len() == 2));
        assert!(matches!(read(" \n"), Ok(Content::Nothing)));
        assert!(matches!(read("<html>"), Err(ExchangeError::NotMcp)));
    }

    #[test]
    fn a_refusal_is_the_servers_error_where_it_is_one_and_says_nothing_of_credentials() {
        let error = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"No valid Session ID"}}"#;
        let read = |status, text: &str| refusal(status, &Bytes::copy_from_slice(text.as_bytes()));
        assert!(read(400, error).is_about_session);
        let to_error = |status, text| UpstreamError::from(ExchangeError::Refused(read(status, text)));
        assert!(matches!(to_error(400, error), UpstreamError::Refused(_)));
        assert!(matches!(to_error(401, error), UpstreamError::Status(401)));
        assert!(matches!(to_error(307, ""), UpstreamError::Redirected(307)));
        assert!(matches!(to_error(502, "Bad gateway"), UpstreamError::Status(502)));
    }

    #[test]
    fn an_address_is_logged_without_secrets() {
        let url = Url::parse("https://user:secret@host/mcp/?token=secret#secret").unwrap();
        assert_eq!(shown(url), "https://host/mcp/");
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in proptest::collection::vec(any::<u8>(), 0..500), status in 300..600_u16) {
            let body = Bytes::from(body);
            let _ = messages(&body);
            refusal(status, &body);
        }

        #[test]
        fn no_json_makes_it_panic(text in "[\\[\\]{}\":,0-9a-z\\\\ ]{0,60}") {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":{text}}}"#);
            let _ = messages(&Bytes::from(text));
        }
    }
}
