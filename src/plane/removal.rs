//! Removing an org: a decision in the log, so that every node serves it no more from the same position on, and can be
//! taken back for as long as the grace lasts. Then a second decision says that it is gone for good; whichever of
//! restoring and deleting the log has first counts. A decision is of one removal: a node that has slept over a restore
//! and another removal does not put it into the log. Nor does any while the ledger is on hold, whichever node has taken
//! that note.
//!
//! Deleting, each step again after a crash: 1. the decision, which makes every node forget the org; 2. a tombstone
//! takes the place of its newest state, written by the next load; 3. the keys of its sealed payloads are destroyed, and
//! everything else under `orgs/<org>/` is deleted. A node that was paused may yet write a file of it: the tombstone
//! stays the newest state, and maintenance deletes what else it finds, as long as the org is configured. A name that
//! was removed is not given to another: the tombstone keeps it.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use object_store::path::Path;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::{Plane, PlaneError, SystemEvent, follow};
use crate::log::Removal;
use crate::model::OrgName;
use crate::state::{parked_folders, snapshot, state_path};

/// How long a decision may take to come into the log, and how often it is looked for.
const DECISION_TIMEOUT: Duration = Duration::from_secs(25);
const DECISION_TICK: Duration = Duration::from_millis(20);

/// An org that is removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Which.
    pub org: OrgName,
    /// Since when nothing of it is served, RFC 3339.
    pub removed_at: String,
    /// When all of it is deleted, RFC 3339; until then it can be restored.
    pub deleted_after: String,
}

impl Removed {
    fn new(org: &OrgName, at: i64, grace: i64) -> Self {
        let time = |at: i64| DateTime::<Utc>::from_timestamp_micros(at).unwrap_or_default();
        let text = |at| time(at).to_rfc3339_opts(SecondsFormat::Micros, true);
        Self { org: org.clone(), removed_at: text(at), deleted_after: text(at.saturating_add(grace)) }
    }
}

fn event(actor: &str, action: &str, org: &OrgName, reason: Option<&str>) -> SystemEvent {
    let event = SystemEvent::new(actor, action).target(org.as_str());
    match reason {
        Some(reason) => event.reason(reason),
        None => event,
    }
}

impl Plane {
    /// How long a removal can be taken back, in µs.
    fn grace(&self) -> i64 {
        i64::try_from(self.node.settings.removal_grace.as_micros()).unwrap_or(i64::MAX)
    }

    /// Removes an org because `actor` asks for it; one that is removed stays so since when it was.
    ///
    /// # Errors
    /// [`PlaneError::OnHold`] while its ledger is; else see [`PlaneError`]. The entry may be in the ledger then: asking
    /// again is safe.
    pub async fn remove(&self, name: &OrgName, actor: &str, reason: Option<&str>) -> Result<Removed, PlaneError> {
        let org = self.caught_up_even_removed(name).await?;
        let removed = org.state.read().removed;
        if let Some(at) = removed {
            return Ok(Removed::new(name, at, self.grace()));
        }
        let hold = org.ledger.read().status().hold;
        if let Some(entry) = hold {
            return Err(PlaneError::OnHold { org: name.to_string(), entry });
        }
        self.record(name, vec![event(actor, "operator.org_removed", name, reason)]).await?;
        self.decide(name, Removal::Removed, None).await?;
        let at = self.caught_up_even_removed(name).await?.state.read().removed;
        let at = at.ok_or_else(|| PlaneError::unavailable("the org was restored at the same time"))?;
        tracing::warn!(org = %name, actor, "the org is removed");
        Ok(Removed::new(name, at, self.grace()))
    }

    /// Takes a removal back because `actor` asks for it; nothing is done to an org that is not removed.
    ///
    /// # Errors
    /// [`PlaneError::OrgRemoved`] once the grace is over; else see [`PlaneError`].
    pub async fn restore(&self, name: &OrgName, actor: &str, reason: Option<&str>) -> Result<(), PlaneError> {
        let org = self.caught_up_even_removed(name).await?;
        let since = org.state.read().removed;
        if since.is_none() {
            return Ok(());
        }
        // On the record first: that it was asked for stands there even if the process ends before it is done.
        self.record(name, vec![event(actor, "operator.org_restored", name, reason)]).await?;
        self.decide(name, Removal::Restored, since).await?;
        tracing::warn!(org = %name, actor, "the org is restored");
        Ok(())
    }

    /// Puts a decision about an org into the log that is removed since then, and waits until it is applied, or another
    /// one is, or the org has gone meanwhile.
    async fn decide(&self, name: &OrgName, removal: Removal, since: Option<i64>) -> Result<(), PlaneError> {
        let began = Instant::now();
        while began.elapsed() < DECISION_TIMEOUT {
            let org = self.org(name).await?;
            let removed = org.state.read().removed;
            if removed != since {
                return Ok(());
            }
            let hold = org.ledger.read().status().hold;
            if let Some(entry) = hold.filter(|_| removal != Removal::Restored) {
                return Err(PlaneError::OnHold { org: name.to_string(), entry });
            }
            // A group that was not committed has lost it: it is put there again.
            *org.removal.lock() = Some((removal, since));
            self.undecided.lock().insert(name.clone());
            self.wake_committer();
            sleep(DECISION_TICK).await;
            follow::catch_up(self).await?;
        }
        Err(PlaneError::unavailable("the log has not taken the decision in time, and may yet"))
    }

    /// Deletes what is stored of an org once the grace of its removal is over. Says whether it is removed: nothing else
    /// is to be done with it then.
    ///
    /// # Errors
    /// See [`PlaneError`]; what is left is deleted the next time.
    pub(super) async fn delete_if_removed(&self, name: &OrgName) -> Result<bool, PlaneError> {
        let loaded = self.registry.loaded(name).map(|org| org.state.read().removed);
        let removed = match loaded {
            Some(removed) => removed,
            None => snapshot::newest(&self.node, name).await?.and_then(|newest| newest.header.removed),
        };
        let Some(at) = removed else { return Ok(false) };
        if self.node.now() < at.saturating_add(self.grace()) {
            return Ok(true);
        }
        match self.decide(name, Removal::Deleted, Some(at)).await {
            // Restored at the last moment, and perhaps removed again: the next look tells.
            Ok(()) => return Ok(true),
            Err(PlaneError::OrgRemoved(_)) => {}
            Err(e @ PlaneError::OnHold { .. }) => {
                tracing::warn!(org = %name, error = %e, "what is stored of a removed org is not deleted");
                return Ok(true);
            }
            Err(e) => return Err(e),
        }
        let newest = snapshot::newest(&self.node, name).await?.map(|newest| newest.header);
        let Some(header) = newest.filter(|header| header.deleted) else {
            return Err(PlaneError::unavailable("the tombstone of the org is not written yet"));
        };
        // First the keys: what is sealed to them, here or in a backup, opens no more.
        self.destroy_keys_of(name).await?;
        let tombstone = state_path(name, header.position);
        let mut listed = self.node.store.list(&Path::from(format!("orgs/{name}"))).await?;
        let [_, parked_beside_the_log] = parked_folders(name);
        listed.extend(self.node.store.list(&parked_beside_the_log).await?);
        let rest: Vec<Path> = listed.into_iter().map(|meta| meta.location).filter(|path| *path != tombstone).collect();
        if !rest.is_empty() {
            tracing::warn!(org = %name, objects = rest.len(), "deleting what is stored of a removed org");
            self.node.store.delete_all(rest).await?;
        }
        Ok(true)
    }
}
