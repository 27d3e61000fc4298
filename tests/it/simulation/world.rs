//! Nodes, clients and the books they keep.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{
    ArrayRef, AsArray, Date32Array, Float64Array, StringArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use ed25519_dalek::SigningKey;
use mcpg::audit::SigningKeys;
use mcpg::config::ControlPlane;
use mcpg::ingest::{IdempotencyKey, RowKind};
use mcpg::model::schema::schemas;
use mcpg::model::{Clock, Random};
use mcpg::plane::{Ack, Elsewhere, Parts, Plane, PlaneError};
use mcpg::query::TableState;
use mcpg::rollup::exposition::{Format, render};
use mcpg::rollup::{Granularity, RunningTotals, daily_partials, hourly_partials};
use mcpg::storage::Store;
use mcpg::telemetry::metrics::Metrics;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use tokio::time::Instant;
use uuid::Uuid;

use super::ledger::{self, events};
use super::store::FaultyStore;

pub(super) const ORGS: [&str; 2] = ["acme", "other"];
pub(super) const BEGAN: i64 = 1_700_000_000_000_000;
const CONFIG: &str = "
orgs: [{ name: acme }, { name: other }]
flush: { interval: 300ms }
";

thread_local! {
    /// When the play that runs on this thread began: the one time that all of its nodes' clocks go by.
    static BEGINNING: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Runs a play in virtual time, on one thread.
pub(super) fn run<T>(play: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    runtime.block_on(async {
        BEGINNING.set(Some(Instant::now()));
        play.await
    })
}

/// Virtual time, since this instant, as wall time.
#[derive(Debug)]
struct VirtualClock(Instant);

impl Clock for VirtualClock {
    fn now(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(BEGAN + self.0.elapsed().as_micros() as i64).unwrap()
    }
}

#[derive(Debug)]
struct SeededRandom(Mutex<StdRng>);

impl Random for SeededRandom {
    fn uuid(&self) -> Uuid {
        Uuid::from_u128(self.0.lock().unwrap().random())
    }
}

/// `rows` canonical samples whose ids are made of `key`, one tool for each key modulo 5.
pub(super) fn batch(key: u64, rows: usize) -> RecordBatch {
    let schema = &schemas().unwrap().tool_invocations;
    let text = |value: &str| Arc::new(StringArray::from(vec![value; rows])) as ArrayRef;
    let columns = schema.fields().iter().map(|field| -> ArrayRef {
        match field.name().as_str() {
            "invocation_id" => Arc::new(StringArray::from_iter_values(sample_ids(key, rows))),
            "tool" => text(&format!("tool-{}", key % 5)),
            "started_at" | "arrived_at" | "ingested_at" => {
                let hours = (key % 30) as i64 * 3_600_000_000;
                Arc::new(TimestampMicrosecondArray::from(vec![BEGAN - hours; rows]).with_timezone("UTC"))
            }
            "date" => {
                let day = (BEGAN - (key % 30) as i64 * 3_600_000_000).div_euclid(86_400_000_000);
                Arc::new(Date32Array::from(vec![day as i32; rows]))
            }
            "duration_ms" => Arc::new(Float64Array::from_iter_values((0..rows).map(|row| (key + row as u64) as f64))),
            "outcome" => text("ok"),
            _ if field.is_nullable() => new_null_array(field.data_type(), rows),
            _ => text("x"),
        }
    });
    RecordBatch::try_new(Arc::clone(schema), columns.collect()).unwrap()
}

/// What the ledgers' heads are signed with.
pub(super) fn keys() -> SigningKeys {
    SigningKeys::new(SigningKey::from_bytes(&[7; 32]))
}

/// A control-plane process.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) store: Arc<FaultyStore>,
    plane: Arc<Plane>,
}

impl Node {
    pub(super) async fn try_start(store: Arc<FaultyStore>) -> Result<Self, PlaneError> {
        Self::try_start_with(store, CONFIG).await
    }

    /// As [`Node::try_start`], with a configuration of the test's own.
    pub(super) async fn try_start_with(store: Arc<FaultyStore>, config: &str) -> Result<Self, PlaneError> {
        let config = ControlPlane::parse("simulation", config, &|_| None).unwrap();
        let seed = Arc::as_ptr(&store) as u64;
        let parts = Parts {
            store: Store::new(Arc::clone(&store) as Arc<dyn ObjectStore>, "memory://"),
            clock: Arc::new(VirtualClock(BEGINNING.get().unwrap())),
            random: Arc::new(SeededRandom(Mutex::new(StdRng::seed_from_u64(seed)))),
            metrics: Arc::new(Metrics::new()),
            signing: Arc::new(keys()),
            elsewhere: Elsewhere::default(),
        };
        let plane = Plane::new(&config, parts).unwrap();
        let recovered = plane.recover().await;
        // A process may die while it starts; to its clients it is there and answers nothing good.
        if store.is_dead() { Ok(Self { store, plane }) } else { recovered.map(|()| Self { store, plane }) }
    }

