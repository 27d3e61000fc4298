//! The control plane's state: a state machine over the write-ahead log.
//!
//! ```text
//! append ─▶ admission ─▶ group commit ─▶ wal/<seq> ─▶ apply ─▶ ack          (committer)
//!                                           │
//!          any other node's objects ────────┴▶ apply                        (replica)
//!                                               │ running totals · idempotency keys · live buffer, of each org
//! read ─▶ catch up with the log ─▶ view ◀───────┤
//!                                               └▶ flush ─▶ Delta tables, totals/<position>, keys/<from>-<to> ─▶ trim
//! ```
//!
//! What a node knows is a function of the log: it applies the log's objects in order, each once, whoever wrote them.
//! Nodes keep nothing of their own, so ten of them on one store are the same program as one.
//!
//! Invariants kept here:
//!
//! - **I1** A batch is acknowledged after its WAL object is durable and applied. Each table and snapshot carries the
//!   position that it holds, so a restart applies to each exactly what it lacks, and a flush that crashes between two
//!   steps is taken up at the step it did not take.
//! - **I2** A damaged object stops the org that it belongs to, or all of them when that cannot be told.
//! - **I3** A read first applies all that any node acknowledged before it began, so a counter read on two nodes in turn
//!   never goes down.
//! - **I7** Bytes are admitted before they are read; past the bound the answer is [`PlaneError::Busy`].
//!
//! After a crash: [`Plane::recover`] loads the newest totals and keys, opens the tables, and replays the log from its
//! first object.

mod admission;
mod committer;
mod error;
mod evidence;
mod flusher;
mod heads;
mod keys;
mod ledger;
mod ledger_load;
mod merging;
mod org;
mod own_events;
mod press;
mod recovery;
mod replica;
mod retention;
mod segments;
mod standing;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

pub use admission::Admission;
use admission::Budget;
use committer::{Message, Pending};
pub use error::PlaneError;
pub use evidence::LedgerFile;
pub use heads::{Elsewhere, Witness};
use org::Org;
pub use own_events::{OwnEvent, start};
use replica::Replica;
use retention::Keep;
pub use retention::{Keeping, PrunePlan, PrunedSegment};

use crate::audit::SigningKeys;
use crate::audit::segment::SegmentName;
use crate::config::{ControlPlane, Org as OrgSettings, Period};
use crate::ingest::{IdempotencyKey, RowKind};
use crate::model::schema::{Schemas, schemas};
use crate::model::{Clock, OrgName, Random};
use crate::query::OrgView;
use crate::rollup::{Digest, RunningTotals};
use crate::storage::Store;
use crate::storage::wal::{Log, Marks, Section, SectionKind};
use crate::telemetry::metrics::Metrics;

/// How long a batch waits to become durable before its sender is told to come again.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// Batches of at least this many rows are encoded by the request that brought them, in parallel; smaller ones are put
/// together by the committer.
const ENCODE_ALONE_ROWS: usize = 512;
/// How often, and after which pause, a flush that fails is tried again while draining.
const DRAIN_TRIES: u32 = 5;
const DRAIN_PAUSE: Duration = Duration::from_millis(200);
/// Batches that may wait for the committer.
const QUEUE: usize = 16_384;

/// What a plane is made of. Stores, clocks and randomness are handed in, so that a test can play them.
#[derive(Debug)]
pub struct Parts {
    /// Where everything durable lies.
    pub store: Store,
    /// The wall clock.
    pub clock: Arc<dyn Clock>,
    /// Names of writers and files.
    pub random: Arc<dyn Random>,
    /// Where it counts what it does.
    pub metrics: Arc<Metrics>,
    /// What the ledgers' heads are signed with.
    pub signing: Arc<SigningKeys>,
    /// Where the ledgers' heads are handed on to.
    pub elsewhere: Elsewhere,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Samples in the batch.
    pub accepted: usize,
    /// Whether the batch had been stored before, under the same key.
    pub duplicate: bool,
}

/// Whether the plane can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Replaying the WAL.
    Replaying {
        /// WAL objects applied so far.
        done: u64,
        /// WAL objects to apply in all.
        total: u64,
    },
    /// Serving.
    Ready,
    /// Draining before it stops.
    Draining,
}

