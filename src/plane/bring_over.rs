//! Bringing over a store of version 1, at the first start of this version. No node of the old version may run
//! meanwhile.
//!
//! What version 1 stored carries no MAC, so this is the one time that it is believed as it lies there: `mcpg audit
//! verify` before it tells whether the ledgers are sound. In this order: the old log is replayed into memory upon the
//! old snapshots; every table is brought up to its end; every ledger's entries are put into segments under a
//! checkpoint; each org's state is written at the log's last position; the floor is raised to it; and last `wal/layout`
//! is written. Until then the store is one of version 1, and a crash begins all of it anew: each step finds what was
//! done.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore};

use super::{Plane, PlaneError};
use crate::audit::checkpoint;
use crate::audit::segment::{self, SegmentName};
use crate::flush::flush;
use crate::ingest::IdempotencyKey;
use crate::ledger::load::{assemble, signed};
use crate::ledger::publisher::publish;
use crate::ledger::segments_folder;
use crate::ledger::state::{LedgerEnd, LedgerState};
use crate::ledger::status::Status;
use crate::log::{Floor, SectionKind, layout, v1};
use crate::model::OrgName;
use crate::model::schema::{TOOL_INVOCATION_PAYLOADS, TOOL_INVOCATIONS, TOOL_USAGE_DAILY, TOOL_USAGE_HOURLY};
use crate::node::{Health, Node};
use crate::rollup::{Digest, RunningTotals};
use crate::state::dedup::{Dedup, Limits, Run, Stored};
use crate::state::org::dedup_limits;
use crate::state::snapshot::Saved;
use crate::state::{Org, OrgState, Tables};
use crate::storage::StorageError;
use crate::storage::table::Table;

/// An org as version 1 left it.
struct First {
    state: OrgState,
    tables: Tables,
    ledger: LedgerState,
    /// The runs of keys, each with the range of positions that it is of.
    runs: Vec<((u64, u64), Run)>,
    /// Keys that only the log has, and the greatest time of theirs.
    keys: Vec<IdempotencyKey>,
    /// Totals and keys hold what came up to here.
    saved: u64,
    /// Segments hold what came before here.
    sealed: u64,
}

/// Brings a store of version 1 over to this one.
pub(super) async fn bring_over(plane: &Plane) -> Result<(), PlaneError> {
    let node = &plane.node;
    tracing::info!(storage = node.store.url(), "bringing a store of version 1 over");
    let mut orgs = BTreeMap::new();
    for name in names(node).await? {
        let first = load(plane, &name).await?;
        orgs.insert(name, first);
    }
    let end = replay(node, &mut orgs).await?;
    for (name, first) in orgs {
        tracing::info!(org = %name, position = end, "bringing an org over");
        finish(plane, &name, first, end).await?;
    }
    node.log.begin().await?;
    node.log.raise(&Floor { number: end, id: None }).await?;
    layout::write(&node.store, node.log.keys()).await?;
    Ok(())
}

/// The orgs that have a folder.
pub(super) async fn names(node: &Node) -> Result<Vec<OrgName>, StorageError> {
    let folder = Path::from("orgs");
    let listed = node.store.objects().list_with_delimiter(Some(&folder)).await;
    let listed = listed.map_err(|e| StorageError::failed("list", &folder, e))?;
    // What is not named as an org is ignored.
    Ok(listed.common_prefixes.iter().filter_map(|path| path.filename()?.parse().ok()).collect())
}

/// Two numbers of a name `<from>-<to>`.
fn range(meta: &ObjectMeta) -> Option<(u64, u64)> {
    let (from, to) = meta.location.filename()?.split_once('-')?;
    Some((from.parse().ok()?, to.parse().ok()?))
}

