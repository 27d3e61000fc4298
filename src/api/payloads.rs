//! Sealed payloads.
//!
//! | route | role | does |
//! |---|---|---|
//! | `POST payloads` | `ingest` | takes frames of envelopes and records, whole or not at all; 200: they are durable |
//! | `GET payload-keys` | `ingest` | the signed note of public keys, which are made if they are missing |
//! | `POST payload-keys/rotate` | `operator` | rotates the KEK |
//! | `POST invocations/{id}/payloads/view` | `payload`, a person | opens what was captured of a call |
//! | `GET payloads/export?from=&to=&reason=` | `payload`, a person | a tar of what was captured in a time |
//!
//! Who asks to see is held against the rules in this order: known (401), org (404), role and person (403), how long ago
//! they logged in (401), the entitlement (403), the reason (400). A refusal of a known person is recorded in the ledger
//! as `payload.view_denied`. An answer that holds plaintext is JSON that is kept nowhere: `no-store`, and a policy that
//! lets a browser run or load nothing of it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::body::{self, Incoming};
use super::intake::in_time;
use super::refusals::Refused;
use super::who::{Way, Who};
use super::{Api, Problem, observe};
use crate::ingest::{BatchName, Encoding, Fingerprint, IngestError};
use crate::keys::Rotated;
use crate::model::{OrgName, Role};
use crate::payload::frames::{self, MAX_BYTES, MEDIA};
use crate::plane::Admission;
use crate::plane::payload_export::{Exported, MOST_BYTES};
use crate::plane::payload_view::{Opened, ViewError, Viewer};

/// How long ago the login of a person who views a payload may be.
const RECENT: TimeDelta = TimeDelta::hours(1);
/// A reason's length, in characters.
const REASON: std::ops::RangeInclusive<usize> = 3..=500;
/// The longest body that says why.
const REASON_BODY: usize = 16 << 10;
/// How many times its size a packed body is at first allowed to have unpacked, and by how much more where that was too
/// little: what is sealed hardly packs, so that one that does is no batch of ours.
const EXPANSION: usize = 2;
const MORE: usize = 4;
/// The least that a packed body is allowed to unpack to.
const LEAST_UNPACKED: usize = 64 << 10;
/// What is set aside for each frame that is read, beside its bytes.
const FRAME: usize = 1 << 10;
/// What opening a call takes: two bodies of a batch, or records with what they are unpacked to.
const OPENING: usize = 8 * crate::payload::MAX_CAP;
/// Whether payloads are to be compressed before they are sealed, where they are not.
const COMPRESS: HeaderName = HeaderName::from_static("mcpg-payload-compress");

/// The key that signs the note of public keys.
const LEDGER_VKEY: HeaderName = HeaderName::from_static("mcpg-ledger-vkey");

/// The answer to payloads that are durable.
#[derive(Debug, Serialize)]
pub(super) struct Accepted {
    accepted: usize,
    duplicate: bool,
}

fn entitled(api: &Api, org: &OrgName) -> Result<(), Problem> {
    if api.plane.captures_payloads(org) {
        return Ok(());
    }
    Err(Problem::new(StatusCode::FORBIDDEN, NOT_ENTITLED, not_entitled(org)))
}

const NOT_ENTITLED: &str = "not_entitled";

fn not_entitled(org: &OrgName) -> String {
    format!("{org} is not entitled to payload_capture, which comes with the tier enterprise")
}

