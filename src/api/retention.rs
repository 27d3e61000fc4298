//! `/v1/orgs/{org}/audit/retention`, `…/prune`, `…/hold` and `…/release`: how long a ledger is kept.
//!
//! | route | does |
//! |---|---|
//! | `GET retention` | says the rule, the hold in force, the first entry kept, the number of entries |
//! | `POST prune?dry_run=true` | says what a prune would remove; without `dry_run` it does so |
//! | `POST hold`, `POST release` | puts the ledger on hold, ends that; the body `{"reason": "…"}` says why |
//!
//! Each change is an entry of the ledger itself; its actor is the caller of the request.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::body::{json, read_small};
use super::who::Who;
use super::{Api, Problem};
use crate::model::Role;
use crate::plane::{Keeping, PrunePlan};

/// The longest body.
const BODY: usize = 64 << 10;
/// The longest reason, in characters.
const REASON: usize = 1_024;

/// Says how the ledger is kept.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
) -> Result<Json<Keeping>, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    Ok(Json(api.plane.keeping(&org).await?))
}

/// What a prune removes, or would.
#[derive(Debug, Serialize)]
pub(super) struct Pruned {
    dry_run: bool,
    #[serde(flatten)]
    plan: PrunePlan,
}

/// Prunes, or reports what would be.
pub(super) async fn prune(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    RawQuery(query): RawQuery,
    who: Who,
) -> Result<Json<Pruned>, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    let dry_run = dry_run(query.as_deref())?;
    let plan = if dry_run { api.plane.plan_prune(&org).await } else { api.plane.prune_as(&org, who.actor()).await };
    Ok(Json(Pruned { dry_run, plan: plan? }))
}

/// Whether only to report what would be removed.
pub(super) fn dry_run(query: Option<&str>) -> Result<bool, Problem> {
    match query.unwrap_or_default() {
        "" | "dry_run=false" => Ok(false),
        "dry_run=true" => Ok(true),
        _ => {
            let detail = "there is one parameter, dry_run, and it is true or false";
            Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail))
        }
    }
}

/// Why.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reason {
    reason: String,
}

/// Puts the ledger on hold.
pub(super) async fn hold(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Keeping>, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    let reason = reason(&api, &headers, body).await?;
    Ok(Json(api.plane.hold(&org, who.actor(), &reason).await?))
}

/// Ends the hold.
pub(super) async fn release(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Keeping>, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    let reason = reason(&api, &headers, body).await?;
    Ok(Json(api.plane.release(&org, who.actor(), &reason).await?))
}

async fn reason(api: &Api, headers: &HeaderMap, body: Body) -> Result<String, Problem> {
    reason_if_any(api, headers, body).await?.ok_or_else(reason_missing)
}

fn reason_missing() -> Problem {
    let advice = r#"send why, as JSON: {"reason": "…"}, 1 to 1024 characters"#;
    Problem::new(StatusCode::BAD_REQUEST, "reason_missing", advice)
}

/// The reason in the body; `None` if there is no body.
pub(super) async fn reason_if_any(api: &Api, headers: &HeaderMap, body: Body) -> Result<Option<String>, Problem> {
    let body = read_small(api, headers, body, BODY).await?;
    if body.is_empty() {
        return Ok(None);
    }
    let Reason { reason } = json(&body).map_err(|_| reason_missing())?;
    let is_sane = (1..=REASON).contains(&reason.chars().count()) && !reason.trim().is_empty();
    if is_sane { Ok(Some(reason)) } else { Err(reason_missing()) }
}
