//! Keeping the tables of every org, loaded or not, one at a time: so that the memory of one merge is all that it takes.
//! One whose files hang is not waited for for ever: the others are looked after beside it (rule L10).
//!
//! Orgs that are loaded are looked at in each round, which costs nothing where nothing is due. The others are opened
//! now and then, at times that are apart: what was written before they were forgotten is merged when its day is over.

use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectMeta;
use object_store::path::Path;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep, timeout};

use super::{Plane, PlaneError, Readiness, SystemEvent};
use crate::audit;
use crate::config;
use crate::flush::flush;
use crate::ledger::status::{ERASURE, RETENTION};
use crate::log;
use crate::maintenance::{self, Done, Erased, ExpiredTable, Handles, Memory, RetentionPlan};
use crate::model::OrgName;
use crate::node::TableRetention;
use crate::state::Org;

/// How often an org that is not loaded is looked at.
const APART: Duration = Duration::from_secs(6 * 3_600);
/// In which time after a start the orgs that are not loaded are first looked at.
const FIRST_APART: Duration = Duration::from_secs(3_600);
/// After a failure it is waited this long, and twice as long after each further one.
const BACKOFF: Duration = Duration::from_secs(60);
const MOST_BACKOFF: Duration = Duration::from_secs(3_600);
/// How often it is looked for rows that are older than they are kept.
const RETENTION_PERIOD: Duration = Duration::from_secs(6 * 3_600);

/// What the key of the digests of erased callers is derived by.
const ERASURE_DERIVATION: &str = "mcpg 2026-11-27 digests of erased callers";

/// How long an org's visit is waited for before the next one's begins, and how long one waits for its turn.
const VISIT_TIMEOUT: Duration = Duration::from_secs(600);
const TURN_TIMEOUT: Duration = Duration::from_secs(60);

/// What is remembered of an org.
#[derive(Debug, Default)]
struct Visit {
    memory: Memory,
    /// Not to be looked at before.
    not_before: Option<Instant>,
    failures: u32,
    retained: Option<Instant>,
}

/// What the node remembers, and whose turn it is.
#[derive(Debug)]
pub(super) struct Visits {
    /// Each is held while something is done to the org's tables.
    of: Mutex<HashMap<OrgName, Arc<tokio::sync::Mutex<Visit>>>>,
    turn: Semaphore,
}

impl Default for Visits {
    fn default() -> Self {
        Self { of: Mutex::default(), turn: Semaphore::new(1) }
    }
}

impl Visits {
    fn of(&self, name: &OrgName) -> Arc<tokio::sync::Mutex<Visit>> {
        Arc::clone(self.of.lock().entry(name.clone()).or_default())
    }

    /// Takes the turn once it is free, or goes on without it after a while: an org that hangs must not keep it for
    /// good.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        timeout(TURN_TIMEOUT, self.turn.acquire()).await.ok()?.ok()
    }
}

/// Keeps the tables until the plane is drained.
pub(super) async fn run(plane: Arc<Plane>) {
    let (every, began) = (plane.node.settings.maintenance_interval, Instant::now());
    let mut outcomes = Outcomes::default();
    while plane.readiness() != Readiness::Draining {
        sleep(every).await;
        for name in plane.node.settings.orgs.clone() {
            if plane.readiness() == Readiness::Draining {
                return;
            }
            // What is damaged is neither written nor read.
            if plane.registry.slot(&name).damaged_since().is_some() {
                continue;
            }
            let is_loaded = plane.registry.loaded(&name).is_some();
            if !plane.is_due(&name, is_loaded, began) {
                continue;
            }
            let _turn = plane.visits.turn().await;
            // A task of its own: should it panic, the next round tries again.
            let (of_plane, of) = (Arc::clone(&plane), name.clone());
            let visit = tokio::spawn(async move { of_plane.visit(&of).await });
            let hangs = || PlaneError::unavailable("it takes long, and is not waited for");
            let visited = match timeout(VISIT_TIMEOUT, visit).await {
                Ok(visited) => visited.unwrap_or_else(|e| Err(PlaneError::Internal(e.to_string()))),
                Err(_) => Err(hangs()),
            };
            match visited {
                Ok(debt) => outcomes.of(name, Some(debt)),
                Err(_) if plane.readiness() == Readiness::Draining => return,
                Err(e) => {
                    plane.node.metrics.maintenance.failures.inc();
                    tracing::warn!(org = %name, error = %e, "the tables were not looked after and will be again");
                    outcomes.of(name, None);
                }
            }
        }
        plane.node.metrics.maintenance.debt_bytes.set(i64::try_from(outcomes.debt()).unwrap_or(i64::MAX));
        if outcomes.are_sound() {
            plane.node.metrics.maintenance.last_success.set(plane.node.now() as f64 / 1e6);
        }
    }
}

