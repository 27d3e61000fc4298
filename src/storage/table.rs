//! One Delta table of one org: its files, and the log position that they hold.
//!
//! A commit adds files together with a Delta application transaction (`txn`, app id `mcpg.wal`) whose version is the
//! log position up to which the table now holds every sample. So files and position change in one atomic step: a crash
//! before it leaves files that no log names, a crash after it has the position, and replay does neither twice. Two
//! nodes that flush the same range race for one commit; the loser finds the position already there and drops its files.
//!
//! The table is made at its first flush. Reading its state needs a listing of Delta's log, and so happens at start and
//! after a flush, never on a query's path.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, NaiveDate};
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake_core::kernel::{Action, Add, StructType, Transaction};
use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::{DeltaTable, DeltaTableError};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;
use url::Url;
use uuid::Uuid;

use super::parquet::{EncodedFile, time_bounds};
use super::{StorageError, Store};
use crate::model::OrgName;
use crate::model::schema::PARTITION_COLUMN;

/// Who commits positions, in Delta's log.
const APP_ID: &str = "mcpg.wal";
/// How often to try a commit that fails while the table stays where it was.
const COMMIT_ATTEMPTS: usize = 3;

fn epoch() -> NaiveDate {
    DateTime::UNIX_EPOCH.date_naive()
}

/// One live Parquet file of a table.
#[derive(Debug, Clone, PartialEq)]
pub struct DataFile {
    /// Full path in the store.
    pub path: Path,
    /// Size in bytes.
    pub size: u64,
    /// Rows in it.
    pub rows: u64,
    /// Partition value: days since the Unix epoch. Of no meaning in a table that has no partitions.
    pub date: i32,
    /// Least and greatest event time in it (`started_at`, `window_start` or `occurred_at`), in µs, where it is known.
    pub time_range: Option<(i64, i64)>,
    /// Least and greatest `seq`, in a segment of a ledger.
    pub seq_range: Option<(i64, i64)>,
}

/// A table at one version.
#[derive(Debug, Clone, Default)]
pub struct TableSnapshot {
    /// It holds every sample up to and with this position.
    pub position: u64,
    /// Its files.
    pub files: Arc<Vec<DataFile>>,
}

/// See the module's doc.
pub struct Table {
    objects: Arc<dyn ObjectStore>,
    folder: Path,
    schema: SchemaRef,
    time_column: &'static str,
    delta: DeltaTable,
    known: HashMap<String, DataFile>,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("folder", &self.folder.as_ref()).finish_non_exhaustive()
    }
}

impl Table {
    /// Opens the table `name` of `org`, or says how it will be once its first flush has made it. `time_column` is the
    /// column whose bounds prune files.
    ///
    /// # Errors
    /// What the store says, or that Delta's log is damaged.
    pub async fn open(
        store: &Store,
        org: &OrgName,
        name: &str,
        schema: SchemaRef,
        time_column: &'static str,
    ) -> Result<(Self, TableSnapshot), StorageError> {
        let folder = Path::from(format!("orgs/{org}/{name}"));
        let objects = Arc::clone(store.objects());
        let delta = DeltaTable::new(log_store(&objects, &folder)?);
        let mut table = Self { objects, folder, schema, time_column, delta, known: HashMap::new() };
        let snapshot = table.refresh().await?;
        Ok((table, snapshot))
    }

    /// Reads what other nodes have committed since.
    ///
    /// # Errors
    /// What the store says, or that Delta's log is damaged.
    pub async fn refresh(&mut self) -> Result<TableSnapshot, StorageError> {
        if self.delta.version().is_none() && !self.exists().await? {
            return Ok(TableSnapshot::default());
        }
        self.delta.update_state().await.map_err(|e| self.unreadable(e))?;
        self.snapshot().await
    }

