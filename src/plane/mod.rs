//! The control plane's state: a state machine over the log.
//!
//! ```text
//! append ─▶ admission ─▶ group commit ─▶ wal/<seq> ─▶ floor ─▶ apply ─▶ ack       (commit)
//!                                           │
//!          any other node's objects ────────┴▶ floor ─▶ apply                      (follow)
//!                                                        │ running totals · batches · live buffer · ledger, of each org
//! read ─▶ catch up with the log ─▶ view ◀────────────────┤
//!                                                        └▶ flush ─▶ Delta tables, state/<position> ─▶ trim
//! ```
//!
//! What a node knows is a function of the log: it applies the log's objects in order, each once, whoever wrote them.
//! Nodes keep nothing of their own, so ten of them on one store are the same program as one.
//!
//! This module composes what [`crate::log`], [`crate::state`], [`crate::flush`] and [`crate::ledger`] do.
//!
//! Invariants kept here:
//!
//! - **I1** A batch is acknowledged after its log object is durable, confirmed by the floor and applied. Each table and
//!   state carries the position that it holds, so a load applies to each exactly what it lacks, and a flush that
//!   crashes between two steps is taken up at the step it did not take.
//! - **I2** A damaged object stops the org that it belongs to, or all of them when that cannot be told; once a second
//!   load finds it too. A failed read is a hiccup, and tried again.
//! - **I3** A read first applies all that any node acknowledged before it began, so a counter read on two nodes in turn
//!   never goes down.
//! - **I7** Bytes are admitted before they are read; past the bound the answer is [`PlaneError::Busy`].
//!
//! After a crash: [`Plane::recover`] reads the log from the floor to its end; orgs are loaded when they are asked for.

mod bring_over;
mod commit;
mod flusher;
mod follow;
mod ledgers;
mod maintenance;
pub mod payload_export;
mod payload_keys;
mod payload_rows;
pub mod payload_view;
mod payloads;
mod recover;
mod registry;
mod removal;
mod rounds;
mod sessions;
mod system_events;
#[cfg(test)]
mod tests;
mod turns;

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

pub use crate::ledger::reader::LedgerFile;
pub use crate::ledger::replication::{Elsewhere, Witness};
use crate::ledger::retention::Ages;
pub use crate::ledger::retention::{Keeping, PrunePlan, PrunedSegment};
pub use crate::node::PlaneError;
pub use crate::state::Admission;
use commit::{Message, Pending};
use follow::Follower;
use registry::{Registry, Slot};
pub use removal::Removed;
pub use sessions::SessionMark;
pub use system_events::{SystemEvent, start};
use turns::Turns;

use crate::audit::SigningKeys;
use crate::config::ControlPlane;
use crate::ingest::{BatchId, RowKind};
use crate::keys::KeyService;
use crate::log::{Log, LogKeys, Rows, Rules, SectionKind, mac};
use crate::model::schema::schemas;
use crate::model::{Clock, OrgName, Random};
use crate::node::{Node, Settings};
use crate::query::OrgView;
use crate::rollup::RunningTotals;
use crate::state::dedup::Decision;
use crate::state::{Budget, Org};
use crate::storage::Store;
use crate::telemetry::metrics::Metrics;

/// How long a batch waits to become durable before its sender is told to come again.
const APPEND_TIMEOUT: Duration = Duration::from_secs(25);
/// Batches of at least this many rows are encoded by the request that brought them, in parallel; smaller ones are put
/// together by the committer.
const ENCODE_ALONE_ROWS: usize = 512;
/// How long a read waits for the log to be followed or an org to be loaded; both go on beside it.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Batches that may wait for the committer.
const QUEUE: usize = 16_384;
/// Orgs that are loaded at once, and of these in the background.
const LOADS_AT_ONCE: usize = 8;
const BACKGROUND_LOADS_AT_ONCE: usize = 4;

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
    /// What the ledgers' checkpoints are signed with, and what the log's key is derived from.
    pub signing: Arc<SigningKeys>,
    /// Where the ledgers' checkpoints are replicated to.
    pub elsewhere: Elsewhere,
    /// The rules of the log's protocol; all of them, but in a simulation that shows what each is for.
    pub rules: Rules,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Samples in the batch.
    pub accepted: usize,
    /// Whether the batch had been stored before.
    pub duplicate: bool,
}

