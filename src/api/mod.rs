//! The HTTP API of the control plane, one file a resource.
//!
//! | route | role | file |
//! |---|---|---|
//! | `POST /v1/orgs/{org}/invocations` | `ingest` | `invocations` |
//! | `POST /v1/orgs/{org}/audit` | `ingest` | `audit` |
//! | `GET /v1/orgs/{org}/audit` | `read` | `audit` |
//! | `GET /v1/orgs/{org}/audit/…` | `read` | `ledger` |
//! | `GET /v1/orgs/{org}/audit/retention` | `read` | `retention` |
//! | `POST /v1/orgs/{org}/audit/prune`, `…/hold`, `…/release` | `operator` | `retention` |
//! | `GET /v1/orgs/{org}/metrics` | `read` | `metrics` |
//! | `POST /v1/orgs/{org}/sql` | `read` | `sql` |
//! | `GET /healthz`, `/readyz`, `/metrics` | none | `health` |
//! | `GET /openapi.json` | none | `openapi` |
//!
//! Every request passes, outermost first: `observe` (request id, span, metrics), panic to 500, routing. A handler
//! then authenticates, authorises (`auth`), reads what it needs within bounds (`body`) and answers. Every error of
//! every kind is an RFC 9457 problem document (`problem`) with a stable `code`.
//!
//! Nothing here holds state: what a request changes, the plane has made durable before the answer is sent.

mod audit;
mod auth;
mod body;
mod health;
mod intake;
mod invocations;
mod ledger;
mod metrics;
mod observe;
mod openapi;
mod problem;
pub mod refusals;
mod retention;
pub mod server;
mod sql;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::thread::available_parallelism;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

pub use auth::Access;
use problem::Problem;
use refusals::Refusals;

use crate::config::Limits;
use crate::model::Clock;
use crate::plane::Plane;
use crate::query::Engine;
use crate::telemetry::metrics::Metrics;

/// What the handlers work with, made at the top of the program.
#[derive(Debug)]
pub struct Api {
    plane: Arc<Plane>,
    engine: Arc<dyn Engine>,
    access: Access,
    metrics: Arc<Metrics>,
    limits: Limits,
    clock: Arc<dyn Clock>,
    refusals: Arc<Refusals>,
    /// Bodies are decoded by as many threads as there are cores; more would only fight over them.
    decoders: Semaphore,
}

impl Api {
    /// An API over these components.
    pub fn new(
        plane: Arc<Plane>,
        engine: Arc<dyn Engine>,
        access: Access,
        metrics: Arc<Metrics>,
        limits: Limits,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let decoders = Semaphore::new(available_parallelism().map_or(1, usize::from));
        Self { plane, engine, access, metrics, limits, clock, refusals: Arc::default(), decoders }
    }

    /// The requests that are refused for want of rights.
    pub fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.refusals)
    }

    /// Every route, ready to be served.
    pub fn into_router(self) -> Router {
        let api = Arc::new(self);
        let router = routes().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
        router
            .fallback(no_such_route)
            .method_not_allowed_fallback(no_such_method)
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn_with_state(Arc::clone(&api), observe::observe))
            .with_state(api)
    }
}

/// Every path, and what is done there.
fn routes() -> [(&'static str, MethodRouter<Arc<Api>>); 19] {
    [
        ("/v1/orgs/{org}/invocations", post(invocations::post)),
        ("/v1/orgs/{org}/audit", get(audit::get).post(audit::post)),
        ("/v1/orgs/{org}/audit/checkpoint", get(ledger::checkpoint)),
        ("/v1/orgs/{org}/audit/checkpoints/{size}", get(ledger::kept_checkpoint)),
        ("/v1/orgs/{org}/audit/tile/{*tile}", get(ledger::tile)),
        ("/v1/orgs/{org}/audit/segments/{name}", get(ledger::segment)),
        ("/v1/orgs/{org}/audit/files", get(ledger::files)),
        ("/v1/orgs/{org}/audit/vkey", get(ledger::vkey)),
        ("/v1/orgs/{org}/audit/{seq}/proof", get(ledger::proof)),
        ("/v1/orgs/{org}/audit/retention", get(retention::get)),
        ("/v1/orgs/{org}/audit/prune", post(retention::prune)),
        ("/v1/orgs/{org}/audit/hold", post(retention::hold)),
        ("/v1/orgs/{org}/audit/release", post(retention::release)),
        ("/v1/orgs/{org}/metrics", get(metrics::get)),
        ("/v1/orgs/{org}/sql", post(sql::post)),
        ("/healthz", get(health::alive)),
        ("/readyz", get(health::ready)),
        ("/metrics", get(health::metrics)),
        ("/openapi.json", get(openapi::get)),
    ]
}

async fn no_such_route(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "no_such_route",
        format!("nothing is at {}; /openapi.json lists what is", uri.path()),
    )
}

async fn no_such_method(method: Method, uri: Uri) -> Problem {
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", format!("{} does not take {method}", uri.path()))
}

/// What a handler's panic becomes. The payload is not shown or logged: it may quote what the request held.
fn panicked(_: Box<dyn Any + Send + 'static>) -> Response {
    tracing::error!("a request handler panicked");
    Problem::internal().into_response()
}
