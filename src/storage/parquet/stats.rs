//! The statistics of a file that Delta's log carries: rows, nulls, and bounds where they can prune.

use std::sync::Arc;

use arrow::array::Array;
use arrow::datatypes::{DataType, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use chrono::DateTime;
use parquet::file::metadata::{ColumnChunkMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use serde_json::{Map, Value, json};

use super::layout::hardly_repeats;

/// The id that single calls are looked for by, of which bounds are kept: those of version 7 begin with their time.
pub const SOUGHT_ID: &str = "invocation_id";
/// Longer strings have no bounds in the log: Delta wants prefixes then, and short names are what pruning is for.
const MAX_BOUND_LEN: usize = 36;

/// What is counted of the rows of a file as they are written.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    rows: usize,
    nulls: Vec<usize>,
}

impl Counts {
    /// Counts rows.
    pub fn add(&mut self, batch: &RecordBatch) {
        self.rows += batch.num_rows();
        self.nulls.resize(batch.num_columns().max(self.nulls.len()), 0);
        for (nulls, column) in self.nulls.iter_mut().zip(batch.columns()) {
            *nulls += column.null_count();
        }
    }

    /// How many rows there are.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Delta's statistics of a file of these rows. The bounds are those that encoding has found of each row group.
    pub fn stats<'a>(&self, schema: &Schema, groups: impl Iterator<Item = &'a RowGroupMetaData> + Clone) -> Value {
        let (mut least, mut greatest, mut nulls) = (Map::new(), Map::new(), Map::new());
        for (index, (field, count)) in schema.fields().iter().zip(&self.nulls).enumerate() {
            nulls.insert(field.name().clone(), json!(count));
            let mut groups = groups.clone();
            let of_groups: Option<Vec<_>> = groups.try_fold(Vec::new(), |mut found, group: &RowGroupMetaData| {
                found.push(group.columns().get(index).and_then(ColumnChunkMetaData::statistics)?);
                Some(found)
            });
            if let Some((min, max)) = of_groups.and_then(|found| bounds(field.name(), field.data_type(), &found)) {
                least.insert(field.name().clone(), min);
                greatest.insert(field.name().clone(), max);
            }
        }
        json!({ "numRecords": self.rows, "minValues": least, "maxValues": greatest, "nullCount": nulls })
    }
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
        DataType::Utf8 if name == SOUGHT_ID || !hardly_repeats(name) => {
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

/// The bounds of column `column` in statistics made by [`Counts::stats`] or by another engine, in µs. Engines that keep
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

/// The bounds of a column of texts in such statistics.
pub fn text_bounds(stats: &Value, column: &str) -> Option<(Arc<str>, Arc<str>)> {
    let bound = |of: &str| Some(Arc::from(stats.get(of)?.get(column)?.as_str()?));
    bound("minValues").zip(bound("maxValues"))
}