/// Whether the plane can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// Loading the log.
    Replaying {
        /// Log objects read so far.
        done: u64,
        /// Log objects to read in all.
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
    node: Node,
    config: ControlPlane,
    /// The same with the tokens that its file has had since.
    loaded: RwLock<Arc<ControlPlane>>,
    elsewhere: Elsewhere,
    registry: Registry,
    follower: Follower,
    budget: Arc<Budget>,
    readiness: watch::Sender<Readiness>,
    queue: OnceLock<mpsc::Sender<Message>>,
    /// Orgs with decisions that wait for a place in the log.
    undecided: Mutex<BTreeSet<OrgName>>,
    /// Orgs that wait to be loaded in the background, or are being.
    queued: Mutex<HashSet<OrgName>>,
    /// Turns of loading an org.
    loads: Turns,
    /// Whether this process has brought a store of version 1 over, which the ledgers say.
    brought_over: AtomicBool,
    /// Orgs whose ledgers say that this node started.
    announced: Mutex<HashSet<OrgName>>,
    ages: Ages,
    visits: maintenance::Visits,
    /// Orgs to be loaded, for the loader.
    to_load: OnceLock<mpsc::UnboundedSender<OrgName>>,
    /// Whether the last checkpoints are signed, and whether they are replicated: the process may end then.
    published: watch::Sender<bool>,
    replicated: watch::Sender<bool>,
    /// The keys of sealed payloads, once they are opened.
    payload_keys: OnceLock<Arc<KeyService>>,
    /// When this node last rotated the KEK.
    kek_rotated: Mutex<Option<DateTime<Utc>>>,
}

/// The keys that authenticate the log: derived from the ledger's.
fn log_keys(signing: &SigningKeys, rules: &Rules) -> LogKeys {
    let (current, previous) = signing.derive(mac::DERIVATION);
    let keys = LogKeys::new(current, previous);
    if rules.authentic { keys } else { keys.without_macs() }
}

impl Plane {
    /// A plane that knows nothing yet: [`Plane::recover`] makes it ready.
    ///
    /// # Errors
    /// When the schemas compiled into the program do not parse.
    pub fn new(config: &ControlPlane, parts: Parts) -> Result<Arc<Self>, PlaneError> {
        let Parts { store, clock, random, metrics, signing, elsewhere, rules } = parts;
        let limit = config.limits.buffer_bytes.as_usize();
        metrics.buffer.limit_bytes.set(i64::try_from(limit).unwrap_or(i64::MAX));
        let node = Node {
            log: Log::new(store.clone(), Arc::new(log_keys(&signing, &rules))),
            settings: Settings::of(config),
            store,
            clock,
            writer: random.uuid(),
            random,
            metrics: Arc::clone(&metrics),
            schemas: schemas().map_err(|e| PlaneError::Internal(e.to_string()))?,
            signing,
            rules,
        };
        Ok(Arc::new(Self {
            node,
            config: config.clone(),
            loaded: RwLock::new(Arc::new(config.clone())),
            elsewhere,
            registry: Registry::default(),
            follower: Follower::default(),
            budget: Budget::new(limit, metrics),
            readiness: watch::Sender::new(Readiness::Replaying { done: 0, total: 0 }),
            queue: OnceLock::new(),
            undecided: Mutex::default(),
            queued: Mutex::default(),
            loads: Turns::new(LOADS_AT_ONCE, recover::LOAD_TURN),
            brought_over: AtomicBool::new(false),
            announced: Mutex::default(),
            ages: Ages::default(),
            visits: maintenance::Visits::default(),
            to_load: OnceLock::new(),
            published: watch::Sender::new(false),
            replicated: watch::Sender::new(false),
            payload_keys: OnceLock::new(),
            kek_rotated: Mutex::default(),
        }))
    }

