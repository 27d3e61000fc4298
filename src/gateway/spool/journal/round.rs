//! The flusher's round: what calls left behind is written, what is due is made durable and sealed, and the bound is
//! kept.
//!
//! When the disk is full, or the segments of both lanes have more bytes than they may, the oldest samples are dropped
//! and counted as lost, for the sake of an audit event too; audit events never are. What cannot be written even then is
//! given up: its numbers stay missing, those who wait for it get the error, and the log says so once.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Journal, locked};
use crate::gateway::metrics::Loss;
use crate::gateway::spool::pending::{Taken, answer};
use crate::gateway::spool::{LaneName, NotRecorded};

impl Journal {
    /// The flusher's round: writes what is pending, fsyncs, seals, keeps the bound. `yields` is the lane that makes
    /// room for this one. Gives how long nothing will be due.
    pub(in crate::gateway::spool) fn tend(&self, yields: Option<&Self>) -> Duration {
        let tending = locked(&self.tending);
        self.write_pending(yields);
        if self.sync_is_due() {
            self.sync_active();
        }
        self.sync_all_sealed();
        if self.sealing_is_due() {
            self.seal();
        }
        self.keep_spare();
        drop(tending);
        for lane in [Some(self), yields].into_iter().flatten().filter(|lane| lane.name.is_dropped()) {
            while self.quota.is_over() && lane.drop_oldest() {}
        }
        self.show();
        self.rest()
    }

    fn write_pending(&self, yields: Option<&Self>) {
        loop {
            let error = match self.write(&mut locked(&self.active)) {
                Ok(false) => return,
                Ok(true) => {
                    self.health.set_failing(false);
                    if self.said.swap(false, Ordering::Relaxed) {
                        tracing::info!(lane = self.name.as_str(), "the spool can be written to");
                    }
                    return;
                }
                Err(error) => error,
            };
            let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
            if !(full && self.make_room(yields)) {
                return self.give_up(&error);
            }
        }
    }

    /// Deletes the oldest samples; gives whether there were any.
    fn make_room(&self, yields: Option<&Self>) -> bool {
        match (self.name, yields) {
            (LaneName::Samples | LaneName::Payloads, _) => self.drop_oldest(),
            (LaneName::Audit, Some(samples)) => samples.drop_oldest(),
            (LaneName::Audit, None) => false,
        }
    }

    /// Drops what could not be written: its numbers stay missing.
    fn give_up(&self, error: &io::Error) {
        let mut open = locked(&self.active);
        let Taken { records, next, waiters } = locked(&self.pending).give_up();
        open.next = next;
        self.written.store(next, Ordering::Release);
        drop(open);
        self.metrics().lost(Loss::Disk, records);
        self.not_recorded(records);
        // Said once, until it can be written to again; the metric counts on.
        if !self.said.swap(true, Ordering::Relaxed) {
            tracing::error!(
                lane = self.name.as_str(), %error, folder = %self.folder.display(),
                "the spool cannot be written to; records are lost from now on"
            );
        }
        self.health.set_failing(true);
        answer(waiters, Err(NotRecorded::Disk));
    }

    /// Drops the oldest samples: a batch, or what the active segment holds if no batch is sealed. Returns whether there
    /// was anything.
    fn drop_oldest(&self) -> bool {
        self.drop_oldest_sealed() || self.drop_active()
    }

    /// Empties the active segment. It was never sent, so its number stays.
    fn drop_active(&self) -> bool {
        let mut open = locked(&self.active);
        if open.records == 0 || open.file.truncate(open.begin).is_err() {
            return false;
        }
        self.quota.sub(self.name, open.bytes - open.begin);
        self.metrics().lost(Loss::SpoolFull, open.records);
        (open.bytes, open.records, open.since, open.unsynced) = (open.begin, 0, None, None);
        true
    }

    fn drop_oldest_sealed(&self) -> bool {
        let Some(dropped) = self.sealed.take_off_oldest() else { return false };
        self.metrics().lost(Loss::SpoolFull, dropped.records);
        tracing::warn!(
            lane = self.name.as_str(),
            records = dropped.records,
            "the spool is full: the oldest batch is dropped"
        );
        self.delete(&dropped);
        true
    }

    /// How long the flusher may rest.
    fn rest(&self) -> Duration {
        let open = locked(&self.active);
        let left = |since: Instant, most: Duration| most.saturating_sub(since.elapsed());
        let seal = open.since.filter(|_| self.wanted.load(Ordering::Relaxed));
        let barred = self.health.segments_barred();
        let seal = seal.map(|(since, _)| left(since, self.tuning.window).max(barred));
        let sync = open.unsynced.map(|since| left(since, self.tuning.sync_every));
        [seal, sync].into_iter().flatten().min().unwrap_or(self.tuning.sync_every).min(self.tuning.sync_every)
    }
}
