//! One Delta table of one org: its files, and the log position that they hold.
//!
//! A commit adds files together with a Delta application transaction (`txn`, app id `mcpg.wal/<org>/<table>`) whose
//! version is the log position up to which the table now holds every sample. So files and position change in one atomic
//! step, and a table that was copied from another org is recognized by its lack of a position of this one (tables of
//! the first version say `mcpg.wal`): a crash before it leaves files that no log names, a crash after it has the
//! position, and replay does neither twice. Two nodes that flush the same range race for one commit; the loser finds
//! the position already there and drops its files.
//!
//! The table is made at its first flush. Reading its state needs a listing of Delta's log, and so happens at start and
//! after a flush, never on a query's path.
//!
//! | file | holds |
//! |---|---|
//! | `commit` | adding files with a position, replacing files by others |
//! | `files` | the live files as Delta's log has them |
//! | `log` | checkpoints of Delta's log, and deleting what is before them |
//! | `vacuum` | the fence that makes deleting files safe |
//! | `partitioning` | days and months |
//!
//! **Failed commits.** One that failed may have happened. Before the table is read again, its version is made sure of:
//! what a folder shows whose fsync failed may be gone after a power cut, when the log is already trimmed of what it
//! held.
//!
//! **Sleepers.** A commit creates the version after the one that was read. A process that slept between the two may
//! create a version that was there, and is gone since its log was truncated: it would never be read. So a commit is
//! believed when a listing made after it shows no checkpoint at or after its version; otherwise the table is read anew,
//! and tells.
//!
//! **Deleting files.** A file may be committed only on a version that was read before the file was put into the store,
//! or on one that has the same *fence* as that one. A vacuum lists the files, commits a new fence, and then deletes
//! those of the list that no version up to the fence names. So the writer of a file that a vacuum takes for an orphan
//! cannot commit it any more, however long it slept. It writes its files again instead, under new names.

mod commit;
mod files;
mod log;
mod partitioning;
#[cfg(test)]
mod tests;
mod vacuum;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use chrono::{DateTime, NaiveDate};
use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::kernel::{DataType, Metadata, MetadataExt, StructField, StructType};
use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::SaveMode;
use deltalake_core::{DeltaTable, DeltaTableError};
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt};
use serde_json::Value;
use url::Url;

pub use commit::{Replaced, Replacement, WrittenFile};
pub use files::LiveFile;
pub use log::cut_log;
pub use partitioning::Partitioning;
pub use vacuum::{Orphans, Reclaimable};

use super::watched::{Failures, Watched};
use super::{StorageError, Store};
use crate::model::OrgName;
use crate::model::schema::TOOL_USAGE_DAILY;

/// Who commits positions, in Delta's log.
const POSITION: &str = "mcpg.wal";
/// Who commits fences, in Delta's log.
const FENCE: &str = "mcpg.vacuum";

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
    /// Least and greatest `invocation_id` in it, where they are known. Ids of version 7 begin with their time, so that
    /// those of a day lie in few files; others prune nothing.
    pub id_range: Option<(Arc<str>, Arc<str>)>,
}

/// A table at one version.
#[derive(Debug, Clone, Default)]
pub struct TableSnapshot {
    /// It holds every sample up to and with this position.
    pub position: u64,
    /// Its files.
    pub files: Arc<Vec<DataFile>>,
}

