//! From the live rows of sealed payloads to their table: the bytes that the rows name are read, and held against the
//! hashes that the log has of them. A flush reads so many bytes at a time and commits them, so that its memory is
//! bounded however much waits.
//!
//! What the log names is deleted a day later by the org's maintenance. A node that comes upon an object that is gone
//! looks at the table again: another one may have moved it on.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray};
use arrow::datatypes::Int64Type;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use object_store::path::Path;

use crate::model::OrgName;
use crate::model::schema::TOOL_INVOCATION_PAYLOADS;
use crate::node::{Node, PlaneError};
use crate::payload::Digest;
use crate::state::payloads::named_bytes;
use crate::state::{Org, Tables};
use crate::storage::table::Partitioning;
use crate::storage::{StorageError, parquet};

/// Bytes of payloads that are read for one commit, unless one position brought more.
const AT_ONCE: u64 = 64 << 20;

/// The folder of the objects that hold payloads' bytes before their table does.
pub(crate) fn body_folder(org: &OrgName) -> Path {
    Path::from(format!("orgs/{org}/payloads"))
}

/// Brings the table up to the live rows.
pub(super) async fn flush(node: &Node, org: &Org, tables: &mut Tables) -> Result<(), PlaneError> {
    loop {
        let (known, owed) = {
            let state = org.state.read();
            (state.payloads.table.position, state.payloads.owed())
        };
        if owed <= known || !org.may_write() {
            return Ok(());
        }
        let now = tables.payloads.refresh().await?;
        if now.position > org.state.read().position
            && node.log.read(now.position).await?.is_none()
            && node.log.floor().await?.number < now.position
        {
            let reason =
                format!("it says that it holds what came up to {}, and the log does not reach there", now.position);
            return Err(StorageError::damaged(format!("orgs/{}/{TOOL_INVOCATION_PAYLOADS}", org.name), reason).into());
        }
        let base = now.position;
        let parts = {
            let mut state = org.state.write();
            state.payloads.table = now;
            state.payloads.release();
            state.payloads.live.parts(base)
        };
        let (mut rows, mut bytes, mut target) = (Vec::new(), 0, base);
        for (position, part) in parts {
            // A position's rows go together.
            if position != target && bytes >= AT_ONCE {
                break;
            }
            bytes += named_bytes(&part);
            target = position;
            rows.push(part);
        }
        if rows.is_empty() {
            continue;
        }
        let mut whole = Vec::with_capacity(rows.len());
        for part in &rows {
            match with_bytes(node, &org.name, part).await {
                Ok(part) => whole.push(part),
                Err(e) => {
                    // Gone because another node was here before, and its maintenance after it.
                    if tables.payloads.refresh().await?.position >= target {
                        break;
                    }
                    return Err(e.into());
                }
            }
        }
        if whole.len() < rows.len() {
            continue;
        }
        let schema = Arc::clone(&node.schemas.payloads);
        let encoded =
            tokio::task::spawn_blocking(move || parquet::encode_by(Partitioning::Day, &schema, &whole, 1)).await;
        let files = encoded.map_err(|e| PlaneError::Internal(e.to_string()))??;
        let random = Arc::clone(&node.random);
        let now = tables.payloads.append(files, base, target, node.now(), move || random.uuid()).await?;
        let mut state = org.state.write();
        state.payloads.table = now;
        state.payloads.release();
    }
}

/// Rows with the bytes that they name, as the table has them.
///
/// # Errors
/// What the store says; [`StorageError::Damaged`] when what lies there is not what the log has the hash of.
async fn with_bytes(node: &Node, org: &OrgName, rows: &RecordBatch) -> Result<RecordBatch, StorageError> {
    let mut bodies: HashMap<String, Bytes> = HashMap::new();
    let (mut envelopes, mut records) = (Vec::new(), Vec::new());
    for row in 0..rows.num_rows() {
        let place =
            Place::of(rows, row).ok_or_else(|| StorageError::damaged(body_folder(org), "a row names no bytes"))?;
        let path = place.path(org)?;
        let body = match bodies.get(&place.body) {
            Some(body) => body.clone(),
            None => {
                let body = node.store.get(&path).await?;
                let body = body
                    .ok_or_else(|| StorageError::failed("read", &path, "it is gone, and a payload's row names it"))?;
                bodies.insert(place.body.clone(), body.clone());
                body
            }
        };
        let (envelope, record) = place.cut(&path, &body)?;
        envelopes.push(envelope);
        records.push(record);
    }
    let schema = Arc::clone(&node.schemas.payloads);
    let columns = schema.fields().iter().map(|field| match field.name().as_str() {
        "envelope" => Arc::new(BinaryArray::from_iter_values(&envelopes)) as ArrayRef,
        "record" => Arc::new(BinaryArray::from_iter_values(&records)) as ArrayRef,
        name => rows
            .column_by_name(name)
            .map_or_else(|| arrow::array::new_null_array(field.data_type(), rows.num_rows()), Arc::clone),
    });
    let columns = columns.collect();
    RecordBatch::try_new(schema, columns).map_err(|e| StorageError::failed("encode", body_folder(org), e))
}

/// Where the bytes of a row lie.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    body: String,
    envelope: (usize, usize),
    record: (usize, usize),
    hash: String,
}

impl Place {
    /// What a row of the schema `payload_rows` names.
    pub(crate) fn of(rows: &RecordBatch, row: usize) -> Option<Self> {
        let text = |name: &str| {
            let column = rows.column_by_name(name)?.as_string_opt::<i32>()?;
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let number = |name: &str| {
            let column = rows.column_by_name(name)?.as_primitive_opt::<Int64Type>()?;
            usize::try_from(column.value(row)).ok()
        };
        Some(Self {
            body: text("body")?,
            envelope: (number("envelope_at")?, number("envelope_bytes")?),
            record: (number("record_at")?, number("record_bytes")?),
            hash: text("record_hash")?,
        })
    }

    /// The object that holds them: in the org's own folder, whatever the row says.
    pub(crate) fn path(&self, org: &OrgName) -> Result<Path, StorageError> {
        let is_name = !self.body.is_empty() && self.body.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let path = Path::from(format!("{}/{}", body_folder(org), self.body));
        if is_name { Ok(path) } else { Err(StorageError::damaged(body_folder(org), "a row names another folder")) }
    }

    /// Envelope and record, once the record is the one that the log has the hash of.
    pub(crate) fn cut(&self, path: &Path, body: &Bytes) -> Result<(Bytes, Bytes), StorageError> {
        let part = |(at, length): (usize, usize)| {
            let end = at.checked_add(length).filter(|end| *end <= body.len());
            end.map(|end| body.slice(at..end))
                .ok_or_else(|| StorageError::damaged(path, "it is shorter than a row says"))
        };
        let (envelope, record) = (part(self.envelope)?, part(self.record)?);
        if Digest::of(&record).to_string() == self.hash {
            Ok((envelope, record))
        } else {
            Err(StorageError::damaged(path, "a record in it is not the one that the log has the hash of"))
        }
    }
}
