//! A disk that is full, that does not make things durable, or that hangs.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use super::super::disk::{Disk, LocalDisk, SegmentFile};
use super::super::{Lane, NotRecorded, Spool, SpoolParts, SpoolSettings};
use super::{all, copy_of, eventually, parts_on, settings};

/// What is wrong with the disk.
#[derive(Debug)]
struct Faults {
    /// Bytes that can still be written.
    room: AtomicU64,
    sync_fails: AtomicBool,
    remove_fails: AtomicBool,
    syncs: AtomicU64,
    write_hangs: Gate,
    sync_hangs: Gate,
}

/// Blocks the threads that pass while it is shut.
#[derive(Debug, Default)]
struct Gate {
    shut: Mutex<bool>,
    opened: Condvar,
    waiting: AtomicU64,
}

impl Gate {
    fn shut(&self) {
        *self.shut.lock().unwrap() = true;
    }

    fn open(&self) {
        *self.shut.lock().unwrap() = false;
        self.opened.notify_all();
    }

    fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let shut = self.shut.lock().unwrap();
        drop(self.opened.wait_while(shut, |shut| *shut).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Debug, Clone)]
struct FaultyDisk(Arc<Faults>);

#[derive(Debug)]
struct FaultyFile {
    file: Arc<dyn SegmentFile>,
    length: AtomicU64,
    faults: Arc<Faults>,
}

impl FaultyDisk {
    fn new() -> Self {
        Self(Arc::new(Faults {
            room: AtomicU64::new(u64::MAX),
            sync_fails: AtomicBool::new(false),
            remove_fails: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            write_hangs: Gate::default(),
            sync_hangs: Gate::default(),
        }))
    }

    fn set_room(&self, bytes: u64) {
        self.0.room.store(bytes, Ordering::SeqCst);
    }
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        let (file, faults) = (LocalDisk.create(path)?, Arc::clone(&self.0));
        Ok(Arc::new(FaultyFile { file, length: AtomicU64::new(0), faults }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn SegmentFile>> {
        LocalDisk.open(path)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if self.0.remove_fails.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let freed = path.metadata()?.len();
        LocalDisk.remove(path)?;
        let room = self.0.room.load(Ordering::SeqCst);
        self.set_room(room.saturating_add(freed));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        LocalDisk.rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        LocalDisk.sync_folder(folder)
    }
}

impl SegmentFile for FaultyFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.faults.write_hangs.pass();
        let (room, length) = (self.faults.room.load(Ordering::SeqCst), self.length.load(Ordering::SeqCst));
        let end = offset + bytes.len() as u64;
        let missing = end.saturating_sub(length).saturating_sub(room);
        // As on a real disk: what fits is written, then it fails.
        let fits = bytes.len() - usize::try_from(missing).unwrap();
        self.file.write_at(&bytes[..fits], offset)?;
        let length_now = length.max(end - missing);
        self.length.store(length_now, Ordering::SeqCst);
        self.faults.room.store(room - (length_now - length), Ordering::SeqCst);
        if missing > 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn truncate(&self, length: u64) -> io::Result<()> {
        self.file.truncate(length)?;
        let before = self.length.swap(length, Ordering::SeqCst);
        let room = self.faults.room.load(Ordering::SeqCst);
        self.faults.room.store(room.saturating_add(before.saturating_sub(length)), Ordering::SeqCst);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.faults.syncs.fetch_add(1, Ordering::SeqCst);
        self.faults.sync_hangs.pass();
        if self.faults.sync_fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("the disk does not answer"));
        }
        self.file.sync()
    }
}

/// Waits until the keepers of both lanes have made their spares, and so have nothing to write by themselves.
async fn spares_are_there(parts: &SpoolParts) {
    let metrics = &parts.metrics;
    eventually(|| [&metrics.samples, &metrics.audit].iter().all(|lane| lane.bytes.get() > 4096)).await;
}

/// Makes every write hang, and a call that is writing.
async fn held_up(disk: &FaultyDisk, lane: &Lane) -> JoinHandle<Result<(), NotRecorded>> {
    disk.0.write_hangs.shut();
    let lane = lane.clone();
    let held = thread::spawn(move || lane.append(b"held up"));
    eventually(|| disk.0.write_hangs.waiting.load(Ordering::SeqCst) > 0).await;
    held
}

/// A spool on a disk that does as the test says.
fn faulty(folder: &Path) -> (FaultyDisk, SpoolParts, Spool) {
    let disk = FaultyDisk::new();
    let parts = parts_on(Arc::new(disk.clone()));
    let spool = Spool::open(&settings(folder), &parts).unwrap();
    (disk, parts, spool)
}

#[tokio::test]
async fn on_a_full_disk_samples_make_room_for_audit_and_then_recording_fails() {
    let folder = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new();
    let parts = parts_on(Arc::new(disk.clone()));
    // Small segments: the bound is far away, the disk is what is full.
    let spool = Spool::open(&SpoolSettings { max_bytes: 2 << 20, ..settings(folder.path()) }, &parts).unwrap();
    let (samples, audit) = (spool.samples.as_ref().unwrap(), spool.audit.as_ref().unwrap());
    spares_are_there(&parts).await;
    for _ in 0..100 {
        samples.append(&[b's'; 1000]).unwrap();
    }
    samples.seal_now().await;
    disk.set_room(0);
    let mut taken = 0_u64;
    let refused = loop {
        match audit.append_durably(&[b'a'; 1000]).await {
            Ok(()) => taken += 1,
            Err(why) => break why,
        }
    };
    assert_eq!(refused, NotRecorded::Disk);
    // And perhaps that of a spare that found none again.
    assert!((80..=105).contains(&taken), "{taken} events took the samples' place");
    assert!(samples.is_empty());
    assert_eq!(parts.metrics.samples.all_lost(), 100);

    disk.set_room(u64::MAX);
    audit.append_durably(b"room again").await.unwrap();
    let found = all(audit).await;
    assert_eq!(found.len() as u64, taken + 1);
    let hole = found.windows(2).filter(|pair| pair[0].0 + 1 != pair[1].0).count();
    assert_eq!(hole, 1, "what was refused is missing in the numbers, and nothing else");
}

