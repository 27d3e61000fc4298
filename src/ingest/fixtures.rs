//! Samples and bodies for the tests of this module.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringArray, TimestampMicrosecondArray};
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{DecodeContext, DecodeLimits, Encoding, IdSource, IngestError, Media, SampleError, decode};
use crate::model::OrgName;

/// The clock of all tests here.
pub(super) fn now() -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-11-22T12:00:00Z").unwrap().to_utc()
}

/// Ids 1, 2, 3 …
#[derive(Default)]
pub(super) struct CountedIds(u128);

impl IdSource for CountedIds {
    fn next_id(&mut self, _: DateTime<Utc>) -> Uuid {
        self.0 += 1;
        Uuid::from_u128(self.0)
    }

    fn next_salt(&mut self) -> [u8; 16] {
        self.0 += 1;
        self.0.to_be_bytes()
    }
}

/// A sample with every field that an emitter may fill.
pub(super) fn sample() -> Value {
    json!({
        "invocation_id": "0198c0de-7a11-7000-8000-00000000002a",
        "workspace": "prod",
        "instance": "gw-1",
        "plugin": "github",
        "tool": "list_repos",
        "started_at": "2026-11-22T11:59:58.123456Z",
        "arrived_at": "2026-11-22T11:59:58.100Z",
        "duration_ms": 84.25,
        "outcome": "server_error",
        "error_code": "UPSTREAM_5XX",
        "error_hash": "ab".repeat(32),
        "request_id": "req-42",
        "session_id": "session-7",
        "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
        "span_id": "00f067aa0ba902b7",
        "caller": "user:alice@acme",
        "decision": "permit",
        "request_bytes": 512,
        "response_bytes": 20480,
        "client_name": "agent",
        "client_version": "1.2",
        "protocol_version": "2026-07-28",
        "identity_us": 120,
        "policy_us": 35,
        "queue_us": 0,
    })
}

/// The sample with one field replaced or added.
pub(super) fn sample_with(field: &str, value: impl Into<Value>) -> Value {
    let mut sample = sample();
    sample[field] = value.into();
    sample
}

/// The sample without a field.
pub(super) fn sample_without(field: &str) -> Value {
    let mut sample = sample();
    sample.as_object_mut().unwrap().remove(field);
    sample
}

pub(super) fn ndjson(samples: &[Value]) -> Vec<u8> {
    samples.iter().flat_map(|sample| format!("{sample}\n").into_bytes()).collect()
}

/// Decodes for the org `acme`.
pub(super) fn decode_as(media: Media, body: &[u8], limits: DecodeLimits) -> Result<RecordBatch, IngestError> {
    decode_packed(media, Encoding::Identity, body, limits)
}

pub(super) fn decode_packed(
    media: Media,
    encoding: Encoding,
    body: &[u8],
    limits: DecodeLimits,
) -> Result<RecordBatch, IngestError> {
    let org: OrgName = "acme".parse().unwrap();
    let (body, context) = (Bytes::copy_from_slice(body), DecodeContext { org: &org, now: now(), limits });
    decode(&body, media, encoding, &context, &mut CountedIds::default())
}

/// Decodes JSON.
pub(super) fn decode_json(body: &Value) -> Result<RecordBatch, IngestError> {
    decode_as(Media::Json, body.to_string().as_bytes(), DecodeLimits::default())
}

/// Decodes an Arrow stream.
pub(super) fn decode_arrow(body: &[u8]) -> Result<RecordBatch, IngestError> {
    decode_as(Media::ArrowStream, body, DecodeLimits::default())
}

/// The faults of one sample in JSON.
pub(super) fn faults_of(sample: &Value) -> Vec<SampleError> {
    let error = decode_json(sample).unwrap_err();
    assert_eq!(error.code(), "invalid_sample", "{error}");
    error.errors().to_vec()
}

