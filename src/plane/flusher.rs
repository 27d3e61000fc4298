//! Flushing every org that is due, side by side, and trimming the log behind them. Trimming is beside flushing: it
//! writes and deletes what is parked of orgs whose files may hang.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::rounds::Rounds;
use super::{Plane, PlaneError, Readiness, follow};
use crate::flush::{flush, is_due, trim as log_trim};
use crate::state::{Org, parked_folders};
use crate::storage::StorageError;

/// Orgs that are flushed at once.
const AT_ONCE: usize = 4;
/// Orgs that are parked at once.
const PARKED_AT_ONCE: usize = 16;
/// How long an org's folder may take to let go what was parked there.
const UNPARK_TIMEOUT: Duration = Duration::from_secs(10);
/// How often, and after which pause, a flush that fails is tried again while draining.
const DRAIN_ATTEMPTS: u32 = 5;
const DRAIN_PAUSE: Duration = Duration::from_millis(200);
/// An org without requests for this long, of which nothing waits, is unloaded.
const IDLE: Duration = Duration::from_secs(600);

/// Flushes what is due until the plane is drained.
pub(super) async fn run(plane: Arc<Plane>) {
    let tick = (plane.node.settings.flush_interval / 8).clamp(Duration::from_millis(20), Duration::from_secs(1));
    let rounds = Rounds::new(AT_ONCE);
    let mut trimming: Option<JoinHandle<()>> = None;
    while plane.readiness() != Readiness::Draining {
        tokio::select! {
            () = sleep(tick) => {}
            () = plane.budget.crowded() => {}
        }
        // What a dead node left in the log is flushed by one that lives, asked or not.
        if let Err(e) = follow::catch_up(&plane).await {
            tracing::warn!(error = %e, "the log cannot be followed");
        }
        if plane.follower.is_outdated() {
            continue;
        }
        let crowded = plane.budget.is_crowded();
        let due = plane.registry.all_loaded().into_iter().filter(|org| is_due(&plane.node, &org.state.read(), crowded));
        let of = &plane;
        rounds.run(due, |org| flush_apart(Arc::clone(of), org)).await;
        plane.count_live();
        lag(&plane);
        if trimming.as_ref().is_none_or(JoinHandle::is_finished) {
            trimming = Some(tokio::spawn(trim(Arc::clone(&plane))));
        }
        forget_idle(&plane);
    }
}

/// Trims the log, and deletes what was parked and is needed no more.
async fn trim(plane: Arc<Plane>) {
    if let Err(e) = trim_log(&plane).await {
        tracing::warn!(error = %e, "the log was not trimmed and will be tried again");
    }
    unpark(&plane).await;
}

/// Deletes what was parked of orgs that are well again.
async fn unpark(plane: &Plane) {
    for org in plane.registry.all_loaded().into_iter().filter(|org| !org.health.is_stopped()) {
        let [folder, _] = parked_folders(&org.name);
        let hangs = |_| Err(StorageError::failed("delete what is parked in", folder, "it hangs"));
        let unparked = timeout(UNPARK_TIMEOUT, log_trim::unpark(&plane.node, &org)).await.unwrap_or_else(hangs);
        if let Err(e) = unparked {
            tracing::warn!(org = %org.name, error = %e, "what was parked was not deleted and will be tried again");
        }
    }
}

/// A flush in a task of its own: should it panic, the next one is tried all the same.
async fn flush_apart(plane: Arc<Plane>, org: Arc<Org>) {
    let (of_plane, of) = (Arc::clone(&plane), Arc::clone(&org));
    let task = tokio::spawn(async move { flush(&of_plane.node, &of).await });
    match task.await.unwrap_or_else(|e| Err(PlaneError::Internal(e.to_string()))) {
        Ok(_) => {}
        Err(PlaneError::Damaged(reason)) => plane.doubt(&org, &reason),
        Err(e) => {
            plane.node.metrics.flush.failures.inc();
            tracing::warn!(org = %org.name, error = %e, "a flush failed and will be tried again");
        }
    }
}

fn lag(plane: &Plane) {
    let orgs = plane.registry.all_loaded();
    let waited = orgs.iter().filter_map(|org| org.state.read().waiting_since).map(|since| since.elapsed()).max();
    plane.node.metrics.flush.lag_seconds.set(waited.unwrap_or_default().as_secs_f64());
    let unsealed = orgs.iter().map(|org| org.ledger.read().waited()).max();
    plane.node.metrics.audit.lag_seconds.set(unsealed.unwrap_or_default().as_secs_f64());
    let unsigned = orgs.iter().map(|org| org.ledger.read().unsigned_for()).max();
    plane.node.metrics.audit.unsigned_seconds.set(unsigned.unwrap_or_default().as_secs_f64());
    let (mut fill, mut evicted, mut lanes) = (0.0_f64, 0, 0);
    for org in &orgs {
        let state = org.state.read();
        let keys = state.dedup.keys();
        fill = fill.max(keys.bytes() as f64 / keys.max_bytes().max(1) as f64);
        evicted += keys.evicted_early();
        lanes = lanes.max(state.dedup.lanes().len());
    }
    plane.node.metrics.log.keys_fill.set(fill);
    plane.node.metrics.log.keys_evicted.set(i64::try_from(evicted).unwrap_or(i64::MAX));
    plane.node.metrics.log.lanes.set(i64::try_from(lanes).unwrap_or(i64::MAX));
    let stopped = plane.registry.slots().iter().filter(|slot| slot.damaged_since().is_some()).count();
    plane.node.metrics.log.stopped_orgs.set(i64::try_from(stopped).unwrap_or(i64::MAX));
}

