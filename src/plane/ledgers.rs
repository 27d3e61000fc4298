//! Keeping the ledgers: publishing, replication and retention of every loaded org, and what operators ask of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};

use super::rounds::Rounds;
use super::system_events::{MOST_LOADED_AT_START, SystemEvent};
use super::{Plane, PlaneError, Readiness};
use crate::audit::{Hash, InclusionProof, checkpoint, signer};
use crate::ledger::merge;
use crate::ledger::publisher::{Outcome, publish};
use crate::ledger::reader::{self, LedgerFile};
use crate::ledger::replication::{Progress, replicate};
use crate::ledger::retention::{self, Keeping, PrunePlan, Unpruned};
use crate::ledger::status::{CONFIG_LOADED, HOLD, PRUNE, RELEASE};
use crate::log::Decisions;
use crate::model::OrgName;
use crate::node::Retention;
use crate::state::Org;
use crate::storage::StorageError;

/// How often it is looked for something to publish.
const PUBLISH_TICK: Duration = Duration::from_millis(100);
/// How often it is looked for checkpoints to replicate.
const REPLICATE_TICK: Duration = Duration::from_millis(200);
/// Orgs whose ledgers are written at once.
const AT_ONCE: usize = 16;
/// How soon after a start the first retention run is.
const FIRST_RETENTION: Duration = Duration::from_secs(60);
/// How long an org's retention is waited for before the next one's: one whose files hang keeps no other's entries from
/// being pruned.
const PRUNE_TIMEOUT: Duration = Duration::from_secs(600);
/// How often the ledgers of orgs that are not loaded are looked at, where there are very many orgs.
const IDLE_RETENTION: Duration = Duration::from_secs(24 * 3_600);
/// How often it is tried to leave nothing unsigned when the process stops.
const SHUTDOWN_ATTEMPTS: usize = 20;
/// How long the end of the process waits for the last checkpoints to be replicated.
const REPLICATION_TIMEOUT: Duration = Duration::from_secs(5);

/// Publishes until the plane is drained.
pub(super) async fn run_publisher(plane: Arc<Plane>) {
    let rounds = Rounds::new(AT_ONCE);
    while plane.readiness() != Readiness::Draining {
        sleep(PUBLISH_TICK).await;
        if plane.follower.is_outdated() {
            continue;
        }
        let period = plane.node.settings.checkpoint_period;
        decide(&plane, period);
        publish_all(&plane, &rounds).await;
    }
}

/// Ends every segment and signs every checkpoint before the process stops, as far as the store lets it. What it cannot
/// do, the next process does: the log holds all of it.
pub(super) async fn finish(plane: &Arc<Plane>) {
    if plane.follower.is_outdated() {
        return;
    }
    let rounds = Rounds::new(AT_ONCE);
    for _ in 0..SHUTDOWN_ATTEMPTS {
        decide(plane, Duration::ZERO);
        plane.settle().await;
        publish_all(plane, &rounds).await;
        let behind = |org: &Arc<Org>| {
            let ledger = org.ledger.read();
            !org.health.is_stopped() && (ledger.is_uncut() || ledger.next_cut().is_some())
        };
        if !plane.registry.all_loaded().iter().any(behind) {
            return;
        }
        sleep(PUBLISH_TICK).await;
    }
    tracing::warn!("a ledger has entries that no checkpoint covers yet; the next start signs them");
}

/// Puts what is to be decided of segments where the committer finds it.
fn decide(plane: &Plane, period: Duration) {
    let mut decided = false;
    for org in plane.registry.all_loaded() {
        if !org.may_write() {
            continue;
        }
        let (cut, merges) = {
            let ledger = org.ledger.read();
            (ledger.wants_cut(period), merge::merges(&ledger.runs()))
        };
        if cut || !merges.is_empty() {
            let merges = merges.into_iter().map(|name| (name.first, name.last)).collect();
            *org.decided.lock() = Decisions { cut, merges, ..Decisions::default() };
            plane.undecided.lock().insert(org.name.clone());
            decided = true;
        }
    }
    if decided {
        plane.wake_committer();
    }
}

