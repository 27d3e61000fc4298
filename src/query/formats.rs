//! Answers as bodies: JSON, NDJSON, CSV, an Arrow stream, or Parquet, each made as the rows come.
//!
//! A status line cannot be taken back once a body has begun, so [`begin`] makes the first [`HEAD_BYTES`] of it, or all if it is
//! shorter, before it returns: whatever fails by then still gets its own status. Such beginnings wait in memory for their clients, also after
//! their queries have ended, so all together are bounded ([`HeadRoom`]); where there is no room, a body begins earlier. What fails later ends the body with an error, which the
//! server must turn into a broken transfer, never into an orderly end. Each format also has an end of its own that a cut-off body
//! lacks, CSV and NDJSON excepted.
//!
//! In text formats a timestamp is RFC 3339 in UTC with microseconds as needed, a date `YYYY-MM-DD`, bytes are lower-case
//! hexadecimal, a decimal is a JSON number, NaN and the infinities are null in JSON. In Arrow and Parquet strings are plain `Utf8`.

mod arrow;
mod cell;
mod csv;
mod json;
mod parquet;

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use ::arrow::datatypes::Schema;
use ::arrow::record_batch::RecordBatch;

use super::{QueryError, QueryResult};

/// How much of a body is made before the response is begun.
pub const HEAD_BYTES: usize = 16 << 20;

/// How much of a body a chunk holds, about.
const CHUNK_BYTES: usize = 64 << 10;

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One object: `{"columns":[{"name","type"}],"rows":[[…]]}`.
    Json,
    /// An object a line.
    NdJson,
    /// RFC 4180, with a header line; null is an empty field, an empty string `""`.
    Csv,
    /// An Arrow IPC stream.
    Arrow,
    /// A Parquet file.
    Parquet,
}

impl Format {
    /// Every format, the one preferred among equals first.
    pub const ALL: [Self; 5] = [Self::Json, Self::NdJson, Self::Csv, Self::Arrow, Self::Parquet];

    /// The media type, as in `Content-Type`.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::NdJson => "application/x-ndjson",
            Self::Csv => "text/csv; charset=utf-8",
            Self::Arrow => "application/vnd.apache.arrow.stream",
            Self::Parquet => "application/vnd.apache.parquet",
        }
    }

    /// The format that an `Accept` header (RFC 9110, section 12.5.1) likes best; JSON without one.
    ///
    /// # Errors
    /// [`QueryError::NotAcceptable`] when it rules out all of them.
    pub fn negotiate(accept: Option<&str>) -> Result<Self, QueryError> {
        let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else {
            return Ok(Self::Json);
        };
        let ranges: Vec<(&str, f32)> = accept.split(',').map(media_range).collect();
        let mut best: Option<(Self, f32)> = None;
        for format in Self::ALL {
            let quality = quality(&ranges, format);
            if quality > best.map_or(0.0, |(_, quality)| quality) {
                best = Some((format, quality));
            }
        }
        best.map(|(format, _)| format).ok_or_else(|| QueryError::NotAcceptable { accept: accept.to_owned() })
    }

    fn encoder(self, schema: &Schema) -> Result<Box<dyn Encoder>, QueryError> {
        Ok(match self {
            Self::Json => Box::new(json::Object::new(schema)),
            Self::NdJson => Box::new(json::Lines),
            Self::Csv => Box::new(csv::Lines::new(schema)),
            Self::Arrow => Box::new(arrow::Stream::new(schema)?),
            Self::Parquet => Box::new(parquet::File::new(schema)?),
        })
    }
}

