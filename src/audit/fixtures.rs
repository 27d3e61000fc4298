//! Events and entries for the tests of this module.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int64Array, ListBuilder, StringArray, StringBuilder, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::DataType;
use arrow::record_batch::RecordBatch;

use super::{ChainHead, seal};
use crate::model::schema::schemas;

pub(super) const ORIGIN: &str = "mcpg.example/orgs/acme/audit/1";
/// The actor of what the ledger says of itself.
pub(super) const NODE: &str = "system:control-plane@0123abcd";

/// Events of these actions and details: some with an instance's counter, some with lists, of all kinds of lists.
pub(crate) fn events(from: u64, actions: &[(&str, Option<&str>)]) -> RecordBatch {
    let schema = &schemas().unwrap().audit_event;
    let rows = actions.len();
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        let text =
            |of: &dyn Fn(usize) -> Option<String>| -> ArrayRef { Arc::new((0..rows).map(of).collect::<StringArray>()) };
        match (field.name().as_str(), field.data_type()) {
            ("action", _) => text(&|row| Some(actions[row].0.to_owned())),
            ("detail", _) => text(&|row| actions[row].1.map(str::to_owned)),
            ("actor", _) if actions[0].0.starts_with("ledger.") => text(&|_| Some(NODE.to_owned())),
            ("instance", _) => text(&|row| (row % 2 == 0).then(|| "gw-1".to_owned())),
            ("reason", _) => text(&|row| (row % 7 == 0).then(|| "x".repeat(row % 100))),
            ("emitter_seq", _) => {
                Arc::new((0..rows).map(|row| Some((from as i64 + row as i64) / 2)).collect::<Int64Array>())
            }
            ("actor" | "event_id" | "salt", _) => text(&|row| Some(format!("{}-{}", field.name(), from + row as u64))),
            (_, DataType::Timestamp(..)) => Arc::new(
                TimestampMicrosecondArray::from_iter_values((0..rows).map(|row| (from as usize + row) as i64))
                    .with_timezone("UTC"),
            ),
            (_, DataType::List(item)) => {
                let mut lists = ListBuilder::new(StringBuilder::new()).with_field(Arc::clone(item));
                for row in from..from + rows as u64 {
                    for at in 0..row % 3 {
                        lists.values().append_value(format!("p{at}-{row}"));
                    }
                    lists.append(row % 4 != 0 || row % 3 > 0);
                }
                Arc::new(lists.finish())
            }
            (_, other) => new_null_array(other, rows),
        }
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

/// The first entries of a ledger.
pub(super) fn entries(count: usize) -> RecordBatch {
    let events = events(0, &vec![("tool.permit", Some(r#"{"a":1}"#)); count]);
    seal(&schemas().unwrap().audit_log, ORIGIN, &ChainHead::default(), &events).unwrap().batch
}