async fn publish_all(plane: &Arc<Plane>, rounds: &Rounds) {
    let busy = plane.registry.all_loaded().into_iter().filter(|org| {
        let publishing = org.ledger.publisher.try_lock().map_or(true, |publisher| publisher.has_work());
        org.may_write() && (publishing || org.ledger.read().is_busy())
    });
    rounds.run(busy, |org| publish_apart(Arc::clone(plane), org)).await;
    // Stored entries are live no longer: that makes room for new ones.
    plane.count_live();
}

/// Publishes one ledger, in a task of its own: should it panic, the next turn tries again.
async fn publish_apart(plane: Arc<Plane>, org: Arc<Org>) {
    let (of_plane, of) = (Arc::clone(&plane), Arc::clone(&org));
    let outcome = tokio::spawn(async move { publish(&of_plane.node, &of.ledger).await }).await;
    match outcome.unwrap_or_else(|e| Err(PlaneError::Internal(e.to_string()))) {
        Ok(Outcome::Done) => {}
        Ok(Outcome::Reload) => {
            tracing::info!(org = %org.name, "loading the org again before its ledger is gone on with");
            plane.registry.slot(&org.name).unload();
            plane.load_in_background(org.name.clone());
        }
        Err(PlaneError::Damaged(reason)) => plane.doubt(&org, &reason),
        Err(e) => {
            plane.node.metrics.audit.failures.inc();
            tracing::warn!(org = %org.name, error = %e, "the ledger was not written and will be tried again");
        }
    }
}

/// Replicates checkpoints until the plane is drained.
pub(super) async fn run_replication(plane: Arc<Plane>) {
    if plane.elsewhere.witness.is_none() && plane.elsewhere.mirror.is_none() {
        return;
    }
    let (progress, rounds) = (Arc::new(Progresses::default()), Rounds::new(AT_ONCE));
    while plane.readiness() != Readiness::Draining {
        sleep(REPLICATE_TICK).await;
        let work = |org| replicate_one(Arc::clone(&plane), Arc::clone(&progress), org, false);
        rounds.run(plane.registry.all_loaded(), work).await;
    }
    // The last checkpoints are signed while the plane drains. The sender lives as long as the plane: it cannot go away.
    let _ = plane.published.subscribe().wait_for(|published| *published).await;
    let last = |org| replicate_one(Arc::clone(&plane), Arc::clone(&progress), org, true);
    futures::stream::iter(plane.registry.all_loaded()).for_each_concurrent(AT_ONCE, last).await;
    plane.replicated.send_replace(true);
}

/// Waits until the last checkpoints are replicated, but not for long: the next start does it too.
pub(super) async fn finish_replication(plane: &Plane) {
    if plane.elsewhere.witness.is_none() && plane.elsewhere.mirror.is_none() {
        return;
    }
    let mut replicated = plane.replicated.subscribe();
    if timeout(REPLICATION_TIMEOUT, replicated.wait_for(|done| *done)).await.is_err() {
        tracing::warn!("the last checkpoints were not replicated in time; the next start does it");
    }
}

type Progresses = tokio::sync::Mutex<HashMap<OrgName, Progress>>;

async fn replicate_one(plane: Arc<Plane>, all: Arc<Progresses>, org: Arc<Org>, draining: bool) {
    let mut progress = all.lock().await.remove(&org.name).unwrap_or_default();
    replicate(&plane.node, &org.ledger, &plane.elsewhere, &mut progress, draining).await;
    if let Some((size, reason)) = progress.contradiction.take() {
        plane.node.metrics.audit.verification_failures.inc();
        let detail = json!({ "check": "witness", "size": size.to_string() });
        let event = SystemEvent::new(plane.actor(), "ledger.verification_failed").reason(&reason).detail(detail);
        // Once for each checkpoint.
        if let Err(e) = plane.record_once(&org.name, vec![event], &format!("witness/{size}")).await {
            tracing::warn!(org = %org.name, error = %e, "that the witness contradicts the ledger could not be recorded in it");
        }
    }
    all.lock().await.insert(org.name.clone(), progress);
}

