//! Families of what is taken in: from a batch that a client sends to the log, and the memory that it takes meanwhile.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use super::registrar::{COUNTS, Registrar, SECONDS};

/// Samples that clients send.
#[derive(Debug)]
pub struct Ingest {
    samples: IntCounterVec,
    batches: IntCounterVec,
    body_bytes: IntCounterVec,
    refused: IntCounterVec,
    /// Batches that had been stored before, under the same idempotency key.
    pub duplicates: IntCounter,
}

impl Ingest {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        let families = Self {
            samples: r.counters("mcpg_cp_ingest_samples_total", "Samples acknowledged", &["format"]),
            batches: r.counters("mcpg_cp_ingest_batches_total", "Batches acknowledged", &["format"]),
            body_bytes: r.counters(
                "mcpg_cp_ingest_body_bytes_total",
                "Bytes of acknowledged batches as they were sent",
                &["format"],
            ),
            refused: r.counters(
                "mcpg_cp_ingest_refused_total",
                "Batches refused, by the code of the problem",
                &["code"],
            ),
            duplicates: r.counter(
                "mcpg_cp_ingest_duplicates_total",
                "Batches that had been stored before under the same idempotency key",
            ),
        };
        for format in ["arrow", "ndjson", "json"] {
            families.samples.with_label_values(&[format]).reset();
            families.batches.with_label_values(&[format]).reset();
            families.body_bytes.with_label_values(&[format]).reset();
        }
        families
    }

    /// A batch of `samples` was acknowledged; its body had `bytes` as it was sent. `format` is `arrow`, `ndjson` or
    /// `json`.
    pub fn accepted(&self, format: &'static str, samples: u64, bytes: u64) {
        self.samples.with_label_values(&[format]).inc_by(samples);
        self.batches.with_label_values(&[format]).inc();
        self.body_bytes.with_label_values(&[format]).inc_by(bytes);
    }

    /// A batch was refused with the problem `code`.
    pub fn refused(&self, code: &'static str) {
        self.refused.with_label_values(&[code]).inc();
    }
}

/// The write-ahead log.
#[derive(Debug)]
pub struct Wal {
    /// Seconds to make one group durable: write, fsync and naming of its WAL object.
    pub commit_seconds: Histogram,
    /// Batches in each committed group.
    pub group_batches: Histogram,
    /// WAL objects this node wrote.
    pub objects: IntCounter,
    /// Bytes of them.
    pub bytes: IntCounter,
    /// Times that another node took the position this node wanted, so that it tried the next.
    pub conflicts: IntCounter,
    /// Groups that could not be made durable.
    pub failures: IntCounter,
    /// The position this node has applied.
    pub position: IntGauge,
}

impl Wal {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            commit_seconds: r.histogram(
                "mcpg_cp_wal_commit_duration_seconds",
                "Time to make one group of batches durable",
                &SECONDS,
            ),
            group_batches: r.histogram("mcpg_cp_wal_group_batches", "Batches in each committed group", &COUNTS),
            objects: r.counter("mcpg_cp_wal_objects_total", "WAL objects written by this node"),
            bytes: r.counter("mcpg_cp_wal_bytes_total", "Bytes of the WAL objects written by this node"),
            conflicts: r.counter("mcpg_cp_wal_conflicts_total", "WAL positions that another node took first"),
            failures: r.counter("mcpg_cp_wal_failures_total", "Groups that could not be made durable"),
            position: r.gauge("mcpg_cp_wal_position", "WAL position that this node has applied"),
        }
    }
}

/// Samples in memory: requests under way, and acknowledged samples that are not flushed yet.
#[derive(Debug)]
pub struct Buffer {
    /// Acknowledged samples not yet flushed.
    pub rows: IntGauge,
    /// Bytes in use, of requests under way and of unflushed samples.
    pub bytes: IntGauge,
    /// The bound of those bytes.
    pub limit_bytes: IntGauge,
    /// Requests refused because the buffer was full.
    pub refusals: IntCounter,
}

impl Buffer {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            rows: r.gauge("mcpg_cp_buffer_rows", "Acknowledged samples not yet flushed"),
            bytes: r.gauge("mcpg_cp_buffer_bytes", "Memory of requests under way and of samples not yet flushed"),
            limit_bytes: r
                .gauge("mcpg_cp_buffer_limit_bytes", "Bound of mcpg_cp_buffer_bytes, past which requests are refused"),
            refusals: r.counter("mcpg_cp_buffer_refusals_total", "Requests refused because the buffer was full"),
        }
    }
}
