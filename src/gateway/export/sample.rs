//! A sample: what one call leaves for the metrics and for SQL.
//!
//! In the spool a sample is one JSON object with the columns of [`emitted_schema`], times as microseconds since the
//! epoch and absent values left out. A batch of them becomes an Arrow stream of that schema, LZ4, when it is sent. What
//! a record says is settled when the call ends, so that a change of the configuration between recording and sending
//! changes nothing.

use std::fmt;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow::json::ReaderBuilder;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use opentelemetry::trace::{SpanId, TraceId};
use serde::{Serialize, Serializer};
use uuid::Uuid;

use super::text;
use crate::ingest::emitted_schema;
use crate::model::{Decision, Outcome, micros};

/// What one call leaves. Workspace and instance are added by the emitters.
#[derive(Debug, Clone)]
pub struct CallSample<'a> {
    /// The call's own id, version 7: the same in the audit entry.
    pub invocation_id: Uuid,
    /// The plugin that was called.
    pub plugin: &'a str,
    /// Its tool, by the plugin's own name.
    pub tool: &'a str,
    /// When the work on it began.
    pub started_at: DateTime<Utc>,
    /// When the request was read.
    pub arrived_at: DateTime<Utc>,
    /// How long it took from then, in milliseconds with fractions.
    pub duration_ms: f64,
    /// How it ended.
    pub outcome: Outcome,
    /// What went wrong, as a stable word like `UPSTREAM_5XX`.
    pub error_code: Option<&'a str>,
    /// The hash of the error's message.
    pub error_hash: Option<ErrorHash>,
    /// The id of the JSON-RPC request.
    pub request_id: Option<&'a str>,
    /// The MCP session.
    pub session_id: Option<&'a str>,
    /// The trace it belongs to; an invalid one counts as `None`.
    pub trace_id: TraceId,
    /// The span of the call; an invalid one counts as `None`.
    pub span_id: SpanId,
    /// Who called: `user:…`, `service:…` or `anonymous`.
    pub caller: Option<&'a str>,
    /// What policy said.
    pub decision: Option<Decision>,
    /// Bytes of the request.
    pub request_bytes: Option<u64>,
    /// Bytes of the response.
    pub response_bytes: Option<u64>,
    /// What the client calls itself.
    pub client_name: Option<&'a str>,
    /// Its own version.
    pub client_version: Option<&'a str>,
    /// The version of MCP it speaks.
    pub protocol_version: Option<&'a str>,
    /// How long it took to find out who calls, in microseconds.
    pub identity_us: Option<u64>,
    /// How long policy took to decide.
    pub policy_us: Option<u64>,
    /// How long the call waited for its turn.
    pub queue_us: Option<u64>,
}

/// The BLAKE3 hash of an error's message: all that is ever kept of it (invariant I6).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ErrorHash(blake3::Hash);

impl ErrorHash {
    /// Hashes the message, which goes no further.
    pub fn of(message: &str) -> Self {
        Self(blake3::hash(message.as_bytes()))
    }
}

impl fmt::Debug for ErrorHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_hex().as_str())
    }
}

impl Serialize for ErrorHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.to_hex().as_str())
    }
}

/// A sample as the spool holds it.
#[derive(Debug, Serialize)]
struct Record<'a> {
    invocation_id: Uuid,
    workspace: &'a str,
    instance: &'a str,
    plugin: std::borrow::Cow<'a, str>,
    tool: std::borrow::Cow<'a, str>,
    started_at: i64,
    arrived_at: i64,
    duration_ms: f64,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text::optional")]
    error_code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_hash: Option<ErrorHash>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text::optional")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text::optional")]
    session_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<Hex<TraceId>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    span_id: Option<Hex<SpanId>>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text::optional")]
    caller: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Decision>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_bytes: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text::optional")]
    client_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text::optional")]
    client_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "text::optional")]
    protocol_version: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy_us: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_us: Option<i64>,
}

/// An id as its hex digits.
#[derive(Debug)]
pub(super) struct Hex<T>(pub(super) T);

