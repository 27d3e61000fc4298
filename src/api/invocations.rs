//! `POST /v1/orgs/{org}/invocations`: samples of tool calls.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;

use super::intake::{self, Accepted};
use super::who::Who;
use super::{Api, Problem};
use crate::ingest::RowKind;

/// Takes a batch of samples.
pub(super) async fn post(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Result<Who, Problem>,
    headers: HeaderMap,
    body: Body,
) -> Result<Accepted, Problem> {
    intake::take(&api, who, &org, &headers, body, RowKind::Sample).await
}
