//! The live files of a table, as Delta's log has them.

use std::collections::HashMap;
use std::sync::Arc;

use chrono::NaiveDate;
use object_store::path::Path;
use serde_json::Value;

use super::super::StorageError;
use super::super::parquet::{SOUGHT_ID, text_bounds, time_bounds};
use super::partitioning::number;
use super::{DataFile, POSITION, Partitioning, Table, TableSnapshot};

/// A live file, and what only its table's upkeep wants to know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct LiveFile {
    /// Its path in the table's folder, as Delta's log has it.
    pub name: String,
    /// The file as queries see it.
    pub data: DataFile,
    /// When it was added, in µs since the epoch.
    pub added_at: i64,
}

impl Table {
    /// The live files at the version that was read last, in order of path.
    pub fn live_files(&self) -> Vec<LiveFile> {
        let mut files: Vec<_> = self.known.values().cloned().collect();
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        files
    }

    /// Whether a file is live at the version that was read last.
    pub(super) fn is_live(&self, name: &str) -> bool {
        self.known.contains_key(name)
    }

    /// The table as of the version that was read last.
    pub(super) async fn snapshot(&mut self) -> Result<TableSnapshot, StorageError> {
        let own = self.position_app.clone();
        let mut position = self.transaction(&own).await?;
        if position == 0 {
            position = self.transaction(POSITION).await?;
        }
        let before = self.failures.count();
        let state = self.delta.snapshot().map_err(|e| self.unreadable(before, e))?;
        if position == 0 && state.log_data().num_files() > 0 {
            let reason = "it has files, and no position of this org and table: it is another's";
            return Err(StorageError::damaged(format!("{}/_delta_log", self.folder), reason));
        }
        let by = state.metadata().partition_columns().first().map_or("", |column| column.as_ref());
        let partitioning = Partitioning::by(by).ok_or_else(|| {
            StorageError::damaged(&self.folder, format!("it is partitioned by {by:?}, which no table of ours is"))
        })?;
        let mut known = HashMap::with_capacity(self.known.len() + 1);
        for view in state.log_data().iter() {
            let name = view.path().into_owned();
            let file = match self.known.remove(&name) {
                Some(file) => file,
                None => {
                    let path = Path::from(format!("{}/{name}", self.folder));
                    let fault = |reason: &str| StorageError::damaged(&path, reason);
                    let stats: Value = view.stats().and_then(|s| serde_json::from_str(&s).ok()).unwrap_or_default();
                    let value = view.partition_values_map().get(partitioning.column()).cloned().flatten();
                    let day = value.and_then(|day| day.parse::<NaiveDate>().ok()).map(number);
                    let date = day.ok_or_else(|| fault("its log entry has no partition date"))?;
                    // Queries take the bounds of a day where the times are not known.
                    let (begin, end) = partitioning.range(date);
                    let of_month = (partitioning == Partitioning::Month).then_some((begin, end - 1));
                    let data = DataFile {
                        size: u64::try_from(view.size()).map_err(|_| fault("its log entry has a negative size"))?,
                        rows: stats.get("numRecords").and_then(Value::as_u64).unwrap_or_default(),
                        date,
                        time_range: time_bounds(&stats, self.time_column).or(of_month),
                        seq_range: None,
                        id_range: text_bounds(&stats, SOUGHT_ID),
                        path,
                    };
                    LiveFile { name: name.clone(), data, added_at: view.modification_time().saturating_mul(1000) }
                }
            };
            known.insert(name, file);
        }
        self.partitioning = partitioning;
        self.known = known;
        let mut files: Vec<_> = self.known.values().map(|file| file.data.clone()).collect();
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(TableSnapshot { position, files: Arc::new(files) })
    }
}
