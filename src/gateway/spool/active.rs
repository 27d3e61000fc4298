//! The segment that is appended to. It is guarded by a lock that is held while it is written to, and never for an
//! fsync.

use std::sync::Arc;
use std::time::Instant;

use super::disk::SegmentFile;
use super::pending::Waiter;
use super::segment::{Header, SentUnder};

/// The open segment of a lane. There is always one.
#[derive(Debug)]
pub(super) struct ActiveSegment {
    pub(super) file: Arc<dyn SegmentFile>,
    pub(super) ordinal: u64,
    pub(super) sent_under: SentUnder,
    pub(super) bytes: u64,
    /// Where its header ends.
    pub(super) begin: u64,
    pub(super) records: u64,
    /// The number after the last that was written, or given up.
    pub(super) next: u64,
    /// When its first record was written.
    pub(super) since: Option<(Instant, i64)>,
    /// When the first record was written that no fsync has covered.
    pub(super) unsynced: Option<Instant>,
    /// Who waits for an fsync of what was written.
    pub(super) waiters: Vec<Waiter>,
    /// Swapped with the pending bytes, so that neither is allocated again.
    pub(super) scratch: Vec<u8>,
}

impl ActiveSegment {
    /// A segment that holds its header and nothing else yet.
    pub(super) fn new(file: Arc<dyn SegmentFile>, ordinal: u64, header: &Header, bytes: u64) -> Self {
        Self {
            file,
            ordinal,
            sent_under: header.sent_under,
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
