//! Samples, and the bodies they travel in.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::Schema;
use arrow::ipc::writer::StreamWriter;
use chrono::{DateTime, SecondsFormat, Utc};
use mcpg::model::schema::schemas;
use mcpg::model::{Clock, Outcome, SystemClock};
use serde_json::{Map, Value, json};
use uuid::Uuid;

/// The time now: samples are stamped by the wall clock, as the server's windows are.
pub(crate) fn now() -> DateTime<Utc> {
    SystemClock.now()
}

/// A tool call, as an emitter would send it.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) workspace: String,
    pub(crate) plugin: String,
    pub(crate) tool: String,
    pub(crate) started_at: DateTime<Utc>,
    pub(crate) duration_ms: f64,
    pub(crate) outcome: Outcome,
    /// Optional fields, under their names.
    pub(crate) more: Map<String, Value>,
}

impl Sample {
    /// A call of `plugin`'s `tool` in the workspace `prod`, ended well just now.
    pub(crate) fn new(plugin: &str, tool: &str, duration_ms: f64) -> Self {
        Self {
            workspace: "prod".to_owned(),
            plugin: plugin.to_owned(),
            tool: tool.to_owned(),
            started_at: now(),
            duration_ms,
            outcome: Outcome::Ok,
            more: Map::new(),
        }
    }

    pub(crate) fn outcome(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    pub(crate) fn started_at(mut self, started_at: DateTime<Utc>) -> Self {
        self.started_at = started_at;
        self
    }

    pub(crate) fn workspace(mut self, workspace: &str) -> Self {
        self.workspace = workspace.to_owned();
        self
    }

    /// Sets an optional field.
    pub(crate) fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.more.insert(field.to_owned(), value.into());
        self
    }

    /// The JSON object it travels as, under a fresh id.
    pub(crate) fn json(&self) -> Value {
        let mut object = json!({
            "invocation_id": Uuid::now_v7().to_string(),
            "workspace": self.workspace,
            "instance": "gw-1",
            "plugin": self.plugin,
            "tool": self.tool,
            "started_at": self.started_at.to_rfc3339_opts(SecondsFormat::Micros, true),
            "duration_ms": self.duration_ms,
            "outcome": self.outcome.as_str(),
        });
        object.as_object_mut().unwrap().extend(self.more.clone());
        object
    }
}

/// A body of `application/x-ndjson`.
pub(crate) fn ndjson(samples: &[Sample]) -> Vec<u8> {
    let mut body = String::with_capacity(samples.len() * 320);
    for sample in samples {
        body.push_str(&sample.json().to_string());
        body.push('\n');
    }
    body.into_bytes()
}

/// A body of `application/vnd.apache.arrow.stream`, with the columns that an emitter fills.
pub(crate) fn arrow_stream(samples: &[Sample]) -> Vec<u8> {
    let stamped = ["org", "ingested_at", "date"];
    let all = &schemas().unwrap().tool_invocations;
    let fields = all.fields().iter().filter(|field| !stamped.contains(&field.name().as_str()));
    // `arrived_at` is never null in the table, but an emitter may leave it to the default.
    let fields: Vec<_> = fields.map(|field| Arc::new(field.as_ref().clone().with_nullable(true))).collect();
    let schema = Arc::new(Schema::new(fields));
    let mut decoder = arrow::json::ReaderBuilder::new(Arc::clone(&schema)).build_decoder().unwrap();
    let rows: Vec<Value> = samples.iter().map(Sample::json).collect();
    decoder.serialize(&rows).unwrap();
    let batch: RecordBatch = decoder.flush().unwrap().unwrap();
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}
