//! The control plane's own events: what it did itself, put into the ledger of each org that it concerns.
//!
//! | action | when | target |
//! |---|---|---|
//! | `operator.started`, `operator.stopped` | a node starts, is asked to stop | the node |
//! | `operator.config_loaded` | what was loaded differs from what was loaded last: a digest of every setting, the org's own, the tokens that open it | |
//! | `operator.config_changed` | settings differ from those that were loaded last: their names | |
//! | `operator.org_made`, `operator.org_changed` | the org is new, its tier or retention is another | the org |
//! | `operator.retention` | rows of the org's tables are older than they are kept, and go | the org |
//! | `operator.org_removed`, `operator.org_restored` | an org is removed, or that is taken back | the org |
//! | `operator.erasure` | a caller's samples are taken out of the tables | the org |
//! | `operator.token_made`, `.token_changed`, `.token_revoked` | a token that opens the org, at a start or when the file has changed | the token's name |
//! | `operator.query` | an SQL query has ended, where `audit.queries` is true (`api::records`) | `sql` |
//! | `operator.session_started`, `.session_ended`, `.sessions_revoked` | sessions of browsers, see `sessions` | the caller |
//! | `operator.request_refused` | requests for want of rights, at most one entry a minute for a token and a route | the route |
//! | `payload.…` | see `payload_keys`, `payloads`, `payload_view` | the epoch, the call |
//! | `ledger.prune`, `ledger.hold`, `ledger.release` | see `retention` | |
//! | `ledger.key` | checkpoints are signed by another key from now on | |
//! | `ledger.verification_failed` | the ledger did not stand a check of the control plane's own | |
//!
//! A start is one entry where nothing changed, and it is written when the org is first used in the process: so a
//! restart writes nothing into the ledger of an idle org. Where the configuration or the key changed it is written at
//! once, if there are not very many orgs; a change of the key however many there are.
//!
//! What concerns the whole fleet stands in every org's ledger, without a word of other orgs: each org's auditor sees
//! the whole life of what kept the ledger. A node that ends without `operator.stopped` was killed, or its machine was.
//! Secrets are left out; settings are recorded by name and digest.
//!
//! The actor is `system:control-plane@<node>`, the node being the first eight digits of the id that its objects in the
//! log carry, or `service:<token>` of who asked. Events go through the log as all others do. No emitter can send in an
//! action `ledger.…` or such an actor.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{Plane, PlaneError, follow};
use crate::audit::note::{Note, VKey};
use crate::audit::{checkpoint, segment};
use crate::config::{ControlPlane, OrgSummary, Token};
use crate::ingest::{
    BatchId, DecodeContext, DecodeLimits, Fingerprint, IdempotencyKey, OWN_ACTOR, RandomIds, RowKind,
    complete_own_events,
};
use crate::ledger::segments::Found;
use crate::ledger::status::{CONFIG_LOADED, KEY};
use crate::ledger::{checkpoints_folder, newest_path, segment_path};
use crate::model::OrgName;
use crate::state::Org;
use crate::storage::StorageError;

/// Orgs whose ledgers are written to at once.
const AT_ONCE: usize = 64;
/// How long a start waits until an org's ledger says so.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Of so many orgs all are loaded at the start, and their ledgers say that the node starts; of more, those that are
/// used.
pub(super) const MOST_LOADED_AT_START: usize = 100;

/// An event of the control plane's own.
#[derive(Debug, Clone, PartialEq)]
pub struct SystemEvent(Map<String, Value>);

impl SystemEvent {
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

    /// Under this id, by which the entry is found again.
    #[must_use]
    pub fn id(self, id: uuid::Uuid) -> Self {
        self.with("event_id", id.hyphenated().to_string().into())
    }

    /// The call that it is about, and where that was made.
    #[must_use]
    pub fn of_call(self, invocation_id: &str, workspace: &str, instance: &str) -> Self {
        self.with("invocation_id", invocation_id.into())
            .with("workspace", workspace.into())
            .with("instance", instance.into())
    }

    /// The call that it is about.
    #[must_use]
    pub fn call(self, invocation_id: &str) -> Self {
        self.with("invocation_id", invocation_id.into())
    }

    /// The request that brought it about.
    #[must_use]
    pub fn request(self, request_id: &str) -> Self {
        self.with("request_id", request_id.into())
    }

    /// What else there is to know: an object.
    #[must_use]
    pub fn detail(self, detail: Value) -> Self {
        self.with("detail", detail)
    }
}

