//! The sealed segments of a lane, oldest first, until they are delivered, set aside or dropped.
//!
//! A sealed segment *is* a batch. One of them may be in hand: the sender has it, so it is not dropped to make room. The
//! sealed segments is a list in memory of what lies in the lane's folder, and is made again from there when the spool
//! is opened; nothing here touches a file. Its lock is taken last and alone.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::disk::SegmentFile;
use super::segment::{End, SentUnder};
use crate::model::OrgName;

/// A sealed segment: a batch.
#[derive(Debug, Clone)]
pub(crate) struct Sealed {
    pub(super) ordinal: u64,
    /// What it is sent under, as its header says.
    pub(crate) sent_under: SentUnder,
    /// Whose records it holds.
    pub(crate) org: OrgName,
    pub(crate) records: u64,
    pub(super) bytes: u64,
    /// When its first record was written, µs since the epoch.
    pub(super) since: i64,
    /// The file and the mark it lacks, until it is durable.
    pub(super) unsynced: Option<(Arc<dyn SegmentFile>, End, Instant)>,
}

/// The sealed segments in figures.
#[derive(Debug, Clone, Copy)]
pub(super) struct Depth {
    pub(super) batches: u64,
    pub(super) records: u64,
    /// When the oldest record of them was written, µs since the epoch.
    pub(super) since: Option<i64>,
}

/// The sealed segments of a lane, oldest first.
#[derive(Debug)]
pub(super) struct SealedSegments(Mutex<Batches>);

#[derive(Debug)]
struct Batches {
    sealed: VecDeque<Sealed>,
    /// The batch that is being sent: it is not deleted to make room.
    in_hand: Option<u64>,
}

impl SealedSegments {
    /// These segments.
    pub(super) fn new(sealed: VecDeque<Sealed>) -> Self {
        Self(Mutex::new(Batches { sealed, in_hand: None }))
    }

    /// A list whose holder panicked is still in order.
    fn locked(&self) -> MutexGuard<'_, Batches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the newest.
    pub(super) fn push(&self, sealed: Sealed) {
        self.locked().sealed.push_back(sealed);
    }

    /// The oldest, which is then in hand.
    pub(super) fn take_in_hand(&self) -> Option<Sealed> {
        let mut batches = self.locked();
        let oldest = batches.sealed.front().cloned();
        batches.in_hand = oldest.as_ref().map(|sealed| sealed.ordinal);
        oldest
    }

    /// Nothing is in hand any more.
    pub(super) fn put_back(&self) {
        self.locked().in_hand = None;
    }

    /// Takes the one in hand out; none if it has gone.
    pub(super) fn take_off(&self, ordinal: u64) -> Option<Sealed> {
        let mut batches = self.locked();
        batches.in_hand = None;
        let at = batches.sealed.iter().position(|sealed| sealed.ordinal == ordinal)?;
        batches.sealed.remove(at)
    }

    /// Takes off the oldest that is not in hand.
    pub(super) fn take_off_oldest(&self) -> Option<Sealed> {
        let mut batches = self.locked();
        let in_hand = batches.in_hand;
        let at = batches.sealed.iter().position(|sealed| Some(sealed.ordinal) != in_hand)?;
        batches.sealed.remove(at)
    }

    /// Those that were sealed so long ago and are not durable yet.
    pub(super) fn unsynced_for(&self, long: Duration) -> Vec<Sealed> {
        let late = |sealed: &&Sealed| sealed.unsynced.as_ref().is_some_and(|(_, _, at)| at.elapsed() >= long);
        self.locked().sealed.iter().filter(late).cloned().collect()
    }

    /// A segment, if it is not durable yet.
    pub(super) fn unsynced(&self, ordinal: u64) -> Option<Sealed> {
        let is = |sealed: &&Sealed| sealed.ordinal == ordinal && sealed.unsynced.is_some();
        self.locked().sealed.iter().find(is).cloned()
    }

    /// Notes that a segment has another header.
    pub(super) fn renew(&self, ordinal: u64, sent_under: SentUnder, bytes: u64) {
        if let Some(sealed) = self.locked().sealed.iter_mut().find(|sealed| sealed.ordinal == ordinal) {
            (sealed.sent_under, sealed.bytes) = (sent_under, bytes);
        }
    }

    /// The files of all that are not durable yet.
    pub(super) fn unsynced_files(&self) -> Vec<Arc<dyn SegmentFile>> {
        let batches = self.locked();
        batches.sealed.iter().filter_map(|sealed| Some(Arc::clone(&sealed.unsynced.as_ref()?.0))).collect()
    }

    /// Notes that a segment is durable, and `marked` bytes longer; gives whether it is still here.
    pub(super) fn is_durable(&self, ordinal: u64, marked: u64) -> bool {
        let mut batches = self.locked();
        let Some(sealed) = batches.sealed.iter_mut().find(|sealed| sealed.ordinal == ordinal) else { return false };
        sealed.unsynced = None;
        sealed.bytes += marked;
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.locked().sealed.is_empty()
    }

    pub(super) fn depth(&self) -> Depth {
        let batches = self.locked();
        Depth {
            batches: batches.sealed.len() as u64,
            records: batches.sealed.iter().map(|sealed| sealed.records).sum(),
            since: batches.sealed.front().map(|sealed| sealed.since),
        }
    }
}
