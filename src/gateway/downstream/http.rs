//! The routes: who asks, how large, is it a message at all, of which generation; then a session's request, or one of
//! its own.
//!
//! | request | answer |
//! |---|---|
//! | of a page or to a name that is not allowed | 403 |
//! | any, while the gateway is stopping | 503 |
//! | nobody's that is known | 401, before anything of its body is read |
//! | a body that is too large, too slow, or more than there is memory for | 413, 408, 503 |
//! | no JSON, or no message | 400 with a JSON-RPC error |
//! | modern, with headers that differ from its body | 400 with a JSON-RPC error |
//! | of a session that is unknown, ended, or somebody else's | 404 |
//! | a session too many | 503 with a JSON-RPC error, and when to try again |
//! | `GET`, `DELETE` without a session | 405 |
//! | an unknown plugin | 404 |
//!
//! `GET /healthz` says that the process serves, `GET /readyz` that it takes requests, too; neither asks who wants to
//! know.
//!
//! No answer repeats anything of the request.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use axum::routing::{any, get};
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use tokio::time::Instant;

use super::body::{self, take_in};
use super::endpoints::{Downstream, Route};
use super::entry::{Accept, Entered, answer, not_allowed, refuse};
use super::modern::{self, header_is_modern};
use super::{modern_request, session_request};
use crate::gateway::message::{self, Json, Message, RpcError};
use crate::gateway::protocol::META_VERSION;
use crate::gateway::traces::IdentityTook;

/// The header that says which id the gateway gave a request.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The routes of MCP.
pub(crate) fn router(downstream: &Arc<Downstream>) -> Router {
    let mut router = Router::new();
    for route in &downstream.routes {
        let state = (Arc::clone(downstream), Arc::clone(route));
        router = router.route(&route.path, any(enter).with_state(state));
    }
    let ready = Arc::clone(downstream);
    router
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async move { ready.readiness() }))
        .fallback(|| async {
            refuse(StatusCode::NOT_FOUND, None, "there is nothing here; MCP is at /mcp and /mcp/<plugin>")
        })
}

async fn enter(State((downstream, route)): State<(Arc<Downstream>, Arc<Route>)>, request: Request) -> Response {
    let request_id: Arc<str> = downstream.telemetry().id().to_string().into();
    let answered = handle(&downstream, &route, request, Arc::clone(&request_id)).await;
    let mut response = answered.unwrap_or_else(|refused| refused);
    if let Ok(id) = HeaderValue::from_str(&request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

async fn handle(
    downstream: &Arc<Downstream>,
    route: &Arc<Route>,
    request: Request,
    request_id: Arc<str>,
) -> Result<Response, Response> {
    let (arrived_at, arrived) = (downstream.telemetry().now(), Instant::now());
    let (parts, body) = request.into_parts();
    if !downstream.allowed.allows(&parts) {
        return Err(refuse(StatusCode::FORBIDDEN, None, "this host or origin is not allowed here"));
    }
    if !matches!(parts.method, Method::POST | Method::GET | Method::DELETE) {
        return Err(not_allowed());
    }
    if downstream.is_draining() {
        return Err(refuse(StatusCode::SERVICE_UNAVAILABLE, None, "the gateway is stopping"));
    }
    let caller = downstream.identify(&parts, &request_id).await?;
    let identity =
        IdentityTook { began: arrived_at.into(), ended: downstream.telemetry().now().into(), took: arrived.elapsed() };
    let (owner, known) = (Arc::from(caller.name().as_str()), caller.name().as_str() != "anonymous");
    let entered = Entered { parts, caller, owner, known, arrived_at, identity, request_id };
    match entered.parts.method {
        Method::POST => post(downstream, route, entered, body).await,
        Method::GET => session_request::get(downstream, route, &entered),
        _ => session_request::delete(route, &entered).await,
    }
}

async fn post(
    downstream: &Arc<Downstream>,
    route: &Arc<Route>,
    entered: Entered,
    body: Body,
) -> Result<Response, Response> {
    let is_json = entered.parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        value.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
    });
    if !is_json {
        let text = "the body is application/json";
        return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, None, text));
    }
    let accept = Accept::of(&entered.parts.headers);
    if !accept.json && !accept.events {
        let text = "accept application/json or text/event-stream";
        return Err(refuse(StatusCode::NOT_ACCEPTABLE, None, text));
    }
    let limit = downstream.limits.body_bytes.as_usize();
    let body = take_in(&entered.parts, body, limit, (&downstream.budget, &entered.owner)).await;
    let body = body.map_err(|refused: body::Refused| refuse(refused.status(), None, refused.text()))?;
    let malformed = |malformed: message::Malformed| answer(StatusCode::BAD_REQUEST, None, malformed.to_error());
    if let Some(batch) = Message::parse_batch(&body, session_request::MAX_BATCH).map_err(malformed)? {
        return session_request::batch(downstream, route, entered, batch, body.len()).await;
    }
    let message = Message::parse(&body).map_err(malformed)?;
    match message {
        Message::Request(request) => {
            let params = request.params.as_ref().and_then(Json::object).unwrap_or_default();
            match modern::claim(&params) {
                Some(claim) => {
                    let request = modern_request::Incoming { request, params, claim, bytes: body.len() };
                    modern_request::answer(downstream, route, entered, accept, request).await
                }
                None if header_is_modern(&entered.parts.headers) => {
                    let error = RpcError::invalid_params(format!("Invalid params: _meta has no {META_VERSION}"));
                    Err(answer(StatusCode::BAD_REQUEST, Some(&request.id), error))
                }
                None => {
                    let incoming = session_request::Incoming { request, params, bytes: body.len() };
                    session_request::answer(downstream, route, entered, accept, incoming).await
                }
            }
        }
        Message::Notification(notification) => {
            let params = notification.params.as_ref().and_then(Json::object).unwrap_or_default();
            if modern::claim(&params).is_some() || header_is_modern(&entered.parts.headers) {
                return modern_request::notified(downstream, &notification);
            }
            session_request::accept(downstream, route, &entered, Message::Notification(notification)).await
        }
        Message::Response(_) if header_is_modern(&entered.parts.headers) => {
            let text = "a client of this version sends no responses";
            Err(refuse(StatusCode::BAD_REQUEST, None, text))
        }
        response @ Message::Response(_) => session_request::accept(downstream, route, &entered, response).await,
    }
}
