//! Sealing: the active segment becomes a batch, and the next one takes its place.
//!
//! A segment is sealed when it is large, or old enough and a sender waits. The file of the next one is made beforehand,
//! filled with zeros to have room for its header, so that the open one can be sealed on a full disk too, and delivering
//! it makes room. Zeros are no header: a spare that a crash leaves is passed over when the spool is opened.
//!
//! Sealing samples costs no fsync; they get theirs before they are sent, or a while later. An audit segment is durable
//! before it is among the sealed ones, and so is the next one's header, which says where the numbers go on: a power cut
//! after the delivery must not leave nothing that tells which were given.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::{Journal, locked};
use crate::gateway::spool::LaneName;
use crate::gateway::spool::active::ActiveSegment;
use crate::gateway::spool::disk::SegmentFile;
use crate::gateway::spool::sealed::Sealed;
use crate::gateway::spool::segment::End;

/// Room for a header.
const SPARE_BYTES: usize = 4096;

impl Journal {
    pub(super) fn sealing_is_due(&self) -> bool {
        let open = locked(&self.active);
        let old = open.since.is_some_and(|(since, _)| since.elapsed() >= self.tuning.window);
        let due = open.records > 0 && (self.is_large(&open) || (old && self.wanted.load(Ordering::Relaxed)));
        due && self.health.segments_barred().is_zero()
    }

    /// Seals what there is, for the last deliveries before a stop.
    pub(in crate::gateway::spool) fn seal_now(&self) {
        let _tending = locked(&self.tending);
        let holds_any = {
            let mut open = locked(&self.active);
            // What cannot be written stays in memory, for the flusher.
            if self.write(&mut open).is_err() {
                self.health.set_failing(true);
            }
            open.records > 0
        };
        if holds_any {
            self.seal();
        }
    }

    /// Seals the active segment, if it holds anything, and opens the next one. The caller holds `tending`.
    pub(super) fn seal(&self) {
        if let Err(error) = self.try_seal() {
            // The open segment grows on meanwhile.
            self.health.bar_segments();
            tracing::debug!(lane = self.name.as_str(), %error, "cannot begin a new segment of the spool");
        }
        self.keep_spare();
    }

    /// Sees to it that there is a spare. Without one, and on a full disk, sealing waits until there is room again.
    pub(super) fn keep_spare(&self) {
        let mut spare = locked(&self.spare);
        if spare.is_some() || !self.health.segments_barred().is_zero() {
            return;
        }
        match self.make_spare() {
            Ok(made) => *spare = Some(made),
            Err(error) => {
                self.health.bar_segments();
                tracing::debug!(lane = self.name.as_str(), %error, "no room for a new segment of the spool");
            }
        }
    }

    fn make_spare(&self) -> io::Result<(u64, Arc<dyn SegmentFile>)> {
        let mut ordinal = locked(&self.active).ordinal + 1;
        let file = loop {
            match self.disk().create(&self.path(ordinal)) {
                // One that could neither be filled nor deleted: it is passed over, and its number with it.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => ordinal += 1,
                made => break made?,
            }
        };
        // Zeros are no header: such a file is passed over when the spool is opened.
        file.write_at(&[0; SPARE_BYTES], 0).inspect_err(|_| {
            let _ = self.disk().remove(&self.path(ordinal));
        })?;
        self.quota.add(self.name, SPARE_BYTES as u64);
        Ok((ordinal, file))
    }

    fn try_seal(&self) -> io::Result<()> {
        let (ordinal, file) = match locked(&self.spare).take() {
            Some(spare) => spare,
            None => self.make_spare()?,
        };
        let old = match self.swap(ordinal, &file) {
            Ok(old) => old,
            Err(error) => {
                *locked(&self.spare) = Some((ordinal, file));
                return Err(error);
            }
        };
        let end = End { records: old.records, next: old.next };
        let mut sealed = Sealed {
            ordinal: old.ordinal,
            sent_under: old.sent_under,
            org: self.org.clone(),
            records: old.records,
            bytes: old.bytes,
            since: old.since.map_or(0, |(_, since)| since),
            unsynced: Some((Arc::clone(&old.file), end, Instant::now())),
        };
        if self.name == LaneName::Audit {
            // Before a batch is sent, and before its numbers are anywhere else, it is durable, and so is the header
            // that says where the numbers go on.
            let (marked, synced) = self.end_durably(old.file.as_ref(), old.bytes, end);
            sealed.bytes += marked;
            sealed.unsynced = None;
            let begun = self.timed(|| file.sync()).and_then(|()| self.timed(|| self.disk().sync_folder(&self.folder)));
            let named = self.timed(|| old.file.check_named());
            self.tell_synced(old.waiters, synced.and(begun).and(named));
        }
        if sealed.records == 0 {
            // What it held was dropped to make room a moment ago.
            self.delete(&sealed);
            return Ok(());
        }
        self.wanted.store(false, Ordering::Relaxed);
        self.sealed.push(sealed);
        self.ready.notify_one();
        Ok(())
    }

    /// Puts a new open segment in the place of the old one.
    fn swap(&self, ordinal: u64, file: &Arc<dyn SegmentFile>) -> io::Result<ActiveSegment> {
        let mut open = locked(&self.active);
        let header = self.parts.header(self.numbers.draw(), self.name, &self.org, open.next);
        let bytes = header.encode().map_err(io::Error::other)?;
        file.write_at(&bytes, 0)?;
        // The zeros behind it would be cut off as a torn tail as well.
        let _ = file.truncate(bytes.len() as u64);
        self.quota.add(self.name, bytes.len() as u64);
        self.quota.sub(self.name, SPARE_BYTES as u64);
        let next = ActiveSegment::new(Arc::clone(file), ordinal, &header, bytes.len() as u64);
        Ok(std::mem::replace(&mut *open, next))
    }
}
