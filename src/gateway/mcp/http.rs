//! The routes: who asks, how large, is it a message at all; then the SDK's HTTP service.
//!
//! | request | answer |
//! |---|---|
//! | nobody that is known | 401 |
//! | a body that is too large | 413, before it is taken in |
//! | no JSON, or no message | 400 with a JSON-RPC error |
//! | a session too many | 503 with a JSON-RPC error, and when to try again |
//! | an unknown plugin | 404 |
//! | any request while the gateway is stopping | 503 |
//!
//! `GET /healthz` says that the process serves, `GET /readyz` that it takes requests, too; neither asks who wants to know.
//!
//! No answer repeats anything of the request.

use std::convert::Infallible;
use std::future::ready;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::BytesMut;
use futures::{StreamExt, stream};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, LengthLimitError, Limited};
use rmcp::model::{ErrorData, JsonRpcError, RequestId};
use rmcp::transport::common::http_header::{HEADER_MCP_PROTOCOL_VERSION, HEADER_SESSION_ID};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::inbound::Inbound;
use super::relay::Relay;
use super::session::Endpoint;
use super::sessions::{Sessions, WithSessions};
use crate::config;
use crate::gateway::identity::{Caller, Identity};
use crate::gateway::message::{self, Message, Notification};
use crate::gateway::story::Telling;
use crate::gateway::traces::{self, RequestSpans, Traces};
use crate::gateway::upstream::{Listeners, Plugin};
use crate::telemetry::w3c;

/// The header that says which id the gateway gave a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// How often sessions that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// How long the end of a response is waited for before its first bytes are sent, and how many of them may wait.
const MOMENT: Duration = Duration::from_millis(5);
const PIECE: usize = 64 * 1024;

/// How long a client should wait before it asks for a session again.
const AGAIN: HeaderValue = HeaderValue::from_static("30");

/// Where clients come in: one for all plugins, and one for each.
pub(crate) struct Doors {
    doors: Vec<Arc<Door>>,
    limits: config::GatewayLimits,
    identity: Identity,
    traces: Arc<Traces>,
    telling: Telling,
    draining: AtomicBool,
}

/// One endpoint.
struct Door {
    service: StreamableHttpService<WithSessions, Sessions>,
    sessions: Arc<Sessions>,
    path: String,
}

impl Doors {
    pub(crate) fn new(
        settings: &config::Gateway,
        plugins: &[Arc<Plugin>],
        relay: &Arc<Relay>,
        identity: Identity,
        traces: Arc<Traces>,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let door = |path: String, plugins: Vec<Arc<Plugin>>, namespaced| {
            let endpoint = Endpoint { plugins: plugins.into(), namespaced };
            let sessions = Arc::new(Sessions::new(endpoint, Arc::clone(relay)));
            let service =
                StreamableHttpService::new(|| Ok(WithSessions), Arc::clone(&sessions), http_config(settings, stop));
            Arc::new(Door { service, sessions, path })
        };
        let mut doors = vec![door("/mcp".to_owned(), plugins.to_vec(), true)];
        doors.extend(
            plugins.iter().map(|plugin| door(format!("/mcp/{}", plugin.name()), vec![Arc::clone(plugin)], false)),
        );
        let telling = relay.calls().telling.clone();
        let (limits, draining) = (settings.limits.clone(), AtomicBool::new(false));
        Arc::new(Self { doors, limits, identity, traces, telling, draining })
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        self.doors.iter().map(|door| door.sessions.count()).sum()
    }

