//! Viewing a captured payload. In this order, so that the ledger records each viewer before:
//!
//! 1. find the rows, by date and bloom filter;
//! 2. unwrap the epoch's key;
//! 3. check that the state does not say that the key is being destroyed;
//! 4. record `payload.viewed`, **durable**;
//! 5. decrypt, and compare everything with what the ledger and the rows say;
//! 6. answer, once.
//!
//! If decrypting fails after the entry, `payload.view_failed` says so, with the reason. Who may view is for the API to
//! say.
//!
//! How much an actor has viewed is counted by the entries. On one node an actor's views are checked and entered one
//! after the other; of those that other nodes enter at the same time, the count after the entry tells: what is too many
//! then is not opened.

use std::hash::{BuildHasher, RandomState};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use uuid::Uuid;

use super::payload_rows::{Found as Stored, Row};
use super::payloads::hash_in;
use super::{Plane, PlaneError, SystemEvent};
use crate::keys::KeyError;
use crate::ledger::payload_keys::VIEWED;
use crate::ledger::segments::Found;
use crate::model::OrgName;
use crate::payload::{Digest, Direction, Envelope, Epoch, KeyPair, MAX_CAP, Plaintext, Record, Refusal};
use crate::state::Org;

const VIEW_FAILED: &str = "payload.view_failed";
const CONFLICT: &str = "payload.conflict";
/// Entries that are looked through for the one that was just made.
const LOOK_BACK: u64 = 4_096;
/// Conflicting records that one view reports.
const TOLD_CONFLICTS: usize = 16;
/// Locks that actors share, so that one whose org hangs holds up few others.
const LOCKS: usize = 64;

/// From the check of how much an actor has viewed to the entry of the next view.
#[derive(Debug)]
pub(super) struct Viewing {
    locks: Vec<Mutex<()>>,
    hasher: RandomState,
}

impl Default for Viewing {
    fn default() -> Self {
        Self { locks: (0..LOCKS).map(|_| Mutex::default()).collect(), hasher: RandomState::new() }
    }
}

impl Viewing {
    /// Waits for an actor's other views to be entered.
    pub(super) async fn turn(&self, org: &OrgName, actor: &str) -> Option<MutexGuard<'_, ()>> {
        let hash = self.hasher.hash_one((org.as_str(), actor));
        let lock = self.locks.get(usize::try_from(hash % LOCKS as u64).ok()?)?;
        Some(lock.lock().await)
    }
}

/// Who wants to see, and why.
#[derive(Debug, Clone)]
pub struct Viewer {
    /// As the ledger knows them.
    pub actor: String,
    /// Why, in their own words.
    pub reason: String,
    /// The request.
    pub request_id: Option<String>,
}

/// One direction, opened.
#[derive(Debug)]
#[expect(missing_docs, reason = "as in the header")]
pub struct Opened {
    pub content_type: String,
    pub content: Plaintext,
    pub truncated: bool,
    pub redactions: Vec<String>,
}

/// What was captured of a call, opened.
#[derive(Debug)]
pub struct Viewed {
    /// The request.
    pub request: Option<Opened>,
    /// The response.
    pub response: Option<Opened>,
    /// The entry `payload.viewed`.
    pub ledger_seq: Option<u64>,
}

/// Why nothing is seen.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// There is no payload of the call.
    #[error("no payload of this call was captured")]
    NotCaptured,
    /// Its key is destroyed.
    #[error("the key of this payload is destroyed: nobody can read it any more")]
    KeyDestroyed,
    /// The control plane alone cannot open it.
    #[error("it is sealed for the tenant too; export it, and open it with the tenant's key (`mcpg payload open`)")]
    SealedForTenant,
    /// The actor has viewed as much as may be.
    #[error("you have viewed as many payloads as one may: 30 a minute, 500 a day")]
    TooMany,
    /// What is stored does not open.
    #[error("what is stored of this payload does not open: {0}")]
    Damaged(String),
    /// The plane.
    #[error(transparent)]
    Plane(#[from] PlaneError),
}

