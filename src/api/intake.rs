//! Taking rows in: samples of tool calls and events for the ledger, each body whole or not at all.
//!
//! A 200 means that the rows are durable and in every later read. Until then nothing is promised, and a retry under
//! the same `Idempotency-Key` is safe. Memory is set aside before it is used: for the body, then for decoding it; the
//! latter is held until the rows are acknowledged. When there is none, the answer is 429 with `Retry-After`.

use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use bytes::Bytes;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use super::body::Incoming;
use super::{Api, Problem};
use crate::ingest::{
    DecodeContext, DecodeLimits, Encoding, IdempotencyKey, IngestError, Media, RandomIds, RowKind, decode,
    decode_events,
};
use crate::model::{OrgName, Role};
use crate::plane::{Admission, PlaneError};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// Bodies up to this many bytes are decoded where they are; the way to another thread would cost more.
const INLINE: usize = 16 << 10;

/// How many times its size a body is at first expected to have, once unpacked: text as it is, an Arrow stream with its
/// dictionaries written out, gzip and zstd.
const fn expansion(media: Media, encoding: Encoding) -> usize {
    match (encoding, media) {
        (Encoding::Identity, Media::Ndjson | Media::Json) => 1,
        (Encoding::Identity, Media::ArrowStream) => 2,
        (Encoding::Gzip | Encoding::Zstd, _) => 16,
    }
}

/// By how much more a body that unpacks to more than that is allowed when it is decoded again.
const MORE: usize = 4;

/// What is set aside for each unpacked byte: the byte itself, and its share of the columns made of it.
const COPIES: usize = 2;

/// So much of a refused body is read all the same, so that its sender comes to read the answer.
const LEAST_DISCARDED: usize = 8 << 20;

/// The least that a body is allowed to unpack to.
const LEAST_DECODED: usize = 64 << 10;

/// The answer to rows that are durable.
#[derive(Debug, Serialize)]
pub(super) struct Accepted {
    accepted: usize,
    duplicate: bool,
}

/// Takes a body of rows of one kind.
pub(super) async fn take(
    api: &Arc<Api>,
    org: &str,
    headers: &HeaderMap,
    body: Body,
    kind: RowKind,
) -> Result<Json<Accepted>, Problem> {
    let mut body = Incoming::new(headers, body);
    let taken = take_whole(api, org, headers, &mut body, kind).await;
    match taken {
        Ok(accepted) => Ok(Json(accepted)),
        Err(problem) => {
            api.metrics.ingest.refused(problem.code());
            body.discard(api.limits.body_bytes.as_usize().max(LEAST_DISCARDED)).await;
            Err(problem)
        }
    }
}

async fn take_whole(
    api: &Arc<Api>,
    org: &str,
    headers: &HeaderMap,
    body: &mut Incoming,
    kind: RowKind,
) -> Result<Accepted, Problem> {
    let deadline = Instant::now() + api.limits.request_timeout.as_duration();
    let org = api.access.allow(headers, org, Role::Ingest)?;
    tracing::Span::current().record("org", org.as_str());
    let key = idempotency_key(headers, kind)?;
    let (media, encoding) = (Media::from_headers(headers)?, Encoding::from_headers(headers)?);
    let most = api.limits.body_bytes.min(api.limits.buffer_bytes).as_usize();
    // Who has to wait for room waits before anything is held.
    let announced = body.announced().filter(|announced| *announced <= most).unwrap_or(0);
    let mut admission = api.plane.admit(announced).await?;
    let body = body.read(most, deadline, |bytes| Ok(admission.grow_to(bytes)?)).await?;
    let size = body.len();
    let batch = decode_within_bounds(api, &org, body, (kind, media, encoding), &mut admission).await?;
    let appended = api.plane.append(&org, kind, batch, key, admission);
    let ack = timeout_at(deadline, appended).await.unwrap_or_else(|_| {
        Err(PlaneError::Unavailable {
            reason: "the rows did not become durable in time; they may yet, so retry under the same Idempotency-Key"
                .to_owned(),
            retry_after: Duration::from_secs(5),
        })
    })?;
    if ack.duplicate {
        api.metrics.ingest.duplicates.inc();
    } else {
        match kind {
            RowKind::Sample => {
                api.metrics.ingest.accepted(format_name(media), ack.accepted as u64, size as u64);
            }
            RowKind::Event => api.metrics.audit.events.inc_by(ack.accepted as u64),
        }
    }
    Ok(Accepted { accepted: ack.accepted, duplicate: ack.duplicate })
}

