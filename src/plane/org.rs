//! One org's state at one point of the log.

use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use arrow::record_batch::RecordBatch;
use tokio::time::Instant;

use super::PlaneError;
use super::keys::KeyWindow;
use super::ledger::LedgerState;
use super::press::Press;
use crate::ingest::IdempotencyKey;
use crate::model::OrgName;
use crate::query::{OrgView, TableState};
use crate::rollup::{Digest, RunningTotals};
use crate::storage::LiveBuffer;
use crate::storage::table::{Table, TableSnapshot};

/// The tables of an org, in the order in which a flush writes them.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) samples: Table,
    pub(super) hourly: Table,
    pub(super) daily: Table,
}

#[derive(Debug)]
pub(super) struct Org {
    pub(super) name: OrgName,
    state: RwLock<OrgState>,
    /// Held by a flush, so that one node runs one flush of an org at a time. None where damage keeps them closed.
    pub(super) tables: tokio::sync::Mutex<Option<Tables>>,
    /// Its ledger, apart from the rest: no answer needs the two to be of one instant.
    ledger: RwLock<LedgerState>,
    /// Held by who writes the ledger's segments, tiles and heads.
    pub(super) press: tokio::sync::Mutex<Press>,
    damage: OnceLock<String>,
}

/// What the log has made of one org. Everything in it changes in one step under one lock, so a reader never sees a
/// sample in the totals and not in the live buffer, or twice.
#[derive(Debug)]
pub(super) struct OrgState {
    /// The last position that held samples of this org.
    pub(super) position: u64,
    /// The last position that changed totals or keys.
    pub(super) touched: u64,
    pub(super) totals: RunningTotals,
    /// The position of the newest stored snapshot of totals and keys.
    pub(super) saved: u64,
    /// What is wrong with a newer snapshot, where one had to be passed over.
    pub(super) passed_over: Option<String>,
    pub(super) keys: KeyWindow,
    pub(super) live: LiveBuffer,
    /// Since when something waits to be flushed.
    pub(super) waiting_since: Option<Instant>,
    pub(super) samples: TableSnapshot,
    pub(super) hourly: TableSnapshot,
    pub(super) daily: TableSnapshot,
    /// Whether it was another node that moved the tables last: then that one is left to go on with it for a while.
    pub(super) flushed_by_peer: bool,
}

/// What one section of a WAL object brought to an org.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) keys: Vec<IdempotencyKey>,
    pub(super) batch: RecordBatch,
    pub(super) rows: Rows,
}

/// What the rows of a change are.
#[derive(Debug)]
pub(super) enum Rows {
    /// Samples, and what they add to the totals.
    Samples(Vec<Digest>),
    /// Events for the ledger.
    Events,
}

impl OrgState {
    /// Nothing yet.
    pub(super) fn new(name: OrgName, max_series: usize) -> Self {
        Self {
            position: 0,
            touched: 0,
            totals: RunningTotals::new(name, max_series),
            saved: 0,
            passed_over: None,
            keys: KeyWindow::default(),
            live: LiveBuffer::default(),
            waiting_since: None,
            samples: TableSnapshot::default(),
            hourly: TableSnapshot::default(),
            daily: TableSnapshot::default(),
            flushed_by_peer: false,
        }
    }

    /// Applies samples that the object at `position` brought; each part takes them if it does not hold them yet.
    pub(super) fn apply(
        &mut self,
        position: u64,
        now: i64,
        batch: RecordBatch,
        digests: &[Digest],
    ) -> Result<(), arrow::error::ArrowError> {
        self.position = self.position.max(position);
        if position > self.saved {
            self.touched = self.touched.max(position);
            for digest in digests {
                self.totals.apply(digest, now);
            }
        }
        if position > self.tables_hold() {
            self.live.push(position, batch)?;
            self.waiting_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// Remembers the idempotency keys of what the object at `position` brought.
    pub(super) fn remember(&mut self, position: u64, written_at: i64, keys: &[IdempotencyKey]) {
        if position > self.saved && !keys.is_empty() {
            self.touched = self.touched.max(position);
            self.keys.insert(written_at, keys);
            self.waiting_since.get_or_insert_with(Instant::now);
        }
    }

    /// Every table holds what came up to and with this position.
    pub(super) fn tables_hold(&self) -> u64 {
        self.samples.position.min(self.hourly.position).min(self.daily.position)
    }

    /// The position up to which the log is not needed for tables, totals and keys; none if it is not needed at all.
    pub(super) fn lags_at(&self) -> Option<u64> {
        let tables = (self.tables_hold() < self.position).then(|| self.tables_hold());
        let saved = (self.saved < self.touched).then_some(self.saved);
        tables.into_iter().chain(saved).min()
    }

    /// Whether nothing of tables, totals and keys is only in the log.
    pub(super) fn is_flushed(&self) -> bool {
        self.lags_at().is_none()
    }

    /// The greatest position that something stored carries.
    pub(super) fn newest_stored(&self) -> u64 {
        let tables = self.samples.position.max(self.hourly.position).max(self.daily.position);
        tables.max(self.saved)
    }
}

impl Org {
    pub(super) fn new(
        name: OrgName,
        state: OrgState,
        tables: Option<Tables>,
        ledger: LedgerState,
        press: Press,
    ) -> Self {
        Self {
            name,
            state: RwLock::new(state),
            tables: tokio::sync::Mutex::new(tables),
            ledger: RwLock::new(ledger),
            press: tokio::sync::Mutex::new(press),
            damage: OnceLock::new(),
        }
    }

    /// Starts again from what another load found, in place: whoever holds the org goes on with it.
    pub(super) async fn replace(&self, loaded: Self) {
        let (mut tables, mut press) = (self.tables.lock().await, self.press.lock().await);
        *tables = loaded.tables.into_inner();
        *press = loaded.press.into_inner();
        *self.ledger_mut() = loaded.ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
        *self.write() = loaded.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = loaded.damage.into_inner() {
            self.stop(reason);
        }
    }

    // A panic cannot come between the parts of a change: nothing that runs under the lock panics. So the state of a
    // poisoned lock is whole.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, OrgState> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, OrgState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ledger(&self) -> RwLockReadGuard<'_, LedgerState> {
        self.ledger.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ledger_mut(&self) -> RwLockWriteGuard<'_, LedgerState> {
        self.ledger.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the org for good: its data is damaged (invariant I2).
    pub(super) fn stop(&self, reason: String) {
        tracing::error!(org = %self.name, reason, "stopped: its data is damaged; it serves nothing until that is mended");
        // A second damage adds nothing to the first.
        let _ = self.damage.set(reason);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.damage.get().is_some()
    }

    pub(super) fn check_sound(&self) -> Result<(), PlaneError> {
        match self.damage.get() {
            None => Ok(()),
            Some(reason) => Err(PlaneError::OrgStopped { org: self.name.to_string(), reason: reason.clone() }),
        }
    }

    pub(super) fn view(&self) -> OrgView {
        let audit = self.ledger_mut().view(&self.name);
        let state = self.read();
        let table = |table: &TableSnapshot| TableState {
            files: Arc::clone(&table.files),
            live: state.live.after(table.position),
        };
        OrgView {
            org: self.name.clone(),
            samples: table(&state.samples),
            hourly: table(&state.hourly),
            daily: table(&state.daily),
            audit,
        }
    }
}