/// Asserts that a sample has exactly one fault, and of this field; gives its message.
pub(super) fn fault_of(sample: &Value, field: &str) -> String {
    let faults = faults_of(sample);
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].field.as_deref(), Some(field));
    faults[0].message.to_string()
}

/// The text of a column in the first row.
pub(super) fn text<'a>(batch: &'a RecordBatch, column: &str) -> &'a str {
    batch.column_by_name(column).unwrap().as_string::<i32>().value(0)
}

/// The time of a column in the first row, µs since the epoch.
pub(super) fn time(batch: &RecordBatch, column: &str) -> i64 {
    batch.column_by_name(column).unwrap().as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(0)
}

/// The sample's columns, `rows` times, less those that the control plane fills, as an emitter would send them.
pub(super) fn emitted(rows: usize) -> RecordBatch {
    let batch = decode_json(&Value::Array(vec![sample(); rows])).unwrap();
    let schema = batch.schema();
    let kept: Vec<usize> = (0..batch.num_columns())
        .filter(|&index| !["org", "ingested_at", "date"].contains(&schema.field(index).name().as_str()))
        .collect();
    batch.project(&kept).unwrap()
}

/// The batch with one column replaced, of whatever type.
pub(super) fn replaced(batch: &RecordBatch, column: &str, values: ArrayRef) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(batch.schema().fields().iter().zip(batch.columns()).map(|(field, old)| {
        let new = if field.name() == column { Arc::clone(&values) } else { Arc::clone(old) };
        (field.name().clone(), new, true)
    }))
    .unwrap()
}

/// The batch with a column more.
pub(super) fn with_column(batch: &RecordBatch, column: &str, values: ArrayRef) -> RecordBatch {
    let columns = batch
        .schema()
        .fields()
        .iter()
        .zip(batch.columns())
        .map(|(f, c)| (f.name().clone(), c.clone(), true))
        .collect::<Vec<_>>();
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().chain([(column.to_owned(), values, true)])).unwrap()
}

/// Batches as an Arrow stream.
pub(super) fn stream(batches: &[RecordBatch], compression: Option<CompressionType>) -> Vec<u8> {
    let options = IpcWriteOptions::default().try_with_compression(compression).unwrap();
    let mut writer = StreamWriter::try_new_with_options(Vec::new(), &batches[0].schema(), options).unwrap();
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.finish().unwrap();
    writer.into_inner().unwrap()
}

/// Asserts what every canonical batch must satisfy, whatever it came from.
pub(super) fn assert_canonical(batch: &RecordBatch) {
    let schema = &crate::model::schema::schemas().unwrap().tool_invocations;
    assert_eq!(&batch.schema(), schema);
    assert!(batch.num_rows() > 0);
    let texts = |column: &str| batch.column_by_name(column).unwrap().as_string::<i32>().clone();
    let every = |texts: StringArray, holds: &dyn Fn(&str) -> bool| assert!(texts.iter().flatten().all(holds));
    every(texts("org"), &|org| org == "acme");
    every(texts("invocation_id"), &|id| Uuid::try_parse(id).is_ok_and(|parsed| parsed.to_string() == id));
    for name in ["workspace", "instance", "plugin", "tool"] {
        every(texts(name), &|text| (1..=128).contains(&text.chars().count()) && !text.chars().any(char::is_control));
    }
    let hex = |len: usize| move |t: &str| t.len() == len && t.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    every(texts("error_hash"), &hex(64));
    every(texts("trace_id"), &hex(32));
    every(texts("span_id"), &hex(16));
    let times: &TimestampMicrosecondArray = batch.column_by_name("started_at").unwrap().as_primitive();
    assert!(times.values().iter().all(|time| *time <= now().timestamp_micros() + 600_000_000));
    let durations: &arrow::array::Float64Array = batch.column_by_name("duration_ms").unwrap().as_primitive();
    assert!(durations.values().iter().all(|ms| ms.is_finite() && *ms >= 0.0));
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        assert!(field.is_nullable() || column.null_count() == 0, "{}", field.name());
    }
}
