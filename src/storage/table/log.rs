//! Checkpoints of Delta's log, and cutting the log before them. Neither belongs to a flush: to list the log at each
//! commit costs more the longer it is.
//!
//! A checkpoint holds all live files and the transactions at one version, so that readers need no commit before it. The
//! log is cut before the newest checkpoint that is a day old by the store's clock: who began to read the table within
//! that day (other engines too) finds all that it looks for.

use deltalake_core::protocol::checkpoints::create_checkpoint;
use object_store::path::Path;
use object_store::{Error, ObjectMeta, ObjectStoreExt};
use serde_json::Value;

use super::super::{StorageError, Store};
use super::Table;

/// Commits from one checkpoint to the next.
const CHECKPOINT_EVERY: u64 = 50;

impl Table {
    /// Makes a checkpoint at the version that was read last, if the newest is so many commits before it. Says whether
    /// it did.
    ///
    /// # Errors
    /// What the store says; trying again is safe.
    pub async fn checkpoint(&mut self) -> Result<bool, StorageError> {
        let Some(version) = self.delta.version() else { return Ok(false) };
        if self.checkpointed.is_none() {
            self.checkpointed = Some(self.last_checkpoint().await?);
        }
        if version.saturating_sub(self.checkpointed.unwrap_or(0)) < CHECKPOINT_EVERY {
            return Ok(false);
        }
        // The one that is there may be another node's.
        let newest = self.last_checkpoint().await?;
        self.checkpointed = Some(newest);
        if version.saturating_sub(newest) < CHECKPOINT_EVERY {
            return Ok(false);
        }
        self.checkpoint_now().await.map(|()| true)
    }

    /// Makes a checkpoint at the version that was read last, unless that has one: once it is a day old, the commits
    /// before it go.
    ///
    /// # Errors
    /// What the store says; trying again is safe.
    pub async fn checkpoint_past(&mut self) -> Result<(), StorageError> {
        if self.delta.version() == Some(self.last_checkpoint().await?) {
            return Ok(());
        }
        self.checkpoint_now().await
    }

    async fn checkpoint_now(&mut self) -> Result<(), StorageError> {
        let Some(version) = self.delta.version() else { return Ok(()) };
        create_checkpoint(&self.delta, None).await.map_err(|e| self.fault("make a checkpoint of", e))?;
        self.checkpointed = Some(version);
        Ok(())
    }

    /// The version that the hint at the newest checkpoint names; 0 without a hint.
    async fn last_checkpoint(&self) -> Result<u64, StorageError> {
        let path = Path::from(format!("{}/_last_checkpoint", self.log_folder()));
        let failed = |e| StorageError::failed("read", &path, e);
        let hint = match self.objects.get(&path).await {
            Ok(found) => found.bytes().await.map_err(failed)?,
            Err(Error::NotFound { .. }) => return Ok(0),
            Err(e) => return Err(failed(e)),
        };
        // It is a hint: one that cannot be read is as good as none.
        let hint: Value = serde_json::from_slice(&hint).unwrap_or_default();
        Ok(hint.get("version").and_then(Value::as_u64).unwrap_or(0))
    }
}

/// Deletes what Delta's log of a table has before the newest checkpoint that was made before `cutoff`, in µs since the
/// epoch. Says how many objects.
///
/// # Errors
/// What the store says; trying again is safe.
pub async fn cut_log(store: &Store, table: &Path, cutoff: i64) -> Result<usize, StorageError> {
    let listed = store.list(&Path::from(format!("{table}/_delta_log"))).await?;
    let checkpoints =
        listed.iter().filter(|meta| is_checkpoint(meta) && meta.last_modified.timestamp_micros() < cutoff);
    let Some(newest) = checkpoints.filter_map(version).max() else { return Ok(0) };
    let needless = |meta: &&ObjectMeta| {
        version(meta).is_some_and(|version| version < newest) && meta.last_modified.timestamp_micros() < cutoff
    };
    let needless: Vec<_> = listed.iter().filter(needless).map(|meta| meta.location.clone()).collect();
    let count = needless.len();
    if count > 0 {
        store.delete_all(needless).await?;
    }
    Ok(count)
}

fn is_checkpoint(meta: &ObjectMeta) -> bool {
    // One in a single file: of one in several parts, or with sidecars, none is ours.
    meta.location.filename().is_some_and(|name| name.ends_with(".checkpoint.parquet"))
}

/// The version that an object of Delta's log is of; none of a hint.
fn version(meta: &ObjectMeta) -> Option<u64> {
    let (number, _) = meta.location.filename()?.split_once('.')?;
    if number.len() == 20 { number.parse().ok() } else { None }
}