/// Takes frames.
pub(super) async fn post(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Accepted>, Problem> {
    let mut body = Incoming::new(&headers, body);
    let taken = take(&api, &org, &who, &headers, &mut body).await;
    if let Err(problem) = &taken {
        api.metrics.ingest.refused(problem.code());
        body.discard(MAX_BYTES).await;
    }
    taken.map(Json)
}

async fn take(
    api: &Arc<Api>,
    org: &str,
    who: &Who,
    headers: &HeaderMap,
    body: &mut Incoming,
) -> Result<Accepted, Problem> {
    let deadline = Instant::now() + api.limits.request_timeout.as_duration();
    let org = api.allow(who, org, Role::Ingest).await?;
    entitled(api, &org)?;
    let media = headers.get(CONTENT_TYPE).and_then(|media| media.to_str().ok()).unwrap_or_default();
    if media != MEDIA {
        let detail = format!("sealed payloads come as {MEDIA}");
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail));
    }
    let (name, encoding) = (BatchName::of_payloads(headers)?, Encoding::from_headers(headers)?);
    let most = MAX_BYTES.min(api.limits.buffer_bytes.as_usize() / 2);
    let mut admission = api.plane.admit(body.announced().filter(|announced| *announced <= most).unwrap_or(0)).await?;
    let packed = body.read(most, deadline, |bytes| Ok(admission.grow_to(bytes)?)).await?;
    let turn = api.decoders.acquire().await.map_err(|_| Problem::internal())?;
    let bytes = unpack(packed, encoding, most, &mut admission).await?;
    let id = name.map(|name| name.with_body(Fingerprint::of(&bytes)));
    admission.wait_to_grow_to(bytes.len() + frames::count(&bytes).min(frames::MOST) * FRAME).await?;
    let parsed = bytes.clone();
    let read = tokio::task::spawn_blocking(move || frames::read(&parsed)).await.map_err(|_| Problem::internal())?;
    drop(turn);
    let frames = read.map_err(|(number, refusal)| {
        let detail = format!("frame {number} is no envelope and no record: {refusal}; nothing was stored");
        Problem::new(StatusCode::BAD_REQUEST, "invalid_payload", detail)
    })?;
    // Looked up before anything of it is judged, and before its bytes are stored again.
    if let Some(id) = &id
        && api.plane.is_stored(&org, id).await?
    {
        let records = frames.iter().filter(|placed| matches!(placed.frame, frames::Frame::Record(_))).count();
        return Ok(Accepted { accepted: records, duplicate: true });
    }
    let appended = api.plane.append_payloads(&org, bytes, &frames, id, who.label(), admission);
    let ack = in_time(deadline, appended).await?;
    Ok(Accepted { accepted: ack.accepted, duplicate: ack.duplicate })
}

/// Unpacks a body within what is set aside for it: little at first, and more where that was too little.
async fn unpack(packed: Bytes, encoding: Encoding, most: usize, admission: &mut Admission) -> Result<Bytes, Problem> {
    if encoding == Encoding::Identity {
        return Ok(packed);
    }
    let mut bound = packed.len().saturating_mul(EXPANSION).max(LEAST_UNPACKED).min(most);
    loop {
        admission.wait_to_grow_to(packed.len() + bound).await?;
        let body = packed.clone();
        let unpacked = tokio::task::spawn_blocking(move || encoding.unpack(&body, bound)).await;
        match unpacked.map_err(|_| Problem::internal())? {
            Err(IngestError::TooLarge(_)) if bound < most => bound = bound.saturating_mul(MORE).min(most),
            unpacked => return Ok(unpacked?),
        }
    }
}

/// The signed note of public keys.
pub(super) async fn keys(State(api): State<Arc<Api>>, Path(org): Path<String>, who: Who) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Ingest).await?;
    entitled(&api, &org)?;
    let note = api.plane.payload_key_note(&org).await?;
    let mut response = note.into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // For gateways that do not know of it: they keep the first that they see.
    if let Ok(vkey) = HeaderValue::try_from(api.plane.ledger_key(&org).await?) {
        headers.insert(LEDGER_VKEY, vkey);
    }
    if api.plane.payload_settings(&org).is_some_and(|settings| !settings.compress) {
        headers.insert(COMPRESS, HeaderValue::from_static("no"));
    }
    Ok(response)
}

/// Rotates the KEK.
pub(super) async fn rotate(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    who: Who,
) -> Result<Json<Rotated>, Problem> {
    api.allow(&who, &org, Role::Operator).await?;
    Ok(Json(api.plane.rotate_payload_kek(who.actor()).await?))
}

/// Refuses a person, and records that in the ledger.
fn denied(status: StatusCode, code: &'static str, detail: impl Into<String>, org: &OrgName, who: &Who) -> Problem {
    Problem::new(status, code, detail).refused(Refused::new(org, who.actor(), code))
}

