//! (to be written)
use arrow::record_batch::RecordBatch;

use super::{Granularity, RollupError};
use crate::model::schema::schemas;

/// The SQL over a table `samples` of canonical batches that gives partial rollups.
pub const fn partials_sql(granularity: Granularity) -> &'static str {
    match granularity {
        Granularity::Hour => include_str!("../../queries/rollup_hourly.sql"),
        Granularity::Day => include_str!("../../queries/rollup_daily.sql"),
    }
}

/// The partial rollups of some canonical batches: rows of `tool_usage_hourly` or `tool_usage_daily`.
///
/// # Errors
/// When the query fails.
pub async fn partials(granularity: Granularity, batches: &[RecordBatch]) -> Result<RecordBatch, RollupError> {
    let _ = batches;
    let schema = match granularity {
        Granularity::Hour => &schemas()?.tool_usage_hourly,
        Granularity::Day => &schemas()?.tool_usage_daily,
    };
    Ok(RecordBatch::new_empty(schema.clone()))
}
