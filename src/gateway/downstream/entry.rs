//! What came with a request that was let in, what its client takes for an answer, and answers that are no result.

use std::sync::Arc;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};

use crate::gateway::identity::Caller;
use crate::gateway::message::{Id, RpcError, encode_response};
use crate::gateway::protocol::SESSION_HEADER;
use crate::gateway::traces::IdentityTook;

/// How long a client should wait before it tries again, in seconds.
const RETRY: HeaderValue = HeaderValue::from_static("30");

/// What came with a request that was let in, but for its message.
pub(super) struct Entered {
    pub(super) parts: Parts,
    pub(super) caller: Caller,
    pub(super) owner: Arc<str>,
    pub(super) known: bool,
    pub(super) arrived_at: chrono::DateTime<chrono::Utc>,
    pub(super) identity: IdentityTook,
    pub(super) request_id: Arc<str>,
}

/// What a client takes for an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Accept {
    pub(super) json: bool,
    pub(super) events: bool,
}

impl Accept {
    /// A client that says nothing takes anything; one that takes anything gets JSON where that is enough.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut accept = Self { json: false, events: false };
        let mut said = false;
        for value in headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()) {
            for range in value.split(',') {
                let mut parts = range.split(';').map(str::trim);
                let essence = parts.next().unwrap_or_default().to_ascii_lowercase();
                said |= !essence.is_empty();
                if parts.any(|part| matches!(part, "q=0" | "q=0.0" | "q=0.00" | "q=0.000")) {
                    continue;
                }
                accept.json |= matches!(&*essence, "*/*" | "application/*" | "application/json");
                accept.events |= matches!(&*essence, "*/*" | "text/*" | "text/event-stream");
            }
        }
        if said { accept } else { Self { json: true, events: true } }
    }
}

/// The id of the session that a request says it is of.
pub(super) fn session_id(parts: &Parts) -> Option<&str> {
    parts.headers.get(SESSION_HEADER)?.to_str().ok()
}

pub(super) fn not_allowed() -> Response {
    let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, None, "POST a message; GET and DELETE are for sessions");
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
    response
}

pub(super) fn refuse(status: StatusCode, id: Option<&Id>, text: impl Into<String>) -> Response {
    answer(status, id, RpcError::invalid_request(text.into()))
}

/// A JSON-RPC error as an HTTP response.
pub(super) fn answer(status: StatusCode, id: Option<&Id>, error: RpcError) -> Response {
    json(status, encode_response(id, &Err(error)))
}

/// A JSON text as an HTTP response.
pub(super) fn json(status: StatusCode, body: Bytes) -> Response {
    let mut response = (status, [(CONTENT_TYPE, "application/json")], body).into_response();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, RETRY);
    }
    response
}

#[cfg(test)]
mod tests {
    use http::header::ACCEPT;
    use http::{HeaderMap, HeaderValue};

    use super::Accept;

    #[test]
    fn whatever_a_client_takes_it_is_served() {
        for (header, json, events) in [
            (None, true, true),
            (Some("*/*"), true, true),
            (Some("application/json"), true, false),
            (Some("text/event-stream"), false, true),
            (Some("application/json, text/event-stream"), true, true),
            (Some("Application/JSON;q=0.5, text/event-stream;q=0"), true, false),
            (Some("text/html"), false, false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(header) = header {
                headers.insert(ACCEPT, HeaderValue::from_static(header));
            }
            let accept = Accept::of(&headers);
            assert_eq!((accept.json, accept.events), (json, events), "{header:?}");
        }
    }
}
