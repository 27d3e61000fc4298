//! Taking rows in: samples of tool calls and events for the ledger, each body whole or not at all.
//!
//! A 200 means that the rows are durable and in every later read. Until then nothing is promised, and a retry under the
//! same `Idempotency-Key`, or the same number of a lane (`Mcpg-Emitter`, `Mcpg-Sequence`, `Mcpg-After`), is safe.
//! Whether a batch is such a retry is looked up by the fingerprint of its unpacked body, before its rows are judged:
//! what was valid when it was stored is a duplicate for good, even where it would be refused now.
//!
//! Memory is set aside before it is used: for the body, then for decoding it; the latter is held until the rows are
//! acknowledged. When there is no room, the answer is 429 with `Retry-After`.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use axum::Json;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::body::Incoming;
use super::who::Who;
use super::{Api, Problem};
use crate::ingest::{
    BatchId, BatchName, DecodeContext, DecodeLimits, Encoding, Fingerprint, IngestError, InvalidId, Media, RandomIds,
    RowKind, decode, decode_events, stamp_submitter,
};
use crate::model::{OrgName, Role, micros};
use crate::plane::{Admission, PlaneError};
use crate::rollup::{Candidates, Granularity};

/// From when on keys are known, where that is less than 24 hours ago.
const KEYS_SINCE: HeaderName = HeaderName::from_static("mcpg-keys-since");

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
    #[serde(skip)]
    keys_since: Option<DateTime<Utc>>,
}

impl IntoResponse for Accepted {
    fn into_response(self) -> Response {
        let since = self.keys_since.map(|since| since.to_rfc3339_opts(SecondsFormat::Micros, true));
        let mut response = Json(self).into_response();
        if let Some(since) = since.and_then(|since| HeaderValue::try_from(since).ok()) {
            response.headers_mut().insert(KEYS_SINCE, since);
        }
        response
    }
}

/// Takes a body of rows of one kind.
pub(super) async fn take(
    api: &Arc<Api>,
    who: Result<Who, Problem>,
    org: &str,
    headers: &HeaderMap,
    body: Body,
    kind: RowKind,
) -> Result<Accepted, Problem> {
    let mut body = Incoming::new(headers, body);
    let taken = take_whole(api, who, org, headers, &mut body, kind).await;
    match taken {
        Ok(accepted) => Ok(accepted),
        Err(problem) => {
            api.metrics.ingest.refused(problem.code());
            body.discard(api.limits.body_bytes.as_usize().max(LEAST_DISCARDED)).await;
            Err(problem)
        }
    }
}

async fn take_whole(
    api: &Arc<Api>,
    who: Result<Who, Problem>,
    org: &str,
    headers: &HeaderMap,
    body: &mut Incoming,
    kind: RowKind,
) -> Result<Accepted, Problem> {
    let deadline = Instant::now() + api.limits.request_timeout.as_duration();
    let who = who?;
    let org = api.allow(&who, org, Role::Ingest).await?;
    let name = BatchName::from_headers(kind, headers)?;
    let (media, encoding) = (Media::from_headers(headers)?, Encoding::from_headers(headers)?);
    let most = api.limits.body_bytes.min(api.limits.buffer_bytes).as_usize();
    // Who has to wait for room waits before anything is held.
    let announced = body.announced().filter(|announced| *announced <= most).unwrap_or(0);
    let mut admission = api.plane.admit(announced).await?;
    let body = body.read(most, deadline, |bytes| Ok(admission.grow_to(bytes)?)).await?;
    let size = body.len();
    let mut allowance = Allowance::new(api, size, media, encoding);
    let (body, fingerprint) = unpack(api, body, encoding, name.is_some(), &mut allowance, &mut admission).await?;
    let id = name.zip(fingerprint).map(|(name, body)| name.with_body(body));
    let known = match &id {
        Some(id) => in_time(deadline, lookup(api, &org, id)).await?,
        None => None,
    };
    let batch = decode_within(api, &org, body, (kind, media), who.label(), &mut allowance, &mut admission).await;
    if let Some(keys_since) = known {
        api.metrics.ingest.duplicates.inc();
        // Its rows are counted for the answer alone: none are counted where they would not be valid any more.
        let accepted = batch.map_or(0, |batch| batch.num_rows());
        return Ok(Accepted { accepted, duplicate: true, keys_since });
    }
    let (batch, now) = (batch?, micros(api.clock.now()));
    let (late, candidates) = match kind {
        RowKind::Sample => (late(&batch, now), Candidates::of(&batch, now)),
        RowKind::Event => (0, Candidates::default()),
    };
    let ack = in_time(deadline, api.plane.append(&org, kind, batch, id, admission)).await?;
    if ack.duplicate {
        api.metrics.ingest.duplicates.inc();
    } else {
        match kind {
            RowKind::Sample => {
                api.metrics.ingest.accepted(format_name(media), ack.accepted as u64, size as u64);
                api.metrics.ingest.late.inc_by(late);
                let most = usize::try_from(api.limits.series).unwrap_or(usize::MAX);
                api.exemplars.take(&org, candidates, now, most);
            }
            RowKind::Event => api.metrics.audit.events.inc_by(ack.accepted as u64),
        }
    }
    let keys_since = matches!(id, Some(BatchId::Key { .. })).then(|| api.plane.keys_since(&org)).flatten();
    Ok(Accepted { accepted: ack.accepted, duplicate: ack.duplicate, keys_since })
}

