//! Encoding table rows as Parquet files, one a partition date, each with the statistics that Delta's log carries.
//!
//! Chosen by measurement: zstd 1; times and counts as DELTA_BINARY_PACKED; no dictionary for ids and durations, which
//! hardly repeat; ids of calls as DELTA_BYTE_ARRAY, since those of one moment begin alike, and the other ids as
//! DELTA_LENGTH_BYTE_ARRAY, which packs better than lengths among the digits; dictionaries for the rest. No bounds are kept of
//! random ids. The partition column is not stored in the file, as Delta has it.

use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, AsArray};
use arrow::compute;
use arrow::datatypes::{DataType, Date32Type, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::DateTime;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, compute_leaves};
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaDataPtr};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::statistics::Statistics;
use parquet::schema::types::ColumnPath;
use serde_json::{Map, Value, json};

use super::StorageError;
use crate::model::schema::PARTITION_COLUMN;

/// Rows of a row group: a unit of parallel reading and of pruning.
const ROW_GROUP_ROWS: usize = 262_144;
/// Longer strings have no bounds in the log: Delta wants prefixes then, and short names are what pruning is for.
const MAX_BOUND_LEN: usize = 32;

/// An encoded file, not yet in the store.
#[derive(Debug, Clone)]
pub struct EncodedFile {
    /// Partition value: days since the Unix epoch.
    pub date: i32,
    /// The Parquet bytes.
    pub bytes: Bytes,
    /// Delta's statistics, JSON.
    pub stats: String,
}

/// Encodes batches of one table, in the order given, as one file a partition date, on up to `threads` threads, of which the
/// caller's is one. The bytes do not depend on how many.
///
/// # Errors
/// When a batch is not of the table's schema, or Parquet cannot encode it.
pub fn encode(schema: &SchemaRef, batches: &[RecordBatch], threads: usize) -> Result<Vec<EncodedFile>, StorageError> {
    let failed = |e: ParquetError| StorageError::failed("encode", "a Parquet file", e);
    let mut files = Vec::new();
    for (date, rows) in split_by_date(schema, batches).map_err(|e| failed(e.into()))? {
        let Some(first) = rows.first() else { continue };
        let (bytes, groups) = encode_file(properties(&first.schema())?, &rows, threads).map_err(failed)?;
        files.push(EncodedFile { date, bytes, stats: stats(&rows, &groups).to_string() });
    }
    Ok(files)
}

/// One file of batches, of which there is at least one, and what is known of its row groups.
fn encode_file(
    properties: WriterProperties,
    rows: &[RecordBatch],
    threads: usize,
) -> Result<(Bytes, Vec<RowGroupMetaDataPtr>), ParquetError> {
    let schema = rows.first().map(RecordBatch::schema).ok_or_else(|| ParquetError::General("no batch".to_owned()))?;
    let writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
    let (mut file, factory) = writer.into_serialized_writer()?;
    let mut groups = Vec::new();
    for (number, group) in row_groups(rows).iter().enumerate() {
        let chunks = encode_columns(&schema, factory.create_column_writers(number)?, group, threads)?;
        let mut row_group = file.next_row_group()?;
        chunks.into_iter().try_for_each(|chunk| chunk.append_to_row_group(&mut row_group))?;
        groups.push(row_group.close()?);
    }
    Ok((file.into_inner()?.into(), groups))
}

