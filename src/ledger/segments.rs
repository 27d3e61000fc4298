//! What a ledger consists of, and how far each piece has come: entries in memory, segments that are to be written, to
//! be merged out of others, or stored.

use std::collections::HashMap;

use arrow::record_batch::RecordBatch;
use object_store::path::Path;
use tokio::time::Instant;

use super::segment_path;
use crate::audit::segment::SegmentName;
use crate::audit::{Hash, Leaf};
use crate::model::OrgName;
use crate::storage::table::DataFile;

/// Entries that one WAL object brought.
#[derive(Debug, Clone)]
pub(crate) struct Entries {
    /// The number after the last one.
    pub(crate) end: u64,
    pub(crate) batch: RecordBatch,
    pub(crate) leaves: Vec<Leaf>,
    /// Memory that the batch takes.
    pub(crate) bytes: usize,
    pub(crate) since: Instant,
}

/// A stored file of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stored {
    /// Size in bytes.
    pub(crate) size: u64,
    /// The hash of its last entry, where the log has given it since the ledger was loaded.
    pub(crate) last: Option<Hash>,
}

/// Whose it is to write a segment, and since when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Duty {
    /// Whether it is this process's: it decided so, or it has loaded the ledger since.
    pub(crate) ours: bool,
    /// When this process came upon the decision.
    pub(crate) since: Instant,
}

/// Where an entry is.
#[derive(Debug)]
pub(crate) enum Found {
    /// Among these, in memory.
    Live(RecordBatch),
    /// In this segment.
    Stored(SegmentName),
}

/// What is on the store of a segment.
#[derive(Debug)]
pub(crate) enum Place {
    /// Its file.
    Stored(Stored),
    /// Nothing yet: its entries are live.
    Cut(Duty),
    /// The segments that are to become it.
    Parts(Duty, Vec<Segment>),
    /// It was not looked for yet: the ledger is being loaded.
    Unknown,
}

/// A segment of the ledger, as the log has decided it.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) name: SegmentName,
    /// Least and greatest `occurred_at` of its entries, µs; none in a segment of version 1, of which nothing proves it.
    pub(crate) times: Option<(i64, i64)>,
    pub(crate) place: Place,
}

/// A segment that is to be written.
#[derive(Debug)]
pub(crate) struct Due<T> {
    pub(crate) name: SegmentName,
    pub(crate) duty: Duty,
    /// What it is made of.
    pub(crate) from: Vec<T>,
}

/// Segments that are to be deleted: they were pruned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Removal {
    /// The entry that says so. They go once a checkpoint covers it.
    pub(crate) entry: u64,
    /// All that end before this entry.
    pub(crate) first_kept: u64,
    /// Since when no query of this node begins to read them.
    pub(crate) since: Instant,
}

impl Segment {
    /// One that is stored, whose entries are within these times.
    pub(crate) fn stored(name: SegmentName, times: Option<(i64, i64)>, size: u64) -> Self {
        Self { name, times, place: Place::Stored(Stored { size, last: None }) }
    }

    /// Adds its files, and the hash of the last entry of each, where it is known.
    pub(crate) fn files(&self, org: &OrgName, out: &mut Vec<DataFile>, last: &mut HashMap<Path, Hash>) {
        match &self.place {
            Place::Stored(stored) => {
                let path = segment_path(org, self.name);
                if let Some(hash) = stored.last {
                    last.insert(path.clone(), hash);
                }
                let number = |seq: u64| i64::try_from(seq).unwrap_or(i64::MAX);
                out.push(DataFile {
                    path,
                    size: stored.size,
                    rows: self.name.entries(),
                    date: 0,
                    time_range: self.times,
                    seq_range: Some((number(self.name.first), number(self.name.last))),
                    id_range: None,
                });
            }
            Place::Cut(_) | Place::Unknown => {}
            Place::Parts(_, parts) => parts.iter().for_each(|part| part.files(org, out, last)),
        }
    }

    pub(crate) fn is_whole(&self) -> bool {
        matches!(self.place, Place::Stored(_))
    }
}
