//! What a body does not bring: the columns that the control plane fills itself, and the ids and times that an emitter
//! left out.
//!
//! | column | filled with |
//! |---|---|
//! | `org` | the org of the path |
//! | `ingested_at`, `recorded_at` | our clock, one time for the whole batch |
//! | `date` | the UTC date of `started_at` |
//! | `invocation_id` of a sample, `event_id` | a new id, if it is missing |
//! | `arrived_at` | `started_at`, if it is missing |
//! | `occurred_at` | our clock, if it is missing |
//! | `salt` | 128 random bits for each row |
//! | any other column that is missing | nulls |

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, StringArray, StringBuilder, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::TimestampMicrosecondType;
use arrow::record_batch::RecordBatch;
use uuid::Uuid;
use uuid::fmt::{Hyphenated, Simple};

use super::DecodeContext;
use super::error::IngestError;
use super::ids::IdSource;
use super::layout::{Column, Layout, Rule};
use crate::model::micros;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// The columns whose values do not hang on other columns; none for any other.
pub(super) fn stamped(
    column: &Column,
    rows: usize,
    context: &DecodeContext<'_>,
    ids: &mut dyn IdSource,
) -> Option<ArrayRef> {
    match column.rule {
        Rule::Org => Some(Arc::new(StringArray::new_repeated(context.org.as_str(), rows))),
        Rule::IngestedAt | Rule::RecordedAt => {
            let now = TimestampMicrosecondArray::from_value(micros(context.now), rows);
            Some(Arc::new(now.with_data_type(column.data_type.clone())))
        }
        Rule::Salt => Some(Arc::new(salts(rows, ids))),
        _ => None,
    }
}

/// The canonical batch of these columns, each judged or not there.
///
/// # Errors
/// [`IngestError::Internal`] when the columns are not those of the layout.
pub(super) fn complete(
    layout: &'static Layout,
    judged: Vec<Option<ArrayRef>>,
    rows: usize,
    context: &DecodeContext<'_>,
) -> Result<RecordBatch, IngestError> {
    // What a time that is lacking is taken from: a sample's arrival from its start, an event's from our clock.
    let started = layout.columns.iter().zip(&judged).find(|(column, _)| column.rule == Rule::Started);
    let started = match started {
        Some((_, Some(started))) => started.as_primitive::<TimestampMicrosecondType>().clone(),
        Some((_, None)) => return Err(IngestError::Internal("no started_at column".to_owned())),
        None => TimestampMicrosecondArray::from_value(micros(context.now), rows),
    };
    let columns =
        layout.columns.iter().zip(judged).map(|(column, values)| filled(column, values, &started, rows)).collect();
    RecordBatch::try_new(Arc::clone(layout.schema), columns).map_err(|error| IngestError::Internal(error.to_string()))
}

/// Fills what follows from `started_at`, and columns that are not there at all.
fn filled(column: &Column, values: Option<ArrayRef>, started: &TimestampMicrosecondArray, rows: usize) -> ArrayRef {
    match (column.rule, values) {
        (Rule::Arrived | Rule::Occurred, None) => Arc::new(started.clone().with_data_type(column.data_type.clone())),
        (Rule::Arrived | Rule::Occurred, Some(values)) if values.null_count() > 0 => {
            let values = values.as_primitive::<TimestampMicrosecondType>();
            let filled = values.iter().zip(started.values()).map(|(given, started)| given.unwrap_or(*started));
            Arc::new(TimestampMicrosecondArray::from_iter_values(filled).with_data_type(column.data_type.clone()))
        }
        (Rule::Date, _) => Arc::new(Date32Array::from_iter_values(
            started.values().iter().map(|micros| i32::try_from(micros.div_euclid(MICROS_PER_DAY)).unwrap_or(i32::MAX)),
        )),
        (_, Some(values)) => values,
        (_, None) => new_null_array(column.data_type, rows),
    }
}

/// A salt a row, as hex digits.
fn salts(rows: usize, ids: &mut dyn IdSource) -> StringArray {
    let mut builder = StringBuilder::with_capacity(rows, rows * Simple::LENGTH);
    let mut buffer = Uuid::encode_buffer();
    for _ in 0..rows {
        builder.append_value(Uuid::from_bytes(ids.next_salt()).simple().encode_lower(&mut buffer));
    }
    builder.finish()
}

/// Ids with none missing.
pub(super) fn minted(given: &StringArray, context: &DecodeContext<'_>, ids: &mut dyn IdSource) -> StringArray {
    let mut builder = StringBuilder::with_capacity(given.len(), given.len() * Hyphenated::LENGTH);
    let mut buffer = Uuid::encode_buffer();
    for id in given {
        match id {
            Some(id) => builder.append_value(id),
            None => {
                let id = ids.next_id(context.now);
                builder.append_value(id.hyphenated().encode_lower(&mut buffer));
            }
        }
    }
    builder.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::fixtures::*;

    #[test]
    fn a_missing_id_is_minted_and_the_others_stay() {
        let batch = decode_json(&Value::Array(vec![
            sample_without("invocation_id"),
            sample(),
            sample_without("invocation_id"),
        ]))
        .unwrap();
        let id = |row: usize| text(&batch.slice(row, 1), "invocation_id").to_owned();
        assert_eq!(id(0), "00000000-0000-0000-0000-000000000001");
        assert_eq!(id(1), "0198c0de-7a11-7000-8000-00000000002a");
        assert_eq!(id(2), "00000000-0000-0000-0000-000000000002");
    }

    #[test]
    fn arrived_at_is_started_at_where_there_is_none() {
        let batch = decode_json(&sample_without("arrived_at")).unwrap();
        assert_eq!(time(&batch, "arrived_at"), time(&batch, "started_at"));
        let batch = decode_json(&sample()).unwrap();
        assert_eq!(time(&batch, "started_at") - time(&batch, "arrived_at"), 23_456);
    }

    #[test]
    fn the_date_is_the_utc_date_of_started_at() {
        let batch = decode_json(&sample_with("started_at", "2026-11-22T00:30:00+02:00")).unwrap();
        let date = arrow::util::display::array_value_to_string(batch.column_by_name("date").unwrap(), 0).unwrap();
        assert_eq!(date, "2026-11-21");
    }

    #[test]
    fn ingested_at_is_our_own_time() {
        assert_eq!(time(&decode_json(&sample()).unwrap(), "ingested_at"), now().timestamp_micros());
    }
}
