//! The control plane's own events: what it did itself, put into the ledger of each org that it concerns.
//!
//! | action | when | target |
//! |---|---|---|
//! | `operator.started`, `operator.stopped` | a node starts, is asked to stop | the node |
//! | `operator.config_loaded` | at each start: a digest of every setting, the org's own, the tokens that open it | |
//! | `operator.config_changed` | settings differ from those that were loaded last: their names | |
//! | `operator.org_made`, `operator.org_changed` | the org is new, its tier or retention is another | the org |
//! | `operator.token_made`, `.token_changed`, `.token_revoked` | a token that opens the org | the token's name |
//! | `operator.request_refused` | requests for want of rights, at most one entry a minute for a token and a route | the route |
//! | `ledger.prune`, `ledger.hold`, `ledger.release` | see `retention` | |
//! | `ledger.key` | heads are signed by another key from now on | |
//! | `ledger.verification_failed` | the ledger did not stand a check of the control plane's own | |
//!
//! What concerns the whole fleet stands in every org's ledger, without a word of other orgs: each org's auditor sees the whole
//! life of what kept the ledger. A node that ends without `operator.stopped` was killed, or its machine was. Secrets are left
//! out; settings are told of by name and digest.
//!
//! The actor is `system:control-plane@<node>`, the node being the first eight digits of the id that its objects in the log
//! carry, or `service:<token>` of who asked. Events go through the log as all others do. No emitter can send in an action
//! `ledger.…` or such an actor.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Map, Value, json};

use super::ledger::segment_path;
use super::press::get;
use super::segments::Found;
use super::standing::{CONFIG_LOADED, KEY};
use super::{Plane, PlaneError, replica};
use crate::audit::note::{Note, VKey};
use crate::audit::{checkpoint, segment};
use crate::config::{ControlPlane, OrgSummary};
use crate::ingest::{DecodeContext, DecodeLimits, IdempotencyKey, OWN_ACTOR, RandomIds, RowKind, complete_own_events};
use crate::model::OrgName;
use crate::storage::StorageError;

/// Orgs whose ledgers are told at once.
const AT_ONCE: usize = 256;

/// An event of the control plane's own.
#[derive(Debug, Clone, PartialEq)]
pub struct OwnEvent(Map<String, Value>);

impl OwnEvent {
    /// That `actor` did `action`.
    pub fn new(actor: impl Into<String>, action: &str) -> Self {
        let mut members = Map::new();
        members.insert("actor".to_owned(), Value::String(actor.into()));
        members.insert("action".to_owned(), Value::String(action.to_owned()));
        Self(members)
    }

    fn with(mut self, member: &str, value: Value) -> Self {
        self.0.insert(member.to_owned(), value);
        self
    }

    /// To what it was done.
    #[must_use]
    pub fn target(self, target: &str) -> Self {
        self.with("target", target.into())
    }

    /// Why.
    #[must_use]
    pub fn reason(self, reason: &str) -> Self {
        self.with("reason", reason.into())
    }

    /// What was decided: one of the decisions of policy.
    #[must_use]
    pub fn decision(self, decision: &str) -> Self {
        self.with("decision", decision.into())
    }

    /// What else there is to know: an object.
    #[must_use]
    pub fn detail(self, detail: Value) -> Self {
        self.with("detail", detail)
    }
}

impl Plane {
    /// The name of this node in what it does itself.
    pub(super) fn node(&self) -> String {
        self.writer.simple().to_string().chars().take(8).collect()
    }

    /// This node as an actor.
    pub fn actor(&self) -> String {
        format!("{OWN_ACTOR}@{}", self.node())
    }