/// A media range and its quality.
fn media_range(text: &str) -> (&str, f32) {
    let mut parts = text.split(';').map(str::trim);
    let range = parts.next().unwrap_or_default();
    let quality = parts.find_map(|parameter| parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q=")));
    (range, quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
}

/// The quality of the most specific range that a format falls in, 0 if none does.
fn quality(ranges: &[(&str, f32)], format: Format) -> f32 {
    let media_type = format.content_type().split(';').next().unwrap_or_default();
    let specificity = |range: &str| -> Option<u8> {
        if range.eq_ignore_ascii_case(media_type)
            || (format == Format::NdJson && range.eq_ignore_ascii_case("application/ndjson"))
        {
            return Some(2);
        }
        let (kind, subtype) = range.split_once('/')?;
        match (kind, subtype) {
            ("*", "*") => Some(0),
            (kind, "*") => media_type.split('/').next().is_some_and(|own| own.eq_ignore_ascii_case(kind)).then_some(1),
            _ => None,
        }
    };
    let fitting = ranges.iter().filter_map(|(range, quality)| Some((specificity(range)?, *quality)));
    fitting.max_by_key(|(specificity, _)| *specificity).map_or(0.0, |(_, quality)| quality)
}

/// Makes a body of batches. It writes into a buffer that its caller empties at will.
trait Encoder: Send {
    /// What comes before the rows.
    fn start(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError>;
    /// Some rows.
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError>;
    /// What comes after the rows.
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError>;
}

/// A body, begun.
pub type Body = BoxStream<'static, Result<Bytes, QueryError>>;

/// Begins the body of an answer: makes the first [`HEAD_BYTES`] of it, or all of it, and returns the media type and the body.
///
/// # Errors
/// Whatever the query or the encoding fails with by then. Later failures are the last item of the body: then the transfer
/// must be broken off, so that nobody takes what came for the whole.
pub async fn begin(result: QueryResult, format: Format) -> Result<(&'static str, Body), QueryError> {
    let encoder = format.encoder(&result.schema)?;
    let room = result.room.clone();
    let mut body = encode(encoder, result);
    let mut head = Vec::new();
    let mut bytes = 0;
    while bytes < HEAD_BYTES {
        let Some(chunk) = body.try_next().await? else {
            return Ok((format.content_type(), told(head)));
        };
        bytes += chunk.len();
        let place = room.take(chunk.len());
        let room_is_left = place.is_some();
        head.push((chunk, place));
        if !room_is_left {
            break;
        }
    }
    Ok((format.content_type(), told(head).chain(body).boxed()))
}

/// The head of a body, each chunk giving its place back as it is sent.
fn told(head: Vec<(Bytes, Option<OwnedSemaphorePermit>)>) -> Body {
    stream::iter(head).map(|(chunk, _)| Ok(chunk)).boxed()
}

/// The memory that the beginnings of all bodies together may take while they wait to be sent.
#[derive(Debug, Clone)]
pub struct HeadRoom(Arc<Semaphore>);

impl HeadRoom {
    /// Room for `bytes`.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new((bytes / 1024).min(Semaphore::MAX_PERMITS))))
    }

    /// A place for a chunk, in whole KiB, if there is room.
    fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kibibytes = u32::try_from(bytes / 1024 + 1).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(kibibytes).ok()
    }
}

struct Encoding {
    encoder: Box<dyn Encoder>,
    rows: BoxStream<'static, Result<RecordBatch, QueryError>>,
    begun: bool,
}

/// The body, chunk by chunk; an error is its last item.
fn encode(encoder: Box<dyn Encoder>, result: QueryResult) -> Body {
    let encoding = Encoding { encoder, rows: result.stream, begun: false };
    stream::unfold(Some(encoding), |encoding| async move {
        let mut encoding = encoding?;
        let mut out = Vec::with_capacity(CHUNK_BYTES);
        match encoding.fill(&mut out).await {
            Ok(true) => Some((Ok(Bytes::from(out)), Some(encoding))),
            Ok(false) => Some((Ok(Bytes::from(out)), None)),
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

impl Encoding {
    /// Fills a chunk; false when it is the last one.
    async fn fill(&mut self, out: &mut Vec<u8>) -> Result<bool, QueryError> {
        if !self.begun {
            self.begun = true;
            self.encoder.start(out)?;
        }
        while out.len() < CHUNK_BYTES {
            match self.rows.try_next().await? {
                Some(batch) => self.encoder.batch(&batch, out)?,
                None => {
                    self.encoder.finish(out)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
