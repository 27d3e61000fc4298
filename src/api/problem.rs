//! Errors as clients see them: RFC 9457 problem documents.
//!
//! `type` is `urn:mcpg:problem:<code>`, `code` the same word for programs to compare; `title` says it in words,
//! `detail` says what is wrong this time and what to do. A problem that a later try may not meet carries `Retry-After`.

use std::time::Duration;

use axum::Json;
use axum::http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Map, Value};

use super::observe;
use super::refusals::Refused;
use crate::ingest::IngestError;
use crate::plane::PlaneError;
use crate::query::QueryError;

/// Media type of a problem document.
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// What [`Problem::internal`] tells.
const INTERNAL: &str = "internal error; see the server log for this request's id";

/// The code of the problem in a response, for `observe` to count.
#[derive(Debug, Clone, Copy)]
pub(super) struct ProblemCode(pub(super) &'static str);

/// A problem document.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    retry_after: Option<Duration>,
    challenge: Option<HeaderValue>,
    /// Further members of the document.
    members: Map<String, Value>,
    /// Who was refused, where it was for want of rights: for the ledger.
    refused: Option<Box<Refused>>,
}

impl Problem {
    /// A problem of the kind `code`, a stable word of lower-case letters and underscores.
    pub(super) fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            retry_after: None,
            challenge: None,
            members: Map::new(),
            refused: None,
        }
    }

    /// A fault of the program itself; what it was is for the log alone.
    pub(super) fn internal() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", INTERNAL)
    }

    /// With the time after which to try again.
    #[must_use]
    pub(super) fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// With a `WWW-Authenticate` challenge.
    #[must_use]
    pub(super) fn challenge(mut self, challenge: &'static str) -> Self {
        self.challenge = Some(HeaderValue::from_static(challenge));
        self
    }

    /// Refused for want of rights: for the ledger to know who it was.
    #[must_use]
    pub(super) fn refused(mut self, refused: Refused) -> Self {
        self.refused = Some(Box::new(refused));
        self
    }

    /// With a further member.
    #[must_use]
    pub(super) fn member(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    /// The stable word for its kind.
    pub(super) fn code(&self) -> &'static str {
        self.code
    }

    /// The kind in words, the same each time.
    fn title(&self) -> String {
        let mut title = self.code.replace('_', " ");
        if let Some(first) = title.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        title
    }
}

/// How a problem stands in a body.
#[derive(Debug, Serialize)]
struct Document {
    #[serde(rename = "type")]
    kind: String,
    title: String,
    status: u16,
    detail: String,
    code: &'static str,
    #[serde(flatten)]
    members: Map<String, Value>,
}

impl IntoResponse for Problem {
    fn into_response(mut self) -> Response {
        // By it the log's lines are found: it is in each of them, and in the answer's header.
        if self.status.is_server_error()
            && let Some(id) = observe::current_id()
        {
            self.members.insert("request_id".to_owned(), id.into());
        }
        let document = Document {
            kind: format!("urn:mcpg:problem:{}", self.code),
            title: self.title(),
            status: self.status.as_u16(),
            detail: self.detail,
            code: self.code,
            members: self.members,
        };
        let mut response = (self.status, Json(document)).into_response();
        response.extensions_mut().insert(ProblemCode(self.code));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, PROBLEM_JSON);
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up, so that no client comes back too early.
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1_000).max(1) as u64));
        }
        if let Some(challenge) = self.challenge {
            headers.insert(WWW_AUTHENTICATE, challenge);
        }
        if let Some(refused) = self.refused {
            response.extensions_mut().insert(*refused);
        }
        response
    }
}

impl From<PlaneError> for Problem {
    fn from(error: PlaneError) -> Self {
        match &error {
            PlaneError::UnknownOrg(_) => Self::new(StatusCode::NOT_FOUND, "org_not_found", error.to_string()),
            PlaneError::OrgRemoved(_) => Self::new(StatusCode::NOT_FOUND, "org_removed", error.to_string()),
            PlaneError::OnHold { .. } => Self::new(StatusCode::CONFLICT, "on_hold", error.to_string()),
            PlaneError::Busy { retry_after, .. } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "busy", error.to_string()).retry_after(*retry_after)
            }
            PlaneError::Unavailable { retry_after, .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error.to_string()).retry_after(*retry_after)
            }
            PlaneError::Misconfigured(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "misconfigured", error.to_string())
            }
            PlaneError::Damaged(_) => {
                tracing::error!(%error, "a request met a damaged store");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "store_damaged", error.to_string())
                    .retry_after(Duration::from_secs(60))
            }
            PlaneError::PayloadRefused { code, .. } => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, error.to_string())
            }
            PlaneError::KeyServiceUnavailable(_) => {
                tracing::error!(%error, "the key service is away");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "key_service_unavailable", error.to_string())
                    .retry_after(Duration::from_secs(10))
            }
            PlaneError::KeyReused => Self::new(StatusCode::UNPROCESSABLE_ENTITY, "key_reused", error.to_string()),
            PlaneError::SequenceConflict { .. } => {
                Self::new(StatusCode::CONFLICT, "sequence_conflict", error.to_string())
            }
            PlaneError::OrgStopped { .. } => {
                tracing::error!(%error, "a request met a stopped org");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "org_stopped", error.to_string())
                    .retry_after(Duration::from_secs(60))
            }
            PlaneError::Internal(_) => {
                tracing::error!(%error, "internal error of the control plane");
                Self::internal()
            }
        }
    }
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Self {
        if let IngestError::Internal(_) = &error {
            tracing::error!(%error, "internal error while a body was decoded");
            return Self::internal();
        }
        let problem = Self::new(error.status(), error.code(), error.to_string());
        if error.errors().is_empty() {
            return problem;
        }
        let truncated = matches!(&error, IngestError::Invalid { truncated: true, .. });
        let problem = match serde_json::to_value(error.errors()) {
            Ok(errors) => problem.member("errors", errors),
            Err(_) => problem,
        };
        if truncated { problem.member("errors_truncated", true) } else { problem }
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        if error == QueryError::Internal {
            return Self::internal();
        }
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut problem = Self::new(status, error.code(), error.to_string());
        if let Some(after) = error.retry_after() {
            problem = problem.retry_after(after);
        }
        if let Some(position) = error.position() {
            let place = serde_json::json!({ "line": position.line, "column": position.column });
            problem = problem.member("position", place);
        }
        problem
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::Problem;
    use crate::plane::PlaneError;

    #[test]
    fn a_used_key_is_422_and_a_number_that_cannot_be_compared_409() {
        for (error, status, code) in [
            (PlaneError::KeyReused, 422, "key_reused"),
            (PlaneError::SequenceConflict { number: 3, last: 7 }, 409, "sequence_conflict"),
        ] {
            let problem = Problem::from(error);
            assert_eq!(problem.code(), code);
            let response = problem.into_response();
            assert_eq!(response.status().as_u16(), status);
            assert!(!response.headers().contains_key("retry-after"), "a later try meets the same");
        }
    }
}