    /// Puts `files` into the store and commits them as all samples after `base`, which the caller took for the table's
    /// position, up to and with `position`. When another node has moved the table on meanwhile, nothing is added. The
    /// table as it then is comes back either way: its position tells which.
    ///
    /// # Errors
    /// What the store says. The commit may have happened all the same; `refresh` tells.
    pub async fn append(
        &mut self,
        files: Vec<EncodedFile>,
        base: u64,
        position: u64,
        written_at: i64,
        mut name: impl FnMut() -> Uuid,
    ) -> Result<TableSnapshot, StorageError> {
        if self.delta.version().is_none() {
            self.create().await?;
        }
        let mut adds = Vec::with_capacity(files.len());
        for file in files {
            let day = epoch() + chrono::TimeDelta::days(file.date.into());
            let path = format!("{PARTITION_COLUMN}={day}/{position:020}-{}.parquet", name().simple());
            let size = file.bytes.len();
            let whole = Path::from(format!("{}/{path}", self.folder));
            self.objects.put(&whole, file.bytes.into()).await.map_err(|e| StorageError::failed("write", &whole, e))?;
            adds.push(Add {
                path,
                partition_values: HashMap::from([(PARTITION_COLUMN.to_owned(), Some(day.to_string()))]),
                size: i64::try_from(size).unwrap_or(i64::MAX),
                modification_time: written_at / 1000,
                data_change: true,
                stats: Some(file.stats),
                tags: None,
                deletion_vector: None,
                base_row_id: None,
                default_row_commit_version: None,
                clustering_provider: None,
            });
        }
        let mut last = None;
        for _ in 0..COMMIT_ATTEMPTS {
            let now = self.snapshot().await?;
            if now.position != base {
                if !adds.iter().any(|add| self.known.contains_key(&add.path)) {
                    self.discard(&adds).await?;
                }
                return Ok(now);
            }
            match self.commit(&adds, position).await {
                Ok(()) => return self.snapshot().await,
                Err(e) => last = Some(e),
            }
            // Either another commit came first, or this one failed and may yet have happened: the table itself tells.
            self.refresh().await?;
        }
        let reason = last.map_or_else(|| "no attempt was made".to_owned(), |e| e.to_string());
        Err(StorageError::failed("commit to", &self.folder, reason))
    }

    async fn commit(&mut self, adds: &[Add], position: u64) -> Result<(), DeltaTableError> {
        let version = i64::try_from(position).map_err(|e| DeltaTableError::generic(e.to_string()))?;
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: Some(vec![PARTITION_COLUMN.to_owned()]),
            predicate: None,
        };
        let state = self.delta.snapshot()?;
        // No retries inside: a conflict must be looked at here, where the position decides.
        let properties = CommitProperties::default()
            .with_application_transaction(Transaction::new(APP_ID, version))
            .with_max_retries(0);
        let committed = CommitBuilder::from(properties)
            .with_actions(adds.iter().cloned().map(Action::Add).collect())
            .build(Some(state), self.delta.log_store(), operation)
            .await?;
        self.delta.state = Some(committed.snapshot());
        Ok(())
    }

    async fn create(&mut self) -> Result<(), StorageError> {
        let schema: StructType = self.schema.as_ref().try_into_kernel().map_err(|e| self.fault("create", e))?;
        let created = CreateBuilder::new()
            .with_log_store(self.delta.log_store())
            .with_columns(schema.fields().cloned())
            .with_partition_columns([PARTITION_COLUMN])
            .with_save_mode(SaveMode::ErrorIfExists)
            .await;
        match created {
            Ok(table) => self.delta = table,
            // Another node may have made it a moment ago; then it is there to be read.
            Err(e) if self.exists().await? => {
                tracing::debug!(table = %self.folder, error = %e, "the table was made by another node");
                self.delta.load().await.map_err(|e| self.unreadable(e))?;
            }
            Err(e) => return Err(self.fault("create", e)),
        }
        Ok(())
    }

    async fn exists(&self) -> Result<bool, StorageError> {
        self.delta.verify_deltatable_existence().await.map_err(|e| self.fault("look for", e))
    }

    async fn discard(&self, adds: &[Add]) -> Result<(), StorageError> {
        for add in adds {
            let path = Path::from(format!("{}/{}", self.folder, add.path));
            self.objects.delete(&path).await.map_err(|e| StorageError::failed("delete", &path, e))?;
        }
        Ok(())
    }

    async fn snapshot(&mut self) -> Result<TableSnapshot, StorageError> {
        let state = self.delta.snapshot().map_err(|e| self.unreadable(e))?;
        let log_store = self.delta.log_store();
        let position = state.transaction_version(log_store.as_ref(), APP_ID).await.map_err(|e| self.unreadable(e))?;
        let mut known = HashMap::with_capacity(self.known.len() + 1);
        for view in state.log_data().iter() {
            let path = view.path().into_owned();
            let file = match self.known.remove(&path) {
                Some(file) => file,
                None => {
                    let fault = |reason: &str| StorageError::damaged(format!("{}/{path}", self.folder), reason);
                    let stats: Value = view.stats().and_then(|s| serde_json::from_str(&s).ok()).unwrap_or_default();
                    let day = view.partition_values_map().get(PARTITION_COLUMN).cloned().flatten();
                    let day = day.and_then(|day| day.parse::<NaiveDate>().ok());
                    let day = day.ok_or_else(|| fault("its log entry has no partition date"))?;
                    DataFile {
                        path: Path::from(format!("{}/{path}", self.folder)),
                        size: u64::try_from(view.size()).map_err(|_| fault("its log entry has a negative size"))?,
                        rows: stats.get("numRecords").and_then(Value::as_u64).unwrap_or_default(),
                        date: i32::try_from((day - epoch()).num_days())
                            .map_err(|_| fault("its date is out of range"))?,
                        time_range: time_bounds(&stats, self.time_column),
                        seq_range: None,
                    }
                }
            };
            known.insert(path, file);
        }
        self.known = known;
        let mut files: Vec<_> = self.known.values().cloned().collect();
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(TableSnapshot {
            position: position.and_then(|p| u64::try_from(p).ok()).unwrap_or(0),
            files: Arc::new(files),
        })
    }

    /// A store that fails may do better later; a log that cannot be understood is damaged (invariant I2).
    fn unreadable(&self, e: DeltaTableError) -> StorageError {
        match e {
            DeltaTableError::ObjectStore { .. } => self.fault("read", e),
            e => StorageError::damaged(format!("the Delta log of {}", self.folder), e),
        }
    }

    fn fault(&self, action: &'static str, e: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StorageError {
        StorageError::failed(action, &self.folder, e)
    }
}

