//! Flush: from the live buffer to what lasts apart from the log.
//!
//! For one org, in this order, each step atomic and each with the position that it brings its part to:
//!
//! 1. samples to `tool_invocations`, 2. their partial rollups to `tool_usage_hourly`, 3. and to `tool_usage_daily`,
//! 4. idempotency keys, 5. running totals. Then the live buffer forgets what all tables hold.
//!
//! A crash between two steps leaves parts at different positions; the next flush brings each to the new target from
//! where it stands. What may be deleted from the log is announced in the header of the next object, and deleted after.
//!
//! Any node may flush; positions make it harmless that two do. To spare the work, a node that sees that another one
//! has moved an org's tables waits twice as long before it flushes that org itself.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::available_parallelism;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::{Instant, sleep};

use super::org::{Org, OrgState, Tables};
use super::recovery::{keys_folder, list, totals_folder};
use super::{Plane, PlaneError, Readiness, replica};
use crate::rollup::{Granularity, RollupError, daily_partials, hourly_partials};
use crate::storage::table::{Table, TableSnapshot};
use crate::storage::{StorageError, parquet};

/// Objects that are kept in the log however long they have been flushed: a node that is a little behind finds them.
const KEPT_OBJECTS: u64 = 16;
/// Snapshots of totals that are kept: a node that starts may be reading the one before the newest.
const KEPT_TOTALS: usize = 2;
/// Threads that encode samples, at most: the others are for requests.
const MAX_ENCODERS: usize = 4;

/// Flushes what is due until the plane is drained.
pub(super) async fn run(plane: Arc<Plane>) {
    let tick = (plane.settings.flush_interval / 8).clamp(Duration::from_millis(20), Duration::from_secs(1));
    while plane.readiness() != Readiness::Draining {
        tokio::select! {
            () = sleep(tick) => {}
            () = plane.budget.crowded() => {}
        }
        // What a dead node left in the log is flushed by one that lives, asked or not.
        if let Err(e) = replica::catch_up(&plane).await {
            tracing::warn!(error = %e, "the log cannot be followed");
        }
        let mut longest = Duration::ZERO;
        for org in plane.all_orgs() {
            let waited = org.read().waiting_since.map_or(Duration::ZERO, |since| since.elapsed());
            longest = longest.max(waited);
            if is_due(&plane, &org.read(), waited)
                && let Err(e) = flush_apart(&plane, &org).await
            {
                plane.metrics.flush.failures.inc();
                tracing::warn!(org = %org.name, error = %e, "a flush failed and will be tried again");
            }
        }
        plane.metrics.flush.lag_seconds.set(longest.as_secs_f64());
        if let Err(e) = trim(&plane).await {
            tracing::warn!(error = %e, "the log was not trimmed and will be tried again");
        }
    }
}

/// A flush in a task of its own: should a fault of the program end it, the next one is tried all the same.
async fn flush_apart(plane: &Arc<Plane>, org: &Arc<Org>) -> Result<(), PlaneError> {
    let (plane, org) = (Arc::clone(plane), Arc::clone(org));
    let task = tokio::spawn(async move { flush(&plane, &org).await });
    task.await.unwrap_or_else(|e| Err(PlaneError::Internal(e.to_string())))
}

fn is_due(plane: &Plane, state: &OrgState, waited: Duration) -> bool {
    if state.is_flushed() {
        return false;
    }
    let settings = &plane.settings;
    let patience = if state.flushed_by_peer { 2 } else { 1 };
    waited >= settings.flush_interval * patience
        || state.live.rows() >= settings.flush_rows * patience as usize
        || state.live.bytes() >= settings.flush_bytes
        || plane.budget.is_crowded()
}

/// Brings everything stored of an org up to where it stands in the log.
pub(super) async fn flush(plane: &Plane, org: &Org) -> Result<(), PlaneError> {
    let mut tables = org.tables.lock().await;
    let (Some(tables), false) = (tables.as_mut(), org.is_stopped()) else { return Ok(()) };
    let began = Instant::now();
    let before = org.read().samples.position;
    let (target, held) = {
        let state = org.read();
        (state.position, state.tables_hold())
    };
    if held < target
        && let Err(e) = flush_tables(plane, org, tables, target).await
    {
        if let PlaneError::OrgStopped { reason, .. } = &e {
            org.stop(reason.clone());
        }
        return Err(e);
    }
    save(plane, org).await?;
    {
        let mut state = org.write();
        let held = state.tables_hold();
        state.live.release(held);
        state.waiting_since = (!state.is_flushed()).then(Instant::now);
    }
    plane.count_live();
    if target > before {
        plane.metrics.flush.seconds.observe(began.elapsed().as_secs_f64());
        tracing::debug!(org = %org.name, position = target, took = ?began.elapsed(), "flushed");
    }
    Ok(())
}

