//! Finding the stored records of a call, by date and bloom filter, and reading those that count.
//!
//! What is found at first is small: which records there are, and where they lie. Only then are the first of each
//! direction read whole, so that a view takes the same memory however many records an emitter has stored of one call.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, StringArray};
use arrow::compute::kernels::cmp::eq;
use arrow::compute::{and, cast};
use arrow::datatypes::{DataType, Int64Type};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::{DateTime, NaiveDate};
use futures::TryStreamExt;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowPredicateFn, RowFilter};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use uuid::Uuid;

use super::{Plane, PlaneError};
use crate::flush::payloads::{Place, body_folder};
use crate::payload::{Direction, Epoch};
use crate::state::Org;
use crate::storage::table::DataFile;
use crate::storage::{StorageError, parquet as parquet_files};

/// Days before and after an id's own time in which its call is looked for first.
const NEAR: i64 = 1;
/// How often rows are looked for anew whose bytes another node moved into the table meanwhile.
const LOOKS: usize = 4;

/// A stored record, as far as its row tells.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) direction: Direction,
    pub(super) hash: String,
    pub(super) epoch: Epoch,
    pub(super) ledger_seq: u64,
    at: At,
}

/// Where its bytes lie.
#[derive(Debug, Clone)]
enum At {
    /// In an object that the log names.
    Body(Place),
    /// In a file of the table.
    File(DataFile),
}

/// A stored record with its bytes.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) found: Found,
    pub(super) envelope: Bytes,
    pub(super) record: Bytes,
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

/// Envelope and record of a row of the table.
pub(super) fn both(batch: &RecordBatch, row: usize) -> Option<(Bytes, Bytes)> {
    bytes(batch, "envelope", row).zip(bytes(batch, "record", row))
}

pub(super) fn ledger_seq(batch: &RecordBatch, row: usize) -> Option<u64> {
    let seqs = batch.column_by_name("ledger_seq")?.as_primitive_opt::<Int64Type>()?;
    u64::try_from(seqs.value(row)).ok()
}

fn found(batch: &RecordBatch, row: usize, at: At) -> Option<Found> {
    Some(Found {
        direction: Direction::of(&text(batch, "direction", row)?).ok()?,
        hash: text(batch, "record_hash", row)?,
        epoch: text(batch, "epoch", row)?.parse().ok()?,
        ledger_seq: ledger_seq(batch, row)?,
        at,
    })
}

/// The date that an id of version 7 begins with; none of another.
fn date_of(id: Uuid) -> Option<NaiveDate> {
    let (seconds, _) = id.get_timestamp().filter(|_| id.get_version_num() == 7)?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, 0).map(|time| time.date_naive())
}

/// A date as files and rows have it: days since the Unix epoch.
pub(super) fn day(date: NaiveDate) -> i64 {
    (date - NaiveDate::default()).num_days()
}

fn is_text(batch: &RecordBatch, column: usize, text: &str) -> Result<BooleanArray, ArrowError> {
    let texts: ArrayRef = cast(batch.column(column), &DataType::Utf8)?;
    eq(&texts, &StringArray::new_scalar(text))
}

impl Plane {
    /// The records of a call that count, with their bytes. None when nothing is found.
    ///
    /// # Errors
    /// See [`PlaneError`].
    pub(super) async fn rows_of(&self, org: &Org, call: Uuid) -> Result<Option<Vec<Row>>, PlaneError> {
        let id = call.hyphenated().to_string();
        for _ in 0..LOOKS {
            let found = self.find(org, call, &id).await?;
            if found.is_empty() {
                return Ok(None);
            }
            let counting = self.first_of_each(org, call, found).await?;
            let (wanted, mut rows) = (counting.len(), Vec::new());
            for found in counting {
                rows.extend(self.read(org, &id, found).await?);
            }
            if rows.len() == wanted {
                return Ok(Some(rows));
            }
            // Another node has put it into the table meanwhile.
            let now = org.tables.lock().await.payloads.refresh().await?;
            let mut state = org.state.write();
            if now.position >= state.payloads.table.position {
                state.payloads.table = now;
            }
        }
        Err(PlaneError::unavailable("what is stored of the call is being moved faster than it can be read"))
    }

    async fn find(&self, org: &Org, call: Uuid, id: &str) -> Result<Vec<Found>, PlaneError> {
        let (live, files) = {
            let state = org.state.read();
            let table = &state.payloads.table;
            (state.payloads.live.after(table.position), Arc::clone(&table.files))
        };
        let mut rows = Vec::new();
        for batch in &live {
            let Some(ids) = batch.column_by_name("invocation_id").and_then(|ids| ids.as_string_opt::<i32>()) else {
                continue;
            };
            for at in (0..batch.num_rows()).filter(|at| ids.value(*at) == id) {
                let damaged = || StorageError::damaged(body_folder(&org.name), "a row names no bytes");
                let place = Place::of(batch, at).ok_or_else(damaged)?;
                rows.push(found(batch, at, At::Body(place)).ok_or_else(damaged)?);
            }
        }
        let may_hold = |file: &&DataFile| {
            file.id_range.as_ref().is_none_or(|(least, greatest)| **least <= *id && *id <= **greatest)
        };
        let candidates: Vec<&DataFile> = files.iter().filter(may_hold).collect();
        let near = |file: &&DataFile| date_of(call).is_none_or(|date| (i64::from(file.date) - day(date)).abs() <= NEAR);
        let (near, far): (Vec<_>, Vec<_>) = candidates.into_iter().partition(near);
        for group in [near, far] {
            for file in group {
                rows.extend(self.find_in(file, id).await?);
            }
            if !rows.is_empty() {
                break;
            }
        }
        Ok(rows)
    }

