//! A control-plane process on the simulated store, as its clients see it.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use chrono::{DateTime, TimeDelta, Utc};
use ed25519_dalek::SigningKey;
use mcpg::audit::SigningKeys;
use mcpg::config::ControlPlane;
use mcpg::ingest::{BatchId, RowKind};
use mcpg::log::Rules;
use mcpg::model::{Clock, Random};
use mcpg::plane::{Ack, Elsewhere, Parts, Plane, PlaneError};
use mcpg::query::OrgView;
use mcpg::rollup::exposition::{Format, render};
use mcpg::rollup::{Granularity, RunningTotals};
use mcpg::storage::Store;
use mcpg::telemetry::metrics::Metrics;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::determinism::hash;
use super::sea::{BEGAN, Sea};
use super::store::Process;

/// What the ledgers' checkpoints are signed with.
pub(super) fn keys() -> SigningKeys {
    SigningKeys::new(SigningKey::from_bytes(&[7; 32]))
}

/// The sea's time, minutes off.
#[derive(Debug)]
struct VirtualClock(Arc<Sea>, TimeDelta);

impl Clock for VirtualClock {
    fn now(&self) -> DateTime<Utc> {
        self.0.wall() + self.1
    }
}

#[derive(Debug)]
struct SeededRandom(Mutex<StdRng>);

impl Random for SeededRandom {
    fn uuid(&self) -> Uuid {
        Uuid::from_u128(self.0.lock().random())
    }
}

/// How a node is made.
#[derive(Debug, Clone)]
pub(super) struct Recipe {
    pub(super) config: String,
    /// How far its clock is off.
    pub(super) clock: TimeDelta,
    /// What a test changes of its parts: to switch a rule off.
    pub(super) alter: fn(&mut Parts),
}

impl Recipe {
    pub(super) fn of(config: &str) -> Self {
        Self { config: config.to_owned(), clock: TimeDelta::zero(), alter: |_| {} }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The process was killed.
    Killed,
    /// It said no.
    Error(PlaneError),
}

/// A running control-plane process.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) process: Process,
    plane: Arc<Plane>,
}

impl Node {
    /// Starts a process, and waits until it serves.
    pub(super) async fn start(process: Process, recipe: &Recipe) -> Result<Self, NoAnswer> {
        process.tell("starts");
        let config = ControlPlane::parse("simulation", &recipe.config, &|_| None).unwrap();
        let seed = hash(process.sea().seed, &[&process.to_string()]);
        let mut parts = Parts {
            store: Store::new(Arc::new(process.clone()), "memory://"),
            clock: Arc::new(VirtualClock(Arc::clone(process.sea()), recipe.clock)),
            random: Arc::new(SeededRandom(Mutex::new(StdRng::seed_from_u64(seed)))),
            metrics: Arc::new(Metrics::new()),
            signing: Arc::new(keys()),
            elsewhere: Elsewhere::default(),
            rules: Rules::default(),
        };
        // Trimmed as soon as may be: nothing may depend on what is kept beyond that.
        parts.rules.kept = 0;
        (recipe.alter)(&mut parts);
        let plane = Plane::new(&config, parts).unwrap();
        let node = Self { process, plane };
        node.unless_killed(node.plane.recover()).await?;
        node.process.tell("serves");
        Ok(node)
    }

    async fn unless_killed<T>(&self, asked: impl Future<Output = Result<T, PlaneError>>) -> Result<T, NoAnswer> {
        tokio::select! {
            biased;
            answer = asked => answer.map_err(NoAnswer::Error),
            () = self.process.died() => Err(NoAnswer::Killed),
        }
    }

    /// What is asked of it beside rows and reads.
    pub(super) fn plane(&self) -> &Arc<Plane> {
        &self.plane
    }

    pub(super) async fn append(
        &self,
        org: &str,
        kind: RowKind,
        batch: RecordBatch,
        id: Option<BatchId>,
    ) -> Result<Ack, NoAnswer> {
        self.unless_killed(async {
            let admission = self.plane.admit(1_000).await?;
            self.plane.append(&org.parse().unwrap(), kind, batch, id, admission).await
        })
        .await
    }

    /// One consistent view of an org's tables.
    pub(super) async fn view(&self, org: &str) -> Result<OrgView, NoAnswer> {
        self.unless_killed(self.plane.view(&org.parse().unwrap())).await
    }

    /// What an org's counters of calls say, by series.
    pub(super) async fn counters(&self, org: &str) -> Result<Vec<(String, i64)>, NoAnswer> {
        let scrape = |totals: &RunningTotals| render(totals, Granularity::Hour, BEGAN, Format::Text004);
        let org = org.parse().unwrap();
        let scraped = self.unless_killed(self.plane.with_totals(&org, scrape)).await?;
        let lines = std::str::from_utf8(&scraped).unwrap().lines();
        let counters = lines.filter(|line| line.starts_with("mcpg_tool_calls_total{")).map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.to_owned(), value.parse().unwrap())
        });
        Ok(counters.collect())
    }

    /// Drains the process and ends it.
    pub(super) async fn stop(&self) -> Result<(), NoAnswer> {
        self.process.tell("is drained");
        let drained = self.unless_killed(self.plane.drain()).await;
        self.process.tell(if drained.is_ok() { "has drained" } else { "has not drained" });
        self.process.die();
        drained
    }
}
