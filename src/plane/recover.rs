//! Loading: from what is stored to a node that follows the log.
//!
//! The log's headers are read from the floor to the end, which says where each org has sections; orgs themselves are
//! loaded when they are asked for, or to be flushed. The log is listed once, and a number missing between two, which a
//! GET confirms, is damage. The floor is read once more afterwards: if it has passed the first number read, all that
//! again.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::StreamExt;
use tokio::time::{Instant, sleep};

use super::follow::{self, Cursor};
use super::registry::Slot;
use super::{Plane, PlaneError, Readiness};
use crate::log::{self, layout};
use crate::model::OrgName;
use crate::node::Node;
use crate::state::change::{Change, Place};
use crate::state::{Org, load as load_org_parts, snapshot};
use crate::storage::StorageError;

/// Log objects read ahead.
const READ_AHEAD: usize = 8;
/// How often a load is tried that trimming overtakes.
const LOAD_ATTEMPTS: usize = 8;
/// How long a load's turn lasts at most.
pub(super) const LOAD_TURN: std::time::Duration = std::time::Duration::from_secs(2);
/// How many loads of an org must find damage before it counts: what a node that flushes meanwhile takes away looks like
/// it. A load that was overtaken does not count.
const FINDINGS: usize = 3;
/// The pause after a start's first failed read; it doubles up to the longest.
const FIRST_START_BACKOFF: std::time::Duration = std::time::Duration::from_millis(200);
const LONGEST_START_BACKOFF: std::time::Duration = std::time::Duration::from_secs(5);
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_millis(50);

/// Brings the node up to the end of the log, making or bringing over what a store of this version has. A store that
/// cannot be read is waited for.
pub(super) async fn recover(plane: &Plane) -> Result<(), PlaneError> {
    let mut backoff = FIRST_START_BACKOFF;
    loop {
        match Box::pin(try_recover(plane)).await {
            Err(e @ PlaneError::Unavailable { .. }) if plane.readiness() != Readiness::Draining => {
                plane.node.metrics.log.hiccups.inc();
                tracing::warn!(error = %e, retry_in = ?backoff, "the store cannot be read yet");
                sleep(backoff).await;
                backoff = (backoff * 2).min(LONGEST_START_BACKOFF);
            }
            recovered => return recovered,
        }
    }
}

async fn try_recover(plane: &Plane) -> Result<(), PlaneError> {
    let began = Instant::now();
    let node = &plane.node;
    match layout::find(&node.store, node.log.keys()).await? {
        layout::Found::Current => {}
        layout::Found::Empty => {
            node.log.begin().await?;
            layout::write(&node.store, node.log.keys()).await?;
        }
        layout::Found::First if node.settings.bring_over => {
            Box::pin(super::bring_over::bring_over(plane)).await?;
            plane.brought_over.store(true, Ordering::Release);
        }
        layout::Found::First => {
            let reason = "it has no wal/layout, as a store of version 1 has none, and log.bring_over is false: if it is of this \
                          version, restore its layout; if it is of version 1, set `log: { bring_over: true }` for one start";
            return Err(node.store.unusable(reason).into());
        }
    }
    if node.log.keys().has_others() {
        reseal(plane).await?;
    }
    let mut cursor = plane.follower.cursor.lock().await;
    load(plane, &mut cursor).await?;
    node.metrics.replay.seconds.set(began.elapsed().as_secs_f64());
    tracing::info!(position = cursor.next - 1, took = ?began.elapsed(), "the log is loaded");
    Ok(())
}

/// During a change of keys: puts all that carries a MAC under the current key, the layout last. What other nodes still
/// write under the one before, a later start does.
async fn reseal(plane: &Plane) -> Result<(), PlaneError> {
    let node = &plane.node;
    node.log.reseal().await?;
    for org in super::bring_over::names(node).await? {
        match snapshot::reseal(node, &org).await {
            Ok(()) => {}
            // Its load says so to whom it concerns.
            Err(e) if e.is_damage() => {
                tracing::error!(%org, error = %e, "an object stays under the key that it is under")
            }
            Err(e) => return Err(e.into()),
        }
    }
    Ok(layout::reseal(&node.store, node.log.keys()).await?)
}

