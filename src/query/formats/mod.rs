//! Answers as bodies: JSON, NDJSON, CSV, an Arrow stream, or Parquet, each made as the rows come, on the threads that
//! queries run on, and charged to their query.
//!
//! A status line cannot be taken back once a body has begun, so [`begin`] makes the first [`HEAD_BYTES`] of it, or all
//! if it is shorter, before it returns: what fails until then still gets its own status. Such beginnings wait in memory
//! for their clients, also after their queries have ended, so all together are bounded ([`HeadRoom`]); where there is
//! no room, a body begins earlier. What fails later ends the body with an error, which the server must turn into a
//! broken transfer, never into an orderly end; JSON and NDJSON say before it, in a member `error`, what it was. Batches
//! are cut into pieces before they are written, so that a chunk is never far larger than `CHUNK_BYTES`.
//!
//! In text formats a timestamp is RFC 3339 in UTC with as many digits as it needs, a date `YYYY-MM-DD`, bytes are
//! lower-case hexadecimal, a decimal is a JSON number, NaN and the infinities are null in JSON. Numbers that a double
//! cannot hold are strings where [`Options::text_numbers`] asks for it. In CSV a text that a spreadsheet would take for
//! a formula begins with an apostrophe, unless [`Options::raw_csv`] says otherwise. In Arrow and Parquet strings are
//! plain `Utf8`. Columns of one name are numbered: `n`, `n_2`, `n_3`.

mod arrow;
mod cell;
mod coding;
mod csv;
mod json;
mod parquet;

use std::sync::Arc;

use bytes::Bytes;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::AbortHandle;
use tracing::{Instrument, Span};

use ::arrow::datatypes::Schema;
use ::arrow::record_batch::RecordBatch;

pub use self::coding::Coding;
use self::coding::{Compressor, not_compressed};
use super::{QueryError, QueryResult, types};

/// How much of a body is made before the response is begun.
pub const HEAD_BYTES: usize = 16 << 20;