    pub(super) async fn start(store: Arc<FaultyStore>) -> Self {
        Self::try_start(store).await.unwrap()
    }

    /// Drains the node; a dead one just ends.
    pub(super) async fn stop(&self) {
        let drained = self.plane.drain().await;
        assert!(drained.is_ok() || self.store.is_dead(), "{drained:?}");
        self.store.die();
    }

    pub(super) async fn send(&self, org: &str, key: u64, samples: RecordBatch) -> Result<Ack, PlaneError> {
        let admission = self.plane.admit(1000).await?;
        let key = IdempotencyKey::new(RowKind::Sample, format!("key-{key}").as_bytes()).unwrap();
        self.plane.append(&org.parse().unwrap(), RowKind::Sample, samples, Some(key), admission).await
    }

    pub(super) async fn emit(&self, org: &str, key: u64, events: RecordBatch) -> Result<Ack, PlaneError> {
        let admission = self.plane.admit(1000).await?;
        let key = IdempotencyKey::new(RowKind::Event, format!("key-{key}").as_bytes()).unwrap();
        self.plane.append(&org.parse().unwrap(), RowKind::Event, events, Some(key), admission).await
    }

    /// An org's ledger, oldest entries first.
    pub(super) async fn entries(&self, org: &str) -> Vec<RecordBatch> {
        let view = self.plane.view(&org.parse().unwrap()).await.unwrap();
        let mut batches = self.files(&view.audit).await;
        batches.extend(view.audit.live);
        batches
    }

    /// How often samples of an org are counted, in each of the four places.
    pub(super) async fn count(&self, org: &str) -> BTreeMap<&'static str, i64> {
        let org = org.parse().unwrap();
        let view = self.plane.view(&org).await.unwrap();
        let scrape = |totals: &RunningTotals| render(totals, Granularity::Hour, BEGAN, Format::Text004);
        let scraped = self.plane.with_totals(&org, scrape).await.unwrap();
        let counters =
            std::str::from_utf8(&scraped).unwrap().lines().filter(|l| l.starts_with("mcpg_tool_calls_total{"));
        let totals: i64 = counters.map(|line| line.rsplit(' ').next().unwrap().parse::<i64>().unwrap()).sum();
        let rows = |batches: &[RecordBatch]| batches.iter().map(|b| b.num_rows() as i64).sum::<i64>();
        let samples = rows(&self.files(&view.samples).await) + rows(&view.samples.live);
        let mut counts = BTreeMap::from([("samples", samples), ("totals", totals)]);
        for (name, granularity, table) in
            [("hourly", Granularity::Hour, &view.hourly), ("daily", Granularity::Day, &view.daily)]
        {
            let mut batches = self.files(table).await;
            let hours = hourly_partials(&table.live).await.unwrap();
            batches.push(match granularity {
                Granularity::Hour => hours,
                Granularity::Day => daily_partials(&hours).await.unwrap(),
            });
            let calls = |batch: &RecordBatch| {
                batch.column_by_name("calls").unwrap().as_primitive::<Int64Type>().values().iter().sum::<i64>()
            };
            counts.insert(name, batches.iter().map(calls).sum());
        }
        counts
    }

    /// The ids of an org's samples; one that is there twice is a failure.
    pub(super) async fn ids(&self, org: &str) -> BTreeSet<String> {
        let view = self.plane.view(&org.parse().unwrap()).await.unwrap();
        let mut batches = self.files(&view.samples).await;
        batches.extend(view.samples.live);
        let mut ids = BTreeSet::new();
        for batch in batches {
            for id in batch.column_by_name("invocation_id").unwrap().as_string::<i32>().iter().flatten() {
                assert!(ids.insert(id.to_owned()), "{id} is stored twice");
            }
        }
        ids
    }

    async fn files(&self, table: &TableState) -> Vec<RecordBatch> {
        let mut batches = Vec::new();
        for file in table.files.iter() {
            let bytes = self.store.get(&file.path).await.unwrap().bytes().await.unwrap();
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
            batches.extend(reader.map(Result::unwrap));
        }
        batches
    }
}

/// What the clients know: what they sent, and what was acknowledged.
pub(super) struct World {
    random: StdRng,
    next: u64,
    samples: Books,
    events: Books,
}

/// By their keys: org and number of rows, and which were acknowledged.
#[derive(Default)]
struct Books {
    sent: BTreeMap<u64, (usize, usize)>,
    acknowledged: BTreeSet<u64>,
}