/// What came of the last visit to each org: not all are visited in each round, and one that fails ever more seldom.
#[derive(Debug, Default)]
struct Outcomes {
    debts: HashMap<OrgName, u64>,
    failing: HashSet<OrgName>,
}

impl Outcomes {
    /// Notes the bytes that merges of an org which are due would read; none if its visit failed.
    fn of(&mut self, name: OrgName, debt: Option<u64>) {
        match debt {
            Some(debt) => {
                self.failing.remove(&name);
                self.debts.insert(name, debt);
            }
            None => {
                self.failing.insert(name);
            }
        }
    }

    fn debt(&self) -> u64 {
        self.debts.values().sum()
    }

    /// Whether no org's last visit failed.
    fn are_sound(&self) -> bool {
        self.failing.is_empty()
    }
}

/// A share of a time that is another for each org.
fn share(name: &OrgName, of: Duration) -> Duration {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    of.mul_f64((hasher.finish() % 1_000) as f64 / 1_000.0)
}

impl Plane {
    fn is_due(&self, name: &OrgName, is_loaded: bool, began: Instant) -> bool {
        let visit = self.visits.of(name);
        // One that is being looked at is not due.
        let Ok(visit) = visit.try_lock() else { return false };
        let first = (!is_loaded).then(|| began + share(name, FIRST_APART));
        let waits = visit.not_before.filter(|_| !is_loaded || visit.failures > 0).or(first);
        waits.is_none_or(|at| Instant::now() >= at)
    }

    /// The tables of an org, as far as this node has them.
    async fn handles(&self, name: &OrgName) -> Result<Handles, PlaneError> {
        if let Some(org) = self.registry.loaded(name) {
            org.health.check()?;
            return Ok(Handles::Loaded(org));
        }
        if self.registry.slot(name).damaged_since().is_some() {
            return Err(PlaneError::unavailable("the org cannot be loaded, and its tables are left as they are"));
        }
        Ok(Handles::apart(&self.node, name).await?)
    }

    /// Looks after an org's tables. Gives the bytes that merges which are still due would read.
    async fn visit(&self, name: &OrgName) -> Result<u64, PlaneError> {
        let visit = self.visits.of(name);
        let mut visit = visit.lock().await;
        let visited = self.look_after(name, &mut visit).await;
        visit.failures = if visited.is_ok() { 0 } else { visit.failures.saturating_add(1) };
        let pause = match visit.failures {
            0 => APART,
            failures => BACKOFF.saturating_mul(1 << failures.min(8)).min(MOST_BACKOFF),
        };
        visit.not_before = Some(Instant::now() + pause);
        visited
    }

    async fn look_after(&self, name: &OrgName, visit: &mut Visit) -> Result<u64, PlaneError> {
        if self.delete_if_removed(name).await? {
            return Ok(0);
        }
        let tables = self.handles(name).await?;
        // Rows that are too old go whatever else fails.
        let done = maintenance::turn(&self.node, &tables, &mut visit.memory).await;
        if visit.retained.is_none_or(|at| at.elapsed() >= RETENTION_PERIOD) {
            self.retain(name, &tables, &self.actor()).await?;
            visit.retained = Some(Instant::now());
        }
        let done = done?;
        if done.merges > 0 || done.deleted > 0 {
            tracing::info!(org = %name, merges = done.merges, files = done.files_read, rows = done.rows, deleted = done.deleted, "looked after the tables");
        }
        Ok(maintenance::debt_of(&self.node, &tables).await)
    }

