//! The control plane's state: a state machine over the log.
//!
//! ```text
//! append ─▶ admission ─▶ group commit ─▶ wal/<seq> ─▶ floor ─▶ apply ─▶ ack       (append, commit)
//!                                           │
//!          any other node's objects ────────┴▶ floor ─▶ apply                      (follow)
//!                                                        │ running totals · batches · live buffer · ledger, of each org
//! read ─▶ catch up with the log ─▶ view ◀────────────────┤
//!                                                        └▶ flush ─▶ Delta tables, state/<position> ─▶ trim
//! ```
//!
//! What a node knows is a function of the log: it applies the log's objects in order, each once, from any writer. Nodes
//! keep nothing of their own, so ten of them on one store are the same program as one.
//!
//! This module composes what [`crate::log`], [`crate::state`], [`crate::flush`] and [`crate::ledger`] do.
//!
//! Invariants kept here:
//!
//! - **I1** A batch is acknowledged after its log object is durable, confirmed by the floor and applied. Each table and
//!   state carries the position that it holds, so a load applies to each exactly what it lacks, and a flush that
//!   crashes between two steps is taken up at the step it did not take.
//! - **I2** A damaged object stops the org that it belongs to, or all of them when its org is not known; once a second
//!   load finds it too. A failed read is a hiccup, and retried.
//! - **I3** A read first applies all that any node acknowledged before it began, so a counter read on two nodes in turn
//!   never goes down.
//! - **I7** Bytes are admitted before they are read; past the bound the answer is [`PlaneError::Busy`].
//!
//! After a crash: [`Plane::recover`] reads the log from the floor to its end; orgs are loaded when they are asked for,
//! or in the background (loader).

mod append;
mod bring_over;
mod commit;
mod flusher;
mod follow;
mod ledgers;
mod loader;
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

use chrono::{DateTime, Utc};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot, watch};

pub use crate::ledger::reader::LedgerFile;
pub use crate::ledger::replication::{Elsewhere, Witness};
use crate::ledger::retention::Ages;
pub use crate::ledger::retention::{Keeping, PrunePlan, PrunedSegment};
pub use crate::node::PlaneError;
pub use crate::state::Admission;
use commit::Message;
use follow::Follower;
use registry::Registry;
pub use removal::Removed;
pub use sessions::SessionMark;
pub use system_events::{SystemEvent, start};
use turns::Turns;

use crate::audit::SigningKeys;
use crate::config::ControlPlane;
use crate::keys::KeyService;
use crate::log::{Log, LogKeys, Rules, mac};
use crate::model::schema::schemas;
use crate::model::{Clock, OrgName, Random};
use crate::node::{Node, Settings};
use crate::query::OrgView;
use crate::rollup::RunningTotals;
use crate::state::{Budget, Org};
use crate::storage::Store;
use crate::telemetry::metrics::Metrics;

/// How long a read waits for the log to be followed or an org to be loaded; both go on beside it.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Batches that may wait for the committer.
const QUEUE: usize = 16_384;
/// Orgs that are loaded at once.
const LOADS_AT_ONCE: usize = 8;

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

/// The control plane's state on one node, and the handle of its tasks.
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
    /// Those who are about to see payloads, counted one after the other.
    viewing: payload_view::Viewing,
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
            viewing: payload_view::Viewing::default(),
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

    /// As [`Plane::recover`], but serves no request yet.
    async fn begin(self: &Arc<Self>) -> Result<(), PlaneError> {
        recover::recover(self).await?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (to_load, loads) = mpsc::unbounded_channel();
        if self.queue.set(sender).is_ok() && self.to_load.set(to_load).is_ok() {
            tokio::spawn(commit::run(Arc::clone(self), receiver));
            tokio::spawn(loader::run(Arc::clone(self), loads));
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

    /// Loads an org if it is not loaded yet, so that what follows does not wait for that.
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

    /// Waits until everything in the committer's queue is answered. Returns at once if the committer has ended.
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

    /// Wakes the committer to write the decisions that wait, with what else there is.
    fn wake_committer(&self) {
        if let Some(queue) = self.queue.get() {
            // Ignore the error: a full queue takes the decisions with its next group, and a closed one takes nothing
            // any more.
            let _ = queue.try_send(Message::Decide);
        }
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
