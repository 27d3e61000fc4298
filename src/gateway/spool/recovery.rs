//! Opening a lane: what an earlier run left becomes batches again, and numbers go on where they ended.
//!
//! A segment with an end mark was durable as a whole, so of it only both ends are read here; whether all between is
//! sound shows when it is sent. One without is read whole: its torn tail is cut off, and it is sealed. Then a new open
//! segment is made durable, with the next number in its header, before an empty old one is deleted.
//!
//! Every batch keeps what it is sent under; the new segment is the first of a new emitter.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::active::ActiveSegment;
use super::disk::create_folder;
use super::folder::{last_quarantined, leftovers, quarantine_path, segment_path, segments};
use super::journal::{Journal, Tuning, Turn};
use super::numbers::Numbers;
use super::quota::Quota;
use super::sealed::Sealed;
use super::segment::{self, Contents, End, Header};
use super::{LaneName, SpoolError, SpoolParts};
use crate::model::OrgName;

/// Enough of a segment's beginning to hold its header.
const HEADER_AT_MOST: u64 = 4096;

/// Opens a lane.
///
/// # Errors
/// When the disk refuses; damage is said and worked around instead.
pub(super) fn open(
    spool: &Path,
    name: LaneName,
    org: &OrgName,
    (tuning, emitter): (Tuning, Uuid),
    parts: &SpoolParts,
    (quota, turn): (&Arc<Quota>, &Turn),
) -> Result<Arc<Journal>, SpoolError> {
    let folder = spool.join(name.as_str());
    create_folder(&folder).map_err(SpoolError::io("create", &folder))?;
    let quarantine = spool.join("quarantine");
    create_folder(&quarantine).map_err(SpoolError::io("create", &quarantine))?;

    let mut found = Found { name, parts, sealed: VecDeque::new(), empty: Vec::new(), next: 0, last: None };
    for (ordinal, path) in segments(&folder).map_err(SpoolError::io("list", &folder))? {
        found.take(ordinal, &path).map_err(SpoolError::io("read", &path))?;
    }
    for path in leftovers(&folder).map_err(SpoolError::io("list", &folder))? {
        parts.disk.remove(&path).map_err(SpoolError::io("delete", &path))?;
    }
    // Not the number of one in the quarantine either, which may come back.
    let last = last_quarantined(&quarantine, name).map_err(SpoolError::io("list", &quarantine))?;
    let ordinal = found.last.max(last).map_or(0, |last| last + 1);
    let numbers = Numbers::new(emitter);
    let header = parts.header(numbers.draw(), name, org, found.next);
    let path = segment_path(&folder, ordinal);
    let active = begin(parts, &folder, &path, ordinal, &header).map_err(SpoolError::io("write", &path))?;
    for path in &found.empty {
        parts.disk.remove(path).map_err(SpoolError::io("delete", path))?;
    }
    quota.add(name, active.bytes + found.sealed.iter().map(|sealed| sealed.bytes).sum::<u64>());
    let settings = (name, folder, org.clone(), tuning);
    Ok(Arc::new(Journal::new(settings, parts, (quota, turn), (active, numbers), found.sealed)))
}

fn begin(parts: &SpoolParts, folder: &Path, path: &Path, ordinal: u64, header: &Header) -> io::Result<ActiveSegment> {
    let file = parts.disk.create(path)?;
    let bytes = header.encode().map_err(io::Error::other)?;
    file.write_at(&bytes, 0)?;
    file.sync()?;
    parts.disk.sync_folder(folder)?;
    Ok(ActiveSegment::new(file, ordinal, header, bytes.len() as u64))
}

/// What was found so far.
struct Found<'a> {
    name: LaneName,
    parts: &'a SpoolParts,
    sealed: VecDeque<Sealed>,
    /// Segments without a record.
    empty: Vec<PathBuf>,
    /// The number that the next record gets.
    next: u64,
    /// The last segment's own number.
    last: Option<u64>,
}

impl Found<'_> {
    fn take(&mut self, ordinal: u64, path: &Path) -> io::Result<()> {
        self.last = Some(ordinal);
        let mut file = File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut front = Vec::new();
        file.by_ref().take(HEADER_AT_MOST).read_to_end(&mut front)?;
        let Some(header) = segment::header(&front) else { return self.headless(ordinal, path, &front) };
        let tail = bytes.saturating_sub(End::BYTES as u64);
        file.seek(SeekFrom::Start(tail))?;
        let mut back = Vec::new();
        file.read_to_end(&mut back)?;
        match End::at_tail(&back) {
            Some(end) => {
                // The mark may have been written a moment before a kill, and not be durable yet.
                self.parts.disk.open(path)?.sync()?;
                self.keep(ordinal, path, &header, end, bytes);
                Ok(())
            }
            None => self.mend(ordinal, path, header),
        }
    }

    /// A segment that is not even begun soundly. One that was made a moment before a power cut is empty or all zeros,
    /// and held no record that was promised; any other is damage.
    fn headless(&mut self, ordinal: u64, path: &Path, front: &[u8]) -> io::Result<()> {
        if front.iter().all(|byte| *byte == 0) {
            self.empty.push(path.to_owned());
            return Ok(());
        }
        let aside = quarantine_path(path.parent().unwrap_or(path), self.name, ordinal);
        self.parts.disk.rename(path, &aside)?;
        self.parts.metrics_of(self.name).quarantined.inc();
        tracing::error!(
            path = %aside.display(),
            "a segment of the spool is damaged: its header is not sound; it is in the quarantine"
        );
        Ok(())
    }

    /// A segment that was open, or not yet durable, when the gateway ended.
    fn mend(&mut self, ordinal: u64, path: &Path, header: Header) -> io::Result<()> {
        let Some(contents) = Contents::read(fs::read(path)?) else {
            return Err(io::Error::other("it changed while it was read"));
        };
        if let Some(damage) = contents.damage() {
            tracing::error!(
                path = %path.display(), damage,
                "a segment of the spool is damaged; what is sound of it will be delivered"
            );
        }
        let file = self.parts.disk.open(path)?;
        let sound = contents.sound as u64;
        if contents.torn() > 0 {
            tracing::info!(path = %path.display(), bytes = contents.torn(), "the torn tail of a segment is cut off");
            file.truncate(sound)?;
        }
        let end = End { records: contents.len(), next: contents.next() };
        let mut mark = Vec::new();
        // With bytes between that are no record, the mark would say that all is well.
        if contents.gaps.is_empty() {
            segment::push_end(&mut mark, end);
            file.write_at(&mark, sound)?;
        }
        file.sync()?;
        self.keep(ordinal, path, &header, end, sound + mark.len() as u64);
        Ok(())
    }

    fn keep(&mut self, ordinal: u64, path: &Path, header: &Header, end: End, bytes: u64) {
        self.next = self.next.max(header.first).max(end.next);
        if end.records == 0 {
            return self.empty.push(path.to_owned());
        }
        self.sealed.push_back(Sealed {
            ordinal,
            sent_under: header.sent_under,
            org: header.org.clone(),
            records: end.records,
            bytes,
            since: header.created_at,
            unsynced: None,
        });
    }
}
