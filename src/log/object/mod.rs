//! The form of a log object, version 2.
//!
//! ```text
//! offset  bytes
//!      0      8  magic "MCPGWAL2"
//!      8      8  length of the whole object, u64 little-endian
//!     16      4  length of the header, u32 little-endian
//!     20      …  header, JSON, see `Header`
//!      …     83  MAC over all bytes before it, under the object's name, see `mac`
//!      …      …  the sections' bodies, one after another: Arrow IPC streams, some of them in zstd
//! ```
//!
//! The object's **id** is the BLAKE3 of its header. The header names the length and the BLAKE3 of each body and the id
//! of the object before: so the id covers every byte, and the log is a chain (rule L4). A section names the position of
//! the object before that had a section of the same org, and the beginning of that object's id, so that each org's part
//! is a chain too: also where the object itself is trimmed, and a log that was restored and grew again has another one
//! in its place.
//!
//! No store that the log lies on tears an object: what arrived whole and does not fit is **damaged**. A damaged body
//! stops the org that it belongs to; a damaged header concerns every org, since it is not known whose samples it holds.
//!
//! A body is compressed where that costs little beside what it saves: small ones, which are mostly Arrow's schema, and
//! all of them where the store is remote. Large bodies on a local disk live for seconds, and zstd would take as long as
//! encoding them.

mod decisions;
mod parked;
mod stored_id;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use decisions::{Decisions, OrgLimits, Removal};
pub use stored_id::StoredId;

use super::mac::LogKeys;
use super::name;
use crate::model::OrgName;
use crate::storage::StorageError;

const MAGIC: &[u8; 8] = b"MCPGWAL2";
const FIXED: usize = 20;
/// The version that a reader of what this program writes must know …
const NEEDS: u32 = 2;
/// … and of an object that names sealed payloads.
const NEEDS_PAYLOADS: u32 = 3;
/// Bodies of at least this many bytes are worth compressing …
const SMALL_FROM: usize = 1 << 10;
/// … and up to so many it costs little.
const SMALL_TO: usize = 64 << 10;

/// The id of a log object: BLAKE3 of its header, in hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectId(String);

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl ObjectId {
    /// How many digits of it a section names.
    const BEGINNING: usize = 16;

    /// What a section says of the object before it.
    pub fn beginning(&self) -> String {
        self.0.chars().take(Self::BEGINNING).collect()
    }
}

/// What a log object says of itself. Members that a reader does not know are ignored, unless `needs` says that it must.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The version that a reader must know.
    pub needs: u32,
    /// Its place in the log; part of the name too, so that a renamed object is noticed.
    pub seq: u64,
    /// The process that wrote it.
    pub writer: Uuid,
    /// When it was written, µs since the epoch, by the writer's clock; never before the object before it.
    pub written_at: i64,
    /// The id of `seq - 1`; none of the first.
    pub previous: Option<ObjectId>,
    /// What it holds, in order.
    pub sections: Vec<SectionHeader>,
}

/// One org's part of an object: rows of one kind, or decisions, or both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SectionHeader {
    /// Whose.
    pub org: OrgName,
    /// The position of the last object before this one that had a section of the same org; 0 if there was none.
    pub previous: u64,
    /// The beginning of that object's id; none if there was none, or it was of version 1, and in sections of before
    /// there was this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What is decided for the org, before the rows are applied.
    #[serde(default, skip_serializing_if = "Decisions::is_empty")]
    pub decisions: Decisions,
    /// Its rows; none of a section of decisions alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<RowsHeader>,
}

/// The rows of a section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowsHeader {
    /// What they are.
    pub kind: SectionKind,
    /// How many.
    pub count: u64,
    /// The `seq` of the first entry, of events; of payloads, of the first of the entries that name them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// The identities of the batches that brought them, by which retries are recognized; batches without one are left
    /// out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub batches: Vec<StoredId>,
    /// Length of the body in bytes.
    pub length: u64,
    /// BLAKE3 of the body as it lies there, hex.
    pub hash: String,
    /// Whether the body is compressed: its length before, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpacked: Option<u64>,
}

/// What the rows of a section are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SectionKind {
    /// Samples, of the schema `tool_invocations`.
    Samples,
    /// Events for the ledger, of the schema `audit_event`.
    Events,
    /// Sealed payloads, of the schema `payload_rows`; the section before is that of the events that name them. Their
    /// bytes are in objects that the rows name.
    Payloads,
}

/// Rows to be written: the body is made where they are, in parallel.
#[derive(Debug, Clone)]
pub struct Rows {
    /// What is said of them; `first` and `batches` are set when the object is put together.
    pub header: RowsHeader,
    /// The body.
    pub body: Bytes,
}