    /// Puts events into an org's ledger, durably.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn record(&self, org: &OrgName, events: Vec<OwnEvent>) -> Result<(), PlaneError> {
        self.record_under(org, events, None).await
    }

    /// As [`Plane::record`], but only once for `what` within a day, whichever nodes do so.
    pub(super) async fn record_once(&self, org: &OrgName, events: Vec<OwnEvent>, what: &str) -> Result<(), PlaneError> {
        self.record_under(org, events, Some(IdempotencyKey::own(what))).await
    }

    async fn record_under(
        &self,
        org: &OrgName,
        events: Vec<OwnEvent>,
        key: Option<IdempotencyKey>,
    ) -> Result<(), PlaneError> {
        let lines: Vec<String> = events.into_iter().map(|event| Value::Object(event.0).to_string()).collect();
        let lines = Bytes::from(lines.join("\n"));
        let context = DecodeContext { org, now: self.clock.now(), limits: DecodeLimits::default() };
        let batch = complete_own_events(&lines, &context, &mut RandomIds::default());
        let batch = batch.map_err(|e| PlaneError::Internal(format!("an event of the control plane's own: {e}")))?;
        let admission = self.admit(lines.len()).await?;
        self.append_while_running(org, RowKind::Event, batch, key, admission).await.map(drop)
    }

    /// Tells every org's ledger that this node starts, and with which configuration; that the key has changed, if it has.
    pub(super) async fn announce_start(&self, config: &ControlPlane) -> Result<(), PlaneError> {
        replica::catch_up(self).await?;
        let told = futures::stream::iter(&self.settings.orgs).map(|org| self.announce_start_to(org, config));
        told.buffer_unordered(AT_ONCE).try_collect().await
    }

    async fn announce_start_to(&self, name: &OrgName, config: &ControlPlane) -> Result<(), PlaneError> {
        let org = match self.org(name) {
            Ok(org) => org,
            // Its ledger is damaged, and takes nothing.
            Err(PlaneError::OrgStopped { .. }) => return Ok(()),
            Err(e) => return Err(e),
        };
        let (before, summary) = (self.last_summary(name).await?, OrgSummary::of(config, name));
        let loaded = serde_json::to_value(&summary).map_err(|e| PlaneError::Internal(e.to_string()))?;
        let version = json!({ "version": env!("CARGO_PKG_VERSION") });
        let started = OwnEvent::new(self.actor(), "operator.started").target(&self.node()).detail(version);
        let mut events = vec![started];
        events.extend(
            changed_key(self, name, org.press.lock().await.newest.as_ref().map(|head| head.note.as_str()))?
                .filter(|vkey| org.ledger().standing().key.as_deref() != Some(&vkey.to_string()))
                .map(|vkey| {
                    OwnEvent::new(self.actor(), KEY).target(vkey.name()).detail(json!({ "vkey": vkey.to_string() }))
                }),
        );
        events.push(OwnEvent::new(self.actor(), CONFIG_LOADED).detail(loaded));
        let at = org.ledger().standing().config;
        self.record(name, events).await?;
        let changes = changes(&self.actor(), name, before.as_ref(), &summary);
        if changes.is_empty() {
            return Ok(());
        }
        // Nodes that start at once find the same changes; they are told once.
        self.record_once(name, changes, &format!("config/{at:?}/{}", summary.digest())).await
    }

    /// Tells every org's ledger that this node stops.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn announce_stop(&self) -> Result<(), PlaneError> {
        let told = futures::stream::iter(&self.settings.orgs).map(async |org| {
            let stopped = OwnEvent::new(self.actor(), "operator.stopped").target(&self.node());
            match self.record(org, vec![stopped]).await {
                Err(PlaneError::OrgStopped { .. }) => Ok(()),
                told => told,
            }
        });
        told.buffer_unordered(AT_ONCE).try_collect().await
    }

    /// What the org's ledger was told of the configuration last.
    async fn last_summary(&self, org: &OrgName) -> Result<Option<OrgSummary>, PlaneError> {
        let Some(seq) = self.org(org)?.ledger().standing().config else { return Ok(None) };
        let detail = self.entry_detail(org, seq).await?;
        // One of another version of the program may be of another form: then it tells nothing.
        Ok(detail.and_then(|detail| serde_json::from_str(&detail).ok()))
    }

    /// The detail of an entry, if it is there and has one.
    pub(super) async fn entry_detail(&self, name: &OrgName, seq: u64) -> Result<Option<String>, PlaneError> {
        let org = self.org(name)?;
        let found = org.ledger().find(seq);
        match found {
            None => Ok(None),
            Some(Found::Live(batch)) => Ok(detail_of(&batch, seq)),
            Some(Found::Stored(segment)) => {
                let path = segment_path(name, segment);
                let bytes: Bytes =
                    get(self, &path).await?.ok_or_else(|| StorageError::damaged(&path, "it is missing"))?;
                let read = move || {
                    let mut detail = None;
                    segment::read(path.as_ref(), segment, bytes, |batch| {
                        detail = detail.take().or_else(|| detail_of(&batch, seq));
                        Ok(())
                    })
                    .map(|_| detail)
                };
                let read = tokio::task::spawn_blocking(read).await;
                Ok(read.map_err(|e| PlaneError::Internal(e.to_string()))??)
            }
        }
    }
}

fn detail_of(entries: &RecordBatch, seq: u64) -> Option<String> {
    let seqs = entries.column_by_name("seq")?.as_primitive_opt::<Int64Type>()?;
    let row = seqs.values().iter().position(|found| u64::try_from(*found) == Ok(seq))?;
    let details = entries.column_by_name("detail")?.as_string_opt::<i32>()?;
    details.is_valid(row).then(|| details.value(row).to_owned())
}

/// The key that heads are signed with, if the newest one is not signed with it yet.
fn changed_key(plane: &Plane, org: &OrgName, newest: Option<&str>) -> Result<Option<VKey>, PlaneError> {
    let internal = |e: crate::audit::AuditError| PlaneError::Internal(e.to_string());
    let Some(newest) = newest else { return Ok(None) };
    let note: Note = newest.parse().map_err(internal)?;
    let vkey = plane.signing.vkey(&checkpoint::origin(&plane.settings.name, org)).map_err(internal)?;
    Ok(vkey.verify(&note).is_err().then_some(vkey))
}

