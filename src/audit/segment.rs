//! Segments: the ledger's entries on the store, one Parquet file for a run of them.
//!
//! `orgs/<org>/audit/segments/<first>-<last>.parquet`, both ends `seq` in 20 digits. The columns are those of
//! `schemas/audit_log.sql`; the file's key-value metadata says what each entry is hashed with and no column repeats:
//! `mcpg.v` and `mcpg.origin`. Two more keys are for the control plane alone, and no verifier reads them. `mcpg.position`
//! is its place in the write-ahead log: every event of this org that the log brought before that object is in this segment or
//! an earlier one. `mcpg.standing` sums up what the entries up to here say of the ledger itself.
//!
//! A segment is created if absent and never written again. The same range always has the same entries, so of two nodes
//! that write it one is as good as the other.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::{ChainHead, Hash, entry};
use crate::storage::StorageError;

/// Metadata key of the entries' version.
pub const META_VERSION: &str = "mcpg.v";
/// Metadata key of the ledger's origin.
pub const META_ORIGIN: &str = "mcpg.origin";
/// Metadata key of the log position; see the module's doc.
pub const META_POSITION: &str = "mcpg.position";
/// Metadata key of the ledger's standing; see the module's doc.
pub const META_STANDING: &str = "mcpg.standing";

/// Rows of a row group: a unit of parallel reading and of pruning.
const ROW_GROUP_ROWS: usize = 131_072;
/// Rows of a batch as it is read.
const BATCH_ROWS: usize = 8_192;
/// Columns whose values hardly repeat: a dictionary would be built and thrown away.
const DISTINCT: [&str; 9] =
    ["event_id", "salt", "prev_hash", "entry_hash", "request_id", "trace_id", "span_id", "invocation_id", "detail"];

/// The entries that a segment holds, which are its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// `seq` of the first entry.
    pub first: u64,
    /// `seq` of the last entry.
    pub last: u64,
}

impl SegmentName {
    /// How many entries there are.
    pub fn entries(self) -> u64 {
        self.last - self.first + 1
    }

    /// Whether all of `other`'s entries are among its own.
    pub fn holds(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020}-{:020}.parquet", self.first, self.last)
    }
}

/// Said of a file name that is no segment's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not named <first>-<last>.parquet, both in 20 digits")]
pub struct NoSegment;

impl FromStr for SegmentName {
    type Err = NoSegment;

    fn from_str(name: &str) -> Result<Self, NoSegment> {
        let number = |digits: &str| {
            let digits = Some(digits).filter(|digits| digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit()));
            digits.and_then(|digits| digits.parse::<u64>().ok())
        };
        let ends = name.strip_suffix(".parquet").and_then(|ends| ends.split_once('-'));
        let ends = ends.and_then(|(first, last)| number(first).zip(number(last)));
        ends.filter(|(first, last)| first <= last).map(|(first, last)| Self { first, last }).ok_or(NoSegment)
    }
}

/// What a segment says of itself, and where it leaves the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentEnd {
    /// The ledger's origin.
    pub origin: String,
    /// See the module's doc.
    pub position: u64,
    /// See the module's doc; none of a segment that was written before there was one.
    pub standing: Option<String>,
    /// The chain after its last entry.
    pub head: ChainHead,
}

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
    pub fn new(schema: &SchemaRef, origin: &str, position: u64, standing: &str) -> Result<Self, StorageError> {
        let metadata = [
            (META_VERSION, entry::VERSION.to_owned()),
            (META_ORIGIN, origin.to_owned()),
            (META_POSITION, position.to_string()),
            (META_STANDING, standing.to_owned()),
        ];
        let metadata = metadata.map(|(key, value)| KeyValue::new(key.to_owned(), value)).to_vec();
        let zstd = ZstdLevel::try_new(1).map_err(failed)?;
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(zstd))
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_statistics_enabled(EnabledStatistics::Chunk)
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
        let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(schema), Some(properties.build())).map_err(failed)?;
        Ok(Self { writer })
    }

    /// Adds entries.
    ///
    /// # Errors
    /// When the batch is not of the schema.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), StorageError> {
        self.writer.write(batch).map_err(failed)
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