/// The batches as they come to lie in row groups, cut where a group is full.
fn row_groups(rows: &[RecordBatch]) -> Vec<Vec<RecordBatch>> {
    let (mut groups, mut group, mut room) = (Vec::new(), Vec::new(), ROW_GROUP_ROWS);
    for batch in rows {
        let mut at = 0;
        while at < batch.num_rows() {
            let taken = room.min(batch.num_rows() - at);
            group.push(batch.slice(at, taken));
            (at, room) = (at + taken, room - taken);
            if room == 0 {
                groups.push(std::mem::take(&mut group));
                room = ROW_GROUP_ROWS;
            }
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

/// The columns of one row group, encoded by several threads, each of which takes the next column when it is done with one.
/// Column by column also means that what is at work, a dictionary above all, stays in the processor's cache.
fn encode_columns(
    schema: &SchemaRef,
    writers: Vec<ArrowColumnWriter>,
    rows: &[RecordBatch],
    threads: usize,
) -> Result<Vec<ArrowColumnChunk>, ParquetError> {
    if writers.len() != schema.fields().len() {
        return Err(ParquetError::NYI("columns of several leaves".to_owned()));
    }
    let mut columns: Vec<_> = writers.into_iter().enumerate().collect();
    // The last is taken first: that with the most bytes, so that no thread is left with it at the end.
    columns.sort_by_cached_key(|(column, _)| column_bytes(rows, *column));
    let columns = Mutex::new(columns);
    let work = || {
        let mut done = Vec::new();
        loop {
            let next = columns.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some((column, mut writer)) = next else { return Ok::<_, ParquetError>(done) };
            for batch in rows {
                for leaf in compute_leaves(schema.field(column), batch.column(column))? {
                    writer.write(&leaf)?;
                }
            }
            done.push((column, writer.close()?));
        }
    };
    let mut chunks = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut chunks = work()?;
        for other in others {
            chunks.extend(other.join().map_err(|_| ParquetError::General("an encoding thread ended".to_owned()))??);
        }
        Ok::<_, ParquetError>(chunks)
    })?;
    chunks.sort_unstable_by_key(|(column, _)| *column);
    Ok(chunks.into_iter().map(|(_, chunk)| chunk).collect())
}

fn column_bytes(rows: &[RecordBatch], column: usize) -> usize {
    let bytes = |batch: &RecordBatch| batch.column(column).to_data().get_slice_memory_size().unwrap_or_default();
    rows.iter().map(bytes).sum()
}

/// How a table's columns are laid out in Parquet.
///
/// # Errors
/// Never in practice: the compression level is a constant that Parquet takes.
pub fn properties(schema: &SchemaRef) -> Result<WriterProperties, StorageError> {
    let zstd = ZstdLevel::try_new(1).map_err(|e| StorageError::failed("encode", "a Parquet file", e))?;
    let mut properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(zstd))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::Page);
    for field in schema.fields() {
        let column = ColumnPath::from(field.name().as_str());
        properties = match field.data_type() {
            DataType::Timestamp(..) | DataType::Int64 => properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED),
            DataType::Float64 | DataType::Binary => properties.set_column_dictionary_enabled(column, false),
            DataType::Utf8 if field.name() == "invocation_id" => properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BYTE_ARRAY),
            DataType::Utf8 if hardly_repeats(field.name()) => properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column.clone(), Encoding::DELTA_LENGTH_BYTE_ARRAY)
                .set_column_statistics_enabled(column, EnabledStatistics::None),
            _ => properties,
        };
    }
    Ok(properties.build())
}

/// Whether nearly every row has another value: a dictionary would be built and thrown away.
fn hardly_repeats(column: &str) -> bool {
    matches!(column, "invocation_id" | "request_id" | "trace_id" | "span_id")
}

fn split_by_date(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<(i32, Vec<RecordBatch>)>, ArrowError> {
    let (index, _) = schema
        .column_with_name(PARTITION_COLUMN)
        .ok_or_else(|| ArrowError::SchemaError(format!("no column {PARTITION_COLUMN}")))?;
    let stored: Vec<usize> = (0..schema.fields().len()).filter(|i| *i != index).collect();
    let mut days: Vec<(i32, Vec<RecordBatch>)> = Vec::new();
    for batch in batches {
        let dates = batch.column(index).as_primitive::<Date32Type>();
        let (Some(first), Some(last)) = (compute::min(dates), compute::max(dates)) else { continue };
        let projected = batch.project(&stored)?;
        let mut put = |date: i32, rows: RecordBatch| match days.iter_mut().find(|day| day.0 == date) {
            Some(day) => day.1.push(rows),
            None => days.push((date, vec![rows])),
        };
        if first == last {
            put(first, projected);
            continue;
        }
        let mut present: Vec<i32> = dates.values().to_vec();
        present.sort_unstable();
        present.dedup();
        for date in present {
            let mask = compute::kernels::cmp::eq(dates, &arrow::array::Date32Array::new_scalar(date))?;
            put(date, compute::filter_record_batch(&projected, &mask)?);
        }
    }
    Ok(days)
}

/// Delta's statistics: number of records, null counts, and bounds where they can prune. The bounds are those that encoding
/// has found of each row group.
fn stats(rows: &[RecordBatch], groups: &[RowGroupMetaDataPtr]) -> Value {
    let (mut least, mut greatest, mut nulls) = (Map::new(), Map::new(), Map::new());
    let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
    let schema = rows.first().map(RecordBatch::schema).unwrap_or_else(|| Arc::new(arrow::datatypes::Schema::empty()));
    for (index, field) in schema.fields().iter().enumerate() {
        let columns = rows.iter().map(|batch| batch.column(index));
        nulls.insert(field.name().clone(), json!(columns.map(|c| c.null_count()).sum::<usize>()));
        let of_groups: Option<Vec<_>> =
            groups.iter().map(|group| group.columns().get(index).and_then(ColumnChunkMetaData::statistics)).collect();
        if let Some((min, max)) = of_groups.and_then(|found| bounds(field.name(), field.data_type(), &found)) {
            least.insert(field.name().clone(), min);
            greatest.insert(field.name().clone(), max);
        }
    }
    json!({ "numRecords": count, "minValues": least, "maxValues": greatest, "nullCount": nulls })
}

fn bounds(name: &str, data_type: &DataType, found: &[&Statistics]) -> Option<(Value, Value)> {
    match data_type {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let (min, max) = whole_bounds(found)?;
            Some((time_text(min)?, time_text(max)?))
        }
        DataType::Int64 => whole_bounds(found).map(|(min, max)| (json!(min), json!(max))),
        DataType::Float64 => {
            let (min, max) = fold(found.iter().filter_map(|found| match found {
                Statistics::Double(of) => of.min_opt().copied().zip(of.max_opt().copied()),
                _ => None,
            }))?;
            // Parquet writes a bound of zero as one that covers both zeros.
            Some((json!(min + 0.0), json!(max + 0.0)))
        }
        DataType::Utf8 if !hardly_repeats(name) => {
            let (min, max) = fold(
                found
                    .iter()
                    .filter_map(|found| match found {
                        Statistics::ByteArray(of) => of.min_opt().zip(of.max_opt()),
                        _ => None,
                    })
                    .map(|(min, max)| (min.data(), max.data())),
            )?;
            let text = |bound: &[u8]| Some(json!(std::str::from_utf8(bound).ok()?));
            if min.len() > MAX_BOUND_LEN || max.len() > MAX_BOUND_LEN { None } else { text(min).zip(text(max)) }
        }
        _ => None,
    }
}