/// Checks that a caller may view payloads of an org: a person, with a right in this very org, who said lately who they
/// are; and that the org may have payloads captured.
fn may_see(api: &Api, org: &OrgName, who: &Who) -> Result<(), Problem> {
    let settings = api.plane.payload_settings(org).cloned().unwrap_or_default();
    let is_person = who.is_person()
        || who.way() == Way::Open && settings.anonymous_view
        || who.way() == Way::Token && settings.shared_tokens;
    if !is_person {
        let detail = "payloads are shown to people alone: log in, or use a token that names its caller (user:…)";
        return Err(denied(StatusCode::FORBIDDEN, "person_required", detail, org, who));
    }
    if who.way() != Way::Open && !settings.operator_view && !who.has_of_its_own(org, Role::Payload) {
        let detail = format!(
            "an operator's right in all orgs opens no payloads of {org}, unless payloads.operator_view says so"
        );
        return Err(denied(StatusCode::FORBIDDEN, "role_missing", detail, org, who));
    }
    let is_recent = |at: DateTime<Utc>| api.clock.now().signed_duration_since(at) <= RECENT;
    // A configured token says itself who presents it. Of everybody else it is to be known when they said so.
    let logs_in = !matches!(who.way(), Way::Open | Way::Token);
    if logs_in && !who.auth_time().is_some_and(is_recent) {
        let detail = "it is not known that you logged in within the hour; log in again to see payloads";
        let problem = denied(StatusCode::UNAUTHORIZED, "login_again", detail, org, who);
        return Err(
            problem.challenge(r#"Bearer realm="mcpg", error="insufficient_user_authentication", max_age="3600""#)
        );
    }
    if !api.plane.captures_payloads(org) {
        return Err(denied(StatusCode::FORBIDDEN, NOT_ENTITLED, not_entitled(org), org, who));
    }
    Ok(())
}

fn is_reason(reason: &str) -> bool {
    REASON.contains(&reason.chars().count()) && !reason.chars().any(char::is_control) && !reason.trim().is_empty()
}

fn reason_required(org: &OrgName, who: &Who) -> Problem {
    let detail = r#"say why, as JSON: {"reason": "…"}, 3 to 500 characters; it is put on the ledger"#;
    denied(StatusCode::BAD_REQUEST, "reason_required", detail, org, who)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reason {
    reason: String,
}

/// Opens what was captured of a call.
pub(super) async fn view(
    State(api): State<Arc<Api>>,
    Path((org, id)): Path<(String, String)>,
    who: Who,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Payload).await?;
    may_see(&api, &org, &who)?;
    let deadline = Instant::now() + api.limits.request_timeout.as_duration();
    let mut body = Incoming::new(&headers, body);
    let mut admission = api.plane.admit(REASON_BODY).await?;
    let said = body.read(REASON_BODY, deadline, |bytes| Ok(admission.grow_to(bytes)?)).await?;
    let said = body::json::<Reason>(&said).ok().map(|said| said.reason).filter(|reason| is_reason(reason));
    let reason = said.ok_or_else(|| reason_required(&org, &who))?;
    let call = Uuid::try_parse(&id).map_err(|_| not_captured())?;
    // What is opened is held until it is sent. Of a small buffer a part will do, or nothing would ever be shown.
    admission.wait_to_grow_to(OPENING.min(api.limits.buffer_bytes.as_usize() / 2)).await?;
    let viewer = Viewer { actor: who.actor().to_owned(), reason, request_id: observe::current_id() };
    let viewed = api.plane.view_payload(&org, call, &viewer).await.map_err(|e| problem_of(e, &org, &who))?;
    let mut answer = json!({});
    for (name, opened) in [("request", viewed.request), ("response", viewed.response)] {
        if let (Some(opened), Some(members)) = (opened, answer.as_object_mut()) {
            members.insert(name.to_owned(), shown(&opened));
        }
    }
    if let (Some(seq), Some(members)) = (viewed.ledger_seq, answer.as_object_mut()) {
        members.insert("ledger_seq".to_owned(), json!(seq));
    }
    Ok(secret(Json(answer).into_response()))
}

fn shown(opened: &Opened) -> Value {
    let (name, content) = match std::str::from_utf8(opened.content.expose()) {
        Ok(text) => ("text", text.to_owned()),
        Err(_) => ("base64", BASE64.encode(opened.content.expose())),
    };
    json!({
        "content_type": opened.content_type,
        name: content,
        "truncated": opened.truncated,
        "redactions": opened.redactions,
    })
}

/// An answer that no cache may keep, and that a browser does nothing with.
fn secret(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    response
}

fn not_captured() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "not_captured", ViewError::NotCaptured.to_string())
}

