//! The health of the disk: whether a call may write to it now, or leaves that to the flusher.
//!
//! While a write hangs no call waits for it, and after a slow one none writes for [`BACKOFF`]: only the flusher does,
//! for whose thread no call waits. After a write that failed only the flusher tries again. Where a new segment found no
//! room, none is tried for [`BACKOFF`] either, while the open one grows on.
//!
//! All of it is hints for one process, read and written without a lock; a crash loses nothing with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A write that takes longer says that the disk is slow: no call waits for it, and for [`BACKOFF`] none writes itself.
const SLOW: Duration = Duration::from_millis(20);
const BACKOFF: Duration = Duration::from_secs(1);

/// What is known of the disk's health. Times are µs since `base`.
#[derive(Debug)]
pub(super) struct DiskHealth {
    base: Instant,
    /// When the write under way began; 0 for none.
    writing_since: AtomicU64,
    /// Until when only the flusher writes.
    backoff_until: AtomicU64,
    /// The last write failed.
    failing: AtomicBool,
    /// Until when no new segment is tried.
    no_segment_until: AtomicU64,
}

impl DiskHealth {
    /// A healthy disk.
    pub(super) fn new() -> Self {
        Self {
            base: Instant::now(),
            writing_since: AtomicU64::new(0),
            backoff_until: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            no_segment_until: AtomicU64::new(0),
        }
    }

    fn now(&self) -> u64 {
        // Never 0, which stands for none.
        u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// Runs a write to the active segment; how long it takes is what calls go by.
    pub(super) fn writing<T>(&self, write: impl FnOnce() -> T) -> T {
        let began = self.now();
        self.writing_since.store(began, Ordering::Relaxed);
        let written = write();
        self.writing_since.store(0, Ordering::Relaxed);
        if self.now().saturating_sub(began) > SLOW.as_micros() as u64 {
            self.backoff_until.store(self.now() + BACKOFF.as_micros() as u64, Ordering::Relaxed);
        }
        written
    }

    /// Whether it is no use to wait for a write.
    pub(super) fn is_held_up(&self) -> bool {
        let since = self.writing_since.load(Ordering::Relaxed);
        let hangs = since != 0 && self.now().saturating_sub(since) > SLOW.as_micros() as u64;
        hangs || self.failing.load(Ordering::Relaxed)
    }

    /// Whether only the flusher writes.
    pub(super) fn is_resting(&self) -> bool {
        self.now() < self.backoff_until.load(Ordering::Relaxed)
    }

    /// Notes whether the last write failed.
    pub(super) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::Relaxed);
    }

    /// Notes that there is no room for a new segment.
    pub(super) fn bar_segments(&self) {
        self.no_segment_until.store(self.now() + BACKOFF.as_micros() as u64, Ordering::Relaxed);
    }

    /// How long no new segment is to be tried.
    pub(super) fn segments_barred(&self) -> Duration {
        Duration::from_micros(self.no_segment_until.load(Ordering::Relaxed).saturating_sub(self.now()))
    }
}
