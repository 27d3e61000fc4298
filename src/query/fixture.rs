//! The data of the SQL cases, in memory: some of it in files, some of it live, as a running plane would show it.

use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::DateTime;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;

use super::formats::{self, Format};
use super::{Asker, Engine, LocalEngine, OrgView, QueryError, SqlLimits, SqlRequest, TableState};
use crate::ingest::{DecodeContext, DecodeLimits, Encoding, Media, RandomIds, decode};
use crate::model::OrgName;
use crate::model::schema::{TOOL_INVOCATIONS, TOOL_USAGE_DAILY, TOOL_USAGE_HOURLY, schemas};
use crate::rollup::{daily_partials, hourly_partials};
use crate::storage::parquet::encode;
use crate::storage::table::DataFile;

/// The samples of the org that asks.
pub(super) const ACME: &str = include_str!("../../tests/it/cases/data/acme.ndjson");
/// The samples of another org.
pub(super) const GLOBEX: &str = include_str!("../../tests/it/cases/data/globex.ndjson");

/// An engine and what it may be asked.
pub(super) struct World {
    pub(super) engine: LocalEngine,
    pub(super) store: Arc<InMemory>,
    pub(super) acme: OrgView,
}

/// Small limits, so that what must run into one does so soon.
pub(super) fn small() -> SqlLimits {
    SqlLimits {
        memory_bytes: 64 << 20,
        spill_bytes: 64 << 20,
        time: Duration::from_secs(5),
        rows: 10_000,
        queue_wait: Duration::from_millis(100),
        threads: 2,
        ..SqlLimits::default()
    }
}

/// Canonical batches of some samples.
pub(super) fn samples(org: &str, ndjson: &str) -> RecordBatch {
    let org: OrgName = org.parse().unwrap();
    let now = DateTime::parse_from_rfc3339("2026-03-06T00:00:00Z").unwrap().to_utc();
    let context = DecodeContext { org: &org, now, limits: DecodeLimits::default() };
    decode(
        &Bytes::copy_from_slice(ndjson.as_bytes()),
        Media::Ndjson,
        Encoding::Identity,
        &context,
        &mut RandomIds::default(),
    )
    .unwrap()
}

/// Encodes batches into files of a table.
pub(super) async fn flush(
    store: &InMemory,
    org: &str,
    table: &str,
    batches: &[RecordBatch],
    files: &mut Vec<DataFile>,
) {
    let schemas = schemas().unwrap();
    let schema = match table {
        TOOL_INVOCATIONS => &schemas.tool_invocations,
        TOOL_USAGE_HOURLY => &schemas.tool_usage_hourly,
        _ => &schemas.tool_usage_daily,
    };
    for file in encode(schema, batches, 1).unwrap() {
        let path = Path::from(format!("orgs/{org}/{table}/{}.parquet", uuid::Uuid::new_v4()));
        let rows = batches.iter().map(|batch| batch.num_rows() as u64).sum();
        files.push(DataFile {
            seq_range: None,
            id_range: None,
            path: path.clone(),
            size: file.bytes.len() as u64,
            rows,
            date: file.date,
            time_range: None,
        });
        store.put(&path, file.bytes.into()).await.unwrap();
    }
}

/// The tables of an org whose samples are partly flushed: samples up to `flushed.0`, the rollups in two flushes up to
/// `flushed.1`.
pub(super) async fn view(store: &InMemory, org: &str, all: &RecordBatch, flushed: (usize, usize)) -> OrgView {
    let rest = |from: usize| {
        if from == all.num_rows() { Vec::new() } else { vec![all.slice(from, all.num_rows() - from)] }
    };
    let mut files = Vec::new();
    // Two files, so that a query has to read more than one.
    let half = flushed.0 / 2;
    for part in [all.slice(0, half), all.slice(half, flushed.0 - half)] {
        flush(store, org, TOOL_INVOCATIONS, &[part], &mut files).await;
    }
    let samples =
        TableState { files: Arc::new(correct_rows(store, files).await), live: rest(flushed.0), evidence: None };
    let (mut hourly, mut daily) = (Vec::new(), Vec::new());
    let half = flushed.1 / 2;
    for part in [all.slice(0, half), all.slice(half, flushed.1 - half)] {
        let hours = hourly_partials(&[part]).await.unwrap();
        let days = daily_partials(&hours).await.unwrap();
        flush(store, org, TOOL_USAGE_HOURLY, &[hours], &mut hourly).await;
        flush(store, org, TOOL_USAGE_DAILY, &[days], &mut daily).await;
    }
    let hourly =
        TableState { files: Arc::new(correct_rows(store, hourly).await), live: rest(flushed.1), evidence: None };
    let daily = TableState { files: Arc::new(correct_rows(store, daily).await), live: rest(flushed.1), evidence: None };
    OrgView {
        org: org.parse().unwrap(),
        samples,
        hourly,
        daily,
        payloads: TableState::default(),
        audit: TableState::default(),
    }
}

/// The files with the rows that each has by its own footer: a batch of two days became two files.
async fn correct_rows(store: &InMemory, files: Vec<DataFile>) -> Vec<DataFile> {
    let mut correct = Vec::new();
    for file in files {
        let bytes = store.get(&file.path).await.unwrap().bytes().await.unwrap();
        let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
        let rows = u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap();
        correct.push(DataFile { rows, ..file });
    }
    correct
}

impl World {
    /// Both orgs in one store; 7 of acme's 12 samples are in files of samples, 5 in those of the rollups.
    pub(super) async fn new(limits: SqlLimits) -> Self {
        let store = Arc::new(InMemory::new());
        let acme = view(&store, "acme", &samples("acme", ACME), (7, 5)).await;
        let globex = samples("globex", GLOBEX);
        view(&store, "globex", &globex, (globex.num_rows(), globex.num_rows())).await;
        let engine = LocalEngine::new(Arc::clone(&store) as Arc<dyn ObjectStore>, limits).unwrap();
        Self { engine, store, acme }
    }

    /// Asks for acme.
    pub(super) async fn ask(&self, sql: &str, params: Vec<Value>, format: Format) -> Result<Vec<u8>, QueryError> {
        let request = SqlRequest { query: sql.to_owned(), params };
        let result = self.engine.query(self.acme.clone(), request, Asker::sql(None)).await?;
        let mut body = formats::begin(result, format).await?.body;
        let mut bytes = Vec::new();
        while let Some(chunk) = futures::TryStreamExt::try_next(&mut body).await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Asks for acme, in JSON.
    pub(super) async fn json(&self, sql: &str, params: Vec<Value>) -> Result<Value, QueryError> {
        Ok(serde_json::from_slice(&self.ask(sql, params, Format::Json).await?).unwrap())
    }
}