/// The most that a body of `size` bytes may unpack to. What even an empty buffer could not hold is too large, rather than
/// asked to come again for ever.
fn most_decoded(api: &Api, size: usize) -> usize {
    let room = api.limits.buffer_bytes.as_usize().saturating_sub(size) / COPIES;
    api.limits.decoded_bytes.as_usize().min(room)
}

/// What a body of `size` bytes is at first allowed to unpack to.
fn decode_bound(api: &Api, size: usize, media: Media, encoding: Encoding) -> usize {
    size.saturating_mul(expansion(media, encoding)).max(LEAST_DECODED).min(most_decoded(api, size))
}

/// What a body is, and how it is written down.
type Form = (RowKind, Media, Encoding);

/// Decodes with the memory that a body of its kind is expected to need; if that was too little, again with more, up to
/// what is allowed. Afterwards no more is set aside than the samples take.
async fn decode_within_bounds(
    api: &Arc<Api>,
    org: &OrgName,
    body: Bytes,
    form: Form,
    admission: &mut Admission,
) -> Result<RecordBatch, Problem> {
    let (_, media, encoding) = form;
    let most = most_decoded(api, body.len());
    let max_rows = usize::try_from(api.limits.batch_rows).unwrap_or(usize::MAX);
    let mut bound = decode_bound(api, body.len(), media, encoding);
    // Its turn comes first, and then the memory: else bodies that are not decoded yet would hold it for nothing.
    let large = bound > LEAST_DECODED.max(INLINE);
    let _permit = match large.then(|| api.decoders.acquire()) {
        Some(permit) => Some(permit.await.map_err(|error| IngestError::Internal(error.to_string()))?),
        None => None,
    };
    loop {
        admission.wait_to_grow_to(bound.saturating_mul(COPIES).saturating_add(body.len())).await?;
        let limits = DecodeLimits { max_decoded_bytes: bound, max_rows };
        match decode_somewhere(api, org, body.clone(), form, limits).await {
            Err(IngestError::TooLarge(_)) if bound < most => bound = bound.saturating_mul(MORE).min(most),
            decoded => {
                let batch = decoded?;
                drop(body);
                admission.shrink_to(batch.get_array_memory_size());
                return Ok(batch);
            }
        }
    }
}

/// Decodes here when that is quick, else on a thread for blocking work.
async fn decode_somewhere(
    api: &Arc<Api>,
    org: &OrgName,
    body: Bytes,
    (kind, media, encoding): Form,
    limits: DecodeLimits,
) -> Result<RecordBatch, IngestError> {
    let (now, org) = (api.clock.now(), org.clone());
    let decode = match kind {
        RowKind::Sample => decode,
        RowKind::Event => decode_events,
    };
    let work = move || {
        let context = DecodeContext { org: &org, now, limits };
        decode(&body, media, encoding, &context, &mut RandomIds::default())
    };
    if limits.max_decoded_bytes <= LEAST_DECODED.max(INLINE) {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(IngestError::Internal(error.to_string())))
}

/// The key that makes a retry store nothing twice.
fn idempotency_key(headers: &HeaderMap, kind: RowKind) -> Result<Option<IdempotencyKey>, Problem> {
    let invalid = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "invalid_idempotency_key", detail);
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(invalid("several Idempotency-Key headers; send one".to_owned()));
    }
    IdempotencyKey::new(kind, value.as_bytes()).map(Some).map_err(|error| invalid(error.to_string()))
}

/// The format's name as a label.
const fn format_name(media: Media) -> &'static str {
    match media {
        Media::Ndjson => "ndjson",
        Media::Json => "json",
        Media::ArrowStream => "arrow",
    }
}
