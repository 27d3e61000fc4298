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

/// Keeping the tables: merges, and what is deleted.
#[derive(Debug)]
pub struct Maintenance {
    /// Seconds that one merge took.
    pub seconds: Histogram,
    /// Merges that were committed.
    pub merges: IntCounter,
    /// Merges whose files went meanwhile, so that they changed nothing.
    pub stale: IntCounter,
    /// Files that were merged.
    pub files: IntCounter,
    /// Rows that merges wrote.
    pub rows: IntCounter,
    /// Bytes that merges read.
    pub bytes_read: IntCounter,
    /// Bytes that merges wrote.
    pub bytes_written: IntCounter,
    /// Files deleted that no version of a table named any more.
    pub deleted: IntCounter,
    /// Rows removed because they were older than they are kept.
    pub expired: IntCounter,
    /// Times that the maintenance of an org's tables failed; it is tried again.
    pub failures: IntCounter,
    /// Bytes of loaded orgs' tables that merges which are due would read.
    pub debt_bytes: IntGauge,
    /// Files that nobody needs, as the last vacuum of each table found them and could not delete them.
    pub orphans: IntGauge,
    /// When all orgs that are loaded were last gone through without a failure, in seconds since the epoch.
    pub last_success: Gauge,
}

impl Maintenance {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            seconds: r.histogram("mcpg_cp_merge_duration_seconds", "Time of one merge of files of a table", &SECONDS),
            merges: r.counter("mcpg_cp_merges_total", "Merges of files of tables that were committed"),
            stale: r.counter(
                "mcpg_cp_merges_stale_total",
                "Merges whose files were merged or removed by others meanwhile, so that they changed nothing",
            ),
            files: r.counter("mcpg_cp_merged_files_total", "Files of tables that were merged"),
            rows: r.counter("mcpg_cp_merged_rows_total", "Rows that merges wrote"),
            bytes_read: r.counter("mcpg_cp_merge_read_bytes_total", "Bytes of the files that merges read"),
            bytes_written: r.counter("mcpg_cp_merge_written_bytes_total", "Bytes of the files that merges wrote"),
            deleted: r.counter(
                "mcpg_cp_table_files_deleted_total",
                "Files deleted that no version of a table named any more",
            ),
            expired: r.counter(
                "mcpg_cp_rows_expired_total",
                "Rows removed from tables because they were older than they are kept",
            ),
            failures: r.counter(
                "mcpg_cp_maintenance_failures_total",
                "Times that the maintenance of an org's tables failed and will be tried again",
            ),
            debt_bytes: r.gauge(
                "mcpg_cp_compaction_debt_bytes",
                "Bytes of loaded orgs' tables that merges which are due would read",
            ),
            orphans: r.gauge(
                "mcpg_cp_table_orphans",
                "Files that no version of a table names, which the last vacuum found and could not delete",
            ),
            last_success: r.decimal(
                "mcpg_cp_maintenance_last_success_timestamp_seconds",
                "When all loaded orgs' tables were last gone through without a failure",
            ),
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
    /// Cosignatures of the witness on this node's checkpoints.
    pub cosignatures: IntCounter,
    /// Times that the witness or the mirror did not take a checkpoint; it is retried.
    pub handing_failures: IntCounter,
    /// Times that a ledger was not written and is tried again.
    pub failures: IntCounter,
    /// Times that a ledger did not stand a check of the control plane's own.
    pub verification_failures: IntCounter,
    /// Age in seconds of the oldest entry that is in no segment yet.
    pub lag_seconds: Gauge,
    /// Age in seconds of the oldest entry that no checkpoint covers.
    pub unsigned_seconds: Gauge,
}

impl Audit {
    pub(super) fn new(r: &Registrar<'_>) -> Self {
        Self {
            events: r.counter("mcpg_cp_audit_events_total", "Events put into ledgers"),
            segments: r.counter("mcpg_cp_audit_segments_total", "Segments of ledgers written by this node"),
            heads: r.counter("mcpg_cp_audit_heads_total", "Checkpoints of ledgers signed by this node"),
            pruned: r.counter("mcpg_cp_audit_pruned_segments_total", "Segments of ledgers deleted after a prune"),
            cosignatures: r.counter("mcpg_cp_audit_cosignatures_total", "Heads of ledgers cosigned by the witness"),
            handing_failures: r.counter(
                "mcpg_cp_audit_handing_failures_total",
                "Times that the witness or the mirror did not take a head, which will be tried again",
            ),
            failures: r
                .counter("mcpg_cp_audit_failures_total", "Times that a ledger was not written and will be tried again"),
            verification_failures: r.counter(
                "mcpg_cp_audit_verification_failures_total",
                "Times that a witness contradicted a ledger, or entries to be pruned did not verify",
            ),
            lag_seconds: r
                .decimal("mcpg_cp_audit_lag_seconds", "Age of the oldest ledger entry that is in no segment yet"),
            unsigned_seconds: r.decimal(
                "mcpg_cp_audit_unsigned_seconds",
                "Age of the oldest ledger entry that no signed checkpoint covers",
            ),
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