fn whole_bounds(found: &[&Statistics]) -> Option<(i64, i64)> {
    fold(found.iter().filter_map(|found| match found {
        Statistics::Int64(of) => of.min_opt().copied().zip(of.max_opt().copied()),
        _ => None,
    }))
}

fn fold<T: PartialOrd + Copy>(pairs: impl Iterator<Item = (T, T)>) -> Option<(T, T)> {
    pairs.reduce(|a, b| (if b.0 < a.0 { b.0 } else { a.0 }, if b.1 > a.1 { b.1 } else { a.1 }))
}

/// A time as Delta's statistics write it; see [`time_bounds`] for the way back.
fn time_text(micros: i64) -> Option<Value> {
    Some(json!(DateTime::from_timestamp_micros(micros)?.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()))
}

/// The bounds of column `column` in statistics made by [`encode`] or by another engine, in µs. Engines that keep
/// milliseconds cut the rest off, so the upper bound is taken a millisecond later.
pub fn time_bounds(stats: &Value, column: &str) -> Option<(i64, i64)> {
    let parse = |bound: &str| {
        let text = stats.get(bound)?.get(column)?.as_str()?;
        Some((DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros(), text.len()))
    };
    let ((min, _), (max, len)) = (parse("minValues")?, parse("maxValues")?);
    let exact = "2026-01-01T00:00:00.000000Z".len();
    Some((min, if len >= exact { max } else { max + 999 }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Date32Array, Int64Array, StringArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::{DataType, Field, Schema};
    use arrow::record_batch::RecordBatch;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use proptest::prelude::*;

    use super::{ROW_GROUP_ROWS, encode, row_groups};

    fn batch(numbers: std::ops::Range<i64>) -> RecordBatch {
        let fields = [("n", DataType::Int64), ("tool", DataType::Utf8), ("date", DataType::Date32)];
        let schema = Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, false)).to_vec());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(numbers.clone())),
            Arc::new(StringArray::from_iter_values(numbers.clone().map(|n| format!("tool-{}", n % 7)))),
            Arc::new(Date32Array::from_iter_values(numbers.map(|_| 3))),
        ];
        RecordBatch::try_new(Arc::new(schema), columns).unwrap()
    }

    #[test]
    fn the_bytes_are_the_same_on_any_number_of_threads_and_hold_every_row_in_order() {
        let batches = [batch(0..1000), batch(1000..1001), batch(1001..30_000)];
        let encoded = |threads| encode(&batches[0].schema(), &batches, threads).unwrap().remove(0);
        let file = encoded(1);
        assert_eq!((file.date, &file.bytes), (3, &encoded(4).bytes));
        let reader = ParquetRecordBatchReaderBuilder::try_new(file.bytes).unwrap().build().unwrap();
        let read: Vec<_> = reader.map(Result::unwrap).collect();
        let expected = batch(0..30_000).project(&[0, 1]).unwrap();
        assert_eq!(concat_batches(&read[0].schema(), &read).unwrap().columns(), expected.columns());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        /// Each group but the last is full, and none is empty.
        #[test]
        fn row_groups_are_full_but_for_the_last(sizes in prop::collection::vec(0i64..200_000, 0..8)) {
            let batches: Vec<_> = sizes.iter().map(|size| batch(0..*size).project(&[0]).unwrap()).collect();
            let rows = |group: &Vec<RecordBatch>| group.iter().map(RecordBatch::num_rows).sum::<usize>();
            let groups = row_groups(&batches);
            prop_assert_eq!(groups.iter().map(rows).sum::<usize>() as i64, sizes.iter().sum::<i64>());
            if let Some((last, full)) = groups.split_last() {
                prop_assert!(full.iter().all(|group| rows(group) == ROW_GROUP_ROWS));
                prop_assert!((1..=ROW_GROUP_ROWS).contains(&rows(last)));
            }
        }
    }
}
