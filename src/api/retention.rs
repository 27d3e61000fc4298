//! `/v1/orgs/{org}/audit/retention`, `…/prune`, `…/hold` and `…/release`: how long a ledger is kept, and by whose word.
//!
//! | route | does |
//! |---|---|
//! | `GET retention` | says the rule, the hold in force, the first entry kept, the number of entries |
//! | `POST prune?dry_run=true` | says what a prune would remove; without `dry_run` it does so |
//! | `POST hold`, `POST release` | puts the ledger on hold, ends that; the body `{"reason": "…"}` says why |
//!
//! Each that changes something is an entry of the ledger itself, with the token as its actor.

use std::sync::Arc;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use super::{Api, Problem};
use crate::model::{OrgName, Role};
use crate::plane::{Keeping, PrunePlan};

/// The longest body.
const BODY: usize = 64 << 10;
/// The longest reason, in characters.
const REASON: usize = 1_024;

/// Says how the ledger is kept.
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Keeping>, Problem> {
    let org = api.access.allow(&headers, &org, Role::Read)?;
    tracing::Span::current().record("org", org.as_str());
    Ok(Json(api.plane.keeping(&org).await?))
}

/// What a prune removes, or would.
#[derive(Debug, Serialize)]
pub(super) struct Pruned {
    dry_run: bool,
    #[serde(flatten)]
    plan: PrunePlan,
}

/// Prunes, or says what would be.
pub(super) async fn prune(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Json<Pruned>, Problem> {
    let (org, actor) = operator(&api, &headers, &org)?;
    let dry_run = match query.as_deref().unwrap_or_default() {
        "" | "dry_run=false" => false,
        "dry_run=true" => true,
        _ => {
            let detail = "there is one parameter, dry_run, and it is true or false";
            return Err(Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", detail));
        }
    };
    let plan = if dry_run { api.plane.plan_prune(&org).await } else { api.plane.prune_as(&org, &actor).await };
    Ok(Json(Pruned { dry_run, plan: plan? }))
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
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Keeping>, Problem> {
    let (org, actor) = operator(&api, &headers, &org)?;
    let reason = reason(body).await?;
    Ok(Json(api.plane.hold(&org, &actor, &reason).await?))
}

/// Ends the hold.
pub(super) async fn release(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Keeping>, Problem> {
    let (org, actor) = operator(&api, &headers, &org)?;
    let reason = reason(body).await?;
    Ok(Json(api.plane.release(&org, &actor, &reason).await?))
}

fn operator(api: &Api, headers: &HeaderMap, org: &str) -> Result<(OrgName, String), Problem> {
    let (org, actor) = api.access.allow_actor(headers, org, Role::Operator)?;
    tracing::Span::current().record("org", org.as_str());
    Ok((org, actor))
}

async fn reason(body: Body) -> Result<String, Problem> {
    let invalid = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, "reason_missing", detail);
    let advice = r#"send why, as JSON: {"reason": "…"}, 1 to 1024 characters"#;
    let body = to_bytes(body, BODY).await.map_err(|_| invalid(advice))?;
    let Reason { reason } = serde_json::from_slice(&body).map_err(|_| invalid(advice))?;
    let is_sane = (1..=REASON).contains(&reason.chars().count()) && !reason.trim().is_empty();
    if is_sane { Ok(reason) } else { Err(invalid(advice)) }
}
