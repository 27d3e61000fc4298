//! One org: what the log has made of it, its tables, its ledger, and whether it is sound.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use super::dedup::{Dedup, Limits};
use super::live::LiveBuffer;
use super::payloads::Payloads;
use super::snapshot::Saved;
use crate::ledger::Ledger;
use crate::log::{Decisions, ObjectId, OrgLimits, Removal};
use crate::model::OrgName;
use crate::node::Health;
use crate::query::{OrgView, TableState};
use crate::rollup::RunningTotals;
use crate::storage::table::{Table, TableSnapshot};

/// The tables of an org, in the order in which a flush writes them.
#[derive(Debug)]
#[expect(missing_docs, reason = "named as the tables are")]
pub struct Tables {
    pub samples: Table,
    pub hourly: Table,
    pub daily: Table,
    pub payloads: Table,
    /// The stored states that this node goes on from.
    pub saved: Saved,
}

/// One loaded org.
#[derive(Debug)]
pub struct Org {
    /// Whose.
    pub name: OrgName,
    /// Everything in it changes in one step under one lock, so a reader never sees a sample in the totals and not in
    /// the live buffer, or twice.
    pub state: RwLock<OrgState>,
    /// Its ledger, apart from the rest: no answer needs the two to be of one instant.
    pub ledger: Ledger,
    /// Held by a flush, so that one node runs one flush of an org at a time.
    pub tables: tokio::sync::Mutex<Tables>,
    /// Whether it is sound.
    pub health: Arc<Health>,
    /// Decisions that wait for a place in the log.
    pub decided: Mutex<Decisions>,
    /// The same of its removal: see `Org::take_removal`.
    pub removal: Mutex<Option<(Removal, Option<i64>)>>,
    /// Whether another instance of the org has taken this one's place: it writes nothing any more.
    retired: AtomicBool,
    used: Mutex<Instant>,
    announced_limits: AtomicBool,
    parked_from: AtomicU64,
}

/// What the log has made of one org.
#[derive(Debug)]
pub struct OrgState {
    /// The position of the last object that had a section of this org.
    pub position: u64,
    /// The id of that object; none before the first.
    pub object: Option<ObjectId>,
    /// When it was written, µs since the epoch, never before the one before.
    pub time: i64,
    /// The limits that the log has set, if it has.
    pub limits: Option<OrgLimits>,
    /// Since when the org is removed, µs since the epoch by the log; none if it is not.
    pub removed: Option<i64>,
    /// Whether the grace of its removal is over: what is stored of it is deleted.
    pub deleted: bool,
    /// What a scrape reads.
    pub totals: RunningTotals,
    /// How retries of batches are recognized.
    pub(crate) dedup: Dedup,
    /// Samples that some table lacks.
    pub live: LiveBuffer,
    /// The position of the newest stored state that this node relies on.
    pub saved: u64,
    /// The position of the state before that one; 0 without one.
    pub saved_before: u64,
    /// Since when something waits to be flushed.
    pub waiting_since: Option<Instant>,
    /// The tables as queries see them.
    pub samples: TableSnapshot,
    /// See `samples`.
    pub hourly: TableSnapshot,
    /// See `samples`.
    pub daily: TableSnapshot,
    /// Sealed payloads, of which the log has less to say than of samples.
    pub payloads: Payloads,
    /// Whether another node moved the tables last: then that one is left to go on with it for a while.
    pub flushed_by_peer: bool,
}

/// What a log object's limits bound of what is remembered.
pub(crate) fn dedup_limits(limits: OrgLimits) -> Limits {
    Limits { max_key_bytes: limits.keys.saturating_mul(24), ..Limits::default() }
}

impl OrgState {
    /// Nothing yet.
    pub fn new(name: OrgName, limits: OrgLimits) -> Self {
        let series = usize::try_from(limits.series).unwrap_or(usize::MAX);
        Self {
            position: 0,
            object: None,
            time: 0,
            limits: None,
            removed: None,
            deleted: false,
            totals: RunningTotals::new(name, series),
            dedup: Dedup::new(dedup_limits(limits)),
            live: LiveBuffer::default(),
            saved: 0,
            saved_before: 0,
            waiting_since: None,
            samples: TableSnapshot::default(),
            hourly: TableSnapshot::default(),
            daily: TableSnapshot::default(),
            payloads: Payloads::default(),
            flushed_by_peer: false,
        }
    }

    /// Begins to apply the object at `position`: what it says of time and limits comes first.
    pub(crate) fn begin(&mut self, position: u64, object: &ObjectId, time: i64, limits: Option<OrgLimits>) {
        self.position = position;
        self.object = Some(object.clone());
        self.time = self.time.max(time);
        self.dedup.advance(position, self.time);
        if let Some(limits) = limits {
            self.limits = Some(limits);
            self.totals.set_max_series(usize::try_from(limits.series).unwrap_or(usize::MAX));
            self.dedup.set_limits(dedup_limits(limits));
        }
        self.waiting_since.get_or_insert_with(Instant::now);
    }

