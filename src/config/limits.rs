//! What a client of the control plane may ask for, and what memory may be used.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ByteSize, Period};

/// What a client may ask for, and what memory may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The largest request body as it is sent, perhaps compressed.
    pub body_bytes: ByteSize,
    /// The largest request body once it is decompressed.
    pub decoded_bytes: ByteSize,
    /// The most samples in one request.
    pub batch_rows: u64,
    /// All samples in memory: requests under way and samples not yet flushed. Past it, requests are refused with 429. A
    /// request that could not be held even by an empty buffer is refused with 413, whatever the limits above.
    pub buffer_bytes: ByteSize,
    /// How long a request may take, from its first byte to the answer's first.
    pub request_timeout: Period,
    /// How many idempotency keys are remembered for each org.
    pub idempotency_keys: u64,
    /// How many metric series each org has; later ones are counted under `__other__`.
    pub series: u64,
    /// Limits of SQL.
    pub sql: SqlLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes: ByteSize::mib(64),
            decoded_bytes: ByteSize::mib(128),
            batch_rows: 1_000_000,
            buffer_bytes: ByteSize::mib(384),
            request_timeout: Period::new(Duration::from_secs(60)),
            idempotency_keys: 4_000_000,
            series: 10_000,
            sql: SqlLimits::default(),
        }
    }
}

/// Limits of SQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SqlLimits {
    /// Working memory of all queries together.
    pub memory_bytes: ByteSize,
    /// How long one query may run.
    pub timeout: Period,
    /// How long an answer may take until its last row has been read.
    pub answer_timeout: Period,
    /// From how long on a query is logged as slow.
    pub slow_query: Period,
    /// The most rows of one answer.
    pub rows: u64,
    /// The most files that one query reads.
    pub scan_files: u64,
    /// The most bytes of files that one query reads; an org may have a bound of its own.
    pub scan_bytes: ByteSize,
    /// How many queries of one token run at once; more wait for a moment, then are refused with 429. An org runs one
    /// more, and all orgs together one more again.
    pub concurrency: u64,
    /// The longest query text.
    pub query_bytes: ByteSize,
    /// Temporary files of all queries together.
    pub spill_bytes: ByteSize,
    /// What all running queries may hold, batches on their way included; past it the largest is stopped.
    pub resident_bytes: ByteSize,
}

impl Default for SqlLimits {
    fn default() -> Self {
        Self {
            memory_bytes: ByteSize::mib(256),
            timeout: Period::new(Duration::from_secs(30)),
            answer_timeout: Period::new(Duration::from_secs(300)),
            slow_query: Period::new(Duration::from_secs(5)),
            rows: 1_000_000,
            scan_files: 50_000,
            scan_bytes: ByteSize::mib(64 << 10),
            concurrency: 4,
            query_bytes: ByteSize::new(64 << 10),
            spill_bytes: ByteSize::mib(2048),
            resident_bytes: ByteSize::mib(2048),
        }
    }
}
