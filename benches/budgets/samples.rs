//! Samples to measure with, out of the simulated fleet.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use mcpg::demo::Fleet;
use mcpg::ingest::Media;
use mcpg::model::{Clock, SystemClock};
use tokio::task::JoinSet;

use super::Result;
use super::report::say;
use super::server::Server;

/// The media type of the bodies made here.
pub(crate) const ARROW: &str = Media::ArrowStream.as_str();
/// The seed of every fleet: the same samples in every run, but for their times.
pub(crate) const SEED: u64 = 1;
/// Gateways of the fleet.
pub(crate) const GATEWAYS: usize = 12;
/// Samples of a body of the past.
const BODY_ROWS: u64 = 5_000;
/// Bodies that are sent at the same time.
const SENDERS: usize = 4;

/// Samples as the body of a request.
///
/// # Errors
/// When Arrow cannot encode them.
pub(crate) fn arrow_stream(samples: &RecordBatch) -> Result<Bytes> {
    let mut writer = StreamWriter::try_new(Vec::new(), &samples.schema())?;
    writer.write(samples)?;
    Ok(writer.into_inner()?.into())
}

/// Samples of exactly `series` series, evenly: the fleet's, under other names. `rows` should be a multiple of `series`.
///
/// # Errors
/// When Arrow cannot build them.
pub(crate) fn of_series(at: DateTime<Utc>, rows: usize, series: usize) -> Result<RecordBatch> {
    let samples = Fleet::new(SEED, 1).batch(0, at - TimeDelta::seconds(1), at, rows)?;
    let named = |name: fn(usize) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..rows).map(|row| name(row % series))))
    };
    let schema = samples.schema();
    let columns = schema.fields().iter().zip(samples.columns()).map(|(field, column)| match field.name().as_str() {
        "plugin" => named(|series| format!("plugin-{}", series / 20)),
        "tool" => named(|series| format!("tool-{series}")),
        _ => Arc::clone(column),
    });
    Ok(RecordBatch::try_new(Arc::clone(&schema), columns.collect())?)
}

/// The past of the fleet, as it was sent to a server.
#[derive(Debug)]
pub(crate) struct Past {
    /// Samples in it.
    pub(crate) samples: u64,
    /// The id of some sample in its middle.
    pub(crate) some_id: String,
    /// Seconds that the sending took.
    pub(crate) seconds: f64,
}

/// Tells a server the fleet's past between two times, in about the order that it happened, every sample with ids of its
/// own.
///
/// # Errors
/// When the server refuses samples.
pub(crate) async fn tell_past(
    server: Arc<Server>,
    since: DateTime<Utc>,
    until: DateTime<Utc>,
    samples: u64,
) -> Result<Past> {
    let bodies = samples.div_ceil(BODY_ROWS);
    let (sender, receiver) = tokio::sync::mpsc::channel::<(u64, Bytes)>(SENDERS);
    let maker = tokio::task::spawn_blocking(move || -> Result<String> {
        let mut fleet = Fleet::new(SEED, GATEWAYS);
        let (slices, mut some_id) = (bodies.div_ceil(GATEWAYS as u64), String::new());
        let slice = (until - since) / i32::try_from(slices)?;
        for number in 0..bodies {
            let from = since + slice * i32::try_from(number / GATEWAYS as u64)?;
            let gateway = (number % GATEWAYS as u64) as usize;
            let batch = fleet.batch(gateway, from, from + slice, BODY_ROWS as usize)?;
            if number == bodies / 2 {
                some_id = first_id(&batch)?;
            }
            if sender.blocking_send((number, arrow_stream(&batch)?)).is_err() {
                // The senders have failed and say why.
                break;
            }
        }
        Ok(some_id)
    });
    let (began, receiver) = (tokio::time::Instant::now(), Arc::new(tokio::sync::Mutex::new(receiver)));
    let mut senders = JoinSet::new();
    for _ in 0..SENDERS {
        let (server, receiver) = (Arc::clone(&server), Arc::clone(&receiver));
        senders.spawn(async move {
            loop {
                let next = receiver.lock().await.recv().await;
                let Some((number, body)) = next else { return Ok::<_, super::Error>(()) };
                server.post("default", ARROW, &format!("past-{number}"), body).await?;
                if number % 400 == 399 {
                    say(&format!("… {} of {} samples", (number + 1) * BODY_ROWS, bodies * BODY_ROWS));
                }
            }
        });
    }
    while let Some(sent) = senders.join_next().await {
        sent??;
    }
    let some_id = maker.await??;
    Ok(Past { samples: bodies * BODY_ROWS, some_id, seconds: began.elapsed().as_secs_f64() })
}

fn first_id(batch: &RecordBatch) -> Result<String> {
    let ids = batch.column_by_name("invocation_id").ok_or("samples without ids")?;
    let ids = ids.as_any().downcast_ref::<StringArray>().ok_or("ids that are no strings")?;
    Ok(ids.iter().flatten().next().ok_or("no sample")?.to_owned())
}

/// A sample that begins now, as an object of NDJSON.
pub(crate) fn one() -> serde_json::Value {
    serde_json::json!({
        "invocation_id": uuid::Uuid::now_v7().to_string(), "workspace": "prod", "instance": "gw-1", "plugin": "github",
        "tool": "list_repos", "started_at": SystemClock.now().to_rfc3339(), "duration_ms": 5.0, "outcome": "ok",
    })
}

/// An audit event, as an object of NDJSON.
pub(crate) fn one_event() -> serde_json::Value {
    serde_json::json!({ "actor": "user:alice@acme", "action": "tool.permit", "target": "github/list_repos" })
}