impl Plane {
    /// This node as an actor.
    pub fn actor(&self) -> String {
        format!("{OWN_ACTOR}@{}", self.node.name())
    }

    /// Puts events into an org's ledger, durably.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn record(&self, org: &OrgName, events: Vec<SystemEvent>) -> Result<(), PlaneError> {
        self.record_under(org, events, None).await
    }

    /// As [`Plane::record`], but only once for `what` within a day, whichever nodes do so.
    pub(super) async fn record_once(
        &self,
        org: &OrgName,
        events: Vec<SystemEvent>,
        what: &str,
    ) -> Result<(), PlaneError> {
        let id = BatchId::Key { key: IdempotencyKey::own(what), body: Fingerprint::of(what.as_bytes()) };
        self.record_under(org, events, Some(id)).await
    }

    /// Events with all that an event has.
    pub(super) fn complete(&self, org: &OrgName, events: Vec<SystemEvent>) -> Result<RecordBatch, PlaneError> {
        let lines: Vec<String> = events.into_iter().map(|event| Value::Object(event.0).to_string()).collect();
        let lines = Bytes::from(lines.join("\n"));
        let context = DecodeContext { org, now: self.node.clock.now(), limits: DecodeLimits::default() };
        let batch = complete_own_events(&lines, &context, &mut RandomIds::default());
        batch.map_err(|e| PlaneError::Internal(format!("an event of the control plane's own: {e}")))
    }

    async fn record_under(
        &self,
        org: &OrgName,
        events: Vec<SystemEvent>,
        id: Option<BatchId>,
    ) -> Result<(), PlaneError> {
        let batch = self.complete(org, events)?;
        let admission = self.admit(batch.get_array_memory_size()).await?;
        self.append_while_running(org, RowKind::Event, batch, id, admission).await.map(drop)
    }

    /// Says in the ledgers that this node starts, and with which configuration where that changed: in all of a few
    /// orgs. During a change of keys, in each ledger whose checkpoint the new key has not signed yet, however many there
    /// are: once the key before is taken out, nothing could be told of a checkpoint that it alone has signed.
    pub(super) async fn announce_start(&self) -> Result<(), PlaneError> {
        let all = &self.node.settings.orgs;
        let orgs: Vec<&OrgName> = if all.len() <= MOST_LOADED_AT_START {
            all.iter().collect()
        } else if self.node.signing.has_overlap() {
            let lagging =
                futures::stream::iter(all).map(|org| async move { self.is_signed_before(org).await.then_some(org) });
            lagging.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await
        } else {
            Vec::new()
        };
        if orgs.is_empty() {
            return Ok(());
        }
        follow::catch_up(self).await?;
        let said = futures::stream::iter(orgs).map(|org| async move {
            // One whose files hang keeps no node from serving the others: it is tried again when the org is used.
            let hangs = |_| {
                self.announced.lock().remove(org);
                Err(PlaneError::unavailable("the store has not answered in time"))
            };
            (org, timeout(ANNOUNCE_TIMEOUT, self.announce_start_to(org, false)).await.unwrap_or_else(hangs))
        });
        first_error(said.buffer_unordered(AT_ONCE).collect().await)
    }

    /// Whether an org has a ledger whose checkpoint, as far as a look tells, the current key has not signed.
    async fn is_signed_before(&self, org: &OrgName) -> bool {
        let look = async {
            if let Some(note) = self.node.store.get(&newest_path(org)).await? {
                return Ok::<_, StorageError>(Some(note));
            }
            // The hint may be gone while kept ones are there.
            Ok(self.node.store.list(&checkpoints_folder(org)).await?.pop().map(|_| Bytes::new()))
        };
        match timeout(ANNOUNCE_TIMEOUT, look).await {
            Ok(Ok(None)) => false,
            Ok(Ok(Some(note))) => {
                let note = std::str::from_utf8(&note).unwrap_or_default();
                !matches!(changed_key(self, org, Some(note)), Ok(None))
            }
            // The load says what is the matter.
            Ok(Err(_)) | Err(_) => true,
        }
    }

    /// As [`Plane::announce_start`], in one org's ledger, once in the life of the process; unless it is `used`, only
    /// where the configuration or the key is another than before.
    pub(super) async fn announce_start_to(&self, name: &OrgName, used: bool) -> Result<(), PlaneError> {
        if !self.announced.lock().insert(name.clone()) {
            return Ok(());
        }
        let announced = self.announce(name, used).await;
        // It is tried again when the org is next used.
        announced.inspect_err(|_| {
            self.announced.lock().remove(name);
        })
    }

    async fn announce(&self, name: &OrgName, used: bool) -> Result<(), PlaneError> {
        let org = match self.org(name).await {
            Ok(org) => org,
            // Its ledger is damaged, and takes nothing.
            Err(PlaneError::OrgStopped { .. } | PlaneError::OrgRemoved(_)) => return Ok(()),
            Err(e) => return Err(e),
        };
        let config = Arc::clone(&self.loaded.read());
        let (before, summary) = (self.last_summary(&org).await?, OrgSummary::of(&config, name));
        let mut detail = json!({ "version": env!("CARGO_PKG_VERSION"), "config": summary.digest() });
        let brought_over = self.brought_over.load(Ordering::Acquire);
        if let Some(members) = detail.as_object_mut().filter(|_| brought_over) {
            // What came before was believed without a MAC.
            members.insert("brought_over_from".to_owned(), json!("1"));
        }
        let node = self.node.name();
        let started = SystemEvent::new(self.actor(), "operator.started").target(&node).detail(detail);
        let mut events = vec![started];
        let newest = org.ledger.publisher.lock().await.newest.as_ref().map(|newest| newest.note.clone());
        let (key, at) = {
            let ledger = org.ledger.read();
            (ledger.status().key.clone(), ledger.status().config)
        };
        events.extend(
            changed_key(self, name, newest.as_deref())?.filter(|vkey| key.as_deref() != Some(&vkey.to_string())).map(
                |vkey| {
                    let detail = json!({ "vkey": vkey.to_string() });
                    SystemEvent::new(self.actor(), KEY).target(vkey.name()).detail(detail)
                },
            ),
        );
        let is_same = before.as_ref().is_some_and(|before| before.digest() == summary.digest());
        if is_same && events.len() == 1 && !used && !brought_over {
            self.announced.lock().remove(name);
            return Ok(());
        }
        self.record(name, events).await?;
        if is_same {
            return Ok(());
        }
        self.record_config(name, at, before.as_ref(), &summary).await
    }

    /// Records what differs from the configuration in the entry `at` in an org's ledger. Nodes that start at once, or
    /// read the same file, find the same changes; they are recorded once.
    async fn record_config(
        &self,
        name: &OrgName,
        at: Option<u64>,
        before: Option<&OrgSummary>,
        summary: &OrgSummary,
    ) -> Result<(), PlaneError> {
        let loaded = serde_json::to_value(summary).map_err(|e| PlaneError::Internal(e.to_string()))?;
        let mut changed = vec![SystemEvent::new(self.actor(), CONFIG_LOADED).detail(loaded)];
        changed.extend(changes(&self.actor(), name, before, summary));
        self.record_once(name, changed, &format!("config/{at:?}/{}", summary.digest())).await
    }

    /// Takes the tokens that the configuration's file has now: the ledgers of the orgs that they open, or opened, say
    /// so.
    ///
    /// # Errors
    /// See [`PlaneError`]; what is not in a ledger then is recorded at the next start.
    pub async fn reload_tokens(&self, tokens: &[Token]) -> Result<(), PlaneError> {
        let now = Arc::new(ControlPlane { tokens: tokens.to_vec(), ..self.config.clone() });
        let before = std::mem::replace(&mut *self.loaded.write(), Arc::clone(&now));
        follow::catch_up(self).await?;
        for name in &self.node.settings.orgs {
            let summary = OrgSummary::of(&now, name);
            if summary == OrgSummary::of(&before, name) {
                continue;
            }
            let org = match self.org(name).await {
                Ok(org) => org,
                // Its ledger takes nothing.
                Err(PlaneError::OrgStopped { .. } | PlaneError::OrgRemoved(_)) => continue,
                Err(e) => return Err(e),
            };
            let at = org.ledger.read().status().config;
            let last = self.last_summary(&org).await?;
            if last.as_ref().is_none_or(|last| last.digest() != summary.digest()) {
                self.record_config(name, at, last.as_ref(), &summary).await?;
            }
        }
        Ok(())
    }

    /// Says in the ledgers that this node stops, where they say that it started.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub async fn announce_stop(&self) -> Result<(), PlaneError> {
        let announced: Vec<_> = self.announced.lock().iter().cloned().collect();
        let stopped = futures::stream::iter(&announced).map(async |org| {
            let stopped = SystemEvent::new(self.actor(), "operator.stopped").target(&self.node.name());
            match self.record(org, vec![stopped]).await {
                Err(PlaneError::OrgStopped { .. } | PlaneError::OrgRemoved(_)) => (org, Ok(())),
                recorded => (org, recorded),
            }
        });
        first_error(stopped.buffer_unordered(AT_ONCE).collect().await)
    }

    /// What the org's ledger says of the configuration that was loaded last.
    pub(super) async fn last_summary(&self, org: &Org) -> Result<Option<OrgSummary>, PlaneError> {
        let Some(seq) = org.ledger.read().status().config else { return Ok(None) };
        let detail = self.entry_detail(org, seq).await?;
        // One of another version of the program may be of another form: then it says nothing.
        Ok(detail.and_then(|detail| serde_json::from_str(&detail).ok()))
    }

    /// The detail of an entry, if it is there and has one.
    pub(super) async fn entry_detail(&self, org: &Org, seq: u64) -> Result<Option<String>, PlaneError> {
        let found = org.ledger.read().find(seq);
        match found {
            None => Ok(None),
            Some(Found::Live(batch)) => Ok(detail_of(&batch, seq)),
            Some(Found::Stored(segment)) => {
                let path = segment_path(&org.name, segment);
                let bytes = org.ledger.proved(&self.node.store, segment).await?;
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

/// What went wrong with any of several orgs: none of them is passed over for another's sake. That the configuration
/// does not fit what is stored goes before anything else.
fn first_error(said: Vec<(&OrgName, Result<(), PlaneError>)>) -> Result<(), PlaneError> {
    let mut first = Ok(());
    for (org, e) in said.into_iter().filter_map(|(org, said)| Some((org, said.err()?))) {
        tracing::warn!(%org, error = %e, "the ledger does not say of this node what it should");
        if first.is_ok() || matches!(e, PlaneError::Misconfigured(_)) {
            first = Err(e);
        }
    }
    first
}

fn detail_of(entries: &RecordBatch, seq: u64) -> Option<String> {
    let seqs = entries.column_by_name("seq")?.as_primitive_opt::<Int64Type>()?;
    let row = seqs.values().iter().position(|found| u64::try_from(*found) == Ok(seq))?;
    let details = entries.column_by_name("detail")?.as_string_opt::<i32>()?;
    details.is_valid(row).then(|| details.value(row).to_owned())
}

/// The key that checkpoints are signed with, if the newest one is not signed with it yet.
fn changed_key(plane: &Plane, org: &OrgName, newest: Option<&str>) -> Result<Option<VKey>, PlaneError> {
    let internal = |e: crate::audit::AuditError| PlaneError::Internal(e.to_string());
    let Some(newest) = newest else { return Ok(None) };
    let note: Note = newest.parse().map_err(internal)?;
    let vkey = plane.node.signing.vkey(&checkpoint::origin(&plane.node.settings.name, org)).map_err(internal)?;
    Ok(vkey.verify(&note).is_err().then_some(vkey))
}

/// What differs between two configurations, as events. Without an earlier one, the org and its tokens are new.
fn changes(actor: &str, org: &OrgName, before: Option<&OrgSummary>, now: &OrgSummary) -> Vec<SystemEvent> {
    let event = |action: &str| SystemEvent::new(actor, action);
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

/// Starts the plane for service: as [`Plane::recover`], and the ledgers say so before anyone else is served.
///
/// # Errors
/// As [`Plane::recover`]; that the ledgers could not say so is no reason not to serve.
pub async fn start(plane: &Arc<Plane>) -> Result<(), PlaneError> {
    plane.begin().await?;
    match plane.announce_start().await {
        Ok(()) => {}
        // What is stored is of another configuration: no request is served from it.
        Err(e @ PlaneError::Misconfigured(_)) => return Err(e),
        Err(e) => {
            plane.node.metrics.audit.failures.inc();
            tracing::error!(error = %e, "the ledgers do not say that this node starts");
        }
    }
    plane.serve();
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{SystemEvent, changes};
    use crate::config::{ControlPlane, OrgSummary};

    const HASH: &str = "000000000000000000000000000000000000000000000000000000000000000";

    fn summary(text: &str) -> OrgSummary {
        let config = ControlPlane::parse("f", text, &|_| None).unwrap();
        OrgSummary::of(&config, &"acme".parse().unwrap())
    }

    fn told(before: Option<&str>, now: &str) -> Vec<(String, serde_json::Value)> {
        let before = before.map(summary);
        let events = changes("system:control-plane@1", &"acme".parse().unwrap(), before.as_ref(), &summary(now));
        let told = |SystemEvent(event): SystemEvent| {
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
