//! The format of one WAL object.
//!
//! ```text
//! offset  bytes
//!      0      8  magic "MCPGWAL1"
//!      8      8  length of the whole object, u64 little-endian
//!     16      4  length of the header, u32 little-endian
//!     20     32  id: BLAKE3 of the header
//!     52      …  header, JSON, see `Header`
//!      …      …  the sections' bodies, one after another: Arrow IPC streams
//! ```
//!
//! The streams are not compressed: with LZ4, writing one takes ten times the processor time, to save a third of bytes that
//! live for seconds. Reading takes either.
//!
//! A section holds one org's samples or audit events. The header may also carry *marks*: decisions about the ledgers'
//! segments that must be the same on every node, and so have a place in the log. The header names each section's length and BLAKE3, so the id covers every byte of the object, and names the id of
//! the object before, so the log is a chain. An object shorter than its length says, or too short to say, is **torn**:
//! its write never finished. One that has its full length and a wrong hash is **damaged**. A damaged section stops the
//! org that it belongs to; a damaged header stops all, since it cannot be told whose samples it holds.

use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Log;
use crate::model::OrgName;
use crate::storage::StorageError;

const MAGIC: &[u8; 8] = b"MCPGWAL1";
const FIXED: usize = 52;

/// The id of a WAL object: BLAKE3 of its header, in hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjectId(String);

/// What a WAL object says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Its place in the log; part of the name too, so that a renamed object is noticed.
    pub seq: u64,
    /// The process that wrote it.
    pub writer: Uuid,
    /// When it was written, µs since the epoch, by the writer's clock: the age of idempotency keys counts from here.
    pub written_at: i64,
    /// The id of `seq - 1`; none if that is the beginning of the log or was found torn, and so passed over.
    pub previous: Option<ObjectId>,
    /// Objects up to this number may be deleted.
    pub floor: u64,
    /// What is decided about the ledgers, before the sections are applied.
    #[serde(default, skip_serializing_if = "Marks::is_empty")]
    pub marks: Marks,
    /// What it holds, in order.
    pub sections: Vec<SectionHeader>,
}

/// Decisions about the ledgers' segments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Marks {
    /// Orgs whose ledger entries of all objects before this one are to end a segment.
    pub cuts: Vec<OrgName>,
    /// Segments that are to become one.
    pub merges: Vec<Merge>,
}

impl Marks {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.cuts.is_empty() && self.merges.is_empty()
    }
}

/// Neighbouring segments of an org's ledger that are to become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Merge {
    /// Whose ledger.
    pub org: OrgName,
    /// The first entry's `seq`.
    pub first: u64,
    /// The last entry's `seq`.
    pub last: u64,
}

/// What the rows of a section are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SectionKind {
    /// Samples, of the schema `tool_invocations`.
    #[default]
    Samples,
    /// Events for the ledger, of the schema `audit_event`.
    Events,
}

impl SectionKind {
    // By reference, as serde calls it.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde wants")]
    fn is_samples(&self) -> bool {
        *self == Self::Samples
    }
}

/// One section: samples or events of one org.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SectionHeader {
    /// Whose.
    pub org: OrgName,
    /// What they are.
    #[serde(default, skip_serializing_if = "SectionKind::is_samples")]
    pub kind: SectionKind,
    /// How many.
    pub rows: u64,
    /// Idempotency keys of the requests that brought them, 32 hex each.
    pub keys: Vec<String>,
    /// Length of the body in bytes.
    pub length: u64,
    /// BLAKE3 of the body, hex.
    pub hash: String,
}

/// A section to be written.
#[derive(Debug, Clone)]
pub struct Section {
    /// Whose.
    pub org: OrgName,
    /// What they are.
    pub kind: SectionKind,
    /// How many.
    pub rows: u64,
    /// Idempotency keys of the requests that brought them, 32 hex each.
    pub keys: Vec<String>,
    /// The body, made by [`Object::encode_body`].
    pub body: Bytes,
    /// BLAKE3 of the body, hex: computed where the body is made, in parallel.
    pub hash: String,
}

impl Section {
    /// A section of one canonical batch.
    ///
    /// # Errors
    /// When Arrow cannot encode the batch.
    pub fn new(org: OrgName, kind: SectionKind, keys: Vec<String>, batch: &RecordBatch) -> Result<Self, StorageError> {
        let body = Object::encode_body(batch)?;
        let hash = blake3::hash(&body).to_hex().to_string();
        Ok(Self { org, kind, rows: batch.num_rows() as u64, keys, body, hash })
    }
}