/// Reads the log from the floor to its end.
pub(super) async fn load(plane: &Plane, cursor: &mut Cursor) -> Result<(), PlaneError> {
    let mut findings = Findings::default();
    for _ in 0..LOAD_ATTEMPTS {
        match scan(plane).await {
            Ok(Some((loaded, sections, seen_after))) => {
                *cursor = loaded;
                plane.registry.reset(sections, seen_after);
                return Ok(());
            }
            // Overtaken by trimming.
            Ok(None) => {}
            Err(e) => findings.note(e)?,
        }
    }
    Err(PlaneError::unavailable("the log is trimmed faster than it can be read"))
}

/// What reading the log found damaged. Only what is found again after that counts (L4); a scan that trimming has
/// overtaken says nothing of what the one before it found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    object: Option<String>,
}

impl Findings {
    /// Takes note of what ended a scan, if the next one is to tell what it is.
    ///
    /// # Errors
    /// The error, where it is no damage, or the scan that found damage before found it in the same object.
    pub(super) fn note(&mut self, e: StorageError) -> Result<(), StorageError> {
        let StorageError::Damaged { object, .. } = &e else { return Err(e) };
        if self.object.replace(object.clone()).as_ref() == Some(object) { Err(e) } else { Ok(()) }
    }
}

/// Where each org has sections.
type Sections = HashMap<OrgName, Vec<u64>>;

/// Reads the log once: where it ends, what it has, and the floor that it has it above. None if trimming has overtaken
/// it.
async fn scan(plane: &Plane) -> Result<Option<(Cursor, Sections, u64)>, StorageError> {
    let log = &plane.node.log;
    let floor = log.floor().await?;
    let first = floor.number + 1;
    let mut numbers = log.list().await?;
    numbers.retain(|number| *number >= first);
    for (expected, number) in (first..).zip(&numbers) {
        if *number != expected && log.read(expected).await?.is_none() {
            if log.floor().await?.number >= first {
                return Ok(None);
            }
            return Err(StorageError::damaged(log::name(expected), "it is missing from the log"));
        }
    }
    let end = numbers.last().copied().unwrap_or(floor.number);
    let total = end - floor.number;
    report(plane, 0, total);
    let (mut previous, mut time, mut sections) = (floor.id.clone(), 0, Sections::new());
    let mut objects = futures::stream::iter(first..=end).map(|number| log.read(number)).buffered(READ_AHEAD);
    let mut unfit = None;
    while let Some(object) = objects.next().await {
        let object = match object {
            Ok(Some(object)) => object,
            // Either trimming is under way, or the hole was looked for above.
            Ok(None) => return Ok(None),
            Err(e) if e.is_damage() => {
                unfit = Some(e);
                break;
            }
            Err(e) => return Err(e),
        };
        if plane.node.rules.chain && object.header.previous != previous {
            unfit = Some(follow::unchained(&object, previous.as_ref()));
            break;
        }
        let position = object.header.seq;
        for section in &object.header.sections {
            let positions = sections.entry(section.org.clone()).or_default();
            if positions.last() != Some(&position) {
                positions.push(position);
            }
        }
        previous = Some(object.id);
        time = time.max(object.header.written_at);
        report(plane, position - floor.number, total);
    }
    // What was read counts once a floor read after it is lower than the first of it.
    let now = log.floor().await?;
    if plane.node.rules.confirm && now.number >= first {
        return Ok(None);
    }
    match unfit {
        Some(e) => Err(e),
        None => Ok(Some((Cursor::at(end + 1, previous, time, now), sections, floor.number))),
    }
}

fn report(plane: &Plane, done: u64, total: u64) {
    let gauge = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    plane.node.metrics.replay.objects.set(gauge(total));
    plane.node.metrics.replay.objects_done.set(gauge(done));
    plane.readiness.send_if_modified(|readiness| {
        let replaying = matches!(readiness, Readiness::Replaying { .. });
        if replaying {
            *readiness = Readiness::Replaying { done, total };
        }
        replaying
    });
}

/// The org, loaded if it is not.
pub(super) async fn org(plane: &Plane, slot: &Slot) -> Result<Arc<Org>, PlaneError> {
    if let Some(org) = slot.org() {
        return Ok(org);
    }
    let _one_at_a_time = slot.loading.lock().await;
    if let Some(org) = slot.org() {
        return Ok(org);
    }
    if let Some(e) = slot.recent_failure() {
        return Err(e);
    }
    // Many at once take threads and memory, and are no sooner done. One that waits for a store that hangs holds up no
    // other.
    let loaded = plane.loads.run(Box::pin(load_org(plane, slot))).await;
    if let Err(e) = &loaded {
        slot.failed(e.clone());
        // A process that starts while an org is damaged has not parked it itself.
        match load_org_parts::parked(&plane.node, &slot.name).await {
            Ok(parked) => slot.note_parked(parked.first().copied()),
            Err(error) => {
                tracing::debug!(org = %slot.name, %error, "it is not known whether something of the org is parked")
            }
        }
    }
    loaded
}