/// How much of a body a chunk holds, about.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks that wait for the client before the making of a body pauses.
const CHUNKS_AHEAD: usize = 2;

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

    /// Whether it is compressed as it is.
    const fn is_compressed(self) -> bool {
        matches!(self, Self::Parquet)
    }

    fn encoder(self, schema: &Schema, options: Options) -> Result<Box<dyn Encoder>, QueryError> {
        Ok(match self {
            Self::Json => Box::new(json::Object::new(schema, options.text_numbers)),
            Self::NdJson => Box::new(json::Lines::new(schema, options.text_numbers)?),
            Self::Csv => Box::new(csv::Lines::new(schema, options.raw_csv)),
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

/// How an answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// In which form.
    pub format: Format,
    /// How it is compressed, unless its form is compressed already.
    pub coding: Option<Coding>,
    /// In CSV, whether texts are written as they are, though a spreadsheet may take them for formulas.
    pub raw_csv: bool,
    /// In JSON and NDJSON, whether whole numbers and decimals that a double cannot hold are strings.
    pub text_numbers: bool,
}

impl From<Format> for Options {
    fn from(format: Format) -> Self {
        Self { format, coding: None, raw_csv: false, text_numbers: false }
    }
}

/// Makes a body of batches. It writes into a buffer that its caller empties at will.
trait Encoder: Send {
    /// What comes before the rows.
    fn start(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError>;
    /// Some rows.
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<(), QueryError>;
    /// What comes after the rows.
    fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError>;
    /// What says that no more rows come, and why, where the form has a way to say it.
    fn fail(&mut self, _: &QueryError, _: &mut Vec<u8>) {}
    /// Bytes that it holds itself.
    fn held(&self) -> usize {
        0
    }
}

/// A body, begun.
pub type Body = BoxStream<'static, Result<Bytes, QueryError>>;

/// The beginning of an answer.
pub struct Begun {
    /// The media type.
    pub content_type: &'static str,
    /// How it is compressed.
    pub coding: Option<Coding>,
    /// All of it, whole or not.
    pub body: Body,
    /// The length of all of it in bytes, if it is made already.
    pub whole: Option<usize>,
}

/// Begins the body of an answer: makes the first [`HEAD_BYTES`] of it, or all of it.
///
/// # Errors
/// An error of the query or of the encoding until then. Later failures are the last item of the body: then the transfer
/// must be broken off, so that what came is not taken for the whole.
pub async fn begin(result: QueryResult, options: impl Into<Options>) -> Result<Begun, QueryError> {
    let mut options: Options = options.into();
    if options.format.is_compressed() {
        options.coding = None;
    }
    let room = result.room.clone();
    let mut body = encode(result, options)?;
    let (content_type, coding) = (options.format.content_type(), options.coding);
    let mut head = Vec::new();
    let mut bytes = 0;
    while bytes < HEAD_BYTES {
        let Some(chunk) = body.try_next().await? else {
            return Ok(Begun { content_type, coding, body: told(head), whole: Some(bytes) });
        };
        bytes += chunk.len();
        let place = room.take(chunk.len());
        let room_is_left = place.is_some();
        head.push((chunk, place));
        if !room_is_left {
            break;
        }
    }
    Ok(Begun { content_type, coding, body: told(head).chain(body).boxed(), whole: None })
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

/// What the making of a body sends: a chunk, the end, or a failure. A channel that closes before the end means that it
/// died.
type Piece = Result<Option<Bytes>, QueryError>;

struct Encoding {
    encoder: Box<dyn Encoder>,
    compressor: Option<Compressor>,
    rows: BoxStream<'static, Result<RecordBatch, QueryError>>,
    chunks: mpsc::Sender<Piece>,
    memory: MemoryReservation,
    out: Vec<u8>,
}

/// Stops a task when it is dropped.
struct Stops(AbortHandle);

impl Drop for Stops {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body, chunk by chunk; an error is its last item.
fn encode(result: QueryResult, options: Options) -> Result<Body, QueryError> {
    let schema = types::with_names_apart(&result.schema);
    let compressor = options.coding.map(Coding::compressor).transpose().map_err(|error| not_compressed(&error))?;
    let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
    let encoding = Encoding {
        encoder: options.format.encoder(&schema, options)?,
        compressor,
        rows: result.stream,
        chunks: sender,
        memory: MemoryConsumer::new("answer").register(&result.memory),
        out: Vec::with_capacity(CHUNK_BYTES),
    };
    let making = result.workers.spawn(encoding.run().instrument(Span::current()));
    let stops = Stops(making.abort_handle());
    let chunks = stream::unfold(Some((chunks, stops)), |making| async move {
        let (mut chunks, stops) = making?;
        match chunks.recv().await {
            Some(Ok(Some(chunk))) => Some((Ok(chunk), Some((chunks, stops)))),
            Some(Ok(None)) => None,
            Some(Err(error)) => Some((Err(error), None)),
            None => Some((Err(QueryError::Internal), None)),
        }
    });
    Ok(chunks.boxed())
}

impl Encoding {
    /// Makes the body until its end, or until its reader has left.
    async fn run(mut self) {
        let last = match self.all().await {
            Ok(true) => Ok(None),
            Ok(false) => return,
            Err(error) => {
                self.out.clear();
                self.encoder.fail(&error, &mut self.out);
                // Whatever comes of it, the error itself comes next.
                drop(self.hand_over(true).await);
                Err(error)
            }
        };
        // Ignore the error: the reader has left.
        drop(self.chunks.send(last).await);
    }

    /// Sends all rows; `false` when the reader has left.
    async fn all(&mut self) -> Result<bool, QueryError> {
        self.encoder.start(&mut self.out)?;
        while let Some(batch) = self.rows.try_next().await? {
            for piece in pieces(&batch) {
                self.encoder.batch(&piece, &mut self.out)?;
                self.charge()?;
                if self.out.len() >= CHUNK_BYTES && !self.hand_over(false).await? {
                    return Ok(false);
                }
                tokio::task::consume_budget().await;
            }
        }
        self.encoder.finish(&mut self.out)?;
        if !self.hand_over(false).await? {
            return Ok(false);
        }
        let Some(compressor) = self.compressor.take() else { return Ok(true) };
        self.out = compressor.finish().map_err(|error| not_compressed(&error))?;
        self.hand_over(false).await
    }

    /// Hands over what is written, compressed; `false` when the reader has left. With `flush` nothing is held back.
    async fn hand_over(&mut self, flush: bool) -> Result<bool, QueryError> {
        let mut chunk = std::mem::replace(&mut self.out, Vec::with_capacity(CHUNK_BYTES));
        if let Some(compressor) = &mut self.compressor {
            chunk = compressor.push(&chunk).map_err(|error| not_compressed(&error))?;
            if flush {
                chunk.append(&mut compressor.flush()?);
            }
        }
        if chunk.is_empty() {
            return Ok(true);
        }
        Ok(self.chunks.send(Ok(Some(Bytes::from(chunk)))).await.is_ok())
    }

    /// Charges what is held to the query: what is being written, and the chunks that wait.
    fn charge(&self) -> Result<(), QueryError> {
        let waiting = self.out.capacity().saturating_mul(1 + CHUNKS_AHEAD);
        let held = waiting.saturating_add(self.encoder.held());
        self.memory.try_resize(held).map_err(|error| QueryError::from_datafusion(&error))
    }
}

/// A batch in pieces of about a chunk each.
fn pieces(batch: &RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let rows = batch.num_rows();
    let row_bytes = (batch.get_array_memory_size() / rows.max(1)).max(1);
    let step = (CHUNK_BYTES / row_bytes).clamp(1, rows.max(1));
    (0..rows).step_by(step).map(move |from| batch.slice(from, step.min(rows - from)))
}

#[cfg(test)]
mod tests;
