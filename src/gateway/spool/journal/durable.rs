//! Making records durable: one fsync for all that was written before it.
//!
//! The open segment is synced as soon as someone waits for that, else when its oldest unsynced record is old enough. A
//! sealed one gets its end mark and its fsync together, before it is sent for the first time: then the bytes that were
//! sent under its number are the only ones that a power cut can leave of it. An fsync that fails is said in the log,
//! and to the calls that wait; the records stay, as durable as the disk lets them be. So is a segment that was removed under
//! the running gateway: there an fsync does not fail, and makes nothing durable. A segment without its mark is sound
//! all the same.
//!
//! A power cut takes what no fsync has covered, which was promised to nobody.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Journal, locked};
use crate::gateway::spool::disk::SegmentFile;
use crate::gateway::spool::pending::{Waiter, answer};
use crate::gateway::spool::sealed::Sealed;
use crate::gateway::spool::segment::{self, End};
use crate::gateway::spool::{NotRecorded, UNSYNCED_DELETIONS};

impl Journal {
    pub(super) fn sync_is_due(&self) -> bool {
        let open = locked(&self.active);
        let old = |since: Instant| since.elapsed() >= self.tuning.sync_every;
        !open.waiters.is_empty() || open.unsynced.is_some_and(old)
    }

    /// Makes durable what the active segment holds, and tells those who wait for that.
    pub(in crate::gateway::spool) fn sync_active(&self) {
        let (file, waiters) = {
            let mut open = locked(&self.active);
            open.unsynced = None;
            (Arc::clone(&open.file), std::mem::take(&mut open.waiters))
        };
        self.tell_synced(waiters, self.timed(|| file.sync().and_then(|()| file.check_named())));
    }

    /// Tells those who wait for an fsync what came of it.
    pub(super) fn tell_synced(&self, waiters: Vec<Waiter>, synced: io::Result<()>) {
        if synced.is_err() {
            self.not_recorded(waiters.len() as u64);
        }
        answer(waiters, synced.map_err(|_| NotRecorded::Disk));
    }

    /// Runs an fsync; a failure is said here.
    pub(super) fn timed(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let began = Instant::now();
        let synced = sync();
        self.metrics().fsync_seconds.observe(began.elapsed());
        synced.inspect_err(|error| {
            tracing::error!(lane = self.name.as_str(), %error, "the spool's disk does not make records durable");
        })
    }

    /// Makes sealed segments durable that were not delivered soon enough.
    ///
    /// The caller holds `tending`, so that no two write the end mark of one.
    pub(super) fn sync_all_sealed(&self) {
        self.sealed.unsynced_for(self.tuning.sync_every).iter().for_each(|sealed| self.sync_sealed(sealed));
    }

    /// Makes a sealed segment durable, if it is not yet. A failure is said where it happens; the segment is then as
    /// durable as the disk lets it be, and sent all the same.
    pub(super) fn sync_before_sending(&self, ordinal: u64) {
        let _tending = locked(&self.tending);
        if let Some(sealed) = self.sealed.unsynced(ordinal) {
            self.sync_sealed(&sealed);
        }
    }

    fn sync_sealed(&self, sealed: &Sealed) {
        if let Some((file, end, _)) = &sealed.unsynced {
            let (marked, _) = self.end_durably(file.as_ref(), sealed.bytes, *end);
            if !self.sealed.is_durable(sealed.ordinal, marked) {
                // It was delivered or dropped meanwhile, and went with the bytes it had before.
                self.quota.sub(self.name, marked);
            }
        }
    }

    /// Makes deletions durable, once there are [`UNSYNCED_DELETIONS`].
    pub(super) fn sync_deletions(&self) {
        let deletions = self.deletions.load(Ordering::Relaxed);
        if deletions >= UNSYNCED_DELETIONS && self.timed(|| self.disk().sync_folder(&self.folder)).is_ok() {
            self.deletions.fetch_sub(deletions, Ordering::Relaxed);
        }
    }

    /// Writes the end mark and fsyncs. Gives the bytes that were added, without a mark the segment is sound all the
    /// same, and whether the segment is durable.
    pub(super) fn end_durably(&self, file: &dyn SegmentFile, at: u64, end: End) -> (u64, io::Result<()>) {
        let mut mark = Vec::new();
        segment::push_end(&mut mark, end);
        let written = file.truncate(at).and_then(|()| file.write_at(&mark, at)).is_ok();
        let synced = self.timed(|| file.sync());
        let added = if written { mark.len() as u64 } else { 0 };
        self.quota.add(self.name, added);
        (added, synced)
    }

    /// Makes everything durable, before a stop.
    pub(in crate::gateway::spool) fn sync_all(&self) {
        self.sync_active();
        for file in self.sealed.unsynced_files() {
            // Said where it failed.
            let _ = self.timed(|| file.sync());
        }
        let _ = self.timed(|| self.disk().sync_folder(&self.folder));
    }
}
