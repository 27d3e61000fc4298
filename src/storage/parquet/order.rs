//! Putting rows in the order of their table.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::interleave_record_batch;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use arrow::row::{RowConverter, Rows, SortField};

use super::layout::order;

/// What rows of one schema are compared by.
#[derive(Debug)]
pub struct Keys {
    converter: RowConverter,
    columns: Vec<usize>,
}

impl Keys {
    /// Of the rows of a table with this schema; none if the table has no order.
    ///
    /// # Errors
    /// When a column has a type that has no order, which those of ours have.
    pub fn of(schema: &arrow::datatypes::Schema) -> Result<Option<Self>, ArrowError> {
        let columns = order(schema).iter().map(|column| schema.index_of(column)).collect::<Result<Vec<_>, _>>()?;
        let fields: Vec<_> =
            columns.iter().map(|index| SortField::new(schema.field(*index).data_type().clone())).collect();
        if fields.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self { converter: RowConverter::new(fields)?, columns }))
    }

    /// The keys of the rows of a batch.
    ///
    /// # Errors
    /// When the batch is of another schema.
    pub fn rows(&self, batch: &RecordBatch) -> Result<Rows, ArrowError> {
        let columns: Vec<ArrayRef> = self.columns.iter().map(|index| Arc::clone(batch.column(*index))).collect();
        self.converter.convert_columns(&columns)
    }
}

/// Where the rows of some batches of one schema lie in order: pairs of a batch and a row of it. None where they are in
/// order as they are, or their table has none. Rows that are alike stay in their order.
///
/// # Errors
/// When the batches are not of one schema.
pub fn sorted(batches: &[RecordBatch]) -> Result<Option<Vec<(usize, usize)>>, ArrowError> {
    let Some(first) = batches.first() else { return Ok(None) };
    let Some(keys) = Keys::of(&first.schema())? else { return Ok(None) };
    let rows = batches.iter().map(|batch| keys.rows(batch)).collect::<Result<Vec<_>, _>>()?;
    let keyed = rows
        .iter()
        .enumerate()
        .flat_map(|(batch, rows)| rows.iter().enumerate().map(move |(row, key)| (key, (batch, row))));
    let mut keyed: Vec<_> = keyed.collect();
    if keyed.is_sorted_by(|a, b| a.0 <= b.0) {
        return Ok(None);
    }
    keyed.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(Some(keyed.into_iter().map(|(_, place)| place).collect()))
}

/// The rows at these places, as one batch.
///
/// # Errors
/// When the batches are not of one schema, or a place is not in them.
pub fn taken(batches: &[RecordBatch], places: &[(usize, usize)]) -> Result<RecordBatch, ArrowError> {
    interleave_record_batch(&batches.iter().collect::<Vec<_>>(), places)
}
