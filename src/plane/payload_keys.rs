//! The life of payload keys: made when a gateway asks, published in a signed note, destroyed when their time is over.
//!
//! ```text
//! make:     key store, create if absent ─▶ payload.key_created in the log ─▶ the org's state ─▶ the note
//! destroy:  payload.key_destroying in the log ─▶ every version deleted, and looked for ─▶ payload.key_destroyed
//!           ─▶ at the next rotation of the KEK: payload.kek_destroyed
//! ```
//!
//! Each step is durable, and a round that was cut short is taken up at the step it did not take: what is destroying in
//! the state, or lies in the key store without being in the state, is found again. An entry never says that something
//! is gone before it was looked for.
//!
//! Days are those of the log where the log is ahead of this node's clock: a node with a slow clock makes no key of a
//! day that is past.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, Utc};
use futures::{StreamExt, TryStreamExt};
use serde_json::json;
use tokio::time::{sleep, timeout};

use super::{Plane, PlaneError, Readiness, SystemEvent};
use crate::audit::checkpoint;
use crate::config::{self, whole_days};
use crate::keys::{KeyError, KeyService, Rotated};
use crate::ledger::payload_keys::{
    EpochKey, KEK_DESTROYED, KEY_CREATED, KEY_DESTROYED, KEY_DESTROYING, PayloadKeys, RECIPIENT_CHANGED,
};
use crate::model::OrgName;
use crate::payload::Epoch;
use crate::payload::note::KeyNote;
use crate::state::Org;

/// How many days' keys a note tells, today's included.
const DAYS: i64 = 8;
/// How often it is looked for keys whose time is over, and how soon after a start.
const ROUND: Duration = Duration::from_secs(60);
const STARTING: Duration = Duration::from_millis(500);
/// How long one org is waited for.
const ORG_PATIENCE: Duration = Duration::from_secs(120);
/// Keys that are made at once.
const AT_ONCE: usize = 8;

/// Looks for keys whose time is over until the plane is drained.
pub(super) async fn run(plane: Arc<Plane>) {
    loop {
        let is_open = plane.payload_keys.get().is_some();
        let pause = match plane.readiness() {
            Readiness::Draining => return,
            Readiness::Ready if is_open => {
                let metrics = &plane.node.metrics.payload_keys;
                if let Err(e) = plane.destroy_due_keys().await {
                    metrics.failed("destroy");
                    tracing::warn!(error = %e, "payload keys whose time is over were not destroyed, and will be tried again");
                }
                if let Err(e) = plane.rotate_if_due().await {
                    metrics.failed("rotate");
                    tracing::warn!(error = %e, "the KEK of payload keys was not rotated, and it will be tried again");
                }
                ROUND
            }
            _ => STARTING,
        };
        sleep(pause).await;
    }
}

impl From<KeyError> for PlaneError {
    fn from(e: KeyError) -> Self {
        if e.is_passing() { Self::KeyServiceUnavailable(e.to_string()) } else { Self::Internal(e.to_string()) }
    }
}

impl Plane {
    /// Has payload keys made, unwrapped and destroyed by this service.
    pub fn set_payload_keys(&self, keys: Arc<KeyService>) {
        // Ignore the error: it is set once, at the start.
        let _ = self.payload_keys.set(keys);
    }

    pub(super) fn key_service(&self) -> Result<&Arc<KeyService>, PlaneError> {
        self.payload_keys.get().ok_or_else(|| PlaneError::unavailable("the payload keys are being opened"))
    }

    pub(super) fn org_config(&self, name: &OrgName) -> Option<&config::Org> {
        self.config.orgs.iter().find(|org| org.name == *name)
    }

    /// Whether payloads of an org may be captured.
    pub fn captures_payloads(&self, name: &OrgName) -> bool {
        self.org_config(name).is_some_and(config::Org::captures_payloads)
    }

    /// What an org wants of its payloads.
    pub fn payload_settings(&self, name: &OrgName) -> Option<&config::OrgPayloads> {
        self.org_config(name).map(|org| &org.payloads)
    }

    /// Now: by this node's clock, or by the log's where that is ahead.
    fn payload_time(&self, org: &Org) -> DateTime<Utc> {
        let log = DateTime::from_timestamp_micros(org.state.read().time).unwrap_or_default();
        self.node.clock.now().max(log)
    }