/// See the module's doc.
#[derive(Debug)]
pub struct Plane {
    store: Store,
    log: Log,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    metrics: Arc<Metrics>,
    settings: Settings,
    schemas: &'static Schemas,
    writer: Uuid,
    /// The orgs of the configuration, and any other whose samples are in the log.
    orgs: RwLock<HashMap<OrgName, Arc<Org>>>,
    replica: Replica,
    budget: Arc<Budget>,
    readiness: watch::Sender<Readiness>,
    queue: OnceLock<mpsc::Sender<Message>>,
    /// Decisions about ledgers that wait for a place in the log.
    marks: Mutex<Marks>,
    signing: Arc<SigningKeys>,
    elsewhere: Elsewhere,
    /// Segments that a prune looked at last, and when the newest entry of each was recorded.
    ages: Mutex<HashMap<OrgName, (SegmentName, Option<i64>)>>,
    /// Whether the last heads are signed, and whether they have been handed on: the process may end then.
    pressed: watch::Sender<bool>,
    handed_on: watch::Sender<bool>,
    /// Objects up to here hold nothing that tables and snapshots lack; to be announced by the next commit.
    flushed: AtomicU64,
}

/// What the plane takes from the configuration.
#[derive(Debug, Clone)]
struct Settings {
    name: String,
    orgs: Vec<OrgName>,
    commit_window: Duration,
    flush_interval: Duration,
    flush_rows: usize,
    flush_bytes: usize,
    max_keys: usize,
    max_series: usize,
    /// The longest that a query may run.
    query_time: Duration,
    prune_interval: Duration,
    /// How long each org's entries are kept.
    keep: HashMap<OrgName, Keep>,
}

impl Settings {
    fn of(config: &ControlPlane) -> Self {
        let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        Self {
            name: config.name.clone(),
            orgs: config.orgs.iter().map(|org| org.name.clone()).collect(),
            commit_window: config.commit.window.as_duration(),
            flush_interval: config.flush.interval.as_duration(),
            flush_rows: count(config.flush.max_rows),
            flush_bytes: config.flush.max_bytes.as_usize(),
            max_keys: count(config.limits.idempotency_keys),
            max_series: count(config.limits.series),
            query_time: config.limits.sql.timeout.as_duration(),
            prune_interval: config.audit.prune_interval.as_duration(),
            keep: config.orgs.iter().map(|org| (org.name.clone(), keep(org))).collect(),
        }
    }
}

fn keep(org: &OrgSettings) -> Keep {
    match org.retention.ledger {
        Some(period) => Keep { period: period.as_duration(), rule: format!("{period} (retention.ledger)") },
        None => {
            let period = Period::new(org.tier.retention());
            Keep { period: period.as_duration(), rule: format!("{period} (tier {})", org.tier) }
        }
    }
}

impl Plane {
    /// A plane that knows nothing yet: [`Plane::recover`] makes it ready.
    ///
    /// # Errors
    /// When the schemas compiled into the program do not parse.
    pub fn new(config: &ControlPlane, parts: Parts) -> Result<Arc<Self>, PlaneError> {
        let Parts { store, clock, random, metrics, signing, elsewhere } = parts;
        let limit = config.limits.buffer_bytes.as_usize();
        metrics.buffer.limit_bytes.set(i64::try_from(limit).unwrap_or(i64::MAX));
        Ok(Arc::new(Self {
            log: Log::new(Arc::clone(store.objects())),
            store,
            clock,
            writer: random.uuid(),
            random,
            budget: Budget::new(limit, Arc::clone(&metrics)),
            metrics,
            settings: Settings::of(config),
            schemas: schemas().map_err(|e| PlaneError::Internal(e.to_string()))?,
            orgs: RwLock::default(),
            replica: Replica::default(),
            readiness: watch::Sender::new(Readiness::Replaying { done: 0, total: 0 }),
            queue: OnceLock::new(),
            marks: Mutex::default(),
            signing,
            elsewhere,
            ages: Mutex::default(),
            pressed: watch::Sender::new(false),
            handed_on: watch::Sender::new(false),
            flushed: AtomicU64::new(0),
        }))
    }

    /// Loads what is stored, replays the log, and starts to commit and to flush.
    ///
    /// # Errors
    /// When the store cannot be read, or the log is damaged in a way that concerns every org.
    pub async fn recover(self: &Arc<Self>) -> Result<(), PlaneError> {
        self.begin().await?;
        self.serve();
        Ok(())
    }