/// Samples that no gauge of the hour shows: they began before the window that is shown beside the open one.
fn late(batch: &RecordBatch, now: i64) -> u64 {
    let shown = Granularity::Hour.window_start(now) - Granularity::Hour.width();
    let started =
        batch.column_by_name("started_at").and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    started.map_or(0, |started| started.values().iter().filter(|at| **at < shown).count() as u64)
}

/// What the plane answers, if it does until `deadline`.
pub(super) async fn in_time<T>(
    deadline: Instant,
    answer: impl Future<Output = Result<T, PlaneError>>,
) -> Result<T, PlaneError> {
    timeout_at(deadline, answer).await.unwrap_or_else(|_| {
        Err(PlaneError::Unavailable {
            reason: "the rows did not become durable in time; they may yet, so retry under the same key or number"
                .to_owned(),
            retry_after: Duration::from_secs(5),
        })
    })
}

/// Whether a batch is stored already: if so, from when on keys are known where that is less than 24 hours ago.
///
/// # Errors
/// 422 when its key, 409 when its number was used for another body.
async fn lookup(api: &Api, org: &OrgName, id: &BatchId) -> Result<Option<Option<DateTime<Utc>>>, PlaneError> {
    Ok(api.plane.is_stored(org, id).await?.then(|| api.plane.keys_since(org)))
}

impl From<InvalidId> for Problem {
    fn from(error: InvalidId) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.code(), error.to_string())
    }
}

/// The memory that a body may take, raised while it turns out to be too little.
#[derive(Debug)]
struct Allowance {
    /// The bytes of the body as it was sent.
    size: usize,
    /// What it is allowed to unpack to.
    bound: usize,
    /// The most that it may be allowed to. What even an empty buffer could not hold is too large, rather than asked to
    /// come again for ever.
    most: usize,
}

impl Allowance {
    fn new(api: &Api, size: usize, media: Media, encoding: Encoding) -> Self {
        let room = api.limits.buffer_bytes.as_usize().saturating_sub(size) / COPIES;
        let most = api.limits.decoded_bytes.as_usize().min(room);
        Self { size, bound: size.saturating_mul(expansion(media, encoding)).max(LEAST_DECODED).min(most), most }
    }

    /// Whether the work is for a thread of its own.
    fn is_large(&self) -> bool {
        self.bound > LEAST_DECODED.max(INLINE)
    }

    /// Sets the memory aside.
    async fn reserve(&self, admission: &mut Admission) -> Result<(), PlaneError> {
        admission.wait_to_grow_to(self.bound.saturating_mul(COPIES).saturating_add(self.size)).await
    }

    /// Allows more, if that is possible.
    fn raise(&mut self) -> bool {
        let before = self.bound;
        self.bound = before.saturating_mul(MORE).min(self.most);
        before < self.bound
    }
}

