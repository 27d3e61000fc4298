//! (to be written)

/// One live Parquet file of a Delta table.
#[derive(Debug, Clone, PartialEq)]
pub struct DataFile {
    /// Full path in the store.
    pub path: object_store::path::Path,
    /// Size in bytes.
    pub size: u64,
    /// Rows in it.
    pub rows: u64,
    /// Partition value: days since the Unix epoch.
    pub date: i32,
    /// Least and greatest event time in it (`started_at` or `window_start`), in µs, where the log says.
    pub time_range: Option<(i64, i64)>,
}
