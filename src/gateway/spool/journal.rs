//! One lane: the open segment that records are appended to, and the shelf of sealed ones.
//!
//! A record is encoded into `pending`, memory that is locked for that copy alone, and whoever then gets the turn and the
//! open segment writes all that is pending with one call. So calls at the same time share a write. One that does not get
//! its turn waits until its record is written, [`PATIENCE`] at most; then it leaves it to the keeper's thread (see
//! `keeper`), to which fsync, sealing and deletion belong in any case. The turn is one for both lanes: a disk that hangs
//! holds up one thread of the runtime, never all. While a write hangs, and a while after a slow one, calls do not write.
//!
//! Lock order: `tending`, `turn`, `open`, `pending`; `shelf` is taken last and alone.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::bound::Bound;
use super::disk::{Disk, SegmentFile};
use super::segment::{self, Contents, End, Header};
use super::{LEAST_SEGMENT_BYTES, LaneName, NotRecorded, SEGMENT_BYTES, SEGMENT_RECORDS, SYNC_EVERY, SpoolParts};
use crate::gateway::metrics::{Lane as LaneMetrics, Loss};
use crate::model::{OrgName, micros};

/// How long a call waits for another to write its record.
const PATIENCE: Duration = Duration::from_micros(500);

/// A write that takes longer says that the disk is slow: no call waits for it, and for [`REST`] none writes itself.
const SLOW: Duration = Duration::from_millis(20);
const REST: Duration = Duration::from_secs(1);

/// Room for a header.
const SPARE_BYTES: usize = 4096;

/// Taken by the call that writes.
pub(super) type Turn = Arc<Mutex<()>>;

/// What a waiting recorder is told.
pub(super) type Told = oneshot::Sender<Result<(), NotRecorded>>;

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
            backlog: 8 << 20,
        }
    }
}

/// A sealed segment: a batch.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(super) ordinal: u64,
    /// The idempotency key that it is sent under, always.
    pub(crate) key: Uuid,
    /// Whose records it holds.
    pub(crate) org: OrgName,
    pub(crate) records: u64,
    pub(super) bytes: u64,
    /// When its first record was written, µs since the epoch.
    pub(super) since: i64,
    /// The file and the mark it lacks, until it is durable.
    pub(super) unsynced: Option<(Arc<dyn SegmentFile>, End, Instant)>,
}

/// What a batch holds.
#[derive(Debug)]
pub(crate) struct Batch {
    contents: Option<Contents>,
    /// What is wrong with it, if anything is: the records are those that are sound.
    pub(crate) damage: Option<String>,
}

impl Batch {
    /// The records in their order, each with its number.
    pub(crate) fn records(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.contents.iter().flat_map(Contents::records)
    }

    /// A batch of which nothing can be read.
    pub(crate) fn unreadable(error: &io::Error) -> Self {
        Self { contents: None, damage: Some(error.to_string()) }
    }

    pub(crate) fn len(&self) -> u64 {
        self.contents.as_ref().map_or(0, Contents::len)
    }
}

#[derive(Debug)]
struct Pending {
    bytes: Vec<u8>,
    records: u64,
    /// The number of the next record.
    next: u64,
    waiters: Vec<Told>,
}

/// The segment that is appended to.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) file: Arc<dyn SegmentFile>,
    pub(super) ordinal: u64,
    pub(super) key: Uuid,
    pub(super) bytes: u64,
    /// Where its header ends.
    begin: u64,
    pub(super) records: u64,
    /// The number after the last that was written, or given up.
    pub(super) next: u64,
    /// When its first record was written.
    pub(super) since: Option<(Instant, i64)>,
    pub(super) unsynced: Option<Instant>,
    waiters: Vec<Told>,
    /// Swapped with the pending bytes, so that neither is allocated again.
    scratch: Vec<u8>,
}

impl Open {
    pub(super) fn new(file: Arc<dyn SegmentFile>, ordinal: u64, header: &Header, bytes: u64) -> Self {
        Self {
            file,
            ordinal,
            key: header.key,
            bytes,
            begin: bytes,
            records: 0,
            next: header.first,
            since: None,
            unsynced: None,
            waiters: Vec::new(),
            scratch: Vec::new(),
        }
    }
}