    /// Ends idle sessions, for as long as the gateway runs.
    pub(crate) async fn sweep(self: Arc<Self>) {
        let mut tick = interval(SWEEP);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            for door in &self.doors {
                door.sessions.sweep(self.limits.session_idle.as_duration()).await;
            }
        }
    }

    /// From now on there are no new sessions, and no new requests.
    pub(crate) fn close(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Ends every session.
    pub(crate) async fn end_all(&self) {
        for door in &self.doors {
            door.sessions.end_all().await;
        }
    }

    fn readiness(&self) -> (StatusCode, &'static str) {
        if self.draining.load(Ordering::Relaxed) {
            (StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
        } else {
            (StatusCode::OK, "ready\n")
        }
    }

    /// Whether there is room for a request, and time.
    fn may_take(&self, request: &message::Request) -> Result<(), Response> {
        let refused = |text: String| refuse(StatusCode::SERVICE_UNAVAILABLE, Some(request.id.clone()), text);
        if self.draining.load(Ordering::Relaxed) {
            return Err(refused("the gateway is stopping".to_owned()));
        }
        let limit = self.limits.sessions;
        if request.method == "initialize" && self.sessions() as u64 >= limit {
            let text = "sessions, as many as it may; try again when one has ended";
            return Err(refused(format!("the gateway has {limit} {text}")));
        }
        Ok(())
    }
}

#[async_trait]
impl Listeners for Doors {
    async fn list_changed(&self, plugin: &str, notification: &Notification) {
        for door in &self.doors {
            door.sessions.list_changed(plugin, notification).await;
        }
    }
}

fn http_config(settings: &config::Gateway, stop: &CancellationToken) -> StreamableHttpServerConfig {
    let mut origins = settings.allowed_origins.clone();
    if settings.listen.ip().is_loopback() {
        // Pages of this machine itself.
        origins.extend(["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"].map(str::to_owned));
    }
    StreamableHttpServerConfig::default()
        .with_allowed_hosts(settings.allowed_hosts.clone())
        .with_allowed_origins(origins)
        .enforce_origin_validation()
        // Sessions say themselves how they are resumed.
        .with_sse_retry(None)
        .with_max_request_body_bytes(settings.limits.body_bytes.as_usize())
        .with_cancellation_token(stop.clone())
}

/// The routes of MCP.
pub(crate) fn router(doors: &Arc<Doors>) -> Router {
    let mut router = Router::new();
    for door in &doors.doors {
        let state = (Arc::clone(doors), Arc::clone(door));
        router = router.route(&door.path, any(enter).with_state(state));
    }
    let ready = Arc::clone(doors);
    router
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async move { ready.readiness() }))
        .fallback(|| async {
            refuse(StatusCode::NOT_FOUND, None, "there is nothing here; MCP is at /mcp and /mcp/<plugin>")
        })
}

