//! The HTTP API of the control plane, one file a resource.
//!
//! | route | role | file |
//! |---|---|---|
//! | `POST /v1/orgs/{org}/invocations` | `ingest` | `invocations` |
//! | `POST /v1/orgs/{org}/audit` | `ingest` | `audit` |
//! | `GET /v1/orgs/{org}/audit`, `…/audit/canonical` | `read` | `audit` |
//! | `GET /v1/orgs/{org}/audit/…` | `read` | `ledger` |
//! | `GET /v1/orgs/{org}/audit/retention` | `read` | `retention` |
//! | `POST /v1/orgs/{org}/audit/prune`, `…/hold`, `…/release` | `operator` | `retention` |
//! | `GET /v1/orgs/{org}/storage`, `POST …/storage/…`, `…/erasure` | `operator` | `storage` |
//! | `GET /v1/orgs/{org}/metrics` | `read` | `metrics` |
//! | `POST /v1/orgs/{org}/sql` | `read` | `sql` |
//! | `POST /v1/orgs/{org}/sessions/revoke` | `operator` | `session` |
//! | `GET`, `POST`, `DELETE /v1/session`, `GET /v1/session/login`, `…/callback` | none | `session` |
//! | `POST /v1/orgs/{org}/payloads`, `GET …/payload-keys`, `POST …/payloads/view`, … | see there | `payloads` |
//! | `GET /healthz`, `/readyz`, `/metrics` | none | `health` |
//! | `GET /openapi.json` | none | `openapi` |
//! | `GET /`, `/assets/…` and the views' paths | none | `ui` |
//!
//! Every request passes, outermost first: `observe` (request id, span, metrics), panic to 500, `browsers` (what web
//! pages may not), `auth::identify` (who it is of), routing. A handler takes a `Who`, asks whether they may
//! (`Api::allow`), reads what it needs within bounds (`body`) and answers. Every error of every kind is an RFC 9457
//! problem document (`problem`) with a stable `code`.
//!
//! Nothing here holds state: what a request changes, the plane has made durable before the answer is sent.

mod audit;
mod auth;
mod body;
mod browsers;
mod connections;
mod exemplars;
mod health;
mod intake;
mod invocations;
mod ledger;
#[cfg(test)]
mod matrix;
mod metrics;
mod observe;
mod openapi;
mod payloads;
mod problem;
mod records;
pub mod refusals;
mod removal;
mod retention;
mod scrapes;
pub mod server;
mod session;
mod site;
mod sql;
mod storage;
#[cfg(test)]
mod tests;
mod tokens;
mod ui;
mod who;

use std::any::Any;
use std::sync::Arc;
use std::thread::available_parallelism;

use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use tokio::sync::Semaphore;
use tower_http::catch_panic::CatchPanicLayer;

pub use auth::Access;
use problem::Problem;
use records::Records;
use refusals::Refusals;
pub use session::Sealer;
pub use tokens::Tokens;
use who::Who;

use crate::config::Limits;
use crate::model::{Clock, OrgName, Role};
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
    records: Arc<Records>,
    scrapes: scrapes::Scrapes,
    exemplars: exemplars::OfOrgs,
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
        let records = Arc::new(Records::new(Arc::clone(&plane), limits.sql.slow_query.as_duration(), false));
        Self {
            plane,
            engine,
            access,
            metrics,
            limits,
            clock,
            refusals: Arc::default(),
            records,
            scrapes: scrapes::Scrapes::default(),
            exemplars: exemplars::OfOrgs::default(),
            decoders,
        }
    }

    /// The same, with an entry of the ledger for each query.
    #[must_use]
    pub fn with_queries_in_ledger(mut self) -> Self {
        let slow = self.limits.sql.slow_query.as_duration();
        self.records = Arc::new(Records::new(Arc::clone(&self.plane), slow, true));
        self
    }

    /// The requests that are refused for want of rights.
    pub fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.refusals)
    }

    /// The org named `org` in a path, if they may act there in `role`; it is recorded on the request's span.
    ///
    /// # Errors
    /// 404 or 403, in this order; 401 before them when the session that the request brought is over.
    async fn allow(&self, who: &Who, org: &str, role: Role) -> Result<OrgName, Problem> {
        let org = self.access.allow(who, org, role);
        self.check_session(who, org.as_ref().ok()).await?;
        let org = org?;
        tracing::Span::current().record("org", org.as_str());
        Ok(org)
    }

    /// Every route, ready to be served.
    pub fn into_router(self) -> Router {
        let api = Arc::new(self);
        let router = routes().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods));
        router
            .merge(ui::routes())
            .fallback(no_such_route)
            .method_not_allowed_fallback(no_such_method)
            .layer(middleware::from_fn_with_state(Arc::clone(&api), auth::identify))
            .layer(middleware::from_fn_with_state(Arc::clone(&api), browsers::check))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn_with_state(Arc::clone(&api), observe::observe))
            .with_state(api)
    }
}

/// Every path, and what is done there.
fn routes() -> [(&'static str, MethodRouter<Arc<Api>>); 35] {
    [
        ("/v1/orgs/{org}", delete(removal::delete)),
        ("/v1/orgs/{org}/restore", post(removal::restore)),
        ("/v1/orgs/{org}/invocations", post(invocations::post)),
        ("/v1/orgs/{org}/audit", get(audit::get).post(audit::post)),
        ("/v1/orgs/{org}/audit/checkpoint", get(ledger::checkpoint)),
        ("/v1/orgs/{org}/audit/checkpoints/{size}", get(ledger::kept_checkpoint)),
        ("/v1/orgs/{org}/audit/tile/{*tile}", get(ledger::tile)),
        ("/v1/orgs/{org}/audit/segments/{name}", get(ledger::segment)),
        ("/v1/orgs/{org}/audit/files", get(ledger::files)),
        ("/v1/orgs/{org}/audit/vkey", get(ledger::vkey)),
        ("/v1/orgs/{org}/audit/{seq}/proof", get(ledger::proof)),
        ("/v1/orgs/{org}/audit/canonical", get(audit::canonical)),
        ("/v1/orgs/{org}/audit/retention", get(retention::get)),
        ("/v1/orgs/{org}/audit/prune", post(retention::prune)),
        ("/v1/orgs/{org}/audit/hold", post(retention::hold)),
        ("/v1/orgs/{org}/audit/release", post(retention::release)),
        ("/v1/orgs/{org}/storage", get(storage::get)),
        ("/v1/orgs/{org}/storage/compact", post(storage::compact)),
        ("/v1/orgs/{org}/storage/retention", post(storage::retention)),
        ("/v1/orgs/{org}/erasure", post(storage::erase)),
        ("/v1/orgs/{org}/metrics", get(metrics::get)),
        ("/v1/orgs/{org}/sql", post(sql::post)),
        ("/v1/orgs/{org}/sessions/revoke", post(session::revoke)),
        ("/v1/session", get(session::get).post(session::post).delete(session::delete)),
        ("/v1/session/login", get(session::login)),
        ("/v1/session/callback", get(session::callback)),
        ("/v1/orgs/{org}/payloads", post(payloads::post)),
        ("/v1/orgs/{org}/payloads/export", get(payloads::export)),
        ("/v1/orgs/{org}/payload-keys", get(payloads::keys)),
        ("/v1/orgs/{org}/payload-keys/rotate", post(payloads::rotate)),
        ("/v1/orgs/{org}/invocations/{id}/payloads/view", post(payloads::view)),
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