#[derive(Debug, Default)]
struct Shelf {
    sealed: VecDeque<Sealed>,
    /// The batch that is being sent: it is not deleted to make room.
    in_hand: Option<u64>,
}

/// One lane of the spool.
#[derive(Debug)]
pub(crate) struct Journal {
    pub(super) name: LaneName,
    pub(super) folder: PathBuf,
    org: OrgName,
    tuning: Tuning,
    parts: SpoolParts,
    bound: Arc<Bound>,
    pending: Mutex<Pending>,
    open: Mutex<Open>,
    shelf: Mutex<Shelf>,
    tending: Mutex<()>,
    /// The file of the next segment, with room for its header: so that the open one can be sealed on a full disk too, and
    /// delivering it makes room. Used under `tending` only.
    spare: Mutex<Option<(u64, Arc<dyn SegmentFile>)>>,
    /// Until when no new segment is tried, µs since the base.
    no_segment_until: AtomicU64,
    /// Records below this number are written, or given up.
    written: AtomicU64,
    turn: Turn,
    /// What the two times after count from.
    base: Instant,
    /// When the write under way began, µs since the base; 0 for none.
    writing_since: AtomicU64,
    /// Until when only the keeper writes, µs since the base.
    rest_until: AtomicU64,
    /// The last write failed: only the keeper tries again.
    failing: AtomicBool,
    /// The log says that the disk refuses.
    said: AtomicBool,
    /// A sender waits for a batch.
    wanted: AtomicBool,
    /// Told when a batch is sealed.
    pub(super) ready: Notify,
    /// The thread that keeps it.
    pub(super) keeper: OnceLock<Thread>,
}

impl Journal {
    /// A lane of these sealed segments and an empty open one, all counted in the bound already.
    pub(super) fn new(
        (name, folder, org, tuning): (LaneName, PathBuf, OrgName, Tuning),
        parts: &SpoolParts,
        (bound, turn): (&Arc<Bound>, &Turn),
        open: Open,
        sealed: VecDeque<Sealed>,
    ) -> Self {
        let next = open.next;
        Self {
            name,
            folder,
            org,
            tuning,
            parts: parts.clone(),
            bound: Arc::clone(bound),
            pending: Mutex::new(Pending { bytes: Vec::new(), records: 0, next, waiters: Vec::new() }),
            open: Mutex::new(open),
            shelf: Mutex::new(Shelf { sealed, in_hand: None }),
            tending: Mutex::new(()),
            spare: Mutex::new(None),
            no_segment_until: AtomicU64::new(0),
            written: AtomicU64::new(next),
            turn: Arc::clone(turn),
            base: Instant::now(),
            writing_since: AtomicU64::new(0),
            rest_until: AtomicU64::new(0),
            failing: AtomicBool::new(false),
            said: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            ready: Notify::new(),
            keeper: OnceLock::new(),
        }
    }

    pub(super) fn metrics(&self) -> &LaneMetrics {
        match self.name {
            LaneName::Samples => &self.parts.metrics.samples,
            LaneName::Audit => &self.parts.metrics.audit,
        }
    }

    fn disk(&self) -> &dyn Disk {
        self.parts.disk.as_ref()
    }

    fn path(&self, ordinal: u64) -> PathBuf {
        segment_path(&self.folder, ordinal)
    }

    /// Takes a record in and writes it if that can be done at once. `told` hears once it is durable, or is not to be.
    ///
    /// # Errors
    /// When there is no room; the record's number is then missing for good.
    pub(super) fn append(&self, payload: &[u8], told: Option<Told>) -> Result<(), NotRecorded> {
        let waits = told.is_some();
        let number = self.queue(payload, told).inspect_err(|why| {
            self.metrics().lost(loss(*why), 1);
            self.not_recorded(1);
        })?;
        if self.write_now(number) || waits {
            self.wake();
        }
        Ok(())
    }

    /// Counts events that are not on the record.
    fn not_recorded(&self, events: u64) {
        if self.name == LaneName::Audit {
            self.parts.metrics.audit_failures.inc_by(events);
        }
    }

    /// Has the keeper look now, if there is one.
    pub(super) fn wake(&self) {
        if let Some(keeper) = self.keeper.get() {
            keeper.unpark();
        }
    }