    /// The signed note of an org's public keys: today's and those of the next seven days, made if they are missing.
    ///
    /// # Errors
    /// See [`PlaneError`]; [`PlaneError::KeyServiceUnavailable`] when not even today's are there.
    pub async fn payload_key_note(&self, name: &OrgName) -> Result<String, PlaneError> {
        let org = self.caught_up(name).await?;
        let config = self.org_config(name).ok_or_else(|| PlaneError::UnknownOrg(name.to_string()))?;
        let period = whole_days(config.retention.payloads).ok_or_else(misconfigured)?;
        let mut plugins = BTreeMap::new();
        for (plugin, period) in &config.payloads.plugins {
            plugins.insert(plugin.clone(), whole_days(*period).ok_or_else(misconfigured)?);
        }
        let now = self.payload_time(&org);
        let today = now.date_naive();
        let periods: BTreeSet<u32> = plugins.values().copied().chain([period]).collect();
        let wanted = days_from(today).flat_map(|date| periods.iter().map(move |days| Epoch::new(date, *days)));
        let wanted: Vec<Epoch> = wanted.filter_map(Result::ok).collect();
        self.tell_recipient(&org, config).await?;
        let made = self.make_keys(&org, &wanted, today).await;
        let keys = org.ledger.read().status().payload_keys.clone();
        let told: BTreeMap<_, _> = wanted
            .iter()
            .filter_map(|epoch| Some((*epoch, keys.epochs.get(epoch).filter(|key| !key.destroying)?.public.clone()?)))
            .collect();
        let has_today =
            periods.iter().all(|days| told.keys().any(|epoch| epoch.date() == today && epoch.days() == *days));
        let until = told.keys().map(|epoch| epoch.date()).max().unwrap_or(today);
        let days = if has_today { (until - today).num_days() + 1 } else { 0 };
        self.node.metrics.payload_keys.has_days(name.as_str(), days);
        if let Err(e) = made {
            self.node.metrics.payload_keys.failed("make");
            if !has_today {
                return Err(e);
            }
            tracing::error!(org = %name, error = %e, days, "payload keys could not be made");
        }
        let expires = until.checked_add_signed(TimeDelta::days(1)).unwrap_or(until).and_time(NaiveTime::MIN).and_utc();
        let note = KeyNote {
            name: self.node.settings.name.clone(),
            org: name.clone(),
            issued: now,
            expires,
            period,
            plugins,
            epochs: told,
            recipient: config.payloads.recipient.clone(),
        };
        let origin = checkpoint::origin(&self.node.settings.name, name);
        let signed = self.node.signing.sign(note.text(), &origin);
        signed.map(|note| note.to_string()).map_err(|e| PlaneError::Internal(e.to_string()))
    }

    /// Says in the ledger that the tenant's own key is another than before.
    async fn tell_recipient(&self, org: &Org, config: &config::Org) -> Result<(), PlaneError> {
        let (before, now) = {
            let ledger = org.ledger.read();
            let now = config.payloads.recipient.as_ref().map(crate::payload::PublicKey::id);
            (ledger.status().payload_keys.recipient, now)
        };
        if before == now {
            return Ok(());
        }
        let text = |id: Option<crate::payload::KeyId>| id.map(|id| id.to_string());
        let detail = json!({ "key_id": text(now), "before": text(before) });
        let event = SystemEvent::new(self.actor(), RECIPIENT_CHANGED).target(org.name.as_str()).detail(detail);
        self.record_once(&org.name, vec![event], &format!("recipient/{before:?}/{now:?}")).await
    }

