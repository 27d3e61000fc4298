//! One org's tables at one instant: what a query sees.

use std::sync::Arc;

use arrow::record_batch::RecordBatch;

use crate::model::OrgName;
use crate::storage::table::DataFile;

/// One table at one instant: its files, and the samples acknowledged since the position those files hold.
#[derive(Debug, Clone, Default)]
pub struct TableState {
    /// The live files of the Delta table.
    pub files: Arc<Vec<DataFile>>,
    /// Batches of `tool_invocations` that `files` do not hold yet.
    pub live: Vec<RecordBatch>,
}

/// One org's tables at one instant; each acknowledged sample is in each table exactly once.
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
}
