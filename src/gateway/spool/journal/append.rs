//! Recording: a record is encoded into memory, and the thread that gets to write writes all that is there.
//!
//! Calls at the same time so share a write. One that does not get its turn waits until its record is written,
//! [`WRITE_WAIT`] at most; then it leaves it to the flusher. While a write hangs, and a while after a slow one, calls do
//! not write (see `disk_health`). What a call has written outlives `kill -9`; what is left in memory does not, until
//! the flusher has written it.
//!
//! A write that fails takes nothing with it: what it was of is pending again, in its order.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Journal, locked, try_locked};
use crate::gateway::metrics::Loss;
use crate::gateway::spool::active::ActiveSegment;
use crate::gateway::spool::pending::Waiter;
use crate::gateway::spool::{NotRecorded, segment};
use crate::model::micros;

/// How long a call waits for another to write its record.
const WRITE_WAIT: Duration = Duration::from_micros(500);

impl Journal {
    /// Takes a record in and writes it if that can be done at once. `waiter` gets the outcome: once it is durable, or
    /// when it cannot become so.
    ///
    /// # Errors
    /// When there is no room; the record's number is then missing for good.
    pub(in crate::gateway::spool) fn append(&self, payload: &[u8], waiter: Option<Waiter>) -> Result<(), NotRecorded> {
        let waits = waiter.is_some();
        let number = self.queue(payload, waiter).inspect_err(|why| {
            self.metrics().lost(loss(*why), 1);
            self.not_recorded(1);
        })?;
        if self.write_now(number) || waits {
            self.wake();
        }
        Ok(())
    }

    fn queue(&self, payload: &[u8], waiter: Option<Waiter>) -> Result<u64, NotRecorded> {
        let size = segment::frame_bytes(payload.len());
        let mut pending = locked(&self.pending);
        let number = pending.draw_number();
        if payload.len() > self.name.max_payload() {
            return Err(NotRecorded::TooLarge);
        }
        if pending.bytes() + size > self.tuning.backlog {
            return Err(NotRecorded::Backlog);
        }
        if !self.quota.admits(self.name, (pending.bytes() + size) as u64, self.tuning.segment_bytes) {
            return Err(NotRecorded::Full);
        }
        pending.push(number, payload, waiter);
        Ok(number)
    }

    /// Sees to it that the record is written, by this call or another one; gives whether the flusher has to look.
    fn write_now(&self, number: u64) -> bool {
        let began = Instant::now();
        loop {
            if self.written.load(Ordering::Acquire) > number {
                return false;
            }
            if self.health.is_held_up() {
                return true;
            }
            if self.health.is_resting() {
                self.wake();
            } else if let Some(_turn) = try_locked(&self.turn)
                && let Some(mut open) = try_locked(&self.active)
            {
                let before = (open.since.is_some(), self.is_large(&open));
                return match self.write(&mut open) {
                    Ok(_) => before != (open.since.is_some(), self.is_large(&open)) || self.quota.is_over(),
                    Err(_) => {
                        self.health.set_failing(true);
                        true
                    }
                };
            }
            if began.elapsed() > WRITE_WAIT {
                return true;
            }
            std::thread::yield_now();
        }
    }

    /// Writes all that is pending to the active segment; puts it back when that fails. Gives whether there was
    /// anything.
    pub(super) fn write(&self, open: &mut ActiveSegment) -> io::Result<bool> {
        let Some(taken) = locked(&self.pending).take(&mut open.scratch) else { return Ok(false) };
        let written = self.health.writing(|| open.file.write_at(&open.scratch, open.bytes));
        if let Err(error) = written {
            // The next write overwrites what this one left; cutting it off is for readers in between.
            let _ = open.file.truncate(open.bytes);
            locked(&self.pending).put_back(&mut open.scratch, taken);
            return Err(error);
        }
        let now = Instant::now();
        let bytes = open.scratch.len() as u64;
        open.bytes += bytes;
        open.records += taken.records;
        open.next = taken.next;
        open.since.get_or_insert_with(|| (now, micros(self.parts.clock.now())));
        open.unsynced.get_or_insert(now);
        open.waiters.extend(taken.waiters);
        self.quota.add(self.name, bytes);
        self.written.store(taken.next, Ordering::Release);
        self.metrics().spooled.inc_by(taken.records);
        Ok(true)
    }
}

const fn loss(why: NotRecorded) -> Loss {
    match why {
        NotRecorded::Full => Loss::SpoolFull,
        NotRecorded::TooLarge => Loss::TooLarge,
        NotRecorded::Disk => Loss::Disk,
        NotRecorded::Backlog | NotRecorded::Late | NotRecorded::Stopping => Loss::Backlog,
    }
}