    /// Loads the log, and starts to commit and to flush.
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
        recover::recover(self).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (to_load, loads) = mpsc::unbounded_channel();
        if self.queue.set(sender).is_ok() && self.to_load.set(to_load).is_ok() {
            tokio::spawn(commit::run(Arc::clone(self), receiver));
            tokio::spawn(run_loads(Arc::clone(self), loads));
            tokio::spawn(flusher::run(Arc::clone(self)));
            tokio::spawn(ledgers::run_publisher(Arc::clone(self)));
            tokio::spawn(ledgers::run_replication(Arc::clone(self)));
            tokio::spawn(ledgers::run_retention(Arc::clone(self)));
            tokio::spawn(maintenance::run(Arc::clone(self)));
            tokio::spawn(payload_keys::run(Arc::clone(self)));
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

    /// Whether a batch was stored before, as far as this node has applied the log: to be asked before the batch is
    /// validated. That it was not is decided for good when it is committed.
    ///
    /// # Errors
    /// [`PlaneError::KeyReused`], [`PlaneError::SequenceConflict`], and as [`Plane::append`].
    pub async fn is_stored(&self, name: &OrgName, id: &BatchId) -> Result<bool, PlaneError> {
        self.serving()?;
        let org = self.org(name).await?;
        let state = org.state.read();
        if state.removed.is_some() {
            return Err(PlaneError::OrgRemoved(name.to_string()));
        }
        match state.dedup.decide(id) {
            Decision::Fresh | Decision::FreshAfterGap => Ok(false),
            Decision::Duplicate => Ok(true),
            refused => Err(commit::refusal(refused, Some(id), &state.dedup)),
        }
    }

    /// From when on keys are known, where that is less than 24 hours ago.
    pub fn keys_since(&self, name: &OrgName) -> Option<DateTime<Utc>> {
        let org = self.registry.loaded(name)?;
        let since = org.state.read().dedup.keys_since();
        since.and_then(DateTime::from_timestamp_micros)
    }

    /// Makes a canonical batch durable and visible, then says so.
    ///
    /// # Errors
    /// See [`PlaneError`]; after an error the batch is stored at most once, and a retry under the same identity is
    /// safe.
    pub async fn append(
        self: &Arc<Self>,
        org: &OrgName,
        kind: RowKind,
        batch: RecordBatch,
        id: Option<BatchId>,
        admission: Admission,
    ) -> Result<Ack, PlaneError> {
        self.serving()?;
        not_removed(&*self.org(org).await?)?;
        if !self.announced.lock().contains(org) {
            let (plane, org) = (Arc::clone(self), org.clone());
            tokio::spawn(async move {
                if let Err(e) = plane.announce_start_to(&org, true).await {
                    tracing::warn!(%org, error = %e, "the ledger does not say that this node starts");
                }
            });
        }
        self.append_while_running(org, kind, batch, id, admission).await
    }

    /// As [`Plane::append`], also while nobody else is served.
    async fn append_while_running(
        &self,
        name: &OrgName,
        kind: RowKind,
        batch: RecordBatch,
        id: Option<BatchId>,
        mut admission: Admission,
    ) -> Result<Ack, PlaneError> {
        let org = self.org(name).await?;
        org.touch();
        // The batch itself and its encoding, both held until the acknowledgement.
        admission.wait_to_grow_to(batch.get_array_memory_size().saturating_mul(2)).await?;
        let kind = match kind {
            RowKind::Sample => SectionKind::Samples,
            RowKind::Event => SectionKind::Events,
        };
        // A large batch takes a while: not on a thread that others wait for.
        let mut alone = None;
        if batch.num_rows() >= ENCODE_ALONE_ROWS {
            let (batch, remote) = (batch.clone(), self.node.settings.remote);
            let prepare = move || -> Result<_, PlaneError> {
                let digest = commit::digest(kind, &batch)?;
                Ok((Rows::new(kind, &batch, remote)?, digest))
            };
            let prepared = tokio::task::spawn_blocking(prepare).await;
            alone = Some(prepared.map_err(|e| PlaneError::Internal(e.to_string()))??);
        }
        let (reply, answer) = oneshot::channel();
        let arrived = tokio::time::Instant::now();
        let pending = Pending { org: name.clone(), kind, batch, alone, id, payloads: None, admission, reply, arrived };
        self.commit(pending, answer).await
    }

    /// Hands a batch to the committer, and waits for what becomes of it.
    async fn commit(
        &self,
        pending: Pending,
        answer: oneshot::Receiver<Result<Ack, PlaneError>>,
    ) -> Result<Ack, PlaneError> {
        let queue = self.queue.get().ok_or_else(|| PlaneError::unavailable("the control plane is starting"))?;
        queue
            .try_send(Message::Commit(Box::new(pending)))
            .map_err(|_| PlaneError::busy("too many batches wait to be committed"))?;
        match tokio::time::timeout(APPEND_TIMEOUT, answer).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(PlaneError::unavailable("it is not known whether the batch was stored")),
            Err(_) => Err(PlaneError::unavailable("the store has not taken the batch in time, and may yet")),
        }
    }

