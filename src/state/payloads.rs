//! Sealed payloads of one org: the rows that its table lacks, and which records they are.
//!
//! A row of the live buffer names the object that holds its bytes, so the buffer is small however large payloads are.
//! What is remembered of each record is its hash, for as long as its row is live: another record of the same call and
//! direction is refused then.
//!
//! It is memory only: after a crash it is made again from the log.

use std::collections::HashMap;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::kernels::numeric::add;
use arrow::datatypes::Int64Type;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

use super::live::LiveBuffer;
use crate::storage::table::TableSnapshot;

/// A call and a direction.
type Which = (String, String);

/// An org's sealed payloads that its table lacks.
#[derive(Debug, Default)]
pub struct Payloads {
    /// The table as queries see it.
    pub table: TableSnapshot,
    /// Rows that the table lacks.
    pub live: LiveBuffer,
    /// Bytes that these rows' payloads have, which a flush reads.
    pub waiting: u64,
    /// The records of live rows, with their positions.
    known: HashMap<Which, (u64, String)>,
}

fn text<'a>(batch: &'a RecordBatch, column: &str) -> Option<&'a arrow::array::StringArray> {
    batch.column_by_name(column)?.as_string_opt::<i32>()
}

/// The sum of the bytes that the rows of a batch name.
pub(crate) fn named_bytes(batch: &RecordBatch) -> u64 {
    let column = |name| batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
    let sum = |name| column(name).and_then(arrow::compute::sum).and_then(|sum| u64::try_from(sum).ok()).unwrap_or(0);
    sum("record_bytes")
}

/// Rows with the numbers of their entries, which begin with `first`: the log has them from 0 on.
///
/// # Errors
/// When the batch is of another schema.
pub(crate) fn numbered(batch: &RecordBatch, first: u64) -> Result<RecordBatch, ArrowError> {
    let (index, _) = batch
        .schema_ref()
        .column_with_name("ledger_seq")
        .ok_or_else(|| ArrowError::SchemaError("no column ledger_seq".to_owned()))?;
    let first = i64::try_from(first).map_err(|e| ArrowError::ComputeError(e.to_string()))?;
    let numbers = add(batch.column(index), &Int64Array::new_scalar(first))?;
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    if let Some(column) = columns.get_mut(index) {
        *column = numbers;
    }
    RecordBatch::try_new(batch.schema(), columns)
}

impl Payloads {
    /// Adds the rows of a position.
    pub(crate) fn push(&mut self, position: u64, batch: RecordBatch) {
        self.waiting = self.waiting.saturating_add(named_bytes(&batch));
        for (which, hash) in records(&batch) {
            self.known.entry(which).or_insert((position, hash));
        }
        self.live.push(position, batch);
    }

    /// The first call of a batch of which another record is known, if there is one.
    pub(crate) fn conflict(&self, batch: &RecordBatch) -> Option<Which> {
        let mut within: HashMap<Which, String> = HashMap::new();
        for (which, hash) in records(batch) {
            let before = self.known.get(&which).map(|(_, hash)| hash).or_else(|| within.get(&which));
            if before.is_some_and(|before| *before != hash) {
                return Some(which);
            }
            within.insert(which, hash);
        }
        None
    }

    /// Forgets what the table holds.
    pub(crate) fn release(&mut self) {
        let held = self.table.position;
        self.live.release(held);
        self.known.retain(|_, (position, _)| *position > held);
        self.waiting = self.live.after(held).iter().map(named_bytes).sum();
    }

    /// The position that the table must come to hold, so that no row is only in the log.
    pub(crate) fn owed(&self) -> u64 {
        self.live.last_position().filter(|last| *last > self.table.position).unwrap_or(self.table.position)
    }
}

/// The records of a batch: call, direction and hash.
fn records(batch: &RecordBatch) -> Vec<(Which, String)> {
    let columns = (text(batch, "invocation_id"), text(batch, "direction"), text(batch, "record_hash"));
    let (Some(ids), Some(directions), Some(hashes)) = columns else { return Vec::new() };
    let rows = 0..batch.num_rows();
    rows.filter(|row| ids.is_valid(*row))
        .map(|row| ((ids.value(row).to_owned(), directions.value(row).to_owned()), hashes.value(row).to_owned()))
        .collect()
}