fn problem_of(e: ViewError, org: &OrgName, who: &Who) -> Problem {
    match e {
        ViewError::NotCaptured => not_captured(),
        ViewError::KeyDestroyed => Problem::new(StatusCode::GONE, "key_destroyed", e.to_string()),
        ViewError::SealedForTenant => denied(StatusCode::CONFLICT, "sealed_for_tenant", e.to_string(), org, who),
        ViewError::TooMany => {
            let problem = denied(StatusCode::TOO_MANY_REQUESTS, "too_many_views", e.to_string(), org, who);
            problem.retry_after(std::time::Duration::from_secs(60))
        }
        ViewError::Damaged(_) => {
            tracing::error!(%org, error = %e, "a payload does not open");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "record_damaged", e.to_string())
        }
        ViewError::Plane(e) => e.into(),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Range {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    reason: Option<String>,
}

/// A tar of what was captured in a time.
pub(super) async fn export(
    State(api): State<Arc<Api>>,
    Path(org): Path<String>,
    range: Result<Query<Range>, axum::extract::rejection::QueryRejection>,
    who: Who,
) -> Result<Response, Problem> {
    let org = api.allow(&who, &org, Role::Payload).await?;
    may_see(&api, &org, &who)?;
    let advice = "say from and to, RFC 3339, and reason";
    let Query(range) = range.map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "invalid_parameter", advice))?;
    let reason = range.reason.filter(|reason| is_reason(reason)).ok_or_else(|| reason_required(&org, &who))?;
    let viewer = Viewer { actor: who.actor().to_owned(), reason, request_id: observe::current_id() };
    // What is gathered, and the file that is made of it.
    let _admission = api.plane.admit((2 * MOST_BYTES).min(api.limits.buffer_bytes.as_usize() / 2)).await?;
    let exported = api.plane.export_payloads(&org, range.from, range.to, &viewer).await;
    let exported = exported.map_err(|e| problem_of(e, &org, &who))?;
    let bundle = bundle(&api, &org, exported).await?;
    let mut response = bundle.into_response();
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(secret(response))
}

async fn bundle(api: &Api, org: &OrgName, exported: Vec<Exported>) -> Result<Vec<u8>, Problem> {
    let checkpoint = api.plane.ledger_file(org, crate::plane::LedgerFile::Checkpoint).await?;
    let checkpoint = checkpoint.map(|note| String::from_utf8_lossy(&note).into_owned());
    let manifest = json!({ "v": "mcpg.payload-export/1", "org": org, "vkey": api.plane.ledger_key(org).await?, "checkpoint": checkpoint });
    let mut files: std::collections::BTreeMap<String, Vec<u8>> = std::collections::BTreeMap::new();
    files.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
    for one in exported {
        let envelope = crate::payload::Digest::of(&one.envelope);
        let proof = format!("proofs/{}.json", one.ledger_seq);
        if !files.contains_key(&proof)
            && let Some(found) = api.plane.inclusion_proof(org, one.ledger_seq).await?
        {
            files.insert(proof, serde_json::to_vec(&found).map_err(|_| Problem::internal())?);
        }
        if let Some(share) = &one.share {
            files.insert(format!("shares/{envelope}"), share.expose().to_vec());
        }
        files.insert(format!("envelopes/{envelope}"), one.envelope.to_vec());
        // Of several records of one direction the one with the lowest number counts.
        let record = format!("records/{}.{}", one.invocation_id, one.direction.as_str());
        files.entry(record).or_insert_with(|| one.record.to_vec());
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o600);
        let appended = tar.append_data(&mut header, name, bytes.as_slice());
        appended.map_err(|_| Problem::internal())?;
    }
    tar.into_inner().map_err(|_| Problem::internal())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::unpack;
    use crate::ingest::Encoding;
    use crate::state::Budget;
    use crate::telemetry::metrics::Metrics;

    /// A body of a few kilobytes that unpacks to many megabytes takes no memory that was not set aside for it.
    #[tokio::test]
    async fn a_body_unpacks_to_no_more_than_there_is_room_for() {
        let budget = Budget::new(8 << 20, Arc::new(Metrics::new()));
        let packed = |bytes: usize| Bytes::from(zstd::stream::encode_all(&*vec![0_u8; bytes], 1).unwrap());
        let mut admission = Budget::admit(&budget, 0).await.unwrap();
        let bomb = packed(48 << 20);
        assert!(bomb.len() < 64 << 10, "{}", bomb.len());
        let refused = unpack(bomb, Encoding::Zstd, 64 << 20, &mut admission).await.unwrap_err();
        assert_eq!(refused.code(), "busy");
        let fits = unpack(packed(2 << 20), Encoding::Zstd, 64 << 20, &mut admission).await.unwrap();
        assert_eq!(fits.len(), 2 << 20);
        let refused = unpack(packed(2 << 20), Encoding::Zstd, 1 << 20, &mut admission).await.unwrap_err();
        assert_eq!(refused.code(), "body_too_large");
    }
}