impl Rows {
    /// The rows of one canonical batch; `remote` says that the store is, so that every byte counts.
    ///
    /// # Errors
    /// When Arrow or zstd cannot encode the batch.
    pub fn new(kind: SectionKind, batch: &RecordBatch, remote: bool) -> Result<Self, StorageError> {
        let failed = |e| StorageError::failed("encode", "a batch for the log", e);
        let mut body = Vec::with_capacity(batch.get_array_memory_size() + 16_384);
        let mut writer = StreamWriter::try_new(&mut body, &batch.schema()).map_err(failed)?;
        writer.write(batch).and_then(|()| writer.finish()).map_err(failed)?;
        drop(writer);
        let mut unpacked = None;
        if body.len() >= SMALL_FROM && (remote || body.len() <= SMALL_TO) {
            let packed = zstd::bulk::compress(&body, 1)
                .map_err(|e| StorageError::failed("compress", "a batch for the log", e))?;
            unpacked = Some(body.len() as u64);
            body = packed;
        }
        let header = RowsHeader {
            kind,
            count: batch.num_rows() as u64,
            first: None,
            batches: Vec::new(),
            length: body.len() as u64,
            hash: blake3::hash(&body).to_hex().to_string(),
            unpacked,
        };
        Ok(Self { header, body: body.into() })
    }
}

/// A section to be written.
#[derive(Debug, Clone)]
pub struct Section {
    /// Whose; see [`SectionHeader`].
    pub org: OrgName,
    /// See [`SectionHeader`].
    pub previous: u64,
    /// See [`SectionHeader`].
    pub before: Option<String>,
    /// See [`SectionHeader`].
    pub decisions: Decisions,
    /// Its rows, if any.
    pub rows: Option<Rows>,
}

/// What a log object says of itself beside its sections; see [`Header`].
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented where they are stored")]
pub struct Front {
    pub seq: u64,
    pub writer: Uuid,
    pub written_at: i64,
    pub previous: Option<ObjectId>,
}

/// A whole log object, its header authenticated; bodies are checked when they are read.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its id.
    pub id: ObjectId,
    /// What it says of itself.
    pub header: Header,
    bytes: Bytes,
    bodies: Vec<Range<usize>>,
}

