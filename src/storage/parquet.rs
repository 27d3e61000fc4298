//! Encoding table rows as Parquet files, one a partition date, each with the statistics that Delta's log carries.
//!
//! Chosen by measurement: zstd 1; times and counts as DELTA_BINARY_PACKED; no dictionary for ids, hashes and
//! durations, which hardly repeat; dictionaries for the rest. The partition column is not stored in the file, as
//! Delta has it.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute;
use arrow::datatypes::{DataType, Date32Type, Float64Type, Int64Type, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::DateTime;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
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

/// Encodes batches of one table, in the order given, as one file a partition date.
///
/// # Errors
/// When a batch is not of the table's schema, or Parquet cannot encode it.
pub fn encode(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Vec<EncodedFile>, StorageError> {
    let failed = |e: ParquetError| StorageError::failed("encode", "a Parquet file", e);
    let mut files = Vec::new();
    for (date, rows) in split_by_date(schema, batches).map_err(|e| failed(e.into()))? {
        let Some(first) = rows.first() else { continue };
        let mut writer =
            ArrowWriter::try_new(Vec::new(), first.schema(), Some(properties(&first.schema())?)).map_err(failed)?;
        for batch in &rows {
            writer.write(batch).map_err(failed)?;
        }
        let bytes = writer.into_inner().map_err(failed)?.into();
        files.push(EncodedFile { date, bytes, stats: stats(&rows).map_err(|e| failed(e.into()))?.to_string() });
    }
    Ok(files)
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
            DataType::Timestamp(..) | DataType::Int64 if !field.name().contains("bytes") => properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED),
            DataType::Float64 | DataType::Binary => properties.set_column_dictionary_enabled(column, false),
            DataType::Utf8 if hardly_repeats(field.name()) => properties.set_column_dictionary_enabled(column, false),
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

/// Delta's statistics: number of records, null counts, and bounds where they can prune.
fn stats(rows: &[RecordBatch]) -> Result<Value, ArrowError> {
    let (mut least, mut greatest, mut nulls) = (Map::new(), Map::new(), Map::new());
    let count: usize = rows.iter().map(RecordBatch::num_rows).sum();
    let schema = rows.first().map(RecordBatch::schema).unwrap_or_else(|| Arc::new(arrow::datatypes::Schema::empty()));
    for (index, field) in schema.fields().iter().enumerate() {
        let columns = || rows.iter().map(|batch| batch.column(index));
        nulls.insert(field.name().clone(), json!(columns().map(|c| c.null_count()).sum::<usize>()));
        if let Some((min, max)) = bounds(field.name(), field.data_type(), columns()) {
            least.insert(field.name().clone(), min);
            greatest.insert(field.name().clone(), max);
        }
    }
    Ok(json!({ "numRecords": count, "minValues": least, "maxValues": greatest, "nullCount": nulls }))
}

fn bounds<'a>(name: &str, data_type: &DataType, columns: impl Iterator<Item = &'a ArrayRef>) -> Option<(Value, Value)> {
    match data_type {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let (min, max) = fold(columns.filter_map(|c| {
                let c = c.as_primitive::<TimestampMicrosecondType>();
                compute::min(c).zip(compute::max(c))
            }))?;
            Some((time_text(min)?, time_text(max)?))
        }
        DataType::Int64 => {
            let (min, max) = fold(columns.filter_map(|c| {
                let c = c.as_primitive::<Int64Type>();
                compute::min(c).zip(compute::max(c))
            }))?;
            Some((json!(min), json!(max)))
        }
        DataType::Float64 => {
            let (min, max) = fold(columns.filter_map(|c| {
                let c = c.as_primitive::<Float64Type>();
                compute::min(c).zip(compute::max(c))
            }))?;
            Some((json!(min), json!(max)))
        }
        DataType::Utf8 if !hardly_repeats(name) => {
            let (min, max) = fold(columns.filter_map(|c| {
                let c = c.as_string::<i32>();
                compute::min_string(c).zip(compute::max_string(c))
            }))?;
            (min.len() <= MAX_BOUND_LEN && max.len() <= MAX_BOUND_LEN).then(|| (json!(min), json!(max)))
        }
        _ => None,
    }
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
