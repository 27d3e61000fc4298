//! Segments: the ledger's entries on the store, one Parquet file for a run of them.
//!
//! `orgs/<org>/audit/segments/<first>-<last>.parquet`, both ends `seq` in 20 digits. The columns are those of
//! `schemas/audit_log.sql`; the file's key-value metadata holds what each entry is hashed with and no column repeats:
//! `mcpg.v` and `mcpg.origin`. There is nothing else to rely on: no column statistics, no page index, no bloom filters,
//! no embedded Arrow schema. Every decision rests on rows that were verified, or on authenticated objects elsewhere.
//!
//! Segments of the first design have statistics and two more keys of metadata, `mcpg.position` and `mcpg.standing`.
//! [`read()`] gives these back, for bringing such a store over and for nothing else: no signature covers them.
//!
//! A segment is created if absent and never written again. The same range always has the same entries, so of two nodes
//! that write it either may win.
//!
//! Segments are merged by [`merge()`], which copies row groups as they are encoded where they are large enough. The
//! trade-off is in [`SPLICE_ROWS`].

mod merge;
mod name;
mod read;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

pub use merge::{SPLICE_ROWS, merge};
pub use name::{NoSegment, SegmentName};
pub use read::{SegmentEnd, read};

use super::entry;
use crate::storage::StorageError;

/// Metadata key of the entries' version.
pub const META_VERSION: &str = "mcpg.v";
/// Metadata key of the ledger's origin.
pub const META_ORIGIN: &str = "mcpg.origin";
/// Metadata key of the log position in a segment of the first design.
const META_POSITION: &str = "mcpg.position";
/// Metadata key of the ledger status in a segment of the first design.
const META_STANDING: &str = "mcpg.standing";

/// Rows of a row group: a unit of parallel reading.
const ROW_GROUP_ROWS: usize = 131_072;
/// Columns whose values hardly repeat: a dictionary would be built and thrown away.
const DISTINCT: [&str; 9] =
    ["event_id", "salt", "prev_hash", "entry_hash", "request_id", "trace_id", "span_id", "invocation_id", "detail"];

/// Writes a segment, batch by batch.
#[derive(Debug)]
pub struct SegmentWriter {
    writer: ArrowWriter<Vec<u8>>,
}

impl SegmentWriter {
    /// A segment of the ledger `origin`, of the schema `audit_log`.
    ///
    /// # Errors
    /// When Parquet does not take the schema.
    pub fn new(schema: &SchemaRef, origin: &str) -> Result<Self, StorageError> {
        let metadata = [(META_VERSION, entry::VERSION), (META_ORIGIN, origin)];
        let metadata = metadata.map(|(key, value)| KeyValue::new(key.to_owned(), value.to_owned())).to_vec();
        let zstd = ZstdLevel::try_new(1).map_err(failed)?;
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(zstd))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_statistics_enabled(EnabledStatistics::None)
            .set_offset_index_disabled(true)
            .set_bloom_filter_enabled(false)
            .set_key_value_metadata(Some(metadata));
        for field in schema.fields() {
            let column = ColumnPath::from(field.name().as_str());
            properties = match field.data_type() {
                DataType::Timestamp(..) | DataType::Int64 => properties
                    .set_column_dictionary_enabled(column.clone(), false)
                    .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED),
                _ if DISTINCT.contains(&field.name().as_str()) => {
                    properties.set_column_dictionary_enabled(column, false)
                }
                _ => properties,
            };
        }
        let options = ArrowWriterOptions::new().with_properties(properties.build()).with_skip_arrow_metadata(true);
        let writer = ArrowWriter::try_new_with_options(Vec::new(), Arc::clone(schema), options).map_err(failed)?;
        Ok(Self { writer })
    }

    /// Adds entries.
    ///
    /// # Errors
    /// When the batch is not of the schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), StorageError> {
        self.writer.write(batch).map_err(failed)
    }

    /// Adds the metadata of version 1, which nothing relies on.
    #[cfg(test)]
    pub(crate) fn first_design(&mut self, position: u64, standing: &str) {
        let metadata = [(META_POSITION, position.to_string()), (META_STANDING, standing.to_owned())];
        for (key, value) in metadata {
            self.writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value));
        }
    }

    /// The file.
    ///
    /// # Errors
    /// When Parquet cannot end it.
    pub fn finish(self) -> Result<Bytes, StorageError> {
        self.writer.into_inner().map(Bytes::from).map_err(failed)
    }
}

fn failed(e: impl std::error::Error + Send + Sync + 'static) -> StorageError {
    StorageError::failed("encode", "a segment of the ledger", e)
}

/// The least and greatest `occurred_at` of entries, in µs, by which queries prune segments. `None` without entries.
pub fn time_range<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> Option<(i64, i64)> {
    let columns = batches.into_iter().filter_map(|batch| batch.column_by_name("occurred_at"));
    let times = columns.filter_map(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    times
        .filter(|times| !times.is_empty())
        .filter_map(|times| arrow::compute::min(times).zip(arrow::compute::max(times)))
        .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}
