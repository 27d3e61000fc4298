//! Taking sealed payloads in: their bytes become one object, which the log names; in the same log object are the rows
//! that say where in it each record lies and the entries `payload.captured` that name them. So a record is durable
//! before it is acknowledged, bodies do not pass through every node's log, and no record is stored without its entry.
//!
//! A crash between the two leaves an object that nothing names, which maintenance deletes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Int64Array, ListBuilder, StringArray, StringBuilder,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::NaiveDate;
use object_store::path::Path;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use uuid::Uuid;

use super::commit::{Pending, Sealed};
use super::{Ack, Admission, Plane, PlaneError, SystemEvent, not_removed};
use crate::flush::payloads::body_folder;
use crate::ingest::{BatchId, stamp_submitter};
use crate::log::{Rows, SectionKind};
use crate::model::{OrgName, micros};
use crate::payload::frames::{Frame, Placed};
use crate::payload::{Digest, Direction, Envelope, Epoch, KeyId, Record};

/// The entry that records what was captured of a call.
const CAPTURED: &str = "payload.captured";

/// One record and where it lies.
struct Taken<'a> {
    record: &'a Record,
    hash: String,
    at: usize,
    envelope: (usize, usize),
    envelope_id: Digest,
    /// The number of the entry that records it, among those of the request.
    entry: usize,
}

/// Why a frame cannot be taken: its number, and what is wrong with it.
fn invalid(number: usize, what: impl std::fmt::Display) -> PlaneError {
    PlaneError::PayloadRefused {
        code: "invalid_payload",
        reason: format!("frame {number}: {what}; nothing was stored"),
    }
}

impl Plane {
    /// Makes sealed payloads durable, with the entries that name them, then says so. `submitted_by` is who sent them.
    ///
    /// # Errors
    /// See [`PlaneError`]; after an error they are stored at most once, and a retry under the same identity is safe.
    pub async fn append_payloads(
        self: &Arc<Self>,
        name: &OrgName,
        body: Bytes,
        frames: &[Placed],
        id: Option<BatchId>,
        submitted_by: Option<&str>,
        mut admission: Admission,
    ) -> Result<Ack, PlaneError> {
        self.serving()?;
        let org = self.org(name).await?;
        not_removed(&org)?;
        org.touch();
        let mut taken = Vec::new();
        let mut epochs: BTreeSet<(Epoch, KeyId)> = BTreeSet::new();
        let mut envelopes: BTreeMap<Digest, (&Envelope, usize)> = BTreeMap::new();
        for (number, placed) in frames.iter().enumerate() {
            match &placed.frame {
                Frame::Envelope(envelope) => {
                    if envelope.org() != name {
                        return Err(invalid(number, "it is another org's"));
                    }
                    let key = envelope.epoch_key().ok_or_else(|| invalid(number, "it is sealed to no key"))?;
                    epochs.insert((envelope.epoch(), key));
                    envelopes.insert(envelope.id(), (envelope, placed.at));
                }
                Frame::Record(record) => {
                    let of = envelopes.get(&record.envelope());
                    let (envelope, at) = of.ok_or_else(|| invalid(number, "its envelope is not before it"))?;
                    record.check(envelope).map_err(|refusal| invalid(number, refusal))?;
                    taken.push(Taken {
                        record,
                        hash: record.hash().to_string(),
                        at: placed.at,
                        envelope: (*at, envelope.bytes().len()),
                        envelope_id: envelope.id(),
                        entry: 0,
                    });
                }
            }
        }
        if taken.is_empty() {
            return Err(invalid(frames.len(), "there is no record"));
        }
        if let Some(refusal) = {
            let ledger = org.ledger.read();
            let keys = &ledger.status().payload_keys;
            epochs.iter().find_map(|(epoch, key)| keys.refusal(*epoch, key))
        } {
            return Err(refusal);
        }
        let events = self.captured(&mut taken);
        let mut events = self.complete(name, events)?;
        if let Some(token) = submitted_by {
            events = stamp_submitter(&events, token).map_err(|e| PlaneError::Internal(e.to_string()))?;
        }
        let object = format!("{:016x}-{}", micros(self.node.clock.now()), self.node.random.uuid().simple());
        let epochs = epochs.into_iter().collect();
        let batch = self.rows(name, &taken, &object).map_err(|e| PlaneError::Internal(e.to_string()))?;
        admission.wait_to_grow_to(body.len() + 2 * batch.get_array_memory_size()).await?;
        // Durable before the log names it.
        self.node.store.put(&Path::from(format!("{}/{object}", body_folder(name))), body).await?;
        let remote = self.node.settings.remote;
        let alone = Some((Rows::new(SectionKind::Events, &events, remote)?, None));
        let payloads = Some(Sealed { rows: Rows::new(SectionKind::Payloads, &batch, remote)?, batch, epochs });
        let (reply, answer) = oneshot::channel();
        let arrived = tokio::time::Instant::now();
        let kind = SectionKind::Events;
        let pending =
            Pending { org: name.clone(), kind, batch: events, alone, id, payloads, admission, reply, arrived };
        self.commit(pending, answer).await
    }