async fn load(plane: &Plane, name: &OrgName) -> Result<First, PlaneError> {
    let node = &plane.node;
    let limits = node.settings.limits;
    let series = usize::try_from(limits.series).unwrap_or(usize::MAX);
    let open = |table, schema: &_, time| Table::open(&node.store, name, table, Arc::clone(schema), time);
    let (samples, samples_at) = open(TOOL_INVOCATIONS, &node.schemas.tool_invocations, "started_at").await?;
    let (hourly, hourly_at) = open(TOOL_USAGE_HOURLY, &node.schemas.tool_usage_hourly, "window_start").await?;
    let (daily, daily_at) = open(TOOL_USAGE_DAILY, &node.schemas.tool_usage_daily, "window_start").await?;
    // Version 1 knew no payloads.
    let (payloads, _) = open(TOOL_INVOCATION_PAYLOADS, &node.schemas.payloads, "started_at").await?;
    let mut state = OrgState::new(name.clone(), limits);
    (state.samples, state.hourly, state.daily) = (samples_at, hourly_at, daily_at);

    let mut saved = 0;
    if let Some(newest) = node.store.list(&Path::from(format!("orgs/{name}/totals"))).await?.last() {
        let damaged = |e: &dyn std::fmt::Display| StorageError::damaged(&newest.location, e);
        saved = newest
            .location
            .filename()
            .and_then(|name| name.parse().ok())
            .ok_or_else(|| damaged(&"it is not named by a position"))?;
        let bytes = node.store.get(&newest.location).await?.unwrap_or_default();
        state.totals = RunningTotals::decode(&bytes, series).map_err(|e| damaged(&e))?;
    }
    let mut runs = Vec::new();
    for meta in node.store.list(&Path::from(format!("orgs/{name}/keys"))).await? {
        let Some(positions) = range(&meta) else { continue };
        let bytes = node.store.get(&meta.location).await?.unwrap_or_default();
        match Run::decode_v1(positions, &bytes) {
            Ok(run) => runs.push((positions, run)),
            // One that an attempt before has written in today's form: the old log gives its keys again, or they are
            // lost to it.
            Err(e) => {
                tracing::warn!(path = %meta.location, error = %e, "a run of keys is not of version 1 and is passed over")
            }
        }
    }
    let origin = checkpoint::origin(&node.settings.name, name);
    let (ledger, sealed) = ledger(node, name, &origin).await?;
    Ok(First {
        state,
        tables: Tables { samples, hourly, daily, payloads, saved: Saved::default() },
        ledger,
        runs,
        keys: Vec::new(),
        saved,
        sealed,
    })
}

/// A run of keys as version 1 wrote them: of those it had not written yet the bodies are not known either.
fn first_run(mut keys: Vec<IdempotencyKey>, time: i64) -> Vec<u8> {
    keys.sort_unstable();
    keys.dedup();
    let mut out = b"MCPGKEY1".to_vec();
    out.extend_from_slice(&time.to_le_bytes());
    out.extend_from_slice(&time.to_le_bytes());
    keys.iter().for_each(|key| out.extend_from_slice(key.as_bytes()));
    let hash = blake3::hash(&out);
    out.extend_from_slice(hash.as_bytes());
    out
}

/// What runs of keys make, of which a wider one holds the narrower.
fn dedup(mut runs: Vec<((u64, u64), Run)>, position: u64, time: i64, limits: Limits) -> Dedup {
    runs.sort_by_key(|((from, to), _)| (*from, std::cmp::Reverse(*to)));
    let (mut kept, mut reaches) = (Vec::new(), 0);
    for ((_, to), run) in runs {
        if to > reaches {
            reaches = to;
            kept.push(run);
        }
    }
    Stored::from_v1(kept, limits, position, time)
}

