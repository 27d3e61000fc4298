//! What a ledger consists of, and how far each piece has come: entries in memory, segments that are to be written, to be merged
//! out of others, or stored.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use tokio::time::Instant;

use super::ledger::segment_path;
use crate::audit::Leaf;
use crate::audit::segment::SegmentName;
use crate::model::OrgName;
use crate::storage::table::DataFile;

/// Entries that one WAL object brought.
#[derive(Debug, Clone)]
pub(super) struct Entries {
    pub(super) position: u64,
    /// The number after the last one.
    pub(super) end: u64,
    pub(super) batch: RecordBatch,
    pub(super) leaves: Vec<Leaf>,
    /// Memory that the batch takes.
    pub(super) bytes: usize,
    pub(super) since: Instant,
}

/// A stored file of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    /// Size in bytes.
    pub(super) size: u64,
    /// Least and greatest `occurred_at`, where it is known.
    pub(super) times: Option<(i64, i64)>,
}

/// Whose it is to write a segment, and since when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Duty {
    /// Whether this process put the mark into the log.
    pub(super) ours: bool,
    /// When this process came upon the mark.
    pub(super) since: Instant,
}

/// Where an entry is.
#[derive(Debug)]
pub(super) enum Found {
    /// Among these, in memory.
    Live(RecordBatch),
    /// In this segment.
    Stored(SegmentName),
}

/// What is on the store of a segment.
#[derive(Debug)]
pub(super) enum Place {
    /// Its file.
    Stored(Stored),
    /// Nothing yet: its entries are live.
    Cut(Duty),
    /// The segments that are to become it.
    Parts(Duty, Vec<Segment>),
}

/// A segment of the ledger.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) name: SegmentName,
    /// The object whose mark ended it: what the log brought before that is in it or an earlier one.
    pub(super) position: u64,
    /// What the entries up to its end say of the ledger, as its metadata has it.
    pub(super) standing: Arc<str>,
    /// The object whose mark made it out of others.
    pub(super) merged_at: u64,
    pub(super) place: Place,
}

/// A segment that is to be written.
#[derive(Debug)]
pub(super) struct Due<T> {
    pub(super) name: SegmentName,
    pub(super) position: u64,
    pub(super) standing: Arc<str>,
    pub(super) duty: Duty,
    /// What it is made of.
    pub(super) from: Vec<T>,
}

/// Segments that are to be deleted: they were pruned.
#[derive(Debug, Clone, Copy)]
pub(super) struct Removal {
    /// The entry that says so. They go once a head covers it.
    pub(super) entry: u64,
    /// All that end before this entry.
    pub(super) first_kept: u64,
    /// Since when no query of this node begins to read them.
    pub(super) since: Instant,
}

impl Segment {
    /// One that was found on the store.
    pub(super) fn found(name: SegmentName, position: u64, standing: Arc<str>, size: u64) -> Self {
        Self { name, position, standing, merged_at: 0, place: Place::Stored(Stored { size, times: None }) }
    }

    pub(super) fn files(&self, org: &OrgName, out: &mut Vec<DataFile>) {
        match &self.place {
            Place::Stored(stored) => {
                let number = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
                out.push(DataFile {
                    path: segment_path(org, self.name),
                    size: stored.size,
                    rows: self.name.entries(),
                    date: 0,
                    time_range: stored.times,
                    seq_range: Some((number(self.name.first), number(self.name.last))),
                });
            }
            Place::Cut(_) => {}
            Place::Parts(_, parts) => parts.iter().for_each(|part| part.files(org, out)),
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        matches!(self.place, Place::Stored(_))
    }
}