    fn queue(&self, payload: &[u8], told: Option<Told>) -> Result<u64, NotRecorded> {
        let size = segment::frame_bytes(payload.len());
        let mut pending = locked(&self.pending);
        let number = pending.next;
        pending.next += 1;
        if payload.len() > segment::MAX_PAYLOAD {
            return Err(NotRecorded::TooLarge);
        }
        if pending.bytes.len() + size > self.tuning.backlog {
            return Err(NotRecorded::Backlog);
        }
        if !self.bound.admits(self.name, (pending.bytes.len() + size) as u64, self.tuning.segment_bytes) {
            return Err(NotRecorded::Full);
        }
        segment::push_frame(&mut pending.bytes, number, payload);
        pending.records += 1;
        pending.waiters.extend(told);
        Ok(number)
    }

    /// Sees to it that the record is written, by this call or another one; gives whether the keeper has to look.
    fn write_now(&self, number: u64) -> bool {
        let began = Instant::now();
        loop {
            if self.written.load(Ordering::Acquire) > number {
                return false;
            }
            if self.is_held_up() {
                return true;
            }
            if self.is_resting() {
                self.wake();
            } else if let Some(_turn) = try_locked(&self.turn)
                && let Some(mut open) = try_locked(&self.open)
            {
                let before = (open.since.is_some(), self.is_large(&open));
                return match self.write(&mut open) {
                    Ok(_) => before != (open.since.is_some(), self.is_large(&open)) || self.bound.is_over(),
                    Err(_) => {
                        self.failing.store(true, Ordering::Relaxed);
                        true
                    }
                };
            }
            if began.elapsed() > PATIENCE {
                return true;
            }
            std::thread::yield_now();
        }
    }

    fn now(&self) -> u64 {
        // Never 0, which stands for none.
        u64::try_from(self.base.elapsed().as_micros()).unwrap_or(u64::MAX).max(1)
    }

    /// Whether it is no use to wait for a write.
    fn is_held_up(&self) -> bool {
        let since = self.writing_since.load(Ordering::Relaxed);
        let hangs = since != 0 && self.now().saturating_sub(since) > SLOW.as_micros() as u64;
        hangs || self.failing.load(Ordering::Relaxed)
    }

    fn is_resting(&self) -> bool {
        self.now() < self.rest_until.load(Ordering::Relaxed)
    }

    fn is_large(&self, open: &Open) -> bool {
        open.bytes >= self.tuning.segment_bytes || open.records >= SEGMENT_RECORDS
    }

    /// Writes all that is pending to the open segment; puts it back when that fails. Gives whether there was anything.
    fn write(&self, open: &mut Open) -> io::Result<bool> {
        let (records, next, waiters) = {
            let mut pending = locked(&self.pending);
            if pending.bytes.is_empty() {
                return Ok(false);
            }
            open.scratch.clear();
            std::mem::swap(&mut open.scratch, &mut pending.bytes);
            (std::mem::take(&mut pending.records), pending.next, std::mem::take(&mut pending.waiters))
        };
        let began = self.now();
        self.writing_since.store(began, Ordering::Relaxed);
        let written = open.file.write_at(&open.scratch, open.bytes);
        self.writing_since.store(0, Ordering::Relaxed);
        if self.now().saturating_sub(began) > SLOW.as_micros() as u64 {
            self.rest_until.store(self.now() + REST.as_micros() as u64, Ordering::Relaxed);
        }
        if let Err(error) = written {
            // The next write overwrites what this one left; cutting it off is for readers in between.
            let _ = open.file.truncate(open.bytes);
            let mut pending = locked(&self.pending);
            open.scratch.extend_from_slice(&pending.bytes);
            std::mem::swap(&mut open.scratch, &mut pending.bytes);
            pending.records += records;
            pending.waiters.splice(0..0, waiters);
            return Err(error);
        }
        let now = Instant::now();
        let bytes = open.scratch.len() as u64;
        open.bytes += bytes;
        open.records += records;
        open.next = next;
        open.since.get_or_insert_with(|| (now, micros(self.parts.clock.now())));
        open.unsynced.get_or_insert(now);
        open.waiters.extend(waiters);
        self.bound.add(self.name, bytes);
        self.written.store(next, Ordering::Release);
        self.metrics().spooled.inc_by(records);
        Ok(true)
    }

