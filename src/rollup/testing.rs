//! Samples for the tests of this module, put into canonical batches.

use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Float64Array, StringArray, TimestampMicrosecondArray, new_null_array};
use arrow::record_batch::RecordBatch;

use super::Granularity;
use crate::model::schema::schemas;

/// What a test cares about in a sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample<'a> {
    pub(super) workspace: &'a str,
    pub(super) plugin: &'a str,
    pub(super) tool: &'a str,
    /// Microseconds since the Unix epoch.
    pub(super) started_at: i64,
    pub(super) duration_ms: f64,
    pub(super) outcome: &'a str,
    pub(super) trace_id: Option<&'a str>,
}

impl Default for Sample<'_> {
    fn default() -> Self {
        Self {
            workspace: "prod",
            plugin: "github",
            tool: "list_repos",
            started_at: 0,
            duration_ms: 84.0,
            outcome: "ok",
            trace_id: None,
        }
    }
}

/// Samples of the org `default` as a canonical batch.
pub(super) fn batch(samples: &[Sample<'_>]) -> RecordBatch {
    let schema = &schemas().unwrap().tool_invocations;
    let text = |of: &dyn Fn(&Sample<'_>) -> String| -> ArrayRef {
        Arc::new(samples.iter().map(|sample| Some(of(sample))).collect::<StringArray>())
    };
    let time = || -> ArrayRef {
        let times = TimestampMicrosecondArray::from_iter_values(samples.iter().map(|sample| sample.started_at));
        Arc::new(times.with_timezone("UTC"))
    };
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        "invocation_id" => text(&|_| "01933b7e-0000-7000-8000-000000000000".to_owned()),
        "org" => text(&|_| "default".to_owned()),
        "instance" => text(&|_| "gw-1".to_owned()),
        "workspace" => text(&|sample| sample.workspace.to_owned()),
        "plugin" => text(&|sample| sample.plugin.to_owned()),
        "tool" => text(&|sample| sample.tool.to_owned()),
        "outcome" => text(&|sample| sample.outcome.to_owned()),
        "started_at" | "arrived_at" | "ingested_at" => time(),
        "duration_ms" => Arc::new(Float64Array::from_iter_values(samples.iter().map(|sample| sample.duration_ms))),
        "trace_id" => Arc::new(samples.iter().map(|sample| sample.trace_id).collect::<StringArray>()),
        "date" => Arc::new(Date32Array::from_iter_values(
            samples.iter().map(|sample| sample.started_at.div_euclid(Granularity::Day.width()) as i32),
        )),
        _ => new_null_array(field.data_type(), samples.len()),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}
