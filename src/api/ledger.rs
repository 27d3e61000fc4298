//! `/v1/orgs/{org}/audit/…`: what a verifier reads of a ledger, as it lies on the store.
//!
//! | route | gives |
//! |---|---|
//! | `checkpoint` | the newest checkpoint, as C2SP defines it |
//! | `checkpoints/{size}` | the checkpoint of that size, where one was signed |
//! | `tile/…` | hash tiles and entry bundles, as C2SP tlog-tiles names them |
//! | `segments/{name}` | entries, Parquet |
//! | `files` | the list of segments and checkpoints |
//! | `{seq}/proof` | that an entry is under the newest checkpoint: JSON, or a C2SP tlog-proof (`Accept: text/plain`) |
//! | `vkey` | the public key, a signed-note verifier key |
//!
//! Nothing here needs trust: all of it can be verified with a public key that was obtained from elsewhere.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

use super::who::Who;
use super::{Api, Problem, audit};
use crate::audit::segment::SegmentName;
use crate::audit::{InclusionProof, TileId};
use crate::model::{OrgName, Role};
use crate::plane::LedgerFile;

const TEXT: &str = "text/plain; charset=utf-8";
const BYTES: &str = "application/octet-stream";
const PARQUET: &str = "application/vnd.apache.parquet";

/// What never changes once it is there.
const FOREVER: HeaderValue = HeaderValue::from_static("private, max-age=31536000, immutable");
const NEVER: HeaderValue = HeaderValue::from_static("no-store");

/// The newest checkpoint.
pub(super) async fn checkpoint(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    let found = api.plane.ledger_file(&org, LedgerFile::Checkpoint).await?;
    let absent =
        || not_found("the ledger has no checkpoint yet: the first is signed about a second after the first entry");
    Ok(file(found.ok_or_else(absent)?, TEXT, NEVER))
}

/// A checkpoint that is kept.
pub(super) async fn kept_checkpoint(
    State(api): State<Arc<Api>>,
    Path((org, size)): Path<(String, String)>,
    who: Who,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    let absent = || not_found("no checkpoint of that size was signed; `files` lists those that were");
    let size = size.parse().map_err(|_| absent())?;
    let found = api.plane.ledger_file(&org, LedgerFile::Kept(size)).await?;
    Ok(file(found.ok_or_else(absent)?, TEXT, FOREVER))
}

/// A hash tile or a bundle of entries.
pub(super) async fn tile(
    State(api): State<Arc<Api>>,
    Path((org, tile)): Path<(String, String)>,
    who: Who,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    let absent = || not_found("there is no such tile; partial ones go when the full one is there");
    let tile: TileId = tile.parse().map_err(|_| absent())?;
    let found = api.plane.ledger_file(&org, LedgerFile::Tile(tile)).await?;
    Ok(file(found.ok_or_else(absent)?, BYTES, FOREVER))
}

/// A segment.
pub(super) async fn segment(
    State(api): State<Arc<Api>>,
    Path((org, name)): Path<(String, String)>,
    who: Who,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    let absent = || not_found("there is no such segment; it may have become part of a larger one, see `files`");
    let name: SegmentName = name.parse().map_err(|_| absent())?;
    let found = api.plane.ledger_file(&org, LedgerFile::Segment(name)).await?;
    Ok(file(found.ok_or_else(absent)?, PARQUET, FOREVER))
}

/// What there is.
#[derive(Debug, Serialize)]
pub(super) struct Files {
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct File {
    path: String,
    size: u64,
}

/// The segments and checkpoints that there are.
pub(super) async fn files(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
) -> Result<Json<Files>, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    let files = api.plane.ledger_files(&org).await?;
    Ok(Json(Files { files: files.into_iter().map(|(path, size)| File { path, size }).collect() }))
}

/// The public key.
pub(super) async fn vkey(State(api): State<Arc<Api>>, Path(org): Path<String>, who: Who) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    let vkey = api.plane.ledger_key(&org).await?;
    Ok(file(format!("{vkey}\n").into(), TEXT, NEVER))
}

/// The proof that an entry is under the newest checkpoint.
pub(super) async fn proof(
    State(api): State<Arc<Api>>,
    Path((org, seq)): Path<(String, String)>,
    who: Who,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Read).await?;
    let absent = || not_found("no checkpoint covers that entry yet; checkpoints follow entries by about a second");
    let seq = seq.parse().map_err(|_| absent())?;
    let proof = api.plane.inclusion_proof(&org, seq).await?.ok_or_else(absent)?;
    let wanted = headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let mut response = if wanted.trim_start().starts_with("text/plain") {
        file(proof.to_text().into(), TEXT, NEVER)
    } else {
        Json(with_entry(&api, &org, proof).await?).into_response()
    };
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// The proof with the entry's canonical bytes, if the entry is there.
async fn with_entry(api: &Api, org: &OrgName, proof: InclusionProof) -> Result<InclusionProof, Problem> {
    let (seq, hash) = (proof.seq, proof.entry_hash);
    let Some(entry) = audit::canonical_entry(api, org, seq).await? else { return Ok(proof) };
    proof.with_entry(entry).ok_or_else(|| {
        tracing::error!(%org, seq, %hash, "an entry that is stored is not the one under the ledger's checkpoint");
        Problem::internal()
    })
}

fn file(bytes: Bytes, media: &'static str, cache: HeaderValue) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static(media)), (CACHE_CONTROL, cache)], bytes).into_response()
}

fn not_found(detail: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_in_ledger", detail)
}
