//! What one log object brings to one org, and applying it (rule L6).
//!
//! All that can fail comes first, and changes nothing: bodies are decoded and aggregated, events are numbered and
//! chained. Then everything is applied in one go that cannot fail, under the org's locks. Objects of this node and of
//! others take the same way. Each org remembers its position and ignores what is not newer.

use arrow::record_batch::RecordBatch;

use super::OrgState;
use super::payloads::numbered;
use crate::audit::segment::SegmentName;
use crate::audit::{AuditError, Sealed};
use crate::ingest::BatchId;
use crate::ledger::state::LedgerState;
use crate::log::{Decisions, Object, ObjectId, SectionHeader, SectionKind};
use crate::model::OrgName;
use crate::node::Node;
use crate::rollup::Digest;
use crate::storage::StorageError;

/// What the log says of an object, whatever it brings to an org.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Its number.
    pub(crate) position: u64,
    /// Its id.
    pub(crate) id: ObjectId,
    /// When it was written, µs since the epoch.
    pub(crate) time: i64,
    /// Whether this process wrote it.
    pub(crate) ours: bool,
}

impl Place {
    pub(crate) fn of(node: &Node, object: &Object) -> Self {
        Self {
            position: object.header.seq,
            id: object.id.clone(),
            time: object.header.written_at,
            ours: object.header.writer == node.writer,
        }
    }
}

/// What an object brings to an org.
#[derive(Debug, Default)]
pub(crate) struct Change {
    /// The position of the object before that had a section of the org.
    pub(crate) previous: u64,
    /// The beginning of that object's id, where the section says it.
    pub(crate) before: Option<String>,
    pub(crate) decisions: Decisions,
    pub(crate) rows: Vec<Rows>,
}

/// Rows of one section.
#[derive(Debug)]
pub(crate) enum Rows {
    /// Samples, what they add to the totals, and the batches that brought them.
    Samples(RecordBatch, Vec<Digest>, Vec<BatchId>),
    /// Events, and the batches that brought them.
    Events(RecordBatch, Vec<BatchId>),
    /// Sealed payloads, and the number of the first of the entries that name them.
    Payloads(RecordBatch, u64),
}

impl Change {
    /// Decodes and aggregates what an object brings to an org: the expensive part, which needs nothing but the object.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when a body is not what was written.
    pub(crate) fn decode(node: &Node, object: &Object, org: &OrgName) -> Result<Self, StorageError> {
        let mut change = Self::default();
        for (number, section) in object.header.sections.iter().enumerate().filter(|(_, section)| section.org == *org) {
            change.previous = section.previous;
            change.before.clone_from(&section.before);
            change.decisions.join(section.decisions.clone());
            change.rows.extend(rows(node, object, number, section)?);
        }
        Ok(change)
    }

    /// Whether it was written after what is applied: after the same position, and where both say so, the same object
    /// there.
    pub(crate) fn follows(&self, state: &OrgState) -> bool {
        let applied = state.object.as_ref().map(ObjectId::beginning);
        let is_same = self.before.as_ref().is_none_or(|named| applied.is_none_or(|id| id == *named));
        self.previous == state.position && is_same
    }

    /// Numbers and chains its events, without changing anything yet.
    ///
    /// # Errors
    /// When an event is not of the form that validation makes sure of.
    pub(crate) fn prepare(self, ledger: &LedgerState) -> Result<Prepared, AuditError> {
        let Self { decisions, rows, .. } = self;
        let mut head = ledger.head();
        let mut prepared = Vec::with_capacity(rows.len());
        for rows in rows {
            prepared.push(match rows {
                Rows::Samples(batch, digests, batches) => PreparedRows::Samples(batch, digests, batches),
                Rows::Events(events, batches) => {
                    let sealed = ledger.seal_after(&head, &events)?;
                    head = sealed.head;
                    PreparedRows::Events(Box::new(sealed), batches)
                }
                Rows::Payloads(batch, first) => {
                    let numbered = numbered(&batch, first).map_err(|e| AuditError::Form(e.to_string()))?;
                    PreparedRows::Payloads(numbered)
                }
            });
        }
        Ok(Prepared { decisions, rows: prepared })
    }
}