impl<T: fmt::Display> Serialize for Hex<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// The id, unless it is the invalid one.
pub(super) fn valid<T: PartialEq>(id: T, invalid: T) -> Option<Hex<T>> {
    (id != invalid).then_some(Hex(id))
}

/// The sample as a record of the spool.
///
/// # Errors
/// When it cannot be written as JSON, which would be a fault of this module.
pub(super) fn record(sample: &CallSample<'_>, workspace: &str, instance: &str) -> serde_json::Result<Vec<u8>> {
    let count = |bytes: Option<u64>| bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    // A duration that is no number would have the whole batch refused.
    let duration_ms = if sample.duration_ms.is_finite() { sample.duration_ms.max(0.0) } else { 0.0 };
    serde_json::to_vec(&Record {
        invocation_id: sample.invocation_id,
        workspace,
        instance,
        plugin: text::name(sample.plugin),
        tool: text::name(sample.tool),
        started_at: micros(sample.started_at),
        arrived_at: micros(sample.arrived_at),
        duration_ms,
        outcome: sample.outcome.as_str(),
        error_code: sample.error_code,
        error_hash: sample.error_hash,
        request_id: sample.request_id,
        session_id: sample.session_id,
        trace_id: valid(sample.trace_id, TraceId::INVALID),
        span_id: valid(sample.span_id, SpanId::INVALID),
        caller: sample.caller,
        decision: sample.decision,
        request_bytes: count(sample.request_bytes),
        response_bytes: count(sample.response_bytes),
        client_name: sample.client_name,
        client_version: sample.client_version,
        protocol_version: sample.protocol_version,
        identity_us: count(sample.identity_us),
        policy_us: count(sample.policy_us),
        queue_us: count(sample.queue_us),
    })
}

/// Columns that records of earlier builds do not have.
const LATER: [&str; 6] = ["client_name", "client_version", "protocol_version", "identity_us", "policy_us", "queue_us"];

/// The batch without the later columns, if no record has any of them: a batch that an earlier build sent, and was not
/// answered for, has to have the bytes that it had then.
fn without_later(batch: RecordBatch) -> Result<RecordBatch, ArrowError> {
    let is_later = |name: &String| LATER.contains(&name.as_str());
    let schema = batch.schema();
    let columns = || schema.fields().iter().map(|field| field.name()).enumerate();
    let is_empty = |at: usize| batch.columns().get(at).is_none_or(|column| column.null_count() == column.len());
    if !columns().filter(|(_, name)| is_later(name)).all(|(at, _)| is_empty(at)) {
        return Ok(batch);
    }
    batch.project(&columns().filter(|(_, name)| !is_later(name)).map(|(at, _)| at).collect::<Vec<_>>())
}