    /// The rows of a call in a file, without their bytes.
    async fn find_in(&self, file: &DataFile, id: &str) -> Result<Vec<Found>, StorageError> {
        let failed = |e: ParquetError| StorageError::read(&file.path, e);
        let builder = parquet_files::open(self.node.store.objects(), &file.path, file.size).await.map_err(failed)?;
        let Some(builder) = groups_of(builder, file, id).await? else { return Ok(Vec::new()) };
        let schema = builder.parquet_schema();
        let shown = ProjectionMask::columns(schema, ["direction", "record_hash", "epoch", "ledger_seq"]);
        let ids = ProjectionMask::columns(schema, ["invocation_id"]);
        let sought = id.to_owned();
        let is_its = ArrowPredicateFn::new(ids, move |batch: RecordBatch| is_text(&batch, 0, &sought));
        let builder = builder.with_projection(shown).with_row_filter(RowFilter::new(vec![Box::new(is_its)]));
        let batches: Vec<RecordBatch> = builder.build().map_err(failed)?.try_collect().await.map_err(failed)?;
        let rows = batches.iter().flat_map(|batch| (0..batch.num_rows()).map(move |at| (batch, at)));
        let damaged = || StorageError::damaged(&file.path, "a row of it is no payload");
        rows.map(|(batch, at)| found(batch, at, At::File(file.clone())).ok_or_else(damaged)).collect()
    }

    /// A record with its bytes; none where they are not there any more.
    async fn read(&self, org: &Org, id: &str, found: Found) -> Result<Option<Row>, PlaneError> {
        let read = match &found.at {
            At::Body(place) => {
                let path = place.path(&org.name)?;
                let Some(body) = self.node.store.get(&path).await? else { return Ok(None) };
                let (envelope, record) = place.cut(&path, &body)?;
                // The body holds all records of a batch: it is not kept for the sake of one.
                (Bytes::copy_from_slice(&envelope), Bytes::copy_from_slice(&record))
            }
            At::File(file) => {
                let read = self.read_in(file, id, &found.hash).await?;
                read.ok_or_else(|| StorageError::damaged(&file.path, "a row that was found in it is gone"))?
            }
        };
        let (envelope, record) = read;
        Ok(Some(Row { found, envelope, record }))
    }

    /// Envelope and record of the row of a call that says this hash.
    async fn read_in(&self, file: &DataFile, id: &str, hash: &str) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        let failed = |e: ParquetError| StorageError::read(&file.path, e);
        let builder = parquet_files::open(self.node.store.objects(), &file.path, file.size).await.map_err(failed)?;
        let Some(builder) = groups_of(builder, file, id).await? else { return Ok(None) };
        let schema = builder.parquet_schema();
        let shown = ProjectionMask::columns(schema, ["envelope", "record"]);
        let asked = ProjectionMask::columns(schema, ["invocation_id", "record_hash"]);
        let (id, hash) = (id.to_owned(), hash.to_owned());
        let is_it = ArrowPredicateFn::new(asked, move |batch: RecordBatch| {
            let place = |name: &str| batch.schema_ref().index_of(name);
            and(&is_text(&batch, place("invocation_id")?, &id)?, &is_text(&batch, place("record_hash")?, &hash)?)
        });
        let builder = builder.with_projection(shown).with_row_filter(RowFilter::new(vec![Box::new(is_it)]));
        let mut batches = builder.with_batch_size(1).build().map_err(failed)?;
        while let Some(batch) = batches.try_next().await.map_err(failed)? {
            if batch.num_rows() > 0 {
                return Ok(both(&batch, 0));
            }
        }
        Ok(None)
    }

    /// How many records of an epoch the table holds.
    pub(super) async fn sealed_records(&self, org: &Org, epoch: Epoch) -> Result<u64, StorageError> {
        let files = Arc::clone(&org.state.read().payloads.table.files);
        let mut records = 0;
        for file in files.iter().filter(|file| i64::from(file.date) == day(epoch.date())) {
            let failed = |e: ParquetError| StorageError::read(&file.path, e);
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
}

/// The row groups whose bloom filter lets a call in; none where no group does.
async fn groups_of<R: AsyncFileReader + Send + 'static>(
    mut builder: ParquetRecordBatchStreamBuilder<R>,
    file: &DataFile,
    id: &str,
) -> Result<Option<ParquetRecordBatchStreamBuilder<R>>, StorageError> {
    let failed = |e: ParquetError| StorageError::read(&file.path, e);
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
    Ok((!groups.is_empty()).then(|| builder.with_row_groups(groups)))
}
