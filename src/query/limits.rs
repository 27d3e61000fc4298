//! What one query, and all together, may use of the machine.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::OrgName;

/// Bounds of the SQL engine; each has an error of its own, see [`super::QueryError`].
#[derive(Debug, Clone, PartialEq)]
pub struct SqlLimits {
    /// Bytes that all running queries together may hold in what the engine accounts for: sorts, groups, hash tables,
    /// whole windows. One org may have three quarters of it. Batches on their way are not accounted for;
    /// `resident_bytes` bounds them.
    pub memory_bytes: usize,
    /// Bytes that all running queries together may hold, batches on their way included; past it the largest is stopped.
    pub resident_bytes: u64,
    /// Bytes that all running queries together may spill to disk, about. One org may have three quarters of it.
    pub spill_bytes: u64,
    /// The folder to spill to; none: a folder of its own in the system's temporary folder. Emptied when the engine is
    /// dropped.
    pub spill_dir: Option<PathBuf>,
    /// Time that a query may take, from its start to its last row; waiting for a slow client does not count.
    pub time: Duration,
    /// Time that an answer may take, from its query's start until its last row has been read.
    pub answer_time: Duration,
    /// Rows of an answer.
    pub rows: usize,
    /// Files that a query may read.
    pub scan_files: u64,
    /// Bytes of files that a query may read, and those of orgs that have a bound of their own.
    pub scan_bytes: u64,
    /// See `scan_bytes`.
    pub scan_bytes_of: HashMap<OrgName, u64>,
    /// Queries that one token runs at once. Its org may run one more, and all together one more again, so that a place
    /// is left to others.
    pub concurrency: usize,
    /// How long a query waits for another to end before it is refused.
    pub queue_wait: Duration,
    /// Bytes of a query's text.
    pub text_bytes: usize,
    /// Partitions that a query is cut into, and the least number of threads that queries run on: there is one for each
    /// query at least, so that planning a long one, which cannot be interrupted, does not hold up the others.
    pub threads: usize,
}

impl Default for SqlLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            resident_bytes: 2 << 30,
            spill_bytes: 4 << 30,
            spill_dir: None,
            time: Duration::from_secs(30),
            answer_time: Duration::from_secs(300),
            rows: 1_000_000,
            scan_files: 50_000,
            scan_bytes: 64 << 30,
            scan_bytes_of: HashMap::new(),
            concurrency: 4,
            queue_wait: Duration::from_secs(2),
            text_bytes: 64 << 10,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
        }
    }
}