    /// The entries that name records: one for a call and envelope.
    fn captured(&self, taken: &mut [Taken<'_>]) -> Vec<SystemEvent> {
        let mut numbers: BTreeMap<(Uuid, Digest), usize> = BTreeMap::new();
        let mut told: Vec<(SystemEvent, serde_json::Map<String, Value>)> = Vec::new();
        for one in taken {
            let header = one.record.header();
            let number = *numbers.entry((header.invocation_id, one.envelope_id)).or_insert_with(|| {
                let event = SystemEvent::new(self.actor(), CAPTURED)
                    .target(&format!("{}/{}", header.plugin, header.tool))
                    .of_call(&header.invocation_id.hyphenated().to_string(), &header.workspace, &header.instance);
                let mut detail = serde_json::Map::new();
                detail.insert("epoch".to_owned(), json!(header.epoch));
                detail.insert("envelope".to_owned(), json!(one.envelope_id.to_string()));
                told.push((event, detail));
                told.len() - 1
            });
            one.entry = number;
            if let Some((_, detail)) = told.get_mut(number) {
                detail.insert(header.direction.as_str().to_owned(), json!(one.hash));
            }
        }
        told.into_iter().map(|(event, detail)| event.detail(Value::Object(detail))).collect()
    }

    fn rows(&self, org: &OrgName, taken: &[Taken<'_>], object: &str) -> Result<RecordBatch, arrow::error::ArrowError> {
        let schema = Arc::clone(&self.node.schemas.payload_rows);
        let texts = |of: &dyn Fn(&Taken<'_>) -> String| -> ArrayRef {
            Arc::new(taken.iter().map(of).map(Some).collect::<StringArray>())
        };
        let numbers = |of: &dyn Fn(&Taken<'_>) -> usize| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(taken.iter().map(|one| i64::try_from(of(one)).unwrap_or(i64::MAX))))
        };
        let now = micros(self.node.clock.now());
        let mut redactions = ListBuilder::new(StringBuilder::new());
        for one in taken {
            one.record.header().redactions.iter().for_each(|place| redactions.values().append_value(place));
            redactions.append(!one.record.header().redactions.is_empty());
        }
        let redactions: ArrayRef = Arc::new(redactions.finish());
        let day = |date: NaiveDate| i32::try_from((date - NaiveDate::default()).num_days()).unwrap_or(i32::MAX);
        let columns = schema.fields().iter().map(|field| -> ArrayRef {
            let header = |one: &Taken<'_>| one.record.header().clone();
            match field.name().as_str() {
                "org" => texts(&|_| org.to_string()),
                "invocation_id" => texts(&|one| header(one).invocation_id.hyphenated().to_string()),
                "direction" => texts(&|one| header(one).direction.as_str().to_owned()),
                "workspace" => texts(&|one| header(one).workspace),
                "instance" => texts(&|one| header(one).instance),
                "plugin" => texts(&|one| header(one).plugin),
                "kind" => texts(&|one| header(one).kind.as_str().to_owned()),
                "tool" => texts(&|one| header(one).tool),
                "started_at" => {
                    let times = taken.iter().map(|one| micros(one.record.header().started_at));
                    Arc::new(
                        TimestampMicrosecondArray::from_iter_values(times).with_data_type(field.data_type().clone()),
                    )
                }
                "ingested_at" => {
                    let times = TimestampMicrosecondArray::from_value(now, taken.len());
                    Arc::new(times.with_data_type(field.data_type().clone()))
                }
                "epoch" => texts(&|one| header(one).epoch.to_string()),
                "content_type" => texts(&|one| header(one).content_type),
                "truncated" => {
                    let cut = taken.iter().map(|one| Some(one.record.header().truncated_from.is_some()));
                    Arc::new(cut.collect::<BooleanArray>())
                }
                "redactions" => Arc::clone(&redactions),
                "record_hash" => texts(&|one| one.hash.clone()),
                "ledger_seq" => numbers(&|one| one.entry),
                "date" => Arc::new(Date32Array::from_iter_values(
                    taken.iter().map(|one| day(one.record.header().started_at.date_naive())),
                )),
                "body" => texts(&|_| object.to_owned()),
                "envelope_at" => numbers(&|one| one.envelope.0),
                "envelope_bytes" => numbers(&|one| one.envelope.1),
                "record_at" => numbers(&|one| one.at),
                "record_bytes" => numbers(&|one| one.record.bytes().len()),
                _ => new_null_array(field.data_type(), taken.len()),
            }
        });
        let columns = columns.collect();
        RecordBatch::try_new(schema, columns)
    }
}

/// The name of a direction's hash in the detail of an entry `payload.captured`.
pub(super) fn hash_in(detail: &Value, direction: Direction) -> Option<&str> {
    detail.get(direction.as_str())?.as_str()
}
