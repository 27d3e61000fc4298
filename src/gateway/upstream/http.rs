//! The HTTP side of an upstream: one exchange each for the SDK's Streamable HTTP transport, which does the rest
//! (sessions, resuming streams, starting a lost session again).
//!
//! It differs from the SDK's own client in three things a relay needs. What the upstream says goes on as raw JSON
//! ([`envelope`]). Every message may carry headers of its own, for the trace context. And no fault holds anything that was
//! said, since faults are logged (invariant I6).
//!
//! Nothing an upstream sends is taken in whole before its size is known to be allowed, whatever its `Content-Length`
//! claims.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rmcp::model::{ClientJsonRpcMessage, ClientRequest, JsonRpcMessage, RequestId};
use rmcp::transport::common::client_side_sse::BoxedSseResponse;
use rmcp::transport::common::http_header::{
    EVENT_STREAM_MIME_TYPE, HEADER_LAST_EVENT_ID, HEADER_SESSION_ID, JSON_MIME_TYPE,
};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse, StreamableHttpResponseLimits,
};

use super::envelope;
use super::fault::WireFault;
use super::sse::{self, Event, StreamFault};
use crate::gateway::message::{Message, Response};

/// What an answer that is no success may say, when it may be a JSON-RPC error.
const ERROR_BYTES: usize = 64 * 1024;

/// Room for a message around the largest result that is passed on.
const ENVELOPE_BYTES: usize = 4 * 1024;

/// A failure of an exchange, as the transport takes it.
type Fault = StreamableHttpError<WireFault>;

/// Exchanges with one upstream. Cheap to clone: connections are shared.
#[derive(Clone)]
pub(super) struct Wire {
    http: reqwest::Client,
    /// The configured headers; they may hold secrets.
    headers: HeaderMap,
    limit: usize,
}

impl Wire {
    pub(super) fn new(http: reqwest::Client, headers: HeaderMap, max_result_bytes: usize) -> Self {
        Self { http, headers, limit: max_result_bytes.saturating_add(ENVELOPE_BYTES) }
    }

    fn with_headers(
        &self,
        request: reqwest::RequestBuilder,
        protocol: HashMap<HeaderName, HeaderValue>,
        session: Option<&str>,
    ) -> reqwest::RequestBuilder {
        let mut headers = self.headers.clone();
        headers.extend(protocol);
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        let request = request.headers(headers);
        match session {
            Some(session) => request.header(HEADER_SESSION_ID, session),
            None => request,
        }
    }