/// Prunes now and then until the plane is drained.
pub(super) async fn run_retention(plane: Arc<Plane>) {
    let every = plane.node.settings.prune_interval;
    let mut pause = every.min(FIRST_RETENTION);
    let mut all_at = Instant::now();
    while plane.readiness() != Readiness::Draining {
        sleep(pause).await;
        pause = every;
        let all = plane.node.settings.orgs.len() <= MOST_LOADED_AT_START || Instant::now() >= all_at;
        if all {
            all_at = Instant::now() + IDLE_RETENTION;
        }
        for name in &plane.node.settings.orgs {
            if !all && plane.registry.loaded(name).is_none() {
                continue;
            }
            let hangs = |_| Err(PlaneError::unavailable("it takes long, and is not waited for"));
            match timeout(PRUNE_TIMEOUT, plane.prune(name)).await.unwrap_or_else(hangs) {
                Ok(plan) if plan.entries > 0 => {
                    tracing::info!(org = %name, entries = plan.entries, first_kept = plan.first_kept, "pruned a ledger");
                }
                Ok(_) => {}
                // It was stopped with an error of its own, or the process is.
                Err(PlaneError::OrgStopped { .. } | PlaneError::OrgRemoved(_)) => {}
                Err(_) if plane.readiness() == Readiness::Draining => return,
                Err(e) => {
                    plane.node.metrics.audit.failures.inc();
                    tracing::warn!(org = %name, error = %e, "a ledger was not pruned and will be tried again");
                }
            }
        }
    }
}