impl Plane {
    /// Opens what was captured of a call, for a person who may view it.
    ///
    /// # Errors
    /// See [`ViewError`].
    pub async fn view_payload(&self, name: &OrgName, call: Uuid, viewer: &Viewer) -> Result<Viewed, ViewError> {
        let org = self.caught_up(name).await?;
        let rows = self.rows_of(&org, call).await?.ok_or(ViewError::NotCaptured)?;
        let mut opening = Vec::with_capacity(rows.len());
        for row in rows {
            let key = match self.epoch_key(&org, row.found.epoch).await {
                Ok(key) => key,
                Err(e) => {
                    if let ViewError::Plane(PlaneError::KeyServiceUnavailable(_)) = &e {
                        self.failed(name, call, viewer, "key_service_unavailable").await?;
                    }
                    return Err(e);
                }
            };
            let envelope = Envelope::parse(row.envelope.clone());
            if envelope.as_ref().is_ok_and(|envelope| envelope.tenant_key().is_some()) {
                return Err(ViewError::SealedForTenant);
            }
            opening.push((row, key));
        }
        let turn = self.viewing.turn(name, &viewer.actor).await;
        // What the log says now, after the key service answered.
        let org = self.caught_up(name).await?;
        {
            let ledger = org.ledger.read();
            let keys = &ledger.status().payload_keys;
            if opening.iter().any(|(row, _)| !keys.is_living(row.found.epoch)) {
                return Err(ViewError::KeyDestroyed);
            }
            if keys.is_exhausted(&viewer.actor, self.node.now()) {
                return Err(ViewError::TooMany);
            }
        }
        let id = self.node.random.uuid();
        let directions: Vec<_> = opening.iter().map(|(row, _)| row.found.direction.as_str()).collect();
        let event = self.about(viewer, VIEWED, call).id(id).detail(json!({ "directions": directions }));
        self.record(name, vec![event]).await?;
        drop(turn);
        if org.ledger.read().status().payload_keys.is_exceeded(&viewer.actor) {
            self.failed(name, call, viewer, "too_many_views").await?;
            return Err(ViewError::TooMany);
        }
        let mut viewed = Viewed { request: None, response: None, ledger_seq: entry_of(&org, id) };
        for (row, key) in opening {
            let direction = row.found.direction;
            let opened = match self.open_row(&org, call, row, &key).await {
                Ok(opened) => opened,
                Err(ViewError::Damaged(why)) => {
                    self.failed(name, call, viewer, &why).await?;
                    return Err(ViewError::Damaged(why));
                }
                Err(e) => return Err(e),
            };
            match direction {
                Direction::Request => viewed.request = Some(opened),
                Direction::Response => viewed.response = Some(opened),
            }
        }
        Ok(viewed)
    }

    fn about(&self, viewer: &Viewer, action: &str, call: Uuid) -> SystemEvent {
        let id = call.hyphenated().to_string();
        let event = SystemEvent::new(&viewer.actor, action).target(&id).call(&id).reason(&viewer.reason);
        match &viewer.request_id {
            Some(request) => event.request(request),
            None => event,
        }
    }

    async fn failed(&self, name: &OrgName, call: Uuid, viewer: &Viewer, why: &str) -> Result<(), PlaneError> {
        let event = self.about(viewer, VIEW_FAILED, call).detail(json!({ "why": why }));
        self.record(name, vec![event]).await
    }

    /// Of several records of one direction the one with the lowest number counts; the others are reported, once.
    pub(super) async fn first_of_each(
        &self,
        org: &Org,
        call: Uuid,
        mut rows: Vec<Stored>,
    ) -> Result<Vec<Stored>, PlaneError> {
        rows.sort_by_key(|row| (row.direction, row.ledger_seq));
        let (mut first, mut told): (Vec<Stored>, usize) = (Vec::new(), 0);
        for row in rows {
            match first.last().filter(|before| before.direction == row.direction) {
                None => first.push(row),
                Some(before) if before.hash == row.hash => {}
                Some(before) if told < TOLD_CONFLICTS => {
                    let id = call.hyphenated().to_string();
                    let detail = json!({
                        "direction": row.direction,
                        "counts": before.ledger_seq.to_string(),
                        "other": row.ledger_seq.to_string(),
                        "record": row.hash,
                    });
                    let event = SystemEvent::new(self.actor(), CONFLICT).target(&id).call(&id).detail(detail);
                    self.record_once(&org.name, vec![event], &format!("conflict/{id}/{}", row.ledger_seq)).await?;
                    told += 1;
                }
                Some(_) => {}
            }
        }
        Ok(first)
    }