/// Flushes everything before the process stops. An org that cannot be flushed keeps no other from it. Gives the first
/// error.
pub(super) async fn finish(plane: &Arc<Plane>) -> Result<(), PlaneError> {
    if plane.follower.is_outdated() {
        return Ok(());
    }
    let flushed = futures::stream::iter(plane.registry.all_loaded()).map(|org| async move {
        let mut attempts = 0;
        while let Err(e) = flush(&plane.node, &org).await {
            attempts += 1;
            if attempts == DRAIN_ATTEMPTS {
                return Err(e);
            }
            tracing::warn!(org = %org.name, error = %e, "a flush failed while draining and is tried again");
            sleep(DRAIN_PAUSE).await;
        }
        Ok(())
    });
    let flushed: Vec<_> = flushed.buffer_unordered(AT_ONCE).collect().await;
    flushed.into_iter().collect()
}

/// Raises the floor as far as every org lets it, and has orgs loaded that hold it back unloaded.
async fn trim_log(plane: &Arc<Plane>) -> Result<(), PlaneError> {
    let (applied, floor) = {
        let cursor = plane.follower.cursor.lock().await;
        (cursor.next.saturating_sub(1), cursor.floor.number)
    };
    // Another node may have raised it.
    plane.registry.raise(floor);
    // Read after `applied`: an org that stands flushed now holds all that was applied then.
    let most = log_trim::highest(&plane.node, applied);
    let (mut highest, mut parked) = (most, Vec::new());
    for slot in plane.registry.slots() {
        if slot.lift() {
            plane.load_in_background(slot.name.clone());
        }
        let org = slot.org();
        let limit = match &org {
            Some(org) if !org.health.is_stopped() => log_trim::limit(org),
            _ => slot.limit(),
        };
        if org.is_none() && limit.is_some() && slot.recent_failure().is_none() {
            plane.load_in_background(slot.name.clone());
        }
        let Some(limit) = limit.filter(|limit| *limit < most) else {
            slot.holds_back(false);
            continue;
        };
        // What holds the log back for long is kept apart from it.
        let since = slot.holds_back(limit <= floor);
        if since.is_some_and(|since| since.elapsed() >= plane.node.settings.park_after) {
            parked.push(slot);
        } else {
            highest = highest.min(limit);
        }
    }
    if highest > floor && !plane.node.rules.parked_first {
        log_trim::raise(&plane.node, highest).await?;
    }
    if highest > floor {
        // Side by side: each may take a while to find that its folder hangs.
        let parking = parked.into_iter().map(|slot| async move {
            let positions = slot.up_to(highest);
            let Some(lowest) = positions.first() else { return Ok(()) };
            tracing::warn!(org = %slot.name, sections = positions.len(), "parking an org that holds the log back");
            log_trim::park(&plane.node, &slot.name, &positions).await?;
            slot.note_parked(Some(*lowest));
            Ok::<_, PlaneError>(())
        });
        futures::stream::iter(parking).buffer_unordered(PARKED_AT_ONCE).try_collect::<()>().await?;
    }
    let parked = plane.registry.slots().iter().filter(|slot| slot.is_parked()).count();
    plane.node.metrics.log.parked_orgs.set(i64::try_from(parked).unwrap_or(i64::MAX));
    plane.node.metrics.log.untrimmed.set(i64::try_from(applied.saturating_sub(floor)).unwrap_or(i64::MAX));
    if highest > floor {
        log_trim::raise(&plane.node, highest).await?;
        plane.registry.raise(highest);
    }
    Ok(())
}

/// Unloads orgs of which nothing waits and that had no requests.
fn forget_idle(plane: &Plane) {
    let now = Instant::now();
    for org in plane.registry.all_loaded() {
        // Both of one moment: what is applied after it is past the position.
        let (is_flushed, position) = {
            let state = org.state.read();
            (state.is_flushed(), state.position)
        };
        let rests = is_flushed && !org.ledger.read().is_busy() && !org.health.is_stopped();
        if rests && now.duration_since(org.used()) >= IDLE && org.ledger.publisher.try_lock().is_ok_and(|p| p.rests()) {
            plane.registry.slot(&org.name).forget(position);
        }
    }
}
