//! Seeing a captured payload. In this order, so that nobody sees one who is not on the ledger before:
//!
//! 1. find the rows, by date and bloom filter; 2. unwrap the epoch's key; 3. the state says that it is not being destroyed;
//! 4. `payload.viewed`, **durable**; 5. decrypt, and hold everything against what the ledger and the rows say; 6. answer, once.
//!
//! If decrypting fails after the entry, `payload.view_failed` says so, with the reason. Who may view is for the API to say.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::kernels::cmp::eq;
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::{DateTime, NaiveDate};
use futures::TryStreamExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowPredicateFn, RowFilter};
use serde_json::{Value, json};
use uuid::Uuid;

use super::payloads::hash_in;
use super::{Plane, PlaneError, SystemEvent};
use crate::flush::payloads::Place;
use crate::keys::KeyError;
use crate::ledger::payload_keys::VIEWED;
use crate::ledger::segments::Found;
use crate::model::OrgName;
use crate::payload::{Digest, Direction, Envelope, Epoch, KeyPair, MAX_CAP, Plaintext, Record, Refusal};
use crate::state::Org;
use crate::storage::table::DataFile;
use crate::storage::{StorageError, parquet as parquet_files};

const VIEW_FAILED: &str = "payload.view_failed";
const CONFLICT: &str = "payload.conflict";
const EXPORTED: &str = "payload.exported";
/// Entries that are looked through for the one that was just made.
const LOOK_BACK: u64 = 4_096;
/// Days before and after an id's own time in which its call is looked for first.
const NEAR: i64 = 1;
/// The most calls of one export.
pub const MOST_EXPORTED: usize = 10_000;

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

/// One stored record.
#[derive(Debug, Clone)]
struct Row {
    direction: Direction,
    hash: String,
    epoch: Epoch,
    ledger_seq: u64,
    envelope: Bytes,
    record: Bytes,
}

/// What is exported of one call: as it is stored, not opened.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "as in schemas/payload.md")]
pub struct Exported {
    pub invocation_id: String,
    pub direction: Direction,
    pub envelope: Bytes,
    pub record: Bytes,
    pub ledger_seq: u64,
    pub share: Option<crate::payload::Secret>,
}

fn text(batch: &RecordBatch, column: &str, row: usize) -> Option<String> {
    let column = batch.column_by_name(column)?;
    if let Some(texts) = column.as_string_opt::<i32>() {
        return texts.is_valid(row).then(|| texts.value(row).to_owned());
    }
    let texts = column.as_string_view_opt()?;
    texts.is_valid(row).then(|| texts.value(row).to_owned())
}

fn bytes(batch: &RecordBatch, column: &str, row: usize) -> Option<Bytes> {
    let column = batch.column_by_name(column)?;
    if let Some(all) = column.as_binary_opt::<i32>() {
        return Some(Bytes::copy_from_slice(all.value(row)));
    }
    column.as_binary_view_opt().map(|all| Bytes::copy_from_slice(all.value(row)))
}

fn row(batch: &RecordBatch, row: usize, (envelope, record): (Bytes, Bytes)) -> Option<Row> {
    let seq = batch.column_by_name("ledger_seq")?.as_primitive_opt::<Int64Type>()?.value(row);
    Some(Row {
        direction: Direction::of(&text(batch, "direction", row)?).ok()?,
        hash: text(batch, "record_hash", row)?,
        epoch: text(batch, "epoch", row)?.parse().ok()?,
        ledger_seq: u64::try_from(seq).ok()?,
        envelope,
        record,
    })
}

/// The date that an id of version 7 begins with; none of another.
fn date_of(id: Uuid) -> Option<NaiveDate> {
    let (seconds, _) = id.get_timestamp().filter(|_| id.get_version_num() == 7)?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0).map(|time| time.date_naive())
}

fn day(date: NaiveDate) -> i64 {
    (date - NaiveDate::default()).num_days()
}

