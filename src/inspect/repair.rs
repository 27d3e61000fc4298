//! Repairing one org that is stopped: giving up what cannot be read of it, by name, and going on from what can.
//!
//! | damaged | what becomes of it |
//! |---|---|
//! | its newest state | the one before is taken, and the log since, if that has all of it: nothing is lost. Else refused: restore the state |
//! | samples in a log object | given up: they are in no counter; rows of theirs that a flush had written already stay in the tables |
//! | events in a log object, under a checkpoint | taken from the ledger's segment, which the checkpoint proves: nothing is lost |
//! | events in a log object, under none | given up: the entries after them get their numbers, and nothing that was signed says otherwise |
//! | a table, a tile, a segment, entries that a state covers and no checkpoint does | refused: restore that object |
//! | a header of the log, a hole in it | refused: it concerns every org; restore that object |
//!
//! A repair is a log object with the decision `repaired` and an entry `operator.org_repaired`, which names what was
//! given up. Every node that comes to it drops what it knows of the org and loads it again: so a stop is lifted on all
//! of them without a restart. The object comes first, then segments and a checkpoint over all entries before it, then
//! the tables, then the state at its position. A crash between two of them leaves the org stopped as it was; the repair
//! is then done again.

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use object_store::path::Path;
use serde_json::json;

use super::index::Index;
use super::{Finding, Inspector};
use crate::audit::segment::{self, SegmentName};
use crate::flush::flush;
use crate::ingest::{DecodeContext, DecodeLimits, REPAIR_ACTOR, RandomIds, complete_own_events};
use crate::ledger;
use crate::ledger::publisher::{Outcome, publish};
use crate::ledger::replication::Elsewhere;
use crate::log::{self, Decisions, Front, Object, ObjectId, Rows, Section, SectionHeader, SectionKind};
use crate::model::OrgName;
use crate::node::{Node, PlaneError};
use crate::state::change::{self, Change, Place};
use crate::state::load::{Loading, begin_from, parked, read_parked};
use crate::state::{Org, snapshot, state_path};
use crate::storage::{Created, StorageError};

/// Findings that the ledger's entry names, at most: an event has its bounds.
const MOST_NAMED: usize = 200;
/// How often the object is tried while others write to the log.
const ATTEMPTS: usize = 5;

/// What a repair came to.
#[derive(Debug, Clone)]
pub struct Repair {
    /// What was, or would be, passed over without a loss.
    pub passed_over: Vec<Finding>,
    /// What was, or would be, given up.
    pub given_up: Vec<Finding>,
    /// The log object that says so; none where nothing was done.
    pub position: Option<u64>,
    /// Entries of the ledger before that object.
    pub entries: u64,
}

impl Repair {
    /// Whether the org is sound as it is.
    pub fn is_needless(&self) -> bool {
        self.passed_over.is_empty() && self.given_up.is_empty()
    }
}

/// What was found of an org, and the org as it goes on from there.
struct Salvaged {
    loading: Loading,
    repair: Repair,
    /// The log as it was read.
    index: Index,
    /// States that are not sound, which go.
    unsound: Vec<Path>,
}

impl Inspector {
    /// Repairs an org, or says what that would be. Where something is to be given up, nothing is done unless
    /// `accept_loss`.
    ///
    /// # Errors
    /// What the store says; [`StorageError::Damaged`] names what must be restored first.
    pub async fn repair(&self, org: &OrgName, dry_run: bool, accept_loss: bool) -> Result<Repair, StorageError> {
        self.layout().await?;
        if !self.orgs().await?.contains(org) {
            return Err(self.node.store.unusable(format!("there is no org {org} in the store")));
        }
        let mut before = None;
        for _ in 0..ATTEMPTS {
            let Salvaged { loading, repair, index, unsound } = Box::pin(salvage(&self.node, org)).await?;
            if repair.is_needless() {
                return Ok(repair);
            }
            // Only what two looks find is damage.
            let found = (repair.passed_over.clone(), repair.given_up.clone());
            if before.replace(found.clone()) != Some(found) {
                tokio::time::sleep(super::PAUSE).await;
                continue;
            }
            if dry_run || !(accept_loss || repair.given_up.is_empty()) {
                return Ok(repair);
            }
            let repaired = loading.finish(&self.node).await?;
            // None: another node's object came first, and may be of this org.
            if let Some(position) = announce(&self.node, &repaired, &index, &repair).await? {
                self.node.store.delete_all(unsound).await?;
                settle(&self.node, &repaired).await?;
                return Ok(Repair { position: Some(position), ..repair });
            }
        }
        Err(StorageError::failed(
            "repair",
            org,
            "the store changes all the time: stop the control planes, and try again",
        ))
    }
}