    async fn make_keys(&self, org: &Org, wanted: &[Epoch], today: NaiveDate) -> Result<(), PlaneError> {
        let lacking: Vec<Epoch> = {
            let ledger = org.ledger.read();
            let keys = &ledger.status().payload_keys;
            wanted.iter().copied().filter(|epoch| keys.may_make(*epoch, today)).collect()
        };
        if lacking.is_empty() {
            return Ok(());
        }
        let service = self.key_service()?;
        let made = futures::stream::iter(lacking).map(async |epoch| {
            let made = service.make(&org.name, epoch).await?;
            let (id, public) = (made.key.public().id(), made.key.public().to_string());
            let detail = json!({ "epoch": epoch, "key_id": id, "public_key": public, "kek": made.kek });
            let event = SystemEvent::new(self.actor(), KEY_CREATED).target(&epoch.to_string()).detail(detail);
            // Nodes that make it at once have the same key, and say so once.
            self.record_once(&org.name, vec![event], &format!("payload-key/{epoch}/{id}")).await
        });
        made.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Destroys keys whose time is over, in every org that a key lies there of. An org of which none is due is not
    /// loaded for it.
    pub(super) async fn destroy_due_keys(&self) -> Result<(), PlaneError> {
        let service = self.key_service()?;
        // What the log says is destroyed, by whichever node, is kept unwrapped by none.
        service.forget(|name, epoch| {
            self.registry.loaded(name).is_some_and(|org| !org.ledger.read().status().payload_keys.is_living(epoch))
        });
        let now = self.node.clock.now();
        let mut due: BTreeSet<(OrgName, Epoch)> = BTreeSet::new();
        let mut orphaned: Vec<(OrgName, Epoch)> = Vec::new();
        for (name, epoch) in service.list().await? {
            match self.longest_period(&name) {
                Some(longest) if PayloadKeys::is_over(epoch, longest, now) => {
                    due.insert((name, epoch));
                }
                None if epoch.ends_at() <= now => orphaned.push((name, epoch)),
                _ => {}
            }
        }
        // What is not in the key store any more, and was not said to be gone yet.
        for org in self.registry.all_loaded() {
            let Some(longest) = self.longest_period(&org.name) else { continue };
            let ledger = org.ledger.read();
            let known = ledger.status().payload_keys.epochs.iter();
            let over = known.filter(|(epoch, key)| key.destroying || PayloadKeys::is_over(**epoch, longest, now));
            due.extend(over.map(|(epoch, _)| (org.name.clone(), *epoch)));
        }
        let mut failed = Ok(());
        // An org that the configuration does not name any more has no ledger here to record it: its keys' time is over
        // all the same. Should it be named again, its ledger records it then.
        for (name, epoch) in orphaned {
            match service.destroy(&name, epoch).await {
                Ok((versions, _)) => {
                    tracing::warn!(org = %name, %epoch, versions, "destroyed a payload key of an org that is not configured");
                }
                Err(e) => failed = Err(e.into()),
            }
        }
        for (name, epoch) in due {
            let destroying = async {
                // Of a removed org too: its grace is for what can be restored, and no key outlives its period by it.
                let org = self.caught_up_even_removed(&name).await?;
                self.destroy_if_due(&org, epoch).await
            };
            // An org whose files hang is tried again in the next round; what was begun is taken up there.
            let destroyed = timeout(ORG_PATIENCE, Box::pin(destroying)).await;
            let destroyed = destroyed.unwrap_or_else(|_| Err(PlaneError::unavailable(format!("{name} hangs"))));
            match destroyed {
                // All of its keys go with the org, see `destroy_keys_of`.
                Ok(()) | Err(PlaneError::OrgRemoved(_)) => {}
                // One org that cannot be used keeps no other's keys alive.
                Err(e) => failed = Err(e),
            }
        }
        failed
    }

    /// Destroys all keys of an org that is deleted for good: its ledger goes as well, so nothing is recorded there.
    pub(super) async fn destroy_keys_of(&self, name: &OrgName) -> Result<(), PlaneError> {
        let Some(service) = self.payload_keys.get() else { return Ok(()) };
        for (of, epoch) in service.list().await? {
            if of == *name {
                let (versions, _) = service.destroy(name, epoch).await?;
                tracing::warn!(org = %name, %epoch, versions, "deleted a payload key of a removed org");
            }
        }
        Ok(())
    }

    /// The longest period of an org's payloads, in days; none of an org that is not configured.
    fn longest_period(&self, name: &OrgName) -> Option<u32> {
        let config = self.org_config(name)?;
        let periods = config.payloads.plugins.values().copied().chain([config.retention.payloads]);
        periods.filter_map(whole_days).max()
    }

    async fn destroy_if_due(&self, org: &Org, epoch: Epoch) -> Result<(), PlaneError> {
        let now = self.payload_time(org);
        let longest = self.longest_period(&org.name).ok_or_else(misconfigured)?;
        let (known, on_hold) = {
            let ledger = org.ledger.read();
            let status = ledger.status();
            (status.payload_keys.epochs.get(&epoch).cloned(), status.hold.is_some())
        };
        let is_over = PayloadKeys::is_over(epoch, longest, now);
        let service = self.key_service()?;
        match known {
            // A legal hold keeps what it keeps of the rows readable. What was begun before it is finished.
            Some(key) if on_hold && !key.destroying => {
                tracing::debug!(org = %org.name, %epoch, "a payload key outlives its period: the org is on hold");
                Ok(())
            }
            Some(key) if is_over || key.destroying => self.destroy_key(org, epoch, &key).await,
            // It was made and never published, and nothing is sealed to it; or it came back by a write that landed
            // late.
            None if is_over => {
                let (versions, _) = service.destroy(&org.name, epoch).await?;
                if versions > 0 {
                    tracing::warn!(org = %org.name, %epoch, versions, "deleted a payload key that the ledger does not name");
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn destroy_key(&self, org: &Org, epoch: Epoch, key: &EpochKey) -> Result<(), PlaneError> {
        let service = self.key_service()?;
        let event = |action| SystemEvent::new(self.actor(), action).target(&epoch.to_string());
        if !key.destroying {
            let detail = json!({ "epoch": epoch, "key_id": key.key_id });
            let begun = vec![event(KEY_DESTROYING).detail(detail)];
            let what = format!("payload-key-destroying/{epoch}/{}", key.key_id);
            match self.record_once(&org.name, begun, &what).await {
                Err(PlaneError::OnHold { .. }) => return Ok(()),
                recorded => recorded?,
            }
        }
        let (versions, kek) = service.destroy(&org.name, epoch).await?;
        let records = self.sealed_records(org, epoch).await?;
        let mut wrapped_by = org.ledger.read().status().payload_keys.wrapped_by(epoch);
        let last = kek.filter(|kek| !wrapped_by.contains(kek));
        wrapped_by.extend(last);
        let detail = json!({
            "epoch": epoch,
            "key_id": key.key_id,
            "records": records,
            "versions_deleted": versions,
            "kek_versions": wrapped_by,
        });
        let done = vec![event(KEY_DESTROYED).detail(detail)];
        self.record_once(&org.name, done, &format!("payload-key-destroyed/{epoch}/{}", key.key_id)).await?;
        tracing::info!(org = %org.name, %epoch, "a payload key was destroyed");
        Ok(())
    }

    /// Rotates the KEK where that is this program's to do by itself and it is time.
    async fn rotate_if_due(&self) -> Result<(), PlaneError> {
        let Some(every) = self.config.payload_keys.rotate else { return Ok(()) };
        let every = TimeDelta::from_std(every.as_duration()).unwrap_or(TimeDelta::MAX);
        let listed = self.key_service()?.list().await?;
        // It is said in every org that has keys: one of them tells.
        let Some((name, _)) = listed.iter().find(|(name, _)| self.org_config(name).is_some()) else { return Ok(()) };
        let is_due = |last: Option<DateTime<Utc>>| {
            last.is_none_or(|last| self.node.clock.now().signed_duration_since(last) >= every)
        };
        if !is_due(*self.kek_rotated.lock()) {
            return Ok(());
        }
        // Another node may have done it.
        let org = self.caught_up_even_removed(name).await?;
        let told = org.ledger.read().status().payload_keys.kek_destroyed_at;
        if !is_due(told.and_then(DateTime::from_timestamp_micros)) {
            return Ok(());
        }
        self.rotate_payload_kek(&self.actor()).await.map(drop)
    }

    /// Rotates the KEK: living keys are wrapped anew, and what wraps nothing any more is destroyed; `actor` asked for
    /// it.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn rotate_payload_kek(&self, actor: &str) -> Result<Rotated, PlaneError> {
        let service = self.key_service()?;
        let rotated = service.rotate().await?;
        *self.kek_rotated.lock() = Some(self.node.clock.now());
        let orgs: BTreeSet<OrgName> = service.list().await?.into_iter().map(|(org, _)| org).collect();
        let entitled = self.config.orgs.iter().filter(|org| org.captures_payloads()).map(|org| org.name.clone());
        let orgs: BTreeSet<OrgName> = orgs.into_iter().chain(entitled).collect();
        for org in orgs.iter().filter(|org| self.org_config(org).is_some()) {
            let events = rotated.destroyed.iter().map(|version| {
                let detail = json!({ "kind": service.kind(), "version": version, "now": rotated.kek });
                SystemEvent::new(actor, KEK_DESTROYED).target(version).detail(detail)
            });
            let events: Vec<_> = events.collect();
            if !events.is_empty() {
                match self.record(org, events).await {
                    Ok(()) | Err(PlaneError::OrgRemoved(_)) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        tracing::info!(kek = rotated.kek, rewrapped = rotated.rewrapped, "rotated the KEK of payload keys");
        Ok(rotated)
    }
}

fn days_from(today: NaiveDate) -> impl Iterator<Item = NaiveDate> {
    (0..DAYS).filter_map(move |days| today.checked_add_signed(TimeDelta::days(days)))
}

fn misconfigured() -> PlaneError {
    PlaneError::Misconfigured("a period of payloads is not whole days".to_owned())
}
