//! How much a plan reads, known before it runs: the files that are left once their dates and times were looked at.
//!
//! Files that must be proved are read whole as the query is planned: what they come to is bounded before that, see
//! [`Reads`].

use std::sync::Arc;

use datafusion::datasource::physical_plan::ParquetSource;
use datafusion::datasource::source::DataSourceExec;
use datafusion::physical_plan::ExecutionPlan;

use super::{QueryError, SqlLimits};
use crate::model::OrgName;
use crate::storage::table::DataFile;

/// What a query may read, and whether it is going to: a plan that is only shown needs no proof.
#[derive(Debug, Clone)]
pub(super) struct Reads {
    pub(super) limits: Arc<SqlLimits>,
    pub(super) org: OrgName,
    pub(super) runs: bool,
}

impl Reads {
    /// Refuses files that are more than the query may read.
    pub(super) fn check(&self, files: &[&DataFile]) -> Result<(), QueryError> {
        let bytes = files.iter().fold(0, |bytes: u64, file| bytes.saturating_add(file.size));
        Scanned { files: files.len() as u64, bytes }.within(&self.limits, &self.org)
    }
}

/// Files of a plan, each as often as it is read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) files: u64,
    /// All of theirs, though fewer columns may be read.
    pub(super) bytes: u64,
}

impl Scanned {
    /// What a plan reads.
    pub(super) fn of(plan: &dyn ExecutionPlan) -> Self {
        let mut scanned = Self::default();
        scanned.add(plan);
        scanned
    }

    fn add(&mut self, plan: &dyn ExecutionPlan) {
        if let Some(source) = plan.downcast_ref::<DataSourceExec>()
            && let Some((config, _)) = source.downcast_to_file_source::<ParquetSource>()
        {
            for file in config.file_groups.iter().flat_map(|group| group.files()) {
                self.files += 1;
                self.bytes = self.bytes.saturating_add(file.object_meta.size);
            }
        }
        plan.children().into_iter().for_each(|child| self.add(child.as_ref()));
    }

    /// Refuses a plan that reads more than its org may.
    pub(super) fn within(self, limits: &SqlLimits, org: &OrgName) -> Result<(), QueryError> {
        let most = limits.scan_bytes_of.get(org).copied().unwrap_or(limits.scan_bytes);
        if self.bytes <= most && self.files <= limits.scan_files {
            return Ok(());
        }
        Err(QueryError::TooBroad(format!(
            "the query would read {} files of {} bytes, and {} files of {most} bytes are allowed; put a condition on started_at, date or window_start, \
             or read tool_usage_daily",
            self.files, self.bytes, limits.scan_files
        )))
    }
}
