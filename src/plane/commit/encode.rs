//! A group as a log object: its batches, and the decisions that wait, become sections by org, encoded for the number
//! after the last object applied.
//!
//! Everything here is computed under the cursor's lock and is right for that one number: the positions that sections
//! name, the ledger's numbers of events, the chain to the object before. If the number is taken, all of it is computed
//! again. Nothing is written here, so a crash leaves nothing behind.
//!
//! An object's time never precedes that of the object before it, and a clock that is too far ahead writes nothing
//! ([`written_at`]).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::compute::concat_batches;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use chrono::DateTime;

use super::Pending;
use crate::ingest::BatchId;
use crate::log::{Decisions, Front, Object, ObjectId, Rows, Section, SectionKind, StoredId};
use crate::model::OrgName;
use crate::node::PlaneError;
use crate::plane::Plane;
use crate::plane::follow::Cursor;
use crate::rollup::Digest;
use crate::state::Org;
use crate::state::change::{Change, Place, Rows as ChangeRows};

/// What a group becomes in the log.
pub(super) struct Written {
    pub(super) place: Place,
    pub(super) pieces: Vec<Bytes>,
    pub(super) changes: Vec<(Arc<Org>, Change)>,
    pub(super) batches: usize,
}

/// One org's part of an object.
#[derive(Default)]
struct Part {
    decisions: Decisions,
    rows: Vec<(Rows, ChangeRows)>,
}

/// What a group brings each org, and the decisions that wait.
fn parts_by_org(plane: &Plane, group: &[Pending]) -> Result<BTreeMap<OrgName, Part>, PlaneError> {
    let node = &plane.node;
    let mut parts: BTreeMap<OrgName, Part> = BTreeMap::new();
    for org in plane.undecided() {
        let decisions = Decisions { removal: org.take_removal(), ..std::mem::take(&mut *org.decided.lock()) };
        if !decisions.is_empty() && org.may_write() {
            parts.entry(org.name.clone()).or_default().decisions.join(decisions);
        }
    }
    let mut small: BTreeMap<(&OrgName, bool), Vec<&Pending>> = BTreeMap::new();
    for pending in group {
        match &pending.alone {
            Some((rows, digest)) => {
                let row = row(pending.kind, rows.clone(), pending.batch.clone(), digest.clone(), &[pending])?;
                let part = parts.entry(pending.org.clone()).or_default();
                part.rows.push(row);
                // Right after the events that name them, whose numbers they take.
                if let Some(sealed) = &pending.payloads {
                    part.rows.push((sealed.rows.clone(), ChangeRows::Payloads(sealed.batch.clone(), 0)));
                }
            }
            None => {
                small.entry((&pending.org, pending.kind == SectionKind::Events)).or_default().push(pending);
            }
        }
    }
    for ((org, _), batches) in small {
        let Some(first) = batches.first() else { continue };
        let joined = concat_batches(node.schema_of(first.kind), batches.iter().map(|pending| &pending.batch))
            .map_err(|e| PlaneError::Internal(e.to_string()))?;
        let rows = Rows::new(first.kind, &joined, node.settings.remote)?;
        let digest = digest(first.kind, &joined)?;
        let row = row(first.kind, rows, joined, digest, &batches)?;
        parts.entry(org.clone()).or_default().rows.push(row);
    }
    Ok(parts)
}

