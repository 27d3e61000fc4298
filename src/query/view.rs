//! One org's tables at one instant: what a query sees.

use std::fmt;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use object_store::{ObjectMeta, ObjectStore};

use crate::model::OrgName;
use crate::storage::StorageError;
use crate::storage::table::DataFile;

/// What proves the files of a table before their rows are believed.
#[async_trait]
pub trait Evidence: fmt::Debug + Send + Sync {
    /// Makes sure that a file is what the table says it is. Gives the version that was found right.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] when it is not.
    async fn prove(&self, file: &DataFile) -> Result<ObjectMeta, StorageError>;

    /// Where files that were proved are read, in the version that was proved.
    fn store(&self) -> Arc<dyn ObjectStore>;
}

/// One table at one instant: its files, and what was acknowledged since the position those files hold.
#[derive(Debug, Clone, Default)]
pub struct TableState {
    /// The live files of the Delta table, or the ledger's segments.
    pub files: Arc<Vec<DataFile>>,
    /// Batches of `tool_invocations`, or of `audit_log`, that `files` do not hold yet.
    pub live: Vec<RecordBatch>,
    /// What proves the files; none where they are taken as they lie there. What a file that must be proved says of its
    /// rows beside the rows, such as their least and greatest values, is not looked at.
    pub evidence: Option<Arc<dyn Evidence>>,
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
    /// `tool_invocation_payloads`; its live rows have columns that no query sees after those that it does.
    pub payloads: TableState,
    /// `audit_log`.
    pub audit: TableState,
}
