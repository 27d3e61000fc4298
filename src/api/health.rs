//! Whether the process lives, whether it can serve, and how it fares.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Api, Problem};
use crate::plane::Readiness;
use crate::telemetry::metrics::CONTENT_TYPE as METRICS_TEXT;

/// `GET /healthz`: the process answers.
pub(super) async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// `GET /readyz`: 200 when requests are served, else 503 and how far it is.
pub(super) async fn ready(State(api): State<Arc<Api>>) -> Result<Json<Value>, Problem> {
    let wait = |code, detail: String| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail).retry_after(Duration::from_secs(1))
    };
    match api.plane.readiness() {
        Readiness::Ready => Ok(Json(json!({ "status": "ready" }))),
        Readiness::Replaying { done, total } => {
            let problem = wait("replaying", format!("{done} of {total} WAL objects are replayed"));
            Err(problem.member("progress", json!({ "done": done, "total": total })))
        }
        Readiness::Draining => Err(wait("draining", "it is stopping; send requests to another node".to_owned())),
    }
}

/// `GET /metrics`: the control plane's own metrics.
pub(super) async fn metrics(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let text = api.metrics.render().map_err(|error| {
        tracing::error!(%error, "the program's own metrics do not render");
        Problem::internal()
    })?;
    Ok(([(CONTENT_TYPE, METRICS_TEXT)], text).into_response())
}