/// The rows of one section of an object.
///
/// # Errors
/// [`StorageError::Damaged`] when its body is not what was written.
pub(crate) fn rows(
    node: &Node,
    object: &Object,
    number: usize,
    section: &SectionHeader,
) -> Result<Option<Rows>, StorageError> {
    let Some(rows) = &section.rows else { return Ok(None) };
    let batch = object.read(number, node.schema_of(rows.kind))?;
    let batches = rows.batches.iter().map(|id| id.0).collect();
    Ok(Some(match rows.kind {
        SectionKind::Samples => {
            let name = || format!("{} section {number}", crate::log::name(object.header.seq));
            let digest = Digest::of(&batch).map_err(|e| StorageError::damaged(name(), e))?;
            Rows::Samples(batch, vec![digest], batches)
        }
        SectionKind::Events => Rows::Events(batch, batches),
        SectionKind::Payloads => Rows::Payloads(batch, rows.first.unwrap_or(0)),
    }))
}

/// A change of which nothing can fail any more.
#[derive(Debug)]
pub(crate) struct Prepared {
    decisions: Decisions,
    rows: Vec<PreparedRows>,
}

#[derive(Debug)]
enum PreparedRows {
    Samples(RecordBatch, Vec<Digest>, Vec<BatchId>),
    Events(Box<Sealed>, Vec<BatchId>),
    Payloads(RecordBatch),
}

impl Prepared {
    /// Applies it. Decisions come before what the object brings.
    pub(crate) fn apply(self, place: &Place, state: &mut OrgState, ledger: &mut LedgerState, once: bool) {
        if once && place.position <= state.position {
            return;
        }
        state.begin(place.position, &place.id, place.time, self.decisions.limits);
        if let Some(removal) = self.decisions.removal {
            state.remove_or_restore(removal);
        }
        if self.decisions.cut {
            ledger.cut(place.ours);
        }
        for (first, last) in self.decisions.merges {
            ledger.merge(SegmentName { first, last }, place.ours);
        }
        for rows in self.rows {
            let batches = match rows {
                PreparedRows::Samples(batch, digests, batches) => {
                    digests.iter().for_each(|digest| state.totals.apply(digest, state.time));
                    if place.position > state.tables_hold() {
                        state.live.push(place.position, batch);
                    }
                    batches
                }
                PreparedRows::Events(sealed, batches) => {
                    ledger.apply(place.position, *sealed);
                    batches
                }
                PreparedRows::Payloads(batch) => {
                    if place.position > state.payloads.table.position {
                        state.payloads.push(place.position, batch);
                    }
                    Vec::new()
                }
            };
            batches.iter().for_each(|id| state.dedup.apply(id, place.position, state.time));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chrono::{DateTime, TimeDelta};

    use super::{Change, Place, Rows};
    use crate::demo::Fleet;
    use crate::ledger::state::LedgerState;
    use crate::log::OrgLimits;
    use crate::model::schema::schemas;
    use crate::rollup::Digest;
    use crate::state::OrgState;

    /// Rows in the live buffer and the position, once the object at position 7 was applied twice.
    fn applied_twice(once: bool) -> (usize, usize) {
        let now = DateTime::from_timestamp(1_700_000_000, 0).unwrap();
        let batch = Fleet::new(1, 1).batch(0, now - TimeDelta::seconds(1), now, 3).unwrap();
        let mut state = OrgState::new("acme".parse().unwrap(), OrgLimits { series: 100, keys: 100 });
        let mut ledger = LedgerState::new("o".to_owned(), Arc::clone(&schemas().unwrap().audit_log));
        for _ in 0..2 {
            let rows = vec![Rows::Samples(batch.clone(), vec![Digest::of(&batch).unwrap()], Vec::new())];
            let prepared = Change { previous: 0, rows, ..Change::default() }.prepare(&ledger).unwrap();
            let id = serde_json::from_str(r#""ab""#).unwrap();
            let place = Place { position: 7, id, time: 1, ours: true };
            prepared.apply(&place, &mut state, &mut ledger, once);
        }
        (state.live.rows(), state.position as usize)
    }

    /// Rule L6, and what it is for.
    #[test]
    fn an_object_that_comes_again_is_applied_once() {
        assert_eq!(applied_twice(true), (3, 7));
        assert_eq!(applied_twice(false), (6, 7), "without the rule it counts twice");
    }
}