impl Plane {
    /// How an org's ledger is kept.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn keeping(&self, name: &OrgName) -> Result<Keeping, PlaneError> {
        let org = self.caught_up(name).await?;
        let (rule, ledger) = (self.retention(name)?.rule.clone(), org.ledger.read());
        Ok(Keeping { rule, hold: ledger.status().hold, first_kept: ledger.first_kept(), size: ledger.size() })
    }

    /// Puts an org's ledger on hold: nothing of it is removed from here on.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn hold(&self, name: &OrgName, actor: &str, reason: &str) -> Result<Keeping, PlaneError> {
        self.caught_up(name).await?;
        self.record(name, vec![SystemEvent::new(actor, HOLD).target(name.as_str()).reason(reason)]).await?;
        self.keeping(name).await
    }

    /// Ends the hold of an org's ledger; does nothing without one.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn release(&self, name: &OrgName, actor: &str, reason: &str) -> Result<Keeping, PlaneError> {
        if self.keeping(name).await?.hold.is_some() {
            self.record(name, vec![SystemEvent::new(actor, RELEASE).target(name.as_str()).reason(reason)]).await?;
        }
        self.keeping(name).await
    }

    /// Prunes an org's ledger, if something of it is due.
    ///
    /// # Errors
    /// See [`PlaneError`]; [`PlaneError::Damaged`] when what is due does not verify.
    pub async fn prune(&self, name: &OrgName) -> Result<PrunePlan, PlaneError> {
        self.prune_as(name, &self.actor()).await
    }

    /// As [`Plane::prune`], because `actor` asks for it.
    ///
    /// # Errors
    /// As [`Plane::prune`].
    pub async fn prune_as(&self, name: &OrgName, actor: &str) -> Result<PrunePlan, PlaneError> {
        let plan = self.plan_prune(name).await?;
        if plan.segments.is_empty() {
            return Ok(plan);
        }
        let mut events = Vec::new();
        // What the next start compares its configuration with must not go.
        let org = self.org(name).await?;
        let (config, released, pruned) = {
            let ledger = org.ledger.read();
            let status = ledger.status();
            (status.config.filter(|seq| *seq < plan.first_kept), status.released, status.pruned)
        };
        if let Some(seq) = config
            && let Some(detail) = self.entry_detail(&org, seq).await?
        {
            let detail = serde_json::from_str(&detail).map_err(|e| PlaneError::Internal(e.to_string()))?;
            events.push(
                SystemEvent::new(self.actor(), CONFIG_LOADED).reason("said again before it is pruned").detail(detail),
            );
        }
        let mut detail = json!({
            "rule": plan.rule,
            "before": plan.before,
            "first_kept": plan.first_kept.to_string(),
            "entries": plan.entries.to_string(),
            "segments": plan.segments.iter().map(|s| json!({ "name": s.name, "sha256": s.sha256 })).collect::<Vec<_>>(),
        });
        // Where the removal before this one is recorded, since its entry goes with this one or a later one.
        if let (Some(pruned), Some(members)) = (pruned, detail.as_object_mut()) {
            members.insert("after".to_owned(), json!(pruned.entry.to_string()));
        }
        events.push(SystemEvent::new(actor, PRUNE).target(name.as_str()).detail(detail));
        // Nodes that find the same to be due say so once. One that came to nothing, because of a hold or because its
        // segments had become another, is no reason not to say it again.
        let names: Vec<_> = plan.segments.iter().map(|segment| segment.name.as_bytes()).collect();
        self.record_once(name, events, &format!("prune/{released:?}/{}", Hash::of(&names))).await?;
        Ok(plan)
    }

    /// What a prune would remove now.
    ///
    /// # Errors
    /// As [`Plane::prune`].
    pub async fn plan_prune(&self, name: &OrgName) -> Result<PrunePlan, PlaneError> {
        let org = self.caught_up(name).await?;
        match retention::plan(&self.node, &org.ledger, self.retention(name)?, &self.ages).await {
            Ok(plan) => Ok(plan),
            Err(Unpruned::Failed(e)) => Err(e),
            Err(Unpruned::Unsound(segment, e)) => {
                tracing::error!(org = %name, error = %e, "entries that are due to be pruned do not verify; they are kept");
                self.node.metrics.audit.verification_failures.inc();
                let detail = json!({ "check": "prune", "segment": segment.to_string() });
                let reason = e.to_string();
                let event = SystemEvent::new(self.actor(), "ledger.verification_failed").reason(&reason).detail(detail);
                self.record_once(name, vec![event], &format!("check/{segment}")).await?;
                Err(e.into())
            }
        }
    }

    fn retention(&self, name: &OrgName) -> Result<&Retention, PlaneError> {
        self.node.settings.retention.get(name).ok_or_else(|| PlaneError::UnknownOrg(name.to_string()))
    }

    /// A file of the org's ledger, if it is there.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn ledger_file(&self, org: &OrgName, file: LedgerFile) -> Result<Option<Bytes>, PlaneError> {
        self.sound(org).await?;
        Ok(reader::file(&self.node.store, org, file).await?)
    }

    /// The segments and checkpoints of the org's ledger: their paths under `audit/`, and their sizes in bytes.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn ledger_files(&self, org: &OrgName) -> Result<Vec<(String, u64)>, PlaneError> {
        self.sound(org).await?;
        Ok(reader::files(&self.node.store, org).await?)
    }

    /// The verifier key of the org's ledger.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn ledger_key(&self, org: &OrgName) -> Result<String, PlaneError> {
        self.sound(org).await?;
        let origin = checkpoint::origin(&self.node.settings.name, org);
        let vkey = self.node.signing.vkey(&origin).map_err(|e| PlaneError::Internal(e.to_string()))?;
        Ok(vkey.to_string())
    }

    /// A proof that entry `seq` is under the newest checkpoint; none when that does not cover it.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn inclusion_proof(&self, org: &OrgName, seq: u64) -> Result<Option<InclusionProof>, PlaneError> {
        let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(crate::ledger::folder(org), e);
        let Some(note) = self.ledger_file(org, LedgerFile::Checkpoint).await? else { return Ok(None) };
        let note = String::from_utf8(note.to_vec()).map_err(|e| damaged(&e))?;
        let origin = checkpoint::origin(&self.node.settings.name, org);
        let checkpoint = signer::check(&self.node.signing, &origin, &note).map_err(|e| damaged(&e))?;
        if seq >= checkpoint.size {
            return Ok(None);
        }
        Ok(Some(reader::proof(&self.node.store, org, &checkpoint, note, seq).await?))
    }
}
