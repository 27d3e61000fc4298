//! One lane: the records that wait in memory, the active segment that they are appended to, and the sealed ones.
//!
//! | module | holds |
//! |---|---|
//! | [`append`] | a call's record: encoded into memory, and written with all that waits there |
//! | [`round`] | what the flusher does again and again; the bound, and what is dropped for its sake |
//! | [`durable`] | fsyncs |
//! | [`sealing`] | the active segment becomes a batch; the spare |
//! | [`delivery`] | batches, to a sender and away |
//!
//! A call only copies into memory and writes if it can do so at once; fsync, sealing and deletion belong to the
//! flusher's thread (see `flusher`). The turn to write is one for both lanes: a disk that hangs holds up one thread of
//! the runtime, never all.
//!
//! Lock order: `tending`, `turn`, `spare`, `active`, `pending`; `sealed` is taken last and alone.

mod append;
mod delivery;
mod durable;
mod round;
mod sealing;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;
use std::time::Duration;

use tokio::sync::Notify;

pub(crate) use delivery::Batch;

use super::active::ActiveSegment;
use super::disk::{Disk, SegmentFile};
use super::disk_health::DiskHealth;
use super::folder::segment_path;
use super::numbers::Numbers;
use super::pending::Pending;
use super::quota::Quota;
use super::sealed::{Sealed, SealedSegments};
use super::{LEAST_SEGMENT_BYTES, LaneName, SEGMENT_BYTES, SEGMENT_RECORDS, SYNC_EVERY, SpoolParts};
use crate::gateway::metrics::Lane as LaneMetrics;
use crate::model::{OrgName, micros};

/// Taken by the call that writes.
pub(super) type Turn = Arc<Mutex<()>>;

/// The figures that a lane goes by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tuning {
    /// A segment of so many bytes is sealed.
    pub(super) segment_bytes: u64,
    /// How old the first record becomes before the segment is sealed for a sender that waits.
    pub(super) window: Duration,
    /// How long a record may be unsynced.
    pub(super) sync_every: Duration,
    /// The most bytes of records that wait in memory.
    pub(super) backlog: usize,
}

impl Tuning {
    pub(super) fn of(name: LaneName, max_bytes: u64) -> Self {
        Self {
            segment_bytes: (max_bytes / 64).clamp(LEAST_SEGMENT_BYTES, SEGMENT_BYTES),
            window: name.window(),
            sync_every: SYNC_EVERY,
            backlog: if name == LaneName::Payloads { 2 * name.max_payload() } else { 8 << 20 },
        }
    }
}

/// One lane of the spool.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(super) name: LaneName,
    pub(super) folder: PathBuf,
    org: OrgName,
    tuning: Tuning,
    parts: SpoolParts,
    quota: Arc<Quota>,
    pending: Mutex<Pending>,
    active: Mutex<ActiveSegment>,
    sealed: SealedSegments,
    numbers: Numbers,
    /// Deletions since the folder was fsynced.
    deletions: AtomicU64,
    tending: Mutex<()>,
    /// The file of the next segment, with room for its header: so that the open one can be sealed on a full disk too,
    /// and delivering it makes room. Used under `tending` only.
    spare: Mutex<Option<(u64, Arc<dyn SegmentFile>)>>,
    /// Records below this number are written, or given up.
    written: AtomicU64,
    turn: Turn,
    health: DiskHealth,
    /// The log says that the disk refuses.
    said: AtomicBool,
    /// A sender waits for a batch.
    wanted: AtomicBool,
    /// Notified when a batch is sealed.
    pub(super) ready: Notify,
    /// The thread that keeps it.
    pub(super) flusher: OnceLock<Thread>,
}

impl Journal {
    /// A lane of these sealed segments and an empty open one, all counted in the bound already.
    pub(super) fn new(
        (name, folder, org, tuning): (LaneName, PathBuf, OrgName, Tuning),
        parts: &SpoolParts,
        (quota, turn): (&Arc<Quota>, &Turn),
        (active, numbers): (ActiveSegment, Numbers),
        sealed: VecDeque<Sealed>,
    ) -> Self {
        let next = active.next;
        Self {
            name,
            folder,
            org,
            tuning,
            parts: parts.clone(),
            quota: Arc::clone(quota),
            pending: Mutex::new(Pending::new(next)),
            active: Mutex::new(active),
            sealed: SealedSegments::new(sealed),
            numbers,
            deletions: AtomicU64::new(0),
            tending: Mutex::new(()),
            spare: Mutex::new(None),
            written: AtomicU64::new(next),
            turn: Arc::clone(turn),
            health: DiskHealth::new(),
            said: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            ready: Notify::new(),
            flusher: OnceLock::new(),
        }
    }

    pub(super) fn metrics(&self) -> &LaneMetrics {
        self.parts.metrics_of(self.name)
    }

    fn disk(&self) -> &dyn Disk {
        self.parts.disk.as_ref()
    }

    fn path(&self, ordinal: u64) -> PathBuf {
        segment_path(&self.folder, ordinal)
    }

    /// Counts events that are not on the record.
    fn not_recorded(&self, events: u64) {
        if self.name == LaneName::Audit {
            self.parts.metrics.audit_failures.inc_by(events);
        }
    }

    /// Has the flusher look now, if there is one.
    pub(super) fn wake(&self) {
        if let Some(flusher) = self.flusher.get() {
            flusher.unpark();
        }
    }

    fn is_large(&self, open: &ActiveSegment) -> bool {
        open.bytes >= self.tuning.segment_bytes || open.records >= SEGMENT_RECORDS
    }

    /// Shows depth and age.
    pub(super) fn show(&self) {
        let (records, since) = {
            let open = locked(&self.active);
            (open.records, open.since.map(|(_, since)| since))
        };
        let waiting = self.sealed.depth();
        let shown = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let metrics = self.metrics();
        metrics.records.set(shown(records + waiting.records));
        metrics.batches.set(shown(waiting.batches));
        metrics.bytes.set(shown(self.quota.bytes(self.name)));
        let age =
            waiting.since.or(since).map_or(0, |since| micros(self.parts.clock.now()).saturating_sub(since).max(0));
        metrics.age_seconds.set(Duration::from_micros(age.unsigned_abs()).as_secs_f64());
    }
}

#[cfg(test)]
impl Journal {
    pub(super) fn active_ordinal(&self) -> u64 {
        locked(&self.active).ordinal
    }

    pub(super) fn records(&self) -> u64 {
        self.sealed.depth().records + locked(&self.active).records
    }
}

/// A lock whose holder panicked guards plain figures that are still in order.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn try_locked<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
