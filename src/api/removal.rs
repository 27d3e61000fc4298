//! `DELETE /v1/orgs/{org}` and `POST /v1/orgs/{org}/restore`: removing an org, and taking that back within seven days.
//!
//! Both take an optional body that says why, `{"reason": "…"}`, and are entries of the org's ledger; the actor is the
//! caller of the request.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::retention::reason_if_any;
use super::who::Who;
use super::{Api, Problem};
use crate::model::Role;
use crate::plane::Removed;

/// Removes an org.
pub(super) async fn delete(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Removed>, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    let reason = reason_if_any(&api, &headers, body).await?;
    Ok(Json(api.plane.remove(&org, who.actor(), reason.as_deref()).await?))
}

/// Brings it back.
pub(super) async fn restore(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let org = api.allow(&who, &org, Role::Operator).await?;
    let reason = reason_if_any(&api, &headers, body).await?;
    api.plane.restore(&org, who.actor(), reason.as_deref()).await?;
    Ok(Json(json!({ "org": org, "removed": false })))
}
