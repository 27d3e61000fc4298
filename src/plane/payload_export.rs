//! Exporting captured payloads: a view of many, as they are stored, with the control plane's shares of their content
//! keys.
//!
//! `payload.exported` is durable before anything is unwrapped, and counts as a view of its actor's. What is gathered is
//! bounded by records and by bytes. Who may export is for the API to say.

use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use parquet::errors::ParquetError;
use serde_json::json;

use super::payload_rows::{both, day, ledger_seq};
use super::payload_view::{ViewError, Viewer};
use super::{Plane, PlaneError, SystemEvent};
use crate::ledger::payload_keys::EXPORTED;
use crate::model::OrgName;
use crate::payload::{Direction, Envelope, Record, Secret};
use crate::state::Org;
use crate::storage::table::DataFile;
use crate::storage::{StorageError, parquet as parquet_files};

/// The most records of one export.
const MOST_RECORDS: usize = 10_000;
/// The most bytes of one export.
pub const MOST_BYTES: usize = 128 << 20;
/// Rows that are read at once: a record may be of 16 MiB.
const ROWS_AT_ONCE: usize = 16;

/// What is exported of one call: as it is stored, not opened.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "as in schemas/payload.md")]
pub struct Exported {
    pub invocation_id: String,
    pub direction: Direction,
    pub envelope: Bytes,
    pub record: Bytes,
    pub ledger_seq: u64,
    pub share: Option<Secret>,
}

fn too_many(what: &str) -> ViewError {
    let reason = format!("more than {what}; export a shorter time");
    PlaneError::PayloadRefused { code: "too_many_records", reason }.into()
}

impl Plane {
    /// What was captured of calls that began in a time, as it is stored, with the control plane's shares of the content
    /// keys where a tenant's are needed too, and where they are not.
    ///
    /// # Errors
    /// See [`ViewError`].
    pub async fn export_payloads(
        &self,
        name: &OrgName,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        viewer: &Viewer,
    ) -> Result<Vec<Exported>, ViewError> {
        let org = self.caught_up(name).await?;
        let is_exhausted =
            |org: &Org| org.ledger.read().status().payload_keys.is_exhausted(&viewer.actor, self.node.now());
        if is_exhausted(&org) {
            return Err(ViewError::TooMany);
        }
        let mut found = self.gather(&org, from, to).await?;
        let turn = self.viewing.turn(name, &viewer.actor).await;
        let org = self.caught_up(name).await?;
        if is_exhausted(&org) {
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
        drop(turn);
        if org.ledger.read().status().payload_keys.is_exceeded(&viewer.actor) {
            return Err(ViewError::TooMany);
        }
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

    async fn gather(&self, org: &Org, from: DateTime<Utc>, to: DateTime<Utc>) -> Result<Vec<Exported>, ViewError> {
        // What is only in the log yet comes to the table first.
        crate::flush::flush(&self.node, org).await?;
        let files = Arc::clone(&org.state.read().payloads.table.files);
        let (first, last) = (day(from.date_naive()), day(to.date_naive()));
        let (mut found, mut size) = (Vec::new(), 0_usize);
        for file in files.iter().filter(|file| (first..=last).contains(&i64::from(file.date))) {
            self.gather_from(file, from, to, &mut found, &mut size).await?;
        }
        Ok(found)
    }

    async fn gather_from(
        &self,
        file: &DataFile,
        from: DateTime<Utc>,
        to: DateTime<Utc>,
        found: &mut Vec<Exported>,
        size: &mut usize,
    ) -> Result<(), ViewError> {
        let failed = |e: ParquetError| PlaneError::from(StorageError::read(&file.path, e));
        let damaged = || PlaneError::from(StorageError::damaged(&file.path, "a row of it is no payload"));
        let builder = parquet_files::open(self.node.store.objects(), &file.path, file.size).await.map_err(failed)?;
        let mut batches = builder.with_batch_size(ROWS_AT_ONCE).build().map_err(failed)?;
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            for at in 0..batch.num_rows() {
                let (envelope, record) = both(&batch, at).ok_or_else(damaged)?;
                let ledger_seq = ledger_seq(&batch, at).ok_or_else(damaged)?;
                let parsed = Record::parse(record.clone()).map_err(|_| damaged())?;
                let header = parsed.header();
                if !(from..to).contains(&header.started_at) {
                    continue;
                }
                *size += envelope.len() + record.len();
                if found.len() == MOST_RECORDS {
                    return Err(too_many(&format!("{MOST_RECORDS} records")));
                }
                if *size > MOST_BYTES {
                    return Err(too_many(&format!("{} MiB", MOST_BYTES >> 20)));
                }
                let (invocation_id, direction) = (header.invocation_id.hyphenated().to_string(), header.direction);
                found.push(Exported { invocation_id, direction, envelope, record, ledger_seq, share: None });
            }
        }
        Ok(())
    }
}