impl Books {
    /// Compares what is stored of an org's rows, whose ids follow from key and number.
    fn check<I: Iterator<Item = String>>(&self, org: usize, stored: &BTreeSet<String>, ids: impl Fn(u64, usize) -> I) {
        let of = |keys: &mut dyn Iterator<Item = u64>| -> BTreeSet<String> {
            keys.filter(|key| self.sent[key].0 == org).flat_map(|key| ids(key, self.sent[&key].1)).collect()
        };
        let acknowledged = of(&mut self.acknowledged.iter().copied());
        let lost: Vec<_> = acknowledged.difference(stored).collect();
        assert!(lost.is_empty(), "acknowledged and lost in {}: {lost:?}", ORGS[org]);
        assert!(stored.is_subset(&of(&mut self.sent.keys().copied())), "{} has rows that nobody sent", ORGS[org]);
    }
}

/// The ids of the samples that are sent under a key.
fn sample_ids(key: u64, rows: usize) -> impl Iterator<Item = String> {
    (0..rows).map(move |row| Uuid::from_u128((u128::from(key) << 32) + row as u128).to_string())
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let (samples, events) = (Books::default(), Books::default());
        Self { random: StdRng::seed_from_u64(seed), next: 0, samples, events }
    }

    pub(super) fn acknowledged(&self) -> usize {
        self.samples.acknowledged.len()
    }

    pub(super) fn acknowledged_events(&self) -> usize {
        self.events.acknowledged.len()
    }

    /// Several clients send at once, to both nodes, two thirds of them samples and the others events; then some time passes,
    /// in which flushes may begin and heads be signed.
    pub(super) async fn round(&mut self, one: &Node, two: &Node, round: u64) {
        let mut clients = Vec::new();
        for client in 0..9 {
            let key = self.next;
            self.next += 1;
            let (org, rows) = (self.random.random_range(0..ORGS.len()), self.random.random_range(1..5));
            let is_event = client >= 6;
            let books = if is_event { &mut self.events } else { &mut self.samples };
            books.sent.insert(key, (org, rows));
            let node = if client % 3 == 0 { two } else { one };
            let pause = Duration::from_millis(self.random.next_u64() % 20);
            clients.push(async move {
                tokio::time::sleep(pause).await;
                let outcome = match is_event {
                    true => node.emit(ORGS[org], key, events(key, rows)).await,
                    false => node.send(ORGS[org], key, batch(key, rows)).await,
                };
                (is_event, key, outcome)
            });
        }
        for (is_event, key, outcome) in futures::future::join_all(clients).await {
            if outcome.is_ok() {
                let books = if is_event { &mut self.events } else { &mut self.samples };
                books.acknowledged.insert(key);
            }
        }
        tokio::time::sleep(Duration::from_millis(150 + 100 * round)).await;
    }

    /// Time passes, in which segments end and heads are signed.
    pub(super) async fn rest(&self) {
        tokio::time::sleep(Duration::from_millis(1_300)).await;
    }

    /// Sends again what was not acknowledged.
    pub(super) async fn retry(&mut self, node: &Node) {
        for (key, (org, rows)) in self.samples.sent.clone() {
            if !self.samples.acknowledged.contains(&key) && key % 2 == 0 {
                node.send(ORGS[org], key, batch(key, rows)).await.unwrap();
                self.samples.acknowledged.insert(key);
            }
        }
        for (key, (org, rows)) in self.events.sent.clone() {
            if !self.events.acknowledged.contains(&key) && key % 2 == 0 {
                node.emit(ORGS[org], key, events(key, rows)).await.unwrap();
                self.events.acknowledged.insert(key);
            }
        }
    }

    /// Compares a node with the books, once it has had time to take over what another left undone.
    pub(super) async fn check(&self, node: &Node) {
        tokio::time::sleep(Duration::from_secs(15)).await;
        for (number, org) in ORGS.iter().enumerate() {
            let ids = node.ids(org).await;
            self.samples.check(number, &ids, sample_ids);
            let stored = ids.len() as i64;
            let counts = node.count(org).await;
            assert!(counts.values().all(|count| *count == stored), "{org} has {stored} samples and counts {counts:?}");
            // A head is waited for before it is taken over from a dead node, one after the other.
            let mut shown = ledger::check(node, org).await;
            for _ in 0..20 {
                if shown.signed == shown.size {
                    break;
                }
                tokio::time::sleep(Duration::from_secs(6)).await;
                shown = ledger::check(node, org).await;
            }
            assert_eq!((shown.first, shown.signed), (0, shown.size), "{org}: entries that no head covers");
            self.events.check(number, &shown.ids, ledger::ids);
        }
    }
}
