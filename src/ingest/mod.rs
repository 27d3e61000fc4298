//! Request bodies to canonical record batches, whole or not at all; idempotency keys.
//!
//! ```text
//! body ─ unpack (encoding) ─▶ NDJSON ─┐
//!                             JSON   ─┼─▶ columns ─▶ judge (validate) ─▶ fill what lacks (completion) ─▶ canonical batch
//!                             Arrow  ─┘
//! ```
//!
//! A canonical batch has exactly the schema of `schemas/tool_invocations.sql`, every column filled: `org` from the
//! path, `ingested_at` from the clock, `date` from `started_at`, ids minted where they lack.
//!
//! What a body may carry: the fields of that schema. `org` must equal the path's. `ingested_at` and `date` are taken
//! and passed over, since they are ours to fill. `error_message` may stand in for `error_hash`; it is hashed as soon as
//! it is read, and dropped. Any other field is refused, since a misspelt name would lose data in silence.
//!
//! Invariants: nothing a body holds makes this panic, run long or take memory beyond a small multiple of
//! [`DecodeLimits::max_decoded_bytes`] (I7); no error repeats a value (I6). There is no state, so a crash leaves none.

mod arrow_guard;
mod arrow_stream;
mod arrow_values;
mod canonical;
mod column_builder;
mod completion;
mod detail;
mod draft;
mod encoding;
mod error;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod hostile;
mod ids;
mod json;
mod key;
mod layout;
mod media;
mod names;
mod ndjson;
mod plaintext;
mod rows;
mod timestamp;
mod validate;
mod value;

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::{Date32Type, Fields, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::{DateTime, Utc};

pub use detail::stamp_submitter;
pub use encoding::Encoding;
pub use error::{IngestError, MAX_LISTED_ERRORS, RowKind, SampleError};
pub use ids::{IdSource, RandomIds};
pub use key::{
    AFTER, BatchId, BatchName, EMITTER, Fingerprint, IDEMPOTENCY_KEY, IdempotencyKey, InvalidId, InvalidKey, Lane,
    SEQUENCE,
};
pub use media::Media;

use crate::model::OrgName;
use layout::Layout;
pub use names::is_unseen;
use rows::RowBuilder;
pub use validate::{OWN_ACTOR, REPAIR_ACTOR, is_action};

/// Bounds on one body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// The most bytes of a body once unpacked, and of an Arrow stream's columns once they are.
    pub max_decoded_bytes: usize,
    /// The most samples of a body.
    pub max_rows: usize,
}

impl Default for DecodeLimits {
    /// 64 MiB and 262,144 samples.
    fn default() -> Self {
        Self { max_decoded_bytes: 64 << 20, max_rows: 1 << 18 }
    }
}

/// What a body is judged against.
#[derive(Debug, Clone, Copy)]
pub struct DecodeContext<'a> {
    /// The org of the request's path.
    pub org: &'a OrgName,
    /// The time now: it is stamped on the samples, and the bound of theirs.
    pub now: DateTime<Utc>,
    /// Bounds on the body.
    pub limits: DecodeLimits,
}

/// The schema of what an emitter sends: the canonical one less the columns that the control plane fills whatever it is
/// sent.
///
/// # Errors
/// [`IngestError::Internal`] when the DDL compiled into the program does not parse.
pub fn emitted_schema() -> Result<SchemaRef, IngestError> {
    let layout = Layout::samples()?;
    let emitted = layout.columns.iter().zip(layout.schema.fields()).filter(|(column, _)| !column.rule.is_stamped());
    Ok(Arc::new(Schema::new(emitted.map(|(_, field)| Arc::clone(field)).collect::<Fields>())))
}

/// Decodes and judges a body: gives the canonical batch of all of its samples, of which there is at least one.
///
/// It computes for up to some hundred milliseconds and never waits, so it belongs on a thread for blocking work.
///
/// # Errors
/// See [`IngestError`]; nothing of the body is to be stored then.
pub fn decode(
    body: &Bytes,
    media: Media,
    encoding: Encoding,
    context: &DecodeContext<'_>,
    ids: &mut dyn IdSource,
) -> Result<RecordBatch, IngestError> {
    let batch = decode_rows(Layout::samples()?, body, media, encoding, context, ids)?;
    check_days(&batch)?;
    Ok(batch)
}

/// The days of `started_at` that a batch may touch: each becomes a file of its own at a flush.
pub const MOST_DAYS: usize = 40;

fn check_days(batch: &RecordBatch) -> Result<(), IngestError> {
    let dates = batch.column_by_name("date").and_then(|column| column.as_primitive_opt::<Date32Type>());
    let days: HashSet<i32> = dates.into_iter().flat_map(|dates| dates.values().iter().copied()).collect();
    if days.len() <= MOST_DAYS {
        return Ok(());
    }
    let found = days.len();
    Err(IngestError::TooLarge(format!(
        "the samples started on {found} days, and those of one batch may start on at most {MOST_DAYS}; send smaller batches"
    )))
}

/// Decodes and judges a body of audit events, NDJSON or JSON: gives a batch of the schema [`audit_event`], complete but
/// for the events' places in the ledger.
///
/// [`audit_event`]: crate::model::schema::Schemas::audit_event
///
/// # Errors
/// See [`IngestError`]; nothing of the body is to be stored then.
pub fn decode_events(
    body: &Bytes,
    media: Media,
    encoding: Encoding,
    context: &DecodeContext<'_>,
    ids: &mut dyn IdSource,
) -> Result<RecordBatch, IngestError> {
    if media == Media::ArrowStream {
        let advice = "events come as application/x-ndjson or application/json";
        return Err(IngestError::UnsupportedMediaType(advice.to_owned()));
    }
    decode_rows(Layout::events()?, body, media, encoding, context, ids)
}

/// Judges and completes events of the control plane's own, NDJSON: as [`decode_events`], but they may be of any actor
/// and any action, the ledger's own among them.
///
/// # Errors
/// See [`IngestError`].
pub fn complete_own_events(
    lines: &Bytes,
    context: &DecodeContext<'_>,
    ids: &mut dyn IdSource,
) -> Result<RecordBatch, IngestError> {
    decode_rows(Layout::own_events()?, lines, Media::Ndjson, Encoding::Identity, context, ids)
}

fn decode_rows(
    layout: &'static Layout,
    body: &Bytes,
    media: Media,
    encoding: Encoding,
    context: &DecodeContext<'_>,
    ids: &mut dyn IdSource,
) -> Result<RecordBatch, IngestError> {
    let body = encoding.unpack(body, context.limits.max_decoded_bytes)?;
    if body.trim_ascii().is_empty() {
        return Err(IngestError::EmptyBatch(layout.kind));
    }
    let rows = || RowBuilder::new(layout, context.org.as_str(), body.len(), context.limits.max_rows);
    let draft = match media {
        Media::Ndjson => ndjson::decode(&body, rows())?.finish()?,
        Media::Json => json::decode(&body, rows())?.finish()?,
        Media::ArrowStream => arrow_stream::decode(body, layout, context)?,
    };
    validate::seal(draft, layout, context, ids)
}