#[tokio::test]
async fn on_a_full_disk_a_sample_is_lost_and_counted_and_the_call_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, parts, spool) = faulty(folder.path());
    let samples = spool.samples.as_ref().unwrap();
    spares_are_there(&parts).await;
    samples.append(b"before").unwrap();
    disk.set_room(10);
    let large = "x".repeat(1000);
    samples.append(large.as_bytes()).unwrap();
    eventually(|| parts.metrics.samples.all_lost() == 2).await;
    disk.set_room(u64::MAX);
    samples.append(b"after").unwrap();
    eventually(|| parts.metrics.samples.spooled.get() == 2).await;
    let copy = copy_of(folder.path());
    let after = super::open(copy.path());
    let texts: Vec<_> = all(after.samples.as_ref().unwrap()).await.into_iter().map(|(_, text)| text).collect();
    assert_eq!(texts, ["after"], "the oldest goes first, then what finds no room all the same");
}

#[tokio::test]
async fn on_a_full_disk_what_is_recorded_is_delivered_and_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, parts, spool) = faulty(folder.path());
    let audit = spool.audit.as_ref().unwrap();
    spares_are_there(&parts).await;
    let large = "x".repeat(10_000);
    audit.append_durably(large.as_bytes()).await.unwrap();
    disk.set_room(0);
    assert_eq!(all(audit).await, [(0, large)]);
    audit.append_durably(b"after").await.unwrap();
    assert_eq!(all(audit).await, [(1, "after".to_owned())]);
}

#[tokio::test]
async fn a_spare_that_can_neither_be_filled_nor_deleted_is_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::new();
    disk.set_room(2048);
    disk.0.remove_fails.store(true, Ordering::SeqCst);
    let parts = parts_on(Arc::new(disk.clone()));
    let spool = Spool::open(&settings(folder.path()), &parts).unwrap();
    let audit = spool.audit.as_ref().unwrap();
    eventually(|| folder.path().join("audit/00000000000000000001").exists()).await;
    disk.set_room(u64::MAX);
    audit.append_durably(b"event").await.unwrap();
    assert_eq!(all(audit).await, [(0, "event".to_owned())]);
    let copy = copy_of(folder.path());
    drop(spool);
    let after = super::open(copy.path());
    after.audit.as_ref().unwrap().append_durably(b"next").await.unwrap();
    assert_eq!(all(after.audit.as_ref().unwrap()).await.last().unwrap().0, 1, "numbers go on");
}

#[tokio::test]
async fn a_lane_is_not_empty_while_records_wait_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, parts, spool) = faulty(folder.path());
    let samples = spool.samples.clone().unwrap();
    spares_are_there(&parts).await;
    let held = held_up(&disk, &samples).await;
    samples.append(b"in memory").unwrap();
    assert!(!samples.is_empty());
    disk.0.write_hangs.open();
    held.join().unwrap().unwrap();
    samples.seal_now().await;
    assert!(!samples.is_empty());
    assert_eq!(all(&samples).await.len(), 2, "both are in batches now");
    assert!(samples.is_empty());
}

#[tokio::test]
async fn a_failed_fsync_is_never_taken_for_durable() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, _, spool) = faulty(folder.path());
    let audit = spool.audit.as_ref().unwrap();
    disk.0.sync_fails.store(true, Ordering::SeqCst);
    assert_eq!(audit.append_durably(b"event").await, Err(NotRecorded::Disk));
    disk.0.sync_fails.store(false, Ordering::SeqCst);
    audit.append_durably(b"event").await.unwrap();
}

#[tokio::test]
async fn many_events_at_once_share_an_fsync() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, _, spool) = faulty(folder.path());
    let audit = spool.audit.as_ref().unwrap();
    disk.0.sync_hangs.shut();
    let before = disk.0.syncs.load(Ordering::SeqCst);
    let events: Vec<_> = (0..200).map(|_| audit.append_durably(b"event")).collect();
    disk.0.sync_hangs.open();
    for event in events {
        event.await.unwrap();
    }
    let syncs = disk.0.syncs.load(Ordering::SeqCst) - before;
    assert!(syncs <= 3, "{syncs} fsyncs for 200 events");
}

#[tokio::test]
async fn a_disk_that_hangs_holds_up_one_call_and_loses_none() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, parts, spool) = faulty(folder.path());
    let samples = spool.samples.clone().unwrap();
    spares_are_there(&parts).await;
    let held = held_up(&disk, &samples).await;
    let audit = spool.audit.clone().unwrap();
    for _ in 0..100 {
        samples.append(b"goes on").unwrap();
        audit.append(b"goes on").unwrap();
    }
    assert!(!held.is_finished());
    disk.0.write_hangs.open();
    held.join().unwrap().unwrap();
    eventually(|| parts.metrics.samples.spooled.get() == 101).await;
    eventually(|| parts.metrics.audit.spooled.get() == 100).await;
    assert_eq!((all(&samples).await.len(), all(&audit).await.len()), (101, 100));
}
