//! Start-up, and starting again: from what is stored to a node that follows the log.
//!
//! For each org: its tables with their positions, the newest totals, the idempotency keys. Then the log from its first
//! object: each part of each org takes what it does not hold yet. So it does not matter at which step of a flush the
//! last process died, nor that another node is flushing meanwhile.
//!
//! The newest object's header says up to where the log may be trimmed; from there on it must be without a gap.
//! A missing object is damage that concerns every org, since nobody can say whose samples it held.

use std::sync::{Arc, PoisonError};

use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::time::Instant;

use super::keys::{KeyWindow, Run};
use super::org::{Org, OrgState, Tables};
use super::replica::{self, Cursor, Decoded, Link};
use super::{Plane, PlaneError, Readiness, flusher, ledger_load};
use crate::model::OrgName;
use crate::model::schema::{TOOL_INVOCATIONS, TOOL_USAGE_DAILY, TOOL_USAGE_HOURLY};
use crate::rollup::RunningTotals;
use crate::storage::StorageError;
use crate::storage::table::Table;
use crate::storage::wal::{Created, Front, Log, Marks, Object, Slot};

/// WAL objects read ahead of the one being applied.
const READ_AHEAD: usize = 4;

/// How often, and after which pause, a store that fails is asked again to take the log's first object.
const BEGIN_TRIES: usize = 5;
const BEGIN_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// Brings the plane up to the end of the log.
pub(super) async fn recover(plane: &Plane) -> Result<(), PlaneError> {
    let began = Instant::now();
    let mut cursor = plane.replica.cursor.lock().await;
    load(plane, &mut cursor).await?;
    plane.metrics.replay.seconds.set(began.elapsed().as_secs_f64());
    tracing::info!(position = cursor.next - 1, took = ?began.elapsed(), "the log is replayed");
    Ok(())
}

/// Loads every org and replays the log.
pub(super) async fn load(plane: &Plane, cursor: &mut Cursor) -> Result<(), PlaneError> {
    let mut names = plane.settings.orgs.clone();
    names
        .extend(plane.all_orgs().iter().map(|org| org.name.clone()).filter(|name| !plane.settings.orgs.contains(name)));
    for name in names {
        let loaded = load_org(plane, &name).await?;
        let known = plane.orgs.read().unwrap_or_else(PoisonError::into_inner).get(&name).map(Arc::clone);
        match known {
            Some(org) => org.replace(loaded).await,
            None => {
                plane.orgs.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(loaded));
            }
        }
    }
    replay(plane, cursor).await?;
    begin(plane, cursor).await
}

/// Sees to it that there is an object before the next one, by which a node can tell that it was left behind: into an
/// empty log, or after a torn end, it writes an object that holds nothing.
async fn begin(plane: &Plane, cursor: &mut Cursor) -> Result<(), PlaneError> {
    let mut tries = 0;
    while !matches!(cursor.previous, Link::Is(_)) {
        let seq = cursor.next;
        let front = Front {
            seq,
            writer: plane.writer,
            written_at: plane.now(),
            previous: None,
            floor: cursor.floor,
            marks: Marks::default(),
        };
        let (id, pieces) = Object::encode(front, &[])?;
        match plane.log.create(seq, pieces).await {
            Ok(Created::Won) if is_trimmed(&plane.log, seq).await? => return Err(PlaneError::left_behind()),
            Ok(Created::Won) => replica::advance(plane, cursor, seq, id, cursor.floor),
            // Another node's, or one's own whose answer was lost, or a torn one.
            Ok(Created::Lost) => replica::follow(plane, cursor).await?,
            Err(e) if tries == BEGIN_TRIES => return Err(e.into()),
            Err(e) => {
                tracing::warn!(error = %e, "the store did not take the log's first object; trying again");
                tries += 1;
                tokio::time::sleep(BEGIN_PAUSE).await;
            }
        }
    }
    Ok(())
}

/// Whether trimming has passed number `seq`. A process that slept for long can create an object where one was deleted;
/// no other will ever read it, and it is deleted again.
pub(super) async fn is_trimmed(log: &Log, seq: u64) -> Result<bool, StorageError> {
    let trimmed = announced_floor(log, &log.list().await?).await? >= seq;
    if trimmed {
        log.delete(seq).await?;
    }
    Ok(trimmed)
}

