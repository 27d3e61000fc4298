//! What one query, and all together, may use of the machine.

use std::path::PathBuf;
use std::time::Duration;

/// Bounds of the SQL engine; each has an error of its own, see [`super::QueryError`].
#[derive(Debug, Clone, PartialEq)]
pub struct SqlLimits {
    /// Bytes that all running queries together may hold in what the engine accounts for: sorts, groups, hash tables.
    /// Scans and batches on their way are not accounted for; `resident_bytes` bounds them.
    pub memory_bytes: usize,
    /// Resident bytes of the whole process at which running queries are stopped, youngest first.
    pub resident_bytes: u64,
    /// Bytes that all running queries together may spill to disk.
    pub spill_bytes: u64,
    /// The folder to spill to; none: a folder of its own in the system's temporary folder. Emptied when the engine is dropped.
    pub spill_dir: Option<PathBuf>,
    /// Time that a query may take, from its start to its last row; waiting for a slow client does not count,
    /// but a client may not keep a query waiting longer than this either.
    pub time: Duration,
    /// Rows of an answer.
    pub rows: usize,
    /// Queries that run at once.
    pub concurrency: usize,
    /// How long a query waits for another to end before it is refused.
    pub queue_wait: Duration,
    /// Bytes of a query's text.
    pub text_bytes: usize,
    /// Partitions that a query is cut into, and the least number of threads that queries run on: there is one for each query at
    /// least, so that planning a long one, which cannot be interrupted, does not hold up the others.
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
            rows: 1_000_000,
            concurrency: 4,
            queue_wait: Duration::from_secs(2),
            text_bytes: 64 << 10,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
        }
    }
}