/// What a WAL object says of itself beside its sections; see [`Header`] for the fields.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented where they are stored")]
pub struct Front {
    pub seq: u64,
    pub writer: Uuid,
    pub written_at: i64,
    pub previous: Option<ObjectId>,
    pub floor: u64,
    pub marks: Marks,
}

/// A whole WAL object, its header checked; bodies are checked when they are read.
#[derive(Debug, Clone)]
pub struct Object {
    /// Its id.
    pub id: ObjectId,
    /// What it says of itself.
    pub header: Header,
    bytes: Bytes,
    bodies: Vec<Range<usize>>,
}

/// What bytes found at a WAL path turn out to be.
#[derive(Debug)]
pub enum Parsed {
    /// A whole object.
    Whole(Box<Object>),
    /// One whose write never finished.
    Torn,
}

impl Object {
    /// Puts an object together. Returns its id and its bytes, in pieces, so that no body is copied.
    ///
    /// # Errors
    /// When the header does not serialise.
    pub fn encode(front: Front, sections: &[Section]) -> Result<(ObjectId, Vec<Bytes>), StorageError> {
        let Front { seq, writer, written_at, previous, floor, marks } = front;
        let headers = sections.iter().map(|section| SectionHeader {
            org: section.org.clone(),
            kind: section.kind,
            rows: section.rows,
            keys: section.keys.clone(),
            length: section.body.len() as u64,
            hash: section.hash.clone(),
        });
        let header = Header { seq, writer, written_at, previous, floor, marks, sections: headers.collect() };
        let header = serde_json::to_vec(&header).map_err(|e| StorageError::failed("encode", Log::name(seq), e))?;
        let id = blake3::hash(&header);
        let length = FIXED + header.len() + sections.iter().map(|s| s.body.len()).sum::<usize>();
        let header_length =
            u32::try_from(header.len()).map_err(|e| StorageError::failed("encode", Log::name(seq), e))?;

        let mut front = Vec::with_capacity(FIXED + header.len());
        front.extend_from_slice(MAGIC);
        front.extend_from_slice(&(length as u64).to_le_bytes());
        front.extend_from_slice(&header_length.to_le_bytes());
        front.extend_from_slice(id.as_bytes());
        front.extend_from_slice(&header);
        let mut pieces = vec![Bytes::from(front)];
        pieces.extend(sections.iter().map(|section| section.body.clone()));
        Ok((ObjectId(id.to_hex().to_string()), pieces))
    }

    /// The body of a section: an Arrow IPC stream.
    ///
    /// # Errors
    /// When Arrow cannot encode the batch.
    pub fn encode_body(batch: &RecordBatch) -> Result<Bytes, StorageError> {
        let failed = |e| StorageError::failed("encode", "a batch for the WAL", e);
        let mut out = Vec::with_capacity(batch.get_array_memory_size() + 16_384);
        let mut writer = StreamWriter::try_new(&mut out, &batch.schema()).map_err(failed)?;
        writer.write(batch).and_then(|()| writer.finish()).map_err(failed)?;
        drop(writer);
        Ok(out.into())
    }

    /// Reads an object found as number `seq` of the log.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when it has its full length and yet is not what was written.
    pub fn parse(seq: u64, bytes: Bytes) -> Result<Parsed, StorageError> {
        let damaged = |reason: &str| StorageError::damaged(Log::name(seq), reason);
        let known = bytes.len().min(MAGIC.len());
        if bytes.get(..known) != MAGIC.get(..known) {
            return Err(damaged("it does not start with the WAL's magic bytes"));
        }
        let (Some(length), Some(header_length), Some(id)) = (
            array(&bytes, 8).map(u64::from_le_bytes),
            array(&bytes, 16).map(u32::from_le_bytes),
            array::<32>(&bytes, 20),
        ) else {
            return Ok(Parsed::Torn);
        };
        if (bytes.len() as u64) < length {
            return Ok(Parsed::Torn);
        }
        if bytes.len() as u64 != length {
            return Err(damaged("it is longer than its length field says"));
        }
        let header_end = FIXED.saturating_add(header_length as usize);
        let raw = bytes.get(FIXED..header_end).ok_or_else(|| damaged("its header is longer than the object"))?;
        let id = blake3::Hash::from_bytes(id);
        if blake3::hash(raw) != id {
            return Err(damaged("its header does not match its hash"));
        }
        let header: Header = serde_json::from_slice(raw).map_err(|e| damaged(&format!("its header: {e}")))?;
        if header.seq != seq {
            return Err(damaged(&format!("its header says it is number {}", header.seq)));
        }
        let mut bodies = Vec::with_capacity(header.sections.len());
        let mut at = header_end;
        for section in &header.sections {
            let end = at.saturating_add(usize::try_from(section.length).unwrap_or(usize::MAX));
            bodies.push(at..end);
            at = end;
        }
        if at != bytes.len() {
            return Err(damaged("its sections do not add up to its length"));
        }
        Ok(Parsed::Whole(Box::new(Self { id: ObjectId(id.to_hex().to_string()), header, bytes, bodies })))
    }