/// Encodes a group, and the decisions that wait, as the object after the cursor. `None` if there is nothing to write.
pub(super) fn encode(plane: &Plane, cursor: &Cursor, group: &[Pending]) -> Result<Option<Written>, PlaneError> {
    let node = &plane.node;
    let parts = parts_by_org(plane, group)?;
    if parts.is_empty() {
        return Ok(None);
    }
    let seq = cursor.next;
    let written_at = written_at(node.now(), cursor.time, node.settings.max_rest)?;
    let (mut sections, mut changes) = (Vec::new(), Vec::with_capacity(parts.len()));
    for (name, mut part) in parts {
        let Some(org) = plane.registry.loaded(&name) else {
            // Decisions are made again; rows must not be left out of what is acknowledged.
            if part.rows.is_empty() {
                continue;
            }
            return Err(PlaneError::unavailable("the org is being loaded again; nothing of the group was stored"));
        };
        let (previous, before) = {
            let state = org.state.read();
            (state.position, state.object.as_ref().map(ObjectId::beginning))
        };
        if org.state.read().limits != Some(node.settings.limits) && !part.rows.is_empty() && org.announces_limits() {
            part.decisions.limits = Some(node.settings.limits);
        }
        let mut change = Change {
            previous,
            before: before.clone(),
            decisions: part.decisions.clone(),
            rows: Vec::with_capacity(part.rows.len()),
        };
        let mut decisions = Some(part.decisions);
        let mut first = org.ledger.read().size();
        if part.rows.is_empty() {
            let decisions = decisions.take().unwrap_or_default();
            sections.push(Section { org: name.clone(), previous, before: before.clone(), decisions, rows: None });
        }
        // The number of the last section of events: payloads that follow it take it.
        let mut events_first = first;
        for (mut rows, mut brought) in part.rows {
            if rows.header.kind == SectionKind::Events {
                rows.header.first = Some(first);
                events_first = first;
                first += rows.header.count;
            }
            if let ChangeRows::Payloads(_, first) = &mut brought {
                rows.header.first = Some(events_first);
                *first = events_first;
            }
            let decisions = decisions.take().unwrap_or_default();
            sections.push(Section { org: name.clone(), previous, before: before.clone(), decisions, rows: Some(rows) });
            change.rows.push(brought);
        }
        changes.push((org, change));
    }
    if sections.is_empty() {
        return Ok(None);
    }
    let front = Front { seq, writer: node.writer, written_at, previous: cursor.previous.clone() };
    let (id, pieces) = Object::encode(node.log.keys(), front, sections)?;
    let place = Place { position: seq, id, time: written_at, ours: true };
    Ok(Some(Written { place, pieces, changes, batches: group.len() }))
}

/// When an object is written, µs since the epoch, by a clock that says `now`: never before the one before it.
///
/// # Errors
/// When the clock is so far ahead of it that it is taken for wrong. All that is remembered or kept for a time would be
/// forgotten and deleted by it, and the log's time never goes back.
fn written_at(now: i64, before: i64, max_rest: Duration) -> Result<i64, PlaneError> {
    let rest = i64::try_from(max_rest.as_micros()).unwrap_or(i64::MAX);
    if before == 0 || now.saturating_sub(before) <= rest {
        return Ok(now.max(before));
    }
    let day = |time: i64| DateTime::from_timestamp_micros(time).map(|time| time.format("%F").to_string());
    Err(PlaneError::unavailable(format!(
        "this machine's clock says {}, and the log's last object is of {}: nothing is written by a clock that is so far \
         ahead. Set the clock; if it is right, raise log.max_rest",
        day(now).unwrap_or_default(),
        day(before).unwrap_or_default()
    )))
}

/// What rows add to the totals, if they are samples.
pub(in crate::plane) fn digest(kind: SectionKind, batch: &RecordBatch) -> Result<Option<Digest>, PlaneError> {
    let digest = (kind == SectionKind::Samples).then(|| Digest::of(batch)).transpose();
    digest.map_err(|e| PlaneError::Internal(e.to_string()))
}

fn row(
    kind: SectionKind,
    mut rows: Rows,
    batch: RecordBatch,
    digest: Option<Digest>,
    pending: &[&Pending],
) -> Result<(Rows, ChangeRows), PlaneError> {
    let ids: Vec<BatchId> = pending.iter().filter_map(|pending| pending.id).collect();
    rows.header.batches = ids.iter().copied().map(StoredId).collect();
    let brought = match (kind, digest) {
        (SectionKind::Samples, Some(digest)) => ChangeRows::Samples(batch, vec![digest], ids),
        (SectionKind::Samples, None) => return Err(PlaneError::Internal("samples without a digest".to_owned())),
        (SectionKind::Events, _) => ChangeRows::Events(batch, ids),
        (SectionKind::Payloads, _) => return Err(PlaneError::Internal("payloads without their events".to_owned())),
    };
    Ok((rows, brought))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{PlaneError, written_at};

    const DAY: i64 = 86_400_000_000;
    const REST: Duration = Duration::from_secs(400 * 86_400);

    #[test]
    fn the_time_of_objects_never_goes_back_and_never_leaps_by_years() {
        let written = |now, before| written_at(now, before, REST).map_err(|e| e.to_string());
        assert_eq!(written(20_000 * DAY, 0), Ok(20_000 * DAY), "the first");
        assert_eq!(written(20_400 * DAY, 20_000 * DAY), Ok(20_400 * DAY));
        assert_eq!(written(19_000 * DAY, 20_000 * DAY), Ok(20_000 * DAY));
        let refused = written_at(20_401 * DAY, 20_000 * DAY, REST).unwrap_err();
        assert!(matches!(refused, PlaneError::Unavailable { .. }), "{refused}");
        assert!(refused.to_string().contains("2025-11-09") && refused.to_string().contains("2024-10-04"), "{refused}");
    }
}