fn finding(e: StorageError) -> Result<Finding, StorageError> {
    match e {
        StorageError::Damaged { object, reason } => Ok(Finding { object, reason }),
        e => Err(e),
    }
}

/// Loads an org as far as it can be read. Nothing of its sections is left out but by name: each must be there, and name
/// the one before.
async fn salvage(node: &Node, org: &OrgName) -> Result<Salvaged, StorageError> {
    let (newest, unsound) = snapshot::newest_sound(node, org).await?;
    let greatest = unsound.iter().map(|(position, _)| *position).max().unwrap_or(0);
    let (mut passed_over, mut states) = (Vec::new(), Vec::new());
    for (position, e) in unsound {
        passed_over.push(finding(e)?);
        states.push(state_path(org, position));
    }
    let mut loading = begin_from(node, &Elsewhere::default(), org, newest).await?;
    let parked_before = parked(node, org).await?;
    // The log after what is stored.
    let index = Index::load(node).await?;
    if let Some(fault) = index.first_of_all() {
        let reason = format!("{}; it concerns every org: restore it", fault.reason);
        return Err(StorageError::damaged(&fault.object, reason));
    }
    if loading.reaches() > index.end() {
        let reason = format!("it is missing: something stored of org {org} is of this position; restore the log");
        return Err(StorageError::damaged(log::name(loading.reaches()), reason));
    }
    loading.replay_before(node, &index.floor).await?;
    let mut given_up = Vec::new();
    let from_log = index.of(org).iter().map(|place| place.position);
    let positions = parked_before.into_iter().filter(|position| *position <= index.floor.number).chain(from_log);
    for position in positions.filter(|position| *position > loading.position()).collect::<Vec<_>>() {
        let object = if position <= index.floor.number {
            read_parked(node, org, position).await?
        } else {
            node.log.read(position).await?
        };
        let Some(object) = object else {
            return Err(StorageError::failed("repair", log::name(position), "other nodes trim the log: try again"));
        };
        let change = readable(node, org, &object, &loading, &mut passed_over, &mut given_up).await?;
        if !loading.is_followed_by(&change) {
            let reason = format!(
                "org {org} had a section at {} before the one at {position}, and what can be read of it ends at {}: restore \
                 its newest state",
                change.previous,
                loading.position()
            );
            return Err(StorageError::damaged(state_path(org, greatest.max(change.previous)), reason));
        }
        loading.take(node, &object, change)?;
    }
    let (reached, ahead) = (loading.position(), loading.reaches().max(greatest));
    if ahead > reached {
        let reason = format!(
            "what can be read of org {org} ends at {reached}, and the log does not have the rest up to {ahead} any more: restore it"
        );
        return Err(StorageError::damaged(state_path(org, ahead), reason));
    }
    let entries = loading.entries();
    let repair = Repair { passed_over, given_up, position: None, entries };
    Ok(Salvaged { loading, repair, index, unsound: states })
}

/// What can be had of what an object brings to an org.
async fn readable(
    node: &Node,
    org: &OrgName,
    object: &Object,
    loading: &Loading,
    passed_over: &mut Vec<Finding>,
    given_up: &mut Vec<Finding>,
) -> Result<Change, StorageError> {
    let mut change = Change::default();
    for (number, section) in object.header.sections.iter().enumerate().filter(|(_, section)| section.org == *org) {
        change.previous = section.previous;
        change.before.clone_from(&section.before);
        change.decisions.join(section.decisions.clone());
        let lost = match change::rows(node, object, number, section) {
            Ok(rows) => {
                change.rows.extend(rows);
                continue;
            }
            Err(e) => finding(e)?,
        };
        match signed_events(node, org, section, loading.signed()).await? {
            Some(rows) => {
                passed_over.push(Finding::new(&lost.object, "its events are taken from the ledger's segment"));
                change.rows.push(rows);
            }
            None => {
                let (kind, count) = section.rows.as_ref().map_or(("rows", 0), |rows| match rows.kind {
                    SectionKind::Samples => ("samples", rows.count),
                    SectionKind::Events => ("events", rows.count),
                    SectionKind::Payloads => ("payloads", rows.count),
                });
                given_up.push(Finding::new(&lost.object, format!("{count} {kind}: {}", lost.reason)));
            }
        }
    }
    Ok(change)
}

