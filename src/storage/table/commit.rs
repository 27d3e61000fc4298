//! Committing to a table: files with the position that they bring it to, or files in place of others.
//!
//! | commit | adds | removes | `dataChange` | on a conflict |
//! |---|---|---|---|---|
//! | a flush | files of samples after a position | none | true | the position decides: goes on if it is still the same, with files put anew |
//! | a merge | the same rows in other files | the files that they were in | false | goes on only if each of those is still live |
//! | retention, erasure | nothing, or files with fewer rows | files | true | the same |
//!
//! Each attempt names one version, the one after what was read, and the library repeats nothing: its own check lets two
//! merges of the same files both succeed. Neither checkpoints are made nor is the log cut in a commit: see `log`.

use std::collections::HashMap;

use deltalake_core::DeltaTableError;
use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake_core::kernel::{Action, Add, Remove, Transaction};
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use futures::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use uuid::Uuid;

use super::super::StorageError;
use super::super::parquet::EncodedFile;
use super::{FENCE, LiveFile, Table, TableSnapshot};

/// How often to try a commit that fails while the table stays where it was.
const COMMIT_ATTEMPTS: usize = 3;
/// How often to try a commit that others come before. Flushes come at their interval, and a commit takes a fraction of
/// a second.
const REPLACE_ATTEMPTS: usize = 8;

/// A file that was put into the store and is to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// Its path in the table's folder.
    pub name: String,
    /// Its partition.
    pub partition: i32,
    /// Size in bytes.
    pub size: u64,
    /// Delta's statistics, JSON.
    pub stats: String,
}

/// Files to take the place of others.
#[derive(Debug, Clone)]
pub struct Replacement {
    /// The live files that go.
    pub inputs: Vec<LiveFile>,
    /// The files that come.
    pub outputs: Vec<WrittenFile>,
    /// The table's fence as it was read before the first of them was put.
    pub fence: u64,
    /// Whether rows come or go, rather than being the same in other files.
    pub changes_rows: bool,
    /// What Delta's log says of it.
    pub operation: DeltaOperation,
}

/// What became of a replacement.
#[derive(Debug, Clone)]
pub enum Replaced {
    /// It is done.
    Done(TableSnapshot),
    /// Something else was done to the files meanwhile. Nothing was changed.
    Stale(TableSnapshot),
}

/// What a commit consists of.
pub(super) struct Commit {
    pub(super) actions: Vec<Action>,
    pub(super) operation: DeltaOperation,
    pub(super) transaction: Option<(String, u64)>,
}