    /// Has an org loaded that is not: what may take long because of that org is over then.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn load(&self, org: &OrgName) -> Result<(), PlaneError> {
        self.serving()?;
        self.org(org).await.map(drop)
    }

    /// Reads the running totals, after everything that any node acknowledged before this call has been applied.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn with_totals<R>(&self, org: &OrgName, read: impl FnOnce(&RunningTotals) -> R) -> Result<R, PlaneError> {
        let org = self.caught_up(org).await?;
        let state = org.state.read();
        Ok(read(&state.totals))
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
    /// When the store refuses; what was acknowledged is still safe in the log.
    pub async fn drain(self: &Arc<Self>) -> Result<(), PlaneError> {
        if self.readiness.send_replace(Readiness::Draining) != Readiness::Ready {
            return Ok(());
        }
        self.settle().await;
        ledgers::finish(self).await;
        self.published.send_replace(true);
        flusher::finish(self).await?;
        ledgers::finish_replication(self).await;
        Ok(())
    }

    /// Waits until whatever is in the committer's queue is answered. If the committer is gone there is nobody to wait
    /// for.
    async fn settle(&self) {
        let (reply, settled) = oneshot::channel();
        if let Some(queue) = self.queue.get()
            && queue.send(Message::Settle(reply)).await.is_ok()
        {
            let _ = settled.await;
        }
    }

    fn serving(&self) -> Result<(), PlaneError> {
        match (self.readiness(), self.queue.get()) {
            (Readiness::Ready, Some(_)) => Ok(()),
            (Readiness::Draining, _) => Err(PlaneError::unavailable("the control plane is stopping")),
            (Readiness::Replaying { done, total }, _) => {
                Err(PlaneError::unavailable(format!("the write-ahead log is being loaded, {done} of {total} objects")))
            }
            (Readiness::Ready, None) => Err(PlaneError::unavailable("the control plane is starting")),
        }
    }

    /// The org is configured, sound and not removed, as far as this node has applied the log, and the plane serves.
    async fn sound(&self, name: &OrgName) -> Result<(), PlaneError> {
        self.serving()?;
        not_removed(&*self.org(name).await?)
    }

    fn configured(&self, name: &OrgName) -> Result<(), PlaneError> {
        let known = self.node.settings.orgs.contains(name);
        if known { Ok(()) } else { Err(PlaneError::UnknownOrg(name.to_string())) }
    }

    /// The org of that name, if it is configured and sound; loaded if it is not.
    async fn org(&self, name: &OrgName) -> Result<Arc<Org>, PlaneError> {
        self.configured(name)?;
        let slot = self.registry.slot(name);
        let org = match slot.org() {
            Some(org) => org,
            None => match tokio::time::timeout(READ_TIMEOUT, Box::pin(recover::org(self, &slot))).await {
                Ok(loaded) => loaded?,
                Err(_) => {
                    self.load_in_background(name.clone());
                    return Err(PlaneError::unavailable("the store has not answered in time to load the org"));
                }
            },
        };
        org.health.check()?;
        Ok(org)
    }

    async fn caught_up(&self, name: &OrgName) -> Result<Arc<Org>, PlaneError> {
        let org = self.caught_up_even_removed(name).await?;
        not_removed(&org)?;
        Ok(org)
    }

    async fn caught_up_even_removed(&self, name: &OrgName) -> Result<Arc<Org>, PlaneError> {
        self.serving()?;
        self.org(name).await?.touch();
        let followed = tokio::time::timeout(READ_TIMEOUT, Box::pin(follow::catch_up(self))).await;
        followed.map_err(|_| PlaneError::unavailable("the store has not answered in time to follow the log"))??;
        // It may have been loaded anew meanwhile, which catches up too.
        self.org(name).await
    }

    /// Orgs with decisions that wait for a place in the log.
    fn undecided(&self) -> Vec<Arc<Org>> {
        let names = std::mem::take(&mut *self.undecided.lock());
        names.iter().filter_map(|name| self.registry.loaded(name)).collect()
    }

    /// Has the committer write down what was decided, with whatever else there is.
    fn wake_committer(&self) {
        if let Some(queue) = self.queue.get() {
            // Ignore the error: a full queue takes the decisions with its next group, and a closed one takes nothing
            // any more.
            let _ = queue.try_send(Message::Decide);
        }
    }

    /// Has an org loaded beside everything else.
    fn load_in_background(&self, name: OrgName) {
        if let Some(to_load) = self.to_load.get()
            && self.queued.lock().insert(name.clone())
        {
            // Ignore the error: the loader ends with the process.
            let _ = to_load.send(name);
        }
    }

    /// A loaded org met what looks like damage: it is loaded again, and only what that finds too stops it.
    fn doubt(&self, org: &Arc<Org>, reason: &str) {
        tracing::warn!(org = %org.name, reason, "what is stored looks damaged; loading the org again");
        self.registry.slot(&org.name).unload();
        self.load_in_background(org.name.clone());
    }

    fn live_bytes(&self) -> usize {
        self.registry.all_loaded().iter().map(|org| org.live_bytes()).sum()
    }

    /// Says how much waits to be flushed, to the budget and to the metrics.
    fn count_live(&self) {
        let rows: usize = self.registry.all_loaded().iter().map(|org| org.state.read().live.rows()).sum();
        self.node.metrics.buffer.rows.set(i64::try_from(rows).unwrap_or(i64::MAX));
        self.budget.set_live(self.live_bytes());
    }
}