/// One of the tables that a flush writes.
#[derive(Debug, Clone, Copy)]
enum Part {
    Samples,
    Rollup(Granularity),
}

impl Part {
    const ALL: [Self; 3] = [Self::Samples, Self::Rollup(Granularity::Hour), Self::Rollup(Granularity::Day)];

    fn table(self, tables: &mut Tables) -> &mut Table {
        match self {
            Self::Samples => &mut tables.samples,
            Self::Rollup(Granularity::Hour) => &mut tables.hourly,
            Self::Rollup(Granularity::Day) => &mut tables.daily,
        }
    }

    fn state(self, state: &mut OrgState) -> &mut TableSnapshot {
        match self {
            Self::Samples => &mut state.samples,
            Self::Rollup(Granularity::Hour) => &mut state.hourly,
            Self::Rollup(Granularity::Day) => &mut state.daily,
        }
    }
}

/// Brings all tables of an org to `target`. What each lacks is encoded at once, on threads of its own beside those that
/// serve requests; the commits follow one another.
async fn flush_tables(plane: &Plane, org: &Org, tables: &mut Tables, target: u64) -> Result<(), PlaneError> {
    let mut bases = Vec::with_capacity(Part::ALL.len());
    for part in Part::ALL {
        bases.push(look(org, part, part.table(tables)).await?);
    }
    let mut tasks = VecDeque::new();
    let mut parts = Part::ALL.into_iter().zip(bases).filter(|(_, base)| *base < target).peekable();
    while let Some((part, base)) = parts.next() {
        let mut together = vec![part];
        // Days are made of the hours, where both begin at the same place.
        if let Part::Rollup(_) = part {
            together.extend(std::iter::from_fn(|| parts.next_if(|(_, other)| *other == base)).map(|(part, _)| part));
        }
        let task = encode(plane, together.clone(), rows(org, base, target));
        tasks.push_back((base, together, task));
    }
    while let Some((base, parts, task)) = tasks.pop_front() {
        for (part, files) in parts.into_iter().zip(joined(task.await)?) {
            commit(plane, org, part, part.table(tables), files, base..target).await?;
        }
    }
    Ok(())
}

/// The position that a table stands at in the store.
async fn look(org: &Org, part: Part, table: &mut Table) -> Result<u64, PlaneError> {
    let known = part.state(&mut org.write()).position;
    let now = table.refresh().await.map_err(|e| stopped(org, e))?;
    let mut state = org.write();
    if now.position > known {
        state.flushed_by_peer = true;
    }
    let position = now.position;
    *part.state(&mut state) = now;
    Ok(position)
}

/// Commits what was encoded of a range of positions. Where another node has moved the table on meanwhile, what is lacking
/// still is encoded again.
async fn commit(
    plane: &Plane,
    org: &Org,
    part: Part,
    table: &mut Table,
    mut files: Files,
    mut range: Range<u64>,
) -> Result<(), PlaneError> {
    loop {
        let (count, bytes, rows) = (files.files.len(), files.bytes(), files.rows);
        let random = Arc::clone(&plane.random);
        let appended = table.append(files.files, range.start, range.end, plane.now(), move || random.uuid()).await;
        let now = appended.map_err(|e| stopped(org, e))?;
        let reached = now.position;
        {
            let mut state = org.write();
            *part.state(&mut state) = now;
            if reached == range.end {
                state.flushed_by_peer = false;
            }
        }
        if reached == range.end {
            if matches!(part, Part::Samples) {
                plane.metrics.flush.rows.inc_by(rows as u64);
            }
            plane.metrics.flush.files.inc_by(count as u64);
            plane.metrics.flush.bytes.inc_by(bytes as u64);
        }
        if reached >= range.end {
            return Ok(());
        }
        range.start = reached;
        let again = joined(encode(plane, vec![part], self::rows(org, range.start, range.end)).await)?;
        files = again.into_iter().next().ok_or_else(|| PlaneError::Internal("nothing was encoded".to_owned()))?;
    }
}

fn stopped(org: &Org, e: StorageError) -> PlaneError {
    match e.is_damage() {
        true => PlaneError::OrgStopped { org: org.name.to_string(), reason: e.to_string() },
        false => e.into(),
    }
}

fn rows(org: &Org, base: u64, target: u64) -> Vec<RecordBatch> {
    org.read().live.range(base, target)
}

/// The files of one table, and how many rows they were made of.
struct Files {
    files: Vec<parquet::EncodedFile>,
    rows: usize,
}

impl Files {
    fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.bytes.len()).sum()
    }
}

type Encoding = JoinHandle<Result<Vec<Files>, PlaneError>>;

fn joined(ended: Result<Result<Vec<Files>, PlaneError>, JoinError>) -> Result<Vec<Files>, PlaneError> {
    ended.unwrap_or_else(|e| Err(PlaneError::Internal(e.to_string())))
}

