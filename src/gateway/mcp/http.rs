//! The routes: who asks, how large, is it a message at all; then the SDK's HTTP service.
//!
//! | request | answer |
//! |---|---|
//! | nobody that is known | 401 |
//! | a body that is too large | 413, before it is taken in |
//! | no JSON, or no message | 400 with a JSON-RPC error |
//! | a session too many | 503 with a JSON-RPC error, and when to try again |
//! | an unknown plugin | 404 |
//!
//! No answer repeats anything of the request.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use rmcp::model::{ErrorData, JsonRpcError, RequestId};
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::inbound::Inbound;
use super::relay::Relay;
use super::session::Endpoint;
use super::sessions::{Sessions, WithSessions};
use crate::config;
use crate::gateway::message::{Message, Notification};
use crate::gateway::upstream::{Listeners, Plugin};
use crate::model::{CallerName, Clock};

/// How often sessions that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(10);

/// How long a client should wait before it asks for a session again.
const AGAIN: HeaderValue = HeaderValue::from_static("30");

/// Where clients come in: one for all plugins, and one for each.
pub(crate) struct Doors {
    doors: Vec<Arc<Door>>,
    limits: config::GatewayLimits,
    draining: AtomicBool,
}

/// One endpoint.
struct Door {
    service: StreamableHttpService<WithSessions, Sessions>,
    sessions: Arc<Sessions>,
    path: String,
    clock: Arc<dyn Clock>,
}

impl Doors {
    pub(crate) fn new(
        settings: &config::Gateway,
        plugins: &[Arc<Plugin>],
        relay: &Arc<Relay>,
        clock: &Arc<dyn Clock>,
        stop: &CancellationToken,
    ) -> Arc<Self> {
        let door = |path: String, plugins: Vec<Arc<Plugin>>, namespaced| {
            let endpoint = Endpoint { plugins: plugins.into(), namespaced };
            let sessions = Arc::new(Sessions::new(endpoint, Arc::clone(relay)));
            let service =
                StreamableHttpService::new(|| Ok(WithSessions), Arc::clone(&sessions), http_config(settings, stop));
            Arc::new(Door { service, sessions, path, clock: Arc::clone(clock) })
        };
        let mut doors = vec![door("/mcp".to_owned(), plugins.to_vec(), true)];
        doors.extend(
            plugins.iter().map(|plugin| door(format!("/mcp/{}", plugin.name()), vec![Arc::clone(plugin)], false)),
        );
        Arc::new(Self { doors, limits: settings.limits.clone(), draining: AtomicBool::new(false) })
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

    fn may_open(&self) -> Result<(), Response> {
        if self.draining.load(Ordering::Relaxed) {
            return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, None, "the gateway is stopping"));
        }
        let limit = self.limits.sessions;
        if self.sessions() as u64 >= limit {
            let text = format!("the gateway has {limit} sessions, as many as it may; try again when one has ended");
            return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, None, text));
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
    router.fallback(|| async {
        refuse(StatusCode::NOT_FOUND, None, "there is nothing here; MCP is at /mcp and /mcp/<plugin>")
    })
}

async fn enter(State((doors, door)): State<(Arc<Doors>, Arc<Door>)>, request: Request) -> Response {
    match receive(&doors, &door, request).await {
        Ok((inbound, request)) => {
            let ending = request.method() == Method::DELETE;
            let mut response = inbound.during(door.service.handle(request)).await.map(Body::new);
            if ending && response.status() == StatusCode::ACCEPTED {
                // The session has ended by now; some clients take 202 for a failure.
                *response.status_mut() = StatusCode::NO_CONTENT;
            }
            response
        }
        Err(refused) => refused,
    }
}

/// Finds out who asks, and takes the message in.
async fn receive(doors: &Doors, door: &Door, request: Request) -> Result<(Inbound, Request<Full<Bytes>>), Response> {
    let arrived_at = door.clock.now();
    let (parts, body) = request.into_parts();
    let caller = CallerName::anonymous();
    let client = parts.extensions.get::<axum::extract::ConnectInfo<SocketAddr>>().map(|info| info.0);
    let (message, body) = if parts.method == Method::POST {
        let body = take_in(body, doors.limits.body_bytes.as_usize()).await?;
        let message =
            Message::parse(&body).map_err(|malformed| answer(StatusCode::BAD_REQUEST, None, malformed.to_error()))?;
        if matches!(&message, Message::Request(request) if request.method == "initialize") {
            doors.may_open()?;
        }
        (Some(message), body)
    } else {
        (None, Bytes::new())
    };
    let inbound = Inbound {
        message,
        caller,
        arrived_at,
        bytes: body.len() as u64,
        headers: parts.headers.clone(),
        http_version: parts.version,
        client,
    };
    Ok((inbound, Request::from_parts(parts, Full::new(body))))
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
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}
