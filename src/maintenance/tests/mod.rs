//! Maintenance of real tables in memory, by nodes whose clock and store the tests play.

mod keeping;
mod lookup;
mod merging;
mod planning;
mod races;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;

use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Date32Array, Float64Array, Int64Array, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use arrow::util::display::array_value_to_string;
use chrono::{DateTime, Utc};
use ed25519_dalek::SigningKey;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::names::HOUR;
use super::tables::name;
use super::{Done, Handles, Memory, turn};
use crate::audit::SigningKeys;
use crate::config::ControlPlane;
use crate::flush::Part;
use crate::log::{Log, LogKeys, Rules, mac};
use crate::model::schema::schemas;
use crate::model::{Clock, OrgName, Random};
use crate::node::{Node, Settings};
use crate::rollup::{Granularity, Histogram, daily_partials, hourly_partials};
use crate::storage::table::{LiveFile, Table};
use crate::storage::{Store, parquet};
use crate::telemetry::metrics::Metrics;

pub(super) const DAY: i64 = 24 * HOUR;
/// 2031-03-04, a day that no store's own clock has come to: to it all objects are old.
pub(super) const BEGAN: i64 = 22_342 * DAY;

/// A clock that stands still until it is set.
#[derive(Debug)]
struct Stopped(Mutex<i64>);

impl Clock for Stopped {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(*self.0.lock()).unwrap()
    }
}

#[derive(Debug)]
struct Seeded(Mutex<StdRng>);

impl Random for Seeded {
    fn uuid(&self) -> Uuid {
        Uuid::from_u128(self.0.lock().random())
    }
}

/// A node, and its clock.
pub(crate) struct World {
    pub(crate) node: Node,
    clock: Arc<Stopped>,
    position: Mutex<u64>,
}

impl World {
    /// The only node of a store in memory.
    pub(crate) fn new() -> Self {
        Self::on(Arc::new(InMemory::new()), 1)
    }

    /// A node on a store, with randomness of its own.
    pub(super) fn on(objects: Arc<dyn ObjectStore>, seed: u64) -> Self {
        let store = Store::new(objects, "memory://");
        let signing = SigningKeys::new(SigningKey::from_bytes(&[7; 32]));
        let (current, previous) = signing.derive(mac::DERIVATION);
        let random: Arc<dyn Random> = Arc::new(Seeded(Mutex::new(StdRng::seed_from_u64(seed))));
        let clock = Arc::new(Stopped(Mutex::new(BEGAN)));
        let config = ControlPlane::parse("test", "orgs: [{ name: acme }]", &|_| None).unwrap();
        let node = Node {
            log: Log::new(store.clone(), Arc::new(LogKeys::new(current, previous))),
            settings: Settings::of(&config),
            store,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            writer: random.uuid(),
            random,
            metrics: Arc::new(Metrics::new()),
            schemas: schemas().unwrap(),
            signing: Arc::new(signing),
            rules: Rules::default(),
        };
        Self { node, clock, position: Mutex::new(0) }
    }

    pub(crate) fn org() -> OrgName {
        "acme".parse().unwrap()
    }

    pub(super) fn set(&self, now: i64) {
        *self.clock.0.lock() = now;
    }

    pub(super) async fn table(&self, part: Part) -> Table {
        let (schema, time) = match part {
            Part::Samples => (&self.node.schemas.tool_invocations, "started_at"),
            Part::Payloads => (&self.node.schemas.payloads, "started_at"),
            Part::Rollup(Granularity::Hour) => (&self.node.schemas.tool_usage_hourly, "window_start"),
            Part::Rollup(Granularity::Day) => (&self.node.schemas.tool_usage_daily, "window_start"),
        };
        Table::open(&self.node.store, &Self::org(), name(part), Arc::clone(schema), time).await.unwrap().0
    }

    pub(super) async fn handles(&self) -> Handles {
        Handles::apart(&self.node, &Self::org()).await.unwrap()
    }

    /// Flushes samples to all tables, as of now.
    pub(super) async fn flush(&self, samples: &RecordBatch) {
        let hours = hourly_partials(std::slice::from_ref(samples)).await.unwrap();
        let days = daily_partials(&hours).await.unwrap();
        let position = *self.position.lock();
        for (part, rows) in Part::ALL.into_iter().zip([samples, &hours, &days]) {
            let mut table = self.table(part).await;
            let by = table.partitioning();
            let files = parquet::encode_by(by, &rows.schema(), std::slice::from_ref(rows), 1).unwrap();
            let now = self.node.now();
            table.append(files, position, position + 1, now, || self.node.random.uuid()).await.unwrap();
        }
        *self.position.lock() += 1;
    }