/// Makes of samples what some parts hold of them, in the order of the parts.
fn encode(plane: &Plane, parts: Vec<Part>, samples: Vec<RecordBatch>) -> Encoding {
    let (schemas, runtime) = (plane.schemas, Handle::current());
    tokio::task::spawn_blocking(move || {
        let failed = |e: RollupError| PlaneError::Internal(e.to_string());
        let rows = samples.iter().map(RecordBatch::num_rows).sum();
        let mut hours = None;
        let mut made = Vec::with_capacity(parts.len());
        for part in parts {
            let files = match part {
                Part::Samples => {
                    let threads = available_parallelism().map_or(1, usize::from).min(MAX_ENCODERS);
                    parquet::encode(&schemas.tool_invocations, &samples, threads)?
                }
                Part::Rollup(granularity) => {
                    let hours = match &hours {
                        Some(hours) => hours,
                        None => hours.insert(runtime.block_on(hourly_partials(&samples)).map_err(failed)?),
                    };
                    match granularity {
                        Granularity::Hour => {
                            parquet::encode(&schemas.tool_usage_hourly, std::slice::from_ref(hours), 1)?
                        }
                        Granularity::Day => {
                            let days = runtime.block_on(daily_partials(hours)).map_err(failed)?;
                            parquet::encode(&schemas.tool_usage_daily, &[days], 1)?
                        }
                    }
                }
            };
            made.push(Files { files, rows });
        }
        Ok(made)
    })
}

/// Stores keys and then totals, as of where the org stands now. In this order: totals that are newer than the keys
/// would forget keys at a crash, keys that are newer than the totals are merely read from the log once more.
async fn save(plane: &Plane, org: &Org) -> Result<(), PlaneError> {
    let (position, totals, sealed) = {
        let mut state = org.write();
        if state.saved >= state.touched {
            return Ok(());
        }
        let (position, now) = (state.touched, plane.now());
        state.totals.expire(now);
        (position, state.totals.encode(), state.keys.seal(position, now))
    };
    let objects = plane.store.objects();
    let stored = async {
        for run in &sealed.new {
            put(objects, &key_path(org, run.from, run.to), run.encode()).await?;
        }
        let folder = totals_folder(&org.name);
        put(objects, &Path::from(format!("{folder}/{position:020}")), totals).await?;
        for (from, to) in &sealed.gone {
            delete(objects, &key_path(org, *from, *to)).await?;
        }
        for old in list(plane, &folder).await?.iter().rev().skip(KEPT_TOTALS) {
            delete(objects, &old.location).await?;
        }
        Ok::<_, StorageError>(())
    }
    .await;
    let mut state = org.write();
    state.keys.settle(sealed, stored.is_ok());
    stored?;
    state.saved = position;
    Ok(())
}

fn key_path(org: &Org, from: u64, to: u64) -> Path {
    Path::from(format!("{}/{from:020}-{to:020}", keys_folder(&org.name)))
}

/// Stores what is a function of its name: another node's is as good, and one that a failed attempt left torn is
/// replaced.
async fn put(objects: &Arc<dyn ObjectStore>, path: &Path, bytes: Vec<u8>) -> Result<(), StorageError> {
    objects.put(path, bytes.into()).await.map(drop).map_err(|e| StorageError::failed("write", path, e))
}

async fn delete(objects: &Arc<dyn ObjectStore>, path: &Path) -> Result<(), StorageError> {
    match objects.delete(path).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
        Err(e) => Err(StorageError::failed("delete", path, e)),
    }
}

/// Works out what the log holds in vain, and deletes what an object has announced as such.
async fn trim(plane: &Plane) -> Result<(), StorageError> {
    let (applied, announced, trimmed) = {
        let cursor = plane.replica.cursor.lock().await;
        (cursor.next.saturating_sub(1), cursor.floor, cursor.trimmed)
    };
    // Read after `applied`: an org that stands flushed now holds all that was applied then.
    let orgs = plane.all_orgs();
    let unflushed = orgs.iter().filter_map(|org| {
        if org.is_stopped() {
            return Some(0);
        }
        let (state, ledger) = (org.read().lags_at(), org.ledger().lags_at());
        state.into_iter().chain(ledger).min()
    });
    let flushed = unflushed.min().unwrap_or(applied).min(applied.saturating_sub(KEPT_OBJECTS));
    plane.flushed.fetch_max(flushed, Ordering::AcqRel);
    for seq in trimmed + 1..=announced.min(applied.saturating_sub(KEPT_OBJECTS)) {
        plane.log.delete(seq).await?;
        let mut cursor = plane.replica.cursor.lock().await;
        cursor.trimmed = cursor.trimmed.max(seq);
    }
    Ok(())
}