    /// As [`Plane::recover`], but nobody is served yet.
    async fn begin(self: &Arc<Self>) -> Result<(), PlaneError> {
        recovery::recover(self).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        if self.queue.set(sender).is_ok() {
            tokio::spawn(committer::run(Arc::clone(self), receiver));
            tokio::spawn(flusher::run(Arc::clone(self)));
            tokio::spawn(press::run(Arc::clone(self)));
            tokio::spawn(heads::run(Arc::clone(self)));
            tokio::spawn(retention::run(Arc::clone(self)));
        }
        Ok(())
    }

    /// Serves, unless it has been asked to stop meanwhile.
    fn serve(&self) {
        self.readiness.send_if_modified(|readiness| {
            let replaying = matches!(readiness, Readiness::Replaying { .. });
            if replaying {
                *readiness = Readiness::Ready;
            }
            replaying
        });
    }

    /// Sets memory aside for a body of `bytes` before it is read, waiting a while for room (invariant I7).
    ///
    /// # Errors
    /// [`PlaneError::Busy`] when there is none in time.
    pub async fn admit(&self, bytes: usize) -> Result<Admission, PlaneError> {
        Budget::admit(&self.budget, bytes).await
    }

    /// Makes a canonical batch durable and visible, then says so.
    ///
    /// # Errors
    /// See [`PlaneError`]; after an error the batch is stored at most once, and a retry under the same key is safe.
    pub async fn append(
        &self,
        org: &OrgName,
        kind: RowKind,
        batch: RecordBatch,
        key: Option<IdempotencyKey>,
        admission: Admission,
    ) -> Result<Ack, PlaneError> {
        self.serving()?;
        self.append_while_running(org, kind, batch, key, admission).await
    }

    /// As [`Plane::append`], also while nobody else is served.
    async fn append_while_running(
        &self,
        org: &OrgName,
        kind: RowKind,
        batch: RecordBatch,
        key: Option<IdempotencyKey>,
        mut admission: Admission,
    ) -> Result<Ack, PlaneError> {
        let queue = self.queue.get().ok_or_else(|| PlaneError::unavailable("the control plane is starting"))?;
        let org = self.org(org)?;
        // The batch itself and its encoding, both held until the acknowledgement.
        admission.wait_to_grow_to(batch.get_array_memory_size().saturating_mul(2)).await?;
        let (name, rows) = (org.name.clone(), batch.num_rows());
        let prepare = move || -> Result<_, PlaneError> {
            let (digest, kind) = match kind {
                RowKind::Sample => (Some(Digest::of(&batch)), SectionKind::Samples),
                RowKind::Event => (None, SectionKind::Events),
            };
            let digest = digest.transpose().map_err(|e| PlaneError::Internal(e.to_string()))?;
            let keys = key.iter().map(ToString::to_string).collect();
            let section = (rows >= ENCODE_ALONE_ROWS).then(|| Section::new(name, kind, keys, &batch)).transpose();
            Ok((batch, digest, section.map_err(PlaneError::from)?))
        };
        // A large batch takes a while: not on a thread that others wait for.
        let (batch, digest, section) = if rows >= ENCODE_ALONE_ROWS {
            tokio::task::spawn_blocking(prepare).await.map_err(|e| PlaneError::Internal(e.to_string()))??
        } else {
            prepare()?
        };
        let (reply, answer) = oneshot::channel();
        let pending =
            Pending { org, batch, digest, section, key, admission, reply, arrived: tokio::time::Instant::now() };
        queue
            .try_send(Message::Commit(Box::new(pending)))
            .map_err(|_| PlaneError::busy("too many batches wait to be committed"))?;
        match tokio::time::timeout(APPEND_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(PlaneError::unavailable("the control plane is stopping")),
            Err(_) => Err(PlaneError::unavailable("the store has not taken the samples in time")),
        }
    }