/// What differs between two configurations, as events. Without an earlier one, the org and its tokens are new.
fn changes(actor: &str, org: &OrgName, before: Option<&OrgSummary>, now: &OrgSummary) -> Vec<OwnEvent> {
    let event = |action: &str| OwnEvent::new(actor, action);
    let mut events = Vec::new();
    let empty = BTreeMap::new();
    match before {
        None => events.push(event("operator.org_made").target(org.as_str()).detail(json!(now.org))),
        Some(before) => {
            let keys = differing(&before.settings, &now.settings);
            if !keys.is_empty() {
                events.push(event("operator.config_changed").detail(json!({ "keys": keys })));
            }
            if before.org != now.org {
                let detail = json!({ "before": before.org, "now": now.org });
                events.push(event("operator.org_changed").target(org.as_str()).detail(detail));
            }
        }
    }
    let tokens = before.map_or(&empty, |before| &before.tokens);
    for name in differing(tokens, &now.tokens) {
        let (action, detail) = match (tokens.get(name), now.tokens.get(name)) {
            (None, now) => ("operator.token_made", json!(now)),
            (before, None) => ("operator.token_revoked", json!(before)),
            (before, now) => ("operator.token_changed", json!({ "before": before, "now": now })),
        };
        events.push(event(action).target(name).detail(detail));
    }
    events
}

/// The keys whose values differ, or that only one of the two has.
fn differing<'a, T: PartialEq>(one: &'a BTreeMap<String, T>, other: &'a BTreeMap<String, T>) -> Vec<&'a String> {
    let mut keys: Vec<_> = one.keys().chain(other.keys()).filter(|key| one.get(*key) != other.get(*key)).collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// Starts the plane for service: as [`Plane::recover`], and the ledgers are told before anyone else is served.
///
/// # Errors
/// As [`Plane::recover`]; that the ledgers could not be told is no reason not to serve.
pub async fn start(plane: &Arc<Plane>, config: &ControlPlane) -> Result<(), PlaneError> {
    plane.begin().await?;
    if let Err(e) = plane.announce_start(config).await {
        plane.metrics.audit.failures.inc();
        tracing::error!(error = %e, "the ledgers were not told of this start");
    }
    plane.serve();
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{OwnEvent, changes};
    use crate::config::{ControlPlane, OrgSummary};

    const HASH: &str = "000000000000000000000000000000000000000000000000000000000000000";

    fn summary(text: &str) -> OrgSummary {
        let config = ControlPlane::parse("f", text, &|_| None).unwrap();
        OrgSummary::of(&config, &"acme".parse().unwrap())
    }

    fn told(before: Option<&str>, now: &str) -> Vec<(String, serde_json::Value)> {
        let before = before.map(summary);
        let events = changes("system:control-plane@1", &"acme".parse().unwrap(), before.as_ref(), &summary(now));
        let told = |OwnEvent(event): OwnEvent| {
            (event["action"].as_str().unwrap().to_owned(), event.get("target").cloned().unwrap_or_default())
        };
        events.into_iter().map(told).collect()
    }

    #[test]
    fn an_org_and_its_tokens_are_made_once() {
        let config = format!("orgs: [{{name: acme}}]\ntokens: [{{name: t, hash: {HASH}1, org: acme, roles: [read]}}]");
        assert_eq!(
            told(None, &config),
            [("operator.org_made".to_owned(), json!("acme")), ("operator.token_made".to_owned(), json!("t"))]
        );
        assert!(told(Some(&config), &config).is_empty());
    }

    #[test]
    fn a_token_that_is_another_or_gone_is_told_of_and_anothers_is_not() {
        let config = |token: &str| format!("orgs: [{{name: acme}}, {{name: globex}}]\ntokens:\n{token}");
        let one = config(&format!("- {{name: t, hash: {HASH}1, org: acme, roles: [read]}}"));
        let replaced = config(&format!("- {{name: t, hash: {HASH}2, org: acme, roles: [read]}}"));
        let other = config(&format!("- {{name: t, hash: {HASH}1, org: globex, roles: [read]}}"));
        assert_eq!(told(Some(&one), &replaced), [("operator.token_changed".to_owned(), json!("t"))]);
        assert_eq!(told(Some(&one), &other), [("operator.token_revoked".to_owned(), json!("t"))]);
        assert!(!serde_json::to_string(&summary(&one)).unwrap().contains(HASH));
    }

    #[test]
    fn settings_are_told_of_by_name_and_never_by_value() {
        let (one, other) = ("orgs: [{name: acme}]", "orgs: [{name: acme, tier: pro}]\nflush: {interval: 7s}");
        let before = summary(one);
        let events = changes("system:control-plane@1", &"acme".parse().unwrap(), Some(&before), &summary(other));
        assert_eq!(events[0].0["detail"], json!({ "keys": ["flush.interval"] }));
        assert_eq!(events[1].0["action"], "operator.org_changed");
        assert!(!serde_json::to_string(&summary(other)).unwrap().contains("7s"));
    }
}