/// Loads an org; damage counts once it was found again and again.
async fn load_org(plane: &Plane, slot: &Slot) -> Result<Arc<Org>, PlaneError> {
    let mut found = 0;
    for _ in 0..LOAD_ATTEMPTS {
        let mut read = Read::default();
        match Box::pin(try_load_org(plane, slot, &mut read)).await {
            Ok(Some(org)) => return Ok(org),
            // Overtaken by trimming.
            Ok(None) => {}
            Err(PlaneError::Damaged(reason)) => {
                // What does not fit is held against what is read after it: if that has moved on, all of it again (L4).
                if !read.is_overtaken(&plane.node, slot).await? {
                    found += 1;
                    if found == FINDINGS {
                        tracing::error!(org = %slot.name, reason, "org is stopped: what is stored of it is damaged");
                        return Err(PlaneError::OrgStopped { org: slot.name.to_string(), reason });
                    }
                    tracing::warn!(org = %slot.name, reason, "loading the org again");
                }
            }
            Err(PlaneError::Unavailable { reason, .. }) if !plane.node.rules.hiccups => {
                return Err(PlaneError::OrgStopped { org: slot.name.to_string(), reason });
            }
            Err(e) => return Err(e),
        }
        sleep(RETRY_PAUSE).await;
    }
    Err(PlaneError::unavailable("the log is trimmed faster than the org can be loaded"))
}

/// What a load has gone on from.
#[derive(Debug, Default)]
struct Read {
    /// The lowest number of the log that was read.
    lowest: Option<u64>,
    /// The greatest position that a state was listed at.
    listed: Option<u64>,
}

impl Read {
    /// Whether the floor has passed what was read of the log, or there is a newer state: then nothing that did not fit
    /// is damage.
    async fn is_overtaken(&self, node: &Node, slot: &Slot) -> Result<bool, StorageError> {
        let floor = node.log.floor().await?.number;
        if self.lowest.is_some_and(|lowest| floor >= lowest) {
            return Ok(true);
        }
        let newest = snapshot::positions(node, &slot.name).await?.last().copied().unwrap_or(0);
        Ok(self.listed.is_some_and(|listed| listed != newest))
    }
}

