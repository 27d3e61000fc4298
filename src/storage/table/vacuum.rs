//! Files that no version names any more: which may be deleted, and the fence that keeps them from being committed after
//! all.
//!
//! In this order, see [`super`]: 1. the live files and those removed lately are read; 2. all files are listed; 3. a
//! fence is committed, and the table read; 4. what was listed, was neither live nor removed lately and is not live now
//! is deleted. Between the steps any time may pass, and others may commit.

use std::collections::HashSet;

use deltalake_core::DeltaTableError;
use deltalake_core::protocol::DeltaOperation;
use futures::TryStreamExt;
use object_store::path::Path;

use super::super::{StorageError, Store};
use super::commit::Commit;
use super::{FENCE, Table, TableSnapshot};

/// How often to try a fence that others come before.
const FENCE_ATTEMPTS: usize = 8;

/// What must not be deleted of a table.
#[derive(Debug, Clone, Default)]
pub struct Reclaimable {
    kept: HashSet<String>,
}

/// Files of a table's folder that are not needed, as far as is known: to be fenced off before they are deleted.
#[derive(Debug, Clone, Default)]
pub struct Orphans {
    /// Their paths in the table's folder.
    pub names: Vec<String>,
    /// Their bytes.
    pub bytes: u64,
}

impl Table {
    /// Reads which files are live, or were removed at or after `cutoff`, in µs since the epoch: queries that began
    /// before may read them.
    ///
    /// # Errors
    /// What the store says.
    pub async fn reclaimable(&mut self, cutoff: i64) -> Result<Reclaimable, StorageError> {
        self.refresh().await?;
        if self.delta.version().is_none() {
            return Ok(Reclaimable::default());
        }
        let before = self.failures.count();
        let log_store = self.delta.log_store();
        let state = self.delta.snapshot().map_err(|e| self.unreadable(before, e))?;
        let removed: Result<Vec<_>, _> = state.all_tombstones(log_store.as_ref()).try_collect().await;
        let removed = removed.map_err(|e| self.unreadable(before, e))?;
        let recent =
            removed.iter().filter(|file| file.deletion_timestamp().is_none_or(|at| at.saturating_mul(1000) >= cutoff));
        let kept = recent.map(|file| file.path().into_owned()).chain(self.known.keys().cloned()).collect();
        Ok(Reclaimable { kept })
    }

    /// Commits a fence, and says which of the orphans are not live after it: they can never be committed any more.
    ///
    /// # Errors
    /// What the store says.
    pub async fn fence_off(&mut self, orphans: Orphans) -> Result<(Vec<Path>, TableSnapshot), StorageError> {
        let mut last = None;
        for _ in 0..FENCE_ATTEMPTS {
            self.refresh().await?;
            let fence = self.fence().await?.saturating_add(1);
            let operation = DeltaOperation::VacuumStart {
                retention_check_enabled: true,
                specified_retention_millis: None,
                default_retention_millis: 86_400_000,
            };
            let commit = Commit { actions: Vec::new(), operation, transaction: Some((FENCE.to_owned(), fence)) };
            if let Err(e) = self.commit(commit).await? {
                last = Some(e);
                continue;
            }
            let snapshot = self.refresh().await?;
            // Another's will do as well, as long as it is newer than the list.
            if self.fence().await? >= fence {
                let gone = orphans.names.iter().filter(|name| !self.is_live(name));
                return Ok((gone.map(|name| self.path_of(name)).collect(), snapshot));
            }
        }
        let last = last.unwrap_or_else(|| DeltaTableError::generic("the commit is not in the table's log"));
        Err(self.fault("commit to", last))
    }
}

impl Reclaimable {
    /// The files of a table's folder that need not be kept and were written before `cutoff`, in µs since the epoch, by
    /// the store's clock.
    ///
    /// # Errors
    /// What the store says.
    pub async fn orphans(&self, store: &Store, table: &Path, cutoff: i64) -> Result<Orphans, StorageError> {
        let mut orphans = Orphans::default();
        for meta in store.list(table).await? {
            let name =
                meta.location.prefix_match(table).map(|parts| parts.map(|p| p.as_ref().to_owned()).collect::<Vec<_>>());
            let Some(name) = name.map(|parts| parts.join("/")) else { continue };
            let is_data = !name.starts_with('_') && name.ends_with(".parquet");
            if is_data && !self.kept.contains(&name) && meta.last_modified.timestamp_micros() < cutoff {
                orphans.bytes += meta.size;
                orphans.names.push(name);
            }
        }
        Ok(orphans)
    }
}