/// A Delta table, open for reading and committing.
pub struct Table {
    store: Store,
    objects: Arc<dyn ObjectStore>,
    folder: Path,
    /// Who commits positions of this table.
    position_app: String,
    schema: SchemaRef,
    time_column: &'static str,
    delta: DeltaTable,
    /// What failed in the store beneath Delta.
    failures: Failures,
    known: HashMap<String, LiveFile>,
    /// What was read of transactions, and at which version: to read one is to read the log from its newest checkpoint
    /// on.
    transactions: HashMap<String, (u64, u64)>,
    /// The version of the newest checkpoint of Delta's log, as far as is known.
    checkpointed: Option<u64>,
    partitioning: Partitioning,
    /// A version whose creation failed, and which may be there all the same.
    unsettled: Option<u64>,
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
        let watched = Watched::new(Arc::clone(&objects));
        let failures = watched.failures();
        let delta = DeltaTable::new(log_store(&(Arc::new(watched) as Arc<dyn ObjectStore>), &folder)?);
        let partitioning = if name == TOOL_USAGE_DAILY { Partitioning::Month } else { Partitioning::Day };
        let mut table = Self {
            store: store.clone(),
            objects,
            folder,
            position_app: format!("{POSITION}/{org}/{name}"),
            schema,
            time_column,
            delta,
            failures,
            known: HashMap::new(),
            transactions: HashMap::new(),
            checkpointed: None,
            partitioning,
            unsettled: None,
        };
        let snapshot = table.refresh().await?;
        Ok((table, snapshot))
    }

    /// Reads what other nodes have committed since.
    ///
    /// # Errors
    /// What the store says, or that Delta's log is damaged.
    pub async fn refresh(&mut self) -> Result<TableSnapshot, StorageError> {
        self.settle().await?;
        if self.delta.version().is_none() && !self.exists().await? {
            return Ok(TableSnapshot::default());
        }
        if self.is_newest().await? {
            return self.snapshot().await;
        }
        let is_first = self.delta.version().is_none();
        let before = self.failures.count();
        let refreshed = match self.delta.update_state().await.map_err(|e| self.unreadable(before, e)) {
            Ok(()) => self.snapshot().await,
            Err(e) => Err(e),
        };
        match refreshed {
            // What was known may be older than what is left of the log: read from its beginning, it tells.
            Err(e) if e.is_damage() && !is_first => {
                tracing::debug!(table = %self.folder, error = %e, "the table is read anew");
                self.reload().await
            }
            Err(e) if e.is_damage() => Err(self.name_corrupt().await.unwrap_or(e)),
            refreshed => refreshed,
        }
    }

    /// Whether the version that was read last is the newest: none comes after it, and it is there, so that the log was
    /// not cut past it. Most refreshes find it so, and Delta's own look costs a listing and the reading of what it
    /// knows.
    async fn is_newest(&self) -> Result<bool, StorageError> {
        let Some(version) = self.delta.version() else { return Ok(false) };
        Ok(self.store.head(&self.commit_path(version + 1)).await?.is_none()
            && self.store.head(&self.commit_path(version)).await?.is_some())
    }

    fn commit_path(&self, version: u64) -> Path {
        Path::from(format!("{}/{version:020}.json", self.log_folder()))
    }

    /// Makes sure that a version whose creation failed is there for good, if it is there: on a folder whose fsync
    /// failed it can be read, and be gone after a power cut.
    async fn settle(&mut self) -> Result<(), StorageError> {
        let Some(version) = self.unsettled else { return Ok(()) };
        let path = self.commit_path(version);
        if let Some(found) = self.store.get(&path).await? {
            self.store.settle(&path, found).await?;
        }
        self.unsettled = None;
        Ok(())
    }

    /// Reads the table as if nothing were known of it.
    async fn reload(&mut self) -> Result<TableSnapshot, StorageError> {
        self.delta.state = None;
        self.transactions.clear();
        self.checkpointed = None;
        let before = self.failures.count();
        let loaded = match self.delta.load().await.map_err(|e| self.unreadable(before, e)) {
            Ok(()) => self.snapshot().await,
            Err(e) => Err(e),
        };
        match loaded {
            Err(e) if e.is_damage() => Err(self.name_corrupt().await.unwrap_or(e)),
            loaded => loaded,
        }
    }

    /// The first commit of Delta's log that is not lines of JSON, since Delta's libraries do not name it.
    async fn name_corrupt(&self) -> Option<StorageError> {
        let mut listed: Vec<_> = self.objects.list(Some(&self.log_folder())).try_collect().await.ok()?;
        listed.sort_unstable_by(|a, b| a.location.cmp(&b.location));
        for meta in listed.into_iter().filter(|meta| meta.location.extension() == Some("json")) {
            let bytes = self.objects.get(&meta.location).await.ok()?.bytes().await.ok()?;
            let fault = bytes
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .find_map(|line| serde_json::from_slice::<Value>(line).err());
            if let Some(fault) = fault {
                return Some(StorageError::damaged(&meta.location, fault));
            }
        }
        None
    }

    /// How its files are put into partitions.
    pub fn partitioning(&self) -> Partitioning {
        self.partitioning
    }

    /// Its version; none before its first flush.
    pub fn version(&self) -> Option<u64> {
        self.delta.version()
    }

    /// Where its files lie in the store.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn log_folder(&self) -> Path {
        Path::from(format!("{}/_delta_log", self.folder))
    }

    async fn create(&mut self) -> Result<(), StorageError> {
        let schema: StructType = self.schema.as_ref().try_into_kernel().map_err(|e| self.fault("create", e))?;
        let months = (self.partitioning == Partitioning::Month)
            .then(|| StructField::new(self.partitioning.column(), DataType::DATE, false));
        let created = CreateBuilder::new()
            .with_log_store(self.delta.log_store())
            .with_columns(schema.fields().cloned().chain(months))
            .with_partition_columns([self.partitioning.column()])
            .with_save_mode(SaveMode::ErrorIfExists)
            .await;
        match created {
            Ok(table) => self.delta = table,
            // Another node may have made it a moment ago, or this one has: then it is there to be read.
            Err(e) if self.exists().await? => {
                tracing::debug!(table = %self.folder, error = %e, "the table is there already");
                self.unsettled = Some(0);
                self.settle().await?;
                let before = self.failures.count();
                self.delta.load().await.map_err(|e| self.unreadable(before, e))?;
            }
            Err(e) => return Err(self.fault("create", e)),
        }
        Ok(())
    }

    /// What a commit has to say of the table's columns, where this version of the program has some that the table
    /// lacks: they come after those it has, and files that were written before have none of them. `None`: it has them
    /// all.
    fn widened(&self) -> Result<Option<Metadata>, StorageError> {
        let state = self.delta.snapshot().map_err(|e| self.fault("read", e))?;
        let (known, wanted) = (state.schema(), self.schema.as_ref().try_into_kernel());
        let wanted: StructType = wanted.map_err(|e| self.fault("widen", e))?;
        let missing: Vec<StructField> =
            wanted.fields().filter(|field| !known.contains(field.name())).cloned().collect();
        if missing.is_empty() {
            return Ok(None);
        }
        let schema = StructType::try_new(known.fields().cloned().chain(missing)).map_err(|e| self.fault("widen", e))?;
        state.metadata().clone().with_schema(&schema).map(Some).map_err(|e| self.fault("widen", e))
    }

    async fn exists(&self) -> Result<bool, StorageError> {
        self.delta.verify_deltatable_existence().await.map_err(|e| self.fault("look for", e))
    }

    /// The version that a transaction of Delta's log has at the table's version; 0 without one.
    async fn transaction(&mut self, app: &str) -> Result<u64, StorageError> {
        let before = self.failures.count();
        let state = self.delta.snapshot().map_err(|e| self.unreadable(before, e))?;
        let version = state.version();
        if let Some((_, known)) = self.transactions.get(app).filter(|(at, _)| *at == version) {
            return Ok(*known);
        }
        let log_store = self.delta.log_store();
        let found = state.transaction_version(log_store.as_ref(), app).await;
        let found = found.map_err(|e| self.unreadable(before, e))?;
        let found = found.and_then(|found| u64::try_from(found).ok()).unwrap_or(0);
        self.transactions.insert(app.to_owned(), (version, found));
        Ok(found)
    }

    /// A store that fails may do better later; a log that arrived whole and cannot be understood is damaged (invariant
    /// I2). `before` is how much had failed in the store when the call began that ended with `e`: Delta's libraries do
    /// not always say what their errors come from.
    fn unreadable(&self, before: u64, e: DeltaTableError) -> StorageError {
        if self.failures.count() > before {
            return self.fault("read", e);
        }
        match StorageError::read(format!("the Delta log of {}", self.folder), e) {
            // The rest of Delta's text may be a backtrace.
            StorageError::Damaged { object, reason } => {
                StorageError::Damaged { object, reason: reason.lines().next().unwrap_or_default().to_owned() }
            }
            e => e,
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