impl Table {
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
        let mut last = None;
        for attempt in 0..=COMMIT_ATTEMPTS {
            let now = self.snapshot().await?;
            // What was put for nothing is left to the vacuum: a commit that failed may have happened, and its files
            // been read, or merged since.
            if now.position != base {
                return Ok(now);
            }
            if attempt == COMMIT_ATTEMPTS {
                break;
            }
            // Anew at each attempt: a file is committed on no version but one that was read before it was put.
            let adds = self.put(&files, position, written_at, &mut name).await?;
            let operation = DeltaOperation::Write {
                mode: SaveMode::Append,
                partition_by: Some(vec![self.partitioning.column().to_owned()]),
                predicate: None,
            };
            let widened = self.widened()?.map(Action::Metadata);
            let actions = widened.into_iter().chain(adds.into_iter().map(Action::Add)).collect();
            if let Err(e) = self
                .commit(Commit { actions, operation, transaction: Some((self.position_app.clone(), position)) })
                .await?
            {
                // Either another commit came first, or this one failed and may yet have happened: the table itself
                // tells.
                last = Some(e);
                self.refresh().await?;
            }
        }
        let last = last.unwrap_or_else(|| DeltaTableError::generic("the commit is not in the table's log"));
        Err(self.fault("commit to", last))
    }

    async fn put(
        &self,
        files: &[EncodedFile],
        position: u64,
        written_at: i64,
        name: &mut impl FnMut() -> Uuid,
    ) -> Result<Vec<Add>, StorageError> {
        let mut adds = Vec::with_capacity(files.len());
        for file in files {
            let file_name = format!("{position:020}-{}.parquet", name().simple());
            let written = WrittenFile {
                name: self.partitioning.place(file.date, &file_name),
                partition: file.date,
                size: file.bytes.len() as u64,
                stats: file.stats.clone(),
            };
            let whole = self.path_of(&written.name);
            let put = self.objects.put(&whole, file.bytes.clone().into()).await;
            put.map_err(|e| StorageError::failed("write", &whole, e))?;
            adds.push(self.add(written, written_at, true));
        }
        Ok(adds)
    }

    /// The whole path of a file of the table's folder.
    pub(super) fn path_of(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.folder))
    }

    fn partition_values(&self, partition: i32) -> HashMap<String, Option<String>> {
        HashMap::from([(self.partitioning.column().to_owned(), Some(self.partitioning.value(partition)))])
    }

    fn add(&self, file: WrittenFile, added_at: i64, changes_rows: bool) -> Add {
        Add {
            partition_values: self.partition_values(file.partition),
            path: file.name,
            size: i64::try_from(file.size).unwrap_or(i64::MAX),
            modification_time: added_at / 1000,
            data_change: changes_rows,
            stats: Some(file.stats),
            tags: None,
            deletion_vector: None,
            base_row_id: None,
            default_row_commit_version: None,
            clustering_provider: None,
        }
    }

    fn remove(&self, file: &LiveFile, now: i64, changes_rows: bool) -> Remove {
        Remove {
            path: file.name.clone(),
            data_change: changes_rows,
            deletion_timestamp: Some(now / 1000),
            extended_file_metadata: Some(true),
            partition_values: Some(self.partition_values(file.data.date)),
            size: i64::try_from(file.data.size).ok(),
            tags: None,
            deletion_vector: None,
            base_row_id: None,
            default_row_commit_version: None,
        }
    }

    /// Puts files in the place of others, if each of those is live on the version that the commit is made upon.
    ///
    /// # Errors
    /// What the store says. It may have happened all the same.
    pub async fn replace(&mut self, replacement: &Replacement, now: i64) -> Result<Replaced, StorageError> {
        let Replacement { inputs, outputs, fence, changes_rows, operation } = replacement;
        let mut last = None;
        for attempt in 0..=REPLACE_ATTEMPTS {
            let snapshot = self.refresh().await?;
            if attempt > 0 && !outputs.is_empty() && outputs.iter().all(|output| self.is_live(&output.name)) {
                return Ok(Replaced::Done(snapshot));
            }
            if !inputs.iter().all(|input| self.is_live(&input.name)) {
                let gone = inputs.iter().all(|input| !self.is_live(&input.name));
                // Of what only removes, the attempt before may have done all that is wanted. Without one others did so,
                // and perhaps put the same rows elsewhere.
                return Ok(if attempt > 0 && outputs.is_empty() && gone {
                    Replaced::Done(snapshot)
                } else {
                    Replaced::Stale(snapshot)
                });
            }
            if !outputs.is_empty() && self.fence().await? != *fence {
                return Ok(Replaced::Stale(snapshot));
            }
            if attempt == REPLACE_ATTEMPTS {
                break;
            }
            let removes = inputs.iter().map(|input| Action::Remove(self.remove(input, now, *changes_rows)));
            let adds = outputs.iter().map(|output| Action::Add(self.add(output.clone(), now, *changes_rows)));
            let actions = removes.chain(adds).collect();
            let commit = Commit { actions, operation: operation.clone(), transaction: None };
            match self.commit(commit).await? {
                Ok(()) => {}
                Err(e) => last = Some(e),
            }
        }
        let last = last.unwrap_or_else(|| DeltaTableError::generic("the commit is not in the table's log"));
        Err(self.fault("commit to", last))
    }

    /// The table's fence at the version that was read last: see the module's doc.
    ///
    /// # Errors
    /// What the store says.
    pub async fn fence(&mut self) -> Result<u64, StorageError> {
        match self.delta.version() {
            None => Ok(0),
            Some(_) => self.transaction(FENCE).await,
        }
    }

    /// Commits upon the version that was read last, once. Where it seems to have succeeded and may be none of the
    /// table's log, the table is read anew.
    pub(super) async fn commit(&mut self, commit: Commit) -> Result<Result<(), DeltaTableError>, StorageError> {
        let Commit { actions, operation, transaction } = commit;
        let before = self.failures.count();
        let state = self.delta.snapshot().map_err(|e| self.unreadable(before, e))?;
        let read = state.version();
        // No retries inside: a conflict must be looked at by the caller.
        let mut properties = CommitProperties::default()
            .with_max_retries(0)
            .with_create_checkpoint(false)
            .with_cleanup_expired_logs(Some(false));
        if let Some((app, version)) = &transaction {
            let version = i64::try_from(*version).map_err(|e| self.fault("commit to", e))?;
            properties = properties.with_application_transaction(Transaction::new(app, version));
        }
        let committed = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(state), self.delta.log_store(), operation)
            .await;
        let committed = match committed {
            Ok(committed) => committed,
            Err(e) => {
                self.unsettled = Some(read + 1);
                return Ok(Err(e));
            }
        };
        let at = committed.version();
        self.delta.state = Some(committed.snapshot());
        // What no commit changed is at this version what it was at the one before.
        for (app, (version, value)) in &mut self.transactions {
            match &transaction {
                Some((named, new)) if app == named => (*version, *value) = (at, *new),
                _ if *version == read => *version = at,
                _ => {}
            }
        }
        if !self.is_believed(at).await? {
            tracing::warn!(table = %self.folder, version = at, "a commit may have come too late: the table is read anew");
            self.reload().await?;
        }
        Ok(Ok(()))
    }

    /// Whether Delta's log, listed now, has no checkpoint at or after a version: then what was created there is a part
    /// of it.
    async fn is_believed(&self, version: u64) -> Result<bool, StorageError> {
        let folder = self.log_folder();
        // Before all names that begin with the version, and after all of the ones before.
        let from = Path::from(format!("{folder}/{version:020}"));
        let mut listed = self.objects.list_with_offset(Some(&folder), &from);
        while let Some(meta) = listed.next().await {
            let meta = meta.map_err(|e| StorageError::failed("list", &folder, e))?;
            let name = meta.location.filename().unwrap_or_default();
            if name.starts_with(|first: char| first.is_ascii_digit()) && name.contains(".checkpoint") {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