/// The ledger that the segments make, and the position that they were sealed at.
async fn ledger(node: &Node, name: &OrgName, origin: &str) -> Result<(LedgerState, u64), PlaneError> {
    let schema = Arc::clone(&node.schemas.audit_log);
    let mut segments: Vec<SegmentName> = Vec::new();
    let mut all: Vec<SegmentName> = Vec::new();
    for meta in node.store.list(&segments_folder(name)).await? {
        all.extend(meta.location.filename().and_then(|name| name.parse::<SegmentName>().ok()));
    }
    // The newest that version 1 wrote says where the chain stands; those that an attempt before has written are made
    // again.
    let mut newest = None;
    all.sort_unstable_by_key(|segment| (segment.last, std::cmp::Reverse(segment.first)));
    for segment in all.iter().rev() {
        let path = crate::ledger::segment_path(name, *segment);
        let bytes = node.store.get(&path).await?.unwrap_or_default();
        let (text, of) = (path.to_string(), *segment);
        let end = tokio::task::spawn_blocking(move || segment::read(&text, of, bytes, |_| Ok(()))).await;
        match end.map_err(|e| PlaneError::Internal(e.to_string()))? {
            Ok(end) if end.position.is_some() => {
                newest = Some((*segment, end));
                break;
            }
            Ok(_) => {}
            // No checkpoint can speak of it: its write was cut short.
            Err(e) if e.is_damage() => tracing::warn!(%path, error = %e, "a segment was passed over"),
            Err(e) => return Err(e.into()),
        }
    }
    let Some((last, end)) = newest else { return Ok((LedgerState::new(origin.to_owned(), schema), 0)) };
    if end.origin != origin {
        let reason = format!(
            "the ledger of org {name} has the origin {}, and the setting `name` makes it {origin}; set `name` back",
            end.origin
        );
        return Err(node.store.unusable(reason).into());
    }
    let damaged = |reason: String| StorageError::damaged(segments_folder(name), reason);
    let status: Status = match end.standing.as_deref() {
        None => Status::default(),
        Some(text) => serde_json::from_str(text).map_err(|e| damaged(e.to_string()))?,
    };
    // Each entry is in the widest segment that has it.
    let mut next = status.pruned.as_ref().map_or(0, |pruned| pruned.first_kept);
    while next <= last.last {
        let widest = all.iter().filter(|segment| segment.first == next && segment.last <= last.last);
        let widest = widest.max_by_key(|segment| segment.last);
        let widest = *widest.ok_or_else(|| damaged(format!("no segment has entry {next}")))?;
        next = widest.last + 1;
        segments.push(widest);
    }
    let stored = LedgerEnd {
        size: end.head.size,
        hash: end.head.last.to_string(),
        first: segments.first().map_or(0, |segment| segment.first),
        segments: segments.iter().map(|segment| segment.entries()).collect(),
        // Nothing proves what their footers say.
        times: vec![None; segments.len()],
        status,
    };
    let state = LedgerState::restore(origin.to_owned(), schema, &stored);
    let state = state.ok_or_else(|| damaged("they cannot be one ledger's".to_owned()))?;
    Ok((state, end.position.unwrap_or(0)))
}

/// Replays the old log; gives the number of its last object.
async fn replay(node: &Node, orgs: &mut BTreeMap<OrgName, First>) -> Result<u64, PlaneError> {
    let numbers = node.log.list().await?;
    let mut newest_floor = 0;
    for number in numbers.iter().rev() {
        if let Some(object) = read(node, *number).await? {
            newest_floor = object.header.floor;
            break;
        }
    }
    let mut end = newest_floor;
    for (at, number) in numbers.iter().enumerate().filter(|(_, number)| **number > newest_floor) {
        if *number != end + 1 {
            return Err(StorageError::damaged(crate::log::name(end + 1), "it is missing from the log").into());
        }
        end = *number;
        match read(node, *number).await? {
            Some(object) => apply(node, orgs, &object).await?,
            None if at + 1 == numbers.len() => {
                tracing::warn!(position = number, "the last log object was cut short; nothing in it was acknowledged");
            }
            None => return Err(StorageError::damaged(crate::log::name(*number), "it is cut short").into()),
        }
    }
    for (name, first) in &*orgs {
        let state = &first.state;
        let stored = state.samples.position.max(state.hourly.position).max(state.daily.position).max(first.saved);
        if stored > end {
            let reason = format!("it ends at {end}, and something stored of org {name} is of position {stored}");
            return Err(StorageError::damaged("wal", reason).into());
        }
    }
    Ok(end)
}

