//! Segments: the ledger's entries on the store, one Parquet file for a run of them.
//!
//! `orgs/<org>/audit/segments/<first>-<last>.parquet`, both ends `seq` in 20 digits. The columns are those of
//! `schemas/audit_log.sql`; the file's key-value metadata holds what each entry is hashed with and no column repeats:
//! `mcpg.v` and `mcpg.origin`. There is nothing else to believe: no column statistics, no page index, no bloom filters,
//! no embedded Arrow schema. Whatever decides something is read from rows that were verified, or comes from
//! authenticated objects elsewhere.
//!
//! Segments of the first design have statistics and two more keys of metadata, `mcpg.position` and `mcpg.standing`.
//! [`read`] gives these back, for bringing such a store over and for nothing else: no signature covers them.
//!
//! A segment is created if absent and never written again. The same range always has the same entries, so of two nodes
//! that write it one is as good as the other.
//!
//! Segments are merged by [`merge`], which copies row groups as they are encoded where they are large enough. The
//! trade-off is in [`SPLICE_ROWS`].

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::file::metadata::{ColumnChunkMetaData, KeyValue, RowGroupMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;

use super::{ChainHead, Hash, entry};
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
/// Row groups of at least so many rows are copied as they are when segments are merged; smaller ones are decoded and
/// encoded again, together. So an entry is encoded again only while its row group is small, and a segment of a million
/// entries has at most 64 row groups, whose metadata stays small beside the rows.
pub const SPLICE_ROWS: u64 = 16_384;
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
    /// `mcpg.position` of a segment of the first design. Nothing proves it.
    pub position: Option<u64>,
    /// `mcpg.standing` of a segment of the first design. Nothing proves it.
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

    /// Adds the metadata of version 1, which nothing believes.
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

/// A segment that was opened: its metadata was found to be that of entries.
struct Opened {
    bytes: Bytes,
    reader: ArrowReaderMetadata,
    origin: String,
    position: Option<u64>,
    standing: Option<String>,
}

impl Opened {
    fn new(path: &str, bytes: Bytes) -> Result<Self, StorageError> {
        let damaged = |reason: String| StorageError::damaged(path, reason);
        // The Arrow schema that segments of the first design embed is a second word on the columns; Parquet's own
        // counts.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_encoding_stats_as_mask(false);
        let reader = ArrowReaderMetadata::load(&bytes, options).map_err(|e| damaged(e.to_string()))?;
        let metadata = reader.metadata().file_metadata().key_value_metadata().cloned().unwrap_or_default();
        let find = |key: &str| metadata.iter().find(|pair| pair.key == key).and_then(|pair| pair.value.clone());
        let value = |key: &str| find(key).ok_or_else(|| damaged(format!("its metadata has no {key}")));
        let version = value(META_VERSION)?;
        if version != entry::VERSION {
            return Err(damaged(format!("its entries are of version {version}, not {}", entry::VERSION)));
        }
        let origin = value(META_ORIGIN)?;
        let position = find(META_POSITION).and_then(|position| position.parse().ok());
        Ok(Self { bytes, reader, origin, position, standing: find(META_STANDING) })
    }

    fn builder(&self) -> ParquetRecordBatchReaderBuilder<Bytes> {
        let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(self.bytes.clone(), self.reader.clone());
        builder.with_batch_size(BATCH_ROWS)
    }
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
    let opened = Opened::new(path, bytes)?;
    let head = numbered(path, name, opened.builder(), &mut take)?;
    let Opened { origin, position, standing, .. } = opened;
    Ok(SegmentEnd { origin, position, standing, head })
}

/// Reads rows and makes sure that they are numbered as the segment's name says; gives where they leave the chain.
fn numbered(
    path: &str,
    name: SegmentName,
    builder: ParquetRecordBatchReaderBuilder<Bytes>,
    take: &mut dyn FnMut(RecordBatch) -> Result<(), StorageError>,
) -> Result<ChainHead, StorageError> {
    let damaged = |reason: String| StorageError::damaged(path, reason);
    let (mut next, mut last) = (name.first, None);
    let reader = builder.build().map_err(|e| damaged(e.to_string()))?;
    for batch in reader {
        let batch = batch.map_err(|e| damaged(e.to_string()))?;
        let column = |name: &str| batch.column_by_name(name).ok_or_else(|| damaged(format!("it has no column {name}")));
        let seqs =
            column("seq")?.as_primitive_opt::<Int64Type>().ok_or_else(|| damaged("seq is no int64".to_owned()))?;
        for seq in seqs.iter() {
            if next > name.last || seq.and_then(|seq| u64::try_from(seq).ok()) != Some(next) {
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
    Ok(ChainHead { size: next, last })
}

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

/// Whether a column chunk is as [`SegmentWriter`] writes it: compressed the same way, and without a word on its values.
fn is_plain(column: &ColumnChunkMetaData) -> bool {
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
    use arrow::compute::concat_batches;
    use arrow::record_batch::RecordBatch;
    use bytes::Bytes;
    use parquet::arrow::ArrowWriter;
    use parquet::file::metadata::{KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
    use parquet::file::properties::{EnabledStatistics, WriterProperties};

    use super::{META_POSITION, META_STANDING, SPLICE_ROWS, SegmentName, SegmentWriter, merge, read};
    use crate::audit::Hash;
    use crate::audit::fixtures::{ORIGIN, entries};
    use crate::model::schema::schemas;

    fn name(first: usize, last: usize) -> SegmentName {
        SegmentName { first: first as u64, last: last as u64 }
    }

    fn written(batch: &RecordBatch) -> Bytes {
        let mut writer = SegmentWriter::new(&batch.schema(), ORIGIN).unwrap();
        writer.write(batch).unwrap();
        writer.finish().unwrap()
    }

    /// A segment as the first design wrote it.
    fn of_the_first_design(batch: &RecordBatch) -> Bytes {
        let form = WriterProperties::builder().set_statistics_enabled(EnabledStatistics::Chunk).build();
        let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(form)).unwrap();
        writer.write(batch).unwrap();
        for (key, value) in
            [("mcpg.v", "mcpg.audit/1"), ("mcpg.origin", ORIGIN), (META_POSITION, "17"), (META_STANDING, "{}")]
        {
            writer.append_key_value_metadata(KeyValue::new(key.to_owned(), value.to_owned()));
        }
        writer.into_inner().unwrap().into()
    }

    fn rows(bytes: &Bytes, name: SegmentName) -> RecordBatch {
        let mut batches = Vec::new();
        read("x", name, bytes.clone(), |batch| {
            batches.push(batch);
            Ok(())
        })
        .unwrap();
        concat_batches(&schemas().unwrap().audit_log, &batches).unwrap()
    }

    fn metadata(bytes: &Bytes) -> ParquetMetaData {
        ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional).parse_and_finish(bytes).unwrap()
    }

    #[test]
    fn a_name_is_both_ends_in_20_digits() {
        let name = SegmentName { first: 7, last: 123 };
        assert_eq!(name.to_string(), "00000000000000000007-00000000000000000123.parquet");
        assert_eq!(name.to_string().parse(), Ok(name));
        for bad in ["7-123.parquet", "00000000000000000123-00000000000000000007.parquet", "x", ""] {
            assert!(bad.parse::<SegmentName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_segment_says_nothing_of_its_rows_beside_them() {
        let batch = entries(500);
        let bytes = written(&batch);
        assert_eq!(rows(&bytes, name(0, 499)), batch);
        let metadata = metadata(&bytes);
        let keys = metadata.file_metadata().key_value_metadata().unwrap().iter().map(|pair| pair.key.as_str());
        assert_eq!(keys.collect::<Vec<_>>(), ["mcpg.v", "mcpg.origin"]);
        assert!(metadata.column_index().is_none() && metadata.offset_index().is_none());
        for column in metadata.row_groups().iter().flat_map(|group| group.columns()) {
            assert!(super::is_plain(column), "{column:?}");
        }
    }

    #[test]
    fn a_segment_of_the_first_design_is_read_and_its_bookmarks_come_back() {
        let batch = entries(50);
        let bytes = of_the_first_design(&batch);
        assert_eq!(rows(&bytes, name(0, 49)), batch);
        let end = read("x", name(0, 49), bytes, |_| Ok(())).unwrap();
        assert_eq!((end.position, end.standing.as_deref(), end.head.size), (Some(17), Some("{}"), 50));
        let end = read("x", name(0, 49), written(&batch), |_| Ok(())).unwrap();
        assert_eq!((end.position, end.standing), (None, None));
    }

    #[test]
    fn rows_that_are_not_those_of_the_name_are_damage() {
        let bytes = written(&entries(50));
        for (first, last) in [(0, 48), (0, 50), (1, 50)] {
            assert!(read("x", name(first, last), bytes.clone(), |_| Ok(())).unwrap_err().is_damage());
        }
    }

    /// Cuts the entries into parts that end at these numbers.
    fn parts(batch: &RecordBatch, ends: &[usize], write: fn(&RecordBatch) -> Bytes) -> Vec<(SegmentName, Bytes)> {
        let mut from = 0;
        let part = |end: &usize| {
            let part = (name(from, *end - 1), write(&batch.slice(from, *end - from)));
            from = *end;
            part
        };
        ends.iter().map(part).collect()
    }

    #[test]
    fn merging_keeps_every_row_whatever_the_parts_are() {
        let large = SPLICE_ROWS as usize;
        let all = entries(2 * large + 100);
        let ends = [1, 20, 20 + large, 50 + large, 50 + 2 * large, all.num_rows()];
        for (write, is_plain) in [(written as fn(&RecordBatch) -> Bytes, true), (of_the_first_design, false)] {
            let parts = parts(&all, &ends, write);
            let merged = merge(&all.schema(), ORIGIN, &parts).unwrap();
            assert_eq!(rows(&merged, name(0, all.num_rows() - 1)), all);
            assert_eq!(merge(&all.schema(), ORIGIN, &parts).unwrap(), merged, "the same parts give the same bytes");
            let metadata = metadata(&merged);
            assert!(metadata.row_groups().iter().flat_map(|group| group.columns()).all(super::is_plain));
            let groups: Vec<_> = metadata.row_groups().iter().map(|group| group.num_rows() as usize).collect();
            let expected = if is_plain { vec![20, large, 30, large, 50] } else { vec![all.num_rows()] };
            assert_eq!(groups, expected);
        }
    }

    #[test]
    fn large_row_groups_are_copied_as_they_are_encoded() {
        let large = SPLICE_ROWS as usize;
        let all = entries(2 * large);
        let parts = parts(&all, &[large, 2 * large], written);
        let merged = merge(&all.schema(), ORIGIN, &parts).unwrap();
        let (whole, part) = (metadata(&merged), metadata(&parts[1].1));
        for (column, of_part) in whole.row_group(1).columns().iter().zip(part.row_group(0).columns()) {
            let bytes =
                |file: &Bytes, (from, length): (u64, u64)| Hash::of(&[&file[from as usize..(from + length) as usize]]);
            assert_eq!(bytes(&merged, column.byte_range()), bytes(&parts[1].1, of_part.byte_range()));
        }
    }

    #[test]
    fn parts_that_do_not_follow_each_other_or_are_of_another_ledger_are_damage() {
        let all = entries(60);
        let good = parts(&all, &[20, 40, 60], written);
        let swapped = vec![good[1].clone(), good[0].clone()];
        let gap = vec![good[0].clone(), good[2].clone()];
        let renamed = vec![good[0].clone(), (name(20, 39), good[2].1.clone())];
        let mut other = entries(60).slice(20, 20);
        let column = other.schema().index_of("prev_hash").unwrap();
        let mut columns = other.columns().to_vec();
        columns[column] = std::sync::Arc::clone(other.column_by_name("entry_hash").unwrap());
        other = RecordBatch::try_new(other.schema(), columns).unwrap();
        let unlinked = vec![good[0].clone(), (name(20, 39), written(&other))];
        for bad in [swapped, gap, renamed, unlinked] {
            assert!(merge(&all.schema(), ORIGIN, &bad).unwrap_err().is_damage());
        }
        assert!(merge(&all.schema(), "x/orgs/acme/audit/1", &good).unwrap_err().is_damage());
    }
}