/// Delta's view of a folder of the store. The URL's scheme is of no consequence: paths are relative to the store.
fn log_store(objects: &Arc<dyn ObjectStore>, folder: &Path) -> Result<LogStoreRef, StorageError> {
    let url = Url::parse(&format!("store:///{folder}/")).map_err(|e| StorageError::failed("open", folder, e))?;
    let prefixed = Arc::new(PrefixStore::new(Arc::clone(objects), folder.clone()));
    Ok(default_logstore(prefixed, Arc::clone(objects), &url, &StorageConfig::default()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::{Date32Array, StringArray, TimestampMicrosecondArray};
    use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
    use arrow::record_batch::RecordBatch;
    use uuid::Uuid;

    use super::{DataFile, Table, TableSnapshot};
    use crate::storage::{Store, parquet};

    const HOUR: i64 = 3_600_000_000;

    fn schema() -> SchemaRef {
        let time = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
        let fields = [("at", time), ("tool", DataType::Utf8), ("date", DataType::Date32)];
        Arc::new(Schema::new(fields.map(|(name, data_type)| Field::new(name, data_type, false)).to_vec()))
    }

    fn files(hours: &[i64]) -> Vec<parquet::EncodedFile> {
        let times = TimestampMicrosecondArray::from(hours.iter().map(|h| h * HOUR).collect::<Vec<_>>());
        let dates = hours.iter().map(|h| (h / 24) as i32).collect::<Vec<i32>>();
        let tools = StringArray::from(vec!["t"; hours.len()]);
        let columns: Vec<arrow::array::ArrayRef> =
            vec![Arc::new(times.with_timezone("UTC")), Arc::new(tools), Arc::new(Date32Array::from(dates))];
        parquet::encode(&schema(), &[RecordBatch::try_new(schema(), columns).unwrap()], 1).unwrap()
    }

    async fn open(store: &Store) -> (Table, TableSnapshot) {
        Table::open(store, &"acme".parse().unwrap(), "t", schema(), "at").await.unwrap()
    }

    fn days(files: &[DataFile]) -> BTreeMap<i32, (u64, Option<(i64, i64)>)> {
        files.iter().map(|f| (f.date, (f.rows, f.time_range))).collect()
    }

    #[tokio::test]
    async fn a_commit_is_read_back_with_its_position_dates_and_bounds() {
        let store = Store::open("memory://").unwrap();
        let (mut table, empty) = open(&store).await;
        assert_eq!((empty.position, empty.files.len()), (0, 0));
        table.append(files(&[1, 2, 25]), 0, 7, 0, Uuid::new_v4).await.unwrap();
        let (_, again) = open(&store).await;
        assert_eq!(again.position, 7);
        let expected = [(0, (2, Some((HOUR, 2 * HOUR)))), (1, (1, Some((25 * HOUR, 25 * HOUR))))];
        assert_eq!(days(&again.files), BTreeMap::from(expected));
    }

    #[tokio::test]
    async fn of_two_nodes_that_flush_the_same_range_one_adds_files_and_the_other_takes_them_over() {
        let store = Store::open("memory://").unwrap();
        let ((mut one, _), (mut two, _)) = (open(&store).await, open(&store).await);
        one.append(files(&[1]), 0, 1, 0, Uuid::new_v4).await.unwrap();
        let (a, b) = futures::join!(
            one.append(files(&[2, 3]), 1, 5, 0, Uuid::new_v4),
            two.append(files(&[2, 3]), 1, 5, 0, Uuid::new_v4)
        );
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!((a.position, b.position), (5, 5));
        assert_eq!(a.files, b.files);
        assert_eq!(a.files.iter().map(|f| f.rows).sum::<u64>(), 3);
    }

    #[tokio::test]
    async fn a_node_whose_base_is_out_of_date_adds_nothing_and_learns_the_position() {
        let store = Store::open("memory://").unwrap();
        let ((mut one, _), (mut two, _)) = (open(&store).await, open(&store).await);
        one.append(files(&[1]), 0, 9, 0, Uuid::new_v4).await.unwrap();
        let late = two.append(files(&[1]), 0, 4, 0, Uuid::new_v4).await.unwrap();
        assert_eq!((late.position, late.files.len()), (9, 1));
    }
}