/// Reads a segment of our own from its bytes, handing each batch to `take`; `path` is for messages.
///
/// # Errors
/// [`StorageError::Damaged`] when it is no segment, or has not the entries that its name says. This looks at what the
/// control plane goes on from, not at every hash: that is `mcpg audit verify`.
pub fn read(
    path: &str,
    name: SegmentName,
    bytes: Bytes,
    mut take: impl FnMut(RecordBatch) -> Result<(), StorageError>,
) -> Result<SegmentEnd, StorageError> {
    let damaged = |reason: String| StorageError::damaged(path, reason);
    let builder = ParquetRecordBatchReaderBuilder::try_new(bytes).map_err(|e| damaged(e.to_string()))?;
    let metadata = builder.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
    let value = |key: &str| {
        let found = metadata.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
        found.ok_or_else(|| damaged(format!("its metadata has no {key}")))
    };
    if value(META_VERSION)? != entry::VERSION {
        return Err(damaged(format!("its entries are of version {}, not {}", value(META_VERSION)?, entry::VERSION)));
    }
    let position = value(META_POSITION)?.parse().map_err(|_| damaged(format!("its {META_POSITION} is no number")))?;
    let origin = value(META_ORIGIN)?;
    let standing = value(META_STANDING).ok();
    let (mut next, mut last) = (name.first, None);
    let reader = builder.with_batch_size(BATCH_ROWS).build().map_err(|e| damaged(e.to_string()))?;
    for batch in reader {
        let batch = batch.map_err(|e| damaged(e.to_string()))?;
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| damaged(format!("it has no column {name}")));
        let seqs =
            column("seq")?.as_primitive_opt::<Int64Type>().ok_or_else(|| damaged("seq is no int64".to_owned()))?;
        for seq in seqs.iter() {
            if seq.and_then(|seq| u64::try_from(seq).ok()) != Some(next) {
                return Err(damaged(format!("entry {next} is not where it should be")));
            }
            next += 1;
        }
        let hashes = column("entry_hash")?.as_string_opt::<i32>();
        let hashes = hashes.ok_or_else(|| damaged("entry_hash is no string".to_owned()))?;
        if let Some(hash) = hashes.iter().last() {
            last = hash.and_then(|hash| hash.parse::<Hash>().ok());
        }
        take(batch)?;
    }
    if next != name.last + 1 {
        return Err(damaged(format!("it ends before entry {next}, and its name says {}", name.last)));
    }
    let last = last.ok_or_else(|| damaged("its last entry_hash is no hash".to_owned()))?;
    Ok(SegmentEnd { origin, position, standing, head: ChainHead { size: next, last } })
}

/// The least and greatest `occurred_at` of entries, in µs: what prunes segments. None of no entries.
pub fn time_range<'a>(batches: impl IntoIterator<Item = &'a RecordBatch>) -> Option<(i64, i64)> {
    let columns = batches.into_iter().filter_map(|batch| batch.column_by_name("occurred_at"));
    let times = columns.filter_map(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    times
        .filter(|times| !times.is_empty())
        .filter_map(|times| arrow::compute::min(times).zip(arrow::compute::max(times)))
        .reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
}

#[cfg(test)]
mod tests {
    use super::SegmentName;

    #[test]
    fn a_name_is_both_ends_in_20_digits() {
        let name = SegmentName { first: 7, last: 123 };
        assert_eq!(name.to_string(), "00000000000000000007-00000000000000000123.parquet");
        assert_eq!(name.to_string().parse(), Ok(name));
        for bad in ["7-123.parquet", "00000000000000000123-00000000000000000007.parquet", "x", ""] {
            assert!(bad.parse::<SegmentName>().is_err(), "{bad}");
        }
    }
}
