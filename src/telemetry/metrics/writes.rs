//! Families of what is taken in: from a batch that a client sends to the log, and the memory that it takes meanwhile.

use prometheus::{Gauge, Histogram, IntCounter, IntCounterVec, IntGauge};

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
    /// Samples whose hour was over for an hour when they came.
    pub late: IntCounter,
}

/// Codes of refusals that are there from the start: the first of a kind is an increase that an alert can see.
const WATCHED_REFUSALS: [&str; 4] = ["invalid_event", "invalid_sample", "key_reused", "sequence_conflict"];

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
            late: r.counter(
                "mcpg_cp_ingest_late_samples_total",
                "Samples acknowledged by this node that no gauge of the hour shows: their hour was over for an hour",
            ),
        };
        for code in WATCHED_REFUSALS {
            families.refused.with_label_values(&[code]).reset();
        }
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

/// How the log fares: what a healthy store never shows.
#[derive(Debug)]
pub struct LogHealth {
    /// Operations of the store that failed and were tried again.
    pub hiccups: IntCounter,
    /// Times that trimming passed this node, so that it loaded again.
    pub left_behind: IntCounter,
    /// Batches whose emitter was answered for one that is not here: the store was restored to an older state.
    pub gaps: IntCounter,
    /// Orgs that are stopped on this node.
    pub stopped_orgs: IntGauge,
    /// The share of its bound that the keys of the fullest org take.
    pub keys_fill: Gauge,
    /// Keys of loaded orgs that were forgotten before their 24 hours were over.
    pub keys_evicted: IntGauge,
    /// Emitter lanes of the org with the most of them.
    pub lanes: IntGauge,
    /// Orgs of which something is parked, as far as this node knows.
    pub parked_orgs: IntGauge,
    /// Objects above the floor.
    pub untrimmed: IntGauge,
}

impl LogHealth {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            hiccups: r.counter("mcpg_cp_log_hiccups_total", "Operations on the log that failed and were tried again"),
            left_behind: r.counter(
                "mcpg_cp_log_left_behind_total",
                "Times that trimming passed this node, so that it loaded again",
            ),
            gaps: r.counter(
                "mcpg_cp_log_sequence_gaps_total",
                "Batches stored after a gap in their lane: the store was restored to an older state",
            ),
            stopped_orgs: r.gauge("mcpg_cp_orgs_stopped", "Orgs that are stopped on this node because of damage"),
            keys_fill: r.decimal(
                "mcpg_cp_keys_fill_ratio",
                "Share of its bound that the idempotency keys of the fullest org take; at 1 the oldest go early",
            ),
            keys_evicted: r.gauge(
                "mcpg_cp_keys_evicted_early",
                "Idempotency keys of loaded orgs that were forgotten before their 24 hours were over",
            ),
            lanes: r.gauge("mcpg_cp_lanes", "Emitter lanes remembered of the org with the most of them"),
            parked_orgs: r
                .gauge("mcpg_cp_orgs_parked", "Orgs of which something is parked, until they are whole again"),
            untrimmed: r.gauge("mcpg_cp_log_objects", "Log objects above the floor"),
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