    /// Puts sealed payloads into their table, as of now.
    pub(super) async fn flush_payloads(&self, payloads: &RecordBatch) {
        let mut table = self.table(Part::Payloads).await;
        let base = table.refresh().await.unwrap().position;
        let files = parquet::encode(&payloads.schema(), std::slice::from_ref(payloads), 1).unwrap();
        table.append(files, base, base + 1, self.node.now(), || self.node.random.uuid()).await.unwrap();
    }

    /// Takes turns until nothing is due.
    pub(super) async fn maintain(&self) -> Done {
        let (tables, mut memory, mut all) = (self.handles().await, Memory::default(), Done::default());
        loop {
            let done = turn(&self.node, &tables, &mut memory).await.unwrap();
            all.merges += done.merges;
            all.files_read += done.files_read;
            all.bytes_read += done.bytes_read;
            all.bytes_written += done.bytes_written;
            all.stale += done.stale;
            all.deleted += done.deleted;
            if done.merges == 0 && !done.more {
                return all;
            }
        }
    }

    pub(super) async fn files(&self, part: Part) -> Vec<LiveFile> {
        self.table(part).await.live_files()
    }

    /// The batches of a live file, in order.
    pub(super) async fn read(&self, file: &LiveFile) -> Vec<RecordBatch> {
        let bytes = self.node.store.get(&file.data.path).await.unwrap().unwrap();
        assert_eq!(bytes.len() as u64, file.data.size);
        let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
        let batches: Vec<_> = reader.map(Result::unwrap).collect();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>() as u64, file.data.rows);
        batches
    }

    /// The rows of a table, each as a text, sorted.
    pub(super) async fn rows(&self, part: Part) -> Vec<String> {
        let mut rows = Vec::new();
        for file in self.files(part).await {
            for batch in self.read(&file).await {
                rows.extend((0..batch.num_rows()).map(|row| text(&batch, row)));
            }
        }
        rows.sort_unstable();
        rows
    }

    /// What a rollup says, by window and series: calls, errors, denials, sum, least, greatest and histogram, merged
    /// from its partial rows.
    pub(super) async fn merged(&self, granularity: Granularity) -> BTreeMap<String, String> {
        let mut found: BTreeMap<String, (Vec<i64>, [f64; 3], Histogram)> = BTreeMap::new();
        for file in self.files(Part::Rollup(granularity)).await {
            for batch in self.read(&file).await {
                let times = column(&batch, "window_start").as_primitive::<TimestampMicrosecondType>().clone();
                let text = |name: &str, row| column(&batch, name).as_string::<i32>().value(row).to_owned();
                for row in 0..batch.num_rows() {
                    let key = [text("workspace", row), text("plugin", row), text("tool", row)].join("/");
                    let of = found
                        .entry(format!("{} {key}", times.value(row)))
                        .or_insert_with(|| (vec![0; 3], [0.0, f64::INFINITY, f64::NEG_INFINITY], Histogram::new()));
                    for (sum, name) in of.0.iter_mut().zip(["calls", "errors", "denials"]) {
                        *sum += column(&batch, name).as_primitive::<Int64Type>().value(row);
                    }
                    let number = |name| column(&batch, name).as_primitive::<arrow::datatypes::Float64Type>().value(row);
                    of.1 = [of.1[0] + number("sum_ms"), of.1[1].min(number("min_ms")), of.1[2].max(number("max_ms"))];
                    of.2.merge_encoded(column(&batch, "latency").as_binary::<i32>().value(row)).unwrap();
                }
            }
        }
        found
            .into_iter()
            .map(|(key, (counts, sums, histogram))| {
                let mut bytes = Vec::new();
                crate::rollup::encode(&histogram, &mut bytes);
                (key, format!("{counts:?} {sums:?} {bytes:02x?}"))
            })
            .collect()
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> &'a ArrayRef {
    batch.column_by_name(name).unwrap()
}

fn text(batch: &RecordBatch, row: usize) -> String {
    let values = batch
        .columns()
        .iter()
        .map(|column| if column.is_null(row) { "-".to_owned() } else { array_value_to_string(column, row).unwrap() });
    values.collect::<Vec<_>>().join("|")
}