    /// Merges what is due of an org's tables now.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn compact(&self, name: &OrgName) -> Result<Done, PlaneError> {
        self.sound(name).await?;
        let visit = self.visits.of(name);
        let mut visit = visit.lock().await;
        let _turn = self.visits.turn().await;
        let tables = self.handles(name).await?;
        Ok(maintenance::turn(&self.node, &tables, &mut visit.memory).await?)
    }

    /// What lies on the store of an org's tables, and of the log.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn storage(&self, name: &OrgName) -> Result<Value, PlaneError> {
        self.sound(name).await?;
        let tables = self.handles(name).await?;
        let tables = maintenance::status(&self.node, &tables).await?;
        let listed = self.node.store.list(&Path::from("wal")).await?;
        let is_object = |meta: &&ObjectMeta| {
            let name = meta.location.filename().unwrap_or_default();
            name.parse().is_ok_and(|number| log::name(number) == meta.location.as_ref())
        };
        let objects: Vec<_> = listed.iter().filter(is_object).collect();
        let oldest = objects.iter().map(|meta| meta.last_modified).min();
        Ok(json!({
            "org": name,
            "tables": tables,
            "log": {
                "objects": objects.len(),
                "bytes": objects.iter().map(|meta| meta.size).sum::<u64>(),
                "oldest_at": oldest.map(|at| at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)),
            },
        }))
    }

    /// What retention would remove of an org's tables now.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn plan_retention(&self, name: &OrgName) -> Result<RetentionPlan, PlaneError> {
        self.sound(name).await?;
        let tables = self.handles(name).await?;
        self.retention_of_tables(name, &tables).await
    }

    /// Removes the rows of an org's tables that are older than they are kept, because `actor` asks for it.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn retain_as(&self, name: &OrgName, actor: &str) -> Result<RetentionPlan, PlaneError> {
        self.sound(name).await?;
        let visit = self.visits.of(name);
        let _visit = visit.lock().await;
        let tables = self.handles(name).await?;
        self.retain(name, &tables, actor).await
    }

    async fn retain(&self, name: &OrgName, tables: &Handles, actor: &str) -> Result<RetentionPlan, PlaneError> {
        let mut plan = self.retention_of_tables(name, tables).await?;
        if plan.tables.is_empty() || plan.hold.is_some() {
            return Ok(plan);
        }
        let detail = json!({ "tables": plan.tables });
        // Nodes that find the same to be due say so once.
        let of = |table: &ExpiredTable| {
            let ExpiredTable { table, partitions, names, .. } = table;
            format!("{table} {partitions:?} {names}")
        };
        let what = audit::Hash::of(&[plan.tables.iter().map(of).collect::<Vec<_>>().join(", ").as_bytes()]);
        let event = SystemEvent::new(actor, RETENTION).target(name.as_str()).detail(detail);
        self.record_once(name, vec![event], &format!("retention/{what}")).await?;
        // Each table is looked at again right before its commit: whether there is a hold by now, and how long rows are
        // kept, is what the log says then.
        let mut removed = Vec::new();
        for of in std::mem::take(&mut plan.tables) {
            let org = self.caught_up(name).await?;
            plan.hold = org.ledger.read().status().hold;
            if plan.hold.is_some() {
                break;
            }
            let kept = self.kept_rows(&org).await?;
            if !maintenance::retention::is_due(&self.node, &kept, &of) {
                continue;
            }
            let one = RetentionPlan { hold: None, tables: vec![of] };
            maintenance::retention::remove(&self.node, tables, &one).await?;
            removed.extend(one.tables);
        }
        plan.tables = removed;
        Ok(plan)
    }

    /// Takes a caller's samples out of an org's tables, because `actor` asks for it and says why.
    ///
    /// # Errors
    /// See [`PlaneError`]; some files may have been rewritten then, and asking again does the rest.
    pub async fn erase(&self, name: &OrgName, actor: &str, caller: &str, reason: &str) -> Result<Erased, PlaneError> {
        let visit = self.visits.of(name);
        let _visit = visit.lock().await;
        let _turn = self.visits.turn().await;
        let org = self.caught_up(name).await?;
        let hold = org.ledger.read().status().hold;
        if hold.is_some() {
            return Ok(Erased { hold, ..Erased::default() });
        }
        let (key, _) = self.node.signing.derive(ERASURE_DERIVATION);
        let digest = blake3::keyed_hash(&key, caller.as_bytes()).to_hex().to_string();
        let event = SystemEvent::new(actor, ERASURE).target(name.as_str()).reason(reason);
        self.record(name, vec![event.detail(json!({ "caller_digest": digest }))]).await?;
        // Whichever of the two entries the ledger has first counts, whoever took note of the hold.
        let org = self.caught_up(name).await?;
        let (hold, owed) = {
            let (state, ledger) = (org.state.read(), org.ledger.read());
            (ledger.status().hold, state.owed(state.tables_hold()))
        };
        if hold.is_some() {
            return Ok(Erased { hold, ..Erased::default() });
        }
        // What is only in the log yet comes to the tables first.
        flush(&self.node, &org).await?;
        if org.state.read().tables_hold() < owed {
            return Err(PlaneError::unavailable("the org is being loaded again, and nothing was erased"));
        }
        Ok(maintenance::erasure::erase(&self.node, &Handles::Loaded(org), caller).await?)
    }

    async fn retention_of_tables(&self, name: &OrgName, tables: &Handles) -> Result<RetentionPlan, PlaneError> {
        let own = self.own_retention(name)?;
        let mut plan = maintenance::retention::plan(&self.node, tables, own).await?;
        if !plan.tables.is_empty() {
            // Whether there is a hold, and how long rows are kept, is for the ledger to say, as it is now.
            let org = self.caught_up(name).await?;
            let kept = self.kept_rows(&org).await?;
            if kept != *own {
                plan = maintenance::retention::plan(&self.node, tables, &kept).await?;
            }
            plan.hold = org.ledger.read().status().hold;
        }
        Ok(plan)
    }

    fn own_retention(&self, name: &OrgName) -> Result<&TableRetention, PlaneError> {
        let own = self.node.settings.table_retention.get(name);
        own.ok_or_else(|| PlaneError::UnknownOrg(name.to_string()))
    }

    /// How long an org's rows are kept: by this node's configuration and by the one that the ledger says was loaded
    /// last, whichever is longer. So a node that runs on with a shorter period than the others were started with takes
    /// nothing out that they are to keep.
    async fn kept_rows(&self, org: &Org) -> Result<TableRetention, PlaneError> {
        let own = self.own_retention(&org.name)?.clone();
        let loaded = self.last_summary(org).await?;
        // Settings of another version of the program may be of another form: then they say nothing.
        let loaded = loaded.and_then(|loaded| serde_json::from_value::<config::Org>(loaded.org).ok());
        Ok(match loaded {
            Some(loaded) => own.or_longer(TableRetention::of(&loaded)),
            None => own,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Outcomes;

    #[test]
    fn an_org_that_fails_is_not_forgotten_in_the_rounds_that_leave_it_out() {
        let mut outcomes = Outcomes::default();
        let (sound, failing) = ("sound".parse().unwrap(), "failing".parse::<crate::model::OrgName>().unwrap());
        outcomes.of(failing.clone(), Some(7));
        outcomes.of(sound, Some(3));
        assert_eq!((outcomes.debt(), outcomes.are_sound()), (10, true));
        outcomes.of(failing.clone(), None);
        assert_eq!((outcomes.debt(), outcomes.are_sound()), (10, false), "as far as is known");
        outcomes.of(failing, Some(0));
        assert_eq!((outcomes.debt(), outcomes.are_sound()), (3, true));
    }
}