    /// Takes what the log decides of the org's removal.
    pub(crate) fn remove_or_restore(&mut self, removal: Removal) {
        match removal {
            Removal::Removed => self.removed = self.removed.or(Some(self.time)),
            // Which of the two the log has first counts.
            Removal::Restored if !self.deleted => self.removed = None,
            Removal::Deleted if self.removed.is_some() => self.deleted = true,
            Removal::Restored | Removal::Deleted => {}
        }
    }

    /// Every table holds what came up to and with this position.
    pub fn tables_hold(&self) -> u64 {
        self.samples.position.min(self.hourly.position).min(self.daily.position)
    }

    /// Whether nothing of it is only in the log.
    pub fn is_flushed(&self) -> bool {
        self.saved >= self.position && self.live.rows() == 0 && self.payloads.live.rows() == 0
    }

    /// The position that a table which stands at `held` must come to hold, so that nothing up to here is only in the
    /// log.
    pub(crate) fn owed(&self, held: u64) -> u64 {
        self.live.last_position().filter(|last| *last > held).unwrap_or(held)
    }
}

impl Org {
    /// An org as it was loaded.
    pub fn new(name: OrgName, state: OrgState, tables: Tables, ledger: Ledger, health: Arc<Health>) -> Self {
        Self {
            name,
            state: RwLock::new(state),
            ledger,
            tables: tokio::sync::Mutex::new(tables),
            health,
            decided: Mutex::default(),
            removal: Mutex::default(),
            retired: AtomicBool::new(false),
            used: Mutex::new(Instant::now()),
            announced_limits: AtomicBool::new(false),
            parked_from: AtomicU64::new(u64::MAX),
        }
    }

    /// Whether this process is yet to put the configured limits into the log: once, so that two nodes of different
    /// settings do not take turns.
    pub fn announces_limits(&self) -> bool {
        !self.announced_limits.load(Ordering::Acquire)
    }

    /// Notes that this process has put its limits into the log.
    pub fn set_limits_announced(&self) {
        self.announced_limits.store(true, Ordering::Release);
    }

    /// Notes the lowest position of what is parked of it, as far as this node knows; none if nothing is.
    pub fn set_parked_from(&self, position: Option<u64>) {
        self.parked_from.store(position.unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Notes that the log's sections from this position on are parked, beside what was before.
    pub fn also_parked_from(&self, position: u64) {
        self.parked_from.fetch_min(position, Ordering::AcqRel);
    }

    /// The lowest position of what is parked of it, as far as this node knows.
    pub fn parked_from(&self) -> Option<u64> {
        Some(self.parked_from.load(Ordering::Acquire)).filter(|position| *position < u64::MAX)
    }

    /// The decision about its removal that waits for a place in the log after what is applied, if it is still right
    /// there. It was made of an org that was removed since a time, or was not removed: of any other it says nothing,
    /// however long this node slept since. And of an org on hold nothing goes.
    pub(crate) fn take_removal(&self) -> Option<Removal> {
        let (removal, since) = self.removal.lock().take()?;
        let is_same = self.state.read().removed == since;
        let may_go = removal == Removal::Restored || self.ledger.read().status().hold.is_none();
        (is_same && may_go).then_some(removal)
    }

    /// Notes a request for it.
    pub fn touch(&self) {
        *self.used.lock() = Instant::now();
    }

    /// When it was last asked for.
    pub fn used(&self) -> Instant {
        *self.used.lock()
    }

    /// Another instance takes its place.
    pub fn retire(&self) {
        self.retired.store(true, Ordering::Release);
    }

    /// Whether it may write: it is sound, and no other instance has taken its place.
    pub fn may_write(&self) -> bool {
        !self.retired.load(Ordering::Acquire) && !self.health.is_stopped()
    }

    /// Bytes of samples and entries that wait in memory.
    pub fn live_bytes(&self) -> usize {
        let state = self.state.read();
        state.live.bytes() + state.payloads.live.bytes() + self.ledger.read().bytes()
    }

    /// One consistent view of its tables.
    pub fn view(&self) -> OrgView {
        let audit = self.ledger.view();
        let state = self.state.read();
        let table = |table: &TableSnapshot| TableState {
            files: Arc::clone(&table.files),
            live: state.live.after(table.position),
            evidence: None,
        };
        OrgView {
            org: self.name.clone(),
            samples: table(&state.samples),
            hourly: table(&state.hourly),
            daily: table(&state.daily),
            payloads: TableState {
                files: Arc::clone(&state.payloads.table.files),
                live: state.payloads.live.after(state.payloads.table.position),
                evidence: None,
            },
            audit,
        }
    }
}
