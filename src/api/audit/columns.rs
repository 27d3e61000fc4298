//! Batches of entries by column, and entries as a page shows them.

use std::sync::Arc;

use arrow::array::{Array, AsArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use serde_json::value::RawValue;

/// An entry as it is shown; what it does not have is left out.
#[derive(Debug, Serialize)]
pub(super) struct Entry<'a> {
    pub(super) seq: i64,
    event_id: &'a str,
    occurred_at: String,
    recorded_at: String,
    #[serde(flatten)]
    texts: Texts<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_ids: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    obligations: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    emitter_seq: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a RawValue>,
    salt: &'a str,
    prev_hash: &'a str,
    entry_hash: &'a str,
}

/// The columns that are plain texts, those that are not null.
#[derive(Debug)]
struct Texts<'a>(Vec<(&'static str, &'a str)>);

impl Serialize for Texts<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

const TEXTS: [&str; 11] = [
    "actor",
    "action",
    "target",
    "decision",
    "reason",
    "workspace",
    "instance",
    "request_id",
    "trace_id",
    "span_id",
    "invocation_id",
];

/// A batch of entries by column.
pub(super) struct Columns {
    pub(super) batch: RecordBatch,
    pub(super) rows: usize,
}

impl Columns {
    /// The columns, strings as plain strings.
    pub(super) fn of(batch: &RecordBatch) -> Result<Self, String> {
        let schema = batch.schema();
        let plain = schema.fields().iter().zip(batch.columns()).map(|(field, column)| {
            let plain = match field.data_type() {
                DataType::Utf8View | DataType::LargeUtf8 => {
                    cast(column, &DataType::Utf8).map_err(|error| error.to_string())?
                }
                DataType::List(_) => {
                    cast(column, &DataType::new_list(DataType::Utf8, true)).map_err(|error| error.to_string())?
                }
                _ => Arc::clone(column),
            };
            Ok::<_, String>((field.name().as_str(), plain, true))
        });
        let batch = RecordBatch::try_from_iter_with_nullable(plain.collect::<Result<Vec<_>, _>>()?);
        let batch = batch.map_err(|error| error.to_string())?;
        Ok(Self { rows: batch.num_rows(), batch })
    }

    pub(super) fn text(&self, name: &str, row: usize) -> Option<&str> {
        let texts = self.batch.column_by_name(name)?.as_string_opt::<i32>()?;
        texts.is_valid(row).then(|| texts.value(row))
    }

    pub(super) fn number(&self, name: &str, row: usize) -> Option<i64> {
        let numbers = self.batch.column_by_name(name)?.as_primitive_opt::<Int64Type>()?;
        numbers.is_valid(row).then(|| numbers.value(row))
    }

    fn time(&self, name: &str, row: usize) -> Option<String> {
        let times = self.batch.column_by_name(name)?.as_primitive_opt::<TimestampMicrosecondType>()?;
        let time = times.is_valid(row).then(|| times.value(row)).and_then(DateTime::from_timestamp_micros)?;
        Some(time.to_rfc3339_opts(SecondsFormat::Micros, true))
    }

    fn list(&self, name: &str, row: usize) -> Option<Vec<String>> {
        let lists = self.batch.column_by_name(name)?.as_list_opt::<i32>()?;
        if lists.is_null(row) {
            return None;
        }
        let items = lists.value(row);
        let items = items.as_any().downcast_ref::<StringArray>()?;
        Some(items.iter().map(|item| item.unwrap_or_default().to_owned()).collect())
    }

    pub(super) fn entry(&self, row: usize) -> Result<Entry<'_>, String> {
        let lacks = |name: &'static str| format!("an entry has no {name}");
        let text = |name: &'static str| self.text(name, row).ok_or_else(|| lacks(name));
        let time = |name: &'static str| self.time(name, row).ok_or_else(|| lacks(name));
        let detail = self.text("detail", row).map(serde_json::from_str).transpose();
        Ok(Entry {
            seq: self.number("seq", row).ok_or_else(|| lacks("seq"))?,
            event_id: text("event_id")?,
            occurred_at: time("occurred_at")?,
            recorded_at: time("recorded_at")?,
            texts: Texts(TEXTS.iter().filter_map(|name| Some((*name, self.text(name, row)?))).collect()),
            policy_ids: self.list("policy_ids", row),
            obligations: self.list("obligations", row),
            emitter_seq: self.number("emitter_seq", row),
            detail: detail.map_err(|error| format!("the detail of an entry is not JSON: {error}"))?,
            salt: text("salt")?,
            prev_hash: text("prev_hash")?,
            entry_hash: text("entry_hash")?,
        })
    }
}