    async fn post(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        protocol: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Fault> {
        let body = envelope::body(&message)?;
        let mut request = self.with_headers(self.http.post(uri.as_ref()), protocol, session.as_deref());
        if let Some(outbound) = envelope::outbound(&message) {
            request = request.headers(outbound.headers.clone());
        }
        let response = request.header(CONTENT_TYPE, JSON_MIME_TYPE).body(body).send().await.map_err(client)?;
        let status = response.status();
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if status == StatusCode::NOT_FOUND && session.is_some() {
            return Err(StreamableHttpError::SessionExpired);
        }
        let asked = Asked::by(&message);
        let new_session = header(&response, HEADER_SESSION_ID);
        if !status.is_success() {
            return refusal(response, &asked, new_session).await;
        }
        if is(&response, EVENT_STREAM_MIME_TYPE) {
            let events = asked.events(response.bytes_stream(), self.limit);
            return Ok(StreamableHttpPostResponse::Sse(events, new_session));
        }
        if matches!(asked, Asked::Nothing) {
            // Only the status matters; some servers say something all the same.
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if !is(&response, JSON_MIME_TYPE) {
            return Err(Fault::Client(WireFault::NotMcp));
        }
        let body = bounded(response, self.limit).await?;
        let message = Message::parse(&body).map_err(|_| Fault::Client(WireFault::NotMcp))?;
        Ok(StreamableHttpPostResponse::Json(asked.seal(message)?, new_session))
    }

    async fn stream(
        &self,
        uri: Arc<str>,
        session: Option<Arc<str>>,
        last_event_id: Option<String>,
        protocol: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxedSseResponse, Fault> {
        let mut request = self.with_headers(self.http.get(uri.as_ref()), protocol, session.as_deref());
        if let Some(id) = last_event_id {
            request = request.header(HEADER_LAST_EVENT_ID, id);
        }
        let response = request.send().await.map_err(client)?;
        match response.status() {
            StatusCode::METHOD_NOT_ALLOWED => Err(StreamableHttpError::ServerDoesNotSupportSse),
            status if !status.is_success() => Err(Fault::Client(WireFault::Status(status.as_u16()))),
            _ if is(&response, EVENT_STREAM_MIME_TYPE) => {
                Ok(Asked::Nothing.events(response.bytes_stream(), self.limit))
            }
            _ => Err(Fault::Client(WireFault::NotMcp)),
        }
    }
}

/// What a message asks for, which says what its answer is read as.
#[derive(Clone, Copy)]
enum Asked {
    Initialize,
    Request(i64),
    Nothing,
}

impl Asked {
    fn by(message: &ClientJsonRpcMessage) -> Self {
        match message {
            JsonRpcMessage::Request(request) => match (&request.request, &request.id) {
                (ClientRequest::InitializeRequest(_), _) => Self::Initialize,
                (_, RequestId::Number(id)) => Self::Request(*id),
                // Ids are given by the link, and are numbers.
                (_, RequestId::String(_)) => Self::Nothing,
            },
            _ => Self::Nothing,
        }
    }

    fn seal(self, message: Message) -> Result<rmcp::model::ServerJsonRpcMessage, Fault> {
        match self {
            Self::Initialize => Ok(envelope::seal_initialize(message)?),
            Self::Request(id) => Ok(envelope::seal(message, Some(id))),
            Self::Nothing => Ok(envelope::seal(message, None)),
        }
    }

    fn events<E: Send + 'static>(
        self,
        body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
        limit: usize,
    ) -> BoxedSseResponse {
        sse::events(body, limit, move |event| match event {
            Ok(event) => Ok(self.seal_event(event)),
            Err(StreamFault::TooLarge { limit }) => match self {
                Self::Request(id) => {
                    let data = serde_json::to_string(&envelope::seal_too_large(id, result_bytes(limit))).ok();
                    Ok(Event { data, ..Event::default() })
                }
                Self::Initialize | Self::Nothing => Err(StreamFault::TooLarge { limit }),
            },
            Err(fault) => Err(fault),
        })
    }

    /// What is no message is left as it is, for the transport to refuse.
    fn seal_event(self, mut event: Event) -> Event {
        let sealed = event
            .data
            .as_deref()
            .and_then(|data| Message::parse(data.as_bytes()).ok())
            .and_then(|message| self.seal(message).ok())
            .and_then(|sealed| serde_json::to_string(&sealed).ok());
        if let Some(sealed) = sealed {
            event.data = Some(sealed);
        }
        event
    }
}

/// An answer that is no success: a JSON-RPC error where it is one, else the status alone.
async fn refusal(
    response: reqwest::Response,
    asked: &Asked,
    session: Option<String>,
) -> Result<StreamableHttpPostResponse, Fault> {
    let status = Fault::Client(WireFault::Status(response.status().as_u16()));
    if !is(&response, JSON_MIME_TYPE) {
        return Err(status);
    }
    let Ok(body) = bounded(response, ERROR_BYTES).await else { return Err(status) };
    match (Message::parse(&body), asked) {
        (Ok(Message::Response(Response { outcome: Err(error), .. })), Asked::Request(id)) => {
            // Some servers cannot name the request they refuse.
            let error = rmcp::model::ServerJsonRpcMessage::error(error, Some(RequestId::Number(*id)));
            Ok(StreamableHttpPostResponse::Json(error, session))
        }
        _ => Err(status),
    }
}

/// The largest result that a message of at most `limit` bytes can have: what whoever configured it calls the limit.
fn result_bytes(limit: usize) -> u64 {
    limit.saturating_sub(ENVELOPE_BYTES) as u64
}

async fn bounded(response: reqwest::Response, limit: usize) -> Result<Vec<u8>, Fault> {
    let too_large = || Fault::Client(WireFault::TooLarge { limit: result_bytes(limit) });
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(client)?;
        if chunk.len() > limit.saturating_sub(body.len()) {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn client(error: reqwest::Error) -> Fault {
    Fault::Client(error.into())
}

fn header(response: &reqwest::Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

fn is(response: &reqwest::Response, media_type: &str) -> bool {
    response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(media_type))
}

impl StreamableHttpClient for Wire {
    type Error = WireFault;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Fault> {
        self.post(uri, message, session_id, custom_headers).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session_id: Option<Arc<str>>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
        _limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Fault> {
        // The limit is the plugin's, and this wire's own.
        self.post(uri, message, session_id, custom_headers).await
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session_id: Arc<str>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Fault> {
        let request = self.with_headers(self.http.delete(uri.as_ref()), custom_headers, Some(&session_id));
        // A server may refuse to end a session; it is forgotten here all the same.
        request.send().await.map(drop).map_err(client)
    }

    async fn get_stream(
        &self,
        uri: Arc<str>,
        session_id: Option<Arc<str>>,
        last_event_id: Option<String>,
        _auth_header: Option<String>,
        custom_headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxedSseResponse, Fault> {
        self.stream(uri, session_id, last_event_id, custom_headers).await
    }
}
