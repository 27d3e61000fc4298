//! Families of what a node does with the log on its own: tables, ledgers, what it reads at start and of other nodes.

use prometheus::{Gauge, Histogram, IntCounter, IntGauge};

use super::registrar::{Registrar, SECONDS};

/// From the WAL to the tables.
#[derive(Debug)]
pub struct Flush {
    /// Seconds that one flush of one org took.
    pub seconds: Histogram,
    /// Age in seconds of the oldest acknowledged sample that is in no table yet.
    pub lag_seconds: Gauge,
    /// Flushes that failed; they are tried again.
    pub failures: IntCounter,
    /// Samples written to the tables.
    pub rows: IntCounter,
    /// Files written to the tables.
    pub files: IntCounter,
    /// Bytes of those files.
    pub bytes: IntCounter,
}

impl Flush {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            seconds: r.histogram(
                "mcpg_cp_flush_duration_seconds",
                "Time of one flush of one org to its tables",
                &SECONDS,
            ),
            lag_seconds: r
                .decimal("mcpg_cp_flush_lag_seconds", "Age of the oldest acknowledged sample that is in no table yet"),
            failures: r.counter("mcpg_cp_flush_failures_total", "Flushes that failed and will be tried again"),
            rows: r.counter("mcpg_cp_flush_rows_total", "Samples written to the tables"),
            files: r.counter("mcpg_cp_flush_files_total", "Files written to the tables"),
            bytes: r.counter("mcpg_cp_flush_bytes_total", "Bytes of the files written to the tables"),
        }
    }
}

/// The audit ledgers.
#[derive(Debug)]
pub struct Audit {
    /// Events put into ledgers by this node.
    pub events: IntCounter,
    /// Segments this node wrote, merged ones too.
    pub segments: IntCounter,
    /// Heads this node signed.
    pub heads: IntCounter,
    /// Segments this node deleted because they were pruned.
    pub pruned: IntCounter,
    /// Cosignatures of the witness on this node's heads.
    pub cosignatures: IntCounter,
    /// Times that the witness or the mirror did not take a head; it is tried again.
    pub handing_failures: IntCounter,
    /// Times that a ledger was not written and is tried again.
    pub failures: IntCounter,
    /// Age in seconds of the oldest entry that is in no segment yet.
    pub lag_seconds: Gauge,
}

impl Audit {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            events: r.counter("mcpg_cp_audit_events_total", "Events put into ledgers"),
            segments: r.counter("mcpg_cp_audit_segments_total", "Segments of ledgers written by this node"),
            heads: r.counter("mcpg_cp_audit_heads_total", "Heads of ledgers signed by this node"),
            pruned: r.counter("mcpg_cp_audit_pruned_segments_total", "Segments of ledgers deleted after a prune"),
            cosignatures: r.counter("mcpg_cp_audit_cosignatures_total", "Heads of ledgers cosigned by the witness"),
            handing_failures: r.counter(
                "mcpg_cp_audit_handing_failures_total",
                "Times that the witness or the mirror did not take a head, which will be tried again",
            ),
            failures: r
                .counter("mcpg_cp_audit_failures_total", "Times that a ledger was not written and will be tried again"),
            lag_seconds: r
                .decimal("mcpg_cp_audit_lag_seconds", "Age of the oldest ledger entry that is in no segment yet"),
        }
    }
}

/// Reading the WAL at start.
#[derive(Debug)]
pub struct Replay {
    /// WAL objects to apply before the node serves.
    pub objects: IntGauge,
    /// WAL objects applied so far.
    pub objects_done: IntGauge,
    /// Seconds that it took, once it is over.
    pub seconds: Gauge,
}

impl Replay {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            objects: r.gauge("mcpg_cp_replay_objects", "WAL objects to apply at start before serving"),
            objects_done: r.gauge("mcpg_cp_replay_objects_done", "WAL objects applied at start so far"),
            seconds: r
                .decimal("mcpg_cp_replay_duration_seconds", "Time that the replay at start took, once it is over"),
        }
    }
}

/// Reading what other nodes wrote to the WAL, before each answer.
#[derive(Debug)]
pub struct CatchUp {
    /// Seconds that one catch-up took.
    pub seconds: Histogram,
    /// WAL objects of other nodes that were applied.
    pub objects: IntCounter,
}

impl CatchUp {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            seconds: r.histogram(
                "mcpg_cp_catch_up_duration_seconds",
                "Time to apply what other nodes acknowledged",
                &SECONDS,
            ),
            objects: r.counter("mcpg_cp_catch_up_objects_total", "WAL objects of other nodes that were applied"),
        }
    }
}
