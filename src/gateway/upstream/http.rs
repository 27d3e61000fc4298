//! The HTTP side of an upstream: one exchange each for the SDK's Streamable HTTP transport, which does the rest
//! (sessions, resuming streams, starting a lost session again). A session that the transport has established takes requests
//! past it, too ([`Wire::ask`]), as long as their exchanges need nothing of that.
//!
//! It differs from the SDK's own client in three things a relay needs. What the upstream says goes on as raw JSON
//! ([`envelope`]). Every message may carry headers of its own, for the trace context. And no fault holds anything that was
//! said, since faults are logged (invariant I6).
//!
//! Nothing an upstream sends is taken in whole before its size is known to be allowed, whatever its `Content-Length`
//! claims.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::header::{ACCEPT, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use rmcp::model::{ClientJsonRpcMessage, ClientNotification, ClientRequest, ErrorData, JsonRpcMessage, RequestId};
use rmcp::transport::common::client_side_sse::BoxedSseResponse;
use rmcp::transport::common::http_header::{
    EVENT_STREAM_MIME_TYPE, HEADER_LAST_EVENT_ID, HEADER_MCP_PROTOCOL_VERSION, HEADER_SESSION_ID, JSON_MIME_TYPE,
};
use rmcp::transport::streamable_http_client::{
    StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse, StreamableHttpResponseLimits,
};

use serde_json::Value;
use url::Url;

use super::envelope::{self, Outbound};
use super::fault::WireFault;
use super::sse::{self, Event, StreamFault};
use crate::gateway::message::{Message, Response};

const VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
/// What a client of Streamable HTTP must take.
const EITHER: HeaderValue = HeaderValue::from_static("application/json, text/event-stream");

/// What an answer that is no success may say, when it may be a JSON-RPC error.
const ERROR_BYTES: usize = 64 * 1024;

/// Room for a message around the largest result that is passed on.
const ENVELOPE_BYTES: usize = 4 * 1024;

/// A failure of an exchange, as the transport takes it.
type Fault = StreamableHttpError<WireFault>;

/// How long the end of an answered exchange is waited for, so that its connection can be used again.
const DRAIN: Duration = Duration::from_millis(50);

/// Exchanges with one upstream. Cheap to clone: connections are shared.
#[derive(Clone)]
pub(super) struct Wire {
    http: reqwest::Client,
    url: Url,
    /// The configured headers; they may hold secrets.
    headers: HeaderMap,
    limit: usize,
    /// The session that the transport has established last.
    session: Arc<RwLock<Option<Established>>>,
}

/// What requests of an established session have in common.
#[derive(Clone)]
struct Established {
    id: Option<Arc<str>>,
    /// All headers but a request's own.
    headers: HeaderMap,
}

/// What came of a request that was sent past the transport.
pub(super) enum Direct {
    /// Its answer.
    Answer(Result<Value, ErrorData>),
    /// More than an answer: its events from the first on.
    Events(BoxedSseResponse),
    /// The upstream took it, and answers on another stream.
    Elsewhere,
    /// Nothing: there is no session, or it has expired.
    Unsent,
}

/// What an exchange brought.
enum Reply {
    Accepted,
    Message(Message),
    Events(BoxedSseResponse),
}

impl Wire {
    pub(super) fn new(http: reqwest::Client, url: Url, headers: HeaderMap, max_result_bytes: usize) -> Self {
        let limit = max_result_bytes.saturating_add(ENVELOPE_BYTES);
        Self { http, url, headers, limit, session: Arc::default() }
    }

    /// The same for a session of its own.
    pub(super) fn of_one_session(&self) -> Self {
        Self { session: Arc::default(), ..self.clone() }
    }