/// Loads an org once, and says in `read` what it went on from. None if trimming has overtaken it.
async fn try_load_org(plane: &Plane, slot: &Slot, read: &mut Read) -> Result<Option<Arc<Org>>, PlaneError> {
    let node = &plane.node;
    let newest = snapshot::newest(node, &slot.name).await?;
    if let Some(header) = newest.as_ref().map(|newest| &newest.header).filter(|header| header.deleted) {
        slot.forget(header.position);
        return Err(PlaneError::OrgRemoved(slot.name.to_string()));
    }
    let mut loading = load_org_parts::begin_from(node, &plane.elsewhere, &slot.name, newest).await?;
    read.listed = Some(loading.began().1);
    // The log's end after what is stored.
    follow::catch_up(plane).await?;
    let floor = node.log.floor().await?;
    let end = plane.follower.cursor.lock().await.next.saturating_sub(1);
    if loading.reaches() > end {
        let reason = format!(
            "it is missing: something stored of org {} is of this position, and the log ends at {end}; it was restored older",
            slot.name
        );
        return Err(StorageError::damaged(log::name(loading.reaches()), reason).into());
    }
    let replayed = loading.replay_before(node, &floor).await;
    read.lowest = loading.lowest;
    replayed?;
    // What was parked of it comes before what the log still has.
    let parked = load_org_parts::parked(node, &slot.name).await?;
    for position in parked.iter().filter(|position| **position <= floor.number) {
        if *position > loading.position() {
            let Some(object) = load_org_parts::read_parked(node, &slot.name, *position).await? else {
                return Ok(None);
            };
            loading.apply(node, &object)?;
        }
    }
    loop {
        let next = slot.after(loading.position());
        let Some(lowest) = next.first().copied() else { break };
        loading.lowest = Some(loading.lowest.map_or(lowest, |before| before.min(lowest)));
        read.lowest = loading.lowest;
        for position in next {
            let Some(object) = node.log.read(position).await? else { return Ok(None) };
            loading.apply(node, &object)?;
        }
    }
    let Some(confirmed) = is_newest(node, slot, &loading, &parked).await? else { return Ok(None) };
    if let Some(dead) = loading.deleted() {
        snapshot::bury(node, dead).await?;
        slot.forget(dead.position);
        return Err(PlaneError::OrgRemoved(slot.name.to_string()));
    }
    let org = Arc::new(loading.finish(node).await?);
    org.set_parked_from(parked.first().copied());
    // What came meanwhile is applied before the cursor moves on.
    loop {
        let position = org.state.read().position;
        let next = slot.after(position);
        let mut objects = Vec::with_capacity(next.len());
        for position in &next {
            let Some(object) = node.log.read(*position).await? else { return Ok(None) };
            objects.push(object);
        }
        if let Some(first) = next.first()
            && node.log.floor().await?.number >= *first
            && node.rules.confirm
        {
            return Ok(None);
        }
        let cursor = plane.follower.cursor.lock().await;
        for object in &objects {
            let change = Change::decode(node, object, &slot.name)?;
            let (mut state, mut ledger) = (org.state.write(), org.ledger.write());
            if change.decisions.repaired || node.rules.chain && !change.follows(&state) {
                return Ok(None);
            }
            let prepared = change.prepare(&ledger).map_err(|e| PlaneError::Damaged(e.to_string()))?;
            prepared.apply(&Place::of(node, object), &mut state, &mut ledger, node.rules.once);
        }
        let position = org.state.read().position;
        if slot.after(position).is_empty() {
            // Nothing is left to be applied, or what was is trimmed by now: since the floor was read, others may have
            // written sections of the org, flushed them and trimmed past them.
            if node.rules.confirm && !slot.is_complete(position, confirmed) {
                return Ok(None);
            }
            slot.install(Arc::clone(&org));
            drop(cursor);
            return Ok(Some(org));
        }
    }
}

/// Whether a load went on from the org's newest state and has all that came after it, by a floor that is read now (rule
/// L3). Where the floor has passed the state, nothing in the log shows that there was more: then the state must still
/// be the newest, for the floor passes no section that is in no state, but what is parked. Gives that floor; none if
/// all that is to be loaded again.
///
/// # Errors
/// What the store says; [`StorageError::Damaged`] when something stored of the org is ahead of what state and log make
/// of it.
async fn is_newest(
    node: &Node,
    slot: &Slot,
    loading: &load_org_parts::Loading,
    parked: &[u64],
) -> Result<Option<u64>, StorageError> {
    let floor = node.log.floor().await?.number;
    if !node.rules.confirm {
        return Ok(Some(floor));
    }
    if loading.lowest.is_some_and(|lowest| floor >= lowest) {
        return Ok(None);
    }
    let (began, listed) = loading.began();
    if floor > began {
        let newest = snapshot::positions(node, &slot.name).await?.last().copied().unwrap_or(0);
        let now = load_org_parts::parked(node, &slot.name).await?;
        if newest != listed || now != parked {
            return Ok(None);
        }
    }
    let reached = loading.position();
    let ahead = loading.reaches().max(slot.lacking_after(reached).unwrap_or(0));
    if ahead > reached {
        let reason =
            format!("state and log reach {reached}, and something of the org is of position {ahead}: they are older");
        return Err(StorageError::damaged(crate::state::state_path(&slot.name, reached), reason));
    }
    Ok(Some(floor))
}

#[cfg(test)]
mod tests {
    use super::Findings;
    use crate::storage::StorageError;

    fn damaged(object: &str) -> StorageError {
        StorageError::damaged(object, "it does not fit")
    }

    /// A scan that trimming has overtaken says neither yes nor no to what the one before it found.
    #[test]
    fn damage_counts_once_two_scans_found_it_in_one_object() {
        let mut findings = Findings::default();
        assert!(findings.note(damaged("wal/1")).is_ok());
        assert!(findings.note(damaged("wal/2")).is_ok(), "each was found once");
        assert!(findings.note(damaged("wal/2")).is_err_and(|e| e.is_damage()));
    }

    #[test]
    fn a_read_that_fails_is_no_finding() {
        let mut findings = Findings::default();
        assert!(findings.note(damaged("wal/1")).is_ok());
        let failed = findings.note(StorageError::failed("read", "wal/1", "timeout"));
        assert!(failed.is_err_and(|e| !e.is_damage()));
    }
}