/// Loads one org from what is stored. Damage does not fail the load: the org is there, and stopped.
pub(super) async fn load_org(plane: &Plane, name: &OrgName) -> Result<Org, StorageError> {
    let loaded = async {
        let (state, tables) = load_parts(plane, name).await?;
        let (ledger, press) = ledger_load::load(plane, name).await?;
        Ok::<_, StorageError>(Org::new(name.clone(), state, Some(tables), ledger, press))
    };
    match loaded.await {
        Err(e) if e.is_damage() => {
            let (ledger, press) = ledger_load::empty(plane, name);
            let state = OrgState::new(name.clone(), plane.settings.max_series);
            let org = Org::new(name.clone(), state, None, ledger, press);
            org.stop(e.to_string());
            Ok(org)
        }
        loaded => loaded,
    }
}

async fn load_parts(plane: &Plane, name: &OrgName) -> Result<(OrgState, Tables), StorageError> {
    let schemas = plane.schemas;
    let open = |table, schema: &_, time| Table::open(&plane.store, name, table, Arc::clone(schema), time);
    let (samples, samples_at) = open(TOOL_INVOCATIONS, &schemas.tool_invocations, "started_at").await?;
    let (hourly, hourly_at) = open(TOOL_USAGE_HOURLY, &schemas.tool_usage_hourly, "window_start").await?;
    let (daily, daily_at) = open(TOOL_USAGE_DAILY, &schemas.tool_usage_daily, "window_start").await?;
    let mut state = OrgState::new(name.clone(), plane.settings.max_series);
    (state.samples, state.hourly, state.daily) = (samples_at, hourly_at, daily_at);
    load_totals(plane, name, &mut state).await?;
    state.keys = load_keys(plane, name).await?;
    (state.position, state.touched) = (state.tables_hold(), state.saved);
    Ok((state, Tables { samples, hourly, daily }))
}

/// Loads the newest snapshot of totals that can be read. One that cannot is not an end: the one before it is exact too,
/// as long as the log still holds what came after it, which [`replay`] looks at.
async fn load_totals(plane: &Plane, name: &OrgName, state: &mut OrgState) -> Result<(), StorageError> {
    let mut fault = None;
    for meta in list(plane, &totals_folder(name)).await?.iter().rev() {
        match read_totals(plane, name, meta).await {
            Ok(found) => {
                (state.saved, state.totals) = found;
                state.passed_over = fault.map(|e: StorageError| e.to_string());
                return Ok(());
            }
            Err(e) if e.is_damage() => {
                tracing::error!(org = %name, error = %e, "falling back to the snapshot of totals before it");
                fault.get_or_insert(e);
            }
            Err(e) => return Err(e),
        }
    }
    fault.map_or(Ok(()), Err)
}

async fn read_totals(plane: &Plane, name: &OrgName, meta: &ObjectMeta) -> Result<(u64, RunningTotals), StorageError> {
    let damaged = |reason: String| StorageError::damaged(&meta.location, reason);
    let position = meta.location.filename().and_then(|name| name.parse().ok());
    let position = position.ok_or_else(|| damaged("it is not named by a position".to_owned()))?;
    let bytes = get(plane, &meta.location).await?;
    let totals = RunningTotals::decode(&bytes, plane.settings.max_series).map_err(|e| damaged(e.to_string()))?;
    if totals.org() != name {
        return Err(damaged(format!("it holds the totals of org {}", totals.org())));
    }
    Ok((position, totals))
}

async fn load_keys(plane: &Plane, name: &OrgName) -> Result<KeyWindow, StorageError> {
    let mut runs = Vec::new();
    for meta in list(plane, &keys_folder(name)).await? {
        let damaged = |reason: &str| StorageError::damaged(&meta.location, reason);
        let range = meta.location.filename().and_then(|name| name.split_once('-'));
        let range = range.and_then(|(from, to)| from.parse().ok().zip(to.parse().ok()));
        let (from, to) = range.ok_or_else(|| damaged("it is not named by a range of positions"))?;
        runs.push(Run::decode(from, to, &get(plane, &meta.location).await?).map_err(damaged)?);
    }
    Ok(KeyWindow::load(runs))
}