    /// Sends a request of the established session, and takes its answer if that is all that comes.
    pub(super) async fn ask(&self, id: i64, outbound: &Outbound) -> Result<Direct, Fault> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(Established { id: session, mut headers }) = session else { return Ok(Direct::Unsent) };
        headers.extend(outbound.headers.clone());
        let request = self.http.post(self.url.clone()).headers(headers).body(outbound.body.clone());
        match self.exchange(request, session.is_some(), Asked::Request(id)).await {
            Ok((Reply::Accepted, _)) => Ok(Direct::Elsewhere),
            // An error may lack the id, or have one of the server's own: it could not read the request.
            Ok((Reply::Message(Message::Response(response)), _))
                if response.answers(id) || response.outcome.is_err() =>
            {
                Ok(Direct::Answer(response.outcome))
            }
            Ok((Reply::Message(_), _)) => Err(Fault::Client(WireFault::NotMcp)),
            Ok((Reply::Events(events), _)) => Ok(first(id, events).await),
            Err(StreamableHttpError::SessionExpired) => Ok(Direct::Unsent),
            Err(fault) => Err(fault),
        }
    }

    /// The transport says what the newest session is.
    fn establish(&self, id: Option<Arc<str>>, protocol: &HashMap<HeaderName, HeaderValue>) {
        let mut headers = self.headers.clone();
        if let Some(version) = protocol.get(HEADER_MCP_PROTOCOL_VERSION) {
            headers.insert(VERSION, version.clone());
        }
        headers.insert(ACCEPT, EITHER);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(JSON_MIME_TYPE));
        if let Some(value) = id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
            headers.insert(SESSION, value);
        }
        *self.session.write().unwrap_or_else(PoisonError::into_inner) = Some(Established { id, headers });
    }

    fn with_headers(
        &self,
        request: reqwest::RequestBuilder,
        protocol: HashMap<HeaderName, HeaderValue>,
        session: Option<&str>,
    ) -> reqwest::RequestBuilder {
        let mut headers = self.headers.clone();
        headers.extend(protocol);
        headers.insert(ACCEPT, EITHER);
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
        let asked = Asked::by(&message);
        let outbound = envelope::outbound(&message);
        if let Some(events) = outbound.and_then(Outbound::take_events) {
            return Ok(StreamableHttpPostResponse::Sse(asked.seal_events(events), None));
        }
        if is_initialized(&message) {
            self.establish(session.clone(), &protocol);
        }
        let body = envelope::body(&message)?;
        let mut request = self.with_headers(self.http.post(uri.as_ref()), protocol, session.as_deref());
        if let Some(outbound) = outbound {
            request = request.headers(outbound.headers.clone());
        }
        let request = request.header(CONTENT_TYPE, JSON_MIME_TYPE).body(body);
        match self.exchange(request, session.is_some(), asked).await? {
            (Reply::Accepted, _) => Ok(StreamableHttpPostResponse::Accepted),
            (Reply::Message(message), new) => Ok(StreamableHttpPostResponse::Json(asked.seal(message)?, new)),
            (Reply::Events(events), new) => Ok(StreamableHttpPostResponse::Sse(asked.seal_events(events), new)),
        }
    }

    /// One request and its response; beside it, the id of a session that was opened by it.
    async fn exchange(
        &self,
        request: reqwest::RequestBuilder,
        has_session: bool,
        asked: Asked,
    ) -> Result<(Reply, Option<String>), Fault> {
        let response = request.send().await.map_err(client)?;
        let status = response.status();
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok((Reply::Accepted, None));
        }
        if status == StatusCode::NOT_FOUND && has_session {
            return Err(StreamableHttpError::SessionExpired);
        }
        let new_session = header(&response, HEADER_SESSION_ID);
        if !status.is_success() {
            return refusal(response, asked).await.map(|message| (Reply::Message(message), new_session));
        }
        if is(&response, EVENT_STREAM_MIME_TYPE) {
            return Ok((Reply::Events(asked.events(response.bytes_stream(), self.limit)), new_session));
        }
        if matches!(asked, Asked::Nothing) {
            // Only the status matters; some servers say something all the same.
            return Ok((Reply::Accepted, None));
        }
        if !is(&response, JSON_MIME_TYPE) {
            return Err(Fault::Client(WireFault::NotMcp));
        }
        let body = bounded(response, self.limit).await?;
        let message = Message::parse(&body).map_err(|_| Fault::Client(WireFault::NotMcp))?;
        Ok((Reply::Message(message), new_session))
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
                Ok(Asked::Nothing.seal_events(Asked::Nothing.events(response.bytes_stream(), self.limit)))
            }
            _ => Err(Fault::Client(WireFault::NotMcp)),
        }
    }
}

fn is_initialized(message: &ClientJsonRpcMessage) -> bool {
    match message {
        JsonRpcMessage::Notification(notification) => {
            matches!(notification.notification, ClientNotification::InitializedNotification(_))
        }
        _ => false,
    }
}

/// The answer to the request of that id, if no other message comes before it.
async fn first(id: i64, events: BoxedSseResponse) -> Direct {
    let mut events = events.fuse();
    let mut seen = Vec::new();
    while let Some(event) = events.next().await {
        let message = match &event {
            Ok(event) => {
                event.data.as_deref().filter(|data| !data.is_empty()).map(|data| Message::parse(data.as_bytes()))
            }
            Err(_) => {
                seen.push(event);
                break;
            }
        };
        match message {
            // It only says how the stream can be resumed.
            None => seen.push(event),
            Some(Ok(Message::Response(response))) if response.answers(id) => {
                drain(events);
                return Direct::Answer(response.outcome);
            }
            Some(_) => {
                seen.push(event);
                break;
            }
        }
    }
    Direct::Events(stream::iter(seen).chain(events).boxed())
}

/// Reads what is left of an answered exchange, which is its end, so that the connection can be used again.
fn drain(mut events: impl Stream + Send + Unpin + 'static) {
    let rest = async move { while events.next().await.is_some() {} };
    tokio::spawn(tokio::time::timeout(DRAIN, rest));
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

    /// The events of a response. One that is too large stands as an error in the answer's place.
    fn events<E: Send + 'static>(
        self,
        body: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
        limit: usize,
    ) -> BoxedSseResponse {
        sse::events(body, limit, move |event| match event {
            Err(StreamFault::TooLarge { limit }) => match self {
                Self::Request(id) => {
                    let data = serde_json::to_string(&envelope::seal_too_large(id, result_bytes(limit))).ok();
                    Ok(Event { data, ..Event::default() })
                }
                Self::Initialize | Self::Nothing => Err(StreamFault::TooLarge { limit }),
            },
            event => event,
        })
    }

    /// Events in the envelope that passes the transport.
    fn seal_events(self, events: BoxedSseResponse) -> BoxedSseResponse {
        events.map(move |event| event.map(|event| self.seal_event(event))).boxed()
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
async fn refusal(response: reqwest::Response, asked: Asked) -> Result<Message, Fault> {
    let status = Fault::Client(WireFault::Status(response.status().as_u16()));
    if !is(&response, JSON_MIME_TYPE) {
        return Err(status);
    }
    let Ok(body) = bounded(response, ERROR_BYTES).await else { return Err(status) };
    match (Message::parse(&body), asked) {
        (Ok(Message::Response(Response { outcome: Err(error), .. })), Asked::Request(id)) => {
            // Some servers cannot name the request they refuse.
            Ok(Message::Response(Response { id: Some(RequestId::Number(id)), outcome: Err(error) }))
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
