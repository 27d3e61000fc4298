//! One org's tables at one instant: what a query sees.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;

use crate::model::OrgName;
use crate::storage::table::DataFile;

/// One table at one instant: its files, and what was acknowledged since the position those files hold.
#[derive(Debug, Clone, Default)]
pub struct TableState {
    /// The live files of the Delta table, or the ledger's segments.
    pub files: Arc<Vec<DataFile>>,
    /// Batches of `tool_invocations`, or of `audit_log`, that `files` do not hold yet.
    pub live: Vec<RecordBatch>,
}

/// One org's tables at one instant; each acknowledged sample or event is in each of its tables exactly once.
#[derive(Debug, Clone)]
pub struct OrgView {
    /// Whose tables.
    pub org: OrgName,
    /// `tool_invocations`.
    pub samples: TableState,
    /// `tool_usage_hourly`.
    pub hourly: TableState,
    /// `tool_usage_daily`.
    pub daily: TableState,
    /// `audit_log`.
    pub audit: TableState,
}