impl Plane {
    /// Opens what was captured of a call, for somebody who may see it.
    ///
    /// # Errors
    /// See [`ViewError`].
    pub async fn view_payload(&self, name: &OrgName, call: Uuid, viewer: &Viewer) -> Result<Viewed, ViewError> {
        let org = self.caught_up(name).await?;
        let rows = self.find_rows(&org, call).await?;
        if rows.is_empty() {
            return Err(ViewError::NotCaptured);
        }
        let rows = self.first_of_each(&org, call, rows).await?;
        let mut opening = Vec::with_capacity(rows.len());
        for row in rows {
            let key = match self.epoch_key(&org, row.epoch).await {
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
        // What the log says now, after the key service answered.
        let org = self.caught_up(name).await?;
        {
            let ledger = org.ledger.read();
            let keys = &ledger.status().payload_keys;
            if opening.iter().any(|(row, _)| keys.epochs.get(&row.epoch).is_none_or(|key| key.destroying)) {
                return Err(ViewError::KeyDestroyed);
            }
            if keys.is_exhausted(&viewer.actor, self.node.now()) {
                return Err(ViewError::TooMany);
            }
        }
        let id = self.node.random.uuid();
        let directions: Vec<_> = opening.iter().map(|(row, _)| row.direction.as_str()).collect();
        let event = self.about(viewer, VIEWED, call).id(id).detail(json!({ "directions": directions }));
        self.record(name, vec![event]).await?;
        let mut viewed = Viewed { request: None, response: None, ledger_seq: entry_of(&org, id) };
        for (row, key) in opening {
            let direction = row.direction;
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

    /// Of several records of one direction the one with the lowest number counts; the others are told of, once.
    async fn first_of_each(&self, org: &Org, call: Uuid, mut rows: Vec<Row>) -> Result<Vec<Row>, PlaneError> {
        rows.sort_by_key(|row| (row.direction, row.ledger_seq));
        let mut first: Vec<Row> = Vec::new();
        for row in rows {
            match first.last().filter(|before| before.direction == row.direction) {
                None => first.push(row),
                Some(before) if before.hash == row.hash => {}
                Some(before) => {
                    let id = call.hyphenated().to_string();
                    let detail = json!({
                        "direction": row.direction,
                        "counts": before.ledger_seq.to_string(),
                        "other": row.ledger_seq.to_string(),
                        "record": row.hash,
                    });
                    let event = SystemEvent::new(self.actor(), CONFLICT).target(&id).call(&id).detail(detail);
                    self.record_once(&org.name, vec![event], &format!("conflict/{id}/{}", row.ledger_seq)).await?;
                }
            }
        }
        Ok(first)
    }

    async fn epoch_key(&self, org: &Org, epoch: Epoch) -> Result<KeyPair, ViewError> {
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
            && header.direction == row.direction
            && header.epoch == row.epoch;
        if !is_its {
            return Err(damaged("header"));
        }
        if Digest::of(record.bytes()).to_string() != row.hash {
            return Err(damaged("record_hash"));
        }
        let detail = self.entry_detail(org, row.ledger_seq).await?;
        let detail = detail.and_then(|detail| serde_json::from_str::<Value>(&detail).ok());
        // An entry that was pruned is vouched for by the ledger's tree alone.
        let is_kept = row.ledger_seq >= org.ledger.read().status().pruned.map_or(0, |pruned| pruned.first_kept);
        if is_kept && detail.as_ref().and_then(|detail| hash_in(detail, row.direction)) != Some(row.hash.as_str()) {
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

    async fn find_rows(&self, org: &Org, call: Uuid) -> Result<Vec<Row>, PlaneError> {
        let id = call.hyphenated().to_string();
        let (live, files) = {
            let state = org.state.read();
            let table = &state.payloads.table;
            (state.payloads.live.after(table.position), Arc::clone(&table.files))
        };
        let mut rows = Vec::new();
        let mut is_gone = false;
        for batch in &live {
            let Some(ids) = batch.column_by_name("invocation_id").and_then(|ids| ids.as_string_opt::<i32>()) else {
                continue;
            };
            for at in (0..batch.num_rows()).filter(|at| ids.value(*at) == id) {
                let damaged =
                    || StorageError::damaged(crate::flush::payloads::body_folder(&org.name), "a row names no bytes");
                let place = Place::of(batch, at).ok_or_else(damaged)?;
                let path = place.path(&org.name)?;
                match self.node.store.get(&path).await? {
                    Some(body) => rows.push(row(batch, at, place.cut(&path, &body)?).ok_or_else(damaged)?),
                    None => is_gone = true,
                }
            }
        }
        let files = match is_gone {
            false => files,
            // Another node has put it into the table meanwhile.
            true => {
                let now = org.tables.lock().await.payloads.refresh().await?;
                let files = Arc::clone(&now.files);
                let mut state = org.state.write();
                if now.position >= state.payloads.table.position {
                    state.payloads.table = now;
                }
                files
            }
        };
        let may_hold = |file: &&DataFile| {
            file.id_range.as_ref().is_none_or(|(least, greatest)| **least <= *id && *id <= **greatest)
        };
        let candidates: Vec<&DataFile> = files.iter().filter(may_hold).collect();
        let near = |file: &&DataFile| date_of(call).is_none_or(|date| (i64::from(file.date) - day(date)).abs() <= NEAR);
        let (near, far): (Vec<_>, Vec<_>) = candidates.into_iter().partition(near);
        for group in [near, far] {
            for file in group {
                rows.extend(self.rows_in(file, &id).await?);
            }
            if !rows.is_empty() {
                break;
            }
        }
        Ok(rows)
    }

    /// The rows of a call in a file: of the row groups whose bloom filter lets it in.
    async fn rows_in(&self, file: &DataFile, id: &str) -> Result<Vec<Row>, StorageError> {
        let failed = |e: parquet::errors::ParquetError| StorageError::read(&file.path, e);
        let mut builder =
            parquet_files::open(self.node.store.objects(), &file.path, file.size).await.map_err(failed)?;
        let columns = builder.parquet_schema().columns();
        let Some(column) = columns.iter().position(|column| column.path().string() == "invocation_id") else {
            return Err(StorageError::damaged(&file.path, "it has no column invocation_id"));
        };
        let mut groups = Vec::new();
        for group in 0..builder.metadata().num_row_groups() {
            let bloom = builder.get_row_group_column_bloom_filter(group, column).await.map_err(failed)?;
            if bloom.is_none_or(|bloom| bloom.check(&id)) {
                groups.push(group);
            }
        }
        if groups.is_empty() {
            return Ok(Vec::new());
        }
        let mask = ProjectionMask::leaves(builder.parquet_schema(), [column]);
        let sought = arrow::array::StringArray::new_scalar(id);
        let is_its = ArrowPredicateFn::new(mask, move |batch: RecordBatch| -> Result<BooleanArray, _> {
            let ids = arrow::compute::cast(batch.column(0), &arrow::datatypes::DataType::Utf8)?;
            eq(&ids, &sought)
        });
        let builder = builder.with_row_groups(groups).with_row_filter(RowFilter::new(vec![Box::new(is_its)]));
        let batches: Vec<RecordBatch> = builder.build().map_err(failed)?.try_collect().await.map_err(failed)?;
        let mut rows = Vec::new();
        for batch in &batches {
            for at in 0..batch.num_rows() {
                let both = bytes(batch, "envelope", at).zip(bytes(batch, "record", at));
                let found = both.and_then(|both| row(batch, at, both));
                rows.push(found.ok_or_else(|| StorageError::damaged(&file.path, "a row of it is no payload"))?);
            }
        }
        Ok(rows)
    }

    /// How many records of an epoch the table holds.
    pub(super) async fn sealed_records(&self, org: &Org, epoch: Epoch) -> Result<u64, StorageError> {
        let files = Arc::clone(&org.state.read().payloads.table.files);
        let mut records = 0;
        for file in files.iter().filter(|file| i64::from(file.date) == day(epoch.date())) {
            let failed = |e: parquet::errors::ParquetError| StorageError::read(&file.path, e);
            let builder =
                parquet_files::open(self.node.store.objects(), &file.path, file.size).await.map_err(failed)?;
            let mask = ProjectionMask::columns(builder.parquet_schema(), ["epoch"]);
            let batches: Vec<RecordBatch> =
                builder.with_projection(mask).build().map_err(failed)?.try_collect().await.map_err(failed)?;
            let of = epoch.to_string();
            for batch in &batches {
                records +=
                    (0..batch.num_rows()).filter(|row| text(batch, "epoch", *row).as_deref() == Some(&of)).count();
            }
        }
        Ok(records as u64)
    }

    /// What was captured of calls that began in a time, as it is stored, with the control plane's shares of the content keys where a tenant's
    /// are needed too, and where they are not. `payload.exported` is durable before anything is unwrapped.
    ///
    /// # Errors
    /// See [`ViewError`].
    pub async fn export_payloads(
        &self,
        name: &OrgName,
        from: DateTime<chrono::Utc>,
        to: DateTime<chrono::Utc>,
        viewer: &Viewer,
    ) -> Result<Vec<Exported>, ViewError> {
        let org = self.caught_up(name).await?;
        // What is only in the log yet comes to the table first.
        crate::flush::flush(&self.node, &org).await?;
        let files = Arc::clone(&org.state.read().payloads.table.files);
        let (first, last) = (day(from.date_naive()), day(to.date_naive()));
        let mut found: Vec<Exported> = Vec::new();
        for file in files.iter().filter(|file| (first..=last).contains(&i64::from(file.date))) {
            let failed = |e: parquet::errors::ParquetError| StorageError::read(&file.path, e);
            let damaged = || PlaneError::from(StorageError::damaged(&file.path, "a row of it is no payload"));
            let builder = parquet_files::open(self.node.store.objects(), &file.path, file.size)
                .await
                .map_err(failed)
                .map_err(PlaneError::from)?;
            let mut batches = builder.build().map_err(failed).map_err(PlaneError::from)?;
            while let Some(batch) = batches.try_next().await.map_err(failed).map_err(PlaneError::from)? {
                for at in 0..batch.num_rows() {
                    let both = bytes(&batch, "envelope", at).zip(bytes(&batch, "record", at));
                    let one = both.and_then(|both| row(&batch, at, both)).ok_or_else(damaged)?;
                    let header = Record::parse(one.record.clone()).map_err(|_| damaged())?;
                    if !(from..to).contains(&header.header().started_at) {
                        continue;
                    }
                    found.push(Exported {
                        invocation_id: header.header().invocation_id.hyphenated().to_string(),
                        direction: one.direction,
                        envelope: one.envelope,
                        record: one.record,
                        ledger_seq: one.ledger_seq,
                        share: None,
                    });
                    if found.len() > MOST_EXPORTED {
                        let reason = format!("more than {MOST_EXPORTED} records; export a shorter time");
                        return Err(PlaneError::PayloadRefused { code: "too_many_records", reason }.into());
                    }
                }
            }
        }
        if org.ledger.read().status().payload_keys.is_exhausted(&viewer.actor, self.node.now()) {
            return Err(ViewError::TooMany);
        }
        let range = json!({ "from": from.to_rfc3339(), "to": to.to_rfc3339(), "records": found.len() });
        let event =
            SystemEvent::new(&viewer.actor, EXPORTED).target(name.as_str()).reason(&viewer.reason).detail(range);
        let event = match &viewer.request_id {
            Some(request) => event.request(request),
            None => event,
        };
        self.record(name, vec![event]).await?;
        for one in &mut found {
            let envelope = Envelope::parse(one.envelope.clone()).map_err(|e| ViewError::Damaged(e.to_string()))?;
            match self.epoch_key(&org, envelope.epoch()).await {
                Ok(key) => one.share = envelope.share(0, &key).ok(),
                // What is destroyed is exported as it is, and opens nowhere.
                Err(ViewError::KeyDestroyed) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(found)
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
