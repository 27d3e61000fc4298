//! The orgs that a node knows: those that are loaded, and for every org with sections above the floor, where these are.
//!
//! An org is loaded when it is asked for, or when the log has something of it to flush, and forgotten when it is idle.
//! So a node starts without reading every org, and an idle org takes no more than its name (rule L10).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::model::OrgName;
use crate::node::PlaneError;
use crate::state::Org;

/// How long a load that failed is not tried again.
const RELOAD_BACKOFF: Duration = Duration::from_secs(2);
/// How long at most an org that is damaged is not loaded again, to see whether it was mended.
const LONGEST_RELOAD_BACKOFF: Duration = Duration::from_secs(16);

/// What is known of one org.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: OrgName,
    /// Held by a load.
    pub(super) loading: tokio::sync::Mutex<()>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    org: Option<Arc<Org>>,
    /// Positions above the floor of objects with a section of the org, ascending.
    tail: VecDeque<u64>,
    /// The last of all of them; none if that is not known.
    last: Option<u64>,
    /// The floor when the log was loaded last: what the org had at or under it was not seen then.
    seen_after: u64,
    /// It was forgotten with nothing of it up to here being only in the log.
    flushed: Option<u64>,
    /// Why the last load failed, and when.
    failure: Option<(PlaneError, Instant)>,
    /// Since when its load fails with damage, and how often it did.
    damaged_since: Option<Instant>,
    failures: u32,
    /// Since when it holds the log back.
    held_since: Option<Instant>,
    /// Whether something is parked of it, where it is not loaded: a loaded org knows by itself.
    parked: bool,
}

impl Inner {
    /// Takes the loaded org out of its place; what is known of its parked sections stays.
    fn retire(&mut self) -> bool {
        let Some(org) = self.org.take() else { return false };
        self.parked = org.parked_from().is_some();
        org.retire();
        true
    }
}

impl Slot {
    fn new(name: OrgName) -> Self {
        Self { name, loading: tokio::sync::Mutex::default(), inner: Mutex::default() }
    }

    /// The org, if it is loaded.
    pub(super) fn org(&self) -> Option<Arc<Org>> {
        self.inner.lock().org.clone()
    }

    /// Notes an object with a section of it. False if that does not continue the one before.
    pub(super) fn push(&self, position: u64, previous: u64) -> bool {
        let mut inner = self.inner.lock();
        let continues = inner.last.is_none_or(|last| last == previous);
        if inner.tail.back().is_none_or(|last| *last < position) {
            inner.tail.push_back(position);
        }
        inner.last = Some(position);
        continues
    }

    /// The last position of all that is known of it, where that is past `position` and the log above the floor has none
    /// past it.
    pub(super) fn lacking_after(&self, position: u64) -> Option<u64> {
        let inner = self.inner.lock();
        let is_there = inner.tail.back().is_some_and(|last| *last > position);
        inner.last.filter(|last| *last > position && !is_there)
    }

    /// Whether an org that stands at `position` has every section that this node knows of, and it was confirmed by a
    /// floor of `confirmed` that it lacks none at or under that. The positions themselves may be gone from here: others
    /// may have flushed and trimmed them.
    pub(super) fn is_complete(&self, position: u64, confirmed: u64) -> bool {
        let inner = self.inner.lock();
        inner.last.map_or(inner.seen_after <= position.max(confirmed), |last| last <= position)
    }

    /// Positions after `position` of objects with a section of it.
    pub(super) fn after(&self, position: u64) -> Vec<u64> {
        self.inner.lock().tail.iter().copied().filter(|at| *at > position).collect()
    }

    /// Puts an org in place; one that was there is retired.
    pub(super) fn install(&self, org: Arc<Org>) {
        let mut inner = self.inner.lock();
        inner.last = Some(org.state.read().position);
        (inner.failure, inner.damaged_since, inner.failures) = (None, None, 0);
        if let Some(before) = inner.org.replace(org) {
            before.retire();
        }
    }

    /// Forgets the loaded org: it is loaded again when it is asked for.
    pub(super) fn unload(&self) {
        self.inner.lock().retire();
    }

    /// The org was repaired: it is loaded again when it is asked for, however it stood here.
    pub(super) fn repaired(&self) {
        self.unload();
        let mut inner = self.inner.lock();
        (inner.failure, inner.damaged_since, inner.failures) = (None, None, 0);
    }

    /// Forgets an org of which nothing up to `position` is only in the log.
    pub(super) fn forget(&self, position: u64) {
        self.inner.lock().flushed = Some(position);
        self.unload();
    }

    /// Up to where an org that is not loaded lets the log be trimmed; none if it does not need the log.
    pub(super) fn limit(&self) -> Option<u64> {
        let inner = self.inner.lock();
        let settled = inner.flushed.is_some() && inner.flushed >= inner.last;
        inner.tail.front().filter(|_| !settled).map(|first| first - 1)
    }