/// Samples of some tools, each with ids of its own, that began in a span of time.
pub(super) fn samples(rng: &mut StdRng, rows: usize, from: i64, span: i64) -> RecordBatch {
    let schema = &schemas().unwrap().tool_invocations;
    let mut times: Vec<i64> = (0..rows).map(|_| from + rng.random_range(0..span)).collect();
    times.sort_unstable();
    let mut pick = |names: &[&str]| -> ArrayRef {
        Arc::new((0..rows).map(|_| Some(names[rng.random_range(0..names.len())])).collect::<StringArray>())
    };
    let (workspace, plugin, tool) =
        (pick(&["prod", "staging"]), pick(&["github", "files", "jira"]), pick(&["list", "read", "write", "search"]));
    let outcome = pick(&["ok", "ok", "ok", "timeout", "policy_denied"]);
    let mut id = |of: &dyn Fn(usize, u128) -> u128| -> ArrayRef {
        Arc::new((0..rows).map(|row| Some(Uuid::from_u128(of(row, rng.random())).to_string())).collect::<StringArray>())
    };
    // Of version 7: 48 bits of milliseconds come first.
    let begins = |row: usize, random: u128| ((times[row] / 1_000) as u128) << 80 | 7 << 76 | random >> 52;
    let (invocation, request) = (id(&begins), id(&|_, random| random));
    let time: ArrayRef = Arc::new(TimestampMicrosecondArray::from(times.clone()).with_timezone("UTC"));
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        "invocation_id" => Arc::clone(&invocation),
        "request_id" => Arc::clone(&request),
        "org" => Arc::new(StringArray::from(vec!["acme"; rows])) as ArrayRef,
        "instance" => Arc::new(StringArray::from(vec!["gw-1"; rows])),
        "workspace" => Arc::clone(&workspace),
        "plugin" => Arc::clone(&plugin),
        "tool" => Arc::clone(&tool),
        "outcome" => Arc::clone(&outcome),
        "started_at" | "arrived_at" | "ingested_at" => Arc::clone(&time),
        "duration_ms" => Arc::new(Float64Array::from_iter_values(times.iter().map(|time| (time % 977) as f64 + 0.5))),
        "request_bytes" => {
            Arc::new(Int64Array::from_iter(times.iter().map(|time| (time % 3 > 0).then_some(*time % 4_096))))
        }
        "date" => Arc::new(Date32Array::from_iter_values(times.iter().map(|time| time.div_euclid(DAY) as i32))),
        _ => new_null_array(field.data_type(), rows),
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

/// The samples with callers, one after the other in turn.
pub(super) fn called_by(samples: &RecordBatch, callers: &[&str]) -> RecordBatch {
    let at = samples.schema().index_of("caller").unwrap();
    let mut columns = samples.columns().to_vec();
    columns[at] =
        Arc::new((0..samples.num_rows()).map(|row| Some(callers[row % callers.len()])).collect::<StringArray>());
    RecordBatch::try_new(samples.schema(), columns).unwrap()
}

/// Sealed payloads of the calls of samples, each of so many bytes that nothing packs.
pub(super) fn payloads(rng: &mut StdRng, samples: &RecordBatch, bytes: usize) -> RecordBatch {
    let rows = samples.num_rows();
    let records: Vec<Vec<u8>> = (0..rows).map(|_| (0..bytes).map(|_| rng.random()).collect()).collect();
    let schema = &schemas().unwrap().payloads;
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        "direction" | "kind" | "epoch" | "content_type" => {
            Arc::new(StringArray::from(vec![field.name().as_str(); rows])) as ArrayRef
        }
        "record_hash" => Arc::new((0..rows).map(|row| Some(format!("{row:064x}"))).collect::<StringArray>()),
        "truncated" => Arc::new(BooleanArray::from(vec![false; rows])),
        "ledger_seq" => Arc::new(Int64Array::from_iter_values(0..rows as i64)),
        "envelope" => Arc::new(BinaryArray::from_iter_values(vec![b"envelope"; rows])),
        "record" => Arc::new(BinaryArray::from_iter_values(&records)),
        name => match samples.column_by_name(name) {
            Some(column) => Arc::clone(column),
            None => new_null_array(field.data_type(), rows),
        },
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

pub(super) fn rng(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}
