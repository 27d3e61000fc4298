//! Folding partial rollups: rows of one window and series become one, by what `queries/usage_*.sql` merge them by when
//! they are read.
//!
//! | column | of the rows |
//! |---|---|
//! | `min_…`, `max_…` | the least, the greatest |
//! | `latency` | merged, bucket by bucket |
//! | other numbers | summed |
//! | the rest | the same in all of them |
//!
//! Each of these is exact and the same in any order (`rollup`), so that folding leaves no trace in an answer. Rows must
//! come in the order of their table: what is alike lies side by side. The last row is held back, since the next may
//! belong to it.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, Float64Builder, Int64Builder, PrimitiveArray, UInt64Array,
};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, Float64Type, Int64Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use crate::rollup::{Histogram, encode};
use crate::storage::parquet::Keys;

/// Folds the rows of one window and series into one.
#[derive(Debug)]
pub(super) struct Folder {
    keys: Keys,
    held: Option<RecordBatch>,
}

impl Folder {
    pub(super) fn new(keys: Keys) -> Self {
        Self { keys, held: None }
    }

    /// Takes rows that come after those before. Gives what is done.
    pub(super) fn push(&mut self, batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
        let batch = match self.held.take() {
            Some(held) => concat_batches(&batch.schema(), [&held, &batch])?,
            None => batch,
        };
        let folded = self.fold(&batch)?;
        let Some(last) = folded.num_rows().checked_sub(1) else { return Ok(folded) };
        self.held = Some(folded.slice(last, 1));
        Ok(folded.slice(0, last))
    }

    /// The row that was held back.
    pub(super) fn finish(&mut self) -> Option<RecordBatch> {
        self.held.take()
    }

    fn fold(&self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let keys = self.keys.rows(batch)?;
        // Where each row of the outcome begins, and the end of the last.
        let mut starts = vec![];
        for (row, (key, before)) in keys.iter().zip(std::iter::once(None).chain(keys.iter().map(Some))).enumerate() {
            if before != Some(key) {
                starts.push(row);
            }
        }
        if starts.len() == batch.num_rows() {
            return Ok(batch.clone());
        }
        let ends = starts.iter().skip(1).copied().chain([batch.num_rows()]);
        let groups: Vec<_> = starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect();
        let firsts: UInt64Array = starts.iter().map(|start| *start as u64).collect();
        let schema = batch.schema();
        let columns = schema
            .fields()
            .iter()
            .zip(batch.columns())
            .map(|(field, column)| of_column(field, column, &groups, &firsts));
        RecordBatch::try_new(Arc::clone(&schema), columns.collect::<Result<_, _>>()?)
    }
}

type Group = std::ops::Range<usize>;

fn of_column(field: &Field, column: &ArrayRef, groups: &[Group], firsts: &UInt64Array) -> Result<ArrayRef, ArrowError> {
    let name = field.name().as_str();
    Ok(match field.data_type() {
        DataType::Binary => latency(column, groups)?,
        DataType::Int64 => {
            let folded = values::<Int64Type>(column, groups, |a, b| match a.checked_add(b) {
                Some(sum) => Ok(sum),
                None => Err(ArrowError::ComputeError(format!("the sum of `{name}` is more than a BIGINT holds"))),
            });
            let mut built = Int64Builder::with_capacity(groups.len());
            folded?.into_iter().for_each(|value| built.append_option(value));
            Arc::new(built.finish())
        }
        DataType::Float64 => {
            let folded = values::<Float64Type>(column, groups, |a, b| {
                Ok(if name.starts_with("min_") {
                    a.min(b)
                } else if name.starts_with("max_") {
                    a.max(b)
                } else {
                    a + b
                })
            });
            let mut built = Float64Builder::with_capacity(groups.len());
            folded?.into_iter().for_each(|value| built.append_option(value));
            Arc::new(built.finish())
        }
        _ => take(column, firsts, None)?,
    })
}

/// The values of each group put together; what is null counts as nothing.
fn values<T: ArrowPrimitiveType>(
    column: &ArrayRef,
    groups: &[Group],
    join: impl Fn(T::Native, T::Native) -> Result<T::Native, ArrowError>,
) -> Result<Vec<Option<T::Native>>, ArrowError> {
    let column: &PrimitiveArray<T> = column.as_primitive();
    let of = |group: &Group| {
        let mut present = group.clone().filter(|row| column.is_valid(*row)).map(|row| column.value(row));
        let first = present.next();
        first.map(|first| present.try_fold(first, &join)).transpose()
    };
    groups.iter().map(of).collect()
}

fn latency(column: &ArrayRef, groups: &[Group]) -> Result<ArrayRef, ArrowError> {
    let column = column.as_binary::<i32>();
    let (mut built, mut bytes) = (BinaryBuilder::new(), Vec::new());
    for group in groups {
        let mut present = group.clone().filter(|row| column.is_valid(*row)).map(|row| column.value(row));
        match (group.len(), present.next()) {
            (_, None) => built.append_null(),
            (1, Some(only)) => built.append_value(only),
            (_, Some(first)) => {
                let mut histogram = Histogram::new();
                for one in std::iter::once(first).chain(present) {
                    histogram.merge_encoded(one).map_err(|e| ArrowError::ExternalError(Box::new(e)))?;
                }
                bytes.clear();
                encode(&histogram, &mut bytes);
                built.append_value(&bytes);
            }
        }
    }
    Ok(Arc::new(built.finish()))
}