    /// The sections' headers, each with its number.
    pub fn sections(&self) -> impl Iterator<Item = (usize, &SectionHeader)> {
        self.header.sections.iter().enumerate()
    }

    /// Reads the samples of section `number` as one batch of `schema`. A column that the object was written without is
    /// null.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when the body is not what was written.
    pub fn read(&self, number: usize, schema: &SchemaRef) -> Result<RecordBatch, StorageError> {
        let name = || format!("{} section {number}", Log::name(self.header.seq));
        let (Some(header), Some(body)) =
            (self.header.sections.get(number), self.bodies.get(number).and_then(|range| self.bytes.get(range.clone())))
        else {
            return Err(StorageError::damaged(name(), "there is no such section"));
        };
        if blake3::hash(body).to_hex().as_str() != header.hash {
            return Err(StorageError::damaged(
                name(),
                format!("what it holds of org {} does not match its hash", header.org),
            ));
        }
        let damaged = |e: arrow::error::ArrowError| StorageError::damaged(name(), e);
        let reader = StreamReader::try_new(body, None).map_err(damaged)?;
        let written = reader.schema();
        let batches = reader.collect::<Result<Vec<_>, _>>().map_err(damaged)?;
        let batch = arrow::compute::concat_batches(&written, &batches).map_err(damaged)?;
        if batch.num_rows() as u64 != header.rows {
            return Err(StorageError::damaged(name(), "it has another number of rows than its header says"));
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::StringArray;
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::record_batch::RecordBatch;
    use bytes::Bytes;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{Front, Marks, Object, Parsed, Section, SectionKind};

    fn sample() -> (RecordBatch, Bytes) {
        let schema = Arc::new(Schema::new(vec![Field::new("tool", DataType::Utf8, false)]));
        let batch = RecordBatch::try_new(schema, vec![Arc::new(StringArray::from(vec!["a", "b"]))]).unwrap();
        let org = "acme".parse().unwrap();
        let section = Section::new(org, SectionKind::Samples, vec!["00".repeat(16)], &batch).unwrap();
        let front =
            Front { seq: 7, writer: Uuid::nil(), written_at: 1, previous: None, floor: 3, marks: Marks::default() };
        let (_, pieces) = Object::encode(front, &[section]).unwrap();
        (batch, pieces.concat().into())
    }

    #[test]
    fn what_was_written_is_read() {
        let (batch, bytes) = sample();
        let Parsed::Whole(object) = Object::parse(7, bytes).unwrap() else { panic!("torn") };
        assert_eq!(object.read(0, &batch.schema()).unwrap(), batch);
        assert_eq!((object.header.floor, object.header.sections[0].rows), (3, 2));
    }

    #[test]
    fn every_true_prefix_is_torn_and_none_is_taken_for_whole_or_damaged() {
        let (_, bytes) = sample();
        for cut in 0..bytes.len() {
            assert!(matches!(Object::parse(7, bytes.slice(..cut)), Ok(Parsed::Torn)), "cut at {cut}");
        }
    }

    #[test]
    fn an_object_under_another_number_is_damaged() {
        assert!(Object::parse(8, sample().1).unwrap_err().is_damage());
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_never_read_as_sound(at in 0usize..4096, flip in 1u8..) {
            let (batch, bytes) = sample();
            let at = at % bytes.len();
            let mut changed = bytes.to_vec();
            changed[at] ^= flip;
            // A length field that grew makes it look torn; everything else is damage.
            match Object::parse(7, changed.into()) {
                Ok(Parsed::Whole(object)) => prop_assert!(object.read(0, &batch.schema()).unwrap_err().is_damage()),
                Ok(Parsed::Torn) => prop_assert!((8..16).contains(&at)),
                Err(e) => prop_assert!(e.is_damage()),
            }
        }
    }
}