    /// The keeper's round: writes what is pending, fsyncs, seals, keeps the bound. `yields` is the lane that makes room for
    /// this one. Gives how long nothing will be due.
    pub(super) fn tend(&self, yields: Option<&Self>) -> Duration {
        let tending = locked(&self.tending);
        self.write_pending(yields);
        if self.sync_is_due() {
            self.sync_open();
        }
        self.sync_shelf();
        if self.sealing_is_due() {
            self.seal();
        }
        self.keep_spare();
        drop(tending);
        for lane in [Some(self), yields].into_iter().flatten().filter(|lane| lane.name == LaneName::Samples) {
            while self.bound.is_over() && lane.drop_oldest() {}
        }
        self.show();
        self.rest()
    }

    fn write_pending(&self, yields: Option<&Self>) {
        loop {
            let error = match self.write(&mut locked(&self.open)) {
                Ok(false) => return,
                Ok(true) => {
                    self.failing.store(false, Ordering::Relaxed);
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
            (LaneName::Samples, _) => self.drop_oldest(),
            (LaneName::Audit, Some(samples)) => samples.drop_oldest(),
            (LaneName::Audit, None) => false,
        }
    }

    /// Drops what could not be written: its numbers stay missing.
    fn give_up(&self, error: &io::Error) {
        let mut open = locked(&self.open);
        let (records, waiters) = {
            let mut pending = locked(&self.pending);
            pending.bytes.clear();
            open.next = pending.next;
            (std::mem::take(&mut pending.records), std::mem::take(&mut pending.waiters))
        };
        self.written.store(open.next, Ordering::Release);
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
        self.failing.store(true, Ordering::Relaxed);
        tell(waiters, Err(NotRecorded::Disk));
    }

    fn sync_is_due(&self) -> bool {
        let open = locked(&self.open);
        let old = |since: Instant| since.elapsed() >= self.tuning.sync_every;
        !open.waiters.is_empty() || open.unsynced.is_some_and(old)
    }

    /// Makes durable what the open segment holds, and tells those who wait for that.
    pub(super) fn sync_open(&self) {
        let (file, waiters) = {
            let mut open = locked(&self.open);
            open.unsynced = None;
            (Arc::clone(&open.file), std::mem::take(&mut open.waiters))
        };
        self.tell_synced(waiters, self.timed(|| file.sync()));
    }

    /// Tells those who wait for an fsync what came of it.
    fn tell_synced(&self, waiters: Vec<Told>, synced: io::Result<()>) {
        if synced.is_err() {
            self.not_recorded(waiters.len() as u64);
        }
        tell(waiters, synced.map_err(|_| NotRecorded::Disk));
    }

    /// Runs an fsync; a failure is said here.
    fn timed(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let began = Instant::now();
        let synced = sync();
        self.metrics().fsync_seconds.observe(began.elapsed());
        synced.inspect_err(|error| {
            tracing::error!(lane = self.name.as_str(), %error, "the spool's disk does not make records durable");
        })
    }

    /// Makes sealed segments durable that were not delivered soon enough.
    fn sync_shelf(&self) {
        let late = {
            let shelf = locked(&self.shelf);
            let old = |at: &Instant| at.elapsed() >= self.tuning.sync_every;
            let late = shelf.sealed.iter().filter(|sealed| sealed.unsynced.as_ref().is_some_and(|(_, _, at)| old(at)));
            late.cloned().collect::<Vec<_>>()
        };
        for sealed in late {
            if let Some((file, end, _)) = &sealed.unsynced {
                // A failure is said where it happens; the segment is then as durable as the disk lets it be.
                let (marked, _) = self.end_durably(file.as_ref(), sealed.bytes, *end);
                self.on_shelf(sealed.ordinal, |kept| {
                    kept.unsynced = None;
                    kept.bytes += marked;
                });
            }
        }
    }

    /// Writes the end mark and fsyncs. Gives the bytes that were added, without a mark the segment is sound all the same, and
    /// whether the segment is durable.
    fn end_durably(&self, file: &dyn SegmentFile, at: u64, end: End) -> (u64, io::Result<()>) {
        let mut mark = Vec::new();
        segment::push_end(&mut mark, end);
        let written = file.truncate(at).and_then(|()| file.write_at(&mark, at)).is_ok();
        let synced = self.timed(|| file.sync());
        let added = if written { mark.len() as u64 } else { 0 };
        self.bound.add(self.name, added);
        (added, synced)
    }

    fn sealing_is_due(&self) -> bool {
        let open = locked(&self.open);
        let old = open.since.is_some_and(|(since, _)| since.elapsed() >= self.tuning.window);
        let due = open.records > 0 && (self.is_large(&open) || (old && self.wanted.load(Ordering::Relaxed)));
        due && self.now() >= self.no_segment_until.load(Ordering::Relaxed)
    }

    /// Seals the open segment, if it holds anything, and opens the next one. The caller holds `tending`.
    fn seal(&self) {
        if let Err(error) = self.try_seal() {
            // The open segment grows on meanwhile.
            self.no_segment_until.store(self.now() + REST.as_micros() as u64, Ordering::Relaxed);
            tracing::debug!(lane = self.name.as_str(), %error, "cannot begin a new segment of the spool");
        }
        self.keep_spare();
    }

    /// Sees to it that there is a spare. Without one, and on a full disk, sealing waits until there is room again.
    fn keep_spare(&self) {
        let mut spare = locked(&self.spare);
        if spare.is_some() || self.now() < self.no_segment_until.load(Ordering::Relaxed) {
            return;
        }
        match self.make_spare() {
            Ok(made) => *spare = Some(made),
            Err(error) => {
                self.no_segment_until.store(self.now() + REST.as_micros() as u64, Ordering::Relaxed);
                tracing::debug!(lane = self.name.as_str(), %error, "no room for a new segment of the spool");
            }
        }
    }

    fn make_spare(&self) -> io::Result<(u64, Arc<dyn SegmentFile>)> {
        let ordinal = locked(&self.open).ordinal + 1;
        let path = self.path(ordinal);
        let file = self.disk().create(&path)?;
        // Zeros are no header: such a file is passed over when the spool is opened.
        file.write_at(&[0; SPARE_BYTES], 0).inspect_err(|_| {
            // What is left of it is passed over too, and its number with it.
            let _ = self.disk().remove(&path);
        })?;
        self.bound.add(self.name, SPARE_BYTES as u64);
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
            key: old.key,
            org: self.org.clone(),
            records: old.records,
            bytes: old.bytes,
            since: old.since.map_or(0, |(_, since)| since),
            unsynced: Some((Arc::clone(&old.file), end, Instant::now())),
        };
        if self.name == LaneName::Audit {
            // Before a batch is sent, and before its numbers are anywhere else, it is durable, and so is the header that says
            // where the numbers go on.
            let (marked, synced) = self.end_durably(old.file.as_ref(), old.bytes, end);
            sealed.bytes += marked;
            sealed.unsynced = None;
            let begun = self.timed(|| file.sync()).and_then(|()| self.timed(|| self.disk().sync_folder(&self.folder)));
            self.tell_synced(old.waiters, synced.and(begun));
        }
        if sealed.records > 0 {
            self.wanted.store(false, Ordering::Relaxed);
            locked(&self.shelf).sealed.push_back(sealed);
            self.ready.notify_one();
        }
        Ok(())
    }

    /// Puts a new open segment in the place of the old one.
    fn swap(&self, ordinal: u64, file: &Arc<dyn SegmentFile>) -> io::Result<Open> {
        let mut open = locked(&self.open);
        let header = self.header(open.next);
        let bytes = header.encode().map_err(io::Error::other)?;
        file.write_at(&bytes, 0)?;
        // The zeros behind it would be cut off as a torn tail as well.
        let _ = file.truncate(bytes.len() as u64);
        self.bound.add(self.name, bytes.len() as u64);
        self.bound.sub(self.name, SPARE_BYTES as u64);
        let next = Open::new(Arc::clone(file), ordinal, &header, bytes.len() as u64);
        Ok(std::mem::replace(&mut *open, next))
    }

    fn header(&self, first: u64) -> Header {
        Header {
            key: self.parts.random.uuid(),
            lane: self.name.as_str().to_owned(),
            org: self.org.clone(),
            first,
            created_at: micros(self.parts.clock.now()),
        }
    }

    /// Drops the oldest samples: a batch, or what the open segment holds if there is none. Gives whether there was anything.
    fn drop_oldest(&self) -> bool {
        self.drop_oldest_sealed() || self.drop_open()
    }

    /// Empties the open segment. It was never sent, so its key stays.
    fn drop_open(&self) -> bool {
        let mut open = locked(&self.open);
        if open.records == 0 || open.file.truncate(open.begin).is_err() {
            return false;
        }
        self.bound.sub(self.name, open.bytes - open.begin);
        self.metrics().lost(Loss::SpoolFull, open.records);
        (open.bytes, open.records, open.since, open.unsynced) = (open.begin, 0, None, None);
        true
    }

    fn drop_oldest_sealed(&self) -> bool {
        let dropped = {
            let mut shelf = locked(&self.shelf);
            let in_hand = shelf.in_hand;
            let oldest = shelf.sealed.iter().position(|sealed| Some(sealed.ordinal) != in_hand);
            oldest.and_then(|at| shelf.sealed.remove(at))
        };
        let Some(dropped) = dropped else { return false };
        self.metrics().lost(Loss::SpoolFull, dropped.records);
        tracing::warn!(
            lane = self.name.as_str(),
            records = dropped.records,
            "the spool is full: the oldest batch is dropped"
        );
        self.delete(&dropped);
        true
    }

    fn delete(&self, sealed: &Sealed) {
        let path = self.path(sealed.ordinal);
        if let Err(error) = self.disk().remove(&path) {
            // It will be sent again when the spool is opened anew, under the same key.
            tracing::error!(%error, path = %path.display(), "cannot delete a segment of the spool");
        }
        self.bound.sub(self.name, sealed.bytes);
    }

    fn on_shelf(&self, ordinal: u64, change: impl FnOnce(&mut Sealed)) {
        if let Some(sealed) = locked(&self.shelf).sealed.iter_mut().find(|sealed| sealed.ordinal == ordinal) {
            change(sealed);
        }
    }

    /// The oldest batch, which is then in hand until [`Journal::put_back`] or [`Journal::done`].
    pub(super) fn take_oldest(&self) -> Option<Sealed> {
        let mut shelf = locked(&self.shelf);
        let oldest = shelf.sealed.front().cloned();
        shelf.in_hand = oldest.as_ref().map(|sealed| sealed.ordinal);
        if oldest.is_none() {
            self.wanted.store(true, Ordering::Relaxed);
        }
        oldest
    }

    /// The batch stays; it is sent again later.
    pub(super) fn put_back(&self) {
        locked(&self.shelf).in_hand = None;
    }

    /// Reads a batch.
    pub(super) fn read(&self, sealed: &Sealed) -> io::Result<Batch> {
        let contents = Contents::read(std::fs::read(self.path(sealed.ordinal))?);
        let contents = contents.filter(|contents| contents.header.key == sealed.key);
        let damage = match &contents {
            None => Some("its header is not sound".to_owned()),
            Some(contents) => contents.damage().or_else(|| {
                let (found, records) = (contents.len(), sealed.records);
                (found != records).then(|| format!("{found} of {records} records are there"))
            }),
        };
        Ok(Batch { contents, damage })
    }

    /// The batch was delivered: it goes.
    pub(super) fn done(&self, sealed: &Sealed) {
        if let Some(sealed) = self.take_off(sealed.ordinal) {
            self.delete(&sealed);
        }
    }

    /// The batch goes into the quarantine, for a person to look at.
    pub(super) fn set_aside(&self, sealed: &Sealed) {
        let Some(sealed) = self.take_off(sealed.ordinal) else { return };
        let from = self.path(sealed.ordinal);
        let to = quarantine_path(&self.folder, self.name, sealed.ordinal);
        if let Err(error) = self.disk().rename(&from, &to) {
            tracing::error!(%error, path = %from.display(), "cannot set a segment of the spool aside");
        } else {
            tracing::error!(path = %to.display(), records = sealed.records, "a batch is in the quarantine");
        }
        self.metrics().quarantined.inc();
        self.bound.sub(self.name, sealed.bytes);
    }

    fn take_off(&self, ordinal: u64) -> Option<Sealed> {
        let mut shelf = locked(&self.shelf);
        shelf.in_hand = None;
        let at = shelf.sealed.iter().position(|sealed| sealed.ordinal == ordinal)?;
        shelf.sealed.remove(at)
    }

    /// Seals what there is, for the last deliveries before a stop.
    pub(super) fn seal_now(&self) {
        let _tending = locked(&self.tending);
        if locked(&self.open).records > 0 {
            self.seal();
        }
    }

    /// Whether nothing waits to be delivered.
    pub(super) fn is_empty(&self) -> bool {
        // A segment that is being written to is not empty.
        try_locked(&self.open).is_some_and(|open| open.records == 0) && locked(&self.shelf).sealed.is_empty()
    }

    /// Makes everything durable, before a stop.
    pub(super) fn sync_all(&self) {
        self.sync_open();
        let unsynced: Vec<_> = locked(&self.shelf).sealed.iter().filter_map(|sealed| sealed.unsynced.clone()).collect();
        for (file, _, _) in unsynced {
            // Said where it failed.
            let _ = self.timed(|| file.sync());
        }
        let _ = self.timed(|| self.disk().sync_folder(&self.folder));
    }

    /// Shows depth and age.
    pub(super) fn show(&self) {
        let (records, since) = {
            let open = locked(&self.open);
            (open.records, open.since.map(|(_, since)| since))
        };
        let (batches, records, since) = {
            let shelf = locked(&self.shelf);
            let sealed = shelf.sealed.iter().map(|sealed| sealed.records).sum::<u64>();
            (shelf.sealed.len(), records + sealed, shelf.sealed.front().map(|sealed| sealed.since).or(since))
        };
        let shown = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let metrics = self.metrics();
        metrics.records.set(shown(records));
        metrics.batches.set(shown(batches as u64));
        metrics.bytes.set(shown(self.bound.bytes(self.name)));
        let age = since.map_or(0, |since| micros(self.parts.clock.now()).saturating_sub(since).max(0));
        metrics.age_seconds.set(Duration::from_micros(age.unsigned_abs()).as_secs_f64());
    }

    /// How long the keeper may rest.
    fn rest(&self) -> Duration {
        let open = locked(&self.open);
        let left = |since: Instant, most: Duration| most.saturating_sub(since.elapsed());
        let seal = open.since.filter(|_| self.wanted.load(Ordering::Relaxed));
        let barred = self.no_segment_until.load(Ordering::Relaxed).saturating_sub(self.now());
        let seal = seal.map(|(since, _)| left(since, self.tuning.window).max(Duration::from_micros(barred)));
        let sync = open.unsynced.map(|since| left(since, self.tuning.sync_every));
        [seal, sync].into_iter().flatten().min().unwrap_or(self.tuning.sync_every).min(self.tuning.sync_every)
    }
}

#[cfg(test)]
impl Journal {
    pub(super) fn open_ordinal(&self) -> u64 {
        locked(&self.open).ordinal
    }

    pub(super) fn records(&self) -> u64 {
        let sealed: u64 = locked(&self.shelf).sealed.iter().map(|sealed| sealed.records).sum();
        sealed + locked(&self.open).records
    }
}

/// Where segment `ordinal` of a lane's folder is.
pub(super) fn segment_path(folder: &Path, ordinal: u64) -> PathBuf {
    folder.join(format!("{ordinal:020}"))
}

/// Where a segment is set aside.
pub(super) fn quarantine_path(folder: &Path, name: LaneName, ordinal: u64) -> PathBuf {
    let spool = folder.parent().unwrap_or(folder);
    spool.join("quarantine").join(format!("{}-{ordinal:020}", name.as_str()))
}

const fn loss(why: NotRecorded) -> Loss {
    match why {
        NotRecorded::Full => Loss::SpoolFull,
        NotRecorded::TooLarge => Loss::TooLarge,
        NotRecorded::Disk => Loss::Disk,
        NotRecorded::Backlog | NotRecorded::Late | NotRecorded::Stopping => Loss::Backlog,
    }
}

fn tell(waiters: Vec<Told>, result: Result<(), NotRecorded>) {
    for waiter in waiters {
        // Whoever does not wait any more need not be told.
        let _ = waiter.send(result);
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