/// The events of a section out of the ledger's segments, if a checkpoint covers them. That they are the right ones, the
/// ledger's chain shows when it reaches what is signed.
async fn signed_events(
    node: &Node,
    org: &OrgName,
    section: &SectionHeader,
    signed: u64,
) -> Result<Option<change::Rows>, StorageError> {
    let Some(rows) = section.rows.as_ref().filter(|rows| rows.kind == SectionKind::Events) else { return Ok(None) };
    let Some(first) = rows.first.filter(|first| first.saturating_add(rows.count) <= signed) else { return Ok(None) };
    let last = first + rows.count.saturating_sub(1);
    let schema = &node.schemas.audit_event;
    let mut found = Vec::new();
    for meta in node.store.list(&ledger::segments_folder(org)).await? {
        let name = meta.location.filename().and_then(|name| name.parse::<SegmentName>().ok());
        let Some(name) = name.filter(|name| name.first <= last && name.last >= first) else { continue };
        let Some(bytes) = node.store.get(&meta.location).await? else { continue };
        let path = meta.location.to_string();
        let (mut at, mut entries) = (name.first, Vec::new());
        let read = segment::read(&path, name, bytes, |batch| {
            let columns: Vec<usize> =
                schema.fields().iter().filter_map(|field| batch.schema().index_of(field.name()).ok()).collect();
            let events = batch.project(&columns).and_then(|events| events.with_schema(schema.clone()));
            entries.push((at, events.map_err(|e| StorageError::damaged(&path, e))?));
            at += batch.num_rows() as u64;
            Ok(())
        });
        match read {
            Ok(_) => found.append(&mut entries),
            // Another file may have the same entries.
            Err(e) if e.is_damage() => tracing::warn!(path, error = %e, "a segment was passed over"),
            Err(e) => return Err(e),
        }
    }
    let Some(events) = stretch(found, first, rows.count) else { return Ok(None) };
    let joined = arrow::compute::concat_batches(schema, &events);
    let joined = joined.map_err(|e| StorageError::damaged(ledger::segments_folder(org), e))?;
    Ok(Some(change::Rows::Events(joined, rows.batches.iter().map(|id| id.0).collect())))
}

/// The `count` entries from `first` on, each once, out of batches that begin with these entries: a merged segment may
/// lie beside all of its parts, or those of them that were not deleted yet. None if some entry is in no batch.
fn stretch(mut found: Vec<(u64, RecordBatch)>, first: u64, count: u64) -> Option<Vec<RecordBatch>> {
    found.sort_by_key(|(from, _)| *from);
    let (mut next, end, mut parts) = (first, first.checked_add(count)?, Vec::new());
    for (from, batch) in found {
        let to = from.saturating_add(batch.num_rows() as u64).min(end);
        if from <= next && next < to {
            parts.push(batch.slice(usize_of(next - from), usize_of(to - next)));
            next = to;
        }
    }
    (next == end).then_some(parts)
}