/// Its turn comes first, and then the memory: else bodies that are not decoded yet would hold it for nothing.
async fn turn<'a>(api: &'a Api, allowance: &Allowance) -> Result<Option<SemaphorePermit<'a>>, IngestError> {
    match allowance.is_large().then(|| api.decoders.acquire()) {
        Some(permit) => Ok(Some(permit.await.map_err(|error| IngestError::Internal(error.to_string()))?)),
        None => Ok(None),
    }
}

/// Runs work here when it is quick, else on a thread for blocking work.
async fn somewhere<T: Send + 'static>(
    is_large: bool,
    work: impl FnOnce() -> Result<T, IngestError> + Send + 'static,
) -> Result<T, IngestError> {
    if !is_large {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(IngestError::Internal(error.to_string())))
}

/// Unpacks a body with the memory that one of its kind is expected to need; if that was too little, again with more, up
/// to what is allowed. Gives its fingerprint too if the batch has a name.
async fn unpack(
    api: &Api,
    body: Bytes,
    encoding: Encoding,
    named: bool,
    allowance: &mut Allowance,
    admission: &mut Admission,
) -> Result<(Bytes, Option<Fingerprint>), Problem> {
    if encoding == Encoding::Identity && !named {
        return Ok((body, None));
    }
    let _turn = turn(api, allowance).await?;
    loop {
        allowance.reserve(admission).await?;
        let (packed, limit) = (body.clone(), allowance.bound);
        let work = move || {
            let unpacked = encoding.unpack(&packed, limit)?;
            let fingerprint = named.then(|| Fingerprint::of(&unpacked));
            Ok((unpacked, fingerprint))
        };
        match somewhere(allowance.is_large(), work).await {
            Err(IngestError::TooLarge(_)) if allowance.raise() => {}
            unpacked => return Ok(unpacked?),
        }
    }
}

/// Decodes an unpacked body in the same way. Afterwards no more is set aside than the rows take.
async fn decode_within(
    api: &Api,
    org: &OrgName,
    body: Bytes,
    (kind, media): (RowKind, Media),
    submitter: Option<&str>,
    allowance: &mut Allowance,
    admission: &mut Admission,
) -> Result<RecordBatch, Problem> {
    let max_rows = usize::try_from(api.limits.batch_rows).unwrap_or(usize::MAX);
    let decode = match kind {
        RowKind::Sample => decode,
        RowKind::Event => decode_events,
    };
    let _turn = turn(api, allowance).await?;
    loop {
        allowance.reserve(admission).await?;
        let (body, org, now, submitter) = (body.clone(), org.clone(), api.clock.now(), submitter.map(str::to_owned));
        let limits = DecodeLimits { max_decoded_bytes: allowance.bound, max_rows };
        let work = move || {
            let context = DecodeContext { org: &org, now, limits };
            let batch = decode(&body, media, Encoding::Identity, &context, &mut RandomIds::default())?;
            match submitter {
                Some(submitter) if kind == RowKind::Event => stamp_submitter(&batch, &submitter),
                _ => Ok(batch),
            }
        };
        match somewhere(allowance.is_large(), work).await {
            Err(IngestError::TooLarge(_)) if allowance.raise() => {}
            decoded => {
                let batch = decoded?;
                admission.shrink_to(batch.get_array_memory_size());
                return Ok(batch);
            }
        }
    }
}

/// The format's name as a label.
const fn format_name(media: Media) -> &'static str {
    match media {
        Media::Ndjson => "ndjson",
        Media::Json => "json",
        Media::ArrowStream => "arrow",
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use chrono::DateTime;

    use super::Accepted;

    #[test]
    fn an_answer_says_since_when_keys_are_known_only_where_they_are_known_for_less_than_a_day() {
        let answer = |keys_since| Accepted { accepted: 2, duplicate: false, keys_since }.into_response();
        assert!(!answer(None).headers().contains_key("mcpg-keys-since"));
        let since = DateTime::from_timestamp_micros(1_800_000_000_000_001);
        assert_eq!(answer(since).headers()["mcpg-keys-since"], "2027-01-15T08:00:00.000001Z");
    }
}