    /// Reads the running totals, after everything that any node acknowledged before this call has been applied.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn with_totals<R>(&self, org: &OrgName, read: impl FnOnce(&RunningTotals) -> R) -> Result<R, PlaneError> {
        let org = self.caught_up(org).await?;
        Ok(read(&org.read().totals))
    }

    /// One consistent view of an org's tables, after catching up as [`Plane::with_totals`] does.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn view(&self, org: &OrgName) -> Result<OrgView, PlaneError> {
        let org = self.caught_up(org).await?;
        Ok(org.view())
    }

    /// Whether it can serve.
    pub fn readiness(&self) -> Readiness {
        *self.readiness.borrow()
    }

    /// Stops taking samples, commits what is under way and flushes every buffer to the tables.
    ///
    /// # Errors
    /// When the store refuses; what was acknowledged is still safe in the WAL.
    pub async fn drain(self: &Arc<Self>) -> Result<(), PlaneError> {
        if self.readiness.send_replace(Readiness::Draining) != Readiness::Ready {
            return Ok(());
        }
        self.settle().await;
        press::finish(self).await;
        self.pressed.send_replace(true);
        for org in self.all_orgs() {
            let mut tries = 0;
            while let Err(e) = flusher::flush(self, &org).await {
                tries += 1;
                if tries == DRAIN_TRIES {
                    return Err(e);
                }
                tracing::warn!(org = %org.name, error = %e, "a flush failed while draining and is tried again");
                tokio::time::sleep(DRAIN_PAUSE).await;
            }
        }
        heads::finish(self).await;
        Ok(())
    }

    /// Waits until whatever is in the committer's queue is answered. If the committer is gone there is nobody to wait for.
    async fn settle(&self) {
        let (reply, settled) = oneshot::channel();
        if let Some(queue) = self.queue.get()
            && queue.send(Message::Settle(reply)).await.is_ok()
        {
            let _ = settled.await;
        }
    }

    fn serving(&self) -> Result<&mpsc::Sender<Message>, PlaneError> {
        match (self.readiness(), self.queue.get()) {
            (Readiness::Ready, Some(queue)) => Ok(queue),
            (Readiness::Draining, _) => Err(PlaneError::unavailable("the control plane is stopping")),
            (Readiness::Replaying { done, total }, _) => Err(PlaneError::unavailable(format!(
                "the write-ahead log is being replayed, {done} of {total} objects"
            ))),
            (Readiness::Ready, None) => Err(PlaneError::unavailable("the control plane is starting")),
        }
    }

    /// Whether the org is configured and sound, and the plane serves.
    fn sound(&self, name: &OrgName) -> Result<(), PlaneError> {
        self.serving()?;
        self.org(name).map(drop)
    }

    /// The org of that name, if it is configured and sound.
    fn org(&self, name: &OrgName) -> Result<Arc<Org>, PlaneError> {
        if !self.settings.orgs.contains(name) {
            return Err(PlaneError::UnknownOrg(name.to_string()));
        }
        let found = self.orgs.read().unwrap_or_else(PoisonError::into_inner).get(name).map(Arc::clone);
        let org = found.ok_or_else(|| PlaneError::unavailable("the control plane is starting"))?;
        org.check_sound()?;
        Ok(org)
    }

    async fn caught_up(&self, name: &OrgName) -> Result<Arc<Org>, PlaneError> {
        self.serving()?;
        self.org(name)?;
        replica::catch_up(self).await?;
        self.org(name)
    }

    fn all_orgs(&self) -> Vec<Arc<Org>> {
        self.orgs.read().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect()
    }

    fn now(&self) -> i64 {
        crate::model::micros(self.clock.now())
    }

    fn schema_of(&self, kind: SectionKind) -> &'static SchemaRef {
        match kind {
            SectionKind::Samples => &self.schemas.tool_invocations,
            SectionKind::Events => &self.schemas.audit_event,
        }
    }

    /// Decisions about ledgers that wait for a place in the log.
    fn marks(&self) -> Marks {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that marks have their place in the log.
    fn marked(&self, done: &Marks) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.cuts.retain(|org| !done.cuts.contains(org));
        marks.merges.retain(|merge| !done.merges.contains(merge));
    }

    fn live_bytes(&self) -> usize {
        self.all_orgs().iter().map(|org| org.read().live.bytes() + org.ledger().bytes()).sum()
    }

    /// Says how much waits to be flushed, to the budget and to the metrics.
    fn count_live(&self) {
        let rows: usize = self.all_orgs().iter().map(|org| org.read().live.rows()).sum();
        self.metrics.buffer.rows.set(i64::try_from(rows).unwrap_or(i64::MAX));
        self.budget.set_live(self.live_bytes());
    }
}
