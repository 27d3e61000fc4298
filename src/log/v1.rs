//! Log objects of version 1, which are only read, to bring a store over.
//!
//! ```text
//! offset  bytes
//!      0      8  magic "MCPGWAL1"
//!      8      8  length of the whole object, u64 little-endian
//!     16      4  length of the header, u32 little-endian
//!     20     32  id: BLAKE3 of the header
//!     52      …  header, JSON
//!      …      …  the sections' bodies, one after another: Arrow IPC streams
//! ```
//!
//! They carry no MAC. The last of them may be shorter than its length says: version 1 took that for a write that never
//! ended, and nothing in it was acknowledged.

use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde::Deserialize;

use super::{SectionKind, name};
use crate::model::OrgName;
use crate::storage::StorageError;

const MAGIC: &[u8; 8] = b"MCPGWAL1";
const FIXED: usize = 52;

/// What an object of version 1 says of itself, as far as it is needed.
#[derive(Debug, Deserialize)]
pub(crate) struct Header {
    pub(crate) seq: u64,
    pub(crate) written_at: i64,
    pub(crate) floor: u64,
    #[serde(default)]
    pub(crate) marks: Marks,
    pub(crate) sections: Vec<SectionHeader>,
}

/// Decisions about the ledgers' segments.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Marks {
    pub(crate) cuts: Vec<OrgName>,
    pub(crate) merges: Vec<Merge>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Merge {
    pub(crate) org: OrgName,
    pub(crate) first: u64,
    pub(crate) last: u64,
}

#[derive(Debug, Deserialize)]
pub(crate) struct SectionHeader {
    pub(crate) org: OrgName,
    #[serde(default = "samples")]
    pub(crate) kind: SectionKind,
    pub(crate) rows: u64,
    pub(crate) keys: Vec<String>,
    length: u64,
    hash: String,
}

fn samples() -> SectionKind {
    SectionKind::Samples
}

/// A whole object of version 1.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) header: Header,
    bytes: Bytes,
    bodies: Vec<Range<usize>>,
}

impl Object {
    /// Reads an object; none if its write never ended.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when it is not what was written.
    pub(crate) fn parse(seq: u64, bytes: Bytes) -> Result<Option<Self>, StorageError> {
        let damaged = |reason: &str| StorageError::damaged(name(seq), reason);
        let known = bytes.len().min(MAGIC.len());
        if bytes.get(..known) != MAGIC.get(..known) {
            return Err(damaged("it is no log object of version 1, and the store has no wal/layout"));
        }
        let (Some(length), Some(header_length), Some(id)) = (
            array(&bytes, 8).map(u64::from_le_bytes),
            array(&bytes, 16).map(u32::from_le_bytes),
            array::<32>(&bytes, 20),
        ) else {
            return Ok(None);
        };
        if (bytes.len() as u64) < length {
            return Ok(None);
        }
        let header_end = FIXED.saturating_add(header_length as usize);
        let raw = bytes.get(FIXED..header_end).ok_or_else(|| damaged("its header is longer than the object"))?;
        if blake3::hash(raw) != blake3::Hash::from_bytes(id) {
            return Err(damaged("its header does not match its hash"));
        }
        let header: Header = serde_json::from_slice(raw).map_err(|e| damaged(&format!("its header: {e}")))?;
        if header.seq != seq {
            return Err(damaged(&format!("its header says it is number {}", header.seq)));
        }
        let (mut bodies, mut at) = (Vec::with_capacity(header.sections.len()), header_end);
        for section in &header.sections {
            let end = at.saturating_add(usize::try_from(section.length).unwrap_or(usize::MAX));
            bodies.push(at..end);
            at = end;
        }
        if at != bytes.len() {
            return Err(damaged("its sections do not add up to its length"));
        }
        Ok(Some(Self { header, bytes, bodies }))
    }

    /// Reads the rows of section `number` as one batch of `schema`.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when the body is not what was written.
    pub(crate) fn read(&self, number: usize, schema: &SchemaRef) -> Result<RecordBatch, StorageError> {
        let label = || format!("{} section {number}", name(self.header.seq));
        let section = self.header.sections.get(number);
        let body = self.bodies.get(number).and_then(|range| self.bytes.get(range.clone()));
        let (Some(section), Some(body)) = (section, body) else {
            return Err(StorageError::damaged(label(), "there is no such section"));
        };
        if blake3::hash(body).to_hex().as_str() != section.hash {
            return Err(StorageError::damaged(label(), "its body does not match its hash"));
        }
        let damaged = |e: arrow::error::ArrowError| StorageError::damaged(label(), e);
        let reader = StreamReader::try_new(body, None).map_err(damaged)?;
        let written = reader.schema();
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        let batch = arrow::compute::concat_batches(&written, &batches).map_err(damaged)?;
        if batch.num_rows() as u64 != section.rows {
            return Err(StorageError::damaged(label(), "it has another number of rows than its header says"));
        }
        let columns = schema.fields().iter().map(|field| match batch.column_by_name(field.name()) {
            Some(column) => Arc::clone(column),
            None => arrow::array::new_null_array(field.data_type(), batch.num_rows()),
        });
        RecordBatch::try_new(Arc::clone(schema), columns.collect()).map_err(damaged)
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}
