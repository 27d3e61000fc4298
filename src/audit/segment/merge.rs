//! Merging segments: one file out of parts that lie in order and without gaps.
//!
//! The bytes are a function of the parts' bytes alone, so two nodes that merge the same parts write the same object.
//! Large row groups are copied as they are encoded; the trade-off is in [`SPLICE_ROWS`]. Nothing is written to the
//! store here: a merge that is cut short by a crash leaves nothing, and is done again from the same parts.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::basic::Compression;
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::writer::SerializedFileWriter;

use super::read::{Opened, numbered};
use super::{SegmentName, SegmentWriter, failed};
use crate::audit::{ChainHead, Hash};
use crate::storage::StorageError;

/// Row groups of at least so many rows are copied as they are when segments are merged; smaller ones are decoded and
/// encoded again, together. So an entry is encoded again only while its row group is small, and a segment of a million
/// entries has at most 64 row groups, whose metadata stays small beside the rows.
pub const SPLICE_ROWS: u64 = 16_384;

/// Makes one segment of the ledger `origin` out of its parts, which lie in order and without gaps.
///
/// The bytes are a function of the parts' bytes alone, so two nodes that merge the same parts make the same file. Of
/// each part, the numbers and the chain are read and must fit; that an entry is what its hash says is not looked at.
/// Row groups that are large, and of the form that [`SegmentWriter`] gives them, are copied; the rest is encoded again.
///
/// # Errors
/// [`StorageError::Damaged`] when a part is no segment of this ledger or does not follow the one before it.
pub fn merge(schema: &SchemaRef, origin: &str, parts: &[(SegmentName, Bytes)]) -> Result<Bytes, StorageError> {
    let mut merged = Merged::new(schema, origin)?;
    let mut head: Option<ChainHead> = None;
    for (name, bytes) in parts {
        let path = name.to_string();
        let opened = Opened::new(&path, bytes.clone())?;
        if opened.origin != origin {
            return Err(StorageError::damaged(&path, format!("it is of the ledger {}, not {origin}", opened.origin)));
        }
        head = Some(links(&path, *name, &opened, head)?);
        merged.add(&path, &opened)?;
    }
    merged.finish()
}

/// Reads what numbers and chains a part's entries, and holds it against the part before.
fn links(path: &str, name: SegmentName, opened: &Opened, before: Option<ChainHead>) -> Result<ChainHead, StorageError> {
    let damaged = |seq: u64, what: &str| StorageError::damaged(path, format!("entry {seq}: {what}"));
    if before.is_some_and(|before| before.size != name.first) {
        return Err(damaged(name.first, "it is not the one after the part before"));
    }
    let builder = opened.builder();
    let columns = ProjectionMask::columns(builder.parquet_schema(), ["seq", "prev_hash", "entry_hash"]);
    let (mut last, mut seq) = (before.map(|before| before.last), name.first);
    numbered(path, name, builder.with_projection(columns), &mut |batch| {
        let hashes = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let (Some(before), Some(own)) = (hashes("prev_hash"), hashes("entry_hash")) else {
            return Err(damaged(seq, "it has no hashes"));
        };
        for (before, own) in before.iter().zip(own) {
            let hash = |text: Option<&str>| text.and_then(|text| text.parse::<Hash>().ok());
            let (Some(before), Some(own)) = (hash(before), hash(own)) else {
                return Err(damaged(seq, "it has no hashes"));
            };
            if last.is_some_and(|last| last != before) {
                return Err(damaged(seq, "it does not follow the one before it"));
            }
            (last, seq) = (Some(own), seq + 1);
        }
        Ok(())
    })
}

/// A segment that is being merged.
struct Merged<'a> {
    schema: &'a SchemaRef,
    origin: &'a str,
    out: SerializedFileWriter<Vec<u8>>,
    /// Rows that are encoded again, to become row groups of their own.
    pending: Option<SegmentWriter>,
}

impl<'a> Merged<'a> {
    fn new(schema: &'a SchemaRef, origin: &'a str) -> Result<Self, StorageError> {
        let (out, _) = SegmentWriter::new(schema, origin)?.writer.into_serialized_writer().map_err(failed)?;
        Ok(Self { schema, origin, out, pending: None })
    }

    fn add(&mut self, path: &str, part: &Opened) -> Result<(), StorageError> {
        let damaged = |e: &dyn std::error::Error| StorageError::damaged(path, e);
        let metadata = Arc::clone(part.reader.metadata());
        let is_same = metadata.file_metadata().schema() == self.out.schema_descr().root_schema();
        for (at, group) in metadata.row_groups().iter().enumerate() {
            let is_large = u64::try_from(group.num_rows()).is_ok_and(|rows| rows >= SPLICE_ROWS);
            if is_same && is_large && group.columns().iter().all(is_plain) {
                self.encode_pending()?;
                self.splice(&part.bytes, group)?;
                continue;
            }
            let rows = part.builder().with_row_groups(vec![at]).build().map_err(|e| damaged(&e))?;
            for batch in rows {
                let batch = batch.map_err(|e| damaged(&e))?;
                let pending = match self.pending.take() {
                    Some(pending) => pending,
                    None => SegmentWriter::new(self.schema, self.origin)?,
                };
                self.pending.insert(pending).write(&batch)?;
            }
        }
        Ok(())
    }

    /// Copies a row group as it is encoded.
    fn splice(&mut self, bytes: &Bytes, group: &RowGroupMetaData) -> Result<(), StorageError> {
        let rows_written = u64::try_from(group.num_rows()).unwrap_or(0);
        let mut out = self.out.next_row_group().map_err(failed)?;
        for column in group.columns() {
            let (_, bytes_written) = column.byte_range();
            let (bloom_filter, column_index, offset_index) = (None, None, None);
            let metadata = column.clone();
            let close =
                ColumnCloseResult { bytes_written, rows_written, metadata, bloom_filter, column_index, offset_index };
            out.append_column(bytes, close).map_err(failed)?;
        }
        out.close().map(drop).map_err(failed)
    }

    fn encode_pending(&mut self) -> Result<(), StorageError> {
        let Some(pending) = self.pending.take() else { return Ok(()) };
        let encoded = Opened::new("the merged rows", pending.finish()?)?;
        let metadata = Arc::clone(encoded.reader.metadata());
        metadata.row_groups().iter().try_for_each(|group| self.splice(&encoded.bytes, group))
    }

    fn finish(mut self) -> Result<Bytes, StorageError> {
        self.encode_pending()?;
        self.out.into_inner().map(Bytes::from).map_err(failed)
    }
}

/// Whether a column chunk is as [`SegmentWriter`] writes it: compressed the same way, and with no claim on its values.
pub(super) fn is_plain(column: &ColumnChunkMetaData) -> bool {
    let start = column.dictionary_page_offset().unwrap_or_else(|| column.data_page_offset());
    start >= 0
        && column.compressed_size() >= 0
        && matches!(column.compression(), Compression::ZSTD(_))
        && column.file_path().is_none()
        && column.statistics().is_none()
        && column.column_index_offset().is_none()
        && column.offset_index_offset().is_none()
        && column.bloom_filter_offset().is_none()
        && column.unencoded_byte_array_data_bytes().is_none()
        && column.repetition_level_histogram().is_none()
        && column.definition_level_histogram().is_none()
}