/// The folder of an org's snapshots of running totals.
pub(super) fn totals_folder(name: &OrgName) -> Path {
    Path::from(format!("orgs/{name}/totals"))
}

/// The folder of an org's idempotency keys.
pub(super) fn keys_folder(name: &OrgName) -> Path {
    Path::from(format!("orgs/{name}/keys"))
}

/// What lies in a folder, in order of name.
pub(super) async fn list(plane: &Plane, folder: &Path) -> Result<Vec<ObjectMeta>, StorageError> {
    let listed = plane.store.objects().list(Some(folder)).try_collect::<Vec<_>>().await;
    let mut found = listed.map_err(|e| StorageError::failed("list", folder, e))?;
    found.sort_unstable_by(|a, b| a.location.cmp(&b.location));
    Ok(found)
}

async fn get(plane: &Plane, path: &Path) -> Result<bytes::Bytes, StorageError> {
    let failed = |e| StorageError::failed("read", path, e);
    plane.store.objects().get(path).await.map_err(failed)?.bytes().await.map_err(failed)
}

/// Applies the objects that are in the log.
async fn replay(plane: &Plane, cursor: &mut Cursor) -> Result<(), PlaneError> {
    let mut numbers = plane.log.list().await?;
    let floor = announced_floor(&plane.log, &numbers).await?;
    numbers.retain(|number| *number > floor);
    for org in plane.all_orgs() {
        let damage = {
            let state = org.read();
            state.passed_over.clone().filter(|_| state.saved < floor)
        };
        if let Some(reason) = damage {
            org.stop(format!("{reason}; the log no longer holds what came after the snapshot before it"));
        }
    }
    let stored = plane.all_orgs().iter().map(|org| org.read().newest_stored().max(org.ledger().newest_stored())).max();
    let stored = stored.unwrap_or(0);
    match numbers.first() {
        None if stored > 0 => {
            let reason = format!("no object is left in it, though tables hold what it held up to position {stored}");
            return Err(StorageError::damaged("wal", reason).into());
        }
        None => {}
        Some(_) => {
            for (expected, number) in (floor + 1..).zip(&numbers) {
                if *number != expected {
                    return Err(StorageError::damaged(Log::name(expected), "it is missing from the log").into());
                }
            }
        }
    }
    *cursor = Cursor {
        next: floor + 1,
        previous: if floor == 0 { Link::Void } else { Link::Unknown },
        floor,
        trimmed: floor,
    };
    let total = numbers.len() as u64;
    report(plane, 0, total);
    let mut objects = futures::stream::iter(numbers).map(|number| plane.log.read(number)).buffered(READ_AHEAD);
    let mut done = 0;
    while let Some(slot) = objects.next().await {
        match slot? {
            Slot::Whole(object) => replica::apply_decoded(plane, cursor, Decoded::of(plane, &object)).await?,
            Slot::Torn => replica::pass_over(cursor),
            Slot::Absent => {
                return Err(StorageError::damaged(Log::name(cursor.next), "it went away while it was read").into());
            }
        }
        done += 1;
        report(plane, done, total);
        if plane.live_bytes() > plane.settings.flush_bytes {
            for org in plane.all_orgs() {
                flusher::flush(plane, &org).await?;
            }
        }
    }
    Ok(())
}

/// The floor that the newest whole object announces.
async fn announced_floor(log: &Log, numbers: &[u64]) -> Result<u64, StorageError> {
    for number in numbers.iter().rev() {
        if let Slot::Whole(object) = log.read(*number).await? {
            return Ok(object.header.floor);
        }
    }
    Ok(0)
}

fn report(plane: &Plane, done: u64, total: u64) {
    let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    plane.metrics.replay.objects.set(gauge(total));
    plane.metrics.replay.objects_done.set(gauge(done));
    plane.readiness.send_if_modified(|readiness| {
        let replaying = matches!(readiness, Readiness::Replaying { .. });
        if replaying {
            *readiness = Readiness::Replaying { done, total };
        }
        replaying
    });
}