fn usize_of(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Writes the log object of the repair, and applies it. None if another object came first.
async fn announce(node: &Node, org: &Org, index: &Index, repair: &Repair) -> Result<Option<u64>, StorageError> {
    let failed = |e: String| StorageError::failed("repair", &org.name, e);
    let name = |findings: &[Finding]| -> Vec<String> {
        let mut named: Vec<_> =
            findings.iter().take(MOST_NAMED).map(|found| format!("{}: {}", found.object, found.reason)).collect();
        if findings.len() > MOST_NAMED {
            named.push(format!("and {} more", findings.len() - MOST_NAMED));
        }
        named
    };
    let event = json!({
        "actor": REPAIR_ACTOR, "action": "operator.org_repaired", "target": org.name.as_str(),
        "detail": { "given_up": name(&repair.given_up), "passed_over": name(&repair.passed_over) },
    });
    let context = DecodeContext { org: &org.name, now: node.clock.now(), limits: DecodeLimits::default() };
    let line = Bytes::from(event.to_string());
    let events = complete_own_events(&line, &context, &mut RandomIds::default()).map_err(|e| failed(e.to_string()))?;
    let mut rows = Rows::new(SectionKind::Events, &events, node.settings.remote)?;
    rows.header.first = Some(org.ledger.read().size());
    let seq = index.end() + 1;
    let (previous, before_it) = {
        let state = org.state.read();
        (state.position, state.object.as_ref().map(ObjectId::beginning))
    };
    let decisions = Decisions { cut: true, repaired: true, ..Decisions::default() };
    let before = index.id(index.end()).or(index.floor.id.as_ref()).cloned();
    let written_at = node.now().max(org.state.read().time).max(index.newest.unwrap_or(0));
    let front = Front { seq, writer: node.writer, written_at, previous: before };
    let section = Section {
        org: org.name.clone(),
        previous,
        before: before_it.clone(),
        decisions: decisions.clone(),
        rows: Some(rows),
    };
    let (id, pieces) = Object::encode(node.log.keys(), front, vec![section])?;
    match node.log.create(seq, &pieces).await {
        Created::Won => {}
        Created::Exists | Created::Unknown(_) => match node.log.read(seq).await? {
            Some(found) if found.id == id => node.log.settle(seq, &pieces).await?,
            Some(_) => return Ok(None),
            None => return Err(failed(format!("the store did not take {}; try again", log::name(seq)))),
        },
    }
    if node.log.floor().await?.number >= seq {
        return Err(failed("other nodes have trimmed the log past it; try again".to_owned()));
    }
    let change =
        Change { previous, before: before_it, decisions, rows: vec![change::Rows::Events(events, Vec::new())] };
    let place = Place { position: seq, id, time: written_at, ours: true };
    let (mut state, mut ledger) = (org.state.write(), org.ledger.write());
    let prepared = change.prepare(&ledger).map_err(|e| failed(e.to_string()))?;
    prepared.apply(&place, &mut state, &mut ledger, true);
    Ok(Some(seq))
}

/// Stores what the org is now: segments and a checkpoint over them, the tables, the state.
async fn settle(node: &Node, org: &Org) -> Result<(), StorageError> {
    let failed = |e: PlaneError| StorageError::failed("repair", &org.name, e.to_string());
    match publish(node, &org.ledger).await.map_err(failed)? {
        Outcome::Done => {}
        Outcome::Reload => {
            let reason = "another node writes the org's ledger; stop the others, and repair it again";
            return Err(StorageError::failed("repair", Path::from(ledger::folder(&org.name)), reason));
        }
    }
    flush(node, org).await.map(drop).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use arrow::record_batch::RecordBatch;

    use super::stretch;

    /// The entries that are taken of batches which hold these: from the one to before the other.
    fn taken(batches: &[(i64, i64)], first: u64, count: u64) -> Option<Vec<i64>> {
        let batch = |(from, to): &(i64, i64)| {
            let entries = Arc::new(Int64Array::from_iter_values(*from..*to)) as ArrayRef;
            (*from as u64, RecordBatch::try_from_iter([("seq", entries)]).unwrap())
        };
        let parts = stretch(batches.iter().map(batch).collect(), first, count)?;
        Some(parts.iter().flat_map(|part| part.column(0).as_primitive::<Int64Type>().values().to_vec()).collect())
    }

    #[test]
    fn each_entry_is_taken_once_whatever_a_merge_has_left_beside_it() {
        let expected = Some((5..16).collect::<Vec<_>>());
        let (whole, parts) = ((0, 20), [(0, 10), (10, 20)]);
        assert_eq!(taken(&parts, 5, 11), expected);
        assert_eq!(taken(&[whole], 5, 11), expected);
        for left in [vec![(0, 10)], vec![(10, 20)], parts.to_vec(), vec![(3, 7), (10, 12)]] {
            let mut all = left;
            all.push(whole);
            assert_eq!(taken(&all, 5, 11), expected, "{all:?}");
        }
    }

    #[test]
    fn entries_that_no_batch_has_are_not_made_up() {
        assert_eq!(taken(&[(0, 10), (12, 20)], 5, 11), None);
        assert_eq!(taken(&[(6, 20)], 5, 11), None);
        assert_eq!(taken(&[(0, 15)], 5, 11), None);
        assert_eq!(taken(&[], 5, 0), Some(Vec::new()));
    }
}