    /// Notes that a load failed.
    pub(super) fn failed(&self, e: PlaneError) {
        let mut inner = self.inner.lock();
        if matches!(e, PlaneError::OrgStopped { .. }) {
            inner.damaged_since.get_or_insert_with(Instant::now);
            inner.failures = inner.failures.saturating_add(1);
        }
        inner.failure = Some((e, Instant::now()));
    }

    /// Why the last load failed, if that was a moment ago.
    pub(super) fn recent_failure(&self) -> Option<PlaneError> {
        let inner = self.inner.lock();
        let backoff = RELOAD_BACKOFF * 2_u32.saturating_pow(inner.failures.min(4));
        let backoff = backoff.min(LONGEST_RELOAD_BACKOFF);
        let recent = inner.failure.as_ref().filter(|(_, at)| at.elapsed() < backoff);
        recent.map(|(e, _)| e.clone())
    }

    /// Unloads an org that has been stopped for a while: a load tells whether it was mended.
    pub(super) fn lift(&self) -> bool {
        let mut inner = self.inner.lock();
        let stopped = inner.org.as_ref().and_then(|org| org.health.stopped_since());
        let Some(since) = stopped.filter(|since| since.elapsed() >= RELOAD_BACKOFF) else { return false };
        inner.damaged_since.get_or_insert(since);
        inner.retire()
    }

    /// Notes whether it holds the log back now; gives since when it does.
    pub(super) fn holds_back(&self, holds: bool) -> Option<Instant> {
        let mut inner = self.inner.lock();
        if holds {
            inner.held_since.get_or_insert_with(Instant::now);
        } else {
            inner.held_since = None;
        }
        inner.held_since
    }

    /// Notes that something is parked of it from a position on, or that nothing is.
    pub(super) fn note_parked(&self, from: Option<u64>) {
        let mut inner = self.inner.lock();
        if let Some(org) = &inner.org {
            from.into_iter().for_each(|from| org.also_parked_from(from));
            return;
        }
        inner.parked = from.is_some();
    }

    /// Whether something is parked of it, as far as this node knows.
    pub(super) fn is_parked(&self) -> bool {
        let inner = self.inner.lock();
        inner.org.as_ref().map_or(inner.parked, |org| org.parked_from().is_some())
    }

    /// Positions up to `floor` of objects with a section of it.
    pub(super) fn up_to(&self, floor: u64) -> Vec<u64> {
        self.inner.lock().tail.iter().copied().take_while(|at| *at <= floor).collect()
    }

    /// Since when the org is stopped, or cannot be loaded because of damage.
    pub(super) fn damaged_since(&self) -> Option<Instant> {
        let inner = self.inner.lock();
        let stopped = inner.org.as_ref().and_then(|org| org.health.stopped_since());
        stopped.or(inner.damaged_since)
    }
}

/// The orgs that this node knows.
#[derive(Debug, Default)]
pub(super) struct Registry {
    slots: RwLock<HashMap<OrgName, Arc<Slot>>>,
}

impl Registry {
    /// What is known of an org.
    pub(super) fn slot(&self, name: &OrgName) -> Arc<Slot> {
        if let Some(slot) = self.slots.read().get(name) {
            return Arc::clone(slot);
        }
        Arc::clone(self.slots.write().entry(name.clone()).or_insert_with(|| Arc::new(Slot::new(name.clone()))))
    }

    /// The org, if it is loaded.
    pub(super) fn loaded(&self, name: &OrgName) -> Option<Arc<Org>> {
        self.slots.read().get(name)?.org()
    }

    /// Every slot, in order of name.
    pub(super) fn slots(&self) -> Vec<Arc<Slot>> {
        let mut slots: Vec<_> = self.slots.read().values().cloned().collect();
        slots.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        slots
    }

    /// Every loaded org, in order of name.
    pub(super) fn all_loaded(&self) -> Vec<Arc<Org>> {
        let mut orgs: Vec<_> = self.slots.read().values().filter_map(|slot| slot.org()).collect();
        orgs.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        orgs
    }

    /// Begins anew: the log above the floor `seen_after` has sections of these orgs at these positions.
    pub(super) fn reset(&self, mut sections: HashMap<OrgName, Vec<u64>>, seen_after: u64) {
        // All orgs are known before the first is changed, and each changes in one step: who trims meanwhile must see of
        // every org either what held the log back before or what does now.
        sections.keys().for_each(|name| drop(self.slot(name)));
        for slot in self.slots() {
            let tail = VecDeque::from(sections.remove(&slot.name).unwrap_or_default());
            let mut inner = slot.inner.lock();
            inner.retire();
            let Inner { damaged_since, failures, held_since, parked, .. } = *inner;
            let last = tail.back().copied();
            *inner = Inner { damaged_since, failures, held_since, parked, tail, last, seen_after, ..Inner::default() };
        }
    }

    /// The floor rose: what is at or under it is no longer in the log.
    pub(super) fn raise(&self, floor: u64) {
        for slot in self.slots() {
            let mut inner = slot.inner.lock();
            while inner.tail.front().is_some_and(|position| *position <= floor) {
                inner.tail.pop_front();
            }
        }
    }
}
