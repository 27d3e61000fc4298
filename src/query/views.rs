//! The rollup tables as queries see them: one row a window and series, merged from the partial rows in the files and
//! from partial rows made on the spot of the samples that the files do not hold yet.
//!
//! They are plain SQL over the tables below, inlined into the query, so a filter on a window or a series goes down into
//! the scan of both sides before anything is merged.

use crate::rollup::Granularity;

/// The name that [`merged_sql`] knows the stored partial rows by.
pub(super) const FILES: &str = "files";
/// The name that [`merged_sql`] knows the partial rows of live samples by.
pub(super) const FRESH: &str = "fresh";

/// The statement that merges the stored partial rows with those of live samples.
pub(super) fn merged_sql(granularity: Granularity) -> &'static str {
    match granularity {
        Granularity::Hour => include_str!("../../queries/usage_hourly.sql"),
        Granularity::Day => include_str!("../../queries/usage_daily.sql"),
    }
}