async fn read(node: &Node, number: u64) -> Result<Option<v1::Object>, StorageError> {
    let bytes = node.store.get(&Path::from(crate::log::name(number))).await?;
    v1::Object::parse(number, bytes.unwrap_or_default())
}

async fn apply(node: &Node, orgs: &mut BTreeMap<OrgName, First>, object: &v1::Object) -> Result<(), PlaneError> {
    let header = &object.header;
    for name in &header.marks.cuts {
        if let Some(first) = orgs.get_mut(name).filter(|first| header.seq > first.sealed) {
            first.ledger.cut(true);
        }
    }
    for merge in &header.marks.merges {
        if let Some(first) = orgs.get_mut(&merge.org) {
            first.ledger.merge(SegmentName { first: merge.first, last: merge.last }, true);
        }
    }
    for (number, section) in header.sections.iter().enumerate() {
        let batch = object.read(number, node.schema_of(section.kind))?;
        let first = orgs.get_mut(&section.org).ok_or_else(|| {
            let reason = format!("it has rows of org {}, which has no folder", section.org);
            StorageError::damaged(crate::log::name(header.seq), reason)
        })?;
        let state = &mut first.state;
        state.time = state.time.max(header.written_at);
        match section.kind {
            SectionKind::Samples => {
                if header.seq > first.saved {
                    let digest = Digest::of(&batch).map_err(|e| PlaneError::Internal(e.to_string()))?;
                    state.totals.apply(&digest, state.time);
                }
                if header.seq > state.tables_hold() {
                    state.live.push(header.seq, batch);
                }
            }
            SectionKind::Events if header.seq >= first.sealed => {
                let sealed = first.ledger.seal_after(&first.ledger.head(), &batch);
                let sealed = sealed.map_err(|e| StorageError::damaged(crate::log::name(header.seq), e))?;
                first.ledger.apply(header.seq, sealed);
            }
            SectionKind::Events | SectionKind::Payloads => {}
        }
        if header.seq > first.saved {
            first.keys.extend(section.keys.iter().filter_map(|key| key.parse::<IdempotencyKey>().ok()));
        }
    }
    Ok(())
}

/// Writes everything of an org that was only in the old log, and its state.
async fn finish(plane: &Plane, name: &OrgName, first: First, end: u64) -> Result<(), PlaneError> {
    let First { mut state, tables, mut ledger, mut runs, keys, saved, .. } = first;
    let node = &plane.node;
    (state.position, state.object) = (end, None);
    if !keys.is_empty() {
        let run = Run::decode_v1((saved, end), &first_run(keys, state.time));
        let run = run.map_err(|e| PlaneError::Internal(e.to_string()))?;
        runs.push(((saved, end), run));
    }
    state.dedup = dedup(runs, end, state.time, dedup_limits(node.settings.limits));
    ledger.cut(true);
    let origin = ledger.origin().to_owned();
    let signed = signed(node, &plane.elsewhere, name, &origin).await?;
    let health = Arc::new(Health::new(name.clone()));
    let ledger = assemble(node, name, ledger, signed, Arc::clone(&health)).await?;
    let org = Org::new(name.clone(), state, tables, ledger, health);
    publish(node, &org.ledger).await?;
    if org.ledger.read().lags_at().is_some() {
        return Err(PlaneError::unavailable(format!("the ledger of org {name} was not written")));
    }
    flush(node, &org).await?;
    let old = node.store.list(&Path::from(format!("orgs/{name}/totals"))).await?;
    let old: Vec<Path> = old.into_iter().map(|meta| meta.location).collect();
    if old.is_empty() { Ok(()) } else { Ok(node.store.delete_all(old).await?) }
}