/// A batch of records as the Arrow stream that is sent.
///
/// # Errors
/// When a record is not what [`record`] writes.
pub(super) fn body(records: &[&[u8]]) -> Result<Vec<u8>, ArrowError> {
    let schema: SchemaRef = emitted_schema().map_err(|error| ArrowError::ExternalError(Box::new(error)))?;
    let mut decoder =
        ReaderBuilder::new(SchemaRef::clone(&schema)).with_batch_size(records.len() + 1).build_decoder()?;
    for record in records {
        let mut rest = *record;
        while !rest.is_empty() {
            let read = decoder.decode(rest)?;
            rest = rest.get(read..).unwrap_or_default();
        }
    }
    let batch = without_later(decoder.flush()?.unwrap_or_else(|| RecordBatch::new_empty(schema)))?;
    let options = IpcWriteOptions::default().try_with_compression(Some(CompressionType::LZ4_FRAME))?;
    let mut out = Vec::new();
    let mut writer = StreamWriter::try_new_with_options(&mut out, &batch.schema(), options)?;
    if batch.num_rows() > 0 {
        writer.write(&batch)?;
    }
    writer.finish()?;
    drop(writer);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};
    use opentelemetry::trace::{SpanId, TraceId};
    use serde_json::Value;
    use uuid::Uuid;

    use super::{CallSample, ErrorHash, body, record};
    use crate::ingest::{DecodeContext, DecodeLimits, Encoding, Media, RandomIds, decode};
    use crate::model::{Decision, Outcome};

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp_micros(1_800_000_000_123_456).unwrap()
    }

    fn sample() -> CallSample<'static> {
        CallSample {
            invocation_id: Uuid::from_u128(7),
            plugin: "github",
            tool: "list_repos",
            started_at: now(),
            arrived_at: now(),
            duration_ms: 12.25,
            outcome: Outcome::ServerError,
            error_code: Some("UPSTREAM_5XX"),
            error_hash: Some(ErrorHash::of("hunter2")),
            request_id: Some("req-1"),
            session_id: Some("session-1"),
            trace_id: TraceId::from(42),
            span_id: SpanId::from(43),
            caller: Some("user:alice"),
            decision: Some(Decision::Permit),
            request_bytes: Some(10),
            response_bytes: None,
            client_name: Some("agent"),
            client_version: Some("1.2"),
            protocol_version: Some("2026-07-28"),
            identity_us: Some(12),
            policy_us: Some(34),
            queue_us: None,
        }
    }

    fn ingested(samples: &[CallSample<'_>]) -> arrow::record_batch::RecordBatch {
        let records: Vec<_> = samples.iter().map(|sample| record(sample, "prod", "gw-1").unwrap()).collect();
        let body = body(&records.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
        let context = DecodeContext { org: &"acme".parse().unwrap(), now: now(), limits: DecodeLimits::default() };
        decode(&body.into(), Media::ArrowStream, Encoding::Identity, &context, &mut RandomIds::default()).unwrap()
    }

    #[test]
    fn the_control_plane_takes_a_batch_and_reads_what_was_recorded() {
        let batch = ingested(&[sample(), CallSample { response_bytes: Some(99), ..sample() }]);
        assert_eq!(batch.num_rows(), 2);
        let shown = |column: &str, row: usize| {
            let values = batch.column_by_name(column).unwrap();
            arrow::util::display::array_value_to_string(values, row).unwrap()
        };
        for (column, value) in [
            ("invocation_id", "00000000-0000-0000-0000-000000000007"),
            ("workspace", "prod"),
            ("instance", "gw-1"),
            ("plugin", "github"),
            ("tool", "list_repos"),
            ("started_at", "2027-01-15T08:00:00.123456Z"),
            ("duration_ms", "12.25"),
            ("outcome", "server_error"),
            ("error_code", "UPSTREAM_5XX"),
            ("error_hash", blake3::hash(b"hunter2").to_hex().as_str()),
            ("request_id", "req-1"),
            ("trace_id", "0000000000000000000000000000002a"),
            ("span_id", "000000000000002b"),
            ("caller", "user:alice"),
            ("decision", "permit"),
            ("request_bytes", "10"),
            ("response_bytes", ""),
        ] {
            assert_eq!(shown(column, 0), value, "{column}");
        }
        assert_eq!(shown("response_bytes", 1), "99");
    }

    #[test]
    fn a_call_with_strange_names_and_no_ids_is_taken_too() {
        let long = "x".repeat(4_000);
        let strange = CallSample {
            plugin: "",
            tool: "a\nb\u{0}",
            caller: Some(&long),
            request_id: Some(&long),
            session_id: Some("tab\there"),
            error_code: None,
            error_hash: None,
            duration_ms: f64::NAN,
            trace_id: TraceId::INVALID,
            span_id: SpanId::INVALID,
            decision: None,
            request_bytes: Some(u64::MAX),
            ..sample()
        };
        assert_eq!(ingested(&[strange]).num_rows(), 1);
    }

    #[test]
    fn no_text_of_an_error_is_in_a_record() {
        let text = String::from_utf8(record(&sample(), "prod", "gw-1").unwrap()).unwrap();
        assert!(!text.contains("hunter2"));
        assert!(!format!("{:?}", sample()).contains("hunter2"));
        assert!(serde_json::from_str::<Value>(&text).unwrap().get("response_bytes").is_none(), "absent is left out");
    }
}