async fn enter(State((doors, door)): State<(Arc<Doors>, Arc<Door>)>, request: Request) -> Response {
    let request_id: Arc<str> = doors.telling.id().to_string().into();
    let mut response = match receive(&doors, request, Arc::clone(&request_id)).await {
        Ok((inbound, request)) => {
            let (ending, is_request) = (request.method() == Method::DELETE, inbound.is_request());
            let response = inbound.during(door.service.handle(request)).await;
            let mut response = if is_request { gathered(response).await } else { response.map(Body::new) };
            if ending && response.status() == StatusCode::ACCEPTED {
                // The session has ended by now; some clients take 202 for a failure.
                *response.status_mut() = StatusCode::NO_CONTENT;
            }
            response
        }
        Err(refused) => refused,
    };
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The response, in one piece if it is at its end within [`MOMENT`]: a stream would go out in three, each of which wakes
/// the client.
async fn gathered(response: http::Response<BoxBody<Bytes, Infallible>>) -> Response {
    let (parts, mut body) = response.into_parts();
    let mut begin = BytesMut::new();
    let whole = timeout(MOMENT, async {
        while begin.len() < PIECE {
            let Some(frame) = body.frame().await else { return true };
            let frame = frame.unwrap_or_else(|never| match never {});
            if let Ok(data) = frame.into_data() {
                begin.extend_from_slice(&data);
            }
        }
        false
    });
    let is_whole = whole.await.unwrap_or(false);
    let begin = begin.freeze();
    let body = if is_whole {
        Body::from(begin)
    } else {
        Body::from_stream(stream::once(ready(Ok(begin))).chain(BodyDataStream::new(body)))
    };
    Response::from_parts(parts, body)
}

/// Takes the message in, and finds out who sent it.
async fn receive(
    doors: &Doors,
    request: Request,
    request_id: Arc<str>,
) -> Result<(Inbound, Request<Full<Bytes>>), Response> {
    let arrived_at = doors.telling.now();
    let (parts, body) = request.into_parts();
    let (message, body) = if parts.method == Method::POST {
        let body = take_in(body, doors.limits.body_bytes.as_usize()).await?;
        let message =
            Message::parse(&body).map_err(|malformed| answer(StatusCode::BAD_REQUEST, None, malformed.to_error()))?;
        (Some(message), body)
    } else {
        (None, Bytes::new())
    };
    let invocation_id = doors.telling.id();
    let spans = match &message {
        Some(Message::Request(request)) => Some(doors.spans(&parts, request, &request_id, invocation_id)),
        _ => None,
    };
    let caller = doors.identify(&parts, &message, spans.as_ref()).await?;
    if let Some(Message::Request(request)) = &message {
        doors.may_take(request)?;
    }
    let bytes = body.len() as u64;
    // The SDK reads what it needs for HTTP; arguments may be large, and are none of that.
    let body = match &message {
        Some(Message::Request(request)) => request.outline().map_or(body, Bytes::from),
        _ => body,
    };
    let spans = Mutex::new(spans);
    let inbound = Inbound { message, caller, arrived_at, bytes, request_id, invocation_id, spans };
    Ok((inbound, Request::from_parts(parts, Full::new(body))))
}

impl Doors {
    /// Opens the spans of a request that has just arrived.
    fn spans(&self, parts: &Parts, request: &message::Request, request_id: &str, invocation_id: Uuid) -> RequestSpans {
        let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let (jsonrpc_id, invocation_id) = (request.id.to_string(), invocation_id.to_string());
        let described = traces::Request {
            method: &request.method,
            jsonrpc_id: Some(&jsonrpc_id),
            session_id: header(HEADER_SESSION_ID),
            protocol_version: header(HEADER_MCP_PROTOCOL_VERSION),
            http_version: Some(parts.version),
            client: parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
            request_id: Some(request_id),
            invocation_id: (request.method == "tools/call").then_some(&*invocation_id),
        };
        self.traces.request(&described, w3c::Inbound::read(&parts.headers, request.meta()))
    }

    /// Finds out who asks.
    async fn identify(
        &self,
        parts: &Parts,
        message: &Option<Message>,
        spans: Option<&RequestSpans>,
    ) -> Result<Caller, Response> {
        let span = spans.map(RequestSpans::identity);
        match self.identity.identify(&parts.headers).await {
            Ok(caller) => {
                if let Some(span) = span {
                    span.caller(caller.name().as_str());
                }
                Ok(caller)
            }
            Err(unidentified) => {
                if let Some(span) = span {
                    span.refused();
                }
                self.telling.metrics.unidentified.inc();
                let id = match message {
                    Some(Message::Request(request)) => Some(request.id.clone()),
                    _ => None,
                };
                let mut response = refuse(unidentified.status(), id, unidentified.to_string());
                if let Some(challenge) = unidentified.challenge() {
                    response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
                }
                Err(response)
            }
        }
    }
}

async fn take_in(body: Body, limit: usize) -> Result<Bytes, Response> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            let text = format!("the request is larger than {limit} bytes");
            Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, None, text))
        }
        Err(_) => Err(refuse(StatusCode::BAD_REQUEST, None, "the request broke off")),
    }
}

fn refuse(status: StatusCode, id: Option<RequestId>, text: impl Into<String>) -> Response {
    answer(status, id, ErrorData::invalid_request(text.into(), None))
}

fn answer(status: StatusCode, id: Option<RequestId>, error: ErrorData) -> Response {
    let body = serde_json::to_vec(&JsonRpcError::new(id, error)).unwrap_or_default();
    let mut response = (status, [(CONTENT_TYPE, "application/json")], body).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, AGAIN);
    }
    response
}