impl Object {
    /// Puts an object together. Returns its id and its bytes, in pieces, so that no body is copied.
    ///
    /// # Errors
    /// When the header is larger than can be said.
    pub fn encode(
        keys: &LogKeys,
        front: Front,
        sections: Vec<Section>,
    ) -> Result<(ObjectId, Vec<Bytes>), StorageError> {
        let Front { seq, writer, written_at, previous } = front;
        let failed = |e: &dyn fmt::Display| StorageError::failed("encode", name(seq), e.to_string());
        let mut bodies = Vec::with_capacity(sections.len() + 1);
        bodies.push(Bytes::new());
        let sections = sections.into_iter().map(|Section { org, previous, before, decisions, rows }| {
            let rows = rows.map(|rows| {
                bodies.push(rows.body);
                rows.header
            });
            SectionHeader { org, previous, before, decisions, rows }
        });
        let sections: Vec<_> = sections.collect();
        let names_payloads =
            |section: &SectionHeader| section.rows.as_ref().is_some_and(|rows| rows.kind == SectionKind::Payloads);
        let needs = if sections.iter().any(names_payloads) { NEEDS_PAYLOADS } else { NEEDS };
        let header = Header { needs, seq, writer, written_at, previous, sections };
        let header = serde_json::to_vec(&header).map_err(|e| failed(&e))?;
        let header_length = u32::try_from(header.len()).map_err(|e| failed(&e))?;
        let id = ObjectId(blake3::hash(&header).to_hex().to_string());
        let front = FIXED + header.len() + LogKeys::trailer_length();
        let length = front + bodies.iter().map(Bytes::len).sum::<usize>();
        let mut out = Vec::with_capacity(front);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&(length as u64).to_le_bytes());
        out.extend_from_slice(&header_length.to_le_bytes());
        out.extend_from_slice(&header);
        let front = keys.seal(&name(seq), out);
        if let Some(first) = bodies.first_mut() {
            *first = front;
        }
        Ok((id, bodies))
    }

    /// Reads an object found as number `seq` of the log.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when it is not what was written, [`StorageError::Unusable`] when it is of a newer
    /// version or of a key that this node lacks.
    pub fn parse(keys: &LogKeys, seq: u64, bytes: Bytes) -> Result<Self, StorageError> {
        let damaged = |reason: &str| StorageError::damaged(name(seq), reason);
        if bytes.get(..MAGIC.len()) != Some(MAGIC) {
            return Err(damaged("it does not start with the magic bytes of a log object"));
        }
        let (Some(length), Some(header_length)) =
            (array(&bytes, 8).map(u64::from_le_bytes), array(&bytes, 16).map(u32::from_le_bytes))
        else {
            return Err(damaged("it is shorter than its fixed part"));
        };
        if bytes.len() as u64 != length {
            return Err(damaged(&format!("it has {} bytes, and its length field says {length}", bytes.len())));
        }
        let header_end = FIXED.saturating_add(header_length as usize);
        let front_end = header_end.saturating_add(LogKeys::trailer_length());
        let (Some(before), Some(trailer)) = (bytes.get(..header_end), bytes.get(header_end..front_end)) else {
            return Err(damaged("its header is longer than the object"));
        };
        keys.check(&name(seq), before, trailer)?;
        let raw = before.get(FIXED..).unwrap_or_default();
        let Needs { needs } = serde_json::from_slice(raw).map_err(|e| damaged(&format!("its header: {e}")))?;
        check_version(&name(seq), needs)?;
        let header: Header = serde_json::from_slice(raw).map_err(|e| damaged(&format!("its header: {e}")))?;
        if header.seq != seq {
            return Err(damaged(&format!("its header says it is number {}", header.seq)));
        }
        let (bodies, at) = bodies(&header, front_end);
        if at != bytes.len() {
            return Err(damaged("its sections do not add up to its length"));
        }
        let id = ObjectId(blake3::hash(raw).to_hex().to_string());
        Ok(Self { id, header, bytes, bodies })
    }

    /// The bytes of the same object, with the same id, under the current key, if it is under another one that is known.
    ///
    /// # Errors
    /// As [`Object::parse`].
    pub fn reseal(keys: &LogKeys, seq: u64, bytes: &Bytes) -> Result<Option<Bytes>, StorageError> {
        Self::parse(keys, seq, bytes.clone())?;
        let header_length = array(bytes, 16).map_or(0, |length| u32::from_le_bytes(length) as usize);
        let (front, rest) = bytes.split_at(FIXED + header_length);
        let mut out = front.to_vec();
        out.extend_from_slice(&keys.trailer(&name(seq), front));
        out.extend_from_slice(rest.get(LogKeys::trailer_length()..).unwrap_or_default());
        Ok(Some(Bytes::from(out)).filter(|out| out != bytes))
    }

    /// The bytes it was read from.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no bytes, which no object is.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Reads the rows of section `number` as one batch of `schema`. A column that the object was written without is
    /// null.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when the body is not what was written.
    pub fn read(&self, number: usize, schema: &SchemaRef) -> Result<RecordBatch, StorageError> {
        let label = || format!("{} section {number}", name(self.header.seq));
        let section = self.header.sections.get(number).and_then(|section| Some((&section.org, section.rows.as_ref()?)));
        let body = self.bodies.get(number).and_then(|range| self.bytes.get(range.clone()));
        let (Some((org, rows)), Some(body)) = (section, body) else {
            return Err(StorageError::damaged(label(), "there are no such rows"));
        };
        if blake3::hash(body).to_hex().as_str() != rows.hash {
            return Err(StorageError::damaged(label(), format!("what it holds of org {org} does not match its hash")));
        }
        let unpacked = match rows.unpacked {
            None => None,
            Some(length) => Some(unpack(body, length).map_err(|e| StorageError::damaged(label(), e))?),
        };
        let damaged = |e: arrow::error::ArrowError| StorageError::damaged(label(), e);
        let reader = StreamReader::try_new(unpacked.as_deref().unwrap_or(body), None).map_err(damaged)?;
        let written = reader.schema();
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        let batch = arrow::compute::concat_batches(&written, &batches).map_err(damaged)?;
        if batch.num_rows() as u64 != rows.count {
            return Err(StorageError::damaged(label(), "it has another number of rows than its header says"));
        }
        let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
            Some(column) => Arc::clone(column),
            None => arrow::array::new_null_array(field.data_type(), batch.num_rows()),
        });
        RecordBatch::try_new(Arc::clone(schema), columns.collect()).map_err(damaged)
    }
}

/// What is read of a header first: whether the rest of it can be.
#[derive(Deserialize)]
struct Needs {
    needs: u32,
}

/// Whether this program knows the version that a reader of an object must know (rule L11).
fn check_version(object: &str, needs: u32) -> Result<(), StorageError> {
    if needs <= NEEDS_PAYLOADS {
        return Ok(());
    }
    let reason = format!("it needs a program that knows version {needs} of the log; this one knows {NEEDS_PAYLOADS}");
    Err(StorageError::Unusable { url: object.to_owned(), reason })
}

/// Where the bodies of sections lie that begin at `at`, and where they end.
fn bodies(header: &Header, mut at: usize) -> (Vec<Range<usize>>, usize) {
    let mut bodies = Vec::with_capacity(header.sections.len());
    for section in &header.sections {
        let length = section.rows.as_ref().map_or(0, |rows| usize::try_from(rows.length).unwrap_or(usize::MAX));
        let end = at.saturating_add(length);
        bodies.push(at..end);
        at = end;
    }
    (bodies, at)
}

/// Decompresses to exactly as many bytes as were said, which the MAC vouches for.
fn unpack(body: &[u8], length: u64) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    zstd::Decoder::new(body)?.take(length).read_to_end(&mut out)?;
    if out.len() as u64 == length {
        Ok(out)
    } else {
        Err(std::io::Error::other("it unpacks to fewer bytes than it says"))
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