    pub(super) async fn epoch_key(&self, org: &Org, epoch: Epoch) -> Result<KeyPair, ViewError> {
        let known = org.ledger.read().status().payload_keys.epochs.get(&epoch).cloned();
        let known = known.filter(|key| !key.destroying).ok_or(ViewError::KeyDestroyed)?;
        match self.key_service()?.unwrap(&org.name, epoch, &known.key_id).await {
            Ok(key) => Ok(key),
            Err(e @ (KeyError::Foreign(..) | KeyError::Absent(..))) => Err(ViewError::Damaged(e.to_string())),
            Err(e) if e.is_passing() => Err(PlaneError::from(e).into()),
            Err(e) => Err(ViewError::Damaged(e.to_string())),
        }
    }

    /// Opens a record, and holds it against its row, its entry and what was asked for.
    async fn open_row(&self, org: &Org, call: Uuid, row: Row, key: &KeyPair) -> Result<Opened, ViewError> {
        let refused = |refusal: Refusal| ViewError::Damaged(refusal.to_string());
        let damaged = |why: &str| ViewError::Damaged(why.to_owned());
        let (envelope, record) =
            (Envelope::parse(row.envelope).map_err(refused)?, Record::parse(row.record).map_err(refused)?);
        let header = record.header();
        let is_its = header.org == org.name
            && header.invocation_id == call
            && header.direction == row.found.direction
            && header.epoch == row.found.epoch;
        if !is_its {
            return Err(damaged("header"));
        }
        if Digest::of(record.bytes()).to_string() != row.found.hash {
            return Err(damaged("record_hash"));
        }
        let detail = self.entry_detail(org, row.found.ledger_seq).await?;
        let detail = detail.and_then(|detail| serde_json::from_str::<Value>(&detail).ok());
        // An entry that was pruned is vouched for by the ledger's tree alone.
        let is_kept = row.found.ledger_seq >= org.ledger.read().status().pruned.map_or(0, |pruned| pruned.first_kept);
        let told = detail.as_ref().and_then(|detail| hash_in(detail, row.found.direction));
        if is_kept && told != Some(row.found.hash.as_str()) {
            return Err(damaged("ledger_entry"));
        }
        let share = envelope.share(0, key).map_err(refused)?;
        let content_key = envelope.content_key(&[&share]).map_err(refused)?;
        let content = record.open(&envelope, &content_key, MAX_CAP).map_err(refused)?;
        let header = record.header().clone();
        Ok(Opened {
            content_type: header.content_type,
            content,
            truncated: header.truncated_from.is_some(),
            redactions: header.redactions,
        })
    }
}

/// The number of an entry that was just made, by its event's id.
fn entry_of(org: &Org, id: Uuid) -> Option<u64> {
    let (ledger, id) = (org.ledger.read(), id.hyphenated().to_string());
    let size = ledger.size();
    let mut seq = size;
    while seq > size.saturating_sub(LOOK_BACK) {
        seq -= 1;
        let Some(Found::Live(batch)) = ledger.find(seq) else { return None };
        let ids = batch.column_by_name("event_id")?.as_string_opt::<i32>()?;
        let seqs = batch.column_by_name("seq")?.as_primitive_opt::<Int64Type>()?;
        if let Some(row) = (0..batch.num_rows()).find(|row| ids.value(*row) == id) {
            return u64::try_from(seqs.value(row)).ok();
        }
        // All of this batch was looked at.
        seq = seqs.values().first().and_then(|first| u64::try_from(*first).ok())?;
    }
    None
}