fn not_removed(org: &Org) -> Result<(), PlaneError> {
    let is_removed = org.state.read().removed.is_some();
    if is_removed { Err(PlaneError::OrgRemoved(org.name.to_string())) } else { Ok(()) }
}

/// Loads orgs that the log has something of, side by side: few at once, so that requests for others need not queue
/// behind all of them.
async fn run_loads(plane: Arc<Plane>, mut loads: mpsc::UnboundedReceiver<OrgName>) {
    let turns = Arc::new(Turns::new(BACKGROUND_LOADS_AT_ONCE, recover::LOAD_TURN));
    while let Some(name) = loads.recv().await {
        if plane.readiness() == Readiness::Draining {
            return;
        }
        let (plane, turns) = (Arc::clone(&plane), Arc::clone(&turns));
        tokio::spawn(async move {
            turns.run(Box::pin(load_apart(&plane, &name))).await;
        });
    }
}

async fn load_apart(plane: &Plane, name: &OrgName) {
    // One that hangs stays in the queue, so that it is not begun again and again.
    let _queued = Queued { plane, name };
    let slot: Arc<Slot> = plane.registry.slot(name);
    if let Err(e) = recover::org(plane, &slot).await
        && !matches!(e, PlaneError::OrgStopped { .. } | PlaneError::OrgRemoved(_))
    {
        tracing::warn!(org = %slot.name, error = %e, "an org was not loaded and will be tried again");
    }
}

/// Takes an org off the queue of loads when its load ends, however it does.
struct Queued<'a> {
    plane: &'a Plane,
    name: &'a OrgName,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.plane.queued.lock().remove(self.name);
    }
}
