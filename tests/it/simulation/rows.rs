//! Batches of samples and of audit events, whose ids say which batch and which row they are.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, Date32Array, Float64Array, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::{FieldRef, SchemaRef};
use arrow::record_batch::RecordBatch;
use mcpg::ingest::RowKind;
use mcpg::model::schema::schemas;
use uuid::Uuid;

use super::sea::BEGAN;

const HOUR: i64 = 3_600_000_000;
const DAY: i64 = 24 * HOUR;
/// What tells the ids of these rows from those of rows that the control plane makes itself.
const MARK: u128 = 0x51 << 120;
const EVENT: u128 = 1 << 100;
/// Series an org, at most.
pub(super) const TOOLS: u64 = 5;

/// The id of a row.
fn id(kind: RowKind, batch: u64, row: usize) -> Uuid {
    let kind = if kind == RowKind::Event { EVENT } else { 0 };
    Uuid::from_u128(MARK | kind | (u128::from(batch) << 32) | row as u128)
}

/// The batch and the row that an id was made for; none if the control plane made it.
pub(super) fn number_of(id: &str) -> Option<(u64, u32)> {
    let id = id.parse::<Uuid>().unwrap().as_u128();
    (id & (0xff << 120) == MARK).then_some((((id & (EVENT - 1)) >> 32) as u64, id as u32))
}

/// The numbers of the rows of a batch that was read, from the column that holds their ids.
pub(super) fn numbers(batch: &RecordBatch, column: &str) -> Vec<Option<(u64, u32)>> {
    let ids = batch.column_by_name(column).unwrap().as_string::<i32>();
    ids.iter().map(|id| number_of(id.unwrap())).collect()
}

fn make(schema: &SchemaRef, rows: usize, column: impl Fn(&FieldRef) -> Option<ArrayRef>) -> RecordBatch {
    let text = |value: &str| Arc::new(StringArray::from(vec![value; rows])) as ArrayRef;
    let columns = schema.fields().iter().map(|field| match column(field) {
        Some(column) => column,
        None if field.is_nullable() => new_null_array(field.data_type(), rows),
        None => text("x"),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

/// `rows` canonical samples of batch `batch`: one tool for each number modulo [`TOOLS`], up to 30 hours old.
pub(super) fn samples(batch: u64, rows: usize) -> RecordBatch {
    let started = BEGAN - (batch % 30) as i64 * HOUR;
    make(&schemas().unwrap().tool_invocations, rows, |field| {
        Some(match field.name().as_str() {
            "invocation_id" => Arc::new(ids(RowKind::Sample, batch, rows)) as ArrayRef,
            "tool" => Arc::new(StringArray::from(vec![format!("tool-{}", batch % TOOLS); rows])),
            "outcome" => Arc::new(StringArray::from(vec!["ok"; rows])),
            "started_at" | "arrived_at" | "ingested_at" => {
                Arc::new(TimestampMicrosecondArray::from(vec![started; rows]).with_timezone("UTC"))
            }
            "date" => Arc::new(Date32Array::from(vec![started.div_euclid(DAY) as i32; rows])),
            "duration_ms" => Arc::new(Float64Array::from_iter_values((0..rows).map(|row| (batch + row as u64) as f64))),
            _ => return None,
        })
    })
}

/// `rows` events of batch `batch`.
pub(super) fn events(batch: u64, rows: usize) -> RecordBatch {
    make(&schemas().unwrap().audit_event, rows, |field| {
        Some(match field.name().as_str() {
            "event_id" => Arc::new(ids(RowKind::Event, batch, rows)) as ArrayRef,
            "occurred_at" | "recorded_at" => {
                Arc::new(TimestampMicrosecondArray::from(vec![BEGAN; rows]).with_timezone("UTC"))
            }
            name if !field.is_nullable() => Arc::new(StringArray::from(vec![name; rows])),
            _ => return None,
        })
    })
}

fn ids(kind: RowKind, batch: u64, rows: usize) -> StringArray {
    StringArray::from_iter_values((0..rows).map(|row| id(kind, batch, row).to_string()))
}

/// Rows of either kind.
pub(super) fn rows(kind: RowKind, batch: u64, rows: usize) -> RecordBatch {
    match kind {
        RowKind::Sample => samples(batch, rows),
        RowKind::Event => events(batch, rows),
    }
}

#[test]
fn an_id_says_which_row_it_is() {
    for kind in [RowKind::Sample, RowKind::Event] {
        assert_eq!(number_of(&id(kind, 7, 3).to_string()), Some((7, 3)));
        assert_eq!(rows(kind, 7, 4).num_rows(), 4);
    }
    assert_eq!(number_of(&Uuid::new_v4().to_string().replacen("51", "00", 1)), None);
}
