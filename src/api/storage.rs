//! `/v1/orgs/{org}/storage`: what an org's tables hold on the store, and their maintenance.
//!
//! | route | does |
//! |---|---|
//! | `GET storage` | gives files, bytes, what maintenance has still to do, and what it did last and when |
//! | `POST storage/compact` | merges what is due now |
//! | `POST storage/retention?dry_run=true` | lists the rows that are past their time; without `dry_run` removes them |
//! | `POST erasure` | erases a caller's samples; the body `{"caller": "…", "reason": "…"}` says whose and why |

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body::{json, read_small};
use super::retention::dry_run;
use super::who::Who;
use super::{Api, Problem};
use crate::maintenance::{Done, Erased, RetentionPlan};
use crate::model::Role;

/// Gives the state of an org's tables.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
) -> Result<Json<Value>, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    Ok(Json(api.plane.storage(&org).await?))
}

/// Merges what is due.
pub(super) async fn compact(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
) -> Result<Json<Done>, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    Ok(Json(api.plane.compact(&org).await?))
}

/// What retention removes, or would.
#[derive(Debug, Serialize)]
pub(super) struct Expired {
    dry_run: bool,
    #[serde(flatten)]
    plan: RetentionPlan,
}

/// Removes what is older than it is kept, or says what would be.
pub(super) async fn retention(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    RawQuery(query): RawQuery,
    who: Who,
) -> Result<Json<Expired>, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    let dry_run = dry_run(query.as_deref())?;
    let plan =
        if dry_run { api.plane.plan_retention(&org).await } else { api.plane.retain_as(&org, who.actor()).await };
    Ok(Json(Expired { dry_run, plan: plan? }))
}

/// The longest body.
const BODY: usize = 64 << 10;
/// The longest text in it, in characters.
const TEXT: usize = 1_024;

/// Whose samples go, and why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Erasure {
    caller: String,
    reason: String,
}

/// Erases a caller's samples.
pub(super) async fn erase(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Erased>, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    let advice = r#"send whose samples go and why, as JSON: {"caller": "…", "reason": "…"}, each 1 to 1024 characters"#;
    let invalid = || Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", advice);
    let body = read_small(&api, &headers, body, BODY).await?;
    let Erasure { caller, reason } = json(&body).map_err(|_| invalid())?;
    let is_sane = |text: &str| (1..=TEXT).contains(&text.chars().count()) && !text.trim().is_empty();
    if !is_sane(&caller) || !is_sane(&reason) {
        return Err(invalid());
    }
    // It goes on if its client disconnects, which may ask again for the outcome.
    let (plane, actor) = (Arc::clone(&api.plane), who.actor().to_owned());
    let erasing = tokio::spawn(async move { plane.erase(&org, &actor, &caller, &reason).await });
    let erased = erasing.await.map_err(|error| {
        tracing::error!(%error, "an erasure did not come to its end");
        Problem::internal()
    })?;
    Ok(Json(erased?))
}
